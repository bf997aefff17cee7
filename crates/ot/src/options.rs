//! How a problem is to be solved.

use crate::anderson::MAX_DEPTH;
use crate::error::{OtError, positive};

/// The arithmetic that the iterations begin with. All give the same plan; they differ in speed and in range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Method {
    /// `Scaling` where `(max C - min C) / epsilon` allows it, else `Stabilised`; `Log` for points, which then need
    /// no matrix in memory.
    #[default]
    Auto,
    /// Multiplications only, on a stored kernel; refuses problems whose kernel the type cannot hold.
    Scaling,
    /// As `Scaling`, but potentials are absorbed into the kernel before anything leaves its range.
    Stabilised,
    /// One exponential per element and sweep, in double precision for `f32` costs too; stores no kernel.
    Log,
}

/// Whether harder problems are approached through easier ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Annealing {
    /// Anneals where the costs spread over more than 100 epsilon and no potentials were given.
    #[default]
    Auto,
    /// Starts with the problem's own epsilon.
    Off,
    /// Solves roughly with `start`, then with `factor` times as much, and so on down to the problem's epsilon.
    From {
        /// First epsilon, in cost units.
        start: f64,
        /// Between 0 and 1.
        factor: f64,
    },
}

/// Acceleration of the iterations. It never changes what they converge to.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Acceleration {
    /// Plain Sinkhorn iterations.
    Off,
    /// Anderson mixing of the last `depth` iterations (1 to 16), taken back where a plain step would have raised the dual
    /// objective more (of relaxed problems: where it raises the residual). Plain for partial problems.
    Anderson {
        /// Iterations that are mixed.
        depth: usize,
    },
    /// Steps longer than the update asks for, by `factor` between 1 and 2; taken back as mixing is.
    OverRelaxation {
        /// Length of a step.
        factor: f64,
    },
}

/// The norm of the residual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Norm {
    /// Sum of absolute values: mass in the wrong place.
    #[default]
    L1,
    /// Root of the sum of squares: what POT stops by.
    L2,
}

/// Whether a solve may do otherwise than was asked where that gets nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fallback {
    /// Climbs the rungs of [`Rung`](crate::Rung), from where it stands, until the residual is within the tolerance or
    /// rounding lets it be no smaller. What that took is in [`Summary::effort`](crate::Summary::effort).
    #[default]
    Ladder,
    /// Keeps to the method and the acceleration that were chosen.
    Off,
}

/// How a problem is to be solved. [`check`](Self::check) is called by every solve.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Options {
    /// The arithmetic.
    pub method: Method,
    /// Stop when the residual, relative to the source's mass, is at most this. The residual is the change of the
    /// plan's column marginals by one update; with exact marginals that is their distance from the weights.
    pub tolerance: f64,
    /// Sweeps at most, over all stages of annealing and all rungs of the ladder. The course of a solve does not depend on
    /// it: a solve that converged converges again with as many sweeps as it took.
    pub max_iters: usize,
    /// Approach through larger epsilons.
    pub annealing: Annealing,
    /// Acceleration.
    pub acceleration: Acceleration,
    /// Norm of the residual.
    pub norm: Norm,
    /// Sweeps at one epsilon without progress, after which a rung of the ladder is given up; a tenth of them where the
    /// residual is as small as rounding lets it be. At least 1.
    pub stall_window: usize,
    /// Progress is a residual that fell by this share of the lowest one before, or a dual objective that rose by more than
    /// rounding. Between 0 and 1.
    pub stall_fall: f64,
    /// What to do without progress.
    pub fallback: Fallback,
}

impl Default for Options {
    /// Automatic method and annealing, Anderson mixing of 8 iterations, L1 residual of 1e-6, 10,000 iterations; the ladder,
    /// after 300 sweeps without a residual lower by a thousandth.
    fn default() -> Self {
        Self {
            method: Method::Auto,
            tolerance: 1e-6,
            max_iters: 10_000,
            annealing: Annealing::Auto,
            acceleration: Acceleration::Anderson { depth: 8 },
            norm: Norm::L1,
            stall_window: 300,
            stall_fall: 1e-3,
            fallback: Fallback::Ladder,
        }
    }
}

impl Options {
    /// Sets the method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
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

    /// Sets the annealing.
    #[must_use]
    pub fn annealing(mut self, annealing: Annealing) -> Self {
        self.annealing = annealing;
        self
    }

    /// Sets the acceleration.
    #[must_use]
    pub fn acceleration(mut self, acceleration: Acceleration) -> Self {
        self.acceleration = acceleration;
        self
    }

    /// Sets the norm of the residual.
    #[must_use]
    pub fn norm(mut self, norm: Norm) -> Self {
        self.norm = norm;
        self
    }

    /// Sets the sweeps without progress after which a rung is given up.
    #[must_use]
    pub fn stall_window(mut self, stall_window: usize) -> Self {
        self.stall_window = stall_window;
        self
    }

    /// Sets the share by which the residual has to fall.
    #[must_use]
    pub fn stall_fall(mut self, stall_fall: f64) -> Self {
        self.stall_fall = stall_fall;
        self
    }

    /// Sets what to do without progress.
    #[must_use]
    pub fn fallback(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// Checks all ranges.
    ///
    /// # Errors
    /// [`OtError::Parameter`] that names the first option outside its range.
    pub fn check(&self) -> Result<(), OtError> {
        let refuse = |name, expected, got| Err(OtError::Parameter { name, expected, got });
        positive("tolerance", self.tolerance)?;
        if self.max_iters == 0 {
            return refuse("max_iters", "at least 1", 0.0);
        }
        if self.stall_window == 0 {
            return refuse("stall window", "at least 1", 0.0);
        }
        if !(self.stall_fall > 0.0 && self.stall_fall < 1.0) {
            return refuse("stall fall", "between 0 and 1, both excluded", self.stall_fall);
        }
        if let Annealing::From { start, factor } = self.annealing {
            positive("annealing start", start)?;
            if !(factor > 0.0 && factor < 1.0) {
                return refuse("annealing factor", "between 0 and 1, both excluded", factor);
            }
        }
        match self.acceleration {
            Acceleration::Anderson { depth } if depth == 0 || depth > MAX_DEPTH => {
                refuse("Anderson depth", "1 to 16", depth as f64)
            }
            Acceleration::OverRelaxation { factor } if !(factor > 1.0 && factor < 2.0) => {
                refuse("over-relaxation factor", "between 1 and 2, both excluded", factor)
            }
            _ => Ok(()),
        }
    }
}
