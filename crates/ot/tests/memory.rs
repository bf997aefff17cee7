//! A repeated solve into the caller's memory allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::Array2;
use swav_ot::{Codes, Method, Options, PointCost, Potentials, Problem, Solver, Start};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether allocations of this thread count. Those of the test's harness do not, nor those of a thread that starts.
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(usize::from(COUNTS.get()), Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is the one that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the last of three calls.
fn third_call(mut call: impl FnMut()) -> usize {
    call();
    call();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    call();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

// One test, because the counter is one for all threads.
#[test]
fn repeated_solves_allocate_nothing() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    // Runs on every thread, so all of them have started when it returns.
    pool.broadcast(|_| COUNTS.set(true));
    pool.install(|| {
        let cost = Array2::from_shape_fn((300, 200), |(i, j)| ((i * 7 + j * 13) % 101) as f64 / 101.0);
        let scores = cost.mapv(|c| c as f32);
        for epsilon in [0.05, 0.004] {
            let mut codes = Codes::new(epsilon, 3).unwrap();
            let mut out = scores.clone();
            let count = third_call(|| codes.assign_into(scores.view(), out.view_mut()).unwrap());
            assert_eq!(count, 0, "codes at epsilon {epsilon}");
        }
        let by_cost = |epsilon| Problem::from_cost(cost.view(), epsilon).unwrap();
        let x = cost.slice(ndarray::s![.., ..2]);
        let points = Problem::from_points(x, x, PointCost::SquaredEuclidean, 0.05).unwrap();
        for (name, problem, method) in [
            ("scaling", by_cost(0.05), Method::Auto),
            ("stabilised", by_cost(0.001), Method::Stabilised),
            ("log", by_cost(0.01), Method::Log),
            ("unbalanced", by_cost(0.05).relax(1.0).unwrap(), Method::Auto),
            ("points", points, Method::Auto),
        ] {
            let mut solver = Solver::new(Options::default().method(method)).unwrap();
            let mut out = Potentials::default();
            let count = third_call(|| {
                let _ = solver.solve_into(&problem, Start::Zero, &mut out).unwrap();
            });
            assert_eq!(count, 0, "{name}");
        }
    });
}
