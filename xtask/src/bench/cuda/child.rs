//! Programs that a part starts: they get the time that is left, and are ended after it.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::clock::Clock;

/// How often it is looked whether a program has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// How a program ended, and what it printed.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; `None` if it was ended because the time was used up.
    pub status: Option<ExitStatus>,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

/// Runs a program until it ends, or until the time is used up.
///
/// What it prints goes through files: a pipe would stay open as long as any process has it that the program has started.
pub fn run(command: &mut Command, clock: &Clock) -> anyhow::Result<Ended> {
    let program = name(command);
    let (output, errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(errors.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("running {program}"))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if clock.is_up() {
            child.kill().with_context(|| format!("ending {program}"))?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(PAUSE);
    };
    Ok(Ended { status, output: text(output)?, errors: text(errors)? })
}

/// Runs a program and parses the last line that it prints; `None` if it was ended because the time was used up.
pub fn last_json(command: &mut Command, clock: &Clock) -> anyhow::Result<Option<Value>> {
    let program = name(command);
    let Ended { status, output, errors } = run(command, clock)?;
    let Some(status) = status else { return Ok(None) };
    if !status.success() {
        bail!("{program}: {status}\n{}", end(&errors));
    }
    let line = output.lines().last().with_context(|| format!("{program} printed nothing"))?;
    let value =
        serde_json::from_str(line).with_context(|| format!("{program}: expected JSON, got {line}"))?;
    Ok(Some(value))
}

/// The last lines of what a program says, which have the reason why it failed.
fn end(errors: &str) -> String {
    let lines: Vec<&str> = errors.trim_end().lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

fn name(command: &Command) -> String {
    Path::new(command.get_program()).display().to_string()
}

fn text(mut file: File) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(all(test, unix))]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_last_line_counts() {
        let clock = Clock::start(100);
        let value = last_json(&mut shell("echo noise; echo '{\"step_ms\": 2.5}'"), &clock).unwrap();
        assert_eq!(value.unwrap()["step_ms"], 2.5);
        let error = "seq 100 >&2; echo reason >&2; exit 3";
        let error = last_json(&mut shell(error), &clock).unwrap_err().to_string();
        assert!(error.ends_with("99\n100\nreason") && !error.contains("50"), "{error}");
        assert!(last_json(&mut shell("echo words"), &clock).is_err());
    }

    #[test]
    fn a_program_is_ended_when_the_time_is_used_up() {
        let begin = Instant::now();
        // The second process keeps the outputs open.
        let ended = run(&mut shell("echo begun; sleep 60 & sleep 60"), &Clock::start(1)).unwrap();
        assert!(ended.status.is_none());
        assert_eq!(ended.output, "begun\n");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
