//! What a rank says about going on, and what all of them then do.

/// What one rank wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vote {
    /// To go on.
    Continue,
    /// To stop in good order: its user asked for it.
    Stop,
    /// It has failed, for this reason.
    Fail(String),
}

/// What all ranks do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// All go on.
    Continue,
    /// All stop in good order, since at least one wants to.
    Stop,
    /// All fail, since at least one has failed.
    Fail {
        /// The lowest rank that has failed.
        rank: usize,
        /// Its reason.
        reason: String,
    },
}

impl Decision {
    /// The decision on the votes of all ranks, in the order of the ranks.
    pub(crate) fn of(votes: impl IntoIterator<Item = Vote>) -> Self {
        let mut decision = Self::Continue;
        for (rank, vote) in votes.into_iter().enumerate() {
            match vote {
                Vote::Continue => {}
                Vote::Stop => decision = Self::Stop,
                Vote::Fail(reason) => return Self::Fail { rank, reason },
            }
        }
        decision
    }
}

impl Vote {
    /// One byte for the kind, then the reason in UTF-8.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Continue => vec![0],
            Self::Stop => vec![1],
            Self::Fail(reason) => std::iter::once(2).chain(reason.bytes()).collect(),
        }
    }

    /// What [`to_bytes`](Self::to_bytes) wrote; anything else is a failure, so that no garbage is taken for consent.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        match bytes {
            [0] => Self::Continue,
            [1] => Self::Stop,
            [2, reason @ ..] => Self::Fail(String::from_utf8_lossy(reason).into_owned()),
            _ => Self::Fail("a vote that cannot be read".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_outweighs_stop_and_stop_outweighs_going_on() {
        let fail = |reason: &str| Vote::Fail(reason.to_owned());
        assert_eq!(Decision::of([Vote::Continue, Vote::Continue]), Decision::Continue);
        assert_eq!(Decision::of([Vote::Continue, Vote::Stop]), Decision::Stop);
        let failed = Decision::Fail { rank: 1, reason: "first".to_owned() };
        assert_eq!(Decision::of([Vote::Stop, fail("first"), Vote::Continue, fail("second")]), failed);
    }

    #[test]
    fn votes_survive_the_wire_and_garbage_is_no_consent() {
        for vote in [Vote::Continue, Vote::Stop, Vote::Fail("é".to_owned()), Vote::Fail(String::new())] {
            assert_eq!(Vote::from_bytes(&vote.to_bytes()), vote);
        }
        for garbage in [&[][..], &[0, 0], &[9]] {
            assert!(matches!(Vote::from_bytes(garbage), Vote::Fail(_)));
        }
    }
}
