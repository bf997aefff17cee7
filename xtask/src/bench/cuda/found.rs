//! What a part brings back.

use serde_json::Value;

/// What a part has found.
#[derive(Debug, Default)]
pub struct Found {
    /// Its numbers, for the line of JSON.
    pub value: Value,
    /// What is wrong, a sentence each.
    pub wrong: Vec<String>,
    /// What there was no time for, a sentence each.
    pub left_out: Vec<String>,
}

impl From<Value> for Found {
    fn from(value: Value) -> Self {
        Self { value, ..Self::default() }
    }
}

impl Found {
    /// Numbers, and what is wrong with them.
    pub fn with_wrong(value: Value, wrong: Vec<String>) -> Self {
        Self { value, wrong, ..Self::default() }
    }
}

/// The outcome of a part.
pub type Result<T = Found> = anyhow::Result<T>;
