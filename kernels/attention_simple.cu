// Flash attention, forward, without tensor cores: the version to read first. For any type and any GPU.
//
//   x = scale * q k^T + bias where the mask allows, else -inf           out = softmax(x) v         zeros for a query that sees nothing
//
// What the arguments mean stands in attention_forward.cu. A block takes 16 queries of one head of one sequence, each of its
// 4 warps 4 of them. Keys and values come in tiles of 32 through shared memory. Lane j of a warp scores key j of the tile,
// the warp agrees on the running maximum and sum by shuffles, then each lane gathers its columns of the output:
//   m' = max(m, max x),  p = e^(x - m'),  l' = e^(m - m') l + sum p,  o' = e^(m - m') o + p v;       at the end out = o / l
#include "common.cuh"
#ifndef SCALAR
#define SCALAR float
#endif
#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif
#define ROWS 16
#define KEYS 32
#define WARPS 4
#define MINE (ROWS / WARPS)
#define COLUMNS ((HEAD_DIM + 31) / 32)  // of a lane: lane, lane + 32, ...
#define MY_COLUMNS int o = 0, d = lane; o < COLUMNS && d < HEAD_DIM; o++, d += 32

__device__ void clear_rows(SCALAR* out, int from, int to, int heads) {
  for (int row = from + blockIdx.x; row < to; row += gridDim.x)
    for (int d = threadIdx.x; d < HEAD_DIM; d += 32 * WARPS) out[((u64)row * heads + blockIdx.y) * HEAD_DIM + d] = from_float<SCALAR>(0.0f);
}

extern "C" __global__ void __launch_bounds__(128)
attention_simple(SCALAR* out, const SCALAR* q, const SCALAR* k, const SCALAR* v, const SCALAR* bias, const int* begin, const int* end,
                 const int* key_begin, const int* key_end, int tokens, int heads, int shared_by, int left, int right,
                 int bias_each, int bias_rows, int bias_columns, int pitch, int key_pitch, float scale) {
  __shared__ float qs[ROWS][HEAD_DIM], ks[KEYS][HEAD_DIM + 1], vs[KEYS][HEAD_DIM];  // + 1: neighbouring lanes read different banks
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.y, s = blockIdx.z, q0 = blockIdx.x * ROWS;
  int first = begin[s], T = end[s] - first, key_first = key_begin[s], S = key_end[s] - key_first, ahead = S - T;
  clear_rows(out, s ? end[s - 1] : 0, first, heads);
  if (s == gridDim.z - 1) clear_rows(out, end[s], tokens, heads);
  if (q0 >= T) return;  // the whole block leaves together

  if (bias) bias += ((u64)(bias_each ? s : 0) * heads + head) * bias_rows * bias_columns
                    + (u64)(pitch ? first - s * pitch : 0) * bias_columns + (key_pitch ? key_first - s * key_pitch : 0);
  for (int i = threadIdx.x; i < ROWS * HEAD_DIM; i += blockDim.x) {
    int r = i / HEAD_DIM, d = i % HEAD_DIM;
    qs[r][d] = q0 + r < T ? to_float(q[((u64)(first + q0 + r) * heads + head) * HEAD_DIM + d]) * scale : 0.0f;
  }
  float top[MINE], total[MINE], acc[MINE][COLUMNS];
  for (int r = 0; r < MINE; r++) {
    top[r] = NEG_INF;
    total[r] = 0.0f;
    for (int o = 0; o < COLUMNS; o++) acc[r][o] = 0.0f;
  }

  int last = min(S, min(q0 + ROWS, T) + ahead + right);  // behind the last key that is seen
  for (int k0 = max(0, q0 + ahead - left) / KEYS * KEYS; k0 < last; k0 += KEYS) {
    __syncthreads();  // everyone is done with the previous tile
    for (int i = threadIdx.x; i < KEYS * HEAD_DIM; i += blockDim.x) {
      int r = i / HEAD_DIM, d = i % HEAD_DIM;
      u64 at = ((u64)(key_first + k0 + r) * (heads / shared_by) + head / shared_by) * HEAD_DIM + d;
      ks[r][d] = k0 + r < S ? to_float(k[at]) : 0.0f;
      vs[r][d] = k0 + r < S ? to_float(v[at]) : 0.0f;
    }
    __syncthreads();  // the tile is complete
#pragma unroll
    for (int r = 0; r < MINE; r++) {
      int row = warp * MINE + r, i = q0 + row, j = k0 + lane, distance = j - (i + ahead);
      float x = 0.0f;
      for (int d = 0; d < HEAD_DIM; d++) x += qs[row][d] * ks[lane][d];
      if (j >= S || distance < -left || distance > right) x = NEG_INF;
      else if (bias && i < T) x += to_float(bias[(u64)i * bias_columns + j]);
      float new_top = fmaxf(top[r], warp_max(x));
      float p = new_top == NEG_INF ? 0.0f : __expf(x - new_top);
      float shrink = new_top == NEG_INF ? 1.0f : __expf(top[r] - new_top);
      total[r] = total[r] * shrink + warp_sum(p);
      top[r] = new_top;
      for (int o = 0; o < COLUMNS; o++) acc[r][o] *= shrink;
      for (int key = 0; key < KEYS; key++) {
        float p_of_key = __shfl_sync(FULL_WARP, p, key);
        for (MY_COLUMNS) acc[r][o] += p_of_key * vs[key][d];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < MINE; r++) {
    int i = q0 + warp * MINE + r;
    float inv = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;
    for (MY_COLUMNS)
      if (i < T) out[((u64)(first + i) * heads + head) * HEAD_DIM + d] = from_float<SCALAR>(acc[r][o] * inv);
  }
}
