//! Folders that commands write: each is there as a whole or not at all, as [files](crate::output_file) are.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::output_file::temporary_in;
use crate::signals;

/// A folder in the making.
pub(crate) struct OutputFolder {
    path: PathBuf,
    /// Where its files go until all are there.
    temporary: PathBuf,
    /// Whether the folder was there before, and empty.
    was_there: bool,
}

impl OutputFolder {
    /// Makes sure that the folder can be written.
    ///
    /// # Errors
    /// It exists and is not empty: results of two runs would mix. It is a file; it cannot be made.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let was_there = match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
            Ok(true) => bail!("{shown} is not empty; choose another --out, or empty it"),
            Ok(false) => true,
            Err(error) if error.kind() == ErrorKind::NotFound && !path.as_os_str().is_empty() => false,
            Err(error) => return Err(error).with_context(|| unwritable(path)),
        };
        let whole = std::path::absolute(path).with_context(|| unwritable(path))?;
        // A folder that is there may be of another file system than the one it lies in.
        let beside = whole.ancestors().skip(usize::from(!was_there)).find(|folder| folder.is_dir());
        let beside = beside.with_context(|| unwritable(path))?;
        signals::watch()?;
        let (temporary, ()) =
            temporary_in(beside, |path| fs::create_dir(path)).with_context(|| unwritable(path))?;
        signals::remove_at_end(&temporary);
        Ok(Self { path: path.to_owned(), temporary, was_there })
    }

    /// The path of a file in it, until the folder is committed.
    pub fn file(&self, name: &str) -> PathBuf {
        self.temporary.join(name)
    }

    /// Where its files go until all are there.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// Those of the file system. Nothing is left then.
    pub fn commit(self) -> anyhow::Result<()> {
        self.rename().with_context(|| unwritable(&self.path))
    }

    fn rename(&self) -> io::Result<()> {
        if !self.was_there {
            if let Some(parent) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                fs::create_dir_all(parent)?;
            }
            return fs::rename(&self.temporary, &self.path);
        }
        for entry in fs::read_dir(&self.temporary)? {
            let entry = entry?;
            fs::rename(entry.path(), self.path.join(entry.file_name()))?;
        }
        Ok(())
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        // Nothing was promised of a folder that was not committed.
        let _ = fs::remove_dir_all(&self.temporary);
        signals::keep(&self.temporary);
    }
}

fn unwritable(path: &Path) -> String {
    format!("cannot write the folder {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_whole_or_absent() {
        let root = tempfile::tempdir().unwrap();
        let there = root.path().join("there");
        fs::create_dir(&there).unwrap();
        for path in [root.path().join("new/inner"), there.clone()] {
            let was_there = path.exists();
            drop(OutputFolder::create(&path).unwrap());
            assert_eq!(path.exists(), was_there);
            let folder = OutputFolder::create(&path).unwrap();
            fs::write(folder.file("a"), "a").unwrap();
            assert!(!path.join("a").exists());
            folder.commit().unwrap();
            let names: Vec<_> =
                fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["a"]);
            assert!(OutputFolder::create(&path).is_err());
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
        for path in [there.join("a"), there.join("a/b"), PathBuf::new()] {
            assert!(OutputFolder::create(&path).is_err(), "{}", path.display());
        }
    }
}
