//! What lies in a folder: files of a known data set, splits, classes, or images; and where below the path that is.
//!
//! Folders are listed, files are not opened. Of sub-folders only so much is looked at as decides: the first image of
//! a class folder ends the look at it.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    DataError, DataSpec, Format, Split,
    cifar::is_cifar_name,
    idx::{is_images_name, labels_names},
    kinds,
    survey::{Reason, Tally},
};

/// What a path turned out to hold.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// Where it lies: the path, or a folder below it.
    pub(crate) root: PathBuf,
    pub(crate) layout: Layout,
    /// What was left aside on the way there.
    pub(crate) aside: Tally,
}

#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// Files that hold many images each, with the split that the folder above or their own name tells.
    Files(Format, Vec<(PathBuf, Option<Split>)>),
    /// Image files, in these folders below the root, one or more for each split; none where there are no splits.
    Images(Vec<(Split, PathBuf)>),
}

/// How deep below the path data may lie.
const MAX_DEPTH: usize = 4;
/// How many folders are looked into before a folder without data is taken for empty.
const MAX_LOOKS: usize = 512;

/// Tells what a folder holds. With [`Format::Auto`] of all layouts, else of the wanted one.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Empty`] with what was found instead; [`DataError::Several`].
pub(crate) fn locate(folder: &Path, config: &DataSpec) -> Result<Located, DataError> {
    let mut aside = Tally::default();
    let mut root = folder.to_owned();
    for _ in 0..MAX_DEPTH {
        let contents = Contents::of(&root, config)?;
        let files = contents.files(config.format);
        if let Some((format, files)) = files {
            let files = files.into_iter().map(|file| (root.join(&file), split_of(&file))).collect();
            aside.append(contents.aside);
            aside.append(contents.images);
            contents.folders.iter().for_each(|name| aside.add(Reason::BesideData, name.as_encoded_bytes()));
            return Ok(Located { root, layout: Layout::Files(format, files), aside });
        }
        if let Some(layout) = division(&root, &contents, config, &mut aside)? {
            aside.append(contents.aside);
            aside.append(contents.images);
            return Ok(Located { root, layout, aside });
        }
        let has_images = contents.n_images > 0 && config.format == Format::Auto;
        if has_images || is_images(config.format) {
            return Ok(Located { root, layout: Layout::Images(Vec::new()), aside });
        }
        match below(&root, &contents, config)? {
            Below::Classes => return Ok(Located { root, layout: Layout::Images(Vec::new()), aside }),
            Below::Data(name) => {
                // A single data set below: what lies beside it is said, and the look goes on there.
                let beside = contents.folders.iter().filter(|other| **other != name);
                beside.for_each(|other| aside.add(Reason::BesideData, other.as_encoded_bytes()));
                aside.append(contents.aside);
                root.push(name);
            }
            Below::Nothing => {
                if !contents.packed.is_empty() && matches!(config.format, Format::Auto | Format::Tar) {
                    let files =
                        contents.packed.iter().map(|file| (root.join(file), split_of(file))).collect();
                    return Ok(Located { root, layout: Layout::Files(Format::Tar, files), aside });
                }
                if config.format == Format::Auto {
                    // Whoever lists the images says what is there instead.
                    return Ok(Located { root, layout: Layout::Images(Vec::new()), aside });
                }
                aside.append(contents.aside);
                break;
            }
        }
    }
    let expected = match config.format {
        Format::Idx => "files like train-images-idx3-ubyte or train-images-idx3-ubyte.gz".to_owned(),
        Format::Cifar => crate::cifar::EXPECTED.to_owned(),
        Format::Tar => "files ending in .tar".to_owned(),
        Format::Parquet => "files ending in .parquet".to_owned(),
        _ => "another layout".to_owned(),
    };
    Err(DataError::Empty { path: folder.to_owned(), expected: expected + &aside.instead() })
}

fn is_images(format: Format) -> bool {
    matches!(format, Format::Classes | Format::Flat)
}

fn split_of(file: &OsStr) -> Option<Split> {
    Split::of_name(&file.to_string_lossy())
}

/// What lies directly in a folder.
#[derive(Default)]
struct Contents {
    n_images: usize,
    /// The images, in case that the data lie elsewhere.
    images: Tally,
    folders: Vec<OsString>,
    idx: Vec<OsString>,
    cifar: Vec<OsString>,
    tar: Vec<OsString>,
    parquet: Vec<OsString>,
    /// Gzipped tar and zip archives: data only where nothing else is.
    packed: Vec<OsString>,
    aside: Tally,
}

impl Contents {
    fn of(folder: &Path, config: &DataSpec) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: folder.to_owned(), source };
        let (mut contents, mut idx_others) = (Self::default(), Vec::new());
        for entry in fs::read_dir(folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let bytes = name.as_encoded_bytes();
            match Entry::of(&entry, config) {
                Entry::Hidden if is_worth_telling(bytes, config) => contents.aside.add(Reason::Hidden, bytes),
                Entry::Hidden => {}
                Entry::Folder => contents.folders.push(name),
                Entry::Image => {
                    contents.n_images += 1;
                    contents.images.add(Reason::BesideData, bytes);
                }
                Entry::Files(Format::Idx) => contents.idx.push(name),
                Entry::Files(Format::Cifar) => contents.cifar.push(name),
                Entry::Files(Format::Tar) => contents.tar.push(name),
                Entry::Files(_) => contents.parquet.push(name),
                Entry::Broken => contents.aside.add(Reason::Unreachable, bytes),
                Entry::Other if kinds::is_idx(bytes) => idx_others.push(name),
                Entry::Other => {
                    let lower = bytes.to_ascii_lowercase();
                    if [&b".tar.gz"[..], b".tgz", b".zip"].iter().any(|ending| lower.ends_with(ending)) {
                        contents.packed.push(name.clone());
                    }
                    if let Some(reason) = why_no_image(bytes) {
                        contents.aside.add(reason, bytes);
                    }
                }
            }
        }
        // Files of labels go with their images.
        let images = contents.idx.iter().filter_map(|name| name.to_str());
        let labels: Vec<String> = images.filter_map(labels_names).flatten().collect();
        for name in idx_others.iter().filter(|name| !labels.iter().any(|labels| *name == labels.as_str())) {
            if let Some(reason) = why_no_image(name.as_encoded_bytes()) {
                contents.aside.add(reason, name.as_encoded_bytes());
            }
        }
        let lists = [
            &mut contents.folders,
            &mut contents.idx,
            &mut contents.cifar,
            &mut contents.tar,
            &mut contents.parquet,
        ];
        lists.into_iter().for_each(|list| list.sort());
        contents.packed.sort();
        // The plain file where the gzipped one is there, too.
        contents.idx.dedup_by(|gzipped, plain| Path::new(gzipped).with_extension("") == Path::new(plain));
        Ok(contents)
    }

    /// The files of the format that comes first, or of the wanted one.
    fn files(&self, wanted: Format) -> Option<(Format, Vec<OsString>)> {
        let kinds = [
            (Format::Idx, &self.idx),
            (Format::Parquet, &self.parquet),
            (Format::Tar, &self.tar),
            (Format::Cifar, &self.cifar),
        ];
        let is_wanted = |format| wanted == Format::Auto || wanted == format;
        let found = kinds.into_iter().find(|(format, files)| is_wanted(*format) && !files.is_empty());
        found.map(|(format, files)| (format, files.clone()))
    }
}

/// Why a file that is no image is left aside; `None` for what nobody takes for data.
pub(crate) fn why_no_image(name: &[u8]) -> Option<Reason> {
    match kinds::of_name(name) {
        Some(kind) => Some(Reason::unread(kind)),
        None if kinds::is_furniture(name) => None,
        None => Some(Reason::NoImage),
    }
}

/// Whether a hidden name is that of data.
pub(crate) fn is_worth_telling(name: &[u8], config: &DataSpec) -> bool {
    let name = name.strip_prefix(b"._").unwrap_or(name);
    config.is_image_name(name) || std::str::from_utf8(name).is_ok_and(|name| files_format(name).is_some())
}

/// What one entry of a folder is, by its name and by what the listing says of it.
enum Entry {
    Hidden,
    Folder,
    Image,
    Files(Format),
    Broken,
    Other,
}

impl Entry {
    fn of(entry: &fs::DirEntry, config: &DataSpec) -> Self {
        let name = entry.file_name();
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b".") {
            return Self::Hidden;
        }
        // Only links are looked at: listings say what everything else is.
        let kind = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => fs::metadata(entry.path()).map(|metadata| metadata.file_type()),
            other => other,
        };
        match kind {
            Ok(kind) if kind.is_dir() => Self::Folder,
            Ok(kind) if kind.is_file() => match name.to_str().and_then(files_format) {
                Some(format) => Self::Files(format),
                None if config.is_image_name(bytes) => Self::Image,
                None => Self::Other,
            },
            _ => Self::Broken,
        }
    }
}

/// The format of a file that holds many images, by its name.
fn files_format(name: &str) -> Option<Format> {
    let ends = |ending: &str| {
        name.len() > ending.len()
            && name.is_char_boundary(name.len() - ending.len())
            && name[name.len() - ending.len()..].eq_ignore_ascii_case(ending)
    };
    if is_images_name(name) {
        Some(Format::Idx)
    } else if is_cifar_name(name) {
        Some(Format::Cifar)
    } else if ends(".parquet") {
        Some(Format::Parquet)
    } else {
        ends(".tar").then_some(Format::Tar)
    }
}

/// Folders beside splits or classes that are neither: what they hold are no images to learn from by default.
fn is_accessory(name: &str) -> bool {
    const NAMES: [&str; 29] = [
        "mask",
        "trimap",
        "trimaps",
        "segmentation",
        "segmentations",
        "segmentationclass",
        "segmentationobject",
        "gt",
        "groundtruth",
        "depth",
        "attributes",
        "assets",
        "figures",
        "annotations",
        "annotation",
        "labels",
        "masks",
        "meta",
        "metadata",
        "docs",
        "doc",
        "devkit",
        "__macosx",
        "extra",
        "unlabeled",
        "unlabelled",
        "unsup",
        "pred",
        "predict",
    ];
    let last = name.rsplit(['_', '-', ' ']).next().unwrap_or(name);
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known) || last.eq_ignore_ascii_case(known))
}

/// Whether a folder is called by nothing but its having pictures: no class, where accessories lie beside it.
fn is_pictures(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        "images",
        "image",
        "imgs",
        "img",
        "jpegimages",
        "photos",
        "photo",
        "pictures",
        "pics",
        "frames",
        "rgb",
        "jpg",
        "jpeg",
        "png",
    ];
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The only folder that is no accessory, if it is called by its pictures and there are accessories: `images` beside `masks`.
fn pictures_beside_accessories(folders: &[OsString]) -> Option<&OsString> {
    let mut data = folders.iter().filter(|name| !is_accessory(&name.to_string_lossy()));
    let only = data.next().filter(|name| folders.len() >= 2 && is_pictures(&name.to_string_lossy()))?;
    data.next().is_none().then_some(only)
}

/// The splits that a folder is divided into, if it is.
///
/// Its sub-folders are splits if their names differ only in the word that says so (`train` and `val`, `train2017` and
/// `val2017`), unless two or more others look just like them. A folder `train` alone is a split unless there are classes
/// beside it; `val` or `test` alone is one only if there are folders in it and none beside it.
fn division(
    root: &Path,
    contents: &Contents,
    config: &DataSpec,
    aside: &mut Tally,
) -> Result<Option<Layout>, DataError> {
    let Some(names) = split_names(&contents.folders) else { return Ok(None) };
    let look = |name: &OsStr| look(&root.join(name), config, MAX_DEPTH, &mut { MAX_LOOKS });
    let parts: Vec<(Split, &OsString, Bears)> = names
        .into_iter()
        .map(|(split, name)| (split, name, look(name)))
        .filter(|part| part.2 != Bears::Nothing)
        .collect();
    let is_part = |name: &OsString| parts.iter().any(|(_, part, _)| *part == name);
    let others: Vec<&OsString> = contents.folders.iter().filter(|name| !is_part(name)).collect();
    let beside: Vec<Bears> = others
        .iter()
        .filter(|name| !is_accessory(&name.to_string_lossy()))
        .map(|name| look(name))
        .filter(|bears| *bears != Bears::Nothing)
        .collect();
    let mut splits: Vec<Split> = parts.iter().map(|part| part.0).collect();
    splits.sort();
    splits.dedup();
    let flat = |bears: &Bears| *bears == Bears::Images;
    let parts_are_flat = parts.iter().all(|part| flat(&part.2));
    let divided = match splits[..] {
        [] => false,
        [Split::Train] => beside.is_empty() || (!parts_are_flat && beside.iter().all(flat)),
        [_] => beside.is_empty() && !parts_are_flat && contents.n_images == 0,
        _ => !(beside.len() >= 2 && parts_are_flat && beside.iter().all(flat)),
    };
    if !divided {
        return Ok(None);
    }
    let files: Vec<_> = parts.iter().filter(|part| part.2 == Bears::Files).collect();
    let layout = if files.is_empty() || is_images(config.format) {
        let mut folder = |name: &OsStr, bears: &Bears| match bears {
            Bears::ImagesBelow => descend(root, Path::new(name), config, aside),
            _ => PathBuf::from(name),
        };
        Layout::Images(parts.iter().map(|(split, name, bears)| (*split, folder(name, bears))).collect())
    } else {
        let mut all = Vec::new();
        let mut format = config.format;
        for (split, name, _) in files {
            let folder = root.join(name);
            let contents = Contents::of(&folder, config)?;
            if let Some((found, files)) = contents.files(format) {
                format = found;
                all.extend(files.into_iter().map(|file| (folder.join(file), Some(*split))));
            }
        }
        if all.is_empty() {
            return Ok(None);
        }
        Layout::Files(format, all)
    };
    others.iter().for_each(|name| aside.add(Reason::BesideSplits, name.as_encoded_bytes()));
    Ok(Some(layout))
}

/// The names that differ only in the word of their split: those with the most splits, of equals the plainest. Where there are none,
/// names that differ in a number, too (`train` and `test1`).
fn split_names(folders: &[OsString]) -> Option<Vec<(Split, &OsString)>> {
    let n_splits = |group: &[(Split, &OsString)]| {
        let mut splits: Vec<Split> = group.iter().map(|part| part.0).collect();
        splits.sort();
        splits.dedup();
        splits.len()
    };
    let groups = |numbered: bool| {
        let mut groups: BTreeMap<String, Vec<(Split, &OsString)>> = BTreeMap::new();
        for name in folders {
            if let Some((split, rest)) = name.to_str().and_then(Split::cut) {
                let rest =
                    if numbered { &rest[..] } else { rest.trim_end_matches(|c: char| c.is_ascii_digit()) };
                groups.entry(rest.to_lowercase()).or_default().push((split, name));
            }
        }
        // One name alone is a split only if it is nothing but the word.
        groups.retain(|rest, group| rest.is_empty() || n_splits(group) >= 2);
        groups
    };
    let most = |groups: &BTreeMap<_, Vec<_>>| groups.values().map(|group| n_splits(group)).max().unwrap_or(0);
    let mut found = groups(true);
    if most(&found) < 2 {
        let loose = groups(false);
        if most(&loose) >= 2 {
            found = loose;
        }
    }
    let most = most(&found);
    found.into_values().find(|group| n_splits(group) == most)
}

/// The folder below a split's that its classes lie in, where that is a single one without images of its own, or that its
/// images lie in beside folders of masks and the like.
fn descend(root: &Path, part: &Path, config: &DataSpec, aside: &mut Tally) -> PathBuf {
    let mut part = part.to_owned();
    for _ in 0..MAX_DEPTH {
        let Ok(contents) = Contents::of(&root.join(&part), config) else { break };
        if contents.n_images > 0 {
            break;
        }
        if let Some(pictures) = pictures_beside_accessories(&contents.folders) {
            let others = contents.folders.iter().filter(|other| *other != pictures);
            others.for_each(|other| {
                aside.add(Reason::BesideData, part.join(other).as_os_str().as_encoded_bytes())
            });
            part.push(pictures);
            continue;
        }
        let [only] = &contents.folders[..] else { break };
        let inside = part.join(only);
        if look(&root.join(&inside), config, MAX_DEPTH, &mut { MAX_LOOKS }) != Bears::ImagesBelow {
            break;
        }
        part = inside;
    }
    part
}

enum Below {
    /// The sub-folders are classes.
    Classes,
    /// The only sub-folder that data lie in, or below.
    Data(OsString),
    Nothing,
}

/// What the sub-folders of a folder hold that has neither data nor splits of its own.
fn below(root: &Path, contents: &Contents, config: &DataSpec) -> Result<Below, DataError> {
    let mut looks = MAX_LOOKS;
    let is_data = |name: &&OsString| !is_accessory(&name.to_string_lossy());
    let (mut images, mut files, mut below): (Vec<&OsString>, Vec<&OsString>, Vec<&OsString>) =
        Default::default();
    for name in &contents.folders {
        match look(&root.join(name), config, MAX_DEPTH, &mut looks) {
            Bears::Nothing => continue,
            Bears::Images => images.push(name),
            Bears::ImagesBelow => below.push(name),
            Bears::Files => files.push(name),
        }
        // Two folders of images: classes.
        if [&images, &below].into_iter().flatten().filter(|name| is_data(name)).count() >= 2 {
            return Ok(Below::Classes);
        }
    }
    let all_are_accessories = [&images, &below, &files].into_iter().flatten().all(|name| !is_data(name));
    let n_pictured = images.len() + below.len();
    if files.len() + n_pictured > 1 && !all_are_accessories {
        [&mut images, &mut below, &mut files].into_iter().for_each(|names| names.retain(is_data));
    }
    // Accessories that hold pictures are left aside only where it is plain that the data are elsewhere.
    let beside_pictures = images.len() + below.len() < n_pictured;
    let is_plain = |name: &OsString| {
        let splits = || {
            let below = Contents::of(&root.join(name), config).ok()?;
            split_names(&below.folders).map(|names| names.len() >= 2)
        };
        !beside_pictures || is_pictures(&name.to_string_lossy()) || splits().unwrap_or(false)
    };
    // Hugging Face's repositories have `data` beside others.
    if let Some(data) = files.iter().find(|name| name.eq_ignore_ascii_case("data")) {
        return Ok(Below::Data((*data).clone()));
    }
    match (&images[..], &below[..], &files[..]) {
        ([], [], []) => Ok(Below::Nothing),
        ([], [], [one]) => Ok(Below::Data((*one).clone())),
        ([], [one], []) if is_plain(one) => Ok(Below::Data((*one).clone())),
        ([one], [], []) if pictures_beside_accessories(&contents.folders) == Some(*one) => {
            Ok(Below::Data((*one).clone()))
        }
        (_, _, []) => Ok(Below::Classes),
        _ => {
            let found = [&images[..], &below, &files].concat();
            Err(DataError::Several {
                path: root.to_owned(),
                found: found.into_iter().map(PathBuf::from).collect(),
            })
        }
    }
}

/// What lies in a folder or below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bears {
    Nothing,
    /// Image files directly in it.
    Images,
    /// Image files further below.
    ImagesBelow,
    /// Files that hold many images, in it or below.
    Files,
}

/// Looks into a folder until something decides.
fn look(folder: &Path, config: &DataSpec, depth: usize, looks: &mut usize) -> Bears {
    if *looks == 0 || depth == 0 {
        return Bears::Nothing;
    }
    *looks -= 1;
    let wants_files = !is_images(config.format);
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match Entry::of(&entry, config) {
            Entry::Files(format) if wants_files && [Format::Auto, format].contains(&config.format) => {
                return Bears::Files;
            }
            Entry::Image if is_images(config.format) || config.format == Format::Auto => {
                return Bears::Images;
            }
            Entry::Folder => folders.push(entry.path()),
            _ => {}
        }
    }
    folders.sort();
    for folder in folders {
        match look(&folder, config, depth - 1, looks) {
            Bears::Nothing => {}
            Bears::Files => return Bears::Files,
            Bears::Images | Bears::ImagesBelow => return Bears::ImagesBelow,
        }
    }
    Bears::Nothing
}

/// The sub-folders of a folder that images lie in or below, by name: its classes.
pub(crate) fn class_folders(
    folder: &Path,
    config: &DataSpec,
    known: impl Fn(&[u8]) -> bool + Copy,
) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !matches!(Entry::of(&entry, config), Entry::Folder) {
            continue;
        }
        let name = entry.file_name();
        let Some(bytes) = crate::names::path_bytes(Path::new(&name)) else { continue };
        let has_images = || look(&entry.path(), config, MAX_DEPTH, &mut { MAX_LOOKS }) != Bears::Nothing;
        if known(bytes) || has_images() {
            names.push(bytes.to_vec());
        }
    }
    names
}
