//! Convolutions of RGB images, forward and weight passes: three input channels, stride 1 or 2.
//!
//! Three channels do not fill a vector. But a row of an image is contiguous: what the taps of a row read for an output
//! pixel are `3·kernel` successive numbers, and those for the next pixel begin `3·stride` further on. So product tiles
//! run over padded copies of the rows as over a matrix of columns, and that matrix, many times as large as the image,
//! is never written. (For other small numbers of channels [`columns`](super::direct::columns) does write it.)

mod gradient;
mod pooled;
mod product;

use super::direct::columns::copy_line;
use super::{ConvSpec, Source};
use crate::load::{Load, LoadVisitor};
use crate::simd::{BLOCK, Job, Simd};

pub(super) use gradient::backward_weights;
pub(super) use pooled::forward_pooled;
pub(super) use product::forward;

/// Input channels.
const CHANNELS: usize = 3;
/// Numbers after a padded row: tiles may read past its end, and copies write whole vectors.
const SLACK: usize = 3 * BLOCK;

/// Whether these kernels are for such a convolution.
pub(super) fn applies(spec: &ConvSpec) -> bool {
    spec.c_in == CHANNELS && spec.kernel > 1 && (1..=2).contains(&spec.stride)
}

/// The rows of the image that each row of the output reads.
#[derive(Clone, Copy)]
struct ImageRows<'a> {
    source: Source<'a>,
    spec: &'a ConvSpec,
    /// Height and width of the image, and of the output.
    image: [usize; 2],
    output: [usize; 2],
    images: usize,
}

impl<'a> ImageRows<'a> {
    fn new(source: Source<'a>, spec: &'a ConvSpec) -> Self {
        let [images, h, w, _] = source.shape();
        let [_, oh, ow, _] = spec.output_shape(source.shape());
        Self { source, spec, image: [h, w], output: [oh, ow], images }
    }

    /// Rows of the output, of all images.
    fn count(&self) -> usize {
        self.images * self.output[0]
    }

    /// Numbers that the taps of one row read for a pixel.
    fn depth(&self) -> usize {
        self.spec.kernel * CHANNELS
    }

    /// Numbers from one padded row to the next.
    fn stride(&self) -> usize {
        ((self.image[1] + 2 * self.spec.padding) * CHANNELS + SLACK).next_multiple_of(BLOCK)
    }

    /// Copies the rows that an output row reads, one for each vertical tap, with zeros around the image.
    ///
    /// # Safety
    /// the output row exist, and `dst` have room.
    unsafe fn fill<S: Simd>(&self, simd: S, row: usize, dst: *mut f32) {
        struct RowsVisitor<'a, S>(&'a ImageRows<'a>, usize, *mut f32, S);
        impl<S: Simd> LoadVisitor for RowsVisitor<'_, S> {
            fn visit<L: Load>(self, load: L) {
                // SAFETY: the row exists, and `dst` has room for what it reads.
                unsafe { self.3.run(FillImageRows { load, rows: self.0, row: self.1, dst: self.2 }) }
            }
        }
        self.source.visit(RowsVisitor(self, row, dst, simd));
    }
}

struct FillImageRows<'a, L> {
    load: L,
    rows: &'a ImageRows<'a>,
    row: usize,
    dst: *mut f32,
}

impl<L: Load> Job for FillImageRows<'_, L> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let r = self.rows;
        let ([h, w], stride, padding) = (r.image, r.stride(), r.spec.padding);
        let (image, top) = (self.row / r.output[0], self.row % r.output[0] * r.spec.stride);
        for tap in 0..r.spec.kernel {
            let y = (top + tap).wrapping_sub(padding);
            // SAFETY: there is room for all rows, and what is read lies in the image. A vector's overhang
            // is overwritten by what comes next, or falls on the slack.
            unsafe {
                let dst = self.dst.add(tap * stride);
                if y >= h {
                    copy_line::<S, L>(simd, None, stride - BLOCK, dst);
                    continue;
                }
                copy_line::<S, L>(simd, None, padding * CHANNELS, dst);
                let inside = dst.add(padding * CHANNELS);
                let at = (image * h + y) * w * CHANNELS;
                if L::PLAIN {
                    copy_line::<S, L>(simd, Some((&self.load, at, 0)), w * CHANNELS, inside);
                } else {
                    for i in (0..w * CHANNELS).step_by(CHANNELS) {
                        copy_line::<S, L>(simd, Some((&self.load, at + i, 0)), CHANNELS, inside.add(i));
                    }
                }
                let after = (padding + w) * CHANNELS;
                copy_line::<S, L>(simd, None, stride - BLOCK - after, dst.add(after));
            }
        }
    }
}
