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

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::simd::{BLOCK, Job, Simd};

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

/// Whether a tile with this many outputs along a side has this point.
pub(super) fn has_point(outputs: usize, point: usize) -> bool {
    match outputs {
        LONE => matches!(point, 0 | 1 | 5),
        2 => point != 3 && point != 4,
        3 => point != 4,
        _ => true,
    }
}

/// The points of a map, all its tiles together.
pub(super) fn map_points(map: [usize; 2]) -> usize {
    let (last, [h, w]) = (last_outputs(map), map);
    let points =
        |side: usize, last| 6 * (side.div_ceil(4) - 1) + (0..6).filter(|&p| has_point(last, p)).count();
    points(h, last.0) * points(w, last.1)
}

/// A linear map along a side of a tile that computes `T` outputs there. Values are indexed as in the full tile; missing
/// ones are not looked at.
pub(super) trait Side {
    /// Whether the map reads value `i`.
    fn reads(outputs: usize, i: usize) -> bool;
    /// Whether the map gives value `i`.
    fn gives(outputs: usize, i: usize) -> bool;
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
    fn reads(outputs: usize, i: usize) -> bool {
        i < outputs + 2 && (outputs != LONE || i > 0)
    }
    #[inline(always)]
    fn gives(outputs: usize, i: usize) -> bool {
        has_point(outputs, i)
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(d: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let c = |x| S::splat(x);
            let none = S::zero();
            match T {
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
    fn reads(outputs: usize, i: usize) -> bool {
        has_point(outputs, i)
    }
    #[inline(always)]
    fn gives(outputs: usize, i: usize) -> bool {
        i < outputs.max(2)
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(m: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let c = |x| S::splat(x);
            let none = S::zero();
            let (sum, difference) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            match T {
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
    fn reads(outputs: usize, i: usize) -> bool {
        i < outputs.max(2)
    }
    #[inline(always)]
    fn gives(outputs: usize, i: usize) -> bool {
        has_point(outputs, i)
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(y: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let c = |x| S::splat(x);
            let none = S::zero();
            match T {
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

/// Applies a map to one vector of a tile, of any size, in memory.
pub(super) struct AnyTile<X> {
    /// Rows and columns of outputs that the tile computes: 2, 3 or 4, or [`LONE`].
    pub outputs: (usize, usize),
    /// Values to read, and how far it is from row to row and from column to column.
    pub from: *const f32,
    pub from_steps: (usize, usize),
    /// Values to write.
    pub to: *mut f32,
    pub to_steps: (usize, usize),
    pub side: PhantomData<X>,
}

impl<X: Side> AnyTile<X> {
    #[inline(always)]
    unsafe fn two_sided<S: Simd, const R: usize, const C: usize>(&self) {
        // SAFETY: whoever runs the job promises that what the maps read and give is there.
        unsafe {
            let get =
                |r: usize, q: usize| S::load(self.from.add(r * self.from_steps.0 + q * self.from_steps.1));
            let put = |r: usize, q: usize, v: S::V| {
                S::store(self.to.add(r * self.to_steps.0 + q * self.to_steps.1), v)
            };
            two_sided!(S, X, R, C, get, put);
        }
    }
}

impl<X: Side> Job for AnyTile<X> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: as above.
        unsafe {
            match self.outputs {
                (LONE, _) => self.two_sided::<S, LONE, LONE>(),
                (2, 2) => self.two_sided::<S, 2, 2>(),
                (2, 3) => self.two_sided::<S, 2, 3>(),
                (2, _) => self.two_sided::<S, 2, 4>(),
                (3, 2) => self.two_sided::<S, 3, 2>(),
                (3, 3) => self.two_sided::<S, 3, 3>(),
                (3, _) => self.two_sided::<S, 3, 4>(),
                (_, 2) => self.two_sided::<S, 4, 2>(),
                (_, 3) => self.two_sided::<S, 4, 3>(),
                _ => self.two_sided::<S, 4, 4>(),
            }
        }
    }
}

/// `G g`: three weights to points, all of them or those of [`LONE`] tiles.
pub(super) struct Filter;

impl Side for Filter {
    #[inline(always)]
    fn reads(_outputs: usize, i: usize) -> bool {
        i < 3
    }
    #[inline(always)]
    fn gives(outputs: usize, i: usize) -> bool {
        has_point(outputs, i)
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(g: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let c = |x| S::splat(x);
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
    fn reads(outputs: usize, i: usize) -> bool {
        has_point(outputs, i)
    }
    #[inline(always)]
    fn gives(_outputs: usize, i: usize) -> bool {
        i < 3
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(m: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let (c, none) = (|x| S::splat(x), S::zero());
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
