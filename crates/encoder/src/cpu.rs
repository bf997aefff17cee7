//! The CPU: fused kernels behind operations on dfdx's tape.
//!
//! Values never sit in dfdx tensors here: its public API copies whatever goes in or out of one. A tensor without
//! elements stands for each parameter and each activation instead, as the key of its gradient. Gradients do sit in
//! dfdx's `Gradients`, whose storage on the CPU is a plain `Vec` that can be moved in and out. So activations,
//! what is saved for backward, and gradients travel by move, and every large buffer returns to one pool.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use dfdx::prelude::{
    Backward, Cpu, CpuError, Gradients, OwnedTape, PutTape, Rank0, Storage, Tape, Tensor, ZerosTensor,
};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use swav_kernels as kernels;
use swav_kernels::net::RunningStats;
use swav_optim::apply;

use crate::device::{Arguments, EncoderDevice, Momentum, Running};
use crate::layers::Unit;
use crate::{
    Checkpointing, EncoderError, EncoderSpec, IMAGE_CHANNELS, ImageBatch, Precision, Role, Slots, UpdateRule,
    UpdateStats,
};

/// The key of a gradient.
type Token = Tensor<(usize,), f32, Cpu>;
type CpuGradients = Gradients<f32, Cpu>;

/// Rows shorter than this count as this long when they are normalised (PyTorch's `normalize`).
const SHORTEST: f32 = 1e-12;

/// dfdx's `Cpu` with the kernels of `swav-kernels`.
pub(crate) struct Kernels {
    tensors: Cpu,
    context: Rc<kernels::Context>,
    /// Why a backward operation failed: dfdx's own error type has no room for it.
    failure: Rc<RefCell<Option<EncoderError>>>,
}

/// Values with the key of their gradient.
#[derive(Clone)]
pub(crate) struct Values {
    token: Token,
    values: Arc<Vec<f32>>,
}

/// Activations with the key of their gradient.
pub(crate) struct Flow {
    token: Token,
    activations: kernels::Activations,
}

impl Kernels {
    /// The kernels that a specification asks for.
    pub(crate) fn new(spec: &EncoderSpec) -> Result<Self, EncoderError> {
        let config = spec.config();
        let options = kernels::Options {
            precision: match config.precision {
                Precision::F32 => kernels::Precision::F32,
                Precision::Mixed => kernels::Precision::Mixed,
            },
            exact: config.exact,
            checkpointing: match config.checkpointing {
                Checkpointing::Off => kernels::Checkpointing::Off,
                Checkpointing::Blocks => kernels::Checkpointing::Blocks,
            },
            isa: None,
        };
        let context = Rc::new(kernels::Context::new(options)?);
        Ok(Self { tensors: Cpu::default(), context, failure: Rc::default() })
    }

    fn token(&self) -> Token {
        self.tensors.zeros_like(&(0,))
    }

    fn flow(&self, activations: kernels::Activations) -> Flow {
        Flow { token: self.token(), activations }
    }
}

impl EncoderDevice for Kernels {
    type Tensors = Cpu;
    type Parameter = Values;
    type Activations = Flow;
    type Slots = Slots;
    type Root = (Token, [usize; 2]);

    fn name(&self) -> String {
        "cpu".into()
    }

    fn upload(&self, values: Vec<f32>) -> Result<Values, EncoderError> {
        Ok(Values { token: self.token(), values: Arc::new(values) })
    }

    fn download(&self, parameter: &Values) -> Vec<f32> {
        parameter.values.to_vec()
    }

    fn input(&self, images: ImageBatch<'_>) -> Result<Flow, EncoderError> {
        let shape = [images.n_images(), images.height(), images.width(), IMAGE_CHANNELS];
        let mut activations = self.context.activations(shape, kernels::Precision::F32);
        activations.words.copy_from_slice(images.data());
        Ok(self.flow(activations))
    }

    fn output(&self, flow: Flow) -> Result<Array2<f32>, EncoderError> {
        let [n, _, _, channels] = flow.activations.shape;
        let rows = Array2::from_shape_vec((n, channels), flow.activations.to_f32());
        self.context.recycle(flow.activations);
        rows.map_err(|error| EncoderError::Device(error.to_string()))
    }

    fn concat(&self, parts: Vec<Flow>, tape: Option<&mut OwnedTape<f32, Cpu>>) -> Result<Flow, EncoderError> {
        let channels = parts.first().map_or(0, |part| part.activations.shape[3]);
        let n_rows = parts.iter().map(|part| part.activations.shape[0]).sum();
        let mut rows = self.context.activations([n_rows, 1, 1, channels], kernels::Precision::F32);
        let mut rest = rows.words.as_mut_slice();
        let mut pieces = Vec::new();
        for part in parts {
            let (words, tail) = rest.split_at_mut(part.activations.words.len());
            words.copy_from_slice(&part.activations.words);
            pieces.push((part.token, words.len()));
            rest = tail;
            self.context.recycle(part.activations);
        }
        let out = self.flow(rows);
        if let Some(tape) = tape {
            let (token, context) = (out.token.clone(), Rc::clone(&self.context));
            tape.add_backward_op(move |gradients| {
                let gradient = take(gradients, &token)?;
                let mut start = 0;
                for (token, length) in pieces {
                    let mut piece = context.pool().take(length);
                    piece.copy_from_slice(&gradient[start..start + length]);
                    start += length;
                    put(gradients, &token, piece)?;
                }
                context.pool().give(gradient);
                Ok(())
            });
        }
        Ok(out)
    }

    fn forward_train(
        &self,
        arguments: &Arguments<'_, Values>,
        input: Flow,
        running: &mut [Running<Values>],
        momentum: Momentum,
        tape: Option<&mut OwnedTape<f32, Cpu>>,
        wants_input_gradient: bool,
    ) -> Result<Flow, EncoderError> {
        let Some(unit) = arguments.unit.kernel() else {
            return self.normalise(input, tape);
        };
        let parameters = arguments.parameters;
        let slices: Vec<&[f32]> = parameters.iter().map(|p| p.values.as_slice()).collect();
        let Flow { token: input_token, activations } = input;
        let (output, saved) =
            unit.forward_train(&self.context, activations, &slices).map_err(|e| named(e, arguments.name))?;
        for (stats, running) in saved.stats().iter().zip(running) {
            let mean: &mut Vec<f32> = Arc::make_mut(&mut running.mean.values);
            let var: &mut Vec<f32> = Arc::make_mut(&mut running.var.values);
            stats.update_running(mean, var, momentum.0)?;
        }
        let output = self.flow(output);
        let Some(tape) = tape else {
            saved.discard(&self.context);
            return Ok(output);
        };
        let operation = UnitBackward {
            unit: arguments.unit.clone(),
            saved,
            parameters: parameters.to_vec(),
            input: wants_input_gradient.then_some(input_token),
            output: output.token.clone(),
            precision: output.activations.precision,
            context: Rc::clone(&self.context),
        };
        let failure = Rc::clone(&self.failure);
        tape.add_backward_op(move |gradients| {
            operation.run(gradients).map_err(|error| {
                *failure.borrow_mut() = Some(error);
                CpuError::WrongNumElements
            })
        });
        Ok(output)
    }

    fn forward_infer(
        &self,
        arguments: &Arguments<'_, Values>,
        input: Flow,
        running: &[Running<Values>],
    ) -> Result<Flow, EncoderError> {
        let Some(unit) = arguments.unit.kernel() else {
            return self.normalise(input, None);
        };
        let parameters: Vec<&[f32]> = arguments.parameters.iter().map(|p| p.values.as_slice()).collect();
        let running: Vec<RunningStats<'_>> =
            running.iter().map(|r| RunningStats { mean: &r.mean.values, var: &r.var.values }).collect();
        let output = unit.forward_infer(&self.context, &input.activations, &parameters, &running)?;
        self.context.recycle(input.activations);
        Ok(self.flow(output))
    }

    fn root(&self, output: Flow) -> Result<(Array2<f32>, Self::Root), EncoderError> {
        let token = output.token.clone();
        let rows = self.output(output)?;
        let shape = [rows.nrows(), rows.ncols()];
        Ok((rows, (token, shape)))
    }

    fn backward(
        &self,
        (token, shape): Self::Root,
        gradient: ArrayView2<'_, f32>,
        mut tape: OwnedTape<f32, Cpu>,
    ) -> Result<CpuGradients, EncoderError> {
        let mut words = self.context.pool().take(shape[0] * shape[1]);
        words.iter_mut().zip(gradient).for_each(|(word, &g)| *word = g);
        // The last operation recorded is the first to run.
        tape.add_backward_op(move |gradients| put(gradients, &token, words));
        let result = self.tensors.zeros::<Rank0>().put_tape(tape).try_backward();
        match self.failure.borrow_mut().take() {
            Some(error) => Err(error),
            None => result.map_err(|error| EncoderError::Device(error.to_string())),
        }
    }

    fn gradient(&self, gradients: &mut CpuGradients, parameter: &Values) -> Vec<f32> {
        gradients.get_or_alloc_mut(&parameter.token).map_or_else(|_| Vec::new(), |gradient| gradient.to_vec())
    }

    fn set_gradient(
        &self,
        gradients: &mut CpuGradients,
        parameter: &Values,
        values: Vec<f32>,
    ) -> Result<(), EncoderError> {
        put(gradients, &parameter.token, values).map_err(|error| EncoderError::Device(error.to_string()))
    }

    fn update(
        &self,
        rule: &UpdateRule,
        roles: &[Role],
        parameters: &mut [Values],
        slots: &mut [Slots],
        mut gradients: CpuGradients,
    ) -> Result<UpdateStats, EncoderError> {
        let mut taken = Vec::with_capacity(parameters.len());
        for parameter in parameters.iter() {
            let gradient = take(&mut gradients, &parameter.token).map_err(|_| EncoderError::NoGradients)?;
            if gradient.len() != parameter.values.len() {
                return Err(EncoderError::NoGradients);
            }
            taken.push(gradient);
        }
        // A parameter a task: each is summed in order, and the norms are merged in order.
        let values = parameters.iter_mut().map(|parameter| Arc::make_mut(&mut parameter.values));
        let tasks: Vec<_> = values.zip(slots).zip(taken.iter().zip(roles)).collect();
        let stats: Vec<UpdateStats> = tasks
            .into_par_iter()
            .map(|((values, slots), (gradient, &role))| apply(rule, role, values, gradient, slots))
            .collect();
        taken.into_iter().for_each(|gradient| self.context.pool().give(gradient));
        Ok(stats.into_iter().fold(UpdateStats::default(), UpdateStats::merge))
    }

    fn download_slots(&self, slots: &Slots) -> Slots {
        slots.clone()
    }

    fn upload_slots(&self, slots: Slots) -> Result<Slots, EncoderError> {
        Ok(slots)
    }
}

impl Kernels {
    /// Rows to unit length, `z = x / max(|x|, 1e-12)`; backward `dx = (dz - z (z·dz)) / max(|x|, 1e-12)`.
    fn normalise(&self, input: Flow, tape: Option<&mut OwnedTape<f32, Cpu>>) -> Result<Flow, EncoderError> {
        let Flow { token: input_token, mut activations } = input;
        let channels = activations.shape[3];
        let mut lengths = Vec::with_capacity(activations.shape[0]);
        for row in activations.words.chunks_exact_mut(channels) {
            let length = (row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32).max(SHORTEST);
            row.iter_mut().for_each(|x| *x /= length);
            lengths.push(length);
        }
        let output = self.flow(activations);
        if let Some(tape) = tape {
            let (unit_rows, token) = (output.activations.words.clone(), output.token.clone());
            tape.add_backward_op(move |gradients| {
                let mut gradient = take(gradients, &token)?;
                let rows = unit_rows.chunks_exact(channels).zip(&lengths);
                for (row, (unit, length)) in gradient.chunks_exact_mut(channels).zip(rows) {
                    let dot: f64 = row.iter().zip(unit).map(|(g, z)| f64::from(*g) * f64::from(*z)).sum();
                    row.iter_mut().zip(unit).for_each(|(g, z)| *g = (*g - z * dot as f32) / length);
                }
                put(gradients, &input_token, gradient)
            });
        }
        Ok(output)
    }
}

/// All that one unit's backward pass needs.
struct UnitBackward {
    unit: Unit,
    saved: kernels::net::Saved,
    parameters: Vec<Values>,
    input: Option<Token>,
    output: Token,
    precision: kernels::Precision,
    context: Rc<kernels::Context>,
}

impl UnitBackward {
    fn run(self, gradients: &mut CpuGradients) -> Result<(), EncoderError> {
        let device = |error: CpuError| EncoderError::Device(error.to_string());
        let Some(unit) = self.unit.kernel() else { return Ok(()) };
        let words = take(gradients, &self.output).map_err(device)?;
        let gradient = kernels::Activations::from_words(self.saved.output_shape(), self.precision, words)?;
        let mut sums = Vec::with_capacity(self.parameters.len());
        for parameter in &self.parameters {
            let mut sum = take(gradients, &parameter.token).map_err(device)?;
            if sum.len() != parameter.values.len() {
                // The first batch of this step: nothing has been added yet.
                sum = self.context.pool().take(parameter.values.len());
                sum.par_chunks_mut(1 << 16).for_each(|chunk| chunk.fill(0.0));
            }
            sums.push(sum);
        }
        let parameters: Vec<&[f32]> = self.parameters.iter().map(|p| p.values.as_slice()).collect();
        let args = kernels::net::Backward {
            saved: self.saved,
            grad_output: gradient,
            params: &parameters,
            grads: &mut sums,
            want_grad_input: self.input.is_some(),
        };
        let input_gradient = unit.backward(&self.context, args)?;
        for (parameter, sum) in self.parameters.iter().zip(sums) {
            put(gradients, &parameter.token, sum).map_err(device)?;
        }
        if let (Some(token), Some(gradient)) = (&self.input, input_gradient) {
            put(gradients, token, gradient.words).map_err(device)?;
        }
        Ok(())
    }
}

/// Moves a gradient out; it is empty if nothing was put there.
fn take(gradients: &mut CpuGradients, token: &Token) -> Result<Vec<f32>, CpuError> {
    let storage: &mut <Cpu as Storage<f32>>::Vec = gradients.get_or_alloc_mut(token)?;
    Ok(std::mem::take(&mut **storage))
}

/// Moves a gradient in.
fn put(gradients: &mut CpuGradients, token: &Token, words: Vec<f32>) -> Result<(), CpuError> {
    let storage: &mut <Cpu as Storage<f32>>::Vec = gradients.get_or_alloc_mut(token)?;
    **storage = words;
    Ok(())
}

/// A kernels' error with the layer's name where it helps.
fn named(error: kernels::Error, layer: &str) -> EncoderError {
    match error {
        kernels::Error::TooFewForBatchNorm { got } => {
            EncoderError::BatchTooSmall { layer: layer.to_owned(), got }
        }
        error => EncoderError::Kernels(error),
    }
}
