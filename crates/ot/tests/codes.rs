//! Codes against plain loops, and against themselves in other arrangements.

mod team;

use ndarray::{Array2, Axis, s};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swav_ot::{Codes, OtError, sinkhorn_codes};
use team::Team;

fn scores(n_samples: usize, n_prototypes: usize, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((n_samples, n_prototypes), || rng.random_range(-1.0..1.0))
}

/// The reference's steps, one by one, in double precision with a shift by the maximum.
fn plain(scores: &Array2<f32>, epsilon: f64, n_iters: usize) -> Array2<f64> {
    let max = scores.iter().copied().fold(f32::MIN, f32::max);
    let mut q = scores.mapv(|s| ((f64::from(s) - f64::from(max)) / epsilon).exp());
    for _ in 0..n_iters {
        for mut column in q.columns_mut() {
            let total = column.sum();
            column /= total;
        }
        for mut row in q.rows_mut() {
            let total = row.sum();
            row /= total;
        }
    }
    q
}

fn largest_difference(a: &Array2<f32>, b: &Array2<f64>) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max)
}

#[test]
fn scaling_and_logarithmic_paths_agree_with_plain_loops() {
    // 0.5 stays in the scaling domain of f32; 0.02 and 0.004 do not.
    for (epsilon, tolerance) in [(0.5, 1e-6), (0.05, 2e-6), (0.02, 2e-6), (0.004, 2e-6)] {
        for (n, k) in [(1, 1), (1, 9), (9, 1), (37, 23), (130, 67)] {
            for n_iters in [0, 1, 3, 10] {
                let scores = scores(n, k, 7);
                let expected = if n_iters == 0 {
                    let mut q = plain(&scores, epsilon, 0);
                    q.rows_mut().into_iter().for_each(|mut row| {
                        let total = row.sum();
                        row /= total;
                    });
                    q
                } else {
                    plain(&scores, epsilon, n_iters)
                };
                let got = sinkhorn_codes(scores.view(), epsilon, n_iters).unwrap();
                let difference = largest_difference(&got, &expected);
                assert!(difference < tolerance, "eps {epsilon} ({n}, {k}) x{n_iters}: {difference}");
            }
        }
    }
}

#[test]
fn views_of_any_stride_give_the_same_bits() {
    let wide = scores(40, 60, 3);
    let view = wide.slice(s![..;2, ..;-3]);
    let expected = sinkhorn_codes(view.as_standard_layout().view(), 0.05, 3).unwrap();
    assert_eq!(sinkhorn_codes(view, 0.05, 3).unwrap(), expected);
    let mut out = Array2::<f32>::zeros((20, 20)).reversed_axes();
    Codes::new(0.05, 3).unwrap().assign_into(view, out.view_mut()).unwrap();
    assert_eq!(out, expected);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for epsilon in [0.05, 0.003] {
        let scores = scores(300, 150, 5);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sinkhorn_codes(scores.view(), epsilon, 3).unwrap())
        };
        let one = run(1);
        for threads in [2, 5] {
            assert!(one.iter().zip(&run(threads)).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

#[test]
fn every_wrong_input_has_its_error() {
    assert!(matches!(Codes::<f32>::new(0.0, 3), Err(OtError::Parameter { name: "epsilon", .. })));
    assert!(matches!(Codes::<f32>::new(f64::NAN, 3), Err(OtError::Parameter { .. })));
    let empty = Array2::<f32>::zeros((3, 0));
    assert!(matches!(sinkhorn_codes(empty.view(), 0.1, 3), Err(OtError::Empty { .. })));
    let mut scores = scores(4, 5, 1);
    scores[[2, 3]] = f32::INFINITY;
    match sinkhorn_codes(scores.view(), 0.1, 3) {
        Err(OtError::NotFinite { index, .. }) => assert_eq!(index, [2, 3]),
        other => panic!("{other:?}"),
    }
    let mut out = Array2::zeros((4, 4));
    let result = Codes::new(0.1, 3).unwrap().assign_into(scores.view(), out.view_mut());
    assert!(matches!(result, Err(OtError::Shape { .. })));
    assert_eq!(sinkhorn_codes(Array2::<f32>::zeros((0, 4)).view(), 0.1, 3).unwrap().dim(), (0, 4));
}

#[test]
fn shards_give_the_codes_of_the_whole_batch() {
    for epsilon in [0.05, 0.004] {
        let whole = scores(150, 40, 11);
        let expected = sinkhorn_codes(whole.view(), epsilon, 3).unwrap();
        let sizes = [64usize, 0, 50, 36];
        let parts: Vec<Array2<f32>> = std::thread::scope(|scope| {
            let handles: Vec<_> = sizes
                .iter()
                .zip(Team::of(sizes.len()))
                .enumerate()
                .map(|(rank, (&size, mut team))| {
                    let from = sizes[..rank].iter().sum::<usize>();
                    let mut part = whole.slice(s![from..from + size, ..]).to_owned();
                    scope.spawn(move || {
                        let mut codes = Codes::new(epsilon, 3).unwrap();
                        codes.assign_sharded(part.view_mut(), &mut team).unwrap();
                        part
                    })
                })
                .collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        });
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        let got = ndarray::concatenate(Axis(0), &views).unwrap();
        let difference = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 1e-6, "{difference}");
    }
}

/// Codes in the limit of a vanishing epsilon, by the leading terms of every number: `c exp(x / epsilon)` is (x, c), and the
/// largest x wins a sum.
fn limit(scores: &Array2<f64>, n_iters: usize) -> Array2<f64> {
    let total = |terms: &mut dyn Iterator<Item = (f64, f64)>| {
        terms.fold((f64::NEG_INFINITY, 0.0), |(top, sum), (x, c)| {
            if x > top {
                (x, c)
            } else if x == top {
                (top, sum + c)
            } else {
                (top, sum)
            }
        })
    };
    let mut q = scores.mapv(|score| (score, 1.0));
    for axis in std::iter::repeat_n([Axis(0), Axis(1)], n_iters).flatten().chain([Axis(1)]) {
        for mut lane in q.lanes_mut(axis) {
            let (top, sum) = total(&mut lane.iter().copied());
            lane.iter_mut().for_each(|(x, c)| (*x, *c) = (*x - top, *c / sum));
        }
    }
    q.mapv(|(x, c)| if x == 0.0 { c } else { 0.0 })
}

#[test]
fn a_vanishing_epsilon_gives_the_limit() {
    // Small integers tie often, and their sums are exact.
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (n, k) in [(1, 1), (7, 3), (20, 9), (64, 5)] {
        for n_iters in [0, 1, 3] {
            let scores = Array2::from_shape_simple_fn((n, k), || f64::from(rng.random_range(-3..4)));
            let expected = limit(&scores, n_iters);
            for epsilon in [5e-324, 1e-310, 1e-100, 1e-18] {
                let wide = sinkhorn_codes(scores.view(), epsilon, n_iters).unwrap();
                assert!(wide.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-14), "{epsilon} {wide}");
                let narrow = sinkhorn_codes(scores.mapv(|s| s as f32).view(), epsilon, n_iters).unwrap();
                assert!(largest_difference(&narrow, &expected) < 1e-6);
            }
            // The logarithms that run at larger epsilons come to the same.
            let near = sinkhorn_codes(scores.view(), 1e-9, n_iters).unwrap();
            assert!(near.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{near} {expected}");
        }
    }
    // The widest scores that there are.
    let widest = ndarray::array![[f64::MAX, f64::MIN, 0.0], [f64::MIN, f64::MAX, 1e-300]];
    for epsilon in [5e-324, 1.0, f64::MAX] {
        let q = sinkhorn_codes(widest.view(), epsilon, 3).unwrap();
        assert!(q.rows().into_iter().all(|row| (row.sum() - 1.0).abs() < 1e-12), "{q}");
    }
    // Shards agree with the whole.
    let whole = Array2::from_shape_simple_fn((30, 6), || f64::from(rng.random_range(-3..4)));
    let expected = sinkhorn_codes(whole.view(), 1e-310, 3).unwrap();
    let parts: Vec<Array2<f64>> = std::thread::scope(|scope| {
        let bounds = [0, 11, 11, 30];
        let handles: Vec<_> = Team::of(3)
            .into_iter()
            .enumerate()
            .map(|(rank, mut team)| {
                let mut part = whole.slice(s![bounds[rank]..bounds[rank + 1], ..]).to_owned();
                scope.spawn(move || {
                    Codes::new(1e-310, 3).unwrap().assign_sharded(part.view_mut(), &mut team).unwrap();
                    part
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    let got = ndarray::concatenate(Axis(0), &views).unwrap();
    assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-14));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_finite_double_scores_and_epsilon_give_codes(
        values in prop::collection::vec(prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO, 1..60),
        n_prototypes in 1usize..7,
        epsilon in prop::num::f64::POSITIVE | prop::num::f64::SUBNORMAL,
        n_iters in 0usize..5,
    ) {
        let n_prototypes = n_prototypes.min(values.len());
        let n_samples = values.len() / n_prototypes;
        let scores = Array2::from_shape_vec((n_samples, n_prototypes), values[..n_samples * n_prototypes].to_vec()).unwrap();
        let q = sinkhorn_codes(scores.view(), epsilon.abs(), n_iters).unwrap();
        for row in q.rows() {
            prop_assert!(row.iter().all(|q| q.is_finite() && *q >= 0.0));
            prop_assert!((row.sum() - 1.0).abs() < 1e-9, "{row}");
        }
    }

    #[test]
    fn any_finite_scores_and_epsilon_give_finite_codes_that_sum_to_one(
        values in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO, 1..60),
        n_prototypes in 1usize..7,
        epsilon in prop::num::f32::POSITIVE | prop::num::f32::SUBNORMAL,
        n_iters in 0usize..5,
    ) {
        let epsilon = f64::from(epsilon.abs());
        let n_prototypes = n_prototypes.min(values.len());
        let n_samples = values.len() / n_prototypes;
        let scores = Array2::from_shape_vec((n_samples, n_prototypes), values[..n_samples * n_prototypes].to_vec()).unwrap();
        let q = sinkhorn_codes(scores.view(), epsilon, n_iters).unwrap();
        for row in q.rows() {
            prop_assert!(row.iter().all(|q| q.is_finite() && *q >= 0.0));
            prop_assert!((row.sum() - 1.0).abs() < 1e-5, "{row}");
        }
    }

    #[test]
    fn codes_do_not_change_when_all_scores_are_shifted(shift in -2.0f64..2.0, seed in 0u64..100) {
        let scores = scores(20, 12, seed).mapv(f64::from);
        let q = sinkhorn_codes(scores.view(), 0.05, 3).unwrap();
        let shifted = sinkhorn_codes((scores + shift).view(), 0.05, 3).unwrap();
        prop_assert!(q.iter().zip(&shifted).all(|(a, b)| (a - b).abs() < 1e-11));
    }
}
