//! `cargo xtask`: builds what a command needs, and no more, and runs it.
//!
//! The program's own commands run in `swav`, built with the profile `quick` and without the data formats that take
//! long to compile; the developers' commands run in the package `xtask`, built in release; `test` is `cargo test`, here or, for
//! `package`, far from the repository.

mod api;
mod arguments;
mod package;
mod test;

use std::process::{Command, ExitCode};

use arguments::{Build, Invocation};

/// The commands of the program `swav`.
const PROGRAM: [&str; 12] = [
    "pretrain", "eval", "embed", "cluster", "search", "import", "export", "data", "augment", "doctor",
    "report", "gpu",
];
/// The commands of the package `xtask`.
const DEVELOPERS: [&str; 4] = ["bench", "profile", "cuda-bundle", "cuda-toolkit"];

const HELP: &str = "\
Learn image features without labels (SwAV), and work on the project

Usage: cargo xtask [BUILD OPTIONS] COMMAND [OPTIONS]

Commands of the program (`cargo install --path crates/cli` installs it as `swav`):
  pretrain      Learn features from images without labels, and tell how good they are
  eval          Tell how good the features of a trained network are
  embed         Write the features of images to a file
  cluster       Sort images into clusters
  search        Find similar images and near-duplicates
  import        Take weights from elsewhere
  export        Write weights for other programs
  data          Look at data sets
  augment       Draw a sheet of every augmentation step
  doctor        Propose a recipe, check a configuration, or explain a run that went wrong
  report        Show a run in one HTML file
  gpu           Look for NVIDIA cards and the libraries that they need, and test them

Commands for work on the project:
  test          Run the tests of all crates, or a part of them
  package       Pack the crates that can be published, and test them far from the repository
  api           Compare what the crates offer to others with the lists in docs/api
  bench         Measure speed
  profile       Show where the time of a training step goes
  cuda-bundle   Pack what a machine with a card needs to check and measure
  cuda-toolkit  Make a CUDA toolkit from PyPI's wheels

Build options:
  --features LIST  Features of the program, such as parquet
  --release        Build for speed alone; the developers' commands always do
  --profile NAME   Build with a profile of Cargo.toml

Begin with `cargo xtask pretrain`: it trains on built-in images for some minutes and needs nothing else.
`cargo xtask COMMAND --help` tells more.
";

fn main() -> ExitCode {
    match arguments::parse(std::env::args().skip(1)) {
        Ok(Invocation::Help) => {
            print_quietly(HELP);
            ExitCode::SUCCESS
        }
        Ok(Invocation::Api(arguments)) => api::main(&arguments),
        Ok(Invocation::Package(arguments)) => package::main(&arguments),
        Ok(Invocation::Test(arguments)) => test::main(&arguments),
        Ok(Invocation::Program(build, arguments)) => {
            let mut command = cargo("run");
            command.args(build.options("swav-cli", "quick"));
            command
                .args(["--no-default-features", "--features", "quick", "--bin", "swav", "--"])
                .args(arguments);
            command.env("SWAV_PROGRAM", "cargo xtask");
            start(command)
        }
        Ok(Invocation::Developers(build, arguments)) => {
            let mut command = cargo("run");
            command.args(build.options("xtask", "release")).arg("--").args(arguments);
            command.env("SWAV_PROGRAM", "cargo xtask");
            start(command)
        }
        Err(message) => wrong_usage(&message),
    }
}

impl Build {
    /// Options of cargo that choose a package and how it is built.
    fn options(&self, package: &str, profile: &str) -> Vec<String> {
        let profile = self.profile.as_deref().unwrap_or(profile);
        let mut options =
            vec!["--package".to_owned(), package.to_owned(), "--profile".to_owned(), profile.to_owned()];
        for features in &self.features {
            options.extend(["--features".to_owned(), features.clone()]);
        }
        options
    }
}

/// The cargo that runs this program.
fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(command);
    cargo
}

/// Gives this process over to a command, so that signals and the exit status are the command's own.
#[cfg(unix)]
fn start(mut command: Command) -> ExitCode {
    use std::os::unix::process::CommandExt;

    let error = command.exec();
    eprintln!("error: could not start cargo: {error}");
    ExitCode::FAILURE
}

#[cfg(not(unix))]
fn start(mut command: Command) -> ExitCode {
    match command.status() {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: could not start cargo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wrong_usage(message: &str) -> ExitCode {
    eprintln!("error: {message}\n\nFor more information, try 'cargo xtask --help'.");
    ExitCode::from(2)
}

/// Prints; a reader that closes the pipe has seen enough.
fn print_quietly(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use clap::Subcommand;

    use super::*;

    #[test]
    fn every_command_is_known_and_has_a_line_in_the_help() {
        let program = swav_cli::Command::augment_subcommands(clap::Command::new("swav"));
        let names: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(names, PROGRAM);
        for name in names.iter().chain(&DEVELOPERS).chain(&["api", "package", "test"]) {
            assert!(HELP.lines().any(|line| line.trim_start().starts_with(&format!("{name} "))), "{name}");
        }
    }
}
