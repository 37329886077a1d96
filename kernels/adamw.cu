// AdamW over many tensors in one launch, and the norm of their gradients.
//
//   g = gradient * factor / grad_scale
//   m <- m + (1 - beta1) (g - m)            v <- v + (1 - beta2) (g^2 - v)
//   w <- w (1 - lr * decay) - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//
// w, m and v are float. SCALAR is the type of the gradients and, where the model computes in 16 bits, of its copy of w, written in the
// same pass. What a step depends on is read on the device: a CUDA graph replays with new rates, clip factors and step numbers.
#include "common.cuh"
#ifndef SCALAR
#define SCALAR float
#endif
#define PIECE (16 / (int)sizeof(SCALAR))

struct Place { i64 slot, first, count; };  // a chunk: neighbours of the tensor in that slot
struct Weights { float* step; i64 group; float *w, *m, *v; SCALAR* copy; };
struct Group { double lr, beta1, beta2, eps, decay; };
struct Constants { float factor, keep, to_m, to_v, rate, correction, eps, active; };

__device__ __forceinline__ double power(double base, u64 n) {
  double product = 1.0;
  for (; n; n >>= 1, base *= base)
    if (n & 1) product *= base;
  return product;
}

// A thread takes one tensor: it counts the step, and computes in double what is the same for all numbers of the tensor. A tensor without a
// gradient, and every tensor if found_inf is not 0, stays as it is.
extern "C" __global__ void adamw_prepare(float* constants, const i64* tensors, const double* groups, Addresses gradients, const float* factor,
                                         const float* grad_scale, const float* found_inf, int n) {
  int slot = blockIdx.x * blockDim.x + threadIdx.x;
  if (slot >= n) return;
  Weights tensor = ((const Weights*)tensors)[slot];
  Group group = ((const Group*)groups)[tensor.group];
  bool active = gradients.at[slot] != 0 && !(found_inf && *found_inf != 0.0f);
  float t = *tensor.step + (active ? 1.0f : 0.0f);
  *tensor.step = t;

  Constants c;
  c.factor = (factor ? *factor : 1.0f) / (grad_scale ? *grad_scale : 1.0f);
  c.keep = (float)(1.0 - group.lr * group.decay);
  c.to_m = (float)(1.0 - group.beta1);
  c.to_v = (float)(1.0 - group.beta2);
  c.rate = (float)(group.lr / (1.0 - power(group.beta1, (u64)t)));
  c.correction = (float)(1.0 / sqrt(1.0 - power(group.beta2, (u64)t)));
  c.eps = (float)group.eps;
  c.active = active ? 1.0f : 0.0f;
  ((Constants*)constants)[slot] = c;
}

template <int N> __device__ __forceinline__ void update(const Constants& c, float* w, float* m, float* v, SCALAR* copy, const SCALAR* gradient) {
  Pack<float, N> weight = load_pack<float, N>(w), mean = load_pack<float, N>(m), square = load_pack<float, N>(v);
  Pack<SCALAR, N> given = load_pack<SCALAR, N>(gradient), copied;
#pragma unroll
  for (int j = 0; j < N; j++) {
    float g = to_float(given.v[j]) * c.factor;
    mean.v[j] += c.to_m * (g - mean.v[j]);
    square.v[j] += c.to_v * (g * g - square.v[j]);
    weight.v[j] = weight.v[j] * c.keep - c.rate * mean.v[j] / (sqrtf(square.v[j]) * c.correction + c.eps);
    copied.v[j] = from_float<SCALAR>(weight.v[j]);
  }
  store_pack<float, N>(w, weight);
  store_pack<float, N>(m, mean);
  store_pack<float, N>(v, square);
  if (copy) store_pack<SCALAR, N>(copy, copied);
}

// A block takes one chunk, a thread every blockDim.x-th piece of four neighbours, and of what is left (all, if a tensor starts at an odd
// address) every blockDim.x-th number.
extern "C" __global__ void adamw_step(const float* constants, const i64* tensors, const i64* places, Addresses gradients) {
  Place place = ((const Place*)places)[blockIdx.x];
  Constants c = ((const Constants*)constants)[place.slot];
  if (c.active == 0.0f) return;
  Weights tensor = ((const Weights*)tensors)[place.slot];
  float *w = tensor.w + place.first, *m = tensor.m + place.first, *v = tensor.v + place.first;
  SCALAR* copy = tensor.copy ? tensor.copy + place.first : tensor.copy;
  const SCALAR* g = (const SCALAR*)gradients.at[place.slot] + place.first;
  bool aligned = ((u64)w | (u64)m | (u64)v) % 16 == 0 && ((u64)g | (u64)copy) % (4 * sizeof(SCALAR)) == 0;
  int count = (int)place.count, in_fours = aligned ? count / 4 * 4 : 0;
  for (int i = 4 * threadIdx.x; i < in_fours; i += 4 * blockDim.x) update<4>(c, w + i, m + i, v + i, copy ? copy + i : copy, g + i);
  for (int i = in_fours + threadIdx.x; i < count; i += blockDim.x) update<1>(c, w + i, m + i, v + i, copy ? copy + i : copy, g + i);
}

//   norm = sqrt(sum of g^2 over all tensors)
//
// A block takes one chunk, as above with 16 bytes at a time, and leaves its sum; then one block adds the sums, always in one order.
extern "C" __global__ void gradient_squares(float* sums, const i64* places, Addresses gradients) {
  __shared__ float scratch[33];
  Place place = ((const Place*)places)[blockIdx.x];
  const SCALAR* g = (const SCALAR*)gradients.at[place.slot] + place.first;
  int count = (int)place.count, in_pieces = (u64)g % 16 == 0 ? count / PIECE * PIECE : 0;
  float sum = 0.0f;
#pragma unroll 4
  for (int i = PIECE * threadIdx.x; i < in_pieces; i += PIECE * blockDim.x) {
    Pack<SCALAR, PIECE> piece = load_pack<SCALAR, PIECE>(g + i);
#pragma unroll
    for (int j = 0; j < PIECE; j++) sum += to_float(piece.v[j]) * to_float(piece.v[j]);
  }
  for (int i = in_pieces + threadIdx.x; i < count; i += blockDim.x) sum += to_float(g[i]) * to_float(g[i]);
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void gradient_norm(float* norm, const float* sums, int n) {
  __shared__ float scratch[33];
  float sum = 0.0f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) norm[0] = sqrtf(sum);
}
