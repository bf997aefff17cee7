//! `cargo xtask cuda-bundle`: what a machine with a card needs to check and measure, where nothing can be built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The largest bundle, in bytes.
const LIMIT: u64 = 60_000_000;

/// Pack this program, fixtures and scripts for a machine with an NVIDIA card and no Rust.
///
/// There, `sh run.sh` checks and measures everything; its last line is JSON.
#[derive(clap::Args)]
pub struct Args {
    /// The folder to make; it may be empty, or not be there.
    dir: PathBuf,
    /// A script that times PyTorch, as `bench cuda --torch-script` takes it.
    #[arg(long, value_name = "FILE.py")]
    torch_script: Option<PathBuf>,
    /// A test program of swav-encoder, built in release, whose parity tests run on the card.
    #[arg(long, value_name = "PROGRAM")]
    tests: Option<PathBuf>,
    /// Another program to pack, stripped: `swav`, or swav-cuda's example `card`.
    #[arg(long, value_name = "PROGRAM")]
    program: Vec<PathBuf>,
    /// The folder of fixtures.
    #[arg(long, value_name = "DIR", default_value = "fixtures")]
    fixtures: PathBuf,
}

/// Makes the bundle.
pub fn run(args: Args) -> anyhow::Result<()> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let taken = fs::read_dir(dir)?.next().is_some();
    ensure!(!taken, "{}: expected an empty folder", dir.display());
    let own = std::env::current_exe().context("the path of this program")?;
    strip(&own, &dir.join("xtask"))?;
    let mut script = vec!["exec ./xtask bench cuda".to_owned()];
    if let Some(tests) = &args.tests {
        strip(tests, &dir.join("encoder-tests"))?;
        script.push("--tests ./encoder-tests".to_owned());
    }
    for program in &args.program {
        let name = program.file_name().context("a program's name")?;
        strip(program, &dir.join(name))?;
    }
    if let Some(torch) = &args.torch_script {
        fs::copy(torch, dir.join("torch.py")).with_context(|| torch.display().to_string())?;
        script.push("--torch-script torch.py".to_owned());
    }
    copy_folder(&args.fixtures, &dir.join("fixtures"))?;
    let script = format!(
        "#!/bin/sh\n# Checks and measures the engine on this machine's card; the last line is JSON.\n\
         cd \"$(dirname \"$0\")\" || exit 1\nexport SWAV_FIXTURES=\"$PWD/fixtures\"\n{} \"$@\"\n",
        script.join(" ")
    );
    fs::write(dir.join("run.sh"), script)?;
    let bytes = size(dir)?;
    ensure!(bytes < LIMIT, "{}: expected less than {LIMIT} bytes, got {bytes}", dir.display());
    println!("{}: {:.1} MB; on the machine with the card: sh run.sh", dir.display(), bytes as f64 / 1e6);
    Ok(())
}

/// A program without what only debuggers read, where `strip` is there.
fn strip(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    let stripped = Command::new("strip").arg(to).status();
    if !stripped.is_ok_and(|status| status.success()) {
        println!("{}: not stripped, there is no `strip`", to.display());
    }
    Ok(())
}

/// The files of a folder and of folders in it.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Bytes of a folder's files.
fn size(dir: &Path) -> anyhow::Result<u64> {
    let entries = fs::read_dir(dir)?;
    entries
        .map(|entry| {
            let entry = entry?;
            if entry.file_type()?.is_dir() { size(&entry.path()) } else { Ok(entry.metadata()?.len()) }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_copied_whole() {
        let from = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("inner")).unwrap();
        fs::write(from.path().join("a"), "four").unwrap();
        fs::write(from.path().join("inner/b"), "three").unwrap();
        let to = tempfile::tempdir().unwrap();
        copy_folder(from.path(), &to.path().join("copy")).unwrap();
        assert_eq!(size(to.path()).unwrap(), 9);
        assert_eq!(fs::read_to_string(to.path().join("copy/inner/b")).unwrap(), "three");
    }
}
