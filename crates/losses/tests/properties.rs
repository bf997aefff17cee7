//! Properties of the loss: finite differences, invariances, determinism, refused input.

use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swav_losses::{LossError, SwappedLoss, SwappedPrediction};

fn random(rows: usize, columns: usize, rng: &mut ChaCha8Rng) -> Array2<f32> {
    Array2::from_shape_simple_fn((rows, columns), || rng.random_range(-1.0..1.0))
}

fn random_codes(rows: usize, columns: usize, rng: &mut ChaCha8Rng) -> Array2<f32> {
    let mut codes = random(rows, columns, rng).mapv(|x| (4.0 * x).exp());
    for mut row in codes.rows_mut() {
        let sum = row.sum();
        row /= sum;
    }
    codes
}

/// The formula of the crate's documentation, term by term in f64.
fn plain(scores: ArrayView2<f32>, codes: &[Array2<f32>], n_crops: usize, assign: &[usize], tau: f64) -> f64 {
    let batch = scores.nrows() / n_crops;
    let mut total = 0.0;
    for (&i, code) in assign.iter().zip(codes) {
        for v in (0..n_crops).filter(|&v| v != i) {
            for b in 0..batch {
                let row: Vec<f64> = scores.row(v * batch + b).iter().map(|&s| f64::from(s) / tau).collect();
                let log_sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
                total -= row.iter().zip(code.row(b)).map(|(x, &q)| f64::from(q) * (x - log_sum)).sum::<f64>();
            }
        }
    }
    total / (assign.len() * (n_crops - 1) * batch) as f64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn loss_and_gradient_agree_with_the_formula(
        seed in any::<u64>(), batch in 1usize..6, k in 1usize..40, n_crops in 2usize..6, n_assign in 1usize..4,
    ) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let assign: Vec<usize> = (0..n_assign.min(n_crops)).rev().collect();
        let mut scores = random(n_crops * batch, k, rng);
        let codes: Vec<_> = assign.iter().map(|_| random_codes(batch, k, rng)).collect();
        let views: Vec<_> = codes.iter().map(|code| code.view()).collect();
        let out = SwappedPrediction::new(n_crops, &assign, 0.3).unwrap().evaluate(scores.view(), &views).unwrap();
        let expected = plain(scores.view(), &codes, n_crops, &assign, 0.3);
        prop_assert!((out.loss - expected).abs() < 1e-5);
        let at = (seed as usize % scores.nrows(), seed as usize / 7 % k);
        let (start, h) = (scores[at], 1e-2);
        scores[at] = start + h;
        let up = plain(scores.view(), &codes, n_crops, &assign, 0.3);
        scores[at] = start - h;
        let down = plain(scores.view(), &codes, n_crops, &assign, 0.3);
        let slope = (up - down) / f64::from(2.0 * h);
        prop_assert!((slope - f64::from(out.grad_scores[at])).abs() < 2e-3, "{slope} {}", out.grad_scores[at]);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let rng = &mut ChaCha8Rng::seed_from_u64(3);
    let scores = random(8 * 33, 301, rng);
    let codes = [random_codes(33, 301, rng), random_codes(33, 301, rng)];
    let loss = SwappedPrediction::new(8, &[0, 1], 0.1).unwrap();
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| loss.evaluate(scores.view(), &[codes[0].view(), codes[1].view()]).unwrap())
    };
    let one = on(1);
    for threads in [2, 5] {
        let other = on(threads);
        assert_eq!(one.loss.to_bits(), other.loss.to_bits());
        assert!(one.grad_scores.iter().zip(&other.grad_scores).all(|(a, b)| a.to_bits() == b.to_bits()));
        let bits = |out: &SwappedLoss| {
            let d = out.diagnostics;
            [d.code_entropy, d.code_perplexity, d.prediction_perplexity, d.gap_to_ln_k].map(f64::to_bits)
        };
        assert_eq!(bits(&one), bits(&other));
    }
}

#[test]
fn a_collapsed_batch_shows_in_the_diagnostics() {
    let scores = Array2::from_elem((2 * 12, 50), 0.3f32);
    let uniform = Array2::from_elem((12, 50), 1.0 / 50.0f32);
    let loss = SwappedPrediction::new(2, &[0, 1], 0.1).unwrap();
    let out = loss.evaluate(scores.view(), &[uniform.view(), uniform.view()]).unwrap();
    let ln_k = 50f64.ln();
    assert!((out.loss - ln_k).abs() < 1e-5 && out.diagnostics.gap_to_ln_k.abs() < 1e-5);
    assert!((out.diagnostics.code_entropy - ln_k).abs() < 1e-5);
    assert!((out.diagnostics.prediction_perplexity - 50.0).abs() < 1e-3);
    assert!(out.grad_scores.iter().all(|g| g.abs() < 1e-7));
}

#[test]
fn one_prototype_for_all_shows_in_the_perplexities() {
    let mut scores = Array2::from_elem((2 * 12, 50), -1.0f32);
    scores.column_mut(7).fill(1.0);
    let mut code = Array2::zeros((12, 50));
    code.column_mut(7).fill(1.0f32);
    let loss = SwappedPrediction::new(2, &[0, 1], 0.1).unwrap();
    let out = loss.evaluate(scores.view(), &[code.view(), code.view()]).unwrap();
    assert!((out.diagnostics.prediction_perplexity - 1.0).abs() < 1e-5);
    assert!((out.diagnostics.code_perplexity - 1.0).abs() < 1e-6);
    assert_eq!(out.diagnostics.code_entropy, 0.0);
}

#[test]
fn extreme_scores_stay_finite_and_bad_ones_show() {
    let loss = SwappedPrediction::new(2, &[0], 0.1).unwrap();
    let code = Array2::from_elem((1, 3), 1.0 / 3.0f32);
    let far = ndarray::array![[0.0f32, 0.0, 0.0], [1e30, -1e30, 0.0]];
    let out = loss.evaluate(far.view(), &[code.view()]).unwrap();
    assert!(out.loss.is_finite() && out.grad_scores.iter().all(|g| g.is_finite()));
    let bad = ndarray::array![[0.0f32, 0.0, 0.0], [f32::NAN, 0.0, 0.0]];
    assert!(!loss.evaluate(bad.view(), &[code.view()]).unwrap().loss.is_finite());
}

#[test]
fn a_changed_temperature_is_that_of_a_new_loss() {
    let rng = &mut ChaCha8Rng::seed_from_u64(5);
    let scores = random(3 * 4, 7, rng);
    let code = random_codes(4, 7, rng);
    let mut loss = SwappedPrediction::new(3, &[0], 0.1).unwrap();
    assert!(matches!(loss.set_temperature(0.0), Err(LossError::Temperature { got: 0.0 })));
    assert_eq!(loss.temperature(), 0.1);
    loss.set_temperature(0.3).unwrap();
    assert_eq!(loss, SwappedPrediction::new(3, &[0], 0.3).unwrap());
    let expected = plain(scores.view(), std::slice::from_ref(&code), 3, &[0], 0.3);
    let got = loss.evaluate(scores.view(), &[code.view()]).unwrap().loss;
    assert!((got - expected).abs() < 1e-5);
}

#[test]
fn wrong_input_is_refused_by_name() {
    assert_eq!(SwappedPrediction::new(1, &[0], 0.1), Err(LossError::TooFewCrops { got: 1 }));
    for assign in [&[][..], &[0, 0], &[0, 3]] {
        assert!(matches!(SwappedPrediction::new(3, assign, 0.1), Err(LossError::AssignmentCrops { .. })));
    }
    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(SwappedPrediction::new(3, &[0], temperature), Err(LossError::Temperature { .. })));
    }
    let loss = SwappedPrediction::new(3, &[0], 0.1).unwrap();
    let code = Array2::zeros((2, 4));
    assert!(matches!(
        loss.evaluate(Array2::zeros((7, 4)).view(), &[code.view()]),
        Err(LossError::Scores { n_rows: 7, .. })
    ));
    assert!(matches!(
        loss.evaluate(Array2::zeros((9, 4)).view(), &[code.view()]),
        Err(LossError::Shape { what: "samples of a code", expected: 3, got: 2 })
    ));
    assert!(matches!(
        loss.evaluate(Array2::zeros((6, 4)).view(), &[code.view(), code.view()]),
        Err(LossError::Shape { expected: 1, got: 2, .. })
    ));
}
