//! What a network is made of, without parameters: layers and channels.

use crate::shape::ConvShape;

/// What comes before the residual blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stem {
    /// 7×7 convolution of stride 2, batch norm, ReLU, 3×3 max pooling of stride 2.
    Imagenet,
    /// 3×3 convolution, batch norm, ReLU.
    Cifar,
}

/// A residual block; where shapes change, its shortcut is a 1×1 convolution with batch norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// 3×3 (with the stride), 3×3; as many output channels as planes.
    Basic,
    /// 1×1, 3×3 (with the stride), 1×1; four times as many output channels as planes.
    Bottleneck,
}

impl BlockKind {
    /// Output channels by planes.
    pub fn expansion(self) -> usize {
        match self {
            BlockKind::Basic => 1,
            BlockKind::Bottleneck => 4,
        }
    }
}

/// What comes after global average pooling. Its output is scaled to unit length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Head {
    /// Nothing.
    None,
    /// A linear layer with bias.
    Linear {
        /// Its outputs.
        dim: usize,
    },
    /// Linear, batch norm, ReLU, linear; both with biases.
    Mlp {
        /// Outputs of the first.
        hidden: usize,
        /// Outputs of the second.
        dim: usize,
    },
}

/// A residual network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetworkSpec {
    /// What comes first.
    pub stem: Stem,
    /// Output channels of the stem, at least 1; stage `i` has `stem_channels·2^i` planes.
    pub stem_channels: usize,
    /// The kind of all blocks.
    pub block: BlockKind,
    /// Blocks of each stage; every stage but the first halves the resolution.
    pub layers: Vec<usize>,
    /// What comes last.
    pub head: Head,
}

/// Channels rounded up to whole vectors of 8.
pub const fn padded(channels: usize) -> usize {
    channels.next_multiple_of(8)
}

/// A convolution with the batch norm behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConvLayer {
    pub(crate) channels: usize,
    pub(crate) filters: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
}

impl ConvLayer {
    /// The shape on the card, of an input that is not a stem's.
    pub(crate) fn shape(&self, images: usize, height: usize, width: usize) -> ConvShape {
        ConvShape {
            images,
            height,
            width,
            channels: padded(self.channels),
            filters: padded(self.filters),
            kernel: [self.kernel; 2],
            stride: self.stride,
            padding: [self.kernel / 2; 2],
        }
    }
}

/// A block: numbers of its convolutions among all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockLayer {
    pub(crate) convs: Vec<usize>,
    pub(crate) downsample: Option<usize>,
}

impl NetworkSpec {
    /// Channels of the features, the output of global average pooling.
    pub fn feature_dim(&self) -> usize {
        (self.stem_channels << (self.layers.len() - 1)) * self.block.expansion()
    }

    /// Length of an embedding.
    pub fn embedding_dim(&self) -> usize {
        match self.head {
            Head::None => self.feature_dim(),
            Head::Linear { dim } | Head::Mlp { dim, .. } => dim,
        }
    }

    /// All convolutions, the stem's first, and the blocks.
    pub(crate) fn convs(&self) -> (Vec<ConvLayer>, Vec<BlockLayer>) {
        let stem = match self.stem {
            Stem::Imagenet => ConvLayer { channels: 3, filters: self.stem_channels, kernel: 7, stride: 2 },
            Stem::Cifar => ConvLayer { channels: 3, filters: self.stem_channels, kernel: 3, stride: 1 },
        };
        let (mut convs, mut blocks) = (vec![stem], Vec::new());
        let mut channels = self.stem_channels;
        for (stage, &n_blocks) in self.layers.iter().enumerate() {
            let planes = self.stem_channels << stage;
            let out = planes * self.block.expansion();
            for index in 0..n_blocks {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let layer =
                    |channels, filters, kernel, stride| ConvLayer { channels, filters, kernel, stride };
                let main = match self.block {
                    BlockKind::Basic => vec![layer(channels, planes, 3, stride), layer(planes, out, 3, 1)],
                    BlockKind::Bottleneck => vec![
                        layer(channels, planes, 1, 1),
                        layer(planes, planes, 3, stride),
                        layer(planes, out, 1, 1),
                    ],
                };
                let first = convs.len();
                convs.extend(main);
                let last = convs.len();
                let downsample = (stride != 1 || channels != out).then(|| {
                    convs.push(layer(channels, out, 1, stride));
                    last
                });
                blocks.push(BlockLayer { convs: (first..last).collect(), downsample });
                channels = out;
            }
        }
        (convs, blocks)
    }
}
