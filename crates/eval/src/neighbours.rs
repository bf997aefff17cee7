//! Exact nearest neighbours by cosine similarity: blocked matrix products, each followed by a partial top-k, so
//! that neither the whole similarity matrix nor a full sort is ever made. Where the machine multiplies bytes faster, the
//! products give way to bounds made of bytes, and only pairs whose bound is good enough are multiplied.

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use swav_kernels::bounds::{GROUP, RowBounds, SIDE_BY_SIDE};

use crate::EvalError;
use crate::similarity::Similarities;

/// Queries that the bank is read for once. Products want the bank's rows in another order, which takes as long as a few dozen queries;
/// with [`BANK_BLOCK`] it makes a tile of 8 MiB of similarities.
const QUERY_BLOCK: usize = 1024;
/// Rows of the bank that a query block is compared with at a time.
const BANK_BLOCK: usize = 2048;
/// Similarities that are compared with the worst of the best at a time.
const LANES: usize = 16;
/// Queries from which on it pays to bound similarities: the bank's rows are rounded once.
const MANY: usize = 64;
/// Rows of so many, beyond the first [`ALLOWANCE`], that may be multiplied one by one for what their bounds say: where it is more,
/// whole products are faster.
const ONE_IN: usize = 32;
/// Rows that are multiplied one by one in any case, mostly while the first neighbours are found.
const ALLOWANCE: usize = 1000;

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
    /// 1024 queries and 2048 rows of the bank; where bounds are faster than products, a quarter of the bank, too.
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
        let ways = Ways::new(self, queries.nrows());
        let mut ranked = Vec::with_capacity(queries.nrows());
        for (block, rows) in queries.axis_chunks_iter(Axis(0), QUERY_BLOCK).enumerate() {
            let (rows, own) = match kind {
                Queries::Others => (unit_rows(rows), None),
                Queries::TheBankItself => (rows.to_owned(), Some(block * QUERY_BLOCK)),
            };
            ranked.extend(self.search(&ways, rows, k, own));
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
        ways: &Ways,
        queries: Array2<f32>,
        k: usize,
        own: Option<usize>,
    ) -> Vec<Vec<(f32, usize)>> {
        let mut best: Vec<Best> = (0..queries.nrows()).map(|_| Best::new(k)).collect();
        let queries = Similarities::queries(queries);
        let bytes = ways.bounds.as_ref().map(|bounds| (bounds, bounds.queries(&queries.words)));
        for (block, rows) in self.rows().chunks(BANK_BLOCK * self.unit.ncols()).enumerate() {
            let (first, n_rows) = (block * BANK_BLOCK, rows.len() / self.unit.ncols());
            let n_multiplied: usize = best.par_iter().map(|best| best.n_multiplied).sum();
            match &bytes {
                Some((bounds, bytes)) if n_multiplied <= best.len() * (ALLOWANCE + first / ONE_IN) => {
                    let lines: Vec<&[f32]> = queries.words.chunks_exact(self.unit.ncols()).collect();
                    let buffer = || vec![0.0; GROUP * n_rows];
                    let groups = best.par_chunks_mut(GROUP).zip(lines.par_chunks(GROUP)).enumerate();
                    groups.for_each_init(buffer, |buffer, (group, (best, queries))| {
                        bounds.bounds(bytes, group, first..first + n_rows, buffer);
                        let own = own.map(|own| own + group * GROUP);
                        let of_queries = best.iter_mut().zip(queries).zip(buffer.chunks_exact(n_rows));
                        for (offset, ((best, query), line)) in of_queries.enumerate() {
                            let products = |rows: &[usize]| bounds.products(query, rows);
                            best.look_closer(line, first, own.map(|own| own + offset), products);
                        }
                    });
                }
                _ => ways.similarities.each(&queries, rows, |tile| {
                    let lines = best.par_iter_mut().zip(tile.par_chunks_exact(n_rows)).enumerate();
                    lines.with_min_len(LANES).for_each(|(query, (best, line))| {
                        best.look_through(line, first, own.map(|own| own + query));
                    });
                }),
            }
        }
        best.into_iter().map(|best| best.ranked).collect()
    }
}

/// How similarities are found; either way with the same bits.
struct Ways<'a> {
    similarities: Similarities,
    /// Bounds that tell which rows are worth multiplying, where they are faster.
    bounds: Option<RowBounds<'a>>,
}

impl<'a> Ways<'a> {
    fn new(bank: &'a Bank, n_queries: usize) -> Self {
        let similarities = Similarities::new();
        let bounds =
            (n_queries >= MANY).then(|| similarities.bounds(bank.rows(), bank.unit.ncols())).flatten();
        Self { similarities, bounds }
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
    let bad =
        |row| features.row(row).iter().copied().find(|value| !value.is_finite()).map(|value| (row, value));
    match (0..features.nrows()).into_par_iter().find_map_first(bad) {
        Some((row, got)) => Err(EvalError::NotFinite { what, row, got }),
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
    /// Candidates that were multiplied because their bound exceeded it.
    n_multiplied: usize,
}

impl Best {
    fn new(k: usize) -> Self {
        Self { ranked: Vec::with_capacity(k + 1), k, worst: f32::NEG_INFINITY, n_multiplied: 0 }
    }

    /// Takes in similarities with the rows from `first` on, without row `own`.
    fn look_through(&mut self, similarities: &[f32], first: usize, own: Option<usize>) {
        self.each_above(similarities, first, own, Self::insert);
    }

    /// Takes in the rows from `first` on, without row `own`, by bounds of their similarities; `products` gives the
    /// similarities of up to [`SIDE_BY_SIDE`] rows.
    fn look_closer(
        &mut self,
        bounds: &[f32],
        first: usize,
        own: Option<usize>,
        products: impl Fn(&[usize]) -> [f32; SIDE_BY_SIDE],
    ) {
        let mut waiting = Vec::with_capacity(SIDE_BY_SIDE);
        let take_in = |best: &mut Self, waiting: &mut Vec<usize>| {
            for (&index, similarity) in waiting.iter().zip(products(waiting)) {
                if similarity > best.worst {
                    best.insert(similarity, index);
                }
            }
            best.n_multiplied += waiting.len();
            waiting.clear();
        };
        self.each_above(bounds, first, own, |best, _, index| {
            waiting.push(index);
            if waiting.len() == SIDE_BY_SIDE {
                take_in(best, &mut waiting);
            }
        });
        if !waiting.is_empty() {
            take_in(self, &mut waiting);
        }
    }

    /// Calls `act` with the values above the worst at that time, and the rows that they are of: those from `first` on, without
    /// row `own`.
    fn each_above(
        &mut self,
        values: &[f32],
        first: usize,
        own: Option<usize>,
        mut act: impl FnMut(&mut Self, f32, usize),
    ) {
        for (part, some) in values.chunks(LANES).enumerate() {
            // All are compared at once: few parts have one that counts.
            if !some.iter().fold(false, |any, &value| any | (value > self.worst)) {
                continue;
            }
            for (offset, &value) in some.iter().enumerate() {
                let index = first + part * LANES + offset;
                if value > self.worst && own != Some(index) {
                    act(self, value, index);
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

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Neighbours without bounds.
    fn by_products(
        bank: &Bank,
        queries: Array2<f32>,
        k: usize,
        own: Option<usize>,
    ) -> Vec<Vec<(f32, usize)>> {
        let ways = Ways { similarities: Similarities::new(), bounds: None };
        bank.search(&ways, unit_rows(queries.view()), k, own)
    }

    #[test]
    fn bounds_leave_no_bit_of_the_neighbours_changed() {
        let rng = &mut ChaCha8Rng::seed_from_u64(11);
        let (n_rows, width) = (2 * BANK_BLOCK + 77, 37);
        // All rows alike make bounds give up; the others differ by what rounding to bytes takes away, and by more.
        for spread in [0.0, 1e-3, 0.1, 10.0] {
            let mut features = Array2::from_shape_simple_fn((n_rows, width), || {
                1.0 + spread * rng.random_range(-1.0f32..1.0)
            });
            let copy = features.row(5).to_owned();
            features.row_mut(n_rows - 3).assign(&copy);
            let bank = Bank::new(features.clone()).unwrap();
            let queries = features.slice(ndarray::s![..200, ..]).mapv(|value| value + 0.01 * spread);
            for (own, queries) in
                [(None, queries), (Some(0), features.slice(ndarray::s![..200, ..]).to_owned())]
            {
                let ways = Ways::new(&bank, queries.nrows());
                let found = bank.search(&ways, unit_rows(queries.view()), 20, own);
                assert_eq!(found, by_products(&bank, queries, 20, own), "spread {spread}, own {own:?}");
            }
        }
    }
}
