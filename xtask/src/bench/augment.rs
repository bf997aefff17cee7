//! `cargo xtask bench augment`: how many images a second become crops, decoding included.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::Serialize;
use swav_augment::{CropConfig, CropKey, MultiCrop, MultiCropConfig, Preset, Scratch};
use swav_data::{DataConfig, Dataset, Split, open};

use swav_cli::usage;

/// Images that are put together before the next ones are begun, as a loader does.
const BATCH: usize = 16;

/// Time decoding and multi-crop augmentation: the reference's recipe with these sizes and counts.
///
/// The last line is JSON: mode, images, seconds, images_per_s, workers.
#[derive(clap::Args)]
pub struct Args {
    /// A folder of photos, read recursively. Every image is read and decoded when it is needed, none is kept.
    #[arg(long, conflicts_with = "idx", required_unless_present = "idx")]
    images: Option<PathBuf>,
    /// A folder with IDX files (MNIST, Fashion-MNIST); its training images are used.
    #[arg(long)]
    idx: Option<PathBuf>,
    /// Side of the crops of each group, in pixels.
    #[arg(long, num_args = 1.., default_values_t = [32, 16])]
    sizes: Vec<usize>,
    /// How many crops each group has.
    #[arg(long, num_args = 1.., default_values_t = [2, 4])]
    counts: Vec<usize>,
    /// Smallest share of the image's area, for each group.
    #[arg(long, num_args = 1.., default_values_t = [0.14, 0.05])]
    min_scale: Vec<f32>,
    /// Largest share of the image's area, for each group.
    #[arg(long, num_args = 1.., default_values_t = [1.0, 0.14])]
    max_scale: Vec<f32>,
    /// Where the other steps come from: swav, simclr-cifar, greyscale or medical.
    #[arg(long, default_value = "swav", value_parser = swav_cli::named::<Preset>)]
    preset: Preset,
    /// Threads that make crops; 0 makes them on the main thread.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// How many images to use; 0 uses all.
    #[arg(long, default_value_t = 0)]
    limit: usize,
    /// How often to go through them.
    #[arg(long, default_value_t = 1)]
    epochs: usize,
    /// Seed of the random crops.
    #[arg(long, default_value_t = 31)]
    seed: u64,
}

#[derive(Serialize)]
struct Report {
    mode: &'static str,
    images: usize,
    seconds: f64,
    images_per_s: f64,
    workers: usize,
}

/// Runs the benchmark.
pub fn run(args: Args) -> anyhow::Result<()> {
    let n_groups = args.sizes.len();
    if [args.counts.len(), args.min_scale.len(), args.max_scale.len()].iter().any(|&n| n < n_groups) {
        return Err(usage("--sizes needs a --counts, --min-scale and --max-scale for each of its values"));
    }
    let crops = (0..n_groups).map(|i| {
        let mut crop = CropConfig::square(args.sizes[i], args.counts[i]);
        (crop.min_scale, crop.max_scale) = (args.min_scale[i], args.max_scale[i]);
        crop
    });
    let config = MultiCropConfig { crops: Some(crops.collect()), ..MultiCropConfig::preset(args.preset) };
    let recipe = config.check()?;
    // IDX files are held decoded in any case.
    let (path, split) = match (&args.images, &args.idx) {
        (Some(path), _) => (path, Split::All),
        (None, Some(path)) => (path, Split::Train),
        (None, None) => return Err(usage("one of --images and --idx is needed")),
    };
    let data = open(path, &DataConfig { cache_mib: 0, split, ..DataConfig::default() })?;
    let n_images = if args.limit == 0 { data.len() } else { args.limit.min(data.len()) };

    let begin = Instant::now();
    for epoch in 0..args.epochs as u64 {
        let next = AtomicUsize::new(0);
        let work = || make_batches(&*data, n_images, &recipe, args.seed, epoch, &next);
        if args.workers == 0 {
            work()?;
            continue;
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..args.workers).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let images = n_images * args.epochs;
    let report = Report {
        mode: "augment",
        images,
        seconds,
        images_per_s: images as f64 / seconds,
        workers: args.workers,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Makes batches, crop-major, until no images are left.
fn make_batches(
    data: &dyn Dataset,
    n_images: usize,
    recipe: &MultiCrop,
    seed: u64,
    epoch: u64,
    next: &AtomicUsize,
) -> anyhow::Result<()> {
    let mut scratch = Scratch::default();
    let crop_len = |group: usize| recipe.groups()[group].crop.size.pow(2) * 3;
    let mut buffers: Vec<Vec<f32>> = (0..recipe.groups().len())
        .map(|group| vec![0.0; recipe.groups()[group].n_crops * BATCH * crop_len(group)])
        .collect();
    loop {
        let start = next.fetch_add(BATCH, Ordering::Relaxed);
        if start >= n_images {
            return Ok(());
        }
        for (row, index) in (start..n_images.min(start + BATCH)).enumerate() {
            let image = data.image(index)?;
            let mut crop = 0;
            for (group, buffer) in buffers.iter_mut().enumerate() {
                let len = crop_len(group);
                for out in buffer.chunks_exact_mut(BATCH * len) {
                    let key = CropKey { seed, epoch, sample: index as u64, crop };
                    recipe.fill(image.view(), key, &mut out[row * len..(row + 1) * len], &mut scratch)?;
                    crop += 1;
                }
            }
        }
    }
}
