//! Training on several processes: one decision for all of them, and the codes' view of a collective.

use swav_collective::{Collective, CollectiveError, Decision, Vote};

use crate::error::{TrainError, chain};

/// What [`swav_ot`] needs, by a [`Collective`].
pub(crate) struct Transport<'a> {
    collective: &'a dyn Collective,
    failure: Option<CollectiveError>,
}

impl<'a> Transport<'a> {
    pub(crate) fn new(collective: &'a dyn Collective) -> Self {
        Self { collective, failure: None }
    }

    /// Puts the collective's own failure in place of the codes' failure that it caused.
    pub(crate) fn explain(self, result: Result<(), swav_ot::OtError>) -> Result<(), TrainError> {
        match self.failure {
            Some(failure) => Err(failure.into()),
            None => Ok(result?),
        }
    }

    fn keep(&mut self, result: Result<(), CollectiveError>) -> Result<(), swav_ot::CollectiveError> {
        result.map_err(|error| {
            let message = error.to_string();
            self.failure = Some(error);
            message.into()
        })
    }
}

impl swav_ot::Collective for Transport<'_> {
    fn sum(&mut self, values: &mut [f64]) -> Result<(), swav_ot::CollectiveError> {
        let result = self.collective.sum_f64(values);
        self.keep(result)
    }

    fn max(&mut self, values: &mut [f64]) -> Result<(), swav_ot::CollectiveError> {
        let result = self.collective.max_f64(values);
        self.keep(result)
    }
}

/// Lets all processes fail where one has: each its own failure, or [`TrainError::Rank`] that names another's.
///
/// For failures between two calls of the collective, so that all processes come to this one.
pub(crate) fn agreed<T>(collective: &dyn Collective, result: Result<T, TrainError>) -> Result<T, TrainError> {
    if collective.world_size() == 1 {
        return result;
    }
    let vote = match &result {
        Ok(_) => Vote::Continue,
        Err(error) => Vote::Fail(chain(error)),
    };
    let decision = collective.agree(vote);
    match (result, decision?) {
        (Ok(_), Decision::Fail { rank, reason }) => Err(TrainError::Rank { rank, reason }),
        (result, _) => result,
    }
}

/// The bytes of rank 0 on all ranks; those of the others are not looked at.
pub(crate) fn from_rank_0(collective: &dyn Collective, bytes: Vec<u8>) -> Result<Vec<u8>, TrainError> {
    if collective.world_size() == 1 {
        return Ok(bytes);
    }
    let mine = if collective.rank() == 0 { bytes } else { Vec::new() };
    Ok(collective.all_gather(&mine)?.swap_remove(0))
}
