//! One row of the loss: log-sum-exp, loss and gradient while the row is in cache.
//!
//! Why not the standard library's `exp`: it is a call per element that the compiler cannot vectorise, and a
//! step takes a million of them. The polynomial here has no branch.

/// Independent running sums, so that sums vectorise; their order is fixed.
const LANES: usize = 16;

/// `e^x` for `x <= 0`, within 2e-7 relative; 0 below -87, where the true value is no longer a normal number.
///
/// `x = n ln 2 + r` with integer n and |r| <= ln 2 / 2; a polynomial of degree 7 gives `e^r`, the exponent
/// bits give `2^n`.
#[inline(always)]
pub(crate) fn exp_nonpositive(x: f32) -> f32 {
    // Adding and subtracting 1.5·2^23 rounds to the nearest integer without a branch.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has few bits, so that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let exponent = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let power = f32::from_bits(((exponent + 127) << 23) as u32);
    if x > -87.0 { p * power } else { 0.0 }
}

/// Largest element; NaN elements are passed over.
#[inline(always)]
fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// What a row adds to the loss, and its gradient.
///
/// `scores` (K) are one crop's; `target` (K) the sum of the codes it has to predict. Writes
/// `scale · (mass · softmax(scores / τ) - target)` to `grad` and adds the softmax to `usage`; returns
/// `-Σ_k target[k] · log softmax(scores / τ)[k]`. All slices have the same length, `inverse_temperature` is
/// 1/τ, and `mass` is the sum of `target`.
pub(crate) fn row(
    scores: &[f32],
    target: &[f32],
    inverse_temperature: f32,
    scale: f32,
    grad: &mut [f32],
    usage: &mut [f32],
) -> f64 {
    let top = max(scores);
    let mut sums = [0.0f32; LANES];
    let mut products = [0.0f32; LANES];
    let mut masses = [0.0f32; LANES];
    let (score_chunks, score_rest) = scores.as_chunks::<LANES>();
    let (target_chunks, target_rest) = target.as_chunks::<LANES>();
    let (grad_chunks, grad_rest) = grad.as_chunks_mut::<LANES>();
    let mut add = |s: &[f32], q: &[f32], e: &mut [f32]| {
        for ((((&s, &q), e), sum), (product, mass)) in
            s.iter().zip(q).zip(e).zip(&mut sums).zip(products.iter_mut().zip(&mut masses))
        {
            let shifted = (s - top) * inverse_temperature;
            *e = exp_nonpositive(shifted);
            *sum += *e;
            *product += q * shifted;
            *mass += q;
        }
    };
    for ((s, q), e) in score_chunks.iter().zip(target_chunks).zip(grad_chunks) {
        add(s, q, e);
    }
    add(score_rest, target_rest, grad_rest);
    let total = |lanes: [f32; LANES]| lanes.into_iter().map(f64::from).sum::<f64>();
    let (sum, product, mass) = (total(sums), total(products), total(masses));
    let normaliser = (1.0 / sum) as f32;
    let mass_scale = (mass * f64::from(scale)) as f32;
    for ((g, &q), u) in grad.iter_mut().zip(target).zip(usage) {
        let p = *g * normaliser;
        *u += p;
        *g = mass_scale * p - scale * q;
    }
    mass * sum.ln() - product
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exponential_is_accurate_to_the_edge() {
        for i in 0..200_000 {
            let x = -(i as f32) * 87.0 / 200_000.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_nonpositive(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "x {x}, relative error {error}");
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-1e30), 0.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_row_agrees_with_the_formula(
            pairs in prop::collection::vec((-1.0f32..1.0, 0.0f32..1.0), 1..70),
            temperature in 0.05f32..1.0,
        ) {
            let (scores, target): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let (mut grad, mut usage) = (vec![0.0; scores.len()], vec![0.0; scores.len()]);
            let loss = row(&scores, &target, 1.0 / temperature, 0.5, &mut grad, &mut usage);
            let scaled: Vec<f64> =
                scores.iter().map(|&s| f64::from(s) * f64::from(1.0 / temperature)).collect();
            let log_sum = scaled.iter().map(|x| x.exp()).sum::<f64>().ln();
            let plain: f64 = scaled.iter().zip(&target).map(|(x, &q)| -f64::from(q) * (x - log_sum)).sum();
            prop_assert!((loss - plain).abs() < 1e-4 * (1.0 + plain.abs()), "{loss} against {plain}");
            let mass: f64 = target.iter().map(|&q| f64::from(q)).sum();
            for ((&g, &x), &q) in grad.iter().zip(&scaled).zip(&target) {
                let expected = 0.5 * (mass * (x - log_sum).exp() - f64::from(q));
                prop_assert!((f64::from(g) - expected).abs() < 1e-5 * (1.0 + mass));
            }
            prop_assert!((usage.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
