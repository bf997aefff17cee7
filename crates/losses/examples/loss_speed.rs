//! Times the loss beside a plain copy of the same arrays.
//!
//! `cargo run --release -p swav-losses --example loss_speed`

use std::time::Instant;

use ndarray::Array2;
use swav_losses::SwappedPrediction;

fn main() -> Result<(), swav_losses::LossError> {
    let (batch, n_crops, k) = (64, 8, 3000);
    let scores = Array2::from_shape_fn((batch * n_crops, k), |(i, j)| ((i * 31 + j * 17) as f32).sin());
    let code = Array2::from_elem((batch, k), 1.0 / k as f32);
    let loss = SwappedPrediction::new(n_crops, &[0, 1], 0.1)?;
    report("loss and gradient", || loss.evaluate(scores.view(), &[code.view(), code.view()]).unwrap());
    report("copy of the scores", || scores.clone());
    Ok(())
}

fn report<T>(name: &str, mut run: impl FnMut() -> T) {
    let fastest = (0..20)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(run());
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    println!("{name:20} {:8.3} ms", fastest * 1e3);
}
