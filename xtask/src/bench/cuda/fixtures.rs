//! The part `fixtures`: a test program of the encoder, which compares the device with numbers that others recorded.

use std::process::Command;

use anyhow::Context;
use serde_json::json;

use super::found::{Found, Result};
use super::{Bench, child};

/// Runs the program's parity tests on the device.
pub fn part(bench: &Bench) -> Result {
    let tests = bench.args.tests.as_ref().context("expected --tests")?;
    let mut command = Command::new(tests);
    command.arg("parity").env("SWAV_TEST_DEVICE", &bench.args.device);
    let ended = child::run(&mut command, &bench.clock)?;
    let summary = ended.output.lines().rfind(|line| line.starts_with("test result"));
    let summary = summary.unwrap_or("no result").to_owned();
    println!("{summary}");
    let mut found = Found::from(json!({ "result": summary }));
    match ended.status {
        Some(status) if status.success() => (),
        Some(status) => {
            print!("{}{}", ended.output, ended.errors);
            found.wrong.push(format!("{}: {status}, {summary}", tests.display()));
        }
        None => found.left_out.push("the tests were ended when the time was used up".to_owned()),
    }
    Ok(found)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::args;
    use super::*;

    /// What is found with a program that is this script.
    fn found(script: &str, limit_s: u64) -> Found {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("tests");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let line = format!("--device cpu --limit-s {limit_s} --tests {}", program.display());
        part(&Bench::new(args(&line).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn the_tests_are_told_the_device_and_judge() {
        let right = found("echo \"test result: ok. $1 on $SWAV_TEST_DEVICE\"", 100);
        assert_eq!(right.value["result"], "test result: ok. parity on cpu");
        assert!(right.wrong.is_empty() && right.left_out.is_empty());
        let wrong = found("echo test result: FAILED; exit 101", 100);
        assert!(wrong.wrong[0].contains("FAILED"), "{:?}", wrong.wrong);
    }

    #[test]
    fn tests_without_an_end_are_no_failure_but_told() {
        let found = found("sleep 60", 1);
        assert!(found.wrong.is_empty());
        assert_eq!(found.left_out.len(), 1);
    }
}
