//! The part `parity`: the engine beside the CPU's, through what an encoder promises.

use serde_json::json;
use swav_encoder::{
    BlockKind, Encoder, EncoderConfig, Head, Method, Output, Precision, ResNet, Stem, UpdateRule, build,
    image_batch,
};

use super::found::{Found, Result};

/// Largest relative difference from the CPU that counts as the same, for each of [`KINDS`]. Gradients get more: an
/// activation that rounding moves across the kink of its ReLU changes a gradient over N pixels of noise by 1/sqrt(N).
const TOLERANCES: [f64; KINDS.len()] = [1e-3, 2e-2, 1e-3, 1e-3];
/// A small learning rate: parameters that are zero at first take their gradient unscaled, and a large step of theirs
/// would magnify the rounding that is to be measured.
const RULE: UpdateRule =
    UpdateRule::new(Method::Larc { lr: 0.01, momentum: 0.9, weight_decay: 1e-4, trust: 1e-3 });
const SEED: u64 = 31;
/// What is compared after each step.
const KINDS: [&str; 4] = ["embeddings", "gradients", "state", "features"];

/// Compares all networks, while state and optimiser state move between the devices as checkpoints bring them.
pub fn part(device: &str) -> Result {
    let (mut wrong, mut found) = (Vec::new(), Vec::new());
    for (name, config) in networks() {
        let errors = compare(device, &config)?;
        let list: Vec<String> =
            KINDS.iter().zip(&errors).map(|(kind, error)| format!("{kind} {error:.1e}")).collect();
        let verdict = if same(&errors) { "ok" } else { "WRONG" };
        println!("{name:<44} {}  {verdict}", list.join(", "));
        if !same(&errors) {
            wrong.push(format!("{name}: {}", list.join(", ")));
        }
        // JSON has no infinity.
        let errors = errors.map(|error| error.min(1e30));
        found.push(json!({ "network": name, "kinds": KINDS, "errors": errors, "same": verdict == "ok" }));
    }
    Ok(Found::with_wrong(json!(found), wrong))
}

/// Whether two encoders that do the same have the same bits.
pub fn repeats(device: &str) -> anyhow::Result<bool> {
    let mut same = true;
    for precision in [Precision::F32, Precision::Mixed] {
        let (_, config) = networks().swap_remove(0);
        let spec = EncoderConfig { precision, ..config }.check()?;
        let run = || -> anyhow::Result<Vec<u32>> {
            let mut encoder = build(device, &spec, SEED)?;
            (1..4).try_for_each(|seed| step(encoder.as_mut(), seed).map(drop))?;
            let state = encoder.state()?;
            Ok(state.iter().flat_map(|(_, tensor)| tensor.data().iter().map(|x| x.to_bits())).collect())
        };
        same &= run()? == run()?;
    }
    Ok(same)
}

/// Whether all differences are within their tolerances.
fn same(errors: &[f64; KINDS.len()]) -> bool {
    errors.iter().zip(TOLERANCES).all(|(&error, tolerance)| error < tolerance)
}

/// One network for each kind of unit.
fn networks() -> Vec<(&'static str, EncoderConfig)> {
    let network = |block, stem, head| EncoderConfig {
        arch: ResNet::custom(block, [1, 1, 1]).with_width(16).with_stem(stem).into(),
        head,
        dim: 16,
        exact: true,
        ..EncoderConfig::default()
    };
    vec![
        (
            "bottleneck blocks, ImageNet stem, MLP head",
            network(BlockKind::Bottleneck, Stem::Imagenet, Head::Mlp { hidden: 32 }),
        ),
        ("basic blocks, CIFAR stem, linear head", network(BlockKind::Basic, Stem::Cifar, Head::Linear)),
        ("basic blocks, ImageNet stem, no head", network(BlockKind::Basic, Stem::Imagenet, Head::None)),
    ]
}

/// The largest relative difference of three steps for each of [`KINDS`]; between the steps state and optimiser state
/// move from the CPU to the other device, and back.
fn compare(device: &str, config: &EncoderConfig) -> anyhow::Result<[f64; KINDS.len()]> {
    let spec = config.check()?;
    let mut cpu = build("cpu", &spec, SEED)?;
    let mut other = build(device, &spec, SEED)?;
    let first = differences(&step(cpu.as_mut(), 1)?, &step(other.as_mut(), 1)?);
    let (state, optimizer) = (cpu.state()?, cpu.optimizer_state()?);
    other.load_state(&state)?;
    other.load_optimizer_state(&optimizer)?;
    let second = differences(&step(cpu.as_mut(), 2)?, &step(other.as_mut(), 2)?);
    let (state, optimizer) = (other.state()?, other.optimizer_state()?);
    cpu.load_state(&state)?;
    cpu.load_optimizer_state(&optimizer)?;
    let third = differences(&step(cpu.as_mut(), 3)?, &step(other.as_mut(), 3)?);
    Ok(std::array::from_fn(|kind| first[kind].max(second[kind]).max(third[kind])))
}

/// Embeddings, all gradients, parameters and statistics, and features in inference mode: [`KINDS`].
fn step(encoder: &mut dyn Encoder, seed: u64) -> anyhow::Result<[Vec<f32>; KINDS.len()]> {
    let images = |n: usize, side: usize| -> Vec<f32> {
        (0..n * side * side * 3).map(|i| pseudo_random(seed, i as u64)).collect()
    };
    let (large, small) = (images(8, 64), images(12, 33));
    let groups = [image_batch(&large, 8, 64, 64)?, image_batch(&small, 12, 33, 33)?];
    let z = encoder.forward_train(&groups)?;
    let gradient =
        ndarray::Array2::from_shape_fn(z.dim(), |(i, j)| pseudo_random(seed + 7, (i * z.ncols() + j) as u64));
    encoder.backward(gradient.view())?;
    let names: Vec<String> = encoder.parameters().into_iter().map(|(name, _)| name).collect();
    let gradients = names.iter().flat_map(|name| encoder.gradient(name).unwrap_or_default()).collect();
    encoder.update(&RULE)?;
    let state = encoder.state()?;
    let counters = |name: &str| name.ends_with("num_batches_tracked");
    let values =
        state.iter().filter(|(name, _)| !counters(name)).flat_map(|(_, tensor)| tensor.data().to_vec());
    let features = encoder.embed(groups[0], Output::Features)?;
    Ok([z.into_raw_vec_and_offset().0, gradients, values.collect(), features.into_raw_vec_and_offset().0])
}

/// Norm of the difference over the norm, of each list of numbers; infinite where one is not a number.
fn differences<const N: usize>(expected: &[Vec<f32>; N], actual: &[Vec<f32>; N]) -> [f64; N] {
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    std::array::from_fn(|kind| {
        let (e, a) = (&expected[kind], &actual[kind]);
        if e.len() != a.len() {
            return f64::INFINITY;
        }
        let gap = norm(&mut e.iter().zip(a).map(|(e, a)| e - a)) / norm(&mut e.iter().copied());
        if gap.is_nan() { f64::INFINITY } else { gap }
    })
}

/// A number in -1..1 from a seed and an index (splitmix64).
fn pseudo_random(seed: u64, index: u64) -> f32 {
    let mut x = (seed << 40).wrapping_add(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comparison_finds_dfdx_equal_to_the_kernels() {
        let (_, config) = networks()[1].clone();
        let errors = compare("dfdx:cpu", &config).unwrap();
        assert!(same(&errors) && errors.iter().all(|&error| error > 0.0), "{errors:?}");
    }

    #[test]
    fn all_networks_are_compared() {
        let found = part("cpu").unwrap();
        assert_eq!(found.wrong, [""; 0]);
        assert_eq!(found.value.as_array().unwrap().len(), 3);
    }

    #[test]
    fn differences_are_relative_and_never_lost() {
        assert_eq!(differences(&[vec![3.0, 4.0]], &[vec![3.0, 4.0]]), [0.0]);
        assert!((differences(&[vec![3.0, 4.0]], &[vec![3.0, 5.0]])[0] - 0.2).abs() < 1e-12);
        assert_eq!(differences(&[vec![1.0]], &[vec![f32::NAN]]), [f64::INFINITY]);
        assert_eq!(differences(&[vec![1.0]], &[vec![]]), [f64::INFINITY]);
    }
}
