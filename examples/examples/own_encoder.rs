//! An encoder of one's own, trained as any other: a matrix times the mean colours of a grid. Its formula and its gradient
//! are a dozen lines; unit length, optimiser, state and processes are `OwnEncoder`'s.
//!
//!     cargo run --release -p swav-examples --example own_encoder

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayView4};
use rand::{Rng, SeedableRng};
use swav::data::{Shapes, ShapesConfig, Split};
use swav::encoder::{EncoderError, Model, OwnEncoder, Parameters};
use swav::train::{RunFolder, StopFlag, TrainConfig, Trainer};

const CELLS: usize = 4;
const DIM: usize = 8;

/// A matrix times the mean colours of CELLS x CELLS cells of an image.
struct Linear;

impl Model for Linear {
    type Saved = Array2<f32>;

    fn embedding_dim(&self) -> usize {
        DIM
    }

    fn forward(
        &self,
        parameters: &Parameters,
        images: ArrayView4<'_, f32>,
    ) -> Result<(Array2<f32>, Array2<f32>), EncoderError> {
        let (n, height, width, _) = images.dim();
        let mut cells = Array2::<f32>::zeros((n, CELLS * CELLS * 3));
        for ((image, y, x, channel), &value) in images.indexed_iter() {
            let cell = y * CELLS / height * CELLS + x * CELLS / width;
            cells[[image, cell * 3 + channel]] += value * (CELLS * CELLS) as f32 / (height * width) as f32;
        }
        Ok((cells.dot(&parameters.matrix("weight")?.t()), cells))
    }

    fn backward(
        &self,
        _: &Parameters,
        cells: Array2<f32>,
        gradient: ArrayView2<'_, f32>,
        sums: &mut Parameters,
    ) -> Result<(), EncoderError> {
        let mut weight = sums.matrix_mut("weight")?;
        weight += &gradient.t().dot(&cells);
        Ok(())
    }
}

const RECIPE: &str = r#"
training = { epochs = 3, batch_size = 32 }
prototypes = { n_prototypes = [12], freeze_iters = 0 }
optimizer = { kind = "adamw", base_lr = 0.01, warmup_epochs = 0 }
monitor = { tensorboard = false }

[augment]
preset = "simclr-cifar"
crops = [{ size = 16, n_crops = 2, min_scale = 0.4, max_scale = 1.0 }]
"#;

fn main() -> anyhow::Result<()> {
    let settings = TrainConfig::parse(RECIPE, &[])?.check()?;
    let data = Arc::new(Shapes::new(
        &ShapesConfig { n_train: 256, ..ShapesConfig::default() }.check()?,
        Split::Train,
    ));
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(settings.config().training.seed);
    let weight = Array2::from_shape_simple_fn((DIM, CELLS * CELLS * 3), || rng.random_range(-0.1..0.1f32));
    let encoder = OwnEncoder::new("linear on 4x4 cells", Linear, Parameters::new().with("weight", weight));

    let folder = std::env::temp_dir().join(format!("swav-own-encoder-{}", std::process::id()));
    let mut trainer = Trainer::start(settings, Box::new(encoder), data, RunFolder::at(&folder))?;
    let outcome = trainer.run(&StopFlag::new())?;
    println!("{} steps of a linear encoder, loss {:.3}", outcome.n_steps, outcome.loss);
    // The run's record says what was trained, not what the recipe's defaults would have been.
    let record = std::fs::read_to_string(folder.join("config.toml"))?;
    let line = record.lines().find(|line| line.starts_with("own_encoder"));
    println!("config.toml: {}", line.unwrap_or("nothing of its own"));
    Ok(std::fs::remove_dir_all(&folder)?)
}
