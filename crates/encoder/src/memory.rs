//! What a training step takes of a device's own memory, told before it is run.

use std::fmt;

use crate::{GroupShape, StepPlan};

/// A training step, as far as the memory that it takes goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TrainingStep<'a> {
    /// By [`WholeStep`](crate::WholeStep), where the device can run such a step; pass by pass where it cannot.
    Whole(&'a StepPlan),
    /// Pass by pass: embeddings go to the host, their gradient comes back, then parameters are updated.
    Passes {
        /// Images of a batch.
        batch_size: usize,
        /// The resolutions.
        groups: &'a [GroupShape],
    },
}

/// What a training step takes of a device's own memory, and what there is.
///
/// It reads `about 9.3 GiB of 79.0 GiB for a batch of 64; up to 611 images would fit`: what is needed is rounded up, what there
/// is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Images of the batch.
    pub batch_size: usize,
    /// Bytes that training takes at most, all that is on the device for it included.
    pub needed: u64,
    /// Bytes that can be had there: what others have on the device is not counted.
    pub available: u64,
    /// The largest batch that fits, 0 if none does.
    pub largest: usize,
    /// The same with [`Checkpointing::Blocks`](crate::Checkpointing::Blocks); `None` where blocks are recomputed anyway.
    pub largest_again: Option<usize>,
}

impl DeviceMemory {
    /// Whether the batch fits.
    pub fn fits(&self) -> bool {
        self.needed <= self.available
    }
}

impl fmt::Display for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Tenths of a GiB, so that what does not fit is never written as what there is.
        let tenths = |tenths: u128| format!("{}.{} GiB", tenths / 10, tenths % 10);
        let needed = tenths((u128::from(self.needed) * 10).div_ceil(1 << 30));
        let available = tenths((u128::from(self.available) * 10) >> 30);
        write!(f, "about {needed} of {available} for a batch of {}; ", self.batch_size)?;
        match self.largest {
            0 => f.write_str("not a single image would fit")?,
            1 => f.write_str("1 image would fit")?,
            most => write!(f, "up to {most} images would fit")?,
        }
        match self.largest_again.filter(|&again| again > self.largest) {
            Some(again) => write!(f, ", {again} with encoder.checkpointing = \"blocks\""),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_as_one_line() {
        let memory = |needed, available, largest, largest_again| {
            DeviceMemory { batch_size: 64, needed, available, largest, largest_again }.to_string()
        };
        let gib = 1 << 30;
        assert_eq!(
            memory(9 * gib, 80 * gib, 540, Some(900)),
            "about 9.0 GiB of 80.0 GiB for a batch of 64; up to 540 images would fit, 900 with encoder.checkpointing = \"blocks\""
        );
        // A byte too much shows.
        assert_eq!(
            memory(9 * gib + 1, 9 * gib, 63, None),
            "about 9.1 GiB of 9.0 GiB for a batch of 64; up to 63 images would fit"
        );
        let again = memory(9 * gib, gib, 0, Some(1));
        assert!(again.ends_with("not a single image would fit, 1 with encoder.checkpointing = \"blocks\""));
        assert!(
            memory(u64::MAX, gib - 1, 1, Some(1))
                .ends_with("of 0.9 GiB for a batch of 64; 1 image would fit")
        );
    }
}
