// Flash attention, forward, on tensor cores: scores never leave the registers.
//
//   x = scale * q k^T + bias where the mask allows, else -inf           out = dropout(softmax(x)) v
//   lse = log2 sum_j 2^(x log2 e)        +inf for a query that sees nothing, so that 2^(x - lse) is 0; its out is zeros
//
// q, out: (tokens, heads, HEAD_DIM); k, v: (key_tokens, heads / shared_by, HEAD_DIM); lse: (heads, tokens); bias: (1 or one
// per sequence, heads, bias_rows, bias_columns). Sequence s owns rows begin[s] .. end[s] of q and key_begin[s] .. key_end[s]
// of k; sequences follow one another, and rows between them are padding. pitch > 0: sequence s lies somewhere in rows
// s * pitch .. (s + 1) * pitch, and the bias counts rows from there (key_pitch: the same for keys).
//
// A block takes 128 queries of one head of one sequence, a warp 32 or 16 of them. Keys and values come in tiles through two
// buffers: while one tile is used the next one is on its way. Per tile (Milakov & Gimelshein 2018; Dao et al. 2022):
//   m' = max(m, max x),  p = 2^(x - m'),  l' = 2^(m - m') l + sum p,  o' = 2^(m - m') o + p v;       at the end out = o / l
#include "attention.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_forward(SCALAR* out, float* lse, const SCALAR* q, const SCALAR* k, const SCALAR* v, const SCALAR* bias, const u64* random,
                  const int* begin, const int* end, const int* key_begin, const int* key_end, int tokens, int heads, int shared_by, int left, int right,
                  int bias_each, int bias_rows, int bias_columns, int pitch, int key_pitch, float scale, float p) {
  __shared__ __align__(16) u16 ks[2][TILE][PITCH], vs[2][TILE][PITCH];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  int head = blockIdx.y, s = blockIdx.z, q0 = (gridDim.x - 1 - blockIdx.x) * ROWS;  // the last queries may see most: they start first
  int stride = heads * HEAD_DIM, key_stride = heads / shared_by * HEAD_DIM;
  Sequence at = sequence_of(s, begin, end, key_begin, key_end, left, right);
  clear_padding(out + head * HEAD_DIM, begin, end, s, gridDim.z, tokens, stride);
  if (q0 >= at.T) return;

  int mine = q0 + warp * MINE, first = max(0, at.place(q0) - left) / TILE;
  int last = min(at.S, at.place(min(q0 + ROWS, at.T) - 1) + right + 1);  // behind the last key that is seen
  int tiles = (last + TILE - 1) / TILE;
  const SCALAR* keys = k + (i64)at.key_first * key_stride + head / shared_by * HEAD_DIM;
  const SCALAR* values = v + (i64)at.key_first * key_stride + head / shared_by * HEAD_DIM;
  if (BIAS) bias += ((u64)(bias_each ? s : 0) * heads + head) * bias_rows * bias_columns
                    + (u64)(pitch ? at.first - s * pitch : 0) * bias_columns + (key_pitch ? at.key_first - s * key_pitch : 0);
  Dropout dropout = dropout_of(random, s, heads, head, p);
  float to_log2 = scale * LOG2E, of_bias = 1.0f / scale;

  u32 qa[STRIPS][PIECES][4];
  float acc[STRIPS][HEAD_DIM / 8][4], top[STRIPS][2], total[STRIPS][2];  // per row: largest score, sum of 2^(x - top)
  UNROLL for (int m = 0; m < STRIPS; m++) {
    UNROLL for (int n = 0; n < HEAD_DIM / 8; n++) UNROLL for (int i = 0; i < 4; i++) acc[m][n][i] = 0.0f;
    UNROLL for (int r = 0; r < 2; r++) top[m][r] = NEG_INF, total[m][r] = 0.0f;
  }
  if (first < tiles) {
    fetch_tile(ks[first & 1], keys, first * TILE, at.S, key_stride);
    fetch_tile(vs[first & 1], values, first * TILE, at.S, key_stride);
  }
  copy_async_commit();

  load_rows(qa, q + (i64)at.first * stride + head * HEAD_DIM, mine, at.T, stride);
  for (int tile = first; tile < tiles; tile++) {
    int now = tile & 1, k0 = tile * TILE;
    copy_async_wait<0>();
    __syncthreads();  // this tile is complete, and everyone is done with the other buffer
    if (tile + 1 < tiles) {
      fetch_tile(ks[now ^ 1], keys, k0 + TILE, at.S, key_stride);
      fetch_tile(vs[now ^ 1], values, k0 + TILE, at.S, key_stride);
    }
    copy_async_commit();
    if (at.none_sees(mine, MINE, k0, TILE)) continue;

    float x[TILE / 16][STRIPS][2][4];
    UNROLL for (int c = 0; c < TILE / 16; c++) score(x[c], qa, ks[now] + c * 16);
    if (BIAS || !at.all_see(mine, MINE, k0, TILE))
      UNROLL for (int c = 0; c < TILE / 16; c++) FOR_MY_PAIRS {
        int i = mine + m * 16 + (e >> 1) * 8 + g, j = k0 + c * 16 + n * 8 + t * 2 + (e & 1);
        if (!at.sees(i, j)) x[c][m][n][e] = NEG_INF;
        else if (BIAS && i < at.T) x[c][m][n][e] += of_bias * to_float(bias[(u64)i * bias_columns + j]);
      }

    UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int r = 0; r < 2; r++) {
      float peak = top[m][r];
      UNROLL for (int c = 0; c < TILE / 16; c++) UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 2; e++) peak = fmaxf(peak, x[c][m][n][2 * r + e]);
      UNROLL for (int o = 1; o < 4; o <<= 1) peak = fmaxf(peak, __shfl_xor_sync(FULL_WARP, peak, o));
      float base = peak == NEG_INF ? 0.0f : peak * to_log2, shrink = fast_exp2(top[m][r] * to_log2 - base);
      top[m][r] = peak;
      total[m][r] *= shrink;
      UNROLL for (int n = 0; n < HEAD_DIM / 8; n++) UNROLL for (int e = 0; e < 2; e++) acc[m][n][2 * r + e] *= shrink;
      UNROLL for (int c = 0; c < TILE / 16; c++) UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 2; e++) {
        float& one = x[c][m][n][2 * r + e];
        one = fast_exp2(one * to_log2 - base);
        total[m][r] += one;
      }
    }
    UNROLL for (int c = 0; c < TILE / 16; c++) {
      if (DROPOUT) UNROLL for (int m = 0; m < STRIPS; m++) {
        float factor[2][4];
        keep_square<false>(factor, dropout, mine + m * 16, k0 + c * 16);
        UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++) x[c][m][n][e] *= factor[n][e];
      }
      gather(acc, x[c], vs[now] + c * 16);
    }
  }

  float inv[STRIPS][2];  // below begin[s] is read again: kept since the start it would cost registers
  UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int r = 0; r < 2; r++) {
    UNROLL for (int o = 1; o < 4; o <<= 1) total[m][r] += __shfl_xor_sync(FULL_WARP, total[m][r], o);
    int row = mine + m * 16 + r * 8 + g;
    bool some = total[m][r] > 0.0f;
    inv[m][r] = some ? 1.0f / total[m][r] : 0.0f;
    if (t == 0 && row < at.T) lse[(u64)head * tokens + begin[s] + row] = some ? top[m][r] * to_log2 + log2f(total[m][r]) : -NEG_INF;
  }
  store_rows(out + (i64)begin[s] * stride + head * HEAD_DIM, acc, inv, mine, at.T, stride);
}
