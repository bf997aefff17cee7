//! What training takes of the card's memory: for who asks before it begins, and for whose batch has turned out too large.

use swav_cuda::arena::largest_that_fits;
use swav_cuda::network::{Group, Network, Options, StepSpec};
use swav_cuda::tape::Rule;

use super::Cuda;
use super::session::{Session, failed};
use super::whole_step::{format_of, spec_of};
use crate::{DeviceMemory, EncoderError, GroupShape, TrainingStep};

/// What a way to train loads onto the card.
pub(super) enum Work {
    /// A whole step.
    Whole(StepSpec),
    /// The passes and updates of a batch one by one.
    Passes { batch: usize, groups: Vec<GroupShape>, rule: Rule },
}

/// The groups of crops of a batch.
pub(super) fn groups_of(shapes: &[GroupShape], batch: usize) -> Vec<Group> {
    let group = |shape: &GroupShape| Group {
        images: shape.n_crops * batch,
        height: shape.height,
        width: shape.width,
    };
    shapes.iter().map(group).collect()
}

impl Work {
    fn batch(&self) -> usize {
        match self {
            Work::Whole(spec) => spec.scores.batch,
            Work::Passes { batch, .. } => *batch,
        }
    }

    /// Bytes that it takes with another batch.
    fn bytes(&self, batch: usize, network: &Network, options: &Options) -> u64 {
        match self {
            Work::Whole(spec) => network.step_bytes(&spec.with_batch(batch), options),
            Work::Passes { groups, rule, .. } => {
                network.passes_bytes(&groups_of(groups, batch), *rule, options)
            }
        }
    }

    /// What it takes of `available` bytes.
    fn memory(&self, network: &Network, options: &Options, available: u64) -> DeviceMemory {
        let batch = self.batch();
        let largest = |options: &Options, near| {
            largest_that_fits(available, near, |batch| self.bytes(batch, network, options))
        };
        let kept = largest(options, batch);
        let again = Options { checkpointing: true, ..*options };
        DeviceMemory {
            batch_size: batch,
            needed: self.bytes(batch, network, options),
            available,
            largest: kept,
            largest_again: (!options.checkpointing).then(|| largest(&again, kept.max(1))),
        }
    }
}

impl Cuda {
    /// What training by such steps takes; `None` on a machine without a limit, and for a step of no images.
    pub(super) fn memory_of(&self, step: TrainingStep<'_>, rule: Rule) -> Option<DeviceMemory> {
        let (batch_size, groups) = match step {
            TrainingStep::Whole(plan) => (plan.batch_size, &plan.groups[..]),
            TrainingStep::Passes { batch_size, groups } => (batch_size, groups),
        };
        if batch_size == 0 || groups.is_empty() {
            return None;
        }
        let session = self.session.borrow();
        let available = session.machine.memory_limit()?;
        let (work, options) = match step {
            TrainingStep::Whole(plan) if self.check_plan(plan).is_ok() => {
                let options = Options { pixels: format_of(plan.scaling), ..session.options };
                (Work::Whole(spec_of(plan, rule)), options)
            }
            _ => (Work::Passes { batch: batch_size, groups: groups.to_vec(), rule }, session.options),
        };
        Some(work.memory(&session.network, &options, available))
    }
}

/// Says what would fit, where memory does not suffice for this.
pub(super) fn too_large(
    device: &str,
    session: &Session,
    work: &Work,
    options: &Options,
    error: swav_cuda::Error,
) -> EncoderError {
    let swav_cuda::Error::OutOfMemory { total, .. } = error else { return failed(device, error) };
    let available = session.machine.memory_limit().unwrap_or(total);
    let memory = Some(work.memory(&session.network, options, available));
    EncoderError::OutOfMemory { device: device.to_owned(), memory, source: Box::new(error) }
}
