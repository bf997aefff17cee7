//! The threads that a step uses.

use crate::TrainError;

/// Makes the current thread, and what it asks of rayon, part of a pool of `n_threads` (0: one a core), for the rest of
/// its life. A thread that is in a pool already stays there.
///
/// A thread outside sleeps through each of rayon's parallel regions and is woken after it.
/// `ThreadPool::install` would move the loop to another thread, which encoders need not allow.
///
/// # Errors
/// [`TrainError::Threads`] if the system gives no threads.
pub fn join_pool(n_threads: usize) -> Result<(), TrainError> {
    if rayon::current_thread_index().is_some() {
        return Ok(());
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(n_threads)
        .use_current_thread()
        .build()
        .map_err(|error| TrainError::Threads { n_threads, message: error.to_string() })?;
    // The current thread keeps working in the pool after this function.
    std::mem::forget(pool);
    Ok(())
}
