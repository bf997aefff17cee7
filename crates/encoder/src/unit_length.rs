//! Rows to unit length, and the gradient through it.

use ndarray::{Array2, ArrayView2};

/// Rows shorter than this are divided by this instead of by their length (PyTorch's `normalize`).
pub(crate) const MIN_LENGTH: f32 = 1e-12;

/// Scales rows in place, `z = x / max(|x|, MIN_LENGTH)`, and returns what they were divided by.
pub(crate) fn to_unit_length(rows: &mut Array2<f32>) -> Vec<f32> {
    let mut divisors = Vec::with_capacity(rows.nrows());
    for mut row in rows.rows_mut() {
        let square: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        let divisor = (square.sqrt() as f32).max(MIN_LENGTH);
        row.iter_mut().for_each(|x| *x /= divisor);
        divisors.push(divisor);
    }
    divisors
}

/// The gradient with respect to `x` from that with respect to `z`: `dx = (dz - z (z·dz)) / max(|x|, MIN_LENGTH)`.
pub(crate) fn unit_length_gradient(
    unit_rows: &Array2<f32>,
    divisors: &[f32],
    gradient: ArrayView2<'_, f32>,
) -> Array2<f32> {
    let mut result = gradient.as_standard_layout().into_owned();
    let rows = unit_rows.rows().into_iter().zip(divisors);
    for (mut row, (unit, divisor)) in result.rows_mut().into_iter().zip(rows) {
        let dot: f64 = row.iter().zip(unit).map(|(g, z)| f64::from(*g) * f64::from(*z)).sum();
        row.iter_mut().zip(unit).for_each(|(g, z)| *g = (*g - z * dot as f32) / divisor);
    }
    result
}

#[cfg(test)]
mod tests {
    use ndarray::{arr2, array};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_get_unit_length_and_zeros_stay() {
        let mut rows = arr2(&[[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]]);
        assert_eq!(to_unit_length(&mut rows), [5.0, MIN_LENGTH, MIN_LENGTH]);
        assert_eq!(rows, array![[0.6, 0.8], [0.0, 0.0], [0.1, 0.0]]);
    }

    proptest! {
        /// Against central differences of `sum(dz · z(x))` in f64.
        #[test]
        fn the_gradient_is_the_derivative(
            x in prop::collection::vec(-2.0f32..2.0, 4), dz in prop::collection::vec(-1.0f32..1.0, 4),
        ) {
            prop_assume!(x.iter().map(|x| x * x).sum::<f32>() > 0.1);
            let mut rows = Array2::from_shape_vec((1, 4), x.clone()).unwrap();
            let divisors = to_unit_length(&mut rows);
            let gradient = Array2::from_shape_vec((1, 4), dz.clone()).unwrap();
            let actual = unit_length_gradient(&rows, &divisors, gradient.view());
            let value = |x: &[f64]| {
                let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
                x.iter().zip(&dz).map(|(x, g)| x / length * f64::from(*g)).sum::<f64>()
            };
            for i in 0..4 {
                let at = |step: f64| {
                    let mut moved: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                    moved[i] += step;
                    value(&moved)
                };
                let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
                prop_assert!((f64::from(actual[[0, i]]) - expected).abs() < 1e-5 * (1.0 + expected.abs()));
            }
        }
    }
}
