//! Tests of whole networks, on every device that this build has.

mod devices;
#[cfg(feature = "parity")]
mod parity;
mod processes;
mod promises;

use ndarray::{Array2, Array4};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{BlockKind, Encoder, EncoderConfig, Head, ResNet, Stem, build};

/// The devices that the tests run on: ours, dfdx's, the card's engine on the host, and the one that `SWAV_TEST_DEVICE`
/// names, such as `cuda:0`.
pub(super) fn devices() -> Vec<String> {
    let mut devices = vec!["cpu".to_owned(), "dfdx:cpu".to_owned()];
    devices.extend(cfg!(feature = "cuda").then(|| "cuda:host".to_owned()));
    devices.extend(std::env::var("SWAV_TEST_DEVICE"));
    devices
}

/// A small network.
pub(super) fn small(block: BlockKind, stem: Stem, head: Head) -> EncoderConfig {
    let arch = ResNet::custom(block, [1, 2]).with_width(6).with_stem(stem).into();
    EncoderConfig { arch, head, dim: 5, exact: true, ..EncoderConfig::default() }
}

pub(super) fn encoder(device: &str, config: &EncoderConfig) -> Box<dyn Encoder> {
    build(device, &config.check().unwrap(), 31).unwrap()
}

/// Reproducible numbers in -1..1.
pub(super) fn noise(length: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..length).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Images of noise.
pub(super) fn images(n: usize, height: usize, width: usize, seed: u64) -> Array4<f32> {
    Array4::from_shape_vec((n, height, width, 3), noise(n * height * width * 3, seed)).unwrap()
}

/// A gradient for embeddings.
pub(super) fn gradient(z: &Array2<f32>, seed: u64) -> Array2<f32> {
    Array2::from_shape_vec(z.dim(), noise(z.len(), seed)).unwrap()
}

/// Euclidean norm.
pub(super) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Norm of the difference over the norm of `expected`.
pub(super) fn relative(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let difference: Vec<f32> = actual.iter().zip(expected).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(expected)
}

/// The bits of floats: `==` on floats takes 0 for -0 and no NaN for itself.
pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
