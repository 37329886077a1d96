// Residual + dropout + LayerNorm or RMSNorm (-DRMS=1) in one pass over memory.
//
//   h = residual + dropout(x)        (kept: it is the next residual stream)
//   y = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias           LayerNorm
//   y = h / sqrt(mean(h^2) + eps) * weight                           RMSNorm
//
// A block takes one row. A thread takes PER_THREAD pieces of VECTOR neighbours: one 16-byte load each, and
// loops that unroll, so that a row lives in registers between the sums. Weight and bias are read in pieces too: number by number, the
// neighbours of a warp would be VECTOR numbers apart, and the L1 cache busier with them than memory with the row. SCALAR is the type of
// x, STREAM of residual and h, OUT of y (under autocast the stream is float, what a product has made 16 bits); weight, bias and all sums
// are float.
// Null pointers: no residual, h not wanted, no bias, no dh.
#include "common.cuh"
#ifndef SCALAR
#define SCALAR float
#endif
#ifndef STREAM
#define STREAM SCALAR
#endif
#ifndef OUT
#define OUT SCALAR
#endif
#ifndef RMS
#define RMS 0
#endif
#ifndef VECTOR
#define VECTOR 1      // columns is a multiple of it
#endif
#ifndef PER_THREAD
#define PER_THREAD 8  // columns <= PER_THREAD * VECTOR * blockDim.x
#endif
#define FOR_MY_PIECES _Pragma("unroll") for (int i = 0; i < PER_THREAD; i++) if (int c = (threadIdx.x + i * blockDim.x) * VECTOR; c < columns)
#define FOR_ITS_NUMBERS _Pragma("unroll") for (int j = 0; j < VECTOR; j++)

typedef Pack<STREAM, VECTOR> Piece;

extern "C" __global__ void norm_forward(OUT* y, STREAM* h, float* mean, float* rstd, const SCALAR* x, const STREAM* residual,
                                        const float* weight, const float* bias, const u64* random, int columns, float p, float eps) {
  __shared__ float scratch[33];
  u64 row = blockIdx.x, base = row * columns;
  u64 seed = p > 0.0f ? random[0] : 0, step = p > 0.0f ? random[1] : 0;  // read here: a CUDA graph replays with new numbers
  float value[PER_THREAD][VECTOR];
  float scale = 1.0f / (1.0f - p), sum = 0.0f, mu = 0.0f, squares = 0.0f;

  FOR_MY_PIECES {
    Pack<SCALAR, VECTOR> mine = load_pack<SCALAR, VECTOR>(x + base + c);
    Piece other = {}, stored;
    if (residual) other = load_pack<STREAM, VECTOR>(residual + base + c);
    float factor[VECTOR];
    keep_factors<VECTOR>(factor, seed, step, base + c, p, scale);
    FOR_ITS_NUMBERS value[i][j] = to_float(mine.v[j]) * factor[j] + to_float(other.v[j]);
    stored = rounded<STREAM, VECTOR>(value[i]);
    FOR_ITS_NUMBERS {
      value[i][j] = to_float(stored.v[j]);  // normalise exactly what the next layer will read
      sum += value[i][j];
    }
    if (h) store_pack<STREAM, VECTOR>(h + base + c, stored);
  }
  if (!RMS) mu = block_sum(sum, scratch) / columns;
  FOR_MY_PIECES FOR_ITS_NUMBERS squares += (value[i][j] - mu) * (value[i][j] - mu);
  float inv = rsqrtf(block_sum(squares, scratch) / columns + eps);

  FOR_MY_PIECES {
    float w[VECTOR], b[VECTOR] = {};
    load_floats<VECTOR>(w, weight + c);
    if (bias) load_floats<VECTOR>(b, bias + c);
    FOR_ITS_NUMBERS value[i][j] = (value[i][j] - mu) * inv * w[j] + b[j];
    store_pack<OUT, VECTOR>(y + base + c, rounded<OUT, VECTOR>(value[i]));
  }
  if (threadIdx.x == 0) {
    if (!RMS) mean[row] = mu;
    rstd[row] = inv;
  }
}

// Given dy and the gradient dh that arrives along the residual stream:
//   xhat = (h - mean) * rstd,  g = dy * weight
//   d_residual = dh + rstd * (g - mean(g) - xhat * mean(g * xhat))      RMSNorm: without mean(h) and mean(g)
//   dx         = d_residual * (dropout mask) / (1 - p)
// Each block walks rows blockIdx.x, blockIdx.x + gridDim.x, ... and leaves its share of dweight and dbias in
// partial_[blockIdx.x]; the caller adds the shares up, always in one order. dx is null where it is d_residual: of one type, without dropout.
extern "C" __global__ void norm_backward(SCALAR* dx, STREAM* d_residual, float* partial_weight, float* partial_bias, const OUT* dy,
                                         const STREAM* dh, const STREAM* h, const float* mean, const float* rstd, const float* weight,
                                         const u64* random, int rows, int columns, float p) {
  __shared__ float scratch[66];
  u64 seed = p > 0.0f ? random[0] : 0, step = p > 0.0f ? random[1] : 0;
  float scale = 1.0f / (1.0f - p);
  float dweight[PER_THREAD][VECTOR], dbias[PER_THREAD][VECTOR];
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++) FOR_ITS_NUMBERS dweight[i][j] = dbias[i][j] = 0.0f;

  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    u64 base = (u64)row * columns;
    int mine = row + threadIdx.y;  // row, but the compiler does not know: numbers of a whole block it would wait for before it goes on
    float mu = RMS ? 0.0f : mean[mine], inv = rstd[mine], sums[2] = {0.0f, 0.0f};
    float g[PER_THREAD][VECTOR], xhat[PER_THREAD][VECTOR], factor[PER_THREAD][VECTOR];
    Piece along[PER_THREAD];
    FOR_MY_PIECES {  // all loads, and the dropout, which needs none of them, come before the first wait
      Pack<OUT, VECTOR> d = load_pack<OUT, VECTOR>(dy + base + c);
      Piece kept = load_pack<STREAM, VECTOR>(h + base + c);
      along[i] = load_pack<STREAM, VECTOR>((dh ? dh : h) + base + c);
      float w[VECTOR];
      load_floats<VECTOR>(w, weight + c);
      keep_factors<VECTOR>(factor[i], seed, step, base + c, p, scale);
      FOR_ITS_NUMBERS {
        float dout = to_float(d.v[j]);
        xhat[i][j] = (to_float(kept.v[j]) - mu) * inv;
        g[i][j] = dout * w[j];
        dweight[i][j] += dout * xhat[i][j];
        dbias[i][j] += dout;
        sums[0] += g[i][j];
        sums[1] += g[i][j] * xhat[i][j];
      }
    }
    block_sum2(sums, scratch);
    float mean_g = RMS ? 0.0f : sums[0] / columns, mean_gx = sums[1] / columns;
    FOR_MY_PIECES {
      FOR_ITS_NUMBERS g[i][j] = (dh ? to_float(along[i].v[j]) : 0.0f) + inv * (g[i][j] - mean_g - xhat[i][j] * mean_gx);
      store_pack<STREAM, VECTOR>(d_residual + base + c, rounded<STREAM, VECTOR>(g[i]));
      FOR_ITS_NUMBERS g[i][j] *= factor[i][j];
      if (dx) store_pack<SCALAR, VECTOR>(dx + base + c, rounded<SCALAR, VECTOR>(g[i]));
    }
  }
  FOR_MY_PIECES FOR_ITS_NUMBERS {
    partial_weight[(u64)blockIdx.x * columns + c + j] = dweight[i][j];
    if (partial_bias) partial_bias[(u64)blockIdx.x * columns + c + j] = dbias[i][j];
  }
}
