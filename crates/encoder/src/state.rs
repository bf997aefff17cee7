//! Named host tensors: how weights, statistics and optimiser state leave and enter an encoder.

use std::collections::BTreeMap;

use crate::EncoderError;

/// A tensor on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl StateTensor {
    /// A tensor of this shape; an empty shape is a scalar.
    ///
    /// # Errors
    /// [`EncoderError::TensorLength`] if the number of values is not the product of the shape.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Result<Self, EncoderError> {
        let expected = shape.iter().product();
        if expected == data.len() {
            Ok(Self { shape, data })
        } else {
            Err(EncoderError::TensorLength { shape, expected, got: data.len() })
        }
    }

    /// A tensor without dimensions.
    pub fn scalar(value: f32) -> Self {
        Self { shape: Vec::new(), data: vec![value] }
    }

    /// The lengths of the dimensions; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values, row-major.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Gives the values away.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }
}

/// Tensors by name, in the order of their names.
///
/// Names and layouts are those of the SwAV reference and of torchvision: `conv1.weight` in OIHW,
/// `layer1.0.downsample.0.weight`, `bn1.running_mean`, `projection_head.3.bias`. `num_batches_tracked` is a
/// scalar here (exact up to 2^24), where PyTorch stores an integer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateDict {
    tensors: BTreeMap<String, StateTensor>,
}

impl StateDict {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor and gives back the one that had this name before.
    pub fn insert(&mut self, name: impl Into<String>, tensor: StateTensor) -> Option<StateTensor> {
        self.tensors.insert(name.into(), tensor)
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&StateTensor> {
        self.tensors.get(name)
    }

    /// Takes the tensor of this name out.
    pub fn remove(&mut self, name: &str) -> Option<StateTensor> {
        self.tensors.remove(name)
    }

    /// Names and tensors, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &StateTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor of this name, if it has this shape.
    ///
    /// # Errors
    /// [`EncoderError::Missing`] or [`EncoderError::StateShape`].
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<&StateTensor, EncoderError> {
        let tensor = self.get(name).ok_or_else(|| EncoderError::Missing { name: name.to_owned() })?;
        if tensor.shape() == shape {
            Ok(tensor)
        } else {
            Err(EncoderError::StateShape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                got: tensor.shape().to_vec(),
            })
        }
    }
}

impl IntoIterator for StateDict {
    type Item = (String, StateTensor);
    type IntoIter = std::collections::btree_map::IntoIter<String, StateTensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}

impl FromIterator<(String, StateTensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, StateTensor)>>(tensors: I) -> Self {
        Self { tensors: tensors.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_checks_its_length() {
        assert!(matches!(
            StateTensor::new(vec![2, 3], vec![0.0; 5]),
            Err(EncoderError::TensorLength { expected: 6, got: 5, .. })
        ));
        assert_eq!(StateTensor::new(vec![], vec![3.0]).unwrap(), StateTensor::scalar(3.0));
    }

    #[test]
    fn expect_names_what_is_wrong() {
        let mut state = StateDict::new();
        state.insert("bn1.weight", StateTensor::new(vec![4], vec![1.0; 4]).unwrap());
        assert!(state.expect("bn1.weight", &[4]).is_ok());
        assert!(matches!(
            state.expect("bn1.weight", &[8]),
            Err(EncoderError::StateShape { name, .. }) if name == "bn1.weight"
        ));
        assert!(matches!(state.expect("bn1.bias", &[4]), Err(EncoderError::Missing { .. })));
    }
}
