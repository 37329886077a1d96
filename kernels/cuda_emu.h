// cuda_emu.h - run one CUDA kernel source on the CPU, unchanged, for tests.
//
//   g++ -std=c++17 -O2 -DCUDA_EMU -x c++ kernel.cu ...
//
// One block at a time; every CUDA thread is a fiber (its own small stack).  A
// fiber runs until it meets __syncthreads(), __syncwarp(), a shuffle or an mma,
// then hands over to the next one that can run.  Nothing runs in lock step: each
// thread goes as far ahead as the barriers allow, so a missing barrier shows up
// as a wrong answer (shared memory starts every block as NaN).
#pragma once
#include <cmath>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>
#include <sys/mman.h>
#if defined(EMU_UCONTEXT) || !(defined(__x86_64__) || defined(__aarch64__))
#include <ucontext.h>
#define EMU_USE_UCONTEXT 1
#endif

// ------------------------------------------------------------------ the words
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static __attribute__((section("emu_shared")))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
static inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }

namespace emu {

// --------------------------------------------------------------- fiber switch
#if EMU_USE_UCONTEXT
struct Context { ucontext_t uc; };
static inline void switch_context(Context& from, Context& to) { swapcontext(&from.uc, &to.uc); }
#else
struct Context { void* sp; };
extern "C" void emu_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
enum { SAVED_WORDS = 6 };
#else  // aarch64: x19-x30 and d8-d15
asm(R"(
.text
.globl emu_switch
emu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#endif
static inline void switch_context(Context& from, Context& to) { emu_switch(&from.sp, to.sp); }
#endif

// ------------------------------------------------------------------ the block
enum State : uint8_t { READY, AT_BLOCK, AT_WARP, DONE };

struct Copy { void* dst; const void* src; int bytes; };
struct Fiber {
  Context ctx;
  char* stack = nullptr;
  uint3 tid{};
  unsigned linear = 0;
  State state = DONE;
  unsigned parity = 0;                 // which half of the exchange buffer comes next
  std::vector<std::vector<Copy>> copies;  // cp.async groups in flight; back() is still open
};

struct Warp {
  uint32_t alive = 0, ready = 0, arrived = 0, mask = 0;
  uint32_t written[2] = {0, 0};
  uint64_t slot[2][32];                // shuffles
  uint32_t frag[2][32][8];             // mma operands
};

struct Block {
  Context main;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  dim3 grid, block;
  uint3 bid{};
  unsigned n = 0, alive = 0, arrived = 0;
  std::vector<char> dynamic;           // extern __shared__
  void (*body)(void*) = nullptr;
  void* body_arg = nullptr;
  unsigned order = 0;                  // 0 forward, 1 reverse, else a random seed
  uint64_t rng = 0;
  uint64_t switches = 0;
  char error[512] = "";
};
static Block B;
static Fiber* cur = nullptr;
static sigjmp_buf fault_jump;

extern "C" char __start_emu_shared[] __attribute__((weak));
extern "C" char __stop_emu_shared[] __attribute__((weak));

static inline unsigned lane() { return cur->linear & 31; }
static inline Warp& warp() { return B.warps[cur->linear >> 5]; }

static inline unsigned pick_bit(uint32_t m, unsigned after) {
  if (B.order == 0) { uint32_t hi = after < 31 ? m & ~((2u << after) - 1) : 0; return __builtin_ctz(hi ? hi : m); }
  if (B.order == 1) { uint32_t lo = m & ((1u << after) - 1); return 31 - __builtin_clz(lo ? lo : m); }
  B.rng = B.rng * 6364136223846793005ull + 1442695040888963407ull;
  unsigned r = (B.rng >> 33) & 31;
  uint32_t rot = r ? (m >> r) | (m << (32 - r)) : m;
  return (__builtin_ctz(rot) + r) & 31;
}

static Fiber* next_ready() {
  unsigned nw = B.warps.size(), w = cur ? cur->linear >> 5 : 0, l = cur ? lane() : 31;
  if (B.order > 1) {                   // random: move to any warp now and then
    B.rng = B.rng * 6364136223846793005ull + 1442695040888963407ull;
    w = (B.rng >> 33) % nw;
  }
  for (unsigned i = 0; i < nw; i++) {
    unsigned k = B.order == 1 ? (w + nw - i) % nw : (w + i) % nw;
    if (B.warps[k].ready) return &B.fibers[k * 32 + pick_bit(B.warps[k].ready, i ? 31 : l)];
  }
  return nullptr;
}

[[noreturn]] static void leave() {     // back to launch()
  Context dead;
  Context* from = cur ? &cur->ctx : &dead;
  switch_context(*from, B.main);
  abort();
}

[[noreturn]] static void fail(const char* what) {
  snprintf(B.error, sizeof B.error, "%s: block (%u,%u,%u) thread (%u,%u,%u)", what, B.bid.x, B.bid.y, B.bid.z,
           cur->tid.x, cur->tid.y, cur->tid.z);
  leave();
}

static void hand_over() {
  Fiber* f = next_ready();
  if (!f) {
    unsigned block = 0, warps = 0, done = 0;
    for (unsigned i = 0; i < B.n; i++) {
      State s = B.fibers[i].state;
      block += s == AT_BLOCK; warps += s == AT_WARP; done += s == DONE;
    }
    snprintf(B.error, sizeof B.error,
             "deadlock in block (%u,%u,%u): %u threads wait in __syncthreads, %u in a warp operation, %u have returned",
             B.bid.x, B.bid.y, B.bid.z, block, warps, done);
    leave();
  }
  if (f == cur) return;
  Fiber* me = cur;
  cur = f;
  B.switches++;
  switch_context(me->ctx, f->ctx);
}

static void release_block() {
  for (unsigned i = 0; i < B.n; i++)
    if (B.fibers[i].state == AT_BLOCK) { B.fibers[i].state = READY; B.warps[i >> 5].ready |= 1u << (i & 31); }
  B.arrived = 0;
}

static void release_warp(Warp& w, unsigned base) {
  for (uint32_t m = w.arrived; m; m &= m - 1) B.fibers[base + __builtin_ctz(m)].state = READY;
  w.ready |= w.arrived;
  w.arrived = 0;
}

static void block_barrier() {
  warp().ready &= ~(1u << lane());
  cur->state = AT_BLOCK;
  if (++B.arrived == B.alive) release_block();
  hand_over();
}

static void warp_barrier(uint32_t mask) {
  Warp& w = warp();
  uint32_t bit = 1u << lane();
  if (!(mask & bit)) fail("a thread called a warp operation whose mask leaves it out");
  if (w.arrived && w.mask != mask) fail("threads of one warp called a warp operation with different masks");
  w.mask = mask;
  w.ready &= ~bit;
  w.arrived |= bit;
  cur->state = AT_WARP;
  if (w.arrived == (mask & w.alive)) release_warp(w, cur->linear & ~31u);
  hand_over();
}

static void fiber_main() {
  B.body(B.body_arg);
  Warp& w = warp();
  uint32_t bit = 1u << lane();
  cur->state = DONE;
  w.alive &= ~bit;
  w.ready &= ~bit;
  B.alive--;
  if (B.alive && B.arrived == B.alive) release_block();
  if (w.arrived && w.arrived == (w.mask & w.alive)) release_warp(w, cur->linear & ~31u);
  if (!B.alive) leave();
  hand_over();
  abort();
}

enum { STACK = 128 * 1024 };

static void start_fiber(Fiber& f) {
  if (!f.stack) {
    f.stack = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (f.stack == MAP_FAILED) abort();
  }
#if EMU_USE_UCONTEXT
  getcontext(&f.ctx.uc);
  f.ctx.uc.uc_stack.ss_sp = f.stack;
  f.ctx.uc.uc_stack.ss_size = STACK;
  f.ctx.uc.uc_link = nullptr;
  makecontext(&f.ctx.uc, fiber_main, 0);
#elif defined(__x86_64__)
  void** top = (void**)(f.stack + STACK);
  *--top = nullptr;                    // keeps the stack 16-byte aligned at entry
  *--top = (void*)fiber_main;
  for (int i = 0; i < SAVED_WORDS; i++) *--top = nullptr;
  f.ctx.sp = top;
#else
  char* top = f.stack + STACK - 160;
  memset(top, 0, 160);
  *(void**)(top + 88) = (void*)fiber_main;  // x30
  f.ctx.sp = top;
#endif
}

static void on_fault(int signal, siginfo_t* info, void*) {
  // SIGILL comes from g++ -fsanitize=alignment,bounds,... -fsanitize-undefined-trap-on-error
  const char* what = signal == SIGILL ? "misaligned access, array bound or other undefined behaviour" : "bad memory access";
  snprintf(B.error, sizeof B.error, "%s at %p: block (%u,%u,%u) thread (%u,%u,%u)", what, info->si_addr, B.bid.x,
           B.bid.y, B.bid.z, cur->tid.x, cur->tid.y, cur->tid.z);
  siglongjmp(fault_jump, 1);
}

static int run_grid() {
  unsigned n = B.block.x * B.block.y * B.block.z;
  if (n == 0 || n > 1024) { snprintf(B.error, sizeof B.error, "block of %u threads (1 to 1024 allowed)", n); return 1; }
  if (B.fibers.size() < n) B.fibers.resize(n);
  B.n = n;
  static char alt_stack[65536];
  stack_t alt{}, old_alt{};
  alt.ss_sp = alt_stack;
  alt.ss_size = sizeof alt_stack;
  struct sigaction act{}, old_segv{}, old_bus{}, old_ill{};
  act.sa_sigaction = on_fault;
  act.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaltstack(&alt, &old_alt);
  sigaction(SIGSEGV, &act, &old_segv);
  sigaction(SIGBUS, &act, &old_bus);
  sigaction(SIGILL, &act, &old_ill);
  B.error[0] = 0;
  if (!sigsetjmp(fault_jump, 1)) {
    unsigned blocks = B.grid.x * B.grid.y * B.grid.z;
    for (unsigned nth = 0; nth < blocks; nth++) {
          unsigned b = B.order ? blocks - 1 - nth : nth;
          B.bid = {b % B.grid.x, b / B.grid.x % B.grid.y, b / (B.grid.x * B.grid.y)};
          if (__start_emu_shared) memset(__start_emu_shared, 0xff, __stop_emu_shared - __start_emu_shared);
          if (!B.dynamic.empty()) memset(B.dynamic.data(), 0xff, B.dynamic.size());
          B.warps.assign((n + 31) / 32, Warp{});
          B.alive = n;
          B.arrived = 0;
          for (unsigned i = 0; i < n; i++) {
            Fiber& f = B.fibers[i];
            f.linear = i;
            f.tid = {i % B.block.x, i / B.block.x % B.block.y, i / (B.block.x * B.block.y)};
            f.state = READY;
            f.parity = 0;
            f.copies.clear();
            B.warps[i >> 5].alive |= 1u << (i & 31);
            start_fiber(f);
          }
          for (auto& w : B.warps) w.ready = w.alive;
          cur = nullptr;
          cur = next_ready();
          switch_context(B.main, cur->ctx);
          if (B.error[0]) goto out;
        }
  }
out:
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaction(SIGILL, &old_ill, nullptr);
  sigaltstack(&old_alt, nullptr);
  return B.error[0] != 0;
}

// `args` holds the argument values one after another, each at its natural alignment:
// the layout cuLaunchKernel takes as CU_LAUNCH_PARAM_BUFFER_POINTER.
template <class... A, size_t... I>
static int launch_with(void (*kernel)(A...), const char* args, std::index_sequence<I...>) {
  struct Call {
    void (*kernel)(A...);
    const char* at[sizeof...(A)];
  } call{kernel, {}};
  size_t offset = 0, i = 0;
  ((offset = (offset + alignof(A) - 1) / alignof(A) * alignof(A), call.at[i++] = args + offset, offset += sizeof(A)), ...);
  B.body = [](void* p) { Call& c = *(Call*)p; c.kernel(*(const A*)c.at[I]...); };
  B.body_arg = &call;
  return run_grid();
}
template <class... A>
static int launch(void (*kernel)(A...), const unsigned* dims, unsigned shared_bytes, const char* args, unsigned order) {
  B.grid = dim3(dims[0], dims[1], dims[2]);
  B.block = dim3(dims[3], dims[4], dims[5]);
  B.dynamic.resize(shared_bytes);
  B.order = order;
  B.rng = order;
  return launch_with(kernel, args, std::index_sequence_for<A...>{});
}

// ------------------------------------------------------------ warp exchange
template <class T>
static inline T shuffle(uint32_t mask, T v, unsigned src) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  unsigned p = cur->parity++ & 1;
  Warp& w = warp();
  uint64_t bits = 0;
  memcpy(&bits, &v, sizeof v);
  w.slot[p][lane()] = bits;
  if (!w.arrived) w.written[p] = 0;
  w.written[p] |= 1u << lane();
  warp_barrier(mask);
  if (!(w.written[p] >> src & 1)) fail("a shuffle read a lane that took no part in it");
  T out;
  memcpy(&out, &w.slot[p][src], sizeof out);
  return out;
}
static inline float low_bf16(uint32_t r) { uint32_t u = r << 16; float f; memcpy(&f, &u, 4); return f; }
static inline float high_bf16(uint32_t r) { uint32_t u = r & 0xffff0000u; float f; memcpy(&f, &u, 4); return f; }
static inline float half_bits(uint16_t h) { _Float16 x; memcpy(&x, &h, 2); return (float)x; }

// mma.sync.m16n8k16 row.col, f32 accumulate: the register layouts of the PTX manual.
template <bool BF16>
static inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  unsigned p = cur->parity++ & 1, l = lane();
  Warp& w = warp();
  for (int i = 0; i < 4; i++) w.frag[p][l][i] = a[i];
  for (int i = 0; i < 2; i++) w.frag[p][l][4 + i] = b[i];
  warp_barrier(0xffffffffu);
  auto lo = [](uint32_t r) { return BF16 ? low_bf16(r) : half_bits(r & 0xffff); };
  auto hi = [](uint32_t r) { return BF16 ? high_bf16(r) : half_bits(r >> 16); };
  unsigned g = l >> 2, t = l & 3;
  for (int i = 0; i < 4; i++) {
    unsigned row8 = i >> 1, col = t * 2 + (i & 1);
    float sum = d[i];
    for (int kh = 0; kh < 2; kh++)
      for (int q = 0; q < 4; q++) {
        uint32_t ra = w.frag[p][g * 4 + q][row8 + 2 * kh], rb = w.frag[p][col * 4 + q][4 + kh];
        sum += lo(ra) * lo(rb) + hi(ra) * hi(rb);
      }
    d[i] = sum;
  }
}

// ldmatrix: four 8x8 matrices of 16-bit values; lane i gives the address of row i%8 of matrix i/8.
template <bool TRANS>
static inline void ldmatrix_x4(uint32_t r[4], const void* row) {
  unsigned p = cur->parity++ & 1, l = lane();
  Warp& w = warp();
  memcpy(w.frag[p][l], row, 16);
  warp_barrier(0xffffffffu);
  for (int m = 0; m < 4; m++) {
    unsigned i = l >> 2, j = (l & 3) * 2;
    auto at = [&](unsigned rr, unsigned cc) { return (w.frag[p][m * 8 + rr][cc / 2] >> (cc % 2 * 16)) & 0xffffu; };
    r[m] = TRANS ? at(j, i) | at(j + 1, i) << 16 : at(i, j) | at(i, j + 1) << 16;
  }
}
}  // namespace emu

#define threadIdx (emu::cur->tid)
#define blockIdx (emu::B.bid)
#define blockDim (emu::B.block)
#define gridDim (emu::B.grid)
#define warpSize 32

static inline void __syncthreads() { emu::block_barrier(); }
static inline void __syncwarp(uint32_t m = 0xffffffffu) { emu::warp_barrier(m); }
template <class T> static inline T __shfl_sync(uint32_t m, T v, int src, int width = 32) {
  unsigned l = emu::lane();
  return emu::shuffle(m, v, (l & ~(width - 1)) | (src & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(uint32_t m, T v, int x, int width = 32) {
  unsigned l = emu::lane(), s = l ^ x;
  return emu::shuffle(m, v, s < ((l & ~(width - 1)) + width) ? s : l);
}
template <class T> static inline T __shfl_down_sync(uint32_t m, T v, unsigned d, int width = 32) {
  unsigned l = emu::lane();
  return emu::shuffle(m, v, (l & (width - 1)) + d < (unsigned)width ? l + d : l);
}
static inline uint32_t __ballot_sync(uint32_t m, int pred) {
  uint32_t all = 0;
  for (unsigned i = 0; i < 32; i++)
    if (m >> i & 1) all |= (uint32_t)(emu::shuffle(m, pred ? 1 : 0, i)) << i;
  return all;
}
template <class T> static inline T atomicAdd(T* p, T v) { T old = *p; *p = old + v; return old; }  // one block at a time
template <class T> static inline T atomicMax(T* p, T v) { T old = *p; if (v > old) *p = v; return old; }
static inline void __threadfence() {}
template <class T> static inline T __ldg(const T* p) { return *p; }
#define __expf expf  // (glibc declares functions of these names)
#define __logf logf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
static inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
static inline float __uint_as_float(unsigned i) { float f; memcpy(&f, &i, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned i; memcpy(&i, &f, 4); return i; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
