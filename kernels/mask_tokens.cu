// Hide tokens of a text for the masked objective: which ones is a function of (seed, step) and the position, on every device the same.
//
//   chosen   = an ordinary token whose draw is below `threshold` (the share to hide, times 2^32); for whole words the draw of the word's first piece
//   input    = mask (80 % of the chosen), an ordinary token at random (10 %), else as it was        label = the token if chosen, else ignore
//
// A thread takes one position. Draws and thresholds are whole numbers: no rounding, so that a CPU finds the same ids.
#include "common.cuh"
#define EIGHT_TENTHS 3435973837u  // of 2^32
#define NINE_TENTHS 3865470566u

enum Kind { ORDINARY, SPECIAL, INSIDE };  // INSIDE: a piece of a word other than its first

// Padding, and an id that the vocabulary lacks, are as special as a special token.
__device__ __forceinline__ u8 kind_at(const i64* ids, const u8* keep, const u8* kinds, i64 at, i64 vocabulary) {
  i64 id = ids[at];
  return (keep && !keep[at]) || id < 0 || id >= vocabulary ? (u8)SPECIAL : kinds[id];
}

extern "C" __global__ void mask_tokens(i64* inputs, i64* labels, const i64* ids, const u8* keep, const u8* kinds, const i64* ordinary, const i64* random,
                                       i64 n, i64 length, i64 vocabulary, i64 others, u64 threshold, i64 mask, i64 ignore) {
  i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (at >= n) return;
  i64 id = ids[at], word = at;
  u8 kind = kind_at(ids, keep, kinds, at, vocabulary);
  for (u8 here = kind; here == INSIDE && word % length > 0; word--) {
    here = kind_at(ids, keep, kinds, word - 1, vocabulary);
    if (here == SPECIAL) break;  // the first piece behind one starts a word, whatever it looks like
  }
  Random4 own = philox((u64)random[0], (u64)at, (u64)random[1]);
  u32 draw = word == at ? own.v[0] : philox((u64)random[0], (u64)word, (u64)random[1]).v[0];
  bool chosen = kind != SPECIAL && draw < threshold;
  labels[at] = chosen ? id : ignore;
  inputs[at] = !chosen || own.v[1] >= NINE_TENTHS ? id : own.v[1] < EIGHT_TENTHS ? mask : ordinary[(u64)own.v[2] * (u64)others >> 32];
}
