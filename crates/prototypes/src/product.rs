//! Matrix products in parallel tiles.
//!
//! Why not `ndarray`'s `dot` alone: it runs on one thread. Here the result is cut into tiles whose size
//! depends on nothing but the shapes; each tile is one single-threaded product over the whole inner
//! dimension, so its bits are the same for any number of threads.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

/// Rows of a tile: enough that packing the right-hand side costs little.
const TILE_ROWS: usize = 128;
/// Columns of a tile: a packed 128-deep panel of them stays in the second-level cache.
const TILE_COLUMNS: usize = 768;

/// `a · b` for `a` (M, N) and `b` (N, P), any memory layout, on all threads of the current rayon pool.
///
/// # Panics
/// If the inner extents differ; callers inside this crate check them before.
pub fn matrix_product(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Array2<f32> {
    assert_eq!(a.ncols(), b.nrows(), "inner extents of a matrix product");
    let mut out = Array2::zeros((a.nrows(), b.ncols()));
    let mut tiles: Vec<(usize, usize, ArrayViewMut2<'_, f32>)> = Vec::new();
    for (i, rows) in out.axis_chunks_iter_mut(Axis(0), TILE_ROWS).enumerate() {
        let mut rest = rows;
        let mut column = 0;
        while rest.ncols() > TILE_COLUMNS {
            let (tile, right) = rest.split_at(Axis(1), TILE_COLUMNS);
            tiles.push((i * TILE_ROWS, column, tile));
            rest = right;
            column += TILE_COLUMNS;
        }
        tiles.push((i * TILE_ROWS, column, rest));
    }
    tiles.into_par_iter().for_each(|(row, column, mut tile)| {
        let a = a.slice(ndarray::s![row..row + tile.nrows(), ..]);
        let b = b.slice(ndarray::s![.., column..column + tile.ncols()]);
        general_mat_mul(1.0, &a, &b, 0.0, &mut tile);
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use proptest::prelude::*;

    fn filled(rows: usize, columns: usize, seed: f32) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 31 + j * 17) as f32 * 0.37 + seed).sin())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn agrees_with_the_plain_sum(m in 1usize..200, n in 1usize..40, p in 1usize..30) {
            let (a, b) = (filled(m, n, 0.1), filled(n, p, 0.7));
            let out = matrix_product(a.view(), b.view());
            for ((i, j), &value) in out.indexed_iter() {
                let plain: f64 = (0..n).map(|k| f64::from(a[[i, k]]) * f64::from(b[[k, j]])).sum();
                prop_assert!((f64::from(value) - plain).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (a, b) = (filled(300, 65, 0.2), filled(65, 1700, 0.4));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small pool");
            pool.install(|| matrix_product(a.view(), b.view()))
        };
        let one = on(1);
        for threads in [2, 3, 7] {
            assert!(one.iter().zip(&on(threads)).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    #[test]
    fn takes_transposed_views() {
        let (a, b) = (filled(40, 9, 0.3), filled(33, 9, 0.9));
        let out = matrix_product(a.view(), b.t());
        let copied = matrix_product(a.view(), b.t().as_standard_layout().view());
        assert_eq!(out, copied);
    }
}
