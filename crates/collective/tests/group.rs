//! Ranks as threads: equal bits, the order of the ranks, and no rank that waits for ever.

use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use swav_collective::{Collective, CollectiveError, Decision, InMemory, Vote};

/// Runs `work` on every rank of a group, each in its own thread; results in the order of the ranks.
fn on_all<T: Send>(group: Vec<InMemory>, work: impl Fn(InMemory) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let ranks: Vec<_> = group
            .into_iter()
            .map(|rank| {
                let work = &work;
                scope.spawn(move || work(rank))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
    })
}

/// As [`on_all`], with a time-out that no passing test comes near.
fn on_ranks<T: Send>(world_size: usize, work: impl Fn(InMemory) -> T + Sync) -> Vec<T> {
    on_all(InMemory::group(world_size), work)
}

fn bits32(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn bits64(values: &[f64]) -> Vec<u64> {
    values.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn sums_have_the_bits_of_the_sum_in_rank_order_on_all_ranks(
        ranks in (1usize..5, 0usize..20).prop_flat_map(|(n, length)| {
            prop::collection::vec(prop::collection::vec(-1e6f32..1e6, length), n)
        }),
    ) {
        let mut single = ranks[0].clone();
        let mut double: Vec<f64> = ranks[0].iter().map(|&x| f64::from(x)).collect();
        let mut largest = double.clone();
        for rank in &ranks[1..] {
            for (i, &x) in rank.iter().enumerate() {
                single[i] += x;
                double[i] += f64::from(x);
                largest[i] = largest[i].max(f64::from(x));
            }
        }
        let results = on_ranks(ranks.len(), |rank| {
            let mut sum32 = ranks[rank.rank()].clone();
            let mut sum64: Vec<f64> = sum32.iter().map(|&x| f64::from(x)).collect();
            let mut max = sum64.clone();
            rank.sum_f32(&mut sum32).unwrap();
            rank.sum_f64(&mut sum64).unwrap();
            rank.max_f64(&mut max).unwrap();
            (bits32(&sum32), bits64(&sum64), bits64(&max))
        });
        for result in results {
            prop_assert_eq!(result, (bits32(&single), bits64(&double), bits64(&largest)));
        }
    }

    #[test]
    fn bytes_arrive_as_they_were_given(
        ranks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5),
        root in 0usize..5,
    ) {
        let root = root % ranks.len();
        let length = ranks.iter().map(Vec::len).max().unwrap();
        let results = on_ranks(ranks.len(), |rank| {
            let mut own = ranks[rank.rank()].clone();
            let all = rank.all_gather(&own).unwrap();
            own.resize(length, 7);
            rank.broadcast(&mut own, root).unwrap();
            (all, own)
        });
        let mut sent = ranks[root].clone();
        sent.resize(length, 7);
        for (all, received) in results {
            prop_assert_eq!(&all, &ranks);
            prop_assert_eq!(&received, &sent);
        }
    }
}

#[test]
fn many_calls_in_a_row_do_not_mix() {
    let results = on_ranks(4, |rank| {
        (0..500u32)
            .map(|call| {
                // Ranks that run ahead must not overwrite what others have not read.
                if (call as usize + rank.rank()).is_multiple_of(5) {
                    thread::yield_now();
                }
                let mut values = [f64::from(call), rank.rank() as f64];
                rank.sum_f64(&mut values).unwrap();
                values
            })
            .collect::<Vec<_>>()
    });
    for result in results {
        for (call, values) in result.into_iter().enumerate() {
            assert_eq!(values, [4.0 * call as f64, 6.0]);
        }
    }
}

#[test]
fn all_ranks_come_to_the_same_decision() {
    let decide = |votes: [Vote; 3]| {
        let decisions = on_ranks(3, |rank| rank.agree(votes[rank.rank()].clone()).unwrap());
        assert!(decisions.windows(2).all(|pair| pair[0] == pair[1]));
        decisions[0].clone()
    };
    assert_eq!(decide([Vote::Continue, Vote::Continue, Vote::Continue]), Decision::Continue);
    assert_eq!(decide([Vote::Continue, Vote::Continue, Vote::Stop]), Decision::Stop);
    let fail = || Vote::Fail("the loss is not finite".to_owned());
    let failed = Decision::Fail { rank: 1, reason: "the loss is not finite".to_owned() };
    assert_eq!(decide([Vote::Stop, fail(), fail()]), failed);
}

#[test]
fn a_rank_that_aborts_ends_the_calls_of_the_others() {
    let results = on_ranks(3, |rank| match rank.rank() {
        1 => {
            rank.abort("the disk is full");
            None
        }
        _ => rank.sum_f32(&mut [0.0]).err(),
    });
    for error in [&results[0], &results[2]] {
        match error {
            Some(CollectiveError::Aborted { rank: 1, reason }) => assert_eq!(reason, "the disk is full"),
            other => panic!("expected the failure of rank 1, got {other:?}"),
        }
    }
}

#[test]
fn the_first_reason_stays_and_later_calls_report_it() {
    let results = on_ranks(2, |rank| {
        if rank.rank() == 0 {
            rank.abort("first");
            rank.abort("second");
        }
        let _ = rank.sum_f64(&mut [0.0]);
        rank.all_gather(&[]).unwrap_err()
    });
    for error in results {
        assert!(matches!(error, CollectiveError::Aborted { rank: 0, reason } if reason == "first"));
    }
}

#[test]
fn a_rank_that_panics_or_is_dropped_ends_the_calls_of_the_others() {
    let mut group = InMemory::group(3);
    let leaver = group.pop().unwrap();
    let left = thread::spawn(move || {
        let _owned = leaver;
        std::panic::resume_unwind(Box::new("a failure of this thread"));
    });
    for error in on_all(group, |rank| rank.max_f64(&mut [1.0]).unwrap_err()) {
        assert!(matches!(error, CollectiveError::Gone { rank: 2 }), "{error}");
    }
    assert!(left.join().is_err());
}

#[test]
fn what_all_have_given_is_received_even_if_a_rank_leaves_at_once() {
    for _ in 0..200 {
        let sums = on_ranks(2, |rank| {
            let mut values = [1.0f32];
            rank.sum_f32(&mut values).map(|()| values[0])
        });
        assert!(sums.into_iter().all(|sum| matches!(sum, Ok(2.0))));
    }
}

#[test]
fn a_rank_that_stays_away_runs_into_the_time_out() {
    let mut group = InMemory::group(2);
    let absent = group.pop().unwrap();
    let patience = Duration::from_millis(20);
    let present = group.pop().unwrap().with_timeout(patience);
    match present.agree(Vote::Continue) {
        Err(CollectiveError::TimedOut { waited, missing }) => {
            assert!(waited >= patience);
            assert_eq!(missing, [1]);
        }
        other => panic!("expected a time-out, got {other:?}"),
    }
    // The group has failed for both.
    assert!(matches!(absent.agree(Vote::Continue), Err(CollectiveError::TimedOut { .. })));
}

#[test]
fn ranks_that_do_different_things_are_told_so() {
    let lengths = on_ranks(2, |rank| rank.sum_f32(&mut vec![0.0; 2 + rank.rank()]).unwrap_err());
    for error in lengths {
        assert!(matches!(&error, CollectiveError::Disagreement { rank: 1, .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("a sum of 2 f32") && text.contains("a sum of 3 f32"), "{text}");
    }
    let kinds = on_ranks(2, |rank| match rank.rank() {
        0 => rank.max_f64(&mut [0.0]).unwrap_err(),
        _ => rank.sum_f64(&mut [0.0]).unwrap_err(),
    });
    assert!(kinds.iter().all(|error| matches!(error, CollectiveError::Disagreement { .. })));
    let root = InMemory::group(1).pop().unwrap().broadcast(&mut [], 1);
    assert!(matches!(root, Err(CollectiveError::Root { root: 1, world_size: 1 })));
}
