//! CPU kernels of a convolutional network: SIMD, fused, deterministic.
//!
//! The crate trains residual networks on the CPU. Its public face is [`net`]: fused *units* (a stem, a
//! residual block, a linear layer, ...) that each know their forward pass, their backward pass and the
//! few buffers that backward needs. A unit owns no memory: the caller brings parameters and gradients
//! as slices, activations travel as [`Activations`], and scratch comes from a [`BufferPool`].
//!
//! Properties that hold for every function here:
//!
//! - Layout is NHWC for activations, OHWI for convolution weights, `[out, in]` for linear weights.
//! - Results are bit-identical for any number of threads: the split into tasks and the order of every
//!   reduction depend on the shapes alone.
//! - The instruction set is chosen at run time ([`Isa::detect`]), or forced through the environment
//!   variable `KERNELS_ISA` or [`Options::isa`].
//! - Inputs are checked; a wrong shape is an [`Error`], not a panic.
//!
//! ```
//! use swav_kernels::net::{Backward, Block, BlockKind, Unit};
//! use swav_kernels::{Activations, Context, Options};
//!
//! let ctx = Context::new(Options::default())?;
//! let block = Block::new(BlockKind::Basic, 16, 16, 1);
//! let values: Vec<Vec<f32>> = block.parameters().iter().map(|p| vec![0.1; p.len()]).collect();
//! let params: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
//! let input = Activations::from_f32([2, 8, 8, 16], vec![1.0; 2 * 8 * 8 * 16])?;
//! let (output, saved) = block.forward_train(&ctx, input, &params)?;
//! let mut grads: Vec<Vec<f32>> = values.iter().map(|v| vec![0.0; v.len()]).collect();
//! let args = Backward { saved, grad_output: output, params: &params, grads: &mut grads, want_grad_input: true };
//! let grad_input = block.backward(&ctx, args)?;
//! assert_eq!(grad_input.map(|g| g.shape), Some([2, 8, 8, 16]));
//! # Ok::<(), swav_kernels::Error>(())
//! ```

mod across;
mod activations;
mod alloc;
mod amx;
pub mod bounds;
mod context;
mod conv;
mod crew;
mod error;
mod load;
mod micro;
mod mutants;
pub mod net;
mod norm;
pub mod ops;
mod pages;
mod pointwise;
mod pool;
pub mod profile;
pub mod reference;
mod simd;
mod work;

pub use across::SumAcross;
pub use activations::{Activations, Precision};
pub use alloc::AlignedAllocator;
pub use context::{BufferPool, Checkpointing, Context, Isa, Options};
pub use conv::{ConvSpec, plan};
pub use error::Error;
pub use micro::peak_flops;
pub use norm::{BN_EPSILON, BN_MOMENTUM, BatchStats};

/// The README's example, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
