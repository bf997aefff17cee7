//! Tests of whole networks, on every device that this build has.

mod devices;
mod parity;
mod promises;

use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Arch, BlockKind, Encoder, EncoderConfig, Head, ImageBatch, Stem, build};

/// The devices that the tests run on. `SWAV_TEST_DEVICE=cuda:0` puts a GPU in the place of dfdx's own CPU.
pub(super) fn devices() -> [String; 2] {
    let composed = std::env::var("SWAV_TEST_DEVICE").unwrap_or_else(|_| "cpu:composed".into());
    ["cpu".into(), composed]
}

/// A small network.
pub(super) fn small(block: BlockKind, stem: Stem, head: Head) -> EncoderConfig {
    let arch = Arch::Custom { block, layers: vec![1, 2] };
    EncoderConfig { arch, width: 6, stem, head, dim: 5, exact: true, ..EncoderConfig::default() }
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
pub(super) struct Images(Vec<f32>, [usize; 3]);

impl Images {
    pub(super) fn new(n: usize, height: usize, width: usize, seed: u64) -> Self {
        Self(noise(n * height * width * 3, seed), [n, height, width])
    }

    pub(super) fn batch(&self) -> ImageBatch<'_> {
        ImageBatch::new(&self.0, self.1[0], self.1[1], self.1[2]).unwrap()
    }
}

/// A gradient for embeddings.
pub(super) fn gradient(z: &Array2<f32>, seed: u64) -> Array2<f32> {
    Array2::from_shape_vec(z.dim(), noise(z.len(), seed)).unwrap()
}

/// Norm of the difference over the norm of `expected`.
pub(super) fn relative(actual: &[f32], expected: &[f32]) -> f64 {
    swav_fixtures::relative_error(&*ndarray::aview1(actual), &*ndarray::aview1(expected))
}
