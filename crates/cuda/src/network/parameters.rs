//! Where parameters, statistics and gradients lie, and how values come there and back.

use super::spec::{Head, NetworkSpec, Stem, padded};
use crate::shape::Element;

/// How a parameter's values are arranged for the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterShape {
    /// A convolution's weight `[filters][kernel][kernel][channels]`.
    Conv {
        /// Output channels.
        filters: usize,
        /// Rows and columns.
        kernel: usize,
        /// Input channels.
        channels: usize,
    },
    /// The weight of [`Stem::Imagenet`], `[filters][7][7][3]`, kept as a 4×1 kernel on 64 channels.
    StemRows {
        /// Output channels.
        filters: usize,
    },
    /// A vector.
    Vector(usize),
}

impl ParameterShape {
    /// Values outside.
    pub fn len(&self) -> usize {
        match *self {
            ParameterShape::Conv { filters, kernel, channels } => filters * kernel * kernel * channels,
            ParameterShape::StemRows { filters } => filters * 7 * 7 * 3,
            ParameterShape::Vector(len) => len,
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values on the card, padding included; a multiple of 8.
    pub fn padded_len(&self) -> usize {
        match *self {
            ParameterShape::Conv { filters, kernel, channels } => {
                padded(filters) * kernel * kernel * padded(channels)
            }
            ParameterShape::StemRows { filters } => padded(filters) * 256,
            ParameterShape::Vector(len) => padded(len),
        }
    }

    /// Whether the gradient is a weight gradient's (stored like activations) and not a sum over rows (f32).
    fn is_matrix(&self) -> bool {
        !matches!(self, ParameterShape::Vector(_))
    }

    /// Calls `place(outside, inside)` for the positions of each value.
    fn for_each(&self, mut place: impl FnMut(usize, usize)) {
        match *self {
            ParameterShape::Vector(len) => (0..len).for_each(|i| place(i, i)),
            ParameterShape::Conv { filters, kernel, channels } => {
                let inner = padded(channels);
                for row in 0..filters * kernel * kernel {
                    (0..channels).for_each(|c| place(row * channels + c, row * inner + c));
                }
            }
            ParameterShape::StemRows { filters } => {
                for (index, (filter, tap)) in
                    (0..filters).flat_map(|f| (0..49 * 3).map(move |t| (f, t))).enumerate()
                {
                    let (r, s, c): (usize, usize, usize) = (tap / 21, tap / 3 % 7, tap % 3);
                    // An 8×8 kernel on 2×2 blocks of pixels, whose first row and column are zero.
                    let (bi, dy, bj, dx) = (r.div_ceil(2), (r + 1) % 2, s.div_ceil(2), (s + 1) % 2);
                    place(index, filter * 256 + bi * 64 + bj * 16 + dy * 6 + dx * 3 + c);
                }
            }
        }
    }

    /// Values as the card has them: padding is zero.
    ///
    /// # Panics
    /// If the number of values is another one.
    pub fn pack(&self, values: &[f32]) -> Vec<f32> {
        assert_eq!(values.len(), self.len(), "values of a parameter");
        let mut packed = vec![0.0; self.padded_len()];
        self.for_each(|outside, inside| packed[inside] = values[outside]);
        packed
    }

    /// The opposite of [`pack`](Self::pack).
    ///
    /// # Panics
    /// If the number of values is another one.
    pub fn unpack(&self, packed: &[f32]) -> Vec<f32> {
        assert_eq!(packed.len(), self.padded_len(), "values of a parameter on the card");
        let mut values = vec![0.0; self.len()];
        self.for_each(|outside, inside| values[outside] = packed[inside]);
        values
    }
}

/// A parameter and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Its shape.
    pub shape: ParameterShape,
    /// Values before it in the buffers of parameters, momenta and copies.
    pub at: usize,
    /// Whether each group of crops has a gradient of its own.
    pub by_group: bool,
}

/// A batch norm: its parameters and the place of its running statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Norm {
    /// Channels outside.
    pub channels: usize,
    /// The number of gamma among the parameters; beta follows.
    pub gamma: usize,
    /// Padded channels of the norms before it; running statistics are `[2][padded]` from twice that.
    pub at: usize,
    /// Whether it belongs to the backbone, which each group passes.
    pub by_group: bool,
}

/// All parameters and norms, in the order of the layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// Parameters: of each convolution its weight, gamma, beta; of linear layers weight, bias.
    pub list: Vec<Parameter>,
    /// Batch norms.
    pub norms: Vec<Norm>,
    /// Values of all, padding included.
    pub len: usize,
    /// Padded channels of all norms.
    pub norm_channels: usize,
    /// Of these, those of the backbone, which come first.
    pub backbone_norm_channels: usize,
}

/// Where gradients lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gradients {
    /// Bytes before each parameter's first gradient.
    pub at: Vec<usize>,
    /// Bytes from one group's to the next.
    pub step: Vec<usize>,
    /// How many there are.
    pub count: Vec<usize>,
    /// How they are stored.
    pub element: Vec<Element>,
    /// Bytes of all.
    pub bytes: usize,
}

impl Parameters {
    /// The parameters of a network.
    pub fn new(spec: &NetworkSpec) -> Self {
        let mut all = Self::default();
        let (convs, _) = spec.convs();
        for (index, conv) in convs.iter().enumerate() {
            let shape = match (index, spec.stem) {
                (0, Stem::Imagenet) => ParameterShape::StemRows { filters: conv.filters },
                _ => ParameterShape::Conv {
                    filters: conv.filters,
                    kernel: conv.kernel,
                    channels: conv.channels,
                },
            };
            all.push(shape, true);
            all.push_norm(conv.filters, true);
        }
        all.backbone_norm_channels = all.norm_channels;
        let features = spec.feature_dim();
        match spec.head {
            Head::None => {}
            Head::Linear { dim } => all.push_linear(features, dim),
            Head::Mlp { hidden, dim } => {
                all.push_linear(features, hidden);
                all.push_norm(hidden, false);
                all.push_linear(hidden, dim);
            }
        }
        all
    }

    fn push(&mut self, shape: ParameterShape, by_group: bool) {
        self.list.push(Parameter { shape, at: self.len, by_group });
        // Multiples of 64 values: vectors of any kind begin at whole cache lines.
        self.len += shape.padded_len().next_multiple_of(64);
    }

    fn push_norm(&mut self, channels: usize, by_group: bool) {
        self.norms.push(Norm { channels, gamma: self.list.len(), at: self.norm_channels, by_group });
        self.norm_channels += padded(channels);
        self.push(ParameterShape::Vector(channels), by_group);
        self.push(ParameterShape::Vector(channels), by_group);
    }

    fn push_linear(&mut self, inputs: usize, outputs: usize) {
        self.push(ParameterShape::Conv { filters: outputs, kernel: 1, channels: inputs }, false);
        self.push(ParameterShape::Vector(outputs), false);
    }

    /// Where gradients lie for this number of groups of crops.
    pub fn gradients(&self, n_groups: usize, element: Element) -> Gradients {
        let mut out = Gradients::default();
        for parameter in &self.list {
            let element = if parameter.shape.is_matrix() { element } else { Element::F32 };
            let count = if parameter.by_group { n_groups } else { 1 };
            let step = (parameter.shape.padded_len() * element.bytes()).next_multiple_of(256);
            out.at.push(out.bytes);
            out.step.push(step);
            out.count.push(count);
            out.element.push(element);
            out.bytes += step * count;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::BlockKind;

    #[test]
    fn values_survive_packing() {
        for shape in [
            ParameterShape::Conv { filters: 3, kernel: 3, channels: 5 },
            ParameterShape::StemRows { filters: 2 },
            ParameterShape::Vector(11),
        ] {
            let values: Vec<f32> = (0..shape.len()).map(|i| 1.0 + i as f32).collect();
            let packed = shape.pack(&values);
            assert_eq!(packed.iter().filter(|&&x| x != 0.0).count(), values.len());
            assert_eq!(shape.unpack(&packed), values);
        }
    }

    #[test]
    fn a_resnet_50_has_its_parameters() {
        let spec = NetworkSpec {
            stem: Stem::Imagenet,
            stem_channels: 64,
            block: BlockKind::Bottleneck,
            layers: vec![3, 4, 6, 3],
            head: Head::None,
        };
        let parameters = Parameters::new(&spec);
        assert_eq!(parameters.list.iter().map(|p| p.shape.len()).sum::<usize>(), 23_508_032);
        assert_eq!(parameters.norms.len(), 53);
        assert!(parameters.list.windows(2).all(|w| w[0].at + w[0].shape.padded_len() <= w[1].at));
        let one = parameters.gradients(1, Element::F32).bytes;
        assert_eq!(parameters.gradients(3, Element::F32).bytes, 3 * one);
    }
}
