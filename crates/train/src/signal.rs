//! Stopping a run in good order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A wish to stop, which a [`Trainer`](crate::Trainer) looks at before each step.
#[derive(Debug, Clone, Default)]
pub struct StopFlag {
    raised: Arc<AtomicBool>,
}

impl StopFlag {
    /// A flag that nobody raises but [`raise`](Self::raise).
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag that Ctrl-C, SIGTERM and SIGHUP raise. Each further signal calls `again`: a program may end itself there
    /// at once, which leaves the newest checkpoint as it is.
    ///
    /// # Errors
    /// [`TrainError::Signal`](crate::TrainError::Signal) if a handler is installed already: once a process.
    #[cfg(feature = "signals")]
    pub fn on_signals(mut again: impl FnMut() + Send + 'static) -> Result<Self, crate::TrainError> {
        let flag = Self::new();
        let raised = flag.raised.clone();
        ctrlc::set_handler(move || {
            if raised.swap(true, Ordering::SeqCst) {
                again();
            }
        })?;
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
