//! Certified results: a plan that meets the marginals exactly, and bounds on the optimum without regularisation.

use ndarray::{Array1, Array2};

use crate::error::OtError;
use crate::real::Real;
use crate::simd::{self, Isa};
use crate::solution::Solution;

/// Bounds on the unregularised optimum `min <C, P>` over plans with the problem's marginals.
///
/// They hold however the solve ended: the upper bound is the cost of a feasible plan, the lower bound the value of
/// a feasible dual pair. Both are widened by the rounding error of their own sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Certificate {
    /// At most the optimum.
    pub lower: f64,
    /// At least the optimum.
    pub upper: f64,
}

impl Certificate {
    /// `upper - lower`: how far the rounded plan can be from optimal.
    pub fn gap(&self) -> f64 {
        self.upper - self.lower
    }
}

/// A plan with exactly the problem's marginals: the regularised plan with rows and columns that are too heavy
/// scaled down, and what is then missing spread as a rank-one matrix (Altschuler, Weed, Rigollet 2017, algorithm 2).
#[derive(Clone, Debug)]
pub struct RoundedPlan<'s, 'p, 'a, T> {
    solution: &'s Solution<'p, 'a, T>,
    row_factors: Vec<f64>,
    column_factors: Vec<f64>,
    missing_source: Vec<f64>,
    missing_target: Vec<f64>,
    missing: f64,
    cost: f64,
    /// Sum of the absolute values of the terms of `cost`.
    cost_scale: f64,
}

impl<'p, 'a, T: Real> Solution<'p, 'a, T> {
    /// Rounds the plan to one that meets both marginals exactly (to rounding of f64).
    ///
    /// # Errors
    /// [`OtError::Unsupported`] unless both marginals are exact and no pair is forbidden (the rounding moves mass between
    /// any two points).
    pub fn round(&self) -> Result<RoundedPlan<'_, 'p, 'a, T>, OtError> {
        self.must_be_balanced("rounding to a feasible plan")?;
        let (n, m) = self.problem.dim();
        let isa = Isa::detect();
        let rows = self.rows();
        let mut row_factors = vec![0.0; n];
        let columns = rows.visit(&mut row_factors, 1, m, |row, factor, sums| {
            let total: f64 = row.plan.iter().sum();
            let weight = self.problem.source[row.i];
            factor[0] = if total > weight { weight / total } else { 1.0 };
            simd::axpy(isa, row.plan, factor[0], sums);
        });
        let column_factors: Vec<f64> = columns
            .iter()
            .enumerate()
            .map(|(j, &total)| if total > rows.target(j) { rows.target(j) / total } else { 1.0 })
            .collect();
        let mut missing_source = vec![0.0; n];
        let columns = rows.visit(&mut missing_source, 1, m, |row, missing, sums| {
            simd::scale_row(isa, row.plan, &column_factors, row_factors[row.i]);
            missing[0] = (self.problem.source[row.i] - row.plan.iter().sum::<f64>()).max(0.0);
            simd::axpy(isa, row.plan, 1.0, sums);
        });
        let missing_target: Vec<f64> =
            columns.iter().enumerate().map(|(j, &total)| (rows.target(j) - total).max(0.0)).collect();
        let missing: f64 = missing_source.iter().sum();
        let mut rounded = RoundedPlan {
            solution: self,
            row_factors,
            column_factors,
            missing_source,
            missing_target,
            missing,
            cost: 0.0,
            cost_scale: 0.0,
        };
        let mut costs = vec![(0.0, 0.0); n];
        let sign = self.problem.cost.sign();
        rows.visit(&mut costs, 1, 0, |row, cost, _| {
            rounded.fill(row.i, row.plan);
            for (&p, &c) in row.plan.iter().zip(row.costs) {
                cost[0].0 += p * c.wide() * sign;
                cost[0].1 += (p * c.wide()).abs();
            }
        });
        rounded.cost = costs.iter().map(|(cost, _)| cost).sum();
        rounded.cost_scale = costs.iter().map(|(_, scale)| scale).sum();
        Ok(rounded)
    }

    /// Bounds on the unregularised optimum: the cost of the rounded plan, and the dual value of the potentials made
    /// feasible by two c-transforms, `f_i = min_j C_ij - g_j`, then `g_j = min_i C_ij - f_i`.
    ///
    /// # Errors
    /// As [`round`](Self::round).
    pub fn certificate(&self) -> Result<Certificate, OtError> {
        let rounded = self.round()?;
        let (n, m) = self.problem.dim();
        let rows = self.rows();
        let sign = self.problem.cost.sign();
        // Points without weight bind nothing.
        let mut f = vec![0.0; n];
        let minima = rows.visit_chunks(&mut f, 1, (m, f64::INFINITY), |row, f, minima| {
            f[0] = row
                .costs
                .iter()
                .enumerate()
                .filter(|(j, _)| self.problem.target[*j] > 0.0)
                .map(|(j, c)| c.wide() * sign - rows.g[j])
                .fold(f64::INFINITY, f64::min);
            if self.problem.source[row.i] > 0.0 {
                for (minimum, c) in minima.iter_mut().zip(row.costs) {
                    *minimum = minimum.min(c.wide() * sign - f[0]);
                }
            }
        });
        let mut terms: Vec<f64> = (0..n).map(|i| self.problem.source[i] * f[i]).collect();
        terms.extend((0..m).filter(|&j| self.problem.target[j] > 0.0).map(|j| {
            let g = minima[j..].iter().step_by(m).copied().fold(f64::INFINITY, f64::min);
            rows.target(j) * g
        }));
        let count = (n + m) as f64;
        let widen = |scale: f64| 2.0 * f64::EPSILON * (count + 8.0) * scale;
        let lower = terms.iter().sum::<f64>() - widen(terms.iter().map(|t| t.abs()).sum());
        let upper = rounded.cost + widen(rounded.cost_scale);
        Ok(Certificate { lower, upper })
    }

    fn must_be_balanced(&self, operation: &'static str) -> Result<(), OtError> {
        let problem = if !self.problem.is_balanced() {
            "a problem without exact marginals"
        } else if self.masked {
            "a problem with forbidden pairs"
        } else {
            return Ok(());
        };
        Err(OtError::Unsupported { operation, problem })
    }
}

impl<T: Real> RoundedPlan<'_, '_, '_, T> {
    /// `<C, P>` of this plan.
    pub fn cost(&self) -> f64 {
        self.cost
    }

    /// Mass that the regularised plan had to have moved to become feasible.
    pub fn moved_mass(&self) -> f64 {
        self.missing
    }

    /// The plan (n, m), in memory.
    pub fn plan(&self) -> Array2<f64> {
        let (n, m) = self.solution.problem.dim();
        let mut plan = vec![0.0; n * m];
        self.solution.rows().visit(&mut plan, m, 0, |row, out, _| {
            self.fill(row.i, row.plan);
            out.copy_from_slice(row.plan);
        });
        Array2::from_shape_vec((n, m), plan).expect("n rows of m numbers")
    }

    /// For each source, the target that gets most of its mass: an assignment, where the plan is one.
    pub fn strongest_targets(&self) -> Array1<usize> {
        let (n, _) = self.solution.problem.dim();
        let mut targets = vec![0usize; n];
        self.solution.rows().visit(&mut targets, 1, 0, |row, out, _| {
            self.fill(row.i, row.plan);
            let mut best = 0;
            for (j, &p) in row.plan.iter().enumerate() {
                if p > row.plan[best] {
                    best = j;
                }
            }
            out[0] = best;
        });
        Array1::from(targets)
    }

    /// Makes a row of the regularised plan one of this plan.
    fn fill(&self, i: usize, row: &mut [f64]) {
        let isa = Isa::detect();
        simd::scale_row(isa, row, &self.column_factors, self.row_factors[i]);
        if self.missing > 0.0 {
            simd::axpy(isa, &self.missing_target, self.missing_source[i] / self.missing, row);
        }
    }
}
