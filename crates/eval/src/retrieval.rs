//! Retrieval: whether the most similar images are of the same class.

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use crate::neighbours::unit_rows;
use crate::similarity::Similarities;
use crate::{Bank, EvalError};

/// Queries that are compared with the whole bank at a time.
const QUERY_BLOCK: usize = 256;
/// Rows of the bank that they are compared with at a time.
const BANK_BLOCK: usize = 2048;

/// What each query has found. Queries whose class no image of the bank has are left out of all numbers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Retrieval {
    /// The k of `recall`, as they were asked for.
    pub k: Vec<usize>,
    /// For each k and query, 1 if one of the k most similar images is of its class, else 0; (k, queries).
    pub recall: Array2<f64>,
    /// For each query the average precision among the R most similar images, where R images are of its class (MAP@R of Musgrave
    /// et al. 2020): the sum of the precisions at the ranks of those that are of its class, divided by R.
    pub average_precision: Vec<f64>,
    /// The queries that were left out, rising.
    pub left_out: Vec<usize>,
}

impl Bank {
    /// Looks for `queries` (m, d) with their labels among the bank's images, whose labels are `labels`.
    ///
    /// Of equally similar images the one that comes first in the bank ranks first. Takes one product of both sets and a
    /// partial sort per query. Memory beyond the result: the similarities of 256 queries with the whole bank.
    ///
    /// # Errors
    /// What [`Bank::nearest`] says; [`EvalError::Length`] for labels that are too many or too few.
    pub fn retrieve(
        &self,
        labels: &[u32],
        queries: ArrayView2<'_, f32>,
        query_labels: &[u32],
        k: &[usize],
    ) -> Result<Retrieval, EvalError> {
        self.check_queries(queries)?;
        self.look_up(labels, unit_rows(queries).view(), query_labels, k, false)
    }

    /// Looks for each of the bank's images among all others.
    ///
    /// # Errors
    /// As [`retrieve`](Self::retrieve).
    pub fn retrieve_others(&self, labels: &[u32], k: &[usize]) -> Result<Retrieval, EvalError> {
        self.look_up(labels, self.unit(), labels, k, true)
    }

    fn look_up(
        &self,
        labels: &[u32],
        queries: ArrayView2<'_, f32>,
        query_labels: &[u32],
        k: &[usize],
        others: bool,
    ) -> Result<Retrieval, EvalError> {
        let lengths =
            [("labels", self.len(), labels), ("labels of the queries", queries.nrows(), query_labels)];
        for (what, expected, labels) in lengths {
            if labels.len() != expected {
                return Err(EvalError::Length { what, expected, got: labels.len() });
            }
        }
        if let Some(got) = k.iter().find(|&&k| k == 0) {
            let expected = "at least 1".to_owned();
            return Err(EvalError::Config { key: "k", expected, got: got.to_string() });
        }
        let products = Similarities::new();
        let mut found: Vec<Option<Found>> = Vec::with_capacity(queries.nrows());
        let mut similarities = vec![0.0; QUERY_BLOCK.min(queries.nrows()) * self.len()];
        for some in queries.axis_chunks_iter(Axis(0), QUERY_BLOCK) {
            let first = found.len();
            let lines = &mut similarities[..some.nrows() * self.len()];
            let of_block = Similarities::queries(some.to_owned());
            for (block, rows) in self.rows().chunks(BANK_BLOCK * queries.ncols()).enumerate() {
                let (from, n_rows) = (block * BANK_BLOCK, rows.len() / queries.ncols());
                products.each(&of_block, rows, |tile| {
                    for (line, part) in lines.chunks_exact_mut(self.len()).zip(tile.chunks_exact(n_rows)) {
                        line[from..from + n_rows].copy_from_slice(part);
                    }
                });
            }
            let each = lines.par_chunks_exact(self.len()).enumerate().map(|(row, line)| {
                let query = first + row;
                Found::new(line, labels, query_labels[query], others.then_some(query), k)
            });
            found.par_extend(each);
        }
        let left_out = (0..found.len()).filter(|&query| found[query].is_none()).collect();
        let found: Vec<Found> = found.into_iter().flatten().collect();
        Ok(Retrieval {
            k: k.to_vec(),
            recall: Array2::from_shape_fn((k.len(), found.len()), |(i, query)| {
                f64::from(u8::from(found[query].hits[i]))
            }),
            average_precision: found.into_iter().map(|found| found.average_precision).collect(),
            left_out,
        })
    }
}

/// What one query has found.
struct Found {
    hits: Vec<bool>,
    average_precision: f64,
}

impl Found {
    fn new(
        similarities: &[f32],
        labels: &[u32],
        label: u32,
        itself: Option<usize>,
        k: &[usize],
    ) -> Option<Self> {
        let mut candidates: Vec<u32> =
            (0..similarities.len() as u32).filter(|&index| itself != Some(index as usize)).collect();
        let n_same = candidates.iter().filter(|&&index| labels[index as usize] == label).count();
        if n_same == 0 {
            return None;
        }
        let n_ranked = k.iter().copied().max().unwrap_or(0).max(n_same).min(candidates.len());
        let by_rank =
            |a: &u32, b: &u32| similarities[*b as usize].total_cmp(&similarities[*a as usize]).then(a.cmp(b));
        if n_ranked < candidates.len() {
            candidates.select_nth_unstable_by(n_ranked, by_rank);
            candidates.truncate(n_ranked);
        }
        candidates.sort_unstable_by(by_rank);
        let is_same = |index: &u32| labels[*index as usize] == label;
        let first = candidates.iter().position(is_same);
        let (mut n_found, mut sum) = (0usize, 0.0);
        for (rank, index) in candidates.iter().take(n_same).enumerate() {
            if is_same(index) {
                n_found += 1;
                sum += n_found as f64 / (rank + 1) as f64;
            }
        }
        let hits = k.iter().map(|&k| first.is_some_and(|first| first < k)).collect();
        Some(Self { hits, average_precision: sum / n_same as f64 })
    }
}
