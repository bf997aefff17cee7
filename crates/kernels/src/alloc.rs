//! An allocator for programs that use these kernels.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, with large blocks aligned to cache lines.
///
/// Feature maps and gradients are plain `Vec<f32>`, so that they can move in and out of tensor libraries. Many
/// allocators put such a block 16 bytes behind the begin of a page; then every second or each vector of a kernel lies
/// across two cache lines. Kernels give the same results either way, but are some 10% faster with this:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: swav_kernels::AlignedAllocator = swav_kernels::AlignedAllocator;
/// # assert_eq!(vec![0.0f32; 4096].as_ptr() as usize % 64, 0);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct AlignedAllocator;

/// Bytes of a cache line.
const LINE: usize = 64;
/// From how many bytes on a block is aligned.
const LARGE: usize = 4096;
/// Alignment to ask the system for, so that the distance to the aligned block can be written before it.
const ORIGIN: usize = align_of::<Distance>() * 2;

/// Bytes from the begin of the system's block to the aligned one, written right before the latter.
type Distance = usize;

/// What to ask the system for where a block is aligned here, and not by the system: an aligned request for zeros makes
/// it write them, where the plain one takes fresh pages that are zero already. Depends on the layout alone, so that it
/// is the same when memory is freed.
fn enlarged(layout: Layout) -> Option<Layout> {
    if layout.size() < LARGE || layout.align() > ORIGIN {
        return None;
    }
    Layout::from_size_align(layout.size().checked_add(LINE)?, ORIGIN).ok()
}

/// The aligned block within a system's block of an enlarged layout.
///
/// # Safety
/// `origin` must be null or a block of a layout from [`enlarged`].
unsafe fn align(origin: *mut u8) -> *mut u8 {
    if origin.is_null() {
        return origin;
    }
    let distance = LINE - origin as usize % LINE;
    // SAFETY: the origin's alignment makes the distance ORIGIN to LINE bytes, which the enlarged block has to spare and
    // which leave room for the number.
    unsafe {
        let block = origin.add(distance);
        block.cast::<Distance>().sub(1).write(distance);
        block
    }
}

// SAFETY: the system's allocator does the work; blocks that are aligned here lie within larger ones of the system, at a
// distance that is written before them, and are freed as a whole.
unsafe impl GlobalAlloc for AlignedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the contract of `alloc` says that the size is not 0; the enlarged layout's is not either.
        unsafe {
            match enlarged(layout) {
                Some(enlarged) => align(System.alloc(enlarged)),
                None => System.alloc(layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the contract of `alloc_zeroed` says that the size is not 0; the enlarged layout's is not either.
        unsafe {
            match enlarged(layout) {
                Some(enlarged) => align(System.alloc_zeroed(enlarged)),
                None => System.alloc_zeroed(layout),
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the contract of `dealloc` says that the block was allocated with this layout, hence with this enlarged one.
        unsafe {
            match enlarged(layout) {
                Some(enlarged) => {
                    let distance = block.cast::<Distance>().sub(1).read();
                    System.dealloc(block.sub(distance), enlarged);
                }
                None => System.dealloc(block, layout),
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the contract of `realloc` says that the new size fits the alignment.
        let layout_after = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if enlarged(layout).is_none() && enlarged(layout_after).is_none() {
            // SAFETY: the caller keeps `realloc`'s contract, and neither layout is changed.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: both blocks are valid for the smaller of the two sizes and do not overlap.
        unsafe {
            let after = self.alloc(layout_after);
            if !after.is_null() {
                std::ptr::copy_nonoverlapping(block, after, layout.size().min(size));
                self.dealloc(block, layout);
            }
            after
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_are_aligned_and_keep_their_contents() {
        let allocator = AlignedAllocator;
        let layout = |size| Layout::from_size_align(size, 4).unwrap();
        // SAFETY: every block is used within its size and freed once, with its layout.
        unsafe {
            let mut block = allocator.alloc(layout(100));
            (0..100).for_each(|i| block.add(i).write(i as u8));
            let mut size = 100;
            for next in [200, 5000, 100_000, 6000, 300] {
                block = allocator.realloc(block, layout(size), next);
                size = next;
                assert!((0..100).all(|i| *block.add(i) == i as u8));
                assert!(size < LARGE || (block as usize).is_multiple_of(LINE));
            }
            allocator.dealloc(block, layout(size));
            let block = allocator.alloc_zeroed(layout(8192));
            assert!((block as usize).is_multiple_of(LINE) && (0..8192).all(|i| *block.add(i) == 0));
            allocator.dealloc(block, layout(8192));
        }
    }
}
