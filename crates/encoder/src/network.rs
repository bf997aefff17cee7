//! The network: names, shapes, initial values, state, batch-norm bookkeeping; what [`Encoder`] promises. Numbers are
//! its engine's.

use std::sync::Arc;

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, ArrayView4};
use swav_collective::Collective;
use swav_kernels::BN_MOMENTUM;

use crate::encoder::{check_groups, check_images};
use crate::engine::{Engine, Part, Value};
use crate::init::initial_values;
use crate::layers::{BATCHES, Layers, MEAN, ParameterInfo, VAR};
use crate::unit_length::{to_unit_length, unit_length_gradient};
use crate::{
    Crops, Description, DeviceMemory, Encoder, EncoderError, EncoderSpec, Output, RunningStatistics, Slots,
    StateDict, StateTensor, StepInputs, StepPlan, StepReport, SyncBatchNorm, TrainingStep, UpdateRule,
    UpdateStats, WholeStep,
};

/// Where a step is between its passes.
enum Phase {
    /// Nothing is remembered.
    Idle,
    /// Forward has run; backward needs the unit rows and what they were divided by.
    Forward { unit_rows: Array2<f32>, divisors: Vec<f32> },
    /// Backward has run: there are gradients.
    Backward,
}

/// An encoder that an engine runs.
pub(crate) struct Network {
    spec: EncoderSpec,
    layers: Arc<Layers>,
    engine: Box<dyn Engine>,
    /// Batches that each norm has seen.
    n_batches: Vec<u64>,
    /// Batches since the statistics were reset.
    n_observed: u64,
    phase: Phase,
    /// Whether embeddings are scaled to unit length: always, but where the backbone is trained alone.
    scales: bool,
}

impl Network {
    /// A network with initial parameters. The engine was made for these layers.
    pub(crate) fn new(
        spec: &EncoderSpec,
        layers: Arc<Layers>,
        engine: Box<dyn Engine>,
        seed: u64,
    ) -> Result<Self, EncoderError> {
        let n_batches = vec![0; layers.norms.len()];
        let (spec, phase) = (spec.clone(), Phase::Idle);
        let mut network = Self { spec, layers, engine, n_batches, n_observed: 0, phase, scales: true };
        for (index, info) in network.layers.parameters.iter().enumerate() {
            let values = info.to_engine_layout(&initial_values(info, seed));
            network.engine.write(Value::Parameter(index), values)?;
        }
        network.reset()?;
        Ok(network)
    }

    /// The network as it is, without the scaling to unit length.
    pub(crate) fn without_scaling(mut self) -> Self {
        self.scales = false;
        self
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.layers.parameters.iter().position(|info| info.name == name)
    }

    /// Forgets what belongs to the parameters as they were.
    fn forget(&mut self) {
        self.phase = Phase::Idle;
        self.engine.forget();
    }

    fn expect_gradients(&self) -> Result<(), EncoderError> {
        if matches!(self.phase, Phase::Backward) { Ok(()) } else { Err(EncoderError::NoGradients) }
    }

    /// A pass in training mode, counted by the norms: those of the backbone see each group, those of the head see all
    /// groups as one batch.
    fn train(
        &mut self,
        groups: &[ArrayView4<'_, f32>],
        momentum: f32,
        record: bool,
    ) -> Result<Array2<f32>, EncoderError> {
        check_groups(Crops::Values(groups))?;
        let rows = self.engine.forward_train(groups, momentum, record)?;
        self.count_batches(groups.len());
        Ok(rows)
    }

    fn count_batches(&mut self, n_groups: usize) {
        for (layers, n) in [(&self.layers.backbone, n_groups), (&self.layers.head, 1)] {
            for layer in layers {
                self.n_batches[layer.norms.clone()].iter_mut().for_each(|count| *count += n as u64);
            }
        }
    }

    /// Names of statistics and their shapes.
    fn statistic_names(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        self.layers.norms.iter().flat_map(|norm| {
            [(MEAN, vec![norm.channels]), (VAR, vec![norm.channels]), (BATCHES, vec![])]
                .map(|(what, shape)| (format!("{}.{what}", norm.name), shape))
        })
    }

    /// Whether a state has exactly what this network has.
    fn check_state(&self, state: &StateDict) -> Result<(), EncoderError> {
        let mut known: Vec<(String, Vec<usize>)> = self.parameters();
        known.extend(self.statistic_names());
        for (name, shape) in &known {
            if !name.ends_with(BATCHES) || state.get(name).is_some() {
                state.expect(name, shape)?;
            }
        }
        match state.iter().find(|(name, _)| !known.iter().any(|(known, _)| known == name)) {
            Some((name, _)) => Err(EncoderError::Unexpected { name: name.to_owned() }),
            None => Ok(()),
        }
    }

    /// The engine's whole step, of which [`Encoder::whole_step`] has made sure.
    fn engine_step(&mut self) -> Result<&mut dyn WholeStep, EncoderError> {
        let device = self.engine.name().to_owned();
        let advice = "run the passes one by one";
        self.engine.whole_step().ok_or(EncoderError::Unsupported { device, what: "whole steps", advice })
    }
}

/// A parameter's vectors beside it, changed from one layout to another; empty ones stay empty.
fn convert(slots: Slots, layout: impl Fn(Vec<f32>) -> Vec<f32>) -> Slots {
    let convert = |values: Vec<f32>| if values.is_empty() { values } else { layout(values) };
    Slots { first: convert(slots.first), second: convert(slots.second), n_updates: slots.n_updates }
}

fn tensor(info: &ParameterInfo, values: Vec<f32>) -> Result<StateTensor, EncoderError> {
    StateTensor::new(info.shape.clone(), info.to_state_layout(values))
}

impl Encoder for Network {
    fn embedding_dim(&self) -> usize {
        self.spec.embedding_dim()
    }

    fn feature_dim(&self) -> usize {
        self.spec.feature_dim()
    }

    fn layer_dims(&self) -> Vec<usize> {
        self.spec.layer_dims()
    }

    fn device(&self) -> &str {
        self.engine.name()
    }

    fn description(&self) -> Description {
        Description::Network(self.spec.config().clone())
    }

    fn forward_train(&mut self, groups: &[ArrayView4<'_, f32>]) -> Result<Array2<f32>, EncoderError> {
        self.forget();
        let mut rows = self.train(groups, BN_MOMENTUM, true)?;
        let divisors = if self.scales { to_unit_length(&mut rows) } else { Vec::new() };
        self.phase = Phase::Forward { unit_rows: rows.clone(), divisors };
        Ok(rows)
    }

    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError> {
        let Phase::Forward { unit_rows, divisors } = &self.phase else { return Err(EncoderError::NoForward) };
        let (expected, got) = (unit_rows.dim().into(), gradient.dim().into());
        if got != expected {
            return Err(EncoderError::GradientShape { expected, got });
        }
        let of_rows = self.scales.then(|| unit_length_gradient(unit_rows, divisors, gradient));
        self.phase = Phase::Idle;
        self.engine.backward(of_rows.as_ref().map_or(gradient, |rows| rows.view()))?;
        self.phase = Phase::Backward;
        Ok(())
    }

    fn reduce_gradients(&mut self, collective: &dyn Collective) -> Result<(), EncoderError> {
        self.expect_gradients()?;
        self.engine.reduce_gradients(collective)
    }

    fn join(
        &mut self,
        collective: Arc<dyn Collective>,
        batch_norm: SyncBatchNorm,
    ) -> Result<(), EncoderError> {
        match batch_norm {
            SyncBatchNorm::Off => Ok(()),
            SyncBatchNorm::On => self.engine.synchronise_batch_norm(collective),
        }
    }

    fn gradient_norm(&self) -> Result<f64, EncoderError> {
        self.expect_gradients()?;
        self.engine.gradient_norm()
    }

    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError> {
        self.expect_gradients()?;
        self.phase = Phase::Idle;
        self.engine.update(rule)
    }

    fn embed(&self, images: ArrayView4<'_, f32>, output: Output) -> Result<Array2<f32>, EncoderError> {
        check_images(&images)?;
        self.output_dim(output)?;
        let part = match output {
            Output::Embedding => Part::Whole,
            // The last stage gives the features, on devices that have no inner ones, too.
            Output::Layer(stage) if stage < self.layers.stage_ends.len() => Part::Stage(stage),
            Output::Features | Output::Layer(_) => Part::Backbone,
        };
        let mut rows = self.engine.forward_infer(images, part)?;
        if output == Output::Embedding && self.scales {
            to_unit_length(&mut rows);
        }
        Ok(rows)
    }

    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        self.layers.parameters.iter().map(|info| (info.name.clone(), info.shape.clone())).collect()
    }

    fn gradient(&self, name: &str) -> Option<Vec<f32>> {
        self.expect_gradients().ok()?;
        let index = self.index_of(name)?;
        let values = self.engine.gradient(index).ok()?;
        Some(self.layers.parameters[index].to_state_layout(values))
    }

    fn state(&self) -> Result<StateDict, EncoderError> {
        let mut state = StateDict::new();
        for (index, info) in self.layers.parameters.iter().enumerate() {
            state.insert(&info.name, tensor(info, self.engine.read(Value::Parameter(index))?)?);
        }
        for (index, (norm, &n_batches)) in self.layers.norms.iter().zip(&self.n_batches).enumerate() {
            for (what, value) in [(MEAN, Value::Mean(index)), (VAR, Value::Variance(index))] {
                let tensor = StateTensor::new(vec![norm.channels], self.engine.read(value)?)?;
                state.insert(format!("{}.{what}", norm.name), tensor);
            }
            state.insert(format!("{}.{BATCHES}", norm.name), StateTensor::scalar(n_batches as f32));
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        self.check_state(state)?;
        self.forget();
        for (index, info) in self.layers.parameters.iter().enumerate() {
            let values = state.expect(&info.name, &info.shape)?.data();
            self.engine.write(Value::Parameter(index), info.to_engine_layout(values))?;
        }
        for (index, norm) in self.layers.norms.iter().enumerate() {
            for (what, value) in [(MEAN, Value::Mean(index)), (VAR, Value::Variance(index))] {
                let tensor = state.expect(&format!("{}.{what}", norm.name), &[norm.channels])?;
                self.engine.write(value, tensor.data().to_vec())?;
            }
            let count = state.get(&format!("{}.{BATCHES}", norm.name));
            self.n_batches[index] = count.map_or(0, |count| count.data()[0] as u64);
        }
        Ok(())
    }

    fn optimizer_state(&self) -> Result<StateDict, EncoderError> {
        let mut state = StateDict::new();
        for (index, info) in self.layers.parameters.iter().enumerate() {
            let slots = convert(self.engine.read_slots(index)?, |values| info.to_state_layout(values));
            state.insert_slots(&info.name, &info.shape, &slots);
        }
        Ok(state)
    }

    fn load_optimizer_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        let names = self.layers.parameters.iter().map(|info| info.name.as_str());
        if let Some(name) = state.foreign_slot(names) {
            return Err(EncoderError::Unexpected { name: name.to_owned() });
        }
        let infos = self.layers.parameters.iter();
        let all: Result<Vec<Slots>, _> = infos.map(|info| state.slots(&info.name, &info.shape)).collect();
        for (index, (info, slots)) in self.layers.parameters.iter().zip(all?).enumerate() {
            self.engine.write_slots(index, convert(slots, |values| info.to_engine_layout(&values)))?;
        }
        Ok(())
    }

    fn statistics(&mut self) -> Option<&mut dyn RunningStatistics> {
        Some(self)
    }

    fn choices(&self) -> Option<String> {
        self.engine.choices()
    }

    fn adopt_choices(&mut self, choices: &str) -> Result<(), EncoderError> {
        self.engine.adopt_choices(choices)
    }

    fn device_memory(&self, step: TrainingStep<'_>, rule: &UpdateRule) -> Option<DeviceMemory> {
        self.engine.device_memory(step, rule)
    }

    fn whole_step(&mut self) -> Option<&mut dyn WholeStep> {
        match self.engine.whole_step() {
            Some(_) => Some(self),
            None => None,
        }
    }
}

impl RunningStatistics for Network {
    fn reset(&mut self) -> Result<(), EncoderError> {
        for (index, norm) in self.layers.norms.iter().enumerate() {
            self.engine.write(Value::Mean(index), vec![0.0; norm.channels])?;
            self.engine.write(Value::Variance(index), vec![1.0; norm.channels])?;
        }
        self.n_batches.fill(0);
        self.n_observed = 0;
        Ok(())
    }

    fn observe(&mut self, images: ArrayView4<'_, f32>) -> Result<(), EncoderError> {
        self.n_observed += 1;
        self.train(&[images], 1.0 / self.n_observed as f32, false).map(drop)
    }
}

/// The engine's whole step, with the count of batches that the network keeps.
impl WholeStep for Network {
    fn prepare(&mut self, plan: &StepPlan) -> Result<(), EncoderError> {
        self.forget();
        self.engine_step()?.prepare(plan)
    }

    fn load_prototypes(
        &mut self,
        prototypes: ArrayView2<'_, f32>,
        slots: &Slots,
    ) -> Result<(), EncoderError> {
        self.engine_step()?.load_prototypes(prototypes, slots)
    }

    fn prototypes(&mut self) -> Result<(Array2<f32>, Slots), EncoderError> {
        self.engine_step()?.prototypes()
    }

    fn load_queue(&mut self, queue: ArrayView3<'_, f32>) -> Result<(), EncoderError> {
        self.engine_step()?.load_queue(queue)
    }

    fn queue(&mut self) -> Result<Array3<f32>, EncoderError> {
        self.engine_step()?.queue()
    }

    fn step(&mut self, crops: Crops<'_>, inputs: &StepInputs) -> Result<Option<StepReport>, EncoderError> {
        check_groups(crops)?;
        let report = self.engine_step()?.step(crops, inputs)?;
        self.count_batches(crops.shapes().len());
        Ok(report)
    }

    fn finish(&mut self) -> Result<Vec<StepReport>, EncoderError> {
        self.engine_step()?.finish()
    }
}
