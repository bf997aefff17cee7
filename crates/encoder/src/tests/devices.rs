//! Devices against each other: the kernels' gradients are derived by hand, dfdx derives its own.

use super::{bits, devices, encoder, gradient, images, norm, relative, small};
use crate::{
    BlockKind, Checkpointing, Encoder, EncoderConfig, Head, Method, Output, Precision, Stem, UpdateRule,
};

/// Embeddings, gradients and the state after one update.
fn step(encoder: &mut dyn Encoder, rule: &UpdateRule, seed: u64) -> Vec<(String, Vec<f32>)> {
    // Odd sizes; the second group is smaller than the network's stride.
    let (large, small) = (images(4, 21, 18, seed), images(6, 9, 11, seed + 1));
    let z = encoder.forward_train(&[large.view(), small.view()]).unwrap();
    encoder.backward(gradient(&z, seed + 2).view()).unwrap();
    let mut numbers = vec![("z".to_owned(), z.into_raw_vec_and_offset().0)];
    for (name, _) in encoder.parameters() {
        numbers.push((format!("gradient of {name}"), encoder.gradient(&name).unwrap()));
    }
    let stats = encoder.update(rule).unwrap();
    numbers.push(("norms".into(), vec![stats.parameter_norm as f32, stats.gradient_norm as f32]));
    let state = encoder.state().unwrap();
    numbers.extend(state.into_iter().map(|(name, tensor)| (name, tensor.into_data())));
    let z = encoder.embed(large.view(), Output::Embedding).unwrap();
    numbers.push(("z in inference".into(), z.into_raw_vec_and_offset().0));
    numbers
}

/// Tensors that are zero but for rounding (biases before a batch norm) count absolutely.
fn compare(what: &str, actual: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for ((name, a), (_, e)) in actual.iter().zip(expected) {
        let size = norm(e);
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
        let results: Vec<_> = (devices().iter())
            .map(|device| {
                let mut encoder = encoder(device, config);
                // Two steps, so that momentum matters.
                let first = step(&mut *encoder, &rule, 1);
                (device.clone(), first, step(&mut *encoder, &rule, 10))
            })
            .collect();
        let (_, first, second) = &results[0];
        for (device, actual_first, actual_second) in &results[1..] {
            compare(&format!("{device}: {config:?}, step 1"), actual_first, first, 2e-4);
            compare(&format!("{device}: {config:?}, step 2"), actual_second, second, 2e-3);
        }
    }
}

fn assert_same_bits(what: &str, actual: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)]) {
    assert_eq!(actual.len(), expected.len());
    for ((name, a), (_, e)) in actual.iter().zip(expected) {
        assert_eq!(bits(a), bits(e), "{what}: {name}");
    }
}

#[test]
fn checkpointing_changes_no_bit() {
    for device in devices() {
        for config in configs() {
            let again = EncoderConfig { checkpointing: Checkpointing::Blocks, ..config.clone() };
            let expected = step(&mut *encoder(&device, &config), &LARC, 3);
            let actual = step(&mut *encoder(&device, &again), &LARC, 3);
            assert_same_bits(&format!("{device}: {config:?}"), &actual, &expected);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for (exact, matrix_unit) in [(false, false), (false, true), (true, false)] {
        let config = EncoderConfig {
            exact,
            matrix_unit,
            ..small(BlockKind::Basic, Stem::Cifar, Head::Mlp { hidden: 7 })
        };
        let [one, two] = [1, 2].map(|n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| step(&mut *encoder("cpu", &config), &LARC, 4))
        });
        assert_same_bits("one thread and two", &two, &one);
    }
}

#[test]
fn fast_algorithms_and_mixed_precision_stay_close() {
    let exact = small(BlockKind::Bottleneck, Stem::Cifar, Head::Mlp { hidden: 7 });
    let expected = step(&mut *encoder("cpu", &exact), &LARC, 5);
    let fast = EncoderConfig { exact: false, ..exact.clone() };
    compare("fast", &step(&mut *encoder("cpu", &fast), &LARC, 5), &expected, 1e-2);
    // Where there is no such unit, these are the same.
    let matrix_unit = EncoderConfig { matrix_unit: true, ..fast };
    compare("matrix unit", &step(&mut *encoder("cpu", &matrix_unit), &LARC, 5), &expected, 1e-2);
    let mixed = EncoderConfig { precision: Precision::Mixed, ..exact };
    let actual = step(&mut *encoder("cpu", &mixed), &LARC, 5);
    // bfloat16 has 8 bits: embeddings and the state hold to a few percent.
    let z = relative(&actual[0].1, &expected[0].1);
    assert!(z > 0.0 && z < 0.1, "{z}");
}

/// Gradients in mixed precision against exact ones, with every ReLU open: no decision can turn, so each tensor's error
/// is that of rounding to 8 bits along the way. Shifts that the next batch norm takes out again have gradients of next to
/// nothing and count by the largest.
#[test]
fn gradients_in_mixed_precision_are_those_of_f32() {
    for block in [BlockKind::Basic, BlockKind::Bottleneck] {
        let exact = small(block, Stem::Cifar, Head::Mlp { hidden: 7 });
        let mixed = EncoderConfig { precision: Precision::Mixed, ..exact.clone() };
        let [expected, actual] = [exact, mixed].map(|config| {
            let mut encoder = encoder("cpu", &config);
            let mut state = encoder.state().unwrap();
            let norms = |name: &str| name.ends_with("bias") && (name.contains("bn") || name.contains(".1."));
            let shifts: Vec<_> = (state.iter().filter(|(name, _)| norms(name)))
                .map(|(name, tensor)| (name.to_owned(), tensor.shape().to_vec()))
                .collect();
            for (name, shape) in shifts {
                let n = shape.iter().product();
                state.insert(name, crate::StateTensor::new(shape, vec![4.0; n]).unwrap());
            }
            encoder.load_state(&state).unwrap();
            let z = encoder.forward_train(&[images(6, 16, 16, 1).view(), images(8, 8, 8, 2).view()]).unwrap();
            encoder.backward(gradient(&z, 3).view()).unwrap();
            encoder
                .parameters()
                .into_iter()
                .map(|(name, _)| (name.clone(), encoder.gradient(&name).unwrap()))
                .collect::<Vec<_>>()
        });
        let largest = expected.iter().map(|(_, gradient)| norm(gradient)).fold(0.0, f64::max);
        for ((name, actual), (_, expected)) in actual.iter().zip(&expected) {
            let difference: Vec<f32> = actual.iter().zip(expected).map(|(a, e)| a - e).collect();
            let error = norm(&difference) / norm(expected).max(2e-2 * largest);
            assert!(error < 0.1, "{block:?}: {name}: {error:e}, norm {:e} of {largest:e}", norm(expected));
        }
    }
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
        for (from, to) in
            devices().iter().flat_map(|from| devices().into_iter().map(move |to| (from.clone(), to)))
        {
            let mut first = encoder(&from, &config);
            step(&mut *first, &rule, 6);
            let mut second = encoder(&to, &config);
            second.load_state(&first.state().unwrap()).unwrap();
            second.load_optimizer_state(&first.optimizer_state().unwrap()).unwrap();
            assert_eq!(second.state().unwrap(), first.state().unwrap());
            assert_eq!(second.optimizer_state().unwrap(), first.optimizer_state().unwrap());
            let (expected, actual) = (step(&mut *first, &rule, 20), step(&mut *second, &rule, 20));
            if from == to {
                assert_same_bits(&from, &actual, &expected);
            } else {
                compare(&format!("{from} to {to}"), &actual, &expected, 1e-3);
            }
        }
    }
}

/// The derivative of `sum(z · c)` along the gradient of every tensor is the gradient's norm: against central
/// differences. A gradient that is zero, or too long, or points elsewhere fails: along it the function does not rise
/// by its norm.
#[test]
fn gradients_are_derivatives() {
    let config = small(BlockKind::Bottleneck, Stem::Cifar, Head::Mlp { hidden: 7 });
    let (large, small) = (images(4, 12, 12, 7), images(6, 8, 8, 8));
    let groups = [large.view(), small.view()];
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
        for (name, gradient) in &gradients {
            let length = norm(gradient);
            if name == "projection_head.0.bias" {
                // The batch norm after it takes it out again.
                assert!(length < 1e-4, "{device}: {name}: {length:e}");
                continue;
            }
            let size = 2e-3;
            let mut value = |sign: f64| {
                let mut state = start.clone();
                let tensor = state.remove(name).unwrap();
                let moved = tensor.data().iter().zip(gradient);
                let moved = moved.map(|(p, g)| p + (sign * size * f64::from(*g) / length) as f32).collect();
                state.insert(name, crate::StateTensor::new(tensor.shape().to_vec(), moved).unwrap());
                encoder.load_state(&state).unwrap();
                let z = encoder.forward_train(&groups).unwrap();
                z.iter().zip(&weights).map(|(z, w)| f64::from(*z) * f64::from(*w)).sum::<f64>()
            };
            let numeric = (value(1.0) - value(-1.0)) / (2.0 * size);
            // The kinks of the ReLUs and the rounding of f32 leave the rest.
            assert!((numeric / length - 1.0).abs() < 0.05, "{device}: {name}: {length} against {numeric}");
        }
    }
}
