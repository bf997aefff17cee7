//! A small vocabulary of vector operations, implemented once for each instruction set, in which all kernels
//! are written.
//!
//! We write this ourselves because kernels must be compiled for several instruction sets in one binary and
//! chosen at run time, and because the tile of accumulators has to match the register file: 14×2 vectors
//! fill the 32 registers of AVX-512, 6×2 the 16 of AVX2.
//!
//! A kernel is a [`Job`] whose body is inlined into [`Simd::run`], the one function per instruction set that
//! enables its features; everything that the body calls must be `#[inline(always)]`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, has_bf16};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

use crate::micro::{GradientTiles, ProductTileFn};

/// Evaluates an expression with `$S` naming the vectors of an [`Isa`](crate::Isa).
macro_rules! dispatch {
    ($isa:expr, $S:ident => $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512 if $crate::simd::has_bf16() => {
                type $S = $crate::simd::Avx512<true>;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512 => {
                type $S = $crate::simd::Avx512<false>;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx2 => {
                type $S = $crate::simd::Avx2;
                $body
            }
            #[cfg(target_arch = "aarch64")]
            $crate::Isa::Neon => {
                type $S = $crate::simd::Neon;
                $body
            }
            _ => {
                type $S = $crate::simd::Portable;
                $body
            }
        }
    };
}
pub(crate) use dispatch;

/// Channels in a block of scratch memory, for every instruction set.
pub(crate) const BLOCK: usize = 16;

/// Side of the squares that [`Simd::transpose`] takes.
pub(crate) const SQUARE: usize = 8;
const _: () = assert!(BLOCK == 2 * SQUARE);

/// Code to run with an instruction set's features enabled.
pub(crate) trait Job {
    /// What it returns.
    type Out;

    /// The body; implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The machine must have the features of `S`, and the job's pointers must be valid for what it does.
    unsafe fn call<S: Simd>(self) -> Self::Out;
}

/// Vectors of f32 of one instruction set.
///
/// # Safety of the methods
/// All are unsafe for two reasons: the machine must have the instruction set, and pointers must be valid
/// for `LANES` (or `n`) elements. `load_part` and `store_part` take `n <= LANES`, and missing lanes are zero.
#[allow(clippy::missing_safety_doc, reason = "said once for the whole trait")]
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// A vector.
    type V: Copy;
    /// Its number of f32; divides [`BLOCK`].
    const LANES: usize;
    /// Kernels of the product tile by number of rows minus 1: one vector wide, and two.
    const TILES: [&'static [ProductTileFn]; 2];
    /// The most rows in a product tile.
    const TILE_ROWS: usize = Self::TILES[1].len();
    /// Product tiles whose operands are pairs of bf16, where there is an instruction for their product.
    const PAIR_TILES: Option<[&'static [ProductTileFn]; 2]> = None;
    /// Gradient tiles whose operands are pairs of bf16.
    const PAIR_GRAD_TILES: Option<&'static [GradientTiles]> = None;
    /// The gradient tiles that a block of rows is cut into: [`BLOCK`] rows in all.
    const GRAD_TILES: &'static [GradientTiles];
    /// Columns of the wide gradient tile; a multiple of [`BLOCK`].
    const GRAD_COLS: usize;

    /// Runs a job with this instruction set's features.
    unsafe fn run<J: Job>(job: J) -> J::Out;

    /// `c + Σ a·b` over the pairs of bf16 in each lane; only where `PAIR_TILES` is set.
    #[inline(always)]
    unsafe fn dot_pairs(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let _ = (a, b);
        c
    }
    /// Pairs of bf16, rounded to nearest even: the first in the low half of each lane.
    unsafe fn pair(low: Self::V, high: Self::V) -> Self::V;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V;
    unsafe fn store_part(p: *mut f32, n: usize, v: Self::V);
    /// Widens bfloat16.
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    /// Rounds to bfloat16, to nearest even; NaN stays NaN.
    unsafe fn store_bf16(p: *mut u16, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c`
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `max(v, 0)`; NaN stays NaN.
    unsafe fn relu(v: Self::V) -> Self::V;
    /// `max(a, b)`, the second where they are unordered.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `v` where `by > 0`, else 0.
    unsafe fn keep_positive(v: Self::V, by: Self::V) -> Self::V;
    /// `v` where `a == b`, else 0.
    unsafe fn keep_equal(v: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Asks for the cache line at `p`, into the second-level cache: the first has no room beside scratch memory. Never
    /// faults.
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        let _ = p;
    }
    /// Transposes a square of [`SQUARE`] rows and columns; strides are from row to row. The pointers must be valid for it.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..SQUARE * SQUARE {
            let (row, column) = (i / SQUARE, i % SQUARE);
            // SAFETY: the caller's promise.
            unsafe { *to.add(column * to_stride + row) = *from.add(row * from_stride + column) };
        }
    }
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { Self::splat(0.0) }
    }
}

/// What algorithms are chosen by of an instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registers {
    /// f32 in a vector.
    pub lanes: usize,
    /// The most rows in a product tile.
    pub tile_rows: usize,
    /// Columns of the wide gradient tile.
    pub gradient_columns: usize,
}

impl Registers {
    /// Of the vectors of an instruction set.
    pub const fn new<S: Simd>() -> Self {
        Self { lanes: S::LANES, tile_rows: S::TILE_ROWS, gradient_columns: S::GRAD_COLS }
    }

    /// Of an instruction set.
    pub fn of(isa: crate::Isa) -> Self {
        dispatch!(isa, S => Self::new::<S>())
    }
}

/// A storage type of activations.
#[allow(clippy::missing_safety_doc, reason = "as for Simd")]
pub(crate) trait Elem: Copy + Send + Sync + 'static {
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    unsafe fn load_part<S: Simd>(p: *const Self, n: usize) -> S::V;
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V);
    unsafe fn store_part<S: Simd>(p: *mut Self, n: usize, v: S::V);
}

impl Elem for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Simd>(p: *const f32, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_part(p, n) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f32, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store(p, v) }
    }
    #[inline(always)]
    unsafe fn store_part<S: Simd>(p: *mut f32, n: usize, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store_part(p, n, v) }
    }
}

/// u16 here is always the bits of a bfloat16.
impl Elem for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Simd>(p: *const u16, n: usize) -> S::V {
        let mut buffer = [0u16; BLOCK];
        // SAFETY: `p` is valid for n <= LANES <= BLOCK elements, the buffer for LANES.
        unsafe {
            if n == S::LANES {
                return S::load_bf16(p);
            }
            std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
            S::load_bf16(buffer.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut u16, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store_bf16(p, v) }
    }
    #[inline(always)]
    unsafe fn store_part<S: Simd>(p: *mut u16, n: usize, v: S::V) {
        let mut buffer = [0u16; BLOCK];
        // SAFETY: as in `load_part`.
        unsafe {
            if n == S::LANES {
                return S::store_bf16(p, v);
            }
            S::store_bf16(buffer.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), p, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Check;
    impl Job for Check {
        type Out = ();
        #[inline(always)]
        unsafe fn call<S: Simd>(self) {
            let data: Vec<f32> = (0..32).map(|i| i as f32 * 1.37 - 11.0).collect();
            let mut out = vec![9.0f32; 32];
            let mut bits = [0u16; 32];
            let special = [f32::NAN, f32::INFINITY, -0.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1e30];
            // SAFETY: every pointer is into a buffer of 32 elements.
            unsafe {
                for n in 0..=S::LANES {
                    out.fill(9.0);
                    S::store(out.as_mut_ptr(), S::load_part(data.as_ptr(), n));
                    assert!((0..S::LANES).all(|i| out[i] == if i < n { data[i] } else { 0.0 }));
                    out.fill(9.0);
                    S::store_part(out.as_mut_ptr(), n, S::load(data.as_ptr()));
                    assert!((0..32).all(|i| out[i] == if i < n { data[i] } else { 9.0 }));
                }
                let (a, b) = (S::load(data.as_ptr()), S::load(data.as_ptr().add(7)));
                let mut each = |v: S::V, f: &dyn Fn(f32, f32) -> f32| {
                    S::store(out.as_mut_ptr(), v);
                    (0..S::LANES).for_each(|i| assert!((out[i] - f(data[i], data[i + 7])).abs() < 1e-4));
                };
                each(S::add(a, b), &|a, b| a + b);
                each(S::sub(a, b), &|a, b| a - b);
                each(S::mul(a, b), &|a, b| a * b);
                each(S::fma(a, b, a), &|a, b| a * b + a);
                each(S::relu(a), &|a, _| a.max(0.0));
                each(S::max(a, b), &|a, b| a.max(b));
                each(S::keep_positive(b, a), &|a, b| if a > 0.0 { b } else { 0.0 });
                each(S::keep_equal(b, a, S::max(a, S::zero())), &|a, b| if a >= 0.0 { b } else { 0.0 });
                for &x in &special {
                    S::store_bf16(bits.as_mut_ptr(), S::splat(x));
                    let expected = half::bf16::from_f32(x);
                    let got = half::bf16::from_bits(bits[0]);
                    assert!(got == expected || (got.is_nan() && expected.is_nan()), "{x} {got} {expected}");
                    S::store(out.as_mut_ptr(), S::load_bf16(bits.as_ptr()));
                    assert!(out[0] == expected.to_f32() || x.is_nan() && out[0].is_nan());
                }

                let (from, mut to) = ((0..200).map(|i| i as f32).collect::<Vec<_>>(), vec![-1.0f32; 200]);
                S::transpose(from.as_ptr(), 19, to.as_mut_ptr(), 11);
                for (i, &x) in to.iter().enumerate() {
                    let (row, column) = (i / 11, i % 11);
                    let inside = row < SQUARE && column < SQUARE;
                    assert_eq!(x, if inside { (column * 19 + row) as f32 } else { -1.0 });
                }

                let mut words = [0.0f32; 32];
                S::store(words.as_mut_ptr(), S::pair(a, b));
                for i in 0..S::LANES {
                    let expected =
                        [data[i], data[i + 7]].map(|x| u32::from(half::bf16::from_f32(x).to_bits()));
                    assert_eq!(words[i].to_bits(), expected[0] | expected[1] << 16);
                }
                S::store(out.as_mut_ptr(), S::relu(S::splat(f32::NAN)));
                assert!(out[0].is_nan());
            }
        }
    }

    #[test]
    fn operations_match_scalars() {
        for isa in crate::Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            // SAFETY: the instruction set is available.
            dispatch!(isa, S => unsafe { S::run(Check) });
        }
        #[cfg(target_arch = "x86_64")]
        if crate::Isa::Avx512.is_available() {
            // SAFETY: as above; machines with the instructions for bf16 can do without.
            unsafe { Avx512::<false>::run(Check) };
        }
    }
}
