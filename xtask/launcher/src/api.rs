//! `cargo xtask api`: what the crates offer to others, as lists of names in docs/api that a change has to change too.
//!
//! Names are read from the pages of `cargo doc`, the only description of a crate that stable tools give: every page of an item
//! has an anchor for each of its fields, variants and methods. What is seen is what a user sees, re-exports and all; what is
//! not seen are signatures, bounds and trait implementations.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::package::{Package, packages, root};

const HELP: &str = "\
Compare what the crates offer to others with the lists in docs/api

Builds the documentation and reads the names of public items, fields, variants and methods from it.

Usage: cargo xtask api [OPTIONS]

Options:
  --write     Write the lists anew; a change of them belongs into CHANGELOG.md
  -h, --help  Print help
";

/// Where a page begins to speak of traits that others have made, or of what has traits of this crate.
const ENDS: [&str; 7] = [
    "id=\"trait-implementations\"",
    "id=\"synthetic-implementations\"",
    "id=\"blanket-implementations\"",
    "id=\"foreign-impls\"",
    "id=\"implementors\"",
    "id=\"dyn-compatibility\"",
    "id=\"deref-methods-",
];

/// Anchors of what belongs to an item.
const MEMBERS: [&str; 6] =
    ["structfield.", "variant.", "method.", "tymethod.", "associatedconstant.", "associatedtype."];

/// Runs the command.
pub fn main(arguments: &[String]) -> ExitCode {
    let write = match arguments {
        [] => false,
        [word] if word == "--write" => true,
        [word] if word == "--help" || word == "-h" => {
            crate::print_quietly(HELP);
            return ExitCode::SUCCESS;
        }
        [word, ..] => return crate::wrong_usage(&format!("unexpected argument '{word}'")),
    };
    match compare(write) {
        Ok(changes) if changes.is_empty() => ExitCode::SUCCESS,
        Ok(changes) => {
            let lines: String = changes.iter().map(|change| format!("{change}\n")).collect();
            crate::print_quietly(&lines);
            if write {
                return ExitCode::SUCCESS;
            }
            eprintln!(
                "error: the public items are not those of docs/api. If they should change: `cargo xtask api --write`, and a line in CHANGELOG.md"
            );
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the documentation; gives each name that came or went.
fn compare(write: bool) -> Result<Vec<String>, String> {
    let root = root()?;
    let mut command = crate::cargo("doc");
    command.current_dir(&root).args(["--quiet", "--workspace", "--no-deps"]);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(format!("cargo doc: {status}")),
        Err(error) => return Err(format!("could not start cargo: {error}")),
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), |folder| root.join(folder));
    let kept = root.join("docs/api");
    let mut changes = Vec::new();
    for Package { name, .. } in packages(&root)? {
        let library = name.replace('-', "_");
        let now = items(&target.join("doc").join(&library), &library)?;
        let file = kept.join(format!("{name}.txt"));
        let before = fs::read_to_string(&file).unwrap_or_default();
        let before: BTreeSet<String> = before.lines().map(str::to_owned).collect();
        changes.extend(before.difference(&now).map(|gone| format!("- {gone}")));
        changes.extend(now.difference(&before).map(|new| format!("+ {new}")));
        if write && before != now {
            let text: String = now.iter().map(|item| format!("{item}\n")).collect();
            let written = fs::create_dir_all(&kept).and_then(|()| fs::write(&file, text));
            written.map_err(|error| format!("{}: {error}", file.display()))?;
        }
    }
    Ok(changes)
}

/// The public items of a crate and what belongs to them, from the folder of its pages.
fn items(folder: &Path, library: &str) -> Result<BTreeSet<String>, String> {
    let page =
        |path: PathBuf| fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()));
    let mut items = BTreeSet::new();
    for place in pages(&page(folder.join("all.html"))?) {
        let (kind, path) = described(place, library);
        items.insert(format!("{kind} {path}"));
        if matches!(kind, "struct" | "enum" | "union" | "trait") {
            let members = members(&page(folder.join(place))?);
            items.extend(members.into_iter().map(|member| format!("{kind} {path}::{member}")));
        }
    }
    Ok(items)
}

/// The pages that a crate's list of all items points to: `module/struct.Name.html`.
fn pages(list: &str) -> Vec<&str> {
    let links = list.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let is_item = |link: &&str| {
        !link.starts_with(['#', '.']) && link.ends_with(".html") && link.matches('.').count() == 2
    };
    links.filter(is_item).collect()
}

/// Kind and path of the item of a page.
fn described<'a>(place: &'a str, library: &str) -> (&'a str, String) {
    let (modules, file) = place.rsplit_once('/').unwrap_or(("", place));
    let mut parts = file.split('.');
    let (kind, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let modules = modules.split('/').filter(|module| !module.is_empty());
    let path: Vec<&str> = std::iter::once(library).chain(modules).chain([name]).collect();
    (kind, path.join("::"))
}

/// The anchors of a page that name what belongs to its item.
fn members(page: &str) -> BTreeSet<String> {
    let end = ENDS.iter().filter_map(|end| page.find(end)).min().unwrap_or(page.len());
    let anchors = page[..end].split("id=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let member = |anchor: &str| {
        let kind = MEMBERS.iter().find(|kind| anchor.starts_with(*kind))?;
        let name = &anchor[kind.len()..];
        // A second method of this name, of another type's parameters, has a number.
        let name =
            name.rsplit_once('-').filter(|(_, n)| n.parse::<u32>().is_ok()).map_or(name, |(name, _)| name);
        // A variant's list of fields has an anchor, too.
        (!name.ends_with(".fields")).then(|| name.replace(".field.", "."))
    };
    anchors.filter_map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_found_in_pages() {
        let list = r##"<a href="#x"></a><a href="../static.files/a.css"></a><a href="struct.A.html">A</a><a href="m/n/fn.b.html">"##;
        assert_eq!(pages(list), ["struct.A.html", "m/n/fn.b.html"]);
        assert_eq!(described("struct.A.html", "c"), ("struct", "c::A".to_owned()));
        assert_eq!(described("m/n/fn.b.html", "c"), ("fn", "c::m::n::b".to_owned()));
        let page = r#"<span id="structfield.x"><section id="variant.B"><div id="variant.B.fields"><span id="variant.B.field.y"><section id="method.new">
            <section id="method.new-1"><h2 id="trait-implementations"><section id="method.clone">"#;
        assert_eq!(members(page).into_iter().collect::<Vec<_>>(), ["B", "B.y", "new", "x"]);
    }
}
