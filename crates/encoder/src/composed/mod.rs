//! Units composed of dfdx's own operations, on any of its devices.
//!
//! dfdx 0.13 has no convolution or pooling on stable Rust, and these need none: a convolution is a gather of
//! patches and a matrix product ([`graph`]). dfdx differentiates what is inside a unit, so the gradients here and those of
//! the CPU's kernels, which are derived by hand, check each other.
//!
//! [`Composed`] is the engine; what it runs, [`Local`], stays on a thread of its own ([`worker`]).

mod graph;
mod indices;
mod local;
mod update;
mod worker;

use std::sync::Arc;

use dfdx::prelude::{Device, Tensor};
use ndarray::{Array2, ArrayView2, ArrayView4};
use swav_collective::Collective;

use crate::engine::{Engine, Part, Value};
use crate::layers::Layers;
use crate::{
    BoxedError, Checkpointing, EncoderError, EncoderSpec, Precision, Slots, UpdateRule, UpdateStats,
};
use local::Local;
use worker::Worker;

/// A vector on a device.
type Vector<D> = Tensor<(usize,), f32, D>;
/// A matrix on a device; of activations, rows are pixels and columns channels.
type Matrix<D, T = dfdx::prelude::NoneTape> = Tensor<(usize, usize), f32, D, T>;

/// Images on their way to the device: values and shape.
struct Images {
    values: Vec<f32>,
    shape: [usize; 4],
}

impl Images {
    fn of(images: &ArrayView4<'_, f32>) -> Self {
        let (n, h, w, c) = images.dim();
        Self { values: images.iter().copied().collect(), shape: [n, h, w, c] }
    }
}

/// The engine of dfdx's operations on its device `D`.
pub(crate) struct Composed<D: Device<f32>> {
    name: String,
    n_parameters: usize,
    worker: Worker<Local<D>>,
}

impl<D: Device<f32>> Composed<D> {
    /// Runs a specification on the device that `open` opens. Exactness is the device's: no fast algorithms.
    ///
    /// # Errors
    /// [`EncoderError::Unsupported`] for mixed precision, and what `open` returns.
    pub(crate) fn new(
        name: &str,
        spec: &EncoderSpec,
        layers: Arc<Layers>,
        open: impl FnOnce() -> Result<D, EncoderError> + Send + 'static,
    ) -> Result<Self, EncoderError> {
        if spec.config().precision == Precision::Mixed {
            return Err(EncoderError::Unsupported {
                device: name.to_owned(),
                what: "mixed precision",
                advice: "set encoder.precision = \"f32\", or take another device",
            });
        }
        let n_parameters = layers.parameters.len();
        let reruns_blocks = spec.config().checkpointing == Checkpointing::Blocks;
        let worker_name = name.to_owned();
        let worker = Worker::start(move || Local::new(worker_name, open()?, layers, reruns_blocks))?;
        Ok(Self { name: name.to_owned(), n_parameters, worker })
    }
}

/// A failure of a device.
fn failed(device: &str, error: impl std::fmt::Display) -> EncoderError {
    // dfdx promises of a device's errors that they can be shown, not that they are `std::error::Error`s.
    let source = BoxedError::from(error.to_string());
    EncoderError::Device { device: device.to_owned(), source }
}

impl<D: Device<f32>> Engine for Composed<D> {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, what: Value) -> Result<Vec<f32>, EncoderError> {
        Ok(self.worker.run(move |local| local.read(what)))
    }

    fn write(&mut self, what: Value, values: Vec<f32>) -> Result<(), EncoderError> {
        self.worker.run(move |local| local.write(what, values))
    }

    fn read_slots(&self, parameter: usize) -> Result<Slots, EncoderError> {
        Ok(self.worker.run(move |local| local.read_slots(parameter)))
    }

    fn write_slots(&mut self, parameter: usize, slots: Slots) -> Result<(), EncoderError> {
        self.worker.run(move |local| local.write_slots(parameter, slots))
    }

    fn forward_train(
        &mut self,
        groups: &[ArrayView4<'_, f32>],
        momentum: f32,
        record: bool,
    ) -> Result<Array2<f32>, EncoderError> {
        let groups = groups.iter().map(Images::of).collect();
        self.worker.run(move |local| local.forward_train(groups, momentum, record))
    }

    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError> {
        let gradient = gradient.to_owned();
        self.worker.run(move |local| local.backward(&gradient))
    }

    fn forward_infer(&self, images: ArrayView4<'_, f32>, part: Part) -> Result<Array2<f32>, EncoderError> {
        let images = Images::of(&images);
        self.worker.run(move |local| local.forward_infer(images, part))
    }

    fn gradient(&self, parameter: usize) -> Result<Vec<f32>, EncoderError> {
        self.worker.run(move |local| local.gradient(parameter))
    }

    fn gradient_norm(&self) -> Result<f64, EncoderError> {
        let add = |sum: f64, index| Ok(sum.hypot(swav_optim::norm(&self.gradient(index)?)));
        (0..self.n_parameters).try_fold(0.0, add)
    }

    /// By way of the host, where a collective is.
    fn reduce_gradients(&mut self, collective: &dyn Collective) -> Result<(), EncoderError> {
        let share = 1.0 / collective.world_size() as f32;
        for index in 0..self.n_parameters {
            let mut values = self.gradient(index)?;
            collective.sum_f32(&mut values)?;
            values.iter_mut().for_each(|value| *value *= share);
            self.worker.run(move |local| local.set_gradient(index, values))?;
        }
        Ok(())
    }

    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError> {
        let rule = *rule;
        self.worker.run(move |local| local.update(&rule))
    }

    fn forget(&mut self) {
        self.worker.run(Local::forget);
    }
}
