//! The folder of a run: which file lies where, and which checkpoints stay.
//!
//! ```text
//! config.toml                             the resolved configuration
//! checkpoints/step-000000123.safetensors  the newest ones, to resume from
//! checkpoints/epoch-0025.safetensors      those that stay for good
//! metrics.jsonl                           one JSON object a step
//! tensorboard/                            the same for TensorBoard
//! weights.safetensors                     the trained network, when the run has ended
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, CheckpointError, write_atomically};
use crate::error::TrainError;

/// The folder of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// The run in `root`, whether it exists or not. Nothing is touched.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The metrics, one JSON object a line.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The folder that TensorBoard reads.
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// The trained network.
    pub fn weights(&self) -> PathBuf {
        self.root.join("weights.safetensors")
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The checkpoint of one step, whether it exists or not.
    pub fn checkpoint_of(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:09}.safetensors"))
    }

    /// Whether a run has begun here.
    pub fn exists(&self) -> bool {
        self.config().exists()
    }

    /// Makes the folder for a new run and writes its configuration.
    ///
    /// # Errors
    /// [`TrainError::RunExists`] if there is a run already; an error of the file system.
    pub(crate) fn create(&self, config: &str) -> Result<(), TrainError> {
        if self.exists() {
            return Err(TrainError::RunExists { path: self.root.clone() });
        }
        let path = self.checkpoints();
        fs::create_dir_all(&path).map_err(|source| TrainError::RunFolder {
            action: "create",
            path,
            source,
        })?;
        write_atomically(&self.config(), config.as_bytes())?;
        Ok(())
    }

    /// Checkpoints to resume from, newest first.
    pub fn resumable(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.checkpoints()) else { return Vec::new() };
        let mut found: Vec<(u64, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let step =
                    name.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()?;
                Some((step, entry.path()))
            })
            .collect();
        found.sort_by_key(|&(step, _)| std::cmp::Reverse(step));
        found.into_iter().map(|(_, path)| path).collect()
    }

    /// The newest checkpoint that is not damaged, and its file. Damaged ones are named in the log.
    ///
    /// # Errors
    /// [`CheckpointError::None`] if there is none; [`CheckpointError::Version`] or [`CheckpointError::Read`]
    /// where an older one would silently lose work.
    pub fn newest(&self) -> Result<(Checkpoint, PathBuf), CheckpointError> {
        let mut damaged = Vec::new();
        for path in self.resumable() {
            match Checkpoint::read(&path) {
                Ok(checkpoint) => return Ok((checkpoint, path)),
                Err(error @ CheckpointError::Damaged { .. }) => {
                    tracing::warn!("{error}; the one before it is tried");
                    damaged.push(path);
                }
                Err(error) => return Err(error),
            }
        }
        Err(CheckpointError::None { path: self.checkpoints(), damaged })
    }

    /// Saves a checkpoint; the newest `keep` stay, older ones go. `keep_epoch` names an epoch whose
    /// checkpoint stays for good.
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; what was there before is then still there.
    pub(crate) fn save(
        &self,
        checkpoint: &Checkpoint,
        keep: usize,
        keep_epoch: Option<u64>,
    ) -> Result<PathBuf, CheckpointError> {
        let folder = self.checkpoints();
        let path = self.checkpoint_of(checkpoint.position.step);
        checkpoint.write(&path)?;
        if let Some(epoch) = keep_epoch {
            let lasting = folder.join(format!("epoch-{epoch:04}.safetensors"));
            // A second name for the same file costs nothing; where the file system has no such names, a copy.
            let _ = fs::remove_file(&lasting);
            if fs::hard_link(&path, &lasting).is_err() {
                checkpoint.write(&lasting)?;
            }
        }
        for old in self.resumable().into_iter().skip(keep) {
            if let Err(error) = fs::remove_file(&old) {
                tracing::warn!("cannot remove the old checkpoint {}: {error}", old.display());
            }
        }
        Ok(path)
    }
}
