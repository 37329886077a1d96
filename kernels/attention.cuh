// attention.cuh - what both directions of attention on tensor cores share: tiles in shared memory, products, dropout by squares.
//
// Lanes and registers: in a 16 x 16 result of two mma (16 x 8 each), lane 4 g + t holds r[n][i] = row g + 8 (i / 2),
// column 8 n + 2 t + i % 2. Packed to 16 bits, the same registers are the left operand of the next mma.
#pragma once
#include "sequences.cuh"
#ifndef SCALAR
#define SCALAR bf16
#endif
#ifndef HEAD_DIM
#define HEAD_DIM 64            // a multiple of 16, at most 128
#endif
#ifndef BIAS
#define BIAS 0                 // 1: something is added to the scores
#endif
#ifndef STRIPS
#define STRIPS 2                // strips of 16 rows that a warp keeps in registers: what it reads from shared memory serves them all
#endif
#ifndef LEAN
#define LEAN 0                 // 1: backward of wide heads within Turing's 64 KiB of shared memory: half the rows, half the tile, and k not in registers
#endif
#define WARPS (LEAN ? 4 : 8 / STRIPS)
#define THREADS (32 * WARPS)
#define MINE (16 * STRIPS)      // rows of a warp
#define ROWS (WARPS * MINE)    // rows of a block: 128, or 64
#define TILE (LEAN ? 16 : 32 * STRIPS)  // rows of the other side in shared memory, twice: one tile is used, the next is on its way
#define PITCH (HEAD_DIM + 8)   // + 8: the 8 rows of one ldmatrix fall in different banks
#define PIECES (HEAD_DIM / 16)
#define LOG2E 1.4426950408889634f
#define UNROLL _Pragma("unroll")
#define FOR_MY_PAIRS UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++)  // of a MINE x 16 result

// Rows from .. to of one head of x get zeros; the blocks along x share the work.
__device__ __forceinline__ void clear_rows(SCALAR* x, int from, int to, int stride) {
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < (to - from) * (HEAD_DIM / 8); i += gridDim.x * THREADS)
    *(uint4*)&x[(i64)(from + i / (HEAD_DIM / 8)) * stride + i % (HEAD_DIM / 8) * 8] = uint4{0, 0, 0, 0};
}
// What no sequence owns, padding, gets zeros: sequence s clears what is before it, the last one also what is behind.
__device__ __forceinline__ void clear_padding(SCALAR* x, const int* begin, const int* end, int s, int sequences, int rows, int stride) {
  clear_rows(x, s ? end[s - 1] : 0, begin[s], stride);
  if (s == sequences - 1) clear_rows(x, end[s], rows, stride);
}

// Rows row0 .. row0 + MINE of one head to registers, as left operands; outside 0 .. count the nearest row stands in, for results that nobody keeps. `from` is row 0, column 0.
__device__ __forceinline__ void load_rows(u32 a[STRIPS][PIECES][4], const SCALAR* from, int row0, int count, int stride) {
  int lane = threadIdx.x & 31;
  UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int r = 0; r < 2; r++) {
    int row = max(0, min(row0 + m * 16 + r * 8 + (lane >> 2), count - 1));
    const SCALAR* mine = from + (i64)row * stride + (lane & 3) * 2;
    UNROLL for (int kk = 0; kk < PIECES; kk++) UNROLL for (int half = 0; half < 2; half++) a[m][kk][half * 2 + r] = *(const u32*)(mine + kk * 16 + half * 8);
  }
}
// Rows row0 .. row0 + TILE of one head to shared memory, without waiting; zeros outside 0 .. count.
__device__ __forceinline__ void fetch_tile(u16 (*tile)[PITCH], const SCALAR* from, int row0, int count, int stride) {
  UNROLL for (int i0 = 0; i0 < TILE * (HEAD_DIM / 8); i0 += THREADS) {
    int i = i0 + threadIdx.x, r = i / (HEAD_DIM / 8), c = i % (HEAD_DIM / 8) * 8, row = row0 + r;
    if (r >= TILE) continue;
    if ((u32)row < (u32)count) copy_async16(&tile[r][c], &from[(i64)row * stride + c]);
    else *(uint4*)&tile[r][c] = uint4{0, 0, 0, 0};
  }
}

// r (MINE x 16) = rows * tile^T, for 16 rows of a tile
__device__ __forceinline__ void score(float r[STRIPS][2][4], const u32 a[STRIPS][PIECES][4], const u16 (*tile)[PITCH]) {
  int lane = threadIdx.x & 31;
  UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int i = 0; i < 4; i++) r[m][0][i] = r[m][1][i] = 0.0f;
  UNROLL for (int kk = 0; kk < PIECES; kk++) {
    u32 b[4];
    load_matrix_x4<false>(b, &tile[(lane & 7) + (lane >> 4) * 8][kk * 16 + (lane >> 3 & 1) * 8]);
    UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int n = 0; n < 2; n++) mma_16x8x16<SCALAR>(r[m][n], a[m][kk], b + 2 * n);
  }
}
// The same with the rows in shared memory, where registers are scarce.
__device__ __forceinline__ void score(float r[STRIPS][2][4], const u16 (*rows)[PITCH], const u16 (*tile)[PITCH]) {
  int lane = threadIdx.x & 31;
  UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int i = 0; i < 4; i++) r[m][0][i] = r[m][1][i] = 0.0f;
  UNROLL for (int kk = 0; kk < PIECES; kk++) {
    u32 b[4];
    load_matrix_x4<false>(b, &tile[(lane & 7) + (lane >> 4) * 8][kk * 16 + (lane >> 3 & 1) * 8]);
    UNROLL for (int m = 0; m < STRIPS; m++) {
      u32 a[4];
      load_matrix_x4<false>(a, &rows[m * 16 + (lane & 15)][kk * 16 + (lane >> 4) * 8]);
      UNROLL for (int n = 0; n < 2; n++) mma_16x8x16<SCALAR>(r[m][n], a, b + 2 * n);
    }
  }
}
// acc (MINE x HEAD_DIM) += weights (MINE x 16) * tile, for 16 rows of a tile
__device__ __forceinline__ void gather(float acc[STRIPS][HEAD_DIM / 8][4], const float weight[STRIPS][2][4], const u16 (*tile)[PITCH]) {
  int lane = threadIdx.x & 31;
  u32 a[STRIPS][4];
  UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int i = 0; i < 4; i++)
    a[m][i] = pack2<SCALAR>(weight[m][i >> 1][(i & 1) * 2], weight[m][i >> 1][(i & 1) * 2 + 1]);
  UNROLL for (int n = 0; n < HEAD_DIM / 8; n += 2) {
    u32 b[4];
    load_matrix_x4<true>(b, &tile[lane & 15][n * 8 + (lane >> 4) * 8]);
    UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int half = 0; half < 2; half++) mma_16x8x16<SCALAR>(acc[m][n + half], a[m], b + 2 * half);
  }
}
// Rows row0 .. row0 + MINE of one head from registers, times a factor; `to` is row 0, column 0.
__device__ __forceinline__ void store_rows(SCALAR* to, const float acc[STRIPS][HEAD_DIM / 8][4], const float factor[STRIPS][2], int row0, int count, int stride) {
  int lane = threadIdx.x & 31;
  asm volatile("" : "+r"(row0));  // computed anew: these row numbers should not live in registers since load_rows
  UNROLL for (int m = 0; m < STRIPS; m++) UNROLL for (int r = 0; r < 2; r++) {
    int row = row0 + m * 16 + r * 8 + (lane >> 2);
    SCALAR* mine = to + (i64)row * stride + (lane & 3) * 2;
    if (row < count)
      UNROLL for (int n = 0; n < HEAD_DIM / 8; n++)
        *(u32*)(mine + n * 8) = pack2<SCALAR>(acc[m][n][2 * r] * factor[m][r], acc[m][n][2 * r + 1] * factor[m][r]);
  }
}

// The factors of a lane's 8 numbers in the 16 x 16 square whose corner is query i0, key j0; TRANSPOSED: rows are keys.
template <bool TRANSPOSED> __device__ __forceinline__ void keep_square(float factor[2][4], const Dropout& dropout, int i0, int j0) {
  int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
  UNROLL for (int e = 0; e < 2; e++) {
    Random4 r = TRANSPOSED ? dropout.four(i0 + 2 * t + e, j0 + g) : dropout.four(i0 + g, j0 + 2 * t + e);
    UNROLL for (int low = 0; low < 2; low++) UNROLL for (int n = 0; n < 2; n++)
      factor[n][2 * low + e] = dropout.factor(r.v[TRANSPOSED ? 2 * n + low : 2 * low + n]);
  }
}
