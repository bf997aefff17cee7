//! Scores to codes, the swapped loss with its gradient, diagnostics, the queue.
//!
//! Scores are `[rows][stride]`, rows crop by crop (all samples of crop 0, then of crop 1), of which the first
//! `prototypes` columns count. Codes are never stored: that of sample b in prototype k, for assignment crop number i,
//! is `2^(s·log2(e)/ε + f[i][k] + g[i][queued + b])`.

use super::{Launch, THREADS, typed};
use crate::shape::Element;

/// Rows that one block of a sum over samples takes.
const CHUNK_ROWS: usize = 256;

/// Rows that one block of the diagnostics takes.
const USAGE_ROWS: usize = 64;

/// Codes by Sinkhorn's iterations, as potentials: prototypes first, then samples, `n_iters` times.
///
/// Without an iteration codes are the softmax of `scores / epsilon`. Queued embeddings take part if
/// [`StepScalars`](super::StepScalars) says that the queue is ready.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SinkhornCodes<P> {
    /// Type of scores.
    pub element: Element,
    /// Scores of the batch, all crops.
    pub scores: P,
    /// Scores of the queues, `[n_assign][queued][stride]`; none where `queued` is 0.
    pub queue_scores: Option<P>,
    /// The step's scalars.
    pub scalars: P,
    /// The assignment crops, `[n_assign]` of i32.
    pub assign: P,
    /// Assignment crops.
    pub n_assign: usize,
    /// Samples of the batch.
    pub batch: usize,
    /// Rows of each queue, or 0.
    pub queued: usize,
    /// Prototypes.
    pub prototypes: usize,
    /// Columns of scores, padding included.
    pub stride: usize,
    /// Regularisation, in units of scores.
    pub epsilon: f32,
    /// Iterations.
    pub n_iters: usize,
    /// Written: potentials of prototypes, `[n_assign][stride]`, f32.
    pub f: P,
    /// Written: potentials of samples, `[n_assign][queued + batch]`, f32.
    pub g: P,
    /// [`scratch_len`](Self::scratch_len) f32 values.
    pub scratch: P,
}

/// `log2(e) / x`, as the kernels scale scores.
fn factor(x: f32) -> f32 {
    (std::f64::consts::LOG2_E / f64::from(x)) as f32
}

impl<P: Copy> SinkhornCodes<P> {
    /// Values (f32) of scratch.
    pub fn scratch_len(&self) -> usize {
        2 * self.n_assign * self.chunks() * self.prototypes
    }

    fn chunks(&self) -> usize {
        (self.queued + self.batch).div_ceil(CHUNK_ROWS)
    }

    /// The launches, in their order.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let mut out = Vec::new();
        for iteration in 0..self.n_iters {
            out.push(self.prototype_sums(iteration > 0));
            if self.chunks() > 1 {
                let grid = [self.prototypes.div_ceil(THREADS), self.n_assign, 1];
                let merge = Launch::blocks("sinkhorn_merge", grid).pointer(self.scratch).pointer(self.f);
                out.push(merge.int(self.chunks()).int(self.prototypes).int(self.stride));
            }
            // After the last iteration only the batch's codes are wanted.
            out.push(self.sample_sums(if iteration + 1 < self.n_iters { 0 } else { self.queued }, true));
        }
        if self.n_iters == 0 {
            let element = Element::F32;
            let len = self.n_assign * self.stride;
            out.extend(super::Fill { element, to: self.f, value: 0.0, len }.launches());
            out.push(self.sample_sums(self.queued, false));
        }
        out
    }

    fn rows(&self, kernel: &'static str, grid: [usize; 3], block: [usize; 3]) -> Launch<P> {
        Launch::new(kernel, grid, block)
            .pointer(self.scores)
            .optional(self.queue_scores)
            .pointer(self.scalars)
            .pointer(self.assign)
    }

    fn prototype_sums(&self, use_g: bool) -> Launch<P> {
        let grid = [self.prototypes.div_ceil(32), self.chunks(), self.n_assign];
        self.rows(typed!(self.element, "sinkhorn_prototypes"), grid, [32, 8, 1])
            .pointer(self.g)
            .pointer(self.f)
            .pointer(self.scratch)
            .int(self.batch)
            .int(self.queued)
            .int(self.prototypes)
            .int(self.stride)
            .int(CHUNK_ROWS)
            .float(factor(self.epsilon))
            .flag(use_g)
    }

    fn sample_sums(&self, first_row: usize, use_f: bool) -> Launch<P> {
        let grid = [self.queued + self.batch - first_row, self.n_assign, 1];
        self.rows(typed!(self.element, "sinkhorn_samples"), grid, [THREADS, 1, 1])
            .pointer(self.f)
            .pointer(self.g)
            .int(self.batch)
            .int(self.queued)
            .int(first_row)
            .int(self.prototypes)
            .int(self.stride)
            .float(factor(self.epsilon))
            .flag(use_f)
    }
}

/// Codes of the batch in f32, `[n_assign][batch][stride]`, for a host that wants them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StoreCodes<P> {
    /// What computed them.
    pub codes: SinkhornCodes<P>,
    /// Written.
    pub out: P,
}

impl<P: Copy> StoreCodes<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let c = &self.codes;
        let grid = [c.stride.div_ceil(THREADS), c.batch, c.n_assign];
        let launch = Launch::blocks(typed!(c.element, "store_codes"), grid)
            .pointer(c.scores)
            .pointer(c.assign)
            .pointer(c.f)
            .pointer(c.g)
            .pointer(self.out)
            .int(c.batch)
            .int(c.queued)
            .int(c.prototypes)
            .int(c.stride)
            .float(factor(c.epsilon));
        vec![launch]
    }
}

/// The swapped loss over all crops, its gradient with respect to the scores, and the step's diagnostics.
///
/// With p the softmax of a crop's scores over the temperature τ and q the sum of the other assignment crops' codes,
/// averaged over the `n_assign·(n_crops - 1)·batch` pairs: loss = -Σ q·ln p, gradient = (others·p - q)/(τ·pairs).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SwappedLoss<P> {
    /// Scores and potentials.
    pub codes: SinkhornCodes<P>,
    /// Crops of each image.
    pub n_crops: usize,
    /// τ.
    pub temperature: f32,
    /// Written: like scores, zero in padding columns.
    pub gradient: P,
    /// Mean embedding, `[channels]` f32, from [`MeanRow`].
    pub mean: P,
    /// Channels of the embedding.
    pub channels: usize,
    /// Written: a [`StepReport`](super::StepReport), but for its norms.
    pub report: P,
    /// [`scratch_len`](Self::scratch_len) f32 values, for the rows.
    pub row_scratch: P,
    /// [`usage_len`](Self::usage_len) f32 values, for the prototypes.
    pub usage_scratch: P,
}

impl<P: Copy> SwappedLoss<P> {
    fn n_rows(&self) -> usize {
        self.n_crops * self.codes.batch
    }

    fn chunks(&self) -> usize {
        self.n_rows().div_ceil(USAGE_ROWS)
    }

    /// Values (f32) of `row_scratch`.
    pub fn scratch_len(&self) -> usize {
        4 * self.n_rows()
    }

    /// Values (f32) of `usage_scratch`.
    pub fn usage_len(&self) -> usize {
        2 * self.chunks() * self.codes.prototypes
    }

    /// The launches, in their order.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let c = &self.codes;
        let pairs = c.n_assign * (self.n_crops - 1) * c.batch;
        let scale = (1.0 / (f64::from(self.temperature) * pairs as f64)) as f32;
        let rows = Launch::blocks(typed!(c.element, "swapped_loss"), [self.n_rows(), 1, 1])
            .pointer(c.scores)
            .pointer(c.assign)
            .pointer(c.f)
            .pointer(c.g)
            .pointer(self.gradient)
            .pointer(self.row_scratch)
            .int(c.n_assign)
            .int(c.batch)
            .int(c.queued)
            .int(c.prototypes)
            .int(c.stride)
            .float(factor(c.epsilon))
            .float(factor(self.temperature))
            .float(scale);
        let grid = [c.prototypes.div_ceil(32), self.chunks(), 1];
        let usage = Launch::new(typed!(c.element, "swapped_usage"), grid, [32, 8, 1])
            .pointer(c.scores)
            .pointer(c.assign)
            .pointer(c.f)
            .pointer(c.g)
            .pointer(self.row_scratch)
            .pointer(self.usage_scratch)
            .int(c.n_assign)
            .int(c.batch)
            .int(c.queued)
            .int(c.prototypes)
            .int(c.stride)
            .int(self.n_rows())
            .int(USAGE_ROWS)
            .float(factor(c.epsilon))
            .float(factor(self.temperature));
        let report = Launch::new("step_report", [1, 1, 1], [1024, 1, 1])
            .pointer(self.row_scratch)
            .pointer(self.usage_scratch)
            .pointer(self.mean)
            .pointer(c.scalars)
            .pointer(self.report)
            .int(self.n_rows())
            .int(c.prototypes)
            .int(self.chunks())
            .int(self.channels)
            .int(pairs)
            .int(c.n_assign * c.batch);
        vec![rows, usage, report]
    }
}

/// The mean of all rows, f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanRow<P> {
    /// Type of `x`.
    pub element: Element,
    /// `[rows][channels]`.
    pub x: P,
    /// Written: `[channels]`.
    pub mean: P,
    /// Rows.
    pub rows: usize,
    /// Padded channels.
    pub channels: usize,
}

impl<P: Copy> MeanRow<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let grid = [self.channels.div_ceil(32), 1, 1];
        let launch = Launch::new(typed!(self.element, "mean_row"), grid, [32, 8, 1]);
        vec![launch.pointer(self.x).pointer(self.mean).int(self.rows).int(self.channels)]
    }
}

/// Puts the embeddings of the assignment crops into their queues, which are rings: the batch goes to rows
/// `queue_slot..queue_slot + batch` of each, as [`StepScalars`](super::StepScalars) says, if it says so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueuePush<P> {
    /// Type of embeddings and queues.
    pub element: Element,
    /// Embeddings of all crops, `[crops·batch][channels]`.
    pub unit: P,
    /// `[n_assign][queued][channels]`.
    pub queue: P,
    /// The step's scalars.
    pub scalars: P,
    /// The assignment crops, `[n_assign]` of i32.
    pub assign: P,
    /// Assignment crops.
    pub n_assign: usize,
    /// Samples of the batch.
    pub batch: usize,
    /// Rows of each queue.
    pub queued: usize,
    /// Padded channels.
    pub channels: usize,
}

impl<P: Copy> QueuePush<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let vectors = self.channels / 8;
        let grid = [(self.batch * vectors).div_ceil(THREADS), self.n_assign, 1];
        let launch = Launch::blocks(typed!(self.element, "queue_push"), grid)
            .pointer(self.unit)
            .pointer(self.queue)
            .pointer(self.scalars)
            .pointer(self.assign)
            .int(self.batch)
            .int(self.queued)
            .int(vectors);
        vec![launch]
    }
}
