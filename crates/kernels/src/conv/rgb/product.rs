//! The forward pass of RGB images.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use super::{CHANNELS, ImageRows};
use crate::Context;
use crate::activations::Activations;
use crate::conv::Product;
use crate::conv::filters::{Panels, pack, packed_len};
use crate::conv::finish::{Finisher, OutputPtr, ReadyTile};
use crate::conv::kept::{Layout, Packed};
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

pub(super) struct RgbProduct<'a, S> {
    simd: S,
    rows: ImageRows<'a>,
    channels: usize,
    panels: Panels,
    packed: Packed<'a>,
    finisher: Finisher<'a>,
}

/// Where a part of the work gathers its sums, and whether they begin.
#[derive(Clone, Copy)]
struct Sums {
    partials: PartialsPtr,
    part: usize,
    begins: bool,
}

/// Runs a forward pass; returns the sums of each part, and the values per channel behind each of them.
pub(in crate::conv) fn forward<S: Simd>(
    simd: S,
    ctx: &Context,
    product: &Product<'_>,
    out: &mut Activations,
) -> (Partials, Vec<usize>) {
    product.check(out);
    let pass = RgbProduct::new(simd, ctx, product);
    let (n_rows, width) = (pass.rows.count(), pass.rows.output[1]);
    // Into how many parts the output's rows are cut.
    let row_parts = (n_rows * width).div_ceil(PIXELS).clamp(1, n_rows.max(1));
    let mut partials = Partials::new(row_parts, pass.channels, pass.finisher.sums());
    let (output, shared) = (OutputPtr::new(out), partials.share());
    sweep(row_parts, |task| {
        let [lines, values] = pass.scratch();
        with_scratch([lines, values, 0], |[lines, values, _]| {
            let range = part(n_rows, row_parts, task);
            for row in range.clone() {
                let sums = Sums { partials: shared, part: task, begins: row == range.start };
                // SAFETY: scratch memory has room, and the row is this task's alone.
                unsafe { pass.row_and_sums(row, [lines, values], output, row * width, sums) };
            }
        });
    });
    let counts = (0..row_parts).map(|i| part(n_rows, row_parts, i).len() * width).collect();
    (partials, counts)
}

impl<'a, S: Simd> RgbProduct<'a, S> {
    /// Packs the weights of a pass whose shapes are checked.
    pub fn new(simd: S, ctx: &'a Context, product: &Product<'a>) -> Self {
        let rows = ImageRows::new(product.source, product.spec);
        let filters = product.filters().flat();
        let panels = Panels::new::<S>(filters.channels());
        let len = packed_len(&filters, panels);
        let pack = |words: &mut [f32]| pack(simd, filters, panels, words);
        let packed = product.weights.packed(ctx, Layout::Panels, len, pack);
        Self { simd, rows, channels: filters.channels(), panels, packed, finisher: product.finisher }
    }

    /// The words of scratch memory that a row takes: for lines of the image and for a tile.
    pub fn scratch(&self) -> [usize; 2] {
        [self.rows.spec.kernel * self.rows.stride(), MOST_ROWS * self.panels.full()]
    }

    /// Computes a row of the output whose first pixel is `pixel` there, without sums.
    ///
    /// # Safety
    /// The row must exist, scratch memory have room, and the output's row be this task's alone.
    pub unsafe fn row(&self, row: usize, scratch: [*mut f32; 2], output: OutputPtr, pixel: usize) {
        let sums = Sums { partials: PartialsPtr::none(), part: 0, begins: false };
        // SAFETY: as the caller says.
        unsafe { self.row_and_sums(row, scratch, output, pixel, sums) }
    }

    /// Computes a row of the output whose first pixel is `pixel` there.
    ///
    /// # Safety
    /// The row must exist, scratch memory have room, and the output's row and the sums be this task's alone.
    unsafe fn row_and_sums(
        &self,
        row: usize,
        [lines, values]: [*mut f32; 2],
        output: OutputPtr,
        pixel: usize,
        sums: Sums,
    ) {
        const { assert!(S::TILE_ROWS <= MOST_ROWS) };
        let rows = &self.rows;
        let (step, depth, width) = (rows.spec.stride * CHANNELS, rows.depth(), rows.output[1]);
        let panel = (rows.spec.kernel * depth).next_multiple_of(BLOCK) * self.panels.full();
        // SAFETY: scratch memory has room for the rows.
        unsafe { rows.fill(self.simd, row, lines) };
        let tiles = || parts(width, width.div_ceil(S::TILE_ROWS));
        for (j, columns) in (0..self.panels.count()).flat_map(|j| tiles().map(move |p| (j, p))) {
            let element = (pixel + columns.start) * self.channels + j * self.panels.full();
            let (target, target_step) = match output {
                OutputPtr::F32(out) => (out.get().cast_const().wrapping_add(element), self.channels),
                OutputPtr::Bf16(out) => {
                    (out.get().wrapping_add(element).cast_const().cast(), self.channels / 2)
                }
            };
            let tile = RgbTile {
                a: lines.wrapping_add(columns.start * step),
                row: rows.stride(),
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
            let at: [usize; MOST_ROWS] = std::array::from_fn(|i| (pixel + columns.start + i) * self.channels);
            let tile = ReadyTile {
                values,
                stride: self.panels.width(j),
                at: &at[..columns.len()],
                partial: None,
                c0: j * self.panels.full(),
                cols: self.panels.cols(j),
                partials: sums.partials,
                part: sums.part,
                begins: sums.begins && columns.start == 0,
            };
            // SAFETY: the tile is complete, and its pixels belong to this task.
            unsafe { self.finisher.tile(self.simd, output, tile) };
        }
    }
}
