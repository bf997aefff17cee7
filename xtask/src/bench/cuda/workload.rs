//! The training steps that are timed, as the encoder, the card's own engine and a script of PyTorch's are told of them.

use swav_cuda::network::{self, Group, NetworkSpec, StepSpec, padded};
use swav_cuda::tape::{Rule, ScoreShape};
use swav_encoder::{EncoderConfig, GroupShape, Head, Precision, ResNet, Stem, Variant};

use crate::workload::{EPSILON, SINKHORN_ITERS, TEMPERATURE};

/// Dimensions of the embeddings.
const DIM: usize = 128;

/// A training step to time.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// For tables.
    pub name: &'static str,
    /// Images.
    pub batch: usize,
    /// Prototypes.
    pub prototypes: usize,
    variant: Variant,
    stem: Stem,
    sizes: [usize; 2],
    counts: [usize; 2],
    hidden: usize,
}

/// Photographs, as the recipes for ImageNet take them.
pub const RESNET50: Workload = Workload {
    name: "ResNet-50, 64 images, 2x224 + 6x96",
    batch: 64,
    prototypes: 3000,
    variant: Variant::Resnet50,
    stem: Stem::Imagenet,
    sizes: [224, 96],
    counts: [2, 6],
    hidden: 2048,
};

/// Small images.
pub const RESNET18: Workload = Workload {
    name: "ResNet-18 CIFAR, 256 images, 2x32 + 4x16",
    batch: 256,
    prototypes: 300,
    variant: Variant::Resnet18,
    stem: Stem::Cifar,
    sizes: [32, 16],
    counts: [2, 4],
    hidden: 512,
};

/// All of them, in the order of worth.
pub const WORKLOADS: [Workload; 2] = [RESNET50, RESNET18];

impl Workload {
    /// The options of a PyTorch script for the same step.
    pub fn options(&self) -> Vec<String> {
        let arch = if self.variant == Variant::Resnet18 { "resnet18" } else { "resnet50" };
        let stem = if self.stem == Stem::Cifar { "cifar" } else { "imagenet" };
        let [large, small] = self.sizes;
        let [n_large, n_small] = self.counts;
        let line = format!(
            "--arch {arch} --stem {stem} --sizes {large} {small} --counts {n_large} {n_small} --batch {} --hidden {} \
             --prototypes {}",
            self.batch, self.hidden, self.prototypes
        );
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// The network for an encoder, which computes in a precision, and with convolutions by TF32 or without.
    pub fn config(&self, (precision, matrix_unit): (Precision, bool)) -> EncoderConfig {
        EncoderConfig {
            arch: ResNet::new(self.variant.clone()).with_stem(self.stem).into(),
            head: Head::Mlp { hidden: self.hidden },
            dim: DIM,
            precision,
            matrix_unit,
            ..EncoderConfig::default()
        }
    }

    /// The crops of each resolution.
    pub fn groups(&self) -> [GroupShape; 2] {
        let [large, small] = [0, 1].map(|group| (self.counts[group], self.sizes[group]));
        [large, small].map(|(n_crops, size)| GroupShape { n_crops, height: size, width: size })
    }

    /// The network for the card's engine.
    pub fn network(&self) -> NetworkSpec {
        let (block, layers) = match self.variant {
            Variant::Resnet18 => (network::BlockKind::Basic, vec![2, 2, 2, 2]),
            _ => (network::BlockKind::Bottleneck, vec![3, 4, 6, 3]),
        };
        let stem = if self.stem == Stem::Cifar { network::Stem::Cifar } else { network::Stem::Imagenet };
        let head = network::Head::Mlp { hidden: self.hidden, dim: DIM };
        NetworkSpec { stem, stem_channels: 64, block, layers, head }
    }

    /// The step for the card's engine.
    pub fn step(&self) -> StepSpec {
        let groups = self.groups().map(|group| Group {
            images: group.n_crops * self.batch,
            height: group.height,
            width: group.width,
        });
        let scores = ScoreShape {
            n_prototypes: self.prototypes,
            stride: padded(self.prototypes),
            batch: self.batch,
            n_crops: self.counts.iter().sum(),
            assign: vec![0, 1],
            queue: 0,
            epsilon: EPSILON as f32,
            temperature: TEMPERATURE,
        };
        StepSpec { groups: groups.to_vec(), scores, n_iters: SINKHORN_ITERS, rule: Rule::Larc }
    }
}

#[cfg(test)]
mod tests {
    use swav_cuda::network::Network;
    use swav_encoder::build;

    use super::*;

    #[test]
    fn both_engines_are_told_of_the_same_network() {
        for workload in WORKLOADS {
            let spec = workload.config((Precision::F32, false)).check().unwrap();
            let encoder = build("cpu", &spec, 1).unwrap();
            let expected: usize =
                encoder.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            let network = Network::new(workload.network());
            let got: usize = network.parameters().list.iter().map(|parameter| parameter.shape.len()).sum();
            assert_eq!(got, expected, "{}", workload.name);
        }
    }

    #[test]
    fn the_options_say_what_the_name_says() {
        let options = RESNET50.options().join(" ");
        let expected = "--arch resnet50 --stem imagenet --sizes 224 96 --counts 2 6 --batch 64 --hidden 2048 --prototypes 3000";
        assert_eq!(options, expected);
        let step = RESNET18.step();
        let images: Vec<usize> = step.groups.iter().map(|group| group.images).collect();
        assert_eq!((images, step.scores.n_crops), (vec![512, 1024], 6));
    }
}
