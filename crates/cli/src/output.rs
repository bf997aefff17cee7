//! Lines to standard output, which a reader such as `head` may close, and to standard error.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Nobody reads standard output any more: the program ends, quietly and with success.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub(crate) struct Closed;

/// Whether standard error has errors and warnings only.
static QUIET: AtomicBool = AtomicBool::new(false);
/// Whether the command goes on where standard output cannot be written.
static OUTLIVES: AtomicBool = AtomicBool::new(false);
/// Why a command that went on could not write.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line to standard output. Unlike `println!` it gives an error instead of a panic.
macro_rules! say {
    ($($words:tt)*) => { $crate::output::line(format_args!($($words)*)) };
}

/// Prints a line to standard error, where there is one and `--quiet` was not given.
macro_rules! note {
    ($($words:tt)*) => { $crate::output::note(format_args!($($words)*)) };
}

/// Leaves notes, progress and all of the log but warnings out from now on (`--quiet`).
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Lets the command go on where nobody reads standard output: for commands whose work leaves more than words. A pipe that
/// its reader has closed is then nothing to speak of; a full disk is told at the end, by [`failure`].
pub(crate) fn outlive_the_reader() {
    OUTLIVES.store(true, Ordering::Relaxed);
}

/// Why standard output could not be written by a command that [went on](outlive_the_reader).
pub(crate) fn failure() -> anyhow::Result<()> {
    match FAILURE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(anyhow::Error::new(error).context(UNWRITTEN)),
        None => Ok(()),
    }
}

const UNWRITTEN: &str = "cannot write to standard output";

pub(crate) fn line(words: Arguments<'_>) -> anyhow::Result<()> {
    let error = match io::stdout().lock().write_all(format!("{words}\n").as_bytes()) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    match (error.kind(), OUTLIVES.load(Ordering::Relaxed)) {
        (ErrorKind::BrokenPipe, true) => Ok(()),
        (ErrorKind::BrokenPipe, false) => Err(Closed.into()),
        (_, true) => {
            FAILURE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            Ok(())
        }
        (_, false) => Err(anyhow::Error::new(error).context(UNWRITTEN)),
    }
}

pub(crate) fn note(words: Arguments<'_>) {
    if !is_quiet() {
        complain(words);
    }
}

/// Prints a line to standard error, `--quiet` or not.
pub(crate) fn complain(words: Arguments<'_>) {
    // What cannot be said is no reason to stop.
    let _ = io::stderr().lock().write_all(format!("{words}\n").as_bytes());
}

/// A name as it is shown in a line or a column: without characters that would break it, or the terminal.
pub(crate) fn shown(name: &str) -> String {
    without_control(name, &[])
}

/// As [`shown`], for a text of several lines, which may repeat what a file says of itself.
pub(crate) fn shown_lines(text: &str) -> String {
    without_control(text, &['\n', '\t'])
}

fn without_control(text: &str, kept: &[char]) -> String {
    let escape = |c: char| match c.is_control() && !kept.contains(&c) {
        true => c.escape_default().collect(),
        false => vec![c],
    };
    text.chars().flat_map(escape).collect()
}

/// Whether standard error may have colours: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
pub(crate) fn has_colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::IsTerminal::is_terminal(&io::stderr()) && !unwanted
}

/// Standard error for the log, which is no reason to stop where it cannot be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogLines;

impl Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().lock().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_line() {
        assert_eq!(shown("a\nb\tc\u{1b}[31m é"), "a\\nb\\tc\\u{1b}[31m é");
        assert_eq!(shown_lines("a\nb\tc\u{1b}[31m é"), "a\nb\tc\\u{1b}[31m é");
    }
}
