//! Loads batches in the background: a bounded queue, filled by threads of its own, in an order that depends on the
//! seed alone.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use serde::{Deserialize, Serialize};
use swav_augment::Scratch;

use crate::{
    BadImage, Dataset, LoaderError, MultiCropBatch, Shuffle, ViewKey, ViewShape, Views, batch::Buffers,
    hash::mix, sampler::Sampler,
};

/// A place in a run: the next batch to be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The batch in the epoch, from 0.
    pub batch: u64,
}

/// What happens to an image that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBad {
    /// The next usable image takes its place: the neighbours by index, then others by a fixed rule.
    #[default]
    Replace,
    /// The batch is smaller without it; a batch without any usable image is not delivered.
    LeaveOut,
}

/// How batches are made. Fields without a place in a config file are set by the program.
///
/// At most `queue_batches` + 3 batches are in memory at a time, the one in use included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Threads that decode and augment, apart from those that compute; 0 is one for each core. Default: 0.
    pub n_workers: usize,
    /// Finished batches that may wait, at least 1. Default: 2.
    pub queue_batches: usize,
    /// The order of images. Default: `auto`.
    pub shuffle: Shuffle,
    /// Images among which windowed shuffling permutes, at least 1. Default: 16384.
    pub window_images: usize,
    /// Leaves out the incomplete last batch of an epoch. Default: true.
    pub drop_last: bool,
    /// What happens to images that cannot be used. Default: `replace`.
    pub on_bad: OnBad,
    /// The share of the data set's images, 0 to 1, that may be unusable; more of them end the loading. Default: 0.1.
    pub max_bad_share: f64,
    /// Images in a batch of this process, at least 1. Default: 64.
    #[serde(skip)]
    pub batch_size: usize,
    /// The seed of orders and views. Default: 0.
    #[serde(skip)]
    pub seed: u64,
    /// The number of this process, below `world_size`. Default: 0.
    #[serde(skip)]
    pub rank: usize,
    /// The number of processes that share each batch. Default: 1.
    #[serde(skip)]
    pub world_size: usize,
    /// Epochs after which the loader ends; `None` goes on forever. Default: `None`.
    #[serde(skip)]
    pub n_epochs: Option<u64>,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            n_workers: 0,
            queue_batches: 2,
            shuffle: Shuffle::Auto,
            window_images: 16_384,
            drop_last: true,
            on_bad: OnBad::Replace,
            max_bad_share: 0.1,
            batch_size: 64,
            seed: 0,
            rank: 0,
            world_size: 1,
            n_epochs: None,
        }
    }
}

impl LoaderConfig {
    /// The settings for reading a data set once, in its order, whole, with bad images left out.
    pub fn evaluation(batch_size: usize) -> Self {
        Self {
            shuffle: Shuffle::None,
            drop_last: false,
            on_bad: OnBad::LeaveOut,
            batch_size,
            n_epochs: Some(1),
            ..Self::default()
        }
    }

    /// Checks the ranges of all values.
    ///
    /// # Errors
    /// [`LoaderError::Config`] with the field, its range and the value.
    pub fn check(&self) -> Result<(), LoaderError> {
        let counts = [
            ("queue_batches", self.queue_batches),
            ("window_images", self.window_images),
            ("batch_size", self.batch_size),
            ("world_size", self.world_size),
        ];
        if let Some((field, value)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return Err(LoaderError::Config { field, expected: "at least 1", found: value.to_string() });
        }
        if self.rank >= self.world_size {
            let found = format!("rank {} of {}", self.rank, self.world_size);
            return Err(LoaderError::Config { field: "rank", expected: "below world_size", found });
        }
        if !(0.0..=1.0).contains(&self.max_bad_share) {
            let found = self.max_bad_share.to_string();
            return Err(LoaderError::Config {
                field: "max_bad_share",
                expected: "a share from 0 to 1",
                found,
            });
        }
        Ok(())
    }
}

/// What a loader has delivered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoaderStats {
    /// Batches delivered.
    pub n_batches: u64,
    /// Images delivered.
    pub n_images: u64,
    /// Different images found unusable.
    pub n_bad: usize,
    /// Time that the consumer waited for batches, without the first one.
    pub waited: Duration,
    /// Time that the consumer waited for the first batch.
    pub waited_first: Duration,
    /// Time since the first batch was delivered.
    pub elapsed: Duration,
}

impl LoaderStats {
    /// The share of the time since the first batch that was spent waiting for data, 0 to 1.
    pub fn waiting_share(&self) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { self.waited.as_secs_f64() / self.elapsed.as_secs_f64() }
    }
}

/// Delivers batches of views, made ahead by threads of its own.
///
/// The same settings, seed and start give the same bits, for any number of workers and wherever the run was
/// interrupted. Memory of batches that are dropped is used again.
///
/// ```
/// use std::sync::Arc;
/// use swav_augment::{MultiCropConfig, Preset};
/// use swav_data::{DataConfig, Loader, LoaderConfig, Position};
///
/// let data = DataConfig::default().open()?;
/// let views = MultiCropConfig::preset(Preset::SimclrCifar).check()?;
/// let config = LoaderConfig { batch_size: 16, seed: 31, ..LoaderConfig::default() };
/// let mut loader = Loader::new(data, Arc::new(views), &config, Position::default())?;
/// let batch = loader.next_batch()?.expect("without n_epochs there is always a next one");
/// assert_eq!((batch.batch_size, batch.groups[0].data.len()), (16, 2 * 16 * 32 * 32 * 3));
/// assert_eq!(loader.position(), Position { epoch: 0, batch: 1 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Loader {
    maker: Arc<Maker>,
    queues: Vec<Receiver<Result<MultiCropBatch, LoaderError>>>,
    feeders: Vec<JoinHandle<()>>,
    next: u64,
    end: Option<u64>,
    failed: bool,
    bad: HashSet<u32>,
    stats: LoaderStats,
    first_delivered: Option<Instant>,
}

impl Loader {
    /// Starts loading at a position.
    ///
    /// # Errors
    /// [`LoaderError::Config`], [`LoaderError::TooFewImages`], [`LoaderError::Position`], [`LoaderError::Threads`].
    pub fn new(
        data: Arc<dyn Dataset>,
        views: Arc<dyn Views>,
        config: &LoaderConfig,
        start: Position,
    ) -> Result<Self, LoaderError> {
        config.check()?;
        let blocks = match config.shuffle {
            Shuffle::Auto | Shuffle::Windows => data.blocks(),
            Shuffle::Full | Shuffle::None => None,
        };
        let sampler = Sampler {
            n_images: data.len(),
            blocks,
            window_images: config.window_images,
            shuffled: config.shuffle != Shuffle::None,
            seed: config.seed,
            batch_size: config.batch_size,
            rank: config.rank,
            world_size: config.world_size,
            drop_last: config.drop_last,
        };
        let n_batches = sampler.n_batches();
        if n_batches == 0 {
            let (images, batch_size, world_size) = (data.len(), config.batch_size, config.world_size);
            return Err(LoaderError::TooFewImages { images, batch_size, world_size });
        }
        if start.batch >= n_batches as u64 {
            return Err(LoaderError::Position { batch: start.batch as usize, batches: n_batches });
        }
        let n_workers = match config.n_workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let pool = ThreadPoolBuilder::new()
            .num_threads(n_workers)
            .thread_name(|worker| format!("swav-load-{worker}"))
            .build()
            .map_err(|error| LoaderError::Threads(error.to_string()))?;
        // Two batches are in the making at a time, so that workers which are done with one go on with the next.
        let n_feeders = config.queue_batches.min(2);
        let (home, used) = bounded(config.queue_batches + 3);
        let shapes = views.shapes();
        let maker = Arc::new(Maker {
            data,
            views,
            n_views: shapes.iter().map(|shape| shape.n_crops).sum(),
            shapes,
            sampler,
            n_batches: n_batches as u64,
            on_bad: config.on_bad,
            max_bad_share: config.max_bad_share,
            pool,
            scratch: Mutex::default(),
            orders: Mutex::default(),
            stop: AtomicBool::new(false),
            home,
            used,
        });
        let next = start.epoch.saturating_mul(n_batches as u64) + start.batch;
        let mut loader = Self {
            maker,
            queues: Vec::new(),
            feeders: Vec::new(),
            next,
            end: config.n_epochs.map(|epochs| epochs.saturating_mul(n_batches as u64)),
            failed: false,
            bad: HashSet::new(),
            stats: LoaderStats::default(),
            first_delivered: None,
        };
        loader.start(n_feeders, config)?;
        Ok(loader)
    }

    fn start(&mut self, n_feeders: usize, config: &LoaderConfig) -> Result<(), LoaderError> {
        for feeder in 0..n_feeders as u64 {
            let (queue, receiver) = bounded(config.queue_batches.div_ceil(n_feeders));
            let (maker, end) = (self.maker.clone(), self.end.unwrap_or(u64::MAX));
            let numbers = (self.next + feeder..end).step_by(n_feeders);
            let handle = thread::Builder::new()
                .name(format!("swav-feed-{feeder}"))
                .spawn(move || maker.feed(numbers, &queue))
                .map_err(|error| LoaderError::Threads(error.to_string()))?;
            self.queues.push(receiver);
            self.feeders.push(handle);
        }
        // The feeder that makes the batch with number `next` comes first.
        let first = (self.next % n_feeders as u64) as usize;
        self.queues.rotate_right(first);
        Ok(())
    }

    /// The next batch, waiting for it if need be; `None` after the last epoch.
    ///
    /// # Errors
    /// [`LoaderError::TooManyBad`], [`LoaderError::NoReplacement`], [`LoaderError::Views`], [`LoaderError::Died`]. After
    /// an error the loader is at its end.
    pub fn next_batch(&mut self) -> Result<Option<MultiCropBatch>, LoaderError> {
        loop {
            if self.failed || self.end.is_some_and(|end| self.next >= end) {
                return Ok(None);
            }
            let asked = Instant::now();
            let queue = (self.next % self.queues.len() as u64) as usize;
            let batch = self.queues[queue].recv().unwrap_or(Err(LoaderError::Died));
            let batch = batch.and_then(|batch| self.count_bad(&batch.bad).map(|()| batch));
            let batch = batch.inspect_err(|_| self.failed = true)?;
            self.next += 1;
            self.count(asked.elapsed());
            if batch.batch_size > 0 {
                self.stats.n_batches += 1;
                self.stats.n_images += batch.batch_size as u64;
                return Ok(Some(batch));
            }
        }
    }

    /// The position of the next batch: what a checkpoint must hold to go on from here.
    pub fn position(&self) -> Position {
        self.maker.position(self.next)
    }

    /// The number of batches in an epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.maker.n_batches
    }

    /// What was delivered so far, and how long the consumer waited for it.
    pub fn stats(&self) -> LoaderStats {
        let elapsed = self.first_delivered.map_or(Duration::ZERO, |first| first.elapsed());
        LoaderStats { n_bad: self.bad.len(), elapsed, ..self.stats }
    }

    fn count(&mut self, waited: Duration) {
        if self.first_delivered.is_none() {
            self.first_delivered = Some(Instant::now());
            self.stats.waited_first = waited;
        } else {
            self.stats.waited += waited;
        }
    }

    /// Counts and logs bad images in the order of the batches, so that the same run ends at the same place.
    fn count_bad(&mut self, bad: &[BadImage]) -> Result<(), LoaderError> {
        let images = self.maker.data.len();
        let max_share = self.maker.max_bad_share;
        for BadImage { index, reason } in bad {
            if !self.bad.insert(*index) {
                continue;
            }
            let n_bad = self.bad.len();
            let name = self.maker.data.name(*index as usize);
            if n_bad <= NAMED_IN_LOG {
                tracing::warn!(image = %name, %reason, "an image cannot be used");
            } else if n_bad.is_power_of_two() {
                tracing::warn!(image = %name, %reason, n_bad, "more images cannot be used; this is the latest");
            }
            if n_bad as f64 > max_share * images as f64 {
                let reason = reason.to_string();
                return Err(LoaderError::TooManyBad { bad: n_bad, images, max_share, name, reason });
            }
        }
        Ok(())
    }
}

/// Bad images up to this number are named one by one in the log.
const NAMED_IN_LOG: usize = 20;

impl Iterator for Loader {
    type Item = Result<MultiCropBatch, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.maker.stop.store(true, Ordering::Relaxed);
        // A feeder that waits for room in its queue wakes up when the queue is gone.
        self.queues.clear();
        for feeder in self.feeders.drain(..) {
            // Its panic was reported when it happened.
            let _ = feeder.join();
        }
    }
}

/// How many images are tried in place of a bad one: neighbours first, then anywhere, since a vanished shard makes
/// whole runs of neighbours bad. Small data sets are tried wholly.
const NEIGHBOURS_TRIED: usize = 16;
const TRIED: usize = 64;

/// Makes batches; shared by the feeders.
struct Maker {
    data: Arc<dyn Dataset>,
    views: Arc<dyn Views>,
    shapes: Vec<ViewShape>,
    n_views: usize,
    sampler: Sampler,
    n_batches: u64,
    on_bad: OnBad,
    max_bad_share: f64,
    pool: ThreadPool,
    /// Those not in use. One is taken out for the time of its use, not locked: a worker whose views wait for parallel
    /// work of their own may begin another image meanwhile.
    scratch: Mutex<Vec<Scratch>>,
    /// The orders of the epochs in use, of which there are two at the border.
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
    stop: AtomicBool,
    home: Sender<Buffers>,
    used: Receiver<Buffers>,
}

impl Maker {
    fn feed(&self, numbers: impl Iterator<Item = u64>, queue: &Sender<Result<MultiCropBatch, LoaderError>>) {
        for number in numbers {
            let batch = self.make(number);
            let failed = batch.is_err();
            if self.stop.load(Ordering::Relaxed) || queue.send(batch).is_err() || failed {
                return;
            }
        }
    }

    fn position(&self, number: u64) -> Position {
        Position { epoch: number / self.n_batches, batch: number % self.n_batches }
    }

    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(known, _)| *known == epoch) {
            return order.clone();
        }
        let order = Arc::new(self.sampler.order(epoch));
        orders.retain(|(known, _)| known + 1 == epoch);
        orders.push((epoch, order.clone()));
        order
    }

    fn make(&self, number: u64) -> Result<MultiCropBatch, LoaderError> {
        let position = self.position(number);
        let mut buffers = self.used.try_recv().unwrap_or_default();
        let order = self.order(position.epoch);
        self.sampler.batch(&order, position.batch as usize, &mut buffers.indices);
        let batch_size = buffers.indices.len();
        buffers.shape(&self.shapes, batch_size);

        // The views of one image lie apart in memory; its worker gets them as one slice of slices.
        let Buffers { groups, indices, labels } = &mut buffers;
        let mut crops: Vec<_> = groups
            .iter_mut()
            .flat_map(|group| {
                let size = group.height * group.width * 3;
                group.data.chunks_exact_mut(batch_size * size).map(move |crop| crop.chunks_exact_mut(size))
            })
            .collect();
        let mut views: Vec<&mut [f32]> = Vec::with_capacity(batch_size * self.n_views);
        for _ in 0..batch_size {
            views.extend(crops.iter_mut().filter_map(Iterator::next));
        }
        let outcomes: Vec<Outcome> = self.pool.install(|| {
            views
                .par_chunks_exact_mut(self.n_views)
                .zip(indices.par_iter_mut())
                .zip(labels.par_iter_mut())
                .with_max_len(1)
                .map(|((views, index), label)| self.write(index, label, position.epoch, views))
                .collect()
        });
        let mut kept = Vec::with_capacity(batch_size);
        let mut bad = Vec::new();
        for (at, outcome) in outcomes.into_iter().enumerate() {
            bad.extend(outcome.bad);
            match outcome.kept {
                Ok(true) => kept.push(at),
                Ok(false) => {}
                Err(error) => return Err(error),
            }
        }
        if kept.len() < batch_size {
            buffers.compact(&kept, batch_size);
        }
        Ok(MultiCropBatch {
            groups: buffers.groups,
            batch_size: kept.len(),
            indices: buffers.indices,
            labels: buffers.labels,
            position,
            ends_epoch: position.batch + 1 == self.n_batches,
            bad,
            home: Some(self.home.clone()),
        })
    }

    fn free_scratch(&self) -> MutexGuard<'_, Vec<Scratch>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the views of the image at `index`, or of the one that takes its place.
    fn write(
        &self,
        index: &mut u32,
        label: &mut Option<u32>,
        epoch: u64,
        views: &mut [&mut [f32]],
    ) -> Outcome {
        let asked = *index;
        let mut bad = Vec::new();
        // The stream is that of the image asked for: its replacement is in the epoch a second time, with other views.
        let key = ViewKey { seed: self.sampler.seed, epoch, sample: u64::from(asked) };
        let n_images = self.data.len() as u64;
        let tried = TRIED.min(self.data.len());
        let neighbours = if tried < TRIED { tried } else { NEIGHBOURS_TRIED };
        for attempt in 0..tried {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let candidate = if attempt < neighbours {
                (u64::from(asked) + attempt as u64) % n_images
            } else {
                mix(key.sample << 8 | attempt as u64) % n_images
            };
            let image = match self.data.image(candidate as usize) {
                Ok(image) => image,
                Err(reason) => {
                    bad.push(BadImage { index: candidate as u32, reason });
                    if self.on_bad == OnBad::LeaveOut {
                        break;
                    }
                    continue;
                }
            };
            let mut scratch = self.free_scratch().pop().unwrap_or_default();
            let written = self.views.write(image.view(), key, views, &mut scratch);
            self.free_scratch().push(scratch);
            let kept = match written {
                Ok(()) => Ok(true),
                Err(reason) => Err(LoaderError::Views { name: self.data.name(candidate as usize), reason }),
            };
            (*index, *label) = (candidate as u32, self.data.label(candidate as usize));
            return Outcome { kept, bad };
        }
        if self.on_bad == OnBad::LeaveOut || self.stop.load(Ordering::Relaxed) {
            return Outcome { kept: Ok(false), bad };
        }
        let reason = bad.last().map_or_else(String::new, |bad| bad.reason.to_string());
        let name = self.data.name(asked as usize);
        Outcome { kept: Err(LoaderError::NoReplacement { tried: bad.len(), name, reason }), bad }
    }
}

/// What became of one place in a batch.
struct Outcome {
    kept: Result<bool, LoaderError>,
    bad: Vec<BadImage>,
}
