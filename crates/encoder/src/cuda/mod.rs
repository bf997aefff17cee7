//! The engine on an NVIDIA card: the tapes of [`swav_cuda`], whose parameters get their names and shapes here.
//!
//! Everything between two calls stays on the card. What runs the tapes is a [`Machine`]: the card, or, in tests, the
//! host in its place.

mod memory;
mod rules;
mod session;
mod values;
mod whole_step;

#[cfg(all(test, feature = "parity"))]
mod tests;

use std::cell::RefCell;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayView4};
use swav_collective::Collective;
use swav_cuda::driver::Card;
use swav_cuda::exec::{Executor, ExecutorOptions};
use swav_cuda::machine::Machine;
use swav_cuda::network::{self, Network, Options, Output, SUMMED, padded};
use swav_cuda::plans::{PlanBook, Selection};
use swav_cuda::shape::Element;
use swav_cuda::tape::{PixelFormat, Rule};

use crate::config::Backbone;
use crate::engine::{Engine, Part, Value};
use crate::layers::{Layer, Layers, Unit};
use crate::{
    BlockKind, Checkpointing, Crops, DeviceMemory, EncoderError, EncoderSpec, Precision, Slots, Stem,
    TrainingStep, UpdateRule, UpdateStats, WholeStep,
};
use rules::scalars_of;
use session::Session;
use values::pad;
use whole_step::Steps;

/// An encoder's network on a machine.
pub(crate) struct Cuda {
    name: String,
    layers: Arc<Layers>,
    /// In a cell, since a machine is told to do something even where a value is only read.
    session: RefCell<Session>,
    /// Updates that each parameter has had.
    n_updates: Vec<u64>,
    /// Whether the optimiser keeps a second moment.
    has_second: bool,
    steps: Steps,
}

/// The network that these layers describe.
fn network_of(spec: &EncoderSpec, layers: &Layers) -> Network {
    let config = spec.config();
    let head = match (layers.head.is_empty(), config.head) {
        (true, _) | (_, crate::Head::None) => network::Head::None,
        (_, crate::Head::Linear) => network::Head::Linear { dim: config.dim },
        (_, crate::Head::Mlp { hidden }) => network::Head::Mlp { hidden, dim: config.dim },
    };
    let Backbone::ResNet(resnet) = spec.backbone();
    Network::new(network::NetworkSpec {
        stem: match resnet.stem {
            Stem::Imagenet => network::Stem::Imagenet,
            Stem::Cifar => network::Stem::Cifar,
        },
        stem_channels: resnet.stem_channels,
        block: match resnet.block {
            BlockKind::Basic => network::BlockKind::Basic,
            BlockKind::Bottleneck => network::BlockKind::Bottleneck,
        },
        layers: resnet.layers.clone(),
        head,
    })
}

/// How programs are made.
fn options_of(spec: &EncoderSpec) -> Options {
    Options {
        element: match spec.config().precision {
            Precision::F32 => Element::F32,
            Precision::Mixed => Element::Bf16,
        },
        tf32: spec.config().matrix_unit && !spec.config().exact,
        checkpointing: spec.config().checkpointing == Checkpointing::Blocks,
        pixels: PixelFormat::F32,
    }
}

/// The engine on card `number`.
///
/// # Errors
/// [`EncoderError::Unavailable`] if a library is missing or the card is not there or too old.
pub(crate) fn open(spec: &EncoderSpec, layers: Arc<Layers>, number: usize) -> Result<Cuda, EncoderError> {
    let name = format!("cuda:{number}");
    let executor = Card::open(number).and_then(|card| {
        let selection = if spec.config().exact { Selection::First } else { Selection::default() };
        Executor::new(&card, ExecutorOptions { selection, ..ExecutorOptions::default() })
    });
    let executor = executor.map_err(|error| EncoderError::Unavailable {
        device: name.clone(),
        advice: "`swav gpu` says what it needs and what was found where".to_owned(),
        source: Some(Box::new(error)),
    })?;
    Cuda::new(&name, spec, layers, Box::new(executor))
}

impl Cuda {
    /// A network of these layers on a machine.
    ///
    /// # Errors
    /// The machine's.
    pub(crate) fn new(
        name: &str,
        spec: &EncoderSpec,
        layers: Arc<Layers>,
        machine: Box<dyn Machine>,
    ) -> Result<Self, EncoderError> {
        let network = network_of(spec, &layers);
        debug_assert_eq!(network.parameters().list.len(), layers.parameters.len());
        let session = Session::new(name, machine, network, options_of(spec))?;
        Ok(Cuda {
            name: name.to_owned(),
            session: RefCell::new(session),
            n_updates: vec![0; layers.parameters.len()],
            layers,
            has_second: false,
            steps: Steps::default(),
        })
    }

    /// Where a value lies: the buffer, the first value, its length and whether it is a parameter.
    fn place(&self, what: Value) -> (&'static str, usize, usize) {
        let session = self.session.borrow();
        let parameters = session.network.parameters();
        match what {
            Value::Parameter(index) => {
                let parameter = parameters.list[index];
                ("parameters", parameter.at, parameter.shape.padded_len())
            }
            Value::Mean(index) => {
                ("running", 2 * parameters.norms[index].at, parameters.norms[index].channels)
            }
            Value::Variance(index) => {
                let norm = parameters.norms[index];
                ("running", 2 * norm.at + padded(norm.channels), norm.channels)
            }
        }
    }

    fn shape(&self, parameter: usize) -> network::ParameterShape {
        self.session.borrow().network.parameters().list[parameter].shape
    }

    /// Reads the slot `name` of a parameter.
    fn read_slot(&self, name: &str, parameter: usize) -> Result<Vec<f32>, EncoderError> {
        let (_, at, len) = self.place(Value::Parameter(parameter));
        let values = self.session.borrow_mut().read_floats(name, at..at + len)?;
        Ok(self.shape(parameter).unpack(&values))
    }
}

/// Refuses batches of which a batch norm sees a single value a channel.
fn check_batch(layers: &Layers, groups: &[[usize; 4]]) -> Result<(), EncoderError> {
    let check = |layer: &Layer, got: usize| match got {
        0 | 1 if !layer.norms.is_empty() => {
            Err(EncoderError::BatchTooSmall { layer: layer.display_name().to_owned(), got })
        }
        _ => Ok(()),
    };
    let mut rows = 0;
    for &group in groups {
        let mut shape = group;
        for layer in &layers.backbone {
            let out = layer.unit.kernel().output_shape(shape)?;
            let normed = match &layer.unit {
                Unit::Stem { unit, .. } => unit.conv().output_shape(shape),
                _ => out,
            };
            check(layer, normed[..3].iter().product())?;
            shape = out;
        }
        rows += group[0];
    }
    layers.head.iter().try_for_each(|layer| check(layer, rows))
}

impl Engine for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, what: Value) -> Result<Vec<f32>, EncoderError> {
        let (name, at, len) = self.place(what);
        let values = self.session.borrow_mut().read_floats(name, at..at + len)?;
        Ok(match what {
            Value::Parameter(index) => self.shape(index).unpack(&values),
            Value::Mean(_) | Value::Variance(_) => values,
        })
    }

    fn write(&mut self, what: Value, values: Vec<f32>) -> Result<(), EncoderError> {
        let (name, at, _) = self.place(what);
        let values = match what {
            Value::Parameter(index) => self.shape(index).pack(&values),
            Value::Mean(_) | Value::Variance(_) => values,
        };
        let session = self.session.get_mut();
        session.touched();
        session.write_floats(name, at, &values)
    }

    fn read_slots(&self, parameter: usize) -> Result<Slots, EncoderError> {
        let n_updates = self.n_updates[parameter];
        if n_updates == 0 {
            return Ok(Slots::default());
        }
        let first = self.read_slot("first", parameter)?;
        let second = if self.has_second { self.read_slot("second", parameter)? } else { Vec::new() };
        Ok(Slots { first, second, n_updates })
    }

    fn write_slots(&mut self, parameter: usize, slots: Slots) -> Result<(), EncoderError> {
        let (_, at, _) = self.place(Value::Parameter(parameter));
        let shape = self.shape(parameter);
        self.n_updates[parameter] = slots.n_updates;
        let zeros = || vec![0.0; shape.padded_len()];
        let session = self.session.get_mut();
        let first = if slots.first.is_empty() { zeros() } else { shape.pack(&slots.first) };
        session.write_floats("first", at, &first)?;
        if !slots.second.is_empty() && !self.has_second {
            session.declare_second()?;
            self.has_second = true;
        }
        if self.has_second {
            let second = if slots.second.is_empty() { zeros() } else { shape.pack(&slots.second) };
            session.write_floats("second", at, &second)?;
        }
        Ok(())
    }

    fn forward_train(
        &mut self,
        groups: &[ArrayView4<'_, f32>],
        momentum: f32,
        record: bool,
    ) -> Result<Array2<f32>, EncoderError> {
        check_batch(&self.layers, &Crops::Values(groups).shapes())?;
        self.session.get_mut().forward_train(groups, momentum, record)
    }

    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError> {
        let rows = pad(gradient.iter().copied(), gradient.ncols());
        self.session.get_mut().backward(rows)
    }

    fn forward_infer(&self, images: ArrayView4<'_, f32>, part: Part) -> Result<Array2<f32>, EncoderError> {
        let output = match part {
            Part::Backbone => Output::Features,
            Part::Whole => Output::Head,
            Part::Stage(_) => {
                return Err(EncoderError::Unsupported {
                    device: self.name().to_owned(),
                    what: "outputs of inner layers",
                    advice: "use `--device cpu`, or the last layer's, which are the features",
                });
            }
        };
        self.session.borrow_mut().infer(&images, output)
    }

    fn gradient(&self, parameter: usize) -> Result<Vec<f32>, EncoderError> {
        self.session.borrow_mut().gradient(parameter)
    }

    fn gradient_norm(&self) -> Result<f64, EncoderError> {
        Ok(swav_optim::norm(&self.session.borrow_mut().summed_gradients()?))
    }

    /// By way of the host, where a collective is.
    fn reduce_gradients(&mut self, collective: &dyn Collective) -> Result<(), EncoderError> {
        let session = self.session.get_mut();
        let mut values = session.summed_gradients()?;
        collective.sum_f32(&mut values)?;
        let share = 1.0 / collective.world_size() as f32;
        values.iter_mut().for_each(|value| *value *= share);
        session.write_floats(SUMMED, 0, &values)
    }

    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError> {
        let t = self.n_updates.first().map_or(1, |n| n + 1);
        let (kind, scalars) = scalars_of(rule, t, 1);
        let report = self.session.get_mut().update(kind, &scalars)?;
        self.n_updates.iter_mut().for_each(|n| *n += 1);
        self.has_second |= kind == Rule::AdamW;
        Ok(UpdateStats { parameter_norm: report.parameter_norm, gradient_norm: report.gradient_norm })
    }

    fn forget(&mut self) {
        self.session.get_mut().forget();
    }

    fn choices(&self) -> Option<String> {
        self.session.borrow().machine.plans().map(|book| book.to_json())
    }

    fn adopt_choices(&mut self, choices: &str) -> Result<(), EncoderError> {
        let session = self.session.get_mut();
        let adopted = PlanBook::from_json(choices).and_then(|book| session.machine.adopt_plans(&book));
        adopted.map_err(|error| session.fail(error))
    }

    fn device_memory(&self, step: TrainingStep<'_>, rule: &UpdateRule) -> Option<DeviceMemory> {
        let (rule, _) = scalars_of(rule, 1, 1);
        self.memory_of(step, rule)
    }

    fn whole_step(&mut self) -> Option<&mut dyn WholeStep> {
        Some(self)
    }
}
