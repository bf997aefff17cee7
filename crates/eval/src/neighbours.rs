//! Exact nearest neighbours by cosine similarity: blocked matrix products, each followed by a partial top-k, so
//! that neither the whole similarity matrix nor a full sort is ever made.

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use crate::EvalError;
use crate::similarity::Similarities;

/// Queries that the bank is read for once. Products want the bank's rows in another order, which takes as long as a few dozen queries;
/// with [`BANK_BLOCK`] it makes a tile of 8 MiB of similarities.
const QUERY_BLOCK: usize = 1024;
/// Rows of the bank that a query block is compared with at a time.
const BANK_BLOCK: usize = 2048;
/// Similarities that are compared with the worst of the best at a time.
const LANES: usize = 16;

/// The k nearest rows of a bank for every query, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbours {
    /// Positions in the bank, (queries, k).
    pub indices: Array2<usize>,
    /// Their cosine similarities, (queries, k), never rising along a row.
    pub similarities: Array2<f32>,
}

/// Features that neighbours are looked for in.
#[derive(Debug, Clone)]
pub struct Bank {
    unit: Array2<f32>,
}

impl Bank {
    /// A bank of features (n, d). They are divided by their norms; a row of zeros stays as it is, so that its
    /// similarity to everything is 0.
    ///
    /// # Errors
    /// [`EvalError::Empty`] without rows or columns, [`EvalError::NotFinite`] if a value is infinite or not a number.
    pub fn new(features: Array2<f32>) -> Result<Self, EvalError> {
        check_values(features.view(), "bank")?;
        let mut unit =
            if features.is_standard_layout() { features } else { features.as_standard_layout().into_owned() };
        let width = unit.ncols();
        let values = unit.as_slice_mut().expect("standard layout is contiguous");
        values.par_chunks_mut(width).for_each(scale_to_unit_length);
        Ok(Self { unit })
    }

    /// The rows, of unit length.
    pub(crate) fn unit(&self) -> ArrayView2<'_, f32> {
        self.unit.view()
    }

    /// The rows one after the other.
    pub(crate) fn rows(&self) -> &[f32] {
        self.unit.as_slice().expect("a bank is contiguous")
    }

    /// How many rows the bank has.
    pub fn len(&self) -> usize {
        self.unit.nrows()
    }

    /// Always false: a bank has at least one row.
    pub fn is_empty(&self) -> bool {
        self.unit.is_empty()
    }

    /// The `k` rows that are most similar to each row of `queries` (m, d), by the cosine of their angle.
    ///
    /// Of equally similar rows the one that comes first in the bank ranks first. Each similarity is computed
    /// in one fixed order, whatever the number of threads. Memory beyond the result: a tile of 8 MiB, and copies of
    /// 1024 queries and 2048 rows of the bank.
    ///
    /// # Errors
    /// [`EvalError::Config`] unless 1 <= `k` <= the bank's length, [`EvalError::Length`] if the dimensions
    /// differ, and what [`Bank::new`] says of the queries.
    pub fn nearest(&self, queries: ArrayView2<'_, f32>, k: usize) -> Result<Neighbours, EvalError> {
        self.check_queries(queries)?;
        self.check_k(k, self.len())?;
        Ok(self.blocks(queries, k, Queries::Others))
    }

    /// The `k` *other* rows that are most similar to each row of the bank: neighbours for a leave-one-out evaluation.
    ///
    /// # Errors
    /// [`EvalError::Config`] unless 1 <= `k` < the bank's length.
    pub fn nearest_others(&self, k: usize) -> Result<Neighbours, EvalError> {
        self.check_k(k, self.len() - 1)?;
        Ok(self.blocks(self.unit.view(), k, Queries::TheBankItself))
    }

    /// Whether queries can be compared with the bank.
    pub(crate) fn check_queries(&self, queries: ArrayView2<'_, f32>) -> Result<(), EvalError> {
        check_values(queries, "queries")?;
        if queries.ncols() == self.unit.ncols() {
            return Ok(());
        }
        Err(EvalError::Length {
            what: "columns in the queries, as in the bank",
            expected: self.unit.ncols(),
            got: queries.ncols(),
        })
    }

    fn check_k(&self, k: usize, choices: usize) -> Result<(), EvalError> {
        if (1..=choices).contains(&k) {
            return Ok(());
        }
        Err(EvalError::Config {
            key: "k",
            expected: format!("1 to {choices}, the number of features to choose neighbours from"),
            got: k.to_string(),
        })
    }

    fn blocks(&self, queries: ArrayView2<'_, f32>, k: usize, kind: Queries) -> Neighbours {
        let similarities = Similarities::new();
        let mut ranked = Vec::with_capacity(queries.nrows());
        for (block, rows) in queries.axis_chunks_iter(Axis(0), QUERY_BLOCK).enumerate() {
            let (rows, own) = match kind {
                Queries::Others => (unit_rows(rows), None),
                Queries::TheBankItself => (rows.to_owned(), Some(block * QUERY_BLOCK)),
            };
            ranked.extend(self.search(&similarities, rows, k, own));
        }
        Neighbours {
            indices: Array2::from_shape_fn((queries.nrows(), k), |(row, rank)| ranked[row][rank].1),
            similarities: Array2::from_shape_fn((queries.nrows(), k), |(row, rank)| ranked[row][rank].0),
        }
    }

    /// The best neighbours of one block of queries, of unit length. `own` is the bank's row that belongs to the first query, if
    /// queries must not find themselves.
    fn search(
        &self,
        similarities: &Similarities,
        queries: Array2<f32>,
        k: usize,
        own: Option<usize>,
    ) -> Vec<Vec<(f32, usize)>> {
        let mut best: Vec<Best> = (0..queries.nrows()).map(|_| Best::new(k)).collect();
        let queries = Similarities::queries(queries);
        for (block, rows) in self.rows().chunks(BANK_BLOCK * self.unit.ncols()).enumerate() {
            let (first, n_rows) = (block * BANK_BLOCK, rows.len() / self.unit.ncols());
            similarities.each(&queries, rows, |tile| {
                let lines = best.par_iter_mut().zip(tile.par_chunks_exact(n_rows)).enumerate();
                lines.with_min_len(LANES).for_each(|(query, (best, line))| {
                    best.look_through(line, first, own.map(|own| own + query));
                });
            });
        }
        best.into_iter().map(|best| best.ranked).collect()
    }
}

/// What neighbours are looked for of.
#[derive(Clone, Copy)]
enum Queries {
    /// Features as they came.
    Others,
    /// The bank's own rows, of unit length; none may find itself.
    TheBankItself,
}

/// Looks for values that no similarity can be made of.
pub(crate) fn check_values(features: ArrayView2<'_, f32>, what: &'static str) -> Result<(), EvalError> {
    if features.is_empty() {
        return Err(EvalError::Empty { what });
    }
    match features.indexed_iter().find(|(_, value)| !value.is_finite()) {
        Some(((row, _), &got)) => Err(EvalError::NotFinite { what, row, got }),
        None => Ok(()),
    }
}

/// A copy in which each row has unit length.
pub(crate) fn unit_rows(features: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut unit = features.as_standard_layout().into_owned();
    for mut row in unit.rows_mut() {
        scale_to_unit_length(row.as_slice_mut().expect("standard layout is contiguous"));
    }
    unit
}

/// Divides by the Euclidean norm; a row of zeros stays.
fn scale_to_unit_length(row: &mut [f32]) {
    // In f64 no square of an f32 overflows or vanishes.
    let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
}

/// The k best of a stream of candidates that comes in rising order of index.
struct Best {
    /// Best first; of equals the earlier.
    ranked: Vec<(f32, usize)>,
    k: usize,
    /// What a candidate has to exceed to be among the k best.
    worst: f32,
}

impl Best {
    fn new(k: usize) -> Self {
        Self { ranked: Vec::with_capacity(k + 1), k, worst: f32::NEG_INFINITY }
    }

    /// Takes in similarities with the rows from `first` on, without row `own`.
    fn look_through(&mut self, similarities: &[f32], first: usize, own: Option<usize>) {
        for (part, some) in similarities.chunks(LANES).enumerate() {
            // All are compared at once: few parts have one that counts.
            if !some.iter().fold(false, |any, &similarity| any | (similarity > self.worst)) {
                continue;
            }
            for (offset, &similarity) in some.iter().enumerate() {
                let index = first + part * LANES + offset;
                if similarity > self.worst && own != Some(index) {
                    self.insert(similarity, index);
                }
            }
        }
    }

    fn insert(&mut self, similarity: f32, index: usize) {
        let rank = self.ranked.partition_point(|&(other, _)| other >= similarity);
        self.ranked.insert(rank, (similarity, index));
        self.ranked.truncate(self.k);
        if self.ranked.len() == self.k {
            self.worst = self.ranked[self.k - 1].0;
        }
    }
}
