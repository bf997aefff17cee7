//! Groups of images that are all but the same.

use rayon::prelude::*;

use crate::{Bank, EvalError};

/// Neighbours of each image that are looked at, at most. Larger groups are still found whole, since their members reach each
/// other over several steps.
const MAX_NEIGHBOURS: usize = 16;

/// Images that hang together by similarities of at least the threshold.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DuplicateGroup {
    /// Their positions, rising; at least two.
    pub members: Vec<usize>,
    /// The smallest similarity of a member to the most similar other member.
    pub similarity: f32,
}

impl Bank {
    /// Groups of rows, each of which is at least as similar as `threshold` (a cosine) to another of its group. Groups are sorted by
    /// their first member.
    ///
    /// Similarity alone is no proof; [`near_duplicates_by`](Self::near_duplicates_by) compares what the rows were made of.
    ///
    /// # Errors
    /// [`EvalError::Config`] unless -1 <= `threshold` <= 1.
    pub fn near_duplicates(&self, threshold: f32) -> Result<Vec<DuplicateGroup>, EvalError> {
        if !(-1.0..=1.0).contains(&threshold) {
            let expected = "a cosine, -1 to 1".to_owned();
            return Err(EvalError::Config { key: "threshold", expected, got: threshold.to_string() });
        }
        self.groups(|_, _, similarity| similarity >= threshold)
    }

    /// Groups of rows that `are_same` links. It is asked of pairs of rows, the first of which is the smaller, that are among each
    /// other's most similar; from the nearest neighbour on, until it says no.
    ///
    /// # Errors
    /// None so far: a bank has at least one row, and one row has no copy.
    pub fn near_duplicates_by(
        &self,
        are_same: impl Fn(usize, usize) -> bool + Sync,
    ) -> Result<Vec<DuplicateGroup>, EvalError> {
        self.groups(|a, b, _| are_same(a.min(b), a.max(b)))
    }

    fn groups(
        &self,
        are_same: impl Fn(usize, usize, f32) -> bool + Sync,
    ) -> Result<Vec<DuplicateGroup>, EvalError> {
        if self.len() < 2 {
            return Ok(Vec::new());
        }
        let neighbours = self.nearest_others(MAX_NEIGHBOURS.min(self.len() - 1))?;
        let of_row = |row: usize| -> Vec<usize> {
            let others = neighbours.indices.row(row);
            let similarities = neighbours.similarities.row(row);
            let pairs = others.iter().zip(similarities);
            pairs.take_while(|(other, s)| are_same(row, **other, **s)).map(|(other, _)| *other).collect()
        };
        let links: Vec<Vec<usize>> = (0..self.len()).into_par_iter().map(of_row).collect();
        let mut parents: Vec<usize> = (0..self.len()).collect();
        for (row, others) in links.into_iter().enumerate() {
            for other in others {
                let (a, b) = (root(&mut parents, row), root(&mut parents, other));
                parents[a.max(b)] = a.min(b);
            }
        }
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); self.len()];
        for row in 0..self.len() {
            let root = root(&mut parents, row);
            members[root].push(row);
        }
        let group = |members: Vec<usize>| {
            let best = |&row: &usize| neighbours.similarities[[row, 0]];
            let similarity = members.iter().map(best).fold(1.0, f32::min);
            DuplicateGroup { members, similarity }
        };
        Ok(members.into_iter().filter(|members| members.len() > 1).map(group).collect())
    }
}

/// The first member of a group; what lies on the way is shortened.
fn root(parents: &mut [usize], mut row: usize) -> usize {
    while parents[row] != row {
        parents[row] = parents[parents[row]];
        row = parents[row];
    }
    row
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn chains_of_similar_rows_are_one_group() {
        let angle = |degrees: f32| [degrees.to_radians().cos(), degrees.to_radians().sin()];
        let rows = [0.0f32, 90.0, 2.0, 4.0, 91.0, 200.0].map(angle);
        let bank = Bank::new(ndarray::arr2(&rows)).unwrap();
        let groups = bank.near_duplicates(3.0f32.to_radians().cos()).unwrap();
        let members: Vec<_> = groups.iter().map(|group| group.members.clone()).collect();
        assert_eq!(members, [vec![0, 2, 3], vec![1, 4]]);
        assert!((groups[0].similarity - 2.0f32.to_radians().cos()).abs() < 1e-6);
    }

    #[test]
    fn thresholds_are_cosines_and_one_row_has_no_copy() {
        let bank = Bank::new(array![[1.0, 0.0]]).unwrap();
        assert_eq!(bank.near_duplicates(0.9).unwrap(), []);
        assert!(matches!(bank.near_duplicates(1.5), Err(EvalError::Config { key: "threshold", .. })));
    }
}
