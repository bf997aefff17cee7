//! Files that commands write: each is there as a whole or not at all, and replaces nothing unasked.
//!
//! A file is [opened](OutputFile::create) before the work whose result it takes, so that a wrong path is told at once. It
//! is written under a temporary name beside its own and renamed by [`commit`](OutputFile::commit); without that nothing is
//! left, also where a signal ends the program. Devices and pipes (`/dev/stdout`) are written as they are.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::signals;

/// Lets a command replace files.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Force {
    /// Replace files that exist already.
    #[arg(long)]
    pub force: bool,
}

/// A file in the making.
pub(crate) struct OutputFile {
    path: PathBuf,
    /// Where the bytes go until they are whole; `None` for a device or a pipe.
    temporary: Option<PathBuf>,
    to: BufWriter<File>,
    replaces: bool,
}

impl OutputFile {
    /// Makes sure that the file can be written, and opens it.
    ///
    /// # Errors
    /// The path is a folder; it exists, unless `force`; its folder does not exist or cannot be written.
    pub fn create(path: &Path, force: bool) -> anyhow::Result<Self> {
        let shown = path.display();
        let found = fs::metadata(path);
        match &found {
            Ok(found) if found.is_dir() => bail!("{shown}: is a folder; expected the name of a file"),
            Ok(found) if !found.is_file() => {
                let file = OpenOptions::new().write(true).open(path);
                let to = BufWriter::new(file.with_context(|| unwritable(path))?);
                return Ok(Self { path: path.to_owned(), temporary: None, to, replaces: true });
            }
            Err(_) if path.is_symlink() => bail!("{shown}: is a link that leads nowhere"),
            Ok(_) if !force => bail!("{shown} exists already (nothing was changed); --force replaces it"),
            _ => {}
        }
        // What a link points to is replaced, not the link.
        let target = if found.is_ok() { fs::canonicalize(path) } else { Ok(path.to_owned()) };
        let path = target.with_context(|| unwritable(path))?;
        let folder = path.parent().filter(|folder| *folder != OsStr::new("")).unwrap_or(Path::new("."));
        if path.file_name().is_none() || !folder.is_dir() {
            bail!("{shown}: no such folder: {}", folder.display());
        }
        signals::watch()?;
        let open = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        let (temporary, file) = temporary_in(folder, open).with_context(|| unwritable(&path))?;
        signals::remove_at_end(&temporary);
        Ok(Self { path, temporary: Some(temporary), to: BufWriter::new(file), replaces: found.is_ok() })
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// The disk is full, and the like; somebody else has made a file of this name meanwhile. Nothing is left then.
    pub fn commit(mut self) -> anyhow::Result<()> {
        self.rename().with_context(|| unwritable(&self.path))
    }

    fn rename(&mut self) -> io::Result<()> {
        self.to.flush()?;
        let Some(temporary) = &self.temporary else { return Ok(()) };
        self.to.get_ref().sync_all()?;
        if self.replaces {
            fs::rename(temporary, &self.path)?;
        } else {
            // A second name fails where there is a file meanwhile. Not all file systems have such names.
            match fs::hard_link(temporary, &self.path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(error),
                Err(_) => fs::rename(temporary, &self.path)?,
                Ok(()) => fs::remove_file(temporary)?,
            }
        }
        signals::keep(temporary);
        self.temporary = None;
        Ok(())
    }
}

/// Gives several files their names: all of them, or, if one fails, none of those that are new.
///
/// # Errors
/// As [`OutputFile::commit`].
pub(crate) fn commit_all(files: impl IntoIterator<Item = OutputFile>) -> anyhow::Result<()> {
    let mut made = Vec::new();
    for file in files {
        let (path, is_new) = (file.path.clone(), !file.replaces);
        if let Err(error) = file.commit() {
            // The failure itself is what is reported.
            made.iter().for_each(|path| drop(fs::remove_file(path)));
            return Err(error);
        }
        made.extend(is_new.then_some(path));
    }
    Ok(())
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Devices and pipes cannot go back; who writes to them gets the error.
impl Seek for OutputFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.to.seek(to)
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nothing was promised of a file that was not committed.
            let _ = fs::remove_file(temporary);
            signals::keep(temporary);
        }
    }
}

fn unwritable(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// What `make` makes in the folder, under a name that nobody else has.
pub(crate) fn temporary_in<T>(
    folder: &Path,
    make: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(PathBuf, T)> {
    let id = std::process::id();
    for number in 0..1000 {
        let path = folder.join(format!(".swav-{id}-{number}.tmp"));
        match make(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => return Ok((path, other?)),
        }
    }
    Err(io::Error::other("no temporary name is free"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_whole_or_absent_and_replaces_nothing_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut file = OutputFile::create(&path, false).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert!(names(folder.path()).is_empty());

        let mut file = OutputFile::create(&path, false).unwrap();
        file.write_all(b"whole").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        let error = OutputFile::create(&path, false).err().unwrap().to_string();
        assert!(error.contains("--force"), "{error}");
        drop(OutputFile::create(&path, true).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        OutputFile::create(&path, true).unwrap().commit().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (Vec::new(), vec!["a".to_owned()]));
    }

    #[test]
    fn a_file_that_came_meanwhile_stays_and_no_half_of_a_pair_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let files = [&a, &b].map(|path| OutputFile::create(path, false).unwrap());
        fs::write(&b, "mine").unwrap();
        commit_all(files).unwrap_err();
        assert_eq!((fs::read(&b).unwrap(), names(folder.path())), (b"mine".to_vec(), vec!["b".to_owned()]));
    }

    #[test]
    fn wrong_paths_are_told_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("no/such"), PathBuf::new(), "..".into()] {
            assert!(OutputFile::create(&path, true).is_err(), "{}", path.display());
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_and_a_link_is_written_through() {
        let mut full = OutputFile::create(Path::new("/dev/full"), false).unwrap();
        full.write_all(b"x").unwrap();
        assert!(full.commit().is_err());
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut output = OutputFile::create(&link, true).unwrap();
        output.write_all(b"new").unwrap();
        output.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        fs::remove_file(&file).unwrap();
        assert!(OutputFile::create(&link, true).err().unwrap().to_string().contains("leads nowhere"));
    }
}
