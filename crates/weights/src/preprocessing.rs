//! How images are shown to a network. It lies beside the weights, so that nobody has to guess.

use serde::{Deserialize, Serialize};
use swav_augment::{CenterCrop, EvalView, Normalize};

use crate::{Metadata, WeightsError};

/// Resize, crop and normalisation of images: the shorter side is resized (antialiased, bilinear), the centre is cut out,
/// and `x = (v / 255 - mean) / std` for each colour.
///
/// In a safetensors file it is JSON in the metadata entry [`Preprocessing::KEY`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// Pixels of the shorter side after resizing.
    pub resize: usize,
    /// Side of the crop in pixels, at most `resize`.
    pub size: usize,
    /// Means of red, green and blue, on a scale from 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviations on the same scale, above 0.
    pub std: [f32; 3],
}

impl Default for Preprocessing {
    /// That of ImageNet: shorter side 256, crop 224, the SwAV reference's normalisation.
    fn default() -> Self {
        Self::new(CenterCrop::default(), Normalize::default())
    }
}

impl Preprocessing {
    /// The metadata entry.
    pub const KEY: &'static str = "preprocessing";

    /// Of a crop and a normalisation.
    pub fn new(crop: CenterCrop, normalize: Normalize) -> Self {
        Self { resize: crop.resize, size: crop.size, mean: normalize.mean, std: normalize.std }
    }

    /// The view of images that it describes.
    ///
    /// # Errors
    /// [`WeightsError::Preprocessing`] for sizes or deviations out of range.
    pub fn view(&self) -> Result<EvalView, WeightsError> {
        let Self { resize, size, mean, std } = *self;
        EvalView::new(CenterCrop { resize, size }, Normalize { mean, std }).map_err(|error| {
            WeightsError::Preprocessing { expected: "a view of images".to_owned(), got: error.to_string() }
        })
    }

    /// Adds it to the metadata of a file.
    pub fn enter(&self, metadata: &mut Metadata) {
        let json = serde_json::to_string(self).expect("numbers are JSON");
        metadata.insert(Self::KEY.to_owned(), json);
    }

    /// The one of a file's metadata, if it has any.
    ///
    /// # Errors
    /// [`WeightsError::Preprocessing`] if it makes no sense.
    pub fn of_metadata(metadata: &Metadata) -> Result<Option<Self>, WeightsError> {
        let Some(text) = metadata.get(Self::KEY) else { return Ok(None) };
        let read: Self = serde_json::from_str(text).map_err(|error| WeightsError::Preprocessing {
            expected: "resize, size, mean and std".to_owned(),
            got: error.to_string(),
        })?;
        read.view()?;
        Ok(Some(read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_the_metadata_of_a_file() {
        let preprocessing =
            Preprocessing { resize: 40, size: 32, mean: [0.1, 0.2, 0.3], ..Preprocessing::default() };
        let mut metadata = Metadata::new();
        assert_eq!(Preprocessing::of_metadata(&metadata).unwrap(), None);
        preprocessing.enter(&mut metadata);
        assert_eq!(Preprocessing::of_metadata(&metadata).unwrap(), Some(preprocessing));
        let senseless = Preprocessing { size: 0, ..preprocessing };
        senseless.enter(&mut metadata);
        assert!(matches!(Preprocessing::of_metadata(&metadata), Err(WeightsError::Preprocessing { .. })));
    }
}
