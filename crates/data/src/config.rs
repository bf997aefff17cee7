//! How to open a data set: everything but the augmentation and the loader.

use std::{fmt, path::PathBuf, sync::Arc};

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::{DataError, Dataset, DecodeConfig, ShapesConfig, ShapesSpec};

/// The layouts of data sets that [`crate::open`] understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Format {
    /// Told from the path and the first bytes.
    #[default]
    Auto,
    /// A folder with a sub-folder for each class, searched recursively.
    Classes,
    /// A folder of images without labels, searched recursively.
    Flat,
    /// A text file with an image path a line, and optionally a label, divided by tabs, semicolons, commas or spaces.
    List,
    /// The IDX files of MNIST and its family, plain or gzipped.
    Idx,
    /// The binary version of CIFAR-10 or CIFAR-100.
    Cifar,
    /// Tar shards in the WebDataset convention.
    Tar,
    /// Parquet files as Hugging Face writes image data sets.
    Parquet,
    /// The built-in procedural images ([`crate::Shapes`]); the path is ignored.
    Builtin,
}

impl Format {
    pub(crate) const NAMES: &'static str = "classes, flat, list, idx, cifar, tar, parquet, builtin";
}

/// Which part of a data set to use.
///
/// Parts are told by the names of folders (`train/`, `Validation/`), files (`train-00000-of-00004.parquet`,
/// `t10k-images-idx3-ubyte`, `test_batch.bin`), a column of a list or, for layouts without parts, by [`DataConfig::holdout`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "kebab-case"))]
pub enum Split {
    /// The part to learn from.
    #[default]
    Train,
    /// The part to validate on; where there is none, the test part.
    Val,
    /// The part to test on; where there is none, the validation part.
    Test,
    /// Everything.
    All,
}

impl Split {
    /// The part that a file or folder belongs to by its name: by one of its words, in any case, where words end at
    /// anything but a letter or a digit, or where a capital follows a small letter. Digits and `set` after the word do not
    /// count, and of several such words the last one counts. `None` if no word says anything.
    ///
    /// ```
    /// use swav_data::Split;
    /// assert_eq!(Split::of_name("train-00000-of-00004.parquet"), Some(Split::Train));
    /// assert_eq!(Split::of_name("emnist-letters-test-images-idx3-ubyte"), Some(Split::Test));
    /// assert_eq!(Split::of_name("Validation"), Some(Split::Val));
    /// assert_eq!(Split::of_name("t10k-images-idx3-ubyte.gz"), Some(Split::Test));
    /// assert_eq!(Split::of_name("val2017"), Some(Split::Val));
    /// assert_eq!(Split::of_name("trainers.tar"), None);
    /// ```
    pub fn of_name(name: &str) -> Option<Self> {
        Self::cut(name).map(|(split, _)| split)
    }

    /// As [`of_name`](Self::of_name), with what is left of the name without the word.
    pub(crate) fn cut(name: &str) -> Option<(Self, String)> {
        let mut found = None;
        let mut from = 0;
        let mut before = '.';
        // A blank at the end closes the last word.
        for (at, c) in name.char_indices().chain([(name.len(), ' ')]) {
            let starts_anew = c.is_ascii_uppercase() && before.is_ascii_lowercase();
            if !c.is_ascii_alphanumeric() || starts_anew {
                let word = &name[from..at];
                if let Some((split, length)) = Self::of_word(word) {
                    found = Some((split, from..from + length));
                }
                from = if starts_anew { at } else { at + c.len_utf8() };
            }
            before = c;
        }
        found.map(|(split, word)| (split, [&name[..word.start], &name[word.end..]].concat()))
    }

    /// This part, or the one that stands in for it, if it is among those there: `val` and `test` do for each other.
    pub(crate) fn present(self, there: &[Self]) -> Option<Self> {
        let order: &[Self] = match self {
            Self::Val => &[Self::Val, Self::Test],
            Self::Test => &[Self::Test, Self::Val],
            _ => &[self],
        };
        order.iter().copied().find(|split| there.contains(split))
    }

    /// What to say of data that have other parts than the one asked for.
    pub(crate) fn found(there: &[Self]) -> String {
        let mut splits = there.to_vec();
        splits.sort();
        splits.dedup();
        let names: Vec<String> = splits.iter().map(ToString::to_string).collect();
        let advice = match splits[..] {
            [Self::Train] => "set `holdout` to a share, such as 0.1",
            _ => "set `split` to one that is there, or to all",
        };
        format!("found only {}; {advice}", names.join(", "))
    }

    /// The part that a word says, and how much of the word says it.
    fn of_word(word: &str) -> Option<(Self, usize)> {
        let lower = word.to_ascii_lowercase();
        if lower == "t10k" {
            return Some((Self::Test, lower.len()));
        }
        let letters = lower.trim_end_matches(|c: char| c.is_ascii_digit());
        let split = match letters.strip_suffix("set").unwrap_or(letters) {
            "train" | "training" | "trainval" => Self::Train,
            "val" | "valid" | "validation" | "dev" => Self::Val,
            "test" | "testing" | "eval" | "evaluation" => Self::Test,
            _ => return None,
        };
        Some((split, letters.len()))
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
            Self::All => "all",
        })
    }
}

/// Everything [`crate::open`] can be told. All fields have defaults; unknown keys are refused.
///
/// ```
/// use swav_data::{DataConfig, Format, Split};
/// let config = DataConfig { format: Format::Flat, split: Split::Test, holdout: 0.1, ..DataConfig::default() };
/// assert_eq!(config.label_column, None);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(default, deny_unknown_fields))]
pub struct DataConfig {
    /// Where the data lie: a folder, a file, several shards with braces (`shard-{000..099}.tar`), or `builtin`.
    /// Default: `builtin`.
    pub path: PathBuf,
    /// The layout. Default: told from the path.
    pub format: Format,
    /// The part to use. Default: `train`.
    pub split: Split,
    /// For layouts without parts of their own: this share of the images, chosen by a hash of their names, is the
    /// `test` (and `val`) split, and the rest is `train`. From 0 to 1. Default: 0, all images are `train`.
    pub holdout: f64,
    /// The memory for images kept decoded (for Parquet: half for row groups, half for decoded images), in MiB.
    /// The first images that fit are kept; 0 keeps none. Default: 256.
    pub cache_mib: usize,
    /// Tar shards that are gzipped (`.tar.gz`, `.tgz`) and zip archives are unpacked into temporary files without names; this is
    /// how much they may take in all, in MiB. Default: 8192.
    pub unpack_mib: usize,
    /// File name endings that count as images in folders and shards, without the dot, in lower case.
    pub extensions: Vec<String>,
    /// Tar shards: the ending of the member that holds the label, a number or a name; with the ending `json`, an
    /// object whose [`label_column`](Self::label_column) is the label. Default: `cls`.
    pub label_extension: String,
    /// Parquet: the column with the images. Default: the first of `image`, `img`, `jpg`, `png` that exists.
    pub image_column: Option<String>,
    /// Parquet: the column with the labels; CIFAR-100: `fine_label` or `coarse_label`. Default: the first of
    /// `label`, `fine_label`, `labels`, `cls` that exists.
    pub label_column: Option<String>,
    /// Whether paths inside the data (lines of a list, cells of a Parquet file) may lead out of the folder that the list or file
    /// is in. Default: false.
    pub allow_outside: bool,
    /// How images are decoded.
    pub decode: DecodeConfig,
    /// The built-in images.
    pub builtin: ShapesConfig,
}

impl Default for DataConfig {
    fn default() -> Self {
        let extensions = [
            "jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp", "png", "apng", "webp", "bmp", "gif", "tif",
            "tiff", "ppm", "pgm", "pbm", "pnm",
        ];
        Self {
            path: PathBuf::from("builtin"),
            format: Format::Auto,
            split: Split::Train,
            holdout: 0.0,
            cache_mib: 256,
            unpack_mib: 8192,
            extensions: extensions.map(str::to_owned).to_vec(),
            label_extension: "cls".to_owned(),
            image_column: None,
            label_column: None,
            allow_outside: false,
            decode: DecodeConfig::default(),
            builtin: ShapesConfig::default(),
        }
    }
}

impl DataConfig {
    /// Checks the ranges of all values.
    ///
    /// # Errors
    /// [`DataError::Config`] with the field, its range and the value.
    pub fn check(&self) -> Result<DataSpec, DataError> {
        let refuse = |field, expected, got| Err(DataError::Config { field, expected, got });
        if !(0.0..=1.0).contains(&self.holdout) {
            return refuse("holdout", "a share from 0 to 1", self.holdout.to_string());
        }
        let is_wrong = |e: &&String| e.is_empty() || e.starts_with('.') || **e != e.to_lowercase();
        if let Some(wrong) = self.extensions.iter().find(is_wrong) {
            return refuse("extensions", "endings in lower case without the dot", format!("{wrong:?}"));
        }
        if self.decode.max_pixels == 0 {
            return refuse("decode.max_pixels", "at least 1", self.decode.max_pixels.to_string());
        }
        if self.decode.max_side == Some(0) {
            return refuse("decode.max_side", "at least 1", "0".to_owned());
        }
        Ok(DataSpec { config: self.clone(), shapes: self.builtin.check()? })
    }

    /// Opens the data set at [`path`](Self::path): [`check`](Self::check), then [`DataSpec::open`].
    ///
    /// # Errors
    /// Any [`DataError`].
    pub fn open(&self) -> Result<Arc<dyn Dataset>, DataError> {
        self.check()?.open()
    }
}

/// A checked [`DataConfig`], whose fields can be read as its own.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSpec {
    config: DataConfig,
    shapes: ShapesSpec,
}

impl DataSpec {
    /// The same for another part of the data set.
    #[must_use]
    pub fn with_split(&self, split: Split) -> Self {
        Self { config: DataConfig { split, ..self.config.clone() }, shapes: self.shapes.clone() }
    }

    /// The same for another path.
    #[must_use]
    pub fn with_path(&self, path: impl Into<PathBuf>) -> Self {
        Self { config: DataConfig { path: path.into(), ..self.config.clone() }, shapes: self.shapes.clone() }
    }

    /// The same with the layout told.
    pub(crate) fn with_format(&self, format: Format) -> Self {
        Self { config: DataConfig { format, ..self.config.clone() }, shapes: self.shapes.clone() }
    }

    /// The built-in images.
    pub fn shapes(&self) -> &ShapesSpec {
        &self.shapes
    }
}

impl std::ops::Deref for DataSpec {
    type Target = DataConfig;

    fn deref(&self) -> &DataConfig {
        &self.config
    }
}

impl DataConfig {
    /// Whether a file name has one of the [`extensions`](Self::extensions), in any case of letters.
    pub(crate) fn is_image_name(&self, name: &[u8]) -> bool {
        let Some(dot) = name.iter().rposition(|&byte| byte == b'.') else { return false };
        let ending = &name[dot + 1..];
        self.extensions.iter().any(|extension| ending.eq_ignore_ascii_case(extension.as_bytes()))
    }
}
