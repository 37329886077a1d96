// Embeddings: rows of up to three tables are added, normalised and dropped out in one pass; backward, rows of equal ids are added up in one order.
//
//   h = scale * tokens[id] + positions[position] + types[type]
//   y = dropout((h - mean(h)) / sqrt(var(h) + eps) * weight + bias)         null weight: y = dropout(h)
//
// A block takes one row of y. A thread takes PER_THREAD pieces of VECTOR neighbours, one 16-byte load each and table. SCALAR is the type of the tables
// and of y; weight, bias and all sums are float. Null pointers: no positions, no types, no bias. An id outside its table makes NaN.
#include "common.cuh"
#ifndef SCALAR
#define SCALAR float
#endif
#ifndef VECTOR
#define VECTOR 1      // columns is a multiple of it
#endif
#ifndef PER_THREAD
#define PER_THREAD 8  // columns <= PER_THREAD * VECTOR * blockDim.x
#endif
#define FOR_MY_PIECES _Pragma("unroll") for (int i = 0; i < PER_THREAD; i++) if (int c = (threadIdx.x + i * blockDim.x) * VECTOR; c < columns)
#define FOR_ITS_NUMBERS _Pragma("unroll") for (int j = 0; j < VECTOR; j++)
#define RUN 64        // entries that a block of add_runs walks through
#define AHEAD 8       // of them, loaded before the first is added

typedef Pack<SCALAR, VECTOR> Piece;
struct Table { const SCALAR* rows; const i64* ids; int size; };

// h += factor * rows[id], a thread's share of one row.
__device__ __forceinline__ void add_row(float h[PER_THREAD][VECTOR], Table table, int row, int columns, float factor) {
  if (!table.rows) return;
  i64 id = table.ids[row];
  bool known = id >= 0 && id < table.size;
  FOR_MY_PIECES {
    Piece piece;
    if (known) piece = load_pack<SCALAR, VECTOR>(table.rows + id * columns + c);
    FOR_ITS_NUMBERS h[i][j] += known ? factor * to_float(piece.v[j]) : __int_as_float(0x7fc00000);
  }
}

extern "C" __global__ void embedding_forward(SCALAR* y, float* mean, float* rstd, const SCALAR* tokens, const i64* ids, int n_tokens,
                                             const SCALAR* positions, const i64* position_ids, int n_positions, const SCALAR* types, const i64* type_ids,
                                             int n_types, const float* weight, const float* bias, const u64* random, int columns, float scale, float p,
                                             float eps) {
  __shared__ float scratch[33];
  int row = blockIdx.x;
  u64 base = (u64)row * columns, seed = p > 0.0f ? random[0] : 0, step = p > 0.0f ? random[1] : 0;
  float h[PER_THREAD][VECTOR] = {}, keep = 1.0f / (1.0f - p), mu = 0.0f, inv = 1.0f;
  add_row(h, {tokens, ids, n_tokens}, row, columns, scale);
  add_row(h, {positions, position_ids, n_positions}, row, columns, 1.0f);
  add_row(h, {types, type_ids, n_types}, row, columns, 1.0f);

  if (weight) {
    float sum = 0.0f, squares = 0.0f;
    FOR_MY_PIECES FOR_ITS_NUMBERS sum += h[i][j];
    mu = block_sum(sum, scratch) / columns;
    FOR_MY_PIECES FOR_ITS_NUMBERS squares += (h[i][j] - mu) * (h[i][j] - mu);
    inv = rsqrtf(block_sum(squares, scratch) / columns + eps);
    if (threadIdx.x == 0) mean[row] = mu, rstd[row] = inv;
  }
  FOR_MY_PIECES {
    Piece out;
    float factor[VECTOR];
    keep_factors<VECTOR>(factor, seed, step, base + c, p, keep);
    FOR_ITS_NUMBERS {
      float normal = weight ? (h[i][j] - mu) * inv * weight[c + j] + (bias ? bias[c + j] : 0.0f) : h[i][j];
      out.v[j] = from_float<SCALAR>(normal * factor[j]);
    }
    store_pack<SCALAR, VECTOR>(y + base + c, out);
  }
}

// dh, from h made again out of the tables; with d = dy * (dropout mask) / (1 - p), xhat = (h - mean) * rstd, g = d * weight:
//   dh = rstd * (g - mean(g) - xhat * mean(g * xhat))                       null weight: dh = d
// Each block walks rows blockIdx.x, blockIdx.x + gridDim.x, ... and leaves its share of dweight and dbias in partial_[blockIdx.x].
extern "C" __global__ void embedding_backward(SCALAR* dh, float* partial_weight, float* partial_bias, const SCALAR* dy, const float* mean, const float* rstd,
                                              const SCALAR* tokens, const i64* ids, int n_tokens, const SCALAR* positions, const i64* position_ids,
                                              int n_positions, const SCALAR* types, const i64* type_ids, int n_types, const float* weight,
                                              const u64* random, int rows, int columns, float scale, float p) {
  __shared__ float scratch[66];
  u64 seed = p > 0.0f ? random[0] : 0, step = p > 0.0f ? random[1] : 0;
  float keep = 1.0f / (1.0f - p), dweight[PER_THREAD][VECTOR] = {}, dbias[PER_THREAD][VECTOR] = {};

  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    u64 base = (u64)row * columns;
    float g[PER_THREAD][VECTOR], h[PER_THREAD][VECTOR] = {}, mu = 0.0f, inv = 1.0f, sums[2] = {0.0f, 0.0f};
    if (weight) {
      mu = mean[row], inv = rstd[row];
      add_row(h, {tokens, ids, n_tokens}, row, columns, scale);
      add_row(h, {positions, position_ids, n_positions}, row, columns, 1.0f);
      add_row(h, {types, type_ids, n_types}, row, columns, 1.0f);
    }
    FOR_MY_PIECES {
      Piece d = load_pack<SCALAR, VECTOR>(dy + base + c);
      float factor[VECTOR];
      keep_factors<VECTOR>(factor, seed, step, base + c, p, keep);
      FOR_ITS_NUMBERS {
        float dout = to_float(d.v[j]) * factor[j];
        h[i][j] = (h[i][j] - mu) * inv;  // xhat from here on
        g[i][j] = weight ? dout * weight[c + j] : dout;
        dweight[i][j] += dout * h[i][j];
        dbias[i][j] += dout;
        sums[0] += g[i][j];
        sums[1] += g[i][j] * h[i][j];
      }
    }
    if (weight) block_sum2(sums, scratch);
    float mean_g = weight ? sums[0] / columns : 0.0f, mean_gx = weight ? sums[1] / columns : 0.0f;
    FOR_MY_PIECES {
      Piece out;
      FOR_ITS_NUMBERS out.v[j] = from_float<SCALAR>(inv * (g[i][j] - mean_g - h[i][j] * mean_gx));
      store_pack<SCALAR, VECTOR>(dh + base + c, out);
    }
  }
  if (weight) FOR_MY_PIECES FOR_ITS_NUMBERS {
    partial_weight[(u64)blockIdx.x * columns + c + j] = dweight[i][j];
    if (partial_bias) partial_bias[(u64)blockIdx.x * columns + c + j] = dbias[i][j];
  }
}

// dtable[id] = scale * (sum of dh[n] over the n with ids_n = id), for ids in ascending order; order[k] is the n of the k-th.
// A block takes RUN entries one after another, a thread VECTOR columns. A run of equal ids that lies within is finished and stored. One that began
// before goes to the block's first row of `rest`, one that goes on behind to its second: `rest`, with its ids, is in order again, and the next launch
// adds it up in the same way (`earlier`, instead of dh), until one block sees everything. So no sum depends on which block was quicker.
// A rest of -1 is none; a run that fills a block leaves its sum in the first row and zeros in the second, so that it stays one run.
extern "C" __global__ void add_runs(SCALAR* dtable, float* rest, i64* rest_ids, const SCALAR* dh, const float* earlier, const i64* ids, const i64* order,
                                    int n, int columns, int size, float scale) {
  int c = (blockIdx.y * blockDim.x + threadIdx.x) * VECTOR, begin = blockIdx.x * RUN, end = min(begin + RUN, n);
  if (c >= columns) return;
  bool began_before = begin > 0 && ids[begin - 1] == ids[begin], goes_on = end < n && ids[end] == ids[end - 1];
  bool one_run = ids[begin] == ids[end - 1];
  if (c == 0) {
    rest_ids[2 * blockIdx.x] = began_before || (one_run && goes_on) ? ids[begin] : -1;
    rest_ids[2 * blockIdx.x + 1] = goes_on ? ids[end - 1] : -1;
  }
  float sum[VECTOR] = {};
  for (int first = begin; first < end; first += AHEAD) {
    float row[AHEAD][VECTOR];
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
      if (first + k < end && ids[first + k] >= 0) {
        u64 from = (u64)(order ? order[first + k] : first + k) * columns + c;
        if (earlier) {
          Pack<float, VECTOR> piece = load_pack<float, VECTOR>(earlier + from);
          FOR_ITS_NUMBERS row[k][j] = piece.v[j];
        } else {
          Piece piece = load_pack<SCALAR, VECTOR>(dh + from);
          FOR_ITS_NUMBERS row[k][j] = to_float(piece.v[j]);
        }
      }
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
      if (int at = first + k; at < end && ids[at] >= 0) {
        FOR_ITS_NUMBERS sum[j] += row[k][j];
        bool last = at + 1 == end;
        if (!last && ids[at + 1] == ids[at]) continue;
        bool from_before = began_before && ids[at] == ids[begin];
        if (from_before || (last && goes_on)) {
          Pack<float, VECTOR> out, zeros;
          FOR_ITS_NUMBERS out.v[j] = sum[j], zeros.v[j] = 0.0f;
          bool fills = one_run && goes_on;
          store_pack<float, VECTOR>(rest + (u64)(2 * blockIdx.x + (from_before || fills ? 0 : 1)) * columns + c, out);
          if (fills) store_pack<float, VECTOR>(rest + (u64)(2 * blockIdx.x + 1) * columns + c, zeros);
        } else if (ids[at] < size) {
          Piece out;
          FOR_ITS_NUMBERS out.v[j] = from_float<SCALAR>(scale * sum[j]);
          store_pack<SCALAR, VECTOR>(dtable + ids[at] * columns + c, out);
        }
        FOR_ITS_NUMBERS sum[j] = 0.0f;
      }
  }
}
