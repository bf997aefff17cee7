//! Reads the manifests of the workspace and checks which crates may know which, and that the drawing of it in
//! ARCHITECTURE.md is the truth.
//!
//! Crates at the bottom are useful alone, so they know none of their siblings; nothing but the encoder knows the tensor
//! engine. `SWAV_WRITE=1 cargo test -p swav --test direction_of_knowledge` draws anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::Table;

/// Package, and the packages of this workspace that it may depend on, each listed before those that may know it.
/// Development dependencies may add `swav-fixtures`, the package itself (with other features), and what [`TESTED_WITH`] says.
const ALLOWED: &[(&str, &[&str])] = &[
    ("swav-ot", &[]),
    ("swav-augment", &[]),
    ("swav-kernels", &[]),
    ("swav-cuda", &[]),
    ("swav-optim", &[]),
    ("swav-collective", &[]),
    ("swav-prototypes", &[]),
    ("swav-losses", &[]),
    ("swav-report", &[]),
    ("swav-fixtures", &[]),
    ("swav-data", &["swav-augment"]),
    ("swav-encoder", &["swav-collective", "swav-cuda", "swav-kernels", "swav-optim"]),
    ("swav-weights", &["swav-augment", "swav-encoder"]),
    (
        "swav-train",
        &[
            "swav-augment",
            "swav-collective",
            "swav-data",
            "swav-encoder",
            "swav-losses",
            "swav-optim",
            "swav-ot",
            "swav-prototypes",
            "swav-weights",
        ],
    ),
    ("swav-eval", &["swav-augment", "swav-data", "swav-encoder", "swav-kernels"]),
    ("swav", LIBRARIES),
    ("swav-cli", &PROGRAM),
];

/// What the facade re-exports.
const LIBRARIES: &[&str] = &[
    "swav-augment",
    "swav-collective",
    "swav-data",
    "swav-encoder",
    "swav-eval",
    "swav-kernels",
    "swav-losses",
    "swav-optim",
    "swav-ot",
    "swav-prototypes",
    "swav-train",
    "swav-weights",
];

/// What the program may know: every library.
const PROGRAM: [&str; LIBRARIES.len() + 3] = {
    let mut all = ["swav"; LIBRARIES.len() + 3];
    let mut i = 0;
    while i < LIBRARIES.len() {
        all[i] = LIBRARIES[i];
        i += 1;
    }
    all[i] = "swav-cuda";
    all[i + 1] = "swav-report";
    all
};

/// What the tests of a package are compared with, though the package itself may not know it.
const TESTED_WITH: &[(&str, &[&str])] = &[("swav-cuda", &["swav-kernels"])];

/// Packages at the top, which nobody may depend on.
const TOP: &[&str] = &["swav-benches", "swav-examples", "swav-fuzz", "xtask", "xtask-launcher"];

/// The tensor engine, and the only package that may know it.
const ENGINE: (&str, &str) = ("dfdx", "swav-encoder");

/// The lines of ARCHITECTURE.md that the drawing stands between.
const BEGIN: &str =
    "<!-- who knows whom: drawn from the manifests by crates/swav/tests/direction_of_knowledge.rs -->";
const END: &str = "<!-- end of who knows whom -->";

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
    let others = ["examples", "benches", "xtask", "xtask/launcher"].map(|name| root().join(name));
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
    for name in manifests().keys() {
        assert!(known.contains(name.as_str()), "{name} is not on the map");
    }
}

#[test]
fn crates_know_only_what_lies_below_them() {
    let manifests = manifests();
    let members: BTreeSet<&str> = manifests.keys().map(String::as_str).collect();
    for (name, allowed) in ALLOWED {
        let Some(manifest) = manifests.get(*name) else { continue };
        let siblings = |kinds| {
            let all = dependencies(manifest, kinds);
            all.into_iter().filter(|other| members.contains(other.as_str())).collect::<Vec<_>>()
        };
        for other in siblings(NORMAL) {
            assert!(allowed.contains(&other.as_str()), "{name} depends on {other}, which it may not know");
        }
        for other in siblings(DEVELOPMENT) {
            let tested = TESTED_WITH.iter().find(|(package, _)| package == name);
            let tested = tested.is_some_and(|(_, others)| others.contains(&other.as_str()));
            let own = other == "swav-fixtures" || other == *name;
            assert!(
                own || tested || allowed.contains(&other.as_str()),
                "the tests of {name} depend on {other}, which it may not know"
            );
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

/// Faults in formulae are for tests: only development dependencies turn the feature on.
#[test]
fn no_program_has_the_faults_that_tests_switch_on() {
    for (name, manifest) in manifests() {
        for kind in NORMAL {
            let text = manifest.get(*kind).map(|table| table.to_string()).unwrap_or_default();
            assert!(!text.contains("mutants"), "{name}: {kind} turn faults on");
        }
        let features =
            manifest.get("features").and_then(|table| table.as_table()).cloned().unwrap_or_default();
        for (feature, turned_on) in features {
            assert!(
                !turned_on.to_string().contains("mutants"),
                "{name}: the feature {feature} turns faults on"
            );
        }
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

/// One line per package: how many layers lie below it, its name, and whom it knows directly. Top first.
fn drawing() -> String {
    let manifests = manifests();
    let direct = |name: &str| -> BTreeSet<String> {
        let all = dependencies(&manifests[name], NORMAL);
        all.into_iter().filter(|other| manifests.contains_key(other) && *other != name).collect()
    };
    fn depth(name: &str, direct: &dyn Fn(&str) -> BTreeSet<String>) -> usize {
        direct(name).iter().map(|other| depth(other, direct) + 1).max().unwrap_or(0)
    }
    let mut packages: Vec<(usize, &String)> = manifests
        .keys()
        .filter(|name| *name != "swav-fixtures")
        .map(|name| (depth(name, &direct), name))
        .collect();
    packages.sort_by_key(|&(depth, name)| (std::cmp::Reverse(depth), name));
    let short = |name: &str| name.strip_prefix("swav-").unwrap_or(name).to_owned();
    let mut lines = String::from("```text\n");
    let mut last = usize::MAX;
    for (depth, name) in packages {
        let layer = if depth == last { String::new() } else { depth.to_string() };
        last = depth;
        let known: Vec<String> = direct(name).iter().map(|other| short(other)).collect();
        let known = if known.is_empty() { "nobody".to_owned() } else { known.join(", ") };
        lines += &format!("{layer:>2}  {:<11} -> {known}\n", short(name));
    }
    lines + "```\n"
}

#[test]
fn the_drawing_is_true() {
    let path = root().join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(&path).expect("ARCHITECTURE.md can be read");
    let (before, rest) =
        text.split_once(&format!("{BEGIN}\n")).expect("ARCHITECTURE.md has a place for the drawing");
    let (drawn, after) = rest.split_once(END).expect("the place for the drawing has an end");
    let expected = drawing();
    if drawn == expected {
        return;
    }
    if std::env::var_os("SWAV_WRITE").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}\n{expected}{END}{after}"))
            .expect("ARCHITECTURE.md can be written");
        return;
    }
    panic!(
        "ARCHITECTURE.md has another drawing than the manifests (SWAV_WRITE=1 draws anew); expected\n{expected}"
    );
}

/// What crates.io asks for, and what a stranger looks for: words that are short enough, licences, an example that is tested.
#[test]
fn every_package_can_be_published() {
    let shared = manifest(&root())["workspace"]["package"].clone();
    let folders = std::fs::read_dir(root().join("crates")).expect("crates/ exists");
    let folders = folders.map(|entry| entry.expect("a folder can be listed").path());
    for folder in folders.filter(|folder| folder.join("Cargo.toml").exists()) {
        let package = manifest(&folder)["package"].clone();
        if package.get("publish").and_then(|publish| publish.as_bool()) == Some(false) {
            continue;
        }
        let name = package["name"].as_str().expect("a package has a name");
        let words = |key: &str| -> Vec<String> {
            let own = package.get(key).unwrap_or_else(|| panic!("{name}: {key}"));
            let list = own.as_array().or(shared[key].as_array()).unwrap_or_else(|| panic!("{name}: {key}"));
            list.iter().filter_map(|word| word.as_str()).map(str::to_owned).collect()
        };
        for key in ["keywords", "categories"] {
            assert!((1..=5).contains(&words(key).len()), "{name}: {key}");
        }
        let is_keyword = |word: &String| {
            let others = |c: char| c.is_ascii_alphanumeric() || "_-+".contains(c);
            word.len() <= 20
                && word.starts_with(|c: char| c.is_ascii_alphanumeric())
                && word.chars().all(others)
        };
        assert_eq!(words("keywords").iter().find(|word| !is_keyword(word)), None, "{name}");
        assert!(package["description"].as_str().is_some_and(|text| !text.is_empty()), "{name}");
        assert!(package["metadata"]["docs"]["rs"].is_table(), "{name}");
        let read = |file: &str| {
            let path = folder.join(file);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
            assert!(!read(licence).is_empty(), "{name}");
        }
        assert!(read("README.md").contains("```rust"), "{name}: expected an example in its README");
        assert!(
            read("src/lib.rs").contains(r#"doc = include_str!("../README.md")"#),
            "{name}: tests no README"
        );
    }
}
