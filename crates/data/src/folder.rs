//! Folders of image files: one sub-folder a class, or flat. Made for millions of files: names lie end to end in one
//! buffer, folders are stored once, and files are not looked at before they are read.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::slice::ParallelSliceMut;
use swav_augment::Image;
use walkdir::WalkDir;

use crate::{
    DataError, DataSpec, Dataset, DecodeConfig, SampleError, StableHash, decode,
    names::{Names, bytes_path, path_bytes},
};

/// Image files below a folder.
///
/// Files are those with one of [`DataConfig::extensions`](crate::DataConfig::extensions), in every sub-folder, links followed; hidden files and
/// folders (names that start with a dot) are passed over. A link that leads back to a folder it lies in is noticed
/// and passed over. The order is that of the paths' bytes and does not depend on the file system.
pub struct Folder {
    root: PathBuf,
    /// Paths of folders relative to the root, sorted; the root itself is empty.
    folders: Names,
    /// File names, in the order of the images.
    files: Names,
    /// For each image the index of its folder.
    folder_of: Vec<u32>,
    /// For each folder its class.
    class_of: Option<Vec<u32>>,
    class_names: Vec<String>,
    decode: DecodeConfig,
    skipped: usize,
    fingerprint: u64,
}

impl Folder {
    /// Lists a folder with a sub-folder for each class. Classes are numbered in the order of their names' bytes;
    /// sub-folders without images are no classes.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], [`DataError::Empty`].
    pub fn classes(root: &Path, config: &DataSpec) -> Result<Self, DataError> {
        let mut folder = Self::list(root, config, true)?;
        let mut class_names = Vec::new();
        let mut class_of = vec![0; folder.folders.len()];
        let mut last: Option<&[u8]> = None;
        for (index, path) in folder.folders.iter().enumerate() {
            let top = path.split(|&byte| byte == std::path::MAIN_SEPARATOR as u8).next().unwrap_or_default();
            if last != Some(top) {
                class_names.push(String::from_utf8_lossy(top).into_owned());
                last = Some(top);
            }
            class_of[index] = class_names.len() as u32 - 1;
        }
        folder.class_of = Some(class_of);
        folder.class_names = class_names;
        Ok(folder)
    }

    /// Lists a folder of images without labels.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], [`DataError::Empty`].
    pub fn flat(root: &Path, config: &DataSpec) -> Result<Self, DataError> {
        Self::list(root, config, false)
    }

    /// Entries that were passed over: links that go in circles, unreadable folders, and on systems whose paths are
    /// Unicode, names that are not.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// The path of one image.
    pub fn path(&self, index: usize) -> Option<PathBuf> {
        let &folder = self.folder_of.get(index)?;
        let mut path = self.root.join(bytes_path(self.folders.get(folder as usize)));
        path.push(bytes_path(self.files.get(index)));
        Some(path)
    }

    fn list(root: &Path, config: &DataSpec, below_only: bool) -> Result<Self, DataError> {
        let mut found = Listing::walk(root, config, below_only)?;
        if found.files.len() > u32::MAX as usize {
            return Err(DataError::TooMany { path: root.to_owned() });
        }
        if found.files.len() == 0 {
            let place = if below_only { "in sub-folders, one for each class" } else { "anywhere below" };
            let expected = format!("files ending in {} {place}", config.extensions.join(", "));
            return Err(DataError::Empty { path: root.to_owned(), expected });
        }
        found.sort();
        let mut hash = StableHash::new(found.files.len() as u64);
        for folder in found.folders.iter() {
            hash.bytes(folder);
        }
        for (file, &folder) in found.files.iter().zip(&found.folder_of) {
            hash.bytes(file);
            hash.number(u64::from(folder));
        }
        if found.skipped > 0 {
            tracing::warn!(path = %root.display(), skipped = found.skipped, "passed over entries of the folder");
        }
        Ok(Self {
            root: root.to_owned(),
            folders: found.folders,
            files: found.files,
            folder_of: found.folder_of,
            class_of: None,
            class_names: Vec::new(),
            decode: config.decode.clone(),
            skipped: found.skipped,
            fingerprint: hash.finish(),
        })
    }
}

impl Dataset for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let path = self.path(index).ok_or(SampleError::OutOfRange { index, len: self.len() })?;
        decode(&fs::read(path)?, &self.decode).map(Arc::new)
    }

    fn label(&self, index: usize) -> Option<u32> {
        let folder = *self.folder_of.get(index)?;
        self.class_of.as_ref()?.get(folder as usize).copied()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The path relative to the root.
    fn name(&self, index: usize) -> String {
        match self.path(index) {
            Some(path) => path.strip_prefix(&self.root).unwrap_or(&path).to_string_lossy().into_owned(),
            None => format!("image {index}"),
        }
    }

    fn describe(&self) -> String {
        let classes = match self.class_names.len() {
            0 => "without labels".to_owned(),
            n => format!("{n} classes"),
        };
        format!("folder {}: {} images, {classes}", self.root.display(), self.len())
    }

    /// Knows the paths of all images, not the pixels: those would take an epoch to read.
    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// What a walk finds, in the order of the file system.
#[derive(Default)]
struct Listing {
    folders: Names,
    files: Names,
    folder_of: Vec<u32>,
    skipped: usize,
}

impl Listing {
    fn walk(root: &Path, config: &DataSpec, below_only: bool) -> Result<Self, DataError> {
        let metadata = fs::metadata(root).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing { path: root.to_owned() },
            _ => DataError::Io { path: root.to_owned(), source },
        })?;
        if !metadata.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::NotADirectory);
            return Err(DataError::Io { path: root.to_owned(), source });
        }
        let mut listing = Self::default();
        // Entries of one folder come together except around its sub-folders, so one remembered folder suffices to
        // keep the table small; sorting removes what repeats.
        let mut current: Option<PathBuf> = None;
        let walk = WalkDir::new(root).follow_links(true).min_depth(1).max_open(64).into_iter();
        let visible = |entry: &walkdir::DirEntry| {
            entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".")
        };
        for entry in walk.filter_entry(visible) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if error.depth() == 0 => {
                    let source =
                        error.into_io_error().unwrap_or_else(|| std::io::Error::other("walk failed"));
                    return Err(DataError::Io { path: root.to_owned(), source });
                }
                Err(error) => {
                    listing.skipped += 1;
                    if listing.skipped <= 10 {
                        tracing::warn!(%error, "passed over");
                    }
                    continue;
                }
            };
            if !entry.file_type().is_file() || (below_only && entry.depth() == 1) {
                continue;
            }
            let Some(name) = path_bytes(Path::new(entry.file_name())) else {
                listing.skipped += 1;
                continue;
            };
            if !config.is_image_name(name) {
                continue;
            }
            let parent = entry.path().parent().unwrap_or(root);
            if current.as_deref() != Some(parent) {
                let relative = parent.strip_prefix(root).unwrap_or(parent);
                let Some(relative) = path_bytes(relative) else {
                    listing.skipped += 1;
                    continue;
                };
                listing.folders.push(relative);
                current = Some(parent.to_owned());
            }
            listing.files.push(name);
            listing.folder_of.push(listing.folders.len() as u32 - 1);
        }
        Ok(listing)
    }

    /// Puts folders and files into the order of their bytes; every folder appears once.
    fn sort(&mut self) {
        let mut by_path: Vec<u32> = (0..self.folders.len() as u32).collect();
        // Components are compared one by one, so that `a/x` stays with `a` although `a-b` sorts between by bytes.
        let components = |path: u32| {
            self.folders.get(path as usize).split(|&byte| byte == std::path::MAIN_SEPARATOR as u8)
        };
        by_path.sort_by(|&a, &b| components(a).cmp(components(b)));
        let mut sorted = Names::default();
        let mut rank = vec![0; self.folders.len()];
        let mut last: Option<&[u8]> = None;
        for &old in &by_path {
            let path = self.folders.get(old as usize);
            if last != Some(path) {
                sorted.push(path);
                last = Some(path);
            }
            rank[old as usize] = sorted.len() as u32 - 1;
        }
        let folder_of: Vec<u32> = self.folder_of.iter().map(|&old| rank[old as usize]).collect();
        let mut order: Vec<u32> = (0..self.files.len() as u32).collect();
        order.par_sort_unstable_by(|&a, &b| {
            let (a, b) = (a as usize, b as usize);
            (folder_of[a], self.files.get(a)).cmp(&(folder_of[b], self.files.get(b)))
        });
        let mut files = Names::default();
        for &old in &order {
            files.push(self.files.get(old as usize));
        }
        sorted.shrink();
        files.shrink();
        self.folder_of = order.iter().map(|&old| folder_of[old as usize]).collect();
        self.folders = sorted;
        self.files = files;
    }
}
