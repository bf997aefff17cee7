#![doc = include_str!("../README.md")]

mod error;
mod features;
mod knn;
mod neighbours;

pub use error::EvalError;
pub use features::{Features, Progress, encode, raw_pixels};
pub use knn::{Accuracy, KnnClassifier, KnnConfig, KnnSpec, Predictions};
pub use neighbours::{Bank, Neighbours};
