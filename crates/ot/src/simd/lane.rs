//! The two lane types and their exponential, written so that a compiler turns a loop over them into vector
//! instructions on any instruction set: no branches, no tables, no library calls.

use std::ops::{Add, AddAssign, Mul, Sub};

/// One element of a vector register: `f32` or `f64`.
pub trait Lane:
    Copy
    + Send
    + Sync
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + AddAssign
    + 'static
{
    #[doc(hidden)]
    const ZERO: Self;
    const INFINITY: Self;
    const NEG_INFINITY: Self;

    /// `self · b + c`; one rounding with `FMA`, two without (where hardware has no such instruction, the
    /// library call that emulates it is tens of times slower than the two operations).
    fn madd<const FMA: bool>(self, b: Self, c: Self) -> Self;

    /// `e^self` within 2 units in the last place. Below the smallest normal result it is 0; above the largest
    /// it stays finite (about `e^88` and `e^709`), so that no infinity can arise from a finite argument.
    fn exp<const FMA: bool>(self) -> Self;

    /// The same number in double precision.
    fn widen(self) -> f64;

    /// The larger of two numbers that are not NaN.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other { self } else { other }
    }

    /// The smaller of two numbers that are not NaN.
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        if self < other { self } else { other }
    }
}

/// Cody-Waite reduction `x = k·ln 2 + r`, `|r| <= ln 2 / 2`, then a polynomial for `e^r`, then `2^k` put into
/// the exponent bits. Adding and subtracting 1.5·2^mantissa rounds to an integer and leaves it in the low bits.
macro_rules! exponential {
    ($x:expr, $float:ty, $bits:ty, $fma:expr, magic $magic:expr, low $low:expr, high $high:expr,
     ln2 ($ln2_hi:expr, $ln2_lo:expr), mantissa $mantissa:expr, bias $bias:expr, polynomial [$first:expr $(, $rest:expr)*]) => {{
        let x: $float = $x;
        let clamped = if x > $low { x } else { $low };
        let clamped = if clamped < $high { clamped } else { $high };
        let shifted = clamped.madd::<$fma>(std::f64::consts::LOG2_E as $float, $magic);
        let k = shifted - $magic;
        let r = (-k).madd::<$fma>($ln2_lo, (-k).madd::<$fma>($ln2_hi, clamped));
        let mut p: $float = $first;
        $( p = p.madd::<$fma>(r, $rest); )*
        let exponent = shifted.to_bits().wrapping_add($bias as $bits) << $mantissa;
        let value = p * <$float>::from_bits(exponent);
        if x < $low { 0.0 } else { value }
    }};
}

impl Lane for f32 {
    const ZERO: Self = 0.0;
    const INFINITY: Self = f32::INFINITY;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;

    #[inline(always)]
    fn madd<const FMA: bool>(self, b: Self, c: Self) -> Self {
        if FMA { self.mul_add(b, c) } else { self * b + c }
    }

    #[inline(always)]
    fn widen(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    #[allow(clippy::excessive_precision)]
    fn exp<const FMA: bool>(self) -> Self {
        // The polynomial is the Taylor series to degree 7: its remainder on |r| <= 0.347 is below 6e-9.
        exponential!(self, f32, u32, FMA, magic 12_582_912.0, low -87.336_54, high 88.0,
            ln2 (0.693_359_375, -2.121_944_4e-4), mantissa 23, bias 127,
            polynomial [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0])
    }
}

impl Lane for f64 {
    const ZERO: Self = 0.0;
    const INFINITY: Self = f64::INFINITY;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;

    #[inline(always)]
    fn madd<const FMA: bool>(self, b: Self, c: Self) -> Self {
        if FMA { self.mul_add(b, c) } else { self * b + c }
    }

    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }

    #[inline(always)]
    #[allow(clippy::excessive_precision)]
    fn exp<const FMA: bool>(self) -> Self {
        // Taylor to degree 13: remainder on |r| <= 0.347 below 5e-18.
        exponential!(self, f64, u64, FMA, magic 6_755_399_441_055_744.0, low -708.396_418_532_264, high 709.0,
        ln2 (6.931_471_803_691_238_16e-1, 1.908_214_929_270_587_70e-10), mantissa 52, bias 1023,
        polynomial [
            1.0 / 6_227_020_800.0, 1.0 / 479_001_600.0, 1.0 / 39_916_800.0, 1.0 / 3_628_800.0,
            1.0 / 362_880.0, 1.0 / 40_320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0,
            1.0 / 6.0, 0.5, 1.0, 1.0
        ])
    }
}
