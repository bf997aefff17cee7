//! Barycentres of histograms on a fixed support.

use ndarray::{Array1, ArrayView1, ArrayView2};

use crate::collective::Alone;
use crate::cost::{CostRange, CostSource};
use crate::engine::{Core, Domain, Dual, Engine, Side};
use crate::error::{OtError, positive};
use crate::outcome::Status;
use crate::problem::Constraint;
use crate::real::Real;
use crate::simd::Isa;

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
    /// Regularisation, in cost units; one too small for double precision is taken as the smallest that is not, as in
    /// [`Summary::epsilon`](crate::Summary::epsilon).
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
/// `histograms` (n, H) has one histogram per column; all must have the same mass. `weights` (H) are at least 0 and are
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
    positive("epsilon", options.epsilon)?;
    positive("tolerance", options.tolerance)?;
    if options.max_iters == 0 {
        return Err(OtError::Parameter { name: "max_iters", expected: "at least 1", got: 0.0 });
    }
    let inputs = Inputs::check(cost, histograms, weights)?;
    if !inputs.range.spread().is_finite() {
        return Err(OtError::Overflow { what: "the spread of costs", n_iters: 0 });
    }
    let mut projections = Projections::prepare(&inputs, inputs.range.resolved(options.epsilon));
    let (mut residual, mut n_iters, mut status) = (f64::INFINITY, 0, Status::IterationLimit);
    while n_iters < options.max_iters {
        projections.sweep(&inputs)?;
        let equal = n_iters == 0 && options.start == BarycentreStart::EqualWeights;
        residual = projections.meet(&inputs, equal);
        n_iters += 1;
        if !residual.is_finite() {
            return Err(OtError::Overflow { what: "the residual", n_iters });
        }
        if residual <= options.tolerance {
            status = Status::Converged;
            break;
        }
    }
    // Relative to the largest: the mean of very different plans may be below every number of the type.
    let top = projections.log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Array1<f64> = projections.log_weights.iter().map(|w| (w - top).exp()).collect();
    weights *= inputs.mass / weights.sum();
    if weights.iter().any(|w| !w.is_finite()) {
        return Err(OtError::Overflow { what: "a weight of the barycentre", n_iters });
    }
    Ok(Barycentre { weights, status, n_iters, residual })
}

/// What was given, checked.
struct Inputs<'a, T> {
    source: CostSource<'a, T>,
    range: CostRange,
    measures: Vec<Vec<f64>>,
    /// Weights of the histograms, of sum 1.
    shares: Vec<f64>,
    /// Mass of the first histogram, and up to rounding of all.
    mass: f64,
    /// A weight of 1 for each column.
    ones: Vec<f64>,
}

impl<'a, T: Real> Inputs<'a, T> {
    fn check(
        cost: ArrayView2<'a, T>,
        histograms: ArrayView2<T>,
        weights: ArrayView1<T>,
    ) -> Result<Self, OtError> {
        let source = CostSource::matrix("cost", cost, 1.0, None)?;
        let range = source.known_range().unwrap_or(CostRange::EMPTY);
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
        Ok(Self { source, range, measures, shares, mass, ones: vec![1.0; m] })
    }

    /// The problem of one histogram as the sweeps see it.
    fn core(&self, k: usize) -> Core<'_, 'a, T> {
        Core {
            cost: &self.source,
            transposed: false,
            rows: Side {
                weights: &self.measures[k],
                scale: self.mass / self.measures[k].iter().sum::<f64>(),
                constraint: Constraint::Exact,
            },
            columns: Side { weights: &self.ones, scale: 1.0, constraint: Constraint::Exact },
            isa: Isa::detect(),
        }
    }
}

/// The iterations' state: each histogram's column potentials, and what the last sweep gave for them.
struct Projections<T> {
    engine: Engine<T>,
    domain: Domain,
    epsilon: f64,
    g: Vec<Vec<f64>>,
    soft: Vec<Vec<f64>>,
    marginals: Vec<Vec<f64>>,
    /// Logarithm of the barycentre.
    log_weights: Vec<f64>,
}

impl<T: Real> Projections<T> {
    fn prepare(inputs: &Inputs<T>, epsilon: f64) -> Self {
        let mut engine = Engine::default();
        let core = inputs.core(0);
        engine.prepare(&core);
        engine.prepare_logarithmic(&core);
        // All histograms share one kernel, where the type can hold it.
        let mut domain = Domain::Logarithmic;
        if inputs.range.spread() / epsilon <= T::SAFE_EXPONENT_RANGE {
            domain = Domain::Kernel;
            engine.announce_kernel(&core, epsilon, &inputs.range);
        }
        let vectors = || vec![vec![0.0; inputs.ones.len()]; inputs.measures.len()];
        Self {
            engine,
            domain,
            epsilon,
            g: vectors(),
            soft: vectors(),
            marginals: vectors(),
            log_weights: vec![0.0; inputs.ones.len()],
        }
    }

    /// Projects every plan onto its histogram.
    fn sweep(&mut self, inputs: &Inputs<T>) -> Result<(), OtError> {
        for k in 0..self.g.len() {
            let (core, dual) = (inputs.core(k), Dual { epsilon: self.epsilon, lambda: 0.0, g: &self.g[k] });
            let totals = self.engine.sweep(self.domain, &core, dual, &mut Alone)?;
            if totals.weak > 0.0 {
                self.domain = Domain::Logarithmic;
                let _ = self.engine.sweep(self.domain, &core, dual, &mut Alone)?;
            }
            self.soft[k].copy_from_slice(&self.engine.found.soft);
            self.marginals[k].copy_from_slice(&self.engine.found.marginal);
        }
        Ok(())
    }

    /// Projects the plans onto a common marginal, the weighted geometric mean of theirs; gives the residual. With `equal` all
    /// histograms weigh the same in that mean.
    fn meet(&mut self, inputs: &Inputs<T>, equal: bool) -> f64 {
        let (n_histograms, epsilon) = (self.g.len(), self.epsilon);
        let share = |k: usize| if equal { 1.0 / n_histograms as f64 } else { inputs.shares[k] };
        for (j, log_weight) in self.log_weights.iter_mut().enumerate() {
            let term = |k: usize| share(k) * ((self.g[k][j] - self.soft[k][j]) / epsilon);
            *log_weight = (0..n_histograms).map(term).sum();
        }
        let mut residual = 0.0;
        for (k, g) in self.g.iter_mut().enumerate() {
            let marginals = self.marginals[k].iter().zip(&self.log_weights);
            let error: f64 =
                marginals.map(|(marginal, log_weight)| (marginal - log_weight.exp()).abs()).sum();
            residual += inputs.shares[k] * error / inputs.mass;
            for ((g, log_weight), soft) in g.iter_mut().zip(&self.log_weights).zip(&self.soft[k]) {
                *g = epsilon * log_weight + soft;
            }
        }
        residual
    }
}
