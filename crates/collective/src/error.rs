//! Why ranks cannot talk to each other any more.

use std::time::Duration;

/// A failure of the group. No rank recovers from it: what the ranks hold may differ afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// A rank has given up, and said so.
    #[error("rank {rank} has failed: {reason}")]
    Aborted {
        /// Which.
        rank: usize,
        /// What it said.
        reason: String,
    },
    /// A rank has left while others need it.
    #[error("rank {rank} has left the group")]
    Gone {
        /// Which.
        rank: usize,
    },
    /// Ranks did not come within the time allowed.
    #[error("waited {waited:?} for ranks {missing:?}")]
    TimedOut {
        /// How long.
        waited: Duration,
        /// Ranks that have not made the call.
        missing: Vec<usize>,
    },
    /// Two ranks make different calls, or the same one with different lengths.
    #[error("ranks disagree on what they do: expected {expected} as on rank 0, got {got} on rank {rank}")]
    Disagreement {
        /// The rank that differs from rank 0.
        rank: usize,
        /// Rank 0's call.
        expected: String,
        /// This rank's call.
        got: String,
    },
    /// There is no such rank to broadcast from.
    #[error("rank {root} does not exist, there are {world_size}")]
    Root {
        /// The rank asked for.
        root: usize,
        /// How many there are.
        world_size: usize,
    },
    /// The transport of an implementation failed.
    #[error("the connection between ranks failed")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
}
