//! `cargo xtask cuda-bundle`: what a machine with a card needs to check and measure, where nothing can be built.
//!
//! Programs and fixtures are compressed, so that a small data set finds room beside them; the scripts unpack them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;

/// The largest bundle, in bytes.
const LIMIT: u64 = 60_000_000;
/// The fixtures that the parity tests of swav-encoder read, without the endings of their files.
const FIXTURES: [&str; 3] = ["resnet18_tiny_cifar", "steps_bottleneck", "steps_queue"];
/// How every script begins.
const HEAD: &str = "cd \"$(dirname \"$0\")\" || exit 1
export SWAV_FIXTURES=\"$PWD/fixtures\"
for packed in *.gz fixtures/*.gz; do
    [ ! -e \"$packed\" ] || gunzip -f \"$packed\" || exit 1
done
";

/// Pack this program, fixtures and scripts for a machine with an NVIDIA card and no Rust.
///
/// There, `sh run.sh` checks and measures everything, with the options of `bench cuda`; its last line is JSON. `sh swav.sh` is the
/// program `swav`.
#[derive(clap::Args)]
pub struct Args {
    /// The folder to make; it may be empty, or not be there.
    dir: PathBuf,
    /// A script that times PyTorch, as `bench cuda --torch-script` takes it.
    #[arg(long, value_name = "FILE.py")]
    torch_script: Option<PathBuf>,
    /// A test program of swav-encoder, built in release with its feature `cuda`, whose parity tests run on the card.
    #[arg(long, value_name = "PROGRAM")]
    tests: Option<PathBuf>,
    /// Another program to pack, stripped; `swav` is in the bundle in any case.
    #[arg(long, value_name = "PROGRAM")]
    program: Vec<PathBuf>,
    /// A folder of data to pack as DIR/data, for `sh swav.sh pretrain --data data` there.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
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
    let mut programs = vec!["xtask".to_owned()];
    pack_program(&own, dir, "xtask")?;
    let mut bench = vec!["exec ./xtask bench cuda"];
    if let Some(tests) = &args.tests {
        pack_program(tests, dir, "encoder-tests")?;
        programs.push("encoder-tests".to_owned());
        bench.push("--tests ./encoder-tests");
        pack_fixtures(&args.fixtures, &dir.join("fixtures"))?;
    }
    for program in &args.program {
        let name = program.file_name().and_then(|name| name.to_str()).context("a program's name")?;
        pack_program(program, dir, name)?;
        programs.push(name.to_owned());
    }
    if let Some(torch) = &args.torch_script {
        fs::copy(torch, dir.join("torch.py")).with_context(|| torch.display().to_string())?;
        bench.push("--torch-script torch.py");
    }
    if let Some(data) = &args.data {
        // Before the copy: a large data set would fill the disk first.
        let bytes = size(data).with_context(|| data.display().to_string())?;
        ensure!(bytes < LIMIT, "{}: expected less than {LIMIT} bytes, got {bytes}", data.display());
        copy_folder(data, &dir.join("data"))?;
    }
    let head = format!("{HEAD}chmod +x '{}' || exit 1\n", programs.join("' '"));
    let bench = format!("{} \"$@\"\n", bench.join(" "));
    let what = "# Checks and measures the engine on this machine's card; the last line is JSON.";
    fs::write(dir.join("run.sh"), format!("#!/bin/sh\n{what}\n{head}{bench}"))?;
    let what = "# The program `swav`. Relative paths begin in this folder.";
    fs::write(dir.join("swav.sh"), format!("#!/bin/sh\n{what}\n{head}exec ./xtask \"$@\"\n"))?;
    let bytes = size(dir)?;
    ensure!(bytes < LIMIT, "{}: expected less than {LIMIT} bytes, got {bytes}", dir.display());
    println!("{}: {:.1} MB; on the machine with the card: sh run.sh", dir.display(), bytes as f64 / 1e6);
    Ok(())
}

/// Packs a program without what only debuggers read, where `strip` is there.
fn pack_program(from: &Path, dir: &Path, name: &str) -> anyhow::Result<()> {
    let plain = dir.join(name);
    fs::copy(from, &plain).with_context(|| from.display().to_string())?;
    let stripped = Command::new("strip").arg(&plain).status();
    if !stripped.is_ok_and(|status| status.success()) {
        println!("{name}: not stripped, there is no `strip`");
    }
    compress(&plain, &dir.join(format!("{name}.gz")))?;
    Ok(fs::remove_file(&plain)?)
}

/// Packs the files of the fixtures that are read.
fn pack_fixtures(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name.split_once('.').is_some_and(|(stem, _)| FIXTURES.contains(&stem)) {
            compress(&from.join(&*name), &to.join(format!("{name}.gz")))?;
        }
    }
    Ok(())
}

/// Writes a file compressed.
fn compress(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut source = File::open(from).with_context(|| from.display().to_string())?;
    let mut packed = GzEncoder::new(File::create(to)?, Compression::best());
    io::copy(&mut source, &mut packed)?;
    packed.finish()?;
    Ok(())
}

/// The files of a folder and of folders in it.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        // Links are followed: what they lead to is what is wanted elsewhere.
        if from.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            fs::copy(&from, to).with_context(|| from.display().to_string())?;
        }
    }
    Ok(())
}

/// Bytes of a folder's files.
fn size(dir: &Path) -> anyhow::Result<u64> {
    let entries = fs::read_dir(dir)?;
    entries
        .map(|entry| {
            let path = entry?.path();
            if path.is_dir() { size(&path) } else { Ok(fs::metadata(path)?.len()) }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixtures_are_those_that_there_are() {
        let to = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
        pack_fixtures(&from, to.path()).unwrap();
        let packed = |fixture: &str| to.path().join(format!("{fixture}.safetensors.gz"));
        assert!(FIXTURES.iter().all(|fixture| packed(fixture).exists()));
        assert!(!packed("augment").exists());
        assert!(to.path().join("steps_queue.json.gz").exists());
    }

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
