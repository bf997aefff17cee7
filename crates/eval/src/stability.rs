//! How much of what a network says of images stays the same from one moment to another: what can be watched without labels.

use crate::{EvalError, Neighbours};

/// Share of images that are in the same cluster as before, 0 to 1.
///
/// # Errors
/// [`EvalError::Length`] if there are not as many as before, [`EvalError::Empty`] if there are none.
pub fn assignment_stability(before: &[u32], now: &[u32]) -> Result<f64, EvalError> {
    if before.len() != now.len() {
        return Err(EvalError::Length { what: "clusters", expected: before.len(), got: now.len() });
    }
    if now.is_empty() {
        return Err(EvalError::Empty { what: "clusters" });
    }
    Ok(before.iter().zip(now).filter(|(before, now)| before == now).count() as f64 / now.len() as f64)
}

/// Share of the k nearest neighbours that were among the k nearest before, averaged over images, 0 to 1.
///
/// # Errors
/// [`EvalError::Length`] if there are not as many images or neighbours as before.
pub fn neighbour_stability(before: &Neighbours, now: &Neighbours) -> Result<f64, EvalError> {
    let (expected, got) = (before.indices.len(), now.indices.len());
    if before.indices.dim() != now.indices.dim() {
        return Err(EvalError::Length { what: "neighbours", expected, got });
    }
    let rows = before.indices.rows().into_iter().zip(now.indices.rows());
    let kept: usize =
        rows.map(|(before, now)| now.iter().filter(|index| before.iter().any(|b| b == *index)).count()).sum();
    Ok(kept as f64 / got.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn what_stays_is_counted_whatever_its_rank() {
        assert_eq!(assignment_stability(&[1, 2, 3, 4], &[1, 2, 4, 3]).unwrap(), 0.5);
        let neighbours =
            |indices: Array2<usize>| Neighbours { similarities: Array2::zeros(indices.dim()), indices };
        let (before, now) = (neighbours(array![[1, 2], [0, 2]]), neighbours(array![[2, 1], [2, 3]]));
        assert_eq!(neighbour_stability(&before, &now).unwrap(), 0.75);
        assert!(matches!(assignment_stability(&[1], &[]), Err(EvalError::Length { .. })));
        assert!(matches!(assignment_stability(&[], &[]), Err(EvalError::Empty { .. })));
        let fewer = neighbours(array![[1], [0]]);
        assert!(matches!(neighbour_stability(&before, &fewer), Err(EvalError::Length { .. })));
    }
}
