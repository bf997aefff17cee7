//! Residual networks on an NVIDIA card: what `swav-kernels` is to the CPU.
//!
//! The crate knows layers and shapes; names of parameters, checkpoints and configurations are its users' business.
//! Nothing of CUDA is needed to build it, and no card: [`libs`] finds the driver, cuDNN 9 and NVRTC when a program asks
//! for a card, and what is missing is an error that says how to get it.
//!
//! From bottom to top:
//!
//! - [`shape`]: the shapes of convolutions, shared by everything below.
//! - [`libs`], [`driver`], [`nvrtc`], [`cudnn`]: the libraries, the card, the kernels' compiler, convolutions.
//! - [`plans`]: which of cuDNN's ways to compute a convolution is taken, timed once and stored.
//! - [`kernels`]: the crate's own kernels and their launch descriptions.
//! - [`tape`], [`arena`], [`network`]: a network as a list of operations on planned buffers.
//! - [`host`] and [`exec`]: two [machines](machine::Machine) that run such a list, the CPU for tests and the card.
//! - [`self_test`]: a second's work that shows whether a card computes what it should.

pub mod arena;
pub mod cudnn;
pub mod driver;
mod error;
pub mod exec;
mod files;
pub mod host;
pub mod kernels;
pub mod libs;
pub mod machine;
pub mod network;
pub mod nvrtc;
pub mod plans;
pub mod self_test;
pub mod shape;
pub mod tape;

pub use error::{Error, Result};

/// The README's example is tested with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
