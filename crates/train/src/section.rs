//! Sections: what the parts of a run put into a checkpoint.

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Map, Value};
use swav_encoder::{StateDict, StateTensor};

/// Metadata entry of a section's values, when it travels between processes.
const VALUES: &str = "values";

/// What one part of a run remembers: tensors, and small values as JSON.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Section {
    /// Tensors by name.
    pub tensors: StateDict,
    /// Counts and the like, by name.
    pub values: Map<String, Value>,
}

impl Section {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty() && self.values.is_empty()
    }

    /// The section as bytes, to be sent to another process.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let values = Value::Object(self.values.clone()).to_string();
        let tensors = self.tensors.iter().map(|(name, tensor)| (name, Floats(tensor)));
        safetensors::serialize(tensors, Some(HashMap::from([(VALUES.to_owned(), values)])))
    }

    /// What [`to_bytes`](Self::to_bytes) wrote.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, safetensors::SafeTensorError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let values = metadata.metadata().as_ref().and_then(|entries| entries.get(VALUES));
        let values = values.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let tensors = SafeTensors::deserialize(bytes)?;
        let tensors = tensors.iter().filter_map(|(name, view)| Some((name.to_owned(), floats(&view)?)));
        Ok(Self { tensors: tensors.collect(), values })
    }
}

/// A tensor as safetensors wants to see it.
pub(crate) struct Floats<'a>(pub &'a StateTensor);

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(self.0.data()))
        } else {
            Cow::Owned(self.0.data().iter().flat_map(|value| value.to_le_bytes()).collect())
        }
    }

    fn data_len(&self) -> usize {
        size_of_val(self.0.data())
    }
}

/// The tensor of a view; `None` if it is not of 32-bit floats.
pub(crate) fn floats(view: &safetensors::tensor::TensorView<'_>) -> Option<StateTensor> {
    if view.dtype() != Dtype::F32 {
        return None;
    }
    let values = view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    StateTensor::new(view.shape().to_vec(), values).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_survives_the_way_to_another_process() {
        let mut section = Section::default();
        assert_eq!(Section::from_bytes(&section.to_bytes().unwrap()).unwrap(), section);
        section.tensors.insert("rows", StateTensor::new(vec![2, 1], vec![f32::MIN_POSITIVE, -0.0]).unwrap());
        section.values.insert("n".to_owned(), Value::from(7));
        assert_eq!(Section::from_bytes(&section.to_bytes().unwrap()).unwrap(), section);
    }
}
