//! The seam between the network and what runs it.
//!
//! A [`Network`](crate::network::Network) knows names, shapes, initial values and what an
//! [`Encoder`](crate::Encoder) promises. An engine knows numbers: it owns parameters, statistics, the optimiser's
//! slots, activations, tape and gradients in whatever types suit its device, and runs the network's units forward and
//! backward. None of these types is visible here, so anything can stand behind the seam: loops over slices, a tensor
//! library, a captured graph of launches on a GPU.
//!
//! | engine | device names | runs |
//! |---|---|---|
//! | [`cpu`](crate::cpu) | `cpu` | fused kernels of `swav-kernels`; dfdx's tape orders backward |
//! | `cuda` | `cuda:N` (feature `cuda`) | the tapes of `swav-cuda` |
//! | [`composed`](crate::composed) | `dfdx:cpu`, `dfdx:cuda:N` | dfdx's own operations |
//!
//! Values cross the seam in the layout of the units' own parameters: convolutions as OHWI.

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayView4};
use swav_collective::Collective;

use crate::layers::{Layer, Layers};
use crate::{DeviceMemory, EncoderError, Slots, TrainingStep, UpdateRule, UpdateStats, WholeStep};

/// A vector that an engine holds, by its index in the lists of [`Layers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// A parameter.
    Parameter(usize),
    /// The running mean of a batch norm.
    Mean(usize),
    /// The running variance of a batch norm.
    Variance(usize),
}

/// How much of the network an inference pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Up to the features.
    Backbone,
    /// Backbone and head.
    Whole,
    /// Up to the end of a stage, counted from 1, and the mean over positions.
    Stage(usize),
}

/// Something that runs a network. The network calls in order: what [`backward`](Engine::backward) needs is there
/// when it is called, so is what [`gradient`](Engine::gradient) and [`update`](Engine::update) need.
pub(crate) trait Engine: Send {
    /// The device's name, as the registry takes it.
    fn name(&self) -> &str;

    /// Reads a vector.
    fn read(&self, what: Value) -> Result<Vec<f32>, EncoderError>;

    /// Replaces a vector by one of the same length.
    fn write(&mut self, what: Value, values: Vec<f32>) -> Result<(), EncoderError>;

    /// Reads what the optimiser remembers of a parameter.
    fn read_slots(&self, parameter: usize) -> Result<Slots, EncoderError>;

    /// Replaces what the optimiser remembers of a parameter.
    fn write_slots(&mut self, parameter: usize, slots: Slots) -> Result<(), EncoderError>;

    /// All groups in training mode, each through the backbone as a batch of its own, all rows through the head at
    /// once. Running statistics move towards each batch's by the share `momentum`, group by group. Where `record` is
    /// set, what backward needs is remembered. Returns the head's rows, not scaled, group by group.
    fn forward_train(
        &mut self,
        groups: &[ArrayView4<'_, f32>],
        momentum: f32,
        record: bool,
    ) -> Result<Array2<f32>, EncoderError>;

    /// Backward from the gradient of what the recorded pass returned; uses up what it remembered.
    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError>;

    /// Images in inference mode, rows not scaled.
    fn forward_infer(&self, images: ArrayView4<'_, f32>, part: Part) -> Result<Array2<f32>, EncoderError>;

    /// A parameter's gradient.
    fn gradient(&self, parameter: usize) -> Result<Vec<f32>, EncoderError>;

    /// The Euclidean norm of all gradients together.
    fn gradient_norm(&self) -> Result<f64, EncoderError>;

    /// Replaces every gradient by its mean over the processes.
    fn reduce_gradients(&mut self, collective: &dyn Collective) -> Result<(), EncoderError>;

    /// Applies a rule to all parameters and drops the gradients.
    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError>;

    /// Drops what was remembered for backward, and the gradients.
    fn forget(&mut self);

    /// From now on batch norms in training take their statistics over all processes.
    fn synchronise_batch_norm(&mut self, collective: Arc<dyn Collective>) -> Result<(), EncoderError> {
        drop(collective);
        Err(EncoderError::Unsupported {
            device: self.name().to_owned(),
            what: "batch norm that is synchronised between processes",
            advice: "use `--device cpu`, or statistics of each process's own (training.sync_batch_norm = false)",
        })
    }

    /// As [`Encoder::choices`](crate::Encoder::choices).
    fn choices(&self) -> Option<String> {
        None
    }

    /// As [`Encoder::adopt_choices`](crate::Encoder::adopt_choices).
    fn adopt_choices(&mut self, _choices: &str) -> Result<(), EncoderError> {
        Ok(())
    }

    /// As [`Encoder::device_memory`](crate::Encoder::device_memory).
    fn device_memory(&self, _step: TrainingStep<'_>, _rule: &UpdateRule) -> Option<DeviceMemory> {
        None
    }

    /// The engine's way to run a whole training step, if it has one.
    fn whole_step(&mut self) -> Option<&mut dyn WholeStep> {
        None
    }
}

/// A pass unit by unit, for engines that work so.
pub(crate) trait Walk {
    /// Activations on the device.
    type Activations;

    /// Runs one unit. Its input's gradient is wanted unless the input is the images.
    fn unit(
        &mut self,
        layer: &Layer,
        input: Self::Activations,
        wants_input_gradient: bool,
    ) -> Result<Self::Activations, EncoderError>;

    /// The rows of several outputs one after the other.
    fn concat(&mut self, parts: Vec<Self::Activations>) -> Result<Self::Activations, EncoderError>;
}

impl Layers {
    /// Every input through the backbone, and the rows of all through the head.
    pub(crate) fn walk<W: Walk>(
        &self,
        pass: &mut W,
        inputs: Vec<W::Activations>,
    ) -> Result<W::Activations, EncoderError> {
        let mut features = Vec::with_capacity(inputs.len());
        for mut flow in inputs {
            for (index, layer) in self.backbone.iter().enumerate() {
                flow = pass.unit(layer, flow, index > 0)?;
            }
            features.push(flow);
        }
        let mut flow = match features.len() {
            1 => features.remove(0),
            _ => pass.concat(features)?,
        };
        for layer in &self.head {
            flow = pass.unit(layer, flow, true)?;
        }
        Ok(flow)
    }
}
