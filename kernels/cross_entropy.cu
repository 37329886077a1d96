// Cross-entropy of rows of logits, with the gradient in the place of the logits.
//
//   loss_n = logsumexp(logits_n) - logits_n[target_n]
//   logits_n <- softmax(logits_n) - onehot(target_n)                the gradient of the sum of the losses
//   a negative target: loss 0, gradient 0
//
// A block takes one row. It reads it twice, for the sum and for the gradient: two blocks of 512 threads on each multiprocessor hold
// 26 MB of rows of 50,257 16-bit numbers on an H200, half of its L2 cache, where the second reading finds them. A row begins at a multiple of
// 16 bytes: after its `columns` numbers it is filled up to `pitch`, a multiple of VECTOR. What the filling holds is not read; it counts as -inf,
// and its gradient is 0. A thread takes pieces of VECTOR neighbours, PIECES of them under way at a time.
// SCALAR is the type of the logits; all arithmetic is float.
#include "common.cuh"
#ifndef SCALAR
#define SCALAR float
#endif
#define VECTOR (16 / (int)sizeof(SCALAR))
#define PIECES 4
#define LOWEST -3.402823466e38f  // and not -inf: -inf minus itself is NaN
#define FOR_MY_PIECES(end) for (int first = threadIdx.x * VECTOR; first < end; first += PIECES * blockDim.x * VECTOR)
#define FOR_THESE_PIECES _Pragma("unroll") for (int i = 0; i < PIECES; i++)
#define FOR_ITS_NUMBERS _Pragma("unroll") for (int j = 0; j < VECTOR; j++)

typedef Pack<SCALAR, VECTOR> Piece;

__device__ __forceinline__ Piece load_clipped(const SCALAR* row, int c, int columns) {
  if (c + VECTOR <= columns) return load_pack<SCALAR, VECTOR>(row + c);
  Piece piece;
  FOR_ITS_NUMBERS piece.v[j] = c + j < columns ? row[c + j] : from_float<SCALAR>(NEG_INF);
  return piece;
}

// A maximum and a sum of exp(logit - maximum) of each thread become those of the block, the same in every thread.
__device__ __forceinline__ void block_softmax(float& top, float& sum, float* tops, float* sums) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  float of_warp = warp_max(top);
  sum = warp_sum(sum * fast_exp(top - of_warp));
  if (lane == 0) tops[warp] = of_warp, sums[warp] = sum;
  __syncthreads();
  float other = lane < warps ? tops[lane] : LOWEST;
  top = warp_max(other);
  sum = warp_sum(lane < warps ? sums[lane] * fast_exp(other - top) : 0.0f);
}

extern "C" __global__ void __launch_bounds__(512, 2) cross_entropy(SCALAR* logits, float* losses, const i64* targets, int columns, int pitch,
                                                                    int gradient) {
  __shared__ float tops[32], sums[32];
  SCALAR* row = logits + (u64)blockIdx.x * pitch;
  i64 target = targets[blockIdx.x];

  if (target < 0) {
    if (threadIdx.x == 0) losses[blockIdx.x] = 0.0f;
    Piece zeros;
    FOR_ITS_NUMBERS zeros.v[j] = from_float<SCALAR>(0.0f);
    if (gradient) for (int c = threadIdx.x * VECTOR; c < pitch; c += blockDim.x * VECTOR) store_pack<SCALAR, VECTOR>(row + c, zeros);
    return;
  }
  int goal = target < columns ? (int)target : -1;
  float right = goal >= 0 ? to_float(row[goal]) : __int_as_float(0x7fc00000);  // read before it is overwritten; NaN for a target that there is not

  float top = LOWEST, sum = 0.0f;
  FOR_MY_PIECES(columns) {
    Piece mine[PIECES];
    FOR_THESE_PIECES mine[i] = load_clipped(row, first + i * blockDim.x * VECTOR, columns);
    FOR_THESE_PIECES {
      float highest = top;
      FOR_ITS_NUMBERS highest = fmaxf(highest, to_float(mine[i].v[j]));
      sum *= fast_exp(top - highest);
      FOR_ITS_NUMBERS sum += fast_exp(to_float(mine[i].v[j]) - highest);
      top = highest;
    }
  }
  block_softmax(top, sum, tops, sums);
  if (threadIdx.x == 0) losses[blockIdx.x] = top - right + logf(sum);
  if (!gradient) return;
  float share = 1.0f / sum;

  FOR_MY_PIECES(pitch) {
    Piece mine[PIECES];
    FOR_THESE_PIECES mine[i] = load_clipped(row, first + i * blockDim.x * VECTOR, columns);
    FOR_THESE_PIECES {
      int c = first + i * blockDim.x * VECTOR;
      FOR_ITS_NUMBERS mine[i].v[j] = from_float<SCALAR>(fast_exp(to_float(mine[i].v[j]) - top) * share - (c + j == goal ? 1.0f : 0.0f));
      if (c < pitch) store_pack<SCALAR, VECTOR>(row + c, mine[i]);
    }
  }
}
