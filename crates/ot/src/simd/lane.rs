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

    /// The nearest number of this type.
    fn narrow(value: f64) -> Self;

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
    fn narrow(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    #[allow(clippy::excessive_precision)]
    fn exp<const FMA: bool>(self) -> Self {
        // 1 + r + r²·q(r), q interpolated at Chebyshev nodes: within 1.1e-8 of e^r, relatively, on |r| <= 0.347.
        exponential!(self, f32, u32, FMA, magic 12_582_912.0, low -87.336_54, high 88.0,
            ln2 (0.693_359_375, -2.121_944_4e-4), mantissa 23, bias 127,
            polynomial [1.392_621_3e-3, 8.363_203e-3, 4.166_655_6e-2, 1.666_657_6e-1, 0.5, 1.0, 1.0])
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
    fn narrow(value: f64) -> Self {
        value
    }

    #[inline(always)]
    #[allow(clippy::excessive_precision)]
    fn exp<const FMA: bool>(self) -> Self {
        // As above: within 1.7e-17 of e^r, relatively, on |r| <= 0.347.
        exponential!(self, f64, u64, FMA, magic 6_755_399_441_055_744.0, low -708.396_418_532_264, high 709.0,
        ln2 (6.931_471_803_691_238_16e-1, 1.908_214_929_270_587_70e-10), mantissa 52, bias 1023,
        polynomial [
            2.510_042_415_700_506_7e-8, 2.762_013_871_973_399_4e-7, 2.755_726_837_868_419_2e-6,
            2.480_152_119_021_773e-5, 1.984_126_986_310_596_8e-4, 1.388_888_891_728_179_4e-3,
            8.333_333_333_330_051e-3, 4.166_666_666_662_399e-2, 1.666_666_666_666_666_9e-1, 0.5, 1.0, 1.0
        ])
    }
}
