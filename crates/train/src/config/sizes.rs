//! Sizes: which numbers of a configuration are sane on any machine, and how much memory a run takes, told before any of it
//! is allocated.

use std::fmt;

use swav_encoder::{Checkpointing, EncoderSpec, Precision};

use super::check::{at_most, value};
use super::{ConfigError, OptimizerKind, Settings, TrainConfig};
use crate::memory::bytes;

/// Epochs of a run at most: with 2^32 images or fewer no count of steps overflows.
const MOST_EPOCHS: u64 = 1 << 31;
/// Images of a batch, or rows of a queue.
const MOST_IMAGES: u64 = 1 << 32;
/// Threads that one machine can make use of.
const MOST_THREADS: u64 = 1024;
/// Batches that may wait.
const MOST_BATCHES: u64 = 4096;
/// Crops of an image.
const MOST_CROPS: u64 = 1024;
/// Heads of prototypes.
const MOST_HEADS: u64 = 256;
/// Iterations of Sinkhorn-Knopp: far more than change anything.
const MOST_ITERS: u64 = 10_000;
/// MiB of decoded images: a pebibyte.
const MOST_CACHE: u64 = 1 << 30;
const OF_NETWORK: &str = "for the network's parameters, gradients and optimiser";
const NETWORK_KEYS: &str = "encoder.width, encoder.arch, encoder.head";
const F32: u128 = size_of::<f32>() as u128;

/// Refuses numbers that make sense on no machine.
pub(super) fn check_bounds(config: &TrainConfig) -> Result<(), ConfigError> {
    let (t, loader) = (&config.training, &config.loader);
    let crops = config.augment.resolved().crops.unwrap_or_default();
    let n_crops = crops.iter().fold(0u64, |sum, group| sum.saturating_add(group.n_crops as u64));
    let bounds = [
        ("training.epochs", t.epochs, MOST_EPOCHS),
        ("training.batch_size", t.batch_size as u64, MOST_IMAGES),
        ("training.threads", t.threads as u64, MOST_THREADS),
        ("loader.n_workers", loader.n_workers as u64, MOST_THREADS),
        ("loader.queue_batches", loader.queue_batches as u64, MOST_BATCHES),
        ("augment.crops", n_crops, MOST_CROPS),
        ("prototypes.n_prototypes", config.prototypes.n_prototypes.len() as u64, MOST_HEADS),
        ("sinkhorn.n_iters", config.sinkhorn.n_iters as u64, MOST_ITERS),
        ("queue.length", config.queue.length as u64, MOST_IMAGES),
        ("reestimation.batch_size", config.reestimation.batch_size as u64, MOST_IMAGES),
        ("data.cache_mib", config.data.cache_mib as u64, MOST_CACHE),
    ];
    for (key, got, most) in bounds {
        let expected = match key {
            "augment.crops" => format!("at most {most} crops in all"),
            "prototypes.n_prototypes" => format!("at most {most} heads"),
            "training.threads" | "loader.n_workers" => format!("0 (one for each core) to {most}"),
            _ => format!("at most {most}"),
        };
        at_most(key, got, most, &expected)?;
    }
    Ok(())
}

/// Memory of one part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPart {
    /// What takes it.
    pub what: &'static str,
    /// The keys of the configuration that it follows from, the first one first to change.
    pub keys: &'static str,
    /// How much it is.
    pub bytes: u128,
}

/// About how much memory of the host a run takes, by part.
///
/// What training keeps is counted exactly (parameters, gradients, the optimiser's memory, batches, scores, the queue) or,
/// for a pass through the network, by the outputs of its convolutions, which comes within a fifth. Decoded images, which [`DataConfig::cache_mib`](swav_data::DataConfig::cache_mib)
/// bounds, and working memory of the kernels are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryEstimate {
    parts: Vec<MemoryPart>,
}

impl MemoryEstimate {
    /// The parts, largest first.
    pub fn parts(&self) -> &[MemoryPart] {
        &self.parts
    }

    /// Bytes of all parts.
    pub fn total(&self) -> u128 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Makes sure that it fits into `available` bytes, such as [`available_memory`](crate::available_memory) gives; where
    /// they are not known, into 2^46.
    ///
    /// # Errors
    /// [`ConfigError::Memory`], which names the largest part and its keys.
    pub fn check(&self, available: Option<u64>) -> Result<(), ConfigError> {
        let available = u128::from(available.unwrap_or(1 << 46));
        let total = self.total();
        match self.parts.first().filter(|_| total > available) {
            None => Ok(()),
            Some(&MemoryPart { what, keys, bytes: part }) => {
                Err(ConfigError::Memory { what, keys, part, total, available })
            }
        }
    }

    /// The same without the network, for where that is there already.
    pub(crate) fn without_network(mut self) -> Self {
        self.parts.retain(|part| part.what != OF_NETWORK);
        self
    }

    fn new(mut parts: Vec<MemoryPart>) -> Self {
        parts.retain(|part| part.bytes > 0);
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        Self { parts }
    }
}

impl fmt::Display for MemoryEstimate {
    /// `about 1.5 GiB: 1.0 GiB a pass through the network, ...`, the parts that matter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        let shown = self.parts.iter().filter(|part| part.bytes * 20 > total);
        let shown: Vec<String> = shown.map(|part| format!("{} {}", bytes(part.bytes), part.what)).collect();
        write!(f, "about {}: {}", bytes(total), shown.join(", "))
    }
}

/// The sizes that the memory of a training follows from.
#[derive(Debug, Clone)]
pub struct TrainingSizes<'a> {
    /// The network.
    pub encoder: &'a EncoderSpec,
    /// The side and the number of the crops of each resolution.
    pub crops: Vec<(usize, usize)>,
    /// Images of a batch.
    pub batch_size: usize,
    /// Batches in memory at a time.
    pub n_batches: usize,
    /// Prototypes of all heads together.
    pub n_prototypes: usize,
    /// Crops that have codes.
    pub n_assign: usize,
    /// Rows of each list of the queue.
    pub queue_length: usize,
    /// Numbers that the optimiser remembers of each parameter.
    pub n_slots: usize,
    /// Whether the network runs on the CPU, so that its activations are in the host's memory.
    pub on_host: bool,
}

impl TrainingSizes<'_> {
    /// What the parts of the training take.
    pub fn memory(&self) -> MemoryEstimate {
        let (batch, n_prototypes) = (self.batch_size as u128, self.n_prototypes as u128);
        let (n_assign, queue) = (self.n_assign as u128, self.queue_length as u128);
        let dim = self.encoder.embedding_dim() as u128;
        let (mut views, mut activations, mut n_rows) = (0u128, 0u128, 0u128);
        for &(size, n_crops) in &self.crops {
            let n_images = batch.saturating_mul(n_crops as u128);
            n_rows += n_images;
            views += n_images.saturating_mul((size as u128).pow(2).saturating_mul(3));
            activations += n_images.saturating_mul(kept_values(self.encoder, size));
        }
        let width = if self.encoder.config().precision == Precision::Mixed { 2 } else { F32 };
        let part = |what, keys, bytes| MemoryPart { what, keys, bytes };
        let per_parameter = (2 + self.n_slots as u128) * F32;
        MemoryEstimate::new(vec![
            part(OF_NETWORK, NETWORK_KEYS, u128::from(self.encoder.n_parameters()) * per_parameter),
            part(
                "for the prototypes",
                "prototypes.n_prototypes, encoder.dim",
                n_prototypes * dim * per_parameter,
            ),
            part(
                "for batches that are loaded ahead",
                "training.batch_size, loader.queue_batches, augment.crops",
                views.saturating_mul(F32 * self.n_batches as u128),
            ),
            part(
                "for a pass through the network",
                "training.batch_size, augment.crops, encoder.width",
                // Half as much again for the gradients on their way back.
                if self.on_host { activations.saturating_mul(width) / 2 * 3 } else { 0 },
            ),
            part(
                "for scores and codes",
                "prototypes.n_prototypes, training.batch_size",
                (2 * n_rows + n_assign * batch).saturating_mul(n_prototypes * F32),
            ),
            part("for the queue", "queue.length, encoder.dim", (n_assign * queue).saturating_mul(dim * F32)),
            part(
                "for the queue's scores",
                "queue.length, prototypes.n_prototypes",
                (2 * queue).saturating_mul(n_prototypes * F32),
            ),
        ])
    }
}

impl Settings {
    /// The memory of a training in one of `world_size` processes; `on_host` if the network runs on the CPU, so that its
    /// activations are in the host's memory.
    pub fn training_memory(&self, world_size: usize, on_host: bool) -> MemoryEstimate {
        let config = self.config();
        let groups = self.multi_crop().groups().iter();
        let sizes = TrainingSizes {
            encoder: self.encoder(),
            crops: groups.map(|group| (group.crop.size, group.n_crops)).collect(),
            batch_size: config.training.batch_size,
            n_batches: config.loader.queue_batches.saturating_add(3),
            n_prototypes: config.prototypes.n_prototypes.iter().sum(),
            n_assign: config.loss.crops_for_assign.len(),
            queue_length: self.queue_length(world_size),
            n_slots: self.n_slots(),
            on_host,
        };
        sizes.memory()
    }

    /// Numbers that the optimiser remembers of each parameter.
    pub(crate) fn n_slots(&self) -> usize {
        match self.config().optimizer.kind {
            OptimizerKind::Adamw => 2,
            OptimizerKind::Larc | OptimizerKind::Sgd => 1,
        }
    }

    /// The memory of the network alone, as programs need it that embed images.
    pub fn network_memory(&self) -> MemoryEstimate {
        let bytes = u128::from(self.encoder().n_parameters()) * F32;
        MemoryEstimate::new(vec![MemoryPart { what: "for its parameters", keys: NETWORK_KEYS, bytes }])
    }
}

/// Values that a training pass over one image of `size` pixels keeps for backward.
fn kept_values(encoder: &EncoderSpec, size: usize) -> u128 {
    let all = u128::from(encoder.n_activations(size));
    match encoder.config().checkpointing {
        Checkpointing::Off => all,
        // One map of each block, of the two to four that it makes.
        _ => all / 3,
    }
}

pub(super) fn too_small(key: &str, got: f64) -> Result<(), ConfigError> {
    if got == 0.0 || got >= f64::from(f32::MIN_POSITIVE) {
        return Ok(());
    }
    Err(value(key, "0, or a number that 32-bit floats have (1.2e-38 and more)", got))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(overrides: &[&str]) -> MemoryEstimate {
        let overrides: Vec<String> = overrides.iter().map(|&given| given.to_owned()).collect();
        let settings = TrainConfig::parse("", &overrides).unwrap().check().unwrap();
        settings.training_memory(1, true)
    }

    #[test]
    fn the_largest_part_is_named_with_what_it_needs_and_what_there_is() {
        for (given, key, what) in [
            ("queue.length=4000000000", "queue.length", "queue"),
            ("loader.queue_batches=4096", "training.batch_size, loader.queue_batches", "batches"),
            ("encoder.width=16384", "encoder.width", "parameters"),
            ("training.batch_size=999999999", "training.batch_size", "network"),
            ("prototypes.n_prototypes=[16000000, 16000000]", "prototypes.n_prototypes", "prototypes"),
        ] {
            let text = memory(&[given]).check(Some(8 << 30)).unwrap_err().to_string();
            assert!(text.starts_with(key) && text.contains(what), "{given}: {text}");
            assert!(text.contains("8.0 GiB"), "{given}: {text}");
        }
        memory(&[]).check(None).unwrap();
    }

    #[test]
    fn a_queue_counts_by_its_shape() {
        let length = 64 * 1000;
        let with = memory(&[&format!("queue.length={length}")]);
        let part = with.parts().iter().find(|part| part.what == "for the queue").unwrap();
        assert_eq!(part.bytes, 2 * length * 128 * 4);
        let without = memory(&[]);
        assert_eq!(with.total() - without.total(), part.bytes + 2 * length * 3000 * 4);
    }
}
