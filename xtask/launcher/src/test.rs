//! `cargo xtask test`: all tests of the workspace, or a part of them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
Run the tests of all crates: `cargo test --workspace` with the right options

Usage: cargo xtask test [OPTIONS] [FILTER]

Arguments:
  [FILTER]  Only tests whose name contains this

Options:
  --parity         Only the tests against numbers of independent implementations (PyTorch, POT, Pillow, the reference)
  --fixtures DIR   Folder to read these numbers from [default: the project's own fixtures/]
  --slow           Run the slow tests too, which take minutes or need data of their own; their documentation says which
  -h, --help       Print help
";

#[derive(Debug, Default, PartialEq)]
struct Arguments {
    parity: bool,
    fixtures: Option<PathBuf>,
    slow: bool,
    filter: Option<String>,
    help: bool,
}

/// Runs the command.
pub fn main(arguments: &[String]) -> ExitCode {
    let arguments = match parse(arguments) {
        Ok(arguments) => arguments,
        Err(message) => return crate::wrong_usage(&message),
    };
    if arguments.help {
        crate::print_quietly(HELP);
        return ExitCode::SUCCESS;
    }
    let mut command = crate::cargo("test");
    command.args(["--workspace", "--no-fail-fast"]);
    command.args(if arguments.parity { Some("parity") } else { arguments.filter.as_deref() });
    if arguments.slow {
        command.args(["--", "--include-ignored"]);
    }
    if let Some(folder) = &arguments.fixtures {
        match Path::canonicalize(folder) {
            Ok(folder) => drop(command.env("SWAV_FIXTURES", folder)),
            Err(error) => {
                eprintln!("error: fixtures {}: {error}", folder.display());
                return ExitCode::FAILURE;
            }
        }
    }
    crate::start(command)
}

fn parse(words: &[String]) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--parity" => arguments.parity = true,
            "--slow" => arguments.slow = true,
            "--help" | "-h" => arguments.help = true,
            "--fixtures" => {
                let folder = words.next().ok_or("--fixtures: expected a folder")?;
                arguments.fixtures = Some(folder.into());
            }
            option if option.starts_with('-') => match option.strip_prefix("--fixtures=") {
                Some(folder) => arguments.fixtures = Some(folder.into()),
                None => return Err(format!("unexpected argument '{option}'")),
            },
            _ if arguments.filter.is_some() => return Err(format!("unexpected argument '{word}'")),
            filter => arguments.filter = Some(filter.to_owned()),
        }
    }
    if arguments.parity && arguments.filter.is_some() {
        return Err("--parity is a filter of its own; expected no other".to_owned());
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, String> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_and_a_filter_are_understood() {
        let expected = Arguments {
            slow: true,
            fixtures: Some("x".into()),
            filter: Some("sinkhorn".into()),
            ..Default::default()
        };
        assert_eq!(parsed("--slow --fixtures x sinkhorn"), Ok(expected));
        assert_eq!(parsed("--fixtures=x").unwrap().fixtures, Some("x".into()));
        assert!(parsed("--parity").unwrap().parity);
    }

    #[test]
    fn wrong_options_are_named() {
        for (line, word) in
            [("--fast", "--fast"), ("a b", "'b'"), ("--parity a", "--parity"), ("--fixtures", "folder")]
        {
            assert!(parsed(line).unwrap_err().contains(word), "{line}");
        }
    }
}
