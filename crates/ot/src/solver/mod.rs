//! The solver: what it needs, what it gives, and the epsilons that it goes through.

mod iteration;
mod newton;
mod progress;

use ndarray::Array1;

use crate::anderson::Anderson;
use crate::chunks;
use crate::collective::{Alone, Collective};
use crate::cost::CostRange;
use crate::engine::{Core, Engine, Side};
use crate::error::OtError;
use crate::feasible;
use crate::options::{Acceleration, Annealing, Fallback, Method, Options};
use crate::outcome::{Effort, Potentials, Record, Rung, Start, Status, Summary};
use crate::problem::{Constraint, Problem, mass_tolerance};
use crate::real::Real;
use crate::simd::Isa;
use crate::solution::{Solution, Solved};
use iteration::Stage;
use newton::Newton;
use progress::Best;

/// Spread of costs over epsilon above which `Auto` anneals.
const ANNEAL_ABOVE: f64 = 100.0;
/// Annealing starts at this fraction of the spread of costs.
const ANNEAL_START: f64 = 1.0 / 16.0;
/// Each stage has this times the epsilon of the one before.
const ANNEAL_FACTOR: f64 = 0.25;
/// A stage before the last ends at this residual.
const STAGE_TOLERANCE: f64 = 1e-2;
/// Sweeps of a stage before the last.
const STAGE_ITERS: usize = 100;
/// Columns up to which Newton's method is worth its steps, which take a time and memory of their square and more.
const NEWTON_COLUMNS: usize = 1024;
/// Logarithmic sweeps at the problem's epsilon, at least, before Newton's method; of those over a kernel twice as many.
const NEWTON_AFTER: usize = 200;

/// Options together with the memory that a solve needs; reused by the next solve.
///
/// After a first solve of a size, another of that size or less allocates nothing (with a matrix of costs whose
/// rows or columns are contiguous, or with points).
#[derive(Clone, Debug)]
pub struct Solver<T> {
    options: Options,
    engine: Engine<T>,
    anderson: Anderson,
    newton: Newton,
    g: Vec<f64>,
    g_next: Vec<f64>,
    /// Where a step that proves bad goes back to.
    g_safe: Vec<f64>,
    best: Best,
    /// Multiplier of a partial problem's mass.
    lambda: f64,
    /// What the last column update moved from `g` to `f`.
    shift: f64,
    history: Vec<Record>,
    /// What the sweeps compute with at present.
    arithmetic: Method,
    /// Acceleration has been given up.
    plain: bool,
    /// Sweeps in a row that the kernel could not do.
    n_weak: usize,
    effort: Effort,
    /// The problem has forbidden pairs.
    masked: bool,
    isa: Isa,
}

/// Solves with default options; see [`Solver::solve`].
///
/// # Errors
/// Those of [`Solver::solve`].
pub fn solve<'p, 'a, T: Real>(problem: &'p Problem<'a, T>) -> Result<Solution<'p, 'a, T>, OtError> {
    Solver::new(Options::default())?.solve(problem)
}

impl<T: Real> Solver<T> {
    /// A solver with these options.
    ///
    /// # Errors
    /// [`OtError::Parameter`] for an option outside its range.
    pub fn new(options: Options) -> Result<Self, OtError> {
        options.check()?;
        Ok(Self {
            options,
            engine: Engine::default(),
            anderson: Anderson::default(),
            newton: Newton::default(),
            g: Vec::new(),
            g_next: Vec::new(),
            g_safe: Vec::new(),
            best: Best::default(),
            lambda: 0.0,
            shift: 0.0,
            history: Vec::new(),
            arithmetic: Method::Auto,
            plain: false,
            n_weak: 0,
            effort: Effort::default(),
            masked: false,
            isa: Isa::detect(),
        })
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Solves from zero potentials. Not reaching the tolerance is no error: look at [`Solution::status`], or call
    /// [`Solution::converged`].
    ///
    /// # Errors
    /// [`OtError::Empty`], [`OtError::NoMass`], [`OtError::Unbalanced`], [`OtError::ScalingRange`] (only
    /// [`Method::Scaling`]), [`OtError::NotFinite`] for a computed cost, [`OtError::Infeasible`] where forbidden pairs leave
    /// no plan, [`OtError::Overflow`].
    pub fn solve<'p, 'a>(&mut self, problem: &'p Problem<'a, T>) -> Result<Solution<'p, 'a, T>, OtError> {
        self.solve_from(problem, Start::Zero)
    }

    /// Solves from given potentials.
    ///
    /// # Errors
    /// As [`solve`](Self::solve), and [`OtError::Shape`] or [`OtError::NotFinite`] for the potentials.
    pub fn solve_from<'p, 'a>(
        &mut self,
        problem: &'p Problem<'a, T>,
        start: Start,
    ) -> Result<Solution<'p, 'a, T>, OtError> {
        let (n, m) = problem.dim();
        let mut potentials = Potentials::zeros(n, m);
        let summary = self.solve_into(problem, start, &mut potentials)?;
        let target_scale = self.target_scale(problem)?;
        let (tolerance, history) = (self.options.tolerance, self.history.clone());
        Ok(Solution::new(
            problem,
            potentials,
            Solved { lambda: self.lambda, target_scale, masked: self.masked, summary, tolerance, history },
        ))
    }

    /// Solves into the caller's potentials and allocates nothing once the memory has grown. Of a partial problem
    /// the multiplier of the mass is added to `f`.
    ///
    /// # Errors
    /// As [`solve_from`](Self::solve_from).
    pub fn solve_into(
        &mut self,
        problem: &Problem<T>,
        start: Start,
        out: &mut Potentials,
    ) -> Result<Summary, OtError> {
        let (n, m) = problem.dim();
        chunks::on_pool(chunks::parallel(n * m), || self.run(problem, start, out, &mut Alone, false))
    }

    /// Solves one problem whose targets (columns) are spread over processes: each calls this with its own columns
    /// of the costs, its own target weights and the common source weights, and gets the common `f` and its own `g`.
    /// Without weights of their own, all targets of all processes weigh the same. A process may have no targets.
    ///
    /// Each sweep adds up n + 4 numbers. Newton's method is not used, and whether forbidden pairs leave a plan is not
    /// looked at: where they do not, the solve does not converge. The result equals the unsharded one up to the rounding of those sums.
    ///
    /// # Errors
    /// As [`solve_from`](Self::solve_from), and [`OtError::Collective`].
    pub fn solve_sharded(
        &mut self,
        problem: &Problem<T>,
        start: Start,
        out: &mut Potentials,
        collective: &mut dyn Collective,
    ) -> Result<Summary, OtError> {
        self.run(problem, start, out, collective, true)
    }

    /// The residuals of the last solve, one for each sweep.
    pub fn history(&self) -> &[Record] {
        &self.history
    }

    fn target_scale(&self, problem: &Problem<T>) -> Result<f64, OtError> {
        problem.target_scale(problem.source.iter().sum(), problem.target.iter().sum())
    }

    fn run(
        &mut self,
        problem: &Problem<T>,
        start: Start,
        out: &mut Potentials,
        collective: &mut dyn Collective,
        sharded: bool,
    ) -> Result<Summary, OtError> {
        let (n, m) = problem.dim();
        if m == 0 && !sharded {
            return Err(OtError::Empty { what: "targets" });
        }
        let source_mass: f64 = problem.source.iter().sum();
        // Mass of the targets, and their number.
        let mut targets = [problem.target.iter().sum::<f64>(), m as f64];
        collective.sum(&mut targets).map_err(OtError::Collective)?;
        let scale = if sharded && problem.default_target {
            if targets[1] == 0.0 {
                return Err(OtError::Empty { what: "targets" });
            }
            source_mass * m as f64 / targets[1]
        } else {
            problem.target_scale(source_mass, targets[0])?
        };
        // Sharded targets are streamed; else whichever side has slices in memory.
        let transposed = sharded || (!problem.cost.in_memory(false) && problem.cost.in_memory(true));
        let source = Side { weights: &problem.source, scale: 1.0, constraint: problem.source_constraint };
        let target = Side { weights: &problem.target, scale, constraint: problem.target_constraint };
        let (rows, columns) = if transposed { (target, source) } else { (source, target) };
        let core = Core { cost: &problem.cost, transposed, rows, columns, isa: self.isa };

        self.begin(&core, start, out, (n, m))?;
        self.engine.prepare(&core);
        let range = self.cost_range(&core, collective)?;
        let epsilon = range.resolved(problem.epsilon);
        let mass = problem.mass.unwrap_or(source_mass);
        if range.forbidden && !sharded {
            must_be_feasible(&core, problem)?;
        }
        self.arithmetic = self.choose(problem, &range, epsilon)?;
        self.masked = range.forbidden;
        let balanced = problem.is_balanced();
        let newton = balanced
            && !sharded
            && self.options.fallback != Fallback::Off
            && core.columns.weights.len() <= NEWTON_COLUMNS;
        let run = Run { core, range, epsilon, mass, partial: problem.mass.is_some(), balanced, newton };
        let status = self.stages(&run, start, collective)?;
        let status = self.take_best(&run, status)?;
        self.finish(&run, out, collective)?;
        let residual = self.best.residual;
        let resolution = self.resolution(&run, epsilon);
        let (n_iters, method, effort) = (self.history.len(), self.arithmetic, self.effort);
        Ok(Summary { status, n_iters, residual, resolution, epsilon, method, mass: self.best.mass, effort })
    }

    /// Goes back to the best iterate, and says how the solve ended with it.
    fn take_best(&mut self, run: &Run<T>, status: Status) -> Result<Status, OtError> {
        if !(self.best.residual.is_finite() && self.best.mass.is_finite()) {
            return Err(OtError::Overflow { what: "the residual", n_iters: self.history.len() });
        }
        self.g.copy_from_slice(&self.best.g);
        self.engine.found.f.copy_from_slice(&self.best.f);
        (self.lambda, self.shift) = (self.best.lambda, self.best.shift);
        Ok(match status {
            Status::Converged => status,
            _ if self.best.residual <= self.resolution(run, run.epsilon) => Status::Rounding,
            _ => status,
        })
    }

    /// Gives points without weight their potentials, hands all of them to the caller, and checks what can be made of them.
    fn finish(
        &mut self,
        run: &Run<T>,
        out: &mut Potentials,
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        let Run { core, epsilon, .. } = run;
        self.engine.extend_to_empty_columns(core, *epsilon, self.lambda, collective)?;
        for (j, g) in self.g.iter_mut().enumerate() {
            if core.columns.weights[j] == 0.0 {
                *g = core.columns.constraint.potential(self.engine.found.soft[j], *epsilon);
            }
        }
        let (out_rows, out_columns) =
            if core.transposed { (&mut out.g, &mut out.f) } else { (&mut out.f, &mut out.g) };
        self.engine.found.f.iter_mut().for_each(|f| *f += self.shift);
        store(out_rows, &self.engine.found.f);
        store(out_columns, &self.g);
        out.f += self.lambda;
        let overflow = |what| Err(OtError::Overflow { what, n_iters: self.history.len() });
        if out.f.iter().chain(&out.g).any(|potential| !potential.is_finite()) {
            return overflow("a potential");
        }
        // Whatever costs, plan and gradients are computed from a solution is then finite, too.
        let (of_rows, of_columns) = if core.transposed { (&out.g, &out.f) } else { (&out.f, &out.g) };
        let mut largest = run.mass.max(self.best.mass);
        let mut value = 0.0;
        for (side, potentials) in [(&core.rows, of_rows), (&core.columns, of_columns)] {
            largest = largest.max(side.mass());
            for (i, potential) in potentials.iter().enumerate() {
                let dual = side.constraint.dual(*potential).abs();
                value +=
                    side.weight(i) * dual.max(potential.abs()) + if dual.is_finite() { 0.0 } else { dual };
            }
        }
        value += largest * run.range.scale() + *epsilon * (1.0 + largest) * largest;
        if !value.is_finite() {
            return overflow("the cost of the solution");
        }
        if largest > 0.25 * T::max_value().wide() {
            return overflow("the mass of the plan in its type");
        }
        Ok(())
    }

    /// Puts the start into `g` and makes room.
    fn begin(
        &mut self,
        core: &Core<T>,
        start: Start,
        out: &Potentials,
        (n, m): (usize, usize),
    ) -> Result<(), OtError> {
        let columns = core.columns.weights.len();
        let potentials = match start {
            Start::Zero => None,
            Start::From(potentials) => Some(potentials),
            Start::Output => Some(out),
        };
        self.g.clear();
        if let Some(potentials) = potentials {
            for (what, values, length) in
                [("source potentials", &potentials.f, n), ("target potentials", &potentials.g, m)]
            {
                if values.len() != length {
                    return Err(OtError::Shape { what, expected: vec![length], got: vec![values.len()] });
                }
                if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                    return Err(OtError::NotFinite { what, index: vec![at], value: values[at] });
                }
            }
            let side = if core.transposed { &potentials.f } else { &potentials.g };
            self.g.extend(side.iter());
        } else {
            self.g.resize(columns, 0.0);
        }
        self.g_next.resize(columns, 0.0);
        self.g_safe.resize(columns, 0.0);
        if let Acceleration::Anderson { depth } = self.options.acceleration {
            self.anderson.prepare(depth, columns);
        }
        self.best.prepare(core.rows.weights.len(), columns);
        self.history.clear();
        self.history.reserve(self.options.max_iters.min(1 << 16));
        (self.lambda, self.shift, self.n_weak, self.plain) = (0.0, 0.0, 0, false);
        self.effort = Effort::default();
        Ok(())
    }

    fn cost_range(&mut self, core: &Core<T>, collective: &mut dyn Collective) -> Result<CostRange, OtError> {
        let local = self.engine.cost_range(core);
        let CostRange { low, high, forbidden } = *local.as_ref().unwrap_or(&CostRange::EMPTY);
        let flag = |set: bool| f64::from(u8::from(set));
        let mut extremes = [-low, high, flag(local.is_err()), flag(forbidden)];
        collective.max(&mut extremes).map_err(OtError::Collective)?;
        local?;
        if extremes[2] > 0.0 {
            return Err(OtError::NotFinite {
                what: "cost of points in another shard",
                index: Vec::new(),
                value: f64::NAN,
            });
        }
        let range = CostRange { low: -extremes[0], high: extremes[1], forbidden: extremes[3] > 0.0 };
        if range.low > range.high {
            // All pairs are forbidden.
            return Err(OtError::Infeasible { expected: core.rows.mass(), got: 0.0 });
        }
        if !range.spread().is_finite() {
            return Err(OtError::Overflow { what: "the spread of costs", n_iters: 0 });
        }
        Ok(range)
    }

    fn choose(&self, problem: &Problem<T>, range: &CostRange, epsilon: f64) -> Result<Method, OtError> {
        let spread = range.spread() / epsilon;
        let fits = spread <= T::SAFE_EXPONENT_RANGE;
        match self.options.method {
            Method::Scaling if !fits => {
                Err(OtError::ScalingRange { range: spread, limit: T::SAFE_EXPONENT_RANGE })
            }
            // Points are not kept as a matrix, and rows without any allowed pair have no scaling.
            Method::Auto if !problem.cost.is_matrix() || range.forbidden => Ok(Method::Log),
            Method::Auto if fits => Ok(Method::Scaling),
            Method::Auto => Ok(Method::Stabilised),
            method => Ok(method),
        }
    }

    /// Runs through the epsilons, and if that does not lead to the tolerance once more with Newton's method.
    fn stages(
        &mut self,
        run: &Run<T>,
        start: Start,
        collective: &mut dyn Collective,
    ) -> Result<Status, OtError> {
        let spread = run.range.spread();
        let wide = spread / run.epsilon > ANNEAL_ABOVE;
        let annealed = (spread * ANNEAL_START, ANNEAL_FACTOR);
        let cold = matches!(start, Start::Zero);
        let path = match self.options.annealing {
            Annealing::Auto if cold && wide && self.arithmetic != Method::Scaling => annealed,
            Annealing::From { start, factor } => (start, factor),
            _ => (run.epsilon, ANNEAL_FACTOR),
        };
        self.approach(run, path, collective)?;
        let columns = run.core.columns.weights.len();
        let patience = match self.arithmetic {
            _ if !run.newton => usize::MAX,
            Method::Log => columns.max(NEWTON_AFTER),
            _ => (5 * columns).max(2 * NEWTON_AFTER),
        };
        let (epsilon, tolerance) = (run.epsilon, self.options.tolerance);
        let last = |max_iters: usize| Stage { epsilon, tolerance, max_iters, last: true };
        let stage = last(self.left().min(patience));
        let status = self.iterate(run, stage, collective)?;
        let resolved = self.best.residual <= self.resolution(run, run.epsilon) && status == Status::Stalled;
        if status == Status::Converged || resolved || !run.newton || self.left() == 0 {
            return Ok(status);
        }
        self.effort.rung = Rung::Newton;
        self.arithmetic = Method::Log;
        self.approach(run, if wide { annealed } else { (run.epsilon, ANNEAL_FACTOR) }, collective)?;
        let stage = last(self.left());
        self.iterate(run, stage, collective)
    }

    /// Goes through the epsilons before the problem's own, from `first` on.
    fn approach(
        &mut self,
        run: &Run<T>,
        (first, factor): (f64, f64),
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        let mut epsilon = first;
        // One sweep is left for the problem's own epsilon.
        while epsilon > run.epsilon && self.left() > 1 {
            // Newton's method ends fast, and a group of points that little mass connects with the others has to come along:
            // it lags behind by ever more epsilons else.
            let exact = self.effort.rung == Rung::Newton;
            let rough =
                if exact { self.resolution(run, epsilon).min(STAGE_TOLERANCE) } else { STAGE_TOLERANCE };
            let tolerance = rough.max(self.options.tolerance);
            let max_iters = STAGE_ITERS.min(self.left() - 1);
            // How an approach ends does not matter: the next stage starts from wherever it came to.
            let _ = self.iterate(run, Stage { epsilon, tolerance, max_iters, last: false }, collective)?;
            epsilon *= factor;
        }
        Ok(())
    }

    /// Sweeps that may still be done.
    fn left(&self) -> usize {
        self.options.max_iters - self.history.len()
    }
}

/// What stays the same during one solve.
struct Run<'p, 'a, T> {
    core: Core<'p, 'a, T>,
    range: CostRange,
    /// The problem's, or the smallest that can be resolved.
    epsilon: f64,
    mass: f64,
    partial: bool,
    /// Both marginals are exact.
    balanced: bool,
    /// Newton's method is the last resort.
    newton: bool,
}

/// Checks that the allowed pairs can carry the mass of exact marginals, or that of a partial problem.
fn must_be_feasible<T: Real>(core: &Core<T>, problem: &Problem<T>) -> Result<(), OtError> {
    let exact = [core.rows, core.columns].into_iter().find(|side| side.constraint == Constraint::Exact);
    let Some(mass) = problem.mass.or(exact.map(|side| side.mass())) else { return Ok(()) };
    let tolerance = mass_tolerance::<T>() * mass;
    let got = feasible::most_mass(core, mass, tolerance);
    if mass - got > tolerance { Err(OtError::Infeasible { expected: mass, got }) } else { Ok(()) }
}

/// Copies into the caller's array, which is replaced only if its length differs.
fn store(out: &mut Array1<f64>, values: &[f64]) {
    if out.len() == values.len() {
        out.iter_mut().zip(values).for_each(|(out, &value)| *out = value);
    } else {
        *out = Array1::from(values.to_vec());
    }
}
