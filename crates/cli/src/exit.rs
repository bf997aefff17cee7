//! How the program ends.

use std::fmt::Display;
use std::process::ExitCode;

use crate::output::Closed;

/// The rule of exit statuses, for the help.
pub const EXIT_STATUS: &str = "Exit status: 0 success, 1 failure, 2 wrong usage, 128 + n stopped and saved after signal n (130: Ctrl-C, 143: \
     SIGTERM).";

/// A training that a signal has stopped in good order.
#[derive(Debug, thiserror::Error)]
#[error("{hint}")]
pub(crate) struct Stopped {
    /// The number of the signal.
    pub signal: u8,
    /// How to go on.
    pub hint: String,
}

/// An error of usage, which ends the program with status 2.
pub fn usage(message: impl Display) -> anyhow::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{message}\n")).into()
}

/// Prints what went wrong, each cause once, and gives the exit status by the one rule:
///
/// | status | when |
/// |---|---|
/// | 0 | success; help; standard output was closed by its reader |
/// | 1 | failure |
/// | 2 | wrong usage: an unknown option or command, a value on the command line that is out of range |
/// | 128 + n | signal n stopped a training, which saved its state: 130 for Ctrl-C, 143 for SIGTERM |
pub fn finish(result: anyhow::Result<()>, command: &mut clap::Command) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if error.is::<Closed>() {
        return ExitCode::SUCCESS;
    }
    let error = match error.downcast::<Stopped>() {
        Ok(stopped) => {
            note!("{stopped}");
            return ExitCode::from(128 + stopped.signal);
        }
        Err(error) => error,
    };
    match error.downcast::<clap::Error>() {
        Ok(usage) => {
            let usage = usage.format(command);
            // A closed terminal is no reason to fail.
            let _ = usage.print();
            ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2))
        }
        Err(error) => {
            note!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
