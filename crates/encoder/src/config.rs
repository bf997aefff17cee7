//! The configuration of an encoder: raw values from a file, checked once into an [`EncoderSpec`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
pub use swav_kernels::net::BlockKind;
pub use swav_kernels::{Checkpointing, Precision};

use crate::EncoderError;

/// The encoder as a configuration file has it. [`EncoderConfig::check`] makes it usable.
///
/// In a file an architecture's fields lie beside the others: `arch = "resnet18"`, `width = 64`, `stem = "cifar"`.
///
/// ```
/// use swav_encoder::{EncoderConfig, ResNet, Variant};
/// let config = EncoderConfig { arch: ResNet::new(Variant::Resnet18).into(), dim: 64, ..EncoderConfig::default() };
/// assert_eq!(config.check()?.feature_dim(), 512);
/// # Ok::<(), swav_encoder::EncoderError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Flat", into = "Flat")]
pub struct EncoderConfig {
    /// The backbone, with all that is its own.
    pub arch: Arch,
    /// The projection head.
    pub head: Head,
    /// Embedding dimension; ignored where there is no head, since features are embeddings then.
    pub dim: usize,
    /// The numbers that activations are stored in; see each device for what it can do.
    pub precision: Precision,
    /// Only kernels whose rounding is that of the direct formula; without it faster algorithms may be chosen
    /// whose error is up to 50 times larger, still about 5e-5 of the output's scale.
    pub exact: bool,
    /// Whether f32 is multiplied on matrix units, which round it, unless `exact`. On a CPU with AMX this is about training
    /// (inference always does): ResNet-50's steps take two thirds of the time, ResNet-18's on small images as long as before,
    /// and layers that would be multiplied exactly are rounded to some 17 bits. On an NVIDIA card convolutions, but not linear
    /// layers, are rounded to the 11 bits of TF32, in inference too. Other devices and mixed precision do not care.
    pub matrix_unit: bool,
    /// What is kept between forward and backward: everything, or only the input of each residual block, which runs
    /// again in backward, with the same results and a third more work.
    pub checkpointing: Checkpointing,
    /// Where training starts from, in place of weights that are drawn: a file of weights, or the folder of a run or an
    /// import. What trains reads it (`swav-train`); [`build`](crate::build) does not.
    pub init: Option<PathBuf>,
}

impl Default for EncoderConfig {
    /// The SwAV reference's ResNet-50: `2048-2048-128` head, f32.
    fn default() -> Self {
        Self {
            arch: ResNet::new(Variant::Resnet50).into(),
            head: Head::Mlp { hidden: 2048 },
            dim: 128,
            precision: Precision::F32,
            exact: false,
            matrix_unit: false,
            checkpointing: Checkpointing::Off,
            init: None,
        }
    }
}

/// A family of backbones, each with the fields that only it has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Arch {
    /// A residual network.
    ResNet(ResNet),
}

/// A residual network (He et al. 2016).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResNet {
    /// Its blocks.
    pub variant: Variant,
    /// Channels of the stem before a variant's own widening: 64 in the literature, any positive number. Stage i works
    /// with `width·2^i` planes.
    pub width: usize,
    /// What comes before the residual blocks.
    pub stem: Stem,
}

impl ResNet {
    /// A variant as in the literature: 64 channels, the stem for ImageNet.
    pub fn new(variant: Variant) -> Self {
        Self { variant, width: 64, stem: Stem::Imagenet }
    }

    /// Any blocks: `layers` of this kind in each stage, 1 to 6 stages; every stage but the first halves the resolution.
    pub fn custom(block: BlockKind, layers: impl Into<Vec<usize>>) -> Self {
        Self::new(Variant::Custom { block, layers: layers.into() })
    }

    /// The same with this many channels in the stem.
    #[must_use]
    pub fn with_width(self, width: usize) -> Self {
        Self { width, ..self }
    }

    /// The same with this stem.
    #[must_use]
    pub fn with_stem(self, stem: Stem) -> Self {
        Self { stem, ..self }
    }
}

impl From<ResNet> for Arch {
    fn from(resnet: ResNet) -> Self {
        Self::ResNet(resnet)
    }
}

/// The blocks of a residual network. `50w2`, `50w4` and `50w5` multiply every width, the stem's included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Variant {
    /// Basic blocks 2, 2, 2, 2.
    Resnet18,
    /// Basic blocks 3, 4, 6, 3.
    Resnet34,
    /// Bottleneck blocks 3, 4, 6, 3.
    Resnet50,
    /// ResNet-50 of double width.
    Resnet50w2,
    /// ResNet-50 of fourfold width.
    Resnet50w4,
    /// ResNet-50 of fivefold width.
    Resnet50w5,
    /// Any blocks: `arch = { custom = { block = "basic", layers = [1, 1, 1] } }`.
    Custom {
        /// The kind of block.
        block: BlockKind,
        /// Blocks of each stage, 1 to 6 stages; every stage but the first halves the resolution.
        layers: Vec<usize>,
    },
}

impl Variant {
    /// The kind of all blocks, how many each stage has, and the factor of all widths.
    pub fn blocks(&self) -> (BlockKind, Vec<usize>, usize) {
        match self {
            Self::Resnet18 => (BlockKind::Basic, vec![2, 2, 2, 2], 1),
            Self::Resnet34 => (BlockKind::Basic, vec![3, 4, 6, 3], 1),
            Self::Resnet50 => (BlockKind::Bottleneck, vec![3, 4, 6, 3], 1),
            Self::Resnet50w2 => (BlockKind::Bottleneck, vec![3, 4, 6, 3], 2),
            Self::Resnet50w4 => (BlockKind::Bottleneck, vec![3, 4, 6, 3], 4),
            Self::Resnet50w5 => (BlockKind::Bottleneck, vec![3, 4, 6, 3], 5),
            Self::Custom { block, layers } => (*block, layers.clone(), 1),
        }
    }
}

/// What comes before the residual blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 7x7 convolution of stride 2 and 3x3 max-pooling of stride 2.
    Imagenet,
    /// 3x3 convolution, no pooling: for images of about 32 pixels.
    Cifar,
}

/// The projection head. Its output, or the features where there is none, is scaled to unit length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Head {
    /// Features are embeddings.
    None,
    /// One linear layer.
    Linear,
    /// Linear, batch norm, ReLU, linear (the reference's): `head = { mlp = { hidden = 2048 } }`.
    Mlp {
        /// Width of the hidden layer.
        hidden: usize,
    },
}

/// An [`EncoderConfig`] as files have it: an architecture's fields lie beside the others. Those of other families
/// will be optional here.
#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename = "EncoderConfig")]
struct Flat {
    arch: Variant,
    width: usize,
    stem: Stem,
    head: Head,
    dim: usize,
    precision: Precision,
    exact: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    matrix_unit: bool,
    checkpointing: Checkpointing,
    #[serde(skip_serializing_if = "Option::is_none")]
    init: Option<PathBuf>,
}

impl Default for Flat {
    fn default() -> Self {
        EncoderConfig::default().into()
    }
}

impl From<EncoderConfig> for Flat {
    fn from(config: EncoderConfig) -> Self {
        let EncoderConfig { arch, head, dim, precision, exact, matrix_unit, checkpointing, init } = config;
        let Arch::ResNet(ResNet { variant, width, stem }) = arch;
        Self { arch: variant, width, stem, head, dim, precision, exact, matrix_unit, checkpointing, init }
    }
}

impl From<Flat> for EncoderConfig {
    fn from(flat: Flat) -> Self {
        let Flat { arch, width, stem, head, dim, precision, exact, matrix_unit, checkpointing, init } = flat;
        let arch = ResNet { variant: arch, width, stem }.into();
        Self { arch, head, dim, precision, exact, matrix_unit, checkpointing, init }
    }
}

/// A checked [`EncoderConfig`].
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderSpec {
    config: EncoderConfig,
    backbone: Backbone,
}

/// A checked [`Arch`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Backbone {
    /// A residual network.
    ResNet(ResNetSpec),
}

/// A checked [`ResNet`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResNetSpec {
    /// The kind of all blocks.
    pub(crate) block: BlockKind,
    /// Blocks of each stage.
    pub(crate) layers: Vec<usize>,
    /// What comes before them.
    pub(crate) stem: Stem,
    /// Output channels of the stem, widening included.
    pub(crate) stem_channels: usize,
}

/// No dimension of a network may exceed this; it keeps all sizes far from overflow.
const MAX_CHANNELS: usize = 1 << 20;

fn positive(key: &'static str, value: usize, limit: usize) -> Result<(), EncoderError> {
    if (1..=limit).contains(&value) {
        return Ok(());
    }
    let expected = "a positive number of at most 2^20 channels in the widest layer";
    Err(EncoderError::Config { key, expected, got: value.to_string() })
}

impl EncoderConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`EncoderError::Config`] with the offending key.
    pub fn check(&self) -> Result<EncoderSpec, EncoderError> {
        let backbone = match &self.arch {
            Arch::ResNet(resnet) => Backbone::ResNet(resnet.check()?),
        };
        positive("dim", self.dim, MAX_CHANNELS)?;
        if let Head::Mlp { hidden } = self.head {
            positive("head.mlp.hidden", hidden, MAX_CHANNELS)?;
        }
        Ok(EncoderSpec { config: self.clone(), backbone })
    }
}

impl ResNet {
    fn check(&self) -> Result<ResNetSpec, EncoderError> {
        let (block, layers, widening) = self.variant.blocks();
        if layers.is_empty() || layers.len() > 6 || layers.iter().any(|&n| n == 0 || n > 1000) {
            return Err(EncoderError::Config {
                key: "arch.custom.layers",
                expected: "1 to 6 stages of 1 to 1000 blocks",
                got: format!("{layers:?}"),
            });
        }
        let widest = (widening * block.expansion()) << (layers.len() - 1);
        positive("width", self.width, MAX_CHANNELS / widest)?;
        Ok(ResNetSpec { block, layers, stem: self.stem, stem_channels: self.width * widening })
    }
}

impl ResNetSpec {
    /// Channels of a stage's output, counted from 0.
    fn stage_channels(&self, stage: usize) -> usize {
        (self.stem_channels << stage) * self.block.expansion()
    }
}

impl EncoderSpec {
    /// The configuration that was checked.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Names and shapes of all tensors that the network's state has: parameters in the order of the layers, then the
    /// statistics of batch norms. Nothing is built.
    ///
    /// ```
    /// use swav_encoder::EncoderConfig;
    /// let tensors = EncoderConfig::default().check()?.tensors();
    /// assert_eq!(tensors[0], ("conv1.weight".to_owned(), vec![64, 3, 7, 7]));
    /// assert!(tensors.contains(&("bn1.num_batches_tracked".to_owned(), vec![])));
    /// # Ok::<(), swav_encoder::EncoderError>(())
    /// ```
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        crate::layers::Layers::new(self).tensors()
    }

    /// The backbone that was checked.
    pub(crate) fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// Channels of the features, the backbone's output.
    pub fn feature_dim(&self) -> usize {
        match &self.backbone {
            Backbone::ResNet(resnet) => resnet.stage_channels(resnet.layers.len() - 1),
        }
    }

    /// Channels of the backbone's stages, in order.
    pub fn layer_dims(&self) -> Vec<usize> {
        match &self.backbone {
            Backbone::ResNet(resnet) => {
                (0..resnet.layers.len()).map(|stage| resnet.stage_channels(stage)).collect()
            }
        }
    }

    /// Length of an embedding.
    pub fn embedding_dim(&self) -> usize {
        if self.config.head == Head::None { self.feature_dim() } else { self.config.dim }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut EncoderConfig)) -> Result<EncoderSpec, EncoderError> {
        let mut config = EncoderConfig::default();
        change(&mut config);
        config.check()
    }

    #[test]
    fn dimensions_follow_the_architecture() {
        let spec = with(|c| c.arch = ResNet::new(Variant::Resnet50w5).into()).unwrap();
        assert_eq!((spec.feature_dim(), spec.embedding_dim()), (10240, 128));
        let Backbone::ResNet(resnet) = spec.backbone();
        assert_eq!(resnet.stem_channels, 320);
        let spec = with(|c| {
            c.arch = ResNet::custom(BlockKind::Basic, [1, 2]).with_width(8).into();
            c.head = Head::None;
        })
        .unwrap();
        assert_eq!((spec.feature_dim(), spec.embedding_dim()), (16, 16));
    }

    #[test]
    fn bad_values_name_their_key() {
        let key = |result: Result<EncoderSpec, EncoderError>| match result {
            Err(EncoderError::Config { key, .. }) => key,
            other => panic!("expected a configuration error, got {other:?}"),
        };
        let wide = |width| ResNet::new(Variant::Resnet50).with_width(width).into();
        assert_eq!(key(with(|c| c.arch = wide(0))), "width");
        assert_eq!(key(with(|c| c.arch = wide(usize::MAX))), "width");
        assert_eq!(key(with(|c| c.dim = 0)), "dim");
        assert_eq!(key(with(|c| c.head = Head::Mlp { hidden: 0 })), "head.mlp.hidden");
        let custom = |layers: &[usize]| ResNet::custom(BlockKind::Basic, layers).into();
        assert_eq!(key(with(|c| c.arch = custom(&[]))), "arch.custom.layers");
        assert_eq!(key(with(|c| c.arch = custom(&[2, 0]))), "arch.custom.layers");
    }

    #[test]
    fn a_file_may_name_any_architecture_but_no_unknown_key() {
        let parse = |text: &str| serde_json::from_str::<EncoderConfig>(text);
        let config =
            parse(r#"{"arch": "resnet50w2", "stem": "cifar", "width": 8, "head": {"mlp": {"hidden": 7}}}"#)
                .unwrap();
        let expected = ResNet::new(Variant::Resnet50w2).with_width(8).with_stem(Stem::Cifar);
        assert_eq!((config.arch, config.head), (expected.into(), Head::Mlp { hidden: 7 }));
        let config = parse(
            r#"{"arch": {"custom": {"block": "bottleneck", "layers": [1, 1]}}, "precision": "mixed", "head": "none"}"#,
        )
        .unwrap();
        assert_eq!((config.head, config.precision), (Head::None, Precision::Mixed));
        assert_eq!(config.arch, ResNet::custom(BlockKind::Bottleneck, [1, 1]).into());
        assert!(parse(r#"{"widht": 3}"#).is_err());
        assert!(parse(r#"{"arch": {"custom": {"block": "basic", "layers": [1], "depth": 2}}}"#).is_err());
        assert!(parse(r#"{"head": {"mlp": {"hiden": 2}}}"#).is_err());
    }

    #[test]
    fn a_file_that_was_written_is_read_again() {
        let config = EncoderConfig {
            arch: ResNet::custom(BlockKind::Basic, [1, 2]).with_stem(Stem::Cifar).into(),
            ..EncoderConfig::default()
        };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""stem":"cifar""#), "{text}");
        assert_eq!(serde_json::from_str::<EncoderConfig>(&text).unwrap(), config);
    }
}
