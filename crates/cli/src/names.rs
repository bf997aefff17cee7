//! Names: of the program in help and hints, and of values as configuration files write them.

use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};

/// The environment variable that says what the program is called in help and hints, if not `swav`.
pub const PROGRAM_VARIABLE: &str = "SWAV_PROGRAM";

/// What a user types to start this program: `swav`, or what [`PROGRAM_VARIABLE`] says.
pub fn program() -> String {
    std::env::var(PROGRAM_VARIABLE).unwrap_or_else(|_| "swav".to_owned())
}

/// A path as it is typed in a shell: quoted where it has more than letters, digits and `/._-`.
pub(crate) fn typed(path: &std::path::Path) -> String {
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%=,~".contains(c);
    match !path.is_empty() && path.chars().all(plain) {
        true => path.into_owned(),
        false => format!("'{}'", path.replace('\'', "'\\''")),
    }
}

/// Reads a value by the name that it has in configuration files, such as `swav` for a preset or `train` for a split.
///
/// ```
/// assert_eq!(swav_cli::named::<swav_data::Split>("val"), Ok(swav_data::Split::Val));
/// assert!(swav_cli::named::<swav_data::Split>("vla").is_err());
/// ```
///
/// # Errors
/// A sentence that lists the known names.
pub fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    let name: StrDeserializer<'_, Error> = name.into_deserializer();
    T::deserialize(name).map_err(|error| error.to_string())
}
