//! What this project depends on may be used by everybody: every package comes from crates.io or from here, under a licence that
//! `deny.toml` allows.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[test]
fn every_dependency_has_an_allowed_licence_and_a_known_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("deny.toml")).unwrap();
    let rules: toml::Table = text.parse().unwrap();
    let allowed: Vec<&str> =
        rules["licenses"]["allow"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();

    let packages = packages(&root);
    assert!(packages.len() > 100, "only {} packages", packages.len());
    let faults: Vec<String> = packages.iter().filter_map(|package| fault(package, &allowed)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_licence_is_read_as_it_is_meant() {
    let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"];
    for good in ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-2.0", "Apache-2.0 WITH LLVM-exception OR GPL-2.0"] {
        assert!(permits(good, &allowed), "{good}");
    }
    assert!(permits("(MIT OR Apache-2.0) AND Unicode-3.0", &allowed));
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(GPL-2.0 OR LGPL-2.1) AND MIT", "Apache-2.0", ""] {
        assert!(!permits(bad, &allowed), "{bad}");
    }
}

/// All packages that the workspace is built of on this kind of machine, for which cargo needs no network: they were built.
fn packages(root: &Path) -> Vec<Value> {
    let version = run(Command::new("rustc").arg("-vV"));
    let version = String::from_utf8(version).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host]);
    let metadata: Value = serde_json::from_slice(&run(cargo.current_dir(root))).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// What a command prints.
fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What is wrong with a package, if anything is.
fn fault(package: &Value, allowed: &[&str]) -> Option<String> {
    let name = format!("{} {}", package["name"], package["version"]);
    let licence = package["license"].as_str().unwrap_or_default();
    if !permits(licence, allowed) {
        return Some(format!("{name}: the licence `{licence}` is not allowed by deny.toml"));
    }
    match package["source"].as_str() {
        None | Some("registry+https://github.com/rust-lang/crates.io-index") => None,
        Some(other) => Some(format!("{name} comes from {other}")),
    }
}

/// Whether an expression of licences leaves a choice that is allowed: every part that AND joins has an allowed alternative.
/// An AND binds parts in brackets only, which is how all expressions so far are written.
fn permits(expression: &str, allowed: &[&str]) -> bool {
    expression.split(" AND ").all(|part| {
        let part = part.trim().trim_start_matches('(').trim_end_matches(')');
        part.split(" OR ").flat_map(|one| one.split('/')).any(|one| allowed.contains(&one.trim()))
    })
}
