//! The iterations at one epsilon: sweeps, acceleration and what guards it, absorption, and the rungs of the ladder.

use super::progress::{Progress, Update};
use super::{Run, Solver};
use crate::collective::Collective;
use crate::engine::{Domain, Dual, RowTotals};
use crate::error::OtError;
use crate::options::{Acceleration, Fallback, Method, Norm};
use crate::outcome::{Record, Rung, Status};
use crate::problem::Constraint;
use crate::real::Real;

/// Mixing starts below this residual: far from the solution plain iterations are the faster ones.
const ACCELERATE_BELOW: f64 = 0.1;
/// Accelerated sweeps without a lower residual before plain ones take over for a while.
const PATIENCE: usize = 6;
/// An accelerated step may raise the residual by this factor before it is taken back.
const ALLOWED_RISE: f64 = 2.0;
/// Plain sweeps at the start of a stage.
const PLAIN_AT_FIRST: usize = 2;
/// And where Newton's method comes after them.
const PLAIN_BEFORE_NEWTON: usize = 4;
/// Sweeps in a row whose kernel had to be built anew, after which none is built any more.
const CHRONIC: usize = 8;

/// How iterations at one epsilon are to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage {
    pub(super) epsilon: f64,
    pub(super) tolerance: f64,
    pub(super) max_iters: usize,
    /// At the problem's epsilon: the best iterate is kept.
    pub(super) last: bool,
}

/// An accelerated step that the next sweep has to justify: what is known of the iterate that it left from.
#[derive(Clone, Copy, Debug)]
struct Trial {
    residual: f64,
    dual_plain: f64,
}

impl Trial {
    /// Whether the step was worse than the plain one. The dual objective tells, which a plain step raises always; where
    /// rounding hides its rise, and where there is none, the residual does.
    fn failed(self, update: &Update, balanced: bool, slack: f64) -> bool {
        let rise = update.dual - self.dual_plain;
        let risen = update.residual > ALLOWED_RISE * self.residual;
        if balanced { rise < -slack || (rise <= slack && risen) } else { risen }
    }
}

impl<T: Real> Solver<T> {
    /// Iterates at one epsilon until the residual is within the tolerance, or a limit.
    pub(super) fn iterate(
        &mut self,
        run: &Run<T>,
        stage: Stage,
        collective: &mut dyn Collective,
    ) -> Result<Status, OtError> {
        self.enter_stage(run, stage.epsilon, collective)?;
        let mut progress = Progress::starting_at(&self.options, 0);
        let mut trial: Option<Trial> = None;
        let mut plain_until =
            if self.effort.rung == Rung::Newton { PLAIN_BEFORE_NEWTON } else { PLAIN_AT_FIRST };
        for iteration in 0..stage.max_iters {
            let totals = self.sweep(run, stage.epsilon, collective)?;
            let update = self.update_columns(run, stage.epsilon, totals);
            self.history.push(Record { epsilon: stage.epsilon, residual: update.residual });
            let tried = trial.take();
            if !update.residual.is_finite() {
                self.leave_the_kernel(run, tried.is_some())?;
                plain_until = iteration + PLAIN_AT_FIRST;
                continue;
            }
            if stage.last {
                let mass = if run.partial { run.mass } else { totals.mass };
                let rest = (self.lambda, self.shift, mass);
                self.best.keep(update.residual, &self.engine.found, &self.g_next, rest);
            }
            let resolution = self.resolution(run, stage.epsilon);
            if update.residual <= stage.tolerance {
                // A kernel's own rounding is in no residual that is measured with it.
                if stage.last && stage.tolerance < resolution && self.climb_to_logarithms(run) {
                    self.best.residual = resolution;
                    self.g.copy_from_slice(&self.g_next);
                    progress = Progress::starting_at(&self.options, iteration);
                    continue;
                }
                self.g.copy_from_slice(&self.g_next);
                return Ok(Status::Converged);
            }
            let slack = self.dual_slack(run, stage.epsilon);
            if progress.see(iteration, &update, slack, resolution) {
                if !self.climb(run, update.residual <= resolution) {
                    self.g.copy_from_slice(&self.g_next);
                    return Ok(Status::Stalled);
                }
                let best = if stage.last { &self.best.g } else { &self.g_next };
                self.g.copy_from_slice(best);
                progress = Progress::starting_at(&self.options, iteration);
                plain_until = iteration + PLAIN_AT_FIRST;
                continue;
            }
            if let Some(tried) = tried {
                let failed = tried.failed(&update, run.balanced, slack);
                self.newton.learn(!failed);
                if failed {
                    // Back to the plain iterate that the bad step left from, and some plain steps from there.
                    self.effort.n_taken_back += 1;
                    self.g.copy_from_slice(&self.g_safe);
                    self.g_next.copy_from_slice(&self.g_safe);
                    self.anderson.reset();
                    plain_until = iteration + 4;
                    continue;
                }
                if self.effort.rung == Rung::Newton {
                    // A plain step is cheap and better for single columns.
                    plain_until = iteration + 1;
                } else if progress.since_lowered(iteration) > PATIENCE {
                    // Mixing can circle far from the solution, where the map is nowhere near linear.
                    self.anderson.reset();
                    plain_until = iteration + 2 * PATIENCE;
                }
            }
            if self.advance(run, stage.epsilon, &update, iteration >= plain_until) {
                trial = Some(Trial { residual: update.residual, dual_plain: update.dual_plain });
            }
        }
        // Together with the sweep's `f` these are the plain iterate, whose residual was measured.
        self.g.copy_from_slice(&self.g_next);
        Ok(Status::IterationLimit)
    }

    /// What rounding lets the residual be known to: a unit in the last place of the potentials over epsilon, and what the
    /// kernel's type adds.
    pub(super) fn resolution(&self, run: &Run<T>, epsilon: f64) -> f64 {
        let potentials = 16.0 * f64::EPSILON * (1.0 + run.range.scale() / epsilon);
        if self.arithmetic == Method::Log {
            return potentials;
        }
        let exponents = run.range.spread() / epsilon;
        let own = if exponents <= T::OWN_EXPONENT_RANGE { exponents / 8.0 } else { 0.0 };
        potentials + T::epsilon().wide() * (4.0 + own)
    }

    /// Differences of the dual objective that rounding explains.
    fn dual_slack(&self, run: &Run<T>, epsilon: f64) -> f64 {
        let own = if self.arithmetic == Method::Log { f64::EPSILON } else { T::epsilon().wide() };
        16.0 * run.mass * (f64::EPSILON * run.range.scale() + own * epsilon)
    }

    /// Turns to the next rung of the ladder; gives whether there is one at this place. Where the residual is as small as
    /// the kernel's rounding lets it be, acceleration is not at fault.
    fn climb(&mut self, run: &Run<T>, resolved: bool) -> bool {
        if self.options.fallback == Fallback::Off || self.effort.rung == Rung::Newton {
            return false;
        }
        let accelerated = !(self.plain || self.options.acceleration == Acceleration::Off || run.partial);
        if resolved && self.climb_to_logarithms(run) {
            return true;
        }
        if accelerated {
            self.plain = true;
            self.effort.rung = self.effort.rung.max(Rung::Plain);
            return true;
        }
        self.climb_to_logarithms(run)
    }

    /// Leaves the kernel for logarithms, if that is not done and is allowed.
    fn climb_to_logarithms(&mut self, run: &Run<T>) -> bool {
        if self.options.fallback == Fallback::Off || self.arithmetic == Method::Log {
            return false;
        }
        self.effort.rung = self.effort.rung.max(Rung::Logarithmic);
        self.enter_logarithms(run);
        true
    }

    /// From now on sweeps are logarithmic.
    pub(super) fn enter_logarithms(&mut self, run: &Run<T>) {
        self.arithmetic = Method::Log;
        self.anderson.reset();
        self.engine.prepare_logarithmic(&run.core);
        self.engine.gather_costs(&run.core);
    }

    /// After a residual that is not finite: goes on with logarithms, from before a step that was `tried`.
    fn leave_the_kernel(&mut self, run: &Run<T>, tried: bool) -> Result<(), OtError> {
        if tried {
            self.g.copy_from_slice(&self.g_safe);
        }
        if self.g.iter().all(|g| g.is_finite()) && (self.climb_to_logarithms(run) || tried) {
            self.anderson.reset();
            return Ok(());
        }
        Err(OtError::Overflow { what: "the residual", n_iters: self.history.len() })
    }

    /// Builds what the domain needs at a new epsilon.
    fn enter_stage(
        &mut self,
        run: &Run<T>,
        epsilon: f64,
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        self.anderson.reset();
        self.newton.reset();
        match self.arithmetic {
            Method::Log => self.enter_logarithms(run),
            _ if run.range.spread() / epsilon <= T::SAFE_EXPONENT_RANGE => {
                self.engine.announce_kernel(&run.core, epsilon, &run.range);
            }
            _ => self.absorb(run, epsilon, collective)?,
        }
        Ok(())
    }

    /// One sweep in the domain of the arithmetic. If the kernel left its range, the potentials are absorbed by a logarithmic
    /// sweep from the same `g`, which is a valid sweep itself.
    fn sweep(
        &mut self,
        run: &Run<T>,
        epsilon: f64,
        collective: &mut dyn Collective,
    ) -> Result<RowTotals, OtError> {
        if self.arithmetic == Method::Log {
            return self.sweep_in(Domain::Logarithmic, run, epsilon, collective);
        }
        let totals = self.sweep_in(Domain::Kernel, run, epsilon, collective)?;
        if totals.weak == 0.0 {
            self.n_weak = 0;
            return Ok(totals);
        }
        let may_fall_back = self.options.fallback != Fallback::Off;
        if self.options.method == Method::Scaling && !may_fall_back {
            return Err(OtError::Overflow { what: "a scaling", n_iters: self.history.len() });
        }
        self.n_weak += 1;
        if self.n_weak > CHRONIC && may_fall_back {
            self.climb_to_logarithms(run);
        } else {
            self.arithmetic = Method::Stabilised;
            self.absorb(run, epsilon, collective)?;
        }
        self.sweep_in(Domain::Logarithmic, run, epsilon, collective)
    }

    fn sweep_in(
        &mut self,
        domain: Domain,
        run: &Run<T>,
        epsilon: f64,
        collective: &mut dyn Collective,
    ) -> Result<RowTotals, OtError> {
        match domain {
            Domain::Kernel => self.effort.n_kernel_sweeps += 1,
            Domain::Logarithmic => self.effort.n_log_sweeps += 1,
        }
        let dual = Dual { epsilon, lambda: self.lambda, g: &self.g };
        self.engine.sweep(domain, &run.core, dual, collective)
    }

    /// Puts the potentials after a logarithmic sweep from `g` into the kernel.
    fn absorb(&mut self, run: &Run<T>, epsilon: f64, collective: &mut dyn Collective) -> Result<(), OtError> {
        self.effort.n_absorptions += 1;
        self.engine.prepare_logarithmic(&run.core);
        let totals = self.sweep_in(Domain::Logarithmic, run, epsilon, collective)?;
        self.update_columns(run, epsilon, totals);
        self.engine.build_kernel(&run.core, epsilon, &self.g_next);
        Ok(())
    }

    /// Column potentials `g_next` from the sweep's soft minima, and the multiplier of the mass.
    fn update_columns(&mut self, run: &Run<T>, epsilon: f64, totals: RowTotals) -> Update {
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
        let (mut dual, mut dual_plain) = (totals.dual, totals.dual);
        for j in 0..self.g.len() {
            let weight = columns.weight(j);
            if weight == 0.0 {
                self.g_next[j] = self.g[j];
                continue;
            }
            let soft = self.engine.found.soft[j] - step;
            let next = columns.constraint.potential(soft, epsilon);
            let marginal = self.engine.found.marginal[j] * factor;
            let change = match columns.constraint {
                Constraint::Exact => weight - marginal,
                // Of a marginal of 0 the one that comes next cannot be told by a factor.
                _ if marginal == 0.0 => weight * ((next - soft) / epsilon).exp(),
                _ => marginal * ((next - self.g[j]) / epsilon).exp_m1(),
            };
            error += match self.options.norm {
                Norm::L1 => change.abs(),
                Norm::L2 => change * change,
            };
            if let Some(penalty) = penalty {
                relaxed_sum += weight * (-next / penalty).exp();
            }
            dual += weight * self.g[j];
            dual_plain += weight * next;
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
        Update { residual: (error + mass_error) / run.mass, dual, dual_plain }
    }

    /// Moves `g` on to the next iterate; gives whether that was an accelerated step.
    fn advance(&mut self, run: &Run<T>, epsilon: f64, update: &Update, may_accelerate: bool) -> bool {
        let weight = |j: usize| run.core.columns.weight(j);
        if self.effort.rung == Rung::Newton {
            self.g_safe.copy_from_slice(&self.g_next);
            if may_accelerate {
                let dual = Dual { epsilon, lambda: 0.0, g: &self.g };
                self.engine.coupling(&run.core, dual, &mut self.newton.matrix);
                self.effort.n_newton_steps += 1;
                let marginal = (self.engine.found.marginal.as_slice(), weight);
                if self.newton.step(self.isa, &mut self.g, marginal, epsilon, update.residual) {
                    return true;
                }
            }
            self.g.copy_from_slice(&self.g_next);
            return false;
        }
        let may_accelerate = may_accelerate && update.residual < ACCELERATE_BELOW;
        match self.options.acceleration {
            Acceleration::Anderson { .. } if !run.partial && !self.plain => {
                self.g_safe.copy_from_slice(&self.g_next);
                let mixed = self.anderson.step(self.isa, &mut self.g, &self.g_next, weight);
                if !may_accelerate {
                    self.g.copy_from_slice(&self.g_next);
                }
                let mixed = mixed && may_accelerate;
                if mixed && run.balanced {
                    self.centre(run);
                }
                mixed
            }
            Acceleration::OverRelaxation { factor } if !run.partial && !self.plain && may_accelerate => {
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

    /// Gives `g` the mean of the plain iterate. A constant changes no plan, so nothing else would keep mixing from letting the
    /// potentials drift away as a whole, and their rounding grow.
    fn centre(&mut self, run: &Run<T>) {
        let columns = &run.core.columns;
        let steps = self.g_next.iter().zip(&self.g).enumerate();
        let moved: f64 = steps.map(|(j, (next, g))| columns.weight(j) * (next - g)).sum();
        let mean = moved / columns.mass();
        self.g.iter_mut().for_each(|g| *g += mean);
    }
}

fn relaxation(constraint: Constraint) -> Option<f64> {
    match constraint {
        Constraint::Relaxed { penalty } => Some(penalty),
        _ => None,
    }
}
