#![doc = include_str!("../README.md")]

mod error;
mod mutants;
mod norm;
mod optimizer;
mod rule;
mod slots;
mod step;

pub use error::OptimError;
pub use norm::{UpdateStats, clip_scale, norm};
pub use optimizer::{Optimizer, Parameter};
pub use rule::{Groups, Method, Role, UpdateRule};
pub use slots::Slots;
pub use step::{LARC_EPSILON, adam_corrections, apply, larc_factors};
