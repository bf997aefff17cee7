//! Names: of the program in help and hints, and of values as configuration files write them.

use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};

/// The environment variable that says what the program is called in help and hints, if not `swav`.
pub const PROGRAM_VARIABLE: &str = "SWAV_PROGRAM";

/// What a user types to start this program: `swav`, or what [`PROGRAM_VARIABLE`] says.
pub fn program() -> String {
    std::env::var(PROGRAM_VARIABLE).unwrap_or_else(|_| "swav".to_owned())
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
