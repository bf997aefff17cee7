//! `cargo xtask package`: the crates as they would be published, unpacked far from the repository, built and tested there.
//!
//! No crate is on a registry, and they depend on each other by version. So the packages are put side by side into one
//! workspace that says where each of them lies (`[patch.crates-io]`); everything else of a package is as a user would get it:
//! its own manifest as cargo has rewritten it, and the files that are in it, without fixtures/ and whatever lies above.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
Pack all crates that can be published, and run their tests far from the repository

Usage: cargo xtask package [OPTIONS] [-- ARGUMENTS OF CARGO TEST]

Builds everything again, which takes some minutes. What a package cannot test, because it reads files that are only in the
repository, is listed by name. `cargo xtask package -- -p swav-ot` tests one crate alone.

Options:
  --out DIR   Folder to work in, outside of the repository; kept, so that a second call builds the packages alone
              [default: swav-package in the system's temporary folder]
  --list      Pack, and list what is not in the packages; build and test nothing
  -h, --help  Print help
";

/// What only the repository has, and what reads it.
const FIXTURES: &str = "swav_fixtures";

#[derive(Debug, Default, PartialEq)]
struct Arguments {
    out: Option<PathBuf>,
    list: bool,
    help: bool,
    rest: Vec<String>,
}

/// A crate that can be published.
pub struct Package {
    /// Its name.
    pub name: String,
    folder: PathBuf,
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
    match prepare(&arguments) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(tests)) => crate::start(tests),
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn parse(words: &[String]) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => arguments.list = true,
            "--help" | "-h" => arguments.help = true,
            "--out" => arguments.out = Some(words.next().ok_or("--out: expected a folder")?.into()),
            "--" => arguments.rest = words.by_ref().cloned().collect(),
            other => match other.strip_prefix("--out=") {
                Some(folder) => arguments.out = Some(folder.into()),
                None => return Err(format!("unexpected argument '{other}'")),
            },
        }
    }
    Ok(arguments)
}

/// Packs and unpacks; gives the tests that are to run.
fn prepare(arguments: &Arguments) -> Result<Option<Command>, String> {
    let root = root()?;
    let out = arguments.out.clone().unwrap_or_else(|| std::env::temp_dir().join("swav-package"));
    let failed = |error: std::io::Error| format!("{}: {error}", out.display());
    fs::create_dir_all(&out).map_err(failed)?;
    let out = out.canonicalize().map_err(failed)?;
    if out.starts_with(&root) {
        return Err(format!("--out {}: expected a folder outside of {}", out.display(), root.display()));
    }
    let packages = packages(&root)?;
    pack(&packages, &root, &out)?;
    let unpacked = out.join("unpacked");
    // Of an earlier call, whose packages may have had other files.
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).map_err(failed)?;
    }
    fs::create_dir(&unpacked).map_err(failed)?;
    let mut members = Vec::new();
    for package in &packages {
        members.push((package.name.as_str(), unpack(package, &out, &unpacked)?));
    }
    let text = fs::read_to_string(root.join("Cargo.toml")).map_err(|error| format!("Cargo.toml: {error}"))?;
    fs::write(unpacked.join("Cargo.toml"), workspace(&text, &members)).map_err(failed)?;
    // The same versions of everything else.
    fs::copy(root.join("Cargo.lock"), unpacked.join("Cargo.lock")).map_err(failed)?;
    for (package, (_, member)) in packages.iter().zip(&members) {
        for line in left_out(package, &unpacked.join(member))? {
            crate::print_quietly(&line);
        }
    }
    crate::print_quietly(&format!("{} packages in {}\n", packages.len(), unpacked.display()));
    if arguments.list {
        return Ok(None);
    }
    let mut tests = crate::cargo("test");
    tests.current_dir(&unpacked).arg("--target-dir").arg(out.join("target"));
    match arguments.rest.as_slice() {
        [] => tests.args(["--workspace", "--no-fail-fast"]),
        rest => tests.args(rest),
    };
    Ok(Some(tests))
}

/// The folder of the repository, as `cargo run` says it: where this was built it may be another one, for cargo builds nothing anew
/// in a folder that has moved with its build.
pub fn root() -> Result<PathBuf, String> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let here = Path::new(&here);
    here.join("../..").canonicalize().map_err(|error| format!("{}: {error}", here.display()))
}

/// The crates below crates/ that do not say `publish = false`, in the order of their names.
pub fn packages(root: &Path) -> Result<Vec<Package>, String> {
    let folder = root.join("crates");
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut packages = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let folder = entry.map_err(failed)?.path();
        let Ok(manifest) = fs::read_to_string(folder.join("Cargo.toml")) else { continue };
        let value = |key: &str| {
            let mut lines =
                manifest.lines().take_while(|line| *line == "[package]" || !line.starts_with('['));
            lines.find_map(|line| Some(line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim()))
        };
        if value("publish") == Some("false") {
            continue;
        }
        let name = value("name").ok_or_else(|| format!("{}: expected a name", folder.display()))?;
        packages.push(Package { name: name.trim_matches('"').to_owned(), folder });
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

/// Makes the .crate files, all in one call: a package of many that depend on each other.
fn pack(packages: &[Package], root: &Path, out: &Path) -> Result<(), String> {
    let mut command = crate::cargo("package");
    command.current_dir(root).args(["--quiet", "--no-verify", "--allow-dirty", "--target-dir"]);
    command.arg(out.join("crates"));
    for package in packages {
        command.args(["--package", &package.name]);
    }
    run(command, "cargo package")
}

/// Unpacks the .crate file of a package; gives the name of its folder.
fn unpack(package: &Package, out: &Path, to: &Path) -> Result<String, String> {
    let name = format!("{}-{}", package.name, env!("CARGO_PKG_VERSION"));
    let mut command = Command::new("tar");
    // Packages hold one date for all files, ever the same, by which cargo would take changed ones for built.
    command.arg("-xzmf").arg(out.join(format!("crates/package/{name}.crate"))).arg("-C").arg(to);
    run(command, "tar")?;
    Ok(name)
}

fn run(mut command: Command, what: &str) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{what}: {status}")),
        Err(error) => Err(format!("could not start {what}: {error}")),
    }
}

/// The manifest of a workspace of these packages (name, folder), with the profiles of the repository's.
fn workspace(repository: &str, members: &[(&str, String)]) -> String {
    let folders: Vec<String> = members.iter().map(|(_, folder)| format!("{folder:?}")).collect();
    let mut text = format!("[workspace]\nresolver = \"3\"\nmembers = [{}]\n", folders.join(", "));
    text += "\n[patch.crates-io]\n";
    for (name, folder) in members {
        text += &format!("{name} = {{ path = {folder:?} }}\n");
    }
    let profiles = repository.find("\n[profile.").map_or("", |at| &repository[at..]);
    text + profiles
}

/// The tests of a crate that are not in its package, or need what it has not: a line for each file.
fn left_out(package: &Package, unpacked: &Path) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    for file in sources(&package.folder)? {
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let place = file.strip_prefix(&package.folder).unwrap_or(&file);
        let tests = tests(&text);
        let reason = match (unpacked.join(place).exists(), text.contains(FIXTURES)) {
            (_, true) => "read fixtures/ of the repository",
            (false, false) => "read other files of the repository",
            (true, false) => continue,
        };
        if !tests.is_empty() {
            let (name, place) = (&package.name, place.display());
            lines.push(format!("left out of {name}, since they {reason}: {place}: {}\n", tests.join(", ")));
        }
    }
    Ok(lines)
}

/// The Rust files of a crate in src and tests, in the order of their names.
fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut open = vec![folder.join("src"), folder.join("tests")];
    let mut files = Vec::new();
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.map_err(|error| format!("{}: {error}", folder.display()))?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The names of the tests in a file.
fn tests(text: &str) -> Vec<String> {
    let mut lines = text.lines().map(str::trim);
    let mut names = Vec::new();
    while lines.any(|line| line == "#[test]") {
        let function = lines.by_ref().find_map(|line| line.strip_prefix("fn "));
        names.extend(function.and_then(|rest| rest.split('(').next()).map(str::to_owned));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_understood() {
        let parsed = |line: &str| parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let rest = vec!["-p".to_owned(), "x".to_owned()];
        let expected = Arguments { out: Some("a".into()), list: true, help: false, rest };
        assert_eq!(parsed("--out a --list -- -p x"), Ok(expected));
        assert_eq!(parsed("--out=b").unwrap().out, Some("b".into()));
        assert!(parsed("--fast").unwrap_err().contains("--fast"));
        assert!(parsed("--out").unwrap_err().contains("folder"));
    }

    #[test]
    fn crates_that_can_be_published_are_found() {
        let packages = packages(&root().unwrap()).unwrap();
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        assert!(names.contains(&"swav") && names.contains(&"swav-cli"), "{names:?}");
        assert!(!names.contains(&"swav-fixtures") && !names.contains(&"swav-fuzz"), "{names:?}");
    }

    #[test]
    fn tests_that_are_left_out_have_names() {
        let text = "#[test]\n#[ignore]\nfn a() {}\nfn b() {}\n    #[test]\n    fn c_d() {}\n";
        assert_eq!(super::tests(text), ["a", "c_d"]);
        let root = root().unwrap();
        let package = Package { name: "swav-ot".to_owned(), folder: root.join("crates/ot") };
        let lines = left_out(&package, &package.folder).unwrap();
        assert!(
            lines.iter().any(|line| line.contains("fixtures/") && line.contains("parity.rs")),
            "{lines:?}"
        );
    }

    #[test]
    fn a_workspace_says_where_its_packages_lie() {
        let text = workspace("[workspace]\n\n[profile.dev]\nopt-level = 1\n", &[("a", "a-1".to_owned())]);
        assert!(text.contains("members = [\"a-1\"]") && text.contains("a = { path = \"a-1\" }"), "{text}");
        assert!(text.ends_with("[profile.dev]\nopt-level = 1\n"), "{text}");
    }
}
