//! Decoded images kept in memory, within a budget.

use std::{
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use swav_augment::Image;

use crate::{Dataset, LabelKind, SampleError};

/// Keeps the first images that fit into a memory budget decoded, and never evicts.
///
/// Training reads every image once an epoch in a new order. Under such a pattern, evicting the least recently used
/// image throws away one that is as likely to be needed as the one taken in; keeping a fixed part gives the best
/// rate of hits that a cache of that size can have, without bookkeeping.
pub struct Cached<D> {
    inner: D,
    slots: Vec<OnceLock<Arc<Image>>>,
    used_bytes: AtomicUsize,
    budget_bytes: usize,
}

/// What an image costs besides its pixels: the shared block and the vector's header.
const IMAGE_OVERHEAD_BYTES: usize = 64;

impl<D: Dataset> Cached<D> {
    /// A cache over `inner` that holds at most `budget_bytes` of decoded images, its own table included. If the
    /// table alone does not fit, nothing is ever kept.
    pub fn new(inner: D, budget_bytes: usize) -> Self {
        let table = inner.len() * size_of::<OnceLock<Arc<Image>>>();
        let slots = if table < budget_bytes { inner.len() } else { 0 };
        Self {
            inner,
            slots: (0..slots).map(|_| OnceLock::new()).collect(),
            used_bytes: AtomicUsize::new(if slots > 0 { table } else { 0 }),
            budget_bytes,
        }
    }

    /// The memory in use, in bytes; never above the budget.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }
}

impl<D: Dataset> Dataset for Cached<D> {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let Some(slot) = self.slots.get(index) else { return self.inner.image(index) };
        if let Some(image) = slot.get() {
            return Ok(image.clone());
        }
        let image = self.inner.image(index)?;
        let cost = image.data().len() + IMAGE_OVERHEAD_BYTES;
        let reserved = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(cost).filter(|&sum| sum <= self.budget_bytes)
        });
        if reserved.is_ok() && slot.set(image.clone()).is_err() {
            // Another thread decoded the same image meanwhile.
            self.used_bytes.fetch_sub(cost, Ordering::Relaxed);
        }
        Ok(image)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.inner.label(index)
    }
    fn label_kind(&self, index: usize) -> LabelKind {
        self.inner.label_kind(index)
    }
    fn class_names(&self) -> &[String] {
        self.inner.class_names()
    }
    fn name(&self, index: usize) -> String {
        self.inner.name(index)
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn fingerprint(&self) -> u64 {
        self.inner.fingerprint()
    }
    fn blocks(&self) -> Option<Vec<Range<usize>>> {
        self.inner.blocks()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn black(width: u32, height: u32) -> Image {
        Image::new(width, height, swav_augment::Channels::Grey, vec![0; (width * height) as usize]).unwrap()
    }

    struct Counting(AtomicUsize);
    impl Dataset for Counting {
        fn len(&self) -> usize {
            100
        }
        fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if index == 5 { Err(SampleError::Vanished) } else { Ok(Arc::new(black(10, 10 + index as u32))) }
        }
    }

    #[test]
    fn keeps_what_fits_and_never_more() {
        let budget = 100 * size_of::<OnceLock<Arc<Image>>>() + 10_000;
        let cache = Cached::new(Counting(AtomicUsize::new(0)), budget);
        for _ in 0..3 {
            for index in 0..100 {
                match cache.image(index) {
                    Ok(image) => assert_eq!(image.height(), 10 + index as u32),
                    Err(error) => assert!(index == 5 && matches!(error, SampleError::Vanished)),
                }
                assert!(cache.used_bytes() <= budget);
            }
        }
        let reads = cache.inner.0.load(Ordering::Relaxed);
        assert!((100 + 2 * 50..300 - 2 * 10).contains(&reads), "{reads} reads");
        assert!(cache.used_bytes() > budget - 3 * 109 * 10 - 200, "{} of {budget}", cache.used_bytes());
    }

    #[test]
    fn a_budget_below_the_table_keeps_nothing() {
        let cache = Cached::new(Counting(AtomicUsize::new(0)), 100);
        assert!(cache.image(0).is_ok() && cache.image(0).is_ok() && cache.image(100).is_ok());
        assert_eq!((cache.used_bytes(), cache.inner.0.load(Ordering::Relaxed)), (0, 3));
    }
}
