//! The weight pass of RGB images.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use std::ops::Range;

use super::{CHANNELS, ImageRows};
use crate::Context;
use crate::conv::{Gradient, Source};
use crate::load::{Load, LoadVisitor};
use crate::simd::{Job, Simd};
use crate::work::{Shared, part, parts, sweep, with_scratch};

/// Into how many parts the output's rows are cut; each has sums of its own.
const ROW_PARTS: usize = 16;

/// `C[i] += Σ_x A[x·STEP + i] · B[x·width ..]` over the pixels of an output row, for `MR` rows of `NV` vectors, of which
/// `rows` are stored.
#[derive(Clone, Copy)]
struct RgbGradientTile {
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    pixels: usize,
    /// From one pixel of `b`, and from one row of `c`, to the next.
    width: usize,
    rows: usize,
}

struct RgbGradientJob<const MR: usize, const NV: usize, const STEP: usize>(RgbGradientTile);

impl<const MR: usize, const NV: usize, const STEP: usize> Job for RgbGradientJob<MR, NV, STEP> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let t = self.0;
        // SAFETY: the tile's pointers are valid for what the formula touches.
        unsafe {
            let mut acc = [[simd.zero(); NV]; MR];
            let (mut a, mut b) = (t.a, t.b);
            for _ in 0..t.pixels {
                let mut bv = [simd.zero(); NV];
                for j in 0..NV {
                    bv[j] = simd.load(b.add(j * S::LANES));
                }
                for i in 0..MR {
                    let av = simd.splat(*a.add(i));
                    for j in 0..NV {
                        acc[i][j] = simd.fma(av, bv[j], acc[i][j]);
                    }
                }
                a = a.add(STEP);
                b = b.add(t.width);
            }
            for i in 0..MR {
                if i < t.rows {
                    for j in 0..NV {
                        let p = t.c.add(i * t.width + j * S::LANES);
                        simd.store(p, simd.add(simd.load(p), acc[i][j]));
                    }
                }
            }
        }
    }
}

/// Most rows of a gradient tile: a row of taps of a 3×3 convolution.
const GRAD_ROWS: usize = 9;

/// Rows of an instruction set's gradient tiles: no more accumulators than there are registers.
const fn grad_rows<S: Simd>() -> usize {
    if S::TILE_ROWS < GRAD_ROWS { S::TILE_ROWS } else { GRAD_ROWS }
}

/// Runs the smallest gradient tile of at least `tile.rows` rows.
///
/// # Safety
/// The operands valid for three rows more.
unsafe fn grad_product<S: Simd, const NV: usize, const STEP: usize>(simd: S, tile: RgbGradientTile) {
    // SAFETY: the operands are valid for the rows of the tile that is taken.
    unsafe {
        match tile.rows {
            0..=4 => simd.run(RgbGradientJob::<4, NV, STEP>(tile)),
            5 => simd.run(RgbGradientJob::<5, NV, STEP>(tile)),
            6 => simd.run(RgbGradientJob::<6, NV, STEP>(tile)),
            7 => simd.run(RgbGradientJob::<7, NV, STEP>(tile)),
            _ => simd.run(RgbGradientJob::<GRAD_ROWS, NV, STEP>(tile)),
        }
    }
}

/// Adds `Σ dy ⊗ x` to `grad`, whose layout is `[c_out][kernel][kernel][3]`.
pub(in crate::conv) fn backward_weights<S: Simd>(
    simd: S,
    ctx: &Context,
    gradient: &Gradient<'_>,
    grad: &mut [f32],
) {
    gradient.check(grad);
    let &Gradient { spec, x, dy, .. } = gradient;
    let rows = ImageRows::new(x, spec);
    let width = spec.c_out.next_multiple_of(S::LANES);
    let depth = spec.kernel * rows.depth();
    let row_parts = ROW_PARTS.min(rows.count()).max(1);
    let mut partial = ctx.pool().scratch(row_parts * depth * width);
    let out = Shared::new(&mut partial);
    sweep(row_parts, |task| {
        let lens = [spec.kernel * rows.stride(), rows.output[1] * width, 0];
        with_scratch(lens, |[lines, gradients, _]| {
            let sums = out.offset(task * depth * width).get();
            // SAFETY: each part has its own sums, `depth` rows of them.
            unsafe { sums.write_bytes(0, depth * width) };
            for row in part(rows.count(), row_parts, task) {
                // SAFETY: scratch memory has room for the rows; tiles read a few
                // numbers past the last pixel's, which are slack.
                unsafe {
                    rows.fill(simd, row, lines);
                    let pixels = row * rows.output[1]..(row + 1) * rows.output[1];
                    fill_gradients(simd, &dy, pixels, width, gradients);
                    row_of_weights(simd, &rows, lines, gradients, sums, width);
                }
            }
        });
    });
    for (o, grad) in grad.chunks_exact_mut(depth).enumerate() {
        for (k, grad) in grad.iter_mut().enumerate() {
            let of_parts = partial[k * width + o..].iter().step_by(depth * width);
            *grad += of_parts.sum::<f32>();
        }
    }
}

/// Adds one output row's share to the sums.
///
/// # Safety
/// `lines` and `gradients` must hold the row, with slack for three rows of a tile, and `sums` be this task's alone.
unsafe fn row_of_weights<S: Simd>(
    simd: S,
    rows: &ImageRows<'_>,
    lines: *const f32,
    gradients: *const f32,
    sums: *mut f32,
    width: usize,
) {
    let depth = rows.depth();
    let tiles = || parts(depth, depth.div_ceil(grad_rows::<S>()));
    for c in (0..width).step_by(2 * S::LANES) {
        for (tap, ks) in (0..rows.spec.kernel).flat_map(|tap| tiles().map(move |ks| (tap, ks))) {
            // SAFETY: lines, gradients and sums have the rows and columns that the offsets reach.
            unsafe {
                let tile = RgbGradientTile {
                    a: lines.add(tap * rows.stride() + ks.start),
                    b: gradients.add(c),
                    c: sums.add((tap * depth + ks.start) * width + c),
                    pixels: rows.output[1],
                    width,
                    rows: ks.len(),
                };
                match (rows.spec.stride, (width - c) / S::LANES) {
                    (1, 1) => grad_product::<S, 1, CHANNELS>(simd, tile),
                    (1, _) => grad_product::<S, 2, CHANNELS>(simd, tile),
                    (_, 1) => grad_product::<S, 1, { 2 * CHANNELS }>(simd, tile),
                    _ => grad_product::<S, 2, { 2 * CHANNELS }>(simd, tile),
                }
            }
        }
    }
}

/// Copies the gradients of some pixels, `width` numbers each, zero where channels are missing.
///
/// # Safety
/// the pixels exist, and `dst` have room.
unsafe fn fill_gradients<S: Simd>(
    simd: S,
    dy: &Source<'_>,
    pixels: Range<usize>,
    width: usize,
    dst: *mut f32,
) {
    struct FillGradients<L> {
        load: L,
        pixels: Range<usize>,
        channels: usize,
        width: usize,
        dst: *mut f32,
    }
    impl<L: Load> Job for FillGradients<L> {
        type Out = ();
        #[inline(always)]
        unsafe fn call<S: Simd>(self, simd: S) {
            for c in (0..self.width).step_by(S::LANES) {
                let n = (self.channels - c).min(S::LANES);
                for (i, pixel) in self.pixels.clone().enumerate() {
                    let at = pixel * self.channels + c;
                    // SAFETY: the pixels exist, and `dst` has room for `width` numbers of each.
                    unsafe {
                        let v = if n == S::LANES {
                            self.load.vec::<S, false>(simd, at, c, n)
                        } else {
                            self.load.vec::<S, true>(simd, at, c, n)
                        };
                        simd.store(self.dst.add(i * self.width + c), v);
                    }
                }
            }
        }
    }
    struct GradientsVisitor<S>(Range<usize>, usize, usize, *mut f32, S);
    impl<S: Simd> LoadVisitor for GradientsVisitor<S> {
        fn visit<L: Load>(self, load: L) {
            let Self(pixels, channels, width, dst, simd) = self;
            // SAFETY: the pixels exist, and `dst` has room for `width` numbers of each.
            unsafe { simd.run(FillGradients { load, pixels, channels, width, dst }) }
        }
    }
    let channels = dy.shape()[3];
    dy.visit(GradientsVisitor(pixels, channels, width, dst, simd));
}
