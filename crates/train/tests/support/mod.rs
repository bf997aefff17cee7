//! A tiny data set, a tiny encoder with hand-derived gradients, and runs of both.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayView4};
use swav_augment::{Channels, Image};
use swav_collective::Collective;
use swav_data::{Dataset, SampleError};
use swav_encoder::{
    Description, Encoder, EncoderError, Output, Slots, StateDict, StateTensor, SyncBatchNorm, UpdateRule,
    UpdateStats,
};
use swav_optim::{Role, apply};
use swav_train::{Outcome, RunFolder, Settings, StopFlag, TrainConfig, TrainError, Trainer};

/// Coloured gradients; image i is a function of (salt, i).
pub struct Gradients {
    pub len: usize,
    pub salt: u32,
    /// Whether no image can be read.
    pub unreadable: bool,
}

impl Gradients {
    pub fn new(len: usize, salt: u32) -> Self {
        Self { len, salt, unreadable: false }
    }
}

impl Dataset for Gradients {
    fn len(&self) -> usize {
        self.len
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        if self.unreadable {
            return Err(SampleError::Corrupt("a fault of the data".into()));
        }
        let i = index as u32 * 37 + self.salt;
        let pixel = |at: u32| {
            let (x, y) = (at % 20, at / 20);
            [(x * 9 + i) as u8, (y * (1 + i % 7) * 5) as u8, (x * y + 3 * i) as u8]
        };
        let pixels = (0..20 * 20).flat_map(pixel).collect();
        Ok(Arc::new(Image::new(20, 20, Channels::Rgb, pixels).expect("20 by 20 pixels")))
    }

    fn fingerprint(&self) -> u64 {
        u64::from(self.salt) << 32 | self.len as u64
    }
}

/// Cells in each direction that images are averaged over.
const CELLS: usize = 3;
const FEATURES: usize = CELLS * CELLS * 3;

/// z = normalise(W · cell means): the smallest encoder that learns.
pub struct Linear {
    weight: Array2<f32>,
    slots: Slots,
    tape: Option<(Array2<f32>, Array2<f32>)>,
    gradient: Option<Array2<f32>>,
    /// What goes wrong.
    pub fault: Fault,
    n_forward: usize,
}

/// A part of a step, in which something can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    #[default]
    None,
    Data,
    Epoch,
    Forward,
    EmbeddingIsNan,
    Codes,
    Loss,
    LossIsNan,
    Memory,
    Backward,
    GradientIsNan,
    Average,
    Update,
    Hook,
    Checkpoint,
    Panic,
}

impl Phase {
    pub const ALL: [Self; 15] = [
        Self::Data,
        Self::Epoch,
        Self::Forward,
        Self::EmbeddingIsNan,
        Self::Codes,
        Self::Loss,
        Self::LossIsNan,
        Self::Memory,
        Self::Backward,
        Self::GradientIsNan,
        Self::Average,
        Self::Update,
        Self::Hook,
        Self::Checkpoint,
        Self::Panic,
    ];
}

/// What goes wrong, from which step on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fault {
    pub phase: Phase,
    pub step: usize,
}

impl Linear {
    pub fn new(dim: usize) -> Self {
        let weight = Array2::from_shape_fn((dim, FEATURES), |(i, j)| ((i * 31 + j * 17) as f32).sin());
        Self {
            weight,
            slots: Slots::default(),
            tape: None,
            gradient: None,
            fault: Fault::default(),
            n_forward: 0,
        }
    }

    /// Whether the fault is in this phase and its step has come; `n_forward` counts the steps begun.
    fn fails(&self, phase: Phase) -> bool {
        self.fault.phase == phase && self.n_forward > self.fault.step
    }

    fn check(&self, phase: Phase) -> Result<(), EncoderError> {
        let name = format!("a fault of the encoder: {phase:?}");
        if self.fails(phase) { Err(EncoderError::Missing { name }) } else { Ok(()) }
    }

    fn features(groups: &[ArrayView4<'_, f32>]) -> Array2<f32> {
        let n = groups.iter().map(|group| group.dim().0).sum();
        let mut features = Array2::zeros((n, FEATURES));
        let mut row = 0;
        for group in groups {
            let (_, h, w, _) = group.dim();
            for image in group.outer_iter() {
                for (at, &value) in image.iter().enumerate() {
                    let (y, x, channel) = (at / 3 / w, at / 3 % w, at % 3);
                    let cell = (y * CELLS / h) * CELLS + x * CELLS / w;
                    features[[row, cell * 3 + channel]] += value * (CELLS * CELLS) as f32 / (h * w) as f32;
                }
                row += 1;
            }
        }
        features
    }

    fn embeddings(&self, features: &Array2<f32>) -> (Array2<f32>, Vec<f32>) {
        let mut y = features.dot(&self.weight.t());
        let norms: Vec<f32> = y.rows().into_iter().map(|row| row.dot(&row).sqrt().max(1e-12)).collect();
        for (mut row, &norm) in y.rows_mut().into_iter().zip(&norms) {
            row /= norm;
        }
        (y, norms)
    }
}

impl Encoder for Linear {
    fn embedding_dim(&self) -> usize {
        self.weight.nrows()
    }

    fn feature_dim(&self) -> usize {
        FEATURES
    }

    fn device(&self) -> &str {
        "cpu"
    }

    fn description(&self) -> Description {
        Description::Own("linear".to_owned())
    }

    fn join(&mut self, _: Arc<dyn Collective>, _: SyncBatchNorm) -> Result<(), EncoderError> {
        Ok(())
    }

    fn forward_train(&mut self, groups: &[ArrayView4<'_, f32>]) -> Result<Array2<f32>, EncoderError> {
        let features = Self::features(groups);
        let mut z = self.embeddings(&features).0;
        self.n_forward += 1;
        self.check(Phase::Forward)?;
        if self.fails(Phase::EmbeddingIsNan) {
            z[[0, 0]] = f32::NAN;
        }
        self.tape = Some((features, z.clone()));
        Ok(z)
    }

    fn backward(&mut self, gradient: ArrayView2<'_, f32>) -> Result<(), EncoderError> {
        self.check(Phase::Backward)?;
        let (features, z) = self.tape.take().ok_or(EncoderError::NoForward)?;
        let norms = self.embeddings(&features).1;
        let mut by_y = gradient.to_owned();
        for ((mut g, z), &norm) in by_y.rows_mut().into_iter().zip(z.rows()).zip(&norms) {
            let along = g.dot(&z);
            g.scaled_add(-along, &z);
            g /= norm;
        }
        let mut gradient = by_y.t().dot(&features);
        if self.fails(Phase::GradientIsNan) {
            gradient.fill(f32::NAN);
        }
        self.gradient = Some(gradient);
        Ok(())
    }

    fn embed(&self, images: ArrayView4<'_, f32>, output: Output) -> Result<Array2<f32>, EncoderError> {
        let features = Self::features(&[images]);
        match output {
            Output::Features => Ok(features),
            Output::Embedding => Ok(self.embeddings(&features).0),
            Output::Layer(got) => Err(EncoderError::NoLayer { expected: 0, got }),
        }
    }

    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        vec![("linear.weight".to_owned(), self.weight.shape().to_vec())]
    }

    fn gradient(&self, name: &str) -> Option<Vec<f32>> {
        (name == "linear.weight").then(|| self.gradient.as_ref().map(|g| g.iter().copied().collect()))?
    }

    fn reduce_gradients(&mut self, collective: &dyn Collective) -> Result<(), EncoderError> {
        self.check(Phase::Average)?;
        let gradient = self.gradient.as_mut().ok_or(EncoderError::NoGradients)?;
        let mut values: Vec<f32> = gradient.iter().copied().collect();
        collective.sum_f32(&mut values)?;
        let share = 1.0 / collective.world_size() as f32;
        values.iter_mut().for_each(|value| *value *= share);
        *gradient = Array2::from_shape_vec(gradient.dim(), values).unwrap();
        Ok(())
    }

    fn update(&mut self, rule: &UpdateRule) -> Result<UpdateStats, EncoderError> {
        self.check(Phase::Update)?;
        let gradient = self.gradient.take().ok_or(EncoderError::NoGradients)?;
        let gradient: Vec<f32> = gradient.iter().copied().collect();
        Ok(apply(rule, Role::Weight, self.weight.as_slice_mut().unwrap(), &gradient, &mut self.slots))
    }

    fn state(&self) -> Result<StateDict, EncoderError> {
        let tensor = StateTensor::new(self.weight.shape().to_vec(), self.weight.iter().copied().collect())?;
        Ok([("linear.weight".to_owned(), tensor)].into_iter().collect())
    }

    fn load_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        let tensor = state.expect("linear.weight", self.weight.shape())?;
        self.weight = Array2::from_shape_vec(self.weight.dim(), tensor.data().to_vec()).unwrap();
        Ok(())
    }

    fn optimizer_state(&self) -> Result<StateDict, EncoderError> {
        let mut state = StateDict::new();
        state.insert_slots("linear.weight", self.weight.shape(), &self.slots);
        Ok(state)
    }

    fn load_optimizer_state(&mut self, state: &StateDict) -> Result<(), EncoderError> {
        self.slots = state.slots("linear.weight", self.weight.shape())?;
        Ok(())
    }
}

/// Five batches an epoch, four epochs, a queue from the second one on; the encoder section is for the real network.
pub const CONFIG: &str = r#"
[training]
epochs = 4
batch_size = 8

[augment]
crops = [
    { size = 12, n_crops = 2, min_scale = 0.3, max_scale = 1.0 },
    { size = 8, n_crops = 2, min_scale = 0.1, max_scale = 0.3 },
]

[encoder]
arch = { custom = { block = "basic", layers = [1, 1] } }
width = 4
stem = "cifar"
head = { mlp = { hidden = 8 } }
dim = 6

[prototypes]
n_prototypes = [12]
freeze_iters = 3

[queue]
length = 16
start_epoch = 1

[optimizer]
base_lr = 0.5
warmup_epochs = 1

[monitor]
tensorboard = false

[reestimation]
resize = 16
size = 16
batch_size = 8
"#;

pub fn settings(overrides: &[&str]) -> Settings {
    let overrides: Vec<String> = overrides.iter().map(|&given| given.to_owned()).collect();
    TrainConfig::parse(CONFIG, &overrides).unwrap().check().unwrap()
}

pub fn data() -> Arc<dyn Dataset> {
    Arc::new(Gradients::new(43, 5))
}

pub fn start(folder: &Path, overrides: &[&str]) -> Result<Trainer, TrainError> {
    let trainer =
        Trainer::start(settings(overrides), Box::new(Linear::new(6)), data(), RunFolder::at(folder))?;
    Ok(trainer.show_progress(false))
}

pub fn resume(folder: &Path, overrides: &[&str]) -> Result<Trainer, TrainError> {
    let trainer =
        Trainer::resume(settings(overrides), Box::new(Linear::new(6)), data(), RunFolder::at(folder))?;
    Ok(trainer.show_progress(false))
}

/// A whole run with the linear encoder.
pub fn whole_run(folder: &Path, overrides: &[&str]) -> (Outcome, StateDict) {
    let mut trainer = start(folder, overrides).unwrap();
    let outcome = trainer.run(&StopFlag::new()).unwrap();
    (outcome, trainer.state().unwrap())
}

/// Equal names, shapes and bits.
pub fn assert_same_bits(a: &StateDict, b: &StateDict) {
    assert_eq!(a.len(), b.len());
    for ((name, a), (other, b)) in a.iter().zip(b.iter()) {
        assert_eq!((name, a.shape()), (other, b.shape()));
        let bits = |tensor: &StateTensor| tensor.data().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(a) == bits(b), "{name} differs");
    }
}
