//! The network on a device: layers, parameters, statistics, optimiser state; what [`Encoder`] promises.

use std::cell::RefCell;

use ndarray::{Array2, ArrayView2};
use swav_kernels::BN_MOMENTUM;

use crate::device::{Arguments, EncoderDevice, GradientsOf, Momentum, Running, TapeOf};
use crate::init::initial_values;
use crate::layers::{Layer, Layers, ParameterInfo};
use crate::{
    Encoder, EncoderError, EncoderSpec, ImageBatch, Output, Role, Slots, StateDict, StateTensor, UpdateRule,
    UpdateStats,
};

const MEAN: &str = "running_mean";
const VAR: &str = "running_var";
const BATCHES: &str = "num_batches_tracked";

/// A forward pass that waits for its backward pass.
struct Pending<D: EncoderDevice> {
    root: D::Root,
    tape: TapeOf<D>,
    shape: [usize; 2],
}

/// An encoder on the device `D`.
pub(crate) struct Network<D: EncoderDevice> {
    spec: EncoderSpec,
    layers: Layers,
    device: D,
    parameters: Vec<D::Parameter>,
    slots: Vec<D::Slots>,
    running: Vec<Running<D::Parameter>>,
    /// By norm.
    n_batches: Vec<u64>,
    /// Batches since the statistics were reset.
    n_observed: u64,
    pending: Option<Pending<D>>,
    /// In a cell, since dfdx only lends gradients that may be missing from a mutable reference.
    gradients: RefCell<Option<GradientsOf<D>>>,
}

impl<D: EncoderDevice> Network<D> {
    /// A network with initial parameters.
    pub(crate) fn new(spec: &EncoderSpec, device: D, seed: u64) -> Result<Self, EncoderError> {
        let layers = Layers::new(spec);
        let mut parameters = Vec::with_capacity(layers.parameters.len());
        let mut fan_in = 0;
        for info in &layers.parameters {
            if let [_, inputs] = info.device_shape[..] {
                // A linear layer's weight comes before its bias.
                fan_in = inputs;
            }
            parameters.push(device.upload(info.to_device_layout(&initial_values(info, fan_in, seed)))?);
        }
        let slots = layers.parameters.iter().map(|_| D::Slots::default()).collect();
        let n_batches = vec![0; layers.norms.len()];
        let mut network = Self {
            spec: spec.clone(),
            layers,
            device,
            parameters,
            slots,
            running: Vec::new(),
            n_batches,
            n_observed: 0,
            pending: None,
            gradients: RefCell::new(None),
        };
        network.running = network.initial_statistics()?;
        Ok(network)
    }

    /// The backbone alone, without the scaling to unit length.
    #[cfg(test)]
    pub(crate) fn without_head(mut self) -> Self {
        self.layers.head.clear();
        self
    }

    fn initial_statistics(&self) -> Result<Vec<Running<D::Parameter>>, EncoderError> {
        let upload = |value, n| self.device.upload(vec![value; n]);
        let norms = self.layers.norms.iter();
        norms
            .map(|norm| Ok(Running { mean: upload(0.0, norm.channels)?, var: upload(1.0, norm.channels)? }))
            .collect()
    }

    /// All groups in training mode; the tape gets every operation.
    fn train_pass(
        &mut self,
        groups: &[ImageBatch<'_>],
        momentum: Momentum,
        mut tape: Option<&mut TapeOf<D>>,
    ) -> Result<D::Activations, EncoderError> {
        if groups.is_empty() {
            return Err(EncoderError::ImageBatch {
                expected: "at least one group".into(),
                got: "none".into(),
            });
        }
        // All images first: a copy to a GPU waits for the work queued before it.
        let inputs: Vec<_> =
            groups.iter().map(|&group| self.device.input(group)).collect::<Result<_, _>>()?;
        let mut features = Vec::with_capacity(groups.len());
        for input in inputs {
            let mut flow = input;
            for (index, layer) in self.layers.backbone.iter().enumerate() {
                let arguments = arguments(layer, &self.parameters);
                let running = &mut self.running[layer.norms.clone()];
                flow = self.device.forward_train(
                    &arguments,
                    flow,
                    running,
                    momentum,
                    tape.as_deref_mut(),
                    index > 0,
                )?;
                self.n_batches[layer.norms.clone()].iter_mut().for_each(|n| *n += 1);
            }
            features.push(flow);
        }
        let mut flow = match features.len() {
            1 => features.remove(0),
            _ => self.device.concat(features, tape.as_deref_mut())?,
        };
        for layer in &self.layers.head {
            let arguments = arguments(layer, &self.parameters);
            let running = &mut self.running[layer.norms.clone()];
            flow =
                self.device.forward_train(&arguments, flow, running, momentum, tape.as_deref_mut(), true)?;
            self.n_batches[layer.norms.clone()].iter_mut().for_each(|n| *n += 1);
        }
        Ok(flow)
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.layers.parameters.iter().position(|info| info.name == name)
    }

    /// Forgets what belongs to the parameters as they were.
    fn forget_step(&mut self) {
        self.pending = None;
        *self.gradients.get_mut() = None;
    }

    /// Names of statistics and their shapes.
    fn statistic_names(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        self.layers.norms.iter().flat_map(|norm| {
            [(MEAN, vec![norm.channels]), (VAR, vec![norm.channels]), (BATCHES, vec![])]
                .map(|(what, shape)| (format!("{}.{what}", norm.name), shape))
        })
    }
}

fn arguments<'a, P>(layer: &'a Layer, parameters: &'a [P]) -> Arguments<'a, P> {
    Arguments {
        unit: &layer.unit,
        name: layer.display_name(),
        parameters: &parameters[layer.parameters.clone()],
    }
}

fn tensor(info: &ParameterInfo, device_values: Vec<f32>) -> Result<StateTensor, EncoderError> {
    StateTensor::new(info.state_shape(), info.to_state_layout(device_values))
}

impl<D: EncoderDevice> Encoder for Network<D> {
    fn embedding_dim(&self) -> usize {
        self.spec.embedding_dim()
    }

    fn feature_dim(&self) -> usize {
        self.spec.feature_dim()
    }

    fn device(&self) -> String {
        self.device.name()
    }

    fn forward_train(&mut self, groups: &[ImageBatch<'_>]) -> Result<Array2<f32>, EncoderError> {
        self.forget_step();
        let mut tape = TapeOf::<D>::default();
        let output = self.train_pass(groups, Momentum(BN_MOMENTUM), Some(&mut tape))?;
        let (embeddings, root) = self.device.root(output)?;
        let shape = [embeddings.nrows(), embeddings.ncols()];
        self.pending = Some(Pending { root, tape, shape });
        Ok(embeddings)
    }

    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError> {
        let Pending { root, tape, shape } = self.pending.take().ok_or(EncoderError::NoForward)?;
        let got = [gradient.nrows(), gradient.ncols()];
        if got != shape {
            self.pending = Some(Pending { root, tape, shape });
            return Err(EncoderError::GradientShape { expected: shape, got });
        }
        *self.gradients.get_mut() = Some(self.device.backward(root, gradient, tape)?);
        Ok(())
    }

    fn embed(&self, images: ImageBatch<'_>, output: Output) -> Result<Array2<f32>, EncoderError> {
        let head = match output {
            Output::Features => &[][..],
            Output::Embedding => &self.layers.head,
        };
        let mut flow = self.device.input(images)?;
        for layer in self.layers.backbone.iter().chain(head) {
            let running = &self.running[layer.norms.clone()];
            flow = self.device.forward_infer(&arguments(layer, &self.parameters), flow, running)?;
        }
        self.device.output(flow)
    }

    fn reset_statistics(&mut self) -> Result<(), EncoderError> {
        self.running = self.initial_statistics()?;
        self.n_batches.fill(0);
        self.n_observed = 0;
        Ok(())
    }

    fn observe_statistics(&mut self, images: ImageBatch<'_>) -> Result<(), EncoderError> {
        self.n_observed += 1;
        let momentum = Momentum(1.0 / self.n_observed as f32);
        self.train_pass(&[images], momentum, None).map(drop)
    }

    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        self.layers.parameters.iter().map(|info| (info.name.clone(), info.state_shape())).collect()
    }

    fn gradient(&self, name: &str) -> Option<Vec<f32>> {
        let index = self.index_of(name)?;
        let mut gradients = self.gradients.borrow_mut();
        let values = self.device.gradient(gradients.as_mut()?, &self.parameters[index]);
        Some(self.layers.parameters[index].to_state_layout(values))
    }

    fn map_gradients(&mut self, change: &mut dyn FnMut(&str, &mut [f32])) -> Result<(), EncoderError> {
        let gradients = self.gradients.get_mut().as_mut().ok_or(EncoderError::NoGradients)?;
        for (info, parameter) in self.layers.parameters.iter().zip(&self.parameters) {
            let mut values = self.device.gradient(gradients, parameter);
            change(&info.name, &mut values);
            self.device.set_gradient(gradients, parameter, values)?;
        }
        Ok(())
    }

    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError> {
        let gradients = self.gradients.get_mut().take().ok_or(EncoderError::NoGradients)?;
        let roles: Vec<Role> = self.layers.parameters.iter().map(ParameterInfo::role).collect();
        self.device.update(rule, &roles, &mut self.parameters, &mut self.slots, gradients)
    }

    fn state(&self) -> Result<StateDict, EncoderError> {
        let mut state = StateDict::new();
        for (info, parameter) in self.layers.parameters.iter().zip(&self.parameters) {
            state.insert(&info.name, tensor(info, self.device.download(parameter))?);
        }
        for ((norm, running), &n_batches) in self.layers.norms.iter().zip(&self.running).zip(&self.n_batches)
        {
            for (what, values) in [(MEAN, &running.mean), (VAR, &running.var)] {
                let tensor = StateTensor::new(vec![norm.channels], self.device.download(values))?;
                state.insert(format!("{}.{what}", norm.name), tensor);
            }
            state.insert(format!("{}.{BATCHES}", norm.name), StateTensor::scalar(n_batches as f32));
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        let mut known: Vec<(String, Vec<usize>)> = self.parameters();
        known.extend(self.statistic_names());
        for (name, shape) in &known {
            if !name.ends_with(BATCHES) || state.get(name).is_some() {
                state.expect(name, shape)?;
            }
        }
        if let Some((name, _)) = state.iter().find(|(name, _)| !known.iter().any(|(known, _)| known == name))
        {
            return Err(EncoderError::Unexpected { name: name.to_owned() });
        }
        let mut parameters = Vec::with_capacity(self.parameters.len());
        for info in &self.layers.parameters {
            let values = state.expect(&info.name, &info.state_shape())?.data();
            parameters.push(self.device.upload(info.to_device_layout(values))?);
        }
        let mut running = Vec::with_capacity(self.running.len());
        let mut n_batches = Vec::with_capacity(self.running.len());
        for norm in &self.layers.norms {
            let values = |what| state.expect(&format!("{}.{what}", norm.name), &[norm.channels]);
            let upload = |what| self.device.upload(values(what)?.data().to_vec());
            running.push(Running { mean: upload(MEAN)?, var: upload(VAR)? });
            let count = state.get(&format!("{}.{BATCHES}", norm.name));
            n_batches.push(count.map_or(0, |count| count.data()[0] as u64));
        }
        (self.parameters, self.running, self.n_batches) = (parameters, running, n_batches);
        self.forget_step();
        Ok(())
    }

    fn optimizer_state(&self) -> Result<StateDict, EncoderError> {
        let mut state = StateDict::new();
        for (info, slots) in self.layers.parameters.iter().zip(&self.slots) {
            let Slots { first, second, n_updates } = self.device.download_slots(slots);
            let convert =
                |values: Vec<f32>| if values.is_empty() { values } else { info.to_state_layout(values) };
            let slots = Slots { first: convert(first), second: convert(second), n_updates };
            state.insert_slots(&info.name, &info.state_shape(), &slots);
        }
        Ok(state)
    }

    fn load_optimizer_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        let names = self.layers.parameters.iter().map(|info| info.name.as_str());
        if let Some(name) = state.foreign_slot(names) {
            return Err(EncoderError::Unexpected { name: name.to_owned() });
        }
        let mut all = Vec::with_capacity(self.slots.len());
        for info in &self.layers.parameters {
            let Slots { first, second, n_updates } = state.slots(&info.name, &info.state_shape())?;
            let convert =
                |values: Vec<f32>| if values.is_empty() { values } else { info.to_device_layout(&values) };
            let slots = Slots { first: convert(first), second: convert(second), n_updates };
            all.push(self.device.upload_slots(slots)?);
        }
        self.slots = all;
        Ok(())
    }
}
