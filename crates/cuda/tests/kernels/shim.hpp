// A card in a few hundred lines: what `device.cuh` is to NVRTC, for a C++ compiler and a CPU.
//
// Each thread of a block is a fiber with a stack of its own. Fibers run one after the other until they wait: at a
// barrier of the block, or of the warp inside of a shuffle. Blocks run one after the other, so `__shared__` is `static`.
// The order of threads and blocks can be turned round: a kernel without races gives the same bits.

#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include <sys/mman.h>
#include <ucontext.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __shared__ static
#define DEVICE inline
#define UNROLL
#define UNROLL_2
#define UNROLL_4

namespace shim {

struct Index { u32 x, y, z; };

enum State { READY, AT_WARP, AT_BLOCK, DONE };

struct Fiber {
  Index thread;
  State state;
  bool started;
  u32 number;       // within the block
  u32 shuffles;     // shuffles so far: two slots are used in turn
  double slots[2];
  ucontext_t context;
  jmp_buf jump;
};

constexpr u32 MOST_THREADS = 1024;
constexpr size_t STACK = 1 << 16;

static Fiber fibers[MOST_THREADS];
static Fiber* current;
static Index grid, block_size, block;
static ucontext_t scheduler;
static jmp_buf scheduler_jump;
static char* stacks;
static void (*body)(void* const*);
static void* const* arguments;

[[noreturn]] static void fail(const char* what) {
  fprintf(stderr, "kernel on the CPU: %s\n", what);
  abort();
}

// Switching by setjmp is ten times as fast as by ucontext, but the sanitiser understands only the latter.
static void pause_fiber(State state) {
  Fiber* self = current;
  self->state = state;
#ifdef __SANITIZE_ADDRESS__
  swapcontext(&self->context, &scheduler);
#else
  if (!_setjmp(self->jump)) _longjmp(scheduler_jump, 1);
#endif
}

static void fiber_main() {
  body(arguments);
  pause_fiber(DONE);
  fail("a thread ran on after its end");
}

static void resume(Fiber* fiber) {
  current = fiber;
#ifdef __SANITIZE_ADDRESS__
  swapcontext(&scheduler, &fiber->context);
#else
  if (_setjmp(scheduler_jump)) return;
  if (fiber->started) _longjmp(fiber->jump, 1);
  fiber->started = true;
  setcontext(&fiber->context);
#endif
}

static void sync_block() { pause_fiber(AT_BLOCK); }

static double exchange(double x, int mask) {
  Fiber* self = current;
  const u32 slot = self->shuffles++ & 1;
  self->slots[slot] = x;
  pause_fiber(AT_WARP);
  return fibers[self->number ^ (u32)mask].slots[slot];
}

// Runs a warp until all its threads wait at the block's barrier or are done.
static void run_warp(u32 first, u32 last, bool backwards) {
  for (;;) {
    for (u32 i = first; i < last; i++) {
      Fiber* fiber = &fibers[backwards ? first + last - 1 - i : i];
      if (fiber->state == READY) resume(fiber);
    }
    u32 waiting = 0;
    for (u32 i = first; i < last; i++) waiting += fibers[i].state == AT_WARP;
    if (!waiting) return;
    if (waiting != 32) fail("a shuffle without all 32 threads of its warp");
    for (u32 i = first; i < last; i++) fibers[i].state = READY;
  }
}

static void run_block(u32 threads, bool backwards) {
  for (u32 i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.thread = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
    fiber.state = READY;
    fiber.started = false;
    fiber.number = i;
    fiber.shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks + i * STACK;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  const u32 warps = (threads + 31) / 32;
  for (;;) {
    for (u32 w = 0; w < warps; w++) {
      const u32 first = 32 * (backwards ? warps - 1 - w : w);
      run_warp(first, first + 32 < threads ? first + 32 : threads, backwards);
    }
    u32 waiting = 0, done = 0;
    for (u32 i = 0; i < threads; i++) {
      waiting += fibers[i].state == AT_BLOCK;
      done += fibers[i].state == DONE;
    }
    if (done == threads) return;
    if (waiting != threads) fail("a barrier that some threads of the block did not reach");
    for (u32 i = 0; i < threads; i++) fibers[i].state = READY;
  }
}

template <class T> struct Kind { static constexpr char value = '?'; };
template <class T> struct Kind<T*> { static constexpr char value = 'p'; };
template <> struct Kind<int> { static constexpr char value = 'i'; };
template <> struct Kind<float> { static constexpr char value = 'f'; };

template <auto F> struct Call;
template <class... A, void (*F)(A...)> struct Call<F> {
  static constexpr char kinds[] = {Kind<A>::value..., 0};
  template <size_t... I> static void spread(void* const* args, std::index_sequence<I...>) { F(*(A*)args[I]...); }
  static void run(void* const* args) { spread(args, std::index_sequence_for<A...>()); }
};

struct Kernel { const char *name, *kinds; void (*run)(void* const*); };

}  // namespace shim

#define threadIdx (shim::current->thread)
#define blockIdx shim::block
#define blockDim shim::block_size
#define gridDim shim::grid
#define __syncthreads shim::sync_block

DEVICE void check_alignment(const void* p, size_t bytes) {
  if ((uintptr_t)p % bytes) shim::fail("a vector that is not aligned");
}
DEVICE uint4 load_streamed(const uint4* p) { check_alignment(p, 16); return *p; }
DEVICE uint4 load_cached(const uint4* p) { check_alignment(p, 16); return *p; }

DEVICE float multiply_rounded(float a, float b) { return a * b; }
DEVICE float add_rounded(float a, float b) { return a + b; }
DEVICE float bits_to_float(u32 bits) { float f; memcpy(&f, &bits, 4); return f; }
DEVICE u32 round_bf16(float x) {
  if (x != x) return 0x7fff;
  u32 bits;
  memcpy(&bits, &x, 4);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEVICE u32 pack_bf16(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }
DEVICE float shuffle_xor(float x, int mask) { return (float)shim::exchange(x, mask); }
DEVICE double shuffle_xor(double x, int mask) { return shim::exchange(x, mask); }
DEVICE float exp2_fast(float x) { return exp2f(x); }
