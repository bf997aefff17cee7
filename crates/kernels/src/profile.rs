//! Where the time goes: scoped timers that cost one relaxed load while switched off.
//!
//! ```
//! swav_kernels::profile::start();
//! // ... forward and backward passes ...
//! for event in swav_kernels::profile::stop() {
//!     println!("{} {} us", event.name, event.duration_us);
//! }
//! ```

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// One timed call.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The operation, such as `conv3x3 forward`.
    pub name: &'static str,
    /// Its shape, such as `32x16x16x128 -> 128`.
    pub detail: String,
    /// Start, in microseconds since [`start`].
    pub start_us: f64,
    /// Duration in microseconds.
    pub duration_us: f64,
    /// Floating-point operations of the textbook algorithm; 0 where they are not the measure.
    pub flops: f64,
}

static ON: AtomicBool = AtomicBool::new(false);
static EVENTS: Mutex<Option<(Instant, Vec<Event>)>> = Mutex::new(None);

/// Forgets earlier events and switches recording on, for the whole process.
pub fn start() {
    *lock() = Some((Instant::now(), Vec::new()));
    ON.store(true, Ordering::Relaxed);
}

/// Switches recording off and returns what was recorded, in order of completion.
pub fn stop() -> Vec<Event> {
    ON.store(false, Ordering::Relaxed);
    lock().take().map(|(_, events)| events).unwrap_or_default()
}

/// Times `work` under a name while recording; `detail` is only called then.
pub fn scope<R>(name: &'static str, detail: impl FnOnce() -> (String, f64), work: impl FnOnce() -> R) -> R {
    if !ON.load(Ordering::Relaxed) {
        return work();
    }
    let begin = Instant::now();
    let result = work();
    let duration_us = begin.elapsed().as_secs_f64() * 1e6;
    let (detail, flops) = detail();
    if let Some((origin, events)) = lock().as_mut() {
        let start_us = begin.saturating_duration_since(*origin).as_secs_f64() * 1e6;
        events.push(Event { name, detail, start_us, duration_us, flops });
    }
    result
}

fn lock() -> std::sync::MutexGuard<'static, Option<(Instant, Vec<Event>)>> {
    // A panic elsewhere cannot leave the list half changed.
    EVENTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_only_between_start_and_stop() {
        scope("before", || unreachable!("detail must not be built while off"), || ());
        start();
        assert_eq!(scope("inside", || ("x".into(), 2.0), || 7), 7);
        let events = stop();
        let inside: Vec<_> = events.iter().filter(|e| e.name == "inside").collect();
        assert_eq!(inside.len(), 1);
        assert!(inside[0].duration_us >= 0.0 && inside[0].flops == 2.0);
    }
}
