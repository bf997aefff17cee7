//! Whole training steps on a device: what `pretrain` runs there, pixels from the host included.

use std::time::Instant;

use anyhow::Context;
use ndarray::{Array2, Array4};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use swav_encoder::{
    Crops, EncoderConfig, GroupShape, Head, Method, Precision, ResNet, Scaling, Slots, Stem, StepInputs,
    StepPlan, UpdateRule, Variant, build,
};
use swav_prototypes::Prototypes;

use crate::workload::{EPSILON, SINKHORN_ITERS, TEMPERATURE};

/// Steps before the measured ones: the first are not recorded yet.
const WARM_UP_STEPS: u64 = 4;
const SEED: u64 = 31;

/// A training step to time.
pub struct Workload {
    /// For tables.
    pub name: &'static str,
    /// Images.
    pub batch: usize,
    arch: &'static str,
    stem: &'static str,
    sizes: [usize; 2],
    counts: [usize; 2],
    hidden: usize,
    prototypes: usize,
}

/// The steps that are timed.
pub const WORKLOADS: [Workload; 2] = [
    Workload {
        name: "ResNet-18 CIFAR, 256 images, 2x32 + 4x16",
        batch: 256,
        arch: "resnet18",
        stem: "cifar",
        sizes: [32, 16],
        counts: [2, 4],
        hidden: 512,
        prototypes: 300,
    },
    Workload {
        name: "ResNet-50, 64 images, 2x224 + 6x96",
        batch: 64,
        arch: "resnet50",
        stem: "imagenet",
        sizes: [224, 96],
        counts: [2, 6],
        hidden: 2048,
        prototypes: 3000,
    },
];

impl Workload {
    /// The options of a PyTorch script for the same step.
    pub fn options(&self) -> Vec<String> {
        let numbers = |numbers: [usize; 2]| numbers.map(|n| n.to_string());
        let mut options =
            vec!["--arch".to_owned(), self.arch.to_owned(), "--stem".to_owned(), self.stem.to_owned()];
        options.push("--sizes".to_owned());
        options.extend(numbers(self.sizes));
        options.push("--counts".to_owned());
        options.extend(numbers(self.counts));
        let more = [("--batch", self.batch), ("--hidden", self.hidden), ("--prototypes", self.prototypes)];
        options.extend(more.into_iter().flat_map(|(option, n)| [option.to_owned(), n.to_string()]));
        options
    }

    fn config(&self, precision: &str) -> EncoderConfig {
        EncoderConfig {
            arch: ResNet::new(if self.arch == "resnet18" { Variant::Resnet18 } else { Variant::Resnet50 })
                .with_stem(if self.stem == "cifar" { Stem::Cifar } else { Stem::Imagenet })
                .into(),
            head: Head::Mlp { hidden: self.hidden },
            precision: if precision == "mixed" { Precision::Mixed } else { Precision::F32 },
            ..EncoderConfig::default()
        }
    }
}

/// What was measured.
pub struct Timed {
    /// Mean milliseconds of steps in a row.
    pub step_ms: f64,
    /// What the card's memory had less afterwards.
    pub bytes: Option<f64>,
    /// The last step's loss.
    pub loss: f64,
    /// Seconds until the first step.
    pub ready_s: f64,
}

/// Times steps on a device.
pub fn time(device: &str, workload: &Workload, precision: &str, n_steps: usize) -> anyhow::Result<Timed> {
    let begin = Instant::now();
    let before = free(device);
    let spec = workload.config(precision).check()?;
    let mut encoder = build(device, &spec, SEED)?;
    let dim = encoder.embedding_dim();
    let steps = encoder.whole_step().context("this device has no whole steps")?;
    let groups = workload.sizes.iter().zip(workload.counts);
    let shapes: Vec<GroupShape> =
        groups.map(|(&size, n_crops)| GroupShape { n_crops, height: size, width: size }).collect();
    steps.prepare(&StepPlan {
        batch_size: workload.batch,
        groups: shapes.clone(),
        scaling: Some(Scaling { scale: [1.0 / 64.0; 3], shift: [-2.0; 3] }),
        crops_for_assign: vec![0, 1],
        temperature: TEMPERATURE,
        epsilon: EPSILON,
        sinkhorn_iters: SINKHORN_ITERS,
        n_prototypes: workload.prototypes,
        queue_length: 0,
    })?;
    let prototypes = Prototypes::random(&[workload.prototypes], dim, &mut ChaCha8Rng::seed_from_u64(SEED))?;
    let weights: Array2<f32> = prototypes.weights(0)?.to_owned();
    steps.load_prototypes(weights.view(), &Slots::default())?;
    let crops: Vec<Array4<u8>> = shapes.iter().map(|shape| noise(shape, workload.batch)).collect();
    let views: Vec<_> = crops.iter().map(|crops| crops.view()).collect();
    let mut inputs = StepInputs {
        step: 0,
        rule: UpdateRule::new(Method::Larc { lr: 0.1, momentum: 0.9, weight_decay: 1e-6, trust: 1e-3 }),
        max_gradient_norm: None,
        update_prototypes: true,
        use_queue: false,
        push_queue: false,
    };
    while inputs.step < WARM_UP_STEPS {
        steps.step(Crops::Bytes(&views), &inputs)?;
        inputs.step += 1;
    }
    steps.finish()?;
    let ready_s = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    for _ in 0..n_steps {
        steps.step(Crops::Bytes(&views), &inputs)?;
        inputs.step += 1;
    }
    let last = steps.finish()?.pop().context("no report of the last step")?;
    let step_ms = begin.elapsed().as_secs_f64() * 1e3 / n_steps as f64;
    let bytes = before.zip(free(device)).map(|(before, after)| before.saturating_sub(after) as f64);
    Ok(Timed { step_ms, bytes, loss: last.loss, ready_s })
}

/// Free bytes of the card, if the device is one.
fn free(device: &str) -> Option<u64> {
    let card = swav_cuda::driver::Card::open(device.strip_prefix("cuda:")?.parse().ok()?).ok()?;
    card.memory().ok().map(|(free, _)| free)
}

/// Crops of bytes that look random.
fn noise(shape: &GroupShape, batch: usize) -> Array4<u8> {
    let mut x = 0x9e37_79b9u32;
    Array4::from_shape_simple_fn((shape.n_crops * batch, shape.height, shape.width, 3), || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x >> 24) as u8
    })
}
