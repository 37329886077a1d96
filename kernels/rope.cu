// Rotary positions on queries and keys, in place and in one launch.
//
//   (x_j, x_{j+R/2}) <- (x_j cos - x_{j+R/2} sin, x_{j+R/2} cos + x_j sin)        of the angle position * w_j, for j < R/2: R numbers of a head turn
//
// Backward turns the gradients by the negative angle: direction -1. A block takes one token with all its heads, those of k behind those of q. A thread takes
// VECTOR neighbours of the first half of a head and their partners, two 16-byte loads, and writes them where they came from, or to other tensors; then
// it also copies its share of what does not turn. The cosines and sines of a position are one row each of two tables, read once from memory
// and then by every head from the cache. Null positions: the tables' rows are those of the tokens, and begin again behind the last. A position outside
// the tables makes NaN. SCALAR is the type of q and k; tables and arithmetic are float.
#include "common.cuh"
#ifndef SCALAR
#define SCALAR float
#endif
#ifndef VECTOR
#define VECTOR 1  // R/2 and the width of a head are multiples of it
#endif
#define FOR_ITS_NUMBERS _Pragma("unroll") for (int j = 0; j < VECTOR; j++)

typedef Pack<SCALAR, VECTOR> Piece;
typedef Pack<float, VECTOR> Angles;

extern "C" __global__ void rope(SCALAR* q_out, SCALAR* k_out, const SCALAR* q, const SCALAR* k, const float* cosines, const float* sines,
                                const i64* positions, int q_heads, int k_heads, int width, int half, int n_positions, float direction) {
  u64 token = blockIdx.x;
  i64 position = positions ? positions[token] : (i64)(token % n_positions);
  bool known = position >= 0 && position < n_positions;
  int pairs = half / VECTOR, resting = q_out == q ? 0 : width / VECTOR - 2 * pairs, pieces = pairs + resting;

  for (int i = threadIdx.x; i < (q_heads + k_heads) * pieces; i += blockDim.x) {
    int head = i / pieces, piece = i % pieces;
    bool of_q = head < q_heads;
    u64 at = (of_q ? token * q_heads + head : token * k_heads + head - q_heads) * width;
    const SCALAR* from = (of_q ? q : k) + at;
    SCALAR* to = (of_q ? q_out : k_out) + at;
    if (piece >= pairs) {
      int c = (pairs + piece) * VECTOR;
      store_pack<SCALAR, VECTOR>(to + c, load_pack<SCALAR, VECTOR>(from + c));
      continue;
    }
    int c = piece * VECTOR;
    Piece a = load_pack<SCALAR, VECTOR>(from + c), b = load_pack<SCALAR, VECTOR>(from + half + c);
    Angles cosine, sine;
    if (known) cosine = load_pack<float, VECTOR>(cosines + position * half + c), sine = load_pack<float, VECTOR>(sines + position * half + c);
    FOR_ITS_NUMBERS {
      float x = to_float(a.v[j]), y = to_float(b.v[j]);
      float u = known ? cosine.v[j] : __int_as_float(0x7fc00000), v = known ? direction * sine.v[j] : u;
      a.v[j] = from_float<SCALAR>(x * u - y * v);
      b.v[j] = from_float<SCALAR>(y * u + x * v);
    }
    store_pack<SCALAR, VECTOR>(to + c, a);
    store_pack<SCALAR, VECTOR>(to + half + c, b);
  }
}
