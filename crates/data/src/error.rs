//! What can go wrong: with a data set as a whole, with a single image, and while loading.
//!
//! The text of an error does not repeat its cause: whoever prints it goes through [`source`](std::error::Error::source).

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

/// What somebody else's code says went wrong: a decoder, a data set of yours, a maker of views. Text becomes one by
/// `.into()`.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A data set that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The path does not exist.
    #[error("{}: no such file or folder", path.display())]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{}: cannot be read", path.display())]
    Io {
        /// The file or folder being read.
        path: PathBuf,
        /// The reason it gave.
        source: io::Error,
    },
    /// Nothing usable was found.
    #[error("{}: found no images; expected {expected}", path.display())]
    Empty {
        /// The path searched.
        path: PathBuf,
        /// What would have counted as an image there.
        expected: String,
    },
    /// Several data sets lie below the path.
    #[error(
        "{}: several data sets lie below ({}); give the path of one of them",
        path.display(),
        found.iter().take(5).map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Several {
        /// The path searched.
        path: PathBuf,
        /// Folders below it that hold data, relative to it; or names of data sets in it.
        found: Vec<PathBuf>,
    },
    /// The format could not be told from the path and its first bytes.
    #[error(
        "{}: cannot tell the data format ({got}); set `format` to one of {}",
        path.display(),
        crate::Format::NAMES
    )]
    UnknownFormat {
        /// The path looked at.
        path: PathBuf,
        /// What is there.
        got: String,
    },
    /// The file is of a known kind that no data set is read from.
    #[error("{}: {kind} files are not read; {advice}", path.display())]
    Unread {
        /// The file.
        path: PathBuf,
        /// What it is, such as zip.
        kind: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// The path is that of a single image.
    #[error("{}: this is one image; give the folder that it is in, or a list of images", path.display())]
    OneImage {
        /// The image.
        path: PathBuf,
    },
    /// The folder is one of the kernel's, such as `/proc`.
    #[error("{}: belongs to the system's kernel, which has no images", path.display())]
    System {
        /// The path asked for.
        path: PathBuf,
    },
    /// Links lead to the same folders over and over.
    #[error(
        "{}: links lead to the same folders over and over, such as {}; remove those that are not needed",
        path.display(),
        link.display()
    )]
    Links {
        /// The path searched.
        path: PathBuf,
        /// A link to what was read before.
        link: PathBuf,
    },
    /// A file contradicts its format.
    #[error("{}: not a valid {format} file", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The format it was read as.
        format: &'static str,
        /// What was expected and what came.
        source: Cause,
    },
    /// The format is one that this build of the library cannot read.
    #[error("{}: this build cannot read {format} files (feature `{feature}` of swav-data)", path.display())]
    NotBuilt {
        /// The data set.
        path: PathBuf,
        /// Its format.
        format: &'static str,
        /// The feature of this crate that reads it.
        feature: &'static str,
    },
    /// The data set has no such split.
    #[error("{}: no {split} split: {reason}", path.display())]
    NoSplit {
        /// The data set.
        path: PathBuf,
        /// The split asked for.
        split: crate::Split,
        /// What the data set has instead, and what to do.
        reason: String,
    },
    /// A path in the data leads out of the folder that the data are in.
    #[error("{}: {name} lies outside the list's folder; set `data.allow_outside = true` if it may", path.display())]
    Outside {
        /// The list.
        path: PathBuf,
        /// What the line says.
        name: String,
    },
    /// A table lacks a column, or the column has another type.
    #[error("{}: column `{column}`: expected {expected}, got {got}", path.display())]
    Column {
        /// The Parquet file.
        path: PathBuf,
        /// The column asked for.
        column: String,
        /// The types that are understood.
        expected: &'static str,
        /// What the file has.
        got: String,
    },
    /// A value of the configuration is out of its range.
    #[error("data setting `{field}`: expected {expected}, got {got}")]
    Config {
        /// The setting's name.
        field: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value given.
        got: String,
    },
    /// More images than 32-bit indices can count.
    #[error("{}: more than {} images in one data set", path.display(), u32::MAX)]
    TooMany {
        /// The data set.
        path: PathBuf,
    },
}

/// One image that cannot be used. The loader replaces such images; see [`crate::LoaderConfig::max_bad_share`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The index is not below the data set's length.
    #[error("index {index} in a data set of {len} images")]
    OutOfRange {
        /// The index asked for.
        index: usize,
        /// The number of images.
        len: usize,
    },
    /// The file was there when the data set was opened and is gone.
    #[error("the file has vanished")]
    Vanished,
    /// The file cannot be read.
    #[error("cannot be read")]
    Io(#[source] io::Error),
    /// What the data name is a folder, a device or a pipe.
    #[error("not a regular file")]
    NotAFile,
    /// The path in the data leads out of the folder that the data are in.
    #[error("the path leads out of the data's folder; set `allow_outside = true` if it may")]
    Outside,
    /// There is no image: the table's cell is empty.
    #[error("null: the row has neither image bytes nor a path")]
    Null,
    /// The file is longer than any image of its size can be: refused before it is read.
    #[error("{bytes} bytes, where an image of its size has at most {max_bytes}")]
    TooManyBytes {
        /// The length of the file, or of the member of an archive.
        bytes: u64,
        /// What is read at most.
        max_bytes: u64,
    },
    /// The image has more pixels than [`crate::DecodeConfig::max_pixels`]: refused before it is decoded.
    #[error(
        "{width}x{height} is {} pixels, above the limit of {max_pixels} (`max_pixels`)",
        u64::from(*width) * u64::from(*height)
    )]
    TooLarge {
        /// Width by the header.
        width: u32,
        /// Height by the header.
        height: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// The image has no pixels.
    #[error("the image is empty ({width}x{height})")]
    NoPixels {
        /// Width by the header.
        width: u32,
        /// Height by the header.
        height: u32,
    },
    /// The data ends before the image does.
    #[error("truncated")]
    Truncated(#[source] Cause),
    /// The data are of no known image format, or use a feature that the decoder lacks.
    #[error("unsupported")]
    Unsupported(#[source] Cause),
    /// The data contradict their format.
    #[error("corrupt")]
    Corrupt(#[source] Cause),
    /// A decoder or a data set failed in a way it should not; the message is its own.
    #[error("the reader panicked: {0}")]
    DecoderPanic(String),
}

impl SampleError {
    /// A short word for the kind of error, to count by.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::OutOfRange { .. } => "out of range",
            Self::Vanished => "vanished",
            Self::Io(_) => "unreadable",
            Self::NotAFile => "not a file",
            Self::Outside => "outside",
            Self::Null => "null",
            Self::TooManyBytes { .. } | Self::TooLarge { .. } => "too large",
            Self::NoPixels { .. } => "no pixels",
            Self::Truncated(_) => "truncated",
            Self::Unsupported(_) => "unsupported",
            Self::Corrupt(_) => "corrupt",
            Self::DecoderPanic(_) => "decoder panic",
        }
    }
}

impl SampleError {
    /// The error and its causes in one line, each said once: some errors hold the words of their cause already.
    pub fn explain(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |cause| cause.source());
        causes.fold(self.to_string(), |line, cause| {
            let words = cause.to_string();
            if line.contains(words.trim()) { line } else { format!("{line}: {words}") }
        })
    }
}

/// Runs what reads an image; a panic in it becomes [`SampleError::DecoderPanic`].
pub(crate) fn contained<T>(read: impl FnOnce() -> Result<T, SampleError>) -> Result<T, SampleError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "no message".to_owned());
        Err(SampleError::DecoderPanic(message))
    })
}

impl From<io::Error> for SampleError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Vanished,
            io::ErrorKind::UnexpectedEof => Self::Truncated(error.into()),
            _ => Self::Io(error),
        }
    }
}

/// A loader that cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoaderError {
    /// A value of the configuration is out of its range.
    #[error("loader setting `{field}`: expected {expected}, got {got}")]
    Config {
        /// The setting's name.
        field: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value given.
        got: String,
    },
    /// Not one whole batch can be made.
    #[error(
        "{images} images do not fill one batch of {batch_size} on each of {world_size} processes; \
         make the batch smaller or set `drop_last = false`"
    )]
    TooFewImages {
        /// Images in the data set.
        images: usize,
        /// Images a batch and process.
        batch_size: usize,
        /// Number of processes.
        world_size: usize,
    },
    /// The position to resume at is behind the last batch of its epoch.
    #[error("cannot resume at batch {batch}: an epoch has {batches} batches with these settings")]
    Position {
        /// The batch asked for.
        batch: usize,
        /// Batches in an epoch.
        batches: usize,
    },
    /// Too many images cannot be used.
    #[error(
        "{bad} of {images} images cannot be used, above the allowed share of {max_share} (`max_bad_share`); \
         the last one: {name}"
    )]
    TooManyBad {
        /// Different images found unusable so far.
        bad: usize,
        /// Images in the data set.
        images: usize,
        /// The configured share.
        max_share: f64,
        /// The last bad image.
        name: String,
        /// Why it is bad.
        source: SampleError,
    },
    /// A run of neighbours is unusable, so that no replacement was found.
    #[error("no usable image among {tried} from {name} on")]
    NoReplacement {
        /// How many were tried.
        tried: usize,
        /// The image asked for.
        name: String,
        /// Why the last one tried is bad.
        source: SampleError,
    },
    /// The views could not be made from a good image.
    #[error("{name}: cannot make the views")]
    Views {
        /// The image.
        name: String,
        /// What the views' maker says.
        source: Cause,
    },
    /// Worker threads could not be started.
    #[error("cannot start loader threads")]
    Threads(#[source] io::Error),
    /// A loader thread ended without a word, which is an error in the views (a panic).
    #[error("a loader thread died; its panic message is above")]
    Died,
}
