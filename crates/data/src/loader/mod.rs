//! Loads batches in the background: a bounded queue, filled by threads of its own, in an order that depends on the
//! seed alone.

mod config;
mod maker;

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, bounded};
use rayon::ThreadPoolBuilder;

use crate::{BadImage, Dataset, LoaderError, MultiCropBatch, Pixel, Shuffle, Views, sampler::Sampler};

pub use config::{BatchPlan, LoaderConfig, LoaderSpec, OnBad, Position};
use maker::Maker;

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
/// interrupted. Memory of batches that are dropped is used again. Which pixels batches have, the views decide.
///
/// ```
/// use std::sync::Arc;
/// use swav_augment::{MultiCropConfig, Preset};
/// use swav_data::{BatchPlan, DataConfig, Loader, LoaderConfig, Position};
///
/// let data = DataConfig::default().open()?;
/// let views = MultiCropConfig::preset(Preset::SimclrCifar).check()?;
/// let spec = LoaderConfig::default().check()?;
/// let plan = BatchPlan { batch_size: 16, seed: 31, ..BatchPlan::default() };
/// let mut loader = Loader::new(data, Arc::new(views), &spec, plan, Position::default())?;
/// let batch = loader.next_batch()?.expect("without n_epochs there is always a next one");
/// assert_eq!(batch.views()[0].dim(), (2 * 16, 32, 32, 3));
/// assert_eq!(loader.position(), Position { epoch: 0, batch: 1 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Loader<P: Pixel = f32> {
    maker: Arc<Maker<P>>,
    queues: Vec<Receiver<Result<MultiCropBatch<P>, LoaderError>>>,
    feeders: Vec<JoinHandle<()>>,
    next: u64,
    end: Option<u64>,
    failed: bool,
    bad: HashSet<usize>,
    stats: LoaderStats,
    first_delivered: Option<Instant>,
}

impl<P: Pixel> Loader<P> {
    /// Starts loading at a position.
    ///
    /// # Errors
    /// [`LoaderError::Config`], [`LoaderError::TooFewImages`], [`LoaderError::Position`], [`LoaderError::Threads`].
    pub fn new(
        data: Arc<dyn Dataset>,
        views: Arc<dyn Views<P>>,
        spec: &LoaderSpec,
        plan: BatchPlan,
        start: Position,
    ) -> Result<Self, LoaderError> {
        plan.refuse_wrong()?;
        let config = &spec.config;
        let blocks = match config.shuffle {
            Shuffle::Auto | Shuffle::Windows => data.blocks(),
            Shuffle::Full | Shuffle::None => None,
        };
        let sampler = Sampler {
            n_images: data.len(),
            blocks,
            window_images: config.window_images,
            shuffled: config.shuffle != Shuffle::None,
            seed: plan.seed,
            batch_size: plan.batch_size,
            rank: plan.rank,
            world_size: plan.world_size,
            drop_last: config.drop_last,
        };
        let n_batches = sampler.n_batches();
        if n_batches == 0 {
            let (images, batch_size, world_size) = (data.len(), plan.batch_size, plan.world_size);
            return Err(LoaderError::TooFewImages { images, batch_size, world_size });
        }
        if start.batch >= n_batches as u64 {
            return Err(LoaderError::Position { batch: start.batch as usize, batches: n_batches });
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(config.n_workers)
            .thread_name(|worker| format!("swav-load-{worker}"))
            .build()
            .map_err(|error| LoaderError::Threads(io::Error::other(error)))?;
        // Two batches are in the making at a time, so that workers which are done with one go on with the next.
        let n_feeders = config.queue_batches.min(2);
        let (recycle, recycled) = bounded(config.queue_batches + 3);
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
            recycle,
            recycled,
        });
        let next = start.epoch.saturating_mul(n_batches as u64) + start.batch;
        let mut loader = Self {
            maker,
            queues: Vec::new(),
            feeders: Vec::new(),
            next,
            end: plan.n_epochs.map(|epochs| epochs.saturating_mul(n_batches as u64)),
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
                .map_err(LoaderError::Threads)?;
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
    pub fn next_batch(&mut self) -> Result<Option<MultiCropBatch<P>>, LoaderError> {
        loop {
            if self.failed || self.end.is_some_and(|end| self.next >= end) {
                return Ok(None);
            }
            let asked = Instant::now();
            let queue = (self.next % self.queues.len() as u64) as usize;
            let batch = self.queues[queue].recv().unwrap_or(Err(LoaderError::Died));
            let batch = batch.and_then(|mut batch| self.count_bad(&mut batch.bad).map(|()| batch));
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

    /// Counts bad images in the order of the batches, so that the same run ends at the same place, and keeps those
    /// that are new.
    fn count_bad(&mut self, bad: &mut Vec<BadImage>) -> Result<(), LoaderError> {
        let images = self.maker.data.len();
        let max_share = self.maker.max_bad_share;
        bad.retain(|bad| self.bad.insert(bad.index));
        let n_before = self.bad.len() - bad.len();
        let allowed =
            (1..=bad.len()).take_while(|new| (n_before + new) as f64 <= max_share * images as f64).count();
        if allowed < bad.len() {
            let BadImage { name, reason: source, .. } = bad.swap_remove(allowed);
            return Err(LoaderError::TooManyBad {
                bad: n_before + allowed + 1,
                images,
                max_share,
                name,
                source,
            });
        }
        Ok(())
    }
}

impl<P: Pixel> Iterator for Loader<P> {
    type Item = Result<MultiCropBatch<P>, LoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

impl<P: Pixel> Drop for Loader<P> {
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
