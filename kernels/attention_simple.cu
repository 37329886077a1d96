// Flash attention, both directions, without tensor cores: the version to read first. For any type and any GPU; its kernels have
// the names and the arguments of those in attention_forward.cu and attention_backward.cu, where the arguments are explained.
//
//   x = scale * q k^T + bias where the mask allows, else -inf           out = d(softmax(x)) v          d: dropout
//   lse = log sum_j e^x      +inf for a query that sees nothing, so that e^(x - lse) is 0; its out is zeros
//   delta = sum(dout * out)      p = e^(x - lse)                 dv = d(p)^T dout         dp = d(dout v^T)
//   dx = p * (dp - delta)        dq = scale dx k                 dk = scale dx^T q
//
// A block owns 16 rows of one head of one sequence, queries or (in attention_dkv) keys, each of its 4 warps 4 of them. Rows of
// the other side come in tiles of 32 through shared memory. Lane j of a warp scores row j of the tile, shuffles carry its
// weights to the others, and each lane gathers its columns of the sums.
#include "sequences.cuh"
#ifndef SCALAR
#define SCALAR float
#endif
#ifndef HEAD_DIM
#define HEAD_DIM 64                     // a multiple of 16, at most 128
#endif
#define ROWS 16
#define TILE 32
#define WARPS 4
#define MINE (ROWS / WARPS)
#define PITCH (HEAD_DIM + 4)            // + 4: what neighbouring lanes read of their rows falls in different banks
#define COLUMNS ((HEAD_DIM + 31) / 32)  // of a lane: lane, lane + 32, ...
#define FOR_MY_ROWS _Pragma("unroll") for (int r = 0; r < MINE; r++)
#define FOR_MY_COLUMNS _Pragma("unroll") for (int o = 0, d = lane; o < COLUMNS; o++, d += 32) if (d < HEAD_DIM)

// Rows from .. to of one head of x get zeros; the blocks along x share the work.
__device__ __forceinline__ void clear_rows(SCALAR* x, int from, int to, int stride) {
  for (int row = from + blockIdx.x; row < to; row += gridDim.x)
    for (int d = threadIdx.x; d < HEAD_DIM; d += 32 * WARPS) x[(i64)row * stride + d] = from_float<SCALAR>(0.0f);
}
// What no sequence owns, padding, gets zeros: sequence s clears what is before it, the last one also what is behind.
__device__ __forceinline__ void clear_padding(SCALAR* x, const int* begin, const int* end, int s, int rows, int stride) {
  clear_rows(x, s ? end[s - 1] : 0, begin[s], stride);
  if (s == gridDim.z - 1) clear_rows(x, end[s], rows, stride);
}
// Rows row0 .. row0 + rows of one head to shared memory; zeros outside 0 .. count. `from` is row 0, column 0.
__device__ __forceinline__ void fetch(float (*to)[PITCH], const SCALAR* from, int row0, int rows, int count, int stride) {
  for (int i = threadIdx.x; i < rows * (HEAD_DIM / 4); i += 32 * WARPS) {
    int r = i / (HEAD_DIM / 4), c = i % (HEAD_DIM / 4) * 4, row = row0 + r;
    Pack<float, 4> four = {{0.0f, 0.0f, 0.0f, 0.0f}};
    if (row < count) {
      Pack<SCALAR, 4> there = load_pack<SCALAR, 4>(from + (i64)row * stride + c);
      for (int j = 0; j < 4; j++) four.v[j] = to_float(there.v[j]);
    }
    store_pack<float, 4>(&to[r][c], four);
  }
}
// x[r] = mine[r] . other: four sums, each over every fourth number, so that roundings add up less
__device__ __forceinline__ void products(float x[MINE], const float (*mine)[PITCH], const float* other) {
  Pack<float, 4> sums[MINE];
  FOR_MY_ROWS for (int j = 0; j < 4; j++) sums[r].v[j] = 0.0f;
  for (int d = 0; d < HEAD_DIM; d += 4) {
    Pack<float, 4> theirs = load_pack<float, 4>(other + d);
    FOR_MY_ROWS {
      Pack<float, 4> ours = load_pack<float, 4>(&mine[r][d]);
      for (int j = 0; j < 4; j++) sums[r].v[j] += ours.v[j] * theirs.v[j];
    }
  }
  FOR_MY_ROWS x[r] = (sums[r].v[0] + sums[r].v[1]) + (sums[r].v[2] + sums[r].v[3]);
}
// acc[r] += sum over j of (weight[r] of lane j) * tile[j], in this lane's columns; a tile is added up on its own, again for the roundings
__device__ __forceinline__ void gather(float acc[MINE][COLUMNS], const float weight[MINE], const float (*tile)[PITCH]) {
  int lane = threadIdx.x & 31;
  float sum[MINE][COLUMNS] = {};
  for (int j = 0; j < TILE; j++) {
    float of_j[MINE];
    FOR_MY_ROWS of_j[r] = __shfl_sync(FULL_WARP, weight[r], j);
    FOR_MY_COLUMNS FOR_MY_ROWS sum[r][o] += of_j[r] * tile[j][d];
  }
  FOR_MY_ROWS for (int o = 0; o < COLUMNS; o++) acc[r][o] += sum[r][o];
}
__device__ __forceinline__ void store(SCALAR* to, const float acc[COLUMNS], float factor) {
  int lane = threadIdx.x & 31;
  FOR_MY_COLUMNS to[d] = from_float<SCALAR>(acc[o] * factor);
}
// Where the bias of query 0 and key 0 of this sequence is.
__device__ __forceinline__ const SCALAR* bias_of(const SCALAR* bias, const Sequence& at, int s, int heads, int head, int bias_each, int bias_rows, int bias_columns, int pitch, int key_pitch) {
  if (!bias) return bias;
  return bias + ((u64)(bias_each ? s : 0) * heads + head) * bias_rows * bias_columns
              + (u64)(pitch ? at.first - s * pitch : 0) * bias_columns + (key_pitch ? at.key_first - s * key_pitch : 0);
}
__device__ __forceinline__ float score(float product, const Sequence& at, int i, int j, float scale, const SCALAR* bias, int bias_columns) {
  if (i >= at.T || !at.sees(i, j)) return NEG_INF;
  return product * scale + (bias ? to_float(bias[(u64)i * bias_columns + j]) : 0.0f);
}

// Per tile (Milakov & Gimelshein 2018; Dao et al. 2022):
//   m' = max(m, max x),  p = e^(x - m'),  l' = e^(m - m') l + sum p,  o' = e^(m - m') o + p v;       at the end out = o / l
extern "C" __global__ void __launch_bounds__(128, 1)
attention_forward(SCALAR* out, float* lse, const SCALAR* q, const SCALAR* k, const SCALAR* v, const SCALAR* bias, const u64* random, const int* begin,
                  const int* end, const int* key_begin, const int* key_end, int tokens, int heads, int shared_by, int left, int right,
                  int bias_each, int bias_rows, int bias_columns, int pitch, int key_pitch, float scale, float p) {
  __shared__ __align__(16) float qs[ROWS][PITCH], ks[TILE][PITCH], vs[TILE][PITCH];
  int lane = threadIdx.x & 31, mine = (threadIdx.x >> 5) * MINE, head = blockIdx.y, s = blockIdx.z, q0 = blockIdx.x * ROWS;
  int stride = heads * HEAD_DIM, key_stride = heads / shared_by * HEAD_DIM;
  Sequence at = sequence_of(s, begin, end, key_begin, key_end, left, right);
  clear_padding(out + head * HEAD_DIM, begin, end, s, tokens, stride);
  if (q0 >= at.T) return;  // the whole block leaves together

  i64 query_at = (i64)at.first * stride + head * HEAD_DIM, key_at = (i64)at.key_first * key_stride + head / shared_by * HEAD_DIM;
  bias = bias_of(bias, at, s, heads, head, bias_each, bias_rows, bias_columns, pitch, key_pitch);
  Dropout dropout = dropout_of(random, s, heads, head, p);
  fetch(qs, q + query_at, q0, ROWS, at.T, stride);
  float top[MINE], total[MINE], acc[MINE][COLUMNS];
  FOR_MY_ROWS {
    top[r] = NEG_INF;
    total[r] = 0.0f;
    for (int o = 0; o < COLUMNS; o++) acc[r][o] = 0.0f;
  }

  int last = min(at.S, at.place(min(q0 + ROWS, at.T) - 1) + right + 1);  // behind the last key that is seen
  for (int k0 = max(0, at.place(q0) - left) / TILE * TILE; k0 < last; k0 += TILE) {
    __syncthreads();  // everyone is done with the previous tile
    fetch(ks, k + key_at, k0, TILE, at.S, key_stride);
    fetch(vs, v + key_at, k0, TILE, at.S, key_stride);
    __syncthreads();  // the tile is complete
    float x[MINE];
    products(x, qs + mine, ks[lane]);
    FOR_MY_ROWS {
      int i = q0 + mine + r, j = k0 + lane;
      x[r] = score(x[r], at, i, j, scale, bias, bias_columns);
      float peak = fmaxf(top[r], warp_max(x[r])), base = peak == NEG_INF ? 0.0f : peak, shrink = expf(top[r] - base);
      x[r] = expf(x[r] - base);
      total[r] = total[r] * shrink + warp_sum(x[r]);
      top[r] = peak;
      for (int o = 0; o < COLUMNS; o++) acc[r][o] *= shrink;
      if (DROPOUT) x[r] *= dropout.one(i, j);
    }
    gather(acc, x, vs);
  }
  FOR_MY_ROWS if (int i = q0 + mine + r; i < at.T) {
    bool some = total[r] > 0.0f;
    store(out + query_at + (i64)i * stride, acc[r], some ? 1.0f / total[r] : 0.0f);
    if (lane == 0) lse[(u64)head * tokens + at.first + i] = some ? top[r] + logf(total[r]) : -NEG_INF;
  }
}

// delta (heads, tokens). 16 lanes take one row.
extern "C" __global__ void __launch_bounds__(256) attention_delta(float* delta, const SCALAR* out, const SCALAR* dout, int tokens, int heads) {
  i64 row = (i64)blockIdx.x * 16 + threadIdx.x / 16, rows = (i64)tokens * heads;
  float sum = 0.0f;
  for (int d = threadIdx.x % 16; d < HEAD_DIM && row < rows; d += 16) sum += to_float(out[row * HEAD_DIM + d]) * to_float(dout[row * HEAD_DIM + d]);
  for (int o = 8; o > 0; o >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, o);
  if (row < rows && threadIdx.x % 16 == 0) delta[row % heads * tokens + row / heads] = sum;
}

extern "C" __global__ void __launch_bounds__(128, 1)
attention_dq(SCALAR* dq, const SCALAR* q, const SCALAR* k, const SCALAR* v, const SCALAR* bias, const SCALAR* dout, const float* lse, const float* delta,
             const u64* random, const int* begin, const int* end, const int* key_begin, const int* key_end, int tokens, int heads, int shared_by, int left, int right,
             int bias_each, int bias_rows, int bias_columns, int pitch, int key_pitch, float scale, float p) {
  DYNAMIC_SHARED(float, memory);
  float (*qs)[PITCH] = (float (*)[PITCH])memory, (*douts)[PITCH] = qs + ROWS, (*ks)[PITCH] = douts + ROWS, (*vs)[PITCH] = ks + TILE;
  int lane = threadIdx.x & 31, mine = (threadIdx.x >> 5) * MINE, head = blockIdx.y, s = blockIdx.z, q0 = blockIdx.x * ROWS;
  int stride = heads * HEAD_DIM, key_stride = heads / shared_by * HEAD_DIM;
  Sequence at = sequence_of(s, begin, end, key_begin, key_end, left, right);
  clear_padding(dq + head * HEAD_DIM, begin, end, s, tokens, stride);
  if (q0 >= at.T) return;

  i64 query_at = (i64)at.first * stride + head * HEAD_DIM, key_at = (i64)at.key_first * key_stride + head / shared_by * HEAD_DIM;
  bias = bias_of(bias, at, s, heads, head, bias_each, bias_rows, bias_columns, pitch, key_pitch);
  Dropout dropout = dropout_of(random, s, heads, head, p);
  fetch(qs, q + query_at, q0, ROWS, at.T, stride);
  fetch(douts, dout + query_at, q0, ROWS, at.T, stride);
  float acc[MINE][COLUMNS], lses[MINE], deltas[MINE];
  FOR_MY_ROWS {
    u64 row = (u64)head * tokens + at.first + min(q0 + mine + r, at.T - 1);
    lses[r] = lse[row];
    deltas[r] = delta[row];
    for (int o = 0; o < COLUMNS; o++) acc[r][o] = 0.0f;
  }

  int last = min(at.S, at.place(min(q0 + ROWS, at.T) - 1) + right + 1);
  for (int k0 = max(0, at.place(q0) - left) / TILE * TILE; k0 < last; k0 += TILE) {
    __syncthreads();  // everyone is done with the previous tile
    fetch(ks, k + key_at, k0, TILE, at.S, key_stride);
    fetch(vs, v + key_at, k0, TILE, at.S, key_stride);
    __syncthreads();  // the tile is complete
    float x[MINE], dp[MINE];
    products(x, qs + mine, ks[lane]);
    products(dp, douts + mine, vs[lane]);
    FOR_MY_ROWS {
      int i = q0 + mine + r, j = k0 + lane;
      float keep = DROPOUT ? dropout.one(i, j) : 1.0f;
      x[r] = expf(score(x[r], at, i, j, scale, bias, bias_columns) - lses[r]) * (dp[r] * keep - deltas[r]);
    }
    gather(acc, x, ks);
  }
  FOR_MY_ROWS if (int i = q0 + mine + r; i < at.T) store(dq + query_at + (i64)i * stride, acc[r], scale);
}

// Here the block owns keys; queries of all the heads that share them pass by.
extern "C" __global__ void __launch_bounds__(128, 1)
attention_dkv(SCALAR* dk, SCALAR* dv, const SCALAR* q, const SCALAR* k, const SCALAR* v, const SCALAR* bias, const SCALAR* dout, const float* lse, const float* delta,
              const u64* random, const int* begin, const int* end, const int* key_begin, const int* key_end, int tokens, int key_tokens, int heads, int shared_by,
              int left, int right, int bias_each, int bias_rows, int bias_columns, int pitch, int key_pitch, float scale, float p) {
  DYNAMIC_SHARED(float, memory);
  float (*ks)[PITCH] = (float (*)[PITCH])memory, (*vs)[PITCH] = ks + ROWS, (*qs)[PITCH] = vs + ROWS, (*douts)[PITCH] = qs + TILE;
  int lane = threadIdx.x & 31, mine = (threadIdx.x >> 5) * MINE, key_head = blockIdx.y, s = blockIdx.z, j0 = blockIdx.x * ROWS;
  int stride = heads * HEAD_DIM, key_stride = heads / shared_by * HEAD_DIM;
  Sequence at = sequence_of(s, begin, end, key_begin, key_end, left, right);
  clear_padding(dk + key_head * HEAD_DIM, key_begin, key_end, s, key_tokens, key_stride);
  clear_padding(dv + key_head * HEAD_DIM, key_begin, key_end, s, key_tokens, key_stride);
  if (j0 >= at.S) return;

  i64 key_at = (i64)at.key_first * key_stride + key_head * HEAD_DIM;
  fetch(ks, k + key_at, j0, ROWS, at.S, key_stride);
  fetch(vs, v + key_at, j0, ROWS, at.S, key_stride);
  float of_k[MINE][COLUMNS], of_v[MINE][COLUMNS];
  FOR_MY_ROWS for (int o = 0; o < COLUMNS; o++) of_k[r][o] = of_v[r][o] = 0.0f;

  int first = max(0, j0 - at.place(0) - right) / TILE * TILE, last = min(at.T, min(j0 + ROWS, at.S) - at.place(0) + left);  // behind the last query that sees one of these keys
  for (int head = key_head * shared_by; head < (key_head + 1) * shared_by; head++) {
    i64 query_at = (i64)at.first * stride + head * HEAD_DIM;
    const SCALAR* added = bias_of(bias, at, s, heads, head, bias_each, bias_rows, bias_columns, pitch, key_pitch);
    Dropout dropout = dropout_of(random, s, heads, head, p);
    for (int i0 = first; i0 < last; i0 += TILE) {
      __syncthreads();  // everyone is done with the previous tile
      fetch(qs, q + query_at, i0, TILE, at.T, stride);
      fetch(douts, dout + query_at, i0, TILE, at.T, stride);
      __syncthreads();  // the tile is complete
      int i = i0 + lane;
      u64 row = (u64)head * tokens + at.first + min(i, at.T - 1);
      float x[MINE], dp[MINE], kept[MINE];
      products(x, ks + mine, qs[lane]);
      products(dp, vs + mine, douts[lane]);
      FOR_MY_ROWS {
        int j = j0 + mine + r;
        float keep = DROPOUT ? dropout.one(i, j) : 1.0f, probability = expf(score(x[r], at, i, j, scale, added, bias_columns) - lse[row]);
        kept[r] = probability * keep;
        x[r] = probability * (dp[r] * keep - delta[row]);
      }
      gather(of_v, kept, douts);
      gather(of_k, x, qs);
    }
  }
  FOR_MY_ROWS if (int j = j0 + mine + r; j < at.S) {
    store(dk + key_at + (i64)j * key_stride, of_k[r], scale);
    store(dv + key_at + (i64)j * key_stride, of_v[r], 1.0f);
  }
}
