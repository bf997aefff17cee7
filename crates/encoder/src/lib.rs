//! The encoder of SwAV: a residual network with a projection head that maps images to unit vectors.
//!
//! [`Encoder`] is the border to the rest of SwAV: images in, unit vectors on the host out, gradients back.
//! [`EncoderConfig`] chooses the network, [`build`] puts it on a device. An encoder of your own is a [`Model`] in an
//! [`OwnEncoder`].
//!
//! ```
//! use ndarray::Array4;
//! use swav_encoder::{BlockKind, EncoderConfig, Head, Method, Output, ResNet, Stem, build_cpu};
//!
//! let config = EncoderConfig {
//!     arch: ResNet::custom(BlockKind::Basic, [1, 1]).with_width(8).with_stem(Stem::Cifar).into(),
//!     head: Head::Mlp { hidden: 16 },
//!     dim: 4,
//!     ..EncoderConfig::default()
//! };
//! let mut encoder = build_cpu(&config.check()?, 31)?;
//!
//! // One step: two large crops and four small ones of three images.
//! let (large, small) = (Array4::from_elem((6, 16, 16, 3), 0.5), Array4::from_elem((12, 8, 8, 3), 0.1));
//! let z = encoder.forward_train(&[large.view(), small.view()])?;
//! assert_eq!(z.dim(), (18, 4));
//! let gradient = z.mapv(|x| 0.1 * x + 0.01);
//! encoder.backward(gradient.view())?;
//! encoder.update(&Method::Larc { lr: 0.1, momentum: 0.9, weight_decay: 1e-6, trust: 1e-3 }.into())?;
//!
//! let features = encoder.embed(large.view(), Output::Features)?;
//! assert_eq!(features.dim(), (6, 16));
//! # Ok::<(), swav_encoder::EncoderError>(())
//! ```

mod composed;
mod config;
mod cpu;
mod crops;
#[cfg(feature = "cuda")]
mod cuda;
mod encoder;
mod engine;
mod error;
mod init;
mod layers;
mod memory;
mod network;
mod own;
mod registry;
mod size;
mod state;
#[cfg(test)]
mod tests;
mod unit_length;
mod whole_step;

pub use config::{
    Arch, BlockKind, Checkpointing, EncoderConfig, EncoderSpec, Head, Precision, ResNet, Stem, Variant,
};
pub use crops::{Crops, Scaling};
pub use encoder::{
    Description, Encoder, IMAGE_CHANNELS, Output, RunningStatistics, SyncBatchNorm, image_batch,
};
pub use error::{BoxedError, EncoderError};
pub use memory::{DeviceMemory, TrainingStep};
pub use own::{Model, OwnEncoder, Parameters};
pub use registry::{build, build_backbone, build_cpu};
pub use state::{StateDict, StateTensor};
pub use swav_optim::{Groups, Method, Role, Slots, UpdateRule, UpdateStats};
pub use whole_step::{GroupShape, StepInputs, StepPlan, StepReport, WholeStep};

/// The README's example is tested with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
