//! Weights of residual networks in and out: what others trained can be used here, and what is trained here anywhere.
//!
//! [`WeightsFile`] opens `.safetensors`, `.pth` and `.pth.tar` (both formats of `torch.save`) without trusting them:
//! nothing of a pickle is executed. [`Import`] finds the network in one, whatever it is called there, and says what was
//! missing and what was left over; [`Start`] takes what fits an encoder that is to be trained on. [`export`](mod@export)
//! writes what PyTorch, timm and ONNX runtimes read.
//!
//! ```no_run
//! use swav_weights::{Import, WeightsFile};
//!
//! let import = Import::read(&mut WeightsFile::open("resnet50.pth")?, None)?;
//! let mut encoder = swav_encoder::build_cpu(&import.encoder.check()?, 0)?;
//! encoder.load_state(&import.state)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod architecture;
mod card;
mod dtype;
mod error;
pub mod export;
mod file;
mod import;
mod onnx;
mod output;
mod pickle;
mod preprocessing;
mod safetensors;
mod source;
mod tensors;
#[cfg(test)]
mod tests;
mod torch;
mod zip;

pub use card::Card;
pub use dtype::Dtype;
pub use error::WeightsError;
pub use export::to_safetensors;
pub use file::{Format, WeightsFile};
pub use import::{Account, Import, Start};
pub use output::write_file;
pub use preprocessing::Preprocessing;
pub use safetensors::Metadata;
pub use tensors::Tensor;

/// The README's example is tested with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
