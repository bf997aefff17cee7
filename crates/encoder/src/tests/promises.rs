//! What the trait promises besides numbers: statistics, shapes, errors.

use super::{bits, devices, encoder, gradient, images, noise, relative, small};
use crate::{
    BlockKind, EncoderConfig, EncoderError, Head, Method, Output, ResNet, StateDict, StateTensor, Stem,
    UpdateRule, Variant, build,
};

const SGD: UpdateRule = UpdateRule::new(Method::Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.0 });

fn mlp() -> EncoderConfig {
    small(BlockKind::Basic, Stem::Cifar, Head::Mlp { hidden: 7 })
}

#[test]
fn rows_have_unit_length_and_dimensions_fit() {
    for device in devices() {
        for head in [Head::None, Head::Linear, Head::Mlp { hidden: 3 }] {
            let mut encoder = encoder(&device, &small(BlockKind::Bottleneck, Stem::Imagenet, head));
            let images = images(3, 17, 23, 1);
            let z = encoder.forward_train(&[images.view()]).unwrap();
            assert_eq!(z.dim(), (3, encoder.embedding_dim()));
            assert!(z.rows().into_iter().all(|row| (row.dot(&row) - 1.0).abs() < 1e-5));
            let z = encoder.embed(images.view(), Output::Embedding).unwrap();
            assert!(z.rows().into_iter().all(|row| (row.dot(&row) - 1.0).abs() < 1e-5));
            let features = encoder.embed(images.view(), Output::Features).unwrap();
            assert_eq!(features.dim(), (3, encoder.feature_dim()));
        }
    }
}

/// A stage's output is what the network gives that ends there.
#[test]
fn layers_are_the_features_of_shorter_networks() {
    for (device, block, stem) in devices().into_iter().flat_map(|device| {
        [(BlockKind::Basic, Stem::Cifar), (BlockKind::Bottleneck, Stem::Imagenet)]
            .map(|(block, stem)| (device.clone(), block, stem))
    }) {
        let config = small(block, stem, Head::Mlp { hidden: 3 });
        let mut whole = encoder(&device, &config);
        let images = images(3, 21, 18, 1);
        // So that running statistics are not those of the start.
        whole.forward_train(&[images.view()]).unwrap();
        let features = whole.embed(images.view(), Output::Features).unwrap();
        assert_eq!(whole.embed(images.view(), Output::Layer(2)).unwrap(), features);
        assert_eq!(whole.layer_dims(), [features.ncols() / 2, features.ncols()]);
        for got in [0, 3] {
            let error = whole.embed(images.view(), Output::Layer(got)).unwrap_err();
            assert!(matches!(error, EncoderError::NoLayer { expected: 2, got: g } if g == got), "{error}");
        }
        if device.starts_with("cuda") {
            let error = whole.embed(images.view(), Output::Layer(1)).unwrap_err();
            assert!(matches!(error, EncoderError::Unsupported { .. }), "{error}");
            continue;
        }
        let arch = ResNet::custom(block, [1]).with_width(6).with_stem(stem).into();
        let mut short = encoder(&device, &EncoderConfig { arch, head: Head::None, ..config });
        let mut state = StateDict::new();
        for (name, tensor) in whole.state().unwrap() {
            if !name.starts_with("layer2") && !name.starts_with("projection_head") {
                state.insert(name, tensor);
            }
        }
        short.load_state(&state).unwrap();
        let expected = short.embed(images.view(), Output::Features).unwrap();
        let rows = whole.embed(images.view(), Output::Layer(1)).unwrap();
        assert_eq!(rows.ncols(), whole.output_dim(Output::Layer(1)).unwrap());
        assert_eq!(bits(rows.as_slice().unwrap()), bits(expected.as_slice().unwrap()), "{device}");
    }
}

#[test]
fn every_architecture_embeds() {
    for (variant, feature_dim) in [
        (Variant::Resnet18, 8 * 4),
        (Variant::Resnet34, 8 * 4),
        (Variant::Resnet50, 8 * 4 * 4),
        (Variant::Resnet50w2, 2 * 8 * 4 * 4),
        (Variant::Resnet50w4, 4 * 8 * 4 * 4),
        (Variant::Resnet50w5, 5 * 8 * 4 * 4),
    ] {
        let config = EncoderConfig {
            arch: ResNet::new(variant).with_width(4).into(),
            dim: 6,
            head: Head::Linear,
            ..EncoderConfig::default()
        };
        let encoder = encoder("cpu", &config);
        let features = encoder.embed(images(1, 32, 32, 2).view(), Output::Features).unwrap();
        assert_eq!(features.dim(), (1, feature_dim));
        assert!(features.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn statistics_become_the_average_over_batches() {
    for device in devices() {
        let mut encoder = encoder(&device, &mlp());
        let batches = [images(4, 12, 12, 3), images(5, 12, 12, 4), images(3, 8, 8, 5)];
        let alone: Vec<StateDict> = (batches.iter())
            .map(|images| {
                encoder.statistics().unwrap().reestimate(&[images.view()]).unwrap();
                encoder.state().unwrap()
            })
            .collect();
        encoder.statistics().unwrap().reestimate(&batches.each_ref().map(|images| images.view())).unwrap();
        let state = encoder.state().unwrap();
        for name in ["bn1.running_mean", "layer2.0.downsample.1.running_var", "projection_head.1.running_var"]
        {
            let values = |state: &StateDict| state.get(name).unwrap().data().to_vec();
            let mut average = vec![0.0; values(&state).len()];
            for state in &alone {
                average.iter_mut().zip(values(state)).for_each(|(sum, x)| *sum += x / 3.0);
            }
            assert!(relative(&values(&state), &average) < 1e-5, "{device}: {name}");
        }
        assert_eq!(state.get("bn1.num_batches_tracked").unwrap().data(), [3.0]);
    }
}

#[test]
fn steps_out_of_order_are_errors() {
    for device in devices() {
        let mut encoder = encoder(&device, &mlp());
        assert!(matches!(encoder.update(&SGD), Err(EncoderError::NoGradients)));
        assert!(matches!(encoder.backward(ndarray::arr2(&[[0.0]]).view()), Err(EncoderError::NoForward)));
        assert!(matches!(encoder.forward_train(&[]), Err(EncoderError::Images { .. })));
        assert!(matches!(encoder.reduce_gradients(&swav_collective::Single), Err(EncoderError::NoGradients)));
        assert!(matches!(encoder.gradient_norm(), Err(EncoderError::NoGradients)));
        let z = encoder.forward_train(&[images(4, 8, 8, 1).view()]).unwrap();
        let wrong = encoder.backward(ndarray::arr2(&[[0.0]]).view());
        assert!(matches!(wrong, Err(EncoderError::GradientShape { expected: [4, 5], got: [1, 1] })));
        encoder.backward(gradient(&z, 1).view()).unwrap();
        assert!(encoder.gradient("no such parameter").is_none());
        encoder.update(&SGD).unwrap();
        assert!(matches!(encoder.update(&SGD), Err(EncoderError::NoGradients)));
        assert!(encoder.gradient("conv1.weight").is_none());
    }
}

#[test]
fn one_value_per_channel_is_an_error_that_names_the_layer() {
    for device in devices() {
        let mut encoder = encoder(&device, &mlp());
        let result = encoder.forward_train(&[images(1, 2, 2, 1).view()]);
        assert!(
            matches!(&result, Err(EncoderError::BatchTooSmall { layer, got: 1 }) if layer == "layer2.0"),
            "{result:?}"
        );
        let result = encoder.forward_train(&[images(1, 8, 8, 1).view()]);
        assert!(
            matches!(&result, Err(EncoderError::BatchTooSmall { layer, got: 1 }) if layer == "projection_head.1"),
            "{result:?}"
        );
    }
}

#[test]
fn a_foreign_state_changes_nothing() {
    for device in devices() {
        let mut encoder = encoder(&device, &mlp());
        let start = encoder.state().unwrap();
        let mut missing = start.clone();
        missing.remove("layer1.0.bn1.bias");
        assert!(
            matches!(encoder.load_state(&missing), Err(EncoderError::Missing { name }) if name == "layer1.0.bn1.bias")
        );
        let mut shape = start.clone();
        shape.insert("bn1.running_var", StateTensor::new(vec![2], vec![1.0; 2]).unwrap());
        assert!(matches!(encoder.load_state(&shape), Err(EncoderError::StateShape { .. })));
        let mut more = start.clone();
        more.insert("fc.weight", StateTensor::scalar(1.0));
        assert!(
            matches!(encoder.load_state(&more), Err(EncoderError::Unexpected { name }) if name == "fc.weight")
        );
        assert_eq!(encoder.state().unwrap(), start);
        let mut foreign = StateDict::new();
        foreign.insert("fc.weight.first", StateTensor::scalar(1.0));
        assert!(matches!(encoder.load_optimizer_state(&foreign), Err(EncoderError::Unexpected { .. })));
        // PyTorch's counters may be missing.
        let mut bare = StateDict::new();
        for (name, tensor) in start.iter().filter(|(name, _)| !name.ends_with("num_batches_tracked")) {
            bare.insert(name, tensor.clone());
        }
        encoder.load_state(&bare).unwrap();
    }
}

#[test]
fn what_a_device_cannot_do_is_refused() {
    let config = EncoderConfig { precision: crate::Precision::Mixed, ..mlp() };
    let error = build("dfdx:cpu", &config.check().unwrap(), 1).err().unwrap();
    assert!(
        matches!(&error, EncoderError::Unsupported { device, what: "mixed precision", .. } if device == "dfdx:cpu"),
        "{error}"
    );
}

/// An encoder may change its thread at any point of a step.
#[test]
fn encoders_travel_between_threads() {
    for device in devices() {
        let mut encoder = encoder(&device, &mlp());
        let (z, encoder) = std::thread::scope(|scope| {
            let forward = scope.spawn(move || {
                let z = encoder.forward_train(&[images(4, 8, 8, 1).view()]).unwrap();
                (z, encoder)
            });
            forward.join().unwrap()
        });
        let mut encoder = encoder;
        encoder.backward(gradient(&z, 1).view()).unwrap();
        encoder.update(&SGD).unwrap();
    }
}

#[test]
fn seeds_decide_the_parameters_on_every_device() {
    let one = encoder("cpu", &mlp()).state().unwrap();
    for device in devices() {
        assert_eq!(encoder(&device, &mlp()).state().unwrap(), one, "{device}");
    }
    let second = build("cpu", &mlp().check().unwrap(), 32).unwrap().state().unwrap();
    assert_ne!(one, second);
}

#[test]
fn a_network_learns() {
    // Embeddings of four fixed images are pulled to four fixed directions.
    for device in devices() {
        let mut encoder = encoder(&device, &mlp());
        let images = images(4, 8, 8, 1);
        let targets = ndarray::Array2::from_shape_vec((4, 5), noise(20, 2)).unwrap();
        let mut losses = Vec::new();
        for _ in 0..12 {
            let z = encoder.forward_train(&[images.view()]).unwrap();
            losses.push(-(&z * &targets).sum());
            encoder.backward((-&targets).view()).unwrap();
            encoder.update(&SGD).unwrap();
        }
        assert!(losses[11] < losses[0] - 1.0, "{device}: {losses:?}");
    }
}

/// What is prepared for inference belongs to parameters and statistics as they are.
#[test]
fn embeddings_follow_every_change_of_the_network() {
    for device in devices() {
        let config = EncoderConfig { exact: false, ..mlp() };
        let mut encoder = encoder(&device, &config);
        let images = images(4, 12, 12, 1);
        let mut before = encoder.embed(images.view(), Output::Embedding).unwrap();
        let mut check = |encoder: &dyn crate::Encoder, what: &str| {
            let z = encoder.embed(images.view(), Output::Embedding).unwrap();
            assert_ne!(z, before, "{device}: {what}");
            let mut other = build(&device, &config.check().unwrap(), 32).unwrap();
            other.load_state(&encoder.state().unwrap()).unwrap();
            let expected = other.embed(images.view(), Output::Embedding).unwrap();
            assert_eq!(bits(z.as_slice().unwrap()), bits(expected.as_slice().unwrap()), "{device}: {what}");
            before = z;
        };
        encoder.forward_train(&[images.view()]).unwrap();
        check(&*encoder, "forward in training");
        // Some devices remember one pass only.
        let z = encoder.forward_train(&[images.view()]).unwrap();
        encoder.backward(gradient(&z, 1).view()).unwrap();
        encoder.update(&SGD).unwrap();
        check(&*encoder, "update");
        encoder.statistics().unwrap().reset().unwrap();
        check(&*encoder, "statistics forgotten");
        encoder.statistics().unwrap().observe(images.view()).unwrap();
        check(&*encoder, "statistics estimated");
        let other = build(&device, &config.check().unwrap(), 33).unwrap();
        encoder.load_state(&other.state().unwrap()).unwrap();
        check(&*encoder, "state loaded");
    }
}
