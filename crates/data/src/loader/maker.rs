//! Makes the batches: the part of the loader that runs on its threads.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crossbeam_channel::{Receiver, Sender};
use rayon::{ThreadPool, prelude::*};
use swav_augment::Scratch;

use super::{OnBad, Position};
use crate::{
    BadImage, Dataset, LoaderError, MultiCropBatch, Pixel, ViewKey, ViewShape, Views,
    batch::{Buffers, crop_group},
    error::contained,
    hash::mix,
    sampler::Sampler,
};

/// How many images are tried in place of a bad one: neighbours first, then anywhere, since a vanished shard makes
/// whole runs of neighbours bad. Small data sets are tried wholly.
const NEIGHBOURS_TRIED: usize = 16;
const TRIED: usize = 64;

/// Makes batches; shared by the feeders.
pub(super) struct Maker<P: Pixel> {
    pub data: Arc<dyn Dataset>,
    pub views: Arc<dyn Views<P>>,
    pub shapes: Vec<ViewShape>,
    pub n_views: usize,
    pub sampler: Sampler,
    pub n_batches: u64,
    pub on_bad: OnBad,
    pub max_bad_share: f64,
    pub pool: ThreadPool,
    /// Those not in use. One is taken out for the time of its use, not locked: a worker whose views wait for parallel
    /// work of their own may begin another image meanwhile.
    pub scratch: Mutex<Vec<Scratch>>,
    /// The orders of the epochs in use, of which there are two at the border.
    pub orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
    pub stop: AtomicBool,
    /// Where dropped batches send their memory, and where new ones take it.
    pub recycle: Sender<Buffers<P>>,
    pub recycled: Receiver<Buffers<P>>,
}

impl<P: Pixel> Maker<P> {
    pub fn feed(
        &self,
        numbers: impl Iterator<Item = u64>,
        queue: &Sender<Result<MultiCropBatch<P>, LoaderError>>,
    ) {
        for number in numbers {
            let batch = self.make(number);
            let failed = batch.is_err();
            if self.stop.load(Ordering::Relaxed) || queue.send(batch).is_err() || failed {
                return;
            }
        }
    }

    pub fn position(&self, number: u64) -> Position {
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

    fn make(&self, number: u64) -> Result<MultiCropBatch<P>, LoaderError> {
        let position = self.position(number);
        let mut buffers = self.recycled.try_recv().unwrap_or_default();
        let order = self.order(position.epoch);
        self.sampler.batch(&order, position.batch as usize, &mut buffers.indices);
        let batch_size = buffers.indices.len();
        buffers.resize(&self.shapes, batch_size);

        // The views of one image lie apart in memory; its worker gets them as one slice of slices.
        let Buffers { groups, indices, labels } = &mut buffers;
        let mut crops: Vec<_> = groups
            .iter_mut()
            .zip(&self.shapes)
            .flat_map(|(group, shape)| {
                let size = shape.view_len();
                group.chunks_exact_mut(batch_size * size).map(move |crop| crop.chunks_exact_mut(size))
            })
            .collect();
        let mut views: Vec<&mut [P]> = Vec::with_capacity(batch_size * self.n_views);
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
            buffers.compact(&self.shapes, &kept, batch_size);
        }
        let groups = buffers.groups.into_iter().zip(&self.shapes);
        Ok(MultiCropBatch {
            groups: groups.map(|(values, shape)| crop_group(shape, kept.len(), values)).collect(),
            batch_size: kept.len(),
            indices: buffers.indices,
            labels: buffers.labels,
            position,
            ends_epoch: position.batch + 1 == self.n_batches,
            bad,
            recycle: Some(self.recycle.clone()),
        })
    }

    fn free_scratch(&self) -> MutexGuard<'_, Vec<Scratch>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the views of the image at `index`, or of the one that takes its place.
    fn write(
        &self,
        index: &mut usize,
        label: &mut Option<u32>,
        epoch: u64,
        views: &mut [&mut [P]],
    ) -> Outcome {
        let asked = *index;
        let mut bad = Vec::new();
        // The stream is that of the image asked for: its replacement is in the epoch a second time, with other views.
        let key = ViewKey { seed: self.sampler.seed, epoch, sample: asked as u64 };
        let n_images = self.data.len();
        let tried = TRIED.min(self.data.len());
        let neighbours = if tried < TRIED { tried } else { NEIGHBOURS_TRIED };
        for attempt in 0..tried {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let candidate = if attempt < neighbours {
                (asked + attempt) % n_images
            } else {
                (mix(key.sample << 8 | attempt as u64) % n_images as u64) as usize
            };
            let image = match contained(|| self.data.image(candidate)) {
                Ok(image) => image,
                Err(reason) => {
                    bad.push(BadImage { index: candidate, name: self.data.name(candidate), reason });
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
                Err(source) => Err(LoaderError::Views { name: self.data.name(candidate), source }),
            };
            (*index, *label) = (candidate, self.data.label(candidate));
            return Outcome { kept, bad };
        }
        if self.on_bad == OnBad::LeaveOut || self.stop.load(Ordering::Relaxed) {
            return Outcome { kept: Ok(false), bad };
        }
        let (tried, name) = (bad.len(), self.data.name(asked));
        let kept = match bad.pop() {
            Some(BadImage { reason: source, .. }) => Err(LoaderError::NoReplacement { tried, name, source }),
            // Without images there is nothing to try, and no batch either.
            None => Ok(false),
        };
        Outcome { kept, bad }
    }
}

/// What became of one place in a batch.
struct Outcome {
    kept: Result<bool, LoaderError>,
    bad: Vec<BadImage>,
}
