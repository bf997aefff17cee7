//! The forward pass of RGB images with the max pooling behind it, for inference: the convolution's output is the largest map
//! of a network, and exists here a few rows at a time, in cache.

use std::ops::Range;

use super::product::RgbProduct;
use crate::Context;
use crate::activations::{Activations, DataMut};
use crate::conv::Product;
use crate::conv::finish::OutputPtr;
use crate::simd::{Job, Simd};
use crate::work::{Shared, part, sweep, with_scratch};

/// Rows of the pooling's output that a task takes, about: for each task, a row of the convolution is computed twice.
const ROWS: usize = 14;

/// Rows of the convolution's output that a row of the pooling reads.
const WINDOW: usize = 3;

/// Runs a forward pass, and max pooling 3×3, stride 2, padding 1 of its output, which is finished by then.
///
/// # Panics
/// If shapes do not fit.
pub(in crate::conv) fn forward_pooled<S: Simd>(
    simd: S,
    ctx: &Context,
    product: &Product<'_>,
    out: &mut Activations,
) {
    product.check_reads();
    product.finisher.check(out);
    let [n, h, w, c] = product.spec.output_shape(product.input);
    let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
    assert_eq!(out.shape, [n, oh, ow, c], "shape of what a pooling writes");
    let pass = RgbProduct::new(simd, ctx, product);
    let DataMut::F32(out) = out.data_mut() else { unreachable!("checked: inference passes write f32") };
    let out = Shared::new(out);
    let parts = (n * oh).div_ceil(ROWS);
    sweep(parts, |task| {
        let [lines, values] = pass.scratch();
        with_scratch([lines, values, WINDOW * w * c], |[lines, values, ring]| {
            let mut ready = 0..0;
            for row in part(n * oh, parts, task) {
                let (image, oy) = (row / oh, row % oh);
                let reads = image * h + (2 * oy).saturating_sub(1)..image * h + (2 * oy + 2).min(h);
                let missing = reads.start.max(ready.end)..reads.end;
                for row in missing {
                    let to = OutputPtr::F32(Shared::at(ring));
                    // SAFETY: the row exists, scratch memory has room for it, and this task alone has that.
                    unsafe { pass.row(row, [lines, values], to, row % WINDOW * w) };
                }
                ready = reads.clone();
                let out = out.offset(row * ow * c).get();
                // SAFETY: the rows that it reads are in the ring, and the output's row is this task's alone.
                unsafe { simd.run(MaxRows { ring, rows: reads, width: w, channels: c, out }) };
            }
        });
    });
}

/// A row of a max pooling.
struct MaxRows {
    ring: *const f32,
    /// Which rows it reads.
    rows: Range<usize>,
    /// Pixels of one of them, and channels.
    width: usize,
    channels: usize,
    out: *mut f32,
}

impl Job for MaxRows {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        for ox in 0..self.width.div_ceil(2) {
            let columns = (2 * ox).saturating_sub(1)..(2 * ox + 2).min(self.width);
            for c in (0..self.channels).step_by(S::LANES) {
                let n = (self.channels - c).min(S::LANES);
                // SAFETY: the window lies in the ring, the output pixel in the output.
                unsafe {
                    let mut best = simd.splat(f32::NEG_INFINITY);
                    for y in self.rows.clone() {
                        let row = self.ring.add(y % WINDOW * self.width * self.channels + c);
                        for x in columns.clone() {
                            best = simd.max(best, simd.load_part(row.add(x * self.channels), n));
                        }
                    }
                    simd.store_part(self.out.add(ox * self.channels + c), n, best);
                }
            }
        }
    }
}
