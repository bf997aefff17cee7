//! With a machine that has plans of convolutions to choose and a memory that ends: choices, and what fits.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::{Array2, Array4};
use swav_cuda::arena::{Plan, persistent_bytes};
use swav_cuda::cudnn::{Choice, Convolution};
use swav_cuda::machine::{HostMachine, Machine};
use swav_cuda::network::program_bytes;
use swav_cuda::plans::{Entry, Place, PlanBook};
use swav_cuda::shape::{ConvPass, ConvShape, Element};
use swav_cuda::tape::{BufferId, Program, Scalars};
use swav_optim::Method;

use super::super::{Cuda, network_of};
use super::{SCALING, config, engine};
use crate::engine::{Engine, Part};
use crate::layers::Layers;
use crate::whole_step::GroupShape;
use crate::{
    Checkpointing, Crops, DeviceMemory, EncoderConfig, EncoderError, Precision, Slots, StepInputs, StepPlan,
    TrainingStep, UpdateRule, WholeStep,
};

/// The host in the place of a card whose plans are a book's, and which refuses one more with every program.
struct Planned {
    host: HostMachine,
    book: PlanBook,
    loaded: Vec<Program>,
    /// Bytes of buffers after the latest program: of what lives on, and of the largest program's own.
    held: Arc<AtomicU64>,
    /// Bytes that a program may take.
    memory: u64,
}

impl Machine for Planned {
    fn load(&mut self, program: Program) -> swav_cuda::Result<usize> {
        self.loaded.push(program.clone());
        let own = self.loaded.iter().map(|program| Plan::new(program).bytes()).max().unwrap_or(0);
        self.held.store((own + persistent_bytes(&self.loaded)) as u64, Ordering::Relaxed);
        let needed = program_bytes(&program);
        if needed > self.memory {
            let (card, free, total) = ("a card".to_owned(), self.memory, 2 * self.memory);
            return Err(swav_cuda::Error::OutOfMemory { card, needed, free, total });
        }
        self.host.load(program)
    }

    fn run(&mut self, program: usize, tape: usize, scalars: &Scalars) -> swav_cuda::Result<()> {
        self.host.run(program, tape, scalars)
    }

    fn stage(
        &mut self,
        program: usize,
        buffer: BufferId,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> swav_cuda::Result<()> {
        self.host.stage(program, buffer, bytes, fill)
    }

    fn read(&mut self, program: usize, buffer: BufferId, range: Range<usize>) -> swav_cuda::Result<Vec<u8>> {
        self.host.read(program, buffer, range)
    }

    fn write_persistent(&mut self, name: &str, offset: usize, bytes: &[u8]) -> swav_cuda::Result<()> {
        self.host.write_persistent(name, offset, bytes)
    }

    fn read_persistent(&mut self, name: &str, range: Range<usize>) -> swav_cuda::Result<Vec<u8>> {
        self.host.read_persistent(name, range)
    }

    fn fetch(&mut self, program: usize, buffer: BufferId, bytes: usize) -> swav_cuda::Result<u64> {
        self.host.fetch(program, buffer, bytes)
    }

    fn take(&mut self, ticket: u64) -> swav_cuda::Result<Vec<u8>> {
        self.host.take(ticket)
    }

    fn memory_limit(&self) -> Option<u64> {
        Some(self.memory)
    }

    fn plans(&self) -> Option<PlanBook> {
        Some(self.book.clone())
    }

    fn adopt_plans(&mut self, book: &PlanBook) -> swav_cuda::Result<()> {
        if book.place() != self.book.place() {
            return Err(swav_cuda::Error::Plans { reason: "of another card".to_owned() });
        }
        self.book = book.clone();
        Ok(())
    }

    fn n_refused_plans(&self) -> usize {
        self.loaded.len()
    }
}

fn planned(config: EncoderConfig, book: PlanBook, memory: u64) -> Cuda {
    watched(config, book, memory).0
}

/// An engine, and the bytes of buffers that its machine holds.
fn watched(config: EncoderConfig, book: PlanBook, memory: u64) -> (Cuda, Arc<AtomicU64>) {
    let spec = config.check().unwrap();
    let held = Arc::default();
    let (host, loaded) = (HostMachine::new(), Vec::new());
    let machine = Box::new(Planned { host, book, loaded, held: Arc::clone(&held), memory });
    (Cuda::new("cuda:host", &spec, Arc::new(Layers::new(&spec)), machine).unwrap(), held)
}

/// A step of two crops of 32 pixels.
fn small_step(batch_size: usize) -> StepPlan {
    StepPlan {
        batch_size,
        groups: vec![GroupShape { n_crops: 2, height: 32, width: 32 }],
        scaling: Some(SCALING),
        crops_for_assign: vec![0, 1],
        temperature: 0.1,
        epsilon: 0.05,
        sinkhorn_iters: 3,
        n_prototypes: 10,
        queue_length: 0,
    }
}

const SGD: Method = Method::Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.0 };
const ADAMW: Method = Method::AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };

/// A batch that does not fit is refused before a step is run, with the largest that fits: that one is taken, and one more image
/// is not. Memory that others have is not counted on.
#[test]
fn a_batch_that_does_not_fit_names_the_largest_that_does() {
    let checkpointed = EncoderConfig { checkpointing: Checkpointing::Blocks, ..config(Precision::F32) };
    for (config, again) in [(config(Precision::F32), true), (checkpointed, false)] {
        let prepare = |batch_size, memory| {
            let mut engine = planned(config.clone(), book("a card", 1), memory);
            let step = small_step(batch_size);
            let told = engine.device_memory(TrainingStep::Whole(&step), &SGD.into()).unwrap();
            let prepared = engine.prepare(&step).map_err(|error| match &error {
                EncoderError::OutOfMemory { memory: Some(memory), .. } => (*memory, error.to_string()),
                other => panic!("{other}"),
            });
            assert_eq!(prepared.is_ok(), told.fits(), "{told}");
            prepared.inspect_err(|(memory, _)| assert_eq!(*memory, told))
        };
        let memory = 1800 << 20;
        let (DeviceMemory { largest, largest_again, .. }, text) = prepare(1000, memory).unwrap_err();
        assert!((2..1000).contains(&largest), "{text}");
        assert!(text.starts_with("the memory of device `cuda:host` does not suffice: about"), "{text}");
        assert!(text.contains("of 1.7 GiB for a batch of 1000"), "{text}");
        assert!(text.contains(&format!("up to {largest} images would fit")), "{text}");
        assert_eq!(text.contains("checkpointing"), again, "{text}");
        assert_eq!(largest_again.is_some_and(|again| again > largest), again);
        prepare(largest, memory).unwrap();
        prepare(largest + 1, memory).unwrap_err();
        // The parameters fit, and nothing beside them.
        let network = network_of(&config.check().unwrap(), &Layers::new(&config.check().unwrap()));
        let (nothing, text) = prepare(8, program_bytes(&network.refresh(Element::F32))).unwrap_err();
        assert_eq!((nothing.largest, nothing.largest_again), (0, again.then_some(0)));
        assert!(text.ends_with("not a single image would fit"), "{text}");
    }
}

/// A single pass does not know what a whole step takes, and says that it is memory which does not suffice.
#[test]
fn a_pass_that_does_not_fit_says_so() {
    let mut engine = planned(config(Precision::F32), book("a card", 1), 650 << 20);
    let images = Array4::zeros((600, 32, 32, 3));
    let trained = engine.forward_train(&[images.view()], 0.1, true).unwrap_err();
    let embedded = engine.forward_infer(images.view(), Part::Whole).unwrap_err();
    for error in [trained, embedded] {
        assert!(matches!(error, EncoderError::OutOfMemory { memory: None, .. }), "{error}");
        let text = "the memory of device `cuda:host` does not suffice; smaller batches need less";
        assert_eq!(error.to_string(), text);
    }
}

/// What is told beforehand bounds what training then holds, and is no more than that with workspaces, the context and what the
/// host writes: of whole steps as of passes with their updates, for each optimiser.
#[test]
fn what_is_told_beforehand_is_what_training_takes() {
    let rule = UpdateRule::new;
    for (precision, method) in [(Precision::F32, SGD), (Precision::Mixed, ADAMW)] {
        let plan = StepPlan { queue_length: 8, ..small_step(4) };
        let pixels = Array4::from_shape_fn((8, 32, 32, 3), |(n, y, x, c)| ((n + 3 * y + x * c) % 7) as f32);
        let bytes = pixels.mapv(|value| value as u8);
        // The host's copies: of pixels as they come, and of the gradient of the output.
        let workspace: u64 = if precision == Precision::F32 { 1 << 30 } else { 64 << 20 };
        let slack = |written: usize| (600 << 20) + workspace + written as u64;
        let told = |engine: &Cuda, step: TrainingStep<'_>| {
            let told = engine.device_memory(step, &rule(method)).unwrap();
            assert_eq!((told.batch_size, told.available), (4, 8 << 30));
            assert!(told.fits() && told.largest > 4 && told.largest_again > Some(told.largest), "{told}");
            told.needed
        };

        let (mut engine, held) = watched(config(precision), book("a card", 1), 8 << 30);
        let needed = told(&engine, TrainingStep::Whole(&plan));
        engine.prepare(&plan).unwrap();
        let prototypes = Array2::from_shape_fn((10, 16), |(k, d)| if k == d { 1.0 } else { 0.1 });
        engine.load_prototypes(prototypes.view(), &Slots::default()).unwrap();
        let inputs = StepInputs {
            step: 0,
            rule: rule(method),
            max_gradient_norm: None,
            update_prototypes: true,
            use_queue: false,
            push_queue: true,
        };
        engine.step(Crops::Bytes(&[bytes.view()]), &inputs).unwrap();
        assert_eq!(needed, held.load(Ordering::Relaxed) + slack(bytes.len()));

        let (mut engine, held) = watched(config(precision), book("a card", 1), 8 << 30);
        let groups = &plan.groups[..];
        let needed = told(&engine, TrainingStep::Passes { batch_size: 4, groups });
        for clips in [false, true] {
            let z = engine.forward_train(&[pixels.view()], 0.1, true).unwrap();
            engine.backward(z.view()).unwrap();
            if clips {
                engine.gradient_norm().unwrap();
            }
            engine.update(&rule(method)).unwrap();
            let holds = held.load(Ordering::Relaxed) + slack(4 * (pixels.len() + z.len()));
            assert_eq!(
                holds == needed,
                clips,
                "{holds} of {needed}: only a norm needs the sums of gradients"
            );
            assert!(holds <= needed, "{holds} of {needed}");
        }

        // What cannot be run as a whole goes pass by pass.
        for refused in [
            StepPlan { queue_length: 7, ..plan.clone() },
            StepPlan { crops_for_assign: vec![2], ..plan.clone() },
        ] {
            assert_eq!(told(&engine, TrainingStep::Whole(&refused)), needed);
        }
        for nothing in [
            TrainingStep::Passes { batch_size: 0, groups },
            TrainingStep::Passes { batch_size: 4, groups: &[] },
        ] {
            assert_eq!(engine.device_memory(nothing, &rule(method)), None);
        }
    }
    // Nothing bounds the host's machine.
    let step = small_step(4);
    assert_eq!(engine(Precision::F32).0.device_memory(TrainingStep::Whole(&step), &SGD.into()), None);
}

/// A book with a plan of a convolution.
fn book(card: &str, engine: i64) -> PlanBook {
    let mut book = PlanBook::new(Place { card: card.to_owned(), cudnn: "9.14.0".to_owned() });
    let conv = Convolution {
        shape: ConvShape::linear(8, 16, 24),
        pass: ConvPass::Forward,
        element: Element::Bf16,
        tf32: false,
        accumulate: false,
    };
    book.insert(Entry { conv, choice: Choice { engine, knobs: vec![(2, 7)] }, microseconds: Some(2.5) });
    book
}

#[test]
fn choices_are_the_machines_plans() {
    let planned = |book| planned(config(Precision::Mixed), book, u64::MAX);
    let first = planned(book("a card", 3));
    let choices = first.choices().unwrap();
    let mut second = planned(book("a card", 5));
    assert_ne!(second.choices().unwrap(), choices);
    second.adopt_choices(&choices).unwrap();
    assert_eq!(second.choices().unwrap(), choices);
    let mut elsewhere = planned(book("another card", 5));
    for text in [choices.as_str(), "", "{}"] {
        let refused = elsewhere.adopt_choices(text).unwrap_err();
        assert!(matches!(refused, EncoderError::Device { .. }), "{refused}");
        assert_eq!(elsewhere.choices().unwrap(), book("another card", 5).to_json());
    }
    // The host has nothing to choose.
    let (mut host, _) = engine(Precision::F32);
    assert_eq!(host.choices(), None);
    host.adopt_choices(&choices).unwrap();
}
