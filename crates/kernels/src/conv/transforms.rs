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

use super::two_taps::{self, ODD, has_two_taps};
use crate::simd::{BLOCK, Simd};

/// Points of the transformed tile: 6×6.
pub(super) const POINTS: usize = 36;

/// What stands for the outputs along the sides of a tile that is a whole map of 2×2 pixels.
pub(super) const LONE: usize = 1;

/// Outputs along the sides of a map's last tiles: 2, 3 or 4, where a single one is computed as two, or [`LONE`].
pub(super) fn last_outputs([h, w]: [usize; 2]) -> (usize, usize) {
    let last = |side: usize| match side % 4 {
        0 => 4,
        3 => 3,
        _ => 2,
    };
    if (h, w) == (2, 2) { (LONE, LONE) } else { (last(h), last(w)) }
}

/// Whether a side has this point: of a number of outputs, of [`LONE`], or, with two taps, of [`ODD`] or `EVEN` and
/// outputs.
pub(super) fn has_point(side: usize, point: usize) -> bool {
    match side {
        side if has_two_taps(side) => two_taps::has_point(side, point),
        LONE => matches!(point, 0 | 1 | 5),
        2 => point != 3 && point != 4,
        3 => point != 4,
        _ => true,
    }
}

/// Whether a side has a tap.
fn has_tap(side: usize, tap: usize) -> bool {
    if has_two_taps(side) { two_taps::has_tap(side, tap) } else { tap < 3 }
}

/// Inputs along a side.
pub(super) fn inputs(side: usize) -> usize {
    if has_two_taps(side) { two_taps::inputs(side) } else { side + 2 }
}

/// Outputs along a side, of a number that a tile has room for.
pub(super) fn outputs(side: usize) -> usize {
    if has_two_taps(side) { side % ODD } else { side.max(2) }
}

/// The points of a map, all its tiles together.
pub(super) fn map_points(map: [usize; 2]) -> usize {
    let (last, [h, w]) = (last_outputs(map), map);
    let points =
        |side: usize, last| 6 * (side.div_ceil(4) - 1) + (0..6).filter(|&p| has_point(last, p)).count();
    points(h, last.0) * points(w, last.1)
}

/// A linear map along a side `T` of a tile. Values are indexed as in the full tile; missing ones are not looked at.
pub(super) trait Side {
    /// Whether the map reads value `i`.
    fn reads(side: usize, i: usize) -> bool;
    /// Whether the map gives value `i`.
    fn gives(side: usize, i: usize) -> bool;
    /// The map.
    ///
    /// # Safety
    /// The instruction set must be available.
    unsafe fn apply<S: Simd, const T: usize>(v: [S::V; 6]) -> [S::V; 6];
}

/// `Bᵀ d`: inputs to points.
pub(super) struct Input;

impl Side for Input {
    #[inline(always)]
    fn reads(side: usize, i: usize) -> bool {
        i < inputs(side) && (side != LONE || i > 0)
    }
    #[inline(always)]
    fn gives(side: usize, i: usize) -> bool {
        has_point(side, i)
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(d: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let c = |x| S::splat(x);
            let none = S::zero();
            match T {
                side if has_two_taps(side) => two_taps::input::<S, T>(d),
                LONE => [d[2], S::add(d[1], d[2]), none, none, none, d[1]],
                2 => {
                    let (sum, difference) = (S::add(d[1], d[2]), S::sub(d[1], d[2]));
                    let zero = S::mul(c(4.0), S::sub(d[0], d[2]));
                    [zero, S::mul(c(-3.0), sum), S::mul(c(3.0), difference), none, none, S::sub(d[3], d[1])]
                }
                3 => {
                    // 2(2 d0 - d1 - 2 d2 + d3), 3(d3 - d2 - 2 d1), d3 - 3 d2 + 2 d1, 4(d3 - d1), d4 - 2 d3 - d2 + 2 d1
                    let difference = S::sub(d[3], d[1]);
                    let zero = S::fma(c(4.0), S::sub(d[0], d[2]), S::mul(c(2.0), difference));
                    let one = S::mul(c(3.0), S::fma(c(-2.0), d[1], S::sub(d[3], d[2])));
                    let minus_one = S::fma(c(2.0), d[1], S::fma(c(-3.0), d[2], d[3]));
                    let infinity = S::fma(c(-2.0), difference, S::sub(d[4], d[2]));
                    [zero, one, minus_one, S::mul(c(4.0), difference), none, infinity]
                }
                _ => {
                    let a = S::fma(c(-4.0), d[2], d[4]); // d4 - 4 d2
                    let b = S::fma(c(-4.0), d[1], d[3]); // d3 - 4 d1
                    let e = S::sub(d[4], d[2]);
                    let f = S::mul(c(2.0), S::sub(d[3], d[1]));
                    [
                        S::fma(c(4.0), d[0], S::fma(c(-5.0), d[2], d[4])),
                        S::add(a, b),
                        S::sub(a, b),
                        S::add(e, f),
                        S::sub(e, f),
                        S::fma(c(4.0), d[1], S::fma(c(-5.0), d[3], d[5])),
                    ]
                }
            }
        }
    }
}

/// `Aᵀ m`: points to outputs.
pub(super) struct Output;

impl Side for Output {
    #[inline(always)]
    fn reads(side: usize, i: usize) -> bool {
        has_point(side, i)
    }
    #[inline(always)]
    fn gives(side: usize, i: usize) -> bool {
        i < outputs(side)
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(m: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let c = |x| S::splat(x);
            let none = S::zero();
            let (sum, difference) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            match T {
                side if has_two_taps(side) => two_taps::output::<S, T>(m),
                LONE => [S::add(m[1], m[0]), S::add(m[1], m[5]), none, none, none, none],
                2 => [S::add(m[0], sum), S::add(difference, m[5]), none, none, none, none],
                3 => {
                    let first = S::add(S::add(m[0], sum), m[3]);
                    let third = S::add(S::fma(c(4.0), m[3], sum), m[5]);
                    [first, S::fma(c(2.0), m[3], difference), third, none, none, none]
                }
                _ => {
                    let (s2, d2) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
                    [
                        S::add(S::add(m[0], sum), s2),
                        S::fma(c(2.0), d2, difference),
                        S::fma(c(4.0), s2, sum),
                        S::add(S::fma(c(8.0), d2, difference), m[5]),
                        none,
                        none,
                    ]
                }
            }
        }
    }
}

/// `A y`: gradients of outputs to points.
pub(super) struct OutputAdjoint;

impl Side for OutputAdjoint {
    #[inline(always)]
    fn reads(side: usize, i: usize) -> bool {
        i < outputs(side)
    }
    #[inline(always)]
    fn gives(side: usize, i: usize) -> bool {
        has_point(side, i)
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(y: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let c = |x| S::splat(x);
            let none = S::zero();
            match T {
                side if has_two_taps(side) => two_taps::output_adjoint::<S, T>(y),
                LONE => [y[0], S::add(y[0], y[1]), none, none, none, y[1]],
                2 => [y[0], S::add(y[0], y[1]), S::sub(y[0], y[1]), none, none, y[1]],
                3 => {
                    let even = S::add(y[0], y[2]);
                    let two = S::fma(c(4.0), y[2], S::fma(c(2.0), y[1], y[0]));
                    [y[0], S::add(even, y[1]), S::sub(even, y[1]), two, none, y[2]]
                }
                _ => {
                    let (even, odd) = (S::add(y[0], y[2]), S::add(y[1], y[3]));
                    let even2 = S::fma(c(4.0), y[2], y[0]);
                    let odd2 = S::fma(c(8.0), y[3], S::mul(c(2.0), y[1]));
                    [
                        y[0],
                        S::add(even, odd),
                        S::sub(even, odd),
                        S::add(even2, odd2),
                        S::sub(even2, odd2),
                        y[3],
                    ]
                }
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
    ($S:ty, $X:ty, $R:expr, $C:expr, $get:expr, $put:expr) => {{
        use $crate::conv::transforms::{Side, columns, row};
        let half = columns::<$S, $X, { $R }, { $C }>($get);
        for r in 0..6 {
            if <$X as Side>::gives($R, r) {
                let row = row::<$S, $X, { $C }>(&half, r);
                for q in 0..6 {
                    if <$X as Side>::gives($C, q) {
                        $put(r, q, row[q]);
                    }
                }
            }
        }
    }};
}
pub(super) use two_sided;

/// The map applied to the columns of a tile that computes `R` by `C` outputs.
///
/// # Safety
/// The instruction set must be available.
#[inline(always)]
pub(super) unsafe fn columns<S: Simd, X: Side, const R: usize, const C: usize>(
    get: impl Fn(usize, usize) -> S::V,
) -> [[S::V; 6]; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut half = [[S::zero(); 6]; 6];
        for q in 0..6 {
            if X::reads(C, q) {
                let mut column = [S::zero(); 6];
                for r in 0..6 {
                    if X::reads(R, r) {
                        column[r] = get(r, q);
                    }
                }
                half[q] = X::apply::<S, R>(column);
            }
        }
        half
    }
}

/// The map applied to row `r` of what [`columns`] gave.
///
/// # Safety
/// The instruction set must be available.
#[inline(always)]
pub(super) unsafe fn row<S: Simd, X: Side, const C: usize>(half: &[[S::V; 6]; 6], r: usize) -> [S::V; 6] {
    // SAFETY: the caller's promise.
    unsafe { X::apply::<S, C>([half[0][r], half[1][r], half[2][r], half[3][r], half[4][r], half[5][r]]) }
}

/// `G g`: three weights to points, all of them or those of [`LONE`] tiles.
pub(super) struct Filter;

impl Side for Filter {
    #[inline(always)]
    fn reads(side: usize, i: usize) -> bool {
        has_tap(side, i)
    }
    #[inline(always)]
    fn gives(side: usize, i: usize) -> bool {
        has_point(side, i)
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(g: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let c = |x| S::splat(x);
            if has_two_taps(T) {
                return two_taps::filter::<S, T>(g);
            }
            if T == LONE {
                let none = S::zero();
                return [S::sub(g[2], g[1]), g[1], none, none, none, S::sub(g[0], g[1])];
            }
            let s = S::mul(c(-1.0 / 6.0), S::add(g[0], g[2]));
            let t = S::mul(c(-1.0 / 6.0), g[1]);
            let u = S::mul(c(1.0 / 24.0), S::fma(c(4.0), g[2], g[0]));
            let v = S::mul(c(1.0 / 12.0), g[1]);
            [S::mul(c(0.25), g[0]), S::add(s, t), S::sub(s, t), S::add(u, v), S::sub(u, v), g[2]]
        }
    }
}

/// `Gᵀ m`: points, all of them or those of [`LONE`] tiles, to the gradients of three weights.
pub(super) struct FilterAdjoint;

impl Side for FilterAdjoint {
    #[inline(always)]
    fn reads(side: usize, i: usize) -> bool {
        has_point(side, i)
    }
    #[inline(always)]
    fn gives(side: usize, i: usize) -> bool {
        has_tap(side, i)
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(m: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let (c, none) = (|x| S::splat(x), S::zero());
            if has_two_taps(T) {
                return two_taps::filter_adjoint::<S, T>(m);
            }
            if T == LONE {
                return [m[5], S::sub(m[1], S::add(m[0], m[5])), m[0], none, none, none];
            }
            let (s1, d1) = (S::add(m[1], m[2]), S::sub(m[2], m[1]));
            let (s2, d2) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            let sixth = c(1.0 / 6.0);
            let first = S::fma(c(1.0 / 24.0), s2, S::mul(c(0.25), m[0]));
            [
                S::fma(c(-1.0 / 6.0), s1, first),
                S::fma(c(1.0 / 12.0), d2, S::mul(sixth, d1)),
                S::add(S::mul(sixth, S::sub(s2, s1)), m[5]),
                none,
                none,
                none,
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    type S = Portable;

    fn lane<const N: usize>(v: [f32; N]) -> [[f32; 4]; N] {
        v.map(|x| [x; 4])
    }

    /// A side with `T` outputs: the correlation, and the filter's gradient.
    fn side<const T: usize>(d: [f32; 6], g: [f32; 6], dy: [f32; 6]) -> ([f32; 6], [f32; 6]) {
        // SAFETY: the portable set is always available.
        unsafe {
            let (v, u) = (Input::apply::<S, T>(lane(d)), Filter::apply::<S, T>(lane(g)));
            let (mut m, mut w) = ([[f32::NAN; 4]; 6], [[0.0; 4]; 6]);
            let e = OutputAdjoint::apply::<S, T>(lane(dy));
            for i in (0..6).filter(|&i| has_point(T, i)) {
                (m[i], w[i]) = (S::mul(v[i], u[i]), S::mul(v[i], e[i]));
            }
            (Output::apply::<S, T>(m).map(|y| y[0]), FilterAdjoint::apply::<S, T>(w).map(|dg| dg[0]))
        }
    }

    #[test]
    fn shorter_sides_share_the_transformed_filter() {
        let (d, g) = ([0.3, -1.2, 0.7, 2.0, -0.4, 1.1], [0.5, -0.9, 1.3, f32::NAN, f32::NAN, f32::NAN]);
        let dy = [1.0, -2.0, 0.25, 0.6, f32::NAN, f32::NAN];
        for (outputs, (y, dg)) in
            [(2, side::<2>(d, g, dy)), (3, side::<3>(d, g, dy)), (4, side::<4>(d, g, dy))]
        {
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
        let (y, dg) = side::<LONE>(d, g, [1.0, -2.0, f32::NAN, f32::NAN, f32::NAN, f32::NAN]);
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
