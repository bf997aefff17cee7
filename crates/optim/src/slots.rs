//! What an optimiser keeps beside a parameter.

/// What an optimiser keeps beside one parameter. Empty until the first update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slots {
    /// Momentum (LARC, SGD) or the mean of gradients (AdamW).
    pub first: Vec<f32>,
    /// The mean of squared gradients (AdamW only).
    pub second: Vec<f32>,
    /// The number of updates so far.
    pub n_updates: u64,
}

impl Slots {
    /// The vectors that are in use, with their names: `first`, then `second` for AdamW; none before the first update.
    pub fn vectors(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        let all = [("first", self.first.as_slice()), ("second", self.second.as_slice())];
        all.into_iter().filter(|(_, values)| self.n_updates > 0 && !values.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_vectors_in_use_are_named() {
        let mut slots = Slots::default();
        assert_eq!(slots.vectors().count(), 0);
        slots.n_updates = 1;
        slots.first = vec![1.0];
        assert_eq!(slots.vectors().collect::<Vec<_>>(), [("first", &[1.0f32][..])]);
        slots.second = vec![2.0];
        assert_eq!(slots.vectors().map(|(name, _)| name).collect::<Vec<_>>(), ["first", "second"]);
    }
}
