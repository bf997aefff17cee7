//! Folders of image files: one sub-folder a class, or flat. Made for millions of files: names lie end to end in one
//! buffer, folders are stored once, and files are not looked at before they are read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{MAIN_SEPARATOR, Path, PathBuf},
    sync::Arc,
};

use rayon::slice::ParallelSliceMut;
use swav_augment::Image;
use walkdir::WalkDir;

use crate::counted::counted;
use crate::{
    DataError, DataSpec, Dataset, DecodeConfig, SampleError, StableHash, decode, kinds,
    layout::{class_folders, is_worth_telling, why_no_image},
    links::{Links, refuse_system},
    names::{Names, bytes_path, path_bytes},
    source::read_file,
    survey::{Reason, Tally},
};

/// Image files below a folder.
///
/// Files are those with one of [`DataConfig::extensions`](crate::DataConfig::extensions), in every sub-folder, links followed; hidden files and
/// folders (names that start with a dot) are passed over. A link that leads back to a folder it lies in, or into `/proc` or `/sys`, is noticed
/// and passed over; links that multiply folders without end are an error. The order is that of the paths' bytes and does not depend on the file system.
pub struct Folder {
    root: PathBuf,
    /// Paths of folders relative to the root, sorted; the root itself is empty.
    folders: Names,
    /// File names, in the order of the images.
    files: Names,
    /// For each image the index of its folder.
    folder_of: Vec<u32>,
    /// For each folder its class, or [`NO_CLASS`]; empty without classes.
    class_of: Vec<u32>,
    class_names: Vec<String>,
    decode: DecodeConfig,
    aside: Tally,
    fingerprint: u64,
}

const NO_CLASS: u32 = u32::MAX;

/// What is made of the folders in a folder of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Classes {
    /// They are classes; images beside them are left aside.
    Folders,
    /// They say nothing.
    None,
    /// They are classes unless more than one image in five lies beside them.
    Told,
}

/// Which folders of images make up a data set.
pub(crate) struct Parts<'a> {
    /// The folder that names begin at.
    pub(crate) root: &'a Path,
    /// The folders to read, relative to the root; classes lie directly in them.
    pub(crate) read: Vec<PathBuf>,
    /// The whole paths of the other splits: their classes are numbered, too, so that all splits number alike.
    pub(crate) others: Vec<PathBuf>,
}

impl<'a> Parts<'a> {
    /// A folder without splits.
    pub(crate) fn whole(root: &'a Path) -> Self {
        Self { root, read: vec![PathBuf::new()], others: Vec::new() }
    }
}

impl Folder {
    /// Lists a folder with a sub-folder for each class. Classes are numbered in the order of their names' bytes;
    /// sub-folders without images are no classes, and images beside the sub-folders are passed over.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], [`DataError::Empty`], [`DataError::System`], [`DataError::Links`].
    pub fn classes(root: &Path, config: &DataSpec) -> Result<Self, DataError> {
        Self::open(&Parts::whole(root), Classes::Folders, config)
    }

    /// Lists a folder of images without labels.
    ///
    /// # Errors
    /// As [`classes`](Self::classes).
    pub fn flat(root: &Path, config: &DataSpec) -> Result<Self, DataError> {
        Self::open(&Parts::whole(root), Classes::None, config)
    }

    /// Entries that were passed over: links that go in circles, unreadable folders, and on systems whose paths are
    /// Unicode, names that are not.
    pub fn skipped(&self) -> usize {
        self.aside.count(Reason::Unreachable)
    }

    /// The path of one image.
    pub fn path(&self, index: usize) -> Option<PathBuf> {
        let &folder = self.folder_of.get(index)?;
        let mut path = self.root.join(bytes_path(self.folders.get(folder as usize)));
        path.push(bytes_path(self.files.get(index)));
        Some(path)
    }

    /// Lists some folders below a root.
    pub(crate) fn open(parts: &Parts<'_>, classes: Classes, config: &DataSpec) -> Result<Self, DataError> {
        let mut found = Listing::default();
        for part in &parts.read {
            found.walk(parts.root, &parts.root.join(part), config)?;
        }
        if found.files.len() > u32::MAX as usize {
            return Err(DataError::TooMany { path: parts.root.to_owned() });
        }
        let plan = ClassPlan::make(&mut found, parts, classes, config);
        if found.files.len() == 0 {
            let place = match classes {
                Classes::Folders => "in sub-folders, one for each class",
                Classes::None => "anywhere below",
                Classes::Told => "anywhere below, or IDX, CIFAR, tar or Parquet files",
            };
            let expected =
                format!("files ending in {} {place}{}", config.extensions.join(", "), found.aside.instead());
            return Err(DataError::Empty { path: parts.root.to_owned(), expected });
        }
        found.sort();
        let (class_of, class_names) = plan.map(|plan| plan.number(&found.folders)).unwrap_or_default();
        let mut hash = StableHash::new(found.files.len() as u64);
        for folder in found.folders.iter() {
            hash.bytes(folder);
        }
        for (file, &folder) in found.files.iter().zip(&found.folder_of) {
            hash.bytes(file);
            hash.number(u64::from(folder));
        }
        Ok(Self {
            root: parts.root.to_owned(),
            folders: found.folders,
            files: found.files,
            folder_of: found.folder_of,
            class_of,
            class_names,
            decode: config.decode.clone(),
            aside: found.aside,
            fingerprint: hash.finish(),
        })
    }

    /// What was left aside.
    pub(crate) fn left_aside(&self) -> &Tally {
        &self.aside
    }
}

impl Dataset for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let path = self.path(index).ok_or(SampleError::OutOfRange { index, len: self.len() })?;
        decode(&read_file(&path, &self.decode)?, &self.decode).map(Arc::new)
    }

    fn label(&self, index: usize) -> Option<u32> {
        let folder = *self.folder_of.get(index)?;
        self.class_of.get(folder as usize).copied().filter(|&class| class != NO_CLASS)
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
            n => counted(n, "class"),
        };
        format!("folder {}: {}, {classes}", self.root.display(), counted(self.len(), "image"))
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
    aside: Tally,
    /// Why files of an ending are left aside, so that each ending is looked up once.
    endings: HashMap<Vec<u8>, Option<Reason>>,
}

impl Listing {
    /// Adds the images below a folder, with paths relative to the root.
    fn walk(&mut self, root: &Path, folder: &Path, config: &DataSpec) -> Result<(), DataError> {
        let metadata = fs::metadata(folder).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing { path: folder.to_owned() },
            _ => DataError::Io { path: folder.to_owned(), source },
        })?;
        if !metadata.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::NotADirectory);
            return Err(DataError::Io { path: folder.to_owned(), source });
        }
        refuse_system(folder)?;
        let mut links = Links::default();
        // Entries of one folder come together except around its sub-folders, so one remembered folder suffices to
        // keep the table small; sorting removes what repeats.
        let mut current: Option<PathBuf> = None;
        let mut walk = WalkDir::new(folder).follow_links(true).min_depth(1).max_open(64).into_iter();
        while let Some(entry) = walk.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if error.depth() == 0 => {
                    let source =
                        error.into_io_error().unwrap_or_else(|| std::io::Error::other("walk failed"));
                    return Err(DataError::Io { path: folder.to_owned(), source });
                }
                Err(error) => {
                    tracing::debug!(%error, "left aside");
                    let path = error.path().unwrap_or(folder);
                    self.leave(Reason::Unreachable, root, path);
                    continue;
                }
            };
            links.count(root, entry.depth())?;
            let name = entry.file_name().as_encoded_bytes();
            if name.starts_with(b".") {
                if entry.file_type().is_dir() {
                    walk.skip_current_dir();
                } else if is_worth_telling(name, config) {
                    self.leave(Reason::Hidden, root, entry.path());
                }
                continue;
            }
            if !entry.file_type().is_file() {
                // A pipe or the like is none.
                let is_folder = entry.file_type().is_dir();
                if !is_folder || !links.may_enter(&entry) {
                    self.leave(Reason::Unreachable, root, entry.path());
                    if is_folder {
                        walk.skip_current_dir();
                    }
                }
                continue;
            }
            if !config.is_image_name(name) {
                if let Some(reason) = self.why(name) {
                    self.leave(reason, root, entry.path());
                }
                continue;
            }
            let Some(name) = path_bytes(Path::new(entry.file_name())) else {
                self.leave(Reason::Unreachable, root, entry.path());
                continue;
            };
            let parent = entry.path().parent().unwrap_or(folder);
            if current.as_deref() != Some(parent) {
                let relative = parent.strip_prefix(root).unwrap_or(parent);
                let Some(relative) = path_bytes(relative) else {
                    self.leave(Reason::Unreachable, root, entry.path());
                    continue;
                };
                self.folders.push(relative);
                current = Some(parent.to_owned());
            }
            self.files.push(name);
            self.folder_of.push(self.folders.len() as u32 - 1);
        }
        Ok(())
    }

    fn leave(&mut self, reason: Reason, root: &Path, path: &Path) {
        let path = path.strip_prefix(root).unwrap_or(path);
        self.aside.add(reason, path.as_os_str().as_encoded_bytes());
    }

    fn why(&mut self, name: &[u8]) -> Option<Reason> {
        let Some(dot) = name.iter().rposition(|&byte| byte == b'.').filter(|&dot| dot > 0) else {
            return why_no_image(name);
        };
        // Where an ending stands for many files, it alone tells; only of two endings (`tar.gz`) the last one does not.
        if name[..dot].contains(&b'.') || kinds::is_furniture(name) {
            return why_no_image(name);
        }
        if let Some(&known) = self.endings.get(&name[dot..]) {
            return known;
        }
        let reason = why_no_image(name);
        self.endings.insert(name[dot..].to_vec(), reason);
        reason
    }

    /// Takes out the images of some folders, and the folders.
    fn remove(&mut self, folders: &[bool], reason: Reason) {
        let mut place = vec![0; folders.len()];
        let mut left = Self::default();
        for (index, folder) in self.folders.iter().enumerate() {
            if !folders[index] {
                place[index] = left.folders.len() as u32;
                left.folders.push(folder);
            }
        }
        for (file, &folder) in self.files.iter().zip(&self.folder_of) {
            if folders[folder as usize] {
                self.aside.add(reason, file);
            } else {
                left.files.push(file);
                left.folder_of.push(place[folder as usize]);
            }
        }
        (self.folders, self.files, self.folder_of) = (left.folders, left.files, left.folder_of);
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

/// Which folders are classes.
struct ClassPlan {
    /// The parts that are read, relative to the root.
    parts: Vec<Vec<u8>>,
    /// Those of them whose folders are classes.
    classed: Vec<bool>,
    /// The names of the classes of all parts.
    numbers: BTreeMap<Vec<u8>, u32>,
}

/// The images of one part: how many lie directly in it, and in or below each of its folders.
#[derive(Clone, Default)]
struct PartCount {
    beside: usize,
    folders: BTreeMap<Vec<u8>, usize>,
}

/// The part that a folder belongs to, and the first name below that part; `None` for the part itself.
fn top<'a>(parts: &[Vec<u8>], folder: &'a [u8]) -> Option<(usize, Option<&'a [u8]>)> {
    let separator = MAIN_SEPARATOR as u8;
    parts.iter().enumerate().find_map(|(part, path)| {
        let below = match folder.strip_prefix(&path[..])? {
            [] => return Some((part, None)),
            rest if path.is_empty() => rest,
            rest => rest.strip_prefix(&[separator])?,
        };
        Some((part, below.split(|&byte| byte == separator).next()))
    })
}

impl ClassPlan {
    /// Decides whether folders are classes, and takes the images out that lie beside them. `None` if there are no classes.
    fn make(found: &mut Listing, parts: &Parts<'_>, classes: Classes, config: &DataSpec) -> Option<Self> {
        if classes == Classes::None {
            return None;
        }
        let paths: Vec<Vec<u8>> =
            parts.read.iter().map(|part| path_bytes(part).unwrap_or_default().to_vec()).collect();
        let counts = Self::count(found, &paths);
        let read: Vec<BTreeSet<&[u8]>> =
            counts.iter().map(|count| count.folders.keys().map(Vec::as_slice).collect()).collect();
        let is_read = |name: &[u8]| read.iter().any(|names| names.contains(name));
        let others: Vec<Vec<Vec<u8>>> =
            parts.others.iter().map(|part| class_folders(part, config, is_read)).collect();
        let all: Vec<BTreeSet<&[u8]>> = (read.iter().cloned())
            .chain(others.iter().map(|names| names.iter().map(Vec::as_slice).collect()))
            .collect();
        // A single folder that no other part has is none where others have several: `val/images` beside classes.
        let is_wrapper = |part: usize| {
            let rest = || all.iter().enumerate().filter(|(other, _)| *other != part).map(|(_, names)| names);
            all[part].len() == 1
                && rest().any(|names| names.len() >= 2)
                && rest().all(|names| names.is_disjoint(&all[part]))
        };
        let told = |PartCount { beside, folders }: &PartCount| {
            let few = folders.len() >= 2 && beside * 5 <= beside + folders.values().sum::<usize>();
            !folders.is_empty() && (*beside == 0 || few)
        };
        let classed: Vec<bool> = (counts.iter().enumerate())
            .map(|(part, count)| (classes == Classes::Folders || told(count)) && !is_wrapper(part))
            .collect();
        if !classed.contains(&true) {
            return None;
        }
        let is_named = |part: &usize| classed.get(*part).copied().unwrap_or(!is_wrapper(*part));
        let named = (0..all.len()).filter(is_named).flat_map(|part| all[part].iter());
        let names: BTreeSet<Vec<u8>> = named.map(|name| name.to_vec()).collect();
        let beside: Vec<bool> = (found.folders.iter())
            .map(|folder| matches!(top(&paths, folder), Some((part, None)) if classed[part]))
            .collect();
        if beside.contains(&true) {
            found.remove(&beside, Reason::BesideClasses);
        }
        Some(Self { parts: paths, classed, numbers: names.into_iter().zip(0..).collect() })
    }

    fn count(found: &Listing, parts: &[Vec<u8>]) -> Vec<PartCount> {
        let mut images = vec![0_usize; found.folders.len()];
        found.folder_of.iter().for_each(|&folder| images[folder as usize] += 1);
        let mut counts = vec![PartCount::default(); parts.len()];
        for (folder, images) in found.folders.iter().zip(images) {
            match top(parts, folder) {
                Some((part, None)) => counts[part].beside += images,
                Some((part, Some(name))) => {
                    *counts[part].folders.entry(name.to_vec()).or_default() += images;
                }
                None => {}
            }
        }
        counts
    }

    /// For each folder its class, and the classes' names.
    fn number(&self, folders: &Names) -> (Vec<u32>, Vec<String>) {
        let class = |folder: &[u8]| match top(&self.parts, folder) {
            Some((part, Some(name))) if self.classed[part] => self.numbers.get(name).copied(),
            _ => None,
        };
        let names = self.numbers.keys().map(|name| String::from_utf8_lossy(name).into_owned());
        (folders.iter().map(|folder| class(folder).unwrap_or(NO_CLASS)).collect(), names.collect())
    }
}
