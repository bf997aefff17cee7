//! The best one-to-one matching of rows and columns (the assignment problem; Kuhn 1955), by shortest augmenting paths
//! (Jonker and Volgenant 1987).

use ndarray::{Array2, ArrayView2};

use crate::EvalError;

/// Pairs of rows and columns with the largest sum of values, each row and each column in one pair at most; as many pairs as
/// the shorter side has entries, by rising row.
///
/// Takes about (shorter side)² · (longer side) operations.
///
/// # Errors
/// [`EvalError::Empty`]; [`EvalError::Config`] if a value is not finite.
pub fn best_matching(values: ArrayView2<'_, f64>) -> Result<Vec<(usize, usize)>, EvalError> {
    if values.is_empty() {
        return Err(EvalError::Empty { what: "matrix to match" });
    }
    if let Some(got) = values.iter().find(|value| !value.is_finite()) {
        let expected = "finite numbers".to_owned();
        return Err(EvalError::Config { key: "values", expected, got: got.to_string() });
    }
    let turned = values.nrows() > values.ncols();
    let costs: Array2<f64> = if turned { values.t().mapv(|v| -v) } else { values.mapv(|v| -v) };
    let mut pairs: Vec<(usize, usize)> = cheapest(&costs)
        .into_iter()
        .enumerate()
        .map(|(row, column)| if turned { (column, row) } else { (row, column) })
        .collect();
    pairs.sort_unstable();
    Ok(pairs)
}

/// The column of each row, for no more rows than columns. One row after the other finds the cheapest way to a free column,
/// on which earlier rows may move.
fn cheapest(costs: &Array2<f64>) -> Vec<usize> {
    let (n_rows, n_columns) = costs.dim();
    let (mut of_rows, mut of_columns) = (vec![0.0; n_rows], vec![0.0; n_columns]);
    let mut row_of: Vec<Option<usize>> = vec![None; n_columns];
    for start in 0..n_rows {
        let mut distance = vec![f64::INFINITY; n_columns];
        let mut before: Vec<Option<usize>> = vec![None; n_columns];
        let mut reached = vec![false; n_columns];
        let (mut row, mut at, mut walked) = (start, None, 0.0);
        let end = loop {
            let mut next: Option<usize> = None;
            for column in (0..n_columns).filter(|&column| !reached[column]) {
                let length = walked + costs[[row, column]] - of_rows[row] - of_columns[column];
                if length < distance[column] {
                    (distance[column], before[column]) = (length, at);
                }
                if next.is_none_or(|next| distance[column] < distance[next]) {
                    next = Some(column);
                }
            }
            let column = next.expect("there are at least as many columns as rows");
            reached[column] = true;
            (at, walked) = (Some(column), distance[column]);
            match row_of[column] {
                Some(taken) => row = taken,
                None => break column,
            }
        };
        of_rows[start] += walked;
        for column in (0..n_columns).filter(|&column| reached[column]) {
            let saved = walked - distance[column];
            of_columns[column] -= saved;
            if let Some(row) = row_of[column] {
                of_rows[row] += saved;
            }
        }
        let mut column = end;
        loop {
            match before[column] {
                Some(previous) => {
                    row_of[column] = row_of[previous];
                    column = previous;
                }
                None => {
                    row_of[column] = Some(start);
                    break;
                }
            }
        }
    }
    let mut columns = vec![0; n_rows];
    for (column, row) in row_of.into_iter().enumerate() {
        if let Some(row) = row {
            columns[row] = column;
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use proptest::prelude::*;

    use super::*;

    /// The best sum of all ways to choose a column for each row from `row` on, or to leave it out.
    fn best(values: &Array2<f64>, row: usize, taken: &mut Vec<bool>, n_left: usize) -> f64 {
        if n_left == 0 || row == values.nrows() {
            return if n_left == 0 { 0.0 } else { f64::NEG_INFINITY };
        }
        let mut most = best(values, row + 1, taken, n_left);
        for column in 0..values.ncols() {
            if !taken[column] {
                taken[column] = true;
                most = most.max(values[[row, column]] + best(values, row + 1, taken, n_left - 1));
                taken[column] = false;
            }
        }
        most
    }

    proptest! {
        #[test]
        fn no_other_matching_is_better(rows in 1usize..6, columns in 1usize..6, seed in prop::collection::vec(-9i32..9, 36)) {
            let values = Array2::from_shape_fn((rows, columns), |(i, j)| f64::from(seed[i * 6 + j]));
            let pairs = best_matching(values.view()).unwrap();
            prop_assert_eq!(pairs.len(), rows.min(columns));
            let mut seen: Vec<usize> = pairs.iter().map(|pair| pair.1).collect();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), pairs.len());
            let sum: f64 = pairs.iter().map(|&(i, j)| values[[i, j]]).sum();
            prop_assert_eq!(sum, best(&values, 0, &mut vec![false; columns], rows.min(columns)));
        }
    }

    #[test]
    fn what_cannot_be_matched_is_refused() {
        assert!(matches!(best_matching(Array2::zeros((0, 3)).view()), Err(EvalError::Empty { .. })));
        assert!(matches!(best_matching(ndarray::array![[f64::NAN]].view()), Err(EvalError::Config { .. })));
    }
}
