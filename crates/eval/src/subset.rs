//! Parts of a labelled set that are drawn by a seed: so many of each class.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::EvalError;

/// Positions of a part of the images, rising: the same number of each class, `share` of all images in total.
///
/// Of each class `round(share · n / classes)` images are drawn, at least one, and all where there are no more. The same
/// labels, share and seed give the same images.
///
/// # Errors
/// [`EvalError::Config`] unless 0 < `share` <= 1.
pub fn balanced_subset(labels: &[u32], share: f64, seed: u64) -> Result<Vec<usize>, EvalError> {
    if !(share > 0.0 && share <= 1.0) {
        let expected = "a share above 0, at most 1".to_owned();
        return Err(EvalError::Config { key: "share", expected, got: share.to_string() });
    }
    if share == 1.0 {
        return Ok((0..labels.len()).collect());
    }
    let classes = by_class(labels);
    let of_each = (share * labels.len() as f64 / classes.len().max(1) as f64).round().max(1.0) as usize;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut chosen = Vec::new();
    for mut members in classes.into_values() {
        members.shuffle(&mut rng);
        members.truncate(of_each);
        chosen.extend(members);
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// Divides positions into a part to fit and a part to judge on, of each class alike, of at most `most` images together. A
/// class with a single image has none in the second part.
pub(crate) fn hold_out_by_class(
    labels: &[usize],
    share: f64,
    most: usize,
    seed: u64,
) -> (Vec<usize>, Vec<usize>) {
    let taken = (most as f64 / labels.len().max(1) as f64).min(1.0);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut kept, mut held_out) = (Vec::new(), Vec::new());
    for mut members in by_class(labels).into_values() {
        members.shuffle(&mut rng);
        members.truncate(((members.len() as f64 * taken).ceil() as usize).max(1));
        let n_held_out = ((members.len() as f64 * share).round() as usize).min(members.len() - 1);
        held_out.extend(members.drain(..n_held_out));
        kept.extend(members);
    }
    kept.sort_unstable();
    held_out.sort_unstable();
    (kept, held_out)
}

fn by_class<L: Ord + Copy>(labels: &[L]) -> BTreeMap<L, Vec<usize>> {
    let mut classes: BTreeMap<L, Vec<usize>> = BTreeMap::new();
    for (index, &label) in labels.iter().enumerate() {
        classes.entry(label).or_default().push(index);
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subset_is_balanced_repeatable_and_of_its_size() {
        // 900 of class 7, 95 of class 3, 5 of class 1.
        let labels: Vec<u32> = (0..1000)
            .map(|i| {
                if i % 200 == 0 {
                    1
                } else if i % 10 == 0 {
                    3
                } else {
                    7
                }
            })
            .collect();
        let count = |chosen: &[usize], label| chosen.iter().filter(|&&i| labels[i] == label).count();
        let chosen = balanced_subset(&labels, 0.09, 5).unwrap();
        assert_eq!([1, 3, 7].map(|label| count(&chosen, label)), [5, 30, 30]);
        assert!(chosen.is_sorted());
        assert_eq!(chosen, balanced_subset(&labels, 0.09, 5).unwrap());
        assert_ne!(chosen, balanced_subset(&labels, 0.09, 6).unwrap());
        let few = balanced_subset(&labels, 1e-9, 0).unwrap();
        assert_eq!([1, 3, 7].map(|label| count(&few, label)), [1, 1, 1]);
        assert_eq!(balanced_subset(&labels, 1.0, 0).unwrap().len(), 1000);
        assert!(matches!(balanced_subset(&labels, 1.5, 0), Err(EvalError::Config { key: "share", .. })));
    }

    #[test]
    fn a_hold_out_leaves_each_class_something_to_learn_from() {
        let labels: Vec<usize> = (0..101).map(|i| if i == 0 { 2 } else { i % 2 }).collect();
        let (kept, held_out) = hold_out_by_class(&labels, 0.2, 1000, 3);
        assert_eq!((kept.len(), held_out.len()), (81, 20));
        assert!(kept.contains(&0));
        let (kept, held_out) = hold_out_by_class(&labels, 0.2, 50, 3);
        assert!(kept.len() + held_out.len() <= 53 && !held_out.is_empty());
    }
}
