//! AVX-512: 32 registers of 16 lanes, masked loads and stores.

use std::arch::x86_64::*;

use super::{Job, Simd};
use crate::micro::{GradientTiles, ProductTileFn, grad_tile, pair_grad_tile, pair_tile_table, tile_table};

/// AVX-512 F, BW, DQ and VL, with the instructions for bf16 or without. They round as the plain ones do, except that
/// numbers below the normal f32 become 0.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>;

/// Whether the machine has the instructions for bf16.
pub(crate) fn has_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

/// Runs a job without the instructions for bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_plain<J: Job>(job: J) -> J::Out {
    // SAFETY: the caller's promise.
    unsafe { job.call::<Avx512<false>>() }
}

/// Runs a job with the instructions for bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn run_bf16<J: Job>(job: J) -> J::Out {
    // SAFETY: the caller's promise.
    unsafe { job.call::<Avx512<true>>() }
}

/// The bits of bf16, by the instruction.
#[inline(always)]
unsafe fn narrow(v: __m512) -> __m256i {
    // SAFETY: the caller has the instructions for bf16; both types are 256 bits of any value.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)) }
}

#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

/// Rounds to bfloat16 in the upper half of each lane; NaN becomes the quiet one.
#[inline(always)]
unsafe fn round(v: __m512) -> __m512i {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0_0000))
    }
}

// SAFETY of all blocks below: the trait's contract, which the caller keeps, is that of the intrinsics: the
// features are there and the pointers are valid for the lanes that are touched.
impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    const LANES: usize = 16;
    const TILES: [&'static [ProductTileFn]; 2] = [
        &tile_table!(Avx512<false>, 1; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        &tile_table!(Avx512<false>, 2; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    ];
    const PAIR_TILES: Option<[&'static [ProductTileFn]; 2]> = if BF16 {
        Some([
            &pair_tile_table!(Avx512<true>, 1; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            &pair_tile_table!(Avx512<true>, 2; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        ])
    } else {
        None
    };
    const PAIR_GRAD_TILES: Option<&'static [GradientTiles]> = if BF16 {
        const TILES: GradientTiles = GradientTiles {
            rows: 8,
            kernels: [pair_grad_tile::<Avx512<true>, 8, 1>, pair_grad_tile::<Avx512<true>, 8, 2>],
        };
        Some(&[TILES, TILES])
    } else {
        None
    };
    const GRAD_TILES: &'static [GradientTiles] = {
        const TILES: GradientTiles = GradientTiles {
            rows: 8,
            kernels: [grad_tile::<Avx512<false>, 8, 1>, grad_tile::<Avx512<false>, 8, 2>],
        };
        &[TILES, TILES]
    };
    const GRAD_COLS: usize = 32;

    #[inline(always)]
    unsafe fn run<J: Job>(job: J) -> J::Out {
        // SAFETY: see above.
        unsafe { if BF16 { run_bf16(job) } else { run_plain(job) } }
    }
    #[inline(always)]
    unsafe fn dot_pairs(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above; the vectors have the same size, and any bits are valid in both types.
        unsafe {
            _mm512_dpbf16_ps(
                c,
                std::mem::transmute::<__m512, __m512bh>(a),
                std::mem::transmute::<__m512, __m512bh>(b),
            )
        }
    }
    #[inline(always)]
    unsafe fn pair(low: __m512, high: __m512) -> __m512 {
        // SAFETY: see above.
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
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { super::avx2::transpose(from, from_stride, to, to_stride) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> __m512 {
        // SAFETY: see above; masked lanes are not touched.
        unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, n: usize, v: __m512) {
        // SAFETY: see above; masked lanes are not touched.
        unsafe { _mm512_mask_storeu_ps(p, mask(n), v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: __m512) {
        // SAFETY: see above.
        unsafe {
            let bits =
                if BF16 { narrow(v) } else { _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round(v))) };
            _mm256_storeu_si256(p.cast(), bits);
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn relu(v: __m512) -> __m512 {
        // SAFETY: see above. The second operand is returned where either is NaN.
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), v) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn keep_positive(v: __m512, by: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(by, _mm512_setzero_ps()), v) }
    }
    #[inline(always)]
    unsafe fn keep_equal(v: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b), v) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: prefetching is valid for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}
