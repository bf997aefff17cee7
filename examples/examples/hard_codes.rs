//! Hard codes: each crop's code is its strongest prototype alone. Another way to assign codes wraps Sinkhorn's, without a
//! change to the step; the temperature follows a schedule, and a callback watches each epoch.
//!
//!     cargo run --release -p swav-examples --example hard_codes

use std::sync::Arc;

use swav::data::{Shapes, ShapesConfig, Split};
use swav::train::{
    AssignCodes, Assigned, CodesInput, EpochStart, Remembered, RunFolder, Section, Setup, SinkhornCodes,
    StopFlag, Swapped, TrainConfig, TrainError,
};

/// Sinkhorn codes, rounded.
struct HardCodes(SinkhornCodes);

impl AssignCodes for HardCodes {
    fn assign(&mut self, input: &CodesInput<'_>) -> Result<Assigned, TrainError> {
        let mut assigned = self.0.assign(input)?;
        for code in &mut assigned.codes {
            for mut row in code.weights.rows_mut() {
                let strongest = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
                row.fill(0.0);
                row[strongest] = 1.0;
            }
        }
        Ok(assigned)
    }

    // The queue stays Sinkhorn's: it starts with its epoch, takes batches in, and is part of checkpoints.
    fn start_epoch(&mut self, start: &mut EpochStart<'_>) -> Result<(), TrainError> {
        self.0.start_epoch(start)
    }

    fn remember(&mut self, batch: &Remembered<'_>) -> Result<(), TrainError> {
        self.0.remember(batch)
    }

    fn save(&self) -> Section {
        self.0.save()
    }

    fn load(&mut self, sections: &[Section], rank: usize, world_size: usize) -> Result<(), TrainError> {
        self.0.load(sections, rank, world_size)
    }
}

const RECIPE: &str = r#"
training = { epochs = 3, batch_size = 32 }
prototypes = { n_prototypes = [12], freeze_iters = 4 }
queue = { length = 64, start_epoch = 1 }
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
    let data = Arc::new(Shapes::new(
        &ShapesConfig { n_train: 256, ..ShapesConfig::default() }.check()?,
        Split::Train,
    ));
    let encoder = swav::encoder::build_cpu(settings.encoder(), settings.config().training.seed)?;
    let codes = HardCodes(settings.sinkhorn_codes(encoder.embedding_dim(), 1));
    let loss = Swapped::new(settings.loss().clone()).with_temperature(|at| 0.2 - 0.1 * at.share() as f32);

    let folder = std::env::temp_dir().join(format!("swav-hard-codes-{}", std::process::id()));
    let setup = Setup::new(settings, encoder, data, RunFolder::at(&folder));
    let mut trainer = setup.codes(codes).loss(loss).start()?;
    trainer.on_epoch(|event| {
        println!("epoch {}: mean loss {:.3}", event.epoch, event.mean_loss);
        Ok(())
    });
    let outcome = trainer.run(&StopFlag::new())?;
    println!("{} steps with hard codes, loss {:.3}", outcome.n_steps, outcome.loss);
    Ok(std::fs::remove_dir_all(&folder)?)
}
