//! Batch norm over several processes: what its sums need from outside.
//!
//! Where a batch is split over processes, each may normalise its part by that part's own statistics, or all by those of
//! the whole batch. For the latter a [`Context`](crate::Context) holds a [`SumAcross`], by which the crate merges
//!
//! - in training-mode forward passes the count, mean and variance of each channel. With `n`, `m` and `v` those of one
//!   process, `N = Σ n`, `M = Σ n·m / N` and `V = Σ n·(v + (m - M)²) / N`: differences from the common mean are what is
//!   squared, so nothing cancels where means are large beside deviations. This takes two sums, one after the other.
//! - in backward passes the sums `Σ g` and `Σ g·(y - M)`. The gradients of gamma and beta stay those of the process's own
//!   part, as all other parameters' do: whoever adds up gradients over processes adds up these as well.
//!
//! All of it is in f64. Without a [`SumAcross`] nothing of this happens, and results have the same bits as ever.

use crate::norm::{BatchStats, GradSums};
use crate::{Context, Error};

/// Adds numbers up over processes (or threads) that run the same network on parts of one batch.
///
/// Every one of them must call each pass of each unit, in the same order, from one thread. The sums must have the same
/// bits everywhere, or processes drift apart.
///
/// ```
/// use swav_kernels::SumAcross;
///
/// /// Two processes that hold the same numbers.
/// #[derive(Debug)]
/// struct Twins;
///
/// impl SumAcross for Twins {
///     fn sum(&self, values: &mut [f64]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///         values.iter_mut().for_each(|v| *v *= 2.0);
///         Ok(())
///     }
/// }
/// ```
pub trait SumAcross: std::fmt::Debug + Send + Sync {
    /// Replaces each value by its sum over all processes.
    ///
    /// # Errors
    /// Whatever keeps the processes from adding up; the pass that asked then ends with [`Error::SumAcross`].
    fn sum(&self, values: &mut [f64]) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

impl Context {
    fn sum(&self, values: &mut [f64]) -> Result<(), Error> {
        match self.sum_across() {
            Some(across) => across.sum(values).map_err(|source| Error::SumAcross { source }),
            None => Ok(()),
        }
    }

    /// The statistics of the whole batch, for those of this process's part.
    ///
    /// # Errors
    /// [`Error::SumAcross`], and [`Error::TooFewForBatchNorm`] if the whole batch has less than two values per channel.
    pub(crate) fn merge_stats(&self, stats: BatchStats) -> Result<BatchStats, Error> {
        if self.sum_across().is_none() {
            return Ok(stats);
        }
        let BatchStats { mut mean, mut var, count } = stats;
        let n = count as f64;
        let mut sums: Vec<f64> = mean.iter().map(|&m| f64::from(m) * n).chain([n]).collect();
        self.sum(&mut sums)?;
        let total = sums.pop().unwrap_or(n);
        if total < 2.0 {
            return Err(Error::TooFewForBatchNorm { got: total as usize });
        }
        let common: Vec<f64> = sums.iter().map(|sum| sum / total).collect();
        let own = mean.iter().zip(&var).map(|(&m, &v)| (f64::from(m), f64::from(v)));
        let mut squares: Vec<f64> =
            own.zip(&common).map(|((m, v), common)| n * (v + (m - common) * (m - common))).collect();
        self.sum(&mut squares)?;
        mean.iter_mut().zip(&common).for_each(|(m, common)| *m = *common as f32);
        var.iter_mut().zip(&squares).for_each(|(v, sum)| *v = (sum / total) as f32);
        Ok(BatchStats { mean, var, count: total as usize })
    }

    /// The sums over the whole batch, for those over this process's part.
    ///
    /// # Errors
    /// [`Error::SumAcross`].
    pub(crate) fn merge_sums(&self, sums: &GradSums) -> Result<GradSums, Error> {
        let mut merged = sums.clone();
        if self.sum_across().is_some() {
            let channels = sums.grad.len();
            let mut both = [&sums.grad[..], &sums.grad_centred[..]].concat();
            self.sum(&mut both)?;
            merged.grad_centred = both.split_off(channels);
            merged.grad = both;
        }
        Ok(merged)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Options;

    /// Another process with the same number of values.
    #[derive(Debug)]
    struct Other {
        count: f64,
        mean: f64,
        var: f64,
    }

    impl SumAcross for Other {
        fn sum(&self, values: &mut [f64]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            match values {
                [sum, count] => {
                    *sum += self.count * self.mean;
                    *count += self.count;
                }
                [square] => *square += self.count * (self.var + 0.25),
                _ => return Err("unexpected".into()),
            }
            Ok(())
        }
    }

    #[test]
    fn means_that_are_large_beside_deviations_cancel_nothing() {
        let mut ctx = Context::new(Options::default()).unwrap();
        let mean = 1_048_576.0f32;
        let other = Other { count: 4.0, mean: f64::from(mean) + 1.0, var: 0.5 };
        ctx.set_sum_across(Some(Arc::new(other)));
        let own = BatchStats { mean: vec![mean], var: vec![0.25], count: 4 };
        let merged = ctx.merge_stats(own).unwrap();
        // Both means lie 1/2 from the common one.
        assert_eq!(merged, BatchStats { mean: vec![mean + 0.5], var: vec![0.375 + 0.25], count: 8 });
    }
}
