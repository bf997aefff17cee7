//! Links to folders: they are followed wherever they lead, but neither into the file systems of the kernel, which have no images and links
//! to everything, nor round and round.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use crate::DataError;

/// The file systems of the kernel.
const SYSTEM: [&str; 2] = ["/proc", "/sys"];
/// Entries of folders that links lead to once more. Some images twice may be meant; folders that link to each other multiply.
const MAX_REPEATED: usize = 1_000_000;
/// A link takes the time of so many files.
const FILES_PER_LINK: usize = 100;

/// Whether a folder is the kernel's.
fn is_system(real: &Path) -> bool {
    SYSTEM.iter().any(|system| real.starts_with(system))
}

/// Refuses a folder of the kernel, whatever links its path goes through.
pub(crate) fn refuse_system(folder: &Path) -> Result<(), DataError> {
    match fs::canonicalize(folder) {
        Ok(real) if is_system(&real) => Err(DataError::System { path: folder.to_owned() }),
        _ => Ok(()),
    }
}

/// The links that a walk has followed.
#[derive(Debug, Default)]
pub(crate) struct Links {
    seen: HashSet<PathBuf>,
    /// The link, and how deep it lies, below which everything was read before.
    again: Option<(PathBuf, usize)>,
    n_repeated: usize,
}

impl Links {
    /// Whether to go into a folder. Only links, and what is called as a folder of the kernel, are looked at.
    pub(crate) fn may_enter(&mut self, folder: &walkdir::DirEntry) -> bool {
        let is_link = folder.path_is_symlink();
        if !is_link && !SYSTEM.iter().any(|system| folder.file_name() == &system[1..]) {
            return true;
        }
        let Ok(real) = fs::canonicalize(folder.path()) else { return false };
        if is_system(&real) {
            return false;
        }
        if is_link && !self.seen.insert(real) {
            self.n_repeated += FILES_PER_LINK;
            self.again.get_or_insert_with(|| (folder.path().to_owned(), folder.depth()));
        }
        true
    }

    /// Counts an entry that was read before.
    ///
    /// # Errors
    /// [`DataError::Links`] if there are too many.
    pub(crate) fn count(&mut self, root: &Path, depth: usize) -> Result<(), DataError> {
        let Some((link, from)) = &self.again else { return Ok(()) };
        if depth <= *from {
            self.again = None;
            return Ok(());
        }
        self.n_repeated += 1;
        if self.n_repeated > MAX_REPEATED {
            return Err(DataError::Links { path: root.to_owned(), link: link.clone() });
        }
        Ok(())
    }
}
