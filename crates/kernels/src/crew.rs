//! Threads that stay awake from one parallel region to the next.
//!
//! A training step is some hundred parallel regions, many shorter than a millisecond, with short serial pieces between
//! them. Rayon's threads fall asleep during those pieces, and the thread that started a region falls asleep at its end
//! while others finish. To wake one takes 20 µs, and up to a millisecond where a hypervisor has taken the idle core away:
//! together 3% to 8% of a step on two virtual cores. So a thread that starts a region asks rayon for helpers only once;
//! they wait for its next regions in a loop, for [`AWAKE`] at most. In that time they also do whatever else rayon has.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::work::part;

/// How long helpers stay awake after a region.
const AWAKE: Duration = Duration::from_millis(2);

/// Looks at the region before a waiting thread lets others run.
const LOOKS: usize = 64;

/// Most parts into which a region's tasks are cut, each of which a thread works on from its beginning.
const PARTS: usize = 32;

/// Runs `task(0..n)` on the threads of the current rayon pool, this one among them. Each thread takes neighbouring tasks
/// in the given order, and then what others have left: neighbours use the same memory, and threads that are far apart
/// share no cache lines that they write.
///
/// # Panics
/// With the panic of a task, if there is one, after all threads have left.
pub(crate) fn run(n: usize, order: Order, task: impl Fn(usize) + Sync) {
    thread_local! {
        static CREW: Arc<Crew> = Arc::new(Crew::new());
    }
    let threads = rayon::current_num_threads().min(n);
    CREW.with(|crew| {
        // A task that starts tasks runs them itself.
        if threads < 2 || crew.is_open() {
            match order {
                Order::Up => (0..n).for_each(task),
                Order::Down => (0..n).rev().for_each(task),
            }
        } else {
            crew.run(n, order, threads - 1, &task);
        }
    });
}

/// In which order a thread takes its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// From the first on.
    Up,
    /// From the last on.
    Down,
}

/// A region's tasks; valid while the region is open.
#[derive(Clone, Copy)]
struct Tasks {
    n: usize,
    order: Order,
    /// The owner's number in the pool, if it is in it.
    owner: Option<usize>,
    parts: usize,
    task: *const (),
    call: unsafe fn(*const (), usize),
}

impl Tasks {
    /// Where this thread, a helper, begins. Its own place in every region: what it wrote in one is in its caches when it
    /// reads it in the next.
    fn first_part(&self) -> usize {
        let (threads, this) = (rayon::current_num_threads(), rayon::current_thread_index().unwrap_or(0));
        match self.owner {
            Some(owner) => (this + threads - owner % threads) % threads % self.parts,
            None => (this + 1) % self.parts,
        }
    }
}

/// A counter that has a cache line for itself.
#[derive(Default)]
#[repr(align(64))]
struct Line(AtomicUsize);

/// What a thread that starts regions shares with its helpers.
struct Crew {
    owner: ThreadId,
    /// Counts openings and closings: odd while a region is open.
    region: AtomicUsize,
    /// Helpers that may be looking at the tasks.
    inside: AtomicUsize,
    tasks: UnsafeCell<Option<Tasks>>,
    /// In each part of the tasks, those that have been taken.
    taken: [Line; PARTS],
    /// Helpers that rayon was asked for and that have not gone yet.
    helpers: AtomicUsize,
    /// The panic of a helper's task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `tasks` is written by the owner alone, while no region is open and no helper inside; helpers read it only
// when they are inside and have seen an open region after they said so. The task it points to is `Sync`.
unsafe impl Send for Crew {}
// SAFETY: all fields but `tasks` are atomic or locked, and `tasks` is read only while its owner does not write it.
unsafe impl Sync for Crew {}

impl Crew {
    fn new() -> Self {
        Self {
            owner: std::thread::current().id(),
            region: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            tasks: UnsafeCell::new(None),
            taken: Default::default(),
            helpers: AtomicUsize::new(0),
            panic: Mutex::new(None),
        }
    }

    fn is_open(&self) -> bool {
        self.region.load(Ordering::Relaxed) % 2 == 1
    }

    /// Called by the owner, while no region is open.
    fn run<F: Fn(usize) + Sync>(self: &Arc<Self>, n: usize, order: Order, helpers: usize, task: &F) {
        unsafe fn call<F: Fn(usize)>(task: *const (), i: usize) {
            // SAFETY: `task` comes from a reference to an `F` that outlives the region.
            unsafe { (*task.cast::<F>())(i) }
        }
        let parts = PARTS.min(helpers + 1);
        let tasks = Tasks {
            n,
            order,
            owner: rayon::current_thread_index(),
            parts,
            task: std::ptr::from_ref(task).cast(),
            call: call::<F>,
        };
        // SAFETY: no region is open, and the last one was closed after all helpers had left.
        unsafe { *self.tasks.get() = Some(tasks) };
        self.taken[..parts].iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
        self.region.fetch_add(1, Ordering::SeqCst);
        // Whatever panics, the region must end before this returns.
        let mut result = catch_unwind(AssertUnwindSafe(|| {
            for _ in self.helpers.load(Ordering::Relaxed)..helpers {
                self.helpers.fetch_add(1, Ordering::Relaxed);
                let crew = Arc::clone(self);
                rayon::spawn(move || crew.help());
            }
            self.work(tasks, 0);
        }));
        self.region.fetch_add(1, Ordering::SeqCst);
        let mut looks = 0;
        while self.inside.load(Ordering::SeqCst) > 0 {
            wait(&mut looks);
        }
        if let Some(panic) = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            result = Err(panic);
        }
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    /// Takes tasks until there are none left, from a part on.
    fn work(&self, tasks: Tasks, first: usize) {
        let Tasks { n, order, parts, task, call, .. } = tasks;
        for p in (0..parts).map(|p| (first + p) % parts) {
            let left = || {
                let (mut range, taken) = (part(n, parts, p), self.taken[p].0.fetch_add(1, Ordering::Relaxed));
                if order == Order::Up { range.nth(taken) } else { range.nth_back(taken) }
            };
            while let Some(i) = left() {
                // SAFETY: the region cannot end before this returns: its owner is here itself or waits for this helper.
                unsafe { call(task, i) };
            }
        }
    }

    /// What a helper does: it works in the owner's regions until there has been none for some time.
    fn help(&self) {
        thread_local! {
            static HELPS: Cell<bool> = const { Cell::new(false) };
        }
        // The owner may find its own request in a queue, and so may a helper that looks for other work.
        if std::thread::current().id() != self.owner && !HELPS.replace(true) {
            let (mut last, mut looks, mut since) = (0, 0, Instant::now());
            loop {
                let region = self.region.load(Ordering::Relaxed);
                if region % 2 == 1 && region != last {
                    last = region;
                    self.enter();
                    (looks, since) = (0, Instant::now());
                } else if wait(&mut looks) {
                    rayon::yield_now();
                    if since.elapsed() > AWAKE {
                        break;
                    }
                }
            }
            HELPS.set(false);
        }
        self.helpers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Works in a region, if it is still open.
    fn enter(&self) {
        // Either the owner sees this helper before it ends the region, or this helper sees that the region is closed.
        self.inside.fetch_add(1, Ordering::SeqCst);
        if self.region.load(Ordering::SeqCst) % 2 == 1 {
            // SAFETY: the region is open and stays so while this helper is inside.
            let tasks = unsafe { *self.tasks.get() };
            if let Some(Err(panic)) =
                tasks.map(|tasks| catch_unwind(AssertUnwindSafe(|| self.work(tasks, tasks.first_part()))))
            {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Passes the time before the next look; now and then lets other threads run, and says so.
fn wait(looks: &mut usize) -> bool {
    *looks += 1;
    if looks.is_multiple_of(LOOKS) {
        std::thread::yield_now();
        return true;
    }
    std::hint::spin_loop();
    false
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn pool(n_threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap()
    }

    fn count_all(n: usize) {
        let counts: Vec<AtomicU32> = (0..n).map(|_| AtomicU32::new(0)).collect();
        run(n, if n.is_multiple_of(2) { Order::Up } else { Order::Down }, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn every_task_runs_once() {
        for n_threads in [1, 2, 3, 8] {
            pool(n_threads).install(|| (0..3000).for_each(|i| count_all(i % 37)));
        }
        (0..100).for_each(count_all);
    }

    #[test]
    fn several_owners_share_a_pool() {
        let pool = pool(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| pool.install(|| (0..500).for_each(|i| count_all(i % 19))));
            }
            scope.spawn(|| (0..500).for_each(|i| count_all(i % 19)));
        });
    }

    #[test]
    fn helpers_do_other_work_meanwhile() {
        use rayon::prelude::*;
        pool(2).install(|| {
            for i in 0..200 {
                count_all(8);
                let sum: usize = (0..100usize).into_par_iter().with_max_len(1).map(|x| x * i).sum();
                assert_eq!(sum, 4950 * i);
            }
        });
    }

    #[test]
    fn helpers_go_and_are_called_again() {
        pool(2).install(|| {
            for _ in 0..5 {
                count_all(50);
                std::thread::sleep(2 * AWAKE);
            }
        });
    }

    #[test]
    fn tasks_that_start_tasks_run_them() {
        pool(2).install(|| run(6, Order::Up, |_| count_all(6)));
    }

    #[test]
    fn a_panic_of_any_task_reaches_the_owner_and_leaves_the_crew_usable() {
        pool(2).install(|| {
            for bad in 0..8 {
                let result = catch_unwind(|| {
                    run(8, Order::Up, |i| {
                        std::thread::sleep(Duration::from_micros(100));
                        assert_ne!(i, bad, "the bad task");
                    });
                });
                assert!(result.is_err(), "task {bad}");
                count_all(8);
            }
            let all = catch_unwind(|| run(8, Order::Up, |i| panic!("task {i}")));
            assert!(all.is_err());
            count_all(8);
        });
    }
}
