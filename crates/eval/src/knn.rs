//! Weighted k-nearest-neighbour classification of frozen features, the protocol of Wu et al. 2018
//! ("Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4), which the
//! self-supervised literature reports: every one of the k most similar training features votes for its class
//! with weight exp(similarity / temperature).

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::EvalError;
use crate::neighbours::{Bank, Neighbours};

/// How many classes a prediction ranks.
pub(crate) const N_RANKED_CLASSES: usize = 5;

/// Settings of the k-NN evaluation, as written in a configuration file.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct KnnConfig {
    /// Neighbours that vote, at least 1. Default: 20.
    pub k: usize,
    /// Temperature of the votes' weights, above 0. Default: 0.07.
    pub temperature: f64,
}

impl Default for KnnConfig {
    fn default() -> Self {
        Self { k: 20, temperature: 0.07 }
    }
}

impl KnnConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// [`EvalError::Config`] names the first value that is out of range.
    pub fn check(&self) -> Result<KnnSpec, EvalError> {
        if self.k == 0 {
            return Err(EvalError::Config { key: "k", expected: "at least 1".into(), got: "0".into() });
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(EvalError::Config {
                key: "temperature",
                expected: "a finite number above 0".into(),
                got: self.temperature.to_string(),
            });
        }
        Ok(KnnSpec { k: self.k, temperature: self.temperature })
    }
}

/// Checked settings of the k-NN evaluation, made by [`KnnConfig::check`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KnnSpec {
    k: usize,
    temperature: f64,
}

impl KnnSpec {
    /// Neighbours that vote, at least 1.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Temperature of the votes' weights, above 0.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }
}

/// Classifies features by the labels of their neighbours.
#[derive(Debug, Clone)]
pub struct KnnClassifier {
    spec: KnnSpec,
    bank: Bank,
    labels: Vec<u32>,
}

impl KnnClassifier {
    /// A classifier that remembers `features` (n, d) and their `labels` (n). Labels may be any numbers.
    ///
    /// # Errors
    /// [`EvalError::Length`] if there are not as many labels as features, and what [`Bank::new`] says.
    pub fn new(spec: KnnSpec, features: Array2<f32>, labels: Vec<u32>) -> Result<Self, EvalError> {
        if labels.len() != features.nrows() {
            return Err(EvalError::Length { what: "labels", expected: features.nrows(), got: labels.len() });
        }
        Ok(Self { spec, bank: Bank::new(features)?, labels })
    }

    /// Classifies new features (m, d).
    ///
    /// # Errors
    /// See [`Bank::nearest`].
    pub fn predict(&self, queries: ArrayView2<'_, f32>) -> Result<Predictions, EvalError> {
        Ok(self.vote(&self.bank.nearest(queries, self.spec.k)?))
    }

    /// Classifies every remembered feature by all the others: an evaluation of data that has no split of its own.
    ///
    /// # Errors
    /// See [`Bank::nearest_others`].
    pub fn leave_one_out(&self) -> Result<Predictions, EvalError> {
        Ok(self.vote(&self.bank.nearest_others(self.spec.k)?))
    }

    fn vote(&self, neighbours: &Neighbours) -> Predictions {
        let rows = (0..neighbours.indices.nrows()).into_par_iter();
        let ranked = rows.map(|row| {
            let similarities = neighbours.similarities.row(row);
            let best = f64::from(similarities[0]);
            // Measured from the best similarity, weights lie in (0, 1] for any temperature.
            let weight = |similarity: f32| ((f64::from(similarity) - best) / self.spec.temperature).exp();
            let mut votes: Vec<(u32, f64)> = Vec::new();
            for (&index, &similarity) in neighbours.indices.row(row).iter().zip(similarities) {
                let label = self.labels[index];
                match votes.iter_mut().find(|(other, _)| *other == label) {
                    Some((_, sum)) => *sum += weight(similarity),
                    None => votes.push((label, weight(similarity))),
                }
            }
            votes.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            votes.into_iter().take(N_RANKED_CLASSES).map(|(label, _)| label).collect()
        });
        Predictions { ranked: ranked.collect() }
    }
}

/// What a [`KnnClassifier`] says of each query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predictions {
    /// For each query the classes with the largest votes, at most 5, the largest first; of equal votes the
    /// smaller class number first. Classes that no neighbour has are absent.
    pub ranked: Vec<Vec<u32>>,
}

impl Predictions {
    /// Of each image whether its class is among the first `n_classes` (at most 5), 1 or 0: what
    /// [`Bootstrap::mean`](crate::Bootstrap::mean) makes an interval of.
    ///
    /// # Errors
    /// As [`accuracy`](Self::accuracy).
    pub fn hits(&self, labels: &[u32], n_classes: usize) -> Result<Vec<f64>, EvalError> {
        self.accuracy(labels)?;
        let hit = |(ranked, label): (&Vec<u32>, &u32)| {
            f64::from(u8::from(ranked.iter().take(n_classes).any(|class| class == label)))
        };
        Ok(self.ranked.iter().zip(labels).map(hit).collect())
    }

    /// Compares with the true labels.
    ///
    /// # Errors
    /// [`EvalError::Length`] if there are not as many labels as predictions, [`EvalError::Empty`] if there are none.
    pub fn accuracy(&self, labels: &[u32]) -> Result<Accuracy, EvalError> {
        if labels.len() != self.ranked.len() {
            return Err(EvalError::Length { what: "labels", expected: self.ranked.len(), got: labels.len() });
        }
        if labels.is_empty() {
            return Err(EvalError::Empty { what: "predictions" });
        }
        let share = |n_classes: usize| {
            let hits = self.ranked.iter().zip(labels);
            let hits =
                hits.filter(|(ranked, label)| ranked.iter().take(n_classes).any(|class| class == *label));
            hits.count() as f64 / labels.len() as f64
        };
        Ok(Accuracy { top1: share(1), top5: share(N_RANKED_CLASSES), n_images: labels.len() })
    }
}

/// Shares of images that were classified right.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Accuracy {
    /// Share of images whose class got the largest vote, 0 to 1.
    pub top1: f64,
    /// Share of images whose class is among the five largest votes, 0 to 1.
    pub top5: f64,
    /// How many images were classified.
    pub n_images: usize,
}
