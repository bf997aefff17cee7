//! The binary versions of CIFAR-10 and CIFAR-100: records of one or two label bytes and 3072 planar RGB bytes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use swav_augment::{Channels, Image};

use crate::counted::counted;
use crate::{DataError, DataSpec, Dataset, SampleError, Split, StableHash};

const SIDE: usize = 32;
const PIXELS: usize = SIDE * SIDE;
/// Files are held in memory; the data sets' own have 154 MB at most.
const MAX_BYTES: u64 = 2 << 30;
const TEST_FILES: [&str; 2] = ["test_batch.bin", "test.bin"];

/// Which of the two data sets a file belongs to; they differ in the record and in the labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CifarKind {
    /// One label byte, 0 to 9.
    Cifar10,
    /// A coarse label byte, 0 to 19, then a fine one, 0 to 99.
    Cifar100,
}

impl CifarKind {
    fn label_bytes(self) -> usize {
        match self {
            Self::Cifar10 => 1,
            Self::Cifar100 => 2,
        }
    }

    fn record_bytes(self) -> usize {
        self.label_bytes() + 3 * PIXELS
    }
}

/// Checks that `data` are whole records with labels in range, and gives their number.
///
/// # Errors
/// A sentence that says what was expected and what came.
pub fn check_cifar(data: &[u8], kind: CifarKind) -> Result<usize, String> {
    let record = kind.record_bytes();
    if data.is_empty() || !data.len().is_multiple_of(record) {
        return Err(format!("expected one or more records of {record} bytes, found {} bytes", data.len()));
    }
    let limits: &[u8] = match kind {
        CifarKind::Cifar10 => &[10],
        CifarKind::Cifar100 => &[20, 100],
    };
    for (index, bytes) in data.chunks_exact(record).enumerate() {
        for (&label, &limit) in bytes.iter().zip(limits) {
            if label >= limit {
                return Err(format!("record {index}: expected a label below {limit}, found {label}"));
            }
        }
    }
    Ok(data.len() / record)
}

/// CIFAR images, held in memory as their files have them.
pub struct Cifar {
    data: Vec<u8>,
    kind: CifarKind,
    label_byte: usize,
    class_names: Vec<String>,
    path: PathBuf,
    split: Split,
    fingerprint: u64,
}

impl Cifar {
    /// Opens a split from the folder of the extracted archive (`data_batch_1.bin` to `_5.bin` and `test_batch.bin`,
    /// or `train.bin` and `test.bin`), or a single file.
    ///
    /// Labels of CIFAR-100 are the fine ones, unless [`DataConfig::label_column`](crate::DataConfig::label_column) is `coarse_label`.
    ///
    /// # Errors
    /// [`DataError::NoSplit`], [`DataError::Empty`], [`DataError::Io`], [`DataError::Malformed`],
    /// [`DataError::Config`] for another label column.
    pub fn open(path: &Path, config: &DataSpec) -> Result<Self, DataError> {
        if path.is_dir() {
            let crate::layout::Located { root, layout, .. } =
                crate::layout::locate(path, &config.with_format(crate::Format::Cifar))?;
            let files = match layout {
                crate::layout::Layout::Files(_, files) => files.into_iter().map(|(file, _)| file).collect(),
                crate::layout::Layout::Images(_) => Vec::new(),
            };
            return Self::open_files(&root, split_files(&root, files, config.split)?, config);
        }
        Self::open_files(path, vec![path.to_owned()], config)
    }

    /// Opens these files of the folder or file at `path`.
    pub(crate) fn open_files(path: &Path, files: Vec<PathBuf>, config: &DataSpec) -> Result<Self, DataError> {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
        let mut data = Vec::new();
        let mut kind = None;
        for file in &files {
            let io = |source| DataError::Io { path: file.clone(), source };
            let metadata = fs::metadata(file).map_err(io)?;
            if !metadata.is_file() {
                return Err(io(std::io::Error::other("not a regular file")));
            }
            if metadata.len() > MAX_BYTES {
                let source = format!("expected at most {MAX_BYTES} bytes, found {}", metadata.len()).into();
                return Err(DataError::Malformed { path: file.clone(), format: "CIFAR", source });
            }
            let bytes = fs::read(file).map_err(io)?;
            let found = kind_of(file, &bytes, folder)?;
            if *kind.get_or_insert(found) != found {
                let reason = format!("expected {kind:?} like the files before it, found {found:?}");
                return Err(DataError::Malformed {
                    path: file.clone(),
                    format: "CIFAR",
                    source: reason.into(),
                });
            }
            data.extend_from_slice(&bytes);
        }
        let kind =
            kind.ok_or_else(|| DataError::Empty { path: path.to_owned(), expected: EXPECTED.to_owned() })?;
        let (label_byte, names_file) = match (kind, config.label_column.as_deref()) {
            (CifarKind::Cifar10, None | Some("label")) => (0, "batches.meta.txt"),
            (CifarKind::Cifar100, None | Some("label" | "fine_label")) => (1, "fine_label_names.txt"),
            (CifarKind::Cifar100, Some("coarse_label")) => (0, "coarse_label_names.txt"),
            (_, Some(other)) => {
                return Err(DataError::Config {
                    field: "label_column",
                    expected: "`label` for CIFAR-10; `fine_label` or `coarse_label` for CIFAR-100",
                    got: other.to_owned(),
                });
            }
        };
        let mut hash = StableHash::new(label_byte as u64);
        hash.bytes(&data);
        Ok(Self {
            fingerprint: hash.finish(),
            class_names: class_names(&folder.join(names_file)),
            data,
            kind,
            label_byte,
            path: path.to_owned(),
            split: config.split,
        })
    }

    fn record(&self, index: usize) -> Option<&[u8]> {
        let size = self.kind.record_bytes();
        self.data.get(index.checked_mul(size)?..)?.get(..size)
    }
}

impl Dataset for Cifar {
    fn len(&self) -> usize {
        self.data.len() / self.kind.record_bytes()
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let record = self.record(index).ok_or(SampleError::OutOfRange { index, len: self.len() })?;
        let planes = &record[self.kind.label_bytes()..];
        let rgb =
            (0..PIXELS).flat_map(|at| [planes[at], planes[at + PIXELS], planes[at + 2 * PIXELS]]).collect();
        let image = Image::new(SIDE as u32, SIDE as u32, Channels::Rgb, rgb);
        Ok(Arc::new(image.expect("three bytes for each pixel")))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.record(index).map(|record| u32::from(record[self.label_byte]))
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn name(&self, index: usize) -> String {
        format!("{}[{index}]", self.path.display())
    }

    fn describe(&self) -> String {
        let images = counted(self.len(), "image");
        format!("{:?} {}: {images} of 32x32 ({})", self.kind, self.path.display(), self.split)
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

pub(crate) const EXPECTED: &str =
    "data_batch_1.bin to data_batch_5.bin and test_batch.bin, or train.bin and test.bin";

/// Whether a file name is one of the CIFAR archives' own.
pub(crate) fn is_cifar_name(name: &str) -> bool {
    // What a Mac writes beside a file begins with `._`, and is none of these either.
    name == "train.bin"
        || TEST_FILES.contains(&name)
        || (name.starts_with("data_batch_") && name.ends_with(".bin"))
}

/// The files of a split. The test files stand in for those of a validation.
pub(crate) fn split_files(folder: &Path, all: Vec<PathBuf>, split: Split) -> Result<Vec<PathBuf>, DataError> {
    if all.is_empty() {
        return Err(DataError::Empty { path: folder.to_owned(), expected: EXPECTED.to_owned() });
    }
    let is_test = |file: &PathBuf| {
        file.file_name().and_then(|name| name.to_str()).is_some_and(|name| TEST_FILES.contains(&name))
    };
    let chosen: Vec<_> = match split {
        Split::All => all.clone(),
        Split::Train => all.iter().filter(|file| !is_test(file)).cloned().collect(),
        Split::Val | Split::Test => all.iter().filter(|file| is_test(file)).cloned().collect(),
    };
    if chosen.is_empty() {
        let found: Vec<_> = all.iter().filter_map(|file| file.file_name()).collect();
        let reason = format!("found only {found:?}");
        return Err(DataError::NoSplit { path: folder.to_owned(), split, reason });
    }
    Ok(chosen)
}

/// Tells the two data sets apart: by the length in records, then by the names of files.
fn kind_of(file: &Path, bytes: &[u8], folder: &Path) -> Result<CifarKind, DataError> {
    let ten = check_cifar(bytes, CifarKind::Cifar10);
    let hundred = check_cifar(bytes, CifarKind::Cifar100);
    match (ten, hundred) {
        (Ok(_), Err(_)) => Ok(CifarKind::Cifar10),
        (Err(_), Ok(_)) => Ok(CifarKind::Cifar100),
        (Ok(_), Ok(_)) if folder.join("fine_label_names.txt").exists() => Ok(CifarKind::Cifar100),
        (Ok(_), Ok(_)) => Ok(CifarKind::Cifar10),
        (Err(ten), Err(hundred)) => {
            let reason = format!("as CIFAR-10: {ten}; as CIFAR-100: {hundred}");
            Err(DataError::Malformed { path: file.to_owned(), format: "CIFAR", source: reason.into() })
        }
    }
}

/// The names of classes, one a line; empty if the archive's list is not there.
fn class_names(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
