//! The stem's norm, ReLU and max pooling in one pass, and global average pooling.

use super::norm::finish_backward;
use super::{Launch, NormGrad, ROW_BLOCKS, THREADS, Tiling, typed};
use crate::shape::Element;

/// Shape of the map that is pooled; the result is `[images][⌈height/2⌉][⌈width/2⌉][channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShape {
    /// Images.
    pub images: usize,
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
    /// Padded channels.
    pub channels: usize,
}

impl PoolShape {
    /// Pixels of the result, of all images.
    pub const fn out_pixels(&self) -> usize {
        self.images * self.height.div_ceil(2) * self.width.div_ceil(2)
    }

    /// Values of the result.
    pub const fn out_len(&self) -> usize {
        self.out_pixels() * self.channels
    }

    /// Rows of the norm: pixels of the map, of all images.
    pub const fn rows(&self) -> usize {
        self.images * self.height * self.width
    }
}

/// `out = max over 3×3 windows of relu(a·y + b)`, stride 2, padding 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormPool<P> {
    /// Type of `y` and `out`.
    pub element: Element,
    /// The norm's input.
    pub y: P,
    /// Its state.
    pub state: P,
    /// The map's shape.
    pub shape: PoolShape,
    /// Output.
    pub out: P,
    /// One `u32` for each 8 channels of `out`: 4 bits a channel, the position in the window. Needed for gradients only.
    pub positions: Option<P>,
}

impl<P: Copy> NormPool<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let total = self.shape.out_len() / 8;
        let launch = Launch::each(typed!(self.element, "norm_pool"), total)
            .pointer(self.y)
            .pointer(self.state)
            .pointer(self.out)
            .optional(self.positions)
            .int(self.shape.height)
            .int(self.shape.width)
            .int(self.shape.channels / 8)
            .int(total);
        vec![launch]
    }
}

/// Quads of pixels that a block takes in a row, and row blocks.
fn spans(shape: &PoolShape, t: &Tiling) -> (usize, usize) {
    let quads = shape.out_pixels();
    let span = quads.div_ceil((ROW_BLOCKS / t.tiles).max(1)).div_ceil(t.rows) * t.rows;
    (span, quads.div_ceil(span))
}

/// Sums for the gradient of [`NormPool`], then coefficients, dγ, dβ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormPoolBackwardSums<P> {
    /// Type of activations.
    pub element: Element,
    /// Gradient with respect to the pooled output.
    pub dout: P,
    /// From [`NormPool`].
    pub positions: P,
    /// The norm's input.
    pub y: P,
    /// The norm.
    pub norm: NormGrad<P>,
    /// The map's shape.
    pub shape: PoolShape,
    /// [`norm_scratch_len`](super::norm_scratch_len) values for [`PoolShape::rows`] rows and 2 sums.
    pub scratch: P,
}

impl<P: Copy> NormPoolBackwardSums<P> {
    /// The launches, in their order.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let t = Tiling::sums(self.shape.channels);
        let (span, blocks) = spans(&self.shape, &t);
        let sums = Launch::blocks(typed!(self.element, "norm_pool_backward_sums"), [t.tiles, blocks, 1])
            .pointer(self.dout)
            .pointer(self.positions)
            .pointer(self.y)
            .pointer(self.norm.state)
            .pointer(self.scratch)
            .int(self.shape.height)
            .int(self.shape.width)
            .int(t.vectors)
            .int(t.tile)
            .int(self.shape.out_pixels())
            .int(span);
        let finish =
            finish_backward(self.scratch, self.shape.channels, blocks, self.shape.rows(), &self.norm, None);
        vec![sums, finish]
    }
}

/// The gradient of [`NormPool`] with respect to `y`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormPoolBackwardApply<P> {
    /// Type of activations.
    pub element: Element,
    /// Gradient with respect to the pooled output.
    pub dout: P,
    /// From [`NormPool`].
    pub positions: P,
    /// The norm's input.
    pub y: P,
    /// Its state.
    pub state: P,
    /// From [`NormPoolBackwardSums`].
    pub coefficients: P,
    /// The map's shape.
    pub shape: PoolShape,
    /// Gradient with respect to `y`.
    pub out: P,
}

impl<P: Copy> NormPoolBackwardApply<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let t = Tiling::sums(self.shape.channels);
        let (span, blocks) = spans(&self.shape, &t);
        let launch = Launch::blocks(typed!(self.element, "norm_pool_backward_apply"), [t.tiles, blocks, 1])
            .pointer(self.dout)
            .pointer(self.positions)
            .pointer(self.y)
            .pointer(self.state)
            .pointer(self.coefficients)
            .pointer(self.out)
            .int(self.shape.height)
            .int(self.shape.width)
            .int(t.vectors)
            .int(t.tile)
            .int(self.shape.out_pixels())
            .int(span);
        vec![launch]
    }
}

/// Threads of a block that has a thread for each vector of channels.
fn threads(channels: usize) -> usize {
    (channels / 8).next_multiple_of(32).min(THREADS)
}

/// `out[image][c]` = mean of `x[image][pixel][c]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AveragePool<P> {
    /// Type of `x` and `out`.
    pub element: Element,
    /// Input, `[images][pixels][channels]`.
    pub x: P,
    /// Output, `[images][channels]`.
    pub out: P,
    /// Images.
    pub images: usize,
    /// Pixels of an image.
    pub pixels: usize,
    /// Padded channels.
    pub channels: usize,
}

impl<P: Copy> AveragePool<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let threads = threads(self.channels);
        let grid = [self.images, (self.channels / 8).div_ceil(threads), 1];
        let launch = Launch::new(typed!(self.element, "average_pool"), grid, [threads, 1, 1]);
        vec![launch.pointer(self.x).pointer(self.out).int(self.pixels).int(self.channels / 8)]
    }
}

/// `dx[image][pixel][c] = dout[image][c] / pixels`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AveragePoolBackward<P> {
    /// Type of both.
    pub element: Element,
    /// `[images][channels]`.
    pub dout: P,
    /// `[images][pixels][channels]`.
    pub dx: P,
    /// Images.
    pub images: usize,
    /// Pixels of an image.
    pub pixels: usize,
    /// Padded channels.
    pub channels: usize,
}

impl<P: Copy> AveragePoolBackward<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let threads = threads(self.channels);
        let grid = [self.images, (self.channels / 8).div_ceil(threads), 1];
        let launch = Launch::new(typed!(self.element, "average_pool_backward"), grid, [threads, 1, 1]);
        vec![launch.pointer(self.dout).pointer(self.dx).int(self.pixels).int(self.channels / 8)]
    }
}
