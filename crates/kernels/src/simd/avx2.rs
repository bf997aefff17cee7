//! AVX2 and FMA: 16 registers of 8 lanes.

use std::arch::x86_64::*;

use super::{Job, Simd};
use crate::micro::{GradientTiles, ProductTileFn, grad_tile, tile_table};

/// AVX2 and FMA. A value is the proof that the machine has them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// If the machine has them.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

/// A mask of the first lanes.
///
/// # Safety
/// The machine must have AVX2, and `n` be at most 8.
#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    const BITS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: AVX2 is there; n <= 8, so the 8 elements from 8 - n lie within the 16.
    unsafe { _mm256_loadu_si256(BITS.as_ptr().add(8 - n).cast()) }
}

/// Runs a job with the features.
///
/// # Safety
/// The job's pointers must be valid; a call from code without the features is sound, for `simd` proves them.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn run<J: Job>(simd: Avx2, job: J) -> J::Out {
    // SAFETY: the job's pointers are valid.
    unsafe { job.call(simd) }
}

/// [`Simd::transpose`], for all instruction sets that have AVX2.
///
/// # Safety
/// The machine must have AVX2, and the pointers be valid for eight rows of eight values.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the eight rows are read and written at their strides.
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

impl Simd for Avx2 {
    type V = __m256;
    type Base = Self;
    const LANES: usize = 8;
    const TILES: [&'static [ProductTileFn<Self>]; 2] =
        [&tile_table!(Avx2, 1; 1 2 3 4 5 6), &tile_table!(Avx2, 2; 1 2 3 4 5 6)];
    const GRAD_TILES: &'static [GradientTiles<Self>] = {
        const SIX: GradientTiles<Avx2> = GradientTiles { rows: 6, kernels: [grad_tile::<Avx2, 6, 2>; 2] };
        const FIVE: GradientTiles<Avx2> = GradientTiles { rows: 5, kernels: [grad_tile::<Avx2, 5, 2>; 2] };
        &[SIX, FIVE, FIVE]
    };
    const GRAD_COLS: usize = 16;

    #[inline(always)]
    fn base(self) -> Self {
        self
    }
    #[inline(always)]
    unsafe fn run<J: Job>(self, job: J) -> J::Out {
        // SAFETY: `self` exists only where the instructions do; the job's pointers are valid.
        unsafe { run(self, job) }
    }
    #[inline(always)]
    fn pair(self, low: __m256, high: __m256) -> __m256 {
        let (mut a, mut b, mut words) = ([0u16; 8], [0u16; 8], [0f32; 8]);
        // SAFETY: the arrays are as long as a vector.
        unsafe {
            self.store_bf16(a.as_mut_ptr(), low);
            self.store_bf16(b.as_mut_ptr(), high);
            for i in 0..8 {
                words[i] = f32::from_bits(u32::from(a[i]) | u32::from(b[i]) << 16);
            }
            self.load(words.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: `self` exists only where the instructions do, and the pointers are valid for a square.
        unsafe { transpose(from, from_stride, to, to_stride) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes; masked lanes are not touched.
        unsafe { _mm256_maskload_ps(p, mask(n)) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: __m256) {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes; masked lanes are not touched. Masked stores are slow on AMD's chips: 12 cycles and more.
        unsafe {
            if n == Self::LANES {
                self.store(p, v);
            } else {
                _mm256_maskstore_ps(p, mask(n), v);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m256 {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: __m256) {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
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
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn relu(self, v: __m256) -> __m256 {
        // SAFETY: `self` exists only where the instructions do. The second operand is returned where either is NaN.
        unsafe { _mm256_max_ps(_mm256_setzero_ps(), v) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn keep_positive(self, v: __m256, by: __m256) -> __m256 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(by, _mm256_setzero_ps()), v) }
    }
    #[inline(always)]
    fn keep_equal(self, v: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b), v) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: prefetching is valid for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}
