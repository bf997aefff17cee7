//! The CPU: fused kernels of `swav-kernels`, one operation per unit.
//!
//! dfdx's tape orders the backward operations and its `Gradients` hold those of the parameters; see [`tape`].
//! Activations, what is saved for backward and gradients travel by move, and every large buffer returns to one pool.

mod tape;

use std::sync::{Arc, OnceLock};

use dfdx::prelude::{Cpu, Gradients};
use ndarray::{Array2, ArrayView2, ArrayView4};
use rayon::prelude::*;
use swav_collective::Collective;
use swav_kernels::net::{self, Ready, RunningStats};
use swav_kernels::{self as kernels};
use swav_optim::{Role, apply, norm};

use crate::engine::{Engine, Part, Value, Walk};
use crate::layers::{Layer, Layers};
use crate::{BoxedError, EncoderError, EncoderSpec, Slots, UpdateRule, UpdateStats};
use tape::{Key, Record, Shared};

const NAME: &str = "cpu";

/// Running statistics of one batch norm.
struct Running {
    mean: Vec<f32>,
    var: Vec<f32>,
}

/// The engine of the CPU.
pub(crate) struct Kernels {
    layers: Arc<Layers>,
    tensors: Cpu,
    context: Arc<kernels::Context>,
    keys: Arc<[Key]>,
    /// Shared with the operations of a backward pass, which are gone when parameters change.
    parameters: Vec<Arc<Vec<f32>>>,
    running: Vec<Running>,
    /// The layers ready for inference with parameters and statistics as they are; dropped when those change.
    ready: OnceLock<Vec<Box<dyn Ready>>>,
    slots: Vec<Slots>,
    /// Of the pass that waits for its backward.
    records: Vec<Record>,
    gradients: Option<Gradients<f32, Cpu>>,
}

impl Kernels {
    /// The kernels that a specification asks for.
    pub(crate) fn new(spec: &EncoderSpec, layers: Arc<Layers>) -> Result<Self, EncoderError> {
        let config = spec.config();
        let options = kernels::Options {
            precision: config.precision,
            exact: config.exact,
            matrix_unit: config.matrix_unit,
            checkpointing: config.checkpointing,
            isa: None,
        };
        let tensors = Cpu::default();
        let keys = layers.parameters.iter().map(|info| Key::new(&tensors, info.len()));
        Ok(Self {
            context: Arc::new(kernels::Context::new(options)?),
            keys: keys.collect::<Result<_, _>>().map_err(failed)?,
            parameters: layers.parameters.iter().map(|info| Arc::new(vec![0.0; info.len()])).collect(),
            running: (layers.norms.iter())
                .map(|norm| Running { mean: vec![0.0; norm.channels], var: vec![1.0; norm.channels] })
                .collect(),
            ready: OnceLock::new(),
            slots: vec![Slots::default(); layers.parameters.len()],
            records: Vec::new(),
            gradients: None,
            tensors,
            layers,
        })
    }

    fn slices(&self, layer: &Layer) -> Vec<&[f32]> {
        self.parameters[layer.parameters.clone()].iter().map(|values| values.as_slice()).collect()
    }

    fn input(&self, images: &ArrayView4<'_, f32>) -> kernels::Activations {
        let &[n, h, w, c] = images.shape() else { unreachable!("an array of four dimensions") };
        let mut activations = self.context.activations([n, h, w, c], kernels::Precision::F32);
        match images.as_slice() {
            Some(values) => activations.words.copy_from_slice(values),
            None => activations.words.iter_mut().zip(images).for_each(|(word, &value)| *word = value),
        }
        activations
    }

    /// The layers ready for inference.
    fn ready(&self) -> Result<&[Box<dyn Ready>], EncoderError> {
        if let Some(ready) = self.ready.get() {
            return Ok(ready);
        }
        let ready = self.layers.iter().map(|layer| {
            let running: Vec<RunningStats<'_>> = (self.running[layer.norms.clone()].iter())
                .map(|running| RunningStats { mean: &running.mean, var: &running.var })
                .collect();
            layer.unit.kernel().ready(&self.context, &self.parameters[layer.parameters.clone()], &running)
        });
        let ready = ready.collect::<Result<_, _>>()?;
        Ok(self.ready.get_or_init(|| ready))
    }

    fn output(&self, activations: kernels::Activations) -> Array2<f32> {
        let [n, _, _, channels] = activations.shape;
        let rows = Array2::from_shape_vec((n, channels), activations.to_f32());
        self.context.recycle(activations);
        rows.expect("rows of one pixel each")
    }

    fn gradients(&self) -> Result<&Gradients<f32, Cpu>, EncoderError> {
        self.gradients.as_ref().ok_or(EncoderError::NoGradients)
    }
}

/// Batch norm's sums over the processes.
struct Across(Arc<dyn Collective>);

impl std::fmt::Debug for Across {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.0.rank(), self.0.world_size())
    }
}

impl kernels::SumAcross for Across {
    fn sum(&self, values: &mut [f64]) -> Result<(), BoxedError> {
        Ok(self.0.sum_f64(values)?)
    }
}

/// A failure of dfdx on the CPU.
fn failed(error: dfdx::prelude::CpuError) -> EncoderError {
    EncoderError::Device { device: NAME.to_owned(), source: Box::new(error) }
}

/// A kernels' error with the layer's name where it helps.
fn named(error: kernels::Error, layer: &str) -> EncoderError {
    match error {
        kernels::Error::TooFewForBatchNorm { got } => {
            EncoderError::BatchTooSmall { layer: layer.to_owned(), got }
        }
        error => error.into(),
    }
}

/// Rows one after the other, and how many words each part has.
fn joined(
    context: &kernels::Context,
    parts: Vec<kernels::Activations>,
) -> (kernels::Activations, Vec<usize>) {
    let channels = parts.first().map_or(0, |part| part.shape[3]);
    let n_rows = parts.iter().map(|part| part.shape[0]).sum();
    let mut rows = context.activations([n_rows, 1, 1, channels], kernels::Precision::F32);
    let mut rest = rows.words.as_mut_slice();
    let mut lengths = Vec::with_capacity(parts.len());
    for part in parts {
        let (words, tail) = rest.split_at_mut(part.words.len());
        words.copy_from_slice(&part.words);
        lengths.push(words.len());
        rest = tail;
        context.recycle(part);
    }
    (rows, lengths)
}

/// A pass in training mode.
struct Training<'a> {
    engine: &'a mut Kernels,
    momentum: f32,
    record: bool,
}

impl Walk for Training<'_> {
    type Activations = kernels::Activations;

    fn unit(
        &mut self,
        layer: &Layer,
        input: kernels::Activations,
        wants_input_gradient: bool,
    ) -> Result<kernels::Activations, EncoderError> {
        let engine = &mut *self.engine;
        let context = Arc::clone(&engine.context);
        let (output, saved) = (layer.unit.kernel())
            .forward_train(&context, input, &engine.slices(layer))
            .map_err(|error| named(error, layer.display_name()))?;
        for (stats, running) in saved.stats().iter().zip(&mut engine.running[layer.norms.clone()]) {
            stats.update_running(&mut running.mean, &mut running.var, self.momentum)?;
        }
        if self.record {
            let (unit, parameters) = (layer.unit.clone(), layer.parameters.clone());
            let precision = output.precision;
            engine.records.push(Record::Unit { unit, saved, parameters, precision, wants_input_gradient });
        } else {
            saved.discard(&context);
        }
        Ok(output)
    }

    fn concat(&mut self, parts: Vec<kernels::Activations>) -> Result<kernels::Activations, EncoderError> {
        let (rows, lengths) = joined(&self.engine.context, parts);
        if self.record {
            self.engine.records.push(Record::Concat { lengths });
        }
        Ok(rows)
    }
}

impl Engine for Kernels {
    fn name(&self) -> &str {
        NAME
    }

    fn read(&self, what: Value) -> Result<Vec<f32>, EncoderError> {
        Ok(match what {
            Value::Parameter(index) => self.parameters[index].to_vec(),
            Value::Mean(index) => self.running[index].mean.clone(),
            Value::Variance(index) => self.running[index].var.clone(),
        })
    }

    fn write(&mut self, what: Value, values: Vec<f32>) -> Result<(), EncoderError> {
        self.ready.take();
        match what {
            Value::Parameter(index) => self.parameters[index] = Arc::new(values),
            Value::Mean(index) => self.running[index].mean = values,
            Value::Variance(index) => self.running[index].var = values,
        }
        Ok(())
    }

    fn read_slots(&self, parameter: usize) -> Result<Slots, EncoderError> {
        Ok(self.slots[parameter].clone())
    }

    fn write_slots(&mut self, parameter: usize, slots: Slots) -> Result<(), EncoderError> {
        self.slots[parameter] = slots;
        Ok(())
    }

    fn forward_train(
        &mut self,
        groups: &[ArrayView4<'_, f32>],
        momentum: f32,
        record: bool,
    ) -> Result<Array2<f32>, EncoderError> {
        // Running statistics change, and in a training step parameters will.
        self.ready.take();
        let layers = Arc::clone(&self.layers);
        let inputs = groups.iter().map(|group| self.input(group)).collect();
        let output = layers.walk(&mut Training { engine: self, momentum, record }, inputs)?;
        Ok(self.output(output))
    }

    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError> {
        let mut words = self.context.pool().take(gradient.len());
        words.iter_mut().zip(gradient).for_each(|(word, &g)| *word = g);
        let shared = Shared {
            context: Arc::clone(&self.context),
            parameters: self.parameters.clone(),
            keys: Arc::clone(&self.keys),
        };
        let records = std::mem::take(&mut self.records);
        self.gradients = Some(tape::run(&self.tensors, shared, records, words)?);
        Ok(())
    }

    fn forward_infer(&self, images: ArrayView4<'_, f32>, part: Part) -> Result<Array2<f32>, EncoderError> {
        let (n, h, w, c) = images.dim();
        let ready = self.ready()?;
        let units: Vec<&dyn Ready> = self.layers.part(part).map(|index| &*ready[index]).collect();
        let images = images.as_standard_layout();
        let values = images.as_slice().expect("an array in standard layout");
        let flow = net::infer(&self.context, &units, values, [n, h, w, c])?;
        Ok(self.output(flow))
    }

    fn gradient(&self, parameter: usize) -> Result<Vec<f32>, EncoderError> {
        Ok(self.keys[parameter].read(self.gradients()?))
    }

    fn gradient_norm(&self) -> Result<f64, EncoderError> {
        let gradients = self.gradients()?;
        Ok(self.keys.iter().map(|key| norm(&key.read(gradients))).fold(0.0, f64::hypot))
    }

    fn reduce_gradients(&mut self, collective: &dyn Collective) -> Result<(), EncoderError> {
        let gradients = self.gradients.as_mut().ok_or(EncoderError::NoGradients)?;
        let share = 1.0 / collective.world_size() as f32;
        for key in self.keys.iter() {
            let values = key.of(gradients).map_err(failed)?;
            collective.sum_f32(values)?;
            values.iter_mut().for_each(|value| *value *= share);
        }
        Ok(())
    }

    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError> {
        let mut gradients = self.gradients.take().ok_or(EncoderError::NoGradients)?;
        self.ready.take();
        let mut taken = Vec::with_capacity(self.keys.len());
        for key in self.keys.iter() {
            taken.push(key.take(&mut gradients).map_err(failed)?);
        }
        // A parameter a task: each is summed in order, and the norms are merged in order.
        let roles: Vec<Role> = self.layers.parameters.iter().map(|info| info.role).collect();
        let values = self.parameters.iter_mut().map(Arc::make_mut);
        let tasks: Vec<_> = values.zip(&mut self.slots).zip(taken.iter().zip(roles)).collect();
        let stats: Vec<UpdateStats> = tasks
            .into_par_iter()
            .map(|((values, slots), (gradient, role))| apply(rule, role, values, gradient, slots))
            .collect();
        // Back to where dfdx will find the memory again.
        for (key, gradient) in self.keys.iter().zip(taken) {
            key.put(&mut gradients, gradient).map_err(failed)?;
        }
        Ok(stats.into_iter().fold(UpdateStats::default(), UpdateStats::merge))
    }

    fn synchronise_batch_norm(&mut self, collective: Arc<dyn Collective>) -> Result<(), EncoderError> {
        self.forget();
        let across: Option<Arc<dyn kernels::SumAcross>> = match collective.world_size() {
            1 => None,
            _ => Some(Arc::new(Across(collective))),
        };
        Arc::get_mut(&mut self.context).expect("no pass is under way").set_sum_across(across);
        Ok(())
    }

    fn forget(&mut self) {
        for record in self.records.drain(..) {
            record.discard(&self.context);
        }
        self.gradients = None;
    }
}
