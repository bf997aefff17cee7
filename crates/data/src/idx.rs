//! The IDX files of MNIST, Fashion-MNIST, KMNIST and EMNIST, plain or gzipped.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufReader, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::read::MultiGzDecoder;
use swav_augment::{Channels, Image};

use crate::counted::counted;
use crate::{
    DataError, DataSpec, Dataset, Format, SampleError, Split, StableHash,
    layout::{self, Layout},
};

/// By how much a gzipped file may inflate if it inflates to more than [`FREE_BYTES`]: MNIST does by 5.
const MAX_INFLATION: u64 = 100;
const FREE_BYTES: u64 = 256 << 20;

/// An array of bytes with its shape, as an IDX file holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdxArray {
    /// The size of each dimension, slowest first.
    pub shape: Vec<usize>,
    /// The values.
    pub data: Vec<u8>,
}

/// Reads an IDX array of unsigned bytes: two zero bytes, the type 0x08, the number of dimensions, each dimension as
/// a big-endian u32, then the values (LeCun, Cortes and Burges, the MNIST database).
///
/// Memory grows with the data that really come, not with what the header claims.
///
/// ```
/// let file = [0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 10, 20, 30];
/// let array = swav_data::read_idx(&file[..])?;
/// assert_eq!((array.shape, array.data), (vec![1, 3], vec![10, 20, 30]));
/// # Ok::<(), String>(())
/// ```
///
/// # Errors
/// A sentence that says what was expected and what came.
pub fn read_idx(reader: impl Read) -> Result<IdxArray, String> {
    read_within(reader, u64::MAX)
}

/// As [`read_idx`], of a file that cannot hold more than `max_bytes`: what claims more is refused before it is read.
fn read_within(mut reader: impl Read, max_bytes: u64) -> Result<IdxArray, String> {
    let mut magic = [0; 4];
    read_exact(&mut reader, &mut magic, "the 4-byte magic number")?;
    let [zero_a, zero_b, kind, n_dims] = magic;
    if (zero_a, zero_b) != (0, 0) {
        return Err(format!("expected the bytes 0 0 at the start, found {zero_a} {zero_b}"));
    }
    if kind != 0x08 {
        return Err(format!("expected unsigned bytes (type 0x08), found type {kind:#04x}"));
    }
    if !(1..=4).contains(&n_dims) {
        return Err(format!("expected 1 to 4 dimensions, found {n_dims}"));
    }
    let mut shape = Vec::with_capacity(usize::from(n_dims));
    let mut expected: usize = 1;
    for dim in 0..n_dims {
        let mut size = [0; 4];
        read_exact(&mut reader, &mut size, &format!("the size of dimension {dim}"))?;
        let size = u32::from_be_bytes(size) as usize;
        expected =
            expected.checked_mul(size).ok_or("the dimensions multiply to more than memory can address")?;
        shape.push(size);
    }
    if expected as u64 > max_bytes {
        return Err(format!(
            "expected {expected} values for the shape {shape:?}, but the file cannot hold more than {max_bytes}: truncated, or \
             its header is wrong"
        ));
    }
    let mut data = Vec::with_capacity(expected.min(1 << 20));
    let read =
        (&mut reader).take(expected as u64).read_to_end(&mut data).map_err(|error| error.to_string())?;
    if read < expected {
        return Err(format!("expected {expected} values for the shape {shape:?}, found {read}: truncated"));
    }
    let mut extra = [0];
    if reader.read(&mut extra).map_err(|error| error.to_string())? != 0 {
        return Err(format!("more data than the {expected} values of the shape {shape:?}"));
    }
    data.shrink_to_fit();
    Ok(IdxArray { shape, data })
}

/// Images in IDX files, held in memory as bytes. Two dimensions an image are grey; a third of size 3 is RGB.
pub struct Idx {
    pixels: Vec<u8>,
    n_images: usize,
    height: usize,
    width: usize,
    channels: usize,
    labels: Option<Vec<u8>>,
    class_names: Vec<String>,
    path: PathBuf,
    split: Split,
    fingerprint: u64,
}

impl Idx {
    /// Opens the images of a split with their labels. `path` is a folder with files named
    /// `*images*idx3-ubyte` and `*labels*idx1-ubyte` (`.gz` or not), or one images file.
    ///
    /// # Errors
    /// [`DataError::Empty`], [`DataError::NoSplit`], [`DataError::Io`], or [`DataError::Malformed`] if a file
    /// contradicts its header, or the numbers of images and labels differ.
    pub fn open(path: &Path, config: &DataSpec) -> Result<Self, DataError> {
        if path.is_dir() {
            let located = layout::locate(path, &config.with_format(Format::Idx))?;
            let Layout::Files(_, files) = located.layout else { return Err(no_files(path)) };
            let files = files.into_iter().map(|(file, _)| file).collect();
            let chosen = choose_split(&located.root, files, config.split)?;
            return Self::open_files(&located.root, &chosen.files, config);
        }
        Self::open_files(path, &[path.to_owned()], config)
    }

    /// Opens these files of the folder or file at `path`, with their labels.
    pub(crate) fn open_files(path: &Path, files: &[PathBuf], config: &DataSpec) -> Result<Self, DataError> {
        let mut whole: Option<Self> = None;
        for file in files {
            let part = Self::open_file(file, config.split)?;
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => whole.append(part)?,
            }
        }
        let mut whole = whole.ok_or_else(|| no_files(path))?;
        path.clone_into(&mut whole.path);
        if let Some(labels) = &whole.labels {
            let n_classes = labels.iter().max().map_or(0, |&max| usize::from(max) + 1);
            whole.class_names = (0..n_classes).map(|class| class.to_string()).collect();
        }
        let mut hash = StableHash::new(whole.n_images as u64);
        hash.bytes(&whole.pixels);
        hash.bytes(whole.labels.as_deref().unwrap_or_default());
        whole.fingerprint = hash.finish();
        Ok(whole)
    }

    fn open_file(file: &Path, split: Split) -> Result<Self, DataError> {
        let malformed = |reason: String| DataError::Malformed {
            path: file.to_owned(),
            format: "IDX",
            source: reason.into(),
        };
        let images = read_file(file)?;
        let (n_images, height, width, channels) = match images.shape[..] {
            [n, height, width] => (n, height, width, 1),
            [n, height, width, 3] => (n, height, width, 3),
            _ => {
                let shape = &images.shape;
                return Err(malformed(format!("expected the shape [n, height, width], found {shape:?}")));
            }
        };
        if n_images == 0 || height == 0 || width == 0 {
            return Err(malformed(format!("the shape {:?} holds no pixels", images.shape)));
        }
        if n_images > u32::MAX as usize || height > u32::MAX as usize || width > u32::MAX as usize {
            return Err(DataError::TooMany { path: file.to_owned() });
        }
        let labels = match labels_file(file) {
            Some(labels_path) => {
                let labels = read_file(&labels_path)?;
                if labels.shape != [n_images] {
                    let reason = format!(
                        "expected one label for each of {n_images} images, found the shape {:?}",
                        labels.shape
                    );
                    return Err(DataError::Malformed {
                        path: labels_path,
                        format: "IDX",
                        source: reason.into(),
                    });
                }
                Some(labels.data)
            }
            None => None,
        };
        Ok(Self {
            pixels: images.data,
            n_images,
            height,
            width,
            channels,
            labels,
            class_names: Vec::new(),
            path: file.to_owned(),
            split,
            fingerprint: 0,
        })
    }

    fn append(&mut self, other: Self) -> Result<(), DataError> {
        let shape = |idx: &Self| (idx.height, idx.width, idx.channels);
        if shape(self) != shape(&other) {
            let reason = format!(
                "expected images of (height, width, channels) {:?}, found {:?}",
                shape(self),
                shape(&other)
            );
            return Err(DataError::Malformed { path: other.path, format: "IDX", source: reason.into() });
        }
        self.pixels.extend_from_slice(&other.pixels);
        self.n_images += other.n_images;
        self.labels = match (self.labels.take(), other.labels) {
            (Some(mut labels), Some(more)) => {
                labels.extend_from_slice(&more);
                Some(labels)
            }
            _ => None,
        };
        Ok(())
    }
}

impl Dataset for Idx {
    fn len(&self) -> usize {
        self.n_images
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let size = self.height * self.width * self.channels;
        let pixels = (index < self.n_images)
            .then(|| &self.pixels[index * size..(index + 1) * size])
            .ok_or(SampleError::OutOfRange { index, len: self.n_images })?;
        let channels = if self.channels == 3 { Channels::Rgb } else { Channels::Grey };
        let image = Image::new(self.width as u32, self.height as u32, channels, pixels.to_vec());
        Ok(Arc::new(image.expect("opening checks that the shape holds pixels")))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref()?.get(index).map(|&label| u32::from(label))
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn name(&self, index: usize) -> String {
        format!("{}[{index}]", self.path.display())
    }

    fn describe(&self) -> String {
        format!(
            "IDX {}: {} of {}x{} ({}), {}",
            self.path.display(),
            counted(self.n_images, "image"),
            self.width,
            self.height,
            self.split,
            counted(self.class_names.len(), "class")
        )
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// Whether a file name is that of an IDX images file.
pub(crate) fn is_images_name(name: &str) -> bool {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    name.contains("images")
        && !name.starts_with('.')
        && (name.ends_with("idx3-ubyte") || name.ends_with("idx4-ubyte"))
}

fn no_files(path: &Path) -> DataError {
    let expected = "files like train-images-idx3-ubyte or train-images-idx3-ubyte.gz".to_owned();
    DataError::Empty { path: path.to_owned(), expected }
}

/// The images files of one split.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) files: Vec<PathBuf>,
    /// Whether the files are those of a split, not all that there are.
    pub(crate) divided: bool,
    /// The splits that there are.
    pub(crate) splits: Vec<Split>,
    /// Files that belong to no split.
    pub(crate) beside: Vec<PathBuf>,
}

/// Chooses among images files that belong together: whose names differ only in the word of the split.
///
/// # Errors
/// [`DataError::Several`] if they do not, [`DataError::NoSplit`].
pub(crate) fn choose_split(folder: &Path, files: Vec<PathBuf>, wanted: Split) -> Result<Chosen, DataError> {
    let mut sets: BTreeMap<String, Vec<(Split, PathBuf)>> = BTreeMap::new();
    let mut beside = Vec::new();
    for file in files {
        match cut(&file) {
            Some((split, rest)) => sets.entry(rest).or_default().push((split, file)),
            None => beside.push(file),
        }
    }
    let several = |files: Vec<&PathBuf>| DataError::Several {
        path: folder.to_owned(),
        found: files.into_iter().filter_map(|file| file.file_name()).map(PathBuf::from).collect(),
    };
    if sets.len() > 1 {
        return Err(several(sets.values().filter_map(|set| set.first()).map(|(_, file)| file).collect()));
    }
    let Some((_, set)) = sets.pop_first() else {
        if beside.len() > 1 && wanted != Split::All {
            return Err(several(beside.iter().collect()));
        }
        return Ok(Chosen { files: beside, divided: false, splits: Vec::new(), beside: Vec::new() });
    };
    let splits: Vec<Split> = set.iter().map(|(split, _)| *split).collect();
    if wanted == Split::All {
        return Ok(Chosen {
            files: set.into_iter().map(|(_, file)| file).collect(),
            divided: false,
            splits,
            beside,
        });
    }
    let Some(present) = wanted.present(&splits) else {
        return Err(DataError::NoSplit {
            path: folder.to_owned(),
            split: wanted,
            reason: Split::found(&splits),
        });
    };
    let files = set.into_iter().filter(|(split, _)| *split == present).map(|(_, file)| file).collect();
    Ok(Chosen { files, divided: true, splits, beside })
}

/// The split of an images file, and its name without it.
fn cut(file: &Path) -> Option<(Split, String)> {
    let name = file.file_name()?.to_string_lossy();
    Split::cut(name.strip_suffix(".gz").unwrap_or(&name))
}

/// The images file of another split beside one: `t10k-images-idx3-ubyte` beside that of `train`.
pub(crate) fn sibling(file: &Path, wanted: Split) -> Option<PathBuf> {
    let (_, rest) = cut(file)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut names: Vec<_> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    let beside = names.iter().filter(|name| name.to_str().is_some_and(is_images_name));
    let mut all: Vec<(Split, PathBuf)> = beside
        .filter_map(|name| {
            cut(Path::new(name)).map(|(split, other)| (split, other, file.with_file_name(name)))
        })
        .filter(|(_, other, _)| *other == rest)
        .map(|(split, _, path)| (split, path))
        .collect();
    let present = wanted.present(&all.iter().map(|(split, _)| *split).collect::<Vec<_>>())?;
    all.retain(|(split, path)| *split == present && path != file);
    all.into_iter().map(|(_, path)| path).next()
}

/// The names that the labels of an images file may have.
pub(crate) fn labels_names(images: &str) -> Option<[String; 2]> {
    let plain = images.strip_suffix(".gz").unwrap_or(images);
    let labels = plain.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1");
    (labels != plain).then(|| [labels.clone(), format!("{labels}.gz")])
}

/// The labels beside an images file, if they are there.
fn labels_file(images: &Path) -> Option<PathBuf> {
    labels_names(images.file_name()?.to_str()?)?
        .into_iter()
        .map(|name| images.with_file_name(name))
        .find(|path| path.is_file())
}

fn read_file(path: &Path) -> Result<IdxArray, DataError> {
    let file = File::open(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    let length = file
        .metadata()
        .and_then(|metadata| {
            if metadata.is_file() {
                Ok(metadata.len())
            } else {
                Err(std::io::Error::other("not a regular file"))
            }
        })
        .map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    let mut reader = BufReader::new(file);
    let gzipped = {
        let start = std::io::BufRead::fill_buf(&mut reader)
            .map_err(|source| DataError::Io { path: path.to_owned(), source })?;
        start.starts_with(&[0x1f, 0x8b])
    };
    let array = if gzipped {
        // A few zeros inflate to anything; pictures do not.
        let max_bytes = length.saturating_mul(MAX_INFLATION).max(FREE_BYTES);
        read_within(MultiGzDecoder::new(reader), max_bytes)
    } else {
        read_within(reader, length)
    };
    array.map_err(|reason: String| DataError::Malformed {
        path: path.to_owned(),
        format: "IDX",
        source: reason.into(),
    })
}

fn read_exact(reader: &mut impl Read, buffer: &mut [u8], what: &str) -> Result<(), String> {
    reader.read_exact(buffer).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => format!("truncated before the end of {what}"),
        _ => format!("{what}: {error}"),
    })
}
