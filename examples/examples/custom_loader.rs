//! A data set of one's own: implement `Dataset`, and the loader does the rest.
//!
//! Here the images are drawn by a function: rings around a centre, with the number of rings as the label. Run it with
//! `cargo run --release -p swav-examples --example custom_loader`.

use std::sync::Arc;

use swav_augment::{Channels, CropConfig, Image, MultiCropConfig};
use swav_data::{BatchPlan, Dataset, Loader, LoaderConfig, Position, SampleError};

/// Rings whose number is the class.
struct Rings {
    len: usize,
}

const SIZE: u32 = 40;

impl Dataset for Rings {
    fn len(&self) -> usize {
        self.len
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let n_rings = self.label(index).ok_or(SampleError::OutOfRange { index, len: self.len })?;
        // Every ninth image is bad, as in real life: the loader counts it, logs it, and takes the next one.
        if index % 9 == 8 {
            return Err(SampleError::Corrupt("drawn to be bad".into()));
        }
        let centre = 12.0 + (index % 17) as f32;
        let pixels = (0..SIZE * SIZE).flat_map(|at| {
            let (x, y) = ((at % SIZE) as f32 - centre, (at / SIZE) as f32 - centre);
            let wave = (x.hypot(y) / SIZE as f32 * std::f32::consts::TAU * n_rings as f32).cos();
            let bright = (127.5 + 127.5 * wave) as u8;
            [bright, 255 - bright, (index * 29 % 256) as u8]
        });
        let image = Image::new(SIZE, SIZE, Channels::Rgb, pixels.collect());
        Ok(Arc::new(image.map_err(|error| SampleError::Corrupt(error.into()))?))
    }

    fn label(&self, index: usize) -> Option<u32> {
        (index < self.len).then_some(index as u32 % 5 + 1)
    }

    fn name(&self, index: usize) -> String {
        format!("rings/{index}")
    }
}

fn main() -> anyhow::Result<()> {
    let data: Arc<dyn Dataset> = Arc::new(Rings { len: 500 });
    let crop = |size, n_crops, min_scale, max_scale| CropConfig {
        size,
        n_crops,
        min_scale,
        max_scale,
        min_ratio: 0.75,
        max_ratio: 4.0 / 3.0,
    };
    let crops = Some(vec![crop(32, 2, 0.3, 1.0), crop(16, 4, 0.1, 0.3)]);
    let views = Arc::new(MultiCropConfig { crops, ..MultiCropConfig::default() }.check()?);
    let config = LoaderConfig { max_bad_share: 0.2, ..LoaderConfig::default() };
    let plan = BatchPlan { batch_size: 50, seed: 31, n_epochs: Some(1), ..BatchPlan::default() };

    let mut loader = Loader::new(data.clone(), views.clone(), &config.check()?, plan, Position::default())?;
    let mut checkpoint = None;
    let mut sums = Vec::new();
    while let Some(batch) = loader.next_batch()? {
        let sum: f32 = batch.groups.iter().flat_map(|group| &group.images).sum();
        println!(
            "epoch {} batch {}: {} images, groups {:?}, {} replaced, sum {sum:.3}",
            batch.position.epoch,
            batch.position.batch,
            batch.batch_size,
            batch.groups.iter().map(|group| (group.n_crops, group.images.dim().1)).collect::<Vec<_>>(),
            batch.bad.len()
        );
        sums.push(sum);
        // What a trainer would save with its weights.
        if batch.position.batch == 5 {
            checkpoint = Some(loader.position());
        }
    }
    let stats = loader.stats();
    println!(
        "{} images, {} bad, waited {:.1}% of the time",
        stats.n_images,
        stats.n_bad,
        100.0 * stats.waiting_share()
    );

    // From the checkpoint on, everything repeats bit for bit, here with another number of workers.
    let resumed = LoaderConfig { n_workers: 3, ..config };
    let position = checkpoint.ok_or_else(|| anyhow::anyhow!("the epoch ended before the checkpoint"))?;
    for (batch, sum) in
        Loader::new(data, views, &resumed.check()?, plan, position)?.zip(&sums[position.batch as usize..])
    {
        let again: f32 = batch?.groups.iter().flat_map(|group| &group.images).sum();
        anyhow::ensure!(again.to_bits() == sum.to_bits(), "resuming changed a batch");
    }
    println!("resumed at batch {}: the same bits", position.batch);
    Ok(())
}
