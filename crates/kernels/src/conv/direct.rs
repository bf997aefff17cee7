//! The direct path of forward and data passes: any kernel, stride and padding.
//!
//! A task copies its strip of the source into scratch memory and runs product tiles over it. Rows of a tile are
//! neighbouring columns and images, so small maps fill tiles as well as large ones do, and taps that would read
//! padding are left out rather than multiplied by zero.

use std::ops::Range;

use super::fill::{Reader, Region, Words};
use super::finish::{Finisher, Output, Partials, PartialsPtr, ReadyTile};
use super::geometry::{Geometry, Run, Split};
use super::pack::{Panels, Weights, pack};
use super::strassen;
use crate::Context;
use crate::activations::Activations;
use crate::micro::Tile;
use crate::simd::{BLOCK, Simd};
use crate::work::{part, parts, sweep, with_scratch};

/// Reduction blocks (of 16) that a pass over the outputs takes at once.
const CHUNK: usize = 30;

struct Pass<'a> {
    reader: Reader<'a>,
    geometry: Geometry,
    panels: Panels,
    packed: &'a [f32],
    words: Words,
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
    if strassen::pays::<S>(ctx, &geometry, &weights) {
        return strassen::run::<S>(ctx, reader, geometry, weights, out, finisher);
    }
    let panels = Panels::new::<S>(weights.channels());
    let packed = pack::<S>(ctx, weights, panels);
    let split = Split::new(&geometry, S::TILE_ROWS, 0);
    let mut partials = Partials::new(split.count(), weights.channels(), finisher.sums());
    let pass = Pass {
        reader,
        geometry,
        panels,
        packed: &packed,
        words: if weights.pairs { Words::Channels } else { Words::Single },
        blocks: weights.blocks(),
        runs: geometry.runs(),
        split,
        panel_parts: 16usize.div_ceil(split.count()).min(panels.count()),
        output: Output::new(out),
        finisher,
        partials: partials.share(),
    };
    sweep(split.count() * pass.panel_parts, |task| pass.task::<S>(task));
    let counts = (0..split.count())
        .map(|s| {
            let images = part(geometry.n, split.groups, s / split.strips).len();
            images * part(geometry.dst[0], split.strips, s % split.strips).len() * geometry.dst[1]
        })
        .collect();
    (partials, counts)
}

/// A task's share of the work.
struct Share {
    task: usize,
    images: Range<usize>,
    rows: Range<usize>,
    source_rows: Range<usize>,
    panels: Range<usize>,
}

/// Where a task's tiles are stored until their sums are complete: in the output itself, or in scratch memory.
struct Target {
    base: *mut f32,
    image: usize,
    row: usize,
    pixel: usize,
    /// The output's channel at `base`.
    c0: usize,
}

/// The tiles of one run of columns in one row, the same for all panels and chunks: ranges of what [`Works`] holds.
struct Work {
    /// Offsets of taps, for full and for narrow panels.
    lists: [Range<usize>; 2],
    tiles: Range<usize>,
}

/// All of a task's work. A few long lists, for with few channels it takes longer to allocate lists than to multiply.
#[derive(Default)]
struct Works {
    works: Vec<Work>,
    lists: Vec<(i32, i32)>,
    /// Where a tile's rows begin among those of its run, and which of the targets and outputs are theirs.
    tiles: Vec<(usize, Range<usize>)>,
    /// Where each row of the product goes: offsets in the target, and elements of the output. Rows of a column are its
    /// images.
    targets: Vec<usize>,
    outputs: Vec<usize>,
}

impl Pass<'_> {
    fn task<S: Simd>(&self, task: usize) {
        let g = &self.geometry;
        let (share, panel_part) = (task / self.panel_parts, task % self.panel_parts);
        let images = part(g.n, self.split.groups, share / self.split.strips);
        let rows = part(g.dst[0], self.split.strips, share % self.split.strips);
        let source_rows = g.source_rows(rows.clone());
        let panels = part(self.panels.count(), self.panel_parts, panel_part);
        let [dh, dw, dc] = g.dst;
        let c0 = panels.start * self.panels.full();
        let c1 = (panels.end * self.panels.full()).min(dc);
        let scratch = source_rows.len() * g.columns() * images.len() * self.blocks * BLOCK;
        // Sums that need several passes wait in the output if it is f32, else in scratch memory.
        let in_place = matches!(self.output, Output::F32(_)) && !self.finisher.accumulates();
        let plain = matches!(self.output, Output::F32(_)) && !self.finisher.sums();
        let waits = !in_place && !plain && self.blocks > self.per_chunk();
        let temporary = if waits { images.len() * rows.len() * dw * (c1 - c0) } else { 0 };
        let share = Share { task: share, images, rows, source_rows, panels };
        with_scratch([scratch, temporary, S::TILE_ROWS * self.panels.full()], |[a, temporary, tile]| {
            // SAFETY: the instruction set is available (a `Context` was made with it); `a` holds the region.
            unsafe { self.fill::<S>(&share, a) };
            let target = match self.output {
                Output::F32(out) => {
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
            unsafe { self.multiply::<S>(&share, a, &target, if plain { None } else { Some(tile) }) };
        });
    }

    unsafe fn fill<S: Simd>(&self, share: &Share, a: *mut f32) {
        let region = Region {
            geometry: &self.geometry,
            images: (share.images.start, share.images.end),
            rows: (share.source_rows.start, share.source_rows.end),
            blocks: (0, self.blocks),
            words: self.words,
            dst: a,
        };
        // SAFETY: the caller's promise.
        unsafe { self.reader.fill::<S>(region) }
    }

    /// Reduction blocks in a pass over the outputs.
    fn per_chunk(&self) -> usize {
        (CHUNK / (self.geometry.kernel * self.geometry.kernel)).clamp(1, self.blocks)
    }

    /// The tap lists of a chunk and the places of its outputs, for each row and run.
    fn works<S: Simd>(&self, share: &Share, target: &Target, skip_empty: bool) -> Works {
        let g = &self.geometry;
        let [dh, dw, dc] = g.dst;
        let (n, taps) = (share.images.len(), g.kernel * g.kernel);
        let columns = g.columns();
        let block_stride = share.source_rows.len() * columns * n * BLOCK;
        let (full, last) = (self.panels.full(), self.panels.width(self.panels.count() - 1));
        let mut all = Works::default();
        let pixels = share.rows.len() * dw * n;
        all.targets.reserve(pixels);
        all.outputs.reserve(pixels);
        for y in share.rows.clone() {
            let row_taps: Vec<_> = g.row_taps(y).collect();
            for run in &self.runs {
                let mut list = |width: usize| {
                    let first = all.lists.len();
                    for c in 0..self.per_chunk() {
                        for &(ty, sy) in &row_taps {
                            for &(tx, column) in &run.taps {
                                let a = c * block_stride
                                    + ((sy - share.source_rows.start) * columns + column) * n * BLOCK;
                                let b = (c * taps + ty * g.kernel + tx) * BLOCK * width;
                                all.lists.push((a as i32, b as i32));
                            }
                        }
                    }
                    first..all.lists.len()
                };
                let wide = list(full);
                let narrow = if last == full { wide.clone() } else { list(last) };
                if skip_empty && wide.is_empty() {
                    continue;
                }
                let rows = run.count * n;
                let (first_tile, first_row) = (all.tiles.len(), all.targets.len());
                for rows in parts(rows, rows.div_ceil(S::TILE_ROWS)) {
                    all.tiles.push((rows.start, first_row + rows.start..first_row + rows.end));
                }
                for x in (0..run.count).map(|i| run.x0 + i * run.step) {
                    let to = (y - share.rows.start) * target.row + x * target.pixel;
                    let element = ((share.images.start * dh + y) * dw + x) * dc;
                    all.targets.extend((0..n).map(|image| to + image * target.image));
                    all.outputs.extend((0..n).map(|image| element + image * dh * dw * dc));
                }
                all.works.push(Work { lists: [wide, narrow], tiles: first_tile..all.tiles.len() });
            }
        }
        all
    }

    /// Runs all tiles. Without `tile`, outputs are stored or added where they belong; with it, complete sums
    /// go through that buffer, which stays in the first-level cache, to be finished.
    unsafe fn multiply<S: Simd>(
        &self,
        share: &Share,
        a: *const f32,
        target: &Target,
        tile: Option<*mut f32>,
    ) {
        let taps = self.geometry.kernel * self.geometry.kernel;
        let (full, per_chunk) = (self.panels.full(), self.per_chunk());
        let block_stride = share.source_rows.len() * self.geometry.columns() * share.images.len() * BLOCK;
        let add = tile.is_none() && self.finisher.accumulates();
        let all = self.works::<S>(share, target, self.finisher.accumulates());
        let in_tile: Vec<usize> = (0..S::TILE_ROWS).map(|i| i * full).collect();
        let chunks = self.blocks.div_ceil(per_chunk);
        let tables = match S::PAIR_TILES {
            Some(pairs) if self.words == Words::Channels => pairs,
            _ => S::TILES,
        };
        for chunk in 0..chunks {
            let first = chunk * per_chunk;
            let in_chunk = per_chunk.min(self.blocks - first);
            for j in share.panels.clone() {
                let width = self.panels.width(j);
                let kernels = tables[self.panels.vectors(j) - 1];
                let at = j * full * self.blocks * taps * BLOCK + first * taps * BLOCK * width;
                let b = self.packed[at..].as_ptr();
                for (i, work) in all.works.iter().enumerate() {
                    let list = &all.lists[work.lists[usize::from(width != full)].clone()];
                    for (p, (first_row, r)) in all.tiles[work.tiles.clone()].iter().enumerate() {
                        let rows = &all.targets[r.clone()];
                        let mut t = Tile {
                            list: list.as_ptr(),
                            blocks: list.len() * in_chunk / per_chunk,
                            a: a.wrapping_add(first * block_stride + first_row * BLOCK),
                            b,
                            c: target.base.wrapping_add(j * full - target.c0),
                            rows: rows.as_ptr(),
                            accumulate: add || chunk > 0,
                            cols: self.panels.cols(j),
                            cold: true,
                        };
                        let partial = (chunk > 0).then_some((t.c.cast_const(), rows));
                        let last = tile.filter(|_| chunk + 1 == chunks);
                        if let Some(tile) = last {
                            (t.c, t.rows, t.accumulate, t.cols) = (tile, in_tile.as_ptr(), false, width);
                            t.cold = false;
                        }
                        // SAFETY: lists and rows stay inside scratch memory, weights and target by construction.
                        unsafe { kernels[r.len() - 1](&t) };
                        if last.is_some() {
                            let tile = ReadyTile {
                                values: t.c,
                                stride: full,
                                at: &all.outputs[r.clone()],
                                partial,
                                c0: j * full,
                                cols: self.panels.cols(j),
                                partials: self.partials,
                                task: share.task,
                                begins: i == 0 && p == 0,
                            };
                            // SAFETY: the instruction set is available; the tile is complete, and its pixels' channels
                            // belong to this task alone.
                            unsafe { self.finisher.tile::<S>(self.output, tile) };
                        }
                    }
                }
            }
        }
    }
}
