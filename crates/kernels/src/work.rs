//! Tasks, scratch memory, and pointers that tasks share.

use std::cell::{Cell, RefCell};

use crate::crew::{self, Order};

/// Runs `task(0..n)` in parallel. What a task does must depend on its number only, so that results are the
/// same for any number of threads.
pub(crate) fn tasks(n: usize, task: impl Fn(usize) + Send + Sync) {
    crew::run(n, Order::Up, task);
}

/// The same for tasks that read or write feature maps, in the order of their images. Each call goes the other way than the
/// one before it: it begins with what that one touched last and is still in cache, where maps do not fit as a whole.
pub(crate) fn sweep(n: usize, task: impl Fn(usize) + Send + Sync) {
    thread_local! {
        static DOWN: Cell<bool> = const { Cell::new(false) };
    }
    let down = DOWN.get();
    DOWN.set(!down);
    crew::run(n, if down { Order::Down } else { Order::Up }, task);
}

/// The `i`-th of `parts` nearly equal parts of `0..n`.
pub(crate) fn part(n: usize, parts: usize, i: usize) -> std::ops::Range<usize> {
    let (size, longer) = (n / parts, n % parts);
    let start = i * size + i.min(longer);
    start..start + size + usize::from(i < longer)
}

/// All parts in turn, with one division for all of them.
pub(crate) fn parts(n: usize, parts: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let (size, longer) = (n / parts.max(1), n % parts.max(1));
    let mut end = 0;
    (0..parts).map(move |i| {
        let start = end;
        end += size + usize::from(i < longer);
        start..end
    })
}

/// A pointer that tasks share; each task writes only what no other touches.
#[derive(Debug)]
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: a `Shared` is only an address; whoever dereferences it promises that tasks touch disjoint elements.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: it gives no access by itself; tasks that dereference it touch disjoint elements.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Of a slice that is borrowed exclusively for as long as the tasks run.
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// Of a slice that tasks only read.
    pub fn reader(slice: &[T]) -> Self {
        Self(slice.as_ptr().cast_mut())
    }

    /// Of scratch memory.
    pub fn at(address: *mut T) -> Self {
        Self(address)
    }

    /// The element `by` further on, which must exist.
    pub fn offset(self, by: usize) -> Self {
        Self(self.0.wrapping_add(by))
    }

    /// The address.
    pub fn get(self) -> *mut T {
        self.0
    }
}

thread_local! {
    static SCRATCH: RefCell<[Aligned; 3]> = const { RefCell::new([Aligned::EMPTY; 3]) };
}

/// Three buffers of this thread, each of at least the given number of f32 with unspecified contents, aligned to
/// cache lines. The memory is used again by the next task on the thread.
pub(crate) fn with_scratch<R>(lens: [usize; 3], f: impl FnOnce([*mut f32; 3]) -> R) -> R {
    SCRATCH.with(|scratch| {
        // Tasks start no tasks, so a thread is never here twice.
        let mut scratch = scratch.borrow_mut();
        let [a, b, c] = &mut *scratch;
        f([a.take(lens[0]), b.take(lens[1]), c.take(lens[2])])
    })
}

struct Aligned(Vec<f32>);

impl Aligned {
    #[allow(clippy::declare_interior_mutable_const, reason = "an empty vector to start from")]
    const EMPTY: Self = Self(Vec::new());

    fn take(&mut self, len: usize) -> *mut f32 {
        const LINE: usize = 16;
        if self.0.len() < len + LINE {
            // Freed first: growing would copy contents nobody needs.
            self.0 = Vec::new();
            self.0 = crate::pages::zeros(len + len / 4 + LINE);
        }
        let offset = self.0.as_ptr().align_offset(64);
        self.0[offset..].as_mut_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for (n, parts) in [(10, 3), (3, 5), (0, 2), (7, 7)] {
            let all: Vec<usize> = (0..parts).flat_map(|i| part(n, parts, i)).collect();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
            assert!(super::parts(n, parts).eq((0..parts).map(|i| part(n, parts, i))));
        }
    }

    #[test]
    fn scratch_is_aligned_and_large_enough() {
        with_scratch([100, 0, 17], |buffers| {
            for p in buffers {
                assert_eq!(p as usize % 64, 0);
            }
            // SAFETY: 100 elements were asked for.
            unsafe { buffers[0].add(99).write(1.0) };
        });
    }
}
