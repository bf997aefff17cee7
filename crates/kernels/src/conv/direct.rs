//! The direct path of forward and data passes: any kernel, stride and padding.
//!
//! A task copies its strip of the source into scratch memory and runs product tiles over it. Rows of a tile are
//! neighbouring columns and images, so small maps fill tiles as well as large ones do, and taps that would read
//! padding are left out rather than multiplied by zero.

use super::fill::{Columns, Region, fill, fill_columns};
use super::finish::{Finish, FinishRun, FinishVisitor, Finisher, Output, Partials, PartialsPtr};
use super::geometry::{Geometry, Run, Split};
use super::pack::{Panels, Weights, pack};
use super::{ConvSpec, Source};
use crate::Context;
use crate::activations::Activations;
use crate::micro::Tile;
use crate::simd::{BLOCK, Simd};
use crate::work::{part, tasks, with_scratch};

/// How the source gets into scratch memory.
#[derive(Clone, Copy)]
pub(super) enum Reader<'a> {
    /// Pixel by pixel; taps become offsets.
    Pixels(Source<'a>),
    /// As columns of taps and channels; the geometry is flat then.
    Columns(Source<'a>, &'a ConvSpec),
}

/// Reduction blocks (of 16) that a pass over the outputs takes at once.
const CHUNK: usize = 30;

struct Pass<'a> {
    reader: Reader<'a>,
    geometry: Geometry,
    panels: Panels,
    packed: &'a [f32],
    blocks: usize,
    runs: Vec<Run>,
    split: Split,
    /// Parts of the panels.
    panel_parts: usize,
    output: Output,
    finisher: Finisher<'a>,
    partials: PartialsPtr,
}

/// Runs a pass; returns the partial sums and the values a channel behind each of them.
pub(super) fn run<S: Simd>(
    ctx: &Context,
    reader: Reader<'_>,
    geometry: Geometry,
    weights: Weights<'_>,
    out: &mut Activations,
    finisher: Finisher<'_>,
) -> (Partials, Vec<usize>) {
    let panels = Panels::new::<S>(weights.channels());
    let packed = pack(ctx, weights, panels);
    let split = Split::new(&geometry, S::TILE_ROWS, 0);
    let mut partials = Partials::new(split.count(), weights.channels(), finisher.sums());
    let pass = Pass {
        reader,
        geometry,
        panels,
        packed: &packed,
        blocks: weights.blocks(),
        runs: geometry.runs(),
        split,
        panel_parts: 16usize.div_ceil(split.count()).min(panels.count()),
        output: Output::new(out),
        finisher,
        partials: partials.share(),
    };
    tasks(split.count() * pass.panel_parts, |task| pass.task::<S>(task));
    let counts = (0..split.count())
        .map(|s| {
            let images = part(geometry.n, split.groups, s / split.strips).len();
            images * part(geometry.dst[0], split.strips, s % split.strips).len() * geometry.dst[1]
        })
        .collect();
    ctx.pool().give(packed);
    (partials, counts)
}

/// A task's share of the work.
struct Share {
    task: usize,
    images: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
    source_rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

/// Where a task's tiles are stored.
struct Target {
    base: *mut f32,
    image: usize,
    row: usize,
    pixel: usize,
    /// The output's channel at `base`.
    c0: usize,
}

impl Pass<'_> {
    fn task<S: Simd>(&self, task: usize) {
        let g = &self.geometry;
        let (share, panel_part) = (task / self.panel_parts, task % self.panel_parts);
        let images = part(g.n, self.split.groups, share / self.split.strips);
        let rows = part(g.dst[0], self.split.strips, share % self.split.strips);
        let source_rows = g.source_rows(rows.clone());
        let panels = part(self.panels.count(), self.panel_parts, panel_part);
        let [_, dw, dc] = g.dst;
        let c0 = panels.start * self.panels.full();
        let c1 = (panels.end * self.panels.full()).min(dc);
        let pixels = images.len() * rows.len() * dw;
        let scratch = source_rows.len() * g.columns() * images.len() * self.blocks * BLOCK;
        // f32 outputs are built where they belong; others, and those to be added, in scratch memory.
        let direct = matches!(self.output, Output::F32(_));
        let temporary = if direct { 0 } else { pixels * (c1 - c0) };
        let share = Share { task: share, images, rows, source_rows, panels };
        with_scratch([scratch, temporary, 0], |[a, temporary, _]| {
            // SAFETY: the instruction set is available (a `Context` was made with it); `a` holds the region.
            unsafe { self.fill::<S>(&share, a) };
            let target = match self.output {
                Output::F32(out) => {
                    let [dh, ..] = g.dst;
                    let first = (share.images.start * dh + share.rows.start) * dw * dc + c0;
                    // SAFETY: the first pixel of the task's share lies in the output.
                    let base = unsafe { out.get().add(first) };
                    Target { base, image: dh * dw * dc, row: dw * dc, pixel: dc, c0 }
                }
                Output::Bf16(_) => {
                    let pixel = c1 - c0;
                    let row = dw * pixel;
                    Target { base: temporary, image: share.rows.len() * row, row, pixel, c0 }
                }
            };
            // SAFETY: scratch memory is filled, and the target covers the share's pixels and channels, which no
            // other task touches.
            unsafe {
                self.multiply::<S>(&share, a, &target, direct && self.finisher.accumulates());
                if !(direct && (self.finisher.only_stores() || self.finisher.accumulates())) {
                    self.finish::<S>(&share, &target, c1);
                }
            }
        });
    }

    unsafe fn fill<S: Simd>(&self, share: &Share, a: *mut f32) {
        let images = (share.images.start, share.images.end);
        // SAFETY: the caller's promise.
        unsafe {
            match self.reader {
                Reader::Pixels(source) => {
                    let rows = (share.source_rows.start, share.source_rows.end);
                    let blocks = (0, self.blocks);
                    fill::<S>(&source, Region { geometry: &self.geometry, images, rows, blocks, dst: a });
                }
                Reader::Columns(source, spec) => {
                    let shape = source.shape();
                    fill_columns::<S>(
                        &source,
                        Columns { spec, shape, pixels: images, blocks: (0, self.blocks), dst: a },
                    );
                }
            }
        }
    }

    unsafe fn multiply<S: Simd>(&self, share: &Share, a: *const f32, target: &Target, accumulate: bool) {
        let g = &self.geometry;
        let (n, taps) = (share.images.len(), g.kernel * g.kernel);
        let per_chunk = (CHUNK / taps).max(1);
        let columns = g.columns();
        let block_stride = share.source_rows.len() * columns * n * BLOCK;
        // The tap lists of a chunk, for each row and run, by panel width (the last panel may be narrower).
        let list = |width: usize, y: usize, run: &Run| {
            let mut list = Vec::with_capacity(per_chunk * taps);
            for c in 0..per_chunk.min(self.blocks) {
                for (ty, sy) in g.row_taps(y) {
                    for &(tx, column) in &run.taps {
                        let a = c * block_stride
                            + ((sy - share.source_rows.start) * columns + column) * n * BLOCK;
                        let b = (c * taps + ty * g.kernel + tx) * BLOCK * width;
                        list.push((a as i32, b as i32));
                    }
                }
            }
            list
        };
        let (full, last) = (self.panels.full(), self.panels.width(self.panels.count() - 1));
        let widths = if last == full { vec![full] } else { vec![full, last] };
        struct Work {
            lists: Vec<Vec<(i32, i32)>>,
            rows: Vec<usize>,
        }
        let mut works = Vec::with_capacity(share.rows.len() * self.runs.len());
        for y in share.rows.clone() {
            for run in &self.runs {
                let lists: Vec<_> = widths.iter().map(|&width| list(width, y, run)).collect();
                let row0 = (y - share.rows.start) * target.row + run.x0 * target.pixel;
                let rows = (0..run.count * n)
                    .map(|m| row0 + m / n * run.step * target.pixel + m % n * target.image)
                    .collect();
                if !(accumulate && lists[0].is_empty()) {
                    works.push(Work { lists, rows });
                }
            }
        }
        for chunk in 0..self.blocks.div_ceil(per_chunk) {
            let first = chunk * per_chunk;
            let in_chunk = per_chunk.min(self.blocks - first);
            for j in share.panels.clone() {
                let width = self.panels.width(j);
                let which = usize::from(width != full);
                let kernels = S::TILES[self.panels.vectors(j) - 1];
                let b = self.packed[j * full * self.blocks * taps * BLOCK + first * taps * BLOCK * width..]
                    .as_ptr();
                for work in &works {
                    let list = &work.lists[which];
                    let blocks = list.len() * in_chunk / per_chunk.min(self.blocks);
                    let parts = work.rows.len().div_ceil(S::TILE_ROWS);
                    for p in 0..parts {
                        let r = part(work.rows.len(), parts, p);
                        // SAFETY: lists and rows stay inside scratch memory, weights and target by construction.
                        unsafe {
                            kernels[r.len() - 1](&Tile {
                                list: list.as_ptr(),
                                blocks,
                                a: a.add(first * block_stride + r.start * BLOCK),
                                b,
                                c: target.base.add(j * full - target.c0),
                                rows: work.rows[r].as_ptr(),
                                accumulate: accumulate || chunk > 0,
                                cols: self.panels.cols(j),
                            });
                        }
                    }
                }
            }
        }
    }

    unsafe fn finish<S: Simd>(&self, share: &Share, target: &Target, c1: usize) {
        struct Visitor<'a, S> {
            pass: &'a Pass<'a>,
            share: &'a Share,
            target: &'a Target,
            c1: usize,
            simd: std::marker::PhantomData<S>,
        }
        impl<S: Simd> FinishVisitor for Visitor<'_, S> {
            fn visit<F: Finish>(self, finish: F) {
                let [dh, dw, dc] = self.pass.geometry.dst;
                let share = self.share;
                let (n, rows) = (share.images.len(), share.rows.len());
                // Whole maps lie one after the other.
                let (runs, pixels) = if rows == dh { (1, n * dh * dw) } else { (n, rows * dw) };
                for i in 0..runs {
                    let first = ((share.images.start + i) * dh + share.rows.start) * dw;
                    // SAFETY: `finish`'s caller's promise.
                    unsafe {
                        S::run(FinishRun {
                            finish,
                            values: self.target.base.add(i * self.target.image),
                            stride: self.target.pixel,
                            pixels,
                            at: first * dc,
                            channels: dc,
                            c0: self.target.c0,
                            c1: self.c1,
                            partials: self.pass.partials,
                            task: share.task,
                            begins: i == 0,
                        });
                    }
                }
            }
        }
        let simd = std::marker::PhantomData;
        self.finisher.visit(self.output, Visitor::<S> { pass: self, share, target, c1, simd });
    }
}
