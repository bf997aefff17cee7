//! The record of an evaluation, as a file keeps it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Estimate;

/// An evaluation: what was measured, of what, and how.
///
/// ```
/// use swav_eval::{Estimate, Record};
///
/// let mut record = Record::new("knn", 1200, 0).with("k", 20);
/// record.add("accuracy", "trained network", Estimate { value: 0.86, low: 0.85, high: 0.87 }, 10_000);
/// let text = serde_json::to_string(&record)?;
/// assert_eq!(serde_json::from_str::<Record>(&text)?, record);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The kind of evaluation: `knn`, `linear`, `finetune`, `cluster`, `retrieval`.
    pub evaluation: String,
    /// Training steps that the network had done.
    pub step: u64,
    /// Seed of all that was drawn: subsets, hold-outs, the bootstrap.
    pub seed: u64,
    /// Everything else that the numbers depend on.
    #[serde(default)]
    pub settings: BTreeMap<String, Value>,
    /// The numbers.
    pub results: Vec<Measurement>,
    /// When it was done, in UTC: `2026-03-01T12:00:00Z`.
    pub date: String,
}

/// One number of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What was measured: `accuracy`, `nmi`, `recall@1`.
    pub name: String,
    /// Of what: `trained network`, `untrained network`, `raw pixels`.
    pub of: String,
    /// The number, and the range of 95% of the bootstrap's draws.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Images that it was measured on.
    pub n: usize,
}

impl Record {
    /// A record without numbers, of now.
    pub fn new(evaluation: impl Into<String>, step: u64, seed: u64) -> Self {
        let (settings, results) = (BTreeMap::new(), Vec::new());
        Self { evaluation: evaluation.into(), step, seed, settings, results, date: utc(SystemTime::now()) }
    }

    /// The same with a setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.settings.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a number.
    pub fn add(&mut self, name: impl Into<String>, of: impl Into<String>, estimate: Estimate, n: usize) {
        self.results.push(Measurement { name: name.into(), of: of.into(), estimate, n });
    }

    /// The first number of this name and of this subject.
    pub fn find(&self, name: &str, of: &str) -> Option<&Measurement> {
        self.results.iter().find(|result| result.name == name && result.of == of)
    }
}

/// A moment in UTC, to the second.
fn utc(moment: SystemTime) -> String {
    // A clock before 1970 only spoils the date.
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their leap day at the end; 400 of them have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day + 2) / 153;
    let day = day - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_709_251_200), "2024-03-01T00:00:00Z");
        assert_eq!(at(4_102_444_799), "2099-12-31T23:59:59Z");
    }

    #[test]
    fn a_record_is_flat_json() {
        let mut record = Record::new("knn", 3, 1).with("k", 20).with("temperature", 0.07);
        record.add("accuracy", "raw pixels", Estimate { value: 0.5, low: 0.25, high: 0.75 }, 4);
        record.date = "2026-01-01T00:00:00Z".to_owned();
        let expected = r#"{"evaluation":"knn","step":3,"seed":1,"settings":{"k":20,"temperature":0.07},"results":[{"name":"accuracy","of":"raw pixels","value":0.5,"low":0.25,"high":0.75,"n":4}],"date":"2026-01-01T00:00:00Z"}"#;
        assert_eq!(serde_json::to_string(&record).unwrap(), expected);
        assert_eq!(record.find("accuracy", "raw pixels"), Some(&record.results[0]));
    }
}
