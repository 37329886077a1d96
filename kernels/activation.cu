// Bias + activation, and gated units: the bend between the two products of a feed-forward layer.
//
//   y = a(x + bias)                    a: -DACTIVATION=gelu | gelu_tanh | quick_gelu | silu | relu
//   y = a(gate) * up                   SwiGLU: a = silu, GeGLU: gelu, ReGLU: relu
//
// A thread owns VECTOR neighbouring columns and walks down the rows, ROWS at a time, so that several 16-byte loads are under way;
// the threads of a block lie side by side, and block y begins at its own rows. SCALAR is the type of x, gate, up, y and their
// gradients; bias and all arithmetic are float.
#include "common.cuh"
#ifndef SCALAR
#define SCALAR float
#endif
#ifndef ACTIVATION
#define ACTIVATION gelu
#endif
#ifndef VECTOR
#define VECTOR 1  // columns is a multiple of it
#endif
#define ROWS 4
#define FOR_MY_ROWS for (int first = blockIdx.y * ROWS; first < rows; first += gridDim.y * ROWS)
#define FOR_THESE_ROWS _Pragma("unroll") for (int r = 0; r < ROWS; r++) if (first + r < rows)
#define FOR_ITS_NUMBERS _Pragma("unroll") for (int j = 0; j < VECTOR; j++)

typedef Pack<SCALAR, VECTOR> Piece;
struct Bent { float value, slope; };  // a(z) and a'(z)

// z Phi(z), Phi and phi: the normal distribution and its density. Phi(-|z|) = phi(z) times a polynomial in t, to 7.5e-8: Abramowitz &
// Stegun 1964, 26.2.17. One exponential serves value and slope; erff would take twice the time of moving the numbers.
__device__ __forceinline__ Bent gelu(float z) {
  float phi = 0.39894228f * fast_exp(-0.5f * z * z), t = fast_reciprocal(1.0f + 0.2316419f * fabsf(z));
  float tail = phi * t * (0.319381530f + t * (-0.356563782f + t * (1.781477937f + t * (-1.821255978f + t * 1.330274429f))));
  float below = z < 0.0f ? tail : 1.0f - tail;
  return {z * below, below + z * phi};
}
// sigmoid and its slope s (1 - s), each to its last digits: 1 - s would lose them where s is nearly 1, and exp(-z) overflow where z is far below 0
__device__ __forceinline__ Bent sigmoid(float z) {
  float e = fast_exp(-fabsf(z)), large = fast_reciprocal(1.0f + e), small = e * large;
  return {z < 0.0f ? small : large, small * large};
}
__device__ __forceinline__ Bent gelu_tanh(float z) {  // z (1 + tanh u) / 2 = z sigmoid(2u)
  float square = z * z;
  Bent s = sigmoid(1.59576912f * z * (1.0f + 0.044715f * square));
  return {z * s.value, s.value + z * s.slope * (1.59576912f + 0.21406445f * square)};
}
__device__ __forceinline__ Bent swish(float z, float beta) {  // z sigmoid(beta z)
  Bent s = sigmoid(beta * z);
  return {z * s.value, s.value + beta * z * s.slope};
}
__device__ __forceinline__ Bent silu(float z) { return swish(z, 1.0f); }
__device__ __forceinline__ Bent quick_gelu(float z) { return swish(z, 1.702f); }
__device__ __forceinline__ Bent relu(float z) { return {z < 0.0f ? 0.0f : z, z > 0.0f ? 1.0f : 0.0f}; }

extern "C" __global__ void bias_forward(SCALAR* y, const SCALAR* x, const float* bias, int rows, int columns) {
  int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
  if (c >= columns) return;
  float b[VECTOR];
  FOR_ITS_NUMBERS b[j] = bias ? bias[c + j] : 0.0f;

  FOR_MY_ROWS {
    Piece in[ROWS];
    FOR_THESE_ROWS in[r] = load_pack<SCALAR, VECTOR>(x + (u64)(first + r) * columns + c);
    FOR_THESE_ROWS {
      Piece out;
      FOR_ITS_NUMBERS out.v[j] = from_float<SCALAR>(ACTIVATION(to_float(in[r].v[j]) + b[j]).value);
      store_pack<SCALAR, VECTOR>(y + (u64)(first + r) * columns + c, out);
    }
  }
}

//   dx = dy * a'(x + bias)             dbias = sum over rows of dx
// Each block y leaves its share of dbias in partial[y]; the caller adds the shares up, always in one order. Null partial: not wanted.
extern "C" __global__ void bias_backward(SCALAR* dx, float* partial, const SCALAR* dy, const SCALAR* x, const float* bias, int rows, int columns) {
  int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
  if (c >= columns) return;
  float b[VECTOR], dbias[VECTOR];
  FOR_ITS_NUMBERS b[j] = bias ? bias[c + j] : 0.0f, dbias[j] = 0.0f;

  FOR_MY_ROWS {
    Piece in[ROWS], d[ROWS];
    FOR_THESE_ROWS {
      in[r] = load_pack<SCALAR, VECTOR>(x + (u64)(first + r) * columns + c);
      d[r] = load_pack<SCALAR, VECTOR>(dy + (u64)(first + r) * columns + c);
    }
    FOR_THESE_ROWS {
      Piece out;
      FOR_ITS_NUMBERS {
        float dz = to_float(d[r].v[j]) * ACTIVATION(to_float(in[r].v[j]) + b[j]).slope;
        dbias[j] += dz;
        out.v[j] = from_float<SCALAR>(dz);
      }
      store_pack<SCALAR, VECTOR>(dx + (u64)(first + r) * columns + c, out);
    }
  }
  if (partial) FOR_ITS_NUMBERS partial[(u64)blockIdx.y * columns + c + j] = dbias[j];
}

// Null up (and dup): gate and up are the halves of one row of 2 * columns, as one joined product gives them.
extern "C" __global__ void gated_forward(SCALAR* y, const SCALAR* gate, const SCALAR* up, int rows, int columns) {
  int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR, pitch = up ? columns : 2 * columns;
  if (c >= columns) return;
  if (!up) up = gate + columns;

  FOR_MY_ROWS {
    Piece g[ROWS], u[ROWS];
    FOR_THESE_ROWS {
      g[r] = load_pack<SCALAR, VECTOR>(gate + (u64)(first + r) * pitch + c);
      u[r] = load_pack<SCALAR, VECTOR>(up + (u64)(first + r) * pitch + c);
    }
    FOR_THESE_ROWS {
      Piece out;
      FOR_ITS_NUMBERS out.v[j] = from_float<SCALAR>(ACTIVATION(to_float(g[r].v[j])).value * to_float(u[r].v[j]));
      store_pack<SCALAR, VECTOR>(y + (u64)(first + r) * columns + c, out);
    }
  }
}

//   dgate = dy * up * a'(gate)         dup = dy * a(gate)
extern "C" __global__ void gated_backward(SCALAR* dgate, SCALAR* dup, const SCALAR* dy, const SCALAR* gate, const SCALAR* up, int rows, int columns) {
  int c = (blockIdx.x * blockDim.x + threadIdx.x) * VECTOR, pitch = up ? columns : 2 * columns;
  if (c >= columns) return;
  if (!up) up = gate + columns, dup = dgate + columns;

  FOR_MY_ROWS {
    Piece d[ROWS], g[ROWS], u[ROWS];
    FOR_THESE_ROWS {
      d[r] = load_pack<SCALAR, VECTOR>(dy + (u64)(first + r) * columns + c);
      g[r] = load_pack<SCALAR, VECTOR>(gate + (u64)(first + r) * pitch + c);
      u[r] = load_pack<SCALAR, VECTOR>(up + (u64)(first + r) * pitch + c);
    }
    FOR_THESE_ROWS {
      Piece to_gate, to_up;
      FOR_ITS_NUMBERS {
        float dout = to_float(d[r].v[j]);
        Bent bent = ACTIVATION(to_float(g[r].v[j]));
        to_gate.v[j] = from_float<SCALAR>(dout * to_float(u[r].v[j]) * bent.slope);
        to_up.v[j] = from_float<SCALAR>(dout * bent.value);
      }
      store_pack<SCALAR, VECTOR>(dgate + (u64)(first + r) * pitch + c, to_gate);
      store_pack<SCALAR, VECTOR>(dup + (u64)(first + r) * pitch + c, to_up);
    }
  }
}
