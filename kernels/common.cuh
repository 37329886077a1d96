// common.cuh - the few helpers every kernel here shares.  No CUDA header is
// needed: NVRTC, nvcc and (with -DCUDA_EMU) g++ all build the same text.
#pragma once
#ifdef CUDA_EMU
#include "cuda_emu.h"
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
#define FULL_WARP 0xffffffffu
#define NEG_INF __int_as_float(0xff800000)

#ifdef CUDA_EMU
#define DYNAMIC_SHARED(type, name) type* name = (type*)emu::B.dynamic.data()
#else
#define DYNAMIC_SHARED(type, name)                              \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  type* name = (type*)dynamic_shared
#endif

// ---- 16-bit floats: storage only; all arithmetic is done in float -----------
struct bf16 { u16 bits; };
struct fp16 { u16 bits; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_float(fp16 x) {
#ifdef CUDA_EMU
  return emu::half_bits(x.bits);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
#endif
}
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {
#if !defined(CUDA_EMU) && __CUDA_ARCH__ >= 800
  bf16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
  return h;
#else
  u32 u = __float_as_uint(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{(u16)((u >> 16) | 0x40)};  // stay NaN
  return bf16{(u16)((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};                  // round to nearest even
#endif
}
template <> __device__ __forceinline__ fp16 from_float<fp16>(float x) {
  fp16 h;
#ifdef CUDA_EMU
  _Float16 v = (_Float16)x;
  memcpy(&h.bits, &v, 2);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
#endif
  return h;
}
template <typename T> __device__ __forceinline__ u32 pack2(float lo, float hi) {
  return (u32)from_float<T>(lo).bits | (u32)from_float<T>(hi).bits << 16;
}
#if !defined(CUDA_EMU) && __CUDA_ARCH__ >= 800  // both at once, in one instruction
template <> __device__ __forceinline__ u32 pack2<bf16>(float lo, float hi) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(hi), "f"(lo));
  return both;
}
template <> __device__ __forceinline__ u32 pack2<fp16>(float lo, float hi) {
  u32 both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(hi), "f"(lo));
  return both;
}
#endif

// ---- one instruction each of the special function unit; what lies below 2^-126 is zero to them ----
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef CUDA_EMU
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
__device__ __forceinline__ float fast_exp(float x) { return fast_exp2(x * 1.44269504f); }
__device__ __forceinline__ float fast_reciprocal(float x) {
#ifdef CUDA_EMU
  return 1.0f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// ---- neighbours in one piece: N numbers are one load or store of N * sizeof(T) bytes, 16 at best ----
template <typename T, int N> struct __align__(N * sizeof(T)) Pack { T v[N]; };
template <typename T, int N> __device__ __forceinline__ Pack<T, N> load_pack(const T* from) { return *(const Pack<T, N>*)from; }
template <typename T, int N> __device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& pack) { *(Pack<T, N>*)to = pack; }
template <int N> __device__ __forceinline__ void load_floats(float to[N], const float* from) {  // N floats beside N 16-bit numbers: two loads if N is 8
#pragma unroll
  for (int first = 0; first < N; first += 4) {
    Pack<float, (N < 4 ? N : 4)> piece = load_pack<float, (N < 4 ? N : 4)>(from + first);
#pragma unroll
    for (int j = 0; j < (N < 4 ? N : 4); j++) to[first + j] = piece.v[j];
  }
}
template <typename T, int N> __device__ __forceinline__ Pack<T, N> rounded(const float from[N]) {  // two 16-bit numbers in one instruction
  Pack<T, N> pack;
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      u32 both = pack2<T>(from[j], from[j + 1]);
      pack.v[j].bits = (u16)both, pack.v[j + 1].bits = (u16)(both >> 16);
    }
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) pack.v[j] = from_float<T>(from[j]);
  }
  return pack;
}

// ---- many tensors in one launch: their addresses are passed by value, so that a CUDA graph holds them; 0 is no tensor ----
struct Addresses { u64 at[480]; };  // a kernel's parameters are 4096 bytes at most

// ---- reductions -------------------------------------------------------------
__device__ __forceinline__ float warp_sum(float v) {
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(FULL_WARP, v, o);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
  for (int o = 16; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, o));
  return v;
}
// Sum over the block; every thread gets the answer.  `scratch` holds 33 floats.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_sum(v);
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  if (warp == 0) {
    float s = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    if (lane == 0) scratch[32] = s;
  }
  __syncthreads();
  return scratch[32];  // written again only after the next call's first barrier
}

// Two sums at once; `scratch` holds 66 floats.
__device__ __forceinline__ void block_sum2(float v[2], float* scratch) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  for (int k = 0; k < 2; k++) v[k] = warp_sum(v[k]);
  if (lane == 0)
    for (int k = 0; k < 2; k++) scratch[33 * k + warp] = v[k];
  __syncthreads();
  if (warp == 0)
    for (int k = 0; k < 2; k++) {
      float s = warp_sum(lane < warps ? scratch[33 * k + lane] : 0.0f);
      if (lane == 0) scratch[33 * k + 32] = s;
    }
  __syncthreads();
  for (int k = 0; k < 2; k++) v[k] = scratch[33 * k + 32];
}

// ---- random numbers: Philox 4x32-10 (Salmon et al., 2011) --------------------
// A pure function of (seed, counter): the backward pass asks again for the same
// numbers, so no dropout mask is ever stored.
struct Random4 { u32 v[4]; };
__device__ __forceinline__ Random4 philox(u64 seed, u64 counter, u64 stream) {
  u32 c0 = (u32)counter, c1 = (u32)(counter >> 32), c2 = (u32)stream, c3 = (u32)(stream >> 32);
  u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    u32 hi0 = __umulhi(0xD2511F53u, c0), lo0 = 0xD2511F53u * c0;
    u32 hi1 = __umulhi(0xCD9E8D57u, c2), lo1 = 0xCD9E8D57u * c2;
    c0 = hi1 ^ c1 ^ k0;
    c1 = lo1;
    c2 = hi0 ^ c3 ^ k1;
    c3 = lo0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Random4{{c0, c1, c2, c3}};
}
// What dropout multiplies N neighbours by, 0 or `scale`: 1 if p is 0. `index` is a multiple of N, and N of 4 or a divisor of it: four share a draw.
// Kept is a number whose upper 24 bits, as a fraction, are at least p; asked in whole numbers, since p * 2^24 is exact.
template <int N> __device__ __forceinline__ void keep_factors(float factor[N], u64 seed, u64 step, u64 index, float p, float scale) {
#pragma unroll
  for (int j = 0; j < N; j++) factor[j] = 1.0f;
  if (p > 0.0f) {
    u32 least = (u32)ceilf(p * 16777216.0f) << 8;
#pragma unroll
    for (int first = 0; first < N; first += 4) {
      Random4 r = philox(seed, (index + first) >> 2, step);
#pragma unroll
      for (int j = 0; j < (N < 4 ? N : 4); j++)
        factor[first + j] = r.v[N < 4 ? (index + j) & 3 : j] >= least ? scale : 0.0f;
    }
  }
}

// ---- asynchronous copies and tensor cores -------------------------------------
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
#if defined(CUDA_EMU)
  if (emu::cur->copies.empty()) emu::cur->copies.emplace_back();
  emu::cur->copies.back().push_back({shared, global, 16});
#elif __CUDA_ARCH__ >= 800
  u32 dst = (u32)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(global) : "memory");
#else
  *(uint4*)shared = *(const uint4*)global;  // Turing has no cp.async
#endif
}
__device__ __forceinline__ void copy_async4(void* shared, const void* global) {
#if defined(CUDA_EMU)
  if (emu::cur->copies.empty()) emu::cur->copies.emplace_back();
  emu::cur->copies.back().push_back({shared, global, 4});
#elif __CUDA_ARCH__ >= 800
  u32 dst = (u32)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(dst), "l"(global) : "memory");
#else
  *(u32*)shared = *(const u32*)global;
#endif
}
__device__ __forceinline__ void copy_async_commit() {
#if defined(CUDA_EMU)
  emu::cur->copies.emplace_back();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int IN_FLIGHT> __device__ __forceinline__ void copy_async_wait() {
#if defined(CUDA_EMU)
  auto& groups = emu::cur->copies;  // the last one is still open
  while ((int)groups.size() - 1 > IN_FLIGHT) {
    for (auto& c : groups.front()) memcpy(c.dst, c.src, c.bytes);
    groups.erase(groups.begin());
  }
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(IN_FLIGHT) : "memory");
#endif
}

template <typename T> struct is_bf16 { static const bool value = false; };
template <> struct is_bf16<bf16> { static const bool value = true; };

// d (16x8, float) += a (16x16) * b (16x8)
template <typename T> __device__ __forceinline__ void mma_16x8x16(float d[4], const u32 a[4], const u32 b[2]) {
#if defined(CUDA_EMU)
  emu::mma_m16n8k16<is_bf16<T>::value>(d, a, b);
#elif __CUDA_ARCH__ >= 800
  if (is_bf16<T>::value)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
  // Turing: float16 only, in two halves of k
  static_assert(!is_bf16<T>::value, "tensor cores take bfloat16 from sm_80 on");
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

// Four 8x8 blocks of 16-bit values from shared memory into mma registers; lane i
// names row i%8 of block i/8.
template <bool TRANSPOSE> __device__ __forceinline__ void load_matrix_x4(u32 r[4], const void* row) {
#if defined(CUDA_EMU)
  emu::ldmatrix_x4<TRANSPOSE>(r, row);
#else
  u32 addr = (u32)__cvta_generic_to_shared(row);
  if (TRANSPOSE)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr));
#endif
}
