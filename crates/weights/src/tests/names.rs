//! Networks under other names, and files that hold no network.

use swav_encoder::{BlockKind, EncoderConfig, Head, ResNet, StateDict, StateTensor, Stem, Variant};

use super::{small, state_of};
use crate::export::to_safetensors;
use crate::{Import, Metadata, WeightsError, WeightsFile};

fn import(state: &StateDict, prefix: Option<&str>) -> Result<Import, WeightsError> {
    Import::read(&mut WeightsFile::from_bytes(to_safetensors(state, &Metadata::new())).unwrap(), prefix)
}

fn renamed(state: &StateDict, name: impl Fn(&str) -> String) -> StateDict {
    state.iter().map(|(old, tensor)| (name(old), tensor.clone())).collect()
}

#[test]
fn prefixes_of_all_kinds_are_left_out() {
    let config = small(BlockKind::Bottleneck, Stem::Imagenet, Head::Linear);
    let state = state_of(&config, &[7]);
    for prefix in ["module.", "state_dict.module.", "teacher.module.backbone.", "a.b.c.d."] {
        let found = import(&renamed(&state, |name| format!("{prefix}{name}")), None).unwrap();
        assert_eq!((found.account.prefix.as_str(), found.n_prototypes), (prefix, vec![7]));
        assert_eq!(found.encoder.arch, config.arch);
    }
    // The head beside the backbone.
    let beside = |name: &str| match name.contains("pro") {
        true => format!("module.{name}"),
        false => format!("module.backbone.{name}"),
    };
    let found = import(&renamed(&state, beside), None).unwrap();
    assert_eq!((found.account.prefix.as_str(), found.encoder.head), ("module.backbone.", Head::Linear));
}

#[test]
fn of_several_networks_one_is_chosen_or_has_to_be() {
    let config = small(BlockKind::Basic, Stem::Cifar, Head::None);
    let state = state_of(&config, &[]);
    let twice = |first: &str, second: &str| -> StateDict {
        let named = |prefix: &str| renamed(&state, |name| format!("{prefix}{name}"));
        named(first).into_iter().chain(named(second)).collect()
    };
    let found = import(&twice("student.", "teacher."), None).unwrap();
    assert_eq!((found.account.prefix.as_str(), found.account.left_over.len()), ("teacher.", state.len()));
    let ambiguous = twice("encoder_q.", "encoder_k.");
    match import(&ambiguous, None) {
        Err(WeightsError::Ambiguous { got }) => assert_eq!(got, ["`encoder_k.`", "`encoder_q.`"]),
        other => panic!("{other:?}"),
    }
    for prefix in ["encoder_q", "encoder_q."] {
        assert_eq!(import(&ambiguous, Some(prefix)).unwrap().account.prefix, "encoder_q.");
    }
    let nested = twice("state_dict.module.encoder_q.", "state_dict.module.encoder_k.");
    for prefix in ["encoder_q", "module.encoder_q."] {
        assert_eq!(import(&nested, Some(prefix)).unwrap().account.prefix, "state_dict.module.encoder_q.");
    }
    assert!(matches!(import(&twice("a.net.", "b.net."), Some("net")), Err(WeightsError::NotResNet { .. })));
    assert!(matches!(import(&ambiguous, Some("encoder_z")), Err(WeightsError::NotResNet { .. })));
}

#[test]
fn what_is_missing_and_left_over_is_listed() {
    let config = small(BlockKind::Basic, Stem::Imagenet, Head::None);
    let mut state = state_of(&config, &[]);
    state.insert("fc.weight", StateTensor::new(vec![5, 8], vec![0.0; 40]).unwrap());
    state.insert("fc.bias", StateTensor::new(vec![5], vec![0.0; 5]).unwrap());
    state.remove("bn1.num_batches_tracked");
    let found = import(&state, None).unwrap();
    assert_eq!(found.account.missing, ["bn1.num_batches_tracked", "projection head", "prototypes"]);
    assert_eq!(
        found.account.left_over,
        [("fc.bias".to_owned(), vec![5]), ("fc.weight".to_owned(), vec![5, 8])]
    );

    state.remove("bn1.running_var");
    state.insert("layer2.1.bn2.bias", StateTensor::new(vec![3], vec![0.0; 3]).unwrap());
    match import(&state, None) {
        Err(error @ WeightsError::Misfit { .. }) => {
            let text = error.to_string();
            assert!(text.contains("bn1.running_var: missing"), "{text}");
            assert!(text.contains("layer2.1.bn2.bias: expected shape [8], got [3]"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

/// Of a wide ResNet of torchvision, whose inner width is not the stem's, and of a network that is none.
#[test]
fn other_networks_are_refused() {
    let wide = EncoderConfig {
        arch: ResNet::new(Variant::Resnet18).with_width(2).into(),
        ..EncoderConfig::default()
    };
    let mut state = state_of(&EncoderConfig { head: Head::None, ..wide }, &[]);
    state.insert("layer1.0.conv1.weight", StateTensor::new(vec![4, 2, 3, 3], vec![0.0; 72]).unwrap());
    assert!(matches!(import(&state, None), Err(WeightsError::Misfit { .. })));
    state.insert("conv1.weight", StateTensor::new(vec![2, 3, 5, 5], vec![0.0; 150]).unwrap());
    assert!(matches!(import(&state, None), Err(WeightsError::NotResNet { .. })));
    let other: StateDict =
        [("blocks.0.attn.qkv.weight".to_owned(), StateTensor::scalar(0.0))].into_iter().collect();
    match import(&other, None) {
        Err(WeightsError::NotResNet { got, .. }) => assert_eq!(got, "1 tensor: blocks.0.attn.qkv.weight"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let config = small(BlockKind::Basic, Stem::Cifar, Head::Linear);
    let sound = state_of(&config, &[7]);
    assert!(import(&sound, None).is_ok());
    // Counts are written as whole numbers.
    let values = sound.iter().filter(|(name, _)| !name.ends_with("num_batches_tracked"));
    for (at, (name, tensor)) in values.enumerate() {
        let mut numbers = tensor.data().to_vec();
        let wrong = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][at % 3];
        *numbers.last_mut().unwrap() = wrong;
        let mut broken = sound.clone();
        broken.insert(name, StateTensor::new(tensor.shape().to_vec(), numbers).unwrap());
        match import(&broken, None) {
            Err(WeightsError::Tensor { name: found, got, .. }) => {
                assert_eq!((found.as_str(), got), (name, format!("{wrong} at {}", tensor.data().len() - 1)));
            }
            other => panic!("{name}: {:?}", other.map(|_| ())),
        }
    }
}

/// Relatives whose tensors have the same names and often the same shapes, but that compute something else: each is refused
/// with the reason.
#[test]
fn relatives_are_told_apart() {
    let config = small(BlockKind::Bottleneck, Stem::Imagenet, Head::None);
    let plain = state_of(&config, &[]);
    let zeros =
        |shape: &[usize]| StateTensor::new(shape.to_vec(), vec![0.0; shape.iter().product()]).unwrap();
    let said = |change: &dyn Fn(&mut StateDict)| {
        let mut state = renamed(&plain, |name| format!("module.{name}"));
        change(&mut state);
        match import(&state, None) {
            Err(error @ WeightsError::NotResNet { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    // Squeeze and excitation, a bias of a convolution, three layers at the shortcut, a blur.
    for name in ["layer1.0.se.fc1.weight", "conv1.bias", "layer2.0.downsample.2.weight", "layer2.0.aa.filt"] {
        let text = said(&|state| drop(state.insert(format!("module.{name}"), zeros(&[1]))));
        assert!(text.contains(&format!("`module.{name}`")), "{text}");
    }
    let resnext = said(&|state| drop(state.insert("module.layer1.0.conv2.weight", zeros(&[4, 2, 3, 3]))));
    assert!(resnext.contains("2 groups of 2 channels"), "{resnext}");
    let wide = said(&|state| drop(state.insert("module.layer1.0.conv2.weight", zeros(&[8, 8, 3, 3]))));
    assert!(wide.contains("a wide ResNet"), "{wide}");
    let group_norm = said(&|state| {
        let names: Vec<String> = state.iter().map(|(name, _)| name.to_owned()).collect();
        names.iter().filter(|name| name.contains("running_")).for_each(|name| drop(state.remove(name)));
    });
    assert!(group_norm.contains("running statistics"), "{group_norm}");
    let stem = said(&|state| {
        drop(state.remove("module.conv1.weight"));
        drop(state.insert("module.conv1.0.weight", zeros(&[4, 3, 3, 3])));
    });
    assert!(stem.contains("`module.conv1.0.weight`"), "{stem}");
    let grey = said(&|state| drop(state.insert("module.conv1.weight", zeros(&[4, 1, 7, 7]))));
    assert!(grey.contains("[4, 1, 7, 7]"), "{grey}");
}
