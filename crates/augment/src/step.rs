//! What a config asks of a step, so that a new one is its own file and a line in the table of [`MultiCropConfig`].
//!
//! [`MultiCropConfig`]: crate::MultiCropConfig

use std::ops::RangeInclusive;

use crate::ranges::in_range;
use crate::{AugmentError, Pipeline};

/// A field of a step, and the values that it may have.
pub(crate) struct Bound {
    field: &'static str,
    value: f32,
    range: RangeInclusive<f32>,
    expected: &'static str,
}

impl Bound {
    pub(crate) fn new(
        field: &'static str,
        value: f32,
        range: RangeInclusive<f32>,
        expected: &'static str,
    ) -> Self {
        Self { field, value, range, expected }
    }
}

/// A step that a config can hold.
pub(crate) trait ConfigStep: Copy {
    /// How often it happens, 0 to 1.
    fn probability(&self) -> f32;

    /// Its other fields, in the order in which they are checked.
    fn bounds(&self) -> Vec<Bound> {
        Vec::new()
    }

    /// The feature that has it, if this build leaves it out.
    fn missing_feature(&self) -> Option<&'static str> {
        None
    }

    /// Checks all fields; `key` names the step in errors.
    fn check(&self, key: &str) -> Result<(), AugmentError> {
        let probability = Bound::new("probability", self.probability(), 0.0..=1.0, "between 0 and 1");
        for Bound { field, value, range, expected } in std::iter::once(probability).chain(self.bounds()) {
            in_range(&format!("{key}.{field}"), value, *range.start(), *range.end(), expected)?;
        }
        match self.missing_feature() {
            Some(feature) if self.probability() > 0.0 => Err(AugmentError::NotBuilt {
                key: format!("{key}.probability"),
                feature,
                got: self.probability(),
            }),
            _ => Ok(()),
        }
    }

    /// Appends it to a pipeline.
    fn add_to(self, pipeline: Pipeline) -> Pipeline;
}
