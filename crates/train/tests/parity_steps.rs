//! Whole training steps against PyTorch: the reference's network, loss, queue and LARC-SGD.
//!
//! Each step alone from the recorded state before it, and the whole training from its start. Nothing is retried or moved:
//! the records hold no decision of a ReLU or a maximum that rounding could turn.

use ndarray::{Array3, ArrayD, Ix2, Ix3};
use swav_collective::Single;
use swav_encoder::{
    BlockKind, Checkpointing, Encoder, EncoderConfig, Head, Method, Output, ResNet, Slots, StateDict,
    StateTensor, UpdateRule, build,
};
use swav_fixtures::{Before, Named, Step, Training, assert_tensors_close, json, max_abs_difference};
use swav_losses::SwappedPrediction;
use swav_ot::Codes;
use swav_prototypes::{FeatureQueue, Prototypes};
use swav_train::{Batch, Moment, Schedule, SinkhornCodes, StepOutput, Swapped, Swav, Update};

const ASSIGN: [usize; 2] = [0, 1];
const PROTOTYPES: &str = "prototypes.weight";

/// A way to compute the encoder, and what its numbers may differ by.
struct Case {
    device: String,
    exact: bool,
    checkpointing: Checkpointing,
    tolerance: Tolerance,
}

/// Largest differences: absolute for embeddings, scores and codes, relative for the loss, gradients and state.
#[derive(Clone, Copy)]
struct Tolerance {
    loss: f64,
    embeddings: f64,
    /// Embeddings in inference after the whole training, which carry the rounding of all its steps.
    inference: f64,
    codes: f64,
    gradients: f64,
    state: f64,
}

const EXACT: Tolerance =
    Tolerance { loss: 1e-5, embeddings: 1e-4, inference: 5e-4, codes: 1e-4, gradients: 1e-3, state: 1e-3 };

/// Winograd's and Strassen's algorithms round some 15 to 45 times as much as a direct sum.
const FAST: Tolerance =
    Tolerance { loss: 1e-4, embeddings: 1e-3, inference: 1e-3, codes: 1e-3, gradients: 1e-2, state: 1e-3 };

/// The step lengths of tensors whose gradient is rounding alone (a bias before batch norm), which LARC makes as long as any:
/// over a whole training their direction is anybody's, and changes nothing.
const OF_ROUNDING: f64 = 2e-2;

impl Case {
    fn new(device: &str) -> Self {
        Self { device: device.to_owned(), exact: true, checkpointing: Checkpointing::Off, tolerance: EXACT }
    }

    /// The encoder that the training was recorded with; sizes are read off its weights.
    fn encoder(&self, state: &Named) -> Box<dyn Encoder> {
        let rows = |name: &str| state[name].shape()[0];
        let config = EncoderConfig {
            arch: ResNet::custom(BlockKind::Bottleneck, [1; 4]).with_width(rows("conv1.weight")).into(),
            head: Head::Mlp { hidden: rows("projection_head.0.weight") },
            dim: rows("projection_head.3.weight"),
            exact: self.exact,
            checkpointing: self.checkpointing,
            ..EncoderConfig::default()
        };
        build(&self.device, &config.check().unwrap(), 0).unwrap()
    }

    /// Every step alone, then the whole training.
    fn follow(&self, name: &str) {
        let training = Training::open(name);
        for step in training.steps() {
            let mut run = Run::new(self, &training, &step.before(), step.index);
            run.follow(&step, false);
        }
        let first = training.steps().next().expect("a training has steps");
        let mut run = Run::new(self, &training, &first.before(), 0);
        for step in training.steps() {
            run.follow(&step, true);
        }
        let crop = first.crop(0);
        let z = run.encoder.embed(crop.view(), Output::Embedding).unwrap();
        let difference = max_abs_difference(&*z, &*training.z_in_inference());
        let allowed = self.tolerance.inference;
        assert!(
            difference <= allowed,
            "embeddings in inference differ by {difference:e}, allowed {allowed:e}"
        );
    }
}

/// A training under way.
struct Run<'a> {
    training: &'a Training,
    encoder: Box<dyn Encoder>,
    swav: Swav,
    tolerance: Tolerance,
    /// Tensors whose gradient was rounding alone in a step that was followed.
    of_rounding: Vec<String>,
}

impl<'a> Run<'a> {
    /// A run at the start of step number `index`.
    fn new(case: &Case, training: &'a Training, before: &Before, index: usize) -> Self {
        let mut encoder = case.encoder(&before.state);
        encoder.load_state(&tensors(&before.state, |name| name != PROTOTYPES)).unwrap();
        let (mut of_encoder, mut of_prototypes) = (StateDict::new(), StateDict::new());
        for (name, velocity) in &before.velocity {
            let slots = Slots { first: values(velocity), n_updates: index as u64, ..Slots::default() };
            let state = if name == PROTOTYPES { &mut of_prototypes } else { &mut of_encoder };
            state.insert_slots(name, velocity.shape(), &slots);
        }
        encoder.load_optimizer_state(&of_encoder).unwrap();

        let weights = before.state[PROTOTYPES].clone().into_dimensionality::<Ix2>().unwrap();
        let temperature = training.number("temperature") as f32;
        let loss = SwappedPrediction::new(training.count("crops"), &ASSIGN, temperature).unwrap();
        let solver = Codes::new(training.number("epsilon"), training.count("iterations")).unwrap();
        let mut codes = SinkhornCodes::new(solver, &ASSIGN);
        codes.set_queue(queue(training, before, weights.ncols(), index));
        let prototypes = Prototypes::from_weights(vec![weights]).unwrap();
        let mut swav = Swav::new(prototypes, Box::new(Swapped::new(loss)), Box::new(codes));
        swav.load(&tensors(&before.state, |name| name == PROTOTYPES), &of_prototypes).unwrap();
        Self { training, encoder, swav, tolerance: case.tolerance, of_rounding: Vec::new() }
    }

    /// Does a step and compares everything that was recorded of it.
    fn follow(&mut self, step: &Step<'_>, freely: bool) {
        let what = format!("step {}{}", step.index, if freely { " of a whole training" } else { " alone" });
        let groups = step.groups();
        let views: Vec<_> = groups.iter().map(|group| group.view()).collect();
        let indices: Vec<usize> = (0..self.training.count("batch")).collect();
        let batch = Batch { groups: &views, indices: &indices, moment: Moment::default() };
        let output = self.swav.forward_backward(self.encoder.as_mut(), &batch, &Single).unwrap();
        self.compare_output(&what, step, &output);

        let gradients = step.gradients();
        let of_prototypes = output.grad_prototypes[0].iter().copied().collect::<Vec<_>>();
        assert_tensors_close(&format!("{what}: gradient"), &gradients, self.tolerance.gradients, |name| {
            if name == PROTOTYPES { Some(of_prototypes.clone()) } else { self.encoder.gradient(name) }
        });
        self.of_rounding.extend(negligible(&gradients));

        let rule = UpdateRule::from(Method::Larc {
            lr: step.lr as f32,
            momentum: self.training.number("momentum") as f32,
            weight_decay: self.training.number("weight_decay") as f32,
            trust: self.training.number("trust") as f32,
        });
        let update_prototypes = step.index >= self.training.count("freeze_prototypes_iters");
        let update = Update { update_prototypes, ..Update::from(rule) };
        self.swav.update(self.encoder.as_mut(), &output, &update).unwrap();
        self.compare_state(&format!("{what}: state after it"), step.state_after(), freely);
    }

    fn compare_output(&self, what: &str, step: &Step<'_>, output: &StepOutput) {
        let Tolerance { loss, embeddings, codes, .. } = self.tolerance;
        let difference = (output.loss / step.loss - 1.0).abs();
        assert!(difference <= loss, "{what}: the loss {} differs by {difference:e} of it", output.loss);
        assert_eq!(output.queue_used, step.queue_used, "{what}: whether the queue takes part");
        let close = |part: &str, difference: f64, allowed: f64| {
            assert!(difference <= allowed, "{what}: {part} differ by {difference:e}, allowed {allowed:e}");
        };
        close("embeddings", max_abs_difference(&*output.embeddings, &*step.z()), embeddings);
        close("scores", max_abs_difference(&*output.scores[0], &*step.scores()), embeddings);
        for (code, crop) in output.codes[0].iter().zip(ASSIGN) {
            assert_eq!(code.crop, Some(crop));
            close("codes", max_abs_difference(&*code.weights, &*step.codes(crop)), codes);
        }
    }

    fn compare_state(&self, what: &str, expected: Named, freely: bool) {
        let state: StateDict =
            self.encoder.state().unwrap().into_iter().chain(self.swav.state().unwrap()).collect();
        let values = |name: &str| Some(state.get(name)?.data().to_vec());
        let of_rounding = |name: &String| freely && self.of_rounding.contains(name);
        let (loose, strict): (Named, Named) = expected.into_iter().partition(|(name, _)| of_rounding(name));
        assert_tensors_close(what, &strict, self.tolerance.state, values);
        if !loose.is_empty() {
            assert_tensors_close(what, &loose, OF_ROUNDING, values);
        }
    }
}

/// The queue as step number `index` finds it.
fn queue(training: &Training, before: &Before, dim: usize, index: usize) -> Option<FeatureQueue> {
    let (batch, wished) = (training.count("batch"), training.count("queue_length"));
    let length = FeatureQueue::usable_length(wished, batch);
    if length == 0 {
        return None;
    }
    let rows = match &before.queue {
        Some(rows) => rows.clone().into_dimensionality::<Ix3>().unwrap(),
        None => Array3::zeros((ASSIGN.len(), length, dim)),
    };
    let filled = (index * batch).min(length);
    Some(FeatureQueue::from_rows(rows, batch, vec![filled; ASSIGN.len()]).unwrap())
}

fn values(tensor: &ArrayD<f32>) -> Vec<f32> {
    tensor.iter().copied().collect()
}

fn tensors(named: &Named, wanted: impl Fn(&str) -> bool) -> StateDict {
    let chosen = named.iter().filter(|(name, _)| wanted(name));
    let tensor = |tensor: &ArrayD<f32>| StateTensor::new(tensor.shape().to_vec(), values(tensor)).unwrap();
    chosen.map(|(name, values)| (name.clone(), tensor(values))).collect()
}

/// Tensors whose norm is under 1e-6 of the largest.
fn negligible(gradients: &Named) -> Vec<String> {
    let norm = |tensor: &ArrayD<f32>| tensor.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let largest = gradients.values().map(norm).fold(0.0, f64::max);
    let small = gradients.iter().filter(|(_, tensor)| norm(tensor) < 1e-6 * largest);
    small.map(|(name, _)| name.clone()).collect()
}

#[test]
fn parity_steps_bottleneck() {
    Case::new("cpu").follow("steps_bottleneck");
}

#[test]
fn parity_steps_queue() {
    Case::new("cpu").follow("steps_queue");
}

#[test]
fn parity_steps_by_fast_algorithms() {
    for name in ["steps_bottleneck", "steps_queue"] {
        Case { exact: false, tolerance: FAST, ..Case::new("cpu") }.follow(name);
    }
}

#[test]
fn parity_steps_with_blocks_run_again() {
    for name in ["steps_bottleneck", "steps_queue"] {
        Case { checkpointing: Checkpointing::Blocks, ..Case::new("cpu") }.follow(name);
    }
}

#[test]
fn parity_steps_on_other_engines() {
    let other = std::env::var("SWAV_TEST_DEVICE").ok();
    for device in std::iter::once("dfdx:cpu").chain(other.as_deref()) {
        for name in ["steps_bottleneck", "steps_queue"] {
            Case::new(device).follow(name);
        }
    }
}

#[test]
fn parity_schedules() {
    let cases = json("schedules");
    let cases = cases.as_array().expect("a list of schedules");
    assert!(!cases.is_empty());
    for case in cases {
        let number = |key: &str| case[key].as_f64().expect("a number");
        let count = |key: &str| case[key].as_u64().expect("a count");
        let per_epoch = count("iters_per_epoch");
        let schedule = Schedule {
            start_warmup_lr: number("start_warmup"),
            base_lr: number("base_lr"),
            final_lr: number("final_lr"),
            warmup_iters: count("warmup_epochs") * per_epoch,
            total_iters: count("epochs") * per_epoch,
        };
        let expected = case["lr"].as_array().expect("learning rates");
        assert_eq!(expected.len() as u64, schedule.total_iters);
        for (iteration, expected) in expected.iter().enumerate() {
            let expected = expected.as_f64().expect("a number");
            let lr = schedule.lr(iteration as u64);
            assert!((lr - expected).abs() < 1e-6, "iteration {iteration}: {lr} against {expected}");
        }
    }
}
