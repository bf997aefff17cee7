//! Euclidean norms, what an update reports, and clipping by the norm of all gradients.

/// Norms of one or more parameters and gradients, for logs and for the detection of divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UpdateStats {
    /// Euclidean norm of the parameters before the update.
    pub parameter_norm: f64,
    /// Euclidean norm of the gradients before clipping and weight decay; not finite if a gradient is not.
    pub gradient_norm: f64,
}

impl UpdateStats {
    /// The norms of two sets of parameters taken together.
    pub fn merge(self, other: Self) -> Self {
        Self {
            parameter_norm: self.parameter_norm.hypot(other.parameter_norm),
            gradient_norm: self.gradient_norm.hypot(other.gradient_norm),
        }
    }
}

/// Euclidean norm: eight running sums in f64 (so that it vectorises), added in a fixed order.
pub fn norm(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f64::from(x) * f64::from(x);
    }
    sums.iter().sum::<f64>().sqrt()
}

/// The factor on all gradients that brings their common norm down to `max_norm`:
/// `min(1, max_norm / (norm + 1e-6))`, as PyTorch's `clip_grad_norm_`. It is 1 for a norm that is not finite, so that
/// [`UpdateStats`] still shows it.
///
/// `norm` is that of every parameter that is trained, taken together: add the norms of parts by [`f64::hypot`].
pub fn clip_scale(max_norm: f64, norm: f64) -> f32 {
    if norm.is_finite() { (max_norm / (norm + 1e-6)).min(1.0) as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_is_euclidean_for_any_length() {
        for length in 0..40usize {
            let values: Vec<f32> = (0..length).map(|i| i as f32 - 7.5).collect();
            let expected = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            assert!((norm(&values) - expected).abs() <= 1e-12 * expected);
        }
        assert!(norm(&[1.0, f32::NAN]).is_nan());
    }

    #[test]
    fn clipping_shortens_only_what_is_too_long() {
        assert_eq!(clip_scale(1.0, 0.5).to_bits(), 1.0f32.to_bits());
        assert!((clip_scale(1.0, 4.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_scale(1.0, f64::NAN), 1.0);
        assert_eq!(clip_scale(1.0, f64::INFINITY), 1.0);
    }

    #[test]
    fn norms_of_parts_merge_to_the_norm_of_all() {
        let (a, b) = (
            UpdateStats { parameter_norm: 3.0, gradient_norm: 5.0 },
            UpdateStats { parameter_norm: 4.0, gradient_norm: 12.0 },
        );
        assert_eq!(a.merge(b), UpdateStats { parameter_norm: 5.0, gradient_norm: 13.0 });
    }
}
