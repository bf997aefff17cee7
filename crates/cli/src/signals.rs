//! Signals that stop a training in good order. The second one ends the program at once, as if nothing had caught it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Context;
use swav_train::StopFlag;

/// A flag for the trainer, and which signal has raised it.
pub(crate) struct Signals {
    pub flag: StopFlag,
    received: Arc<AtomicU8>,
}

impl Signals {
    /// Listens from now on: to Ctrl-C, SIGTERM and SIGHUP.
    pub fn listen() -> anyhow::Result<Self> {
        let signals = Self { flag: StopFlag::new(), received: Arc::default() };
        let (flag, received) = (signals.flag.clone(), signals.received.clone());
        listen(move |signal| {
            flag.raise();
            received.swap(signal, Ordering::SeqCst) == 0
        })
        .context("cannot listen to signals")?;
        Ok(signals)
    }

    /// The number of the last signal; that of Ctrl-C where none came.
    pub fn received(&self) -> u8 {
        match self.received.load(Ordering::SeqCst) {
            0 => 2,
            signal => signal,
        }
    }
}

/// Without a training there is nothing to save: signals do again what they do to other programs.
impl Drop for Signals {
    fn drop(&mut self) {
        self.received.store(u8::MAX, Ordering::SeqCst);
    }
}

/// Calls `first` with each signal; where it says that this is not the first one, the signal does what it does to
/// programs that do not listen.
#[cfg(unix)]
fn listen(first: impl Fn(u8) -> bool + Send + 'static) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("swav-signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if !first(u8::try_from(signal).unwrap_or(2)) {
                // It ends the process; if that fails, the training ends soon anyway.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    })?;
    Ok(())
}

/// As on Unix, for Ctrl-C.
#[cfg(not(unix))]
fn listen(first: impl Fn(u8) -> bool + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        if !first(2) {
            std::process::exit(130);
        }
    })?;
    Ok(())
}
