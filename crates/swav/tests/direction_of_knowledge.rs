//! Reads the manifests of the workspace and checks which crates may know which: the map in ARCHITECTURE.md.
//!
//! `ot`, `augment`, `kernels`, `prototypes` and `losses` are useful alone, so they know none of their siblings, and
//! nothing but the encoder knows the tensor engine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::Table;

/// Package, and the packages of this workspace that it may depend on. Development dependencies may add `swav-fixtures`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("swav-ot", &[]),
    ("swav-collective", &[]),
    ("swav-augment", &[]),
    ("swav-kernels", &[]),
    // Its tests compare with the CPU kernels.
    ("swav-cuda", &["swav-kernels"]),
    ("swav-prototypes", &[]),
    ("swav-losses", &[]),
    ("swav-fixtures", &[]),
    ("swav-data", &["swav-augment"]),
    ("swav-encoder", &["swav-kernels"]),
    (
        "swav-train",
        &["swav-augment", "swav-data", "swav-encoder", "swav-losses", "swav-ot", "swav-prototypes"],
    ),
    ("swav-eval", &["swav-augment", "swav-data", "swav-encoder"]),
    (
        "swav",
        &[
            "swav-augment",
            "swav-data",
            "swav-encoder",
            "swav-eval",
            "swav-kernels",
            "swav-losses",
            "swav-ot",
            "swav-prototypes",
            "swav-train",
        ],
    ),
];

/// Packages at the top, which nobody may depend on.
const TOP: &[&str] = &["swav-benches", "swav-examples", "xtask"];

/// Packages besides the encoder that may not know the tensor engine: all of them.
const ENGINE: (&str, &str) = ("dfdx", "swav-encoder");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn manifest(folder: &Path) -> Table {
    let path = folder.join("Cargo.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every manifest of the workspace by package name.
fn manifests() -> BTreeMap<String, Table> {
    let crates = std::fs::read_dir(root().join("crates")).expect("crates/ exists");
    let folders = crates.map(|entry| entry.expect("a folder can be listed").path());
    let others = ["examples", "benches", "xtask"].map(|name| root().join(name));
    let all = folders.filter(|path| path.join("Cargo.toml").exists()).chain(others);
    all.map(|folder| {
        let manifest = manifest(&folder);
        let name = manifest["package"]["name"].as_str().expect("a package has a name").to_owned();
        (name, manifest)
    })
    .collect()
}

/// What a manifest depends on, in the sections `kinds` and in the same ones of any target.
fn dependencies(manifest: &Table, kinds: &[&str]) -> BTreeSet<String> {
    let targets = manifest.get("target").and_then(|targets| targets.as_table());
    let targets = targets.into_iter().flat_map(Table::values).filter_map(|target| target.as_table());
    let tables = std::iter::once(manifest).chain(targets);
    tables
        .flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()))
        .flat_map(Table::iter)
        .map(|(key, value)| value.get("package").and_then(|name| name.as_str()).unwrap_or(key).to_owned())
        .collect()
}

const NORMAL: &[&str] = &["dependencies", "build-dependencies"];
const DEVELOPMENT: &[&str] = &["dev-dependencies"];

#[test]
fn every_package_has_its_place_on_the_map() {
    let known: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).chain(TOP.iter().copied()).collect();
    let found = manifests();
    assert_eq!(found.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
}

#[test]
fn crates_know_only_what_lies_below_them() {
    let manifests = manifests();
    let members: BTreeSet<&str> = manifests.keys().map(String::as_str).collect();
    for (name, allowed) in ALLOWED {
        let siblings = |kinds| {
            let all = dependencies(&manifests[*name], kinds);
            all.into_iter().filter(|other| members.contains(other.as_str())).collect::<Vec<_>>()
        };
        for other in siblings(NORMAL) {
            assert!(allowed.contains(&other.as_str()), "{name} depends on {other}, which it may not know");
        }
        for other in siblings(DEVELOPMENT) {
            let allowed = other == "swav-fixtures" || allowed.contains(&other.as_str());
            assert!(allowed, "the tests of {name} depend on {other}, which it may not know");
        }
    }
}

#[test]
fn only_the_encoder_knows_the_tensor_engine() {
    let (engine, user) = ENGINE;
    for (name, manifest) in manifests() {
        let depends = dependencies(&manifest, NORMAL).contains(engine);
        assert_eq!(depends, name == user, "{name} and {engine}");
        assert!(!dependencies(&manifest, DEVELOPMENT).contains(engine), "the tests of {name} and {engine}");
    }
}

#[test]
fn the_order_has_no_cycle() {
    // Each package may know only packages that come before it in the list.
    for (position, (name, allowed)) in ALLOWED.iter().enumerate() {
        let before: Vec<&str> = ALLOWED[..position].iter().map(|(name, _)| *name).collect();
        assert!(allowed.iter().all(|other| before.contains(other)), "{name} is listed before what it knows");
    }
}
