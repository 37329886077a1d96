// Flash attention, backward, on tensor cores: the probabilities are made again from q, k and lse.
//
//   delta = sum(dout * out)      p = 2^(x log2 e - lse)           dv = d(p)^T dout         dp = d(dout v^T)       d: dropout
//   dx = p * (dp - delta)        dq = scale dx k                  dk = scale dx^T q        dbias = dx
//
// What the arguments mean stands in attention_forward.cu. Each number of a gradient belongs to one block, which adds it up in
// one order: no atomics, equal bits each time. The price is that dq and dk, dv each make x and dp: 7 products for the 5 of
// the formulas. Both loops have one shape: a warp keeps rows of two operands in registers, tiles of the other two come
// through shared memory, and 16 of their rows at a time go all the way from x and dp to the sums.
#include "attention.cuh"

// delta (heads, tokens). 16 lanes take one row, as far as it goes: one 16-byte load each.
extern "C" __global__ void __launch_bounds__(256) attention_delta(float* delta, const SCALAR* out, const SCALAR* dout, int tokens, int heads) {
  i64 row = (i64)blockIdx.x * 16 + threadIdx.x / 16, rows = (i64)tokens * heads;
  int c = threadIdx.x % 16 * 8;
  float sum = 0.0f;
  if (row < rows && c < HEAD_DIM) {
    Pack<SCALAR, 8> a = load_pack<SCALAR, 8>(out + row * HEAD_DIM + c), b = load_pack<SCALAR, 8>(dout + row * HEAD_DIM + c);
    UNROLL for (int i = 0; i < 8; i++) sum += to_float(a.v[i]) * to_float(b.v[i]);
  }
  UNROLL for (int o = 8; o > 0; o >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, o);
  if (row < rows && c == 0) delta[row % heads * tokens + row / heads] = sum;
}

// A block takes 128 keys of one head of k and v, a warp 32 or 16 of them; queries of all the heads that share it pass by.
// Here rows are keys and columns queries, so that p^T and dx^T are left operands as they lie in registers.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_dkv(SCALAR* dk, SCALAR* dv, const SCALAR* q, const SCALAR* k, const SCALAR* v, const SCALAR* bias, const SCALAR* dout, const float* lse,
              const float* delta, const u64* random, const int* begin, const int* end, const int* key_begin, const int* key_end, int tokens,
              int key_tokens, int heads, int shared_by, int left, int right, int bias_each, int bias_rows, int bias_columns, int pitch, int key_pitch,
              float scale, float p) {
  DYNAMIC_SHARED(u16, memory);
  u16 (*vs)[PITCH] = (u16 (*)[PITCH])memory, (*ks)[PITCH] = vs + ROWS;
  u16 (*qs)[TILE][PITCH] = (u16 (*)[TILE][PITCH])(LEAN ? ks + ROWS : ks), (*douts)[TILE][PITCH] = qs + 2;
  __shared__ float lses[2][TILE], deltas[2][TILE];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  int key_head = blockIdx.y, s = blockIdx.z, j0 = blockIdx.x * ROWS, mine = j0 + warp * MINE;
  int stride = heads * HEAD_DIM, key_stride = heads / shared_by * HEAD_DIM;
  Sequence at = sequence_of(s, begin, end, key_begin, key_end, left, right);
  clear_padding(dk + key_head * HEAD_DIM, key_begin, key_end, s, gridDim.z, key_tokens, key_stride);
  clear_padding(dv + key_head * HEAD_DIM, key_begin, key_end, s, gridDim.z, key_tokens, key_stride);
  if (j0 >= at.S) return;

  int first = max(0, j0 - at.place(0) - right) / TILE;
  int last = min(at.T, min(j0 + ROWS, at.S) - at.place(0) + left);  // behind the last query that sees one of these keys
  int tiles = (last + TILE - 1) / TILE, now = 0;
  i64 key_at = (i64)at.key_first * key_stride + key_head * HEAD_DIM;
  i64 bias_at = (i64)(pitch ? at.first - s * pitch : 0) * bias_columns + (key_pitch ? at.key_first - s * key_pitch : 0);
  float to_log2 = scale * LOG2E, of_bias = 1.0f / scale;

  auto fetch = [&](int head, int i0, int buffer) {
    i64 from = (i64)at.first * stride + head * HEAD_DIM;
    fetch_tile(qs[buffer], q + from, i0, at.T, stride);
    fetch_tile(douts[buffer], dout + from, i0, at.T, stride);
    if (int r = threadIdx.x; r < TILE) {
      if (i0 + r < at.T) {
        copy_async4(&lses[buffer][r], &lse[(u64)head * tokens + at.first + i0 + r]);
        copy_async4(&deltas[buffer][r], &delta[(u64)head * tokens + at.first + i0 + r]);
      } else {
        lses[buffer][r] = -NEG_INF;  // p = 0
        deltas[buffer][r] = 0.0f;
      }
    }
  };
  u32 ka[STRIPS][PIECES][4];
  float of_k[STRIPS][HEAD_DIM / 8][4], of_v[STRIPS][HEAD_DIM / 8][4];
  if (!LEAN) load_rows(ka, k + key_at, mine, at.S, key_stride);
  UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int n = 0; n < HEAD_DIM / 8; n++) UNROLL for (int i = 0; i < 4; i++) of_k[m][n][i] = of_v[m][n][i] = 0.0f;
  for (int r = 0; r < ROWS; r += TILE) {
    fetch_tile(vs + r, v + key_at, j0 + r, at.S, key_stride);
    if (LEAN) fetch_tile(ks + r, k + key_at, j0 + r, at.S, key_stride);
  }
  if (first < tiles) fetch(key_head * shared_by, first * TILE, 0);
  copy_async_commit();

  for (int head = key_head * shared_by; head < (key_head + 1) * shared_by; head++) for (int tile = first; tile < tiles; tile++, now ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this tile is complete, and everyone is done with the other buffer
    bool more = tile + 1 < tiles;  // of this head
    if (more || head + 1 < (key_head + 1) * shared_by) fetch(head + !more, (more ? tile + 1 : first) * TILE, now ^ 1);
    copy_async_commit();
    Dropout dropout = dropout_of(random, s, heads, head, p);
    const SCALAR* added = bias + (BIAS ? ((u64)(bias_each ? s : 0) * heads + head) * bias_rows * bias_columns + bias_at : 0);

    _Pragma("unroll 1") for (int c = 0; c < TILE; c += 16) {
      int i0 = tile * TILE + c;
      if (at.none_sees(i0, 16, mine, MINE)) continue;
      bool all = !BIAS && at.all_see(i0, 16, mine, MINE);
      float x[STRIPS][2][4], dp[STRIPS][2][4], keep[STRIPS][2][4];
      if (LEAN) score(x, ks + warp * MINE, qs[now] + c);
      else score(x, ka, qs[now] + c);
      if (!all) FOR_MY_PAIRS {
        int i = i0 + n * 8 + t * 2 + (e & 1), j = mine + m * 16 + (e >> 1) * 8 + g;
        if (!at.sees(i, j)) x[m][n][e] = NEG_INF;
        else if (BIAS && i < at.T) x[m][n][e] += of_bias * to_float(added[(i64)i * bias_columns + j]);
      }
      FOR_MY_PAIRS x[m][n][e] = fast_exp2(x[m][n][e] * to_log2 - lses[now][c + n * 8 + t * 2 + (e & 1)]);
      if (DROPOUT) UNROLL for (int m = 0; m < STRIPS; m++) keep_square<true>(keep[m], dropout, i0, mine + m * 16);
      FOR_MY_PAIRS dp[m][n][e] = DROPOUT ? x[m][n][e] * keep[m][n][e] : x[m][n][e];
      gather(of_v, dp, douts[now] + c);
      score(dp, vs + warp * MINE, douts[now] + c);
      FOR_MY_PAIRS dp[m][n][e] = x[m][n][e] * ((DROPOUT ? dp[m][n][e] * keep[m][n][e] : dp[m][n][e]) - deltas[now][c + n * 8 + t * 2 + (e & 1)]);
      gather(of_k, dp, qs[now] + c);
    }
  }
  float one[STRIPS][2], scales[STRIPS][2];
  UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int r = 0; r < 2; r++) one[m][r] = 1.0f, scales[m][r] = scale;
  i64 to = (i64)key_begin[s] * key_stride + key_head * HEAD_DIM;  // read again: kept, it would cost registers
  store_rows(dk + to, of_k, scales, mine, at.S, key_stride);
  store_rows(dv + to, of_v, one, mine, at.S, key_stride);
}

// A block takes 128 queries of one head of one sequence, a warp 32 or 16 of them; the keys that they see pass by.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_dq(SCALAR* dq, const SCALAR* q, const SCALAR* k, const SCALAR* v, const SCALAR* bias, const SCALAR* dout, const float* lse,
             const float* delta, const u64* random, const int* begin, const int* end, const int* key_begin, const int* key_end, int tokens,
             int heads, int shared_by, int left, int right, int bias_each, int bias_rows, int bias_columns, int pitch, int key_pitch, float scale, float p) {
  __shared__ __align__(16) u16 ks[2][TILE][PITCH], vs[2][TILE][PITCH];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  int head = blockIdx.y, s = blockIdx.z, q0 = (gridDim.x - 1 - blockIdx.x) * ROWS, mine = q0 + warp * MINE;
  int stride = heads * HEAD_DIM, key_stride = heads / shared_by * HEAD_DIM;
  Sequence at = sequence_of(s, begin, end, key_begin, key_end, left, right);
  clear_padding(dq + head * HEAD_DIM, begin, end, s, gridDim.z, tokens, stride);
  if (q0 >= at.T) return;

  int first = max(0, at.place(q0) - left) / TILE, last = min(at.S, at.place(min(q0 + ROWS, at.T) - 1) + right + 1);
  int tiles = (last + TILE - 1) / TILE;
  i64 query_at = (i64)at.first * stride + head * HEAD_DIM, key_at = (i64)at.key_first * key_stride + head / shared_by * HEAD_DIM;
  if (BIAS) bias += ((u64)(bias_each ? s : 0) * heads + head) * bias_rows * bias_columns
                    + (u64)(pitch ? at.first - s * pitch : 0) * bias_columns + (key_pitch ? at.key_first - s * key_pitch : 0);
  Dropout dropout = dropout_of(random, s, heads, head, p);
  float to_log2 = scale * LOG2E, of_bias = 1.0f / scale;

  u32 qa[STRIPS][PIECES][4], da[STRIPS][PIECES][4];
  float acc[STRIPS][HEAD_DIM / 8][4], lses[STRIPS][2], deltas[STRIPS][2], scales[STRIPS][2];
  load_rows(qa, q + query_at, mine, at.T, stride);
  load_rows(da, dout + query_at, mine, at.T, stride);
  UNROLL for (int m = 0; m < STRIPS; m++) {
    UNROLL for (int n = 0; n < HEAD_DIM / 8; n++) UNROLL for (int i = 0; i < 4; i++) acc[m][n][i] = 0.0f;
    UNROLL for (int r = 0; r < 2; r++) {
      int i = mine + m * 16 + r * 8 + g;
      lses[m][r] = i < at.T ? lse[(u64)head * tokens + at.first + i] : -NEG_INF;
      deltas[m][r] = i < at.T ? delta[(u64)head * tokens + at.first + i] : 0.0f;
      scales[m][r] = scale;
    }
  }
  if (first < tiles) {
    fetch_tile(ks[first & 1], k + key_at, first * TILE, at.S, key_stride);
    fetch_tile(vs[first & 1], v + key_at, first * TILE, at.S, key_stride);
  }
  copy_async_commit();

  for (int tile = first; tile < tiles; tile++) {
    int now = tile & 1;
    copy_async_wait<0>();
    __syncthreads();  // this tile is complete, and everyone is done with the other buffer
    if (tile + 1 < tiles) {
      fetch_tile(ks[now ^ 1], k + key_at, (tile + 1) * TILE, at.S, key_stride);
      fetch_tile(vs[now ^ 1], v + key_at, (tile + 1) * TILE, at.S, key_stride);
    }
    copy_async_commit();

    _Pragma("unroll 1") for (int c = 0; c < TILE; c += 16) {
      int j0 = tile * TILE + c;
      if (at.none_sees(mine, MINE, j0, 16)) continue;
      bool all = !BIAS && at.all_see(mine, MINE, j0, 16);
      float x[STRIPS][2][4], dp[STRIPS][2][4], keep[STRIPS][2][4];
      score(x, qa, ks[now] + c);
      score(dp, da, vs[now] + c);
      if (DROPOUT) UNROLL for (int m = 0; m < STRIPS; m++) keep_square<false>(keep[m], dropout, mine + m * 16, j0);
      FOR_MY_PAIRS {
        int i = mine + m * 16 + (e >> 1) * 8 + g, j = j0 + n * 8 + t * 2 + (e & 1);
        if (!all) {
          if (!at.sees(i, j)) x[m][n][e] = NEG_INF;
          else if (BIAS && i < at.T) x[m][n][e] += of_bias * to_float(bias[(u64)i * bias_columns + j]);
        }
        float probability = fast_exp2(x[m][n][e] * to_log2 - lses[m][e >> 1]);
        dp[m][n][e] = probability * (dp[m][n][e] * (DROPOUT ? keep[m][n][e] : 1.0f) - deltas[m][e >> 1]);
      }
      gather(acc, dp, ks[now] + c);
    }
  }
  store_rows(dq + query_at, acc, scales, mine, at.T, stride);
}
