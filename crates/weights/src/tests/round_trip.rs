//! What is written here is read back with the same bits.

use swav_encoder::{BlockKind, EncoderConfig, Head, ResNet, StateDict, StateTensor, Stem, Variant};

use super::{small, state_of};
use crate::export::{Onnx, OnnxOptions, Part, to_safetensors, to_torch};
use crate::{Dtype, Import, Metadata, Preprocessing, Start, WeightsError, WeightsFile, write_file};

/// All kinds of networks with their prototypes.
fn kinds() -> Vec<(EncoderConfig, Vec<usize>)> {
    let mut kinds = Vec::new();
    for block in [BlockKind::Basic, BlockKind::Bottleneck] {
        for stem in [Stem::Cifar, Stem::Imagenet] {
            for head in [Head::None, Head::Linear, Head::Mlp { hidden: 10 }] {
                for n_prototypes in [vec![], vec![7], vec![3, 5]] {
                    kinds.push((small(block, stem, head), n_prototypes));
                }
            }
        }
    }
    kinds
}

fn bits(state: &StateDict) -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let one = |(name, tensor): (&str, &StateTensor)| {
        (name.to_owned(), tensor.shape().to_vec(), tensor.data().iter().map(|x| x.to_bits()).collect())
    };
    state.iter().map(one).collect()
}

#[test]
fn every_kind_of_network_comes_back() {
    for (config, n_prototypes) in kinds() {
        let state = state_of(&config, &n_prototypes);
        for bytes in [to_safetensors(&state, &Metadata::new()), to_torch(&state).unwrap()] {
            let import = Import::read(&mut WeightsFile::from_bytes(bytes).unwrap(), None).unwrap();
            assert_eq!(
                (import.encoder.arch.clone(), import.encoder.head),
                (config.arch.clone(), config.head)
            );
            assert!(config.head == Head::None || import.encoder.dim == config.dim);
            assert_eq!(import.n_prototypes, n_prototypes);
            assert!(import.account.left_over.is_empty());
            let all = import.state.into_iter().chain(import.prototypes).collect();
            assert_eq!(bits(&all), bits(&state));
        }
    }
}

#[test]
fn parts_and_preprocessing_are_written() {
    let config = small(BlockKind::Basic, Stem::Cifar, Head::Linear);
    let state = state_of(&config, &[7]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.safetensors");
    let preprocessing = Preprocessing { resize: 40, size: 32, ..Preprocessing::default() };
    let mut metadata = Metadata::new();
    preprocessing.enter(&mut metadata);
    for (part, has_head, n_prototypes) in
        [(Part::Backbone, false, vec![]), (Part::Head, true, vec![]), (Part::Prototypes, true, vec![7])]
    {
        write_file(&path, |to| crate::export::safetensors(to, &part.of(&state), &metadata)).unwrap();
        let import = Import::read(&mut WeightsFile::open(&path).unwrap(), None).unwrap();
        assert_eq!((import.encoder.head == Head::Linear, import.n_prototypes), (has_head, n_prototypes));
        assert_eq!(import.preprocessing, Some(preprocessing));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    let nowhere = folder.path().join("no/such/folder.pth");
    let written = write_file(&nowhere, |to| crate::export::torch(to, &[]));
    assert!(matches!(written, Err(WeightsError::Write { .. })));
}

#[test]
fn a_training_starts_with_what_fits() {
    let trained = small(BlockKind::Basic, Stem::Cifar, Head::Mlp { hidden: 10 });
    let bytes = to_safetensors(&state_of(&trained, &[7]), &Metadata::new());
    let start = |config: &EncoderConfig| {
        let mut file = WeightsFile::from_bytes(bytes.clone()).unwrap();
        Start::read(&mut file, &config.check().unwrap())
    };
    let same = start(&trained).unwrap();
    assert!(same.with_head && same.state.get("projection_head.3.bias").is_some());
    assert!(same.state.get("prototypes.weight").is_none());
    let other = start(&EncoderConfig { dim: 9, ..trained.clone() }).unwrap();
    assert!(!other.with_head && other.state.iter().all(|(name, _)| !name.starts_with("projection_head")));
    let headless = start(&EncoderConfig { head: Head::None, ..trained }).unwrap();
    assert!(!headless.with_head);
    match start(&small(BlockKind::Bottleneck, Stem::Imagenet, Head::None)) {
        Err(WeightsError::Misfit { missing, shapes }) => {
            assert!(missing.contains(&"layer1.0.conv3.weight".to_owned()));
            assert!(shapes.iter().any(|(name, ..)| name == "conv1.weight"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn halves_are_widened() {
    let config = small(BlockKind::Basic, Stem::Cifar, Head::None);
    let state = state_of(&config, &[]);
    // The upper halves of the floats, as bf16 has them.
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, tensor) in state.iter() {
        let from = data.len();
        data.extend(tensor.data().iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()));
        let entry = serde_json::json!({ "dtype": "BF16", "shape": tensor.shape(), "data_offsets": [from, data.len()] });
        header.insert(name.to_owned(), entry);
    }
    let text = serde_json::Value::Object(header).to_string();
    let bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &data].concat();
    let import = Import::read(&mut WeightsFile::from_bytes(bytes).unwrap(), None).unwrap();
    assert_eq!(import.account.taken.keys().collect::<Vec<_>>(), [&Dtype::Bf16]);
    for (name, tensor) in state.iter() {
        let cut = tensor.data().iter().map(|value| f32::from_bits(value.to_bits() & 0xffff_0000));
        assert_eq!(import.state.get(name).unwrap().data(), cut.collect::<Vec<_>>(), "{name}");
    }
}

/// What a graph computes is compared with PyTorch by docs/round_trip.py; here is what it is made of.
#[test]
fn graphs_have_what_is_asked_for() {
    let has = |bytes: &[u8], word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
    let graph = |config: &EncoderConfig, state: &StateDict, options: &OnnxOptions| {
        let mut bytes = Vec::new();
        Onnx::new(config, state, options, &Metadata::new())?.write(&mut bytes).unwrap();
        Ok::<_, WeightsError>(bytes)
    };
    for (config, n_prototypes) in kinds() {
        let state = state_of(&config, &n_prototypes);
        for part in [Part::Backbone, Part::Head, Part::Prototypes] {
            for fold_batch_norm in [false, true] {
                let normalize = fold_batch_norm.then(Preprocessing::default);
                let bytes = graph(&config, &state, &OnnxOptions { part, fold_batch_norm, normalize });
                if part == Part::Prototypes && n_prototypes.is_empty() {
                    assert!(matches!(bytes, Err(WeightsError::NoPart { .. })));
                    continue;
                }
                let bytes = bytes.unwrap();
                assert_eq!(has(&bytes, "BatchNormalization"), !fold_batch_norm);
                assert_eq!(has(&bytes, "Transpose"), fold_batch_norm);
                assert_eq!(has(&bytes, "embedding"), part >= Part::Head);
                assert_eq!(has(&bytes, "scores1"), part == Part::Prototypes && n_prototypes.len() == 2);
            }
        }
    }
    // ResNet-50 five times as wide has 2.3 GB: known from its shapes alone.
    for (variant, fits) in [(Variant::Resnet50w4, true), (Variant::Resnet50w5, false)] {
        let wide = EncoderConfig { arch: ResNet::new(variant).into(), ..EncoderConfig::default() };
        let checked = OnnxOptions { part: Part::Backbone, ..OnnxOptions::default() }.check(&wide);
        match checked {
            Err(WeightsError::TooLarge { expected, got, .. }) => assert!(!fits && got > expected),
            other => assert!(fits && other.is_ok(), "{wide:?}"),
        }
        assert!(
            fits || matches!(
                graph(&wide, &StateDict::new(), &OnnxOptions::default()),
                Err(WeightsError::TooLarge { .. })
            )
        );
    }
    let (config, _) = kinds().pop().unwrap();
    let mut state = state_of(&config, &[]);
    state.remove("layer2.1.bn3.running_var");
    match graph(&config, &state, &OnnxOptions { part: Part::Head, ..OnnxOptions::default() }) {
        Err(WeightsError::Misfit { missing, .. }) => assert_eq!(missing, ["layer2.1.bn3.running_var"]),
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
}
