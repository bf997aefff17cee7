//! NEON: 32 registers of 4 lanes.

use std::arch::aarch64::*;

use super::{Job, Simd};
use crate::micro::{GradientTiles, ProductTileFn, grad_tile, tile_table};

/// NEON, which every 64-bit ARM machine has.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

// SAFETY of all blocks below: the trait's contract, which the caller keeps, is that of the intrinsics: the
// pointers are valid for the lanes that are touched.
impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const TILES: [&'static [ProductTileFn]; 2] = [
        &tile_table!(Neon, 1; 1 2 3 4 5 6 7 8 9 10 11 12),
        &tile_table!(Neon, 2; 1 2 3 4 5 6 7 8 9 10 11 12),
    ];
    const GRAD_TILES: &'static [GradientTiles] =
        &[GradientTiles { rows: 4, kernels: [grad_tile::<Neon, 4, 4>; 2] }; 4];
    const GRAD_COLS: usize = 16;

    #[inline]
    unsafe fn run<J: Job>(job: J) -> J::Out {
        // SAFETY: see above.
        unsafe { job.call::<Self>() }
    }
    #[inline(always)]
    unsafe fn pair(low: float32x4_t, high: float32x4_t) -> float32x4_t {
        let (mut a, mut b, mut words) = ([0u16; 4], [0u16; 4], [0f32; 4]);
        // SAFETY: the arrays are as long as a vector.
        unsafe {
            Self::store_bf16(a.as_mut_ptr(), low);
            Self::store_bf16(b.as_mut_ptr(), high);
            for i in 0..4 {
                words[i] = f32::from_bits(u32::from(a[i]) | u32::from(b[i]) << 16);
            }
            Self::load(words.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        // SAFETY: see above.
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> float32x4_t {
        let mut buffer = [0.0f32; 4];
        // SAFETY: see above; n <= 4.
        unsafe {
            std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
            vld1q_f32(buffer.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, n: usize, v: float32x4_t) {
        let mut buffer = [0.0f32; 4];
        // SAFETY: see above; n <= 4.
        unsafe {
            vst1q_f32(buffer.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: float32x4_t) {
        // SAFETY: see above.
        unsafe {
            let bits = vreinterpretq_u32_f32(v);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let ordered = vceqq_f32(v, v);
            let safe = vbslq_u32(ordered, rounded, vdupq_n_u32(0x7fc0_0000));
            vst1_u16(p, vshrn_n_u32::<16>(safe));
        }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn relu(v: float32x4_t) -> float32x4_t {
        // SAFETY: see above. FMAX returns NaN where either is NaN.
        unsafe { vmaxq_f32(v, vdupq_n_f32(0.0)) }
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn keep_positive(v: float32x4_t, by: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vbslq_f32(vcgtq_f32(by, vdupq_n_f32(0.0)), v, vdupq_n_f32(0.0)) }
    }
    #[inline(always)]
    unsafe fn keep_equal(v: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: see above.
        unsafe { vbslq_f32(vceqq_f32(a, b), v, vdupq_n_f32(0.0)) }
    }
}
