//! What is to be solved: costs, two marginals, how strictly each must be met, and the regularisation.

use ndarray::{ArrayView1, ArrayView2};

use crate::cost::{CostSource, PointCost, Points};
use crate::error::{OtError, positive};
use crate::real::Real;

/// How strictly a marginal of the plan must be met.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Constraint {
    /// The plan's marginal equals the weights.
    Exact,
    /// `penalty · KL(marginal | weights)` is added to the objective, KL(p|q) = Σ p log(p/q) - p + q. The penalty is
    /// in cost units; the larger, the closer to `Exact`.
    Relaxed {
        /// Factor of the divergence, above 0.
        penalty: f64,
    },
    /// The plan's marginal is at most the weights (of a partial problem).
    AtMost,
}

impl Constraint {
    /// Maximiser of the dual in one potential, from the soft minimum that meets the marginal exactly.
    pub(crate) fn potential(self, soft_minimum: f64, epsilon: f64) -> f64 {
        match self {
            // A point all of whose pairs are forbidden: any finite number for a marginal of 0.
            Self::Exact if soft_minimum == f64::INFINITY => 0.0,
            Self::Relaxed { penalty } if soft_minimum == f64::INFINITY => (800.0 * penalty).min(1e300),
            Self::Exact => soft_minimum,
            Self::Relaxed { penalty } => soft_minimum * (penalty / (penalty + epsilon)),
            Self::AtMost => soft_minimum.min(0.0),
        }
    }

    /// What a unit of weight with this potential adds to the dual objective.
    pub(crate) fn dual(self, potential: f64) -> f64 {
        match self {
            Self::Exact | Self::AtMost => potential,
            Self::Relaxed { penalty } => -penalty * (-potential / penalty).exp_m1(),
        }
    }
}

/// One entropic transport problem between `n` sources and `m` targets.
///
/// ```text
/// minimise over P >= 0:  <C, P> + epsilon · KL(P | a bᵀ)
/// with P·1 = a and Pᵀ·1 = b, or what `relax_*` and `partial` put in their place
/// ```
///
/// The plan is `P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon)` with potentials `f`, `g` in cost units. For exact
/// marginals it is the plan of entropy-regularised transport in the sense of Cuturi 2013 (the two regularisers
/// differ by a constant); for relaxed ones the reference measure matters, and it is `a bᵀ` (Séjourné et al. 2019).
///
/// Points of weight 0 are allowed: they get no mass, and the potentials are extended to them.
#[derive(Clone, Debug)]
pub struct Problem<'a, T> {
    pub(crate) cost: CostSource<'a, T>,
    pub(crate) source: Vec<f64>,
    pub(crate) target: Vec<f64>,
    /// No weights were given: a sharded solve has to make them uniform over all shards.
    pub(crate) default_target: bool,
    pub(crate) source_constraint: Constraint,
    pub(crate) target_constraint: Constraint,
    pub(crate) mass: Option<f64>,
    pub(crate) epsilon: f64,
}

impl<'a, T: Real> Problem<'a, T> {
    /// From a cost matrix (n, m) of any strides; marginals are uniform until
    /// [`with_marginals`](Self::with_marginals). `epsilon` is in cost units.
    ///
    /// # Errors
    /// [`OtError::Empty`], [`OtError::NotFinite`] for a cost, [`OtError::Parameter`] for an `epsilon` that is not
    /// finite and above 0.
    pub fn from_cost(cost: ArrayView2<'a, T>, epsilon: f64) -> Result<Self, OtError> {
        Self::new(CostSource::matrix("cost", cost, 1.0, None)?, epsilon)
    }

    /// As [`from_cost`](Self::from_cost), but a cost of +infinity forbids its pair: the plan is 0 there. Whether what is
    /// left can carry the mass is found out by the solve ([`OtError::Infeasible`]).
    ///
    /// # Errors
    /// As [`from_cost`](Self::from_cost), for NaN and -infinity.
    pub fn from_masked_cost(cost: ArrayView2<'a, T>, epsilon: f64) -> Result<Self, OtError> {
        Self::new(CostSource::matrix("cost", cost, 1.0, Some(T::infinity()))?, epsilon)
    }

    /// From scores (n, m) that the plan should maximise: the cost is `-scores`, without a copy.
    ///
    /// # Errors
    /// As [`from_cost`](Self::from_cost).
    pub fn from_scores(scores: ArrayView2<'a, T>, epsilon: f64) -> Result<Self, OtError> {
        Self::new(CostSource::matrix("scores", scores, -1.0, None)?, epsilon)
    }

    /// As [`from_scores`](Self::from_scores), but a score of -infinity forbids its pair, as in
    /// [`from_masked_cost`](Self::from_masked_cost).
    ///
    /// # Errors
    /// As [`from_cost`](Self::from_cost), for NaN and +infinity.
    pub fn from_masked_scores(scores: ArrayView2<'a, T>, epsilon: f64) -> Result<Self, OtError> {
        Self::new(CostSource::matrix("scores", scores, -1.0, Some(T::neg_infinity()))?, epsilon)
    }

    /// From two clouds of points (n, d) and (m, d). Costs are computed when they are needed; unless a solver in the
    /// scaling domain is asked for, no matrix is kept. A [`PointCost::Custom`] of +infinity forbids its pair, as in
    /// [`from_masked_cost`](Self::from_masked_cost).
    ///
    /// # Errors
    /// As [`from_cost`](Self::from_cost), for coordinates; [`OtError::Shape`] if the dimensions differ. Costs that are
    /// computed are looked at by the solve.
    pub fn from_points(
        source: ArrayView2<T>,
        target: ArrayView2<T>,
        cost: PointCost<'a, T>,
        epsilon: f64,
    ) -> Result<Self, OtError> {
        Self::new(CostSource::Points(Box::new(Points::new(source, target, cost)?)), epsilon)
    }

    fn new(cost: CostSource<'a, T>, epsilon: f64) -> Result<Self, OtError> {
        positive("epsilon", epsilon)?;
        let (n, m) = cost.dim();
        if n == 0 {
            return Err(OtError::Empty { what: "sources" });
        }
        // A shard may be without targets, so their number is checked when the problem is solved.
        Ok(Self {
            cost,
            source: vec![1.0 / n as f64; n],
            target: vec![1.0 / m as f64; m],
            default_target: true,
            source_constraint: Constraint::Exact,
            target_constraint: Constraint::Exact,
            mass: None,
            epsilon,
        })
    }

    /// Sets both marginals, of n and m weights that are at least 0 and not all 0. They need not sum to 1. With exact
    /// marginals the sums must agree up to rounding of the type; the target's is then made equal to the source's.
    ///
    /// # Errors
    /// [`OtError::Shape`], [`OtError::NotFinite`], [`OtError::NegativeWeight`], [`OtError::NoMass`]. Unequal masses
    /// are reported by the solve, which knows whether they must be equal.
    pub fn with_marginals(mut self, source: ArrayView1<T>, target: ArrayView1<T>) -> Result<Self, OtError> {
        let (n, m) = self.dim();
        self.source = weights("source weights", source, n)?;
        self.target = weights("target weights", target, m)?;
        self.default_target = false;
        Ok(self)
    }

    /// Lets the plan's first marginal differ from the source weights at a price: see [`Constraint::Relaxed`].
    ///
    /// # Errors
    /// [`OtError::Parameter`] if `penalty` is not finite and above 0.
    pub fn relax_source(mut self, penalty: f64) -> Result<Self, OtError> {
        self.source_constraint = Constraint::Relaxed { penalty: positive("source penalty", penalty)? };
        self.mass = None;
        Ok(self)
    }

    /// As [`relax_source`](Self::relax_source), for the second marginal.
    ///
    /// # Errors
    /// [`OtError::Parameter`] if `penalty` is not finite and above 0.
    pub fn relax_target(mut self, penalty: f64) -> Result<Self, OtError> {
        self.target_constraint = Constraint::Relaxed { penalty: positive("target penalty", penalty)? };
        self.mass = None;
        Ok(self)
    }

    /// Relaxes both marginals with the same penalty.
    ///
    /// # Errors
    /// [`OtError::Parameter`] if `penalty` is not finite and above 0.
    pub fn relax(self, penalty: f64) -> Result<Self, OtError> {
        self.relax_source(penalty)?.relax_target(penalty)
    }

    /// Transports only `mass`: `P·1 <= a`, `Pᵀ·1 <= b`, total of P equal to `mass` (Benamou et al. 2015, section 5;
    /// solved by alternating maximisation of the dual, which is their Dykstra iteration).
    ///
    /// # Errors
    /// [`OtError::Parameter`] unless `0 < mass <= min(Σ a, Σ b)`. Set the marginals first.
    pub fn partial(mut self, mass: f64) -> Result<Self, OtError> {
        let most = self.source.iter().sum::<f64>().min(self.target.iter().sum());
        if !(mass > 0.0 && mass <= most * (1.0 + mass_tolerance::<T>())) {
            return Err(OtError::Parameter {
                name: "transported mass",
                expected: "above 0 and at most the smaller total weight",
                got: mass,
            });
        }
        self.source_constraint = Constraint::AtMost;
        self.target_constraint = Constraint::AtMost;
        self.mass = Some(mass.min(most));
        Ok(self)
    }

    /// The same problem with another regularisation.
    ///
    /// # Errors
    /// [`OtError::Parameter`] if `epsilon` is not finite and above 0.
    pub fn with_epsilon(mut self, epsilon: f64) -> Result<Self, OtError> {
        self.epsilon = positive("epsilon", epsilon)?;
        Ok(self)
    }

    /// (sources n, targets m).
    pub fn dim(&self) -> (usize, usize) {
        self.cost.dim()
    }

    /// The regularisation, in cost units.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// Weights of the sources.
    pub fn source_weights(&self) -> &[f64] {
        &self.source
    }

    /// Weights of the targets.
    pub fn target_weights(&self) -> &[f64] {
        &self.target
    }

    /// Constraints on the plan's two marginals.
    pub fn constraints(&self) -> (Constraint, Constraint) {
        (self.source_constraint, self.target_constraint)
    }

    /// Whether both marginals are exact.
    pub fn is_balanced(&self) -> bool {
        self.source_constraint == Constraint::Exact && self.target_constraint == Constraint::Exact
    }

    /// Factor that makes the mass of the targets that of the sources, where both are exact.
    pub(crate) fn target_scale(&self, source_mass: f64, target_mass: f64) -> Result<f64, OtError> {
        for (what, total) in [("source weights", source_mass), ("target weights", target_mass)] {
            if !(total > 0.0 && total.is_finite()) {
                return Err(OtError::NoMass { what, total });
            }
        }
        if !self.is_balanced() {
            return Ok(1.0);
        }
        if (source_mass - target_mass).abs() > mass_tolerance::<T>() * source_mass.max(target_mass) {
            return Err(OtError::Unbalanced { source_mass, target_mass });
        }
        Ok(source_mass / target_mass)
    }
}

/// Relative difference of masses that rounding of the weights explains.
pub(crate) fn mass_tolerance<T: Real>() -> f64 {
    T::epsilon().wide().sqrt()
}

pub(crate) fn weights<T: Real>(
    what: &'static str,
    values: ArrayView1<T>,
    length: usize,
) -> Result<Vec<f64>, OtError> {
    if values.len() != length {
        return Err(OtError::Shape { what, expected: vec![length], got: vec![values.len()] });
    }
    for (index, value) in values.iter().enumerate() {
        if !value.is_finite() {
            return Err(OtError::NotFinite { what, index: vec![index], value: value.wide() });
        }
        if *value < T::zero() {
            return Err(OtError::NegativeWeight { what, index, value: value.wide() });
        }
    }
    let weights: Vec<f64> = values.iter().map(|w| w.wide()).collect();
    let total: f64 = weights.iter().sum();
    if length > 0 && !(total > 0.0 && total.is_finite()) {
        return Err(OtError::NoMass { what, total });
    }
    Ok(weights)
}
