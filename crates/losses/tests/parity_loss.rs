//! The loss and its gradient with respect to the scores against PyTorch's autograd.

use ndarray::{Array2, ArrayView2, Ix2};
use swav_fixtures::{Tensors, json, relative_error};
use swav_losses::SwappedPrediction;

/// Codes as the reference computes them, in f64: the loss under test takes them as given.
fn codes(scores: ArrayView2<'_, f32>, epsilon: f64, n_iters: u64) -> Array2<f32> {
    let (batch, k) = scores.dim();
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut q = scores.mapv(|s| (f64::from(s - top) / epsilon).exp());
    for _ in 0..n_iters {
        for mut column in q.columns_mut() {
            let sum = column.sum() * k as f64;
            column /= sum;
        }
        for mut row in q.rows_mut() {
            let sum = row.sum() * batch as f64;
            row /= sum;
        }
    }
    q.mapv(|x| (x * batch as f64) as f32)
}

#[test]
fn parity_loss_and_gradient_of_the_scores() {
    let tensors = Tensors::open("loss");
    let cases = json("loss");
    let cases = cases.as_array().expect("a list of cases");
    assert!(!cases.is_empty());
    for case in cases {
        let number = |key: &str| case[key].as_f64().expect("a number");
        let name = format!("loss{}", case["case"]);
        let read = |what: &str| {
            tensors.f32(&format!("{name}.{what}")).into_dimensionality::<Ix2>().expect("two dimensions")
        };
        let assign: Vec<usize> =
            case["assign"].as_array().expect("a list").iter().map(|i| i.as_u64().unwrap() as usize).collect();
        let batch = number("batch") as usize;
        let scores = read("scores");
        let codes: Vec<Array2<f32>> = assign
            .iter()
            .map(|&crop| {
                let rows = scores.slice(ndarray::s![crop * batch..(crop + 1) * batch, ..]);
                codes(rows, number("epsilon"), number("iterations") as u64)
            })
            .collect();
        let views: Vec<_> = codes.iter().map(|code| code.view()).collect();
        let loss =
            SwappedPrediction::new(number("crops") as usize, &assign, number("temperature") as f32).unwrap();
        let out = loss.evaluate(scores.view(), &views).unwrap();
        assert!((out.loss - number("loss")).abs() < 1e-5, "{name}: {} against {}", out.loss, number("loss"));
        let error = relative_error(&out.grad_scores, &read("grad_scores"));
        assert!(error < 1e-5, "{name}: relative error {error} of the gradient with respect to the scores");
    }
}
