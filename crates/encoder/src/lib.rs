//! The encoder of SwAV: a residual network with a projection head that maps images to unit vectors.
//!
//! [`Encoder`] is the border to the rest of SwAV: images in, unit vectors on the host out, gradients back.
//! [`EncoderConfig`] chooses the network, [`build`] puts it on a device.
//!
//! ```
//! use swav_encoder::{Arch, BlockKind, EncoderConfig, Head, ImageBatch, Method, Output, Stem, build_cpu};
//!
//! let config = EncoderConfig {
//!     arch: Arch::Custom { block: BlockKind::Basic, layers: vec![1, 1] },
//!     width: 8,
//!     stem: Stem::Cifar,
//!     head: Head::Mlp { hidden: 16 },
//!     dim: 4,
//!     ..EncoderConfig::default()
//! };
//! let mut encoder = build_cpu(&config.check()?, 31)?;
//!
//! // One step: two large crops and four small ones of three images.
//! let (large, small) = (vec![0.5; 6 * 16 * 16 * 3], vec![0.1; 12 * 8 * 8 * 3]);
//! let groups = [ImageBatch::new(&large, 6, 16, 16)?, ImageBatch::new(&small, 12, 8, 8)?];
//! let z = encoder.forward_train(&groups)?;
//! assert_eq!(z.dim(), (18, 4));
//! let gradient = z.mapv(|x| 0.1 * x + 0.01);
//! encoder.backward(gradient.view())?;
//! encoder.update(&Method::Larc { lr: 0.1, momentum: 0.9, weight_decay: 1e-6, trust: 1e-3 }.into())?;
//!
//! let features = encoder.embed(groups[0], Output::Features)?;
//! assert_eq!(features.dim(), (6, 16));
//! # Ok::<(), swav_encoder::EncoderError>(())
//! ```

mod builder;
mod composed;
mod config;
mod cpu;
mod device;
mod encoder;
mod error;
mod init;
mod layers;
mod network;
mod state;
#[cfg(test)]
mod tests;

pub use builder::{build, build_cpu};
pub use config::{Arch, BlockKind, Checkpointing, EncoderConfig, EncoderSpec, Head, Precision, Stem};
pub use encoder::{Encoder, IMAGE_CHANNELS, ImageBatch, Output};
pub use error::EncoderError;
pub use state::{StateDict, StateTensor};
pub use swav_optim::{Groups, Method, Role, Slots, UpdateRule, UpdateStats};

/// The README's example is tested with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
