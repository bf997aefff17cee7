//! Checkpoints: one safetensors file with everything that a run needs to go on bit for bit.
//!
//! Weights and prototypes stand under the reference's names, so that other programs can read them; the
//! optimiser's memory has the prefix `optimizer.`, the queue is `queue.rows`. The metadata entry `swav` is a JSON
//! object with the position, the configuration, the identity of the data and a CRC-32C of all the rest. Random
//! streams need no state: they are derived from seed, epoch, sample and crop.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ndarray::Array3;
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use serde::{Deserialize, Serialize};
use swav_encoder::{StateDict, StateTensor};
use swav_prototypes::FeatureQueue;

/// Version of the layout; a reader refuses others.
const VERSION: u32 = 1;
/// The metadata entry.
const ENTRY: &str = "swav";
const OPTIMIZER: &str = "optimizer.";
const QUEUE: &str = "queue.rows";
const PROTOTYPES: &str = "prototypes.";

/// Why a checkpoint cannot be written, read or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Writing failed: a full disk, missing rights. Earlier checkpoints are as they were.
    #[error("cannot write the checkpoint {path}: {message}; earlier checkpoints are intact")]
    Write {
        /// The file that was to be written.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The file cannot be read at all.
    #[error("cannot read the checkpoint {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is truncated, or its contents are not what was written.
    #[error("the checkpoint {path} is damaged: {message}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        message: String,
    },
    /// Another version of this program wrote it.
    #[error("the checkpoint {path} has layout {got}, this program reads {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        got: u32,
    },
    /// Nothing to resume from.
    #[error("no usable checkpoint in {path}{}", damaged_list(.damaged))]
    None {
        /// The folder.
        path: PathBuf,
        /// Checkpoints that are there but damaged.
        damaged: Vec<PathBuf>,
    },
    /// The checkpoint is of another architecture, other data, or another recipe.
    #[error("the checkpoint {path} does not fit this run:\n  {}", .differences.join("\n  "))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Each difference, one line.
        differences: Vec<String>,
    },
}

fn damaged_list(damaged: &[PathBuf]) -> String {
    if damaged.is_empty() {
        return String::new();
    }
    let names: Vec<String> = damaged.iter().map(|path| path.display().to_string()).collect();
    format!("; damaged: {}", names.join(", "))
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// The epoch of the next step, from 0.
    pub epoch: u64,
    /// The batch of the next step within its epoch, from 0.
    pub batch: u64,
    /// Steps done in all.
    pub step: u64,
}

/// Everything that a run needs to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// How far the run has come.
    pub position: Position,
    /// The resolved configuration as TOML.
    pub config: String,
    /// [`Dataset::fingerprint`](swav_data::Dataset::fingerprint) of the training images.
    pub data_fingerprint: u64,
    /// One line about the training images, for messages.
    pub data_description: String,
    /// Parameters and batch-norm statistics of the encoder, and the prototypes.
    pub state: StateDict,
    /// The optimiser's memory of all of them.
    pub optimizer: StateDict,
    /// The feature queue, if its epoch has come.
    pub queue: Option<FeatureQueue>,
}

/// The metadata entry.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    position: Position,
    config: String,
    data_fingerprint: u64,
    data_description: String,
    queue: Option<QueueHeader>,
    crc32c: u32,
}

#[derive(Serialize, Deserialize)]
struct QueueHeader {
    batch_size: usize,
    filled: Vec<usize>,
}

impl Checkpoint {
    /// The encoder's part of [`state`](Self::state).
    pub fn encoder_state(&self) -> StateDict {
        self.part(|name| !name.starts_with(PROTOTYPES))
    }

    /// The prototypes' part of [`state`](Self::state).
    pub fn prototypes_state(&self) -> StateDict {
        self.part(|name| name.starts_with(PROTOTYPES))
    }

    fn part(&self, wanted: impl Fn(&str) -> bool) -> StateDict {
        let chosen = self.state.iter().filter(|(name, _)| wanted(name));
        chosen.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
    }

    /// Writes the file so that it is there as a whole or not at all: to a temporary name, synced, renamed, and
    /// the folder synced.
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; a file that was at `path` before is then unchanged.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let queue_rows = self.queue.as_ref().map(|queue| {
            let rows = queue.rows();
            StateTensor::new(rows.shape().to_vec(), rows.iter().copied().collect())
                .expect("an array has as many values as its shape says")
        });
        let optimizer: Vec<(String, &StateTensor)> =
            self.optimizer.iter().map(|(name, tensor)| (format!("{OPTIMIZER}{name}"), tensor)).collect();
        let mut tensors: Vec<(&str, Floats<'_>)> =
            self.state.iter().map(|(name, tensor)| (name, Floats(tensor))).collect();
        tensors.extend(optimizer.iter().map(|(name, tensor)| (name.as_str(), Floats(tensor))));
        tensors.extend(queue_rows.iter().map(|rows| (QUEUE, Floats(rows))));
        tensors.sort_by_key(|(name, _)| *name);

        let mut header = Header {
            version: VERSION,
            position: self.position,
            config: self.config.clone(),
            data_fingerprint: self.data_fingerprint,
            data_description: self.data_description.clone(),
            queue: self
                .queue
                .as_ref()
                .map(|queue| QueueHeader { batch_size: queue.batch_size(), filled: queue.filled().to_vec() }),
            crc32c: 0,
        };
        let pairs = tensors.iter().map(|(name, tensor)| (*name, tensor.0.shape(), tensor.data()));
        header.crc32c = checksum(&header, pairs);
        let text = serde_json::to_string(&header).expect("a header of numbers and strings is JSON");
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned()), (ENTRY.to_owned(), text)]);
        write_atomically(path, safetensors::serialize(tensors, Some(metadata)))
    }

    /// Reads and verifies a file.
    ///
    /// # Errors
    /// [`CheckpointError::Read`], [`CheckpointError::Damaged`], [`CheckpointError::Version`].
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let bytes =
            fs::read(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
        let damaged = |message: String| CheckpointError::Damaged { path: path.to_owned(), message };
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(error.to_string()))?;
        let entry = metadata.metadata().as_ref().and_then(|entries| entries.get(ENTRY));
        let entry = entry.ok_or_else(|| damaged(format!("it has no metadata entry `{ENTRY}`")))?;
        let mut header: Header = serde_json::from_str(entry).map_err(|error| damaged(error.to_string()))?;
        if header.version != VERSION {
            return Err(CheckpointError::Version { path: path.to_owned(), got: header.version });
        }
        let mut views: Vec<_> = tensors.iter().collect();
        views.sort_by_key(|(name, _)| *name);
        let written = std::mem::take(&mut header.crc32c);
        let pairs = views.iter().map(|(name, view)| (*name, view.shape(), Cow::Borrowed(view.data())));
        let found = checksum(&header, pairs);
        if found != written {
            return Err(damaged(format!("checksum {found:08x}, but {written:08x} was written")));
        }
        let (mut state, mut optimizer, mut queue) = (StateDict::new(), StateDict::new(), None);
        for (name, view) in &views {
            if view.dtype() != Dtype::F32 {
                return Err(damaged(format!("tensor {name} is not of 32-bit floats")));
            }
            let values = view.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            let tensor = StateTensor::new(view.shape().to_vec(), values)
                .map_err(|error| damaged(format!("tensor {name}: {error}")))?;
            if let Some(name) = name.strip_prefix(OPTIMIZER) {
                optimizer.insert(name, tensor);
            } else if *name == QUEUE {
                queue = Some(tensor);
            } else {
                state.insert(*name, tensor);
            }
        }
        let queue = match (queue, header.queue) {
            (Some(rows), Some(header)) => {
                Some(restore_queue(rows, header).map_err(|message| damaged(format!("queue: {message}")))?)
            }
            (None, None) => None,
            _ => return Err(damaged("it has a part of a queue only".to_owned())),
        };
        Ok(Self {
            position: header.position,
            config: header.config,
            data_fingerprint: header.data_fingerprint,
            data_description: header.data_description,
            state,
            optimizer,
            queue,
        })
    }
}

/// Writes weights alone, under the reference's names, for other programs; atomically.
///
/// # Errors
/// [`CheckpointError::Write`].
pub fn write_weights(state: &StateDict, path: &Path) -> Result<(), CheckpointError> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let tensors = state.iter().map(|(name, tensor)| (name, Floats(tensor)));
    write_atomically(path, safetensors::serialize(tensors, Some(metadata)))
}

/// A tensor as safetensors wants to see it.
struct Floats<'a>(&'a StateTensor);

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(self.0.data()))
        } else {
            Cow::Owned(self.0.data().iter().flat_map(|value| value.to_le_bytes()).collect())
        }
    }

    fn data_len(&self) -> usize {
        size_of_val(self.0.data())
    }
}

/// CRC-32C of the header without its checksum, and of names, shapes and values in the order of the names.
fn checksum<'a>(
    header: &Header,
    tensors: impl Iterator<Item = (&'a str, &'a [usize], Cow<'a, [u8]>)>,
) -> u32 {
    let text = serde_json::to_vec(header).expect("a header of numbers and strings is JSON");
    let mut crc = crc32c::crc32c(&text);
    for (name, shape, data) in tensors {
        crc = crc32c::crc32c_append(crc, name.as_bytes());
        for &extent in shape {
            crc = crc32c::crc32c_append(crc, &(extent as u64).to_le_bytes());
        }
        crc = crc32c::crc32c_append(crc, &data);
    }
    crc
}

fn restore_queue(rows: StateTensor, header: QueueHeader) -> Result<FeatureQueue, String> {
    let &[n_assign, length, dim] = rows.shape() else {
        return Err(format!("expected three dimensions, got {:?}", rows.shape()));
    };
    let rows = Array3::from_shape_vec((n_assign, length, dim), rows.into_data())
        .map_err(|error| error.to_string())?;
    FeatureQueue::from_rows(rows, header.batch_size, header.filled).map_err(|error| error.to_string())
}

/// Puts the bytes into a temporary file beside `path`, syncs it, renames it, and syncs the folder.
///
/// `safetensors::serialize_to_file` renames too, but syncs nothing and leaves a file of a random name behind when it
/// is killed.
pub(crate) fn write_atomically(
    path: &Path,
    bytes: Result<Vec<u8>, SafeTensorError>,
) -> Result<(), CheckpointError> {
    let temporary = path.with_extension("tmp");
    let write = |bytes: Vec<u8>| -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            // Opening a folder as a file, to sync it, works on Unix only; elsewhere renaming has to do.
            Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    let result = bytes
        .map_err(|error| error.to_string())
        .and_then(|bytes| write(bytes).map_err(|error| error.to_string()));
    result.map_err(|message| {
        // What is left of the failed attempt would only take space; the failure is reported in any case.
        let _ = fs::remove_file(&temporary);
        CheckpointError::Write { path: path.to_owned(), message }
    })
}
