//! What advice rests on: the images, the machine, a measured step.

use std::collections::BTreeSet;

use swav_data::{Dataset, Subset, check, spread};
use swav_encoder::DeviceMemory;

/// Everything that advice rests on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Facts {
    /// The images.
    pub data: DataFacts,
    /// The machine.
    pub machine: MachineFacts,
    /// A step as it was measured; `None` if it was not.
    pub step: Option<StepFacts>,
    /// What training takes of a card's memory, asked with the configuration at hand, or with one of the same network and crops
    /// before its batch was chosen; `None` if it was not asked, or runs on no card.
    pub card: Option<DeviceMemory>,
}

/// What is known of the images to train on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DataFacts {
    /// How many there are.
    pub n_images: usize,
    /// Median of the shorter sides in pixels.
    pub short_side: u32,
    /// Whether more than nine in ten are without colour.
    pub is_grey: bool,
    /// How many classes the labels name; `None` without labels.
    pub n_classes: Option<usize>,
    /// Bytes of all images decoded.
    pub decoded_bytes: u64,
    /// Share of the images that cannot be read, 0 to 1.
    pub bad_share: f64,
}

/// What is known of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MachineFacts {
    /// Cores that can compute at the same time.
    pub n_cores: usize,
    /// Bytes of memory, where known.
    pub memory_bytes: Option<u64>,
    /// Whether training will run on a card.
    pub has_card: bool,
}

/// A training step as it was measured, with the configuration at hand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepFacts {
    /// Seconds, waiting for data included.
    pub seconds: f64,
    /// Share of it spent waiting for data, 0 to 1.
    pub data_wait: f64,
    /// The most memory that the process had in use, in bytes, where the system says.
    pub peak_bytes: Option<u64>,
}

impl DataFacts {
    /// Reads at most `max_images` images, evenly spread, and all labels.
    ///
    /// ```
    /// use swav_data::{DataConfig, ShapesConfig};
    /// use swav_train::advice::DataFacts;
    /// let builtin = ShapesConfig { n_train: 240, size: 16, ..ShapesConfig::default() };
    /// let data = DataConfig { builtin, ..DataConfig::default() }.open()?;
    /// let facts = DataFacts::of(data, 50);
    /// assert_eq!((facts.n_images, facts.short_side, facts.n_classes), (240, 16, Some(12)));
    /// # Ok::<(), swav_data::DataError>(())
    /// ```
    pub fn of(data: std::sync::Arc<dyn Dataset>, max_images: usize) -> Self {
        let n_images = data.len();
        let n_read = n_images.min(max_images.max(1));
        let labels: BTreeSet<u32> = (0..n_images).filter_map(|index| data.label(index)).collect();
        let Ok(sample) = Subset::new(data, spread(n_images, n_read)) else {
            return Self { n_images, ..Self::default() };
        };
        let report = check(&sample, |_| ());
        let n_good = report.n_good().max(1);
        Self {
            n_images,
            short_side: report.short_side(0.5),
            is_grey: report.n_grey * 10 > report.n_good() * 9,
            n_classes: (!labels.is_empty()).then_some(labels.len()),
            decoded_bytes: (report.decoded_bytes as u128 * n_images as u128 / n_good as u128) as u64,
            bad_share: report.bad.len() as f64 / n_read.max(1) as f64,
        }
    }
}

impl MachineFacts {
    /// This machine. `device` is the name that training will build its network with.
    pub fn here(device: &str) -> Self {
        Self {
            n_cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kibibytes("/proc/meminfo", "MemTotal:"),
            has_card: device.contains("cuda"),
        }
    }
}

impl StepFacts {
    /// The most memory that this process has had in use, where the system says.
    pub fn peak_of_process() -> Option<u64> {
        kibibytes("/proc/self/status", "VmHWM:")
    }
}

/// A number of kB in a file of Linux, in bytes.
fn kibibytes(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let number: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(number * 1024)
}
