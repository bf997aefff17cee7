//! A training step on random images: what `bench speed` and `profile` measure. It is the step that training
//! takes, without data loading.

use anyhow::Context;
use ndarray::ArrayView4;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::de::DeserializeOwned;
use swav_collective::Single;
use swav_encoder::{Checkpointing, Encoder, EncoderConfig, Head, Method, Precision, ResNet, UpdateRule};
use swav_losses::SwappedPrediction;
use swav_ot::Codes;
use swav_prototypes::Prototypes;
use swav_train::{Batch, Moment, SinkhornCodes, StepOutput, Swapped, Swav, TrainingSizes, Update};

/// Iterations from the start in which prototypes get no update.
const FREEZE_ITERS: usize = 100;
const RULE: UpdateRule =
    UpdateRule::new(Method::Larc { lr: 0.1, momentum: 0.9, weight_decay: 1e-6, trust: 1e-3 });
pub const TEMPERATURE: f32 = 0.1;
pub const EPSILON: f64 = 0.05;
pub const SINKHORN_ITERS: usize = 3;
const SEED: u64 = 31;
/// As configurations of trainings have it.
const MOST_THREADS: usize = 1024;
const MOST_SIZE: usize = 4096;

/// The network and the images of a step.
#[derive(clap::Args, Debug, Clone)]
pub struct Options {
    /// resnet18, resnet34, resnet50, resnet50w2, resnet50w4 or resnet50w5.
    #[arg(long, default_value = "resnet18")]
    arch: String,
    /// What comes before the residual blocks: cifar (3x3) or imagenet (7x7 and pooling).
    #[arg(long, default_value = "cifar")]
    stem: String,
    /// Channels of the stem.
    #[arg(long, default_value_t = 64)]
    width: usize,
    /// Width of the projection head's hidden layer.
    #[arg(long, default_value_t = 512)]
    hidden: usize,
    /// Dimensions of the embedding.
    #[arg(long, default_value_t = 128)]
    dim: usize,
    /// Number of prototypes.
    #[arg(long, default_value_t = 300)]
    prototypes: usize,
    /// Side of the crops of each resolution, in pixels.
    #[arg(long, num_args = 1.., default_values_t = [32, 16])]
    sizes: Vec<usize>,
    /// How many crops of each resolution an image gives; codes are computed for the first two of all.
    #[arg(long, num_args = 1.., default_values_t = [2, 4])]
    counts: Vec<usize>,
    /// Images a step.
    #[arg(long, default_value_t = 32)]
    pub batch: usize,
    /// Steps to measure, after two that are not.
    #[arg(long, default_value_t = 7)]
    pub steps: usize,
    /// Threads; 0 for one a core.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// How activations are stored: f32 or mixed (bfloat16).
    #[arg(long, default_value = "f32")]
    precision: String,
    /// Use only kernels with the rounding of the direct formula.
    #[arg(long)]
    exact: bool,
    /// Let training take the CPU's matrix unit, where there is one.
    #[arg(long)]
    matrix_unit: bool,
    /// What is kept for the backward pass: off (everything) or blocks (less memory, more time).
    #[arg(long, default_value = "off")]
    checkpointing: String,
    /// cpu, or cuda:0 and so on in a build with `--features cuda`.
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// A network, its prototypes and one batch.
pub struct Workload {
    encoder: Box<dyn Encoder>,
    pub swav: Swav,
    /// Size of the crops and their pixels, NHWC, for each resolution.
    groups: Vec<(usize, Vec<f32>)>,
    indices: Vec<usize>,
    /// Crops of an image.
    pub n_crops: usize,
    n_steps: usize,
}

impl Workload {
    /// Builds what the options say, and the pool of threads.
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        let n_crops = options.counts.iter().fold(0usize, |sum, &count| sum.saturating_add(count));
        if options.sizes.len() != options.counts.len() {
            let (sizes, counts) = (options.sizes.len(), options.counts.len());
            return Err(swav_cli::usage(format!(
                "--sizes and --counts: expected as many of one as of the other, got {sizes} and {counts}"
            )));
        }
        if n_crops < 2 || options.counts.contains(&0) || options.sizes.contains(&0) {
            return Err(swav_cli::usage(
                "--sizes and --counts: expected numbers above 0, and two crops or more in all",
            ));
        }
        if options.sizes.iter().any(|&size| size > MOST_SIZE) {
            return Err(swav_cli::usage(format!("--sizes: expected at most {MOST_SIZE} pixels")));
        }
        if options.batch == 0 || options.steps == 0 {
            return Err(swav_cli::usage("--batch and --steps: expected numbers above 0"));
        }
        let config = EncoderConfig {
            arch: ResNet {
                variant: named("--arch", &options.arch)?,
                width: options.width,
                stem: named("--stem", &options.stem)?,
            }
            .into(),
            head: Head::Mlp { hidden: options.hidden },
            dim: options.dim,
            precision: named::<Precision>("--precision", &options.precision)?,
            exact: options.exact,
            matrix_unit: options.matrix_unit,
            checkpointing: named::<Checkpointing>("--checkpointing", &options.checkpointing)?,
            init: None,
        };
        let spec = config.check().map_err(swav_cli::usage)?;
        if options.threads > MOST_THREADS {
            return Err(swav_cli::usage(format!("--threads: expected at most {MOST_THREADS}")));
        }
        let sizes = TrainingSizes {
            encoder: &spec,
            crops: options.sizes.iter().copied().zip(options.counts.iter().copied()).collect(),
            batch_size: options.batch,
            n_batches: 1,
            n_prototypes: options.prototypes,
            n_assign: 2,
            queue_length: 0,
            n_slots: 1,
            on_host: options.device == "cpu",
        };
        sizes.memory().check(swav_train::available_memory()).context("these sizes are too large")?;
        rayon::ThreadPoolBuilder::new().num_threads(options.threads).use_current_thread().build_global()?;

        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let prototypes = Prototypes::random(&[options.prototypes], spec.embedding_dim(), &mut rng)
            .map_err(swav_cli::usage)?;
        let groups = options.sizes.iter().zip(&options.counts).map(|(&size, &count)| {
            let n_values = count * options.batch * size * size * swav_encoder::IMAGE_CHANNELS;
            (size, StandardNormal.sample_iter(&mut rng).take(n_values).collect())
        });
        Ok(Self {
            groups: groups.collect(),
            encoder: swav_encoder::build(&options.device, &spec, SEED)?,
            swav: Swav::new(
                prototypes,
                Box::new(Swapped::new(SwappedPrediction::new(n_crops, &[0, 1], TEMPERATURE)?)),
                Box::new(SinkhornCodes::new(Codes::new(EPSILON, SINKHORN_ITERS)?, &[0, 1])),
            ),
            n_crops,
            indices: (0..options.batch).collect(),
            n_steps: 0,
        })
    }

    /// The same with another encoder around this one.
    pub fn wrap_encoder(self, wrap: impl FnOnce(Box<dyn Encoder>) -> Box<dyn Encoder>) -> Self {
        Self { encoder: wrap(self.encoder), ..self }
    }

    /// One whole step: forward, codes, loss, backward, update.
    pub fn step(&mut self) -> anyhow::Result<StepOutput> {
        let batches: Vec<ArrayView4<'_, f32>> = self
            .groups
            .iter()
            .map(|(size, pixels)| {
                let n_images = pixels.len() / (size * size * swav_encoder::IMAGE_CHANNELS);
                swav_encoder::image_batch(pixels, n_images, *size, *size)
            })
            .collect::<Result<_, _>>()?;
        let batch = Batch { groups: &batches, indices: &self.indices, moment: Moment::default() };
        let output = self.swav.forward_backward(self.encoder.as_mut(), &batch, &Single)?;
        let update = Update { update_prototypes: self.n_steps >= FREEZE_ITERS, ..Update::from(RULE) };
        self.swav.update(self.encoder.as_mut(), &output, &update)?;
        self.n_steps += 1;
        Ok(output)
    }
}

/// A value of an option, by the name that configuration files have for it.
pub fn named<T: DeserializeOwned>(option: &str, name: &str) -> anyhow::Result<T> {
    let value = toml::Value::String(name.to_owned());
    value
        .try_into()
        .map_err(|error: toml::de::Error| swav_cli::usage(format!("{option} {name}: {}", error.message())))
}
