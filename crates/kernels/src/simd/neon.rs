//! NEON: 32 registers of 4 lanes.

use std::arch::aarch64::*;

use super::{Job, Simd};
use crate::micro::{GradientTiles, ProductTileFn, grad_tile, tile_table};

/// NEON, which every 64-bit ARM machine has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// If the machine has it: always.
    pub fn detect() -> Option<Self> {
        Some(Self(()))
    }
}

impl Simd for Neon {
    type V = float32x4_t;
    type Base = Self;
    const LANES: usize = 4;
    const TILES: [&'static [ProductTileFn<Self>]; 2] = [
        &tile_table!(Neon, 1; 1 2 3 4 5 6 7 8 9 10 11 12),
        &tile_table!(Neon, 2; 1 2 3 4 5 6 7 8 9 10 11 12),
    ];
    const GRAD_TILES: &'static [GradientTiles<Self>] =
        &[GradientTiles { rows: 4, kernels: [grad_tile::<Neon, 4, 4>; 2] }; 4];
    const GRAD_COLS: usize = 16;

    #[inline(always)]
    fn base(self) -> Self {
        self
    }
    #[inline]
    unsafe fn run<J: Job>(self, job: J) -> J::Out {
        // SAFETY: the job's pointers are valid.
        unsafe { job.call(self) }
    }
    #[inline(always)]
    fn pair(self, low: float32x4_t, high: float32x4_t) -> float32x4_t {
        let (mut a, mut b, mut words) = ([0u16; 4], [0u16; 4], [0f32; 4]);
        // SAFETY: the arrays are as long as a vector.
        unsafe {
            self.store_bf16(a.as_mut_ptr(), low);
            self.store_bf16(b.as_mut_ptr(), high);
            for i in 0..4 {
                words[i] = f32::from_bits(u32::from(a[i]) | u32::from(b[i]) << 16);
            }
            self.load(words.as_ptr())
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> float32x4_t {
        let mut buffer = [0.0f32; 4];
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes; n <= 4.
        unsafe {
            std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
            vld1q_f32(buffer.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: float32x4_t) {
        let mut buffer = [0.0f32; 4];
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes; n <= 4.
        unsafe {
            vst1q_f32(buffer.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: float32x4_t) {
        // SAFETY: `self` exists only where the instructions do, and the pointer is valid for the lanes.
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
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn relu(self, v: float32x4_t) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do. FMAX returns NaN where either is NaN.
        unsafe { vmaxq_f32(v, vdupq_n_f32(0.0)) }
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn keep_positive(self, v: float32x4_t, by: float32x4_t) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { vbslq_f32(vcgtq_f32(by, vdupq_n_f32(0.0)), v, vdupq_n_f32(0.0)) }
    }
    #[inline(always)]
    fn keep_equal(self, v: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` exists only where the instructions do.
        unsafe { vbslq_f32(vceqq_f32(a, b), v, vdupq_n_f32(0.0)) }
    }
}
