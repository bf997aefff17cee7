//! The k-NN evaluation against brute force, on ties, on bad input, and for any number of threads.

use ndarray::{Array2, ArrayView2, Axis, array, concatenate};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swav_eval::{Bank, EvalError, KnnClassifier, KnnConfig};

/// Features around one centre per class, so that labels can be found again but not perfectly.
fn clusters(n: usize, d: usize, n_classes: u32, seed: u64) -> (Array2<f32>, Vec<u32>) {
    let mut centres = ChaCha8Rng::seed_from_u64(7);
    let centres =
        Array2::from_shape_simple_fn((n_classes as usize, d), || centres.random_range(-1.0f32..1.0));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let labels: Vec<u32> = (0..n).map(|_| rng.random_range(0..n_classes)).collect();
    let features = Array2::from_shape_fn((n, d), |(i, j)| {
        centres[[labels[i] as usize, j]] + rng.random_range(-2.0f32..2.0)
    });
    (features, labels)
}

/// The definition, written down naively in f64: every similarity, a full sort, votes over all classes.
fn brute_force(
    (bank, labels): (&Array2<f32>, &[u32]),
    query: &[f32],
    own: Option<usize>,
    k: usize,
    temperature: f64,
) -> u32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let norm = |a: &[f32]| dot(a, a).sqrt();
    let mut all: Vec<(f64, usize)> = Vec::new();
    for (i, row) in bank.rows().into_iter().enumerate().filter(|&(i, _)| own != Some(i)) {
        let row = row.to_vec();
        all.push((dot(&row, query) / norm(&row) / norm(query), i));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut votes = vec![0.0; 1 + *labels.iter().max().unwrap() as usize];
    for &(similarity, i) in &all[..k] {
        votes[labels[i] as usize] += (similarity / temperature).exp();
    }
    (0..votes.len()).max_by(|&a, &b| votes[a].total_cmp(&votes[b])).unwrap() as u32
}

#[test]
fn agrees_with_brute_force_across_block_borders() {
    // More rows than a block on both sides, and none a multiple of one.
    let (bank, labels) = clusters(4500, 19, 6, 1);
    let (queries, _) = clusters(301, 19, 6, 2);
    for (k, temperature) in [(1, 0.07), (20, 0.07), (200, 0.5)] {
        let spec = KnnConfig { k, temperature }.check().unwrap();
        let knn = KnnClassifier::new(spec, bank.clone(), labels.clone()).unwrap();
        let predicted = knn.predict(queries.view()).unwrap();
        for (query, ranked) in queries.rows().into_iter().zip(&predicted.ranked) {
            let expected = brute_force((&bank, &labels), &query.to_vec(), None, k, temperature);
            assert_eq!(ranked[0], expected, "k = {k}");
        }
    }
}

#[test]
fn leave_one_out_never_asks_the_feature_itself() {
    let (bank, labels) = clusters(700, 8, 5, 3);
    let knn =
        KnnClassifier::new(KnnConfig::default().check().unwrap(), bank.clone(), labels.clone()).unwrap();
    let predicted = knn.leave_one_out().unwrap();
    for (i, query) in bank.rows().into_iter().enumerate() {
        let expected = brute_force((&bank, &labels), &query.to_vec(), Some(i), 20, 0.07);
        assert_eq!(predicted.ranked[i][0], expected);
    }
    let neighbours = Bank::new(bank).unwrap().nearest_others(699).unwrap();
    assert!(neighbours.indices.outer_iter().enumerate().all(|(i, row)| row.iter().all(|&j| j != i)));
}

#[test]
fn equal_similarities_rank_by_position_and_equal_votes_by_class() {
    let same = array![[1.0f32, 0.0], [2.0, 0.0], [0.5, 0.0]];
    let bank = Bank::new(same.clone()).unwrap();
    assert_eq!(bank.nearest(array![[3.0, 0.0]].view(), 3).unwrap().indices, array![[0, 1, 2]]);

    let spec = KnnConfig { k: 2, temperature: 0.1 }.check().unwrap();
    let knn = KnnClassifier::new(spec, same, vec![9, 4, 1]).unwrap();
    // The first two vote with weight 1 each; the third is as near, but not asked.
    assert_eq!(knn.predict(array![[1.0, 0.0]].view()).unwrap().ranked, vec![vec![4, 9]]);
}

#[test]
fn a_nearer_neighbour_outvotes_two_distant_ones_only_at_a_low_temperature() {
    let bank = array![[1.0f32, 0.0], [0.8, 0.6], [0.8, -0.6]];
    for (temperature, expected) in [(0.1, 0), (1.0, 1)] {
        let spec = KnnConfig { k: 3, temperature }.check().unwrap();
        let knn = KnnClassifier::new(spec, bank.clone(), vec![0, 1, 1]).unwrap();
        assert_eq!(knn.predict(array![[1.0, 0.0]].view()).unwrap().ranked[0][0], expected);
    }
}

#[test]
fn tiny_temperatures_and_huge_features_do_not_overflow() {
    let spec = KnnConfig { k: 2, temperature: 1e-300 }.check().unwrap();
    let bank = array![[f32::MAX, f32::MAX], [f32::MAX, 0.0], [f32::MIN_POSITIVE, 0.0]];
    let knn = KnnClassifier::new(spec, bank, vec![0, 1, 1]).unwrap();
    assert_eq!(
        knn.predict(array![[1.0, 1.0], [1e-38, 0.0]].view()).unwrap().ranked,
        vec![vec![0, 1], vec![1]]
    );
}

#[test]
fn accuracy_counts_first_and_first_five() {
    let predictions =
        swav_eval::Predictions { ranked: vec![vec![3, 1], vec![0], vec![2, 1, 0, 5, 4], vec![1, 2]] };
    let accuracy = predictions.accuracy(&[3, 1, 4, 2]).unwrap();
    assert_eq!((accuracy.top1, accuracy.top5, accuracy.n_images), (0.25, 0.75, 4));
}

#[test]
fn bad_input_is_an_error_that_names_it() {
    let rows = || array![[1.0f32, 0.0], [0.0, 1.0]];
    let spec = KnnConfig::default().check().unwrap();
    let bank = Bank::new(rows()).unwrap();
    assert!(matches!(
        KnnConfig { k: 0, ..Default::default() }.check(),
        Err(EvalError::Config { key: "k", .. })
    ));
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let config = KnnConfig { temperature, ..Default::default() };
        assert!(matches!(config.check(), Err(EvalError::Config { key: "temperature", .. })));
    }
    assert!(matches!(Bank::new(Array2::zeros((0, 4))), Err(EvalError::Empty { .. })));
    assert!(matches!(
        Bank::new(array![[0.0, 1.0], [f32::NAN, 1.0]]),
        Err(EvalError::NotFinite { row: 1, .. })
    ));
    assert!(matches!(
        bank.nearest(array![[1.0, 2.0, 3.0]].view(), 1),
        Err(EvalError::Length { expected: 2, got: 3, .. })
    ));
    assert!(matches!(bank.nearest(rows().view(), 3), Err(EvalError::Config { key: "k", .. })));
    assert!(matches!(bank.nearest_others(2), Err(EvalError::Config { key: "k", .. })));
    assert!(matches!(KnnClassifier::new(spec, rows(), vec![1]), Err(EvalError::Length { .. })));
    let message = bank.nearest(rows().view(), 3).unwrap_err().to_string();
    assert_eq!(message, "k: expected 1 to 2, the number of features to choose neighbours from, got 3");
}

#[test]
fn configuration_refuses_unknown_keys() {
    assert!(serde_json::from_str::<KnnConfig>(r#"{ "k": 5, "temprature": 0.1 }"#).is_err());
    assert_eq!(
        serde_json::from_str::<KnnConfig>(r#"{ "k": 5 }"#).unwrap(),
        KnnConfig { k: 5, temperature: 0.07 }
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The same bits from one thread and from three, and the same neighbours whatever else is asked beside them.
    #[test]
    fn results_do_not_depend_on_threads_or_company(n in 30usize..600, m in 2usize..300, k in 1usize..30, seed: u64) {
        let (bank, _) = clusters(n, 13, 4, seed);
        let (queries, _) = clusters(m, 13, 4, !seed);
        let bank = Bank::new(bank).unwrap();
        let ask = |threads: usize, queries: ArrayView2<'_, f32>| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| bank.nearest(queries, k)).unwrap()
        };
        let one = ask(1, queries.view());
        let other = ask(3, queries.view());
        prop_assert_eq!(&one.indices, &other.indices);
        let same = one.similarities.iter().zip(&other.similarities).all(|(a, b)| a.to_bits() == b.to_bits());
        prop_assert!(same);
        let (front, back) = queries.view().split_at(Axis(0), m / 2);
        let parts = [ask(2, front), ask(2, back)];
        prop_assert_eq!(one.indices, concatenate![Axis(0), parts[0].indices, parts[1].indices]);
    }
}
