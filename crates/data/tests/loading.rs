//! The loader: order, bits, resumption, bad images, memory.

mod common;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{jpeg, picture, put};
use rayon::prelude::*;
use swav_augment::{
    CenterCrop, Channels, CropConfig, EvalView, Image, ImageView, MultiCrop, MultiCropConfig, Normalize,
    Preset, Scratch,
};
use swav_data::{
    BatchPlan, ByteViews, Cause, DataConfig, Dataset, Loader, LoaderConfig, LoaderError, MultiCropBatch,
    OnBad, Position, SampleError, Shapes, ShapesConfig, Shuffle, Split, ViewKey, ViewShape, Views, open,
};

fn shapes(n_train: usize) -> Arc<dyn Dataset> {
    let config = ShapesConfig { n_train, size: 24, ..ShapesConfig::default() };
    Arc::new(Shapes::new(&config.check().unwrap(), Split::Train))
}

fn recipe() -> MultiCrop {
    let crop = |size, n_crops, min_scale, max_scale| CropConfig {
        size,
        n_crops,
        min_scale,
        max_scale,
        min_ratio: 0.75,
        max_ratio: 1.33,
    };
    let crops = Some(vec![crop(16, 2, 0.3, 1.0), crop(8, 3, 0.1, 0.3)]);
    MultiCropConfig { preset: Preset::Swav, crops, ..MultiCropConfig::default() }.check().unwrap()
}

const PLAN: BatchPlan = BatchPlan { batch_size: 8, seed: 5, rank: 0, world_size: 1, n_epochs: Some(2) };

fn workers(n_workers: usize) -> LoaderConfig {
    LoaderConfig { n_workers, ..LoaderConfig::default() }
}

fn start(data: &Arc<dyn Dataset>, config: &LoaderConfig, plan: BatchPlan, position: Position) -> Loader {
    Loader::new(data.clone(), Arc::new(recipe()), &config.check().unwrap(), plan, position).unwrap()
}

/// The same from the beginning.
fn begin(data: &Arc<dyn Dataset>, config: &LoaderConfig, plan: BatchPlan) -> Loader {
    start(data, config, plan, Position::default())
}

/// A loader of bytes gives the same images, labels and places, and the bytes of the very views.
#[test]
fn batches_of_bytes_are_those_of_values() {
    let data = shapes(21);
    let (scale, offset) = recipe().normalize().scale_and_offset();
    for n_workers in [1, 3] {
        let spec = workers(n_workers).check().unwrap();
        let views = Arc::new(ByteViews(Arc::new(recipe())));
        let bytes: Loader<u8> = Loader::new(data.clone(), views, &spec, PLAN, Position::default()).unwrap();
        let mut n_batches = 0;
        for (bytes, values) in bytes.zip(begin(&data, &workers(2), PLAN)) {
            let (bytes, values) = (bytes.unwrap(), values.unwrap());
            assert_eq!((bytes.position, bytes.ends_epoch), (values.position, values.ends_epoch));
            assert_eq!((&bytes.indices, &bytes.labels), (&values.indices, &values.labels));
            for (bytes, values) in bytes.groups.iter().zip(&values.groups) {
                assert_eq!((bytes.n_crops, bytes.images.dim()), (values.n_crops, values.images.dim()));
                let scaled = bytes.images.indexed_iter();
                let scaled = scaled.map(|((.., c), &v)| f32::from(v) * scale[c] + offset[c]);
                assert!(scaled.map(f32::to_bits).eq(values.images.iter().map(|x| x.to_bits())));
            }
            n_batches += 1;
        }
        assert_eq!(n_batches, 2 * (21 / 8));
    }
}

/// Everything of a batch that must repeat, floats by their bits.
type Print = (Position, bool, Vec<usize>, Vec<Option<u32>>, Vec<Vec<u32>>);

fn print(batch: &MultiCropBatch) -> Print {
    let bits =
        batch.views().iter().map(|images| images.iter().map(|value| value.to_bits()).collect()).collect();
    (batch.position, batch.ends_epoch, batch.indices.clone(), batch.labels.clone(), bits)
}

fn run(loader: Loader) -> Vec<Print> {
    loader.map(|batch| print(&batch.unwrap())).collect()
}

#[test]
fn any_number_of_workers_and_any_queue_give_the_same_bits() {
    let data = shapes(50);
    let whole = run(begin(&data, &workers(1), PLAN));
    assert_eq!(whole.len(), 12);
    assert_ne!(whole[0].2, whole[6].2, "epochs differ in their order");
    for (n_workers, queue_batches) in [(2, 1), (5, 2), (3, 7)] {
        let config = LoaderConfig { queue_batches, ..workers(n_workers) };
        assert!(run(begin(&data, &config, PLAN)) == whole, "{n_workers} workers");
    }
}

#[test]
fn resuming_anywhere_continues_bit_for_bit() {
    let data = shapes(50);
    let whole = run(begin(&data, &workers(2), PLAN));
    for stop in 0..=whole.len() {
        let mut first = begin(&data, &workers(2), PLAN);
        for _ in 0..stop {
            first.next_batch().unwrap();
        }
        let position = first.position();
        drop(first);
        let rest = run(start(&data, &workers(3), PLAN, position));
        assert!(rest == whole[stop..], "resumed at {position:?}");
    }
    let saved = toml::to_string(&Position { epoch: 3, batch: 7 }).unwrap();
    assert_eq!(toml::from_str::<Position>(&saved).unwrap(), Position { epoch: 3, batch: 7 });
}

#[test]
fn batches_hold_the_views_crop_by_crop() {
    let data = shapes(20);
    let mut loader = begin(&data, &workers(2), PLAN);
    let batch = loader.next_batch().unwrap().unwrap();
    let recipe = recipe();
    let mut scratch = Scratch::default();
    let mut first_crop = 0;
    for group in &batch.groups {
        let (n_images, height, width, channels) = group.images.dim();
        assert_eq!((n_images, channels), (group.n_crops * 8, 3));
        for crop in 0..group.n_crops {
            for (at, &index) in batch.indices.iter().enumerate() {
                let mut expected = vec![0.0; height * width * 3];
                let key = swav_augment::CropKey {
                    seed: 5,
                    epoch: 0,
                    sample: index as u64,
                    crop: first_crop + crop as u64,
                };
                let image = data.image(index).unwrap();
                recipe.fill(image.view(), key, &mut expected, &mut scratch).unwrap();
                assert_eq!(group.view(crop, at).as_slice().unwrap(), expected);
            }
        }
        first_crop += group.n_crops as u64;
    }
    let labels: Vec<_> = batch.indices.iter().map(|&index| data.label(index)).collect();
    assert_eq!(batch.labels, labels);
}

#[test]
fn processes_share_each_global_batch() {
    let data = shapes(50);
    let one = run(begin(&data, &workers(1), PLAN));
    let part = |rank| BatchPlan { batch_size: 4, rank, world_size: 2, ..PLAN };
    let (a, b) = (run(begin(&data, &workers(2), part(0))), run(begin(&data, &workers(2), part(1))));
    assert_eq!((a.len(), b.len()), (one.len(), one.len()));
    for ((whole, a), b) in one.iter().zip(&a).zip(&b) {
        assert_eq!(whole.2, [a.2.clone(), b.2.clone()].concat());
        let crop = 16 * 16 * 3;
        assert_eq!(
            whole.4[0][..4 * crop],
            a.4[0][..4 * crop],
            "views do not depend on the number of processes"
        );
    }
}

#[test]
fn the_last_batch_is_dropped_or_smaller() {
    let data = shapes(20);
    let sizes = |drop_last| {
        let config = LoaderConfig { drop_last, ..workers(2) };
        run(begin(&data, &config, PLAN)).iter().map(|batch| (batch.2.len(), batch.1)).collect::<Vec<_>>()
    };
    assert_eq!(sizes(true), [(8, false), (8, true), (8, false), (8, true)]);
    assert_eq!(sizes(false), [(8, false), (8, false), (4, true), (8, false), (8, false), (4, true)]);
}

#[test]
fn an_evaluation_reads_everything_once_in_order() {
    let data = shapes(21);
    let view = EvalView::new(CenterCrop { resize: 24, size: 20 }, Normalize::default()).unwrap();
    let spec = LoaderConfig { n_workers: 2, ..LoaderConfig::evaluation() }.check().unwrap();
    let plan = BatchPlan { n_epochs: Some(1), ..PLAN };
    let batches: Vec<_> = Loader::new(data.clone(), Arc::new(view), &spec, plan, Position::default())
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let indices: Vec<_> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
    assert_eq!(indices, (0..21).collect::<Vec<_>>());
    assert_eq!(batches[2].groups[0].images.dim(), (5, 20, 20, 3));
    let mut expected = vec![0.0; 20 * 20 * 3];
    view.fill(data.image(17).unwrap().view(), &mut expected, &mut Scratch::default()).unwrap();
    assert_eq!(batches[2].groups[0].view(0, 1).as_slice().unwrap(), expected);
}

/// Images of one value each; those in `bad` fail.
struct Plain {
    len: usize,
    bad: Vec<usize>,
    reads: AtomicUsize,
}

impl Plain {
    fn new(len: usize, bad: impl IntoIterator<Item = usize>) -> Arc<Self> {
        Arc::new(Self { len, bad: bad.into_iter().collect(), reads: AtomicUsize::new(0) })
    }
}

impl Dataset for Plain {
    fn len(&self) -> usize {
        self.len
    }
    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.bad.contains(&index) {
            return Err(SampleError::Truncated("cut".into()));
        }
        Ok(Arc::new(Image::new(2, 2, Channels::Grey, vec![index as u8; 4]).unwrap()))
    }
    fn label(&self, index: usize) -> Option<u32> {
        Some(index as u32)
    }
}

/// Writes the image's value and the sample number of the key.
struct Probe;

impl Views for Probe {
    fn shapes(&self) -> Vec<ViewShape> {
        vec![ViewShape { n_crops: 2, height: 1, width: 1 }]
    }
    fn write(
        &self,
        image: ImageView<'_>,
        key: ViewKey,
        views: &mut [&mut [f32]],
        _: &mut Scratch,
    ) -> Result<(), Cause> {
        if image.data()[0] == 255 {
            return Err("no views of white".into());
        }
        for (crop, view) in views.iter_mut().enumerate() {
            view.copy_from_slice(&[f32::from(image.data()[0]), key.sample as f32, crop as f32]);
        }
        Ok(())
    }
}

fn probe(data: Arc<dyn Dataset>, config: &LoaderConfig, plan: BatchPlan) -> Loader {
    Loader::new(data, Arc::new(Probe), &config.check().unwrap(), plan, Position::default()).unwrap()
}

#[test]
fn bad_images_are_counted_and_replaced_by_the_next_good_one() {
    let data = Plain::new(40, [3, 4, 39]);
    let config = LoaderConfig { shuffle: Shuffle::None, ..workers(3) };
    let mut loader = probe(data, &config, BatchPlan { batch_size: 10, ..PLAN });
    let first = loader.next_batch().unwrap().unwrap();
    assert_eq!(first.indices, [0, 1, 2, 5, 5, 5, 6, 7, 8, 9]);
    assert_eq!(first.labels[3], Some(5));
    assert_eq!(
        first.groups[0].view(1, 3).as_slice().unwrap(),
        [5.0, 3.0, 1.0],
        "the replacement has the views' stream of the image asked for"
    );
    assert_eq!(first.bad.iter().map(|bad| bad.index).collect::<Vec<_>>(), [3, 4], "each once");
    assert_eq!(first.bad[0].name, "image 3");
    assert!(matches!(first.bad[0].reason, SampleError::Truncated(_)));
    let rest: Vec<_> = loader.by_ref().map(Result::unwrap).collect();
    assert_eq!(rest[2].indices[9], 0, "after the last image comes the first");
    let stats = loader.stats();
    assert_eq!((stats.n_bad, stats.n_images, stats.n_batches), (3, 80, 8));
}

#[test]
fn bad_images_can_be_left_out() {
    let data = Plain::new(40, [3, 4, 39]);
    let config = LoaderConfig { n_workers: 2, ..LoaderConfig::evaluation() };
    let plan = BatchPlan { batch_size: 10, n_epochs: Some(1), ..PLAN };
    let batches: Vec<_> = probe(data, &config, plan).map(Result::unwrap).collect();
    let indices: Vec<_> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
    assert_eq!(indices, (0..39).filter(|index| ![3, 4].contains(index)).collect::<Vec<_>>());
    assert_eq!(batches[0].groups[0].images.dim(), (2 * 8, 1, 1, 3));
    assert_eq!(batches[0].groups[0].view(1, 3).as_slice().unwrap(), [5.0, 5.0, 1.0]);
    // A batch of bad images only is not delivered.
    let data = Plain::new(40, 10..20);
    let config = LoaderConfig { max_bad_share: 0.5, ..config };
    assert_eq!(probe(data, &config, plan).map(Result::unwrap).count(), 3);
}

#[test]
fn too_many_bad_images_end_the_run_at_the_same_place() {
    let end = |n_workers| {
        let data = Plain::new(100, (0..100).filter(|index| index % 5 == 0));
        let plan = BatchPlan { batch_size: 10, seed: 1, n_epochs: None, ..PLAN };
        let mut loader = probe(data, &workers(n_workers), plan);
        let mut n_good = 0;
        loop {
            match loader.next_batch() {
                Ok(batch) => n_good += batch.unwrap().batch_size,
                Err(LoaderError::TooManyBad { bad, images, max_share, .. }) => {
                    assert_eq!((bad, images, max_share), (11, 100, 0.1));
                    assert!(loader.next_batch().unwrap().is_none(), "a failed loader is at its end");
                    return n_good;
                }
                Err(other) => panic!("{other}"),
            }
        }
    };
    assert!(end(1) > 0);
    assert_eq!(end(1), end(4));
}

#[test]
fn without_any_good_image_there_is_no_replacement() {
    let data = Plain::new(30, 0..30);
    let config = LoaderConfig { max_bad_share: 1.0, ..LoaderConfig::default() };
    let plan = BatchPlan { batch_size: 3, ..PLAN };
    let error = probe(data, &config, plan).next_batch().unwrap_err();
    assert!(matches!(error, LoaderError::NoReplacement { tried: 30, .. }), "{error}");
    // One good image serves all.
    let data = Plain::new(30, 0..29);
    assert!(
        probe(data, &config, plan).next_batch().unwrap().unwrap().indices.iter().all(|&index| index == 29)
    );
}

#[test]
fn failing_views_are_an_error_that_names_the_image() {
    let data = Plain::new(256, []);
    match probe(data, &LoaderConfig::default(), BatchPlan { batch_size: 256, ..PLAN }).next_batch() {
        Err(LoaderError::Views { name, source }) => {
            assert_eq!((name.as_str(), &*source.to_string()), ("image 255", "no views of white"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_vanish_or_break_while_loading_do_not_end_the_run() {
    let root = tempfile::tempdir().unwrap();
    for index in 0..30 {
        put(root.path().join(format!("{index:02}.jpg")), jpeg(&picture(20, 20, index)));
    }
    let data = open(root.path(), &DataConfig { cache_mib: 0, ..DataConfig::default() }).unwrap();
    let mut loader = begin(&data, &workers(2), BatchPlan { n_epochs: Some(6), ..PLAN });
    loader.next_batch().unwrap().unwrap();
    fs::remove_file(root.path().join("07.jpg")).unwrap();
    let whole = fs::read(root.path().join("11.jpg")).unwrap();
    fs::write(root.path().join("11.jpg"), &whole[..100]).unwrap();
    let bad: Vec<_> = loader.by_ref().flat_map(|batch| std::mem::take(&mut batch.unwrap().bad)).collect();
    assert!(bad.iter().any(|bad| bad.index == 7 && matches!(bad.reason, SampleError::Vanished)));
    assert!(bad.iter().any(|bad| bad.index == 11 && matches!(bad.reason, SampleError::Truncated(_))));
    assert_eq!(loader.stats().n_bad, 2);
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let data = shapes(20);
    let spec = workers(1).check().unwrap();
    let refused = |plan: BatchPlan, start| {
        let loader = Loader::new(data.clone(), Arc::new(Probe), &spec, plan, start);
        loader.err().unwrap_or_else(|| panic!("accepted {plan:?}"))
    };
    let zero = Position::default();
    let field = |error| match error {
        LoaderError::Config { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(refused(BatchPlan { batch_size: 0, ..PLAN }, zero)), "batch_size");
    assert_eq!(field(refused(BatchPlan { rank: 2, world_size: 2, ..PLAN }, zero)), "rank");
    let wrong = |config: LoaderConfig| field(config.check().unwrap_err());
    assert_eq!(wrong(LoaderConfig { queue_batches: 0, ..workers(1) }), "queue_batches");
    assert_eq!(wrong(LoaderConfig { max_bad_share: f64::NAN, ..workers(1) }), "max_bad_share");
    let few = refused(BatchPlan { batch_size: 21, ..PLAN }, zero);
    assert!(matches!(few, LoaderError::TooFewImages { images: 20, batch_size: 21, world_size: 1 }));
    let late = refused(PLAN, Position { epoch: 0, batch: 2 });
    assert!(matches!(late, LoaderError::Position { batch: 2, batches: 2 }));
    assert!(toml::from_str::<LoaderConfig>("n_worker = 2").is_err());
    assert_eq!(toml::from_str::<LoaderConfig>("on_bad = \"leave-out\"").unwrap().on_bad, OnBad::LeaveOut);
}

#[test]
fn batches_are_made_ahead_but_not_without_bound_and_their_memory_returns() {
    let data = Plain::new(250, []);
    let plan = BatchPlan { batch_size: 10, n_epochs: None, ..PLAN };
    let mut loader = probe(data.clone(), &LoaderConfig { queue_batches: 2, ..workers(2) }, plan);
    let mut addresses = Vec::new();
    for _ in 0..50 {
        let batch = loader.next_batch().unwrap().unwrap();
        addresses.push(batch.groups[0].images.as_ptr() as usize);
    }
    // Whatever runs ahead has long come to rest.
    std::thread::sleep(Duration::from_millis(100));
    let reads = data.reads.load(Ordering::Relaxed);
    assert!(reads <= (50 + 4) * 10, "{reads} images read for 50 batches of 10");
    addresses.sort_unstable();
    addresses.dedup();
    assert!(addresses.len() <= 5, "{} different buffers", addresses.len());
    drop(loader);
}

#[test]
fn views_may_work_in_parallel_themselves() {
    /// Waits for small pieces of work on the pool it runs on, so that workers begin other images meanwhile.
    struct Nested;
    impl Views for Nested {
        fn shapes(&self) -> Vec<ViewShape> {
            Probe.shapes()
        }
        fn write(
            &self,
            image: ImageView<'_>,
            key: ViewKey,
            views: &mut [&mut [f32]],
            scratch: &mut Scratch,
        ) -> Result<(), Cause> {
            (0..8).into_par_iter().for_each(|_| std::thread::sleep(Duration::from_micros(200)));
            Probe.write(image, key, views, scratch)
        }
    }
    let data: Arc<dyn Dataset> = Plain::new(64, []);
    let spec = workers(3).check().unwrap();
    let plan = BatchPlan { batch_size: 32, n_epochs: Some(1), ..PLAN };
    let loader =
        |views: Arc<dyn Views>| Loader::new(data.clone(), views, &spec, plan, Position::default()).unwrap();
    assert!(run(loader(Arc::new(Nested))) == run(loader(Arc::new(Probe))));
}

#[test]
fn waiting_is_measured() {
    struct Slow;
    impl Dataset for Slow {
        fn len(&self) -> usize {
            64
        }
        fn image(&self, _: usize) -> Result<Arc<Image>, SampleError> {
            std::thread::sleep(Duration::from_millis(5));
            Ok(Arc::new(Image::new(1, 1, Channels::Grey, vec![1]).unwrap()))
        }
    }
    let begun = Instant::now();
    let mut loader = probe(Arc::new(Slow), &workers(1), BatchPlan { n_epochs: Some(1), ..PLAN });
    while let Some(batch) = loader.next_batch().unwrap() {
        drop(batch);
    }
    let stats = loader.stats();
    let waited = stats.waited + stats.waited_first;
    // How long is the machine's business; that it is counted, and never more than has passed, is the loader's.
    assert!(stats.waited_first > Duration::ZERO && waited <= begun.elapsed(), "{stats:?}");
    assert!(waited.as_secs_f64() >= stats.waiting_share() * stats.elapsed.as_secs_f64(), "{stats:?}");
}

#[test]
fn a_data_set_that_panics_costs_its_images() {
    /// Panics at every index that is a multiple of the number.
    struct Panics(usize);
    impl Dataset for Panics {
        fn len(&self) -> usize {
            8
        }
        fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
            assert!(!index.is_multiple_of(self.0), "this panic is part of the test");
            Ok(Arc::new(Image::new(1, 1, swav_augment::Channels::Grey, vec![7]).unwrap()))
        }
    }
    let plan = BatchPlan { batch_size: 4, ..PLAN };
    let spec = LoaderConfig { max_bad_share: 0.5, ..workers(2) };
    let mut loader = probe(Arc::new(Panics(8)), &spec, BatchPlan { n_epochs: Some(1), ..plan });
    let mut n_images = 0;
    while let Some(batch) = loader.next_batch().unwrap() {
        n_images += batch.batch_size;
    }
    assert_eq!((n_images, loader.stats().n_bad), (8, 1));
    let all = probe(Arc::new(Panics(1)), &spec, plan).next_batch();
    let is_named = |source: &SampleError| matches!(source, SampleError::DecoderPanic(text) if text.contains("part of the test"));
    assert!(matches!(all, Err(LoaderError::NoReplacement { source, .. }) if is_named(&source)));
}
