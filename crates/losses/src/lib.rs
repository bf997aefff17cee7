#![doc = include_str!("../README.md")]

mod diagnostics;
mod error;
mod mutants;
mod softmax;
mod swapped;

pub use diagnostics::{Diagnostics, entropy};
pub use error::LossError;
pub use swapped::{SwappedLoss, SwappedPrediction};
