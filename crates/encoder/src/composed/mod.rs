//! Units composed of dfdx's own operations, on any of its devices.
//!
//! dfdx 0.13 has no convolution or pooling on stable Rust, and these need none: a convolution is a gather of
//! patches and a matrix product ([`graph`]). Each unit runs on a tape of its own, which becomes one operation of
//! the network's tape: so the gradients of what is inside are freed unit by unit (dfdx frees none before a
//! tape has run wholly), and a block can be run again in backward instead of being remembered.
//!
//! dfdx differentiates what is inside a unit, so the gradients here and those of the CPU's kernels, which are
//! derived by hand, check each other.

mod graph;
mod indices;
mod update;

use std::rc::Rc;

use dfdx::prelude::{
    Backward, CopySlice, Device, Gradients, HasShape, OwnedTape, PutTape, Rank0, SplitTape, Storage, SumTo,
    Tape, Tensor, Trace, TryMatMul,
};
use ndarray::{Array2, ArrayView2};

use crate::device::{Arguments, EncoderDevice, Momentum, Running};
use crate::layers::Unit;
use crate::{
    Checkpointing, EncoderError, EncoderSpec, IMAGE_CHANNELS, ImageBatch, Role, Slots, UpdateRule,
    UpdateStats,
};
use graph::{BatchStatistics, Graph};
use indices::Indices;

/// A vector on a device.
pub(crate) type Vector<D> = Tensor<(usize,), f32, D>;
/// A matrix on a device; of activations, rows are pixels and columns channels.
pub(crate) type Matrix<D, T = dfdx::prelude::NoneTape> = Tensor<(usize, usize), f32, D, T>;
type Own<D> = OwnedTape<f32, D>;
type StorageOf<D> = <D as Storage<f32>>::Vec;

/// dfdx's operations on its device `D`.
pub(crate) struct Composed<D: Device<f32>> {
    name: String,
    tensors: D,
    indices: Rc<Indices<D>>,
    checkpointing: Checkpointing,
}

/// Activations on a device.
pub(crate) struct Flow<D: Device<f32>> {
    matrix: Matrix<D>,
    shape: [usize; 4],
}

/// The optimiser's state of one parameter on a device.
pub(crate) struct DeviceSlots<D: Device<f32>> {
    first: Option<Vector<D>>,
    second: Option<Vector<D>>,
    n_updates: u64,
}

impl<D: Device<f32>> Default for DeviceSlots<D> {
    fn default() -> Self {
        Self { first: None, second: None, n_updates: 0 }
    }
}

/// dfdx's error as ours.
pub(crate) fn device_error(error: impl std::fmt::Display) -> EncoderError {
    EncoderError::Device(error.to_string())
}

impl<D: Device<f32>> Composed<D> {
    /// Runs a specification on a device. Precision and exactness are the device's: f32, no fast algorithms.
    pub(crate) fn new(name: &str, tensors: D, spec: &EncoderSpec) -> Self {
        let checkpointing = spec.config().checkpointing;
        Self {
            name: name.to_owned(),
            indices: Rc::new(Indices::new(tensors.clone())),
            tensors,
            checkpointing,
        }
    }

    fn matrix(&self, values: Vec<f32>, rows: usize, columns: usize) -> Result<Matrix<D>, EncoderError> {
        self.tensors.try_tensor_from_vec(values, (rows, columns)).map_err(device_error)
    }
}

impl<D: Device<f32>> EncoderDevice for Composed<D> {
    type Tensors = D;
    type Parameter = Vector<D>;
    type Activations = Flow<D>;
    type Slots = DeviceSlots<D>;
    type Root = Matrix<D>;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn upload(&self, values: Vec<f32>) -> Result<Vector<D>, EncoderError> {
        let length = values.len();
        self.tensors.try_tensor_from_vec(values, (length,)).map_err(device_error)
    }

    fn download(&self, parameter: &Vector<D>) -> Vec<f32> {
        read(parameter)
    }

    fn input(&self, images: ImageBatch<'_>) -> Result<Flow<D>, EncoderError> {
        let shape = [images.n_images(), images.height(), images.width(), IMAGE_CHANNELS];
        let n_pixels = shape[..3].iter().product();
        Ok(Flow { matrix: self.matrix(images.data().to_vec(), n_pixels, IMAGE_CHANNELS)?, shape })
    }

    fn output(&self, flow: Flow<D>) -> Result<Array2<f32>, EncoderError> {
        Array2::from_shape_vec(*flow.matrix.shape(), read(&flow.matrix)).map_err(device_error)
    }

    fn concat(&self, parts: Vec<Flow<D>>, tape: Option<&mut Own<D>>) -> Result<Flow<D>, EncoderError> {
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
            let place = self.matrix(place, n_rows, n)?;
            let placed =
                place.put_tape(Own::<D>::default()).try_matmul(part.matrix.clone()).map_err(device_error)?;
            let total = match sum {
                None => placed,
                Some(sum) => sum.put_tape(std::mem::take(&mut inner)) + placed,
            };
            let (values, tape) = total.split_tape();
            (sum, inner) = (Some(values), tape);
        }
        let rows = sum.ok_or_else(|| device_error("nothing to concatenate"))?;
        if let Some(tape) = tape {
            let inputs = parts.into_iter().map(|part| part.matrix).collect();
            let end = rows.clone();
            record(&self.tensors, tape, inputs, Vec::new(), &rows, move || Ok((end, inner)));
        }
        Ok(Flow { matrix: rows, shape: [n_rows, 1, 1, channels] })
    }

    fn forward_train(
        &self,
        arguments: &Arguments<'_, Vector<D>>,
        input: Flow<D>,
        running: &mut [Running<Vector<D>>],
        Momentum(momentum): Momentum,
        tape: Option<&mut Own<D>>,
        wants_input_gradient: bool,
    ) -> Result<Flow<D>, EncoderError> {
        let run = {
            let (unit, parameters) = (arguments.unit.clone(), arguments.parameters.to_vec());
            let (indices, matrix, shape) = (Rc::clone(&self.indices), input.matrix.clone(), input.shape);
            move || {
                let mut graph = Graph::<D>::training(&indices, &parameters);
                let (output, shape) = graph.unit(&unit, matrix.put_tape(Own::<D>::default()), shape)?;
                Ok::<_, D::Err>((output.split_tape(), shape, graph.into_statistics()))
            }
        };
        let again =
            matches!((self.checkpointing, arguments.unit), (Checkpointing::Blocks, Unit::Block { .. }));
        let run_again = again.then(|| run.clone());
        let ((output, inner), shape, statistics) = run().map_err(device_error)?;
        if let Some(got) = statistics.iter().map(BatchStatistics::count).find(|&count| count < 2) {
            return Err(EncoderError::BatchTooSmall { layer: arguments.name.to_owned(), got });
        }
        for (statistics, running) in statistics.into_iter().zip(running) {
            statistics.update(running, momentum).map_err(device_error)?;
        }
        if let Some(tape) = tape {
            let inputs = if wants_input_gradient { vec![input.matrix] } else { Vec::new() };
            let parameters = arguments.parameters.to_vec();
            if let Some(run) = run_again {
                drop(inner);
                record(&self.tensors, tape, inputs, parameters, &output, move || Ok(run()?.0));
            } else {
                let end = output.clone();
                record(&self.tensors, tape, inputs, parameters, &output, move || Ok((end, inner)));
            }
        }
        Ok(Flow { matrix: output, shape })
    }

    fn forward_infer(
        &self,
        arguments: &Arguments<'_, Vector<D>>,
        input: Flow<D>,
        running: &[Running<Vector<D>>],
    ) -> Result<Flow<D>, EncoderError> {
        let mut graph = Graph::inference(&self.indices, arguments.parameters, running);
        let (matrix, shape) = graph.unit(arguments.unit, input.matrix, input.shape).map_err(device_error)?;
        Ok(Flow { matrix, shape })
    }

    fn root(&self, output: Flow<D>) -> Result<(Array2<f32>, Matrix<D>), EncoderError> {
        let rows =
            Array2::from_shape_vec(*output.matrix.shape(), read(&output.matrix)).map_err(device_error)?;
        Ok((rows, output.matrix))
    }

    fn backward(
        &self,
        root: Matrix<D>,
        gradient: ArrayView2<'_, f32>,
        mut tape: Own<D>,
    ) -> Result<Gradients<f32, D>, EncoderError> {
        let gradient = self.matrix(gradient.iter().copied().collect(), gradient.nrows(), gradient.ncols())?;
        // dfdx gives no way to write a tensor into its gradients; the derivative of sum(root * gradient) does it.
        let product = root.clone().put_tape(Own::<D>::default()) * gradient;
        let mut seed =
            product.try_sum::<Rank0, _>().and_then(|sum| sum.try_backward()).map_err(device_error)?;
        let tensors = self.tensors.clone();
        tape.add_backward_op(move |gradients| {
            let value = take(&tensors, &mut seed, &root)?;
            *gradients.get_or_alloc_mut(&root)? = value;
            Ok(())
        });
        self.tensors
            .try_zeros::<Rank0>()
            .and_then(|zero| zero.put_tape(tape).try_backward())
            .map_err(device_error)
    }

    fn gradient(&self, gradients: &mut Gradients<f32, D>, parameter: &Vector<D>) -> Vec<f32> {
        match gradients.try_alloc_for(parameter) {
            Ok(()) => read(&gradients.get(parameter)),
            Err(_) => Vec::new(),
        }
    }

    fn set_gradient(
        &self,
        gradients: &mut Gradients<f32, D>,
        parameter: &Vector<D>,
        values: Vec<f32>,
    ) -> Result<(), EncoderError> {
        let values = self.upload(values)?;
        let product = parameter.clone().leaky_traced() * values;
        let mut seed =
            product.try_sum::<Rank0, _>().and_then(|sum| sum.try_backward()).map_err(device_error)?;
        let value = take(&self.tensors, &mut seed, parameter).map_err(device_error)?;
        *gradients.get_or_alloc_mut(parameter).map_err(device_error)? = value;
        Ok(())
    }

    fn update(
        &self,
        rule: &UpdateRule,
        roles: &[Role],
        parameters: &mut [Vector<D>],
        slots: &mut [DeviceSlots<D>],
        mut gradients: Gradients<f32, D>,
    ) -> Result<UpdateStats, EncoderError> {
        update::update(&self.tensors, rule, roles, parameters, slots, &mut gradients).map_err(device_error)
    }

    fn download_slots(&self, slots: &DeviceSlots<D>) -> Slots {
        let read = |slot: &Option<Vector<D>>| slot.as_ref().map_or_else(Vec::new, read);
        Slots { first: read(&slots.first), second: read(&slots.second), n_updates: slots.n_updates }
    }

    fn upload_slots(&self, slots: Slots) -> Result<DeviceSlots<D>, EncoderError> {
        let upload =
            |values: Vec<f32>| if values.is_empty() { Ok(None) } else { self.upload(values).map(Some) };
        Ok(DeviceSlots {
            first: upload(slots.first)?,
            second: upload(slots.second)?,
            n_updates: slots.n_updates,
        })
    }
}

/// A contiguous tensor's values.
fn read<S: dfdx::prelude::Shape, D: CopySlice<f32>>(tensor: &Tensor<S, f32, D>) -> Vec<f32> {
    let mut values = vec![0.0; tensor.shape().num_elements()];
    tensor.copy_into(&mut values);
    values
}

/// The smallest storage that every device has.
fn one_element<D: Device<f32>>(tensors: &D) -> Result<StorageOf<D>, D::Err> {
    <D as Storage<f32>>::try_alloc_len(tensors, 1)
}

/// Moves a gradient out and leaves one element in its place.
fn take<S: dfdx::prelude::Shape, D: Device<f32>>(
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
