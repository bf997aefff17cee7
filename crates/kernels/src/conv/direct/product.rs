//! Forward and data passes of the direct path.
//!
//! A task copies its part of the source into scratch memory and runs product tiles over it. Rows of a tile are
//! neighbouring columns and images, so small maps fill tiles as well as large ones do, and taps that would read
//! padding are left out rather than multiplied by zero.

use std::ops::Range;

use super::fill::{Fill, Reader, Words};
use super::geometry::{ColumnRun, Geometry, Partition, TASKS};
use crate::Context;
use crate::activations::Activations;
use crate::amx::{self, Amx, SplitTile};
use crate::conv::Product;
use crate::conv::filters::{Panels, pack, packed_len};
use crate::conv::finish::{Finisher, OutputPtr, ReadyTile};
use crate::conv::kept::Layout;
use crate::conv::partials::{Partials, PartialsPtr};
use crate::conv::plan::Products;
use crate::micro::{NextWeights, ProductTile};
use crate::simd::{BLOCK, Simd};
use crate::work::{Shared, part, sweep, tasks, with_scratch};

/// Reduction blocks (of 16), of all taps together, that are summed before the next outputs.
pub(crate) const DEPTH: usize = 30;

struct DirectProduct<'a, S> {
    simd: S,
    reader: Reader<'a>,
    geometry: Geometry,
    panels: Panels,
    packed: &'a [f32],
    words: Words,
    /// Where operands are cut in two.
    matrix_unit: Option<Amx>,
    /// The most rows in a tile.
    tile_rows: usize,
    blocks: usize,
    runs: Vec<ColumnRun>,
    partition: Partition,
    /// Parts of the panels.
    panel_parts: usize,
    output: OutputPtr,
    finisher: Finisher<'a>,
    partials: PartialsPtr,
}

/// Runs a pass; returns the sums of each part, and the values per channel behind each of them.
pub(in crate::conv) fn run<S: Simd>(
    simd: S,
    ctx: &Context,
    product: &Product<'_>,
    out: &mut Activations,
) -> (Partials, Vec<usize>) {
    product.check(out);
    let (filters, (reader, mut geometry)) = (product.filters(), product.reader());
    let (words, layout, matrix_unit, tile_rows) = match filters.products() {
        Products::F32 => (Words::Single, Layout::Panels, None, S::TILE_ROWS),
        Products::Bf16 => (Words::Channels, Layout::Panels, None, S::TILE_ROWS),
        Products::Split => {
            geometry = geometry.padded();
            (Words::Split, Layout::Split, Some(ctx.matrix_unit()), amx::ROWS)
        }
    };
    let panels = Panels::new::<S>(filters.channels());
    let len = packed_len(&filters, panels);
    let pack = |words: &mut [f32]| pack(simd, filters, panels, words);
    let packed = product.weights.packed(ctx, layout, len, pack);
    let partition = match matrix_unit {
        Some(_) => Partition::for_matrix_unit(&geometry, panels.count()),
        None => Partition::new(&geometry, tile_rows, 0),
    };
    if words == Words::Single {
        geometry = geometry.padded_where_shorter(geometry.n.div_ceil(partition.image_parts), tile_rows);
    }
    let finisher = product.finisher;
    let mut partials = Partials::new(partition.count(), filters.channels(), finisher.sums());
    let pass = DirectProduct {
        simd,
        reader,
        geometry,
        panels,
        packed: &packed,
        words,
        matrix_unit,
        tile_rows,
        blocks: filters.blocks(),
        runs: geometry.runs(),
        partition,
        panel_parts: TASKS.div_ceil(partition.count()).min(panels.count()),
        output: OutputPtr::new(out),
        finisher,
        partials: partials.share(),
    };
    if pass.panel_parts > 1 {
        pass.run_by_panels(ctx);
    } else {
        sweep(partition.count(), |part| {
            let of_task = pass.task_part(part, 0..panels.count());
            let [temporary, tile] = pass.buffers(&of_task);
            with_scratch(
                [pass.source_len(&of_task) + amx::SLACK, temporary, tile],
                |[a, temporary, tile]| {
                    // SAFETY: `a` has room for the part's source, and no other task has the part.
                    unsafe {
                        pass.fill(&of_task, 0..pass.blocks, a);
                        pass.task(&of_task, a, [temporary, tile]);
                    }
                },
            );
        });
    }
    let values = |i: usize| {
        let (images, rows) = partition.part(&geometry, i);
        images.len() * rows.len() * geometry.dst[1]
    };
    (partials, (0..partition.count()).map(values).collect())
}

/// What a task has.
struct TaskPart {
    /// Which part of images and rows.
    index: usize,
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

/// The tiles of one run of columns in one row, the same for all panels and depths: ranges of what [`RunLists`] holds.
struct RunTiles {
    /// Offsets of taps, for full and for narrow panels.
    lists: [Range<usize>; 2],
    tiles: Range<usize>,
}

/// All of a task's runs. A few long lists, for with few channels it takes longer to allocate lists than to multiply.
#[derive(Default)]
struct RunLists {
    runs: Vec<RunTiles>,
    lists: Vec<(i32, i32)>,
    /// Where a tile's rows begin among those of its run, and which of the targets and outputs are theirs.
    tiles: Vec<(usize, Range<usize>)>,
    /// Where each row of the product goes: offsets in the target, and elements of the output. Rows of a column are its
    /// images.
    targets: Vec<usize>,
    outputs: Vec<usize>,
}

impl<S: Simd> DirectProduct<'_, S> {
    /// First the source is copied, and then each task multiplies it with some panels. Where images are few, a task of its own
    /// for each part would be too few of them.
    fn run_by_panels(&self, ctx: &Context) {
        let parts = self.partition.count();
        let longest = (0..parts).map(|i| self.source_len(&self.task_part(i, 0..0))).max().unwrap_or(0);
        let mut sources = ctx.pool().scratch(parts * longest + amx::SLACK);
        let shared = Shared::new(&mut sources);
        let of_part = |i: usize| shared.offset(i * longest);
        let block_parts = TASKS.div_ceil(parts).min(self.blocks);
        sweep(parts * block_parts, |task| {
            let of_task = self.task_part(task / block_parts, 0..0);
            let blocks = part(self.blocks, block_parts, task % block_parts);
            let first = blocks.start * (self.source_len(&of_task) / self.blocks);
            // SAFETY: each part has room for its source, and no other task has these blocks of it.
            unsafe { self.fill(&of_task, blocks, of_part(of_task.index).offset(first).get()) };
        });
        tasks(parts * self.panel_parts, |task| {
            let panels = part(self.panels.count(), self.panel_parts, task % self.panel_parts);
            let of_task = self.task_part(task / self.panel_parts, panels);
            let [temporary, tile] = self.buffers(&of_task);
            with_scratch([0, temporary, tile], |[_, temporary, tile]| {
                // SAFETY: the part's source is copied, and no other task has these panels of it.
                unsafe { self.task(&of_task, of_part(of_task.index).get(), [temporary, tile]) };
            });
        });
    }

    fn task_part(&self, index: usize, panels: Range<usize>) -> TaskPart {
        let (images, rows) = self.partition.part(&self.geometry, index);
        let source_rows = self.geometry.source_rows(rows.clone());
        TaskPart { index, images, rows, source_rows, panels }
    }

    /// The f32 of what a task reads.
    fn source_len(&self, of_task: &TaskPart) -> usize {
        let pixels = of_task.source_rows.len() * self.geometry.columns() * of_task.images.len();
        pixels * self.blocks * self.words.planes() * BLOCK
    }

    /// The f32 of scratch memory that a task needs: for sums that wait for others, and for a tile.
    fn buffers(&self, of_task: &TaskPart) -> [usize; 2] {
        // Sums that need several passes wait in the output if it is f32.
        let waits = matches!(self.output, OutputPtr::Bf16(_)) && self.blocks > self.depth();
        let pixels = of_task.images.len() * of_task.rows.len() * self.geometry.dst[1];
        let temporary = if waits { pixels * self.channels(of_task).len() } else { 0 };
        [temporary, self.tile_rows * self.panels.full()]
    }

    /// Whether sums need nothing but to be stored or added where they belong.
    fn is_plain(&self) -> bool {
        matches!(self.output, OutputPtr::F32(_)) && !self.finisher.reads_tiles() && self.matrix_unit.is_none()
    }

    /// The output's channels that a task computes.
    fn channels(&self, of_task: &TaskPart) -> Range<usize> {
        let Range { start, end } = of_task.panels;
        start * self.panels.full()..(end * self.panels.full()).min(self.geometry.dst[2])
    }

    /// Computes a task's outputs from its copy of the source.
    ///
    /// # Safety
    /// `a` must be the copy, the others have room for what [`buffers`](Self::buffers) says, and no other task may have these
    /// panels of the part.
    unsafe fn task(&self, of_task: &TaskPart, a: *const f32, [temporary, tile]: [*mut f32; 2]) {
        let TaskPart { images, rows, .. } = of_task;
        let (channels, [dh, dw, dc]) = (self.channels(of_task), self.geometry.dst);
        let c0 = channels.start;
        let target = match self.output {
            OutputPtr::F32(out) => {
                let first = (images.start * dh + rows.start) * dw * dc + c0;
                // SAFETY: the first pixel of the task's part lies in the output.
                let base = unsafe { out.get().add(first) };
                Target { base, image: dh * dw * dc, row: dw * dc, pixel: dc, c0 }
            }
            OutputPtr::Bf16(_) => {
                let (pixel, row) = (channels.len(), dw * channels.len());
                Target { base: temporary, image: rows.len() * row, row, pixel, c0 }
            }
        };
        let tile = if self.is_plain() { None } else { Some(tile) };
        // SAFETY: the source is copied, and the target covers the part's pixels and channels, which no other task touches.
        unsafe {
            match (self.matrix_unit, tile) {
                (Some(unit), Some(tile)) => self.multiply_split(unit, of_task, a, &target, tile),
                (_, tile) => self.multiply(of_task, a, &target, tile),
            }
        }
    }

    /// Copies some blocks of what a task reads.
    ///
    /// # Safety
    /// `a` must have room for them.
    unsafe fn fill(&self, of_task: &TaskPart, blocks: Range<usize>, a: *mut f32) {
        let what = Fill {
            geometry: &self.geometry,
            images: (of_task.images.start, of_task.images.end),
            rows: (of_task.source_rows.start, of_task.source_rows.end),
            blocks: (blocks.start, blocks.end),
            words: self.words,
            dst: a,
        };
        // SAFETY: images, rows and blocks are those that there are, and `a` has room for them.
        unsafe { self.reader.fill(self.simd, what) }
    }

    /// Blocks of channels that are summed before the next outputs.
    fn depth(&self) -> usize {
        if self.finisher.reads_output() || self.matrix_unit.is_some() {
            return self.blocks;
        }
        (DEPTH / (self.geometry.kernel * self.geometry.kernel)).clamp(1, self.blocks)
    }

    /// The tap lists of a depth and the places of its outputs, for each row and run.
    fn runs(&self, of_task: &TaskPart, target: &Target, skip_empty: bool) -> RunLists {
        let g = &self.geometry;
        let [dh, dw, dc] = g.dst;
        let (n, taps) = (of_task.images.len(), g.kernel * g.kernel);
        let columns = g.columns();
        let planes = self.words.planes();
        let block_stride = planes * of_task.source_rows.len() * columns * n * BLOCK;
        let (full, last) = (self.panels.full(), self.panels.width(self.panels.count() - 1));
        let mut all = RunLists::default();
        let pixels = of_task.rows.len() * dw * n;
        all.targets.reserve(pixels);
        all.outputs.reserve(pixels);
        for y in of_task.rows.clone() {
            let row_taps: Vec<_> = g.row_taps(y).collect();
            for run in &self.runs {
                let mut list = |width: usize| {
                    let first = all.lists.len();
                    for c in 0..self.depth() {
                        for &(ty, sy) in &row_taps {
                            for &(tx, column) in &run.taps {
                                let a = c * block_stride
                                    + ((sy - of_task.source_rows.start) * columns + column) * n * BLOCK;
                                let b = (c * taps + ty * g.kernel + tx) * planes * BLOCK * width;
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
                all.tiles.extend(self.tiles(rows).map(|r| (r.start, first_row + r.start..first_row + r.end)));
                for x in (0..run.count).map(|i| run.x0 + i * run.step) {
                    let to = (y - of_task.rows.start) * target.row + x * target.pixel;
                    let element = ((of_task.images.start * dh + y) * dw + x) * dc;
                    all.targets.extend((0..n).map(|image| to + image * target.image));
                    all.outputs.extend((0..n).map(|image| element + image * dh * dw * dc));
                }
                all.runs.push(RunTiles { lists: [wide, narrow], tiles: first_tile..all.tiles.len() });
            }
        }
        all
    }

    /// How many rows are cut into tiles: nearly equal ones, but whole registers of the matrix unit.
    fn tiles(&self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let whole = self.matrix_unit.map(|_| self.tile_rows);
        let count = rows.div_ceil(self.tile_rows);
        (0..count).map(move |i| match whole {
            Some(whole) => i * whole..((i + 1) * whole).min(rows),
            None => part(rows, count, i),
        })
    }

    /// Runs all tiles on the matrix unit.
    ///
    /// # Safety
    /// As for [`multiply`](Self::multiply).
    unsafe fn multiply_split(
        &self,
        unit: Amx,
        of_task: &TaskPart,
        a: *const f32,
        target: &Target,
        tile: *mut f32,
    ) {
        let taps = self.geometry.kernel * self.geometry.kernel;
        let full = self.panels.full();
        let plane = of_task.source_rows.len() * self.geometry.columns() * of_task.images.len() * BLOCK;
        let all = self.runs(of_task, target, self.finisher.accumulates());
        let unit = unit.ready();
        for j in of_task.panels.clone() {
            let width = self.panels.width(j);
            let b = self.packed[j * full * self.blocks * taps * self.words.planes() * BLOCK..].as_ptr();
            for (i, run) in all.runs.iter().enumerate() {
                let list = &all.lists[run.lists[usize::from(width != full)].clone()];
                for (p, (first_row, r)) in all.tiles[run.tiles.clone()].iter().enumerate() {
                    let at = &all.outputs[r.clone()];
                    let channels = j * full..j * full + self.panels.cols(j);
                    self.finisher.prefetch_tile(self.simd, self.output, at, channels);
                    let product = SplitTile {
                        list,
                        a: a.wrapping_add(first_row * BLOCK),
                        b,
                        b_row: width,
                        next: [BLOCK * BLOCK, BLOCK],
                        c: tile,
                        n_rows: r.len(),
                        vectors: self.panels.vectors(j),
                        a_low: plane,
                        b_low: BLOCK * width,
                    };
                    // SAFETY: lists and rows are made for the copied source and the packed panel; there is slack behind the source.
                    unsafe { unit.product(&product) };
                    let tile = ReadyTile {
                        values: tile,
                        stride: full,
                        at,
                        partial: None,
                        c0: j * full,
                        cols: self.panels.cols(j),
                        partials: self.partials,
                        part: of_task.index,
                        begins: i == 0 && p == 0,
                    };
                    // SAFETY: the tile is complete, and its pixels' channels belong to this task alone.
                    unsafe { self.finisher.tile(self.simd, self.output, tile) };
                }
            }
        }
    }

    /// A panel's weights of a part of the depth; none behind the last part.
    fn weights(&self, depth_part: usize, panel: usize) -> &[f32] {
        let depth = self.depth();
        let first = (depth_part * depth).min(self.blocks);
        let blocks = depth.min(self.blocks - first);
        let tap_words = self.geometry.kernel * self.geometry.kernel * BLOCK;
        let at = (panel * self.panels.full() * self.blocks + first * self.panels.width(panel)) * tap_words;
        &self.packed[at..at + blocks * self.panels.width(panel) * tap_words]
    }

    /// Runs all tiles. Without `tile`, outputs are stored or added where they belong; with it, complete sums
    /// go through that buffer, which stays in the first-level cache, to be finished.
    ///
    /// # Safety
    /// The source must be copied to `a`, the target cover the task's pixels and channels, and `tile` have room for a tile; no
    /// other task may have these pixels' channels.
    unsafe fn multiply(&self, of_task: &TaskPart, a: *const f32, target: &Target, tile: Option<*mut f32>) {
        let taps = self.geometry.kernel * self.geometry.kernel;
        let (full, depth) = (self.panels.full(), self.depth());
        let block_stride = of_task.source_rows.len() * self.geometry.columns() * of_task.images.len() * BLOCK;
        let add = tile.is_none() && self.finisher.accumulates();
        let all = self.runs(of_task, target, self.finisher.accumulates());
        let in_tile: Vec<usize> = (0..self.tile_rows).map(|i| i * full).collect();
        let depth_parts = self.blocks.div_ceil(depth);
        let tables = match S::PAIR_TILES {
            Some(pairs) if self.words == Words::Channels => pairs,
            _ => S::TILES,
        };
        for depth_part in 0..depth_parts {
            let first = depth_part * depth;
            let blocks = depth.min(self.blocks - first);
            for j in of_task.panels.clone() {
                let width = self.panels.width(j);
                let kernels = tables[self.panels.vectors(j) - 1];
                let b = self.weights(depth_part, j).as_ptr();
                let next = match (self.panel_parts, j + 1 < of_task.panels.end) {
                    // Other parts of the map have the same weights, which then are in cache.
                    (1, _) => &[],
                    (_, true) => self.weights(depth_part, j + 1),
                    (_, false) => self.weights(depth_part + 1, of_task.panels.start),
                };
                let mut next = NextWeights::new(next.as_ptr(), next.len(), all.tiles.len() * blocks * taps);
                for (i, run) in all.runs.iter().enumerate() {
                    let list = &all.lists[run.lists[usize::from(width != full)].clone()];
                    for (p, (first_row, r)) in all.tiles[run.tiles.clone()].iter().enumerate() {
                        let rows = &all.targets[r.clone()];
                        let n_blocks = list.len() * blocks / depth;
                        let mut t = ProductTile {
                            list: list.as_ptr(),
                            blocks: n_blocks,
                            a: a.wrapping_add(first * block_stride + first_row * BLOCK),
                            b,
                            c: target.base.wrapping_add(j * full - target.c0),
                            rows: rows.as_ptr(),
                            accumulate: add || depth_part > 0,
                            cols: self.panels.cols(j),
                            cold: true,
                            ahead: next.part(n_blocks),
                        };
                        let partial = (depth_part > 0).then_some((t.c.cast_const(), rows));
                        let last = tile.filter(|_| depth_part + 1 == depth_parts);
                        if let Some(tile) = last {
                            (t.c, t.rows, t.accumulate, t.cols) = (tile, in_tile.as_ptr(), false, width);
                            t.cold = false;
                        }
                        if last.is_some() {
                            self.finisher.prefetch(self.simd, self.output, &all.outputs[r.clone()], j * full);
                        }
                        // SAFETY: lists and rows are made for the copied source, the packed panel and the target.
                        unsafe { kernels[r.len() - 1](self.simd, &t) };
                        if last.is_some() {
                            let tile = ReadyTile {
                                values: t.c,
                                stride: full,
                                at: &all.outputs[r.clone()],
                                partial,
                                c0: j * full,
                                cols: self.panels.cols(j),
                                partials: self.partials,
                                part: of_task.index,
                                begins: i == 0 && p == 0,
                            };
                            // SAFETY: the tile is complete, and its pixels' channels
                            // belong to this task alone.
                            unsafe { self.finisher.tile(self.simd, self.output, tile) };
                        }
                    }
                }
            }
        }
    }
}
