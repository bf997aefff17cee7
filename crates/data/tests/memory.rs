//! Memory stays within the budget on a large set of shards.
#![cfg(target_os = "linux")]

mod common;

use std::{
    fs,
    io::{BufWriter, Write},
    sync::Arc,
    time::Instant,
};

use common::{jpeg, memory_kib, picture};
use swav_augment::{CropConfig, MultiCropConfig};
use swav_data::{BatchPlan, DataConfig, Loader, LoaderConfig, Position, open};

/// One epoch over 100 shards of `SWAV_DATA_IMAGES` (100,000) images in all, with a decoded cache of 64 MiB:
/// `cargo test --release -p swav-data --test memory -- --ignored --nocapture`.
#[test]
#[ignore = "writes and reads 100,000 images"]
fn shards_of_100_000_images_stay_within_the_budget() {
    let count: usize = std::env::var("SWAV_DATA_IMAGES").map_or(100_000, |text| text.parse().unwrap());
    let root = tempfile::tempdir().unwrap();
    // 256 different photographs' worth of bytes: what matters here is how many members there are.
    let files: Vec<_> = (0..256).map(|id| jpeg(&picture(96, 72, id))).collect();
    for shard in 0..100 {
        let file = fs::File::create(root.path().join(format!("train-{shard:03}.tar"))).unwrap();
        let mut builder = tar::Builder::new(BufWriter::new(file));
        for index in shard * count / 100..(shard + 1) * count / 100 {
            let label = format!("{}", index % 1000);
            for (ending, data) in [("jpg", files[index % 256].as_slice()), ("cls", label.as_bytes())] {
                let mut header = tar::Header::new_gnu();
                header.set_size(data.len() as u64);
                builder.append_data(&mut header, format!("{index:08}.{ending}"), data).unwrap();
            }
        }
        builder.into_inner().unwrap().flush().unwrap();
    }
    drop(files);
    let before = memory_kib("VmRSS");
    let cache_mib = 64;
    let opened = Instant::now();
    let data = open(root.path(), &DataConfig { cache_mib, ..DataConfig::default() }).unwrap();
    let opened = opened.elapsed();
    assert_eq!(data.len(), count);
    let index_kib = memory_kib("VmRSS").saturating_sub(before);

    let crop = |size, n_crops, min_scale, max_scale| CropConfig {
        size,
        n_crops,
        min_scale,
        max_scale,
        min_ratio: 0.75,
        max_ratio: 1.33,
    };
    let crops = Some(vec![crop(32, 2, 0.14, 1.0), crop(16, 2, 0.05, 0.14)]);
    let views = MultiCropConfig { crops, ..MultiCropConfig::default() }.check().unwrap();
    let config = LoaderConfig::default();
    let plan = BatchPlan { batch_size: 256, n_epochs: Some(1), ..BatchPlan::default() };
    let started = Instant::now();
    let mut loader =
        Loader::new(data, Arc::new(views), &config.check().unwrap(), plan, Position::default()).unwrap();
    let mut batch_bytes = 0;
    while let Some(batch) = loader.next_batch().unwrap() {
        batch_bytes = batch.groups.iter().map(|group| group.images.len() * 4).sum();
    }
    let peak = memory_kib("VmHWM") - before;
    let budget = cache_mib * 1024 + (config.queue_batches + 3) * batch_bytes / 1024;
    println!(
        "{count} images: opened in {:.2} s with {} MiB, an epoch in {:.1} s; peak memory grew by {} MiB; cache and batches \
         may take {} MiB",
        opened.as_secs_f64(),
        index_kib / 1024,
        started.elapsed().as_secs_f64(),
        peak / 1024,
        budget / 1024
    );
    // The index, the epoch's order, two threads' scratch, and what the allocator keeps.
    assert!(peak < budget + 100 * count / 1024 + 40 * 1024, "{peak} KiB above a budget of {budget} KiB");
}
