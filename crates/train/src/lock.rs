//! A run is one process's: a lock on its folder, which the system gives back however that process ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::error::TrainError;

/// The lock of a run's folder, held as long as this value lives. The file beside it says whose it is.
#[derive(Debug)]
pub(crate) struct RunLock {
    /// `None` on a file system without locks.
    file: Option<File>,
}

impl RunLock {
    /// Takes the lock of the run in `folder`, by the file at `path`.
    ///
    /// # Errors
    /// [`TrainError::RunBusy`] if another process has it; an error of the file system.
    pub fn take(folder: &Path, path: PathBuf) -> Result<Self, TrainError> {
        let failed = |source| TrainError::RunFolder { action: "lock", path: path.clone(), source };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let mut holder = String::new();
        // What cannot be read only makes a message shorter.
        let _ = file.read_to_string(&mut holder);
        let holder = holder.trim().to_owned();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(TrainError::RunBusy { path: folder.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => {
                tracing::warn!(
                    "{} cannot be locked ({error}): make sure that no other process trains in it",
                    folder.display()
                );
                return Ok(Self { file: None });
            }
        }
        if !holder.is_empty() {
            tracing::warn!("{}: {holder} has gone without giving it back; taken over", folder.display());
        }
        let name = format!("process {}\n", std::process::id());
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(name.as_bytes())
        };
        write(&mut file).map_err(failed)?;
        Ok(Self { file: Some(file) })
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // An empty file says that the lock was given back; the system frees it in any case.
            let _ = file.set_len(0);
        }
    }
}
