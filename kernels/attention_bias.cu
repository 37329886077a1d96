// The gradient of attention's bias, on tensor cores:  dbias = dx, summed over the sequences that share the bias.
//
// What the arguments mean stands in attention_forward.cu, the formulas in attention_backward.cu; dbias has the shape of bias.
// A block takes 128 rows and TILE columns of one head of dbias in registers, and goes through the sequences.
#include "attention.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_dbias(float* dbias, const SCALAR* q, const SCALAR* k, const SCALAR* v, const SCALAR* bias, const SCALAR* dout, const float* lse,
                const float* delta, const u64* random, const int* begin, const int* end, const int* key_begin, const int* key_end, int tokens,
                int heads, int shared_by, int left, int right, int bias_each, int bias_rows, int bias_columns, int pitch, int key_pitch, float scale, float p,
                int sequences) {
  __shared__ __align__(16) u16 ks[TILE][PITCH], vs[TILE][PITCH];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, head = blockIdx.z % heads;
  int row0 = blockIdx.x * ROWS, mine = row0 + warp * MINE, column0 = blockIdx.y * TILE, s = bias_each ? blockIdx.z / heads : 0, to = bias_each ? s + 1 : sequences;
  int stride = heads * HEAD_DIM, key_stride = heads / shared_by * HEAD_DIM;
  u64 plane = ((u64)(bias_each ? s : 0) * heads + head) * bias_rows * bias_columns;
  float to_log2 = scale * LOG2E;
  float acc[TILE / 16][STRIPS][2][4];
  UNROLL for (int c = 0; c < TILE / 16; c++) FOR_MY_PAIRS acc[c][m][n][e] = 0.0f;

  for (; s < to; s++) {
    Sequence at = sequence_of(s, begin, end, key_begin, key_end, left, right);
    int shift = pitch ? at.first - s * pitch : 0, key_shift = key_pitch ? at.key_first - s * key_pitch : 0, j0 = column0 - key_shift;
    if (at.none_sees(row0 - shift, ROWS, j0, TILE)) continue;
    Dropout dropout = dropout_of(random, s, heads, head, p);
    i64 query_at = (i64)at.first * stride + head * HEAD_DIM, key_at = (i64)at.key_first * key_stride + head / shared_by * HEAD_DIM;
    __syncthreads();  // everyone is done with the previous sequence
    fetch_tile(ks, k + key_at, j0, at.S, key_stride);
    fetch_tile(vs, v + key_at, j0, at.S, key_stride);
    copy_async_commit();
    u32 qa[STRIPS][PIECES][4], da[STRIPS][PIECES][4];
    load_rows(qa, q + query_at, mine - shift, at.T, stride);
    load_rows(da, dout + query_at, mine - shift, at.T, stride);
    float lses[STRIPS][2], deltas[STRIPS][2];
    UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int r = 0; r < 2; r++) {
      int i = mine - shift + m * 16 + r * 8 + g;
      bool there = 0 <= i && i < at.T;
      lses[m][r] = there ? lse[(u64)head * tokens + at.first + i] : -NEG_INF;
      deltas[m][r] = there ? delta[(u64)head * tokens + at.first + i] : 0.0f;
    }
    copy_async_wait<0>();
    __syncthreads();  // the tile is complete
    UNROLL for (int c = 0; c < TILE / 16; c++) {
      float x[STRIPS][2][4], dp[STRIPS][2][4];
      score(x, qa, ks + c * 16);
      score(dp, da, vs + c * 16);
      FOR_MY_PAIRS {
        int row = mine + m * 16 + (e >> 1) * 8 + g, column = column0 + c * 16 + n * 8 + t * 2 + (e & 1), i = row - shift, j = column - key_shift;
        bool seen = 0 <= i && i < at.T && at.sees(i, j);
        float with_bias = seen ? x[m][n][e] * to_log2 + LOG2E * to_float(bias[plane + (u64)row * bias_columns + column]) : NEG_INF;
        float keep = DROPOUT && seen ? dropout.one(i, j) : 1.0f;
        acc[c][m][n][e] += fast_exp2(with_bias - lses[m][e >> 1]) * (dp[m][n][e] * keep - deltas[m][e >> 1]);
      }
    }
  }
  UNROLL for (int c = 0; c < TILE / 16; c++) FOR_MY_PAIRS {
    int row = mine + m * 16 + (e >> 1) * 8 + g, column = column0 + c * 16 + n * 8 + t * 2 + (e & 1);
    if (row < bias_rows && column < bias_columns) dbias[plane + (u64)row * bias_columns + column] = acc[c][m][n][e];
  }
}
