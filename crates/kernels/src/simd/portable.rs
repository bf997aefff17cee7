//! Plain Rust on arrays of four, which compilers turn into whatever vectors the target has.

use super::{Job, Simd};
use crate::micro::{GradientTiles, ProductTileFn, grad_tile, tile_table};

/// No instruction set in particular.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

type V = [f32; 4];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Simd for Portable {
    type V = V;
    type Base = Self;
    const LANES: usize = 4;
    const TILES: [&'static [ProductTileFn<Self>]; 2] =
        [&tile_table!(Portable, 1; 1 2 3 4), &tile_table!(Portable, 2; 1 2 3 4)];
    const GRAD_TILES: &'static [GradientTiles<Self>] =
        &[GradientTiles { rows: 2, kernels: [grad_tile::<Portable, 2, 4>; 2] }; 8];
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
    fn pair(self, low: V, high: V) -> V {
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
    fn splat(self, x: f32) -> V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: the pointer is valid for the lanes.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        // SAFETY: the pointer is valid for the lanes.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> V {
        let mut v = [0.0; 4];
        // SAFETY: the pointer is valid for the lanes; n <= 4.
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n) };
        v
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: V) {
        // SAFETY: the pointer is valid for the lanes; n <= 4.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) };
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> V {
        // SAFETY: the pointer is valid for the lanes.
        unsafe { p.cast::<[u16; 4]>().read_unaligned() }.map(crate::activations::bf16_to_f32)
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: V) {
        let bits = v.map(|x| half::bf16::from_f32(x).to_bits());
        // SAFETY: the pointer is valid for the lanes.
        unsafe { p.cast::<[u16; 4]>().write_unaligned(bits) }
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        // Two roundings: a fused one is a library call where the target has no instruction for it.
        zip(zip(a, b, |a, b| a * b), c, |p, c| p + c)
    }
    #[inline(always)]
    fn relu(self, v: V) -> V {
        v.map(|x| if x < 0.0 { 0.0 } else { x })
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn keep_positive(self, v: V, by: V) -> V {
        zip(v, by, |v, by| if by > 0.0 { v } else { 0.0 })
    }
    #[inline(always)]
    fn keep_equal(self, v: V, a: V, b: V) -> V {
        let same = zip(a, b, |a, b| if a == b { 1.0 } else { 0.0 });
        zip(v, same, |v, same| if same > 0.0 { v } else { 0.0 })
    }
}
