//! AVX2 and FMA: 16 registers of 8 lanes.

use std::arch::x86_64::*;

use super::{Job, Simd};
use crate::micro::{GradientTiles, ProductTileFn, grad_tile, tile_table};

/// AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    const BITS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: n <= 8, so the 8 elements from 8 - n lie within the 16.
    unsafe { _mm256_loadu_si256(BITS.as_ptr().add(8 - n).cast()) }
}

/// [`Simd::transpose`], for all instruction sets that have AVX2.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's promise: there are eight rows of eight values at both ends.
    unsafe {
        let row = |i: usize| _mm256_loadu_ps(from.add(i * from_stride));
        // Pairs of rows i and i + 2, then i and i + 1, of each half of four, then the halves.
        let half = |first: usize| {
            let (low02, high02) = (
                _mm256_unpacklo_ps(row(first), row(first + 2)),
                _mm256_unpackhi_ps(row(first), row(first + 2)),
            );
            let (low13, high13) = (
                _mm256_unpacklo_ps(row(first + 1), row(first + 3)),
                _mm256_unpackhi_ps(row(first + 1), row(first + 3)),
            );
            [
                _mm256_unpacklo_ps(low02, low13),
                _mm256_unpackhi_ps(low02, low13),
                _mm256_unpacklo_ps(high02, high13),
                _mm256_unpackhi_ps(high02, high13),
            ]
        };
        let (top, bottom) = (half(0), half(4));
        for i in 0..4 {
            _mm256_storeu_ps(to.add(i * to_stride), _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]));
            _mm256_storeu_ps(to.add((i + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(top[i], bottom[i]));
        }
    }
}

// SAFETY of all blocks below: the trait's contract, which the caller keeps, is that of the intrinsics: the
// features are there and the pointers are valid for the lanes that are touched.
impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const TILES: [&'static [ProductTileFn]; 2] =
        [&tile_table!(Avx2, 1; 1 2 3 4 5 6), &tile_table!(Avx2, 2; 1 2 3 4 5 6)];
    const GRAD_TILES: &'static [GradientTiles] = {
        const SIX: GradientTiles = GradientTiles { rows: 6, kernels: [grad_tile::<Avx2, 6, 2>; 2] };
        const FIVE: GradientTiles = GradientTiles { rows: 5, kernels: [grad_tile::<Avx2, 5, 2>; 2] };
        &[SIX, FIVE, FIVE]
    };
    const GRAD_COLS: usize = 16;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run<J: Job>(job: J) -> J::Out {
        // SAFETY: see above.
        unsafe { job.call::<Self>() }
    }
    #[inline(always)]
    unsafe fn pair(low: __m256, high: __m256) -> __m256 {
        let (mut a, mut b, mut words) = ([0u16; 8], [0u16; 8], [0f32; 8]);
        // SAFETY: the arrays are as long as a vector.
        unsafe {
            Self::store_bf16(a.as_mut_ptr(), low);
            Self::store_bf16(b.as_mut_ptr(), high);
            for i in 0..8 {
                words[i] = f32::from_bits(u32::from(a[i]) | u32::from(b[i]) << 16);
            }
            Self::load(words.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { transpose(from, from_stride, to, to_stride) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> __m256 {
        // SAFETY: see above; masked lanes are not touched.
        unsafe { _mm256_maskload_ps(p, mask(n)) }
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, n: usize, v: __m256) {
        // SAFETY: see above; masked lanes are not touched. Masked stores are slow on AMD's chips: 12 cycles and more.
        unsafe {
            if n == Self::LANES {
                Self::store(p, v);
            } else {
                _mm256_maskstore_ps(p, mask(n), v);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        // SAFETY: see above.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: __m256) {
        // SAFETY: see above.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let safe = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0_0000), nan);
            let high = _mm256_srli_epi32::<16>(safe);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(high, high));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn relu(v: __m256) -> __m256 {
        // SAFETY: see above. The second operand is returned where either is NaN.
        unsafe { _mm256_max_ps(_mm256_setzero_ps(), v) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn keep_positive(v: __m256, by: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(by, _mm256_setzero_ps()), v) }
    }
    #[inline(always)]
    unsafe fn keep_equal(v: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b), v) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        // SAFETY: prefetching is valid for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}
