//! Lines to standard output, which a reader such as `head` may close, and to standard error.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// Nobody reads standard output any more: the program ends, quietly and with success.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub(crate) struct Closed;

/// Prints a line to standard output. Unlike `println!` it gives an error instead of a panic.
macro_rules! say {
    ($($words:tt)*) => { $crate::output::line(format_args!($($words)*)) };
}

/// Prints a line to standard error, where there is one.
macro_rules! note {
    ($($words:tt)*) => { $crate::output::note(format_args!($($words)*)) };
}

pub(crate) fn line(words: Arguments<'_>) -> anyhow::Result<()> {
    let mut to = std::io::stdout().lock();
    match to.write_fmt(words).and_then(|()| to.write_all(b"\n")) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        other => Ok(other?),
    }
}

pub(crate) fn note(words: Arguments<'_>) {
    let mut to = std::io::stderr().lock();
    // What cannot be said is no reason to stop.
    let _ = to.write_fmt(words).and_then(|()| to.write_all(b"\n"));
}
