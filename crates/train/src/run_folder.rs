//! The folder of a run: which file lies where, and which checkpoints stay.
//!
//! ```text
//! config.toml                             the resolved configuration
//! checkpoints/step-000000123.safetensors  the newest ones, to resume from
//! checkpoints/epoch-0025.safetensors      those that stay for good
//! metrics.jsonl                           one JSON object a step
//! tensorboard/                            the same for TensorBoard
//! weights.safetensors                     the trained network, when the run has ended, or an imported one
//! import.json                             where imported weights come from
//! .lock                                   whose run it is, while a process trains
//! ```

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, CheckpointError, RunPosition, write_atomically};
use crate::config::{Settings, TrainConfig};
use crate::error::TrainError;
use crate::lock::RunLock;
use crate::resume::{Change, differences};

/// Names below a run's folder.
const CHECKPOINTS: &str = "checkpoints";
const LOCK: &str = ".lock";

/// The folder of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    root: PathBuf,
}

/// How far a run has come, as [`RunFolder::standing`] sees it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Standing {
    /// The position of the newest checkpoint.
    pub position: RunPosition,
    /// Whether all epochs are done and the weights are written.
    pub finished: bool,
    /// What the settings change, of what may change.
    pub changes: Vec<Change>,
}

/// The folders that were made for a run, the deepest first.
#[derive(Debug, Default)]
pub(crate) struct Made(Vec<PathBuf>);

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

    /// What an import says of itself; there is none in the folder of a training.
    pub fn import_record(&self) -> PathBuf {
        self.root.join("import.json")
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join(CHECKPOINTS)
    }

    /// The checkpoint of one step, whether it exists or not.
    pub fn checkpoint_of(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:09}.safetensors"))
    }

    /// Whether a run has begun here: there are a configuration and a folder of checkpoints.
    pub fn exists(&self) -> bool {
        self.config().is_file() && self.checkpoints().is_dir()
    }

    /// Makes the folder `NAME-1` in `parent`, or that of the first number that is free. Two processes get two folders.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn numbered(parent: &Path, name: &str) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        for number in 1u64.. {
            let root = parent.join(format!("{name}-{number}"));
            match fs::create_dir(&root) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                other => return other.map(|()| Self { root }),
            }
        }
        unreachable!("numbers do not end")
    }

    /// What is in the folder that no run has put there; `None` if there is nothing, or no folder.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn foreign(&self) -> io::Result<Option<String>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        let names: Vec<_> = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
        let names = names.iter().map(|name| name.to_string_lossy());
        // What a start leaves that was killed, and what is hidden.
        let is_ours = |name: &str| match name {
            "config.tmp" => true,
            CHECKPOINTS => fs::read_dir(self.checkpoints()).is_ok_and(|mut inside| inside.next().is_none()),
            other => other.starts_with('.'),
        };
        Ok(names.filter(|name| !is_ours(name)).map(String::from).min())
    }

    /// Makes the folder for a new run, takes its lock, and writes the configuration. Where that fails nothing is left but what
    /// was there before.
    ///
    /// # Errors
    /// [`TrainError::RunExists`] if there is a run already; [`TrainError::NotARun`] if the folder has something else in
    /// it; [`TrainError::RunBusy`]; an error of the file system.
    pub(crate) fn create(&self, config: &str) -> Result<(RunLock, Made), TrainError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| TrainError::RunFolder { action, path, source }
        };
        if self.exists() {
            return Err(TrainError::RunExists { path: self.root.clone() });
        }
        if let Some(found) = self.foreign().map_err(failed("use", &self.root))? {
            return Err(TrainError::NotARun { path: self.root.clone(), found });
        }
        let missing = self.root.ancestors().take_while(|folder| !folder.exists() && *folder != Path::new(""));
        let made = Made(missing.map(Path::to_owned).collect());
        let begin = || {
            fs::create_dir_all(&self.root).map_err(failed("create", &self.root))?;
            let lock = self.lock()?;
            // Another process may have come first.
            if self.exists() {
                return Err(TrainError::RunExists { path: self.root.clone() });
            }
            fs::create_dir_all(self.checkpoints()).map_err(failed("create", &self.checkpoints()))?;
            write_atomically(&self.config(), config.as_bytes())?;
            Ok(lock)
        };
        match begin() {
            Ok(lock) => Ok((lock, made)),
            Err(error) => {
                if !matches!(error, TrainError::RunExists { .. } | TrainError::RunBusy { .. }) {
                    self.discard(&made);
                }
                Err(error)
            }
        }
    }

    /// Takes the lock of the run.
    ///
    /// # Errors
    /// [`TrainError::RunBusy`] if another process has it.
    pub(crate) fn lock(&self) -> Result<RunLock, TrainError> {
        RunLock::take(&self.root, self.root.join(LOCK))
    }

    /// Removes what a start has made that came to nothing, as long as it holds no state. Files of others stay, and so do
    /// folders that were there before, or are not empty then.
    pub(crate) fn discard(&self, made: &Made) {
        if !self.resumable().is_empty() || !self.lasting().is_empty() || self.weights().exists() {
            return;
        }
        // The failure that led here is what is reported.
        let _ = fs::remove_dir(self.checkpoints());
        let _ = fs::remove_dir_all(self.tensorboard());
        let temporary = self.config().with_extension("tmp");
        let record = self.import_record();
        for file in [self.config(), temporary, record, self.metrics(), self.root.join(LOCK)] {
            let _ = fs::remove_file(file);
        }
        made.0.iter().for_each(|folder| drop(fs::remove_dir(folder)));
    }

    /// Writes the configuration that a run goes on with, if it is another one.
    pub(crate) fn rewrite_config(&self, config: &str) -> Result<(), CheckpointError> {
        match fs::read_to_string(self.config()) {
            Ok(there) if there == config => Ok(()),
            _ => write_atomically(&self.config(), config.as_bytes()),
        }
    }

    /// Where the run stands, and what settings to go on with would change. `None` if nothing was saved yet.
    ///
    /// The data, and an encoder of the caller's own, are not looked at; [`Trainer::resume`](crate::Trainer::resume) compares those, too.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] if the settings differ in what has to stay; [`CheckpointError::Lost`]; what
    /// [`newest`](Self::newest) reports.
    pub fn standing(&self, settings: &Settings) -> Result<Option<Standing>, TrainError> {
        if !self.has_state()? {
            return Ok(None);
        }
        let (checkpoint, path) = self.newest()?;
        let then = TrainConfig::parse(&checkpoint.config, &[])?;
        let mut now = settings.config().clone();
        now.own_encoder.clone_from(&then.own_encoder);
        let found = differences(&then, &now)?;
        if !found.refused.is_empty() {
            return Err(CheckpointError::Mismatch { path, differences: found.refused }.into());
        }
        let RunPosition { epoch, batch, .. } = checkpoint.position;
        let done = (epoch, batch) >= (settings.config().training.epochs, 0);
        let finished = done && self.weights().exists();
        Ok(Some(Standing { position: checkpoint.position, finished, changes: found.changes }))
    }

    /// Whether there is a checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError::Lost`] if there is none, but the weights of a run that has ended; [`CheckpointError::Imported`].
    pub(crate) fn has_state(&self) -> Result<bool, CheckpointError> {
        match !self.resumable().is_empty() || !self.lasting().is_empty() {
            true => Ok(true),
            false if self.import_record().exists() => {
                Err(CheckpointError::Imported { path: self.root.clone() })
            }
            false if self.weights().exists() => Err(CheckpointError::Lost { path: self.root.clone() }),
            false => Ok(false),
        }
    }

    /// Checkpoints to resume from, newest first.
    pub fn resumable(&self) -> Vec<PathBuf> {
        self.saved("step-")
    }

    /// Checkpoints that stay for good, newest first.
    pub fn lasting(&self) -> Vec<PathBuf> {
        self.saved("epoch-")
    }

    /// Checkpoints whose name begins with `kind`, the highest number first.
    fn saved(&self, kind: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.checkpoints()) else { return Vec::new() };
        let mut found: Vec<(u64, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let number = name.to_str()?.strip_prefix(kind)?.strip_suffix(".safetensors")?.parse().ok()?;
                Some((number, entry.path()))
            })
            .collect();
        found.sort_by_key(|&(number, _)| std::cmp::Reverse(number));
        found.into_iter().map(|(_, path)| path).collect()
    }

    /// The newest checkpoint that is not damaged, and its file; where none is left to resume from, one that stays for good.
    /// Damaged ones are named in the log.
    ///
    /// # Errors
    /// [`CheckpointError::None`] if there is none; [`CheckpointError::Version`] or [`CheckpointError::Read`]
    /// where an older one would silently lose work.
    pub fn newest(&self) -> Result<(Checkpoint, PathBuf), CheckpointError> {
        let mut damaged = Vec::new();
        for path in self.resumable().into_iter().chain(self.lasting()) {
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
