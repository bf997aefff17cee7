//! Agreement with independent implementations: scikit-learn and SciPy by fixtures, plain loops, and a network that learns.

use std::sync::Arc;

use ndarray::{Array2, Ix2, array};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use swav_augment::{
    CenterCrop, Channels, CropGroup, EvalView, Image, MultiCrop, Normalize, Pipeline, RandomResizedCrop,
};
use swav_data::{Dataset, SampleError};
use swav_encoder::{BlockKind, EncoderConfig, Output, ResNet, Stem, build_backbone};
use swav_eval::{
    Bank, ClusterSizes, Contingency, EvalError, KnnClassifier, KnnConfig, Lesson, LogisticRegression,
    ProbeConfig, SupervisedConfig, encode,
};
use swav_fixtures::Tensors;

fn matrix(name: &str) -> Array2<f32> {
    Tensors::open("evaluation").f32(name).into_dimensionality::<Ix2>().unwrap()
}

fn numbers(of: &Value) -> Vec<u32> {
    of.as_array().unwrap().iter().map(|label| label.as_u64().unwrap() as u32).collect()
}

fn share_of_equal(a: &[u32], b: &[u32]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
}

#[test]
fn logistic_regression_reaches_scikit_learns_minimum() {
    let expected = swav_fixtures::json("evaluation");
    let (features, queries) = (matrix("features"), matrix("queries"));
    let (labels, truth) = (numbers(&expected["labels"]), numbers(&expected["query_labels"]));
    for case in expected["logistic"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let how = LogisticRegression { regulariser: number("regulariser"), ..LogisticRegression::default() };
        let fit = how.fit(features.view(), &labels).unwrap();
        assert!(fit.converged, "{case}: {} iterations", fit.n_iters);
        // The loss of the unique minimum; single precision of the products is what is left.
        assert!((fit.loss - number("loss")).abs() < 1e-4, "{case}: loss {}", fit.loss);
        assert!((fit.objective - number("objective")).abs() < 1e-6, "{case}: objective {}", fit.objective);
        let logits = queries.mapv(f64::from).dot(&fit.weights.t()) + &ndarray::arr1(&fit.bias);
        let predicted: Vec<u32> = logits
            .rows()
            .into_iter()
            .map(|row| fit.classes[(0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()])
            .collect();
        assert!((share_of_equal(&predicted, &truth) - number("accuracy")).abs() < 0.002, "{case}");
    }
}

#[test]
fn neighbours_vote_as_scikit_learns_do() {
    let expected = swav_fixtures::json("evaluation");
    let (features, queries, labels) = (matrix("features"), matrix("queries"), numbers(&expected["labels"]));
    for case in expected["knn"].as_array().unwrap() {
        let config = KnnConfig {
            k: case["k"].as_u64().unwrap() as usize,
            temperature: case["temperature"].as_f64().unwrap(),
        };
        let knn = KnnClassifier::new(config.check().unwrap(), features.clone(), labels.clone()).unwrap();
        let ranked = knn.predict(queries.view()).unwrap().ranked;
        let first: Vec<u32> = ranked.iter().map(|ranked| ranked[0]).collect();
        assert_eq!(first, numbers(&case["predictions"]), "{config:?}");
    }
}

#[test]
fn clusters_agree_with_classes_as_scikit_learn_says() {
    let expected = swav_fixtures::json("evaluation");
    for case in expected["clusters"].as_array().unwrap() {
        let (clusters, classes) = (numbers(&case["clusters"]), numbers(&case["classes"]));
        let got = Contingency::new(&clusters, &classes).unwrap().agreement();
        let measures = [
            ("nmi", got.nmi),
            ("ari", got.ari),
            ("purity", got.purity),
            ("matched_accuracy", got.matched_accuracy),
        ];
        for (name, got) in measures {
            let expected = case[name].as_f64().unwrap();
            assert!((got - expected).abs() < 1e-6, "{name}: expected {expected}, got {got}");
        }
    }
}

#[test]
fn degenerate_clusters_have_the_limits_of_the_measures() {
    let same = Contingency::new(&[4, 4, 4], &[1, 1, 1]).unwrap().agreement();
    assert_eq!((same.nmi, same.ari, same.purity, same.matched_accuracy), (1.0, 1.0, 1.0, 1.0));
    let one = Contingency::new(&[0, 0, 0, 0], &[1, 1, 2, 2]).unwrap().agreement();
    assert_eq!((one.nmi, one.ari, one.purity, one.matched_accuracy), (0.0, 0.0, 0.5, 0.5));
    let sizes = ClusterSizes::new(&[0, 0, 2, 2], 5).unwrap();
    assert_eq!((sizes.n_used, sizes.n_empty, sizes.largest, sizes.median), (2, 3, 2, 2));
    assert!((sizes.perplexity - 2.0).abs() < 1e-12);
    assert!(matches!(ClusterSizes::new(&[5], 5), Err(EvalError::Config { key: "cluster", .. })));
    assert!(matches!(Contingency::new(&[1], &[]), Err(EvalError::Length { .. })));
}

#[test]
fn the_probe_chooses_a_regulariser_and_classifies() {
    let expected = swav_fixtures::json("evaluation");
    let (features, queries) = (matrix("features"), matrix("queries"));
    let (labels, truth) = (numbers(&expected["labels"]), numbers(&expected["query_labels"]));
    let probe = ProbeConfig::default().check().unwrap();
    let fit = probe.fit(features.view(), &labels).unwrap();
    let best = fit.trials.iter().map(|trial| trial.held_out_loss).fold(f64::INFINITY, f64::min);
    let chosen = fit.trials.iter().find(|trial| trial.held_out_loss == best).unwrap();
    // 20% were held out; among all images the same prior weighs less.
    assert!((fit.regulariser / chosen.regulariser - 0.8).abs() < 0.02, "{:?}", fit.trials);
    let top1 = fit.classifier.predict(queries.view()).unwrap().accuracy(&truth).unwrap().top1;
    let by_sklearn = expected["logistic"][1]["accuracy"].as_f64().unwrap();
    assert!((top1 - by_sklearn).abs() < 0.03, "{top1}, {by_sklearn}");
    // The scale of a column is nobody's business.
    let stretched = |x: &Array2<f32>| {
        let mut x = x.clone();
        x.column_mut(3).mapv_inplace(|v| 1e4 * v - 5e3);
        x
    };
    let other = probe.fit(stretched(&features).view(), &labels).unwrap();
    assert!((other.loss - fit.loss).abs() < 1e-3);
    let same = other.classifier.predict(stretched(&queries).view()).unwrap();
    let same: Vec<u32> = same.ranked.iter().map(|ranked| ranked[0]).collect();
    let before: Vec<u32> =
        fit.classifier.predict(queries.view()).unwrap().ranked.iter().map(|ranked| ranked[0]).collect();
    assert!(share_of_equal(&same, &before) > 0.98);
}

#[test]
fn a_fit_has_the_same_bits_for_any_number_of_threads() {
    let (features, labels) = (matrix("features"), numbers(&swav_fixtures::json("evaluation")["labels"]));
    let bits = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let fit = pool.install(|| LogisticRegression::default().fit(features.view(), &labels)).unwrap();
        fit.weights.iter().chain(&fit.bias).map(|w| w.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(bits(1), bits(3));
}

#[test]
fn what_cannot_be_fitted_is_refused() {
    let features = array![[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]];
    let fit = |features: &Array2<f32>, labels: &[u32]| {
        ProbeConfig::default().check().unwrap().fit(features.view(), labels).unwrap_err()
    };
    assert!(matches!(fit(&features, &[3, 3, 3]), EvalError::OneClass { label: 3, n_images: 3 }));
    assert!(matches!(fit(&features, &[3, 4]), EvalError::Length { expected: 3, got: 2, .. }));
    assert!(matches!(fit(&array![[f32::NAN], [1.0]], &[0, 1]), EvalError::NotFinite { row: 0, .. }));
    let none = ProbeConfig { regularisers: vec![], ..ProbeConfig::default() };
    assert!(matches!(none.check(), Err(EvalError::Config { key: "regularisers", .. })));
    // Two images of two classes: nothing can be held out, and the middle regulariser is taken.
    let two =
        ProbeConfig::default().check().unwrap().fit(features.slice(ndarray::s![..2, ..]), &[0, 1]).unwrap();
    assert!(two.trials.is_empty());
}

/// The definition, written down naively.
fn retrieval_by_hand(
    (bank, labels): (&Array2<f32>, &[u32]),
    (query, label): (&[f32], u32),
    itself: Option<usize>,
    k: usize,
) -> Option<(f64, f64)> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let mut ranked: Vec<(f64, usize)> = (0..bank.nrows())
        .filter(|&i| itself != Some(i))
        .map(|i| {
            let row = bank.row(i).to_vec();
            (dot(&row, query) / (dot(&row, &row) * dot(query, query)).sqrt(), i)
        })
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let same: Vec<bool> = ranked.iter().map(|&(_, i)| labels[i] == label).collect();
    let r = same.iter().filter(|&&same| same).count();
    if r == 0 {
        return None;
    }
    let recall = f64::from(u8::from(same.iter().take(k).any(|&same| same)));
    let precision =
        |rank: usize| same[..=rank].iter().filter(|&&same| same).count() as f64 / (rank + 1) as f64;
    Some((recall, (0..r).filter(|&rank| same[rank]).map(precision).sum::<f64>() / r as f64))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn retrieval_is_that_of_a_plain_loop(n in 2usize..80, m in 1usize..40, k in 1usize..8, seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut rows = |n: usize| Array2::from_shape_simple_fn((n, 5), || rng.random_range(-1.0f32..1.0));
        let (features, queries) = (rows(n), rows(m));
        let mut rng = ChaCha8Rng::seed_from_u64(!seed);
        let mut draw = |n: usize| (0..n).map(|_| rng.random_range(0..6u32)).collect::<Vec<_>>();
        let (labels, truth) = (draw(n), draw(m));
        let bank = Bank::new(features.clone()).unwrap();
        let found = bank.retrieve(&labels, queries.view(), &truth, &[k, 1]).unwrap();
        let others = bank.retrieve_others(&labels, &[k]).unwrap();
        let check = |found: &swav_eval::Retrieval, queries: &Array2<f32>, truth: &[u32], others: bool| {
            let by_hand: Vec<_> = (0..truth.len()).map(|i| {
                let itself = others.then_some(i);
                retrieval_by_hand((&features, &labels), (&queries.row(i).to_vec(), truth[i]), itself, k)
            }).collect();
            let left_out: Vec<usize> = (0..truth.len()).filter(|&i| by_hand[i].is_none()).collect();
            prop_assert_eq!(&found.left_out, &left_out);
            for (i, (recall, precision)) in by_hand.into_iter().flatten().enumerate() {
                prop_assert_eq!(found.recall[[0, i]], recall);
                prop_assert!((found.average_precision[i] - precision).abs() < 1e-9);
            }
            Ok(())
        };
        check(&found, &queries, &truth, false)?;
        check(&others, &features, &labels, true)?;
    }
}

/// Stripes, across for one class and along for the other, brighter or darker; the fifth image cannot be read.
struct Stripes;

impl Dataset for Stripes {
    fn len(&self) -> usize {
        48
    }
    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        if index == 5 {
            return Err(SampleError::Vanished);
        }
        let pixel = |i: usize| {
            let along = if index.is_multiple_of(2) { i % 12 } else { i / 12 };
            if (along + index / 2).is_multiple_of(3) { 230 - index as u8 } else { 20 + index as u8 }
        };
        Ok(Arc::new(Image::new(12, 12, Channels::Grey, (0..144).map(pixel).collect()).unwrap()))
    }
    fn label(&self, index: usize) -> Option<u32> {
        Some(10 + index as u32 % 2)
    }
}

#[test]
fn labels_are_learnt_with_a_frozen_and_with_a_trained_backbone() {
    let config = EncoderConfig {
        arch: ResNet::custom(BlockKind::Basic, [1]).with_width(8).with_stem(Stem::Cifar).into(),
        ..EncoderConfig::default()
    };
    let spec = config.check().unwrap();
    let crop = RandomResizedCrop { size: 12, min_scale: 0.8, ..RandomResizedCrop::default() };
    let crops =
        MultiCrop::new(vec![CropGroup { crop, n_crops: 1, steps: Pipeline::new() }], Normalize::default())
            .unwrap();
    let indices: Vec<usize> = (0..48).collect();
    let labels: Vec<u32> = indices.iter().map(|&i| Stripes.label(i).unwrap()).collect();
    let lesson = Lesson { data: &Stripes, indices: &indices, labels: &labels, crops: &crops };
    let view = EvalView::new(CenterCrop { resize: 12, size: 12 }, Normalize::default()).unwrap();
    for backbone_lr in [0.0, 0.02] {
        let config =
            SupervisedConfig { epochs: 12, batch_size: 16, backbone_lr, ..SupervisedConfig::frozen() };
        let training = config.check().unwrap();
        let run = || {
            let mut backbone = build_backbone("cpu", &spec, 3).unwrap();
            let before = backbone.state().unwrap();
            let (mut n_steps, mut losses) = (0, Vec::new());
            let learnt = training
                .train(backbone.as_mut(), lesson, |n| n_steps = n, |report| losses.push(report.loss))
                .unwrap();
            assert_eq!((n_steps, losses.len()), (training.n_iters(48), 12));
            assert_eq!(backbone.state().unwrap() == before, backbone_lr == 0.0);
            let features = encode(backbone.as_ref(), &Stripes, &view, Output::Features, None).unwrap();
            let truth = features.labels(&Stripes).unwrap();
            (losses, learnt.predict(features.rows.view()).unwrap().accuracy(&truth).unwrap())
        };
        let (losses, accuracy) = run();
        assert!(losses[11] < losses[0] && accuracy.top1 > 0.9, "{backbone_lr}: {losses:?}, {accuracy:?}");
        assert_eq!(run().0, losses);
    }
}
