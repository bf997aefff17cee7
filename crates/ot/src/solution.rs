//! What a solve gives: potentials, how it ended, and the plan and costs on demand.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis};

use crate::cost::check_finite;
use crate::error::OtError;
use crate::options::Method;
use crate::outcome::{Potentials, Record, Status, Summary};
use crate::pages;
use crate::plan::PlanRows;
use crate::problem::{Constraint, Problem};
use crate::real::Real;
use crate::simd::{self, Isa};

/// The solution of a [`Problem`]. The plan is computed when it is asked for, or applied without being formed.
#[derive(Clone, Debug)]
#[must_use]
pub struct Solution<'p, 'a, T> {
    pub(crate) problem: &'p Problem<'a, T>,
    pub(crate) potentials: Potentials,
    /// Part of `f` that belongs to the mass constraint of a partial problem.
    pub(crate) lambda: f64,
    summary: Summary,
    tolerance: f64,
    history: Vec<Record>,
    pub(crate) target_scale: f64,
    /// Some pairs are forbidden.
    pub(crate) masked: bool,
}

/// What a solver tells of a solve besides the potentials.
pub(crate) struct Solved {
    pub(crate) lambda: f64,
    pub(crate) target_scale: f64,
    pub(crate) masked: bool,
    pub(crate) summary: Summary,
    pub(crate) tolerance: f64,
    pub(crate) history: Vec<Record>,
}

/// The three values of a solved problem. At convergence `entropic` and `dual` agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// `<C, P>`, the cost of moving the mass as the plan says.
    pub transport: f64,
    /// The objective: `<C, P> + ε KL(P | a bᵀ)`, plus `penalty · KL(marginal | weights)` of each relaxed marginal,
    /// with `KL(p|q) = Σ p log(p/q) - p + q`.
    pub entropic: f64,
    /// The dual objective at the potentials: `Σ a φ(f) + Σ b φ(g) - ε Σ (P - a bᵀ)`, `φ(x) = x` for exact and bounded
    /// marginals and `penalty · (1 - exp(-x / penalty))` for relaxed ones; a partial problem adds the multiplier of
    /// its mass times the mass.
    pub dual: f64,
}

impl<'p, 'a, T: Real> Solution<'p, 'a, T> {
    pub(crate) fn new(problem: &'p Problem<'a, T>, potentials: Potentials, solved: Solved) -> Self {
        let Solved { lambda, target_scale, masked, summary, tolerance, history } = solved;
        Self { problem, potentials, lambda, summary, tolerance, history, target_scale, masked }
    }

    /// How the solve ended.
    pub fn status(&self) -> Status {
        self.summary.status
    }

    /// Itself if the solve converged.
    ///
    /// # Errors
    /// [`OtError::NotConverged`].
    pub fn converged(self) -> Result<Self, OtError> {
        match self.summary.status {
            Status::Converged => Ok(self),
            status => Err(OtError::NotConverged {
                status,
                n_iters: self.summary.n_iters,
                residual: self.summary.residual,
                tolerance: self.tolerance,
            }),
        }
    }

    /// Sweeps done, over all stages of annealing.
    pub fn n_iters(&self) -> usize {
        self.summary.n_iters
    }

    /// The residual of this solution, relative to the source's mass.
    pub fn residual(&self) -> f64 {
        self.summary.residual
    }

    /// How the solve ended, what it took, and what rounding allows.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// The epsilon of this plan: the problem's, unless that is too small for the type; see [`Summary::epsilon`].
    pub fn epsilon(&self) -> f64 {
        self.summary.epsilon
    }

    /// The arithmetic that the solution comes from; never `Auto`.
    pub fn method(&self) -> Method {
        self.summary.method
    }

    /// Epsilon and residual of every sweep.
    pub fn history(&self) -> &[Record] {
        &self.history
    }

    /// The dual potentials, in cost units.
    pub fn potentials(&self) -> &Potentials {
        &self.potentials
    }

    /// The dual potentials, in cost units.
    pub fn into_potentials(self) -> Potentials {
        self.potentials
    }

    pub(crate) fn rows(&self) -> PlanRows<'_, 'a, T> {
        PlanRows {
            problem: self.problem,
            f: self.potentials.f.as_slice().expect("an owned vector is contiguous"),
            g: self.potentials.g.as_slice().expect("an owned vector is contiguous"),
            target_scale: self.target_scale,
            epsilon: self.summary.epsilon,
        }
    }

    /// The plan P (n, m), in memory.
    pub fn plan(&self) -> Array2<T> {
        let (n, m) = self.problem.dim();
        let mut plan = pages::zeros(n * m);
        self.rows().write(&mut plan);
        Array2::from_shape_vec((n, m), plan).expect("n rows of m numbers")
    }

    /// The plan P (n, m), into the caller's memory: writing to a fresh matrix takes twice as long as to one that has
    /// been in use.
    ///
    /// # Errors
    /// [`OtError::Shape`].
    pub fn plan_into(&self, mut plan: ArrayViewMut2<T>) -> Result<(), OtError> {
        let (n, m) = self.problem.dim();
        if plan.dim() != (n, m) {
            return Err(OtError::Shape { what: "plan", expected: vec![n, m], got: plan.shape().to_vec() });
        }
        match plan.as_slice_mut() {
            Some(plan) => self.rows().write(plan),
            None => plan.assign(&self.plan()),
        }
        Ok(())
    }

    /// `P·values` (n) for `values` on the targets (m).
    ///
    /// # Errors
    /// [`OtError::Shape`], [`OtError::NotFinite`] for a value, [`OtError::Overflow`].
    pub fn apply(&self, values: ArrayView1<T>) -> Result<Array1<T>, OtError> {
        let values = values.insert_axis(Axis(1));
        Ok(self.apply_columns(values)?.remove_axis(Axis(1)))
    }

    /// `P·values` (n, d) for `values` on the targets (m, d).
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn apply_columns(&self, values: ArrayView2<T>) -> Result<Array2<T>, OtError> {
        self.product(values, false)
    }

    /// Where each source goes on average: `(P·values)_i / Σ_j P_ij` (n, d) for `values` (m, d), such as the targets'
    /// positions or colours. Sources without mass get the average that a vanishing mass would get, and 0 where all their pairs
    /// are forbidden.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn barycentric(&self, values: ArrayView2<T>) -> Result<Array2<T>, OtError> {
        self.product(values, true)
    }

    fn product(&self, values: ArrayView2<T>, normalise: bool) -> Result<Array2<T>, OtError> {
        let (n, m) = self.problem.dim();
        if values.nrows() != m {
            return Err(OtError::Shape {
                what: "values on the targets",
                expected: vec![m, values.ncols()],
                got: values.shape().to_vec(),
            });
        }
        check_finite("values on the targets", values)?;
        let d = values.ncols();
        let isa = Isa::detect();
        let by_column: Vec<f64> = values.t().iter().map(|v| v.wide()).collect();
        let mut out = vec![T::zero(); n * d];
        let rows = self.rows();
        let epsilon = self.summary.epsilon;
        let scale = self.problem.cost.sign() / epsilon;
        let offsets: Vec<f64> = (0..m).map(|j| rows.g[j] / epsilon + rows.target(j).ln()).collect();
        rows.visit(&mut out, d, 0, |row, out, _| {
            let mut total = 1.0;
            if normalise {
                // Shifted by its maximum: a row of no mass still has its direction.
                let top = simd::exponents(isa, row.costs, scale, &offsets, row.plan);
                if top == f64::NEG_INFINITY {
                    return;
                }
                total = simd::exp_sum(isa, row.plan, top);
            }
            for (out, values) in out.iter_mut().zip(by_column.chunks_exact(m)) {
                *out = T::of(simd::dot(isa, row.plan, values) / total);
            }
        });
        self.finite("the plan times values", &out)?;
        Ok(Array2::from_shape_vec((n, d), out).expect("n rows of d numbers"))
    }

    /// Checks what leaves the crate.
    pub(crate) fn finite(&self, what: &'static str, values: &[T]) -> Result<(), OtError> {
        if values.iter().all(|value| value.is_finite()) {
            Ok(())
        } else {
            Err(OtError::Overflow { what, n_iters: self.summary.n_iters })
        }
    }

    /// `Pᵀ·values` (m) for `values` on the sources (n).
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn apply_transposed(&self, values: ArrayView1<T>) -> Result<Array1<T>, OtError> {
        let (n, m) = self.problem.dim();
        if values.len() != n {
            return Err(OtError::Shape {
                what: "values on the sources",
                expected: vec![n],
                got: vec![values.len()],
            });
        }
        check_finite("values on the sources", values.insert_axis(Axis(1)))?;
        let isa = Isa::detect();
        let sums = self.rows().visit(&mut [(); 0], 0, m, |row, _, sums| {
            simd::axpy(isa, row.plan, values[row.i].wide(), sums);
        });
        let sums: Vec<T> = sums.into_iter().map(T::of).collect();
        self.finite("the plan times values", &sums)?;
        Ok(Array1::from(sums))
    }

    /// The plan's marginals `P·1` (n) and `Pᵀ·1` (m).
    pub fn marginals(&self) -> (Array1<f64>, Array1<f64>) {
        let (n, m) = self.problem.dim();
        let isa = Isa::detect();
        let mut source = vec![0.0; n];
        let target = self.rows().visit(&mut source, 1, m, |row, out, sums| {
            out[0] = row.plan.iter().sum();
            simd::axpy(isa, row.plan, 1.0, sums);
        });
        (Array1::from(source), Array1::from(target))
    }

    /// Transport, entropic and dual cost, in one pass over the plan.
    pub fn costs(&self) -> Costs {
        let (n, m) = self.problem.dim();
        let isa = Isa::detect();
        let sign = self.problem.cost.sign();
        let mut source = vec![(0.0, 0.0); n];
        let target = self.rows().visit(&mut source, 1, m, |row, out, sums| {
            // A forbidden pair has no mass and no finite cost.
            let terms = row.plan.iter().zip(row.costs).filter(|(p, _)| **p > 0.0);
            let cost: f64 = terms.map(|(&p, &c)| p * c.wide()).sum();
            out[0] = (row.plan.iter().sum(), cost * sign);
            simd::axpy(isa, row.plan, 1.0, sums);
        });
        let rows = self.rows();
        let mass: f64 = source.iter().map(|(mass, _)| mass).sum();
        let transport = source.iter().map(|(_, cost)| cost).sum();
        let totals = self.problem.source.iter().sum::<f64>() * (0..m).map(|j| rows.target(j)).sum::<f64>();
        let regularisation = -self.summary.epsilon * (mass - totals);
        let sides = [(self.problem.source_constraint, self.lambda), (self.problem.target_constraint, 0.0)];
        let (mut entropic, mut dual) = (regularisation, regularisation);
        dual += self.lambda * self.problem.mass.unwrap_or(0.0);
        let source = (0..n).map(|i| (0, self.problem.source[i], rows.f[i], source[i].0));
        let target = (0..m).map(|j| (1, rows.target(j), rows.g[j], target[j]));
        for (side, weight, potential, marginal) in source.chain(target) {
            if weight == 0.0 {
                continue;
            }
            let (constraint, lambda) = sides[side];
            entropic += potential * marginal;
            dual += weight * constraint.dual(potential - lambda);
            if let Constraint::Relaxed { penalty } = constraint {
                let divergence = if marginal > 0.0 { marginal * (marginal / weight).ln() } else { 0.0 };
                entropic += penalty * (divergence - marginal + weight);
            }
        }
        Costs { transport, entropic, dual }
    }

    /// `<C, P>`; see [`Costs::transport`].
    pub fn transport_cost(&self) -> f64 {
        self.costs().transport
    }

    /// See [`Costs::entropic`].
    pub fn entropic_cost(&self) -> f64 {
        self.costs().entropic
    }

    /// See [`Costs::dual`].
    pub fn dual_cost(&self) -> f64 {
        self.costs().dual
    }
}
