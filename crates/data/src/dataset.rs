//! The data set interface, and the part of a data set that belongs to one split.

use std::{ops::Range, sync::Arc};

use swav_augment::Image;

use crate::counted::counted;
use crate::{LabelKind, SampleError, StableHash, Survey, hash::hash_bytes};

/// Images by index, with labels where they are known.
///
/// Implementations are read from many threads at once. The same index must always give the same image: the
/// loader's determinism rests on it.
///
/// ```
/// use std::sync::Arc;
/// use swav_augment::{Channels, Image};
/// use swav_data::{Dataset, SampleError};
///
/// /// Plain squares, each in its own grey.
/// struct Greys;
/// impl Dataset for Greys {
///     fn len(&self) -> usize { 256 }
///     fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
///         let grey = u8::try_from(index).map_err(|_| SampleError::OutOfRange { index, len: 256 })?;
///         let image = Image::new(8, 8, Channels::Grey, vec![grey; 64]);
///         Ok(Arc::new(image.map_err(|error| SampleError::Corrupt(error.into()))?))
///     }
/// }
/// assert_eq!(Greys.image(7)?.data()[0], 7);
/// assert_eq!(Greys.label(7), None);
/// # Ok::<(), SampleError>(())
/// ```
pub trait Dataset: Send + Sync {
    /// The number of images, at most [`u32::MAX`].
    fn len(&self) -> usize;

    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads and decodes one image: RGB, or grey where the file is grey. Shared, so that a cache can give it out without a copy.
    ///
    /// # Errors
    /// A [`SampleError`] that says why this image cannot be used.
    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError>;

    /// The class of one image, from 0; `None` where there are no labels.
    fn label(&self, _index: usize) -> Option<u32> {
        None
    }

    /// What one image has for a label: a class where [`label`](Self::label) gives one, else why not.
    fn label_kind(&self, index: usize) -> LabelKind {
        self.label(index).map_or(LabelKind::Missing, |_| LabelKind::Class)
    }

    /// The names of the classes, by label; empty where they are not known.
    fn class_names(&self) -> &[String] {
        &[]
    }

    /// How the path was understood that the images come from: what [`open`](crate::open) gives knows it.
    fn survey(&self) -> Option<&Survey> {
        None
    }

    /// What to call one image in the log: its path or key.
    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }

    /// One line for people: the format, where it lies, how many images and classes.
    fn describe(&self) -> String {
        counted(self.len(), "image")
    }

    /// Identifies the content, so that a checkpoint can tell whether it resumes on the data it was made with.
    /// The default knows the number of images and their labels only.
    fn fingerprint(&self) -> u64 {
        let mut hash = StableHash::new(self.len() as u64);
        (0..self.len())
            .for_each(|index| hash.number(self.label(index).map_or(0, |label| u64::from(label) + 1)));
        hash.finish()
    }

    /// Runs of indices that are cheap to read together (shards, row groups), in order and without gaps, if reading
    /// single images at random is expensive. The loader then shuffles the runs, and images within a window of runs.
    fn blocks(&self) -> Option<Vec<Range<usize>>> {
        None
    }
}

impl<D: Dataset + ?Sized> Dataset for Arc<D> {
    fn len(&self) -> usize {
        (**self).len()
    }
    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        (**self).image(index)
    }
    fn label(&self, index: usize) -> Option<u32> {
        (**self).label(index)
    }
    fn label_kind(&self, index: usize) -> LabelKind {
        (**self).label_kind(index)
    }
    fn class_names(&self) -> &[String] {
        (**self).class_names()
    }
    fn survey(&self) -> Option<&Survey> {
        (**self).survey()
    }
    fn name(&self, index: usize) -> String {
        (**self).name(index)
    }
    fn describe(&self) -> String {
        (**self).describe()
    }
    fn fingerprint(&self) -> u64 {
        (**self).fingerprint()
    }
    fn blocks(&self) -> Option<Vec<Range<usize>>> {
        (**self).blocks()
    }
}

/// Some images of a data set, in the given order: a hold-out, or the first thousand of a large set.
pub struct Subset<D> {
    inner: D,
    /// Of 32 bits, as there may be many millions.
    indices: Vec<u32>,
}

impl<D: Dataset> Subset<D> {
    /// The images at `indices`, which may repeat.
    ///
    /// # Errors
    /// [`SampleError::OutOfRange`] if an index is not below the length of `inner`.
    pub fn new(inner: D, indices: impl IntoIterator<Item = usize>) -> Result<Self, SampleError> {
        let len = inner.len();
        let narrow = |index| match u32::try_from(index) {
            Ok(narrow) if index < len => Ok(narrow),
            _ => Err(SampleError::OutOfRange { index, len }),
        };
        let indices = indices.into_iter().map(narrow).collect::<Result<_, _>>()?;
        Ok(Self { inner, indices })
    }

    /// One side of a deterministic hold-out: about `share` of the images are held out, chosen by a hash of their
    /// names, so that an image stays on its side when others are added or removed.
    pub fn hold_out(inner: D, share: f64, held_out: bool) -> Self {
        // share = 1 must take all: u64::MAX as f64 rounds up, and `as` saturates.
        let below = (share * u64::MAX as f64) as u64;
        let indices = (0..inner.len() as u32)
            .filter(|&index| {
                let hash = hash_bytes(HOLD_OUT_SEED, inner.name(index as usize).as_bytes());
                (share > 0.0 && hash <= below) == held_out
            })
            .collect();
        Self { inner, indices }
    }

    /// The indices into the whole data set.
    pub fn indices(&self) -> impl ExactSizeIterator<Item = usize> {
        self.indices.iter().map(|&index| index as usize)
    }

    fn inner_index(&self, index: usize) -> Result<usize, SampleError> {
        let len = self.indices.len();
        self.indices.get(index).map(|&inner| inner as usize).ok_or(SampleError::OutOfRange { index, len })
    }
}

const HOLD_OUT_SEED: u64 = 0x0068_6f6c_646f_7574;

impl<D: Dataset> Dataset for Subset<D> {
    fn len(&self) -> usize {
        self.indices.len()
    }
    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        self.inner.image(self.inner_index(index)?)
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.inner.label(self.inner_index(index).ok()?)
    }
    fn label_kind(&self, index: usize) -> LabelKind {
        self.inner_index(index).map_or(LabelKind::Missing, |inner| self.inner.label_kind(inner))
    }
    fn class_names(&self) -> &[String] {
        self.inner.class_names()
    }
    fn name(&self, index: usize) -> String {
        self.inner_index(index).map_or_else(|error| error.to_string(), |inner| self.inner.name(inner))
    }
    fn describe(&self) -> String {
        format!("{} of {}", self.len(), self.inner.describe())
    }
    fn fingerprint(&self) -> u64 {
        let mut hash = StableHash::new(self.inner.fingerprint());
        self.indices.iter().for_each(|&index| hash.number(u64::from(index)));
        hash.finish()
    }
    fn blocks(&self) -> Option<Vec<Range<usize>>> {
        let blocks = self.inner.blocks()?;
        if !self.indices.is_sorted() {
            return None;
        }
        let mut from = 0;
        let parts = blocks.iter().map(|block| {
            let to = self.indices.partition_point(|&index| (index as usize) < block.end);
            std::mem::replace(&mut from, to)..to
        });
        Some(parts.filter(|part| !part.is_empty()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(usize);
    impl Dataset for Named {
        fn len(&self) -> usize {
            self.0
        }
        fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
            Ok(Arc::new(Image::new(1, 1, swav_augment::Channels::Grey, vec![index as u8]).unwrap()))
        }
        fn label(&self, index: usize) -> Option<u32> {
            Some(index as u32 % 3)
        }
        fn blocks(&self) -> Option<Vec<Range<usize>>> {
            Some(vec![0..10, 10..11, 11..self.0])
        }
    }

    #[test]
    fn a_hold_out_divides_and_is_stable_under_growth() {
        let split = |n, held_out| Subset::hold_out(Named(n), 0.2, held_out).indices().collect::<Vec<_>>();
        let (kept, held) = (split(5000, false), split(5000, true));
        assert_eq!(kept.len() + held.len(), 5000);
        assert!((900..1100).contains(&held.len()), "{} of 5000 held out at 0.2", held.len());
        assert!(held.iter().all(|index| kept.binary_search(index).is_err()));
        let grown = split(6000, true);
        assert_eq!(grown[..held.len()], held);
        assert!(Subset::hold_out(Named(50), 0.0, true).is_empty());
        assert_eq!(Subset::hold_out(Named(50), 1.0, true).len(), 50);
    }

    #[test]
    fn a_subset_keeps_blocks_labels_and_bounds() {
        let subset = Subset::new(Named(40), [2, 3, 12, 39]).unwrap();
        assert_eq!(subset.blocks(), Some(vec![0..2, 2..4]));
        assert_eq!(subset.label(2), Some(0));
        assert_eq!(subset.image(3).unwrap().data(), [39]);
        assert!(matches!(subset.image(4), Err(SampleError::OutOfRange { index: 4, len: 4 })));
        assert!(matches!(Subset::new(Named(3), [3]), Err(SampleError::OutOfRange { index: 3, len: 3 })));
        let other = Subset::new(Named(40), [2, 3, 12, 38]).unwrap();
        assert_ne!(subset.fingerprint(), other.fingerprint());
    }
}
