//! Confidence intervals by the bootstrap (Efron 1979): the images are drawn anew, with replacement, and the share of draws
//! says how far the number could have been elsewhere. They tell of the choice of test images, not of other seeds of training.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::EvalError;

/// A number with its 95% confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Estimate {
    /// The number itself, from all images.
    pub value: f64,
    /// The lower end: the 2.5th percentile of the draws, or 1.96 standard errors below.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// How often to draw, and from which seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// Draws, at least 1. Default: 1000.
    pub n_draws: usize,
    /// Their seed. Default: 0.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { n_draws: 1000, seed: 0 }
    }
}

impl Bootstrap {
    /// The range of `statistic`, which is given the numbers of `n` images drawn from `n` with replacement, and whose value
    /// for each image once is `value`.
    ///
    /// Draw i has a random stream of its own, so the result has the same bits for any number of threads. Draws for which the statistic
    /// is not a number are left out.
    ///
    /// # Errors
    /// [`EvalError::Empty`] without images; [`EvalError::Config`] without draws.
    pub fn estimate(
        &self,
        value: f64,
        n: usize,
        statistic: impl Fn(&[u32]) -> f64 + Sync,
    ) -> Result<Estimate, EvalError> {
        let mut draws = self.draws(n, |rng| {
            let drawn: Vec<u32> = (0..n).map(|_| rng.random_range(0..n as u32)).collect();
            statistic(&drawn)
        })?;
        draws.sort_by(f64::total_cmp);
        let (low, high) = (percentile(&draws, 0.025), percentile(&draws, 0.975));
        Ok(Estimate { value, low: low.unwrap_or(value), high: high.unwrap_or(value) })
    }

    /// As [`estimate`](Self::estimate) for a statistic that takes an image drawn twice for agreement, as measures of clusters do: the
    /// bootstrap proper would shift those upwards, value and interval apart.
    ///
    /// Draws are halves of the images without replacement. Their standard deviation is the standard error of all images (Politis and
    /// Romano 1994: a half has twice the variance, of which drawing without replacement leaves a half), so the range is
    /// `value` -+ 1.96 of it.
    ///
    /// # Errors
    /// As [`estimate`](Self::estimate).
    pub fn estimate_by_halves(
        &self,
        value: f64,
        n: usize,
        statistic: impl Fn(&[u32]) -> f64 + Sync,
    ) -> Result<Estimate, EvalError> {
        let draws = self.draws(n, |rng| {
            let half = rand::seq::index::sample(rng, n, n.div_ceil(2));
            let drawn: Vec<u32> = half.iter().map(|i| i as u32).collect();
            statistic(&drawn)
        })?;
        let count = draws.len().max(1) as f64;
        let mean = draws.iter().sum::<f64>() / count;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let width = 1.96 * variance.sqrt();
        Ok(Estimate { value, low: value - width, high: value + width })
    }

    /// The values of all draws that are numbers, in the order of the draws, each with a random stream of its own.
    fn draws(&self, n: usize, draw: impl Fn(&mut ChaCha8Rng) -> f64 + Sync) -> Result<Vec<f64>, EvalError> {
        if n == 0 {
            return Err(EvalError::Empty { what: "test images" });
        }
        if self.n_draws == 0 {
            return Err(EvalError::Config { key: "n_draws", expected: "at least 1".into(), got: "0".into() });
        }
        let one = |number: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(number as u64);
            draw(&mut rng)
        };
        Ok((0..self.n_draws).into_par_iter().map(one).filter(|value| !value.is_nan()).collect())
    }

    /// The mean of one value per image, such as 1 for right and 0 for wrong.
    ///
    /// # Errors
    /// As [`estimate`](Self::estimate).
    pub fn mean(&self, values: &[f64]) -> Result<Estimate, EvalError> {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        self.estimate(mean, n, |drawn| drawn.iter().map(|&i| values[i as usize]).sum::<f64>() / n as f64)
    }
}

/// A percentile of sorted values, between two of them in proportion.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = share * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (at - below as f64) * (sorted[above] - sorted[below]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_as_wide_as_the_normal_approximation_says() {
        // 800 of 1000 right: a standard error of 0.01265.
        let hits: Vec<f64> = (0..1000).map(|i| f64::from(u8::from(i % 5 != 0))).collect();
        let estimate = Bootstrap::default().mean(&hits).unwrap();
        assert_eq!(estimate.value, 0.8);
        let width = 1.96 * (0.8 * 0.2 / 1000.0f64).sqrt();
        assert!((estimate.low - (0.8 - width)).abs() < 0.004, "{estimate:?}");
        assert!((estimate.high - (0.8 + width)).abs() < 0.004, "{estimate:?}");
        assert_eq!(estimate, Bootstrap::default().mean(&hits).unwrap());
        assert_ne!(estimate, Bootstrap { seed: 1, ..Bootstrap::default() }.mean(&hits).unwrap());
    }

    #[test]
    fn halves_give_the_width_of_the_bootstrap_where_both_are_right() {
        let hits: Vec<f64> = (0..1000).map(|i| f64::from(u8::from(i % 5 != 0))).collect();
        let mean = |drawn: &[u32]| drawn.iter().map(|&i| hits[i as usize]).sum::<f64>() / drawn.len() as f64;
        let estimate = Bootstrap::default().estimate_by_halves(0.8, 1000, mean).unwrap();
        let width = 1.96 * (0.8 * 0.2 / 1000.0f64).sqrt();
        assert!((estimate.low - (0.8 - width)).abs() < 0.004, "{estimate:?}");
        assert!((estimate.high - (0.8 + width)).abs() < 0.004, "{estimate:?}");
    }

    #[test]
    fn percentiles_lie_between_values_in_proportion() {
        let sorted: Vec<f64> = (0..5).map(f64::from).collect();
        assert_eq!((percentile(&sorted, 0.625), percentile(&sorted, 1.0)), (Some(2.5), Some(4.0)));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn nothing_to_draw_from_is_refused() {
        assert!(matches!(Bootstrap::default().mean(&[]), Err(EvalError::Empty { .. })));
        assert!(matches!(
            Bootstrap { n_draws: 0, seed: 0 }.mean(&[1.0]),
            Err(EvalError::Config { key: "n_draws", .. })
        ));
    }
}
