//! From a path to a data set: tells the layout, chooses the split, adds the cache, and says how all that was understood.

use std::{
    fs::{self, File},
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::read::MultiGzDecoder;
use swav_augment::Image;

use crate::{
    Cached, Cifar, DataConfig, DataError, DataSpec, Dataset, FileList, Folder, Format, Idx, LabelKind,
    SampleError, Shapes, Shards, Split, Subset, Survey, cifar,
    folder::{Classes, Parts},
    idx, kinds,
    layout::{Layout, locate},
    links::refuse_system,
    survey::{Found, Reason, Tally},
};

/// Opens the data set at a path; [`DataConfig::path`] is not looked at. How the path was understood is
/// [`Dataset::survey`].
///
/// With [`Format::Auto`]: `builtin` is the built-in data set. A file is told by its first bytes, then by its name. A
/// folder with IDX, CIFAR, `.tar` or `.parquet` files holds these. Otherwise, sub-folders named `train`,
/// `val`, `test` and the like are its parts, sub-folders are classes, and images in the folder itself make it flat (a few of
/// them beside classes are left aside). Where a folder holds nothing but one folder with a data set, that one is meant. A path
/// may hold one `{first..last}` of numbers, for shards.
///
/// ```
/// use swav_data::{DataConfig, Dataset, open};
/// let data = open("builtin", &DataConfig::default())?;
/// assert_eq!((data.len(), data.image(0)?.width()), (6000, 48));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Any [`DataError`].
pub fn open(path: impl AsRef<Path>, config: &DataConfig) -> Result<Arc<dyn Dataset>, DataError> {
    config.check()?.with_path(path.as_ref()).open()
}

/// How a path is understood: the data set is opened, and what it says of itself is kept; see [`open`].
///
/// # Errors
/// Any [`DataError`].
pub fn survey(path: impl AsRef<Path>, config: &DataConfig) -> Result<Survey, DataError> {
    let data = open(path, &DataConfig { cache_mib: 0, ..config.clone() })?;
    Ok(data.survey().expect("what is opened is surveyed").clone())
}

impl DataSpec {
    /// Opens the data set at the path; see [`open`] for how its layout is told.
    ///
    /// # Errors
    /// Any [`DataError`].
    pub fn open(&self) -> Result<Arc<dyn Dataset>, DataError> {
        let path = self.path.as_path();
        let mut found = Found {
            path: path.to_owned(),
            root: path.to_owned(),
            format: self.format,
            split: self.split,
            splits: Vec::new(),
            held_out: false,
            aside: Tally::default(),
            remarks: Vec::new(),
        };
        let opened = self.open_path(&mut found)?;
        found.held_out = !opened.divided && self.split != Split::All && self.holdout > 0.0;
        let data = split_off(self, opened.data, opened.divided)?;
        let budget_bytes = match found.format {
            // Held in memory already.
            Format::Idx | Format::Cifar => 0,
            Format::Parquet => self.cache_mib.saturating_mul(1 << 19),
            _ => self.cache_mib.saturating_mul(1 << 20),
        };
        let data = if budget_bytes > 0 { Arc::new(Cached::new(data, budget_bytes)) } else { data };
        let survey = Survey::of(data.as_ref(), found);
        Ok(Arc::new(Surveyed { data, survey }))
    }

    fn open_path(&self, found: &mut Found) -> Result<Opened, DataError> {
        let path = self.path.as_path();
        let is_builtin = path == Path::new("builtin") && !path.exists();
        if self.format == Format::Builtin || (self.format == Format::Auto && is_builtin) {
            found.format = Format::Builtin;
            found.splits = vec![Split::Train, Split::Test];
            return Ok(Opened::new(Shapes::new(self.shapes(), self.split), true));
        }
        let files = expand_braces(path)?;
        let first = files.first().map_or(path, PathBuf::as_path);
        let metadata = fs::metadata(first).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing { path: first.to_owned() },
            _ => DataError::Io { path: first.to_owned(), source },
        })?;
        if metadata.is_dir() && self.format != Format::List {
            refuse_system(first)?;
            return self.open_folder(found);
        }
        if !metadata.is_dir() && !metadata.is_file() {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "neither a folder nor a file");
            return Err(DataError::Io { path: first.to_owned(), source });
        }
        found.format = if self.format == Format::Auto { detect_file(first)? } else { self.format };
        self.open_files(files, found)
    }

    /// Opens one file, or several of shards.
    fn open_files(&self, mut files: Vec<PathBuf>, found: &mut Found) -> Result<Opened, DataError> {
        let path = self.path.as_path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let named = Split::of_name(&name).filter(|_| files.len() == 1);
        // The file that was given is meant, whatever its name; only the images to test on are looked for beside it, or
        // are those held out.
        let is_test = matches!(self.split, Split::Val | Split::Test);
        let mut divided = is_test && named.is_some_and(|named| self.split.present(&[named]).is_some());
        if found.format == Format::Idx
            && let Some(beside) = idx::sibling(path, self.split).filter(|_| is_test && !divided)
        {
            found.root.clone_from(&beside);
            (files, divided) = (vec![beside], true);
        }
        if divided {
            found.splits = named.into_iter().collect();
        }
        match found.format {
            Format::Idx => Ok(Opened::new(Idx::open_files(&found.root, &files, self)?, divided)),
            Format::Cifar => Ok(Opened::new(Cifar::open(path, self)?, divided)),
            Format::List => {
                let list = FileList::open(path, self)?;
                list.tell(found);
                let divided = list.is_divided();
                Ok(Opened::new(list, divided))
            }
            Format::Tar | Format::Parquet => self.open_shards(files, &[], divided, found),
            // Says that this is no folder.
            _ => Ok(Opened::new(Folder::flat(path, self)?, divided)),
        }
    }

    /// Opens shards; `others` are those of other splits.
    fn open_shards(
        &self,
        files: Vec<PathBuf>,
        others: &[PathBuf],
        divided: bool,
        found: &mut Found,
    ) -> Result<Opened, DataError> {
        if let Some(path) = files.iter().find(|file| is_lfs_pointer(file)) {
            let kind = &kinds::LFS_POINTER;
            return Err(DataError::Unread { path: path.clone(), kind: kind.name, advice: kind.advice });
        }
        if found.format == Format::Parquet {
            return Ok(Opened { data: open_parquet(files, others, self)?, divided });
        }
        let shards = Shards::open_part(files, others, self)?;
        found.aside.append(shards.left_aside().clone());
        let (splits, by_folders) = shards.division();
        found.splits.extend(splits);
        Ok(Opened::new(shards, divided || by_folders))
    }

    fn open_folder(&self, found: &mut Found) -> Result<Opened, DataError> {
        let located = locate(&self.path, self)?;
        found.root = located.root;
        found.aside.append(located.aside);
        match located.layout {
            Layout::Images(parts) => self.open_images(&parts, found),
            Layout::Files(format, files) => {
                found.format = format;
                self.open_located(files, found)
            }
        }
    }

    fn open_located(
        &self,
        files: Vec<(PathBuf, Option<Split>)>,
        found: &mut Found,
    ) -> Result<Opened, DataError> {
        let splits: Vec<Split> = files.iter().filter_map(|(_, split)| *split).collect();
        match found.format {
            Format::Idx => {
                let files = files.into_iter().map(|(file, _)| file).collect();
                let chosen = idx::choose_split(&found.root, files, self.wanted(&splits))?;
                beside_splits(&chosen.beside, found);
                found.splits = chosen.splits;
                Ok(Opened::new(Idx::open_files(&found.root, &chosen.files, self)?, chosen.divided))
            }
            Format::Cifar => {
                let is_test = splits.contains(&Split::Test);
                let files: Vec<_> = files.into_iter().map(|(file, _)| file).collect();
                let n_files = files.len();
                let chosen = cifar::split_files(&found.root, files, self.split)?;
                if is_test {
                    found.splits =
                        if n_files > 1 { vec![Split::Train, Split::Test] } else { vec![Split::Test] };
                }
                Ok(Opened::new(Cifar::open_files(&found.root, chosen, self)?, true))
            }
            _ => {
                let wanted = self.wanted(&splits);
                found.splits.clone_from(&splits);
                let present =
                    if wanted == Split::All || splits.is_empty() { None } else { wanted.present(&splits) };
                if wanted != Split::All && !splits.is_empty() && present.is_none() {
                    let reason = Split::found(&splits);
                    return Err(DataError::NoSplit { path: found.root.clone(), split: self.split, reason });
                }
                let is_chosen = |split: Option<Split>| present.is_none() || split == present;
                if present.is_some() {
                    let beside: Vec<_> =
                        files.iter().filter(|file| file.1.is_none()).map(|file| file.0.clone()).collect();
                    beside_splits(&beside, found);
                }
                let (chosen, others): (Vec<_>, Vec<_>) =
                    files.into_iter().partition(|(_, split)| is_chosen(*split));
                let others: Vec<PathBuf> =
                    others.into_iter().filter(|file| file.1.is_some()).map(|file| file.0).collect();
                let chosen = chosen.into_iter().map(|file| file.0).collect();
                self.open_shards(chosen, &others, present.is_some(), found)
            }
        }
    }

    /// The part to choose by name: where all is said to be `train`, a hold-out divides it.
    fn wanted(&self, splits: &[Split]) -> Split {
        let only_train = splits.iter().all(|&split| split == Split::Train);
        if only_train && self.holdout > 0.0 { Split::All } else { self.split }
    }

    fn open_images(&self, parts: &[(Split, PathBuf)], found: &mut Found) -> Result<Opened, DataError> {
        let splits: Vec<Split> = parts.iter().map(|(split, _)| *split).collect();
        let wanted = self.wanted(&splits);
        let present = if wanted == Split::All { None } else { wanted.present(&splits) };
        if wanted != Split::All && !parts.is_empty() && present.is_none() {
            let reason = Split::found(&splits);
            return Err(DataError::NoSplit { path: found.root.clone(), split: self.split, reason });
        }
        let is_read = |split: Split| present.is_none_or(|present| split == present);
        let read: Vec<&PathBuf> = parts.iter().filter(|part| is_read(part.0)).map(|part| &part.1).collect();
        let others =
            parts.iter().filter(|part| !is_read(part.0)).map(|part| found.root.join(&part.1)).collect();
        // Names begin at the split's own folder, if it has one.
        let (root, read) = match (&read[..], wanted) {
            ([], _) => (found.root.clone(), vec![PathBuf::new()]),
            ([one], wanted) if wanted != Split::All => (found.root.join(one), vec![PathBuf::new()]),
            (several, _) => (found.root.clone(), several.iter().map(|&part| part.clone()).collect()),
        };
        let classes = match self.format {
            Format::Flat => Classes::None,
            Format::Classes => Classes::Folders,
            _ => Classes::Told,
        };
        let folder = Folder::open(&Parts { root: &root, read, others }, classes, self)?;
        found.format = if folder.class_names().is_empty() { Format::Flat } else { Format::Classes };
        found.splits = splits;
        found.aside.append(folder.left_aside().clone());
        Ok(Opened::new(folder, present.is_some()))
    }
}

fn beside_splits(files: &[PathBuf], found: &mut Found) {
    for name in files.iter().filter_map(|file| file.file_name()) {
        found.aside.add(Reason::BesideSplits, name.as_encoded_bytes());
    }
}

/// A data set, and whether it is one of the parts that the data are divided into.
struct Opened {
    data: Arc<dyn Dataset>,
    divided: bool,
}

impl Opened {
    fn new(data: impl Dataset + 'static, divided: bool) -> Self {
        Self { data: Arc::new(data), divided }
    }
}

#[cfg(feature = "parquet")]
fn open_parquet(
    files: Vec<PathBuf>,
    others: &[PathBuf],
    config: &DataSpec,
) -> Result<Arc<dyn Dataset>, DataError> {
    Ok(Arc::new(crate::ParquetImages::open_part(files, others, config)?))
}

#[cfg(not(feature = "parquet"))]
fn open_parquet(
    _files: Vec<PathBuf>,
    _others: &[PathBuf],
    config: &DataSpec,
) -> Result<Arc<dyn Dataset>, DataError> {
    Err(DataError::NotBuilt { path: config.path.clone(), format: "Parquet", feature: "parquet" })
}

/// Applies the hold-out where the data are not divided themselves.
fn split_off(
    config: &DataSpec,
    data: Arc<dyn Dataset>,
    divided: bool,
) -> Result<Arc<dyn Dataset>, DataError> {
    if divided || config.split == Split::All || (config.split == Split::Train && config.holdout == 0.0) {
        return Ok(data);
    }
    let no_split = |reason| DataError::NoSplit { path: config.path.clone(), split: config.split, reason };
    if config.holdout == 0.0 {
        let reason = "the data have no parts by that name; set `holdout` to a share, such as 0.1".to_owned();
        return Err(no_split(reason));
    }
    let subset = Subset::hold_out(data, config.holdout, config.split != Split::Train);
    if subset.is_empty() {
        return Err(no_split(format!("holdout = {} leaves it without images", config.holdout)));
    }
    Ok(Arc::new(subset))
}

/// A data set that knows how its path was understood.
struct Surveyed {
    data: Arc<dyn Dataset>,
    survey: Survey,
}

impl Dataset for Surveyed {
    fn len(&self) -> usize {
        self.data.len()
    }
    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        self.data.image(index)
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.data.label(index)
    }
    fn label_kind(&self, index: usize) -> LabelKind {
        self.data.label_kind(index)
    }
    fn class_names(&self) -> &[String] {
        self.data.class_names()
    }
    fn survey(&self) -> Option<&Survey> {
        Some(&self.survey)
    }
    fn name(&self, index: usize) -> String {
        self.data.name(index)
    }
    fn describe(&self) -> String {
        self.data.describe()
    }
    fn fingerprint(&self) -> u64 {
        self.data.fingerprint()
    }
    fn blocks(&self) -> Option<Vec<Range<usize>>> {
        self.data.blocks()
    }
}

/// Whether Git has left a file out and a note in its place.
fn is_lfs_pointer(file: &Path) -> bool {
    let mut start = Vec::new();
    let is_short = fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.len() < 1024);
    is_short
        && File::open(file).is_ok_and(|file| file.take(64).read_to_end(&mut start).is_ok())
        && kinds::is_lfs_pointer(&start)
}

/// The layout of a file, by its first bytes and its name.
fn detect_file(path: &Path) -> Result<Format, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let mut start = Vec::new();
    File::open(path).map_err(io)?.take(1 << 16).read_to_end(&mut start).map_err(io)?;
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    let is_tar = |start: &[u8]| start.get(257..262) == Some(b"ustar");
    let mut unpacked = Vec::new();
    if start.starts_with(&[0x1f, 0x8b]) {
        // What can be read of it will do.
        let _ = MultiGzDecoder::new(&start[..]).take(512).read_to_end(&mut unpacked);
    }
    if start.starts_with(b"PAR1") || ends(&[".parquet"]) {
        Ok(Format::Parquet)
    } else if is_tar(&start) || is_tar(&unpacked) || ends(&[".tar", ".tar.gz", ".tgz", ".zip"]) {
        Ok(Format::Tar)
    } else if start.starts_with(&[0, 0, 8]) || unpacked.starts_with(&[0, 0, 8]) || idx::is_images_name(&name)
    {
        Ok(Format::Idx)
    } else if cifar::is_cifar_name(&name) {
        Ok(Format::Cifar)
    } else if ends(&[".txt", ".lst", ".list", ".csv", ".tsv", ".jsonl", ".ndjson"]) {
        Ok(Format::List)
    } else if image::guess_format(&start).is_ok() {
        Err(DataError::OneImage { path: path.to_owned() })
    } else if let Some(kind) = kinds::of_bytes(&start).or_else(|| kinds::of_name(name.as_bytes())) {
        Err(DataError::Unread { path: path.to_owned(), kind: kind.name, advice: kind.advice })
    } else {
        let got =
            format!("a file named {name:?} that starts with the bytes {:02x?}", &start[..start.len().min(8)]);
        Err(DataError::UnknownFormat { path: path.to_owned(), got })
    }
}

/// The paths that `{first..last}` stands for, with leading zeros as in `first`; the path itself if it has no braces or
/// exists.
fn expand_braces(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let plain = || Ok(vec![path.to_owned()]);
    let Some(text) = path.to_str().filter(|_| !path.exists()) else { return plain() };
    let Some((before, rest)) = text.split_once('{') else { return plain() };
    let Some((range, after)) = rest.split_once('}') else { return plain() };
    let Some((first, last)) = range.split_once("..") else { return plain() };
    let (Ok(from), Ok(to)) = (first.parse::<u32>(), last.parse::<u32>()) else { return plain() };
    if from > to || to - from >= 1_000_000 {
        let got = format!("{{{range}}}");
        return Err(DataError::Config {
            field: "path",
            expected: "an ascending range of at most a million",
            got,
        });
    }
    Ok((from..=to)
        .map(|number| PathBuf::from(format!("{before}{number:0width$}{after}", width = first.len())))
        .collect())
}
