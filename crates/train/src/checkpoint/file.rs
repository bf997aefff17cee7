//! Checkpoints as files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use safetensors::{SafeTensors, View};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use swav_encoder::StateDict;

use super::{Checkpoint, CheckpointError, RunPosition, version1};
use crate::memory::available_memory;
use crate::section::{Floats, Section, floats};

/// Version of the layout; a reader refuses newer ones.
const VERSION: u32 = 2;
/// The metadata entry.
const ENTRY: &str = "swav";
pub(super) const OPTIMIZER: &str = "optimizer.";
const SECTIONS: &str = "sections/";

/// The metadata entry.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    position: RunPosition,
    config: String,
    data_fingerprint: u64,
    data_description: String,
    world_size: usize,
    /// By part: the values of each rank's section.
    sections: BTreeMap<String, Vec<Map<String, Value>>>,
    crc32c: u32,
}

/// What every version's metadata entry begins with.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// A tensor of a file: name, shape, bytes.
pub(super) type Entry<'a> = (&'a str, &'a [usize], Cow<'a, [u8]>);

impl Checkpoint {
    /// Writes the file so that it is there as a whole or not at all: to a temporary name, synced, renamed, and
    /// the folder synced.
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; a file that was at `path` before is then unchanged.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let mut tensors: Vec<(String, Floats<'_>)> =
            self.state.iter().map(|(name, tensor)| (name.to_owned(), Floats(tensor))).collect();
        let optimizer = self.optimizer.iter();
        tensors.extend(optimizer.map(|(name, tensor)| (format!("{OPTIMIZER}{name}"), Floats(tensor))));
        for (part, ranks) in &self.sections {
            for (rank, section) in ranks.iter().enumerate() {
                let named = section.tensors.iter();
                let named =
                    named.map(|(name, tensor)| (format!("{SECTIONS}{part}/{rank}/{name}"), Floats(tensor)));
                tensors.extend(named);
            }
        }
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));

        let values = |ranks: &Vec<Section>| ranks.iter().map(|section| section.values.clone()).collect();
        let mut header = Header {
            version: VERSION,
            position: self.position,
            config: self.config.clone(),
            data_fingerprint: self.data_fingerprint,
            data_description: self.data_description.clone(),
            world_size: self.world_size,
            sections: self.sections.iter().map(|(part, ranks)| (part.clone(), values(ranks))).collect(),
            crc32c: 0,
        };
        let entries = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.0.shape(), tensor.data()));
        header.crc32c = checksum(&header, entries);
        let text = serde_json::to_string(&header).expect("a header of numbers and strings is JSON");
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned()), (ENTRY.to_owned(), text)]);
        write_safetensors(path, safetensors::serialize(tensors, Some(metadata)))
    }

    /// Reads and verifies a file.
    ///
    /// # Errors
    /// [`CheckpointError::Read`], [`CheckpointError::TooLarge`], [`CheckpointError::Damaged`],
    /// [`CheckpointError::Version`].
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::Read { path: path.to_owned(), source };
        let size = fs::metadata(path).map_err(failed)?.len();
        if let Some(available) = available_memory().filter(|&available| size > available) {
            return Err(CheckpointError::TooLarge { path: path.to_owned(), size, available });
        }
        Self::from_bytes(&fs::read(path).map_err(failed)?, path)
    }

    /// As [`read`](Self::read), from the contents of the file at `path`.
    pub(crate) fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, CheckpointError> {
        let damaged = |message: String| CheckpointError::Damaged { path: path.to_owned(), message };
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| damaged(error.to_string()))?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| damaged(error.to_string()))?;
        let entry = metadata.metadata().as_ref().and_then(|entries| entries.get(ENTRY));
        let entry = entry.ok_or_else(|| damaged(format!("it has no metadata entry `{ENTRY}`")))?;
        let versioned: Versioned = serde_json::from_str(entry).map_err(|error| damaged(error.to_string()))?;
        let mut views: Vec<_> = tensors.iter().collect();
        views.sort_by_key(|(name, _)| *name);
        match versioned.version {
            1 => version1::read(entry, &views).map_err(damaged),
            VERSION => read(entry, &views).map_err(damaged),
            got => Err(CheckpointError::Version { path: path.to_owned(), expected: VERSION, got }),
        }
    }
}

/// The checkpoint of this version's header and tensors.
fn read(entry: &str, views: &[(&str, safetensors::tensor::TensorView<'_>)]) -> Result<Checkpoint, String> {
    let mut header: Header = serde_json::from_str(entry).map_err(|error| error.to_string())?;
    let written = std::mem::take(&mut header.crc32c);
    verify(&header, views, written)?;
    let mut checkpoint = Checkpoint {
        position: header.position,
        config: header.config,
        data_fingerprint: header.data_fingerprint,
        data_description: header.data_description,
        world_size: header.world_size,
        state: StateDict::new(),
        optimizer: StateDict::new(),
        sections: BTreeMap::new(),
    };
    for (part, ranks) in header.sections {
        let section = |values| Section { tensors: StateDict::new(), values };
        checkpoint.sections.insert(part, ranks.into_iter().map(section).collect());
    }
    for (name, view) in views {
        let tensor = floats(view).ok_or_else(|| format!("tensor {name} is not of 32-bit floats"))?;
        if let Some(rest) = name.strip_prefix(SECTIONS) {
            let place = section_of(&mut checkpoint.sections, rest);
            let (section, name) = place.ok_or_else(|| format!("tensor {name} belongs to no section"))?;
            section.tensors.insert(name, tensor);
        } else if let Some(name) = name.strip_prefix(OPTIMIZER) {
            checkpoint.optimizer.insert(name, tensor);
        } else {
            checkpoint.state.insert(*name, tensor);
        }
    }
    Ok(checkpoint)
}

/// The section and the name in it that `PART/RANK/NAME` means.
fn section_of<'a>(
    sections: &'a mut BTreeMap<String, Vec<Section>>,
    path: &'a str,
) -> Option<(&'a mut Section, &'a str)> {
    let mut parts = path.splitn(3, '/');
    let (part, rank, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some((sections.get_mut(part)?.get_mut(rank.parse::<usize>().ok()?)?, name))
}

/// Compares the checksum of a header (whose own checksum is 0) and the tensors with what was written.
pub(super) fn verify(
    header: &impl Serialize,
    views: &[(&str, safetensors::tensor::TensorView<'_>)],
    written: u32,
) -> Result<(), String> {
    let entries = views.iter().map(|(name, view)| (*name, view.shape(), Cow::Borrowed(view.data())));
    let found = checksum(header, entries);
    if found == written {
        Ok(())
    } else {
        Err(format!("checksum {found:08x}, but {written:08x} was written"))
    }
}

/// CRC-32C of the header without its checksum, and of names, shapes and values in the order of the names.
pub(super) fn checksum<'a>(header: &impl Serialize, tensors: impl Iterator<Item = Entry<'a>>) -> u32 {
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

fn write_safetensors(
    path: &Path,
    bytes: Result<Vec<u8>, safetensors::SafeTensorError>,
) -> Result<(), CheckpointError> {
    let bytes = bytes.map_err(|source| CheckpointError::Layout { path: path.to_owned(), source })?;
    write_atomically(path, &bytes)
}

/// Puts the bytes into a temporary file beside `path`, syncs it, renames it, and syncs the folder.
///
/// `safetensors::serialize_to_file` renames too, but syncs nothing and leaves a file of a random name behind when it
/// is killed.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            // Opening a folder as a file, to sync it, works on Unix only; elsewhere renaming has to do.
            Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(|source| {
        // What is left of the failed attempt would only take space; the failure is reported in any case.
        let _ = fs::remove_file(&temporary);
        CheckpointError::Write { path: path.to_owned(), source }
    })
}
