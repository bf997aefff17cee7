//! The threads that a step uses.

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::TrainError;

/// A pool of `n_threads` threads (0: one for each core), to [`install`](ThreadPool::install) a computation into.
///
/// A loop whose thread is outside of any pool sleeps through each of its parallel regions and is woken after it, so a
/// training loop had better run inside of one.
///
/// # Errors
/// [`TrainError::Threads`] if the system gives no threads.
pub fn thread_pool(n_threads: usize) -> Result<ThreadPool, TrainError> {
    let builder = ThreadPoolBuilder::new().num_threads(n_threads);
    builder.build().map_err(|source| TrainError::Threads { n_threads, source })
}

/// Runs `work` in a pool of `n_threads` threads, or where it is if that is in a pool already.
pub(crate) fn in_pool<T: Send>(
    n_threads: usize,
    work: impl FnOnce() -> Result<T, TrainError> + Send,
) -> Result<T, TrainError> {
    if rayon::current_thread_index().is_some() {
        return work();
    }
    thread_pool(n_threads)?.install(work)
}
