//! How the rows of a matrix are spread over threads so that the bits of a result depend on the shape alone.
//!
//! Rows are cut into chunks whose size follows from the number of rows, never from the number of threads. Each
//! chunk sums into its own vector; the vectors are then added in the order of the chunks, in double precision.
//! Chunks are handed out by recursive `rayon::join`, which allocates nothing.

use crate::real::Real;
use crate::simd::{self, Isa, ROWS};

/// Chunks at most: bounds the memory of the partial sums, and still balances the load of tens of threads.
pub(crate) const MAX_CHUNKS: usize = 64;
/// Rows a chunk has at least.
const MIN_ROWS: usize = 8 * ROWS;
/// Below this many elements a pass takes less time than waking a thread.
const SEQUENTIAL_BELOW: usize = 1 << 14;
/// Columns that one task adds up when partial sums are merged.
const MERGE_COLUMNS: usize = 256;

/// Memory that is cut along with the chunks.
pub(crate) trait Split: Send + Sized {
    /// The parts of the first `n_chunks` chunks, and the rest.
    fn split(self, n_chunks: usize) -> (Self, Self);
}

/// A slice of which each chunk owns `per_chunk` elements (the last chunk what is left).
pub(crate) struct Strip<'a, T> {
    data: &'a mut [T],
    per_chunk: usize,
}

impl<'a, T> Strip<'a, T> {
    pub(crate) fn new(data: &'a mut [T], per_chunk: usize) -> Self {
        Self { data, per_chunk }
    }

    /// The elements of a chunk that is alone.
    pub(crate) fn take(self) -> &'a mut [T] {
        self.data
    }
}

impl<T: Send> Split for Strip<'_, T> {
    fn split(self, n_chunks: usize) -> (Self, Self) {
        let at = (n_chunks * self.per_chunk).min(self.data.len());
        let (left, right) = self.data.split_at_mut(at);
        (Self::new(left, self.per_chunk), Self::new(right, self.per_chunk))
    }
}

macro_rules! split_tuple {
    ($($name:ident $index:tt),*) => {
        impl<$($name: Split),*> Split for ($($name,)*) {
            fn split(self, n_chunks: usize) -> (Self, Self) {
                let parts = ($(self.$index.split(n_chunks),)*);
                (($(parts.$index.0,)*), ($(parts.$index.1,)*))
            }
        }
    };
}
split_tuple!(A 0, B 1);
split_tuple!(A 0, B 1, C 2);
split_tuple!(A 0, B 1, C 2, D 3);

/// Rows in each chunk (the last has the rest).
pub(crate) fn rows_per_chunk(n_rows: usize) -> usize {
    n_rows.div_ceil(MAX_CHUNKS).max(MIN_ROWS).next_multiple_of(ROWS)
}

/// Number of chunks of `n_rows` rows.
pub(crate) fn count(n_rows: usize) -> usize {
    n_rows.div_ceil(rows_per_chunk(n_rows))
}

/// Whether a pass over so many elements is worth several threads.
pub(crate) fn parallel(n_elements: usize) -> bool {
    n_elements >= SEQUENTIAL_BELOW && rayon::current_num_threads() > 1
}

/// Does `work` on a thread of the pool: each pass that it makes then starts without a thread outside the pool
/// going to sleep and being woken again.
pub(crate) fn on_pool<R: Send>(parallel: bool, work: impl FnOnce() -> R + Send) -> R {
    if parallel && rayon::current_thread_index().is_none() { rayon::join(work, || ()).0 } else { work() }
}

/// Calls `work(chunk, its memory)` once for each of `n_chunks` chunks.
pub(crate) fn for_each<S: Split>(
    parallel: bool,
    n_chunks: usize,
    memory: S,
    work: &(impl Fn(usize, S) + Sync),
) {
    fn run<S: Split>(parallel: bool, first: usize, n: usize, memory: S, work: &(impl Fn(usize, S) + Sync)) {
        if n == 1 {
            work(first, memory);
            return;
        }
        let half = n / 2;
        let (left, right) = memory.split(half);
        if parallel {
            rayon::join(
                || run(true, first, half, left, work),
                || run(true, first + half, n - half, right, work),
            );
        } else {
            run(false, first, half, left, work);
            run(false, first + half, n - half, right, work);
        }
    }
    if n_chunks > 0 {
        run(parallel, 0, n_chunks, memory, work);
    }
}

/// `sums[j] = Σ_c partial[c][j]` in the order of the chunks.
pub(crate) fn merge<T: Real>(isa: Isa, partial: &[T], sums: &mut [f64]) {
    let width = sums.len();
    let threads = parallel(partial.len() / 2);
    for_each(threads, width.div_ceil(MERGE_COLUMNS), Strip::new(sums, MERGE_COLUMNS), &|block,
                                                                                        memory: Strip<
        f64,
    >| {
        let sums = memory.take();
        sums.fill(0.0);
        let from = block * MERGE_COLUMNS;
        for row in partial.chunks_exact(width) {
            simd::add_wide(isa, &row[from..], sums);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_exactly_one_chunk() {
        for n in [1, 3, 4, 15, 16, 17, 100, 1023, 1025, 5000] {
            let mut seen = vec![0u32; n];
            let per = rows_per_chunk(n);
            for_each(true, count(n), Strip::new(&mut seen, per), &|chunk, memory: Strip<u32>| {
                let rows = memory.take();
                assert_eq!(rows.len(), per.min(n - chunk * per));
                rows.iter_mut().for_each(|row| *row += chunk as u32 + 1);
            });
            assert!(seen.iter().enumerate().all(|(i, &chunk)| chunk as usize == i / per + 1));
            assert!(count(n) <= MAX_CHUNKS);
        }
    }

    #[test]
    fn merged_sums_are_sums_over_chunks() {
        let partial: Vec<f32> = (0..3 * 2500).map(|i| (i % 7) as f32).collect();
        let mut sums = vec![f64::NAN; 2500];
        merge(Isa::detect(), &partial, &mut sums);
        for (j, &sum) in sums.iter().enumerate() {
            assert_eq!(
                sum,
                f64::from(partial[j]) + f64::from(partial[2500 + j]) + f64::from(partial[5000 + j])
            );
        }
    }
}
