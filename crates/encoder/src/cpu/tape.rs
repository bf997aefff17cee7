//! The backward pass of the CPU: dfdx's tape orders it, dfdx's `Gradients` hold what it computes.
//!
//! A pass forward leaves a list of [`Record`]s, plain data that may change its thread. The pass backward puts them
//! on dfdx's tape, which runs them last to first. Two things travel from operation to operation: the gradients of the
//! parameters, in dfdx's `Gradients`, and the gradient of the activations, in a stack beside them, which an
//! operation takes its output's from and leaves its input's on. (dfdx would copy activations to make tensors of
//! them, and would keep the gradient of each until the tape has run.) An operation that fails leaves its error in the place of
//! the stack, and those after it have nothing left to do.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use dfdx::prelude::{Backward, Cpu, CpuError, Gradients, OwnedTape, PutTape, Rank0, Tape, ZerosTensor};
use swav_kernels as kernels;

use super::failed;
use crate::EncoderError;
use crate::layers::Unit;

type ParameterGradients = Gradients<f32, Cpu>;

/// Where a parameter's gradient is in dfdx's `Gradients`.
///
/// dfdx keys gradients by tensors. It lends no tensor's values without a copy, so parameters are plain vectors, and
/// the key is the ghost of a tensor: its identity and its length. A ghost's type has no public name, hence closures.
pub(super) struct Key {
    of: Box<Of>,
    read: Box<Read>,
}

type Of = dyn for<'g> Fn(&'g mut ParameterGradients) -> Result<&'g mut Vec<f32>, CpuError> + Send + Sync;
type Read = dyn Fn(&ParameterGradients) -> Vec<f32> + Send + Sync;

impl Key {
    /// A key for gradients of so many values.
    pub(super) fn new(tensors: &Cpu, len: usize) -> Result<Self, CpuError> {
        let ghost = tensors.try_zeros_like(&(len,))?.ghost();
        let same = ghost.clone();
        Ok(Self {
            of: Box::new(move |gradients| Ok(&mut **gradients.get_or_alloc_mut(&ghost)?)),
            read: Box::new(move |gradients| gradients.get(&same).as_vec()),
        })
    }

    /// The gradient, zeros where there was none.
    pub(super) fn of<'g>(&self, gradients: &'g mut ParameterGradients) -> Result<&'g mut Vec<f32>, CpuError> {
        (self.of)(gradients)
    }

    /// Moves the gradient out, so that several can be had at once.
    pub(super) fn take(&self, gradients: &mut ParameterGradients) -> Result<Vec<f32>, CpuError> {
        self.of(gradients).map(std::mem::take)
    }

    /// Moves the gradient back.
    pub(super) fn put(&self, gradients: &mut ParameterGradients, values: Vec<f32>) -> Result<(), CpuError> {
        self.of(gradients).map(|gradient| *gradient = values)
    }

    /// A copy of the gradient, after a backward pass.
    pub(super) fn read(&self, gradients: &ParameterGradients) -> Vec<f32> {
        (self.read)(gradients)
    }
}

/// What a backward operation needs, as the forward pass left it.
#[expect(clippy::large_enum_variant, reason = "one record per unit, and one concatenation per pass")]
pub(super) enum Record {
    /// A unit of the network.
    Unit {
        unit: Unit,
        saved: kernels::net::Saved,
        parameters: Range<usize>,
        /// How the output, and so its gradient, is stored.
        precision: kernels::Precision,
        wants_input_gradient: bool,
    },
    /// Rows of several groups that were put one after the other, of so many words each.
    Concat { lengths: Vec<usize> },
}

/// What all operations of a pass share.
pub(super) struct Shared {
    pub(super) context: Arc<kernels::Context>,
    pub(super) parameters: Vec<Arc<Vec<f32>>>,
    pub(super) keys: Arc<[Key]>,
}

/// Gradients of activations on their way, the one that is needed next on top.
type InFlight = Vec<Vec<f32>>;

/// Runs the records backward from the gradient of what the last one gave.
pub(super) fn run(
    tensors: &Cpu,
    shared: Shared,
    records: Vec<Record>,
    gradient: Vec<f32>,
) -> Result<ParameterGradients, EncoderError> {
    let shared = Rc::new(shared);
    let in_flight = Rc::new(RefCell::new(Ok(vec![gradient])));
    let mut tape = OwnedTape::<f32, Cpu>::default();
    for record in records {
        let (shared, in_flight) = (Rc::clone(&shared), Rc::clone(&in_flight));
        tape.add_backward_op(move |gradients| {
            let mut state = in_flight.borrow_mut();
            if let Ok(in_flight) = &mut *state
                && let Err(error) = record.run(&shared, in_flight, gradients)
            {
                *state = Err(error);
            }
            Ok(())
        });
    }
    let root = tensors.try_zeros::<Rank0>().map_err(failed)?;
    let gradients = root.put_tape(tape).try_backward().map_err(failed)?;
    in_flight.replace(Ok(InFlight::new())).map(|_| gradients)
}

impl Record {
    /// Gives buffers back to the pool: there will be no backward pass.
    pub(super) fn discard(self, context: &kernels::Context) {
        if let Self::Unit { saved, .. } = self {
            saved.discard(context);
        }
    }

    fn run(
        self,
        shared: &Shared,
        in_flight: &mut InFlight,
        gradients: &mut ParameterGradients,
    ) -> Result<(), EncoderError> {
        let context = &shared.context;
        let words = in_flight.pop().expect("an operation after this one left a gradient");
        match self {
            Self::Concat { lengths } => {
                let mut rest = words.as_slice();
                for length in lengths {
                    let (piece, tail) = rest.split_at(length);
                    let mut copy = context.pool().take(length);
                    copy.copy_from_slice(piece);
                    in_flight.push(copy);
                    rest = tail;
                }
                context.pool().give(words);
            }
            Self::Unit { unit, saved, parameters, precision, wants_input_gradient } => {
                let keys = &shared.keys[parameters.clone()];
                let gradient = kernels::Activations::from_words(saved.output_shape(), precision, words)?;
                let mut sums = Vec::with_capacity(keys.len());
                for key in keys {
                    sums.push(key.take(gradients).map_err(failed)?);
                }
                let values: Vec<&[f32]> =
                    shared.parameters[parameters].iter().map(|values| values.as_slice()).collect();
                let pass = kernels::net::Backward {
                    saved,
                    grad_output: gradient,
                    params: &values,
                    grads: &mut sums,
                    want_grad_input: wants_input_gradient,
                };
                let of_input = unit.kernel().backward(context, pass)?;
                for (key, sum) in keys.iter().zip(sums) {
                    key.put(gradients, sum).map_err(failed)?;
                }
                in_flight.extend(of_input.map(|gradient| gradient.words));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(tensors: &Cpu, lengths: &[usize]) -> Shared {
        let keys: Result<Arc<[Key]>, _> = lengths.iter().map(|&len| Key::new(tensors, len)).collect();
        Shared {
            context: Arc::new(kernels::Context::new(kernels::Options::default()).unwrap()),
            parameters: lengths.iter().map(|&len| Arc::new(vec![1.0; len])).collect(),
            keys: keys.unwrap(),
        }
    }

    #[test]
    fn keys_tell_parameters_apart() {
        let tensors = Cpu::default();
        let keys = shared(&tensors, &[2, 3]).keys;
        let mut gradients = ParameterGradients::leaky();
        assert_eq!(*keys[1].of(&mut gradients).unwrap(), [0.0; 3]);
        keys[0].put(&mut gradients, vec![1.0, 2.0]).unwrap();
        assert_eq!(keys[0].read(&gradients), [1.0, 2.0]);
        assert_eq!(keys[0].take(&mut gradients).unwrap(), [1.0, 2.0]);
        assert_eq!(keys[1].read(&gradients), [0.0; 3]);
    }

    #[test]
    fn an_operation_that_fails_ends_the_pass_with_its_error() {
        let tensors = Cpu::default();
        let linear = kernels::net::Linear::new(2, 3, false);
        let unit = Unit::Linear { unit: linear, n_inputs: 2 };
        let shared = shared(&tensors, &[6]);
        let input = kernels::Activations::from_f32([4, 1, 1, 2], vec![1.0; 8]).unwrap();
        let (_, saved) = unit.kernel().forward_train(&shared.context, input, &[&[0.5; 6]]).unwrap();
        let record = |saved| Record::Unit {
            unit: unit.clone(),
            saved,
            parameters: 0..1,
            precision: kernels::Precision::F32,
            wants_input_gradient: false,
        };
        // A gradient of another length than the output's, before which an operation would run that finds nothing.
        let concat = Record::Concat { lengths: vec![5, 5] };
        let error = run(&tensors, shared, vec![concat, record(saved)], vec![1.0; 11]).unwrap_err();
        assert!(matches!(error, EncoderError::Kernels(kernels::Error::Shape { .. })), "{error:?}");
    }
}
