//! How much time is left.

use std::time::{Duration, Instant};

/// Counts down from the beginning of a call.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    begin: Instant,
    limit: Duration,
}

impl Clock {
    /// Begins to count down from so many seconds.
    pub fn start(seconds: u64) -> Self {
        Self { begin: Instant::now(), limit: Duration::from_secs(seconds) }
    }

    /// What is left; nothing once the time is used up.
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(self.begin.elapsed())
    }

    /// Whether the time is used up.
    pub fn is_up(&self) -> bool {
        self.left().is_zero()
    }

    /// Seconds since the beginning.
    pub fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// The seconds that there were at the beginning.
    pub fn limit(&self) -> u64 {
        self.limit.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_used_up_and_stays_so() {
        let clock = Clock::start(0);
        assert!(clock.is_up() && clock.left().is_zero());
        let clock = Clock::start(1000);
        assert!(!clock.is_up() && clock.left() <= Duration::from_secs(1000));
    }
}
