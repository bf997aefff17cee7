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

/// Makes the current thread, and what it asks of rayon, part of a pool of `n_threads` (0: one a core), for the rest of
/// its life. A thread that is in a pool already stays there.
///
/// # Errors
/// [`TrainError::Threads`] if the system gives no threads.
pub fn join_pool(n_threads: usize) -> Result<(), TrainError> {
    if rayon::current_thread_index().is_some() {
        return Ok(());
    }
    let builder = ThreadPoolBuilder::new().num_threads(n_threads).use_current_thread();
    let pool = builder.build().map_err(|source| TrainError::Threads { n_threads, source })?;
    // The current thread keeps working in the pool after this function.
    std::mem::forget(pool);
    Ok(())
}
