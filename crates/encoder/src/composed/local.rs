//! What dfdx holds and runs, on the thread that it stays on.
//!
//! Each unit runs on a tape of its own, which becomes one operation of the network's tape: so the gradients of what is
//! inside are freed unit by unit (dfdx frees none before a tape has run wholly), and a block can be run again in backward
//! instead of being remembered.

use std::rc::Rc;
use std::sync::Arc;

use dfdx::prelude::{
    Backward, CopySlice, Device, Gradients, HasShape, OwnedTape, PutTape, Rank0, Shape, SplitTape, Storage,
    SumTo, Tape, Tensor, TryMatMul,
};
use ndarray::Array2;
use swav_optim::Role;

use super::graph::{BatchStatistics, Graph, Running};
use super::indices::Indices;
use super::update::DeviceSlots;
use super::{Images, Matrix, Vector, failed, update};
use crate::engine::{Part, Value, Walk};
use crate::layers::{Layer, Layers, Unit};
use crate::{EncoderError, Slots, UpdateRule, UpdateStats};

type Own<D> = OwnedTape<f32, D>;
type StorageOf<D> = <D as Storage<f32>>::Vec;

/// Activations on a device.
struct Flow<D: Device<f32>> {
    matrix: Matrix<D>,
    shape: [usize; 4],
}

/// A recorded pass that waits for its backward: what it gave, and the operations.
struct Pending<D: Device<f32>> {
    root: Matrix<D>,
    tape: Own<D>,
}

/// A network on dfdx's device `D`.
pub(super) struct Local<D: Device<f32>> {
    name: String,
    tensors: D,
    indices: Rc<Indices<D>>,
    layers: Arc<Layers>,
    /// Whether blocks run again in backward instead of being remembered.
    reruns_blocks: bool,
    parameters: Vec<Vector<D>>,
    running: Vec<Running<Vector<D>>>,
    slots: Vec<DeviceSlots<D>>,
    pending: Option<Pending<D>>,
    gradients: Option<Vec<Vector<D>>>,
}

impl<D: Device<f32>> Local<D> {
    /// Parameters are zeros, statistics those of a standard normal distribution.
    pub(super) fn new(
        name: String,
        tensors: D,
        layers: Arc<Layers>,
        reruns_blocks: bool,
    ) -> Result<Self, EncoderError> {
        let vector = |value: f32, len: usize| {
            tensors.try_tensor_from_vec(vec![value; len], (len,)).map_err(|error| failed(&name, error))
        };
        let parameters = layers.parameters.iter().map(|info| vector(0.0, info.len()));
        let parameters: Vec<_> = parameters.collect::<Result<_, _>>()?;
        let norms = layers.norms.iter().map(|norm| norm.channels);
        let running = norms.map(|c| Ok(Running { mean: vector(0.0, c)?, var: vector(1.0, c)? }));
        Ok(Self {
            running: running.collect::<Result<_, EncoderError>>()?,
            slots: parameters.iter().map(|_| DeviceSlots::default()).collect(),
            parameters,
            indices: Rc::new(Indices::new(tensors.clone())),
            tensors,
            name,
            layers,
            reruns_blocks,
            pending: None,
            gradients: None,
        })
    }

    fn failed(&self, error: impl std::fmt::Display) -> EncoderError {
        failed(&self.name, error)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vector<D>, EncoderError> {
        let length = values.len();
        self.tensors.try_tensor_from_vec(values, (length,)).map_err(|error| self.failed(error))
    }

    fn matrix(&self, values: Vec<f32>, rows: usize, columns: usize) -> Result<Matrix<D>, EncoderError> {
        self.tensors.try_tensor_from_vec(values, (rows, columns)).map_err(|error| self.failed(error))
    }

    fn input(&self, images: Images) -> Result<Flow<D>, EncoderError> {
        let Images { values, shape: [n, h, w, c] } = images;
        Ok(Flow { matrix: self.matrix(values, n * h * w, c)?, shape: [n, h, w, c] })
    }

    pub(super) fn read(&self, what: Value) -> Vec<f32> {
        read(match what {
            Value::Parameter(index) => &self.parameters[index],
            Value::Mean(index) => &self.running[index].mean,
            Value::Variance(index) => &self.running[index].var,
        })
    }

    pub(super) fn write(&mut self, what: Value, values: Vec<f32>) -> Result<(), EncoderError> {
        let values = self.vector(values)?;
        *match what {
            Value::Parameter(index) => &mut self.parameters[index],
            Value::Mean(index) => &mut self.running[index].mean,
            Value::Variance(index) => &mut self.running[index].var,
        } = values;
        Ok(())
    }

    pub(super) fn read_slots(&self, parameter: usize) -> Slots {
        let read = |slot: &Option<Vector<D>>| slot.as_ref().map_or_else(Vec::new, read);
        let slots = &self.slots[parameter];
        Slots { first: read(&slots.first), second: read(&slots.second), n_updates: slots.n_updates }
    }

    pub(super) fn write_slots(&mut self, parameter: usize, slots: Slots) -> Result<(), EncoderError> {
        let vector =
            |values: Vec<f32>| if values.is_empty() { Ok(None) } else { self.vector(values).map(Some) };
        let (first, second) = (vector(slots.first)?, vector(slots.second)?);
        self.slots[parameter] = DeviceSlots { first, second, n_updates: slots.n_updates };
        Ok(())
    }

    pub(super) fn forward_train(
        &mut self,
        groups: Vec<Images>,
        momentum: f32,
        record: bool,
    ) -> Result<Array2<f32>, EncoderError> {
        let layers = Arc::clone(&self.layers);
        // All images first: a copy to a GPU waits for the work queued before it.
        let inputs: Vec<_> = groups.into_iter().map(|group| self.input(group)).collect::<Result<_, _>>()?;
        let mut pass = Training { momentum, tape: record.then(Own::<D>::default), local: self };
        let output = layers.walk(&mut pass, inputs)?;
        let tape = pass.tape;
        let rows = to_array(&output.matrix);
        self.pending = tape.map(|tape| Pending { root: output.matrix, tape });
        Ok(rows)
    }

    pub(super) fn backward(&mut self, gradient: &Array2<f32>) -> Result<(), EncoderError> {
        let Pending { root, mut tape } = self.pending.take().ok_or(EncoderError::NoForward)?;
        let values = gradient.iter().copied().collect();
        let gradient = self.matrix(values, gradient.nrows(), gradient.ncols())?;
        // dfdx gives no way to write a tensor into its gradients; the derivative of sum(root * gradient) does it.
        let product = root.clone().put_tape(Own::<D>::default()) * gradient;
        let seed = product.try_sum::<Rank0, _>().and_then(|sum| sum.try_backward());
        let mut seed = seed.map_err(|error| self.failed(error))?;
        let tensors = self.tensors.clone();
        tape.add_backward_op(move |gradients| {
            let value = take(&tensors, &mut seed, &root)?;
            *gradients.get_or_alloc_mut(&root)? = value;
            Ok(())
        });
        let zero = self.tensors.try_zeros::<Rank0>();
        let gradients = zero.and_then(|zero| zero.put_tape(tape).try_backward());
        let mut gradients = gradients.map_err(|error| self.failed(error))?;
        let of = |parameter: &Vector<D>| {
            gradients.try_alloc_for(parameter)?;
            Ok(gradients.get(parameter))
        };
        let all: Result<Vec<_>, D::Err> = self.parameters.iter().map(of).collect();
        self.gradients = Some(all.map_err(|error| self.failed(error))?);
        Ok(())
    }

    pub(super) fn forward_infer(&self, images: Images, part: Part) -> Result<Array2<f32>, EncoderError> {
        let Flow { mut matrix, mut shape } = self.input(images)?;
        let layers: Vec<&Layer> = self.layers.iter().collect();
        for layer in self.layers.part(part).map(|index| layers[index]) {
            let parameters = &self.parameters[layer.parameters.clone()];
            let mut graph = Graph::inference(&self.indices, parameters, &self.running[layer.norms.clone()]);
            (matrix, shape) = graph.unit(&layer.unit, matrix, shape).map_err(|error| self.failed(error))?;
        }
        Ok(to_array(&matrix))
    }

    pub(super) fn gradient(&self, parameter: usize) -> Result<Vec<f32>, EncoderError> {
        Ok(read(&self.gradients.as_ref().ok_or(EncoderError::NoGradients)?[parameter]))
    }

    pub(super) fn set_gradient(&mut self, parameter: usize, values: Vec<f32>) -> Result<(), EncoderError> {
        let values = self.vector(values)?;
        self.gradients.as_mut().ok_or(EncoderError::NoGradients)?[parameter] = values;
        Ok(())
    }

    pub(super) fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError> {
        let gradients = self.gradients.take().ok_or(EncoderError::NoGradients)?;
        let roles: Vec<Role> = self.layers.parameters.iter().map(|info| info.role).collect();
        let all = self.parameters.iter_mut().zip(&mut self.slots).zip(gradients.into_iter().zip(roles));
        update::update(&self.tensors, rule, all).map_err(|error| failed(&self.name, error))
    }

    pub(super) fn forget(&mut self) {
        self.pending = None;
        self.gradients = None;
    }
}

/// A pass in training mode. With a tape, backward is recorded.
struct Training<'a, D: Device<f32>> {
    local: &'a mut Local<D>,
    momentum: f32,
    tape: Option<Own<D>>,
}

impl<D: Device<f32>> Walk for Training<'_, D> {
    type Activations = Flow<D>;

    fn unit(
        &mut self,
        layer: &Layer,
        input: Flow<D>,
        wants_input_gradient: bool,
    ) -> Result<Flow<D>, EncoderError> {
        let local = &mut *self.local;
        let parameters = local.parameters[layer.parameters.clone()].to_vec();
        let run = {
            let (unit, parameters) = (layer.unit.clone(), parameters.clone());
            let (indices, matrix, shape) = (Rc::clone(&local.indices), input.matrix.clone(), input.shape);
            move || {
                let mut graph = Graph::<D>::training(&indices, &parameters);
                let (output, shape) = graph.unit(&unit, matrix.put_tape(Own::<D>::default()), shape)?;
                Ok::<_, D::Err>((output.split_tape(), shape, graph.into_statistics()))
            }
        };
        let again = local.reruns_blocks && matches!(layer.unit, Unit::Block { .. });
        let run_again = again.then(|| run.clone());
        let ((output, inner), shape, statistics) = run().map_err(|error| local.failed(error))?;
        if let Some(got) = statistics.iter().map(BatchStatistics::count).find(|&count| count < 2) {
            return Err(EncoderError::BatchTooSmall { layer: layer.display_name().to_owned(), got });
        }
        for (statistics, running) in statistics.into_iter().zip(&mut local.running[layer.norms.clone()]) {
            let updated = statistics.update(running, self.momentum);
            updated.map_err(|error| failed(&local.name, error))?;
        }
        if let Some(tape) = &mut self.tape {
            let inputs = if wants_input_gradient { vec![input.matrix] } else { Vec::new() };
            if let Some(run) = run_again {
                drop(inner);
                record(&local.tensors, tape, inputs, parameters, &output, move || Ok(run()?.0));
            } else {
                let end = output.clone();
                record(&local.tensors, tape, inputs, parameters, &output, move || Ok((end, inner)));
            }
        }
        Ok(Flow { matrix: output, shape })
    }

    fn concat(&mut self, parts: Vec<Flow<D>>) -> Result<Flow<D>, EncoderError> {
        let local = &*self.local;
        let n_rows: usize = parts.iter().map(|part| part.shape[0]).sum();
        let channels = parts.first().map_or(0, |part| part.shape[3]);
        // Each part is put at its rows by a product with a matrix of zeros and ones: dfdx's own concatenation is
        // compiled at run time on CUDA, and these matrices are small.
        let mut inner = Own::<D>::default();
        let mut sum: Option<Matrix<D>> = None;
        let mut first_row = 0;
        for part in &parts {
            let n = part.shape[0];
            let mut place = vec![0.0; n_rows * n];
            (0..n).for_each(|row| place[(first_row + row) * n + row] = 1.0);
            first_row += n;
            let place = local.matrix(place, n_rows, n)?.put_tape(Own::<D>::default());
            let placed = place.try_matmul(part.matrix.clone()).map_err(|error| local.failed(error))?;
            let total = match sum {
                None => placed,
                Some(sum) => sum.put_tape(std::mem::take(&mut inner)) + placed,
            };
            let (values, tape) = total.split_tape();
            (sum, inner) = (Some(values), tape);
        }
        let rows = sum.ok_or_else(|| local.failed("nothing to concatenate"))?;
        if let Some(tape) = &mut self.tape {
            let inputs = parts.into_iter().map(|part| part.matrix).collect();
            let end = rows.clone();
            record(&local.tensors, tape, inputs, Vec::new(), &rows, move || Ok((end, inner)));
        }
        Ok(Flow { matrix: rows, shape: [n_rows, 1, 1, channels] })
    }
}

fn to_array<D: Device<f32>>(matrix: &Matrix<D>) -> Array2<f32> {
    Array2::from_shape_vec(*matrix.shape(), read(matrix)).expect("a matrix has the values of its shape")
}

/// A contiguous tensor's values.
pub(super) fn read<S: Shape, D: CopySlice<f32>>(tensor: &Tensor<S, f32, D>) -> Vec<f32> {
    let mut values = vec![0.0; tensor.shape().num_elements()];
    tensor.copy_into(&mut values);
    values
}

/// The smallest storage that every device has.
fn one_element<D: Device<f32>>(tensors: &D) -> Result<StorageOf<D>, D::Err> {
    <D as Storage<f32>>::try_alloc_len(tensors, 1)
}

/// Moves a gradient out and leaves one element in its place.
fn take<S: Shape, D: Device<f32>>(
    tensors: &D,
    gradients: &mut Gradients<f32, D>,
    of: &Tensor<S, f32, D>,
) -> Result<StorageOf<D>, D::Err> {
    let left = one_element(tensors)?;
    Ok(std::mem::replace(gradients.get_or_alloc_mut(of)?, left))
}

/// Adds one operation to `tape` that runs a unit's own tape backward: the gradient of `output` and what
/// `parameters` have so far go into the inner tape's gradients, and those of `inputs` and `parameters` come out.
///
/// `inner` gives the unit's tape and the tensor that ends it: what was remembered, or what a second run gives.
fn record<D: Device<f32>>(
    tensors: &D,
    tape: &mut Own<D>,
    inputs: Vec<Matrix<D>>,
    parameters: Vec<Vector<D>>,
    output: &Matrix<D>,
    inner: impl FnOnce() -> Result<(Matrix<D>, Own<D>), D::Err> + 'static,
) {
    let tensors = tensors.clone();
    // Only the key is needed; the values may be freed.
    let output = output.ghost();
    tape.add_backward_op(move |gradients| {
        let (end, mut inner) = inner()?;
        let seed = std::mem::replace(gradients.get_or_alloc_mut(&output)?, one_element(&tensors)?);
        let mut sums = Vec::with_capacity(parameters.len());
        for parameter in &parameters {
            sums.push(take(&tensors, gradients, parameter)?);
        }
        let keys = parameters.clone();
        // The last operation recorded is the first to run.
        inner.add_backward_op(move |gradients| {
            *gradients.get_or_alloc_mut(&end)? = seed;
            for (parameter, sum) in keys.iter().zip(sums) {
                *gradients.get_or_alloc_mut(parameter)? = sum;
            }
            Ok(())
        });
        let mut inner = tensors.try_zeros::<Rank0>()?.put_tape(inner).try_backward()?;
        for parameter in &parameters {
            *gradients.get_or_alloc_mut(parameter)? = take(&tensors, &mut inner, parameter)?;
        }
        for input in &inputs {
            *gradients.get_or_alloc_mut(input)? = take(&tensors, &mut inner, input)?;
        }
        Ok(())
    });
}
