//! How well a division of images into clusters agrees with their classes, and how even it is.

use std::collections::BTreeMap;

use ndarray::Array2;

use crate::EvalError;
use crate::assignment::best_matching;

/// How many images of each class each cluster has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contingency {
    /// The clusters that have images, rising: the rows.
    pub clusters: Vec<u32>,
    /// The classes that have images, rising: the columns.
    pub classes: Vec<u32>,
    /// The numbers of images, (clusters, classes).
    pub counts: Array2<u64>,
}

/// Agreement of clusters with classes. All numbers but `ari` lie between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Agreement {
    /// Normalised mutual information, by the mean of both entropies; 1 if both have one group only.
    pub nmi: f64,
    /// Adjusted Rand index: 1 for equal divisions, 0 on average for random ones (Hubert and Arabie 1985).
    pub ari: f64,
    /// Share of images in the most frequent class of their cluster. It grows with the number of clusters.
    pub purity: f64,
    /// Share of images in their cluster's class, where clusters and classes are matched one to one in the best way; images of
    /// clusters without a class count as wrong.
    pub matched_accuracy: f64,
}

/// How many images the clusters have.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ClusterSizes {
    /// Clusters with at least one image.
    pub n_used: usize,
    /// Clusters without.
    pub n_empty: usize,
    /// Images of the largest cluster.
    pub largest: usize,
    /// Images of the median among the used clusters.
    pub median: usize,
    /// exp of the entropy of the sizes: how many clusters of equal size are as even, 1 to the number of clusters.
    pub perplexity: f64,
}

impl Contingency {
    /// Counts images by their clusters and classes.
    ///
    /// # Errors
    /// [`EvalError::Length`] if the lengths differ, [`EvalError::Empty`] without images.
    pub fn new(clusters: &[u32], classes: &[u32]) -> Result<Self, EvalError> {
        if clusters.len() != classes.len() {
            return Err(EvalError::Length { what: "classes", expected: clusters.len(), got: classes.len() });
        }
        if clusters.is_empty() {
            return Err(EvalError::Empty { what: "clusters" });
        }
        let distinct = |values: &[u32]| {
            let mut distinct = values.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            distinct
        };
        let (rows, columns) = (distinct(clusters), distinct(classes));
        let mut counts = Array2::zeros((rows.len(), columns.len()));
        let place = |among: &[u32], value: &u32| among.binary_search(value).expect("every value is listed");
        for (cluster, class) in clusters.iter().zip(classes) {
            counts[[place(&rows, cluster), place(&columns, class)]] += 1;
        }
        Ok(Self { clusters: rows, classes: columns, counts })
    }

    /// All measures of agreement.
    pub fn agreement(&self) -> Agreement {
        agreement(&self.counts)
    }
}

/// As [`Contingency::agreement`], of counts that may have rows and columns of zeros.
pub(crate) fn agreement(counts: &Array2<u64>) -> Agreement {
    let n = counts.sum() as f64;
    let of_rows: Vec<f64> = counts.rows().into_iter().map(|row| row.sum() as f64).collect();
    let of_columns: Vec<f64> = counts.columns().into_iter().map(|column| column.sum() as f64).collect();
    let (h_rows, h_columns) = (entropy(&of_rows, n), entropy(&of_columns, n));
    let mut mutual = 0.0;
    for ((i, j), &count) in counts.indexed_iter().filter(|(_, count)| **count > 0) {
        let count = count as f64;
        mutual += count / n * ((count / of_rows[i]) * (n / of_columns[j])).ln();
    }
    let nmi = if h_rows + h_columns > 0.0 { (mutual / (0.5 * (h_rows + h_columns))).max(0.0) } else { 1.0 };
    let majority: u64 = counts.rows().into_iter().map(|row| row.iter().copied().max().unwrap_or(0)).sum();
    let values = counts.mapv(|count| count as f64);
    // Counts are finite and there is at least one.
    let pairs = best_matching(values.view()).unwrap_or_default();
    let matched: f64 = pairs.iter().map(|&pair| values[pair]).sum();
    Agreement {
        nmi,
        ari: adjusted_rand(counts, &of_rows, &of_columns, n),
        purity: majority as f64 / n,
        matched_accuracy: matched / n,
    }
}

/// From the numbers of pairs of images that are together in both, in one, and in none.
fn adjusted_rand(counts: &Array2<u64>, of_rows: &[f64], of_columns: &[f64], n: f64) -> f64 {
    let pairs = |count: f64| count * (count - 1.0) / 2.0;
    let together: f64 = counts.iter().map(|&count| pairs(count as f64)).sum();
    let in_rows: f64 = of_rows.iter().map(|&count| pairs(count)).sum();
    let in_columns: f64 = of_columns.iter().map(|&count| pairs(count)).sum();
    let expected = if n > 1.0 { in_rows * in_columns / pairs(n) } else { 0.0 };
    let most = 0.5 * (in_rows + in_columns);
    if most == expected { 1.0 } else { (together - expected) / (most - expected) }
}

fn entropy(counts: &[f64], n: f64) -> f64 {
    -counts.iter().filter(|&&count| count > 0.0).map(|count| count / n * (count / n).ln()).sum::<f64>()
}

impl ClusterSizes {
    /// Sizes of `n_clusters` clusters, numbered from 0, of which each image has one.
    ///
    /// # Errors
    /// [`EvalError::Empty`] without images; [`EvalError::Config`] if a number is not below `n_clusters`.
    pub fn new(clusters: &[u32], n_clusters: usize) -> Result<Self, EvalError> {
        if clusters.is_empty() {
            return Err(EvalError::Empty { what: "clusters" });
        }
        let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
        for &cluster in clusters {
            if cluster as usize >= n_clusters {
                let expected = format!("a number below {n_clusters}");
                return Err(EvalError::Config { key: "cluster", expected, got: cluster.to_string() });
            }
            *sizes.entry(cluster).or_default() += 1;
        }
        let mut sizes: Vec<usize> = sizes.into_values().collect();
        sizes.sort_unstable();
        let shares: Vec<f64> = sizes.iter().map(|&size| size as f64).collect();
        Ok(Self {
            n_used: sizes.len(),
            n_empty: n_clusters - sizes.len(),
            largest: sizes[sizes.len() - 1],
            median: sizes[sizes.len() / 2],
            perplexity: entropy(&shares, clusters.len() as f64).exp(),
        })
    }
}
