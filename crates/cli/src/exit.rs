//! How the program ends.

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;

use crate::output::{self, Closed, complain};

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
///
/// Elsewhere signals end the program by themselves, which shells show as the same numbers.
pub fn finish(result: anyhow::Result<()>, command: &mut clap::Command) -> ExitCode {
    let Err(error) = result.and_then(|()| output::failure()) else { return ExitCode::SUCCESS };
    if error.is::<Closed>() {
        return ExitCode::SUCCESS;
    }
    let error = match error.downcast::<Stopped>() {
        Ok(stopped) => {
            output::note(format_args!("{stopped}"));
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
            complain(format_args!("error: {}", output::shown_lines(&explain(error.as_ref()))));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one text, each said once: some errors hold the words of their cause already.
pub(crate) fn explain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let words = cause.to_string();
        if words.is_empty() || text.contains(words.trim()) { text } else { format!("{text}: {words}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{words}")]
    struct Said {
        words: &'static str,
        source: Option<Box<Said>>,
    }

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let said = |words, source: Option<Said>| Said { words, source: source.map(Box::new) };
        let missing = || said("No such file (os error 2)", None);
        let chain = said("reading a", Some(said("a: No such file (os error 2)", Some(missing()))));
        assert_eq!(explain(&chain), "reading a: a: No such file (os error 2)");
        assert_eq!(explain(&said("reading b", Some(missing()))), "reading b: No such file (os error 2)");
    }
}
