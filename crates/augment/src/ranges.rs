//! The ranges of what a recipe is made of besides its steps: crops, normalisation, the view for evaluation.

use crate::multicrop::CropGroup;
use crate::{AugmentError, CenterCrop, Normalize};

/// The largest crop side that a config may ask for.
const MAX_SIZE: usize = 4096;

impl CropGroup {
    /// Checks what [`MultiCrop`] relies on; `key` names the group in errors.
    pub(crate) fn check(&self, key: &str) -> Result<(), AugmentError> {
        let crop = &self.crop;
        let count = |name: &str, value: usize, max: usize, expected| {
            if (1..=max).contains(&value) {
                return Ok(());
            }
            Err(AugmentError::OutOfRange { key: format!("{key}.{name}"), expected, got: value.to_string() })
        };
        count("size", crop.size, MAX_SIZE, "between 1 and 4096")?;
        count("n_crops", self.n_crops, 1 << 16, "between 1 and 65536")?;
        let number = |name: &str, value, min, max, expected| {
            in_range(&format!("{key}.{name}"), value, min, max, expected)
        };
        number("max_scale", crop.max_scale, f32::MIN_POSITIVE, 1.0, "above 0 and at most 1")?;
        number(
            "min_scale",
            crop.min_scale,
            f32::MIN_POSITIVE,
            crop.max_scale,
            "above 0 and at most max_scale",
        )?;
        number("max_ratio", crop.max_ratio, 1e-3, 1e3, "between 1/1000 and 1000")?;
        number("min_ratio", crop.min_ratio, 1e-3, crop.max_ratio, "between 1/1000 and max_ratio")
    }
}

impl Normalize {
    /// Checks that the numbers are finite and the deviations above 0.
    ///
    /// # Errors
    /// [`AugmentError::OutOfRange`].
    pub fn check(&self) -> Result<(), AugmentError> {
        for (mean, std) in self.mean.into_iter().zip(self.std) {
            in_range("normalize.mean", mean, -1e3, 1e3, "between -1000 and 1000")?;
            in_range("normalize.std", std, 1e-6, 1e6, "between 1e-6 and 1e6")?;
        }
        Ok(())
    }
}

impl CenterCrop {
    /// Checks that the crop is not empty and not larger than the resized image.
    ///
    /// # Errors
    /// [`AugmentError::OutOfRange`].
    pub fn check(&self) -> Result<(), AugmentError> {
        let out_of_range = |key: &str, expected, value: usize| {
            Err(AugmentError::OutOfRange { key: key.to_owned(), expected, got: value.to_string() })
        };
        if !(1..=MAX_SIZE).contains(&self.resize) {
            return out_of_range("resize", "between 1 and 4096", self.resize);
        }
        if !(1..=self.resize).contains(&self.size) {
            return out_of_range("size", "between 1 and resize", self.size);
        }
        Ok(())
    }
}

/// Refuses also what is not a number.
pub(crate) fn in_range(
    key: &str,
    value: f32,
    min: f32,
    max: f32,
    expected: &'static str,
) -> Result<(), AugmentError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(AugmentError::OutOfRange { key: key.to_owned(), expected, got: value.to_string() })
}
