//! Devices against each other: the kernels' gradients are derived by hand, dfdx derives its own.

use super::{Images, devices, encoder, gradient, noise, relative, small};
use crate::{
    BlockKind, Checkpointing, Encoder, EncoderConfig, Head, Method, Output, Precision, Stem, UpdateRule,
};

/// Embeddings, gradients and the state after one update.
fn step(encoder: &mut dyn Encoder, rule: &UpdateRule, seed: u64) -> Vec<(String, Vec<f32>)> {
    // Odd sizes; the second group is smaller than the network's stride.
    let (large, small) = (Images::new(4, 21, 18, seed), Images::new(6, 9, 11, seed + 1));
    let z = encoder.forward_train(&[large.batch(), small.batch()]).unwrap();
    encoder.backward(gradient(&z, seed + 2).view()).unwrap();
    let mut numbers = vec![("z".to_owned(), z.into_raw_vec_and_offset().0)];
    for (name, _) in encoder.parameters() {
        numbers.push((format!("gradient of {name}"), encoder.gradient(&name).unwrap()));
    }
    let stats = encoder.update(rule).unwrap();
    numbers.push(("norms".into(), vec![stats.parameter_norm as f32, stats.gradient_norm as f32]));
    let state = encoder.state().unwrap();
    numbers.extend(state.into_iter().map(|(name, tensor)| (name, tensor.into_data())));
    let z = encoder.embed(large.batch(), Output::Embedding).unwrap();
    numbers.push(("z in inference".into(), z.into_raw_vec_and_offset().0));
    numbers
}

/// Tensors that are zero but for rounding (biases before a batch norm) count absolutely.
fn compare(what: &str, actual: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for ((name, a), (_, e)) in actual.iter().zip(expected) {
        let size = e.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let error = relative(a, e) * if size < 1e-4 { size } else { 1.0 };
        assert!(error < tolerance, "{what}: {name}: {error:e}");
    }
}

const LARC: UpdateRule =
    UpdateRule::new(Method::Larc { lr: 0.3, momentum: 0.9, weight_decay: 1e-2, trust: 1e-2 });

fn configs() -> Vec<EncoderConfig> {
    use BlockKind::{Basic, Bottleneck};
    vec![
        small(Basic, Stem::Cifar, Head::Mlp { hidden: 7 }),
        small(Bottleneck, Stem::Imagenet, Head::Mlp { hidden: 7 }),
        small(Bottleneck, Stem::Cifar, Head::Linear),
        small(Basic, Stem::Imagenet, Head::None),
    ]
}

#[test]
fn devices_agree() {
    let adamw = UpdateRule::new(Method::AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-3,
        weight_decay: 0.1,
    });
    let sgd = UpdateRule::new(Method::Sgd { lr: 1e-2, momentum: 0.8, weight_decay: 0.1 });
    for (config, rule) in configs().iter().zip([LARC, LARC, adamw, sgd]) {
        let mut results = devices().map(|device| {
            let mut encoder = encoder(&device, config);
            // Two steps, so that momentum matters.
            let first = step(&mut *encoder, &rule, 1);
            (first, step(&mut *encoder, &rule, 10))
        });
        let (expected, actual) = results.split_at_mut(1);
        compare(&format!("{config:?}, step 1"), &actual[0].0, &expected[0].0, 2e-4);
        compare(&format!("{config:?}, step 2"), &actual[0].1, &expected[0].1, 2e-3);
    }
}

#[test]
fn checkpointing_changes_no_bit() {
    for device in devices() {
        for config in configs() {
            let again = EncoderConfig { checkpointing: Checkpointing::Blocks, ..config.clone() };
            let expected = step(&mut *encoder(&device, &config), &LARC, 3);
            assert_eq!(step(&mut *encoder(&device, &again), &LARC, 3), expected, "{device}: {config:?}");
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for exact in [false, true] {
        let config = EncoderConfig { exact, ..small(BlockKind::Basic, Stem::Cifar, Head::Mlp { hidden: 7 }) };
        let [one, two] = [1, 2].map(|n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| step(&mut *encoder("cpu", &config), &LARC, 4))
        });
        assert_eq!(one, two);
    }
}

#[test]
fn fast_algorithms_and_mixed_precision_stay_close() {
    let exact = small(BlockKind::Bottleneck, Stem::Cifar, Head::Mlp { hidden: 7 });
    let expected = step(&mut *encoder("cpu", &exact), &LARC, 5);
    let fast = EncoderConfig { exact: false, ..exact.clone() };
    compare("fast", &step(&mut *encoder("cpu", &fast), &LARC, 5), &expected, 1e-2);
    let mixed = EncoderConfig { precision: Precision::Mixed, ..exact };
    let actual = step(&mut *encoder("cpu", &mixed), &LARC, 5);
    // bfloat16 has 8 bits: embeddings and the state hold to a few percent, small gradients to less.
    let z = relative(&actual[0].1, &expected[0].1);
    assert!(z > 0.0 && z < 0.1, "{z}");
}

#[test]
fn state_moves_between_devices() {
    let config = small(BlockKind::Bottleneck, Stem::Cifar, Head::Mlp { hidden: 7 });
    let adamw = UpdateRule::new(Method::AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-3,
        weight_decay: 0.1,
    });
    for rule in [LARC, adamw] {
        for (from, to) in [(0, 0), (0, 1), (1, 0)] {
            let devices = devices();
            let mut first = encoder(&devices[from], &config);
            step(&mut *first, &rule, 6);
            let mut second = encoder(&devices[to], &EncoderConfig { ..config.clone() });
            second.load_state(&first.state().unwrap()).unwrap();
            second.load_optimizer_state(&first.optimizer_state().unwrap()).unwrap();
            assert_eq!(second.state().unwrap(), first.state().unwrap());
            assert_eq!(second.optimizer_state().unwrap(), first.optimizer_state().unwrap());
            let (expected, actual) = (step(&mut *first, &rule, 20), step(&mut *second, &rule, 20));
            if from == to {
                assert_eq!(actual, expected);
            } else {
                compare(&format!("{} to {}", devices[from], devices[to]), &actual, &expected, 1e-3);
            }
        }
    }
}

/// The derivative of `sum(z · c)` along a random direction of every tensor, against central differences.
#[test]
fn gradients_are_derivatives() {
    let config = small(BlockKind::Bottleneck, Stem::Cifar, Head::Mlp { hidden: 7 });
    let (large, small) = (Images::new(4, 12, 12, 7), Images::new(6, 8, 8, 8));
    let groups = [large.batch(), small.batch()];
    for device in devices() {
        let mut encoder = encoder(&device, &config);
        let start = encoder.state().unwrap();
        let z = encoder.forward_train(&groups).unwrap();
        let weights = gradient(&z, 9);
        encoder.backward(weights.view()).unwrap();
        let gradients: Vec<(String, Vec<f32>)> = encoder
            .parameters()
            .into_iter()
            .map(|(n, _)| (n.clone(), encoder.gradient(&n).unwrap()))
            .collect();
        for (index, (name, gradient)) in gradients.iter().enumerate() {
            let direction = noise(gradient.len(), 100 + index as u64);
            let derivative: f64 =
                gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let size = 2e-4 / (direction.iter().map(|d| d * d).sum::<f32>()).sqrt();
            let mut value = |sign: f32| {
                let mut state = start.clone();
                let tensor = state.remove(name).unwrap();
                let moved = tensor.data().iter().zip(&direction).map(|(p, d)| p + sign * size * d).collect();
                state.insert(name, crate::StateTensor::new(tensor.shape().to_vec(), moved).unwrap());
                encoder.load_state(&state).unwrap();
                let z = encoder.forward_train(&groups).unwrap();
                z.iter().zip(&weights).map(|(z, w)| f64::from(*z) * f64::from(*w)).sum::<f64>()
            };
            let numeric = (value(1.0) - value(-1.0)) / (2.0 * f64::from(size));
            // Relative to the largest derivative that a direction of this length can have, since the terms cancel;
            // the kinks of the ReLUs and the rounding of f32 leave the rest.
            let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let error = (numeric - derivative).abs() / (norm(gradient) * norm(&direction) + 0.3);
            assert!(error < 0.03, "{device}: {name}: {derivative} against {numeric}, {error}");
        }
    }
}
