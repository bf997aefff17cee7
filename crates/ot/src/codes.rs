//! SwAV's codes: a fixed number of Sinkhorn iterations on scores, each sample's code summing to 1.
//!
//! Scores `s` (B samples, K prototypes) give `Q = exp(s / epsilon)`; then `n_iters` times every prototype's
//! column is scaled to the same total and every sample's row to the same total (Caron et al. 2020, appendix A,
//! the reference routine `distributed_sinkhorn`: prototypes first, then samples). The result, with rows that sum
//! to 1, is the soft assignment of samples to equally used prototypes.
//!
//! In the usual range one exponential per element is taken, kept in the output, and every iteration reads it once:
//! while a few samples' rows are in cache their sums are formed and they are added to the next prototype sums.
//! Where `(max - min) / epsilon` is beyond what the type can hold, the same iterations run on logarithms in double
//! precision; and where it is beyond what double precision resolves, they run on the limit of vanishing epsilon.

mod limit;

use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::chunks::{self, Strip};
use crate::collective::{Alone, Collective};
use crate::error::{OtError, positive};
use crate::mutants::mutated;
use crate::real::Real;
use crate::simd::{self, Isa, ROWS};

/// Assigns codes to batches of scores: the parameters, and the memory that the computation needs.
///
/// The memory grows to the largest batch seen and is then reused: a later call of that size or less allocates
/// nothing.
///
/// ```
/// use ndarray::array;
/// use swav_ot::Codes;
///
/// let mut codes = Codes::<f32>::new(0.05, 3)?;
/// let mut scores = array![[0.9, 0.1], [0.8, 0.2], [0.7, 0.6]];
/// codes.assign(scores.view_mut())?; // scores become codes
/// for row in scores.rows() {
///     assert!((row.sum() - 1.0).abs() < 1e-6);
/// }
/// # Ok::<(), swav_ot::OtError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Codes<T> {
    epsilon: f64,
    n_iters: usize,
    isa: Isa,
    /// One vector of prototype sums for each chunk of samples.
    partial: Vec<T>,
    /// Prototype sums over all samples of all shards.
    sums: Vec<f64>,
    /// Scaling of each prototype.
    scaling: Vec<T>,
    /// Smallest and largest score of each chunk, and whether all are finite.
    ranges: Vec<simd::Range<T>>,
    /// Of the logarithmic path: per chunk and prototype a maximum or a sum.
    log_partial: Vec<f64>,
    /// Logarithm of each prototype's scaling, then of each sample's.
    log_scaling: Vec<f64>,
}

/// Codes of `scores` (B, K) in a new array, with memory that is used once; see [`Codes`].
///
/// # Errors
/// Those of [`Codes::new`] and [`Codes::assign`].
pub fn sinkhorn_codes<T: Real>(
    scores: ArrayView2<T>,
    epsilon: f64,
    n_iters: usize,
) -> Result<Array2<T>, OtError> {
    let mut out = scores.as_standard_layout().into_owned();
    Codes::new(epsilon, n_iters)?.assign(out.view_mut())?;
    Ok(out)
}

impl<T: Real> Codes<T> {
    /// `epsilon` is in units of scores, above 0 (SwAV: 0.05, or 0.03 for long training). `n_iters` is usually 3;
    /// 0 gives the softmax of `scores / epsilon` for each sample.
    ///
    /// # Errors
    /// [`OtError::Parameter`] if `epsilon` is not finite and above 0.
    pub fn new(epsilon: f64, n_iters: usize) -> Result<Self, OtError> {
        positive("epsilon", epsilon)?;
        Ok(Self {
            epsilon,
            n_iters,
            isa: Isa::detect(),
            partial: Vec::new(),
            sums: Vec::new(),
            scaling: Vec::new(),
            ranges: Vec::new(),
            log_partial: Vec::new(),
            log_scaling: Vec::new(),
        })
    }

    /// The regularisation, in units of scores.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// Changes the regularisation (a schedule may); the memory stays.
    ///
    /// # Errors
    /// [`OtError::Parameter`] if `epsilon` is not finite and above 0.
    pub fn set_epsilon(&mut self, epsilon: f64) -> Result<(), OtError> {
        self.epsilon = positive("epsilon", epsilon)?;
        Ok(())
    }

    /// Iterations of each assignment.
    pub fn n_iters(&self) -> usize {
        self.n_iters
    }

    /// Replaces `scores` (B, K) by codes; each row sums to 1. Any finite scores give finite codes, whatever the epsilon: one
    /// that double precision cannot tell from 0 beside the scores gives the limit, in which a sample is shared among
    /// prototypes that are equally good for it.
    ///
    /// Allocates nothing once the memory has grown to this size, provided that rows are contiguous; a view with
    /// other strides is copied.
    ///
    /// # Errors
    /// [`OtError::Empty`] if there are no prototypes, [`OtError::NotFinite`] if a score is NaN or infinite; the
    /// contents of `scores` are then unspecified. [`OtError::Overflow`], should a sum leave the type.
    pub fn assign(&mut self, scores: ArrayViewMut2<T>) -> Result<(), OtError> {
        chunks::on_pool(chunks::parallel(scores.len()), || self.assign_sharded(scores, &mut Alone))
    }

    /// Writes the codes of `scores` (B, K) into `out` (B, K). Both may have any strides; with contiguous rows in
    /// both, `scores` are read where they lie.
    ///
    /// # Errors
    /// As [`assign`](Self::assign), and [`OtError::Shape`] if the shapes differ.
    pub fn assign_into(&mut self, scores: ArrayView2<T>, mut out: ArrayViewMut2<T>) -> Result<(), OtError> {
        if scores.dim() != out.dim() {
            return Err(OtError::Shape {
                what: "codes",
                expected: scores.shape().to_vec(),
                got: out.shape().to_vec(),
            });
        }
        let width = scores.ncols();
        if width > 0
            && let (Some(from), Some(to)) = (scores.as_slice(), out.as_slice_mut())
        {
            let parallel = chunks::parallel(to.len());
            return chunks::on_pool(parallel, || self.run(Some(from), to, width, &mut Alone));
        }
        out.assign(&scores);
        self.assign(out)
    }

    /// Replaces this process's `scores` (B local samples, K) by their codes among the samples of all processes.
    ///
    /// Every process calls it with the same `epsilon`, `n_iters` and K, and its own number of samples, which may be
    /// 0. One maximum of 3 numbers and `n_iters` sums of K numbers are reduced (in the logarithmic path, a maximum
    /// and a sum of K numbers in each iteration). The codes equal those of the whole batch on one process up to the
    /// rounding of the sums.
    ///
    /// # Errors
    /// As [`assign`](Self::assign) (a non-finite score on one process is an error on all), and
    /// [`OtError::Collective`].
    pub fn assign_sharded(
        &mut self,
        mut scores: ArrayViewMut2<T>,
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        if scores.ncols() == 0 {
            return Err(OtError::Empty { what: "prototypes" });
        }
        let width = scores.ncols();
        if let Some(rows) = scores.as_slice_mut() {
            return self.run(None, rows, width, collective);
        }
        let mut copy = scores.as_standard_layout().into_owned();
        let rows = copy.as_slice_mut().expect("a copy in standard layout is contiguous");
        self.run(None, rows, width, collective)?;
        scores.assign(&copy);
        Ok(())
    }

    /// Makes `rows` codes: of the scores in `from`, or else of those in `rows`.
    fn run(
        &mut self,
        from: Option<&[T]>,
        rows: &mut [T],
        width: usize,
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        let n_rows = rows.len() / width;
        let n_chunks = chunks::count(n_rows);
        let per_chunk = chunks::rows_per_chunk(n_rows) * width;
        let parallel = chunks::parallel(rows.len());
        let isa = self.isa;
        resize(&mut self.ranges, n_chunks, simd::Range { min: T::zero(), max: T::zero(), finite: true });
        let scores = from.unwrap_or(rows);
        chunks::for_each(parallel, n_chunks, Strip::new(&mut self.ranges, 1), &|chunk,
                                                                                range: Strip<
            simd::Range<T>,
        >| {
            let end = scores.len().min((chunk + 1) * per_chunk);
            range.take()[0] = simd::range(isa, &scores[chunk * per_chunk..end]);
        });
        // Largest score, minus the smallest, and whether any shard holds a number that is not finite.
        let mut extremes = [f64::NEG_INFINITY, f64::NEG_INFINITY, 0.0];
        for range in &self.ranges {
            extremes[0] = extremes[0].max(range.max.wide());
            extremes[1] = extremes[1].max(-range.min.wide());
            extremes[2] = if range.finite { extremes[2] } else { 1.0 };
        }
        let finite_here = extremes[2] == 0.0;
        collective.max(&mut extremes).map_err(OtError::Collective)?;
        let [max, negative_min, not_finite] = extremes;
        if not_finite != 0.0 {
            return Err(not_finite_error(scores, width, finite_here));
        }
        let spread = max + negative_min;
        if spread / self.epsilon > limit::BEYOND {
            if let Some(from) = from {
                rows.copy_from_slice(from);
            }
            return self.run_limit(rows, width, (max, spread), collective);
        }
        let scale = T::of(1.0 / self.epsilon);
        // The scaling domain needs `s - max` and `1 / epsilon` inside the type, too.
        let fits = spread / self.epsilon <= T::SAFE_EXPONENT_RANGE
            && T::of(spread).is_finite()
            && scale.is_finite()
            && T::of(max).is_finite();
        if fits || spread == f64::NEG_INFINITY {
            self.run_scaling(from, rows, width, (T::of(max), scale), collective)
        } else {
            if let Some(from) = from {
                rows.copy_from_slice(from);
            }
            self.run_logarithmic(rows, width, max, collective)
        }
    }

    /// Scaling domain: `rows` become `exp((s - max) / epsilon)`, and each pass reads them once.
    fn run_scaling(
        &mut self,
        from: Option<&[T]>,
        rows: &mut [T],
        width: usize,
        (max, scale): (T, T),
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        let n_rows = rows.len() / width;
        let n_chunks = chunks::count(n_rows);
        let per_chunk = chunks::rows_per_chunk(n_rows) * width;
        let parallel = chunks::parallel(rows.len());
        let isa = self.isa;
        resize(&mut self.partial, n_chunks * width, T::zero());
        resize(&mut self.sums, width, 0.0);
        resize(&mut self.scaling, width, T::one());
        let (partial, sums, scaling) = (&mut self.partial, &mut self.sums, &mut self.scaling);
        scaling.fill(T::one());
        let wants_sums = self.n_iters > 0;
        let streamed = simd::beyond_cache::<T>(rows.len());
        let memory = (Strip::new(rows, per_chunk), Strip::new(partial, width));
        chunks::for_each(parallel, n_chunks, memory, &|chunk, (rows, sums): (Strip<T>, Strip<T>)| {
            let (rows, sums) = (rows.take(), sums.take());
            sums.fill(T::zero());
            let mut at = chunk * per_chunk;
            for group in rows.chunks_mut(ROWS * width) {
                match from {
                    Some(from) => simd::exp_of(isa, &from[at..at + group.len()], max, scale, group),
                    None => simd::exp_shifted(isa, group, max, scale),
                }
                at += group.len();
                if wants_sums {
                    simd::add_rows(isa, group, sums);
                }
            }
        });
        for iteration in 0..self.n_iters {
            chunks::merge(isa, partial, sums);
            collective.sum(sums).map_err(OtError::Collective)?;
            // Towards the mean, not towards 1: otherwise all scalings grow by K / B in each iteration.
            let mean = sums.iter().sum::<f64>() / width as f64;
            for (scale, &sum) in scaling.iter_mut().zip(sums.iter()) {
                *scale = T::of(mean / sum);
            }
            if iteration + 1 == self.n_iters {
                break;
            }
            if iteration == 1 && mutated("sinkhorn-no-second-row-normalisation") {
                continue;
            }
            let (rows, scaling) = (&*rows, &*scaling);
            let memory = Strip::new(partial, width);
            chunks::for_each(parallel, n_chunks, memory, &|chunk, sums: Strip<T>| {
                let end = rows.len().min((chunk + 1) * per_chunk);
                let sums = sums.take();
                sums.fill(T::zero());
                scale_and_add(isa, streamed, &rows[chunk * per_chunk..end], scaling, sums);
            });
        }
        let (scaling, sound) = (&*scaling, Sound::default());
        chunks::for_each(parallel, n_chunks, Strip::new(rows, per_chunk), &|_, rows: Strip<T>| {
            for row in rows.take().chunks_exact_mut(width) {
                let total = simd::dot(isa, row, scaling);
                sound.see(total.wide());
                simd::scale_row(isa, row, scaling, T::one() / total);
            }
        });
        sound.check(self.n_iters)
    }

    /// The same iterations on logarithms in double precision: `x = (s - max) / epsilon`, prototypes' log scalings
    /// `u_k = -log Σ_i exp(x_ik + v_i)`, samples' `v_i = -log Σ_k exp(x_ik + u_k)`.
    fn run_logarithmic(
        &mut self,
        rows: &mut [T],
        width: usize,
        max: f64,
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        let n_rows = rows.len() / width;
        let n_chunks = chunks::count(n_rows);
        let rows_per_chunk = chunks::rows_per_chunk(n_rows);
        let per_chunk = rows_per_chunk * width;
        let parallel = chunks::parallel(rows.len());
        let (epsilon, isa) = (self.epsilon, self.isa);
        let exponent = move |score: T| (score.wide() - max) / epsilon;
        resize(&mut self.log_partial, n_chunks * width, 0.0);
        resize(&mut self.sums, width, 0.0);
        resize(&mut self.log_scaling, width + n_rows, 0.0);
        self.log_scaling.fill(0.0);
        let (partial, sums) = (&mut self.log_partial, &mut self.sums);
        let (u, v) = self.log_scaling.split_at_mut(width);
        for iteration in 0..self.n_iters {
            // v (but for the first iteration, where it is 0) and the largest exponent of each prototype.
            let (shared, prototypes) = (&*rows, &*u);
            let memory = (Strip::new(v, rows_per_chunk), Strip::new(partial, width));
            chunks::for_each(parallel, n_chunks, memory, &|chunk, (v, tops): (Strip<f64>, Strip<f64>)| {
                let tops = tops.take();
                tops.fill(f64::NEG_INFINITY);
                for (row, v) in shared[chunk * per_chunk..].chunks_exact(width).zip(v.take()) {
                    if iteration > 0 {
                        let (top, sum) = log_sum(row, prototypes, exponent);
                        *v = -(top + sum.ln());
                    }
                    for (top, &score) in tops.iter_mut().zip(row) {
                        *top = top.max(exponent(score) + *v);
                    }
                }
            });
            sums.fill(f64::NEG_INFINITY);
            for tops in partial.chunks_exact(width) {
                sums.iter_mut().zip(tops).for_each(|(max, &top)| *max = max.max(top));
            }
            collective.max(sums).map_err(OtError::Collective)?;
            u.copy_from_slice(sums);
            // Sums of exponentials below those maxima.
            let (tops, samples) = (&*u, &*v);
            chunks::for_each(parallel, n_chunks, Strip::new(partial, width), &|chunk, sums: Strip<f64>| {
                let sums = sums.take();
                sums.fill(0.0);
                let v = &samples[chunk * rows_per_chunk..];
                for (row, &v) in shared[chunk * per_chunk..].chunks_exact(width).zip(v).take(rows_per_chunk) {
                    for ((sum, &score), &top) in sums.iter_mut().zip(row).zip(tops) {
                        *sum += (exponent(score) + v - top).exp();
                    }
                }
            });
            chunks::merge(isa, partial, sums);
            collective.sum(sums).map_err(OtError::Collective)?;
            u.iter_mut().zip(sums.iter()).for_each(|(top, &sum)| *top = -(*top + sum.ln()));
        }
        let (prototypes, sound) = (&*u, Sound::default());
        chunks::for_each(parallel, n_chunks, Strip::new(rows, per_chunk), &|_, rows: Strip<T>| {
            for row in rows.take().chunks_exact_mut(width) {
                let (top, sum) = log_sum(row, prototypes, exponent);
                sound.see(sum);
                for (score, &u) in row.iter_mut().zip(prototypes) {
                    *score = T::of((exponent(*score) + u - top).exp() / sum);
                }
            }
        });
        sound.check(self.n_iters)
    }
}

/// Whether all samples had a total that their codes could be divided by: the check that every assignment ends in.
#[derive(Default)]
struct Sound {
    broken: AtomicBool,
}

impl Sound {
    fn see(&self, total: f64) {
        if !(total.is_finite() && total > 0.0) {
            self.broken.store(true, Ordering::Relaxed);
        }
    }

    fn check(&self, n_iters: usize) -> Result<(), OtError> {
        if self.broken.load(Ordering::Relaxed) {
            Err(OtError::Overflow { what: "the sum of a sample's codes", n_iters })
        } else {
            Ok(())
        }
    }
}

/// One fused pass over some samples: scales each row to total 1 and adds it to the prototype sums, four rows at a
/// time. The scaled rows are not stored.
fn scale_and_add<T: Real>(isa: Isa, streamed: bool, rows: &[T], scaling: &[T], sums: &mut [T]) {
    simd::dot_then_axpy(isa, streamed, rows, scaling, sums, &mut |_, totals: &[T], factors: &mut [T]| {
        factors.iter_mut().zip(totals).for_each(|(factor, &total)| *factor = T::one() / total);
    });
}

/// Largest `x_k + u_k` of a sample, and the sum of exponentials below it.
fn log_sum<T: Real>(row: &[T], u: &[f64], exponent: impl Fn(T) -> f64) -> (f64, f64) {
    let top = row.iter().zip(u).fold(f64::NEG_INFINITY, |top, (&s, &u)| top.max(exponent(s) + u));
    let sum = row.iter().zip(u).map(|(&s, &u)| (exponent(s) + u - top).exp()).sum();
    (top, sum)
}

/// Sets a length, keeping what was allocated.
fn resize<T: Clone>(values: &mut Vec<T>, length: usize, value: T) {
    values.resize(length, value);
}

fn not_finite_error<T: Real>(rows: &[T], width: usize, finite_here: bool) -> OtError {
    let place = if finite_here { None } else { rows.iter().position(|x| !x.is_finite()) };
    match place {
        Some(at) => {
            OtError::NotFinite { what: "scores", index: vec![at / width, at % width], value: rows[at].wide() }
        }
        None => OtError::NotFinite { what: "scores of another shard", index: Vec::new(), value: f64::NAN },
    }
}
