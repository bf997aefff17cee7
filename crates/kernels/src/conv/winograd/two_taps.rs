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
//! The maps below are those of the module `transforms`, for the sides [`Side::Odd1`](super::side::Side) to `Even4`. `G` carries the
//! scales of F(4, 2), hence the factors in the shorter tiles' `Bᵀ`.

use super::side::StaticSide;
use crate::simd::Simd;

/// Multiplications of a whole tile.
pub(in crate::conv) const PRODUCTS: f64 = 81.0;

/// Multiplications along a side of strided outputs, for the odd and the even inputs together.
pub(in crate::conv) fn side_products(outputs: usize) -> usize {
    2 * outputs + outputs.div_ceil(4)
}

/// Points along a side of strided outputs.
pub(in crate::conv) fn side_points(outputs: usize) -> usize {
    outputs + outputs.div_ceil(4)
}

/// `Bᵀ d`.
#[inline(always)]
pub(super) fn input<S: Simd, T: StaticSide>(simd: S, d: [S::V; 6]) -> [S::V; 6] {
    let c = |x| simd.splat(x);
    let none = simd.zero();
    match T::SIDE.outputs() {
        1 => [simd.mul(c(2.0), d[0]), none, none, none, none, d[1]],
        2 => {
            let zero = simd.mul(c(2.0), simd.sub(d[0], d[1]));
            [zero, simd.mul(c(2.0), d[1]), none, none, none, simd.sub(d[2], d[1])]
        }
        3 => {
            let zero = simd.mul(c(2.0), simd.sub(d[0], d[2]));
            let minus_one = simd.mul(c(3.0), simd.sub(d[2], d[1]));
            [zero, simd.add(d[1], d[2]), minus_one, none, none, simd.sub(d[3], d[1])]
        }
        _ => {
            // 2 d0 - d1 - 2 d2 + d3, 2 d1 + d2 - d3, 3 d2 - 2 d1 - d3, d3 - d1, d4 - 2 d3 - d2 + 2 d1
            let difference = simd.sub(d[3], d[1]);
            let zero = simd.fma(c(2.0), simd.sub(d[0], d[2]), difference);
            let one = simd.fma(c(2.0), d[1], simd.sub(d[2], d[3]));
            let minus_one = simd.fma(c(3.0), d[2], simd.sub(simd.mul(c(-2.0), d[1]), d[3]));
            let infinity = simd.fma(c(-2.0), difference, simd.sub(d[4], d[2]));
            [zero, one, minus_one, difference, none, infinity]
        }
    }
}

/// `Aᵀ m`.
#[inline(always)]
pub(super) fn output<S: Simd, T: StaticSide>(simd: S, m: [S::V; 6]) -> [S::V; 6] {
    let c = |x| simd.splat(x);
    let (sum, difference, none) = (simd.add(m[1], m[2]), simd.sub(m[1], m[2]), simd.zero());
    let mut y = match T::SIDE.outputs() {
        1 => [m[0], none, none, none, none, none],
        2 => [simd.add(m[0], m[1]), m[1], none, none, none, none],
        3 => [simd.add(m[0], sum), difference, sum, none, none, none],
        _ => {
            let first = simd.add(simd.add(m[0], sum), m[3]);
            let fourth = simd.fma(c(8.0), m[3], difference);
            [first, simd.fma(c(2.0), m[3], difference), simd.fma(c(4.0), m[3], sum), fourth, none, none]
        }
    };
    if T::SIDE.has_point(5) {
        y[T::SIDE.outputs() - 1] = simd.add(y[T::SIDE.outputs() - 1], m[5]);
    }
    y
}

/// `A y`, of all points.
#[inline(always)]
pub(super) fn output_adjoint<S: Simd, T: StaticSide>(simd: S, y: [S::V; 6]) -> [S::V; 6] {
    let c = |x| simd.splat(x);
    let none = simd.zero();
    match T::SIDE.outputs() {
        1 => [y[0], none, none, none, none, y[0]],
        2 => [y[0], simd.add(y[0], y[1]), none, none, none, y[1]],
        3 => {
            let even = simd.add(y[0], y[2]);
            [y[0], simd.add(even, y[1]), simd.sub(even, y[1]), none, none, y[2]]
        }
        _ => {
            let (even, odd) = (simd.add(y[0], y[2]), simd.add(y[1], y[3]));
            let two = simd.fma(c(4.0), y[2], simd.fma(c(8.0), y[3], simd.fma(c(2.0), y[1], y[0])));
            [y[0], simd.add(even, odd), simd.sub(even, odd), two, none, y[3]]
        }
    }
}

/// `G g`, of three taps, of which a side has some.
#[inline(always)]
pub(super) fn filter<S: Simd, T: StaticSide>(simd: S, g: [S::V; 6]) -> [S::V; 6] {
    let (half, sixth, none) = (simd.splat(0.5), simd.splat(1.0 / 6.0), simd.zero());
    if T::SIDE.is_even() {
        let (two, six) = (simd.mul(half, g[1]), simd.mul(sixth, g[1]));
        return [two, two, six, six, none, none];
    }
    let two = simd.fma(simd.splat(2.0), g[2], g[0]);
    [
        simd.mul(half, g[0]),
        simd.mul(half, simd.add(g[0], g[2])),
        simd.mul(sixth, simd.sub(g[0], g[2])),
        simd.mul(sixth, two),
        none,
        g[2],
    ]
}

/// `Gᵀ m`, to three taps, of which a side has some.
#[inline(always)]
pub(super) fn filter_adjoint<S: Simd, T: StaticSide>(simd: S, m: [S::V; 6]) -> [S::V; 6] {
    let (half, sixth, none) = (simd.splat(0.5), simd.splat(1.0 / 6.0), simd.zero());
    let mut p = [none; 6];
    for i in 0..6 {
        if T::SIDE.has_point(i) {
            p[i] = m[i];
        }
    }
    let first = simd.fma(half, simd.add(p[0], p[1]), simd.mul(sixth, simd.add(p[2], p[3])));
    if T::SIDE.is_even() {
        return [none, first, none, none, none, none];
    }
    let thirds = simd.mul(sixth, simd.fma(simd.splat(2.0), p[3], simd.sub(none, p[2])));
    [first, none, simd.add(simd.fma(half, p[1], thirds), p[5]), none, none, none]
}

#[cfg(test)]
mod tests {
    use super::super::maps::{FilterAdjointMap, FilterMap, InputMap, OutputAdjointMap, OutputMap, SideMap};
    use super::super::side::sides;
    use super::*;
    use crate::simd::Portable;

    /// Outputs of a side, and the gradients of its taps.
    fn side<T: StaticSide>(d: [f32; 6], g: [f32; 6], dy: [f32; 6]) -> ([f32; 6], [f32; 6]) {
        let lanes = |v: [f32; 6]| v.map(|x| [x; 4]);
        let v = InputMap::apply::<Portable, T>(Portable, lanes(d));
        let u = FilterMap::apply::<Portable, T>(Portable, lanes(g));
        let e = OutputAdjointMap::apply::<Portable, T>(Portable, lanes(dy));
        let (mut m, mut w) = ([[f32::NAN; 4]; 6], [[f32::NAN; 4]; 6]);
        for i in (0..6).filter(|&i| T::SIDE.has_point(i)) {
            (m[i], w[i]) = (Portable.mul(v[i], u[i]), Portable.mul(v[i], e[i]));
        }
        let (y, dg) = (
            OutputMap::apply::<Portable, T>(Portable, m),
            FilterAdjointMap::apply::<Portable, T>(Portable, w),
        );
        (y.map(|y| y[0]), dg.map(|dg| dg[0]))
    }

    fn check<T: StaticSide>() {
        let (d, g) = ([0.3, -1.2, 0.7, 2.0, -0.4, f32::NAN], [0.5, -0.9, 1.3, f32::NAN, f32::NAN, f32::NAN]);
        let dy = [1.0, -2.0, 0.25, 0.6, f32::NAN, f32::NAN];
        let (y, dg) = side::<T>(d, g, dy);
        // The taps, and how far on the input is that each reads.
        let taps: &[(usize, usize)] = if !T::SIDE.is_even() { &[(0, 0), (2, 1)] } else { &[(1, 0)] };
        for i in 0..T::SIDE.outputs() {
            let expected: f32 = taps.iter().map(|&(tap, on)| g[tap] * d[i + on]).sum();
            assert!((y[i] - expected).abs() < 1e-5, "{:?}: {y:?}", T::SIDE);
        }
        for &(tap, on) in taps {
            let expected: f32 = (0..T::SIDE.outputs()).map(|i| dy[i] * d[i + on]).sum();
            assert!((dg[tap] - expected).abs() < 1e-5, "{:?}: {dg:?}", T::SIDE);
        }
    }

    #[test]
    fn sides_are_correlations_with_their_taps() {
        check::<sides::Odd1>();
        check::<sides::Odd2>();
        check::<sides::Odd3>();
        check::<sides::Odd4>();
        check::<sides::Even1>();
        check::<sides::Even2>();
        check::<sides::Even3>();
        check::<sides::Even4>();
    }
}
