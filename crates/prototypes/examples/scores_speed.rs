//! Times the three products of the prototype layer beside a large square product of the same kind.
//!
//! `cargo run --release -p swav-prototypes --example scores_speed`

use std::time::Instant;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use swav_prototypes::{Prototypes, matrix_product};

fn main() -> Result<(), swav_prototypes::PrototypeError> {
    let mut rng = ChaCha8Rng::seed_from_u64(31);
    let (k, dim) = (3000, 128);
    let prototypes = Prototypes::random(&[k], dim, &mut rng)?;
    let batch = Prototypes::random(&[512], dim, &mut rng)?;
    let queue = Prototypes::random(&[3840], dim, &mut rng)?;
    let square = Prototypes::random(&[1024], 1024, &mut rng)?;
    let (z, queued, square) = (batch.weights(0)?, queue.weights(0)?, square.weights(0)?);
    let grad = prototypes.scores(0, z)?;
    report("square 1024", 1024.0 * 1024.0 * 1024.0, || matrix_product(square, square));
    let work = |rows: usize| (rows * k * dim) as f64;
    report("scores of 512 rows", work(512), || matrix_product(z, prototypes.weights(0).unwrap().t()));
    report("scores of the queue", work(3840), || matrix_product(queued, prototypes.weights(0).unwrap().t()));
    report("gradient of z", work(512), || prototypes.grad_embeddings(0, grad.view()).unwrap());
    report("gradient of C", work(512), || prototypes.grad_weights(0, grad.view(), z).unwrap());
    Ok(())
}

/// Prints the fastest of several runs and its GFLOP/s, two operations per multiply-add.
fn report<T>(name: &str, multiply_adds: f64, mut run: impl FnMut() -> T) {
    let fastest = (0..9)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(run());
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    println!("{name:24} {:8.3} ms {:7.1} GFLOP/s", fastest * 1e3, 2.0 * multiply_adds / fastest / 1e9);
}
