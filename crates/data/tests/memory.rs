//! Memory stays within the budget: on a large set of shards, and for images that claim more than they are.
#![cfg(target_os = "linux")]

mod common;

use std::{
    fs,
    io::{BufWriter, Write},
    sync::Arc,
    time::Instant,
};

use common::{gzip, idx, jpeg, malformed, memory_kib, of, picture, put, raw_png};
use swav_augment::{CropConfig, MultiCropConfig};
use swav_data::{
    BatchPlan, DataConfig, DataError, Dataset, DecodeConfig, Loader, LoaderConfig, Position, SampleError,
    Split, decode, open,
};

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

/// 200 MB of zeros, as zlib has them.
fn inflating() -> Vec<u8> {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![0; 1 << 20];
    (0..200).for_each(|_| zlib.write_all(&zeros).unwrap());
    zlib.finish().unwrap()
}

fn riff(chunks: &[(&[u8; 4], u32, &[u8])]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for (kind, length, content) in chunks {
        body.extend(*kind);
        body.extend(length.to_le_bytes());
        body.extend(*content);
    }
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

/// A TIFF of 8 x 8 whose only strip is a JPEG that claims 16,000 x 16,000.
fn tiff_with_large_jpeg() -> Vec<u8> {
    let mut strip = jpeg(&picture(8, 8, 1));
    let frame = strip.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    strip[frame + 5..frame + 9].copy_from_slice(&[0x3e, 0x80, 0x3e, 0x80]);
    let tags: [(u16, u16, u32); 9] = [
        (256, 3, 8),
        (257, 3, 8),
        (258, 3, 8),
        (259, 3, 7),
        (262, 3, 6),
        (273, 4, 8 + 2 + 9 * 12 + 4),
        (277, 3, 3),
        (278, 3, 8),
        (279, 4, strip.len() as u32),
    ];
    let mut bytes = b"II*\0\x08\0\0\0\x09\0".to_vec();
    for (id, kind, value) in tags {
        bytes.extend([id.to_le_bytes(), kind.to_le_bytes()].concat());
        bytes.extend([1_u32.to_le_bytes(), value.to_le_bytes()].concat());
    }
    [bytes, vec![0; 4], strip].concat()
}

/// What a file claims is not what it gets: an image takes memory by its own size. Alone in this process but for tests that do
/// not run by default, since it reads the process's peak.
#[test]
fn hostile_files_take_memory_by_what_they_are() {
    let profile = [&b"x\0\0"[..], &inflating()].concat();
    let row: &[u8] = &[9, 9, 9];
    let size = |side: u32| {
        [[0; 4].to_vec(), (side - 1).to_le_bytes()[..3].to_vec(), (side - 1).to_le_bytes()[..3].to_vec()]
            .concat()
    };
    let vp8 =
        [&[0x10, 0, 0, 0x9d, 1, 0x2a][..], &16383_u16.to_le_bytes(), &16383_u16.to_le_bytes(), &[0; 60]]
            .concat();
    let gif = [
        &b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x60\xea\x60\xea\0\x02\x02"[..],
        b"\x44\x01\0;",
    ]
    .concat();
    let root = tempfile::tempdir().unwrap();
    let sparse = root.path().join("sparse/a.png");
    put(&sparse, raw_png((1, 1), 8, 2, &[], &[row]));
    let before = memory_kib("VmHWM");

    let shown = |bytes: &[u8]| decode(bytes, &DecodeConfig::default());
    let colours = raw_png((1, 1), 8, 2, &[(b"iCCP", &profile)], &[row]);
    assert_eq!(shown(&colours).unwrap().data(), row);
    let text = raw_png((1, 1), 8, 2, &[(b"zTXt", &profile[..])], &[row]);
    assert_eq!(shown(&text).unwrap().data(), row);
    for (name, bytes) in [
        ("a frame beyond its canvas", riff(&[(b"VP8X", 10, &size(1)), (b"VP8 ", 70, &vp8)])),
        ("a large frame", riff(&[(b"VP8 ", 70, &vp8)])),
        ("a long EXIF block", riff(&[(b"VP8X", 10, &size(1)), (b"EXIF", 0xffff_fff0, &[0; 9])])),
        ("a GIF's frame", gif),
        ("a JPEG in TIFF", tiff_with_large_jpeg()),
    ] {
        let error = shown(&bytes).unwrap_err();
        assert!(!matches!(error, SampleError::DecoderPanic(_)), "{name}: {}", error.explain());
    }

    // A file of 8 GB that is nearly all a hole, and a gzip that claims 4 GB of pixels.
    fs::OpenOptions::new().write(true).open(&sparse).unwrap().set_len(8 << 30).unwrap();
    let data = of(&root.path().join("sparse"), Split::Train).unwrap();
    assert!(matches!(data.image(0), Err(SampleError::TooManyBytes { bytes, .. }) if bytes == 8 << 30));
    let claimed = [&idx(&[1 << 20, 64, 64], &[])[..], &[0; 100_000]].concat();
    put(root.path().join("idx/train-images-idx3-ubyte.gz"), gzip(&claimed));
    assert!(malformed(of(&root.path().join("idx"), Split::Train)).contains("cannot hold more"));
    let pipe = root.path().join("pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    put(root.path().join("list.txt"), "pipe.png\nidx\n");
    let list = of(&root.path().join("list.txt"), Split::Train).unwrap();
    assert!((0..2).all(|index| matches!(list.image(index), Err(SampleError::NotAFile))));
    for outside in ["/dev/zero", "../x.png"] {
        put(root.path().join("list.txt"), format!("# note\n{outside}\n"));
        let refused = of(&root.path().join("list.txt"), Split::Train);
        assert!(matches!(refused, Err(DataError::Outside { .. })));
    }

    let grown = memory_kib("VmHWM") - before;
    assert!(grown < 48 * 1024, "the peak grew by {grown} KiB");
}
