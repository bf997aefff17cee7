//! From the value of a pickle to tensors by name: keys of nested dictionaries are joined by dots.

use std::collections::BTreeMap;

use super::{Machine, Object, TensorRef, Value};
use crate::WeightsError;

/// Dictionaries and lists within each other that are looked into.
const MAX_DEPTH: usize = 12;
/// Bytes of a name.
const MAX_NAME: usize = 1024;

/// All tensors that can be reached from `root`.
///
/// A pickle may contain itself, or the same dictionary many times; what is looked at more often than the pickle has
/// bytes is an error.
pub(crate) fn tensors(
    machine: &Machine<'_>,
    root: Value<'_>,
) -> Result<BTreeMap<String, TensorRef>, WeightsError> {
    let mut search = Search { machine, budget: 64 * machine.position() + 4096, found: BTreeMap::new() };
    search.visit(&mut String::new(), root, 0)?;
    Ok(search.found)
}

struct Search<'a, 'b> {
    machine: &'b Machine<'a>,
    /// What may still be spent on visits and names, in bytes.
    budget: usize,
    found: BTreeMap<String, TensorRef>,
}

impl Search<'_, '_> {
    fn visit(&mut self, name: &mut String, value: Value<'_>, depth: usize) -> Result<(), WeightsError> {
        let Value::Object(number) = value else { return Ok(()) };
        self.spend(1 + name.len())?;
        match &self.machine.objects[number] {
            Object::Tensor(tensor) => {
                self.found.insert(name.clone(), TensorRef::clone(tensor));
            }
            Object::Dict(entries) => {
                self.spend(entries.len())?;
                for &(key, value) in entries {
                    match key {
                        Value::Text(key) => self.below(name, key, value, depth)?,
                        Value::Int(key) => self.below(name, &key.to_string(), value, depth)?,
                        _ => {}
                    }
                }
            }
            Object::List(values) | Object::Tuple(values) => {
                self.spend(values.len())?;
                for (index, &value) in values.iter().enumerate() {
                    self.below(name, &index.to_string(), value, depth)?;
                }
            }
            Object::Storage(_) => {}
        }
        Ok(())
    }

    fn below(
        &mut self,
        name: &mut String,
        key: &str,
        value: Value<'_>,
        depth: usize,
    ) -> Result<(), WeightsError> {
        if !matches!(value, Value::Object(_)) {
            return Ok(());
        }
        if depth == MAX_DEPTH {
            let part = "pickle, in dictionaries within each other".to_owned();
            return Err(WeightsError::TooLarge { part, expected: MAX_DEPTH as u64, got: depth as u64 + 1 });
        }
        let len = name.len();
        if len + key.len() + 1 > MAX_NAME {
            let got = (len + key.len() + 1) as u64;
            let part = "pickle, in bytes of a name".to_owned();
            return Err(WeightsError::TooLarge { part, expected: MAX_NAME as u64, got });
        }
        if len > 0 {
            name.push('.');
        }
        name.push_str(key);
        let result = self.visit(name, value, depth + 1);
        name.truncate(len);
        result
    }

    fn spend(&mut self, cost: usize) -> Result<(), WeightsError> {
        let expected = 64 * self.machine.position() + 4096;
        self.budget = self.budget.checked_sub(cost).ok_or_else(|| WeightsError::TooLarge {
            part: "pickle, in bytes of names".to_owned(),
            expected: expected as u64,
            got: (expected + cost) as u64,
        })?;
        Ok(())
    }
}
