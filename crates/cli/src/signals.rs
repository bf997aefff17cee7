//! Signals: they stop a training in good order, and otherwise end the program as if nothing had caught them, but for the
//! files in the making, which go with it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use swav_train::StopFlag;

/// What a signal does.
static PLAN: Mutex<Plan> = Mutex::new(Plan { watching: false, training: None, files: Vec::new() });
/// The number of the last signal that stopped a training; 0 if none has come.
static RECEIVED: AtomicU8 = AtomicU8::new(0);

struct Plan {
    watching: bool,
    /// The training that the first signal stops.
    training: Option<StopFlag>,
    /// Files and folders in the making.
    files: Vec<PathBuf>,
}

fn plan() -> MutexGuard<'static, Plan> {
    PLAN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens from now on: to Ctrl-C, SIGTERM and SIGHUP.
pub(crate) fn watch() -> anyhow::Result<()> {
    let mut plan = plan();
    if !plan.watching {
        listen().context("cannot listen to signals")?;
        plan.watching = true;
    }
    Ok(())
}

/// Removes this file or folder if a signal ends the program.
pub(crate) fn remove_at_end(file: &Path) {
    plan().files.push(file.to_owned());
}

/// The file is no longer one to remove.
pub(crate) fn keep(file: &Path) {
    plan().files.retain(|other| other != file);
}

/// A training that the first signal stops in good order. Signals do again what they do to other programs once this is
/// dropped: without a training there is nothing to save.
pub(crate) struct Signals {
    pub flag: StopFlag,
}

impl Signals {
    /// Listens for a training.
    pub fn listen() -> anyhow::Result<Self> {
        watch()?;
        let flag = StopFlag::new();
        plan().training = Some(flag.clone());
        Ok(Self { flag })
    }

    /// The number of the last signal; that of Ctrl-C where none came.
    pub fn received(&self) -> u8 {
        match RECEIVED.load(Ordering::SeqCst) {
            0 => 2,
            signal => signal,
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        plan().training = None;
    }
}

/// Removes what was in the making. Another thread may be about to write into a folder, so that is tried more than once.
fn remove(path: &Path) {
    for _ in 0..10 {
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        match removed {
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            _ => return,
        }
    }
}

/// Takes notice of a signal; whether it is to end the program at once.
fn arrived(signal: u8) -> bool {
    let plan = plan();
    match plan.training.as_ref().filter(|flag| !flag.is_raised()) {
        Some(flag) => {
            RECEIVED.store(signal, Ordering::SeqCst);
            flag.raise();
            note!("stopping after this step, and saving; once more ends at once");
            false
        }
        None => {
            plan.files.iter().for_each(|path| remove(path));
            true
        }
    }
}

#[cfg(unix)]
fn listen() -> anyhow::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("swav-signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if arrived(u8::try_from(signal).unwrap_or(2)) {
                // It ends the process; if that fails, the command ends by itself.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    })?;
    Ok(())
}

/// As on Unix, for Ctrl-C.
#[cfg(not(unix))]
fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        if arrived(2) {
            std::process::exit(130);
        }
    })?;
    Ok(())
}
