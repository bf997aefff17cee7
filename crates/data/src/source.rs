//! Reads the bytes of one image: from regular files only, below the data's folder only, and never more than an image of its
//! size can have. What a path or a length in the data claims is checked here before memory is taken for it.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

use swav_augment::Image;

use crate::{DecodeConfig, SampleError, decode, decode::size_by_header};

/// Files up to this length are read without a look at their header.
pub(crate) const SMALL_BYTES: u64 = 32 << 20;
/// How much of a longer one is looked at.
pub(crate) const HEADER_BYTES: usize = 1 << 16;
/// Uncompressed images of floats with transparency have this many bytes a pixel; no image has more.
const BYTES_PER_PIXEL: u64 = 16;

/// Reads and decodes an image file as data sets do: a regular file only, and no more of it than an image of its size can have.
///
/// # Errors
/// Any [`SampleError`] of a file.
pub fn read_image(path: impl AsRef<Path>, config: &DecodeConfig) -> Result<Image, SampleError> {
    decode(&read_file(path.as_ref(), config)?, config)
}

/// The whole file.
pub(crate) fn read_file(path: &Path, config: &DecodeConfig) -> Result<Vec<u8>, SampleError> {
    let (file, length) = open_regular(path)?;
    read(file, 0, length, config)
}

/// Part of a file, such as a member of an archive. The file is opened for each read: that is cheap beside decoding, needs no
/// limit on open files, and notices an archive that has vanished.
pub(crate) fn read_part(
    path: &Path,
    offset: u64,
    bytes: u64,
    config: &DecodeConfig,
) -> Result<Vec<u8>, SampleError> {
    let (file, length) = open_regular(path)?;
    if offset.checked_add(bytes).is_none_or(|end| end > length) {
        return Err(SampleError::Truncated("the file ends first".into()));
    }
    read(file, offset, bytes, config)
}

/// Opens a file with its length. A pipe would wait for a writer as soon as it is opened, so the kind is asked first.
fn open_regular(path: &Path) -> Result<(File, u64), SampleError> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(SampleError::NotAFile);
    }
    Ok((File::open(path)?, metadata.len()))
}

fn read(mut file: File, offset: u64, bytes: u64, config: &DecodeConfig) -> Result<Vec<u8>, SampleError> {
    if offset > 0 {
        file.seek(SeekFrom::Start(offset))?;
    }
    let mut content = Vec::new();
    if bytes > SMALL_BYTES {
        content.resize(HEADER_BYTES, 0);
        file.read_exact(&mut content)?;
        check_length(&content, bytes, config)?;
    }
    content.reserve_exact((bytes as usize).saturating_sub(content.len()));
    let rest = bytes - content.len() as u64;
    let read = file.take(rest).read_to_end(&mut content)?;
    if (read as u64) < rest {
        return Err(SampleError::Truncated("the file ends first".into()));
    }
    Ok(content)
}

/// Refuses a file, of which these are the first bytes, that is longer than an image of its size can be.
pub(crate) fn check_length(header: &[u8], bytes: u64, config: &DecodeConfig) -> Result<(), SampleError> {
    let n_pixels = match size_by_header(header)? {
        Some((width, height)) => (u64::from(width) * u64::from(height)).min(config.max_pixels),
        None => config.max_pixels,
    };
    let max_bytes = n_pixels.saturating_mul(BYTES_PER_PIXEL).saturating_add(SMALL_BYTES);
    if bytes > max_bytes { Err(SampleError::TooManyBytes { bytes, max_bytes }) } else { Ok(()) }
}

/// The folder that paths in the data start from, and must not leave.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    folder: PathBuf,
    allow_outside: bool,
}

impl Root {
    /// The folder that a list or table lies in.
    pub(crate) fn of_file(file: &Path, allow_outside: bool) -> Self {
        let folder = file.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        Self { folder: folder.to_owned(), allow_outside }
    }

    /// The file that a path in the data names. Links below the folder may lead anywhere: whoever has the folder has made them.
    ///
    /// # Errors
    /// [`SampleError::Outside`] if the path is absolute and leads elsewhere, or has more `..` than folders before them.
    pub(crate) fn file(&self, path: &Path) -> Result<PathBuf, SampleError> {
        if self.allow_outside {
            return Ok(self.folder.join(path));
        }
        let inside = if path.is_absolute() {
            let whole = std::path::absolute(&self.folder)?;
            match path.strip_prefix(&whole) {
                Ok(inside) => inside.to_owned(),
                Err(_) => {
                    let real = fs::canonicalize(&whole)?;
                    path.strip_prefix(real).map_err(|_| SampleError::Outside)?.to_owned()
                }
            }
        } else {
            path.to_owned()
        };
        let mut depth = 0_usize;
        for part in inside.components() {
            match part {
                Component::Normal(_) => depth += 1,
                Component::CurDir => {}
                Component::ParentDir => depth = depth.checked_sub(1).ok_or(SampleError::Outside)?,
                Component::RootDir | Component::Prefix(_) => return Err(SampleError::Outside),
            }
        }
        Ok(self.folder.join(inside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_folder() {
        let root = Root::of_file(Path::new("data/list.txt"), false);
        let file = |path: &str| root.file(Path::new(path)).ok();
        assert_eq!(file("a/b.jpg"), Some(PathBuf::from("data/a/b.jpg")));
        assert_eq!(file("./a/../b.jpg"), Some(PathBuf::from("data/./a/../b.jpg")));
        let here = std::path::absolute("data").unwrap();
        assert_eq!(file(here.join("x.jpg").to_str().unwrap()), Some(PathBuf::from("data/x.jpg")));
        for outside in ["../b.jpg", "a/../../b.jpg", "/dev/zero", "/etc/passwd", "a/../.."] {
            assert_eq!(file(outside), None, "{outside}");
        }
        let open = Root::of_file(Path::new("list.txt"), true);
        assert_eq!(open.file(Path::new("../b.jpg")).unwrap(), PathBuf::from("./../b.jpg"));
    }
}
