//! Stopping a run in good order: Ctrl-C and SIGTERM.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::TrainError;

/// A wish to stop, which a [`Trainer`](crate::Trainer) looks at after each step.
#[derive(Debug, Clone, Default)]
pub struct StopFlag {
    raised: Arc<AtomicBool>,
}

impl StopFlag {
    /// A flag that nobody raises but [`raise`](Self::raise).
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag that Ctrl-C, SIGTERM and SIGHUP raise. A second signal ends the process at once, with exit code
    /// 130, and leaves the newest checkpoint as it is.
    ///
    /// # Errors
    /// [`TrainError::Signal`] if a handler is installed already: once a process.
    pub fn on_signals() -> Result<Self, TrainError> {
        let flag = Self::new();
        let raised = flag.clone();
        ctrlc::set_handler(move || {
            if raised.raised.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })
        .map_err(|error| TrainError::Signal(error.to_string()))?;
        Ok(flag)
    }

    /// Asks the run to save its state and stop after the current step.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
    }

    /// Whether the run should stop.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }
}
