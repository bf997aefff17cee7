//! Training orchestration for SwAV: configuration, schedules, the step, checkpoints, resume, metrics.
//!
//! [`TrainConfig`] is a TOML file; checked, it is [`Settings`]. A [`Trainer`] takes settings, an
//! [`Encoder`](swav_encoder::Encoder) and a data set, and trains in a [`RunFolder`], which it can resume bit for bit.
//! [`Swav`] is one step by itself, for programs with a loop of their own.

mod checkpoint;
mod collective;
mod config;
mod error;
mod feed;
mod health;
mod metrics;
mod progress;
mod resume;
mod run_folder;
mod schedule;
mod signal;
mod statistics;
mod step;
mod tensorboard;
mod threads;
mod trainer;

pub use checkpoint::{Checkpoint, CheckpointError, Position, write_weights};
pub use collective::{Collective, Single};
pub use config::{
    CheckpointConfig, ConfigError, EvaluationConfig, LossConfig, MonitorConfig, OnCollapse, OptimizerConfig,
    OptimizerKind, PrototypesConfig, QueueConfig, Settings, SinkhornConfig, TrainConfig, TrainingConfig,
    parse_override,
};
pub use error::TrainError;
pub use health::{Alarm, Watch};
pub use metrics::Metrics;
pub use run_folder::RunFolder;
pub use schedule::Schedule;
pub use signal::StopFlag;
pub use statistics::reestimate_batch_norm;
pub use step::{StepOutput, Swav};
pub use tensorboard::EventWriter;
pub use threads::join_pool;
pub use trainer::{Outcome, Trainer};
