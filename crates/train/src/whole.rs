//! Steps that run on the encoder's device as a whole: scores, codes, loss and update as well.
//!
//! A device offers this by [`Encoder::whole_step`]. It is taken for what all devices of this kind know: one process, one head,
//! Sinkhorn codes with or without a queue, the swapped prediction, and constants for temperature and epsilon; otherwise, and
//! if the device refuses the plan, steps take the host's path, `Swav::forward_backward` and `Swav::update`, which gives the
//! same numbers. Prototypes, their optimiser's memory and the queue then live on the device, and are fetched where
//! somebody looks at them: for checkpoints and callbacks.

use std::collections::VecDeque;

use swav_data::Views;
use swav_encoder::{Crops, Encoder, EncoderError, GroupShape, StepInputs, StepPlan, StepReport, WholeStep};
use swav_losses::{Diagnostics, SwappedPrediction};
use swav_optim::UpdateStats;
use swav_prototypes::{FeatureQueue, Prototypes};

use crate::codes::{CodesVitals, SinkhornCodes};
use crate::config::Settings;
use crate::error::{Quantity, TrainError};
use crate::feed::scaling;
use crate::moment::Moment;
use crate::step::{StepNumbers, Swav, Update};

/// What the trainer knows of the steps on the device.
pub(crate) struct OnDevice {
    plan: StepPlan,
    /// Rows of each list of the queue that are filled; `None` before its epoch.
    filled: Option<usize>,
    /// Steps that the device has not reported yet, and whether the queue took part.
    pending: VecDeque<(Moment, bool)>,
}

impl OnDevice {
    /// Puts prototypes and queue on the encoder's device, if whole steps of this run can be done there.
    pub(crate) fn prepare(
        encoder: &mut dyn Encoder,
        swav: &mut Swav,
        settings: &Settings,
    ) -> Result<Option<Self>, TrainError> {
        let Some(plan) = plan(swav, settings)? else { return Ok(None) };
        let Some(device) = encoder.whole_step() else { return Ok(None) };
        match device.prepare(&plan) {
            Err(EncoderError::Unsupported { .. }) => return Ok(None),
            other => other?,
        }
        device.load_prototypes(swav.prototypes.weights(0)?, swav.slots(0))?;
        let mut steps = Self { plan, filled: None, pending: VecDeque::new() };
        steps.load_queue(device, swav)?;
        tracing::info!("whole steps run on {}", encoder.device());
        Ok(Some(steps))
    }

    /// Takes notice of a queue that has been created.
    pub(crate) fn start_epoch(
        &mut self,
        encoder: &mut dyn Encoder,
        swav: &mut Swav,
    ) -> Result<(), TrainError> {
        if self.filled.is_some() {
            return Ok(());
        }
        self.load_queue(whole(encoder)?, swav)
    }

    fn load_queue(&mut self, device: &mut dyn WholeStep, swav: &mut Swav) -> Result<(), TrainError> {
        let queue = swav.codes.as_sinkhorn().and_then(|codes| codes.queue());
        if let Some(queue) = queue {
            device.load_queue(queue.rows())?;
            self.filled = Some(queue.filled()[0]);
        }
        Ok(())
    }

    /// Runs one step; the numbers of those that the device has reported, usually of an earlier one.
    pub(crate) fn step(
        &mut self,
        encoder: &mut dyn Encoder,
        crops: Crops<'_>,
        moment: Moment,
        update: &Update,
    ) -> Result<Vec<(Moment, StepNumbers)>, TrainError> {
        let use_queue = self.filled == Some(self.plan.queue_length);
        let inputs = StepInputs {
            step: moment.step,
            rule: update.rule,
            max_gradient_norm: update.max_gradient_norm,
            update_prototypes: update.update_prototypes,
            use_queue,
            push_queue: self.filled.is_some(),
        };
        self.pending.push_back((moment, use_queue));
        let report = whole(encoder)?.step(crops, &inputs)?;
        self.filled = self.filled.map(|filled| (filled + self.plan.batch_size).min(self.plan.queue_length));
        report.into_iter().map(|report| self.numbers(report)).collect()
    }

    /// Waits for all steps; the numbers of those that were not reported yet.
    pub(crate) fn settle(
        &mut self,
        encoder: &mut dyn Encoder,
    ) -> Result<Vec<(Moment, StepNumbers)>, TrainError> {
        let reports = whole(encoder)?.finish()?;
        reports.into_iter().map(|report| self.numbers(report)).collect()
    }

    /// Brings prototypes, their optimiser's memory and the queue to the host.
    pub(crate) fn fetch(&self, encoder: &mut dyn Encoder, swav: &mut Swav) -> Result<(), TrainError> {
        let device = whole(encoder)?;
        let (weights, slots) = device.prototypes()?;
        if let Some(filled) = self.filled {
            let rows = device.queue()?;
            let queue = FeatureQueue::from_rows(
                rows,
                self.plan.batch_size,
                vec![filled; self.plan.crops_for_assign.len()],
            )?;
            if let Some(codes) = swav.codes.as_sinkhorn() {
                codes.set_queue(Some(queue));
            }
        }
        swav.set_head(Prototypes::from_weights(vec![weights])?, slots);
        Ok(())
    }

    fn numbers(&mut self, report: StepReport) -> Result<(Moment, StepNumbers), TrainError> {
        let got = report.step;
        let (moment, queue_used) = self
            .pending
            .pop_front()
            .filter(|(moment, _)| moment.step == got)
            .ok_or(TrainError::Report { step: got })?;
        let ln_k = (self.plan.n_prototypes as f64).ln();
        let diagnostics = Diagnostics {
            code_entropy: report.code_entropy,
            code_perplexity: report.code_perplexity,
            prediction_perplexity: report.prediction_perplexity,
            gap_to_ln_k: ln_k - report.loss,
        };
        let norms =
            UpdateStats { parameter_norm: report.parameter_norm, gradient_norm: report.gradient_norm };
        let numbers = StepNumbers {
            loss: report.loss,
            diagnostics: Some(diagnostics),
            spread: report.spread,
            queue_used,
            codes: CodesVitals::default(),
            norms,
        };
        Ok((moment, numbers))
    }
}

/// Which number of a step is not finite, if any.
pub(crate) fn not_finite(numbers: &StepNumbers) -> Option<Quantity> {
    let checks = [
        (numbers.spread, Quantity::Embedding),
        (numbers.loss, Quantity::Loss),
        (numbers.norms.gradient_norm, Quantity::Gradient),
    ];
    checks.into_iter().find(|(number, _)| !number.is_finite()).map(|(_, what)| what)
}

fn whole(encoder: &mut dyn Encoder) -> Result<&mut dyn WholeStep, TrainError> {
    encoder.whole_step().ok_or(TrainError::DeviceGone)
}

/// The plan of the run's steps, if a device may know how to do them.
pub(crate) fn plan(swav: &mut Swav, settings: &Settings) -> Result<Option<StepPlan>, TrainError> {
    let Some(loss) = swav.loss.as_swapped().cloned() else { return Ok(None) };
    if swav.prototypes.n_heads() != 1 {
        return Ok(None);
    }
    let n_prototypes = swav.prototypes.n_prototypes(0)?;
    let Some(codes) = swav.codes.as_sinkhorn() else { return Ok(None) };
    Ok(plan_with(settings, &loss, codes, n_prototypes))
}

/// The plan of steps with this loss and these codes, and so many prototypes in a single head.
pub(crate) fn plan_with(
    settings: &Settings,
    loss: &SwappedPrediction,
    codes: &SinkhornCodes,
    n_prototypes: usize,
) -> Option<StepPlan> {
    if codes.assign_crops() != loss.assign() {
        return None;
    }
    Some(StepPlan {
        batch_size: settings.config().training.batch_size,
        groups: group_shapes(settings),
        scaling: Some(scaling(settings)),
        crops_for_assign: loss.assign().to_vec(),
        temperature: loss.temperature(),
        epsilon: codes.solver().epsilon(),
        sinkhorn_iters: codes.solver().n_iters(),
        n_prototypes,
        queue_length: codes.queue_shape().map_or(0, |shape| shape.length),
    })
}

/// The resolutions of the crops.
pub(crate) fn group_shapes(settings: &Settings) -> Vec<GroupShape> {
    let shape = |shape: swav_data::ViewShape| GroupShape {
        n_crops: shape.n_crops,
        height: shape.height,
        width: shape.width,
    };
    settings.multi_crop().shapes().into_iter().map(shape).collect()
}
