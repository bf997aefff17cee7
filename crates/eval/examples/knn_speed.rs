//! How long exact k-NN, retrieval and the linear probe take:
//! `cargo run --release -p swav-eval --example knn_speed [QUERIES] [BANK] [DIM]`.

use std::time::Instant;

use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swav_eval::{Bank, EvalError, KnnClassifier, KnnConfig, ProbeConfig};

fn main() -> Result<(), EvalError> {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let size = |position: usize, default: usize| sizes.get(position).copied().unwrap_or(default);
    let (n_queries, n_bank, dim) = (size(0, 1_000), size(1, 6_000), size(2, 512));

    let mut rng = ChaCha8Rng::seed_from_u64(31);
    let bank = Array2::from_shape_simple_fn((n_bank, dim), || rng.random_range(-1.0f32..1.0));
    let queries = Array2::from_shape_simple_fn((n_queries, dim), || rng.random_range(-1.0f32..1.0));
    let labels: Vec<u32> = (0..n_bank).map(|i| (i % 10) as u32).collect();
    let knn = KnnClassifier::new(KnnConfig::default().check()?, bank.clone(), labels.clone())?;

    let begin = Instant::now();
    let predictions = knn.predict(queries.view())?;
    let seconds = begin.elapsed().as_secs_f64();
    let gflops = 2.0 * (n_queries * n_bank * dim) as f64 / seconds / 1e9;
    println!("{} queries x {n_bank} x {dim}: {seconds:.2} s, {gflops:.0} GFLOP/s", predictions.ranked.len());

    let unit = Bank::new(bank.clone())?;
    let asked: Vec<u32> = (0..n_queries).map(|i| (i % 10) as u32).collect();
    let begin = Instant::now();
    let found = unit.retrieve(&labels, queries.view(), &asked, &[1, 10])?;
    println!("retrieval: {:.2} s, {} queries", begin.elapsed().as_secs_f64(), found.average_precision.len());

    let begin = Instant::now();
    let fit = ProbeConfig::default().check()?.fit(bank.view(), &labels)?;
    println!("linear probe: {:.2} s, {} regularisers", begin.elapsed().as_secs_f64(), fit.trials.len());
    Ok(())
}
