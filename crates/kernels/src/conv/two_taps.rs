//! Winograd's algorithm for 3×3 convolutions of stride 2.
//!
//! Along a side, output `j` is `g0 x[2j-1] + g1 x[2j] + g2 x[2j+1]`: a correlation of two taps, `(g0, g2)`, with the odd
//! inputs, and one of `(g1, 0)` with the even ones. Both are F(4, 2), F(3, 2) or F(2, 2) on points out of
//! `0, 1, -1, 2, ∞`, and at infinity the second filter is zero. So 4 outputs take 5 + 4 multiplications instead of 12, a
//! tile of 4×4 takes 81 instead of 144, and the products of all four kinds of inputs, which are even or odd along each
//! side, are added up before the one transform to outputs. A single output at the end of a side takes 3.
//!
//! The data pass is the same from the other side: its four kinds of outputs are correlations of one kind of inputs,
//! `x[2j] = g1 y[j]` and `x[2j+1] = g2 y[j] + g0 y[j+1]`.
//!
//! The maps below are those of the module `transforms`, for sides of [`ODD`] or [`EVEN`] and 1 to 4 outputs. `G` carries the
//! scales of F(4, 2), hence the factors in the shorter tiles' `Bᵀ`.

use crate::simd::Simd;

/// Added to the outputs along a side: its inputs, or the outputs of a data pass, are the odd pixels.
pub(super) const ODD: usize = 8;
/// The same for the even pixels: there is no point at infinity.
pub(super) const EVEN: usize = 16;

/// A kind of pixels: [`ODD`] or [`EVEN`] along the two sides, or [`ANY`].
pub(super) type Phase = (usize, usize);

/// All pixels.
pub(super) const ANY: Phase = (0, 0);

/// The kinds of pixels of a map whose convolution strides.
pub(super) const PHASES: [Phase; 4] = [(ODD, ODD), (ODD, EVEN), (EVEN, ODD), (EVEN, EVEN)];

/// Multiplications of a whole tile.
pub(super) const PRODUCTS: f64 = 81.0;

/// Whether there are two taps along a side.
pub(super) const fn has_two_taps(side: usize) -> bool {
    side >= ODD
}

/// Whether a side of two taps has a point.
pub(super) const fn has_point(side: usize, point: usize) -> bool {
    if point == 5 { side < EVEN } else { point < side % ODD }
}

/// Whether a side of two taps has a tap of the three.
pub(super) const fn has_tap(side: usize, tap: usize) -> bool {
    tap < 3 && (tap == 1) == (side >= EVEN)
}

/// Inputs along a side of two taps.
pub(super) const fn inputs(side: usize) -> usize {
    if side < EVEN { side % ODD + 1 } else { side % ODD }
}

/// Multiplications along a side of strided outputs, for the odd and the even inputs together.
pub(super) fn side_products(outputs: usize) -> usize {
    2 * outputs + outputs.div_ceil(4)
}

/// Points along a side of strided outputs.
pub(super) fn side_points(outputs: usize) -> usize {
    outputs + outputs.div_ceil(4)
}

/// `Bᵀ d`.
///
/// # Safety
/// The instruction set must be available.
#[inline(always)]
pub(super) unsafe fn input<S: Simd, const T: usize>(d: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let c = |x| S::splat(x);
        let none = S::zero();
        match T % ODD {
            1 => [S::mul(c(2.0), d[0]), none, none, none, none, d[1]],
            2 => {
                let zero = S::mul(c(2.0), S::sub(d[0], d[1]));
                [zero, S::mul(c(2.0), d[1]), none, none, none, S::sub(d[2], d[1])]
            }
            3 => {
                let zero = S::mul(c(2.0), S::sub(d[0], d[2]));
                let minus_one = S::mul(c(3.0), S::sub(d[2], d[1]));
                [zero, S::add(d[1], d[2]), minus_one, none, none, S::sub(d[3], d[1])]
            }
            _ => {
                // 2 d0 - d1 - 2 d2 + d3, 2 d1 + d2 - d3, 3 d2 - 2 d1 - d3, d3 - d1, d4 - 2 d3 - d2 + 2 d1
                let difference = S::sub(d[3], d[1]);
                let zero = S::fma(c(2.0), S::sub(d[0], d[2]), difference);
                let one = S::fma(c(2.0), d[1], S::sub(d[2], d[3]));
                let minus_one = S::fma(c(3.0), d[2], S::sub(S::mul(c(-2.0), d[1]), d[3]));
                let infinity = S::fma(c(-2.0), difference, S::sub(d[4], d[2]));
                [zero, one, minus_one, difference, none, infinity]
            }
        }
    }
}

/// `Aᵀ m`.
///
/// # Safety
/// The instruction set must be available.
#[inline(always)]
pub(super) unsafe fn output<S: Simd, const T: usize>(m: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let c = |x| S::splat(x);
        let (sum, difference, none) = (S::add(m[1], m[2]), S::sub(m[1], m[2]), S::zero());
        let mut y = match T % ODD {
            1 => [m[0], none, none, none, none, none],
            2 => [S::add(m[0], m[1]), m[1], none, none, none, none],
            3 => [S::add(m[0], sum), difference, sum, none, none, none],
            _ => {
                let first = S::add(S::add(m[0], sum), m[3]);
                let fourth = S::fma(c(8.0), m[3], difference);
                [first, S::fma(c(2.0), m[3], difference), S::fma(c(4.0), m[3], sum), fourth, none, none]
            }
        };
        if has_point(T, 5) {
            y[T % ODD - 1] = S::add(y[T % ODD - 1], m[5]);
        }
        y
    }
}

/// `A y`, of all points.
///
/// # Safety
/// The instruction set must be available.
#[inline(always)]
pub(super) unsafe fn output_adjoint<S: Simd, const T: usize>(y: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let c = |x| S::splat(x);
        let none = S::zero();
        match T % ODD {
            1 => [y[0], none, none, none, none, y[0]],
            2 => [y[0], S::add(y[0], y[1]), none, none, none, y[1]],
            3 => {
                let even = S::add(y[0], y[2]);
                [y[0], S::add(even, y[1]), S::sub(even, y[1]), none, none, y[2]]
            }
            _ => {
                let (even, odd) = (S::add(y[0], y[2]), S::add(y[1], y[3]));
                let two = S::fma(c(4.0), y[2], S::fma(c(8.0), y[3], S::fma(c(2.0), y[1], y[0])));
                [y[0], S::add(even, odd), S::sub(even, odd), two, none, y[3]]
            }
        }
    }
}

/// `G g`, of three taps, of which a side has some.
///
/// # Safety
/// The instruction set must be available.
#[inline(always)]
pub(super) unsafe fn filter<S: Simd, const T: usize>(g: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let (half, sixth, none) = (S::splat(0.5), S::splat(1.0 / 6.0), S::zero());
        if T >= EVEN {
            let (two, six) = (S::mul(half, g[1]), S::mul(sixth, g[1]));
            return [two, two, six, six, none, none];
        }
        let two = S::fma(S::splat(2.0), g[2], g[0]);
        [
            S::mul(half, g[0]),
            S::mul(half, S::add(g[0], g[2])),
            S::mul(sixth, S::sub(g[0], g[2])),
            S::mul(sixth, two),
            none,
            g[2],
        ]
    }
}

/// `Gᵀ m`, to three taps, of which a side has some.
///
/// # Safety
/// The instruction set must be available.
#[inline(always)]
pub(super) unsafe fn filter_adjoint<S: Simd, const T: usize>(m: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let (half, sixth, none) = (S::splat(0.5), S::splat(1.0 / 6.0), S::zero());
        let mut p = [none; 6];
        for i in 0..6 {
            if has_point(T, i) {
                p[i] = m[i];
            }
        }
        let first = S::fma(half, S::add(p[0], p[1]), S::mul(sixth, S::add(p[2], p[3])));
        if T >= EVEN {
            return [none, first, none, none, none, none];
        }
        let thirds = S::mul(sixth, S::fma(S::splat(2.0), p[3], S::sub(none, p[2])));
        [first, none, S::add(S::fma(half, p[1], thirds), p[5]), none, none, none]
    }
}

#[cfg(test)]
mod tests {
    use super::super::transforms::{Filter, FilterAdjoint, Input, Output, OutputAdjoint, Side};
    use super::*;
    use crate::simd::Portable;

    /// Outputs of a side, and the gradients of its taps.
    fn side<const T: usize>(d: [f32; 6], g: [f32; 6], dy: [f32; 6]) -> ([f32; 6], [f32; 6]) {
        let lanes = |v: [f32; 6]| v.map(|x| [x; 4]);
        // SAFETY: the portable set is always available.
        unsafe {
            let v = Input::apply::<Portable, T>(lanes(d));
            let u = Filter::apply::<Portable, T>(lanes(g));
            let e = OutputAdjoint::apply::<Portable, T>(lanes(dy));
            let (mut m, mut w) = ([[f32::NAN; 4]; 6], [[f32::NAN; 4]; 6]);
            for i in (0..6).filter(|&i| has_point(T, i)) {
                (m[i], w[i]) = (Portable::mul(v[i], u[i]), Portable::mul(v[i], e[i]));
            }
            let (y, dg) = (Output::apply::<Portable, T>(m), FilterAdjoint::apply::<Portable, T>(w));
            (y.map(|y| y[0]), dg.map(|dg| dg[0]))
        }
    }

    fn check<const T: usize>() {
        let (d, g) = ([0.3, -1.2, 0.7, 2.0, -0.4, f32::NAN], [0.5, -0.9, 1.3, f32::NAN, f32::NAN, f32::NAN]);
        let dy = [1.0, -2.0, 0.25, 0.6, f32::NAN, f32::NAN];
        let (y, dg) = side::<T>(d, g, dy);
        // The taps, and how far on the input is that each reads.
        let taps: &[(usize, usize)] = if T < EVEN { &[(0, 0), (2, 1)] } else { &[(1, 0)] };
        for i in 0..T % ODD {
            let expected: f32 = taps.iter().map(|&(tap, on)| g[tap] * d[i + on]).sum();
            assert!((y[i] - expected).abs() < 1e-5, "side {T}: {y:?}");
        }
        for &(tap, on) in taps {
            let expected: f32 = (0..T % ODD).map(|i| dy[i] * d[i + on]).sum();
            assert!((dg[tap] - expected).abs() < 1e-5, "side {T}: {dg:?}");
        }
    }

    #[test]
    fn sides_are_correlations_with_their_taps() {
        check::<{ ODD + 1 }>();
        check::<{ ODD + 2 }>();
        check::<{ ODD + 3 }>();
        check::<{ ODD + 4 }>();
        check::<{ EVEN + 1 }>();
        check::<{ EVEN + 2 }>();
        check::<{ EVEN + 3 }>();
        check::<{ EVEN + 4 }>();
    }

    #[test]
    fn points_are_as_many_as_products() {
        let points = |side| (0..6).filter(|&point| has_point(side, point)).count();
        for outputs in 1..=4 {
            assert_eq!(points(ODD + outputs) + points(EVEN + outputs), side_products(outputs));
            assert_eq!(points(ODD + outputs), side_points(outputs));
        }
    }
}
