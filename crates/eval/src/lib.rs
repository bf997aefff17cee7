#![doc = include_str!("../README.md")]

mod assignment;
mod bootstrap;
mod duplicates;
mod error;
mod features;
mod knn;
mod lbfgs;
mod logistic;
mod neighbours;
mod partition;
mod probe;
#[cfg(feature = "serde")]
mod record;
mod retrieval;
mod sgd;
mod similarity;
mod stability;
mod subset;
mod supervised;

pub use assignment::best_matching;
pub use bootstrap::{Bootstrap, Estimate};
pub use duplicates::DuplicateGroup;
pub use error::EvalError;
pub use features::{Features, Progress, encode, raw_pixels};
pub use knn::{Accuracy, KnnClassifier, KnnConfig, KnnSpec, Predictions};
pub use logistic::{LogisticFit, LogisticRegression};
pub use neighbours::{Bank, Neighbours};
pub use partition::{Agreement, ClusterSizes, Contingency};
pub use probe::{LinearClassifier, LinearProbe, ProbeConfig, ProbeFit, Trial};
#[cfg(feature = "serde")]
pub use record::{Measurement, Record};
pub use retrieval::Retrieval;
pub use sgd::{SgdClassifier, SgdRule, SgdStep};
pub use stability::{assignment_stability, neighbour_stability};
pub use subset::balanced_subset;
pub use supervised::{Decay, Learnt, Lesson, LessonReport, Supervised, SupervisedConfig};
