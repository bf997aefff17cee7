// What the kernels need of the card: number types, memory access, warps. Tests on a CPU replace this file.
//
// No header is included, so that the run-time compiler needs no toolkit.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_2 _Pragma("unroll 2")
#define UNROLL_4 _Pragma("unroll 4")

// Sixteen bytes, read past the first-level cache: for tensors that are read once.
DEVICE uint4 load_streamed(const uint4* p) {
  uint4 r;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "l"(p));
  return r;
}

// Sixteen bytes through all caches: for values that neighbours read too.
DEVICE uint4 load_cached(const uint4* p) {
  uint4 r;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "l"(p));
  return r;
}

// Two f32 as bf16, rounded to nearest even, `low` in the lower half.
DEVICE u32 pack_bf16(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// Never joined into one operation that rounds once.
DEVICE float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_rounded(float a, float b) { return __fadd_rn(a, b); }

DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }

// The value of the lane whose number differs in the bits of `mask`; all 32 lanes take part.
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE double shuffle_xor(double x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// 2^x and log2(x) with the card's approximations: relative error about 2^-22.
DEVICE float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
