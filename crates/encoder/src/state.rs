//! Named host tensors: how weights, statistics and optimiser state leave and enter an encoder.

use std::collections::BTreeMap;

use swav_optim::Slots;

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

/// The suffix of an optimiser's count of updates; those of its vectors are `first` and `second`.
const UPDATES: &str = "n_updates";

/// What [`Slots`] are called in a state.
impl StateDict {
    /// Adds what an optimiser remembers of the parameter `name`: `NAME.first`, `NAME.second` (if used) and
    /// `NAME.n_updates`; nothing before the first update.
    ///
    /// # Panics
    /// If a slot has another length than the shape.
    pub fn insert_slots(&mut self, name: &str, shape: &[usize], slots: &Slots) {
        if slots.n_updates == 0 {
            return;
        }
        for (slot, values) in slots.vectors() {
            let tensor = StateTensor::new(shape.to_vec(), values.to_vec());
            self.insert(format!("{name}.{slot}"), tensor.expect("slots have their parameter's length"));
        }
        // Two parts of 24 bits, since an f32 counts exactly only up to 2^24.
        let parts = [(slots.n_updates >> 24) as f32, (slots.n_updates & 0xff_ffff) as f32];
        let count = StateTensor::new(vec![2], parts.to_vec()).expect("two values");
        self.insert(format!("{name}.{UPDATES}"), count);
    }

    /// Reads what [`StateDict::insert_slots`] added; empty slots where there are none for this parameter.
    ///
    /// # Errors
    /// [`EncoderError::StateShape`] or [`EncoderError::Missing`] if the state is of another parameter.
    pub fn slots(&self, name: &str, shape: &[usize]) -> Result<Slots, EncoderError> {
        let key = format!("{name}.{UPDATES}");
        if self.get(&key).is_none() {
            return Ok(Slots::default());
        }
        let parts = self.expect(&key, &[2])?.data();
        let n_updates = ((parts[0] as u64) << 24) + parts[1] as u64;
        let first = self.expect(&format!("{name}.first"), shape)?.data().to_vec();
        let key = format!("{name}.second");
        let second = match self.get(&key) {
            Some(_) => self.expect(&key, shape)?.data().to_vec(),
            None => Vec::new(),
        };
        Ok(Slots { first, second, n_updates })
    }

    /// The first name that [`StateDict::insert_slots`] does not give to a slot of one of these parameters.
    pub(crate) fn foreign_slot<'a>(&self, parameters: impl Iterator<Item = &'a str> + Clone) -> Option<&str> {
        let known = |name: &str| {
            name.rsplit_once('.').is_some_and(|(parameter, slot)| {
                ["first", "second", UPDATES].contains(&slot)
                    && parameters.clone().any(|known| known == parameter)
            })
        };
        self.tensors.keys().map(String::as_str).find(|name| !known(name))
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
    fn slots_survive_a_state() {
        let slots = Slots { first: vec![1.0, 2.0], second: vec![3.0, 4.0], n_updates: (5 << 24) + 7 };
        let mut state = StateDict::new();
        state.insert_slots("w", &[2, 1], &slots);
        assert_eq!(state.slots("w", &[2, 1]).unwrap(), slots);
        assert_eq!(state.slots("other", &[2]).unwrap(), Slots::default());
        assert!(matches!(state.slots("w", &[3]), Err(EncoderError::StateShape { .. })));
        assert_eq!(state.foreign_slot(["w"].into_iter()), None);
        assert_eq!(state.foreign_slot(["v"].into_iter()), Some("w.first"));
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
