//! Newton's method on the dual objective as a function of the column potentials, with Levenberg's damping.
//!
//! Where rows are exact, the objective's gradient is `b - c`, c being the plan's column marginals, and ε times its Hessian
//! is minus `L = diag(c) - Pᵀ diag(1/a) P`, the Laplacian of a graph of the columns that share rows (Brauer, Clason, Lorenz,
//! Wirth 2017). A sweep equates one column with the rows at a time; a step that solves `(L + μ diag(c)) δ = ε c ln(b / c)`
//! takes all of them together into account, and so whole groups of columns that little mass connects with the others, on
//! which sweeps spend most of their time. The right-hand side is that of Newton's method on `ln c = ln b`, which far from
//! the solution is better than `b - c`, and the same near it. μ is proportional to the residual, which makes steps in
//! poorly connected directions about ε long and does not slow down the end (Fan and Yuan 2005).

use crate::simd::{self, Isa};

/// μ over the residual, at first and at most.
const DAMPING: (f64, f64) = (1.0, 1e6);
/// What success and failure multiply it with.
const CHANGE: (f64, f64) = (0.25, 10.0);
/// Pivots below this part of their diagonal are rounding.
const ROUNDING: f64 = 1e-14;

/// The memory of Newton steps, and their damping.
#[derive(Clone, Debug, Default)]
pub(super) struct Newton {
    /// The coupling of columns in its lower triangle, then its Cholesky factor.
    pub(super) matrix: Vec<f64>,
    direction: Vec<f64>,
    damping: f64,
}

impl Newton {
    /// Forgets what was learnt about damping.
    pub(super) fn reset(&mut self) {
        self.damping = DAMPING.0;
    }

    /// Damps less after a step that was good, and more after one that was taken back.
    pub(super) fn learn(&mut self, good: bool) {
        self.damping = (self.damping * if good { CHANGE.0 } else { CHANGE.1 }).clamp(1e-9, DAMPING.1);
    }

    /// Moves `g` by a step; gives whether the result is finite (if not, `g` is as it was). `matrix` has to be the coupling
    /// of the plan at `g`, whose column marginals are `marginal`.
    pub(super) fn step(
        &mut self,
        isa: Isa,
        g: &mut [f64],
        (marginal, weights): (&[f64], impl Fn(usize) -> f64),
        epsilon: f64,
        residual: f64,
    ) -> bool {
        let m = g.len();
        let damping = (self.damping * residual.min(1.0)).max(ROUNDING);
        self.direction.resize(m, 0.0);
        for j in 0..m {
            let (c, b) = (marginal[j], weights(j));
            self.direction[j] = if c > 0.0 && b > 0.0 { c * (b / c).ln() } else { 0.0 };
        }
        // A constant changes nothing, so there is nothing to solve in its direction.
        let mass: f64 = marginal.iter().sum();
        let excess = self.direction.iter().sum::<f64>() / mass;
        self.direction.iter_mut().zip(marginal).for_each(|(rho, c)| *rho -= excess * c);
        self.laplacian(marginal, damping);
        self.factorise(isa, m);
        self.substitute(isa, m);
        // Nor do the potentials drift away as a whole: their rounding would grow.
        let moved: f64 = self.direction.iter().enumerate().map(|(j, delta)| weights(j) * delta).sum();
        let mean = moved / (0..m).map(&weights).sum::<f64>();
        if !(mean.is_finite() && self.direction.iter().all(|delta| delta.is_finite())) {
            return false;
        }
        g.iter_mut().zip(&self.direction).for_each(|(g, delta)| *g += epsilon * (delta - mean));
        true
    }

    /// `L + μ diag(c)` from the coupling. Rows of L sum to 0, so its diagonal is known from the others without cancellation.
    fn laplacian(&mut self, marginal: &[f64], damping: f64) {
        let m = marginal.len();
        for j in 0..m {
            self.matrix[j * m + j] = damping * marginal[j];
        }
        for j in 0..m {
            for k in 0..j {
                let coupling = self.matrix[j * m + k];
                self.matrix[j * m + k] = -coupling;
                self.matrix[j * m + j] += coupling;
                self.matrix[k * m + k] += coupling;
            }
        }
    }

    /// Cholesky, in place. A column without any mass keeps its potential.
    fn factorise(&mut self, isa: Isa, m: usize) {
        for k in 0..m {
            let (above, below) = self.matrix.split_at_mut(k * m);
            let row = &mut below[..=k];
            for l in 0..k {
                let pivot_row = &above[l * m..=l * m + l];
                row[l] = (row[l] - simd::dot(isa, &row[..l], &pivot_row[..l])) / pivot_row[l];
            }
            let diagonal = row[k];
            let pivot = diagonal - simd::dot(isa, &row[..k], &row[..k]);
            row[k] = if diagonal > 0.0 { pivot.max(ROUNDING * diagonal).sqrt() } else { 1.0 };
        }
    }

    /// Solves for the direction with both triangles.
    fn substitute(&mut self, isa: Isa, m: usize) {
        for k in 0..m {
            let row = &self.matrix[k * m..=k * m + k];
            self.direction[k] =
                (self.direction[k] - simd::dot(isa, &row[..k], &self.direction[..k])) / row[k];
        }
        for k in (0..m).rev() {
            let row = &self.matrix[k * m..=k * m + k];
            self.direction[k] /= row[k];
            let (before, here) = self.direction.split_at_mut(k);
            simd::axpy(isa, &row[..k], -here[0], before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_solves_its_equations() {
        // Columns coupled in a ring with one weak link, so that L is nearly of rank m - 2.
        let m = 7;
        let link = |j: usize| if j == 2 { 1e-9 } else { 0.1 + j as f64 * 0.01 };
        let mut newton = Newton { matrix: vec![0.0; m * m], ..Newton::default() };
        let mut dense = vec![vec![0.0; m]; m];
        for j in 0..m {
            let k = (j + 1) % m;
            let (low, high) = (j.min(k), j.max(k));
            newton.matrix[high * m + low] = link(j);
            dense[j][k] -= link(j);
            dense[k][j] -= link(j);
            dense[j][j] += link(j);
            dense[k][k] += link(j);
        }
        let marginal: Vec<f64> = (0..m).map(|j| 0.3 + j as f64 * 0.05).collect();
        let weights = |j: usize| marginal[(j + 3) % m];
        newton.reset();
        let (epsilon, residual) = (0.5, 1e-3);
        let mut g = vec![0.0; m];
        assert!(newton.step(Isa::detect(), &mut g, (&marginal, weights), epsilon, residual));
        let rho: Vec<f64> = (0..m).map(|j| marginal[j] * (weights(j) / marginal[j]).ln()).collect();
        // Up to a constant, of which a multiple of the marginal is left.
        let rest = |j: usize| {
            let product: f64 = (0..m).map(|k| dense[j][k] * g[k]).sum();
            (product - epsilon * rho[j]) / marginal[j] + residual * g[j]
        };
        for j in 0..m {
            assert!((rest(j) - rest(0)).abs() < 1e-10, "{j}: {} {}", rest(j), rest(0));
        }
        assert!((0..m).map(|j| weights(j) * g[j]).sum::<f64>().abs() < 1e-10);
    }
}
