//! The matrices of Winograd's F(4×4, 3×3) (Lavin and Gray, "Fast algorithms for convolutional neural
//! networks", 2016, section 4.3), applied to vectors of channels: `Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A` for a tile `d` of
//! 6×6 inputs, a filter `g` of 3×3 and 4×4 outputs `Y`. The gradient of the filter is the adjoint,
//! `Gᵀ[(A dY Aᵀ) ⊙ (Bᵀ d B)]G`.
//!
//! Where a map's side is no multiple of 4, the last tile is a shorter one along that side: F(3, 3) or F(2, 3). Toom and
//! Cook's construction takes any set of points; these take some of the six, `0, 1, -1, 2, -2, ∞`, so that all tiles share
//! the transformed filter. `G` carries the scales of F(4, 3), hence the factors in the shorter tiles' `Bᵀ`.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::simd::{BLOCK, Job, Simd};

/// Points of the transformed tile: 6×6.
pub(super) const POINTS: usize = 36;

/// Outputs along a side of the last tile of a map's side: 2, 3 or 4. A single one is computed as two.
pub(super) fn last_outputs(side: usize) -> usize {
    match side % 4 {
        0 => 4,
        3 => 3,
        _ => 2,
    }
}

/// Whether a tile with this many outputs along a side has this point.
pub(super) fn has_point(outputs: usize, point: usize) -> bool {
    match outputs {
        2 => point != 3 && point != 4,
        3 => point != 4,
        _ => true,
    }
}

/// The points of a map's side, all its tiles together.
pub(super) fn side_points(side: usize) -> usize {
    let last = last_outputs(side);
    6 * (side.div_ceil(4) - 1) + (0..6).filter(|&point| has_point(last, point)).count()
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
        i < outputs + 2
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
                _ => input::<S>(d),
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
        i < outputs
    }
    #[inline(always)]
    unsafe fn apply<S: Simd, const T: usize>(m: [S::V; 6]) -> [S::V; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let c = |x| S::splat(x);
            let none = S::zero();
            let (sum, difference) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            match T {
                2 => [S::add(m[0], sum), S::add(difference, m[5]), none, none, none, none],
                3 => {
                    let first = S::add(S::add(m[0], sum), m[3]);
                    let third = S::add(S::fma(c(4.0), m[3], sum), m[5]);
                    [first, S::fma(c(2.0), m[3], difference), third, none, none, none]
                }
                _ => {
                    let [a, b, c, d] = output::<S>(m);
                    [a, b, c, d, none, none]
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
        i < outputs
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
                2 => [y[0], S::add(y[0], y[1]), S::sub(y[0], y[1]), none, none, y[1]],
                3 => {
                    let even = S::add(y[0], y[2]);
                    let two = S::fma(c(4.0), y[2], S::fma(c(2.0), y[1], y[0]));
                    [y[0], S::add(even, y[1]), S::sub(even, y[1]), two, none, y[2]]
                }
                _ => output_adjoint::<S>([y[0], y[1], y[2], y[3]]),
            }
        }
    }
}

/// Memory for one vector of each output of a tile.
pub(super) type Outputs = MaybeUninit<[[[f32; BLOCK]; 4]; 4]>;

/// Applies a map to the columns and then to the rows of one vector of a tile at an edge.
pub(super) struct EdgeTile<X> {
    /// Rows and columns of outputs that the tile computes: 2, 3 or 4.
    pub outputs: (usize, usize),
    /// Values to read, and how far it is from row to row and from column to column.
    pub from: *const f32,
    pub from_steps: (usize, usize),
    /// Values to write.
    pub to: *mut f32,
    pub to_steps: (usize, usize),
    pub side: PhantomData<X>,
}

impl<X: Side> EdgeTile<X> {
    #[inline(always)]
    unsafe fn two_sided<S: Simd, const R: usize, const C: usize>(&self) {
        // SAFETY: whoever runs the job promises that what the maps read and give is there.
        unsafe {
            let mut half = [[S::zero(); 6]; 6];
            for q in 0..6 {
                if X::reads(C, q) {
                    let mut column = [S::zero(); 6];
                    for r in 0..6 {
                        if X::reads(R, r) {
                            let at = r * self.from_steps.0 + q * self.from_steps.1;
                            column[r] = S::load(self.from.add(at));
                        }
                    }
                    half[q] = X::apply::<S, R>(column);
                }
            }
            for r in 0..6 {
                if X::gives(R, r) {
                    let mut row = [S::zero(); 6];
                    for q in 0..6 {
                        row[q] = half[q][r];
                    }
                    let done = X::apply::<S, C>(row);
                    for q in 0..6 {
                        if X::gives(C, q) {
                            S::store(self.to.add(r * self.to_steps.0 + q * self.to_steps.1), done[q]);
                        }
                    }
                }
            }
        }
    }
}

impl<X: Side> Job for EdgeTile<X> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: as above.
        unsafe {
            match self.outputs {
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

/// `Bᵀ d`: six inputs to six points.
///
/// # Safety
/// The instruction set must be available; so for all functions here.
#[inline(always)]
pub(super) unsafe fn input<S: Simd>(d: [S::V; 6]) -> [S::V; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let c = |x| S::splat(x);
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

/// `Aᵀ m`: six points to four outputs.
#[inline(always)]
pub(super) unsafe fn output<S: Simd>(m: [S::V; 6]) -> [S::V; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let c = |x| S::splat(x);
        let (s1, d1) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        let (s2, d2) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        [
            S::add(S::add(m[0], s1), s2),
            S::fma(c(2.0), d2, d1),
            S::fma(c(4.0), s2, s1),
            S::add(S::fma(c(8.0), d2, d1), m[5]),
        ]
    }
}

/// `A y`: four gradients of outputs to six points.
#[inline(always)]
pub(super) unsafe fn output_adjoint<S: Simd>(y: [S::V; 4]) -> [S::V; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let c = |x| S::splat(x);
        let (even, odd) = (S::add(y[0], y[2]), S::add(y[1], y[3]));
        let even2 = S::fma(c(4.0), y[2], y[0]);
        let odd2 = S::fma(c(8.0), y[3], S::mul(c(2.0), y[1]));
        [y[0], S::add(even, odd), S::sub(even, odd), S::add(even2, odd2), S::sub(even2, odd2), y[3]]
    }
}

/// `G g`: three weights to six points.
#[inline(always)]
pub(super) unsafe fn filter<S: Simd>(g: [S::V; 3]) -> [S::V; 6] {
    // SAFETY: the caller's promise.
    unsafe {
        let c = |x| S::splat(x);
        let s = S::mul(c(-1.0 / 6.0), S::add(g[0], g[2]));
        let t = S::mul(c(-1.0 / 6.0), g[1]);
        let u = S::mul(c(1.0 / 24.0), S::fma(c(4.0), g[2], g[0]));
        let v = S::mul(c(1.0 / 12.0), g[1]);
        [S::mul(c(0.25), g[0]), S::add(s, t), S::sub(s, t), S::add(u, v), S::sub(u, v), g[2]]
    }
}

/// `Gᵀ m`: six points to the gradients of three weights.
#[inline(always)]
pub(super) unsafe fn filter_adjoint<S: Simd>(m: [S::V; 6]) -> [S::V; 3] {
    // SAFETY: the caller's promise.
    unsafe {
        let c = |x| S::splat(x);
        let (s1, d1) = (S::add(m[1], m[2]), S::sub(m[2], m[1]));
        let (s2, d2) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
        let sixth = c(1.0 / 6.0);
        let first = S::fma(c(1.0 / 24.0), s2, S::mul(c(0.25), m[0]));
        [
            S::fma(c(-1.0 / 6.0), s1, first),
            S::fma(c(1.0 / 12.0), d2, S::mul(sixth, d1)),
            S::add(S::mul(sixth, S::sub(s2, s1)), m[5]),
        ]
    }
}

/// Applies a transform to columns and then to rows: `$n` by `$n` values from `$get(row, column)` to `$m` by `$m`
/// values for `$put(row, column, value)`.
macro_rules! two_sided {
    ($S:ty, $n:literal -> $m:literal, $transform:path, $get:expr, $put:expr) => {{
        let zero = <$S>::zero();
        let mut half = [[zero; $m]; $n];
        for q in 0..$n {
            let mut column = [zero; $n];
            for r in 0..$n {
                column[r] = $get(r, q);
            }
            half[q] = $transform(column);
        }
        for r in 0..$m {
            let mut row = [zero; $n];
            for q in 0..$n {
                row[q] = half[q][r];
            }
            let done = $transform(row);
            for q in 0..$m {
                $put(r, q, done[q]);
            }
        }
    }};
}
pub(super) use two_sided;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    type S = Portable;

    fn lane<const N: usize>(v: [f32; N]) -> [[f32; 4]; N] {
        v.map(|x| [x; 4])
    }

    /// A side with `T` outputs: the correlation, and the filter's gradient.
    fn side<const T: usize>(d: [f32; 6], g: [f32; 3], dy: [f32; 6]) -> ([f32; 6], [f32; 3]) {
        // SAFETY: the portable set is always available.
        unsafe {
            let (v, u) = (Input::apply::<S, T>(lane(d)), filter::<S>(lane(g)));
            let (mut m, mut w) = ([[f32::NAN; 4]; 6], [[0.0; 4]; 6]);
            let e = OutputAdjoint::apply::<S, T>(lane(dy));
            for i in (0..6).filter(|&i| has_point(T, i)) {
                (m[i], w[i]) = (S::mul(v[i], u[i]), S::mul(v[i], e[i]));
            }
            (Output::apply::<S, T>(m).map(|y| y[0]), filter_adjoint::<S>(w).map(|dg| dg[0]))
        }
    }

    #[test]
    fn shorter_sides_share_the_transformed_filter() {
        let (d, g) = ([0.3, -1.2, 0.7, 2.0, -0.4, 1.1], [0.5, -0.9, 1.3]);
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
    fn a_side_has_six_points_a_tile_and_fewer_at_its_end() {
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8, 14].map(side_points), [4, 4, 5, 6, 10, 10, 11, 12, 22]);
    }

    #[test]
    fn one_dimension_is_a_correlation_and_its_adjoint() {
        let (d, g, dy) = ([0.3, -1.2, 0.7, 2.0, -0.4, 1.1], [0.5, -0.9, 1.3], [1.0, -2.0, 0.25, 0.6]);
        // SAFETY: the portable set is always available.
        let (y, dg) = unsafe {
            let (v, u) = (input::<S>(lane(d)), filter::<S>(lane(g)));
            let mut m = v;
            (0..6).for_each(|i| m[i] = S::mul(v[i], u[i]));
            let e = output_adjoint::<S>(lane(dy));
            let mut w = v;
            (0..6).for_each(|i| w[i] = S::mul(v[i], e[i]));
            (output::<S>(m), filter_adjoint::<S>(w))
        };
        for i in 0..4 {
            let expected: f32 = (0..3).map(|t| d[i + t] * g[t]).sum();
            assert!((y[i][0] - expected).abs() < 1e-5);
        }
        for t in 0..3 {
            let expected: f32 = (0..4).map(|i| d[i + t] * dy[i]).sum();
            assert!((dg[t][0] - expected).abs() < 1e-5);
        }
    }
}
