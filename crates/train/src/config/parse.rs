//! Text to configuration: overrides, and errors that name the key and the nearest known one.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::TrainConfig;
use crate::memory::bytes;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML, or a value has the wrong type.
    #[error("{}configuration: {message}", place(.path))]
    Syntax {
        /// The file, if there is one.
        path: Option<PathBuf>,
        /// What TOML says.
        message: String,
    },
    /// A key that does not exist.
    #[error("{}unknown key `{key}`{}", place(.path), hint(.key, .suggestion, .known))]
    UnknownKey {
        /// The file, if there is one.
        path: Option<PathBuf>,
        /// The dotted key.
        key: String,
        /// The known key in its place that is spelt most like it; with dots, one of this name in another place.
        suggestion: Option<String>,
        /// All known keys in its place.
        known: Vec<String>,
    },
    /// An override that is not `key=value`.
    #[error("override `{given}`: expected key=value with a dotted key, as in training.epochs=20")]
    Override {
        /// What came.
        given: String,
    },
    /// A value outside its range.
    #[error("{key}: expected {expected}, got {got}")]
    Value {
        /// The dotted key.
        key: String,
        /// What is allowed.
        expected: String,
        /// What came.
        got: String,
    },
    /// A run of these sizes does not fit into memory.
    #[error(
        "{keys}: a run of this size needs {} of memory, {} of it {what}; {} are available",
        bytes(*total), bytes(*part), bytes(*available)
    )]
    Memory {
        /// What needs most.
        what: &'static str,
        /// The keys that this follows from.
        keys: &'static str,
        /// Bytes that it needs.
        part: u128,
        /// Bytes that the run needs.
        total: u128,
        /// Bytes that there are.
        available: u128,
    },
    /// An error that one of the overrides caused, not the text.
    #[error("{given}")]
    InOverride {
        /// The override, as it was given.
        given: String,
        /// What is wrong.
        source: Box<ConfigError>,
    },
    /// The encoder is one that only the program that made it can build.
    #[error(
        "this configuration is of an encoder of its own ({description}), which only its own program can build"
    )]
    OwnEncoder {
        /// What the encoder says of itself.
        description: String,
    },
    /// A configuration that cannot be written as TOML.
    #[error("cannot write the configuration as TOML")]
    Write(#[from] toml::ser::Error),
}

impl ConfigError {
    /// Whether an override is to blame, and not the text.
    pub fn from_override(&self) -> bool {
        matches!(self, Self::Override { .. } | Self::InOverride { .. })
    }

    /// The same error, saying which file it is in.
    pub(super) fn in_file(mut self, file: &Path) -> Self {
        if let Self::Syntax { path, .. } | Self::UnknownKey { path, .. } = &mut self {
            *path = Some(file.to_owned());
        }
        self
    }
}

fn place(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(String::new, |path| format!("{}: ", path.display()))
}

fn hint(key: &str, suggestion: &Option<String>, known: &[String]) -> String {
    match suggestion {
        Some(name) if name.contains('.') => {
            format!("; did you mean `{name}`? Known here: {}", known.join(", "))
        }
        Some(name) => {
            let place = key.rsplit_once('.').map_or(String::new(), |(place, _)| format!("{place}."));
            format!("; did you mean `{place}{name}`?")
        }
        None if known.is_empty() => String::new(),
        None => format!("; known here: {}", known.join(", ")),
    }
}

/// No configuration is longer; what is, such as a device without end, is not read.
const MAX_BYTES: u64 = 1 << 20;

/// The text of a configuration file, which may be a pipe.
///
/// # Errors
/// [`ConfigError::Read`], also for what is longer than any configuration.
pub fn config_text(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text)).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        let reason = format!("it is longer than {MAX_BYTES} bytes, which no configuration is");
        return Err(failed(std::io::Error::new(ErrorKind::InvalidData, reason)));
    }
    Ok(text)
}

/// Splits `key=value`. The value is read as TOML, and as a string if it is not TOML: `training.epochs=20`,
/// `data.path=images`, `prototypes.n_prototypes=[300, 500]`.
///
/// # Errors
/// [`ConfigError::Override`] without `=` or with an empty part of the key.
pub fn parse_override(given: &str) -> Result<(Vec<String>, Value), ConfigError> {
    let bad = || ConfigError::Override { given: given.to_owned() };
    let (key, text) = given.split_once('=').ok_or_else(bad)?;
    let key: Vec<String> = key.trim().split('.').map(|part| part.trim().to_owned()).collect();
    if key.iter().any(String::is_empty) {
        return Err(bad());
    }
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| {
        // More than one key means that the text held a line break and went on.
        if table.len() == 1 { table.remove("value") } else { None }
    });
    Ok((key, parsed.unwrap_or_else(|| Value::String(text.trim().to_owned()))))
}

pub(super) fn parse(text: &str, overrides: &[String]) -> Result<TrainConfig, ConfigError> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| syntax(error.to_string()))?;
    warn_of_unused(&table);
    // Where there are no overrides the text itself is read: errors then come with line and column.
    let of_text = match table.contains_key(OLD_SECTION) {
        true => read(renamed(table.clone())),
        false => toml::from_str(text).map_err(|error| explain(&error.to_string(), Some(table.clone()))),
    }?;
    if overrides.is_empty() {
        return Ok(of_text);
    }
    // The first override after which the whole cannot be read is the one to blame, if it cannot in the end.
    let (mut changed, mut wrong) = (table, None);
    for given in overrides {
        let blame = |source| ConfigError::InOverride { given: given.clone(), source: Box::new(source) };
        let (key, value) = parse_override(given)?;
        set(&mut changed, &key, value).ok_or_else(|| {
            blame(ConfigError::Value {
                key: key.join("."),
                expected: "a key below a section".to_owned(),
                got: "a key below a value".to_owned(),
            })
        })?;
        match read(renamed(changed.clone())) {
            Ok(_) => wrong = None,
            Err(error) => wrong = wrong.or_else(|| Some(blame(error))),
        }
    }
    warn_of_unused(&changed);
    wrong.map_or_else(|| read(renamed(changed)), Err)
}

fn read(table: Table) -> Result<TrainConfig, ConfigError> {
    let keep = table.clone();
    table.try_into::<TrainConfig>().map_err(|error| explain(&error.to_string(), Some(keep)))
}

/// Section of earlier versions, and what its keys are called now; the others were never used in training.
const OLD_SECTION: &str = "evaluation";
const OLD_KEYS: [(&str, &str); 5] = [
    ("reestimate_batch_norm", "batch_norm"),
    ("reestimate_images", "n_images"),
    ("resize", "resize"),
    ("size", "size"),
    ("batch_size", "batch_size"),
];
const UNUSED_KEYS: [&str; 2] = ["knn_k", "knn_temperature"];

/// Says which keys of earlier versions have no effect any more.
fn warn_of_unused(table: &Table) {
    let Some(old) = table.get(OLD_SECTION).and_then(Value::as_table) else { return };
    for key in UNUSED_KEYS.iter().filter(|key| old.contains_key(**key)) {
        tracing::warn!(
            "{OLD_SECTION}.{key} has no effect: `swav eval knn` has the options --k and --temperature"
        );
    }
}

/// Replaces the section `evaluation` of earlier versions by `reestimation`.
fn renamed(mut table: Table) -> Table {
    let Some(Value::Table(mut old)) = table.remove(OLD_SECTION) else { return table };
    let entry = table.entry("reestimation").or_insert_with(|| Value::Table(Table::new()));
    if let Some(new) = entry.as_table_mut() {
        for (was, is) in OLD_KEYS {
            if let Some(value) = old.remove(was) {
                new.entry(is).or_insert(value);
            }
        }
    }
    UNUSED_KEYS.iter().for_each(|key| drop(old.remove(*key)));
    if !old.is_empty() {
        // What is left is no key of any version, and is refused under its own name.
        table.insert(OLD_SECTION.to_owned(), Value::Table(old));
    }
    table
}

fn syntax(message: String) -> ConfigError {
    ConfigError::Syntax { path: None, message: message.trim_end().to_owned() }
}

/// Puts `value` at `key`, making tables on the way; `None` if a part of the key is a value already. A table joins the one
/// that is there.
fn set(table: &mut Table, key: &[String], value: Value) -> Option<()> {
    match key {
        [] => None,
        [last] => {
            match (table.get_mut(last), value) {
                (Some(Value::Table(there)), Value::Table(more)) => join(there, more),
                (_, value) => drop(table.insert(last.clone(), value)),
            }
            Some(())
        }
        [first, rest @ ..] => {
            let entry = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
            // An enum such as `encoder.head = "none"` may be replaced by one with contents.
            if entry.is_str() {
                *entry = Value::Table(Table::new());
            }
            set(entry.as_table_mut()?, rest, value)
        }
    }
}

/// Puts the entries of `more` into a table, and those of its tables into the tables there.
fn join(table: &mut Table, more: Table) {
    for (key, value) in more {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(there)), Value::Table(more)) => join(there, more),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

/// Serde's message about a value with the key first, and without the names of Rust's types.
fn plain(message: &str) -> String {
    let message = message.trim_end();
    let Some((what, key)) = message.rsplit_once("\nin `") else { return message.to_owned() };
    let (what, expected) = what.split_once(", expected ").unwrap_or((what, ""));
    let expected = match expected {
        "" => String::new(),
        "u8" | "u32" | "u64" | "usize" => ", expected a whole number of at least 0".to_owned(),
        "f32" | "f64" => ", expected a number".to_owned(),
        other if other.starts_with("struct") => ", expected a table of keys".to_owned(),
        other => format!(", expected {other}"),
    };
    format!("{}: {what}{expected}", key.trim_end_matches('`'))
}

/// Turns serde's message about an unknown field into one with the whole key and a suggestion.
fn explain(message: &str, table: Option<Table>) -> ConfigError {
    const START: &str = "unknown field `";
    let Some(at) = message.find(START) else { return syntax(plain(message)) };
    let line = message[at..].lines().next().unwrap_or("");
    let mut names = line.split('`').skip(1).step_by(2).map(str::to_owned);
    let Some(field) = names.next() else { return syntax(message.to_owned()) };
    let known: Vec<String> = names.collect();
    // With every number of the augmentation written out.
    let usual = TrainConfig::default();
    let augment = usual.augment.resolved();
    let defaults = Table::try_from(TrainConfig { augment, ..usual }).unwrap_or_default();
    let key = table
        .as_ref()
        .and_then(|table| find(table, Some(&defaults), &field))
        .unwrap_or_else(|| field.clone());
    let suggestion = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(name, &field), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().max(field.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name.clone())
        .or_else(|| elsewhere(&defaults, &field));
    ConfigError::UnknownKey { path: None, key, suggestion, known }
}

/// The only key of this name in any section, with its section.
fn elsewhere(table: &Table, name: &str) -> Option<String> {
    let mut found = Vec::new();
    places(table, "", name, &mut found);
    if found.len() == 1 { found.pop() } else { None }
}

fn places(table: &Table, at: &str, name: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        if key == name && !at.is_empty() {
            found.push(format!("{at}{key}"));
        }
        if let Some(below) = value.as_table() {
            places(below, &format!("{at}{key}."), name, found);
        }
    }
}

/// The dotted path of an entry called `field` that the defaults do not have in its place.
fn find(table: &Table, defaults: Option<&Table>, field: &str) -> Option<String> {
    if table.contains_key(field) && !defaults.is_some_and(|defaults| defaults.contains_key(field)) {
        return Some(field.to_owned());
    }
    table.iter().find_map(|(key, value)| {
        let below = defaults.and_then(|defaults| defaults.get(key)).and_then(Value::as_table);
        let path = find(value.as_table()?, below, field)?;
        Some(format!("{key}.{path}"))
    })
}
