//! The encoder of SwAV: a residual network with a projection head that maps images to unit vectors.
//!
//! [`Encoder`] is the border to the rest of SwAV, [`EncoderConfig`] chooses the network.

mod config;
mod encoder;
mod error;
mod state;
mod update;

pub use config::{Arch, BlockKind, Checkpointing, EncoderConfig, EncoderSpec, Head, Precision, Stem};
pub use encoder::{Encoder, IMAGE_CHANNELS, ImageBatch, Output};
pub use error::EncoderError;
pub use state::{StateDict, StateTensor};
pub use update::{Slots, UpdateRule, UpdateStats, apply};
