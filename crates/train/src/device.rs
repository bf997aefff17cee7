//! What the steps of a run take of the memory of the encoder's device.

use swav_encoder::{DeviceMemory, Encoder, StepPlan, TrainingStep};

use crate::config::Settings;
use crate::trainer::Trainer;
use crate::whole::{group_shapes, plan, plan_with};

impl Settings {
    /// What training SwAV by these settings, in one of `world_size` processes, takes of the memory of the encoder's device: told
    /// before the first step, without loading anything. `None` where the network lives in the host's memory, which
    /// [`training_memory`](Self::training_memory) tells of.
    ///
    /// Embedding images in between (`monitor`) has the same memory, and needs less of it for as many images.
    pub fn device_memory(&self, encoder: &dyn Encoder, world_size: usize) -> Option<DeviceMemory> {
        let codes = self.sinkhorn_codes(encoder.embedding_dim(), world_size);
        let plan = match self.config().prototypes.n_prototypes[..] {
            [n_prototypes] => plan_with(self, self.loss(), &codes, n_prototypes),
            _ => None,
        };
        memory(self, encoder, plan, world_size)
    }
}

impl Trainer {
    /// As [`Settings::device_memory`], for the codes, the loss and the processes of this run.
    ///
    /// # Errors
    /// None in practice; those of prototypes that are not there.
    pub fn device_memory(&mut self) -> Result<Option<DeviceMemory>, crate::TrainError> {
        let plan = plan(&mut self.swav, &self.settings)?;
        Ok(memory(&self.settings, self.encoder.as_ref(), plan, self.collective.world_size()))
    }
}

/// What steps of this plan take; of a run of several processes, and of one without a plan, those that go by way of the host.
fn memory(
    settings: &Settings,
    encoder: &dyn Encoder,
    plan: Option<StepPlan>,
    world_size: usize,
) -> Option<DeviceMemory> {
    let groups = group_shapes(settings);
    let step = match &plan {
        Some(plan) if world_size == 1 => TrainingStep::Whole(plan),
        _ => TrainingStep::Passes { batch_size: settings.config().training.batch_size, groups: &groups },
    };
    // The rate changes nothing.
    encoder.device_memory(step, &settings.update_rule(1.0))
}
