//! What the arguments ask for.

use crate::{DEVELOPERS, PROGRAM};

/// How to build, if not as usual.
#[derive(Debug, Default, PartialEq)]
pub struct Build {
    /// The profile.
    pub profile: Option<String>,
    /// Lists of features.
    pub features: Vec<String>,
}

/// Who does the work, and with which arguments.
#[derive(Debug, PartialEq)]
pub enum Invocation {
    /// The list of commands.
    Help,
    /// Names of public items.
    Api(Vec<String>),
    /// The crates as they are published.
    Package(Vec<String>),
    /// `cargo test`.
    Test(Vec<String>),
    /// The program `swav`.
    Program(Build, Vec<String>),
    /// The package `xtask`.
    Developers(Build, Vec<String>),
}

/// Reads the arguments after the name of the program.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Invocation, String> {
    let mut arguments = arguments.into_iter();
    let mut build = Build::default();
    let known = || [&PROGRAM[..], &DEVELOPERS[..], &["api", "package", "test"]].concat().join(", ");
    loop {
        let word = arguments.next().ok_or_else(|| format!("expected a command: {}", known()))?;
        let (option, value) = match word.split_once('=') {
            Some((option, value)) if word.starts_with("--") => (option, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        let mut value = || {
            value.clone().or_else(|| arguments.next()).ok_or_else(|| format!("{option}: expected a value"))
        };
        match option {
            "--help" | "-h" | "help" => return Ok(Invocation::Help),
            "--release" => build.profile = Some("release".to_owned()),
            "--profile" => build.profile = Some(value()?),
            "--features" => {
                let features = value()?;
                build.features.push(features);
            }
            "api" => return Ok(Invocation::Api(arguments.collect())),
            "package" => return Ok(Invocation::Package(arguments.collect())),
            "test" => return Ok(Invocation::Test(arguments.collect())),
            command if PROGRAM.contains(&command) || DEVELOPERS.contains(&command) => {
                let developers = DEVELOPERS.contains(&command);
                let rest = std::iter::once(word).chain(arguments).collect();
                return Ok(match developers {
                    true => Invocation::Developers(build, rest),
                    false => Invocation::Program(build, rest),
                });
            }
            _ => return Err(format!("unrecognized command '{word}'; expected one of {}", known())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_go_to_who_can_do_them() {
        let plain = Build::default;
        assert_eq!(parsed("pretrain --run x"), Ok(Invocation::Program(plain(), words("pretrain --run x"))));
        assert_eq!(parsed("bench speed"), Ok(Invocation::Developers(plain(), words("bench speed"))));
        assert_eq!(parsed("package --list"), Ok(Invocation::Package(words("--list"))));
        assert_eq!(parsed("test --parity"), Ok(Invocation::Test(words("--parity"))));
        for help in ["--help", "-h", "help"] {
            assert_eq!(parsed(help), Ok(Invocation::Help));
        }
    }

    #[test]
    fn options_before_the_command_are_about_the_build() {
        let build = Build { profile: Some("release".to_owned()), features: vec!["parquet".to_owned()] };
        let expected = Invocation::Program(build, words("embed --release"));
        assert_eq!(parsed("--release --features parquet embed --release"), Ok(expected));
        let build = Build { profile: Some("dev".to_owned()), features: Vec::new() };
        assert_eq!(parsed("--profile=dev data"), Ok(Invocation::Program(build, words("data"))));
    }

    #[test]
    fn what_is_unknown_is_named() {
        assert!(parsed("pretrian").unwrap_err().contains("pretrian"));
        assert!(parsed("--profile").unwrap_err().contains("--profile"));
        assert!(parsed("").unwrap_err().contains("pretrain"));
    }
}
