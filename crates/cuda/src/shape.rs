//! Shapes of convolutions, and the number types they compute in.

use half::bf16;
use serde::{Deserialize, Serialize};

/// How a value lies in memory. Sums are always taken in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// 32-bit floating point.
    F32,
    /// The upper half of an f32.
    Bf16,
}

impl Element {
    /// Size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }

    /// Values as they lie in memory: the nearest ones of this type, ties to even.
    pub fn to_bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Element::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Element::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        }
    }

    /// Values from memory; bytes behind the last whole one do not count.
    pub fn to_values(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Element::F32 => bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Element::Bf16 => {
                let values = bytes.as_chunks::<2>().0.iter();
                values.map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect()
            }
        }
    }
}

/// Which of a convolution's three products is meant, for y = x * w.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvPass {
    /// y from x and w.
    Forward,
    /// The gradient with respect to x, from that with respect to y, and w.
    DataGradient,
    /// The gradient with respect to w, from x and the gradient with respect to y.
    WeightGradient,
}

/// A two-dimensional convolution over NHWC activations with weights in `[filters, height, width, channels]` order.
///
/// A linear layer is a 1×1 convolution of one pixel an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConvShape {
    /// Images.
    pub images: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Channels of the output.
    pub filters: usize,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step along both sides.
    pub stride: usize,
    /// Rows of zeros above and below, columns of zeros left and right.
    pub padding: [usize; 2],
}

impl ConvShape {
    /// A linear layer of `rows` vectors.
    pub const fn linear(rows: usize, inputs: usize, outputs: usize) -> Self {
        ConvShape {
            images: rows,
            height: 1,
            width: 1,
            channels: inputs,
            filters: outputs,
            kernel: [1, 1],
            stride: 1,
            padding: [0, 0],
        }
    }

    /// Whether it is a linear layer: each image a vector.
    pub const fn is_linear(&self) -> bool {
        self.height == 1 && self.width == 1 && self.kernel[0] == 1 && self.kernel[1] == 1
    }

    /// Rows of the output.
    ///
    /// # Panics
    /// If the kernel is higher than the padded input, or the stride is 0.
    pub const fn out_height(&self) -> usize {
        (self.height + 2 * self.padding[0] - self.kernel[0]) / self.stride + 1
    }

    /// Columns of the output.
    ///
    /// # Panics
    /// If the kernel is wider than the padded input, or the stride is 0.
    pub const fn out_width(&self) -> usize {
        (self.width + 2 * self.padding[1] - self.kernel[1]) / self.stride + 1
    }

    /// Pixels of the output of all images: the values a channel that batch norm sees.
    pub const fn out_pixels(&self) -> usize {
        self.images * self.out_height() * self.out_width()
    }

    /// Values of the input.
    pub const fn input_len(&self) -> usize {
        self.images * self.height * self.width * self.channels
    }

    /// Values of the weights.
    pub const fn weight_len(&self) -> usize {
        self.filters * self.kernel[0] * self.kernel[1] * self.channels
    }

    /// Values of the output.
    pub const fn output_len(&self) -> usize {
        self.out_pixels() * self.filters
    }

    /// Multiplications and additions of one pass.
    pub const fn flops(&self) -> u64 {
        2 * (self.out_pixels() * self.weight_len()) as u64
    }
}

impl std::fmt::Display for ConvShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { images, height, width, channels, filters, kernel: [rows, columns], stride, .. } = self;
        write!(f, "{images}x{height}x{width}x{channels} to {filters}, {rows}x{columns}, stride {stride}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_a_strided_convolution() {
        let shape = ConvShape {
            images: 2,
            height: 15,
            width: 14,
            channels: 3,
            filters: 5,
            kernel: [3, 3],
            stride: 2,
            padding: [1, 1],
        };
        assert_eq!([shape.out_height(), shape.out_width(), shape.out_pixels()], [8, 7, 112]);
        assert_eq!([shape.input_len(), shape.weight_len(), shape.output_len()], [1260, 135, 560]);
        assert_eq!(shape.flops(), 2 * 112 * 135);
        assert_eq!(shape.to_string(), "2x15x14x3 to 5, 3x3, stride 2");
    }

    #[test]
    fn a_linear_layer_is_a_matrix() {
        let shape = ConvShape::linear(7, 32, 10);
        assert_eq!([shape.input_len(), shape.weight_len(), shape.output_len()], [224, 320, 70]);
    }
}
