//! An encoder whose passes appear in the profile.

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayView4};
use swav_collective::Collective;
use swav_encoder::{
    Description, Encoder, EncoderError, Output, RunningStatistics, StateDict, SyncBatchNorm, UpdateRule,
    UpdateStats,
};
use swav_kernels::profile;

/// Name of the scope around all of the encoder's forward pass.
pub const FORWARD: &str = "encoder forward";
/// Name of the scope around all of the encoder's backward pass.
pub const BACKWARD: &str = "encoder backward";
/// Name of the scope around the update of the encoder's parameters.
pub const UPDATE: &str = "encoder update";

/// Passes everything on, and times the three parts of a training step.
pub struct Timed(pub Box<dyn Encoder>);

/// Times `work` under a name; a pass has no shape of its own.
pub fn scope<R>(name: &'static str, work: impl FnOnce() -> R) -> R {
    profile::scope(name, || (String::new(), 0.0), work)
}

impl Encoder for Timed {
    fn forward_train(&mut self, groups: &[ArrayView4<'_, f32>]) -> Result<Array2<f32>, EncoderError> {
        scope(FORWARD, || self.0.forward_train(groups))
    }
    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError> {
        scope(BACKWARD, || self.0.backward(gradient))
    }
    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError> {
        scope(UPDATE, || self.0.update(rule))
    }
    fn embedding_dim(&self) -> usize {
        self.0.embedding_dim()
    }
    fn feature_dim(&self) -> usize {
        self.0.feature_dim()
    }
    fn device(&self) -> &str {
        self.0.device()
    }
    fn description(&self) -> Description {
        self.0.description()
    }
    fn embed(&self, images: ArrayView4<'_, f32>, output: Output) -> Result<Array2<f32>, EncoderError> {
        self.0.embed(images, output)
    }
    fn statistics(&mut self) -> Option<&mut dyn RunningStatistics> {
        self.0.statistics()
    }
    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        self.0.parameters()
    }
    fn gradient(&self, name: &str) -> Option<Vec<f32>> {
        self.0.gradient(name)
    }
    fn gradient_norm(&self) -> Result<f64, EncoderError> {
        self.0.gradient_norm()
    }
    fn reduce_gradients(&mut self, collective: &dyn Collective) -> Result<(), EncoderError> {
        self.0.reduce_gradients(collective)
    }
    fn join(
        &mut self,
        collective: Arc<dyn Collective>,
        batch_norm: SyncBatchNorm,
    ) -> Result<(), EncoderError> {
        self.0.join(collective, batch_norm)
    }
    fn state(&self) -> Result<StateDict, EncoderError> {
        self.0.state()
    }
    fn load_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        self.0.load_state(state)
    }
    fn optimizer_state(&self) -> Result<StateDict, EncoderError> {
        self.0.optimizer_state()
    }
    fn load_optimizer_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        self.0.load_optimizer_state(state)
    }
}
