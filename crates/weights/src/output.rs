//! Files that are there as a whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::WeightsError;

/// Bytes that are written at a time.
const BUFFER: usize = 1 << 20;

/// Writes a file under a temporary name, syncs and renames it. What was at `path` before is replaced, or stays where
/// anything fails.
///
/// # Errors
/// [`WeightsError::Write`].
pub fn write_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WeightsError> {
    let failed = |source| WeightsError::Write { path: path.to_owned(), source };
    let name = path.file_name().ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = || -> io::Result<()> {
        let mut to = BufWriter::with_capacity(BUFFER, File::create(&temporary)?);
        write(&mut to)?;
        to.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            // Opening a folder as a file, to sync it, works on Unix only; elsewhere renaming has to do.
            Some(folder) if cfg!(unix) && !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    written().map_err(|source| {
        // The failure is reported in any case.
        let _ = fs::remove_file(&temporary);
        failed(source)
    })
}
