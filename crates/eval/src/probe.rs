//! The linear probe on frozen features in memory: standardised columns, logistic regression, and a regulariser that is
//! chosen on a held-out part of the training images.

use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::logistic::{LogisticFit, LogisticRegression, Problem, check_labelled, column_means, targets_of};
use crate::subset::hold_out_by_class;
use crate::{EvalError, Predictions};

/// Rows of queries that are classified at a time.
const BLOCK: usize = 1024;

/// Settings of the linear probe.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct ProbeConfig {
    /// Regularisers to choose from, each above 0, see [`LogisticRegression`]. They are tried from the largest on, until the
    /// held-out loss has risen twice in a row. A single one is taken as it is. Default: 1e-1 to 1e-6.
    pub regularisers: Vec<f64>,
    /// Share of the images that the choice is made on, above 0 and below 1, of each class alike. Default: 0.2.
    pub held_out: f64,
    /// Images that take part in the choice, at most, at least 10; the rest joins afterwards. Default: 20,000.
    pub max_search_images: usize,
    /// Iterations of each fit, at most, at least 1. Default: 300.
    pub max_iters: usize,
    /// Seed of the draw of the held-out part. Default: 0.
    pub seed: u64,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            regularisers: vec![1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6],
            held_out: 0.2,
            max_search_images: 20_000,
            max_iters: 300,
            seed: 0,
        }
    }
}

impl ProbeConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// [`EvalError::Config`] names the first value that is out of range.
    pub fn check(&self) -> Result<LinearProbe, EvalError> {
        let refuse = |key, expected: &str, got: String| {
            Err(EvalError::Config { key, expected: expected.to_owned(), got })
        };
        let mut regularisers = self.regularisers.clone();
        if regularisers.is_empty() || regularisers.iter().any(|r| !(r.is_finite() && *r > 0.0)) {
            return refuse(
                "regularisers",
                "finite numbers above 0, at least one",
                format!("{regularisers:?}"),
            );
        }
        regularisers.sort_by(|a, b| b.total_cmp(a));
        if !(self.held_out > 0.0 && self.held_out < 1.0) {
            return refuse("held_out", "a share above 0 and below 1", self.held_out.to_string());
        }
        if self.max_search_images < 10 {
            return refuse("max_search_images", "at least 10", self.max_search_images.to_string());
        }
        if self.max_iters == 0 {
            return refuse("max_iters", "at least 1", "0".to_owned());
        }
        Ok(LinearProbe { config: Self { regularisers, ..self.clone() } })
    }
}

/// A linear probe that can be fitted, made by [`ProbeConfig::check`].
#[derive(Debug, Clone, PartialEq)]
pub struct LinearProbe {
    config: ProbeConfig,
}

/// A regulariser that was tried.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Trial {
    /// The regulariser.
    pub regulariser: f64,
    /// Mean cross-entropy of the held-out images, in nats.
    pub held_out_loss: f64,
    /// Share of the held-out images that were classified right.
    pub held_out_accuracy: f64,
}

/// A fitted probe.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProbeFit {
    /// What classifies.
    pub classifier: LinearClassifier,
    /// The regulariser that it was fitted with, see [`LogisticRegression`].
    pub regulariser: f64,
    /// What the choice was made of; empty where there was none.
    pub trials: Vec<Trial>,
    /// Mean cross-entropy of the training images, in nats.
    pub loss: f64,
    /// Iterations of the last fit.
    pub n_iters: usize,
    /// Whether the last fit reached its minimum.
    pub converged: bool,
}

impl LinearProbe {
    /// Fits the probe to `features` (n, d) and their `labels` (n).
    ///
    /// Columns are shifted and scaled to mean 0 and variance 1. The regulariser with the least held-out loss is taken; fitted to
    /// more images than it was chosen with, it becomes smaller in proportion, as the same prior weighs less among them.
    ///
    /// # Errors
    /// As [`LogisticRegression::fit`].
    pub fn fit(&self, features: ArrayView2<'_, f32>, labels: &[u32]) -> Result<ProbeFit, EvalError> {
        let classes = check_labelled(features, labels, "training features")?;
        let (mean, scale) = standardisation(features);
        let standard = standardised(features, &mean, &scale);
        let targets = targets_of(labels, &classes);
        let how = LogisticRegression { regulariser: 1.0, max_iters: self.config.max_iters, tolerance: 1e-5 };
        let (regulariser, trials) = self.choose(&standard, &targets, classes.len(), how)?;
        let fit = Problem::new(standard.view(), &targets, classes.len())
            .fit(&LogisticRegression { regulariser, ..how }, None)?;
        let classifier = LinearClassifier {
            classes,
            mean,
            scale,
            weights: fit.weights.mapv(|w| w as f32),
            bias: fit.bias.iter().map(|&b| b as f32).collect(),
        };
        let LogisticFit { loss, n_iters, converged, .. } = fit;
        Ok(ProbeFit { classifier, regulariser, trials, loss, n_iters, converged })
    }

    /// The regulariser for all images, and what was tried.
    fn choose(
        &self,
        features: &Array2<f32>,
        targets: &[usize],
        n_classes: usize,
        how: LogisticRegression,
    ) -> Result<(f64, Vec<Trial>), EvalError> {
        let candidates = &self.config.regularisers;
        let middle = candidates[candidates.len() / 2];
        if candidates.len() == 1 {
            return Ok((middle, Vec::new()));
        }
        let most = self.config.max_search_images;
        let (kept, held_out) = hold_out_by_class(targets, self.config.held_out, most, self.config.seed);
        if held_out.is_empty() {
            return Ok((middle, Vec::new()));
        }
        let part = |rows: &[usize]| -> (Array2<f32>, Vec<usize>) {
            (features.select(Axis(0), rows), rows.iter().map(|&row| targets[row]).collect())
        };
        let ((kept, kept_targets), (held_out, held_out_targets)) = (part(&kept), part(&held_out));
        let problem = Problem::new(kept.view(), &kept_targets, n_classes);
        let (mut trials, mut last): (Vec<Trial>, Option<LogisticFit>) = (Vec::new(), None);
        for &regulariser in candidates {
            let fit = problem.fit(&LogisticRegression { regulariser, ..how }, last.as_ref())?;
            trials.push(Trial { regulariser, ..judge(&fit, held_out.view(), &held_out_targets) });
            last = Some(fit);
            if let [.., a, b, c] = trials[..]
                && b.held_out_loss > a.held_out_loss
                && c.held_out_loss > b.held_out_loss
            {
                break;
            }
        }
        let best = trials.iter().min_by(|a, b| a.held_out_loss.total_cmp(&b.held_out_loss));
        let best = best.map_or(middle, |trial| trial.regulariser);
        Ok((best * kept.nrows() as f64 / features.nrows() as f64, trials))
    }
}

/// A linear map of features to classes.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearClassifier {
    classes: Vec<u32>,
    mean: Vec<f32>,
    scale: Vec<f32>,
    /// (classes, d)
    weights: Array2<f32>,
    bias: Vec<f32>,
}

impl LinearClassifier {
    /// The labels that it tells apart, rising.
    pub fn classes(&self) -> &[u32] {
        &self.classes
    }

    /// Classifies features (m, d).
    ///
    /// # Errors
    /// [`EvalError::Length`] if the dimensions differ, [`EvalError::Empty`], [`EvalError::NotFinite`].
    pub fn predict(&self, queries: ArrayView2<'_, f32>) -> Result<Predictions, EvalError> {
        crate::neighbours::check_values(queries, "queries")?;
        let expected = self.weights.ncols();
        if queries.ncols() != expected {
            let what = "columns in the queries, as in the training features";
            return Err(EvalError::Length { what, expected, got: queries.ncols() });
        }
        let n = queries.nrows();
        let blocks: Vec<Vec<Vec<u32>>> = (0..n.div_ceil(BLOCK))
            .into_par_iter()
            .map(|block| {
                let rows = queries.slice(s![block * BLOCK..n.min((block + 1) * BLOCK), ..]);
                let logits = standardised(rows, &self.mean, &self.scale).dot(&self.weights.t());
                let logits = logits + &Array1::from(self.bias.clone());
                rank(logits.view(), &self.classes)
            })
            .collect();
        Ok(Predictions { ranked: blocks.into_iter().flatten().collect() })
    }
}

/// For each row of logits the classes with the largest, at most 5, the largest first; of equals the smaller class.
pub(crate) fn rank(logits: ArrayView2<'_, f32>, classes: &[u32]) -> Vec<Vec<u32>> {
    let of_row = |row: ndarray::ArrayView1<'_, f32>| {
        let mut order: Vec<usize> = (0..classes.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        order.into_iter().take(crate::knn::N_RANKED_CLASSES).map(|class| classes[class]).collect()
    };
    logits.rows().into_iter().map(of_row).collect()
}

fn judge(fit: &LogisticFit, features: ArrayView2<'_, f32>, targets: &[usize]) -> Trial {
    let weights = fit.weights.mapv(|w| w as f32);
    let (mut loss, mut n_right) = (0.0, 0usize);
    for (first, rows) in features.axis_chunks_iter(Axis(0), BLOCK).enumerate() {
        let logits = rows.dot(&weights.t());
        for (row, &target) in logits.rows().into_iter().zip(&targets[first * BLOCK..]) {
            let logits: Vec<f64> = row.iter().zip(&fit.bias).map(|(&v, b)| f64::from(v) + b).collect();
            let most = logits.iter().fold(f64::NEG_INFINITY, |most, &v| most.max(v));
            loss += most + logits.iter().map(|v| (v - most).exp()).sum::<f64>().ln() - logits[target];
            n_right += usize::from(logits[target] >= most);
        }
    }
    let n = targets.len() as f64;
    Trial { regulariser: 0.0, held_out_loss: loss / n, held_out_accuracy: n_right as f64 / n }
}

/// Mean of each column and what it is multiplied by; a constant column by 1.
fn standardisation(features: ArrayView2<'_, f32>) -> (Vec<f32>, Vec<f32>) {
    let mean = column_means(features);
    let mut squares = vec![0.0f64; features.ncols()];
    for row in features.rows() {
        for ((square, &v), m) in squares.iter_mut().zip(row).zip(&mean) {
            *square += (f64::from(v) - m).powi(2);
        }
    }
    let scale = squares.iter().zip(&mean).map(|(square, mean)| {
        let deviation = (square / features.nrows() as f64).sqrt();
        // What varies by rounding alone is constant.
        if deviation > 1e-6 * mean.abs() && deviation > 1e-30 { (1.0 / deviation) as f32 } else { 1.0 }
    });
    (mean.iter().map(|&m| m as f32).collect(), scale.collect())
}

fn standardised(features: ArrayView2<'_, f32>, mean: &[f32], scale: &[f32]) -> Array2<f32> {
    let mut standard = features.as_standard_layout().into_owned();
    let values = standard.as_slice_mut().expect("standard layout is contiguous");
    values.par_chunks_mut(mean.len().max(1)).for_each(|row| {
        for ((v, mean), scale) in row.iter_mut().zip(mean).zip(scale) {
            *v = (*v - mean) * scale;
        }
    });
    standard
}
