//! Ranks that are threads of one process, for tests and small experiments.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Collective, CollectiveError};

/// How long a rank waits for the others unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One rank of a group of threads that talk through memory.
///
/// A rank that is dropped (a thread that panics drops its own) or that [aborts](Collective::abort) makes the calls
/// of the others fail at once; one that stays away makes them fail after the [time-out](Self::with_timeout).
///
/// ```
/// use swav_collective::{Collective, InMemory};
///
/// let sums: Vec<f32> = std::thread::scope(|scope| {
///     let ranks = InMemory::group(3).into_iter().map(|rank| {
///         scope.spawn(move || {
///             let mut values = [rank.rank() as f32 + 1.0];
///             rank.sum_f32(&mut values).map(|()| values[0])
///         })
///     });
///     let ranks: Vec<_> = ranks.collect();
///     ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Result<_, _>>()
/// })?;
/// assert_eq!(sums, [6.0, 6.0, 6.0]);
/// # Ok::<(), swav_collective::CollectiveError>(())
/// ```
#[derive(Debug)]
pub struct InMemory {
    rank: usize,
    timeout: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world_size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Calls that each rank has made.
    n_calls: Vec<u64>,
    /// By the number of the call: those that not all ranks have taken the result of.
    rounds: BTreeMap<u64, Round>,
    /// Ranks that were dropped.
    gone: Vec<bool>,
    failure: Option<Failure>,
}

/// One call of all ranks.
#[derive(Debug)]
struct Round {
    given: Vec<Option<Given>>,
    /// What all have given, once all have.
    complete: Option<Arc<Vec<Given>>>,
    n_taken: usize,
}

/// What a rank brings to a call.
#[derive(Debug, Clone, PartialEq)]
struct Given {
    operation: Operation,
    values: Values,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Sum,
    Max,
    Broadcast { root: usize },
    Gather,
}

#[derive(Debug, Clone, PartialEq)]
enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes(Vec<u8>),
}

/// Why the whole group has failed; every later call of any rank reports it.
#[derive(Debug, Clone)]
enum Failure {
    Aborted { rank: usize, reason: String },
    TimedOut { waited: Duration, missing: Vec<usize> },
}

impl From<Failure> for CollectiveError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Aborted { rank, reason } => Self::Aborted { rank, reason },
            Failure::TimedOut { waited, missing } => Self::TimedOut { waited, missing },
        }
    }
}

impl InMemory {
    /// A group of `world_size` ranks, one to be moved to each thread; none for 0.
    pub fn group(world_size: usize) -> Vec<Self> {
        let state = State {
            n_calls: vec![0; world_size],
            rounds: BTreeMap::new(),
            gone: vec![false; world_size],
            failure: None,
        };
        let shared = Arc::new(Shared { world_size, state: Mutex::new(state), changed: Condvar::new() });
        (0..world_size).map(|rank| Self { rank, timeout: TIMEOUT, shared: shared.clone() }).collect()
    }

    /// Changes how long this rank waits for the others before the group fails. Default: a minute.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What all ranks give to this call, in the order of the ranks.
    fn exchange(&self, operation: Operation, values: Values) -> Result<Arc<Vec<Given>>, CollectiveError> {
        let begun = Instant::now();
        let world_size = self.shared.world_size;
        let mut state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone().into());
        }
        let call = state.n_calls[self.rank];
        state.n_calls[self.rank] += 1;
        let round = state.rounds.entry(call).or_insert_with(|| Round::new(world_size));
        round.give(self.rank, Given { operation, values });
        self.shared.changed.notify_all();
        loop {
            let round = state.rounds.get_mut(&call).expect("a round stays until all ranks have taken it");
            if let Some(complete) = round.complete.clone() {
                round.n_taken += 1;
                if round.n_taken == world_size {
                    state.rounds.remove(&call);
                }
                drop(state);
                return agreeing(&complete).map(|()| complete);
            }
            let missing = round.missing();
            if let Some(failure) = &state.failure {
                return Err(failure.clone().into());
            }
            if let Some(&rank) = missing.iter().find(|&&rank| state.gone[rank]) {
                return Err(CollectiveError::Gone { rank });
            }
            let waited = begun.elapsed();
            if waited >= self.timeout {
                let failure = Failure::TimedOut { waited, missing };
                state.failure = Some(failure.clone());
                self.shared.changed.notify_all();
                return Err(failure.into());
            }
            let wait = self.shared.changed.wait_timeout(state, self.timeout - waited);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// No code panics with the lock held, and if some did, the counts would still be those of the calls made.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Round {
    fn new(world_size: usize) -> Self {
        Self { given: vec![None; world_size], complete: None, n_taken: 0 }
    }

    fn give(&mut self, rank: usize, given: Given) {
        self.given[rank] = Some(given);
        if self.given.iter().all(Option::is_some) {
            self.complete = Some(Arc::new(self.given.drain(..).flatten().collect()));
        }
    }

    fn missing(&self) -> Vec<usize> {
        (0..self.given.len()).filter(|&rank| self.given[rank].is_none()).collect()
    }
}

/// Refuses calls that differ from rank 0's.
fn agreeing(given: &[Given]) -> Result<(), CollectiveError> {
    let expected = given[0].to_string();
    let differs = given.iter().map(Given::to_string).enumerate().find(|(_, got)| *got != expected);
    differs.map_or(Ok(()), |(rank, got)| Err(CollectiveError::Disagreement { rank, expected, got }))
}

/// The call with what has to be equal on all ranks: kind, type and, but for a gather, length.
impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, length) = match &self.values {
            Values::F32(values) => ("f32", values.len()),
            Values::F64(values) => ("f64", values.len()),
            Values::Bytes(values) => ("bytes", values.len()),
        };
        match self.operation {
            Operation::Sum => write!(f, "a sum of {length} {kind}"),
            Operation::Max => write!(f, "a maximum of {length} {kind}"),
            Operation::Broadcast { root } => write!(f, "a broadcast of {length} {kind} from rank {root}"),
            Operation::Gather => write!(f, "a gather of {kind}"),
        }
    }
}

impl Collective for InMemory {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.shared.world_size
    }

    fn sum_f32(&self, values: &mut [f32]) -> Result<(), CollectiveError> {
        let given = self.exchange(Operation::Sum, Values::F32(values.to_vec()))?;
        combine(values, given.iter().filter_map(Given::f32), |sum, value| sum + value);
        Ok(())
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<(), CollectiveError> {
        let given = self.exchange(Operation::Sum, Values::F64(values.to_vec()))?;
        combine(values, given.iter().filter_map(Given::f64), |sum, value| sum + value);
        Ok(())
    }

    fn max_f64(&self, values: &mut [f64]) -> Result<(), CollectiveError> {
        let given = self.exchange(Operation::Max, Values::F64(values.to_vec()))?;
        combine(values, given.iter().filter_map(Given::f64), f64::max);
        Ok(())
    }

    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<(), CollectiveError> {
        if root >= self.world_size() {
            return Err(CollectiveError::Root { root, world_size: self.world_size() });
        }
        let given = self.exchange(Operation::Broadcast { root }, Values::Bytes(bytes.to_vec()))?;
        bytes.copy_from_slice(given[root].bytes().unwrap_or_default());
        Ok(())
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let given = self.exchange(Operation::Gather, Values::Bytes(bytes.to_vec()))?;
        Ok(given.iter().filter_map(Given::bytes).map(<[u8]>::to_vec).collect())
    }

    fn abort(&self, reason: &str) {
        let failure = Failure::Aborted { rank: self.rank, reason: reason.to_owned() };
        self.lock().failure.get_or_insert(failure);
        self.shared.changed.notify_all();
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        self.lock().gone[self.rank] = true;
        self.shared.changed.notify_all();
    }
}

/// Folds the vectors of all ranks, in their order, into `values`.
fn combine<'a, T: Copy + 'a>(
    values: &mut [T],
    mut given: impl Iterator<Item = &'a [T]>,
    join: impl Fn(T, T) -> T,
) {
    if let Some(first) = given.next() {
        values.copy_from_slice(first);
    }
    for other in given {
        for (value, &other) in values.iter_mut().zip(other) {
            *value = join(*value, other);
        }
    }
}

impl Given {
    fn f32(&self) -> Option<&[f32]> {
        if let Values::F32(values) = &self.values { Some(values) } else { None }
    }

    fn f64(&self) -> Option<&[f64]> {
        if let Values::F64(values) = &self.values { Some(values) } else { None }
    }

    fn bytes(&self) -> Option<&[u8]> {
        if let Values::Bytes(values) = &self.values { Some(values) } else { None }
    }
}
