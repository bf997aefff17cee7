//! The Sinkhorn divergence: entropic transport without its bias, zero exactly between equal measures.

use ndarray::Array2;

use crate::cost::{CostSource, Points};
use crate::error::OtError;
use crate::gradient::Cloud;
use crate::outcome::Status;
use crate::problem::{Constraint, Problem};
use crate::real::Real;
use crate::solver::Solver;

/// The value of a Sinkhorn divergence, in two definitions.
#[derive(Clone, Debug)]
#[must_use]
pub struct Divergence<T> {
    /// `OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2 + ε (Σ a - Σ b)² / 2` of the entropic costs (Feydy et al. 2019;
    /// Séjourné et al. 2019 for relaxed marginals). Never negative for the costs here, convex in each measure.
    pub value: f64,
    /// The same combination of the transport costs `<C, P>` alone, without the last term (Genevay et al. 2018; what
    /// POT's `empirical_sinkhorn_divergence` computes before it clips at 0).
    pub transport: f64,
    /// Derivative of `value` by the source points (n, d); absent for user functions and matrices.
    pub gradient: Option<Array2<T>>,
    /// The worst of the three solves.
    pub status: Status,
}

/// The Sinkhorn divergence between the two clouds of a problem made of points. Its marginals, epsilon and
/// relaxations hold for all three problems (both sides must be treated alike).
///
/// ```
/// use ndarray::array;
/// use swav_ot::{Options, PointCost, Problem, Solver, sinkhorn_divergence};
///
/// let x = array![[0.0, 0.0], [1.0, 0.0]];
/// let problem = Problem::from_points(x.view(), x.view(), PointCost::SquaredEuclidean, 0.1)?;
/// let mut solver = Solver::new(Options::default().tolerance(1e-9))?;
/// assert!(sinkhorn_divergence(&problem, &mut solver)?.value.abs() < 1e-8);
/// # Ok::<(), swav_ot::OtError>(())
/// ```
///
/// # Errors
/// [`OtError::Unsupported`] for a matrix (see [`sinkhorn_divergence_of`]), a partial problem, or constraints that
/// differ; and those of [`Solver::solve`].
pub fn sinkhorn_divergence<T: Real>(
    problem: &Problem<T>,
    solver: &mut Solver<T>,
) -> Result<Divergence<T>, OtError> {
    let unsupported = |problem| OtError::Unsupported { operation: "a Sinkhorn divergence", problem };
    let points = match &problem.cost {
        CostSource::Points(points) => points,
        CostSource::Matrix { .. } => return Err(unsupported("a single matrix of costs")),
    };
    let alike = |cloud: &Array2<T>, weights: &[f64], scale: f64| -> Result<_, OtError> {
        let mut own = problem.clone();
        own.cost = CostSource::Points(Box::new(Points::new(cloud.view(), cloud.view(), points.cost)?));
        own.source = weights.iter().map(|w| w * scale).collect();
        own.target = own.source.clone();
        own.default_target = false;
        Ok(own)
    };
    let scale =
        problem.target_scale(problem.source.iter().sum::<f64>(), problem.target.iter().sum::<f64>())?;
    let of_source = alike(&points.x, &problem.source, 1.0)?;
    let of_target = alike(&points.y, &problem.target, scale)?;
    sinkhorn_divergence_of(problem, &of_source, &of_target, solver)
}

/// The Sinkhorn divergence from its three problems: between the measures, and of each with itself.
///
/// # Errors
/// [`OtError::Unsupported`] for partial problems or if a problem treats its sides differently; those of
/// [`Solver::solve`].
pub fn sinkhorn_divergence_of<T: Real>(
    between: &Problem<T>,
    of_source: &Problem<T>,
    of_target: &Problem<T>,
    solver: &mut Solver<T>,
) -> Result<Divergence<T>, OtError> {
    let sides = [between.constraints(), of_source.constraints(), of_target.constraints()];
    for (source, target) in sides {
        if source != target || source == Constraint::AtMost {
            return Err(OtError::Unsupported {
                operation: "a Sinkhorn divergence",
                problem: "partial problems or constraints that differ between the sides",
            });
        }
    }
    let (ab, aa, bb) = (solver.solve(between)?, solver.solve(of_source)?, solver.solve(of_target)?);
    let (cross, source, target) = (ab.costs(), aa.costs(), bb.costs());
    let difference = if between.is_balanced() {
        0.0
    } else {
        between.source.iter().sum::<f64>() - between.target.iter().sum::<f64>()
    };
    let gradient = match (ab.gradient_points(Cloud::Source), aa.gradient_points(Cloud::Source)) {
        // Both sides of OT(a, a) move with the points: half of twice its one-sided derivative.
        (Ok(cross), Ok(own)) => Some(cross - own),
        (Err(error @ OtError::Overflow { .. }), _) | (_, Err(error @ OtError::Overflow { .. })) => {
            return Err(error);
        }
        _ => None,
    };
    let statuses = [ab.status(), aa.status(), bb.status()];
    let status = statuses.into_iter().find(|s| *s != Status::Converged).unwrap_or(Status::Converged);
    let value = cross.dual - 0.5 * (source.dual + target.dual) + 0.5 * ab.epsilon() * difference * difference;
    let transport = cross.transport - 0.5 * (source.transport + target.transport);
    if !(value.is_finite() && transport.is_finite()) {
        return Err(OtError::Overflow { what: "the divergence", n_iters: ab.n_iters() });
    }
    Ok(Divergence { value, transport, gradient, status })
}
