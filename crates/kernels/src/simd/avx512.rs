//! AVX-512: 32 registers of 16 lanes, masked loads and stores.

use std::arch::x86_64::*;

use super::{Job, Simd};
use crate::micro::{GradientTiles, ProductTileFn, grad_tile, pair_grad_tile, pair_tile_table, tile_table};

/// AVX-512 F, BW, DQ and VL, with the instructions for bf16 or without. They round as the plain ones do, except that
/// numbers below the normal f32 become 0. A value is the proof that the machine has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl Avx512<false> {
    /// If the machine has them.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && super::Avx2::detect().is_some();
        has.then_some(Self(()))
    }
}

impl Avx512<true> {
    /// If the machine has them.
    pub fn detect() -> Option<Self> {
        Avx512::<false>::detect().filter(|_| is_x86_feature_detected!("avx512bf16")).map(|_| Self(()))
    }
}

/// Runs a job without the instructions for bf16.
///
/// # Safety
/// The job's pointers must be valid.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_plain<J: Job>(simd: Avx512<false>, job: J) -> J::Out {
    // SAFETY: the job's pointers are valid.
    unsafe { job.call(simd) }
}

/// Runs a job with the instructions for bf16.
///
/// # Safety
/// The job's pointers must be valid.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn run_bf16<J: Job>(simd: Avx512<true>, job: J) -> J::Out {
    // SAFETY: the job's pointers are valid.
    unsafe { job.call(simd) }
}

/// The bits of bf16, by the instruction.
///
/// # Safety
/// The machine must have the instructions for bf16.
#[inline(always)]
unsafe fn narrow(v: __m512) -> __m256i {
    // SAFETY: the machine has the instructions for bf16; both types are 256 bits of any value.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)) }
}

/// The values of bf16.
///
/// # Safety
/// The machine must have AVX-512 F.
#[inline(always)]
unsafe fn widen(bits: __m256i) -> __m512 {
    // SAFETY: the machine has AVX-512 F.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))) }
}

#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

/// Rounds to bfloat16 in the upper half of each lane; NaN becomes the quiet one.
///
/// # Safety
/// The machine must have AVX-512 F.
#[inline(always)]
unsafe fn round(v: __m512) -> __m512i {
    // SAFETY: the machine has AVX-512 F.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0_0000))
    }
}

/// The bits of bf16, to nearest even.
///
/// # Safety
/// The machine must have AVX-512 F, and the instructions for bf16 where `BF16`.
#[inline(always)]
unsafe fn bits<const BF16: bool>(v: __m512) -> __m256i {
    // SAFETY: the machine has the instructions.
    unsafe { if BF16 { narrow(v) } else { _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round(v))) } }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    type Base = Avx512<false>;
    const LANES: usize = 16;
    const TILES: [&'static [ProductTileFn<Self>]; 2] = [
        &tile_table!(Self, 1; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        &tile_table!(Self, 2; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    ];
    const PAIR_TILES: Option<[&'static [ProductTileFn<Self>]; 2]> = if BF16 {
        Some([
            &pair_tile_table!(Self, 1; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            &pair_tile_table!(Self, 2; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        ])
    } else {
        None
    };
    const PAIR_GRAD_TILES: Option<&'static [GradientTiles<Self>]> = if BF16 {
        Some(
            &[GradientTiles {
                rows: 8,
                kernels: [pair_grad_tile::<Self, 8, 1>, pair_grad_tile::<Self, 8, 2>],
            }; 2],
        )
    } else {
        None
    };
    const GRAD_TILES: &'static [GradientTiles<Self>] =
        &[GradientTiles { rows: 8, kernels: [grad_tile::<Self, 8, 1>, grad_tile::<Self, 8, 2>] }; 2];
    const GRAD_COLS: usize = 32;

    #[inline(always)]
    fn base(self) -> Avx512<false> {
        Avx512(())
    }
    #[inline(always)]
    unsafe fn run<J: Job>(self, job: J) -> J::Out {
        // SAFETY: `self` exists only where the instructions do; the job's pointers are valid.
        unsafe { if BF16 { run_bf16(Avx512(()), job) } else { run_plain(Avx512(()), job) } }
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        if !BF16 {
            return c;
        }
        // SAFETY: `self` exists only where the instructions do; the vectors have the same size, and any bits are valid in both types.
        unsafe {
            _mm512_dpbf16_ps(
                c,
                std::mem::transmute::<__m512, __m512bh>(a),
                std::mem::transmute::<__m512, __m512bh>(b),
            )
        }
    }
    #[inline(always)]
    fn pair(self, low: __m512, high: __m512) -> __m512 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe {
            if BF16 {
                let low = _mm512_cvtepu16_epi32(narrow(low));
                let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow(high)));
                return _mm512_castsi512_ps(_mm512_or_si512(low, high));
            }
            let low = _mm512_srli_epi32::<16>(round(low));
            let high = _mm512_and_si512(round(high), _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: `self` exists only where the instructions do, and the pointers are valid for a square.
        unsafe { super::avx2::transpose(from, from_stride, to, to_stride) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes; masked lanes are not touched.
        unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: __m512) {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes; masked lanes are not touched.
        unsafe { _mm512_mask_storeu_ps(p, mask(n), v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
        unsafe { widen(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m512) {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
        unsafe {
            _mm256_storeu_si256(p.cast(), bits::<BF16>(v));
        }
    }
    #[inline(always)]
    fn remainder(self, v: __m512) -> __m512 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm512_sub_ps(v, widen(bits::<BF16>(v))) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn relu(self, v: __m512) -> __m512 {
        // SAFETY: `self` exists only where the instructions do. The second operand is returned where either is NaN.
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), v) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn keep_positive(self, v: __m512, by: __m512) -> __m512 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(by, _mm512_setzero_ps()), v) }
    }
    #[inline(always)]
    fn keep_equal(self, v: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b), v) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: prefetching is valid for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}
