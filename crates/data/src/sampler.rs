//! Which images come in which batch: a function of (seed, epoch, batch, rank) and nothing else.

use std::ops::Range;

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// The order of the images within an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "kebab-case"))]
pub enum Shuffle {
    /// `windows` for data sets that are read in blocks (shards, row groups), `full` for the others.
    #[default]
    Auto,
    /// A uniform permutation of all images.
    Full,
    /// Blocks in random order, cut into windows of about [`crate::LoaderConfig::window_images`] images, and a uniform
    /// permutation within each window. This is what a shuffle buffer over a stream of shards gives, with the same
    /// locality, but every order is a function of the seed, so that it can be resumed anywhere.
    Windows,
    /// The data set's own order.
    None,
}

/// The plan of all epochs of one process.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    pub n_images: usize,
    /// Runs of images for windowed shuffling; `None` shuffles fully.
    pub blocks: Option<Vec<Range<usize>>>,
    pub window_images: usize,
    pub shuffled: bool,
    pub seed: u64,
    pub batch_size: usize,
    pub rank: usize,
    pub world_size: usize,
    pub drop_last: bool,
}

impl Sampler {
    /// The number of batches in an epoch: the same on every process.
    pub fn n_batches(&self) -> usize {
        let global = self.batch_size * self.world_size;
        if self.drop_last { self.n_images / global } else { self.n_images.div_ceil(global) }
    }

    /// The order of all images in an epoch: the same on every process. 32 bits an image, as there may be many millions.
    pub fn order(&self, epoch: u64) -> Vec<u32> {
        let all = 0..self.n_images as u32;
        if !self.shuffled {
            return all.collect();
        }
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&epoch.to_le_bytes());
        seed[16..24].copy_from_slice(b"sampling");
        let mut rng = ChaCha8Rng::from_seed(seed);
        let Some(blocks) = &self.blocks else {
            let mut order: Vec<u32> = all.collect();
            order.shuffle(&mut rng);
            return order;
        };
        let mut blocks = blocks.clone();
        blocks.shuffle(&mut rng);
        let mut order = Vec::with_capacity(self.n_images);
        let mut window = 0;
        for block in blocks {
            order.extend(block.map(|index| index as u32));
            if order.len() - window >= self.window_images {
                order[window..].shuffle(&mut rng);
                window = order.len();
            }
        }
        order[window..].shuffle(&mut rng);
        order
    }

    /// The part of an epoch's order that is this process's share of a batch. Global batches follow each other in the
    /// order, and processes take equal parts of each, so that the images of a global batch do not depend on how many
    /// processes share it. An incomplete last batch is filled up from the front until it divides evenly.
    pub fn batch(&self, order: &[u32], batch: usize, indices: &mut Vec<usize>) {
        let global = self.batch_size * self.world_size;
        let from = batch * global;
        let share = (self.n_images - from).min(global).div_ceil(self.world_size);
        let mine = from + self.rank * share;
        indices.clear();
        indices.extend((mine..mine + share).map(|at| order[at % order.len()] as usize));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampler(n_images: usize, batch_size: usize) -> Sampler {
        Sampler {
            n_images,
            blocks: None,
            window_images: 0,
            shuffled: true,
            seed: 9,
            batch_size,
            rank: 0,
            world_size: 1,
            drop_last: false,
        }
    }

    fn sorted(mut order: Vec<u32>) -> Vec<u32> {
        order.sort_unstable();
        order
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let a = sampler(1000, 10);
        assert_eq!(a.order(3), a.order(3));
        assert_ne!(a.order(3), a.order(4));
        assert_ne!(a.order(3), Sampler { seed: 10, ..a.clone() }.order(3));
        let plain = Sampler { shuffled: false, ..a };
        assert!(plain.order(5).is_sorted());
    }

    #[test]
    fn windows_use_few_blocks_at_a_time_and_all_in_the_end() {
        let blocks = (0..100).map(|block| block * 10..block * 10 + 10).collect();
        let windowed = Sampler { blocks: Some(blocks), window_images: 50, ..sampler(1000, 10) };
        let order = windowed.order(0);
        assert_eq!(sorted(order.clone()), (0..1000).collect::<Vec<_>>());
        for window in order.chunks(50) {
            let mut used: Vec<_> = window.iter().map(|index| index / 10).collect();
            used.sort_unstable();
            used.dedup();
            assert_eq!(used.len(), 5);
            assert!(!window.is_sorted());
        }
        assert_ne!(order, windowed.order(1));
    }

    proptest! {
        #[test]
        fn processes_divide_each_global_batch(n in 1_usize..300, batch_size in 1_usize..20, world_size in 1_usize..5, drop_last in any::<bool>(), epoch in 0_u64..3) {
            let base = Sampler { world_size, drop_last, ..sampler(n, batch_size) };
            let order = base.order(epoch);
            prop_assert_eq!(sorted(order.clone()), (0..n as u32).collect::<Vec<_>>());
            let mut seen = Vec::new();
            for batch in 0..base.n_batches() {
                let mut together = Vec::new();
                for rank in 0..world_size {
                    let mut part = Vec::new();
                    Sampler { rank, ..base.clone() }.batch(&order, batch, &mut part);
                    prop_assert!(part.len() <= batch_size && !part.is_empty());
                    prop_assert!(!drop_last || part.len() == batch_size);
                    together.extend(part);
                }
                let one = Sampler { batch_size: batch_size * world_size, world_size: 1, drop_last: false, ..base.clone() };
                let mut whole = Vec::new();
                one.batch(&order, batch, &mut whole);
                prop_assert_eq!(&together[..whole.len()], &whole[..]);
                prop_assert!(together.len() < whole.len() + world_size);
                seen.extend(whole);
            }
            if !drop_last {
                prop_assert_eq!(seen, order.iter().map(|&index| index as usize).collect::<Vec<_>>());
            }
        }
    }
}
