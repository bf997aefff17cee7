//! Training orchestration for SwAV: configuration, schedules, the step, checkpoints, resume, metrics.
//!
//! [`TrainConfig`] is a TOML file; checked, it is [`Settings`]. A [`Trainer`] takes settings, an
//! [`Encoder`](swav_encoder::Encoder) and a data set, and trains in a [`RunFolder`], which it can resume bit for bit.
//! Codes ([`AssignCodes`]) and the loss ([`Loss`]) may be the caller's own, and so may be what is called back after
//! each step and epoch: see [`Setup`]. [`Swav`] is one step by itself, for programs with a loop of their own.

pub mod advice;
mod checkpoint;
mod codes;
mod collective;
mod config;
mod device;
mod disk;
mod error;
mod feed;
mod health;
mod hooks;
mod lock;
mod loss;
mod memory;
mod metrics;
mod moment;
mod mutants;
mod progress;
mod reestimation;
mod remedy;
mod resume;
mod run_folder;
mod schedule;
mod section;
mod setup;
mod signal;
mod step;
mod tensorboard;
mod threads;
mod totals;
mod trainer;
mod trial;
mod weights;
mod whole;

pub use checkpoint::{Checkpoint, CheckpointError, RunPosition};
pub use codes::{
    AssignCodes, Assigned, Code, CodesInput, CodesVitals, EpochStart, QueueShape, Remembered, SinkhornCodes,
};
pub use config::{
    CheckpointConfig, ConfigError, LossConfig, MemoryEstimate, MemoryPart, MonitorConfig, OnCollapse,
    OptimizerConfig, OptimizerKind, PrototypesConfig, QueueConfig, ReestimationConfig, Settings,
    SinkhornConfig, TrainConfig, TrainingConfig, TrainingSizes, config_text, parse_override,
};
pub use disk::{DiskUse, free_space};
pub use error::{Quantity, TrainError};
pub use health::{Alarm, Symptom, Watch, explain};
pub use hooks::{EpochEvent, HookResult, Notes, StepEvent};
pub use loss::{Loss, LossInput, LossOutput, Swapped};
pub use memory::{available_memory, bytes};
pub use metrics::Metrics;
pub use moment::Moment;
pub use reestimation::{Reestimation, reestimate_batch_norm};
pub use resume::{Change, Effect, MAY_CHANGE, may_change};
pub use run_folder::{RunFolder, Standing};
pub use schedule::Schedule;
pub use section::Section;
pub use setup::Setup;
pub use signal::StopFlag;
pub use step::{Batch, StepNumbers, StepOutput, Swav, Update};
pub use tensorboard::EventWriter;
pub use threads::thread_pool;
pub use totals::{Outcome, advice_on_waiting};
pub use trainer::Trainer;
pub use trial::{Trial, TrialOutcome};
pub use weights::RunWeights;

/// The README's example is compiled with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
