//! Derivatives of the optimal entropic cost, by the envelope theorem: at the optimum the plan and the potentials
//! may be taken as constant, so no iteration is differentiated. They are as exact as the solve is converged.

use ndarray::{Array1, Array2, ArrayView1};

use crate::cost::{CostSource, PointCost, Points};
use crate::error::OtError;
use crate::problem::Constraint;
use crate::real::Real;
use crate::solution::Solution;

/// Which of the two clouds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// The sources.
    Source,
    /// The targets.
    Target,
}

impl<T: Real> Solution<'_, '_, T> {
    /// Derivative of the entropic cost by each cost: the plan (n, m).
    pub fn gradient_cost(&self) -> Array2<T> {
        self.plan()
    }

    /// Derivatives of the entropic cost by the source weights (n) and by the target weights (m).
    ///
    /// For exact marginals they are the potentials up to a constant, and only differences that keep the two masses
    /// equal have a meaning: `∂/∂a_i = φ(f_i) - ε (Σ_j P_ij / a_i - Σ b)` with φ as in [`Costs`](crate::Costs).
    pub fn gradient_weights(&self) -> (Array1<f64>, Array1<f64>) {
        let rows = self.rows();
        let (n, m) = self.problem.dim();
        let (source_total, target_total) =
            (self.problem.source.iter().sum::<f64>(), (0..m).map(|j| rows.target(j)).sum::<f64>());
        let (of_source, of_target) = self.problem.constraints();
        let (source_marginal, target_marginal) = self.marginals();
        let derivative =
            |constraint: Constraint, potential: f64, weight: f64, marginal: f64, other_total: f64| {
                let ratio = match constraint {
                    // Where there is no weight to divide by, optimality tells the ratio.
                    Constraint::Relaxed { penalty } if weight == 0.0 => (-potential / penalty).exp(),
                    _ if weight == 0.0 => 1.0,
                    _ => marginal / weight,
                };
                constraint.dual(potential) - self.epsilon() * (ratio - other_total)
            };
        let by_source = (0..n)
            .map(|i| {
                let potential = rows.f[i] - self.lambda;
                derivative(of_source, potential, self.problem.source[i], source_marginal[i], target_total)
            })
            .collect();
        let by_target = (0..m)
            .map(|j| derivative(of_target, rows.g[j], rows.target(j), target_marginal[j], source_total))
            .collect();
        (by_source, by_target)
    }

    /// Derivative of the entropic cost by the coordinates of one cloud, (n, d) or (m, d):
    /// `Σ_j P_ij ∂c(x_i, y_j) / ∂x_i`. At coinciding points the Euclidean distance has no derivative; 0 is taken.
    ///
    /// # Errors
    /// [`OtError::Unsupported`] for problems that are not made of points, or whose cost is a user's function;
    /// [`OtError::Overflow`].
    pub fn gradient_points(&self, cloud: Cloud) -> Result<Array2<T>, OtError> {
        let unsupported =
            |problem| OtError::Unsupported { operation: "the gradient with respect to points", problem };
        let points = match &self.problem.cost {
            CostSource::Matrix { .. } => return Err(unsupported("a problem with a matrix of costs")),
            CostSource::Points(points) => points,
        };
        if let PointCost::Custom(_) = points.cost {
            return Err(unsupported("a user's cost function"));
        }
        let (n, m) = self.problem.dim();
        let d = points.x.ncols();
        match cloud {
            Cloud::Source => {
                let mut gradient = vec![T::zero(); n * d];
                self.rows().visit(&mut gradient, d, 0, |row, out, _| {
                    let mut sum = vec![0.0; d];
                    for (&p, y) in row.plan.iter().zip(points.y.rows()) {
                        add_derivative(points, p, points.x.row(row.i), y, &mut sum);
                    }
                    out.iter_mut().zip(sum).for_each(|(out, value)| *out = T::of(value));
                });
                self.finite("the gradient with respect to points", &gradient)?;
                Ok(Array2::from_shape_vec((n, d), gradient).expect("n rows of d numbers"))
            }
            Cloud::Target => {
                let sums = self.rows().visit(&mut [(); 0], 0, m * d, |row, _, sums| {
                    for ((&p, y), sum) in
                        row.plan.iter().zip(points.y.rows()).zip(sums.chunks_exact_mut(d.max(1)))
                    {
                        add_derivative(points, p, y, points.x.row(row.i), sum);
                    }
                });
                let gradient: Vec<T> = sums.into_iter().map(T::of).collect();
                self.finite("the gradient with respect to points", &gradient)?;
                Ok(Array2::from_shape_vec((m, d), gradient).expect("m rows of d numbers"))
            }
        }
    }
}

/// `sum += p · ∂c(x, y) / ∂x`.
fn add_derivative<T: Real>(points: &Points<T>, p: f64, x: ArrayView1<T>, y: ArrayView1<T>, sum: &mut [f64]) {
    if p == 0.0 {
        return;
    }
    let pairs = || x.iter().zip(y).map(|(x, y)| (x.wide(), y.wide()));
    match points.cost {
        PointCost::SquaredEuclidean => {
            sum.iter_mut().zip(pairs()).for_each(|(sum, (x, y))| *sum += 2.0 * p * (x - y));
        }
        PointCost::Euclidean => {
            let distance = pairs().map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt();
            if distance > 0.0 {
                sum.iter_mut().zip(pairs()).for_each(|(sum, (x, y))| *sum += p * (x - y) / distance);
            }
        }
        PointCost::Cosine => {
            let (xx, yy, xy) =
                pairs().fold((0.0, 0.0, 0.0), |(xx, yy, xy), (x, y)| (xx + x * x, yy + y * y, xy + x * y));
            if xx > 0.0 && yy > 0.0 {
                let norms = (xx * yy).sqrt();
                sum.iter_mut().zip(pairs()).for_each(|(sum, (x, y))| {
                    *sum -= p * (y / norms - xy * x / (norms * xx));
                });
            }
        }
        PointCost::Custom(_) => unreachable!("refused by the caller"),
    }
}
