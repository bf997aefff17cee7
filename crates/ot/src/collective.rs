//! What a sharded solve needs from the processes that share it.

/// The error of a caller's all-reduce.
pub type CollectiveError = Box<dyn std::error::Error + Send + Sync>;

/// All-reduce among the processes that hold the shards of one problem.
///
/// Every process must make the same calls in the same order, and must get the same bits back: otherwise the
/// processes would disagree on when to stop. Sums are double precision for `f32` problems too. The vectors are
/// short (about one number per row of the shared side), so latency matters more than bandwidth.
pub trait Collective {
    /// Replaces each element by its sum over all processes.
    fn sum(&mut self, values: &mut [f64]) -> Result<(), CollectiveError>;

    /// Replaces each element by its maximum over all processes.
    fn max(&mut self, values: &mut [f64]) -> Result<(), CollectiveError>;
}

/// One process holds everything: both reductions leave their values as they are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Alone;

impl Collective for Alone {
    fn sum(&mut self, _values: &mut [f64]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn max(&mut self, _values: &mut [f64]) -> Result<(), CollectiveError> {
        Ok(())
    }
}

impl<C: Collective + ?Sized> Collective for &mut C {
    fn sum(&mut self, values: &mut [f64]) -> Result<(), CollectiveError> {
        (**self).sum(values)
    }

    fn max(&mut self, values: &mut [f64]) -> Result<(), CollectiveError> {
        (**self).max(values)
    }
}
