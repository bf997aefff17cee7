//! Memory for whole matrices, on large pages where the system has them.
//!
//! A fresh matrix costs one page fault for every page that is first written to. With pages of 4 KB that takes longer
//! than filling the matrix with exponentials does; with pages of 2 MB it is hardly seen. Linux gives large pages on
//! request, for which `std` has no call.

use crate::real::Real;

/// Size and alignment of a large page.
#[cfg(target_os = "linux")]
const LARGE_PAGE: usize = 2 << 20;

/// `n` zeros. Nothing is written: the system zeroes a page when it is first touched.
pub(crate) fn zeros<T: Real>(n: usize) -> Vec<T> {
    let values = vec![T::zero(); n];
    #[cfg(target_os = "linux")]
    {
        let bytes = size_of_val(values.as_slice());
        let start = values.as_ptr().cast::<u8>();
        let skipped = start.align_offset(LARGE_PAGE);
        let length = bytes.saturating_sub(skipped) / LARGE_PAGE * LARGE_PAGE;
        if length > 0 {
            // SAFETY: the range lies within the vector's own allocation, and this advice changes no contents. Whether
            // it is followed makes no difference but in speed, so the answer is not needed.
            unsafe { libc::madvise(start.wrapping_add(skipped) as *mut _, length, libc::MADV_HUGEPAGE) };
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_zero_and_writable_whatever_the_size() {
        for n in [0, 1, 1000, (2 << 20) / 8 + 3, 1_500_000] {
            let mut values = zeros::<f64>(n);
            assert!(values.iter().all(|&v| v == 0.0) && values.len() == n);
            values.iter_mut().for_each(|v| *v = 1.0);
            assert!(values.iter().all(|&v| v == 1.0));
        }
    }
}
