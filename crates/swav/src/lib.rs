#![doc = include_str!("../README.md")]

mod model;

pub use model::{Model, ModelError};
pub use swav_augment as augment;
pub use swav_collective as collective;
pub use swav_data as data;
pub use swav_encoder as encoder;
pub use swav_eval as eval;
pub use swav_kernels as kernels;
pub use swav_losses as losses;
pub use swav_optim as optim;
pub use swav_ot as ot;
pub use swav_prototypes as prototypes;
pub use swav_train as train;
pub use swav_weights as weights;
