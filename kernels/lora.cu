// The low-rank half of a LoRA linear, y = x W^T + b + s (x' A^T) B^T with x' = dropout(x), around the products with W.
//
//   forward      u = s x' A^T        y += u B^T                        (down, then up into what x W^T + b wrote: y is read and written once)
//   backward     du = s dy B         dx += keep / (1 - p) * du A       dA = du^T x'        dB^T = u^T dy
//
// All of it in three kernels, over a wide tensor (rows, columns) of SCALAR, a narrow one (rows, RANK) and a matrix (RANK, columns) for each adapter,
// both float: B is passed transposed. `adapter` names the matrix of each row (null: all take the first; -1: the row has none and is left alone).
#include "common.cuh"
#ifndef SCALAR
#define SCALAR float
#endif
#ifndef RANK
#define RANK 8
#endif
#ifndef VECTOR
#define VECTOR 1  // columns is a multiple of it
#endif
#ifndef PIECE
#define PIECE 1   // VECTOR or a divisor of it: RANK * PIECE numbers of a matrix have to fit the registers of a thread
#endif
#define AT_ONCE 4                     // rows whose loads are on their way together
#define MANY 8                        // the same of lora_gradient, which has only a few slices of rows to keep a GPU busy with
#define GROUP (RANK < 8 ? RANK : 8)   // rows of a matrix that a warp takes at once
#define NONE 0x7fffffff
#define FOR_ROWS _Pragma("unroll") for (int k = 0; k < AT_ONCE; k++)
#define FOR_MANY _Pragma("unroll") for (int k = 0; k < MANY; k++)
#define FOR_RANK _Pragma("unroll") for (int r = 0; r < RANK; r++)
#define FOR_GROUP _Pragma("unroll") for (int r = 0; r < GROUP; r++)

__device__ __forceinline__ int adapter_of(const int* adapter, int row, int end) { return row >= end ? -1 : adapter ? adapter[row] : 0; }

// The numbers of a piece after dropout.
template <int N> __device__ __forceinline__ void dropped(float out[N], const Pack<SCALAR, N>& piece, const u64* random, u64 index, float p) {
  float factor[N];
  keep_factors<N>(factor, p > 0.0f ? random[0] : 0, p > 0.0f ? random[1] : 0, index, p, 1.0f / (1.0f - p));
#pragma unroll
  for (int j = 0; j < N; j++) out[j] = to_float(piece.v[j]) * factor[j];
}

//   narrow[n, r] = scale * sum over c of dropout(wide)[n, c] * matrix[adapter of n, r, c]
//
// A warp takes AT_ONCE rows, a lane every 32nd piece of VECTOR columns. Rows of one adapter go together; as a rule all of a warp's are.
extern "C" __global__ void lora_down(float* narrow, const SCALAR* wide, const float* matrix, const int* adapter, const u64* random, int rows, int columns,
                                     float p, float scale) {
  int lane = threadIdx.x & 31, first = (blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5)) * AT_ONCE;
  int own[AT_ONCE];
  FOR_ROWS own[k] = adapter_of(adapter, first + k, rows);

  for (int a = -1;;) {
    int next = NONE;
    FOR_ROWS if (own[k] > a && own[k] < next) next = own[k];
    if (next == NONE) break;
    a = next;
    for (int group = 0; group < RANK; group += GROUP) {
      const float* m = matrix + ((u64)a * RANK + group) * columns;
      float sum[AT_ONCE][GROUP];
      FOR_ROWS FOR_GROUP sum[k][r] = 0.0f;
      for (int c = lane * VECTOR; c < columns; c += 32 * VECTOR) {
        float x[AT_ONCE][VECTOR];
        FOR_ROWS {
          u64 index = (u64)(first + k) * columns + c;
          if (own[k] == a) dropped<VECTOR>(x[k], load_pack<SCALAR, VECTOR>(wide + index), random, index, p);
          else
#pragma unroll
            for (int j = 0; j < VECTOR; j++) x[k][j] = 0.0f;
        }
        FOR_GROUP if (group + r < RANK) {
          Pack<float, VECTOR> weight;
#pragma unroll
          for (int j = 0; j < VECTOR; j += VECTOR < 4 ? VECTOR : 4)
            *(Pack<float, VECTOR < 4 ? VECTOR : 4>*)(weight.v + j) = load_pack<float, VECTOR < 4 ? VECTOR : 4>(m + (u64)r * columns + c + j);
          FOR_ROWS
#pragma unroll
          for (int j = 0; j < VECTOR; j++) sum[k][r] += x[k][j] * weight.v[j];
        }
      }
      FOR_ROWS FOR_GROUP {
        float total = warp_sum(sum[k][r]);
        if (lane == (k * GROUP + r) % 32 && own[k] == a && group + r < RANK) narrow[(u64)(first + k) * RANK + group + r] = total * scale;
      }
    }
  }
}

//   wide[n, c] += keep[n, c] / (1 - p) * sum over r of narrow[n, r] * matrix[adapter of n, r, c]
//
// A block takes rows blockIdx.x * rows_each and on, a thread PIECE columns: it keeps its columns of the matrix in registers from row to row, until the
// adapter changes.
extern "C" __global__ void lora_up(SCALAR* wide, const float* narrow, const float* matrix, const int* adapter, const u64* random, int rows, int columns,
                                   int rows_each, float p) {
  int c = (blockIdx.y * blockDim.x + threadIdx.x) * PIECE, first = blockIdx.x * rows_each, end = min(rows, first + rows_each), loaded = -1;
  if (c >= columns) return;
  u64 seed = p > 0.0f ? random[0] : 0, step = p > 0.0f ? random[1] : 0;
  Pack<float, PIECE> m[RANK];

  for (int row = first; row < end; row += AT_ONCE) {
    int own[AT_ONCE];
    Pack<SCALAR, PIECE> piece[AT_ONCE];
    FOR_ROWS {
      own[k] = adapter_of(adapter, row + k, end);
      if (own[k] >= 0) piece[k] = load_pack<SCALAR, PIECE>(wide + (u64)(row + k) * columns + c);
    }
    FOR_ROWS if (own[k] >= 0) {
      u64 index = (u64)(row + k) * columns + c;
      if (own[k] != loaded) {
        loaded = own[k];
        FOR_RANK
#pragma unroll
        for (int j = 0; j < PIECE; j++) m[r].v[j] = matrix[((u64)loaded * RANK + r) * columns + c + j];
      }
      float sum[PIECE], factor[PIECE];
      keep_factors<PIECE>(factor, seed, step, index, p, 1.0f / (1.0f - p));
#pragma unroll
      for (int j = 0; j < PIECE; j++) sum[j] = 0.0f;
      FOR_RANK {
        float u = narrow[(u64)(row + k) * RANK + r];
#pragma unroll
        for (int j = 0; j < PIECE; j++) sum[j] += u * m[r].v[j];
      }
#pragma unroll
      for (int j = 0; j < PIECE; j++) piece[k].v[j] = from_float<SCALAR>(to_float(piece[k].v[j]) + sum[j] * factor[j]);
      store_pack<SCALAR, PIECE>(wide + index, piece[k]);
    }
  }
}

//   shares[slice, a, r, c] = sum over the slice's rows n of adapter a of narrow[n, r] * dropout(wide)[n, c]
//
// A block takes the slice of rows blockIdx.x * rows_each and on, a thread PIECE columns. The caller has set the shares to zero, and adds them up
// over the slices, always in one order.
extern "C" __global__ void lora_gradient(float* shares, const float* narrow, const SCALAR* wide, const int* adapter, const u64* random, int rows,
                                         int columns, int rows_each, int adapters, float p) {
  int c = (blockIdx.y * blockDim.x + threadIdx.x) * PIECE, first = blockIdx.x * rows_each, end = min(rows, first + rows_each), summed = -1;
  if (c >= columns) return;
  float sum[RANK][PIECE];
  FOR_RANK
#pragma unroll
  for (int j = 0; j < PIECE; j++) sum[r][j] = 0.0f;

  for (int row = first;; row += MANY) {
    int own[MANY];
    Pack<SCALAR, PIECE> piece[MANY];
    FOR_MANY {
      own[k] = adapter_of(adapter, row + k, end);
      if (own[k] >= 0) piece[k] = load_pack<SCALAR, PIECE>(wide + (u64)(row + k) * columns + c);
    }
    FOR_MANY {
      bool over = row + k >= end;
      if (summed >= 0 && (over || own[k] >= 0) && own[k] != summed) {
        FOR_RANK
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
          shares[(((u64)blockIdx.x * adapters + summed) * RANK + r) * columns + c + j] += sum[r][j];
          sum[r][j] = 0.0f;
        }
      }
      if (over) return;
      if (own[k] < 0) continue;
      summed = own[k];
      float x[PIECE];
      dropped<PIECE>(x, piece[k], random, (u64)(row + k) * columns + c, p);
      FOR_RANK {
        float u = narrow[(u64)(row + k) * RANK + r];
#pragma unroll
        for (int j = 0; j < PIECE; j++) sum[r][j] += u * x[j];
      }
    }
  }
}
