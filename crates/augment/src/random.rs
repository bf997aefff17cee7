//! Random streams: one generator for each crop, derived from (seed, epoch, sample, crop).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The generator that every random step draws from.
pub type AugmentRng = ChaCha8Rng;

/// Names one crop of one image in one epoch, and with it the random stream of its augmentation.
///
/// No stream is shared between crops: a crop looks the same whichever thread makes it, and whatever was
/// made before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CropKey {
    /// Seed of the run.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Number of the sample in its data set, from 0.
    pub sample: u64,
    /// Number of the crop among all crops of the sample, group by group, from 0.
    pub crop: u64,
}

impl CropKey {
    /// The generator of this crop: ChaCha8 with the four numbers, little-endian, as its 256-bit key.
    ///
    /// Different keys give independent streams, since the key is used as it is, not hashed.
    ///
    /// ```
    /// use rand::Rng;
    /// use swav_augment::CropKey;
    ///
    /// let key = CropKey { seed: 31, epoch: 0, sample: 7, crop: 1 };
    /// let again: u64 = key.rng().random();
    /// assert_eq!(key.rng().random::<u64>(), again);
    /// assert_ne!(CropKey { crop: 2, ..key }.rng().random::<u64>(), again);
    /// ```
    pub fn rng(&self) -> AugmentRng {
        let mut key = [0; 32];
        for (bytes, word) in
            key.as_chunks_mut::<8>().0.iter_mut().zip([self.seed, self.epoch, self.sample, self.crop])
        {
            *bytes = word.to_le_bytes();
        }
        ChaCha8Rng::from_seed(key)
    }
}

/// A number between `low` and `high`, drawn uniformly; `low` if both are equal. Draws once in any case.
pub(crate) fn uniform(rng: &mut AugmentRng, low: f32, high: f32) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

/// True with this probability. Draws once in any case, also for 0 and 1.
pub(crate) fn happens(rng: &mut AugmentRng, probability: f32) -> bool {
    rng.random::<f32>() < probability
}
