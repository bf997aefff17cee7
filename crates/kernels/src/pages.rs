//! Memory for buffers that live long, on large pages where the system has them.
//!
//! Packed weights of a deep layer are read once a pass, from the last-level cache at best. With pages of 4 KB it is the
//! look-up of addresses that such a pass waits for: on a virtual machine we read 64 MB at 9 GB/s so, and with pages of 2 MB
//! at 24. Linux gives large pages on request, for which `std` has no call.

use std::sync::Arc;

/// Size and alignment of a large page.
#[cfg(target_os = "linux")]
const LARGE_PAGE: usize = 2 << 20;

/// `n` zeros. Nothing is written to long buffers: the system zeroes a page when it is first touched.
pub(crate) fn zeros(n: usize) -> Vec<f32> {
    let words = vec![0.0; n];
    ask_for_large(&words);
    words
}

/// `n` zeros that can be shared.
pub(crate) fn shared_zeros(n: usize) -> Arc<[f32]> {
    let words = Arc::<[f32]>::new_zeroed_slice(n);
    ask_for_large(&words);
    // SAFETY: all bits zero are an f32.
    unsafe { words.assume_init() }
}

/// Asks for large pages where there is room for whole ones.
fn ask_for_large<T>(words: &[T]) {
    #[cfg(target_os = "linux")]
    {
        let start = words.as_ptr().cast::<u8>();
        let skipped = start.align_offset(LARGE_PAGE);
        let length = size_of_val(words).saturating_sub(skipped) / LARGE_PAGE * LARGE_PAGE;
        if length > 0 {
            // SAFETY: the range lies within the slice, and this advice changes no contents. Whether it is
            // followed makes no difference but in speed, so the answer is not needed.
            unsafe {
                libc::madvise(start.wrapping_add(skipped).cast_mut().cast(), length, libc::MADV_HUGEPAGE)
            };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = words;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_zero_and_writable_whatever_the_size() {
        for n in [0, 1, 1000, (2 << 20) / 4 + 3, 3_000_001] {
            let mut words = zeros(n);
            assert!(words.len() == n && words.iter().all(|&word| word == 0.0));
            words.fill(1.0);
            let mut shared = shared_zeros(n);
            assert!(shared.len() == n && shared.iter().all(|&word| word == 0.0));
            Arc::get_mut(&mut shared).unwrap().fill(1.0);
        }
    }
}
