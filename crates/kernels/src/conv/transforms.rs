//! The matrices of Winograd's F(4×4, 3×3) (Lavin and Gray, "Fast algorithms for convolutional neural
//! networks", 2016, section 4.3), applied to vectors of channels: `Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A` for a tile `d` of
//! 6×6 inputs, a filter `g` of 3×3 and 4×4 outputs `Y`. The gradient of the filter is the adjoint,
//! `Gᵀ[(A dY Aᵀ) ⊙ (Bᵀ d B)]G`.

use crate::simd::Simd;

/// Points of the transformed tile: 6×6.
pub(super) const POINTS: usize = 36;

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
