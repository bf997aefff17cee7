//! What training needs from processes that train together.

/// All-reduce among processes that each train on their part of every batch.
///
/// Sums of short double-precision vectors and maxima, for the codes, are [`swav_ot::Collective`]; this adds the
/// long single-precision sums of gradients. Every process has to make the same calls in the same order, and has
/// to get the same bits back.
pub trait Collective: swav_ot::Collective {
    /// Replaces each element by its sum over all processes, added in the order of their ranks.
    ///
    /// # Errors
    /// What the transport reports.
    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<(), swav_ot::CollectiveError>;

    /// This process's number, from 0.
    fn rank(&self) -> usize;

    /// How many processes train together, at least 1.
    fn world_size(&self) -> usize;
}

/// One process trains alone: every reduction leaves its values as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Single;

impl swav_ot::Collective for Single {
    fn sum(&mut self, _values: &mut [f64]) -> Result<(), swav_ot::CollectiveError> {
        Ok(())
    }

    fn max(&mut self, _values: &mut [f64]) -> Result<(), swav_ot::CollectiveError> {
        Ok(())
    }
}

impl Collective for Single {
    fn all_reduce_sum(&mut self, _values: &mut [f32]) -> Result<(), swav_ot::CollectiveError> {
        Ok(())
    }

    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }
}
