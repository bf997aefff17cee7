//! The network as a list: which units, in which order, with which parameters under which names.
//!
//! Units are described by the types of [`swav_kernels::net`], for every engine: they know their convolutions
//! and the names, shapes and kinds of their parameters.

use std::ops::Range;

use swav_kernels::ConvSpec;
use swav_kernels::net::{self, ParamKind, ParamSpec, Unit as KernelUnit};
use swav_optim::Role;

use crate::config::{Backbone, ResNetSpec};
use crate::engine::Part;
use crate::init::Initial;
use crate::{BlockKind, EncoderSpec, Head, Stem};

/// What the statistics of a batch norm are called.
pub(crate) const MEAN: &str = "running_mean";
pub(crate) const VAR: &str = "running_var";
pub(crate) const BATCHES: &str = "num_batches_tracked";

/// One operation of the network: coarse enough that an engine can fuse what is inside.
#[derive(Clone, Debug)]
pub(crate) enum Unit {
    /// Convolution, batch norm, ReLU, and 3x3 max-pooling of stride 2 if `pool`.
    Stem { unit: net::Stem, pool: bool },
    /// A residual block; `n_convs` convolutions on its main path.
    Block { unit: net::Block, n_convs: usize },
    /// `[n, h, w, c]` to `[n, 1, 1, c]`.
    Pool(net::GlobalAvgPool),
    /// A linear layer with bias.
    Linear { unit: net::Linear, n_inputs: usize },
    /// Batch norm of vectors, then ReLU.
    NormRelu(net::BatchNorm1d),
}

impl Unit {
    /// A linear layer.
    fn linear(n_inputs: usize, n_outputs: usize) -> Self {
        Self::Linear { unit: net::Linear::new(n_inputs, n_outputs, true), n_inputs }
    }

    /// The unit as the CPU's kernels have it.
    pub(crate) fn kernel(&self) -> &dyn KernelUnit {
        match self {
            Self::Stem { unit, .. } => unit,
            Self::Block { unit, .. } => unit,
            Self::Pool(unit) => unit,
            Self::Linear { unit, .. } => unit,
            Self::NormRelu(unit) => unit,
        }
    }

    /// All convolutions, a block's shortcut last.
    pub(crate) fn convs(&self) -> Vec<ConvSpec> {
        match self {
            Self::Stem { unit, .. } => vec![*unit.conv()],
            Self::Block { unit, .. } => unit.convs().copied().collect(),
            Self::Pool(_) | Self::Linear { .. } | Self::NormRelu(_) => Vec::new(),
        }
    }

    /// The unit's parameters in order. The unit knows what they start as: a bias starts by the inputs of its layer.
    fn parameters(&self, name: impl Fn(&str) -> String) -> Vec<ParameterInfo> {
        let info = |spec: ParamSpec| {
            let (role, initial) = match (spec.kind, self) {
                (ParamKind::Conv, _) => {
                    let taps: usize = spec.shape[1..3].iter().product();
                    (Role::Weight, Initial::kaiming(spec.shape[0] * taps))
                }
                (ParamKind::NormWeight, _) => (Role::Norm, Initial::Constant(1.0)),
                (ParamKind::NormBias, _) => (Role::Norm, Initial::Constant(0.0)),
                (ParamKind::LinearWeight, Self::Linear { n_inputs, .. }) => {
                    (Role::Weight, Initial::linear(*n_inputs))
                }
                (ParamKind::LinearBias, Self::Linear { n_inputs, .. }) => {
                    (Role::Bias, Initial::linear(*n_inputs))
                }
                (kind, unit) => unreachable!("{kind:?} in {unit:?}"),
            };
            let (shape, layout) = match (spec.kind, spec.shape.as_slice()) {
                (ParamKind::Conv, &[o, h, w, i]) => (vec![o, i, h, w], Layout::Convolution),
                _ => (spec.shape, Layout::Plain),
            };
            ParameterInfo { name: name(&spec.name), role, shape, layout, initial }
        };
        self.kernel().parameters().into_iter().map(info).collect()
    }
}

/// How engines order a parameter's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As in a state.
    Plain,
    /// OHWI, where a state has OIHW.
    Convolution,
}

/// A parameter: what it is called, what it is, what it starts as.
#[derive(Clone, Debug)]
pub(crate) struct ParameterInfo {
    /// The reference's name.
    pub(crate) name: String,
    /// What it is to an optimiser.
    pub(crate) role: Role,
    /// The shape in a state: convolutions in OIHW.
    pub(crate) shape: Vec<usize>,
    /// How engines order its values.
    pub(crate) layout: Layout,
    /// What it starts as.
    pub(crate) initial: Initial,
}

impl ParameterInfo {
    /// The number of values.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Values in a state's layout to the engines'.
    pub(crate) fn to_engine_layout(&self, values: &[f32]) -> Vec<f32> {
        match (self.layout, self.shape.as_slice()) {
            // [o][i][hw] to [o][hw][i]
            (Layout::Convolution, &[_, i, h, w]) => swap_inner(values, i, h * w),
            _ => values.to_vec(),
        }
    }

    /// Values in the engines' layout to a state's.
    pub(crate) fn to_state_layout(&self, values: Vec<f32>) -> Vec<f32> {
        match (self.layout, self.shape.as_slice()) {
            (Layout::Convolution, &[_, i, h, w]) => swap_inner(&values, h * w, i),
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
    /// How many layers of the backbone there are up to the end of each stage.
    pub(crate) stage_ends: Vec<usize>,
    /// Runs on all crops at once; the network scales its output to unit length.
    pub(crate) head: Vec<Layer>,
    pub(crate) parameters: Vec<ParameterInfo>,
    pub(crate) norms: Vec<NormInfo>,
}

impl Layers {
    /// The network of a specification.
    pub(crate) fn new(spec: &EncoderSpec) -> Self {
        let mut layers = Self::default();
        let Backbone::ResNet(resnet) = spec.backbone();
        let (mut backbone, channels) = layers.resnet(resnet);
        backbone.push(layers.layer("avgpool", Unit::Pool(net::GlobalAvgPool)));
        let dim = spec.config().dim;
        let head = match spec.config().head {
            Head::None => Vec::new(),
            Head::Linear => vec![layers.layer("projection_head", Unit::linear(channels, dim))],
            Head::Mlp { hidden } => vec![
                layers.layer("projection_head.0", Unit::linear(channels, hidden)),
                layers.layer("projection_head.1", Unit::NormRelu(net::BatchNorm1d::new(hidden, true))),
                layers.layer("projection_head.3", Unit::linear(hidden, dim)),
            ],
        };
        Self { backbone, head, ..layers }
    }

    /// All layers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Layer> {
        self.backbone.iter().chain(&self.head)
    }

    /// What an inference pass runs, in order: numbers among all layers.
    pub(crate) fn part(&self, part: Part) -> impl Iterator<Item = usize> + use<> {
        let (pooling, all) = (self.backbone.len() - 1, self.backbone.len() + self.head.len());
        let (end, last) = match part {
            Part::Backbone => (pooling, pooling + 1),
            Part::Whole => (pooling, all),
            Part::Stage(n) => (self.stage_ends[n - 1], pooling + 1),
        };
        (0..end).chain(pooling..last)
    }

    /// Names and shapes of what a state holds.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let parameters = self.parameters.iter().map(|info| (info.name.clone(), info.shape.clone()));
        let statistics = self.norms.iter().flat_map(|NormInfo { name, channels }| {
            [
                (format!("{name}.{MEAN}"), vec![*channels]),
                (format!("{name}.{VAR}"), vec![*channels]),
                (format!("{name}.{BATCHES}"), Vec::new()),
            ]
        });
        parameters.chain(statistics).collect()
    }

    /// Stem and blocks of a residual network, and the channels that come out.
    fn resnet(&mut self, resnet: &ResNetSpec) -> (Vec<Layer>, usize) {
        let &ResNetSpec { block, ref layers, stem, stem_channels: width } = resnet;
        let (unit, pool) = match stem {
            Stem::Imagenet => (net::Stem::imagenet(width), true),
            Stem::Cifar => (net::Stem::cifar(width), false),
        };
        let mut backbone = vec![self.layer("", Unit::Stem { unit, pool })];
        let n_convs = match block {
            BlockKind::Basic => 2,
            BlockKind::Bottleneck => 3,
        };
        let mut channels = width;
        for (stage, &n_blocks) in layers.iter().enumerate() {
            for index in 0..n_blocks {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let unit = net::Block::new(block, channels, width << stage, stride);
                channels = unit.c_out();
                let name = format!("layer{}.{index}", stage + 1);
                backbone.push(self.layer(&name, Unit::Block { unit, n_convs }));
            }
            self.stage_ends.push(backbone.len());
        }
        (backbone, channels)
    }

    /// Enters a unit's parameters and norms into the lists.
    fn layer(&mut self, name: &str, unit: Unit) -> Layer {
        let join = |inner: &str| match (name, inner) {
            ("", inner) => inner.to_owned(),
            (name, "") => name.to_owned(),
            (name, inner) => format!("{name}.{inner}"),
        };
        let (first_parameter, first_norm) = (self.parameters.len(), self.norms.len());
        self.parameters.extend(unit.parameters(join));
        let norms = unit.kernel().norms().into_iter();
        self.norms.extend(norms.map(|spec| NormInfo { name: join(&spec.name), channels: spec.channels }));
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
    use crate::{EncoderConfig, ResNet, Variant};

    fn layers(variant: Variant, head: Head) -> Layers {
        Layers::new(
            &EncoderConfig { arch: ResNet::new(variant).into(), head, ..EncoderConfig::default() }
                .check()
                .unwrap(),
        )
    }

    fn count(variant: Variant, head: Head) -> usize {
        let layers = layers(variant, head);
        layers.parameters.iter().map(|p| p.len()).sum()
    }

    /// Counts of torchvision's models (0.29) without their `fc`, and of widened ones of the SwAV reference.
    #[test]
    fn parameter_counts_are_those_of_the_reference() {
        assert_eq!(count(Variant::Resnet18, Head::None), 11_176_512);
        assert_eq!(count(Variant::Resnet34, Head::None), 21_284_672);
        assert_eq!(count(Variant::Resnet50, Head::None), 23_508_032);
        assert_eq!(count(Variant::Resnet50w2, Head::None), 93_907_072);
        assert_eq!(count(Variant::Resnet50w4, Head::None), 375_378_176);
        assert_eq!(count(Variant::Resnet50w5, Head::None), 586_450_240);
        // 2048 -> 2048 -> 128 with a batch norm between.
        let head = 2048 * 2048 + 2048 + 2 * 2048 + 2048 * 128 + 128;
        assert_eq!(count(Variant::Resnet50, Head::Mlp { hidden: 2048 }), 23_508_032 + head);
    }

    #[test]
    fn names_and_layouts_are_those_of_the_reference() {
        let layers = layers(Variant::Resnet50, Head::Mlp { hidden: 2048 });
        let shape = |name: &str| layers.parameters.iter().find(|p| p.name == name).unwrap().shape.clone();
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

    /// What a parameter starts as does not depend on what comes before it: each bias goes by its own layer's inputs.
    #[test]
    fn linear_layers_start_by_their_own_inputs() {
        let layers = layers(Variant::Resnet18, Head::Mlp { hidden: 100 });
        let bound = |name: &str| match layers.parameters.iter().find(|p| p.name == name).unwrap().initial {
            Initial::Uniform { bound } => bound,
            other => panic!("{name}: {other:?}"),
        };
        for (layer, inputs) in [("projection_head.0", 512.0f32), ("projection_head.3", 100.0)] {
            for what in ["weight", "bias"] {
                assert!((bound(&format!("{layer}.{what}")) - 1.0 / inputs.sqrt()).abs() < 1e-7);
            }
        }
    }

    #[test]
    fn layouts_convert_both_ways() {
        let layers = layers(Variant::Resnet18, Head::None);
        let stem = &layers.parameters[0];
        let values: Vec<f32> = (0..stem.len()).map(|i| i as f32).collect();
        let device = stem.to_engine_layout(&values);
        // Output channel 2, row 1, column 4, input channel 1.
        assert_eq!(device[((2 * 7 + 1) * 7 + 4) * 3 + 1], values[((2 * 3 + 1) * 7 + 1) * 7 + 4]);
        assert_eq!(stem.to_state_layout(device), values);
    }
}
