//! The bytes of a file, read where they are needed: nothing is allocated before it is known to be there.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::WeightsError;

/// A file, or bytes in memory.
#[derive(Debug)]
pub(crate) struct Source {
    bytes: Bytes,
    len: u64,
}

#[derive(Debug)]
enum Bytes {
    File(File),
    Memory(Vec<u8>),
}

impl Source {
    /// Opens a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self, WeightsError> {
        let failed = |source| WeightsError::Read { path: path.to_owned(), source };
        // Before it is opened: a pipe would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            let got = if metadata.is_dir() { "a folder" } else { "no regular file" };
            return Err(WeightsError::Format { expected: "a file", got: got.to_owned() });
        }
        let file = File::open(path).map_err(failed)?;
        Ok(Self { bytes: Bytes::File(file), len: metadata.len() })
    }

    pub(crate) fn memory(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len() as u64, bytes: Bytes::Memory(bytes) }
    }

    /// Bytes of the whole file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Checks that `n_bytes` from `at` on are inside.
    pub(crate) fn check(&self, at: u64, n_bytes: u64, part: &str) -> Result<(), WeightsError> {
        let expected = at.saturating_add(n_bytes);
        if expected <= self.len {
            return Ok(());
        }
        Err(WeightsError::Truncated { part: part.to_owned(), expected, got: self.len })
    }

    /// Fills `to` from `at` on.
    pub(crate) fn read(&mut self, at: u64, to: &mut [u8], part: &str) -> Result<(), WeightsError> {
        self.check(at, to.len() as u64, part)?;
        match &mut self.bytes {
            Bytes::Memory(bytes) => {
                to.copy_from_slice(&bytes[at as usize..][..to.len()]);
                Ok(())
            }
            Bytes::File(file) => {
                let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(to));
                read.map_err(|error| unreadable(&error, part))
            }
        }
    }

    /// `n_bytes` from `at` on.
    pub(crate) fn take(&mut self, at: u64, n_bytes: u64, part: &str) -> Result<Vec<u8>, WeightsError> {
        self.check(at, n_bytes, part)?;
        let mut bytes = vec![0; n_bytes as usize];
        self.read(at, &mut bytes, part)?;
        Ok(bytes)
    }
}

/// The file has changed since it was opened, or the disk fails.
fn unreadable(error: &io::Error, part: &str) -> WeightsError {
    WeightsError::malformed(part, "bytes that can be read", error)
}

/// The bytes of floats, in the order of files.
pub(crate) fn le_bytes(values: &[f32]) -> std::borrow::Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        bytemuck::cast_slice(values).into()
    } else {
        values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }
}
