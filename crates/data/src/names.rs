//! Compact storage for very many names: one byte buffer and one offset each, instead of a heap block each.

use std::path::{Path, PathBuf};

/// Byte strings end to end. A million file names of 20 bytes take 28 MB.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    ends: Vec<u64>,
}

impl Names {
    pub(crate) fn push(&mut self, name: &[u8]) {
        self.bytes.extend_from_slice(name);
        self.ends.push(self.bytes.len() as u64);
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The name at `index`.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub(crate) fn get(&self, index: usize) -> &[u8] {
        let from = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        &self.bytes[from..self.ends[index] as usize]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Gives back what growing has reserved in excess.
    pub(crate) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

/// The bytes of a path. On Unix these are the file system's own, whatever their encoding; elsewhere paths that
/// are not Unicode have none.
pub(crate) fn path_bytes(path: &Path) -> Option<&[u8]> {
    #[cfg(unix)]
    {
        Some(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
    }
    #[cfg(not(unix))]
    {
        path.to_str().map(str::as_bytes)
    }
}

/// The path whose bytes were taken by [`path_bytes`].
pub(crate) fn bytes_path(bytes: &[u8]) -> PathBuf {
    #[cfg(unix)]
    {
        PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes))
    }
    #[cfg(not(unix))]
    {
        PathBuf::from(String::from_utf8_lossy(bytes).into_owned())
    }
}
