//! What is changed in a run that collapses, if the configuration wants that: `monitor.on_collapse = "remedy"`.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::TrainError;
use crate::health::Watch;
use crate::section::Section;

/// Factor of the learning rate at each remedy.
const RATE: f64 = 0.5;
/// Factor of epsilon, and where it ends: codes below this are single prototypes.
const SHARPEN: f64 = 0.6;
const MIN_EPSILON: f64 = 0.02;
/// A run that needs more of them is beyond help.
const MOST: u32 = 3;

/// The watch over a run and what has been done about what it saw. Part of the checkpoint where remedies are wanted, so
/// that a resumed run does the same at the same steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Care {
    pub(crate) watch: Watch,
    /// Whether the next epoch is to begin with a remedy.
    pub(crate) is_due: bool,
    n_done: u32,
    /// Factor of the schedule's learning rate.
    pub(crate) rate: f64,
    /// Epsilon in place of the configuration's.
    pub(crate) epsilon: Option<f64>,
}

impl Default for Care {
    fn default() -> Self {
        Self { watch: Watch::new(), is_due: false, n_done: 0, rate: 1.0, epsilon: None }
    }
}

impl Care {
    /// Another remedy for codes made with `epsilon`, if there are any left. Says what is changed.
    pub(crate) fn apply(&mut self, epsilon: f64) -> Option<String> {
        self.is_due = false;
        if self.n_done == MOST {
            return None;
        }
        self.n_done += 1;
        self.watch = Watch::new();
        self.rate *= RATE;
        let sharper = (epsilon * SHARPEN).max(MIN_EPSILON).min(epsilon);
        self.epsilon = (sharper < epsilon).then_some(sharper).or(self.epsilon);
        let codes = match sharper < epsilon {
            true => format!(", sinkhorn.epsilon {epsilon} becomes {sharper:.4}"),
            false => String::new(),
        };
        Some(format!(
            "remedy {} of {MOST}: the learning rate is {} of the schedule's{codes}",
            self.n_done, self.rate
        ))
    }

    /// As a section of the checkpoint.
    pub(crate) fn save(&self) -> Section {
        let mut section = Section::default();
        section.values.insert("care".to_owned(), json!(self));
        section
    }

    /// What [`save`](Self::save) wrote; a checkpoint without it has nothing to say.
    pub(crate) fn load(sections: &[Section]) -> Result<Self, TrainError> {
        let Some(value) = sections.first().and_then(|section| section.values.get("care")) else {
            return Ok(Self::default());
        };
        serde_json::from_value(value.clone())
            .map_err(|error| TrainError::section("watch", "the state of the watch", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_end_and_survive_a_checkpoint() {
        let mut care = Care::default();
        let said = care.apply(0.05).unwrap();
        assert!(said.contains("0.5") && said.contains("0.0300"), "{said}");
        assert_eq!((care.rate, care.epsilon), (0.5, Some(0.03)));
        assert_eq!(Care::load(&[care.save()]).unwrap(), care);
        assert!(care.apply(0.03).is_some() && care.apply(0.02).is_some() && care.apply(0.02).is_none());
        assert_eq!((care.rate, care.epsilon), (0.125, Some(0.02)));
        assert_eq!(Care::load(&[]).unwrap(), Care::default());
    }
}
