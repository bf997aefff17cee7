//! Barycentres of histograms on a fixed support.

use ndarray::{Array1, ArrayView1, ArrayView2};

use crate::collective::Alone;
use crate::cost::{CostSource, check_finite};
use crate::engine::{Core, Domain, Engine, Side};
use crate::error::{OtError, positive};
use crate::problem::Constraint;
use crate::real::Real;
use crate::simd::Isa;
use crate::solver::Status;

/// Which of the fixed points the iterations keep to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BarycentreStart {
    /// From zero potentials: the limit is the minimiser, `Σ_k weights_k g_k = 0`.
    #[default]
    Minimiser,
    /// The first geometric mean has equal weights, as in POT's `barycenter(method="sinkhorn")`. The iterations keep
    /// `Σ_k weights_k g_k`, so that for unequal weights the limit is the minimiser of a problem tilted by the start.
    /// For equal weights it is the same. (POT's `sinkhorn_log` gives the minimiser.)
    EqualWeights,
}

/// How a barycentre is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct BarycentreOptions {
    /// Regularisation, in cost units.
    pub epsilon: f64,
    /// Iterations stop at this residual, see [`Barycentre::residual`].
    pub tolerance: f64,
    /// Iterations at most.
    pub max_iters: usize,
    /// Which fixed point.
    pub start: BarycentreStart,
}

impl BarycentreOptions {
    /// A residual of 1e-6 within 10,000 iterations, from zero potentials.
    pub fn new(epsilon: f64) -> Self {
        Self { epsilon, tolerance: 1e-6, max_iters: 10_000, start: BarycentreStart::Minimiser }
    }

    /// Sets the tolerance.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Sets the iteration limit.
    #[must_use]
    pub fn max_iters(mut self, max_iters: usize) -> Self {
        self.max_iters = max_iters;
        self
    }

    /// Sets the start.
    #[must_use]
    pub fn start(mut self, start: BarycentreStart) -> Self {
        self.start = start;
        self
    }
}

/// A barycentre and how its computation ended.
#[derive(Clone, Debug)]
#[must_use]
pub struct Barycentre {
    /// Weights on the support (m); they sum to the mass of the histograms.
    pub weights: Array1<f64>,
    /// How the iterations ended.
    pub status: Status,
    /// Iterations done, each a sweep for every histogram.
    pub n_iters: usize,
    /// Weighted mean over the histograms of the L1 distance between their plan's marginal and the barycentre,
    /// relative to the mass.
    pub residual: f64,
}

/// The measure p on the m columns of `cost` (n, m) that minimises `Σ_k weights_k · OT(histograms_k, p)` with entropic
/// costs, by iterative Bregman projections (Benamou et al. 2015, section 3.2).
///
/// `histograms` (n, H) has one histogram a column; all must have the same mass. `weights` (H) are at least 0 and are
/// divided by their sum. As in that paper the entropy of a plan is taken without reference to its marginals; the
/// barycentre is therefore blurred by about `sqrt(epsilon)`.
///
/// # Errors
/// [`OtError::Shape`], [`OtError::Empty`], [`OtError::NotFinite`], [`OtError::NegativeWeight`], [`OtError::NoMass`],
/// [`OtError::Unbalanced`] for histograms of unequal mass, [`OtError::Parameter`].
pub fn barycentre<T: Real>(
    cost: ArrayView2<T>,
    histograms: ArrayView2<T>,
    weights: ArrayView1<T>,
    options: BarycentreOptions,
) -> Result<Barycentre, OtError> {
    let BarycentreOptions { epsilon, tolerance, max_iters, start } = options;
    positive("epsilon", epsilon)?;
    positive("tolerance", tolerance)?;
    let extremes = check_finite("cost", cost)?;
    let ((n, m), n_histograms) = (cost.dim(), histograms.ncols());
    if n == 0 || m == 0 || n_histograms == 0 {
        return Err(OtError::Empty { what: "cost or histograms" });
    }
    if histograms.nrows() != n {
        return Err(OtError::Shape {
            what: "histograms",
            expected: vec![n, n_histograms],
            got: histograms.shape().to_vec(),
        });
    }
    let shares = crate::problem::weights("barycentre weights", weights, n_histograms)?;
    let total: f64 = shares.iter().sum();
    let shares: Vec<f64> = shares.iter().map(|w| w / total).collect();
    let measures = histograms
        .columns()
        .into_iter()
        .map(|column| crate::problem::weights("histogram", column, n))
        .collect::<Result<Vec<_>, _>>()?;
    let mass: f64 = measures[0].iter().sum();
    for measure in &measures {
        let other: f64 = measure.iter().sum();
        if (other - mass).abs() > T::epsilon().wide().sqrt() * mass.max(other) {
            return Err(OtError::Unbalanced { source_mass: mass, target_mass: other });
        }
    }

    let source = CostSource::Matrix { matrix: cost, sign: 1.0, extremes };
    let ones = vec![1.0; m];
    let core = |k: usize| Core {
        cost: &source,
        transposed: false,
        rows: Side {
            weights: &measures[k],
            scale: mass / measures[k].iter().sum::<f64>(),
            constraint: Constraint::Exact,
        },
        columns: Side { weights: &ones, scale: 1.0, constraint: Constraint::Exact },
        isa: Isa::detect(),
    };
    let mut engine = Engine::default();
    engine.prepare(&core(0));
    let (low, high) = extremes;
    engine.prepare_logarithmic(&core(0));
    // All histograms share one kernel, where the type can hold it.
    let mut domain = Domain::Logarithmic;
    if (high - low) / epsilon <= T::SAFE_EXPONENT_RANGE {
        domain = Domain::Kernel;
        engine.announce_kernel(&core(0), epsilon, 0.5 * (low + high));
        engine.prepare_logarithmic(&core(0));
    }
    let mut g = vec![vec![0.0; m]; n_histograms];
    let mut soft = vec![vec![0.0; m]; n_histograms];
    let mut marginals = vec![vec![0.0; m]; n_histograms];
    let mut log_weights = vec![0.0; m];
    let (mut residual, mut n_iters, mut status) = (f64::INFINITY, 0, Status::IterationLimit);
    while n_iters < max_iters {
        for k in 0..n_histograms {
            let totals = engine.sweep(domain, &core(k), epsilon, 0.0, &g[k], &mut Alone)?;
            if totals.weak > 0.0 {
                domain = Domain::Logarithmic;
                let _ = engine.sweep(domain, &core(k), epsilon, 0.0, &g[k], &mut Alone)?;
            }
            soft[k].copy_from_slice(&engine.soft);
            marginals[k].copy_from_slice(&engine.marginal);
        }
        let equal = n_iters == 0 && start == BarycentreStart::EqualWeights;
        let share = |k: usize| if equal { 1.0 / n_histograms as f64 } else { shares[k] };
        for (j, log_weight) in log_weights.iter_mut().enumerate() {
            *log_weight = (0..n_histograms).map(|k| share(k) * ((g[k][j] - soft[k][j]) / epsilon)).sum();
        }
        residual = 0.0;
        for k in 0..n_histograms {
            let error: f64 = (0..m).map(|j| (marginals[k][j] - log_weights[j].exp()).abs()).sum();
            residual += shares[k] * error / mass;
            for j in 0..m {
                g[k][j] = epsilon * log_weights[j] + soft[k][j];
            }
        }
        n_iters += 1;
        if !residual.is_finite() {
            return Err(OtError::Overflow { what: "the residual", iters: n_iters });
        }
        if residual <= tolerance {
            status = Status::Converged;
            break;
        }
    }
    let mut weights: Array1<f64> = log_weights.iter().map(|w| w.exp()).collect();
    weights *= mass / weights.sum();
    if weights.iter().any(|w| !w.is_finite()) {
        return Err(OtError::Overflow { what: "a weight of the barycentre", iters: n_iters });
    }
    Ok(Barycentre { weights, status, n_iters, residual })
}
