//! Reads a whole data set and says what is in it and what is wrong with it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;
use swav_augment::Channels;

use crate::{Dataset, StableHash, error::contained};

/// One unusable image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadFile {
    /// Its index.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// The kind of error, to count by.
    pub kind: &'static str,
    /// The whole message: the error and its causes.
    pub reason: String,
}

/// What a whole data set holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Images, usable or not.
    pub n_images: usize,
    /// The unusable ones, by index.
    pub bad: Vec<BadFile>,
    /// Images by label; those without one are not here.
    pub labels: BTreeMap<u32, usize>,
    /// Usable images without a label.
    pub n_unlabelled: usize,
    /// Usable images in greyscale, or in colour with all channels equal everywhere.
    pub n_grey: usize,
    /// Indices of usable images in which all pixels are equal, such as white drawings that were transparent.
    pub blank: Vec<usize>,
    /// Usable images by (width, height).
    pub sizes: BTreeMap<(u32, u32), usize>,
    /// Indices of images with the same pixels, for all that occur more than once, by the first index.
    pub duplicates: Vec<Vec<usize>>,
    /// Among these, groups whose labels differ.
    pub n_contradictions: usize,
    /// Bytes of all usable images decoded.
    pub decoded_bytes: u64,
}

/// Reads every image on the current rayon pool. `progress` is called now and then with the number read so far, from
/// any thread.
///
/// ```
/// use swav_data::{DataConfig, ShapesConfig, check};
/// let builtin = ShapesConfig { n_train: 24, size: 16, ..ShapesConfig::default() };
/// let data = DataConfig { builtin, ..DataConfig::default() }.open()?;
/// let report = check(&*data, |_| ());
/// assert_eq!((report.n_images, report.bad.len(), report.labels.len()), (24, 0, 12));
/// assert_eq!(report.sizes[&(16, 16)], 24);
/// # Ok::<(), swav_data::DataError>(())
/// ```
pub fn check(data: &dyn Dataset, progress: impl Fn(usize) + Sync) -> CheckReport {
    let n_images = data.len();
    let read = AtomicUsize::new(0);
    let seen: Vec<Result<Seen, BadFile>> = (0..n_images)
        .into_par_iter()
        .map(|index| {
            let seen = look(data, index);
            let read = read.fetch_add(1, Ordering::Relaxed) + 1;
            if read.is_multiple_of(PROGRESS_EVERY) || read == n_images {
                progress(read);
            }
            seen
        })
        .collect();
    let mut report = CheckReport { n_images, ..CheckReport::default() };
    let mut by_content: HashMap<[u64; 2], Vec<usize>> = HashMap::new();
    for (index, seen) in seen.into_iter().enumerate() {
        match seen {
            Err(bad) => report.bad.push(bad),
            Ok(seen) => {
                match data.label(index) {
                    Some(label) => *report.labels.entry(label).or_default() += 1,
                    None => report.n_unlabelled += 1,
                }
                *report.sizes.entry(seen.size).or_default() += 1;
                report.n_grey += usize::from(seen.is_grey);
                if seen.is_blank {
                    report.blank.push(index);
                }
                report.decoded_bytes += seen.bytes;
                by_content.entry(seen.content).or_default().push(index);
            }
        }
    }
    report.duplicates = by_content.into_values().filter(|group| group.len() > 1).collect();
    report.duplicates.sort();
    let contradicts =
        |group: &&Vec<usize>| group.iter().any(|&index| data.label(index) != data.label(group[0]));
    report.n_contradictions = report.duplicates.iter().filter(contradicts).count();
    report
}

const PROGRESS_EVERY: usize = 256;

struct Seen {
    size: (u32, u32),
    is_grey: bool,
    is_blank: bool,
    bytes: u64,
    content: [u64; 2],
}

fn look(data: &dyn Dataset, index: usize) -> Result<Seen, BadFile> {
    let image = contained(|| data.image(index)).map_err(|error| BadFile {
        index,
        name: data.name(index),
        kind: error.kind(),
        reason: error.explain(),
    })?;
    // Two hashes under different seeds are one of 128 bits: chance collisions are out of the question.
    let content = [0, 1].map(|seed| {
        let mut hash = StableHash::new(seed);
        hash.number(u64::from(image.width()) << 32 | u64::from(image.height()));
        hash.bytes(image.data());
        hash.finish()
    });
    let is_grey = match image.channels() {
        Channels::Grey => true,
        Channels::Rgb => {
            image.data().chunks_exact(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2])
        }
    };
    let mut pixels = image.data().chunks_exact(image.channels().count());
    let first = pixels.next();
    let is_blank = pixels.all(|pixel| Some(pixel) == first);
    let (size, bytes) = ((image.width(), image.height()), image.data().len() as u64);
    Ok(Seen { size, is_grey, is_blank, bytes, content })
}

impl CheckReport {
    /// Usable images.
    pub fn n_good(&self) -> usize {
        self.n_images - self.bad.len()
    }

    /// Bad images by the kind of error.
    pub fn bad_by_kind(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        self.bad.iter().for_each(|bad| *counts.entry(bad.kind).or_default() += 1);
        counts
    }

    /// The shorter side of the image that is at this share of all, ordered by their shorter sides; 0 without images.
    /// A share of 0.5 gives the median.
    pub fn short_side(&self, share: f64) -> u32 {
        let mut sides: BTreeMap<u32, usize> = BTreeMap::new();
        self.sizes
            .iter()
            .for_each(|(&(width, height), count)| *sides.entry(width.min(height)).or_default() += count);
        let wanted = (share * (self.n_good().saturating_sub(1)) as f64).round() as usize;
        let mut passed = 0;
        sides
            .iter()
            .find(|(_, count)| {
                passed += **count;
                passed > wanted
            })
            .map_or(0, |(&side, _)| side)
    }

    /// Images by their shorter side, in steps that double: (from, below, count).
    pub fn short_side_histogram(&self) -> Vec<(u32, u32, usize)> {
        let mut bins: BTreeMap<u32, usize> = BTreeMap::new();
        for (&(width, height), count) in &self.sizes {
            *bins.entry(width.min(height).max(1).ilog2()).or_default() += count;
        }
        bins.into_iter().map(|(log, count)| (1 << log, 2_u32.saturating_mul(1 << log), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use swav_augment::Image;

    struct Made(Vec<Result<Image, ()>>);
    impl Dataset for Made {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn image(&self, index: usize) -> Result<Arc<Image>, crate::SampleError> {
            self.0[index].clone().map(Arc::new).map_err(|()| crate::SampleError::Truncated("cut".into()))
        }
        fn label(&self, index: usize) -> Option<u32> {
            (index != 0).then_some(index as u32 / 3)
        }
    }

    fn plain(width: u32, height: u32, channels: Channels, value: u8) -> Result<Image, ()> {
        let data = (0..width as usize * height as usize * channels.count())
            .map(|at| value ^ (at % 3) as u8)
            .collect();
        Ok(Image::new(width, height, channels, data).unwrap())
    }

    #[test]
    fn reports_duplicates_contradictions_and_bad_images() {
        let colour = |value| plain(40, 30, Channels::Rgb, value);
        let data =
            Made(vec![colour(1), colour(2), colour(2), Err(()), colour(2), plain(30, 40, Channels::Grey, 2)]);
        let report = check(&data, |_| ());
        assert_eq!((report.n_images, report.n_good(), report.n_unlabelled, report.n_grey), (6, 5, 1, 1));
        assert_eq!(report.duplicates, [[1, 2, 4]]);
        assert_eq!(
            report.blank,
            [0, 1, 2, 4],
            "in colour, the helper's pixels are alike; in grey, they are not"
        );
        assert_eq!(report.n_contradictions, 1);
        assert_eq!(report.bad_by_kind(), BTreeMap::from([("truncated", 1)]));
        assert_eq!((report.bad[0].index, report.bad[0].reason.as_str()), (3, "truncated: cut"));
        assert_eq!(report.labels, BTreeMap::from([(0, 2), (1, 2)]));
        assert_eq!(report.sizes, BTreeMap::from([((30, 40), 1), ((40, 30), 4)]));
        assert_eq!(report.decoded_bytes, 4 * 3600 + 1200);
        assert_eq!(report.short_side_histogram(), [(16, 32, 5)]);
    }
}
