//! The matrices of Winograd's F(4×4, 3×3) (Lavin and Gray, "Fast algorithms for convolutional neural
//! networks", 2016, section 4.3), applied to vectors of channels: `Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A` for a tile `d` of
//! 6×6 inputs, a filter `g` of 3×3 and 4×4 outputs `Y`. The gradient of the filter is the adjoint,
//! `Gᵀ[(A dY Aᵀ) ⊙ (Bᵀ d B)]G`.
//!
//! Where a map's side is no multiple of 4, the last tile is a shorter one along that side: F(3, 3) or F(2, 3). Toom and
//! Cook's construction takes any set of points; these take some of the six, `0, 1, -1, 2, -2, ∞`, so that all tiles share
//! the transformed filter. `G` carries the scales of F(4, 3), hence the factors in the shorter tiles' `Bᵀ`.
//!
//! A map of 2×2 pixels has zeros all around it. Along a side, its outputs are `[[g1, g2], [g0, g1]] d`: F(2, 2) with the
//! roles of filter and inputs exchanged, three multiplications instead of four, without rounding in the transforms' scales.
//!
//! Sides of strided convolutions have two taps, at five points at most: the module `two_taps` has their maps.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use std::mem::MaybeUninit;

use super::side::{SIDE, Side, Sides, StaticSide};
use super::two_taps;
use crate::simd::{BLOCK, Simd};

/// Points of the transformed tile: 6×6.
pub(in crate::conv) const POINTS: usize = 36;

/// The sides of a map's last tiles, for a convolution of stride 1.
pub(super) fn last_sides([h, w]: [usize; 2]) -> Sides {
    let last = |side: usize| Side::dense(if side.is_multiple_of(SIDE) { SIDE } else { side % SIDE });
    if (h, w) == (2, 2) { (Side::Lone, Side::Lone) } else { (last(h), last(w)) }
}

/// The points of a map, all its tiles together.
pub(in crate::conv) fn map_points(map: [usize; 2]) -> usize {
    let (last, [h, w]) = (last_sides(map), map);
    let points = |side: usize, last: Side| {
        6 * (side.div_ceil(SIDE) - 1) + (0..6).filter(|&p| last.has_point(p)).count()
    };
    points(h, last.0) * points(w, last.1)
}

/// A linear map along a side `T` of a tile. Values are indexed as in the full tile; missing ones are not looked at.
pub(super) trait SideMap {
    /// Whether the map reads value `i`.
    fn reads(side: Side, i: usize) -> bool;
    /// Whether the map gives value `i`.
    fn gives(side: Side, i: usize) -> bool;
    /// The map.
    fn apply<S: Simd, T: StaticSide>(simd: S, v: [S::V; 6]) -> [S::V; 6];
}

/// `Bᵀ d`: inputs to points.
pub(super) struct InputMap;

impl SideMap for InputMap {
    #[inline(always)]
    fn reads(side: Side, i: usize) -> bool {
        i < side.inputs() && (side != Side::Lone || i > 0)
    }
    #[inline(always)]
    fn gives(side: Side, i: usize) -> bool {
        side.has_point(i)
    }
    #[inline(always)]
    fn apply<S: Simd, T: StaticSide>(simd: S, d: [S::V; 6]) -> [S::V; 6] {
        let c = |x| simd.splat(x);
        let none = simd.zero();
        match T::SIDE {
            side if side.is_strided() => two_taps::input::<S, T>(simd, d),
            Side::Lone => [d[2], simd.add(d[1], d[2]), none, none, none, d[1]],
            Side::Dense2 => {
                let (sum, difference) = (simd.add(d[1], d[2]), simd.sub(d[1], d[2]));
                let zero = simd.mul(c(4.0), simd.sub(d[0], d[2]));
                [zero, simd.mul(c(-3.0), sum), simd.mul(c(3.0), difference), none, none, simd.sub(d[3], d[1])]
            }
            Side::Dense3 => {
                // 2(2 d0 - d1 - 2 d2 + d3), 3(d3 - d2 - 2 d1), d3 - 3 d2 + 2 d1, 4(d3 - d1), d4 - 2 d3 - d2 + 2 d1
                let difference = simd.sub(d[3], d[1]);
                let zero = simd.fma(c(4.0), simd.sub(d[0], d[2]), simd.mul(c(2.0), difference));
                let one = simd.mul(c(3.0), simd.fma(c(-2.0), d[1], simd.sub(d[3], d[2])));
                let minus_one = simd.fma(c(2.0), d[1], simd.fma(c(-3.0), d[2], d[3]));
                let infinity = simd.fma(c(-2.0), difference, simd.sub(d[4], d[2]));
                [zero, one, minus_one, simd.mul(c(4.0), difference), none, infinity]
            }
            _ => {
                let a = simd.fma(c(-4.0), d[2], d[4]); // d4 - 4 d2
                let b = simd.fma(c(-4.0), d[1], d[3]); // d3 - 4 d1
                let e = simd.sub(d[4], d[2]);
                let f = simd.mul(c(2.0), simd.sub(d[3], d[1]));
                [
                    simd.fma(c(4.0), d[0], simd.fma(c(-5.0), d[2], d[4])),
                    simd.add(a, b),
                    simd.sub(a, b),
                    simd.add(e, f),
                    simd.sub(e, f),
                    simd.fma(c(4.0), d[1], simd.fma(c(-5.0), d[3], d[5])),
                ]
            }
        }
    }
}

/// `Aᵀ m`: points to outputs.
pub(super) struct OutputMap;

impl SideMap for OutputMap {
    #[inline(always)]
    fn reads(side: Side, i: usize) -> bool {
        side.has_point(i)
    }
    #[inline(always)]
    fn gives(side: Side, i: usize) -> bool {
        i < side.outputs()
    }
    #[inline(always)]
    fn apply<S: Simd, T: StaticSide>(simd: S, m: [S::V; 6]) -> [S::V; 6] {
        let c = |x| simd.splat(x);
        let none = simd.zero();
        let (sum, difference) = (simd.add(m[1], m[2]), simd.sub(m[1], m[2]));
        match T::SIDE {
            side if side.is_strided() => two_taps::output::<S, T>(simd, m),
            Side::Lone => [simd.add(m[1], m[0]), simd.add(m[1], m[5]), none, none, none, none],
            Side::Dense2 => [simd.add(m[0], sum), simd.add(difference, m[5]), none, none, none, none],
            Side::Dense3 => {
                let first = simd.add(simd.add(m[0], sum), m[3]);
                let third = simd.add(simd.fma(c(4.0), m[3], sum), m[5]);
                [first, simd.fma(c(2.0), m[3], difference), third, none, none, none]
            }
            _ => {
                let (s2, d2) = (simd.add(m[3], m[4]), simd.sub(m[3], m[4]));
                [
                    simd.add(simd.add(m[0], sum), s2),
                    simd.fma(c(2.0), d2, difference),
                    simd.fma(c(4.0), s2, sum),
                    simd.add(simd.fma(c(8.0), d2, difference), m[5]),
                    none,
                    none,
                ]
            }
        }
    }
}

/// `A y`: gradients of outputs to points.
pub(super) struct OutputAdjointMap;

impl SideMap for OutputAdjointMap {
    #[inline(always)]
    fn reads(side: Side, i: usize) -> bool {
        i < side.outputs()
    }
    #[inline(always)]
    fn gives(side: Side, i: usize) -> bool {
        side.has_point(i)
    }
    #[inline(always)]
    fn apply<S: Simd, T: StaticSide>(simd: S, y: [S::V; 6]) -> [S::V; 6] {
        let c = |x| simd.splat(x);
        let none = simd.zero();
        match T::SIDE {
            side if side.is_strided() => two_taps::output_adjoint::<S, T>(simd, y),
            Side::Lone => [y[0], simd.add(y[0], y[1]), none, none, none, y[1]],
            Side::Dense2 => [y[0], simd.add(y[0], y[1]), simd.sub(y[0], y[1]), none, none, y[1]],
            Side::Dense3 => {
                let even = simd.add(y[0], y[2]);
                let two = simd.fma(c(4.0), y[2], simd.fma(c(2.0), y[1], y[0]));
                [y[0], simd.add(even, y[1]), simd.sub(even, y[1]), two, none, y[2]]
            }
            _ => {
                let (even, odd) = (simd.add(y[0], y[2]), simd.add(y[1], y[3]));
                let even2 = simd.fma(c(4.0), y[2], y[0]);
                let odd2 = simd.fma(c(8.0), y[3], simd.mul(c(2.0), y[1]));
                [
                    y[0],
                    simd.add(even, odd),
                    simd.sub(even, odd),
                    simd.add(even2, odd2),
                    simd.sub(even2, odd2),
                    y[3],
                ]
            }
        }
    }
}

/// Memory for one vector of each output of a tile.
pub(super) type Outputs = MaybeUninit<[[[f32; BLOCK]; 4]; 4]>;

/// Applies the map `$X` to the columns and then to the rows of one vector of a tile that computes `$R` by `$C` outputs:
/// values go from `$get(row, column)` to `$put(row, column, value)`. A macro, since a closure that is passed on may end up
/// as a function of its own, which cannot use the instruction set.
macro_rules! two_sided {
    ($simd:expr, $X:ty, $R:ty, $C:ty, $get:expr, $put:expr) => {{
        use $crate::conv::winograd::maps::{SideMap, columns, row};
        let half = columns::<_, $X, $R, $C>($simd, $get);
        for r in 0..6 {
            if <$X as SideMap>::gives(<$R as $crate::conv::winograd::side::StaticSide>::SIDE, r) {
                let row = row::<_, $X, $C>($simd, &half, r);
                for q in 0..6 {
                    if <$X as SideMap>::gives(<$C as $crate::conv::winograd::side::StaticSide>::SIDE, q) {
                        $put(r, q, row[q]);
                    }
                }
            }
        }
    }};
}
pub(super) use two_sided;

/// The map applied to the columns of a tile that computes `R` by `C` outputs.
#[inline(always)]
pub(super) fn columns<S: Simd, X: SideMap, R: StaticSide, C: StaticSide>(
    simd: S,
    get: impl Fn(usize, usize) -> S::V,
) -> [[S::V; 6]; 6] {
    let mut half = [[simd.zero(); 6]; 6];
    for q in 0..6 {
        if X::reads(C::SIDE, q) {
            let mut column = [simd.zero(); 6];
            for r in 0..6 {
                if X::reads(R::SIDE, r) {
                    column[r] = get(r, q);
                }
            }
            half[q] = X::apply::<S, R>(simd, column);
        }
    }
    half
}

/// The map applied to row `r` of what [`columns`] gave.
#[inline(always)]
pub(super) fn row<S: Simd, X: SideMap, C: StaticSide>(simd: S, half: &[[S::V; 6]; 6], r: usize) -> [S::V; 6] {
    X::apply::<S, C>(simd, [half[0][r], half[1][r], half[2][r], half[3][r], half[4][r], half[5][r]])
}

/// `G g`: three weights to points, all of them or those of [`Side::Lone`] tiles.
pub(super) struct FilterMap;

impl SideMap for FilterMap {
    #[inline(always)]
    fn reads(side: Side, i: usize) -> bool {
        side.has_tap(i)
    }
    #[inline(always)]
    fn gives(side: Side, i: usize) -> bool {
        side.has_point(i)
    }
    #[inline(always)]
    fn apply<S: Simd, T: StaticSide>(simd: S, g: [S::V; 6]) -> [S::V; 6] {
        let c = |x| simd.splat(x);
        if T::SIDE.is_strided() {
            return two_taps::filter::<S, T>(simd, g);
        }
        if T::SIDE == Side::Lone {
            let none = simd.zero();
            return [simd.sub(g[2], g[1]), g[1], none, none, none, simd.sub(g[0], g[1])];
        }
        let s = simd.mul(c(-1.0 / 6.0), simd.add(g[0], g[2]));
        let t = simd.mul(c(-1.0 / 6.0), g[1]);
        let u = simd.mul(c(1.0 / 24.0), simd.fma(c(4.0), g[2], g[0]));
        let v = simd.mul(c(1.0 / 12.0), g[1]);
        [simd.mul(c(0.25), g[0]), simd.add(s, t), simd.sub(s, t), simd.add(u, v), simd.sub(u, v), g[2]]
    }
}

/// `Gᵀ m`: points, all of them or those of [`Side::Lone`] tiles, to the gradients of three weights.
pub(super) struct FilterAdjointMap;

impl SideMap for FilterAdjointMap {
    #[inline(always)]
    fn reads(side: Side, i: usize) -> bool {
        side.has_point(i)
    }
    #[inline(always)]
    fn gives(side: Side, i: usize) -> bool {
        side.has_tap(i)
    }
    #[inline(always)]
    fn apply<S: Simd, T: StaticSide>(simd: S, m: [S::V; 6]) -> [S::V; 6] {
        let (c, none) = (|x| simd.splat(x), simd.zero());
        if T::SIDE.is_strided() {
            return two_taps::filter_adjoint::<S, T>(simd, m);
        }
        if T::SIDE == Side::Lone {
            return [m[5], simd.sub(m[1], simd.add(m[0], m[5])), m[0], none, none, none];
        }
        let (s1, d1) = (simd.add(m[1], m[2]), simd.sub(m[2], m[1]));
        let (s2, d2) = (simd.add(m[3], m[4]), simd.sub(m[3], m[4]));
        let sixth = c(1.0 / 6.0);
        let first = simd.fma(c(1.0 / 24.0), s2, simd.mul(c(0.25), m[0]));
        [
            simd.fma(c(-1.0 / 6.0), s1, first),
            simd.fma(c(1.0 / 12.0), d2, simd.mul(sixth, d1)),
            simd.add(simd.mul(sixth, simd.sub(s2, s1)), m[5]),
            none,
            none,
            none,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::side::sides;
    use super::*;
    use crate::simd::Portable;

    type S = Portable;
    const SIMD: S = Portable;

    fn lane<const N: usize>(v: [f32; N]) -> [[f32; 4]; N] {
        v.map(|x| [x; 4])
    }

    /// A side with `T` outputs: the correlation, and the filter's gradient.
    fn side<T: StaticSide>(d: [f32; 6], g: [f32; 6], dy: [f32; 6]) -> ([f32; 6], [f32; 6]) {
        let (v, u) = (InputMap::apply::<S, T>(SIMD, lane(d)), FilterMap::apply::<S, T>(SIMD, lane(g)));
        let (mut m, mut w) = ([[f32::NAN; 4]; 6], [[0.0; 4]; 6]);
        let e = OutputAdjointMap::apply::<S, T>(SIMD, lane(dy));
        for i in (0..6).filter(|&i| T::SIDE.has_point(i)) {
            (m[i], w[i]) = (SIMD.mul(v[i], u[i]), SIMD.mul(v[i], e[i]));
        }
        (
            OutputMap::apply::<S, T>(SIMD, m).map(|y| y[0]),
            FilterAdjointMap::apply::<S, T>(SIMD, w).map(|dg| dg[0]),
        )
    }

    #[test]
    fn shorter_sides_share_the_transformed_filter() {
        let (d, g) = ([0.3, -1.2, 0.7, 2.0, -0.4, 1.1], [0.5, -0.9, 1.3, f32::NAN, f32::NAN, f32::NAN]);
        let dy = [1.0, -2.0, 0.25, 0.6, f32::NAN, f32::NAN];
        for (outputs, (y, dg)) in [
            (2, side::<sides::Dense2>(d, g, dy)),
            (3, side::<sides::Dense3>(d, g, dy)),
            (4, side::<sides::Dense4>(d, g, dy)),
        ] {
            for i in 0..outputs {
                let expected: f32 = (0..3).map(|t| d[i + t] * g[t]).sum();
                assert!((y[i] - expected).abs() < 1e-5, "{outputs} outputs: {y:?}");
            }
            for t in 0..3 {
                let expected: f32 = (0..outputs).map(|i| d[i + t] * dy[i]).sum();
                assert!((dg[t] - expected).abs() < 1e-5, "{outputs} outputs: {dg:?}");
            }
        }
    }

    #[test]
    fn a_side_of_two_between_zeros_takes_three_products() {
        let (d, g) = (
            [f32::NAN, -1.2, 0.7, f32::NAN, f32::NAN, f32::NAN],
            [0.5, -0.9, 1.3, f32::NAN, f32::NAN, f32::NAN],
        );
        let (y, dg) = side::<sides::Lone>(d, g, [1.0, -2.0, f32::NAN, f32::NAN, f32::NAN, f32::NAN]);
        let expected = [-0.9 * -1.2 + 1.3 * 0.7, 0.5 * -1.2 - 0.9 * 0.7];
        assert!((0..2).all(|i| (y[i] - expected[i]).abs() < 1e-6), "{y:?}");
        let expected = [-2.0 * -1.2, -1.2 - 2.0 * 0.7, 0.7];
        assert!((0..3).all(|i| (dg[i] - expected[i]).abs() < 1e-6), "{dg:?}");
    }

    #[test]
    fn a_side_has_six_points_a_tile_and_fewer_at_its_end() {
        let points = [1, 3, 4, 5, 6, 7, 8, 14].map(|side| map_points([4, side]));
        assert_eq!(points, [4, 5, 6, 10, 10, 11, 12, 22].map(|points| 6 * points));
        assert_eq!((map_points([2, 2]), map_points([2, 4])), (9, 24));
    }
}
