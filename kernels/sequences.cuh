// sequences.cuh - what attention with and without tensor cores shares: which rows a sequence owns, who sees whom, which pairs are dropped.
#pragma once
#include "common.cuh"
#ifndef DROPOUT
#define DROPOUT 0  // 1: p > 0
#endif

// One sequence of the batch: queries are rows first .. first + T of q, keys are rows key_first .. key_first + S of k.
// Queries are the last T of the S keys: query i stands at key i + S - T, and sees `left` keys before that and `right` after.
struct Sequence {
  int first, T, key_first, S, left, right;
  __device__ int place(int i) const { return i + S - T; }
  __device__ bool sees(int i, int j) const {
    int d = j - place(i);
    return 0 <= j && j < S && -left <= d && d <= right;
  }
  // Do all queries i .. i + rows see all keys j .. j + keys; does none see any?
  __device__ bool all_see(int i, int rows, int j, int keys) const {
    return 0 <= j && j + keys <= S && -left <= j - place(i + rows - 1) && j + keys - 1 - place(i) <= right;
  }
  __device__ bool none_sees(int i, int rows, int j, int keys) const {
    return i >= T || j >= S || j + keys - 1 - place(i) < -left || right < j - place(i + rows - 1);
  }
};
__device__ __forceinline__ Sequence sequence_of(int s, const int* begin, const int* end, const int* key_begin, const int* key_end, int left, int right) {
  return Sequence{begin[s], end[s] - begin[s], key_begin[s], key_end[s] - key_begin[s], left, right};
}

// Dropout: one draw serves the pairs (i, j), (i, j + 8), (i + 8, j), (i + 8, j + 8) of a query and a key, in each square of
// 16 x 16 of one head of one sequence (`plane`). A lane of a square, or of its transpose, holds all four, so no number is wasted.
struct Dropout {
  u64 seed, step, plane;
  u32 limit;
  float scale;
  __device__ Random4 four(int i, int j) const {
    u64 at = (u64)(i >> 4 << 3 | (i & 7)) << 20 | (u64)(j >> 4 << 3 | (j & 7));
    return philox(seed, plane << 40 | at, step);
  }
  __device__ float one(int i, int j) const {
    Random4 r = four(i, j);
    return factor(i & 8 ? j & 8 ? r.v[3] : r.v[2] : j & 8 ? r.v[1] : r.v[0]);
  }
  __device__ float factor(u32 drawn) const { return drawn >> 8 >= limit ? scale : 0.0f; }
};
__device__ __forceinline__ Dropout dropout_of(const u64* random, int s, int heads, int head, float p) {
  if (!DROPOUT) return Dropout{0, 0, 0, 0, 1.0f};
  return Dropout{random[0], random[1], (u64)s * heads + head, (u32)ceilf(p * 16777216.0f), 1.0f / (1.0f - p)};
}
