//! A value that lives on a thread of its own.
//!
//! dfdx's tape holds closures that may not change their thread, and its CUDA device may not either. So what is made
//! of them stays on one thread, and its owner, who may change threads, sends it work.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::JoinHandle;

use crate::EncoderError;

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// Sends work to the thread where a `T` lives, and waits for its result. The thread ends when this is dropped.
pub(super) struct Worker<T> {
    /// `None` only while it is dropped.
    jobs: Option<Sender<Job<T>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: 'static> Worker<T> {
    /// Makes the value on a new thread.
    pub(super) fn start(
        make: impl FnOnce() -> Result<T, EncoderError> + Send + 'static,
    ) -> Result<Self, EncoderError> {
        let (jobs, queue) = channel::<Job<T>>();
        let (made, is_made) = sync_channel(1);
        let thread = std::thread::Builder::new().name("encoder".into()).spawn(move || {
            let mut value = match make() {
                Ok(value) => value,
                Err(error) => return drop(made.send(Err(error))),
            };
            drop(made.send(Ok(())));
            queue.into_iter().for_each(|job| job(&mut value));
        });
        let thread = thread.map_err(|error| EncoderError::Own(Box::new(error)))?;
        match is_made.recv() {
            Ok(Ok(())) => Ok(Self { jobs: Some(jobs), thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(_) => resume_unwind(ended(thread)),
        }
    }

    /// Runs a job on the thread and returns what it returns. A panic in the job goes on here.
    pub(super) fn run<R: Send + 'static>(&self, job: impl FnOnce(&mut T) -> R + Send + 'static) -> R {
        let (result, has_ended) = sync_channel(1);
        let job: Job<T> = Box::new(move |value| {
            drop(result.send(catch_unwind(AssertUnwindSafe(|| job(value)))));
        });
        let jobs = self.jobs.as_ref().expect("jobs are taken when this is dropped");
        jobs.send(job).expect("the thread runs as long as jobs can be sent");
        match has_ended.recv().expect("every job sends its result") {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It has caught the panics of its jobs.
            drop(thread.join());
        }
    }
}

/// Why a thread ended before it could say anything.
fn ended(thread: JoinHandle<()>) -> Box<dyn Any + Send> {
    match thread.join() {
        Ok(()) => Box::new("a thread ended without a result"),
        Err(panic) => panic,
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    /// An `Rc` may not change its thread; its owner here may.
    #[test]
    fn the_value_stays_where_it_is_made() {
        let worker = Worker::start(|| Ok(Rc::new(20))).unwrap();
        let worker = std::thread::spawn(move || {
            worker.run(|value| *Rc::get_mut(value).unwrap() += 1);
            worker
        });
        assert_eq!(worker.join().unwrap().run(|value| **value), 21);
    }

    #[test]
    fn failures_and_panics_come_back() {
        let failed = Worker::<()>::start(|| Err(EncoderError::NoForward));
        assert!(matches!(failed, Err(EncoderError::NoForward)));
        let worker = Worker::start(|| Ok(1)).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| worker.run(|_| panic!("in a job"))));
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"in a job"));
        assert_eq!(worker.run(|value| *value), 1, "the value is still there");
    }
}
