//! A group of one.

use crate::{Collective, CollectiveError};

/// One process works alone: sums, maxima and broadcasts leave their values as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Single;

impl Collective for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn sum_f32(&self, _values: &mut [f32]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn sum_f64(&self, _values: &mut [f64]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn max_f64(&self, _values: &mut [f64]) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn broadcast(&self, _bytes: &mut [u8], root: usize) -> Result<(), CollectiveError> {
        if root == 0 { Ok(()) } else { Err(CollectiveError::Root { root, world_size: 1 }) }
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Ok(vec![bytes.to_vec()])
    }

    fn abort(&self, _reason: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decision, Vote};

    #[test]
    fn a_group_of_one_keeps_its_values_and_does_what_it_wants() {
        let (mut sums, mut bytes) = ([1.5f32, -0.0], [7u8]);
        Single.sum_f32(&mut sums).unwrap();
        Single.broadcast(&mut bytes, 0).unwrap();
        assert_eq!((sums.map(f32::to_bits), bytes), ([1.5f32.to_bits(), (-0.0f32).to_bits()], [7]));
        assert_eq!(Single.all_gather(&bytes).unwrap(), [vec![7]]);
        let root = Single.broadcast(&mut bytes, 1);
        assert!(matches!(root, Err(CollectiveError::Root { root: 1, world_size: 1 })));
        assert_eq!(Single.agree(Vote::Stop).unwrap(), Decision::Stop);
        let failed = Decision::Fail { rank: 0, reason: "no".to_owned() };
        assert_eq!(Single.agree(Vote::Fail("no".to_owned())).unwrap(), failed);
    }
}
