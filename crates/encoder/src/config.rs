//! The configuration of an encoder: raw values from a file, checked once into an [`EncoderSpec`].

use serde::{Deserialize, Serialize};

use crate::EncoderError;

/// The encoder as a configuration file has it. [`EncoderConfig::check`] makes it usable.
///
/// ```
/// use swav_encoder::{Arch, EncoderConfig};
/// let config = EncoderConfig { arch: Arch::Resnet18, dim: 64, ..EncoderConfig::default() };
/// assert_eq!(config.check()?.feature_dim(), 512);
/// # Ok::<(), swav_encoder::EncoderError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderConfig {
    /// The residual network.
    pub arch: Arch,
    /// Channels of the stem before an architecture's own widening: 64 in the literature, any positive number.
    /// Stage i works with `width·2^i` planes.
    pub width: usize,
    /// What comes before the residual blocks.
    pub stem: Stem,
    /// The projection head.
    pub head: Head,
    /// Embedding dimension; ignored where there is no head, since features are embeddings then.
    pub dim: usize,
    /// The numbers that activations are stored in on the CPU.
    pub precision: Precision,
    /// Only kernels whose rounding is that of the direct formula; without it faster algorithms may be chosen
    /// whose error is up to 50 times larger, still about 5e-5 of the output's scale.
    pub exact: bool,
    /// What is kept between forward and backward.
    pub checkpointing: Checkpointing,
}

impl Default for EncoderConfig {
    /// The SwAV reference's ResNet-50: `2048-2048-128` head, f32.
    fn default() -> Self {
        Self {
            arch: Arch::Resnet50,
            width: 64,
            stem: Stem::Imagenet,
            head: Head::Mlp { hidden: 2048 },
            dim: 128,
            precision: Precision::F32,
            exact: false,
            checkpointing: Checkpointing::Off,
        }
    }
}

/// A residual network (He et al. 2016). `50w2`, `50w4` and `50w5` multiply every width, the stem's included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Arch {
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

/// A residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// Two 3x3 convolutions; as many output channels as planes.
    Basic,
    /// 1x1, 3x3 (with the stride), 1x1 convolutions; four times as many output channels as planes.
    Bottleneck,
}

impl BlockKind {
    /// Output channels per plane.
    pub fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
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

/// Numbers that activations are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits everywhere.
    F32,
    /// Activations in bfloat16, sums and parameters in f32. Only the CPU's kernels know it; elsewhere f32.
    Mixed,
}

/// What is kept between forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpointing {
    /// Everything that backward needs.
    Off,
    /// Only the input of each residual block; the block runs again in backward. Same results, a third more work.
    Blocks,
}

/// A checked [`EncoderConfig`].
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderSpec {
    config: EncoderConfig,
    block: BlockKind,
    layers: Vec<usize>,
    stem_channels: usize,
}

/// No dimension of a network may exceed this; it keeps all sizes far from overflow.
const MAX_CHANNELS: usize = 1 << 20;

impl EncoderConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`EncoderError::Config`] with the offending key.
    pub fn check(&self) -> Result<EncoderSpec, EncoderError> {
        let (block, layers, widening) = match &self.arch {
            Arch::Resnet18 => (BlockKind::Basic, vec![2, 2, 2, 2], 1),
            Arch::Resnet34 => (BlockKind::Basic, vec![3, 4, 6, 3], 1),
            Arch::Resnet50 => (BlockKind::Bottleneck, vec![3, 4, 6, 3], 1),
            Arch::Resnet50w2 => (BlockKind::Bottleneck, vec![3, 4, 6, 3], 2),
            Arch::Resnet50w4 => (BlockKind::Bottleneck, vec![3, 4, 6, 3], 4),
            Arch::Resnet50w5 => (BlockKind::Bottleneck, vec![3, 4, 6, 3], 5),
            Arch::Custom { block, layers } => (*block, layers.clone(), 1),
        };
        if layers.is_empty() || layers.len() > 6 || layers.iter().any(|&n| n == 0 || n > 1000) {
            return Err(EncoderError::Config {
                key: "arch.custom.layers",
                expected: "1 to 6 stages of 1 to 1000 blocks",
                got: format!("{layers:?}"),
            });
        }
        let positive = |key, value: usize, limit: usize| {
            if (1..=limit).contains(&value) {
                Ok(())
            } else {
                let expected = "a positive number of at most 2^20 channels in the widest layer";
                Err(EncoderError::Config { key, expected, got: value.to_string() })
            }
        };
        let widest = (widening * block.expansion()) << (layers.len() - 1);
        positive("width", self.width, MAX_CHANNELS / widest)?;
        positive("dim", self.dim, MAX_CHANNELS)?;
        if let Head::Mlp { hidden } = self.head {
            positive("head.mlp.hidden", hidden, MAX_CHANNELS)?;
        }
        Ok(EncoderSpec { config: self.clone(), block, layers, stem_channels: self.width * widening })
    }
}

impl EncoderSpec {
    /// The configuration that was checked.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The kind of all residual blocks.
    pub fn block(&self) -> BlockKind {
        self.block
    }

    /// Blocks of each stage.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// Output channels of the stem, widening included.
    pub fn stem_channels(&self) -> usize {
        self.stem_channels
    }

    /// Channels of the features, the backbone's output.
    pub fn feature_dim(&self) -> usize {
        (self.stem_channels << (self.layers.len() - 1)) * self.block.expansion()
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
        let spec = with(|c| c.arch = Arch::Resnet50w5).unwrap();
        assert_eq!((spec.stem_channels(), spec.feature_dim(), spec.embedding_dim()), (320, 10240, 128));
        let spec = with(|c| {
            c.arch = Arch::Custom { block: BlockKind::Basic, layers: vec![1, 2] };
            c.width = 8;
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
        assert_eq!(key(with(|c| c.width = 0)), "width");
        assert_eq!(key(with(|c| c.width = usize::MAX)), "width");
        assert_eq!(key(with(|c| c.dim = 0)), "dim");
        assert_eq!(key(with(|c| c.head = Head::Mlp { hidden: 0 })), "head.mlp.hidden");
        let custom = |layers| Arch::Custom { block: BlockKind::Basic, layers };
        assert_eq!(key(with(|c| c.arch = custom(vec![]))), "arch.custom.layers");
        assert_eq!(key(with(|c| c.arch = custom(vec![2, 0]))), "arch.custom.layers");
    }

    #[test]
    fn a_file_may_name_any_architecture_but_no_unknown_key() {
        let parse = |text: &str| serde_json::from_str::<EncoderConfig>(text);
        let config =
            parse(r#"{"arch": "resnet50w2", "stem": "cifar", "head": {"mlp": {"hidden": 7}}}"#).unwrap();
        assert_eq!((config.arch, config.head), (Arch::Resnet50w2, Head::Mlp { hidden: 7 }));
        let config =
            parse(r#"{"arch": {"custom": {"block": "bottleneck", "layers": [1, 1]}}, "head": "none"}"#);
        assert_eq!(config.unwrap().head, Head::None);
        assert!(parse(r#"{"widht": 3}"#).is_err());
        assert!(parse(r#"{"arch": {"custom": {"block": "basic", "layers": [1], "depth": 2}}}"#).is_err());
        assert!(parse(r#"{"head": {"mlp": {"hiden": 2}}}"#).is_err());
    }
}
