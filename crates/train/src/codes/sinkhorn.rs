//! SwAV's codes: optimal transport over the batch, or over queue and batch.

use ndarray::{Array1, Array3, ArrayView2, Axis, s};
use serde_json::json;
use swav_encoder::StateTensor;
use swav_ot::Codes;
use swav_prototypes::FeatureQueue;

use super::{AssignCodes, Assigned, Code, CodesInput, CodesVitals, EpochStart, Remembered, rows_of_crop};
use crate::collective::Transport;
use crate::error::TrainError;
use crate::moment::Moment;
use crate::section::Section;

/// Name of the queue's rows in the section.
const ROWS: &str = "queue.rows";
const FILLED: &str = "filled";
const BATCH: &str = "batch_size";

type EpsilonSchedule = Box<dyn Fn(Moment) -> f64 + Send>;

/// Sinkhorn-Knopp over the scores of all processes, together with a queue of past embeddings once that is full.
///
/// The queue lies before the batch, is scored with today's prototypes, and takes the batch in after the codes are
/// made. Each process has the queue of its own images.
pub struct SinkhornCodes {
    solver: Codes<f32>,
    assign: Vec<usize>,
    shape: Option<QueueShape>,
    queue: Option<FeatureQueue>,
    epsilon: Option<EpsilonSchedule>,
    vitals: CodesVitals,
}

/// The queue of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueShape {
    /// Rows of each list: a positive multiple of `batch_size`.
    pub length: usize,
    /// Images of a batch in this process.
    pub batch_size: usize,
    /// Dimension of the embeddings.
    pub dim: usize,
    /// First epoch (from 0) with a queue.
    pub start_epoch: u64,
}

impl SinkhornCodes {
    /// Codes of the crops `assign` by `solver`, without a queue.
    pub fn new(solver: Codes<f32>, assign: &[usize]) -> Self {
        Self {
            solver,
            assign: assign.to_vec(),
            shape: None,
            queue: None,
            epsilon: None,
            vitals: CodesVitals::default(),
        }
    }

    /// Adds a queue; it is created, empty, at the start of its first epoch.
    #[must_use]
    pub fn with_queue(mut self, shape: QueueShape) -> Self {
        self.shape = Some(shape);
        self
    }

    /// Computes the regularisation of each step, in units of scores, above 0, in place of a constant one.
    #[must_use]
    pub fn with_epsilon(mut self, epsilon: impl Fn(Moment) -> f64 + Send + 'static) -> Self {
        self.epsilon = Some(Box::new(epsilon));
        self
    }

    /// The crops that have codes.
    pub fn assign_crops(&self) -> &[usize] {
        &self.assign
    }

    /// What computes the codes.
    pub fn solver(&self) -> &Codes<f32> {
        &self.solver
    }

    /// The queue that there is, or will be.
    pub fn queue_shape(&self) -> Option<QueueShape> {
        self.shape
    }

    /// The queue, once its epoch has come.
    pub fn queue(&self) -> Option<&FeatureQueue> {
        self.queue.as_ref()
    }

    /// Changes the regularisation from now on, unless a schedule computes it; in units of scores, above 0.
    ///
    /// # Errors
    /// [`TrainError::Codes`] if it is out of range.
    pub fn set_epsilon(&mut self, epsilon: f64) -> Result<(), TrainError> {
        Ok(self.solver.set_epsilon(epsilon)?)
    }

    /// Puts a queue in place: one that was filled elsewhere.
    pub fn set_queue(&mut self, queue: Option<FeatureQueue>) {
        self.queue = queue;
    }
}

impl SinkhornCodes {
    /// Of the codes (queue and batch, K) of the first assignment crop.
    fn vitals_of(
        &self,
        codes: ArrayView2<'_, f32>,
        input: &CodesInput<'_>,
        crop: usize,
    ) -> Result<CodesVitals, TrainError> {
        let used = codes.sum_axis(Axis(0)).mapv(f64::from);
        let (mass, share) = (used.sum(), 1.0 / used.len() as f64);
        let residual = used.iter().map(|&used| (used / mass - share).abs()).sum();
        let ready = self.queue.as_ref().filter(|queue| queue.is_ready(0));
        let drift = match ready {
            None => None,
            Some(queue) => {
                let batch = rows_of_crop(input.embeddings, crop, input.batch_size())?;
                Some(drift(queue.rows().index_axis(Axis(0), 0), batch))
            }
        };
        Ok(CodesVitals { row_residual: Some(residual), queue_drift: drift })
    }
}

impl AssignCodes for SinkhornCodes {
    fn assign(&mut self, input: &CodesInput<'_>) -> Result<Assigned, TrainError> {
        if let Some(epsilon) = &self.epsilon {
            self.solver.set_epsilon(epsilon(input.moment))?;
        }
        let mut assigned = Assigned { codes: Vec::with_capacity(self.assign.len()), used_memory: false };
        for (list, &crop) in self.assign.iter().enumerate() {
            let own = input.scores_of(crop)?;
            let mut all = match &self.queue {
                Some(queue) => {
                    assigned.used_memory |= queue.is_ready(list);
                    queue.with_batch(list, input.prototypes, input.head, own)?
                }
                None => own.to_owned(),
            };
            let mut transport = Transport::new(input.collective);
            let result = self.solver.assign_sharded(all.view_mut(), &mut transport);
            transport.explain(result)?;
            if input.head == 0 && list == 0 {
                self.vitals = self.vitals_of(all.view(), input, crop)?;
            }
            let first = all.nrows() - input.batch_size();
            let weights = if first == 0 { all } else { all.slice(s![first.., ..]).to_owned() };
            assigned.codes.push(Code { crop: Some(crop), weights });
        }
        Ok(assigned)
    }

    fn start_epoch(&mut self, start: &mut EpochStart<'_>) -> Result<(), TrainError> {
        let Some(QueueShape { length, batch_size, dim, start_epoch }) = self.shape else { return Ok(()) };
        if self.queue.is_none() && start.moment.epoch >= start_epoch {
            self.queue = Some(FeatureQueue::new(self.assign.len(), length, dim, batch_size)?);
        }
        Ok(())
    }

    fn remember(&mut self, batch: &Remembered<'_>) -> Result<(), TrainError> {
        let Some(queue) = &mut self.queue else { return Ok(()) };
        for (list, &crop) in self.assign.iter().enumerate() {
            queue.push(list, batch.embeddings_of(crop)?)?;
        }
        Ok(())
    }

    fn save(&self) -> Section {
        let mut section = Section::default();
        let Some(queue) = &self.queue else { return section };
        let rows = queue.rows();
        let tensor = StateTensor::new(rows.shape().to_vec(), rows.iter().copied().collect());
        section.tensors.insert(ROWS, tensor.expect("an array has as many values as its shape says"));
        section.values.insert(FILLED.to_owned(), json!(queue.filled()));
        section.values.insert(BATCH.to_owned(), json!(queue.batch_size()));
        section
    }

    fn load(&mut self, sections: &[Section], rank: usize, world_size: usize) -> Result<(), TrainError> {
        if sections.iter().all(Section::is_empty) {
            self.queue = None;
            return Ok(());
        }
        let shape = self.shape.ok_or_else(|| misfit("no queue", "a queue"))?;
        let queues: Vec<FeatureQueue> =
            sections.iter().map(|section| restored(section, shape.dim)).collect::<Result<_, _>>()?;
        let queue = match queues.len() == world_size {
            true => queues.into_iter().nth(rank).expect("a rank is below the number of processes"),
            false => divided(&queues, rank, world_size)?,
        };
        let got = (queue.n_assign(), queue.length(), queue.batch_size());
        let expected = (self.assign.len(), shape.length, shape.batch_size);
        if got != expected {
            let show = |(lists, rows, batch)| format!("{lists} lists of {rows} rows in batches of {batch}");
            return Err(misfit(show(expected), show(got)));
        }
        self.queue = Some(queue);
        Ok(())
    }

    fn vitals(&self) -> CodesVitals {
        self.vitals
    }

    fn as_sinkhorn(&mut self) -> Option<&mut SinkhornCodes> {
        self.epsilon.is_none().then_some(self)
    }
}

/// [`CodesVitals::queue_drift`] between rows of unit length.
fn drift(queue: ArrayView2<'_, f32>, batch: ArrayView2<'_, f32>) -> f64 {
    let mean = |rows: ArrayView2<'_, f32>| -> Array1<f64> {
        rows.sum_axis(Axis(0)).mapv(f64::from) / rows.nrows().max(1) as f64
    };
    let (old, new) = (mean(queue), mean(batch));
    let distance: f64 = old.iter().zip(&new).map(|(old, new)| (old - new).powi(2)).sum();
    let spread = (1.0 - new.iter().map(|x| x * x).sum::<f64>()).max(1e-6);
    distance / (spread * (1.0 / queue.nrows() as f64 + 1.0 / batch.nrows() as f64))
}

/// The queue of one process as its section has it.
fn restored(section: &Section, dim: usize) -> Result<FeatureQueue, TrainError> {
    let tensor = section.tensors.get(ROWS).ok_or_else(|| misfit("the queue's rows", "none"))?;
    let &[n_assign, length, got] = tensor.shape() else {
        return Err(misfit("a queue of three dimensions", format!("{:?}", tensor.shape())));
    };
    if got != dim {
        return Err(misfit(format!("embeddings of dimension {dim}"), got));
    }
    let rows = Array3::from_shape_vec((n_assign, length, dim), tensor.data().to_vec())
        .expect("a tensor has as many values as its shape says");
    let count = |value: &serde_json::Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
    let batch = section.values.get(BATCH).and_then(count);
    let filled = section.values.get(FILLED).and_then(|list| list.as_array()?.iter().map(count).collect());
    let (Some(batch), Some(filled)) = (batch, filled) else {
        return Err(misfit("counts of the queue's rows", "none"));
    };
    Ok(FeatureQueue::from_rows(rows, batch, filled)?)
}

/// The queue of rank `rank` of `world_size`, of those of another number of processes. A batch of the queue is that of
/// all processes in the order of their ranks, and is divided in this order.
fn divided(queues: &[FeatureQueue], rank: usize, world_size: usize) -> Result<FeatureQueue, TrainError> {
    let first = &queues[0];
    let (n_assign, length, dim) = first.rows().dim();
    let global = first.batch_size() * queues.len();
    let alike = |queue: &FeatureQueue| {
        (queue.rows().dim(), queue.batch_size(), queue.filled())
            == (first.rows().dim(), first.batch_size(), first.filled())
    };
    if !queues.iter().all(alike) {
        return Err(misfit("queues of one shape on all ranks", "different ones"));
    }
    if !global.is_multiple_of(world_size) {
        return Err(misfit(format!("batches that {world_size} processes can divide"), global));
    }
    let (batch, n_batches) = (global / world_size, length / first.batch_size());
    let rows = Array3::from_shape_fn((n_assign, n_batches * batch, dim), |(list, row, column)| {
        let (slot, image) = (row / batch, rank * batch + row % batch);
        let (from, within) = (image / first.batch_size(), image % first.batch_size());
        queues[from].rows()[[list, slot * first.batch_size() + within, column]]
    });
    let filled = first.filled().iter().map(|rows| rows / first.batch_size() * batch).collect();
    Ok(FeatureQueue::from_rows(rows, batch, filled)?)
}

fn misfit(expected: impl ToString, got: impl ToString) -> TrainError {
    TrainError::section("codes", expected, got)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    /// A queue of `n_batches` batches whose row of image i in batch t is (t, i), for the images of one rank.
    fn queue(rank: usize, world_size: usize, n_batches: usize) -> FeatureQueue {
        let batch = 12 / world_size;
        let mut queue = FeatureQueue::new(2, n_batches * batch, 2, batch).unwrap();
        for t in 0..n_batches - 1 {
            for list in 0..2 {
                let row = |(i, d): (usize, usize)| [t + 10 * list, rank * batch + i][d] as f32;
                queue.push(list, Array2::from_shape_fn((batch, 2), row).view()).unwrap();
            }
        }
        queue
    }

    fn codes(world_size: usize, n_batches: usize) -> SinkhornCodes {
        let batch_size = 12 / world_size;
        let shape = QueueShape { length: n_batches * batch_size, batch_size, dim: 2, start_epoch: 0 };
        SinkhornCodes::new(Codes::new(0.05, 3).unwrap(), &[0, 1]).with_queue(shape)
    }

    fn section(queue: FeatureQueue) -> Section {
        let mut codes = SinkhornCodes::new(Codes::new(0.05, 3).unwrap(), &[0, 1]);
        codes.set_queue(Some(queue));
        codes.save()
    }

    #[test]
    fn a_queue_is_divided_anew_for_any_number_of_processes() {
        for (before, now) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (4, 6), (2, 4)] {
            let sections: Vec<_> = (0..before).map(|rank| section(queue(rank, before, 3))).collect();
            for rank in 0..now {
                let mut codes = codes(now, 3);
                codes.load(&sections, rank, now).unwrap();
                assert_eq!(codes.queue(), Some(&queue(rank, now, 3)), "{before} to {now}, rank {rank}");
            }
        }
    }

    #[test]
    fn drift_is_about_one_by_chance_and_grows_with_the_distance() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut rows = |n: usize, shift: f32| {
            let mut rows = Array2::from_shape_fn((n, 16), |(_, d)| {
                rng.random_range(-1.0f32..1.0) + if d == 0 { shift } else { 0.0 }
            });
            for mut row in rows.rows_mut() {
                let norm = row.dot(&row).sqrt();
                row /= norm;
            }
            rows
        };
        let (queue, same, other) = (rows(512, 0.0), rows(64, 0.0), rows(64, 1.0));
        assert!((0.3..3.0).contains(&drift(queue.view(), same.view())));
        assert!(drift(queue.view(), other.view()) > 5.0);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let sections = [section(queue(0, 1, 3))];
        let mut others = [
            (codes(1, 4), 1),
            (SinkhornCodes::new(Codes::new(0.05, 3).unwrap(), &[0, 1]), 1),
            (codes(1, 3), 5),
        ];
        for (codes, world_size) in &mut others {
            let result = codes.load(&sections, 0, *world_size);
            assert!(matches!(result, Err(TrainError::Section { part: "codes", .. })), "{result:?}");
            assert!(codes.queue().is_none());
        }
        let mut codes = codes(1, 3);
        let mut damaged = sections[0].clone();
        damaged.values.remove(FILLED);
        assert!(matches!(codes.load(&[damaged], 0, 1), Err(TrainError::Section { .. })));
        // A run that had no queue yet.
        codes.load(&[Section::default()], 0, 1).unwrap();
        assert!(codes.queue().is_none());
    }
}
