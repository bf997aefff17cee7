//! Whole training steps: crops in, a report out, everything else on the card.

use std::collections::VecDeque;

use ndarray::{Array2, Array3, ArrayView2, ArrayView3};
use swav_cuda::network::{Options, StepProgram, StepSpec, padded};
use swav_cuda::tape::{BufferId, PixelFormat, Report, Rule, ScoreShape};

use super::memory::{Work, groups_of, too_large};
use super::rules::scalars_of;
use super::session::{Session, failed, group_of};
use super::values::{fill, fill_bytes, pad, strip};
use super::{Cuda, check_batch};
use crate::{Crops, EncoderError, Scaling, Slots, StepInputs, StepPlan, StepReport, WholeStep};

/// Reports that may be on their way before one is waited for.
const AHEAD: usize = 2;

/// What whole steps need between calls.
#[derive(Default)]
pub(super) struct Steps {
    plan: Option<StepPlan>,
    loaded: Option<Loaded>,
    /// Updates that the prototypes have had, and whether they have a second moment.
    n_updates: u64,
    has_second: bool,
    /// The row of each list where the newest embeddings are.
    queue_row: usize,
    reports: VecDeque<u64>,
}

/// A loaded step.
struct Loaded {
    program: usize,
    rule: Rule,
    pixels: Vec<BufferId>,
    report: BufferId,
}

/// What the tape's step is made of.
pub(super) fn spec_of(plan: &StepPlan, rule: Rule) -> StepSpec {
    let n_crops = plan.groups.iter().map(|group| group.n_crops).sum();
    StepSpec {
        groups: groups_of(&plan.groups, plan.batch_size),
        scores: ScoreShape {
            n_prototypes: plan.n_prototypes,
            stride: padded(plan.n_prototypes),
            batch: plan.batch_size,
            n_crops,
            assign: plan.crops_for_assign.clone(),
            queue: plan.queue_length,
            epsilon: plan.epsilon as f32,
            temperature: plan.temperature,
        },
        n_iters: plan.sinkhorn_iters,
        rule,
    }
}

/// How crops come.
pub(super) fn format_of(scaling: Option<Scaling>) -> PixelFormat {
    match scaling {
        Some(Scaling { scale, shift }) => PixelFormat::U8 { scale, shift },
        None => PixelFormat::F32,
    }
}

fn report_of(report: &Report, step: u64) -> StepReport {
    StepReport {
        step,
        loss: report.loss,
        code_entropy: report.code_entropy,
        code_perplexity: report.code_perplexity,
        prediction_perplexity: report.prediction_perplexity,
        spread: report.spread,
        parameter_norm: report.parameter_norm,
        gradient_norm: report.gradient_norm,
    }
}

impl Cuda {
    fn unsupported(&self, what: &'static str, advice: &'static str) -> EncoderError {
        EncoderError::Unsupported { device: self.name.clone(), what, advice }
    }

    fn plan(&self) -> Result<&StepPlan, EncoderError> {
        let missing = || self.unsupported("plan of a step", "prepare a step before it is run");
        self.steps.plan.as_ref().ok_or_else(missing)
    }

    /// Refuses plans whose steps cannot be run here as a whole.
    pub(super) fn check_plan(&self, plan: &StepPlan) -> Result<(), EncoderError> {
        let n_crops: usize = plan.groups.iter().map(|group| group.n_crops).sum();
        let queue_fits = plan.batch_size > 0 && plan.queue_length.is_multiple_of(plan.batch_size);
        if !queue_fits || n_crops < 2 || plan.crops_for_assign.iter().any(|&crop| crop >= n_crops) {
            return Err(self.unsupported("whole step of this plan", "let the trainer run its own step"));
        }
        Ok(())
    }

    /// The step's program for a rule.
    fn step_program(&mut self, rule: Rule) -> Result<(), EncoderError> {
        if self.steps.loaded.as_ref().is_some_and(|loaded| loaded.rule == rule) {
            return Ok(());
        }
        let plan = self.plan()?;
        let (spec, pixels) = (spec_of(plan, rule), format_of(plan.scaling));
        let session = self.session.get_mut();
        let options = Options { pixels, ..session.options };
        let StepProgram { program, pixels, report, .. } = session.network.step(&spec, &options);
        let loaded = session.make_ready(program);
        let program =
            loaded.map_err(|error| too_large(&self.name, session, &Work::Whole(spec), &options, error))?;
        self.steps.loaded = Some(Loaded { program, rule, pixels, report });
        Ok(())
    }

    /// Refuses crops that are not what the step was prepared for.
    fn check_crops(&self, plan: &StepPlan, crops: Crops<'_>) -> Result<(), EncoderError> {
        let (expected, got) = match (crops, plan.scaling) {
            (Crops::Values(_), None) | (Crops::Bytes(_), Some(_)) => {
                let expected = spec_of(plan, Rule::Sgd).groups;
                let shapes = crops.shapes();
                if shapes.iter().map(|&shape| group_of(shape)).eq(expected) {
                    return check_batch(&self.layers, &shapes);
                }
                ("the shapes that the step was prepared for", format!("{shapes:?}"))
            }
            (Crops::Values(_), Some(_)) => ("bytes, as the step was prepared for", "values".into()),
            (Crops::Bytes(_), None) => ("values, as the step was prepared for", "bytes".into()),
        };
        Err(EncoderError::Images { expected, got })
    }

    /// The report of a step that may still run.
    fn take(&mut self, ticket: u64) -> Result<StepReport, EncoderError> {
        let session = self.session.get_mut();
        let bytes = session.machine.take(ticket).map_err(|error| failed(&self.name, error))?;
        let report = bytes.first_chunk().map(Report::from_bytes).unwrap_or_default();
        Ok(report_of(&report, u64::from(report.serial)))
    }

    /// Values of a slot of the prototypes.
    fn prototype_values(
        session: &mut Session,
        name: &str,
        plan: (usize, usize),
    ) -> Result<Vec<f32>, EncoderError> {
        let (k, dim) = plan;
        Ok(strip(&session.read_floats(name, 0..k * padded(dim))?, dim))
    }
}

/// Gives a step its crops.
fn stage(
    session: &mut Session,
    program: usize,
    pixels: &[BufferId],
    crops: Crops<'_>,
) -> swav_cuda::Result<()> {
    let machine = &mut session.machine;
    match crops {
        Crops::Values(groups) => pixels.iter().zip(groups).try_for_each(|(&id, images)| {
            machine.stage(program, id, 4 * images.len(), &mut |bytes| fill(images, bytes))
        }),
        Crops::Bytes(groups) => pixels.iter().zip(groups).try_for_each(|(&id, images)| {
            machine.stage(program, id, images.len(), &mut |bytes| fill_bytes(images, bytes))
        }),
    }
}

fn shape_error(name: &str, expected: &[usize], got: &[usize]) -> EncoderError {
    EncoderError::StateShape { name: name.to_owned(), expected: expected.to_vec(), got: got.to_vec() }
}

impl WholeStep for Cuda {
    fn prepare(&mut self, plan: &StepPlan) -> Result<(), EncoderError> {
        self.check_plan(plan)?;
        if self.steps.plan.as_ref().is_none_or(|old| old.queue_length != plan.queue_length) {
            self.steps.queue_row = 0;
        }
        self.steps.plan = Some(plan.clone());
        self.steps.loaded = None;
        // Prototypes and queue need their places before values come; the rule is only known at the first step.
        self.step_program(Rule::Sgd)
    }

    fn load_prototypes(
        &mut self,
        prototypes: ArrayView2<'_, f32>,
        slots: &Slots,
    ) -> Result<(), EncoderError> {
        let (k, dim) = (self.plan()?.n_prototypes, self.session.borrow().network.spec().embedding_dim());
        if prototypes.dim() != (k, dim) {
            return Err(shape_error("prototypes.weight", &[k, dim], prototypes.shape()));
        }
        if !slots.second.is_empty() {
            self.step_program(Rule::AdamW)?;
            self.steps.has_second = true;
        }
        let session = self.session.get_mut();
        session.write_floats("prototypes", 0, &pad(prototypes.iter().copied(), dim))?;
        for (name, values) in [("first of prototypes", &slots.first), ("second of prototypes", &slots.second)]
        {
            let values = if values.is_empty() { vec![0.0; k * dim] } else { values.clone() };
            if name.starts_with("first") || self.steps.has_second {
                session.write_floats(name, 0, &pad(values, dim))?;
            }
        }
        self.steps.n_updates = slots.n_updates;
        Ok(())
    }

    fn prototypes(&mut self) -> Result<(Array2<f32>, Slots), EncoderError> {
        let sizes = (self.plan()?.n_prototypes, self.session.borrow().network.spec().embedding_dim());
        let session = self.session.get_mut();
        let values = Self::prototype_values(session, "prototypes", sizes)?;
        let mut slots = Slots { n_updates: self.steps.n_updates, ..Slots::default() };
        if slots.n_updates > 0 {
            slots.first = Self::prototype_values(session, "first of prototypes", sizes)?;
            if self.steps.has_second {
                slots.second = Self::prototype_values(session, "second of prototypes", sizes)?;
            }
        }
        let weights = Array2::from_shape_vec(sizes, values);
        Ok((weights.unwrap_or_else(|_| unreachable!("rows were counted")), slots))
    }

    fn load_queue(&mut self, queue: ArrayView3<'_, f32>) -> Result<(), EncoderError> {
        let plan = self.plan()?;
        let dim = self.session.borrow().network.spec().embedding_dim();
        let expected = [plan.crops_for_assign.len(), plan.queue_length, dim];
        if queue.shape() != expected {
            return Err(shape_error("queue", &expected, queue.shape()));
        }
        let values = pad(queue.iter().copied(), dim);
        let session = self.session.get_mut();
        let bytes = session.options.element.to_bytes(&values);
        session.machine.write_persistent("queue", 0, &bytes).map_err(|e| failed(&self.name, e))?;
        self.steps.queue_row = 0;
        Ok(())
    }

    fn queue(&mut self) -> Result<Array3<f32>, EncoderError> {
        let plan = self.plan()?;
        let (lists, length) = (plan.crops_for_assign.len(), plan.queue_length);
        let session = self.session.get_mut();
        let (dim, element) = (session.network.spec().embedding_dim(), session.options.element);
        let bytes = lists * length * padded(dim) * element.bytes();
        let bytes = session.machine.read_persistent("queue", 0..bytes);
        let bytes = bytes.map_err(|error| failed(&self.name, error))?;
        let values = strip(&element.to_values(&bytes), dim);
        let first = self.steps.queue_row;
        Ok(Array3::from_shape_fn((lists, length, dim), |(list, row, d)| {
            values[(list * length + (row + first) % length) * dim + d]
        }))
    }

    fn step(&mut self, crops: Crops<'_>, inputs: &StepInputs) -> Result<Option<StepReport>, EncoderError> {
        let t = self.n_updates.first().map_or(1, |n| n + 1);
        let (rule, mut scalars) = scalars_of(&inputs.rule, t, self.steps.n_updates + 1);
        self.step_program(rule)?;
        let plan = self.plan()?;
        self.check_crops(plan, crops)?;
        let (batch, length) = (plan.batch_size, plan.queue_length);
        if inputs.push_queue && length > 0 {
            self.steps.queue_row = (self.steps.queue_row + length - batch) % length;
        }
        scalars.classes[2].enabled = inputs.update_prototypes;
        scalars.queue_ready = inputs.use_queue;
        scalars.queue_push = inputs.push_queue;
        scalars.queue_row = self.steps.queue_row as u32;
        scalars.serial = inputs.step as u32;
        scalars.max_gradient_norm = inputs.max_gradient_norm.map(|norm| (norm as f32).max(f32::MIN_POSITIVE));
        let session = self.session.get_mut();
        session.forget();
        session.refresh()?;
        let Some(Loaded { program, pixels, report, .. }) = &self.steps.loaded else {
            unreachable!("the program was loaded above")
        };
        let staged = stage(session, *program, pixels, crops);
        staged.map_err(|error| failed(&self.name, error))?;
        session.run(*program, 0, &scalars)?;
        let ticket =
            session.machine.fetch(*program, *report, Report::BYTES).map_err(|error| session.fail(error))?;
        self.steps.reports.push_back(ticket);
        self.n_updates.iter_mut().for_each(|n| *n += 1);
        self.has_second |= rule == Rule::AdamW;
        self.steps.n_updates += u64::from(inputs.update_prototypes);
        self.steps.has_second |= rule == Rule::AdamW && inputs.update_prototypes;
        if self.steps.reports.len() < AHEAD {
            return Ok(None);
        }
        let ticket = self.steps.reports.pop_front();
        ticket.map(|ticket| self.take(ticket)).transpose()
    }

    fn finish(&mut self) -> Result<Vec<StepReport>, EncoderError> {
        let tickets = std::mem::take(&mut self.steps.reports);
        tickets.into_iter().map(|ticket| self.take(ticket)).collect()
    }
}
