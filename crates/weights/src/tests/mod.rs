//! Tests of whole files: those of our own, and those that nobody should open.

mod hostile;
mod names;
mod round_trip;

use swav_encoder::{BlockKind, EncoderConfig, Head, ResNet, StateDict, StateTensor, Stem};

/// A network of some thousand values.
fn small(block: BlockKind, stem: Stem, head: Head) -> EncoderConfig {
    let arch = ResNet::custom(block, [1, 2]).with_width(4).with_stem(stem).into();
    EncoderConfig { arch, head, dim: 6, ..EncoderConfig::default() }
}

/// A state with other values in every tensor, and prototypes if `n_prototypes` has any.
fn state_of(config: &EncoderConfig, n_prototypes: &[usize]) -> StateDict {
    let spec = config.check().unwrap();
    let mut shapes = spec.tensors();
    let dim = spec.embedding_dim();
    shapes.extend(n_prototypes.iter().enumerate().map(|(head, &k)| match n_prototypes.len() {
        1 => ("prototypes.weight".to_owned(), vec![k, dim]),
        _ => (format!("prototypes.prototypes{head}.weight"), vec![k, dim]),
    }));
    let value = |at: usize, i: usize| ((at * 31 + i) as f32 * 0.37).sin();
    shapes
        .into_iter()
        .enumerate()
        .map(|(at, (name, shape))| {
            let len = shape.iter().product();
            let values = match shape.is_empty() {
                true => vec![at as f32],
                false => (0..len).map(|i| value(at, i)).collect(),
            };
            (name, StateTensor::new(shape, values).unwrap())
        })
        .collect()
}
