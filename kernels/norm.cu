// Residual + dropout + LayerNorm or RMSNorm (-DRMS=1) in one pass over memory.
//
//   h = residual + dropout(x)        (kept: it is the next residual stream)
//   y = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias           LayerNorm
//   y = h / sqrt(mean(h^2) + eps) * weight                           RMSNorm
//
// A block takes one row. A thread takes PER_THREAD pieces of VECTOR neighbours: one 16-byte load each, and
// loops that unroll, so that a row lives in registers between the sums. SCALAR is the type of x, STREAM of residual and h, OUT
// of y (under autocast the stream is float, what a product has made 16 bits); weight, bias and all sums are float.
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
    Piece other, stored;
    if (residual) other = load_pack<STREAM, VECTOR>(residual + base + c);
    float factor[VECTOR];
    keep_factors<VECTOR>(factor, seed, step, base + c, p, scale);
    FOR_ITS_NUMBERS {
      stored.v[j] = from_float<STREAM>(to_float(mine.v[j]) * factor[j] + (residual ? to_float(other.v[j]) : 0.0f));
      value[i][j] = to_float(stored.v[j]);  // normalise exactly what the next layer will read
      sum += value[i][j];
    }
    if (h) store_pack<STREAM, VECTOR>(h + base + c, stored);
  }
  if (!RMS) mu = block_sum(sum, scratch) / columns;
  FOR_MY_PIECES FOR_ITS_NUMBERS squares += (value[i][j] - mu) * (value[i][j] - mu);
  float inv = rsqrtf(block_sum(squares, scratch) / columns + eps);

  FOR_MY_PIECES {
    Pack<OUT, VECTOR> out;
    FOR_ITS_NUMBERS out.v[j] = from_float<OUT>((value[i][j] - mu) * inv * weight[c + j] + (bias ? bias[c + j] : 0.0f));
    store_pack<OUT, VECTOR>(y + base + c, out);
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
    float mu = RMS ? 0.0f : mean[row], inv = rstd[row], sums[2] = {0.0f, 0.0f};
    float g[PER_THREAD][VECTOR], xhat[PER_THREAD][VECTOR];
    FOR_MY_PIECES {
      Pack<OUT, VECTOR> d = load_pack<OUT, VECTOR>(dy + base + c);
      Piece kept = load_pack<STREAM, VECTOR>(h + base + c);
      FOR_ITS_NUMBERS {
        xhat[i][j] = (to_float(kept.v[j]) - mu) * inv;
        g[i][j] = to_float(d.v[j]) * weight[c + j];
        dweight[i][j] += to_float(d.v[j]) * xhat[i][j];
        dbias[i][j] += to_float(d.v[j]);
        sums[0] += g[i][j];
        sums[1] += g[i][j] * xhat[i][j];
      }
    }
    block_sum2(sums, scratch);
    float mean_g = RMS ? 0.0f : sums[0] / columns, mean_gx = sums[1] / columns;
    FOR_MY_PIECES {
      Piece along, to_residual;
      Pack<SCALAR, VECTOR> to_x;
      if (dh) along = load_pack<STREAM, VECTOR>(dh + base + c);
      float factor[VECTOR];
      keep_factors<VECTOR>(factor, seed, step, base + c, p, scale);
      FOR_ITS_NUMBERS {
        float d = (dh ? to_float(along.v[j]) : 0.0f) + inv * (g[i][j] - mean_g - xhat[i][j] * mean_gx);
        to_residual.v[j] = from_float<STREAM>(d);
        to_x.v[j] = from_float<SCALAR>(d * factor[j]);
      }
      store_pack<STREAM, VECTOR>(d_residual + base + c, to_residual);
      if (dx) store_pack<SCALAR, VECTOR>(dx + base + c, to_x);
    }
  }
  FOR_MY_PIECES FOR_ITS_NUMBERS {
    partial_weight[(u64)blockIdx.x * columns + c + j] = dweight[i][j];
    if (partial_bias) partial_bias[(u64)blockIdx.x * columns + c + j] = dbias[i][j];
  }
}
