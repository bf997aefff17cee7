//! Against PyTorch's numbers in the fixtures, on every device: each step of a recorded training from its recorded
//! start. Nothing is retried: the records hold no decision of a ReLU or a maximum that rounding could turn.

use ndarray::{Array2, Axis, concatenate, s};
use swav_fixtures::{
    Named, Step, Tensors, Training, assert_tensors_close, max_abs_difference, relative_error,
};
use swav_optim::{Role, apply};

use super::devices;
use crate::registry::build_without_head;
use crate::{
    BlockKind, Checkpointing, Encoder, EncoderConfig, Head, Method, Output, ResNet, Slots, StateDict,
    StateTensor, Stem, UpdateRule, Variant, build,
};

/// A device with the options of a configuration, and what its embeddings and its gradients may differ by.
struct Case {
    name: String,
    device: String,
    exact: bool,
    checkpointing: Checkpointing,
    z: f64,
    gradients: f64,
}

/// Every way to compute: each device; on the CPU also Winograd's and Strassen's algorithms, and blocks that run again.
///
/// Fast algorithms round some 15 to 45 times as much as a direct sum. On these networks of few channels that is still far
/// below the distance of any decision from its tie, and gets a tolerance of its own.
fn cases() -> Vec<Case> {
    let case = |name: &str, device: String| Case {
        name: name.to_owned(),
        device,
        exact: true,
        checkpointing: Checkpointing::Off,
        z: 1e-4,
        gradients: 1e-3,
    };
    let mut cases: Vec<Case> = devices().into_iter().map(|device| case(&device.clone(), device)).collect();
    let cpu = || "cpu".to_owned();
    cases.push(Case { exact: false, z: 1e-3, gradients: 1e-2, ..case("cpu, fast algorithms", cpu()) });
    cases.push(Case { checkpointing: Checkpointing::Blocks, ..case("cpu, blocks run again", cpu()) });
    cases
}

impl Case {
    fn config(&self, config: &EncoderConfig) -> EncoderConfig {
        EncoderConfig { exact: self.exact, checkpointing: self.checkpointing, ..config.clone() }
    }
}

/// Without the prototypes, which are not the encoder's.
fn of_encoder(mut named: Named) -> Named {
    named.remove("prototypes.weight");
    named
}

/// Channels of the stem.
fn width(state: &Named) -> usize {
    state["conv1.weight"].shape()[0]
}

fn state(named: &Named) -> StateDict {
    let tensor = |(name, values): (&String, &ndarray::ArrayD<f32>)| {
        let data = values.iter().copied().collect();
        (name.clone(), StateTensor::new(values.shape().to_vec(), data).unwrap())
    };
    named.iter().map(tensor).collect()
}

fn assert_state(what: &str, encoder: &dyn Encoder, expected: &Named, tolerance: f64) {
    let state = encoder.state().unwrap();
    assert_tensors_close(what, expected, tolerance, |name| Some(state.get(name)?.data().to_vec()));
}

#[test]
fn parity_resnet18_tiny_cifar() {
    let tensors = Tensors::open("resnet18_tiny_cifar");
    let (initial, images) = (tensors.under("init"), tensors.images("x"));
    let config = EncoderConfig {
        arch: ResNet::new(Variant::Resnet18).with_width(width(&initial)).with_stem(Stem::Cifar).into(),
        head: Head::None,
        ..EncoderConfig::default()
    };
    for case in cases() {
        let (what, config) = (&case.name, case.config(&config));
        // Without the scaling of rows: the fixture's gradient is that of the features.
        let mut encoder = build_without_head(&case.device, &config.check().unwrap(), 31).unwrap();
        encoder.load_state(&state(&initial)).unwrap();
        let features = encoder.forward_train(&[images.view()]).unwrap();
        let error = relative_error(&*features, &*tensors.matrix("features_train"));
        assert!(error <= case.z, "{what}: features in training: {error:e}");
        encoder.backward(tensors.matrix("grad_out").view()).unwrap();
        let gradients = tensors.under("grad");
        assert_tensors_close(what, &gradients, case.gradients, |name| encoder.gradient(name));
        assert_eq!(gradients.len(), encoder.parameters().len());
        assert_state(what, &*encoder, &tensors.under("after"), 1e-3);
        let features = encoder.embed(images.view(), Output::Features).unwrap();
        let error = relative_error(&*features, &*tensors.matrix("features_eval"));
        assert!(error <= case.z, "{what}: features in inference: {error:e}");
    }
}

#[test]
fn parity_steps_bottleneck() {
    steps("steps_bottleneck");
}

#[test]
fn parity_steps_queue() {
    steps("steps_queue");
}

/// Every step of a training, each from the recorded state before it.
fn steps(fixture: &str) {
    let training = Training::open(fixture);
    let initial = training.tensors_under("init");
    let config = EncoderConfig {
        arch: ResNet::custom(BlockKind::Bottleneck, [1; 4]).with_width(width(&initial)).into(),
        head: Head::Mlp { hidden: initial["projection_head.0.weight"].shape()[0] },
        dim: initial["projection_head.3.weight"].shape()[0],
        ..EncoderConfig::default()
    };
    for case in cases() {
        let mut encoder = build(&case.device, &case.config(&config).check().unwrap(), 31).unwrap();
        for step in training.steps() {
            follow(&case, &mut *encoder, &training, &step);
        }
        encoder.load_state(&state(&of_encoder(training.after()))).unwrap();
        let first = training.steps().next().unwrap();
        let z = encoder.embed(first.crop(0).view(), Output::Embedding).unwrap();
        let difference = max_abs_difference(&*z, &*training.z_in_inference());
        assert!(difference <= case.z, "{}: z in inference: {difference:e}", case.name);
    }
}

/// One step with the recorded codes: embeddings, loss, all gradients, state and momentum after the update.
fn follow(case: &Case, encoder: &mut dyn Encoder, training: &Training, step: &Step<'_>) {
    let what = format!("{}: step {} of {}", case.name, step.index, training.name());
    let before = step.before();
    let prototypes = before.state["prototypes.weight"].clone();
    let mut prototypes: Array2<f32> = prototypes.into_dimensionality().unwrap();
    encoder.load_state(&state(&of_encoder(before.state))).unwrap();
    encoder.load_optimizer_state(&momentum(&of_encoder(before.velocity))).unwrap();

    let groups = step.groups();
    let views: Vec<_> = groups.iter().map(|group| group.view()).collect();
    let z = encoder.forward_train(&views).unwrap();
    let difference = max_abs_difference(&*z, &*step.z());
    assert!(difference <= case.z, "{what}: z: {difference:e}");

    for mut row in prototypes.rows_mut() {
        let length = row.dot(&row).sqrt();
        row /= length;
    }
    let codes = [0, 1].map(|crop| step.codes(crop));
    let scores = z.dot(&prototypes.t());
    let (loss, of_scores) = swapped_loss(&scores, &codes, training);
    assert!((loss - step.loss).abs() <= 0.1 * case.z * step.loss, "{what}: loss {loss}, not {}", step.loss);
    encoder.backward(of_scores.dot(&prototypes).view()).unwrap();
    let gradients = of_encoder(step.gradients());
    assert_eq!(gradients.len(), encoder.parameters().len());
    assert_tensors_close(&what, &gradients, case.gradients, |name| encoder.gradient(name));

    let number = |key: &str| training.number(key) as f32;
    let rule = UpdateRule::new(Method::Larc {
        lr: step.lr as f32,
        momentum: number("momentum"),
        weight_decay: number("weight_decay"),
        trust: number("trust"),
    });
    encoder.update(&rule).unwrap();
    assert_state(&what, encoder, &of_encoder(step.state_after()), 1e-3);
    if let Some(next) = training.steps().nth(step.index + 1) {
        let state = encoder.optimizer_state().unwrap();
        let velocity = of_encoder(next.before().velocity);
        assert_velocity(&what, &velocity, case.gradients, &gradients, |name| {
            state.get(&format!("{name}.first")).unwrap().data().to_vec()
        });
    }
}

/// Momentum of each parameter: relative, but for a parameter whose gradient is zero in exact arithmetic (a bias before a
/// batch norm), which LARC makes of rounding alone.
fn assert_velocity(
    what: &str,
    expected: &Named,
    tolerance: f64,
    gradients: &Named,
    actual: impl Fn(&str) -> Vec<f32>,
) {
    let norm =
        |tensor: &ndarray::ArrayD<f32>| tensor.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let largest = gradients.values().map(norm).fold(0.0, f64::max);
    let of_signal = |name: &String| norm(&gradients[name]) > 1e-6 * largest;
    let expected: Named = expected.clone().into_iter().filter(|(name, _)| of_signal(name)).collect();
    assert_tensors_close(&format!("{what}: momentum"), &expected, tolerance, |name| Some(actual(name)));
}

/// The optimiser's state with this momentum.
fn momentum(velocity: &Named) -> StateDict {
    let mut state = StateDict::new();
    for (name, values) in velocity {
        let slots = Slots { first: values.iter().copied().collect(), n_updates: 1, ..Slots::default() };
        state.insert_slots(name, values.shape(), &slots);
    }
    state
}

/// The swapped prediction loss of crops 0 and 1 and its gradient with respect to the scores.
fn swapped_loss(scores: &Array2<f32>, codes: &[Array2<f32>; 2], training: &Training) -> (f64, Array2<f32>) {
    let (batch, crops) = (training.count("batch"), training.count("crops"));
    let temperature = training.number("temperature");
    let weight = 1.0 / (2.0 * (crops - 1) as f64 * batch as f64);
    let mut loss = 0.0;
    let mut gradients = Vec::new();
    for crop in 0..crops {
        let logits = scores.slice(s![crop * batch..(crop + 1) * batch, ..]);
        let logits = logits.mapv(|x| f64::from(x) / temperature);
        let mut gradient = Array2::<f64>::zeros(logits.dim());
        for (row, logits) in logits.rows().into_iter().enumerate() {
            let largest = logits.fold(f64::MIN, |m, &x| m.max(x));
            let total = logits.mapv(|x| (x - largest).exp()).sum();
            for (_, codes) in codes.iter().enumerate().filter(|(other, _)| *other != crop) {
                for (k, &logit) in logits.iter().enumerate() {
                    let (code, log_p) = (f64::from(codes[[row, k]]), logit - largest - total.ln());
                    loss -= code * log_p * weight;
                    gradient[[row, k]] += (log_p.exp() - code) * weight / temperature;
                }
            }
        }
        gradients.push(gradient.mapv(|x| x as f32));
    }
    let views: Vec<_> = gradients.iter().map(|gradient| gradient.view()).collect();
    (loss, concatenate(Axis(0), &views).unwrap())
}

/// The update itself in dfdx's operations against [`swav_optim`]: the same parameters, gradients and slots.
#[test]
fn updates_are_those_of_the_optimisers() {
    let config = super::small(BlockKind::Basic, Stem::Cifar, Head::Mlp { hidden: 7 });
    let (momentum, weight_decay) = (0.8, 0.1);
    let methods = [
        Method::Larc { lr: 0.3, momentum, weight_decay, trust: 0.02 },
        Method::Sgd { lr: 0.05, momentum, weight_decay },
        Method::AdamW { lr: 0.01, beta1: 0.9, beta2: 0.99, epsilon: 1e-3, weight_decay },
    ];
    for device in devices() {
        for method in methods {
            for (groups, gradient_scale) in
                [(crate::Groups::Alike, 1.0), (crate::Groups::ExemptNormsAndBiases, 0.3)]
            {
                let rule = UpdateRule { groups, gradient_scale, ..method.into() };
                update_once(&device, &config, &rule);
            }
        }
    }
}

fn update_once(device: &str, config: &EncoderConfig, rule: &UpdateRule) {
    let mut encoder = super::encoder(device, config);
    for round in 0..2 {
        let (state, memory) = (encoder.state().unwrap(), encoder.optimizer_state().unwrap());
        let z = encoder.forward_train(&[super::images(6, 9, 9, 40 + round).view()]).unwrap();
        encoder.backward(super::gradient(&z, 50 + round).view()).unwrap();
        let mut expected = Vec::new();
        let mut norms = crate::UpdateStats::default();
        for (name, shape) in encoder.parameters() {
            let (mut value, gradient) =
                (state.get(&name).unwrap().data().to_vec(), encoder.gradient(&name).unwrap());
            let mut slots = memory.slots(&name, &shape).unwrap();
            let role = match name.rsplit_once('.').unwrap() {
                (layer, _) if layer.contains("bn") || layer.contains("downsample.1") => Role::Norm,
                ("projection_head.1", _) => Role::Norm,
                (_, "bias") => Role::Bias,
                _ => Role::Weight,
            };
            norms = norms.merge(apply(rule, role, &mut value, &gradient, &mut slots));
            expected.push((name, shape, value, slots));
        }
        assert!((encoder.gradient_norm().unwrap() / norms.gradient_norm - 1.0).abs() < 1e-5);
        let stats = encoder.update(rule).unwrap();
        assert!((stats.gradient_norm / norms.gradient_norm - 1.0).abs() < 1e-5, "{device}: {rule:?}");
        assert!((stats.parameter_norm / norms.parameter_norm - 1.0).abs() < 1e-5, "{device}: {rule:?}");
        let (state, memory) = (encoder.state().unwrap(), encoder.optimizer_state().unwrap());
        for (name, shape, value, slots) in expected {
            let actual = memory.slots(&name, &shape).unwrap();
            assert_eq!(actual.n_updates, slots.n_updates);
            let vectors = actual.vectors().map(|(_, v)| v).chain([state.get(&name).unwrap().data()]);
            for (actual, expected) in vectors.zip(slots.vectors().map(|(_, v)| v).chain([value.as_slice()])) {
                let error = super::relative(actual, expected);
                // Gradients that are rounding alone, of a bias before a batch norm, have norms that depend on the sum's order.
                let tolerance = if name == "projection_head.0.bias" { 1e-3 } else { 1e-5 };
                assert!(error < tolerance, "{device}: {rule:?}: {name}: {error:e}");
            }
        }
    }
}
