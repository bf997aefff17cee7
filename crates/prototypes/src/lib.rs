#![doc = include_str!("../README.md")]

mod error;
mod mutants;
mod product;
mod prototypes;
mod queue;

pub use error::PrototypeError;
pub use product::matrix_product;
pub use prototypes::{Freeze, Prototypes};
pub use queue::FeatureQueue;
