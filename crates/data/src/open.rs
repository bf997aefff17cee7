//! From a path to a data set: tells the layout, chooses the split, adds the cache.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Cached, Cifar, DataConfig, DataError, DataSpec, Dataset, FileList, Folder, Format, Idx, Shapes, Shards,
    Split, Subset, cifar::is_cifar_name, idx::images_files,
};

/// Opens the data set at a path; [`DataConfig::path`] is not looked at.
///
/// With [`Format::Auto`]: `builtin` is the built-in data set. A file is told by its first bytes, then by its name. A
/// folder with IDX, CIFAR, `.tar` or `.parquet` files (also in `data/`) holds these. Otherwise, sub-folders named `train`,
/// `val`, `test` and the like are its parts, images directly in the folder make it flat, and sub-folders are classes. A path
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

impl DataSpec {
    /// Opens the data set at the path; see [`open`] for how its layout is told.
    ///
    /// # Errors
    /// Any [`DataError`].
    pub fn open(&self) -> Result<Arc<dyn Dataset>, DataError> {
        let (path, format) = detect(self)?;
        let budget = self.cache_mib.saturating_mul(1 << 20);
        let split_off = |data, chosen, budget_bytes| split_off(self, data, chosen, budget_bytes);
        match format {
            Format::Auto => unreachable!("detect never answers Auto"),
            // Held in memory already.
            Format::Idx => {
                let named =
                    path.file_name().is_some_and(|name| Split::of_name(&name.to_string_lossy()).is_some());
                split_off(Arc::new(Idx::open(path, self)?), named || path.is_dir(), 0)
            }
            Format::Cifar => split_off(Arc::new(Cifar::open(path, self)?), true, 0),
            Format::Builtin => split_off(Arc::new(Shapes::new(self.shapes(), self.split)), true, budget),
            Format::List => split_off(Arc::new(FileList::open(path, self)?), false, budget),
            Format::Classes | Format::Flat => {
                let part = split_folder(path, self.split)?;
                let root = part.as_deref().unwrap_or(path);
                let folder = match format {
                    Format::Flat => Folder::flat(root, self)?,
                    _ => Folder::classes(root, self)?,
                };
                split_off(Arc::new(folder), part.is_some(), budget)
            }
            Format::Tar => {
                let (files, chosen) = split_files(path, "tar", self.split)?;
                split_off(Arc::new(Shards::open(files, self)?), chosen, budget)
            }
            Format::Parquet => {
                let (files, chosen) = split_files(path, "parquet", self.split)?;
                split_off(open_parquet(files, self)?, chosen, budget / 2)
            }
        }
    }
}

#[cfg(feature = "parquet")]
fn open_parquet(files: Vec<PathBuf>, config: &DataSpec) -> Result<Arc<dyn Dataset>, DataError> {
    Ok(Arc::new(crate::ParquetImages::open(files, config)?))
}

#[cfg(not(feature = "parquet"))]
fn open_parquet(_files: Vec<PathBuf>, config: &DataSpec) -> Result<Arc<dyn Dataset>, DataError> {
    Err(DataError::NotBuilt { path: config.path.clone(), format: "Parquet", feature: "parquet" })
}

/// Applies the hold-out where the layout has chosen no split itself, and the cache.
fn split_off(
    config: &DataSpec,
    data: Arc<dyn Dataset>,
    chosen: bool,
    budget_bytes: usize,
) -> Result<Arc<dyn Dataset>, DataError> {
    let data = match (chosen, config.split) {
        (true, _) | (_, Split::All) => data,
        (false, Split::Train) if config.holdout == 0.0 => data,
        (false, split) => {
            let held_out = split != Split::Train;
            if held_out && config.holdout == 0.0 {
                let reason =
                    "the data have no parts by that name; set `holdout` to a share, such as 0.1".to_owned();
                return Err(DataError::NoSplit { path: config.path.clone(), split, reason });
            }
            let subset = Subset::hold_out(data, config.holdout, held_out);
            if subset.is_empty() {
                let reason = format!("holdout = {} leaves it without images", config.holdout);
                return Err(DataError::NoSplit { path: config.path.clone(), split, reason });
            }
            Arc::new(subset)
        }
    };
    Ok(if budget_bytes > 0 { Arc::new(Cached::new(data, budget_bytes)) } else { data })
}

/// The path and its layout.
fn detect(config: &DataSpec) -> Result<(&Path, Format), DataError> {
    let path = config.path.as_path();
    let is_builtin = path == Path::new("builtin") && !path.exists();
    if config.format == Format::Builtin || (config.format == Format::Auto && is_builtin) {
        return Ok((path, Format::Builtin));
    }
    let first = expand_braces(path)?.into_iter().next().unwrap_or_else(|| path.to_owned());
    let metadata = fs::metadata(&first).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => DataError::Missing { path: first.clone() },
        _ => DataError::Io { path: first.clone(), source },
    })?;
    let format = match config.format {
        Format::Auto if metadata.is_dir() => detect_folder(path, config)?,
        Format::Auto => detect_file(&first)?,
        chosen => chosen,
    };
    Ok((path, format))
}

fn detect_file(path: &Path) -> Result<Format, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let mut start = Vec::new();
    File::open(path).map_err(io)?.take(512).read_to_end(&mut start).map_err(io)?;
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if start.starts_with(b"PAR1") || ends(&[".parquet"]) {
        Ok(Format::Parquet)
    } else if start.get(257..262) == Some(b"ustar") || ends(&[".tar", ".tar.gz", ".tgz"]) {
        Ok(Format::Tar)
    } else if start.starts_with(&[0, 0, 8]) || crate::idx::is_images_name(&name) {
        Ok(Format::Idx)
    } else if is_cifar_name(&name) {
        Ok(Format::Cifar)
    } else if ends(&[".txt", ".lst", ".list", ".csv", ".tsv"]) {
        Ok(Format::List)
    } else if image::guess_format(&start).is_ok() {
        Err(DataError::OneImage { path: path.to_owned() })
    } else {
        let got =
            format!("a file named {name:?} that starts with the bytes {:02x?}", &start[..start.len().min(8)]);
        Err(DataError::UnknownFormat { path: path.to_owned(), got })
    }
}

fn detect_folder(path: &Path, config: &DataSpec) -> Result<Format, DataError> {
    if !images_files(path)?.is_empty() {
        return Ok(Format::Idx);
    }
    for (extension, format) in [("parquet", Format::Parquet), ("tar", Format::Tar)] {
        if !shard_files(path, extension)?.is_empty() {
            return Ok(format);
        }
    }
    // Reading stops at the first entry that decides, so that a folder of a million images is not listed twice.
    let mut folders = 0_usize;
    let root = split_folder(path, config.split).ok().flatten().unwrap_or_else(|| path.to_owned());
    let io = |source| DataError::Io { path: root.clone(), source };
    for entry in fs::read_dir(&root).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let bytes = name.as_encoded_bytes();
        if name.to_str().is_some_and(is_cifar_name) {
            return Ok(Format::Cifar);
        }
        let hidden = bytes.starts_with(b".");
        if config.is_image_name(bytes) && !hidden && entry.path().is_file() {
            return Ok(Format::Flat);
        }
        folders += usize::from(!hidden && entry.path().is_dir());
    }
    if folders > 0 {
        return Ok(Format::Classes);
    }
    let expected = format!(
        "files ending in {}, sub-folders with such files, or IDX, CIFAR, tar or Parquet files",
        config.extensions.join(", ")
    );
    Err(DataError::Empty { path: root, expected })
}

/// The sub-folder of a split, if the folder is divided into splits; `None` if it is not, or all of it is wanted.
fn split_folder(path: &Path, split: Split) -> Result<Option<PathBuf>, DataError> {
    if split == Split::All {
        return Ok(None);
    }
    let exact = ["train", "training", "val", "valid", "validation", "dev", "test", "testing"];
    let mut parts = Vec::new();
    for name in exact {
        let part = path.join(name);
        if part.is_dir() {
            parts.extend(Split::of_name(name).map(|split| (split, part)));
        }
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let splits: Vec<_> = parts.iter().map(|(split, _)| *split).collect();
    let Some(wanted) = present(split, &splits) else {
        // A folder `val` alone may be a class of that name; without a train folder nothing is divided.
        if !splits.contains(&Split::Train) {
            return Ok(None);
        }
        let reason = format!("found the parts {}", list(&splits));
        return Err(DataError::NoSplit { path: path.to_owned(), split, reason });
    };
    Ok(parts.into_iter().find(|(split, _)| *split == wanted).map(|(_, part)| part))
}

/// The shards of a split, sorted, and whether their names told the split.
fn split_files(path: &Path, extension: &str, split: Split) -> Result<(Vec<PathBuf>, bool), DataError> {
    let (root, divided) = if path.is_dir() {
        match split_folder(path, split)? {
            Some(part) if !shard_files(&part, extension)?.is_empty() => (part, true),
            _ => (path.to_owned(), false),
        }
    } else {
        return Ok((expand_braces(path)?, false));
    };
    let files = shard_files(&root, extension)?;
    if files.is_empty() {
        return Err(DataError::Empty { path: root, expected: format!("files ending in .{extension}") });
    }
    if divided || split == Split::All {
        return Ok((files, divided));
    }
    let split_of = |file: &PathBuf| file.file_name().and_then(|name| Split::of_name(&name.to_string_lossy()));
    let splits: Vec<_> = files.iter().filter_map(split_of).collect();
    if splits.is_empty() {
        return Ok((files, false));
    }
    match present(split, &splits) {
        Some(wanted) => Ok((files.into_iter().filter(|file| split_of(file) == Some(wanted)).collect(), true)),
        // Everything is one split by name: a hold-out may still divide it.
        None if splits.iter().all(|&part| part == Split::Train) => Ok((files, false)),
        None => {
            let reason = format!("found the parts {}", list(&splits));
            Err(DataError::NoSplit { path: root, split, reason })
        }
    }
}

/// The wanted split, or the one that stands in for it, if it is among those there.
fn present(wanted: Split, there: &[Split]) -> Option<Split> {
    let order: &[Split] = match wanted {
        Split::Val => &[Split::Val, Split::Test],
        Split::Test => &[Split::Test, Split::Val],
        other => &[other],
    };
    order.iter().copied().find(|split| there.contains(split))
}

fn list(splits: &[Split]) -> String {
    let mut names: Vec<_> = splits.iter().map(ToString::to_string).collect();
    names.sort();
    names.dedup();
    names.join(", ")
}

/// Files with an extension directly in a folder, or if there are none, in its `data` sub-folder; sorted.
fn shard_files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, DataError> {
    for folder in [folder.to_owned(), folder.join("data")] {
        if !folder.is_dir() {
            continue;
        }
        let io = |source| DataError::Io { path: folder.clone(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
                && !hidden
                && path.is_file()
            {
                files.push(path);
            }
        }
        if !files.is_empty() {
            files.sort();
            return Ok(files);
        }
    }
    Ok(Vec::new())
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
