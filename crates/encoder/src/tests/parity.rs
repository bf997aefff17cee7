//! Against PyTorch's numbers in the fixtures, on every device.

use ndarray::{Array2, Axis, aview1, concatenate, s};
use swav_fixtures::{Start, Tensors, ensure, json, max_abs_difference, relative_error, replay};
use swav_optim::{Role, apply};

use serde_json::Value;

use super::devices;
use crate::builder::build_without_head;
use crate::{
    Arch, BlockKind, Encoder, EncoderConfig, Head, ImageBatch, Method, Output, Slots, StateDict, StateTensor,
    Stem, UpdateRule, build,
};

/// Loads the parameters `init.*`. Running statistics stay those of a new network: the fixtures were written after
/// the passes, and their `init.*` statistics are the final ones.
fn load_initial(encoder: &mut dyn Encoder, tensors: &Tensors, start: Start) {
    let mut state = encoder.state().unwrap();
    let initial = self::state(tensors, "init.");
    for (name, shape) in encoder.parameters() {
        let mut values = initial.expect(&name, &shape).unwrap().data().to_vec();
        start.nudge(&mut values);
        state.insert(name, StateTensor::new(shape, values).unwrap());
    }
    encoder.load_state(&state).unwrap();
}

/// The tensors `PREFIX.*` of an encoder.
fn state(tensors: &Tensors, prefix: &str) -> StateDict {
    let named = tensors.names().into_iter().filter_map(|name| {
        let inner = name.strip_prefix(prefix)?;
        let of_encoder = !inner.starts_with("prototypes");
        of_encoder.then(|| {
            let values = tensors.f32(&name);
            let tensor = StateTensor::new(values.shape().to_vec(), values.into_raw_vec_and_offset().0);
            (inner.to_owned(), tensor.unwrap())
        })
    });
    named.collect()
}

/// NCHW to NHWC, with the dimensions `[n, h, w]`.
fn images(tensors: &Tensors, name: &str) -> (Vec<f32>, [usize; 3]) {
    let nchw = tensors.f32(name);
    let &[n, _, h, w] = nchw.shape() else { panic!("{name} has to be NCHW") };
    (nchw.permuted_axes(vec![0, 2, 3, 1]).iter().copied().collect(), [n, h, w])
}

fn matrix(tensors: &Tensors, name: &str) -> Array2<f32> {
    tensors.f32(name).into_dimensionality().unwrap()
}

/// Every gradient `PREFIX.*` within `tolerance`, relative by tensor; one whose norm is under 1e-6 of the largest
/// counts absolutely.
fn compare_gradients(
    device: &str,
    encoder: &dyn Encoder,
    tensors: &Tensors,
    prefix: &str,
    tolerance: f64,
) -> Result<(), String> {
    let expected = state(tensors, prefix);
    let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let largest = expected.iter().map(|(_, tensor)| norm(tensor.data())).fold(0.0, f64::max);
    let mut seen = 0;
    for (name, shape) in encoder.parameters() {
        let expected = expected.expect(&name, &shape).unwrap().data();
        let actual = encoder.gradient(&name).unwrap();
        let scale = if norm(expected) < 1e-6 * largest { 1.0 } else { norm(expected) };
        let difference: Vec<f32> = actual.iter().zip(expected).map(|(a, e)| a - e).collect();
        let error = norm(&difference) / scale;
        ensure!(error < tolerance, "{device}: gradient of {name}: {error:e}");
        seen += 1;
    }
    assert_eq!(seen, expected.len());
    Ok(())
}

/// Every tensor within `tolerance`: relative, or absolute for a bias before batch norm, whose gradient is rounding and
/// which LARC moves in that random direction all the same.
fn compare_states(
    device: &str,
    actual: &StateDict,
    expected: &StateDict,
    tolerance: f64,
) -> Result<(), String> {
    assert!(!expected.is_empty());
    for (name, expected) in expected.iter() {
        let actual = actual.expect(name, expected.shape()).unwrap();
        let error = if name == "projection_head.0.bias" {
            max_abs_difference(&*aview1(actual.data()), &*aview1(expected.data()))
        } else {
            super::relative(actual.data(), expected.data())
        };
        ensure!(error < tolerance, "{device}: {name}: {error:e}");
    }
    Ok(())
}

#[test]
fn parity_resnet18_tiny_cifar() {
    let tensors = Tensors::open("resnet18_tiny_cifar");
    let config = EncoderConfig {
        arch: Arch::Resnet18,
        width: tensors.f32("init.conv1.weight").shape()[0],
        stem: Stem::Cifar,
        head: Head::None,
        exact: true,
        ..EncoderConfig::default()
    };
    for device in devices() {
        replay(|start| resnet18_tiny_cifar(&device, &config, &tensors, start));
    }
}

fn resnet18_tiny_cifar(
    device: &str,
    config: &EncoderConfig,
    tensors: &Tensors,
    start: Start,
) -> Result<(), String> {
    let (pixels, [n, h, w]) = images(tensors, "x");
    let batch = ImageBatch::new(&pixels, n, h, w).unwrap();
    // Without the normalisation of rows: the fixture's gradient is that of the features.
    let mut encoder = build_without_head(device, &config.check().unwrap(), 31).unwrap();
    load_initial(&mut *encoder, tensors, start);
    let features = encoder.forward_train(&[batch]).unwrap();
    let error = relative_error(&*features, &*matrix(tensors, "features_train"));
    ensure!(error < 1e-4, "{device}: features in training: {error:e}");
    encoder.backward(matrix(tensors, "grad_out").view()).unwrap();
    compare_gradients(device, &*encoder, tensors, "grad.", 1e-4)?;
    compare_states(device, &encoder.state().unwrap(), &state(tensors, "after."), 1e-4)?;
    let features = encoder.embed(batch, Output::Features).unwrap();
    let error = relative_error(&*features, &*matrix(tensors, "features_eval"));
    ensure!(error < 1e-4, "{device}: features in inference: {error:e}");
    Ok(())
}

/// The crate's own numbers; `oracle/make_steps.py` makes them.
#[test]
fn parity_steps_of_the_crate() {
    for name in ["steps_multicrop", "steps_zero_residual", "steps_with_queue"] {
        let path = format!("{}/oracle/{name}", env!("CARGO_MANIFEST_DIR"));
        assert!(!starts_at_its_end(&Tensors::open(&path)));
        steps(&path, usize::MAX);
    }
}

/// The first step. Whole trainings from these fixtures are followed by the tests of `swav-train`, which trains.

#[test]
fn parity_steps_bottleneck() {
    steps("steps_bottleneck", 1);
}

/// As above.
#[test]
fn parity_steps_queue() {
    steps("steps_queue", 1);
}

/// Whether `init.*` is `after.*`, as in files whose maker did not copy before it trained.
fn starts_at_its_end(tensors: &Tensors) -> bool {
    let (initial, after) = (state(tensors, "init."), state(tensors, "after."));
    initial.iter().all(|(name, tensor)| after.get(name) == Some(tensor))
}

/// Up to `n_steps` steps of a training on every device.
fn steps(fixture: &str, n_steps: usize) {
    let (tensors, facts) = (Tensors::open(fixture), json(fixture));
    let shape = |name: &str| tensors.f32(name).shape().to_vec();
    let config = EncoderConfig {
        arch: Arch::Custom { block: BlockKind::Bottleneck, layers: vec![1; 4] },
        width: shape("init.conv1.weight")[0],
        stem: Stem::Imagenet,
        head: Head::Mlp { hidden: shape("init.projection_head.0.weight")[0] },
        dim: shape("init.projection_head.3.weight")[0],
        exact: true,
        ..EncoderConfig::default()
    };
    for device in devices() {
        replay(|start| {
            let mut encoder = build(&device, &config.check().unwrap(), 31).unwrap();
            load_initial(&mut *encoder, &tensors, start);
            train(&format!("{fixture} on {device}"), &mut *encoder, &tensors, &facts, n_steps)
        });
    }
}

/// Steps of a training with the fixture's codes: loss, embeddings, gradients, and the state at the end. Where the start is not known ([`starts_at_its_end`]), only the embeddings of the trained network remain.
fn train(
    name: &str,
    encoder: &mut dyn Encoder,
    tensors: &Tensors,
    facts: &Value,
    n_steps: usize,
) -> Result<(), String> {
    let number = |key: &str| facts[key].as_f64().unwrap() as f32;
    let (batch, crops) =
        (facts["batch"].as_u64().unwrap() as usize, facts["crops"].as_u64().unwrap() as usize);
    let mut steps = &facts["steps"].as_array().unwrap()[..];
    if starts_at_its_end(tensors) {
        encoder.load_state(&state(tensors, "after.")).unwrap();
        steps = &[];
    }
    let mut prototypes = matrix(tensors, "init.prototypes.weight");
    let mut slots = Slots::default();
    for (index, step) in steps.iter().enumerate().take(n_steps) {
        let all: Vec<_> =
            (0..crops).map(|crop| images(tensors, &format!("step{index}.crop{crop}"))).collect();
        let groups: Vec<(Vec<f32>, [usize; 3])> = all.chunk_by(|a, b| a.1 == b.1).map(join).collect();
        let groups: Vec<ImageBatch<'_>> =
            groups.iter().map(|(pixels, [n, h, w])| ImageBatch::new(pixels, *n, *h, *w).unwrap()).collect();
        let z = encoder.forward_train(&groups).unwrap();
        let difference = max_abs_difference(&*z, &*matrix(tensors, &format!("step{index}.z")));
        ensure!(difference < 1e-3, "{name}: z of step {index}: {difference:e}");

        for mut row in prototypes.rows_mut() {
            let length = row.dot(&row).sqrt();
            row /= length;
        }
        let scores = z.dot(&prototypes.t());
        let codes = [0, 1].map(|crop| matrix(tensors, &format!("step{index}.q{crop}")));
        let (loss, grad_scores) = swapped_loss(&scores, &codes, batch, crops, number("temperature"));
        let expected = step["loss"].as_f64().unwrap();
        ensure!((loss - expected).abs() < 1e-4, "{name}: loss {loss} against {expected}");
        encoder.backward(grad_scores.dot(&prototypes).view()).unwrap();
        if index == 0 || index + 1 == steps.len() {
            compare_gradients(name, encoder, tensors, &format!("step{index}.grad."), 1e-3)?;
        }
        let rule = UpdateRule::new(Method::Larc {
            lr: step["lr"].as_f64().unwrap() as f32,
            momentum: number("momentum"),
            weight_decay: number("weight_decay"),
            trust: number("trust"),
        });
        encoder.update(&rule).unwrap();
        if index as f32 >= number("freeze_prototypes_iters") {
            let gradient = grad_scores.t().dot(&z).as_standard_layout().to_owned();
            apply(
                &rule,
                Role::Weight,
                prototypes.as_slice_mut().unwrap(),
                gradient.as_slice().unwrap(),
                &mut slots,
            );
        }
    }
    if n_steps < steps.len() {
        return Ok(());
    }
    compare_states(name, &encoder.state().unwrap(), &state(tensors, "after."), 1e-3)?;
    let (pixels, [n, h, w]) = images(tensors, "step0.crop0");
    let z = encoder.embed(ImageBatch::new(&pixels, n, h, w).unwrap(), Output::Embedding).unwrap();
    let difference = max_abs_difference(&*z, &*matrix(tensors, "eval.z_of_step0_crop0"));
    ensure!(difference < 1e-3, "{name}: z in inference: {difference:e}");
    Ok(())
}

fn join(crops: &[(Vec<f32>, [usize; 3])]) -> (Vec<f32>, [usize; 3]) {
    let [_, h, w] = crops[0].1;
    let pixels = crops.iter().flat_map(|crop| crop.0.iter().copied()).collect();
    (pixels, [crops.iter().map(|crop| crop.1[0]).sum(), h, w])
}

/// The swapped prediction loss of crops 0 and 1 and its gradient by the scores.
fn swapped_loss(
    scores: &Array2<f32>,
    codes: &[Array2<f32>; 2],
    batch: usize,
    crops: usize,
    temperature: f32,
) -> (f64, Array2<f32>) {
    let mut loss = 0.0f64;
    let weight = 1.0 / (2.0 * (crops - 1) as f32 * batch as f32);
    let mut gradients = Vec::new();
    for crop in 0..crops {
        let logits = scores.slice(s![crop * batch..(crop + 1) * batch, ..]).mapv(|x| x / temperature);
        let mut gradient = Array2::<f32>::zeros(logits.dim());
        for (row, logits) in logits.rows().into_iter().enumerate() {
            let largest = logits.fold(f32::MIN, |m, &x| m.max(x));
            let total = logits.mapv(|x| (x - largest).exp()).sum();
            for codes in codes.iter().enumerate().filter(|(other, _)| *other != crop).map(|(_, codes)| codes)
            {
                for (k, &logit) in logits.iter().enumerate() {
                    let log_p = logit - largest - total.ln();
                    loss -= f64::from(codes[[row, k]] * log_p * weight);
                    gradient[[row, k]] += (log_p.exp() - codes[[row, k]]) * weight / temperature;
                }
            }
        }
        gradients.push(gradient);
    }
    let views: Vec<_> = gradients.iter().map(|gradient| gradient.view()).collect();
    (loss, concatenate(Axis(0), &views).unwrap())
}
