//! The network as a list: which units, in which order, with which parameters under which names.
//!
//! Units are described by the types of [`swav_kernels::net`], for every device: they know their convolutions
//! and the names, shapes and kinds of their parameters.

use std::ops::Range;

use swav_kernels::ConvSpec;
use swav_kernels::net::{self, ParamKind, Unit as KernelUnit};
use swav_optim::Role;

use crate::{BlockKind, EncoderSpec, Head, Stem};

/// One operation of the network: coarse enough that a device can fuse what is inside.
#[derive(Clone, Debug)]
pub(crate) enum Unit {
    /// Convolution, batch norm, ReLU, and 3x3 max-pooling of stride 2 if `pool`.
    Stem { unit: net::Stem, pool: bool },
    /// A residual block; `n_convs` convolutions on its main path.
    Block { unit: net::Block, n_convs: usize },
    /// `[n, h, w, c]` to `[n, 1, 1, c]`.
    Pool(net::GlobalAvgPool),
    /// A linear layer with bias.
    Linear(net::Linear),
    /// Batch norm of vectors, then ReLU.
    NormRelu(net::BatchNorm1d),
    /// Rows to unit length: `x / max(|x|, 1e-12)`.
    Normalise,
}

impl Unit {
    /// The unit as the CPU's kernels have it; `None` for the normalisation.
    pub(crate) fn kernel(&self) -> Option<&dyn KernelUnit> {
        match self {
            Self::Stem { unit, .. } => Some(unit),
            Self::Block { unit, .. } => Some(unit),
            Self::Pool(unit) => Some(unit),
            Self::Linear(unit) => Some(unit),
            Self::NormRelu(unit) => Some(unit),
            Self::Normalise => None,
        }
    }

    /// All convolutions, a block's shortcut last.
    pub(crate) fn convs(&self) -> Vec<ConvSpec> {
        match self {
            Self::Stem { unit, .. } => vec![*unit.conv()],
            Self::Block { unit, .. } => unit.convs().copied().collect(),
            _ => Vec::new(),
        }
    }
}

/// A parameter: its name in a state and how a device keeps it.
#[derive(Clone, Debug)]
pub(crate) struct ParameterInfo {
    /// The reference's name.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: ParamKind,
    /// The shape on the device: convolutions in OHWI.
    pub(crate) device_shape: Vec<usize>,
}

impl ParameterInfo {
    /// What it is to an optimiser.
    pub(crate) fn role(&self) -> Role {
        match self.kind {
            ParamKind::NormWeight | ParamKind::NormBias => Role::Norm,
            ParamKind::LinearBias => Role::Bias,
            _ => Role::Weight,
        }
    }

    /// The shape in a state: convolutions in OIHW.
    pub(crate) fn state_shape(&self) -> Vec<usize> {
        match (self.kind, self.device_shape.as_slice()) {
            (ParamKind::Conv, &[o, h, w, i]) => vec![o, i, h, w],
            (_, shape) => shape.to_vec(),
        }
    }

    /// Values in a state's layout to the device's.
    pub(crate) fn to_device_layout(&self, values: &[f32]) -> Vec<f32> {
        match (self.kind, self.device_shape.as_slice()) {
            // [o][i][hw] to [o][hw][i]
            (ParamKind::Conv, &[_, h, w, i]) => swap_inner(values, i, h * w),
            _ => values.to_vec(),
        }
    }

    /// Values in the device's layout to a state's.
    pub(crate) fn to_state_layout(&self, values: Vec<f32>) -> Vec<f32> {
        match (self.kind, self.device_shape.as_slice()) {
            (ParamKind::Conv, &[_, h, w, i]) => swap_inner(&values, h * w, i),
            _ => values,
        }
    }
}

/// `[..][rows][columns]` to `[..][columns][rows]`.
fn swap_inner(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    if rows == 1 || columns == 1 {
        return values.to_vec();
    }
    let mut swapped = Vec::with_capacity(values.len());
    for matrix in values.chunks_exact(rows * columns) {
        for column in 0..columns {
            swapped.extend((0..rows).map(|row| matrix[row * columns + column]));
        }
    }
    swapped
}

/// A batch norm: the prefix of its statistics' names, and its channels.
#[derive(Clone, Debug)]
pub(crate) struct NormInfo {
    pub(crate) name: String,
    pub(crate) channels: usize,
}

/// A unit and where its parameters and statistics are in the network's lists.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) parameters: Range<usize>,
    pub(crate) norms: Range<usize>,
}

impl Layer {
    /// The name for messages.
    pub(crate) fn display_name(&self) -> &str {
        if self.name.is_empty() { "stem" } else { &self.name }
    }
}

/// The whole network.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    /// Runs once a resolution; ends with global pooling.
    pub(crate) backbone: Vec<Layer>,
    /// Runs on all crops at once; ends with the normalisation.
    pub(crate) head: Vec<Layer>,
    pub(crate) parameters: Vec<ParameterInfo>,
    pub(crate) norms: Vec<NormInfo>,
}

impl Layers {
    /// The network of a specification.
    pub(crate) fn new(spec: &EncoderSpec) -> Self {
        let mut layers = Self::default();
        let width = spec.stem_channels();
        let (unit, pool) = match spec.config().stem {
            Stem::Imagenet => (net::Stem::imagenet(width), true),
            Stem::Cifar => (net::Stem::cifar(width), false),
        };
        let mut backbone = vec![layers.layer("", Unit::Stem { unit, pool })];
        let (kind, n_convs) = match spec.block() {
            BlockKind::Basic => (net::BlockKind::Basic, 2),
            BlockKind::Bottleneck => (net::BlockKind::Bottleneck, 3),
        };
        let mut channels = width;
        for (stage, &n_blocks) in spec.layers().iter().enumerate() {
            for index in 0..n_blocks {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let unit = net::Block::new(kind, channels, width << stage, stride);
                channels = unit.c_out();
                let name = format!("layer{}.{index}", stage + 1);
                backbone.push(layers.layer(&name, Unit::Block { unit, n_convs }));
            }
        }
        backbone.push(layers.layer("avgpool", Unit::Pool(net::GlobalAvgPool)));
        let dim = spec.config().dim;
        let linear = |from, to| Unit::Linear(net::Linear::new(from, to, true));
        let mut head = match spec.config().head {
            Head::None => Vec::new(),
            Head::Linear => vec![layers.layer("projection_head", linear(channels, dim))],
            Head::Mlp { hidden } => vec![
                layers.layer("projection_head.0", linear(channels, hidden)),
                layers.layer("projection_head.1", Unit::NormRelu(net::BatchNorm1d::new(hidden, true))),
                layers.layer("projection_head.3", linear(hidden, dim)),
            ],
        };
        head.push(layers.layer("normalise", Unit::Normalise));
        Self { backbone, head, ..layers }
    }

    /// Enters a unit's parameters and norms into the lists.
    fn layer(&mut self, name: &str, unit: Unit) -> Layer {
        let join = |inner: &str| match (name, inner) {
            ("", inner) => inner.to_owned(),
            (name, "") => name.to_owned(),
            (name, inner) => format!("{name}.{inner}"),
        };
        let (first_parameter, first_norm) = (self.parameters.len(), self.norms.len());
        if let Some(kernel) = unit.kernel() {
            self.parameters.extend(kernel.parameters().into_iter().map(|spec| ParameterInfo {
                name: join(&spec.name),
                kind: spec.kind,
                device_shape: spec.shape,
            }));
            self.norms.extend(
                kernel
                    .norms()
                    .into_iter()
                    .map(|spec| NormInfo { name: join(&spec.name), channels: spec.channels }),
            );
        }
        Layer {
            name: name.to_owned(),
            unit,
            parameters: first_parameter..self.parameters.len(),
            norms: first_norm..self.norms.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, EncoderConfig};

    fn layers(arch: Arch, head: Head) -> Layers {
        Layers::new(&EncoderConfig { arch, head, ..EncoderConfig::default() }.check().unwrap())
    }

    fn count(arch: Arch, head: Head) -> usize {
        let layers = layers(arch, head);
        layers.parameters.iter().map(|p| p.device_shape.iter().product::<usize>()).sum()
    }

    /// Counts of torchvision's models (0.29) without their `fc`, and of widened ones of the SwAV reference.
    #[test]
    fn parameter_counts_are_those_of_the_reference() {
        assert_eq!(count(Arch::Resnet18, Head::None), 11_176_512);
        assert_eq!(count(Arch::Resnet34, Head::None), 21_284_672);
        assert_eq!(count(Arch::Resnet50, Head::None), 23_508_032);
        assert_eq!(count(Arch::Resnet50w2, Head::None), 93_907_072);
        assert_eq!(count(Arch::Resnet50w4, Head::None), 375_378_176);
        assert_eq!(count(Arch::Resnet50w5, Head::None), 586_450_240);
        // 2048 -> 2048 -> 128 with a batch norm between.
        let head = 2048 * 2048 + 2048 + 2 * 2048 + 2048 * 128 + 128;
        assert_eq!(count(Arch::Resnet50, Head::Mlp { hidden: 2048 }), 23_508_032 + head);
    }

    #[test]
    fn names_and_layouts_are_those_of_the_reference() {
        let layers = layers(Arch::Resnet50, Head::Mlp { hidden: 2048 });
        let shape = |name: &str| layers.parameters.iter().find(|p| p.name == name).unwrap().state_shape();
        assert_eq!(shape("conv1.weight"), [64, 3, 7, 7]);
        assert_eq!(shape("bn1.bias"), [64]);
        assert_eq!(shape("layer1.0.downsample.0.weight"), [256, 64, 1, 1]);
        assert_eq!(shape("layer2.0.conv2.weight"), [128, 128, 3, 3]);
        assert_eq!(shape("layer4.2.bn3.weight"), [2048]);
        assert_eq!(shape("projection_head.0.weight"), [2048, 2048]);
        assert_eq!(shape("projection_head.1.weight"), [2048]);
        assert_eq!(shape("projection_head.3.bias"), [128]);
        let norms: Vec<&str> = layers.norms.iter().map(|n| n.name.as_str()).collect();
        assert!(["bn1", "layer3.0.downsample.1", "projection_head.1"].iter().all(|n| norms.contains(n)));
    }

    #[test]
    fn layouts_convert_both_ways() {
        let layers = layers(Arch::Resnet18, Head::None);
        let stem = &layers.parameters[0];
        let values: Vec<f32> = (0..stem.device_shape.iter().product()).map(|i| i as f32).collect();
        let device = stem.to_device_layout(&values);
        // Output channel 2, row 1, column 4, input channel 1.
        assert_eq!(device[((2 * 7 + 1) * 7 + 4) * 3 + 1], values[((2 * 3 + 1) * 7 + 1) * 7 + 4]);
        assert_eq!(stem.to_state_layout(device), values);
    }
}
