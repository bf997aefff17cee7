//! A file of weights of any kind: which tensors it has, and their numbers where they are asked for.

use std::fmt;
use std::path::{Path, PathBuf};

use swav_encoder::{StateDict, StateTensor};

use crate::safetensors::{self, Metadata};
use crate::source::Source;
use crate::tensors::{Tensor, Tensors};
use crate::{WeightsError, torch};

/// The kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Safetensors.
    Safetensors,
    /// `torch.save` since PyTorch 1.6: a zip archive.
    TorchZip,
    /// `torch.save` before, or with `_use_new_zipfile_serialization=False`.
    TorchLegacy,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "torch.save, zip",
            Self::TorchLegacy => "torch.save, before 1.6",
        })
    }
}

/// A file of weights, opened: names, kinds and shapes are known and checked, numbers are read when they are asked for.
///
/// What a file says of itself is trusted nowhere. Nothing of a pickle is executed, every tensor lies inside the file, and
/// memory is taken only for bytes that are there: opening takes no more than the header or pickle times a small factor.
///
/// ```
/// use swav_encoder::{StateDict, StateTensor};
/// use swav_weights::{Metadata, WeightsFile};
///
/// let state: StateDict = [("fc.bias".to_owned(), StateTensor::new(vec![2], vec![0.5, -1.0])?)].into_iter().collect();
/// let bytes = swav_weights::to_safetensors(&state, &Metadata::new());
/// let mut file = WeightsFile::from_bytes(bytes)?;
/// assert_eq!(file.tensor("fc.bias").map(|tensor| tensor.shape()), Some(&[2][..]));
/// assert_eq!(file.read("fc.bias")?.data(), [0.5, -1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WeightsFile {
    path: Option<PathBuf>,
    format: Format,
    source: Source,
    tensors: Tensors,
    metadata: Metadata,
}

impl WeightsFile {
    /// Opens a file; what it is is told from its first bytes.
    ///
    /// # Errors
    /// [`WeightsError::Read`]; [`WeightsError::In`] with what is wrong with the contents.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let opened = Source::open(path).and_then(Self::of_source).map_err(|error| error.in_file(path))?;
        Ok(Self { path: Some(path.to_owned()), ..opened })
    }

    /// As [`open`](Self::open), from the contents of a file.
    ///
    /// # Errors
    /// What is wrong with the contents.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, WeightsError> {
        Self::of_source(Source::memory(bytes))
    }

    fn of_source(mut source: Source) -> Result<Self, WeightsError> {
        let head = source.take(0, source.len().min(16), "file")?;
        let (format, tensors, metadata) = if head.starts_with(torch::ZIP) {
            (Format::TorchZip, torch::read_zip(&mut source)?, Metadata::new())
        } else if torch::is_legacy(&head) {
            (Format::TorchLegacy, torch::read_legacy(&mut source)?, Metadata::new())
        } else if safetensors::is_safetensors(&head) {
            let (tensors, metadata) = safetensors::read(&mut source)?;
            (Format::Safetensors, tensors, metadata)
        } else {
            return Err(WeightsError::Format {
                expected: "a file of safetensors or of torch.save",
                got: kind_of(&head),
            });
        };
        Ok(Self { path: None, format, source, tensors, metadata })
    }

    /// What kind of file it is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of the file.
    pub fn n_bytes(&self) -> u64 {
        self.source.len()
    }

    /// Text beside the tensors; only safetensors has any.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Names and tensors, in the order of the names. Names of dictionaries within each other are joined by dots.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The numbers of a tensor, as 32-bit floats.
    ///
    /// # Errors
    /// [`WeightsError::Tensor`] for a name that is not there; what is wrong with its bytes.
    pub fn read(&mut self, name: &str) -> Result<StateTensor, WeightsError> {
        let read = match self.tensors.get(name) {
            Some(tensor) => tensor.read(name, &mut self.source),
            None => Err(WeightsError::tensor(name, "a tensor", "none of this name")),
        };
        read.map_err(|error| self.blame(error))
    }

    /// All tensors.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`WeightsError::TooLarge`] if they share storages so much that together they are a
    /// multiple of the file.
    pub fn read_all(&mut self) -> Result<StateDict, WeightsError> {
        let names: Vec<(String, String)> =
            self.tensors.keys().map(|name| (name.clone(), name.clone())).collect();
        self.read_some(&names)
    }

    /// Those tensors, under other names: pairs of the new name and that in the file.
    pub(crate) fn read_some(&mut self, names: &[(String, String)]) -> Result<StateDict, WeightsError> {
        let n_values: u64 =
            names.iter().filter_map(|(_, name)| self.tensors.get(name)).map(|t| t.n_values() as u64).sum();
        if n_values > self.source.len() {
            let part = "tensors that share storages, in numbers".to_owned();
            let error = WeightsError::TooLarge { part, expected: self.source.len(), got: n_values };
            return Err(self.blame(error));
        }
        names.iter().map(|(new, name)| Ok((new.clone(), self.read(name)?))).collect()
    }

    /// An error about this file.
    pub(crate) fn blame(&self, error: WeightsError) -> WeightsError {
        match &self.path {
            Some(path) => error.in_file(path),
            None => error,
        }
    }
}

/// What a file is that is none of weights.
fn kind_of(head: &[u8]) -> String {
    let known: [(&[u8], &str); 7] = [
        (b"\x89HDF", "a file of HDF5"),
        (b"\x1f\x8b", "a file compressed by gzip; unpack it first"),
        (b"BZh", "a file compressed by bzip2; unpack it first"),
        (b"\x28\xb5\x2f\xfd", "a file compressed by zstd; unpack it first"),
        (b"version https://", "a pointer of Git LFS; the file itself has to be fetched"),
        (b"<", "a web page; was the download refused?"),
        (b"\x80", "a pickle that is not of torch.save"),
    ];
    let found = known.iter().find(|(magic, _)| head.starts_with(magic));
    match found {
        Some((_, what)) => (*what).to_owned(),
        None if head.is_empty() => "an empty file".to_owned(),
        None => format!("a file that begins with {:?}", String::from_utf8_lossy(head)),
    }
}
