//! What a run writes, and whether there is room for it: told before it trains, not hours later by its first checkpoint.

use std::fmt;
use std::path::Path;

use crate::config::Settings;
use crate::error::TrainError;
use crate::memory::bytes;
use crate::trainer::Trainer;

/// About how much of the disk a run takes. Metrics and a record of evaluations, some kilobytes an epoch, are not in it.
///
/// It reads `about 52.8 MiB: 3 checkpoints of 15.9 MiB, weights of 5.0 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskUse {
    /// Bytes of a checkpoint.
    pub checkpoint: u128,
    /// Checkpoints that are there at a time, at most: those that stay, and the one that is being written.
    pub n_checkpoints: u128,
    /// Bytes of the weights that the run ends with.
    pub weights: u128,
}

impl DiskUse {
    /// Bytes of all that is there at a time, at most.
    pub fn total(&self) -> u128 {
        self.checkpoint * self.n_checkpoints + self.weights
    }

    /// Makes sure that the next checkpoint fits into `free` bytes of the disk that `folder` is on.
    pub(crate) fn check(&self, folder: &Path, free: u64) -> Result<(), TrainError> {
        let checkpoint = self.checkpoint;
        if u128::from(free) < checkpoint {
            return Err(TrainError::DiskFull { path: folder.to_owned(), checkpoint, free });
        }
        Ok(())
    }
}

impl fmt::Display for DiskUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [total, checkpoint, weights] = [self.total(), self.checkpoint, self.weights].map(bytes);
        write!(f, "about {total}: {} checkpoints of {checkpoint}, weights of {weights}", self.n_checkpoints)
    }
}

impl Trainer {
    /// What this run takes of the disk.
    pub fn disk_use(&self) -> DiskUse {
        let parameters = self.encoder.parameters();
        let n_parameters = parameters.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        disk_use(&self.settings, n_parameters, self.encoder.embedding_dim(), self.collective.world_size())
    }

    /// Makes sure that a checkpoint can be written; one that cannot be would end the run after its first epoch. Warns where there
    /// is no room for those that a new run will keep.
    pub(crate) fn check_disk(&self) -> Result<(), TrainError> {
        let (folder, takes) = (self.folder.root(), self.disk_use());
        let Some(free) = free_space(folder) else { return Ok(()) };
        takes.check(folder, free)?;
        if self.position.step == 0 && u128::from(free) < takes.total() {
            tracing::warn!(
                "{}: {} free on its disk, and the run will take {takes}; it stops where the disk is full \
                 (checkpoint.keep and checkpoint.keep_every_epochs say how many stay)",
                folder.display(),
                bytes(free.into())
            );
        }
        Ok(())
    }
}

/// What a run of `world_size` processes with an encoder of so many parameters takes of the disk.
fn disk_use(settings: &Settings, n_parameters: usize, dim: usize, world_size: usize) -> DiskUse {
    let config = settings.config();
    let values = |n: usize| (n * size_of::<f32>()) as u128;
    let prototypes = config.prototypes.n_prototypes.iter().sum::<usize>() * dim;
    let queue = config.loss.crops_for_assign.len() * settings.queue_length(world_size) * world_size * dim;
    let checkpoints = &config.checkpoint;
    let for_good = config.training.epochs.checked_div(checkpoints.keep_every_epochs).unwrap_or(0);
    DiskUse {
        checkpoint: values((n_parameters + prototypes) * (1 + settings.n_slots()) + queue),
        n_checkpoints: checkpoints.keep as u128 + 1 + u128::from(for_good),
        weights: values(n_parameters),
    }
}

/// Bytes that can still be written to the disk that a folder is on or would be made on; `None` where the system does not tell, as
/// with file systems of other machines that claim to have no size at all.
pub fn free_space(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.as_os_str().is_empty() || folder.exists())?;
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let disk = fs4::statvfs(there).ok().filter(|disk| disk.total_space() > 0)?;
    Some(disk.available_space())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TrainConfig;

    fn disk_use(overrides: &[&str]) -> DiskUse {
        let overrides: Vec<String> = overrides.iter().map(|&given| given.to_owned()).collect();
        super::disk_use(&TrainConfig::parse("", &overrides).unwrap().check().unwrap(), 1_000_000, 128, 1)
    }

    #[test]
    fn checkpoints_are_counted_as_they_stay() {
        let count = |overrides: &[&str]| disk_use(overrides).n_checkpoints;
        assert_eq!(count(&["checkpoint.keep=2", "training.epochs=24", "checkpoint.keep_every_epochs=25"]), 3);
        assert_eq!(
            count(&["checkpoint.keep=2", "training.epochs=100", "checkpoint.keep_every_epochs=25"]),
            7
        );
        assert_eq!(count(&["checkpoint.keep=3", "training.epochs=100", "checkpoint.keep_every_epochs=0"]), 4);
    }

    #[test]
    fn the_optimiser_and_the_queue_are_in_a_checkpoint() {
        let [plain, adamw, queue] = [
            disk_use(&[]),
            disk_use(&["optimizer.kind=\"adamw\""]),
            disk_use(&[&format!("queue.length={}", 64 * 1000)]),
        ];
        assert_eq!(adamw.checkpoint * 2, plain.checkpoint * 3);
        assert_eq!(queue.checkpoint, plain.checkpoint + 2 * 64 * 1000 * 128 * 4);
        assert_eq!([adamw.weights, queue.weights], [plain.weights; 2]);
    }

    #[test]
    fn room_for_a_checkpoint_is_needed() {
        let use_ = DiskUse { checkpoint: 1 << 20, n_checkpoints: 3, weights: 1 << 19 };
        assert_eq!(use_.to_string(), "about 3.5 MiB: 3 checkpoints of 1.0 MiB, weights of 512.0 KiB");
        use_.check(Path::new("runs/a"), 1 << 20).unwrap();
        let error = use_.check(Path::new("runs/a"), (1 << 20) - 1).unwrap_err();
        assert!(matches!(error, TrainError::DiskFull { .. }), "{error}");
    }

    #[test]
    fn space_is_that_of_the_nearest_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), &folder.path().join("not/there"), Path::new("not-there"), Path::new("")] {
            assert!(free_space(path).is_some(), "{}", path.display());
        }
        if cfg!(target_os = "linux") {
            assert_eq!(free_space(Path::new("/proc/self")), None);
        }
    }
}
