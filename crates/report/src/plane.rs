//! Points of many dimensions in the plane.

use rayon::prelude::*;

/// Iterations in which two directions settle well beyond what a picture shows.
const ITERATIONS: usize = 100;

/// Points in the plane.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plane {
    /// One a row.
    pub points: Vec<[f32; 2]>,
    /// Share of the variance that each axis has, 0 to 1; zeros if the map is not linear.
    pub variance: [f64; 2],
}

/// The two principal components of `rows`, of `dim` values each: x has the largest variance.
///
/// By orthogonal iteration from a fixed start, so the same rows give the same map; each axis points to where its largest
/// coordinate is positive. `dim` of 0 and rows of another length give no points.
///
/// ```
/// let plane = swav_report::principal_components(&[0.0, 0.0, 2.0, 2.0, 4.0, 4.0], 2);
/// assert_eq!(plane.points.len(), 3);
/// assert!(plane.variance[0] > 0.999);
/// ```
pub fn principal_components(rows: &[f32], dim: usize) -> Plane {
    if dim == 0 || rows.is_empty() || !rows.len().is_multiple_of(dim) {
        return Plane::default();
    }
    let n = rows.len() / dim;
    let mut mean = vec![0.0f64; dim];
    for row in rows.chunks_exact(dim) {
        mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    mean.iter_mut().for_each(|sum| *sum /= n as f64);
    let covariance = covariance(rows, &mean);
    let total: f64 = (0..dim).map(|i| covariance[i * dim + i]).sum();
    let mut axes: [Vec<f64>; 2] = [0, 1].map(|axis| {
        // Any start will do that is not orthogonal to what is looked for.
        (0..dim).map(|i| ((i * (axis + 1) + 1) as f64 * 0.7).sin() + 0.1).collect()
    });
    for _ in 0..ITERATIONS {
        for axis in 0..2 {
            let mut next: Vec<f64> =
                covariance.chunks_exact(dim).map(|line| dot(line, &axes[axis])).collect();
            if axis == 1 {
                let overlap = dot(&next, &axes[0]);
                next.iter_mut().zip(&axes[0]).for_each(|(x, first)| *x -= overlap * first);
            }
            let norm = dot(&next, &next).sqrt();
            if norm > 1e-12 * total.max(1e-300) {
                next.iter_mut().for_each(|x| *x /= norm);
                axes[axis] = next;
            } else {
                axes[axis].fill(0.0);
            }
        }
    }
    for axis in &mut axes {
        let largest = axis.iter().copied().fold(0.0f64, |a, b| if b.abs() > a.abs() { b } else { a });
        if largest < 0.0 {
            axis.iter_mut().for_each(|x| *x = -*x);
        }
    }
    let along = |axis: &[f64]| {
        let through = covariance.chunks_exact(dim).map(|line| dot(line, axis));
        through.zip(axis).map(|(a, b)| a * b).sum::<f64>()
    };
    let variance = [0, 1].map(|axis| if total > 0.0 { along(&axes[axis]) / total } else { 0.0 });
    let points = rows
        .par_chunks_exact(dim)
        .map(|row| {
            [0, 1].map(|axis| {
                let terms = row.iter().zip(&mean).zip(&axes[axis]);
                terms.map(|((&x, mean), a)| (f64::from(x) - mean) * a).sum::<f64>() as f32
            })
        })
        .collect();
    Plane { points, variance }
}

fn covariance(rows: &[f32], mean: &[f64]) -> Vec<f64> {
    let dim = mean.len();
    let n = (rows.len() / dim) as f64;
    // Line by line in parallel: each sums over all rows in order, so threads change no bit.
    let lines: Vec<Vec<f64>> = (0..dim)
        .into_par_iter()
        .map(|i| {
            let mut line = vec![0.0f64; dim];
            for row in rows.chunks_exact(dim) {
                let x = f64::from(row[i]) - mean[i];
                line.iter_mut().zip(row).for_each(|(sum, &y)| *sum += x * f64::from(y));
            }
            // Σ x (y - m) = Σ x y, since the sum of all x is 0.
            line.iter_mut().for_each(|sum| *sum /= n);
            line
        })
        .collect();
    lines.concat()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A map by t-SNE (van der Maaten 2014, Barnes-Hut): near points stay near, distances between groups mean little. It starts
/// from the principal components. `None` for fewer than 100 rows.
#[cfg(feature = "tsne")]
pub fn tsne(rows: &[f32], dim: usize) -> Option<Plane> {
    const PERPLEXITY: f32 = 30.0;
    let start = principal_components(rows, dim);
    if start.points.len() < 100 || rows.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let widest = start.points.iter().fold(1e-12f32, |most, point| most.max(point[0].abs()));
    let initial: Vec<f32> = start.points.iter().flatten().map(|x| 1e-2 * x / widest).collect();
    let samples: Vec<&[f32]> = rows.chunks_exact(dim).collect();
    let distance =
        |a: &&[f32], b: &&[f32]| a.iter().zip(b.iter()).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
    let embedding = bhtsne::tSNE::<f32, &[f32], 2>::new(&samples)
        .perplexity(PERPLEXITY)
        .epochs(600)
        .initial_embedding(initial)
        .barnes_hut(0.5, distance)
        .embedding();
    let points: Vec<[f32; 2]> = embedding.as_chunks::<2>().0.to_vec();
    points.iter().flatten().all(|x| x.is_finite()).then_some(Plane { points, variance: [0.0; 2] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_the_directions_of_the_largest_variance() {
        // Points spread by 5 along (3, 4, 0)/5 and by 2 along z, around (1, 2, 3); nothing else varies.
        let spread = |at: usize| {
            let (sine, cosine) = (std::f64::consts::TAU * at as f64 / 500.0).sin_cos();
            (0.5 * cosine, 0.5 * sine)
        };
        let rows: Vec<f32> = (0..500)
            .map(spread)
            .flat_map(|(a, b)| [1.0 + 3.0 * a, 2.0 + 4.0 * a, 3.0 + 2.0 * b].map(|x| x as f32))
            .collect();
        let plane = principal_components(&rows, 3);
        assert!((plane.variance.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{:?}", plane.variance);
        for (at, point) in plane.points.iter().enumerate().take(50) {
            let (a, b) = spread(at);
            assert!(
                (f64::from(point[0]) - 5.0 * a).abs() < 1e-3 && (f64::from(point[1]) - 2.0 * b).abs() < 1e-3
            );
        }
    }

    #[test]
    fn rows_without_extent_are_one_point() {
        for plane in [principal_components(&[2.0; 12], 3), principal_components(&[1.0, 2.0], 2)] {
            assert!(plane.points.iter().all(|point| *point == [0.0, 0.0]), "{plane:?}");
        }
        assert_eq!(principal_components(&[1.0, 2.0, 3.0], 2), Plane::default());
        assert_eq!(principal_components(&[], 2), Plane::default());
    }
}
