//! SwAV on images that are made in memory: a data set of one's own, training, features, nearest neighbours.
//!
//!     cargo run --release -p swav-examples --example pretrain_in_memory [-- --quick]

use std::sync::Arc;

use anyhow::Context;
use swav::augment::{Channels, Image};
use swav::data::{Dataset, SampleError};
use swav::encoder::{self, Encoder, Output};
use swav::eval::{KnnClassifier, KnnConfig, encode};
use swav::train::{RunFolder, StopFlag, TrainConfig, Trainer};

const SIZE: u32 = 32;
const N_CLASSES: usize = 6;

/// Grey ripples around a random centre; the class is their wavelength. Made when asked for, so nothing is stored.
struct Ripples {
    n_images: usize,
    first: usize,
}

impl Dataset for Ripples {
    fn len(&self) -> usize {
        self.n_images
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        // Fractions of multiples of irrational numbers are spread evenly and never repeat.
        let random = |step: f64| ((self.first + index) as f64 * step).fract();
        let (x0, y0) = (random(0.754_877_7) * f64::from(SIZE), random(0.569_840_3) * f64::from(SIZE));
        let wavelength = 3.0 + 1.5 * (index % N_CLASSES) as f64;
        let contrast = 60.0 + 60.0 * random(0.618_034);
        let pixels = (0..SIZE * SIZE).map(|i| {
            let distance = (f64::from(i % SIZE) - x0).hypot(f64::from(i / SIZE) - y0);
            (128.0 + contrast * (std::f64::consts::TAU * distance / wavelength).sin()) as u8
        });
        let image =
            Image::new(SIZE, SIZE, Channels::Grey, pixels.collect()).expect("as many bytes as pixels");
        Ok(Arc::new(image))
    }

    fn label(&self, index: usize) -> Option<u32> {
        Some((index % N_CLASSES) as u32)
    }
}

const RECIPE: &str = r#"
[training]
epochs = 6
batch_size = 64

[augment]
preset = "greyscale"
crops = [
    { size = 24, n_crops = 2, min_scale = 0.4, max_scale = 1.0 },
    { size = 16, n_crops = 2, min_scale = 0.2, max_scale = 0.4 },
]

[encoder]
arch = { custom = { block = "basic", layers = [1, 1] } }
width = 16
stem = "cifar"
head = { mlp = { hidden = 64 } }
dim = 32

[prototypes]
n_prototypes = [30]
freeze_iters = 10

[optimizer]
kind = "adamw"
base_lr = 0.003
warmup_epochs = 1
weight_decay = 0.0001

[reestimation]
batch_norm = true
resize = 32
size = 32
"#;

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (n_train, n_test) = if quick { (384, 120) } else { (3000, 600) };
    let train = Arc::new(Ripples { n_images: n_train, first: 0 });
    let test = Ripples { n_images: n_test, first: n_train };

    let settings = TrainConfig::parse(RECIPE, &[])?.check()?;
    let seed = settings.config().training.seed;
    let untrained = encoder::build_cpu(settings.encoder(), seed)?;
    println!("untrained: {:.1}% right", 100.0 * accuracy(untrained.as_ref(), &train, &test, &settings)?);

    // Each run has a folder, for its configuration, checkpoints and metrics.
    let folder = std::env::temp_dir().join(format!("swav-in-memory-{}", std::process::id()));
    let network = encoder::build_cpu(settings.encoder(), seed)?;
    let mut trainer = Trainer::start(settings.clone(), network, train.clone(), RunFolder::at(&folder))?;
    let outcome = trainer.run(&StopFlag::new())?;
    println!("{} steps, {:.0} images/s, loss {:.3}", outcome.n_steps, outcome.images_per_s, outcome.loss);

    let trained = trainer.into_encoder();
    println!("trained:   {:.1}% right", 100.0 * accuracy(trained.as_ref(), &train, &test, &settings)?);
    std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())
}

/// Share of test images whose class their nearest training images tell.
fn accuracy(
    encoder: &dyn Encoder,
    train: &Ripples,
    test: &Ripples,
    settings: &swav::train::Settings,
) -> anyhow::Result<f64> {
    let features = |data: &Ripples| encode(encoder, data, settings.eval_view(), Output::Features, None);
    let bank = features(train)?;
    let labels = bank.labels(train)?;
    let knn = KnnClassifier::new(KnnConfig::default().check()?, bank.rows, labels)?;
    let queries = features(test)?;
    let truth = queries.labels(test)?;
    Ok(knn.predict(queries.rows.view())?.accuracy(&truth)?.top1)
}
