//! Numbers that show whether training goes well, from arrays that the loss has read anyway.

/// State of the assignment problem in one batch.
///
/// A healthy run has sharp codes (`code_entropy` well below ln K), many prototypes in use, and a loss below
/// ln K. A collapsed encoder, which maps every image to the same point, gives uniform codes: entropy, loss and
/// ln K then agree.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Diagnostics {
    /// Mean entropy of a sample's code in nats, 0 (one prototype each) to ln K (uniform).
    pub code_entropy: f64,
    /// exp of the entropy of the mean code over the batch, 1 to K: how many prototypes the codes use. Equal
    /// partition drives it to K.
    pub code_perplexity: f64,
    /// exp of the entropy of the mean prediction over all crops, 1 to K: how many prototypes the network
    /// uses by itself.
    pub prediction_perplexity: f64,
    /// ln K minus the loss, in nats: how much better than uniform guessing the predictions are.
    pub gap_to_ln_k: f64,
}

/// Entropy of a distribution in nats, `-Σ p ln p`, with 0 ln 0 = 0. Weights need not be normalised; their sum
/// is divided out. 0 for no mass at all.
///
/// ```
/// assert!((swav_losses::entropy([1.0, 1.0, 2.0]) - 1.5 * 2f64.ln()).abs() < 1e-12);
/// ```
pub fn entropy(weights: impl IntoIterator<Item = f64>) -> f64 {
    let (mut mass, mut sum) = (0.0, 0.0);
    for p in weights {
        if p > 0.0 {
            mass += p;
            sum += p * p.ln();
        }
    }
    // -Σ (p/m) ln(p/m) = ln m - Σ p ln p / m
    if mass > 0.0 { (mass.ln() - sum / mass).max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_of_uniform_and_certain() {
        assert!((entropy([0.25; 4]) - 4f64.ln()).abs() < 1e-12);
        assert_eq!(entropy([0.0, 1.0, 0.0]), 0.0);
        assert_eq!(entropy([0.0; 3]), 0.0);
    }
}
