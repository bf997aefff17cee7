//! The solver: stages of annealing, iterations, acceleration, absorption, and when to stop.

use ndarray::Array1;

use crate::anderson::Anderson;
use crate::chunks;
use crate::collective::{Alone, Collective};
use crate::engine::{Core, Domain, Dual, Engine, RowTotals, Side};
use crate::error::OtError;
use crate::options::{Acceleration, Annealing, Method, Norm, Options};
use crate::outcome::{Potentials, Record, Start, Status, Summary};
use crate::problem::{Constraint, Problem};
use crate::real::Real;
use crate::simd::Isa;
use crate::solution::{Solution, Solved};

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
/// Sweeps in which the best residual has to fall by a thousandth.
const STALL_WINDOW: usize = 300;
/// Mixing starts below this residual: far from the solution plain iterations are the faster ones.
const ACCELERATE_BELOW: f64 = 0.1;
/// Accelerated sweeps without a lower residual before plain ones take over for a while.
const PATIENCE: usize = 6;
/// An accelerated step may raise the residual by this factor before it is taken back.
const ALLOWED_RISE: f64 = 2.0;

/// Options together with the memory that a solve needs; reused by the next solve.
///
/// After a first solve of a size, another of that size or less allocates nothing (with a matrix of costs whose
/// rows or columns are contiguous, or with points).
#[derive(Clone, Debug)]
pub struct Solver<T> {
    options: Options,
    engine: Engine<T>,
    anderson: Anderson,
    g: Vec<f64>,
    g_next: Vec<f64>,
    g_safe: Vec<f64>,
    /// Multiplier of a partial problem's mass.
    lambda: f64,
    /// What the last column update moved from `g` to `f`.
    shift: f64,
    history: Vec<Record>,
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
            g: Vec::new(),
            g_next: Vec::new(),
            g_safe: Vec::new(),
            lambda: 0.0,
            shift: 0.0,
            history: Vec::new(),
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
    /// [`Method::Scaling`]), [`OtError::NotFinite`] for a computed cost, [`OtError::Overflow`].
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
            Solved { lambda: self.lambda, target_scale, summary, tolerance, history },
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
    /// Each sweep adds up n + 3 numbers. The result equals the unsharded one up to the rounding of those sums.
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
        let spread = (range.1 - range.0) / problem.epsilon;
        let method = self.choose(problem, spread)?;
        self.history.clear();
        self.history.reserve(self.options.max_iters.min(1 << 16));
        self.lambda = 0.0;
        self.shift = 0.0;
        let mass = problem.mass.unwrap_or(source_mass);
        let run = Run { core, method, range, mass, partial: problem.mass.is_some() };
        let (status, plan_mass) = self.stages(&run, problem.epsilon, start, collective)?;
        self.engine.extend_to_empty_columns(&core, problem.epsilon, self.lambda, collective)?;
        for (j, g) in self.g.iter_mut().enumerate() {
            if core.columns.weights[j] == 0.0 {
                *g = core.columns.constraint.potential(self.engine.found.soft[j], problem.epsilon);
            }
        }
        let (out_rows, out_columns) =
            if transposed { (&mut out.g, &mut out.f) } else { (&mut out.f, &mut out.g) };
        self.engine.found.f.iter_mut().for_each(|f| *f += self.shift);
        store(out_rows, &self.engine.found.f);
        store(out_columns, &self.g);
        out.f += self.lambda;
        let last = self.history.last().map_or(f64::INFINITY, |record| record.residual);
        if out.f.iter().chain(&out.g).any(|potential| !potential.is_finite()) {
            return Err(OtError::Overflow { what: "a potential", n_iters: self.history.len() });
        }
        Ok(Summary { status, n_iters: self.history.len(), residual: last, method, mass: plan_mass })
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
        Ok(())
    }

    fn cost_range(&mut self, core: &Core<T>, collective: &mut dyn Collective) -> Result<(f64, f64), OtError> {
        let local = self.engine.cost_range(core);
        let (low, high) = *local.as_ref().unwrap_or(&(f64::INFINITY, f64::NEG_INFINITY));
        let mut extremes = [-low, high, f64::from(u8::from(local.is_err()))];
        collective.max(&mut extremes).map_err(OtError::Collective)?;
        local?;
        if extremes[2] > 0.0 {
            return Err(OtError::NotFinite {
                what: "cost of points in another shard",
                index: Vec::new(),
                value: f64::NAN,
            });
        }
        let range = (-extremes[0], extremes[1]);
        if !(range.1 - range.0).is_finite() {
            return Err(OtError::Overflow { what: "the spread of costs", n_iters: 0 });
        }
        Ok(range)
    }

    fn choose(&self, problem: &Problem<T>, spread: f64) -> Result<Method, OtError> {
        let fits = spread <= T::SAFE_EXPONENT_RANGE;
        match self.options.method {
            Method::Scaling if !fits => {
                Err(OtError::ScalingRange { range: spread, limit: T::SAFE_EXPONENT_RANGE })
            }
            Method::Auto if !problem.cost.is_matrix() => Ok(Method::Log),
            Method::Auto if fits => Ok(Method::Scaling),
            Method::Auto => Ok(Method::Stabilised),
            method => Ok(method),
        }
    }

    /// Runs through the epsilons.
    fn stages(
        &mut self,
        run: &Run<T>,
        epsilon: f64,
        start: Start,
        collective: &mut dyn Collective,
    ) -> Result<(Status, f64), OtError> {
        let spread = run.range.1 - run.range.0;
        let cold = matches!(start, Start::Zero);
        let (first, factor) = match self.options.annealing {
            Annealing::Auto if cold && spread / epsilon > ANNEAL_ABOVE && run.method != Method::Scaling => {
                (spread * ANNEAL_START, ANNEAL_FACTOR)
            }
            Annealing::From { start, factor } => (start, factor),
            _ => (epsilon, ANNEAL_FACTOR),
        };
        let mut current = first.max(epsilon);
        while current > epsilon {
            let left = self.options.max_iters - self.history.len();
            // The last stage keeps at least half of what is left.
            if left < 4 {
                break;
            }
            let limits = (STAGE_TOLERANCE.max(self.options.tolerance), STAGE_ITERS.min(left / 2));
            // How an approach ends does not matter: the next stage starts from wherever it came to.
            let _ = self.iterate(run, current, limits, collective)?;
            current *= factor;
        }
        let left = self.options.max_iters - self.history.len();
        self.iterate(run, epsilon, (self.options.tolerance, left), collective)
    }

    /// Iterates at one epsilon until the residual is within the tolerance, or a limit.
    fn iterate(
        &mut self,
        run: &Run<T>,
        epsilon: f64,
        (tolerance, max_iters): (f64, usize),
        collective: &mut dyn Collective,
    ) -> Result<(Status, f64), OtError> {
        self.enter_stage(run, epsilon, collective)?;
        let mut best = (f64::INFINITY, 0);
        let mut accelerated: Option<f64> = None;
        let mut plain_until = 2;
        let mut mass = f64::NAN;
        let mut status = Status::IterationLimit;
        for iteration in 0..max_iters {
            let totals = self.sweep(run, epsilon, collective)?;
            let residual = self.update_columns(run, epsilon, totals);
            mass = if run.partial { run.mass } else { totals.mass };
            self.history.push(Record { epsilon, residual });
            if !residual.is_finite() {
                return Err(OtError::Overflow { what: "the residual", n_iters: self.history.len() });
            }
            if residual <= tolerance {
                status = Status::Converged;
                break;
            }
            if residual < best.0 * (1.0 - 1e-3) {
                best = (residual, iteration);
            } else if iteration - best.1 > STALL_WINDOW {
                status = Status::Stalled;
                break;
            }
            if let Some(before) = accelerated
                && residual > ALLOWED_RISE * before
            {
                // Back to the plain iterate that the bad step left from, and some plain steps from there.
                self.g.copy_from_slice(&self.g_safe);
                self.anderson.reset();
                accelerated = None;
                plain_until = iteration + 4;
                continue;
            }
            if accelerated.is_some() && iteration - best.1 > PATIENCE {
                // Mixing can circle far from the solution, where the map is nowhere near linear.
                self.anderson.reset();
                plain_until = iteration + 2 * PATIENCE;
            }
            let may_accelerate = iteration >= plain_until && residual < ACCELERATE_BELOW;
            accelerated = self.advance(run, may_accelerate).then_some(residual);
        }
        // Together with the sweep's `f` these are the plain iterate, whose residual was measured.
        self.g.copy_from_slice(&self.g_next);
        Ok((status, mass))
    }

    /// Builds what the domain needs at a new epsilon.
    fn enter_stage(
        &mut self,
        run: &Run<T>,
        epsilon: f64,
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        self.anderson.reset();
        match run.method {
            Method::Log => {
                if self.history.is_empty() {
                    self.engine.prepare_logarithmic(&run.core);
                    self.engine.gather_costs(&run.core);
                }
            }
            _ if (run.range.1 - run.range.0) / epsilon <= T::SAFE_EXPONENT_RANGE => {
                // Centred, so that both ends are equally far from the type's limits.
                let middle = 0.5 * (run.range.0 + run.range.1);
                self.engine.announce_kernel(&run.core, epsilon, middle);
            }
            _ => self.absorb(run, epsilon, collective)?,
        }
        Ok(())
    }

    /// One sweep in the domain of the method. A stabilised solve whose kernel left its range absorbs the
    /// potentials by a logarithmic sweep from the same `g`, which is a valid sweep itself.
    fn sweep(
        &mut self,
        run: &Run<T>,
        epsilon: f64,
        collective: &mut dyn Collective,
    ) -> Result<RowTotals, OtError> {
        let (core, dual) = (&run.core, Dual { epsilon, lambda: self.lambda, g: &self.g });
        if run.method == Method::Log {
            return self.engine.sweep(Domain::Logarithmic, core, dual, collective);
        }
        let totals = self.engine.sweep(Domain::Kernel, core, dual, collective)?;
        if totals.weak == 0.0 {
            return Ok(totals);
        }
        if run.method == Method::Scaling && self.options.method == Method::Scaling {
            return Err(OtError::Overflow { what: "a scaling", n_iters: self.history.len() });
        }
        self.absorb(run, epsilon, collective)?;
        let dual = Dual { epsilon, lambda: self.lambda, g: &self.g };
        self.engine.sweep(Domain::Logarithmic, core, dual, collective)
    }

    /// Puts the potentials after a logarithmic sweep from `g` into the kernel.
    fn absorb(&mut self, run: &Run<T>, epsilon: f64, collective: &mut dyn Collective) -> Result<(), OtError> {
        self.engine.prepare_logarithmic(&run.core);
        let dual = Dual { epsilon, lambda: self.lambda, g: &self.g };
        let totals = self.engine.sweep(Domain::Logarithmic, &run.core, dual, collective)?;
        self.update_columns(run, epsilon, totals);
        self.engine.build_kernel(&run.core, epsilon, &self.g_next);
        self.engine.prepare_logarithmic(&run.core);
        Ok(())
    }

    /// Column potentials `g_next` from the sweep's soft minima, and the multiplier of the mass; gives the residual.
    fn update_columns(&mut self, run: &Run<T>, epsilon: f64, totals: RowTotals) -> f64 {
        let columns = &run.core.columns;
        // A partial plan is scaled to its mass between the two updates.
        let (step, factor, mass_error) = if run.partial {
            let factor = run.mass / totals.mass;
            (epsilon * factor.ln(), factor, (totals.mass - run.mass).abs())
        } else {
            (0.0, 1.0, 0.0)
        };
        self.lambda += step;
        let mut error = 0.0;
        let (mut relaxed_sum, penalty) = (0.0, relaxation(columns.constraint));
        for j in 0..self.g.len() {
            let weight = columns.weight(j);
            if weight == 0.0 {
                self.g_next[j] = self.g[j];
                continue;
            }
            let next = columns.constraint.potential(self.engine.found.soft[j] - step, epsilon);
            let marginal = self.engine.found.marginal[j] * factor;
            let change = match columns.constraint {
                Constraint::Exact => weight - marginal,
                _ => marginal * ((next - self.g[j]) / epsilon).exp_m1(),
            };
            error += match self.options.norm {
                Norm::L1 => change.abs(),
                Norm::L2 => change * change,
            };
            if let Some(penalty) = penalty {
                relaxed_sum += weight * (-next / penalty).exp();
            }
            self.g_next[j] = next;
        }
        if self.options.norm == Norm::L2 {
            error = error.sqrt();
        }
        if let (Some(p), Some(q)) = (relaxation(run.core.rows.constraint), penalty) {
            // The plan does not change when a constant moves from g to f; the dual objective is largest for this one
            // (Séjourné, Vialard, Peyré 2022), which removes the slowest mode of relaxed iterations.
            let shift = p * q / (p + q) * (totals.shift / relaxed_sum).ln();
            if shift.is_finite() {
                self.g_next.iter_mut().for_each(|g| *g -= shift);
                self.shift = shift;
            }
        }
        (error + mass_error) / run.mass
    }

    /// Moves `g` on to the next iterate; gives whether that was an accelerated step.
    fn advance(&mut self, run: &Run<T>, may_accelerate: bool) -> bool {
        let weight = |j: usize| run.core.columns.weight(j);
        match self.options.acceleration {
            Acceleration::Anderson { .. } if !run.partial => {
                self.g_safe.copy_from_slice(&self.g_next);
                let mixed = self.anderson.step(self.isa, &mut self.g, &self.g_next, weight);
                if !may_accelerate {
                    self.g.copy_from_slice(&self.g_next);
                }
                mixed && may_accelerate
            }
            Acceleration::OverRelaxation { factor } if !run.partial && may_accelerate => {
                self.g_safe.copy_from_slice(&self.g_next);
                for (g, &next) in self.g.iter_mut().zip(&self.g_next) {
                    *g += factor * (next - *g);
                }
                true
            }
            _ => {
                self.g.copy_from_slice(&self.g_next);
                false
            }
        }
    }
}

/// What stays the same during one solve.
struct Run<'p, 'a, T> {
    core: Core<'p, 'a, T>,
    method: Method,
    range: (f64, f64),
    mass: f64,
    partial: bool,
}

fn relaxation(constraint: Constraint) -> Option<f64> {
    match constraint {
        Constraint::Relaxed { penalty } => Some(penalty),
        _ => None,
    }
}

/// Copies into the caller's array, which is replaced only if its length differs.
fn store(out: &mut Array1<f64>, values: &[f64]) {
    if out.len() == values.len() {
        out.iter_mut().zip(values).for_each(|(out, &value)| *out = value);
    } else {
        *out = Array1::from(values.to_vec());
    }
}
