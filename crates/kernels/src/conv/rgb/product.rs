//! The forward pass of RGB images.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use super::{CHANNELS, ImageRows};
use crate::Context;
use crate::activations::Activations;
use crate::conv::Product;
use crate::conv::filters::{Panels, pack};
use crate::conv::finish::{Finisher, OutputPtr, ReadyTile};
use crate::conv::partials::{Partials, PartialsPtr};
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{part, parts, sweep, with_scratch};

/// Output pixels that a task takes, about.
const PIXELS: usize = 3584;
/// Most rows of a tile.
const MOST_ROWS: usize = 14;

/// `C[i] = Σ_tap Σ_k A[tap·row + i·STEP + k] · B[(tap·depth + k)·width ..]` for `MR` rows of `NV` vectors.
#[derive(Clone, Copy)]
struct RgbTile {
    a: *const f32,
    row: usize,
    taps: usize,
    depth: usize,
    b: *const f32,
    c: *mut f32,
    /// Where the products go in the end, in words from pixel to pixel, to be called into the cache meanwhile.
    target: *const f32,
    target_step: usize,
}

struct RgbJob<const MR: usize, const NV: usize, const STEP: usize>(RgbTile);

impl<const MR: usize, const NV: usize, const STEP: usize> Job for RgbJob<MR, NV, STEP> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let t = self.0;
        // SAFETY: the tile's pointers are valid for what the formula touches.
        unsafe {
            for i in 0..MR {
                for j in 0..NV {
                    simd.prefetch(t.target.wrapping_add(i * t.target_step + j * S::LANES));
                }
            }
            let mut acc = [[simd.zero(); NV]; MR];
            let mut b = t.b;
            for tap in 0..t.taps {
                let a = t.a.add(tap * t.row);
                for k in 0..t.depth {
                    let mut bv = [simd.zero(); NV];
                    for j in 0..NV {
                        bv[j] = simd.load(b.add(j * S::LANES));
                    }
                    b = b.add(NV * S::LANES);
                    for i in 0..MR {
                        let av = simd.splat(*a.add(i * STEP + k));
                        for j in 0..NV {
                            acc[i][j] = simd.fma(av, bv[j], acc[i][j]);
                        }
                    }
                }
            }
            for i in 0..MR {
                for j in 0..NV {
                    simd.store(t.c.add((i * NV + j) * S::LANES), acc[i][j]);
                }
            }
        }
    }
}

/// Runs the smallest tile of at least `rows` rows.
///
/// # Safety
/// the operands valid for three rows more.
unsafe fn product<S: Simd, const NV: usize, const STEP: usize>(simd: S, rows: usize, tile: RgbTile) {
    // SAFETY: the operands are valid for the rows of the tile that is taken.
    unsafe {
        match rows {
            0..=4 => simd.run(RgbJob::<4, NV, STEP>(tile)),
            5..=6 => simd.run(RgbJob::<6, NV, STEP>(tile)),
            7..=8 => simd.run(RgbJob::<8, NV, STEP>(tile)),
            9..=10 => simd.run(RgbJob::<10, NV, STEP>(tile)),
            11..=12 => simd.run(RgbJob::<12, NV, STEP>(tile)),
            _ => simd.run(RgbJob::<14, NV, STEP>(tile)),
        }
    }
}

struct RgbProduct<'a, S> {
    simd: S,
    rows: ImageRows<'a>,
    channels: usize,
    panels: Panels,
    packed: &'a [f32],
    output: OutputPtr,
    finisher: Finisher<'a>,
    partials: PartialsPtr,
    /// Into how many parts the output's rows are cut.
    row_parts: usize,
}

/// Runs a forward pass; returns the sums of each part, and the values per channel behind each of them.
pub(in crate::conv) fn forward<S: Simd>(
    simd: S,
    ctx: &Context,
    product: &Product<'_>,
    out: &mut Activations,
) -> (Partials, Vec<usize>) {
    product.check(out);
    let rows = ImageRows::new(product.source, product.spec);
    let (filters, finisher) = (product.filters().flat(), product.finisher);
    let panels = Panels::new::<S>(filters.channels());
    let packed = pack(simd, ctx, filters, panels);
    let row_parts = (rows.count() * rows.output[1]).div_ceil(PIXELS).clamp(1, rows.count().max(1));
    let mut partials = Partials::new(row_parts, filters.channels(), finisher.sums());
    let pass = RgbProduct {
        simd,
        rows,
        channels: filters.channels(),
        panels,
        packed: &packed,
        output: OutputPtr::new(out),
        finisher,
        partials: partials.share(),
        row_parts,
    };
    // SAFETY: each number is a task's, and comes once.
    sweep(row_parts, |task| unsafe { pass.task(task) });
    let counts = (0..row_parts).map(|i| part(rows.count(), row_parts, i).len() * rows.output[1]).collect();
    (partials, counts)
}

impl<S: Simd> RgbProduct<'_, S> {
    /// Runs a task.
    ///
    /// # Safety
    /// It must be one of the pass's tasks, and run by one thread only.
    unsafe fn task(&self, task: usize) {
        const { assert!(S::TILE_ROWS <= MOST_ROWS) };
        let rows = &self.rows;
        let (step, stride) = (rows.spec.stride * CHANNELS, rows.stride());
        let depth = rows.depth();
        let panel = (rows.spec.kernel * depth).next_multiple_of(BLOCK) * self.panels.full();
        let lens = [rows.spec.kernel * stride, MOST_ROWS * self.panels.full(), 0];
        with_scratch(lens, |[lines, values, _]| {
            let range = part(rows.count(), self.row_parts, task);
            for row in range.clone() {
                // SAFETY: scratch memory has room for the rows.
                unsafe { rows.fill(self.simd, row, lines) };
                let width = rows.output[1];
                let tiles = || parts(width, width.div_ceil(S::TILE_ROWS));
                for (j, columns) in (0..self.panels.count()).flat_map(|j| tiles().map(move |p| (j, p))) {
                    let element = (row * width + columns.start) * self.channels + j * self.panels.full();
                    let (target, target_step) = match self.output {
                        OutputPtr::F32(out) => (out.get().cast_const().wrapping_add(element), self.channels),
                        OutputPtr::Bf16(out) => {
                            (out.get().wrapping_add(element).cast_const().cast(), self.channels / 2)
                        }
                    };
                    let tile = RgbTile {
                        a: lines.wrapping_add(columns.start * step),
                        row: stride,
                        taps: rows.spec.kernel,
                        depth,
                        b: self.packed[j * panel..].as_ptr(),
                        c: values,
                        target,
                        target_step,
                    };
                    let run = match (self.panels.vectors(j), rows.spec.stride) {
                        (1, 1) => product::<S, 1, CHANNELS>,
                        (1, _) => product::<S, 1, { 2 * CHANNELS }>,
                        (_, 1) => product::<S, 2, CHANNELS>,
                        _ => product::<S, 2, { 2 * CHANNELS }>,
                    };
                    // SAFETY: what tiles read past a row's end is slack.
                    unsafe { run(self.simd, columns.len(), tile) };
                    let at: [usize; MOST_ROWS] =
                        std::array::from_fn(|i| (row * width + columns.start + i) * self.channels);
                    let tile = ReadyTile {
                        values,
                        stride: self.panels.width(j),
                        at: &at[..columns.len()],
                        partial: None,
                        c0: j * self.panels.full(),
                        cols: self.panels.cols(j),
                        partials: self.partials,
                        part: task,
                        begins: row == range.start && columns.start == 0,
                    };
                    // SAFETY: the tile is complete, and its pixels belong to this task.
                    unsafe { self.finisher.tile(self.simd, self.output, tile) };
                }
            }
        });
    }
}
