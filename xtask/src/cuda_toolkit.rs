//! `cargo xtask cuda-toolkit`: a CUDA toolkit to build with, from PyPI's wheels, where none is installed.
//!
//! The wheels have the compiler and the headers. What they lack for linking is made here: libraries of empty
//! functions under the names that cudarc binds (the real ones come with the driver, and are found when the
//! program starts), and a stand-in for `nvidia-smi`, which dfdx's build script asks for the GPU's generation.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// The wheels of the compiler, its back end, and the headers.
const WHEELS: [&str; 5] =
    ["nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-cccl"];

/// Libraries to link with: name, and the folder of cudarc's bindings whose functions they have.
const LIBRARIES: [(&str, &str); 4] =
    [("cuda", "driver"), ("nvrtc", "nvrtc"), ("cublas", "cublas"), ("cublasLt", "cublaslt")];

/// Make a CUDA toolkit from PyPI's wheels, enough to build with `--features dfdx-cuda` where none is installed.
///
/// Needs pip and a C compiler, and about 300 MB. Prints the settings to build with.
#[derive(clap::Args)]
pub struct Args {
    /// Folder to make it in; its absolute path goes into the built program, so choose one that the machine with the
    /// GPU can have too.
    dir: PathBuf,
    /// Version of CUDA, MAJOR.MINOR: not newer than the driver of the GPU knows (13.0: driver 580).
    #[arg(long, default_value = "13.0")]
    cuda: String,
    /// Compute capability of the GPU, MAJOR.MINOR: 8.0 A100, 8.6 and 8.9 RTX 30 and 40, 9.0 H100 and H200.
    #[arg(long, default_value = "9.0")]
    compute_capability: String,
    /// A Python with pip.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let major = numbers(&args.cuda).context("--cuda: expected MAJOR.MINOR")?.0;
    numbers(&args.compute_capability).context("--compute-capability: expected MAJOR.MINOR")?;
    fs::create_dir_all(&args.dir).with_context(|| format!("making {}", args.dir.display()))?;
    let dir = args.dir.canonicalize()?;
    ensure!(
        !dir.to_string_lossy().contains(['\'', ':']),
        "{}: expected a path without ' and :",
        dir.display()
    );

    eprintln!("compiler and headers: {} from PyPI", WHEELS.join(", "));
    unpack_wheels(&args, &dir, major)?;
    eprintln!("libraries to link with");
    let bindings = bindings()?;
    for (library, module) in LIBRARIES {
        let n_functions = make_library(&dir, library, &bindings.join(module), major)?;
        eprintln!("  lib{library}.so: {n_functions} functions");
    }
    let stand_in = format!("#!/bin/sh\necho compute_cap\necho {}\n", args.compute_capability);
    write_program(&dir.join("smi/nvidia-smi"), &stand_in)?;
    check(&dir, &args.cuda)?;
    println!("{}", exports(&dir));
    Ok(())
}

/// Major and minor of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// What to type before cargo.
fn exports(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "export CUDA_PATH='{dir}'\nexport PATH='{dir}/smi':'{dir}/bin':\"$PATH\"\n\
         # then: cargo build --release --package xtask --features dfdx-cuda"
    )
}

/// Puts the wheels' `nvidia/cuMAJOR/*` into `dir`.
fn unpack_wheels(args: &Args, dir: &Path, major: u32) -> anyhow::Result<()> {
    let unpacked = dir.join(".wheels");
    remove(&unpacked)?;
    let mut pip = Command::new(&args.python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--no-warn-conflicts"]);
    pip.arg("--target").arg(&unpacked);
    pip.args(WHEELS.map(|wheel| format!("{wheel}=={}.*", args.cuda)));
    succeed(&mut pip)?;
    let from = unpacked.join(format!("nvidia/cu{major}"));
    let folders = fs::read_dir(&from).with_context(|| {
        format!(
            "expected the wheels of CUDA {} to have a folder nvidia/cu{major}; those of 12 have no compiler",
            args.cuda
        )
    })?;
    for folder in folders {
        let folder = folder?;
        let to = dir.join(folder.file_name());
        remove(&to)?;
        fs::rename(folder.path(), &to).with_context(|| format!("moving to {}", to.display()))?;
    }
    for programs in ["bin", "nvvm/bin"] {
        for program in fs::read_dir(dir.join(programs))? {
            make_executable(&program?.path())?;
        }
    }
    remove(&unpacked)
}

/// The bindings in cudarc's source, which `cargo` knows the place of.
fn bindings() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is in a workspace")?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--features", "dfdx-cuda", "--manifest-path"])
        .arg(workspace.join("crates/encoder/Cargo.toml"))
        .output()
        .context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata without packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "cudarc")
        .and_then(|package| package["manifest_path"].as_str())
        .context("expected cudarc among the packages of swav-encoder")?;
    Ok(Path::new(manifest).with_file_name("src"))
}

/// A shared library with every function that the bindings name, under the soname of the real one.
fn make_library(dir: &Path, library: &str, bindings: &Path, major: u32) -> anyhow::Result<usize> {
    let mut functions = BTreeSet::new();
    collect_functions(bindings, &mut functions)?;
    ensure!(!functions.is_empty(), "no functions in the bindings {}", bindings.display());
    let stubs = dir.join("lib64/stubs");
    fs::create_dir_all(&stubs)?;
    let source = stubs.join(format!("{library}.c"));
    let mut code = String::new();
    for function in &functions {
        writeln!(code, "int {function}(void) {{ return 999; }}")?;
    }
    fs::write(&source, code)?;
    // The driver's version is always 1; the others have that of CUDA.
    let version = if library == "cuda" { 1 } else { major };
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    succeed(
        Command::new(compiler)
            .args(["-shared", "-fPIC", "-w", "-fno-builtin"])
            .arg(format!("-Wl,-soname,lib{library}.so.{version}"))
            .arg("-o")
            .arg(stubs.join(format!("lib{library}.so")))
            .arg(&source),
    )?;
    Ok(functions.len())
}

fn collect_functions(folder: &Path, functions: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect_functions(&path, functions)?;
        } else if path.extension() == Some(OsStr::new("rs")) && path.to_string_lossy().contains("sys") {
            functions.extend(functions_in(&fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

/// The C functions that a file of bindings declares.
fn functions_in(source: &str) -> impl Iterator<Item = String> + '_ {
    source.split("pub fn ").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        let name = &rest[..end];
        (name.starts_with("cu") || name.starts_with("nvrtc")).then(|| name.to_owned())
    })
}

/// Asks the compiler for its version, so that a broken download shows here.
fn check(dir: &Path, version: &str) -> anyhow::Result<()> {
    ensure!(
        dir.join("include/cuda.h").is_file(),
        "expected {}/include/cuda.h among the headers",
        dir.display()
    );
    let output = Command::new(dir.join("bin/nvcc")).arg("--version").output().context("running nvcc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains(&format!("release {version}")),
        "nvcc {version}: got {text}"
    );
    Ok(())
}

fn write_program(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text)?;
    make_executable(path)
}

#[cfg(unix)]
fn make_executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if path.is_file() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> anyhow::Result<()> {
    bail!("expected Linux: the wheels and the libraries made here are for it")
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("running {program}"))?;
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_in_bindings() {
        let source = "extern \"C\" {\n    pub fn cuInit(\n        Flags: u32,\n    ) -> CUresult;\n    #[must_use]\n    pub fn \
                      cublasCreate_v2(handle: *mut H);\n    pub fn other();\n}\nfn cuPrivate() {}";
        let functions: Vec<String> = functions_in(source).collect();
        assert_eq!(functions, ["cuInit", "cublasCreate_v2"]);
    }

    #[test]
    fn versions_have_two_numbers() {
        assert_eq!(numbers("13.0"), Some((13, 0)));
        assert!(["13", "13.x", "", "1.2.3"].iter().all(|text| numbers(text).is_none()));
    }
}
