//! Whole training steps on a device, through the encoder: what `pretrain` runs there, crops from the host included.

use std::time::Instant;

use anyhow::Context;
use ndarray::{Array2, Array4};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swav_encoder::{
    Crops, Encoder, GroupShape, Method, Precision, Scaling, Slots, StepInputs, StepPlan, UpdateRule,
    WholeStep, build,
};
use swav_prototypes::Prototypes;

use super::workload::Workload;
use crate::workload::{EPSILON, SINKHORN_ITERS, TEMPERATURE};

/// Steps before those that are timed: the first are not recorded yet.
const WARM_UP_STEPS: u32 = 4;
const SEED: u64 = 31;

/// A workload on a device, ready for steps.
pub struct Steps {
    encoder: Box<dyn Encoder>,
    crops: Vec<Array4<u8>>,
    inputs: StepInputs,
    /// What the card's memory had less afterwards.
    pub bytes: Option<f64>,
    /// Seconds until the steps before the first round were done.
    pub ready_s: f64,
    /// The loss of the last step.
    pub loss: f64,
}

impl Steps {
    /// Makes everything ready, and runs the first steps.
    pub fn open(device: &str, workload: &Workload, arithmetic: (Precision, bool)) -> anyhow::Result<Self> {
        let begin = Instant::now();
        let before = free(device);
        let spec = workload.config(arithmetic).check()?;
        let mut encoder = build(device, &spec, SEED)?;
        let dim = encoder.embedding_dim();
        let steps = encoder.whole_step().context("this device has no whole steps")?;
        let groups = workload.groups();
        steps.prepare(&plan(workload, &groups))?;
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let prototypes = Prototypes::random(&[workload.prototypes], dim, &mut random)?;
        let weights: Array2<f32> = prototypes.weights(0)?.to_owned();
        steps.load_prototypes(weights.view(), &Slots::default())?;
        let inputs = StepInputs {
            step: 0,
            rule: UpdateRule::new(Method::Larc { lr: 0.1, momentum: 0.9, weight_decay: 1e-6, trust: 1e-3 }),
            max_gradient_norm: None,
            update_prototypes: true,
            use_queue: false,
            push_queue: false,
        };
        let crops = groups.iter().map(|group| noise(group, workload.batch, &mut random)).collect();
        let mut steps = Self { encoder, crops, inputs, bytes: None, ready_s: 0.0, loss: f64::NAN };
        steps.time(WARM_UP_STEPS)?;
        steps.ready_s = begin.elapsed().as_secs_f64();
        steps.bytes = before.zip(free(device)).map(|(before, after)| before.saturating_sub(after) as f64);
        Ok(steps)
    }

    /// Runs steps in a row; milliseconds a step.
    pub fn time(&mut self, n_steps: u32) -> anyhow::Result<f64> {
        let views: Vec<_> = self.crops.iter().map(|crops| crops.view()).collect();
        let steps: &mut dyn WholeStep =
            self.encoder.whole_step().context("this device has no whole steps")?;
        let begin = Instant::now();
        for _ in 0..n_steps {
            steps.step(Crops::Bytes(&views), &self.inputs)?;
            self.inputs.step += 1;
        }
        self.loss = steps.finish()?.pop().context("no report of the last step")?.loss;
        Ok(begin.elapsed().as_secs_f64() * 1e3 / f64::from(n_steps))
    }
}

/// What stays the same from step to step.
fn plan(workload: &Workload, groups: &[GroupShape]) -> StepPlan {
    StepPlan {
        batch_size: workload.batch,
        groups: groups.to_vec(),
        scaling: Some(Scaling { scale: [1.0 / 64.0; 3], shift: [-2.0; 3] }),
        crops_for_assign: vec![0, 1],
        temperature: TEMPERATURE,
        epsilon: EPSILON,
        sinkhorn_iters: SINKHORN_ITERS,
        n_prototypes: workload.prototypes,
        queue_length: 0,
    }
}

/// Free bytes of the card, if the device is one.
fn free(device: &str) -> Option<u64> {
    let card = swav_cuda::driver::Card::open(device.strip_prefix("cuda:")?.parse().ok()?).ok()?;
    card.memory().ok().map(|(free, _)| free)
}

/// Crops of random bytes.
fn noise(shape: &GroupShape, batch: usize, random: &mut ChaCha8Rng) -> Array4<u8> {
    let shape = (shape.n_crops * batch, shape.height, shape.width, 3);
    Array4::from_shape_simple_fn(shape, || random.random())
}
