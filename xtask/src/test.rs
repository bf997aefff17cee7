//! `cargo xtask test`: all tests of the workspace, or a part of them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

/// Run the tests of all crates: `cargo test --workspace` with the right options.
#[derive(clap::Args)]
pub struct Args {
    /// Only the tests against numbers of independent implementations (PyTorch, POT, Pillow, the reference).
    #[arg(long)]
    parity: bool,

    /// Folder to read these numbers from [default: the project's own fixtures/].
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,

    /// Run the slow tests too, which take minutes or need data of their own; their documentation says which.
    #[arg(long)]
    slow: bool,

    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--workspace", "--no-fail-fast"]);
    match (&args.filter, args.parity) {
        (Some(_), true) => return Err(crate::usage("--parity is a filter of its own; expected no other")),
        (Some(filter), false) => drop(command.arg(filter)),
        (None, true) => drop(command.arg("parity")),
        (None, false) => {}
    }
    if args.slow {
        command.args(["--", "--include-ignored"]);
    }
    if let Some(folder) = &args.fixtures {
        let folder = folder.canonicalize().with_context(|| format!("fixtures {}", folder.display()))?;
        command.env("SWAV_FIXTURES", folder);
    }
    let status = command.status().context("could not start cargo")?;
    if !status.success() {
        bail!("tests failed ({status})");
    }
    Ok(())
}
