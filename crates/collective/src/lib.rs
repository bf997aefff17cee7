#![doc = include_str!("../README.md")]

mod error;
mod memory;
mod single;
mod vote;

pub use error::CollectiveError;
pub use memory::InMemory;
pub use single::Single;
pub use vote::{Decision, Vote};

/// A group of processes (or threads) that work on one problem together; each member is a *rank*.
///
/// Every rank makes the same calls in the same order with values of the same lengths, and gets the same bits back:
/// otherwise the ranks would decide differently, and drift apart or wait for each other for ever. Sums are added in
/// the order of the ranks, so they do not depend on who comes first.
///
/// A call returns when all ranks have made it. A rank that cannot go on calls [`abort`](Self::abort), or leaves its
/// failure for the next [`agree`](Self::agree); in either case the others learn of it and none waits for ever.
///
/// All methods take `&self`, so a collective is shared as `Arc<dyn Collective>` by the parts that talk. One thread
/// of a process calls it at a time.
pub trait Collective: Send + Sync {
    /// This process's number, from 0 to below [`world_size`](Self::world_size).
    fn rank(&self) -> usize;

    /// How many processes there are, at least 1.
    fn world_size(&self) -> usize;

    /// Replaces each element by its sum over all ranks, added in single precision in the order of the ranks.
    ///
    /// # Errors
    /// [`CollectiveError`], of which the group does not recover.
    fn sum_f32(&self, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// Replaces each element by its sum over all ranks, added in double precision in the order of the ranks.
    ///
    /// # Errors
    /// As [`sum_f32`](Self::sum_f32).
    fn sum_f64(&self, values: &mut [f64]) -> Result<(), CollectiveError>;

    /// Replaces each element by its maximum over all ranks. NaN counts as less than any number.
    ///
    /// # Errors
    /// As [`sum_f32`](Self::sum_f32).
    fn max_f64(&self, values: &mut [f64]) -> Result<(), CollectiveError>;

    /// Replaces the bytes of every rank by those of rank `root`; the lengths are equal on all ranks.
    ///
    /// # Errors
    /// As [`sum_f32`](Self::sum_f32); [`CollectiveError::Root`] if there is no such rank.
    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<(), CollectiveError>;

    /// The bytes of all ranks, in the order of the ranks. Lengths may differ.
    ///
    /// # Errors
    /// As [`sum_f32`](Self::sum_f32).
    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError>;

    /// Makes the calls of the other ranks, those under way too, return [`CollectiveError::Aborted`] with `reason`.
    ///
    /// For a failure after which this rank makes no more calls: whoever waits for it must not wait for ever.
    fn abort(&self, reason: &str);

    /// Asks all ranks whether to go on, and tells all of them the same.
    ///
    /// Any rank that has failed makes all of them fail, with the reason of the lowest such rank; else any rank that
    /// wants to stop makes all of them stop.
    ///
    /// # Errors
    /// As [`sum_f32`](Self::sum_f32). That a rank has failed is a [`Decision`], not an error.
    fn agree(&self, vote: Vote) -> Result<Decision, CollectiveError> {
        if self.world_size() == 1 {
            return Ok(Decision::of([vote]));
        }
        let votes = self.all_gather(&vote.to_bytes())?;
        Ok(Decision::of(votes.iter().map(|bytes| Vote::from_bytes(bytes))))
    }
}
