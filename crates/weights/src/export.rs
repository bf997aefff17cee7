//! Export: files that other programs read, of a whole network or of a part.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use swav_encoder::{StateDict, StateTensor};

pub use crate::onnx::{Onnx, OnnxOptions};
use crate::safetensors::{self, Metadata};
use crate::torch;

/// How much of a network is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Stem and residual blocks: what gives features, and what torchvision and timm have.
    Backbone,
    /// Backbone and projection head: what gives embeddings.
    Head,
    /// Backbone, head and prototypes: what gives scores.
    #[default]
    Prototypes,
}

impl Part {
    /// Whether a tensor of this name belongs to it.
    pub fn has(self, name: &str) -> bool {
        let part = if name.starts_with("prototypes.") {
            Self::Prototypes
        } else if name.starts_with("projection_head.") {
            Self::Head
        } else {
            Self::Backbone
        };
        part <= self
    }

    /// The tensors that belong to it, in the order of their names.
    pub fn of(self, state: &StateDict) -> Vec<(&str, &StateTensor)> {
        state.iter().filter(|(name, _)| self.has(name)).collect()
    }
}

/// The kinds of files that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Safetensors.
    Safetensors,
    /// What `torch.load(weights_only=True)` reads.
    Pth,
    /// A graph for ONNX runtimes.
    Onnx,
}

/// Writes a safetensors file, names and layouts those of torchvision. [`write_file`](crate::write_file) makes a whole file
/// of it.
///
/// # Errors
/// What the writer reports.
pub fn safetensors(
    to: &mut dyn Write,
    tensors: &[(&str, &StateTensor)],
    metadata: &Metadata,
) -> io::Result<()> {
    safetensors::write(to, tensors, &with_format(metadata)).map(drop)
}

/// Writes a file of `torch.save`: a dictionary of tensors that `torch.load(weights_only=True)` reads, names and layouts
/// those of torchvision.
///
/// # Errors
/// What the writer reports.
pub fn torch(to: &mut dyn Write, tensors: &[(&str, &StateTensor)]) -> io::Result<()> {
    torch::write_zip(to, tensors).map(drop)
}

/// The bytes of a safetensors file with all tensors of a state.
pub fn to_safetensors(state: &StateDict, metadata: &Metadata) -> Vec<u8> {
    let tensors: Vec<_> = state.iter().collect();
    safetensors::write(Vec::new(), &tensors, &with_format(metadata)).expect("memory can be written to")
}

/// The bytes of a file of `torch.save` with all tensors of a state.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a name of more than 65535 bytes.
pub fn to_torch(state: &StateDict) -> io::Result<Vec<u8>> {
    let tensors: Vec<_> = state.iter().collect();
    torch::write_zip(Vec::new(), &tensors)
}

/// Some readers want to be told that layouts are PyTorch's.
fn with_format(metadata: &Metadata) -> Metadata {
    let mut metadata = metadata.clone();
    metadata.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
    metadata
}
