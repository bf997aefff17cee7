//! A data set of one's own: anything that gives an image for an index. Here stripes of two directions, made when asked for.
//!
//!     cargo run --release -p swav-examples --example own_dataset

use std::sync::Arc;

use swav::augment::{Channels, Image};
use swav::data::{Dataset, SampleError};
use swav::train::{RunFolder, StopFlag, TrainConfig, Trainer};

const SIDE: u32 = 24;

/// Stripes: of even images upright, of odd ones level, each of its own width and colour.
struct Stripes;

impl Dataset for Stripes {
    fn len(&self) -> usize {
        256
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let (width, hue) = (2 + index as u32 / 2 % 5, (index * 37 % 200) as u8);
        let pixel = |at: u32| {
            let along = if index.is_multiple_of(2) { at % SIDE } else { at / SIDE };
            if (along / width).is_multiple_of(2) { [250, hue, 200 - hue] } else { [30, 40, hue / 2] }
        };
        let pixels = (0..SIDE * SIDE).flat_map(pixel).collect();
        let image = Image::new(SIDE, SIDE, Channels::Rgb, pixels);
        Ok(Arc::new(image.map_err(|error| SampleError::Corrupt(error.into()))?))
    }

    fn label(&self, index: usize) -> Option<u32> {
        Some(index as u32 % 2)
    }
}

const RECIPE: &str = r#"
training = { epochs = 3, batch_size = 32 }
prototypes = { n_prototypes = [8], freeze_iters = 4 }
optimizer = { kind = "adamw", base_lr = 0.002, warmup_epochs = 1 }
monitor = { tensorboard = false }

[augment]
preset = "simclr-cifar"
crops = [{ size = 16, n_crops = 2, min_scale = 0.4, max_scale = 1.0 }]

[encoder]
arch = { custom = { block = "basic", layers = [1, 1] } }
width = 8
stem = "cifar"
head = { mlp = { hidden = 16 } }
dim = 16
"#;

fn main() -> anyhow::Result<()> {
    let settings = TrainConfig::parse(RECIPE, &[])?.check()?;
    let encoder = swav::encoder::build_cpu(settings.encoder(), settings.config().training.seed)?;
    let folder = std::env::temp_dir().join(format!("swav-own-dataset-{}", std::process::id()));
    let mut trainer = Trainer::start(settings, encoder, Arc::new(Stripes), RunFolder::at(&folder))?;
    let outcome = trainer.run(&StopFlag::new())?;
    println!("{} steps on {} images, loss {:.3}", outcome.n_steps, Stripes.len(), outcome.loss);
    Ok(std::fs::remove_dir_all(&folder)?)
}
