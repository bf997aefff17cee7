//! Gives one photograph the colours of another, by transport between their pixels' colours.
//!
//! ```text
//! cargo run --release -p swav-examples --example colour_transfer [SOURCE TARGET [OUT.png]]
//! ```
//! Without arguments it repaints the cat of the parity fixtures in the colours of the astronaut. The plan is solved
//! between 2,000 sampled pixels of each; every pixel then moves as its nearest sampled pixels do.

use anyhow::{Context, Result};
use image::RgbImage;
use ndarray::{Array2, Axis, concatenate};
use rand::{SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use swav_ot::{Options, PointCost, Problem, Solver};

/// Pixels of each picture that the plan is solved between.
const SAMPLES: usize = 2000;
/// Regularisation, in squared colour units (a colour is three numbers from 0 to 1).
const EPSILON: f64 = 0.003;
/// Sampled pixels that a pixel follows.
const NEIGHBOURS: usize = 8;

fn main() -> Result<()> {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/images/");
    let mut arguments = std::env::args().skip(1);
    let source = arguments.next().unwrap_or_else(|| format!("{fixtures}chelsea.png"));
    let target = arguments.next().unwrap_or_else(|| format!("{fixtures}astronaut.png"));
    let out = arguments.next().unwrap_or_else(|| "colour_transfer.png".to_owned());
    let open = |path: &str| image::open(path).map(|image| image.to_rgb8()).with_context(|| path.to_owned());
    let (source, target) = (open(&source)?, open(&target)?);

    let (x, y) = (sampled_colours(&source, 1), sampled_colours(&target, 2));
    let problem = Problem::from_points(x.view(), y.view(), PointCost::SquaredEuclidean, EPSILON)?;
    let solution = Solver::new(Options::default().tolerance(1e-4))?.solve(&problem)?;
    println!(
        "{:?} after {} sweeps, mean squared change of colour {:.4}",
        solution.status(),
        solution.n_iters(),
        solution.transport_cost()
    );
    // Where each sampled colour goes, as a shift.
    let shifts = solution.barycentric(y.view())? - &x;

    let mut painted = source.clone();
    let width = painted.width() as usize * 3;
    painted.par_chunks_mut(width).for_each(|row| {
        for pixel in row.as_chunks_mut::<3>().0 {
            let colour = pixel.map(|channel| f32::from(channel) / 255.0);
            let shift = local_shift(colour, &x, &shifts);
            for c in 0..3 {
                pixel[c] = ((colour[c] + shift[c]) * 255.0).round().clamp(0.0, 255.0) as u8;
            }
        }
    });
    side_by_side(&[&source, &target, &painted]).save(&out).with_context(|| out.clone())?;
    println!("source, target and the repainted source: {out}");
    Ok(())
}

/// Colours of randomly chosen pixels, (samples, 3), from 0 to 1.
fn sampled_colours(image: &RgbImage, seed: u64) -> Array2<f32> {
    let pixels = image.as_raw().as_chunks::<3>().0;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let chosen = sample(&mut rng, pixels.len(), SAMPLES.min(pixels.len()));
    let rows: Vec<_> = chosen
        .iter()
        .map(|i| Array2::from_shape_fn((1, 3), |(_, c)| f32::from(pixels[i][c]) / 255.0))
        .collect();
    let views: Vec<_> = rows.iter().map(|row| row.view()).collect();
    concatenate(Axis(0), &views).expect("rows of three numbers")
}

/// Mean shift of the nearest sampled colours, weighted by closeness.
fn local_shift(colour: [f32; 3], samples: &Array2<f32>, shifts: &Array2<f32>) -> [f32; 3] {
    let mut nearest = [(f32::INFINITY, 0usize); NEIGHBOURS];
    for (i, sample) in samples.rows().into_iter().enumerate() {
        let distance = (0..3).map(|c| (colour[c] - sample[c]).powi(2)).sum();
        if distance < nearest[NEIGHBOURS - 1].0 {
            let at = nearest.partition_point(|(other, _)| *other <= distance);
            nearest[at..].rotate_right(1);
            nearest[at] = (distance, i);
        }
    }
    let (mut total, mut shift) = (0.0, [0.0; 3]);
    for (distance, i) in nearest {
        let weight = 1.0 / (distance + 1e-3);
        total += weight;
        for c in 0..3 {
            shift[c] += weight * shifts[[i, c]];
        }
    }
    shift.map(|s| s / total)
}

fn side_by_side(images: &[&RgbImage]) -> RgbImage {
    let height = images.iter().map(|image| image.height()).max().unwrap_or(0);
    let mut canvas = RgbImage::new(images.iter().map(|image| image.width()).sum(), height);
    let mut left = 0;
    for image in images {
        image::imageops::replace(&mut canvas, *image, left, 0);
        left += i64::from(image.width());
    }
    canvas
}
