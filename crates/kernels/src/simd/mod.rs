//! A small vocabulary of vector operations, implemented once for each instruction set, in which all kernels
//! are written.
//!
//! We write this ourselves because kernels must be compiled for several instruction sets in one binary and
//! chosen at run time, and because the tile of accumulators has to match the register file: 14×2 vectors
//! fill the 32 registers of AVX-512, 6×2 the 16 of AVX2.
//!
//! An instruction set is a token, a value without size that only detection makes ([`Vectors::detect`]): whoever has one may
//! use the instructions. A kernel is a [`Job`] whose body is inlined into [`Simd::run`], the one function per instruction
//! set that enables its features; everything that the body calls must be `#[inline(always)]`.

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
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

use crate::Isa;
use crate::amx::Amx;
use crate::micro::{GradientTiles, ProductTileFn};

/// An instruction set that this machine has: its token is the proof.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Vectors {
    /// AVX-512 with the instructions for bf16, and the matrix unit.
    #[cfg(target_arch = "x86_64")]
    Amx(Avx512<true>, Amx),
    /// AVX-512 with the instructions for bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512<true>),
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// None in particular.
    Portable(Portable),
}

impl Vectors {
    /// An instruction set, if this machine has it.
    pub fn detect(isa: Isa) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Some(Vectors::Amx(Avx512::<true>::detect()?, Amx::detect()?)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => match Avx512::<true>::detect() {
                Some(simd) => Some(Vectors::Avx512Bf16(simd)),
                None => Avx512::<false>::detect().map(Vectors::Avx512),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::detect().map(Vectors::Avx2),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Neon::detect().map(Vectors::Neon),
            Isa::Portable => Some(Vectors::Portable(Portable)),
            #[allow(unreachable_patterns, reason = "the other architectures' sets")]
            _ => None,
        }
    }

    /// The matrix unit, if there is one beside the vectors.
    pub fn matrix_unit(self) -> Option<Amx> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Vectors::Amx(_, unit) => Some(unit),
            _ => None,
        }
    }
}

/// Evaluates an expression with `$simd` naming the token of some [`Vectors`].
macro_rules! dispatch {
    ($vectors:expr, $simd:ident => $body:expr) => {
        match $vectors {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Vectors::Amx($simd, _) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Vectors::Avx512Bf16($simd) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Vectors::Avx512($simd) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Vectors::Avx2($simd) => $body,
            #[cfg(target_arch = "aarch64")]
            $crate::simd::Vectors::Neon($simd) => $body,
            $crate::simd::Vectors::Portable($simd) => $body,
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
    /// The job's pointers must be valid for what it does.
    unsafe fn call<S: Simd>(self, simd: S) -> Self::Out;
}

/// A token of an instruction set, and what its vectors of f32 can do.
///
/// A value exists only where the machine has the instruction set: detection alone makes one. So arithmetic is safe. What
/// remains unsafe touches memory: pointers must be valid for `LANES` elements, or for `n <= LANES` in `load_part` and
/// `store_part`, whose missing lanes are zero, or not written.
///
/// Methods are compiled for the instruction set only where they are inlined into a [`Job`] that runs with it. Elsewhere they
/// are correct, and slow.
#[allow(clippy::missing_safety_doc, reason = "said once for the whole trait")]
pub(crate) trait Simd: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// A vector.
    type V: Copy;
    /// The same without special instructions: what kernels of f32 are compiled for.
    type Base: Simd;
    /// Its number of f32; divides [`BLOCK`].
    const LANES: usize;
    /// Kernels of the product tile by number of rows minus 1: one vector wide, and two.
    const TILES: [&'static [ProductTileFn<Self>]; 2];
    /// The most rows in a product tile.
    const TILE_ROWS: usize = Self::TILES[1].len();
    /// Product tiles whose operands are pairs of bf16, where there is an instruction for their product.
    const PAIR_TILES: Option<[&'static [ProductTileFn<Self>]; 2]> = None;
    /// Gradient tiles whose operands are pairs of bf16.
    const PAIR_GRAD_TILES: Option<&'static [GradientTiles<Self>]> = None;
    /// The gradient tiles that a block of rows is cut into: [`BLOCK`] rows in all.
    const GRAD_TILES: &'static [GradientTiles<Self>];
    /// Columns of the wide gradient tile; a multiple of [`BLOCK`].
    const GRAD_COLS: usize;

    /// The same without special instructions.
    fn base(self) -> Self::Base;

    /// Runs a job with this instruction set's features. The job's pointers must be valid.
    unsafe fn run<J: Job>(self, job: J) -> J::Out;

    /// `c + Σ a·b` over the pairs of bf16 in each lane where `PAIR_TILES` is set; else `c`.
    #[inline(always)]
    fn dot_pairs(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let _ = (a, b);
        c
    }
    /// Pairs of bf16, rounded to nearest even: the first in the low half of each lane.
    fn pair(self, low: Self::V, high: Self::V) -> Self::V;

    /// `x` in all lanes.
    fn splat(self, x: f32) -> Self::V;
    unsafe fn load(self, p: *const f32) -> Self::V;
    unsafe fn store(self, p: *mut f32, v: Self::V);
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V;
    unsafe fn store_part(self, p: *mut f32, n: usize, v: Self::V);
    /// Widens bfloat16.
    unsafe fn load_bf16(self, p: *const u16) -> Self::V;
    /// Rounds to bfloat16, to nearest even; NaN stays NaN.
    unsafe fn store_bf16(self, p: *mut u16, v: Self::V);
    /// Cuts `v` into two bfloat16 whose sum it is up to 2⁻¹⁸ of it.
    #[inline(always)]
    unsafe fn store_split(self, high: *mut u16, low: *mut u16, v: Self::V) {
        // SAFETY: both pointers are valid for the lanes.
        unsafe {
            self.store_bf16(high, v);
            self.store_bf16(low, self.remainder(v));
        }
    }
    /// What [`store_split`](Self::store_split) leaves for the second.
    #[inline(always)]
    fn remainder(self, v: Self::V) -> Self::V {
        let mut rounded = [0u16; BLOCK];
        // SAFETY: no vector has more lanes than a block.
        unsafe {
            self.store_bf16(rounded.as_mut_ptr(), v);
            self.sub(v, self.load_bf16(rounded.as_ptr()))
        }
    }
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c`
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `max(v, 0)`; NaN stays NaN.
    fn relu(self, v: Self::V) -> Self::V;
    /// `max(a, b)`, the second where they are unordered.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `v` where `by > 0`, else 0.
    fn keep_positive(self, v: Self::V, by: Self::V) -> Self::V;
    /// `v` where `a == b`, else 0.
    fn keep_equal(self, v: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Asks for the cache line at `p`, into the second-level cache: the first has no room beside scratch memory. Never
    /// faults, so `p` may be any address.
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        let _ = p;
    }
    /// Transposes a square of [`SQUARE`] rows and columns; strides are from row to row. The pointers must be valid for it.
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..SQUARE * SQUARE {
            let (row, column) = (i / SQUARE, i % SQUARE);
            // SAFETY: row and column lie in the square, which both pointers are valid for.
            unsafe { *to.add(column * to_stride + row) = *from.add(row * from_stride + column) };
        }
    }
    /// 0 in all lanes.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
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
    pub fn of(vectors: Vectors) -> Self {
        fn of_token<S: Simd>(_: S) -> Registers {
            Registers::new::<S>()
        }
        dispatch!(vectors, simd => of_token(simd))
    }
}

/// A storage type of activations.
///
/// Pointers must be valid for the lanes that are touched, as for [`Simd`].
#[allow(clippy::missing_safety_doc, reason = "said once for the whole trait")]
pub(crate) trait Elem: Copy + Send + Sync + 'static {
    unsafe fn load<S: Simd>(simd: S, p: *const Self) -> S::V;
    unsafe fn load_part<S: Simd>(simd: S, p: *const Self, n: usize) -> S::V;
    unsafe fn store<S: Simd>(simd: S, p: *mut Self, v: S::V);
    unsafe fn store_part<S: Simd>(simd: S, p: *mut Self, n: usize, v: S::V);
}

impl Elem for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const f32) -> S::V {
        // SAFETY: `p` is valid for these lanes.
        unsafe { simd.load(p) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Simd>(simd: S, p: *const f32, n: usize) -> S::V {
        // SAFETY: `p` is valid for these lanes.
        unsafe { simd.load_part(p, n) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, p: *mut f32, v: S::V) {
        // SAFETY: `p` is valid for these lanes.
        unsafe { simd.store(p, v) }
    }
    #[inline(always)]
    unsafe fn store_part<S: Simd>(simd: S, p: *mut f32, n: usize, v: S::V) {
        // SAFETY: `p` is valid for these lanes.
        unsafe { simd.store_part(p, n, v) }
    }
}

/// u16 here is always the bits of a bfloat16.
impl Elem for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const u16) -> S::V {
        // SAFETY: `p` is valid for these lanes.
        unsafe { simd.load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Simd>(simd: S, p: *const u16, n: usize) -> S::V {
        let mut buffer = [0u16; BLOCK];
        // SAFETY: `p` is valid for n <= LANES <= BLOCK elements, the buffer for LANES.
        unsafe {
            if n == S::LANES {
                return simd.load_bf16(p);
            }
            std::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
            simd.load_bf16(buffer.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, p: *mut u16, v: S::V) {
        // SAFETY: `p` is valid for these lanes.
        unsafe { simd.store_bf16(p, v) }
    }
    #[inline(always)]
    unsafe fn store_part<S: Simd>(simd: S, p: *mut u16, n: usize, v: S::V) {
        let mut buffer = [0u16; BLOCK];
        // SAFETY: `p` is valid for n <= LANES <= BLOCK elements, the buffer for LANES.
        unsafe {
            if n == S::LANES {
                return simd.store_bf16(p, v);
            }
            simd.store_bf16(buffer.as_mut_ptr(), v);
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
        unsafe fn call<S: Simd>(self, simd: S) {
            let data: Vec<f32> = (0..32).map(|i| i as f32 * 1.37 - 11.0).collect();
            let mut out = vec![9.0f32; 32];
            let mut bits = [0u16; 32];
            let special = [f32::NAN, f32::INFINITY, -0.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1e30];
            // SAFETY: every pointer is into a buffer of 32 elements.
            unsafe {
                for n in 0..=S::LANES {
                    out.fill(9.0);
                    simd.store(out.as_mut_ptr(), simd.load_part(data.as_ptr(), n));
                    assert!((0..S::LANES).all(|i| out[i] == if i < n { data[i] } else { 0.0 }));
                    out.fill(9.0);
                    simd.store_part(out.as_mut_ptr(), n, simd.load(data.as_ptr()));
                    assert!((0..32).all(|i| out[i] == if i < n { data[i] } else { 9.0 }));
                }
                let (a, b) = (simd.load(data.as_ptr()), simd.load(data.as_ptr().add(7)));
                let mut each = |v: S::V, f: &dyn Fn(f32, f32) -> f32| {
                    simd.store(out.as_mut_ptr(), v);
                    (0..S::LANES).for_each(|i| assert!((out[i] - f(data[i], data[i + 7])).abs() < 1e-4));
                };
                each(simd.add(a, b), &|a, b| a + b);
                each(simd.sub(a, b), &|a, b| a - b);
                each(simd.mul(a, b), &|a, b| a * b);
                each(simd.fma(a, b, a), &|a, b| a * b + a);
                each(simd.relu(a), &|a, _| a.max(0.0));
                each(simd.max(a, b), &|a, b| a.max(b));
                each(simd.keep_positive(b, a), &|a, b| if a > 0.0 { b } else { 0.0 });
                each(simd.keep_equal(b, a, simd.max(a, simd.zero())), &|a, b| if a >= 0.0 { b } else { 0.0 });
                for &x in &special {
                    simd.store_bf16(bits.as_mut_ptr(), simd.splat(x));
                    let expected = half::bf16::from_f32(x);
                    let got = half::bf16::from_bits(bits[0]);
                    assert!(got == expected || (got.is_nan() && expected.is_nan()), "{x} {got} {expected}");
                    simd.store(out.as_mut_ptr(), simd.load_bf16(bits.as_ptr()));
                    assert!(out[0] == expected.to_f32() || x.is_nan() && out[0].is_nan());
                }

                let (from, mut to) = ((0..200).map(|i| i as f32).collect::<Vec<_>>(), vec![-1.0f32; 200]);
                simd.transpose(from.as_ptr(), 19, to.as_mut_ptr(), 11);
                for (i, &x) in to.iter().enumerate() {
                    let (row, column) = (i / 11, i % 11);
                    let inside = row < SQUARE && column < SQUARE;
                    assert_eq!(x, if inside { (column * 19 + row) as f32 } else { -1.0 });
                }

                let mut words = [0.0f32; 32];
                simd.store(words.as_mut_ptr(), simd.pair(a, b));
                for i in 0..S::LANES {
                    let expected =
                        [data[i], data[i + 7]].map(|x| u32::from(half::bf16::from_f32(x).to_bits()));
                    assert_eq!(words[i].to_bits(), expected[0] | expected[1] << 16);
                }
                simd.store(out.as_mut_ptr(), simd.relu(simd.splat(f32::NAN)));
                assert!(out[0].is_nan());
            }
        }
    }

    #[test]
    fn operations_match_scalars() {
        for vectors in Isa::ALL.into_iter().filter_map(Vectors::detect) {
            // SAFETY: the check's pointers are into its own buffers.
            dispatch!(vectors, simd => unsafe { simd.run(Check) });
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = Avx512::<false>::detect() {
            // SAFETY: the check's pointers are into its own buffers.
            unsafe { simd.run(Check) };
        }
    }
}
