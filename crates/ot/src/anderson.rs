//! Acceleration of a fixed-point iteration by Anderson mixing.
//!
//! Walker and Ni 2011, type II: from the last few pairs (x, G(x)) the combination of the G(x) whose residual
//! `G(x) - x` is smallest in the weighted least-squares sense is the next iterate. Steps that raise the residual
//! are taken back by the caller, who restarts from the plain iterate.

use crate::simd::{self, Isa};

/// Largest depth; the normal equations have this many unknowns.
pub(crate) const MAX_DEPTH: usize = 16;

/// History of an accelerated iteration, with its memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Anderson {
    depth: usize,
    /// Differences of residuals (times the roots of the weights) and of mapped points, newest overwriting oldest.
    residual_steps: Vec<Vec<f64>>,
    point_steps: Vec<Vec<f64>>,
    /// Products of the residual steps with each other.
    gram: [[f64; MAX_DEPTH]; MAX_DEPTH],
    last_residual: Vec<f64>,
    last_point: Vec<f64>,
    stored: usize,
    next: usize,
    started: bool,
}

impl Anderson {
    /// Makes room for vectors of a length; forgets what was.
    pub(crate) fn prepare(&mut self, depth: usize, length: usize) {
        self.depth = depth;
        for steps in [&mut self.residual_steps, &mut self.point_steps] {
            steps.resize_with(depth, Vec::new);
            steps.iter_mut().for_each(|step| step.resize(length, 0.0));
        }
        self.last_residual.resize(length, 0.0);
        self.last_point.resize(length, 0.0);
        self.reset();
    }

    /// Forgets the history.
    pub(crate) fn reset(&mut self) {
        self.stored = 0;
        self.next = 0;
        self.started = false;
    }

    /// From `x` and `mapped = G(x)`, puts the next iterate into `x`. `weight(j)` is the importance of place j, the
    /// same in all steps. Gives false where that was the plain iterate.
    pub(crate) fn step(
        &mut self,
        isa: Isa,
        x: &mut [f64],
        mapped: &[f64],
        weight: impl Fn(usize) -> f64,
    ) -> bool {
        if self.started {
            let newest = self.next;
            let (residual_step, point_step) =
                (&mut self.residual_steps[newest], &mut self.point_steps[newest]);
            for j in 0..x.len() {
                let residual = weight(j).sqrt() * (mapped[j] - x[j]);
                residual_step[j] = residual - self.last_residual[j];
                point_step[j] = mapped[j] - self.last_point[j];
                self.last_residual[j] = residual;
            }
            self.next = (self.next + 1) % self.depth;
            self.stored = (self.stored + 1).min(self.depth);
            for k in 0..self.stored {
                let product = simd::dot(isa, &self.residual_steps[newest], &self.residual_steps[k]);
                self.gram[newest][k] = product;
                self.gram[k][newest] = product;
            }
        } else {
            for j in 0..x.len() {
                self.last_residual[j] = weight(j).sqrt() * (mapped[j] - x[j]);
            }
            self.started = true;
        }
        self.last_point.copy_from_slice(mapped);
        x.copy_from_slice(mapped);
        let Some(mix) = self.mix(isa) else { return false };
        for (step, &factor) in self.point_steps.iter().zip(&mix[..self.stored]) {
            simd::axpy(isa, step, -factor, x);
        }
        true
    }

    /// Least-squares coefficients by the normal equations, scaled to a unit diagonal and slightly regularised.
    fn mix(&self, isa: Isa) -> Option<[f64; MAX_DEPTH]> {
        let n = self.stored;
        if n == 0 {
            return None;
        }
        let mut matrix = self.gram;
        let mut right = [0.0; MAX_DEPTH];
        for (right, step) in right.iter_mut().zip(&self.residual_steps[..n]) {
            *right = simd::dot(isa, step, &self.last_residual);
        }
        let mut scale = [0.0; MAX_DEPTH];
        for k in 0..n {
            if !(matrix[k][k] > 0.0 && matrix[k][k].is_finite()) {
                return None;
            }
            scale[k] = matrix[k][k].sqrt().recip();
        }
        // Cholesky, in place, of the scaled matrix.
        for k in 0..n {
            for l in 0..=k {
                let mut value = matrix[k][l] * scale[k] * scale[l] + if k == l { 1e-10 } else { 0.0 };
                for i in 0..l {
                    value -= matrix[k][i] * matrix[l][i];
                }
                if k == l {
                    if value <= 0.0 {
                        return None;
                    }
                    matrix[k][k] = value.sqrt();
                } else {
                    matrix[k][l] = value / matrix[l][l];
                }
            }
        }
        let mut mix = [0.0; MAX_DEPTH];
        for k in 0..n {
            let known: f64 = (0..k).map(|i| matrix[k][i] * mix[i]).sum();
            mix[k] = (right[k] * scale[k] - known) / matrix[k][k];
        }
        for k in (0..n).rev() {
            let known: f64 = (k + 1..n).map(|i| matrix[i][k] * mix[i]).sum();
            mix[k] = (mix[k] - known) / matrix[k][k];
        }
        for k in 0..n {
            mix[k] *= scale[k];
        }
        mix[..n].iter().all(|c| c.is_finite()).then_some(mix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_iteration_ends_after_as_many_steps_as_it_has_modes() {
        let rates = [0.99, 0.9, 0.5, -0.3];
        let map = |x: &[f64]| -> Vec<f64> { x.iter().zip(rates).map(|(x, rate)| rate * x + 1.0).collect() };
        let mut anderson = Anderson::default();
        anderson.prepare(4, 4);
        let mut x = vec![0.0; 4];
        for _ in 0..12 {
            let mapped = map(&x);
            anderson.step(Isa::detect(), &mut x, &mapped, |_| 1.0);
        }
        for (x, rate) in x.iter().zip(rates) {
            assert!((x - 1.0 / (1.0 - rate)).abs() < 1e-4, "{x}");
        }
    }

    #[test]
    fn a_fixed_point_stays() {
        let mut anderson = Anderson::default();
        anderson.prepare(3, 2);
        let mut x = vec![1.0, 2.0];
        for _ in 0..5 {
            let mapped = x.clone();
            anderson.step(Isa::detect(), &mut x, &mapped, |_| 1.0);
        }
        assert_eq!(x, [1.0, 2.0]);
    }
}
