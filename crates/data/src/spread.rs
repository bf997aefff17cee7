//! Which images stand for all of them.

use crate::hash::mix;

/// At most `wanted` indices below `n`, rising: one of each of as many parts of equal size, at a place in it that looks
/// random and is always the same. At equal distances only one class would be met where classes take turns.
///
/// ```
/// assert_eq!(swav_data::spread(3, 5), [0, 1, 2]);
/// assert_eq!(swav_data::spread(1000, 10).len(), 10);
/// ```
pub fn spread(n: usize, wanted: usize) -> Vec<usize> {
    let wanted = wanted.min(n);
    let start = |part: usize| (part as u128 * n as u128 / wanted as u128) as usize;
    let place = |part: usize| {
        let (first, end) = (start(part), start(part + 1));
        let hash = mix((part as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        first + (hash % (end - first) as u64) as usize
    };
    (0..wanted).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_one_each_and_classes_that_take_turns_are_all_met() {
        let some = spread(6000, 500);
        assert!(some.iter().enumerate().all(|(part, &index)| index / 12 == part));
        let classes: std::collections::BTreeSet<usize> = some.iter().map(|index| index % 12).collect();
        assert_eq!(classes.len(), 12);
        assert_eq!(spread(5, 9), [0, 1, 2, 3, 4]);
        assert!(spread(0, 3).is_empty() && spread(7, 3).is_sorted());
    }
}
