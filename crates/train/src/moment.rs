//! Where a run stands in time.

/// The time of a step: what schedules depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// The step, from 0.
    pub step: u64,
    /// Its epoch, from 0.
    pub epoch: u64,
    /// Steps of the whole run; 0 if it has no end.
    pub total_steps: u64,
}

impl Moment {
    /// The share of the run that has passed, 0 to 1; 0 for a run without end.
    pub fn share(self) -> f64 {
        if self.total_steps == 0 { 0.0 } else { self.step as f64 / self.total_steps as f64 }
    }
}
