//! The weight pass of the direct path.
//!
//! Both operands go to blocked scratch memory; every tap is then a product over runs of positions, with
//! output channels as rows and input channels as columns. Where weights are few, tasks sum over different pixels
//! into separate buffers, which are added up in order.

mod matrix;

use std::ops::Range;

use super::fill::{Fill, Reader, Words, fill};
use super::geometry::{ColumnRun, Geometry, Partition};
use crate::Context;
use crate::amx::{self, Amx};
use crate::conv::plan::Products;
use crate::conv::{ConvSpec, Gradient, Source};
use crate::micro::{GradientTile, GradientTiles};
use crate::simd::{BLOCK, Job, Registers, Simd};
use crate::work::{Shared, part, sweep, tasks, with_scratch};

/// Tasks to aim for.
const TASKS: usize = 16;

struct DirectGradient<'a, S> {
    simd: S,
    x: Reader<'a>,
    dy: Source<'a>,
    /// Of the forward pass.
    geometry: Geometry,
    /// One pixel per image, as many channels as outputs, for reading `dy`.
    dy_geometry: Geometry,
    runs: Vec<ColumnRun>,
    /// What is copied to scratch memory at once.
    partition: Partition,
    parts: GradientParts,
    words: Words,
    /// Where operands are cut in two.
    matrix_unit: Option<Amx>,
}

/// Into how many parts the work of a weight pass is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::conv) struct GradientParts {
    /// Parts of the pixels; each has sums of its own.
    pixels: usize,
    /// Parts of the input channels' tile columns.
    columns: usize,
    /// Parts of the output channels' blocks.
    rows: usize,
}

impl GradientParts {
    fn count(&self) -> usize {
        self.pixels * self.columns * self.rows
    }
}

/// Adds `Σ dy ⊗ x` to `grad`, whose layout is `[c_out][taps][c_in]`.
pub(in crate::conv) fn run<S: Simd>(simd: S, ctx: &Context, gradient: &Gradient<'_>, grad: &mut [f32]) {
    gradient.check(grad);
    let (x, mut geometry) = gradient.spec.reader(gradient.x, gradient.plan.reading());
    let mut registers = Registers::new::<S>();
    let (words, matrix_unit) = match gradient.plan.products {
        Products::F32 => (Words::Single, None),
        Products::Bf16 => (Words::Images, None),
        Products::Split => {
            geometry = geometry.padded();
            registers.tile_rows = amx::ROWS;
            (Words::SplitImages, Some(ctx.matrix_unit()))
        }
    };
    let [dh, dw, co] = geometry.dst;
    let per_part = grad.len().max(1);
    let (partition, parts) = share_out(registers, &geometry, per_part);
    let dy_spec = ConvSpec { c_in: co, c_out: co, kernel: 1, stride: 1, padding: 0 };
    let pass = DirectGradient {
        simd,
        x,
        dy: gradient.dy,
        geometry,
        dy_geometry: Geometry {
            src: [dh, dw, co],
            n: geometry.n,
            ..Geometry::forward(&dy_spec, [1, 1, 1, co])
        },
        runs: geometry.runs(),
        partition,
        parts,
        words,
        matrix_unit,
    };
    let mut partial = ctx.pool().scratch(if parts.pixels > 1 { parts.pixels * per_part } else { 0 });
    let out = if parts.pixels > 1 { Shared::new(&mut partial) } else { Shared::new(grad) };
    // SAFETY: each number is a task's, and comes once.
    sweep(parts.count(), |task| unsafe { pass.task(task, out) });
    if parts.pixels > 1 {
        add_parts(simd, &partial, grad);
    }
}

/// Into how many parts to cut pixels, input channels and output channels: the cheapest way to get enough tasks. More parts
/// of the pixels cost memory traffic for their sums, more parts of channels cost reading the other operand again. With it
/// the pixels that a task copies at once, of its parts of the channels only: the more they are, the fewer times all sums are
/// added to memory.
pub(in crate::conv) fn share_out(
    registers: Registers,
    geometry: &Geometry,
    per_part: usize,
) -> (Partition, GradientParts) {
    let ([h, w, c_in], [dh, dw, c_out]) = (geometry.src, geometry.dst);
    let (values, columns) = (geometry.n * dh * dw, c_in.div_ceil(registers.gradient_columns));
    let mut best = (
        Partition::new(geometry, registers.tile_rows, c_out),
        GradientParts { pixels: 1, columns: 1, rows: 1 },
    );
    let mut least = usize::MAX;
    for columns in 1..=columns.min(TASKS) {
        for pixels in [1, 2, 4, 8, 16] {
            let rows = TASKS.div_ceil(pixels * columns).min(c_out.div_ceil(BLOCK));
            let parts = GradientParts { pixels, columns, rows };
            let part = Geometry { src: [h, w, c_in.div_ceil(columns)], ..*geometry };
            let partition = Partition::new(&part, registers.tile_rows, c_out.div_ceil(rows));
            // The fewer tasks, the more threads may wait for the last one.
            let missing = TASKS.saturating_sub(parts.count());
            let fill = 4 * values * (columns * c_out + rows * c_in);
            let sums = if pixels > 1 { 6 * pixels * per_part } else { 0 };
            let cost = fill + sums + missing * values * per_part / 128;
            if pixels <= partition.count() && cost < least {
                (best, least) = ((partition, parts), cost);
            }
        }
    }
    best
}

/// `grad += Σ parts`, in order.
pub(in crate::conv) fn add_parts<S: Simd>(simd: S, parts: &[f32], grad: &mut [f32]) {
    struct AddParts<'a> {
        parts: &'a [f32],
        len: usize,
        range: Range<usize>,
        grad: Shared<f32>,
    }
    impl Job for AddParts<'_> {
        type Out = ();
        #[inline(always)]
        unsafe fn call<S: Simd>(self, simd: S) {
            let mut i = self.range.start;
            while i < self.range.end {
                let n = (self.range.end - i).min(S::LANES);
                // SAFETY: i + n is within the range, which is within every part and the gradient.
                unsafe {
                    let p = self.grad.get().add(i);
                    let mut sum = simd.zero();
                    for part in self.parts.chunks_exact(self.len) {
                        sum = simd.add(sum, simd.load_part(part.as_ptr().add(i), n));
                    }
                    simd.store_part(p, n, simd.add(simd.load_part(p, n), sum));
                }
                i += n;
            }
        }
    }
    let len = grad.len();
    let n_tasks = len.div_ceil(16 << 10).max(1);
    let grad = Shared::new(grad);
    tasks(n_tasks, |task| {
        let range = part(len, n_tasks, task);
        // SAFETY: tasks have disjoint ranges.
        unsafe { simd.run(AddParts { parts, len, range, grad }) }
    });
}

/// The f32 of the right operand that a tile sums over at once.
const DEPTH: usize = 3584;

/// Runs of equally many positions: where each begins in both operands, and their length.
struct PositionRuns {
    starts: Vec<(i32, i32)>,
    len: usize,
}

/// Cuts runs of `len` positions into parts of about `most` positions, each of equally long runs.
fn depth_parts(runs: &[(i32, i32)], len: usize, most: usize) -> Vec<PositionRuns> {
    if len <= most {
        let of_some = |runs: &[(i32, i32)]| PositionRuns { starts: runs.to_vec(), len };
        return runs.chunks((most / len).max(1)).map(of_some).collect();
    }
    let parts = len.div_ceil(most);
    let cut = |&(a, b): &(i32, i32)| {
        (0..parts).map(move |i| {
            let range = part(len, parts, i);
            let offset = (range.start * BLOCK) as i32;
            PositionRuns { starts: vec![(a + offset, b + offset)], len: range.len() }
        })
    };
    runs.iter().flat_map(cut).collect()
}

/// The weights that a task has: blocks and numbers of its output and input channels.
struct TaskWeights {
    /// Which part of the pixels.
    pixels: usize,
    y_blocks: Range<usize>,
    x_blocks: Range<usize>,
    outputs: Range<usize>,
    inputs: Range<usize>,
    /// The sums of this part of the pixels, `[c_out][taps][c_in]`.
    out: *mut f32,
}

/// Copies of both operands, `[block][row][column][image][16]`.
struct Copies<'a, S> {
    images: Range<usize>,
    rows: Range<usize>,
    source_rows: Range<usize>,
    y: *mut f32,
    x: *mut f32,
    /// f32 from one block to the next.
    y_stride: usize,
    x_stride: usize,
    tiles: &'a [GradientTiles<S>],
}

impl<S: Simd> DirectGradient<'_, S> {
    /// Runs a task.
    ///
    /// # Safety
    /// It must be one of the pass's tasks, and run by one thread only.
    unsafe fn task(&self, task: usize, out: Shared<f32>) {
        let g = &self.geometry;
        let weights = self.weights(task, out);
        if self.parts.pixels > 1 {
            self.clear(&weights);
        }
        let tiles = match S::PAIR_GRAD_TILES {
            Some(pairs) if self.words == Words::Images => pairs,
            _ => S::GRAD_TILES,
        };
        for i in part(self.partition.count(), self.parts.pixels, weights.pixels) {
            let (images, rows) = self.partition.part(g, i);
            if let Some(unit) = self.matrix_unit {
                // SAFETY: the part is one of the partition's, and this thread alone has the task.
                unsafe { self.add_split(unit, &weights, images, rows) };
                continue;
            }
            let source_rows = g.source_rows(rows.clone());
            let n = self.words.images(images.len());
            let x_stride = source_rows.len() * g.columns() * n * BLOCK;
            let y_stride = rows.len() * g.dst[1] * n * BLOCK;
            let lens = [x_stride * weights.x_blocks.len(), y_stride * weights.y_blocks.len(), 0];
            with_scratch(lens, |[x, y, _]| {
                let copies = Copies { images, rows, source_rows, y, x, y_stride, x_stride, tiles };
                // SAFETY: scratch memory has room for the blocks of the task's channels in these images and rows, and
                // products read what was copied.
                unsafe {
                    self.copy(&weights, &copies);
                    for tap in 0..g.kernel * g.kernel {
                        self.add_products(&weights, &copies, tap);
                    }
                }
            });
        }
    }

    /// What a task has.
    fn weights(&self, task: usize, out: Shared<f32>) -> TaskWeights {
        let g = &self.geometry;
        let (c_in, c_out) = (g.src[2], g.dst[2]);
        let GradientParts { columns: column_parts, rows: row_parts, .. } = self.parts;
        let (pixels, rest) = (task / (column_parts * row_parts), task % (column_parts * row_parts));
        let wide = S::GRAD_COLS / BLOCK;
        let columns = part(c_in.div_ceil(S::GRAD_COLS), column_parts, rest % column_parts);
        let x_blocks = columns.start * wide..(columns.end * wide).min(c_in.div_ceil(BLOCK));
        let y_blocks = part(c_out.div_ceil(BLOCK), row_parts, rest / column_parts);
        let channels =
            |blocks: &Range<usize>, all: usize| blocks.start * BLOCK..(blocks.end * BLOCK).min(all);
        TaskWeights {
            pixels,
            inputs: channels(&x_blocks, c_in),
            outputs: channels(&y_blocks, c_out),
            y_blocks,
            x_blocks,
            out: out.offset(pixels * c_out * g.kernel * g.kernel * c_in).get(),
        }
    }

    /// Begins a part's sums with zeros.
    fn clear(&self, weights: &TaskWeights) {
        let (taps, c_in) = (self.geometry.kernel * self.geometry.kernel, self.geometry.src[2]);
        for o in weights.outputs.clone() {
            for tap in 0..taps {
                let at = (o * taps + tap) * c_in + weights.inputs.start;
                // SAFETY: `out` has a row of all taps and inputs for each output; this task alone has these.
                unsafe { weights.out.add(at).write_bytes(0, weights.inputs.len()) };
            }
        }
    }

    /// Copies both operands.
    ///
    /// # Safety
    /// The copies have room.
    unsafe fn copy(&self, weights: &TaskWeights, copies: &Copies<'_, S>) {
        let ends = |range: &Range<usize>| (range.start, range.end);
        let (images, words) = (ends(&copies.images), self.words);
        let of_x = Fill {
            geometry: &self.geometry,
            images,
            rows: ends(&copies.source_rows),
            blocks: ends(&weights.x_blocks),
            words,
            dst: copies.x,
        };
        let of_y = Fill {
            geometry: &self.dy_geometry,
            images,
            rows: ends(&copies.rows),
            blocks: ends(&weights.y_blocks),
            words,
            dst: copies.y,
        };
        // SAFETY: images, rows and blocks are parts of those that there are, and the copies have room.
        unsafe {
            self.x.fill(self.simd, of_x);
            fill(self.simd, &self.dy, of_y);
        }
    }

    /// Adds a tap's products to the task's sums.
    ///
    /// # Safety
    /// Both operands be copied.
    unsafe fn add_products(&self, weights: &TaskWeights, copies: &Copies<'_, S>, tap: usize) {
        let g = &self.geometry;
        let Some((runs, len)) = self.tap_runs(copies, tap) else { return };
        let row = g.kernel * g.kernel * g.src[2];
        let (inputs, outputs) = (&weights.inputs, &weights.outputs);
        // Parts short enough for the right operand to stay in the first-level cache while all rows pass by.
        for runs in depth_parts(&runs, len, DEPTH / S::GRAD_COLS) {
            for c in inputs.clone().step_by(S::GRAD_COLS) {
                let cols = (inputs.end - c).min(S::GRAD_COLS);
                let mut o = outputs.start;
                for tile in copies.tiles.iter().cycle() {
                    if o >= outputs.end {
                        break;
                    }
                    let local = o - outputs.start;
                    // SAFETY: runs lie in the copies; rows and columns are this task's weights.
                    unsafe {
                        tile.kernels[usize::from(cols > BLOCK)](
                            self.simd,
                            &GradientTile {
                                runs: runs.starts.as_ptr(),
                                n_runs: runs.starts.len(),
                                len: runs.len,
                                a: copies.y.add(local / BLOCK * copies.y_stride + local % BLOCK),
                                b: copies.x.add((c - inputs.start) / BLOCK * copies.x_stride),
                                b_block: copies.x_stride,
                                c: weights.out.add(o * row + tap * g.src[2] + c),
                                row,
                                rows: (outputs.end - o).min(tile.rows),
                                cols,
                                accumulate: true,
                            },
                        );
                    }
                    o += tile.rows;
                }
            }
        }
    }

    /// Where a tap's operands are in the copies: a run for each row, and the positions in each of them.
    fn tap_runs(&self, copies: &Copies<'_, S>, tap: usize) -> Option<(Vec<(i32, i32)>, usize)> {
        let g = &self.geometry;
        let (ty, tx) = (tap / g.kernel, tap % g.kernel);
        let (x0, count, column) = self.tap_columns(tx)?;
        let n = self.words.images(copies.images.len());
        let run = |row: usize| {
            let (_, sy) = g.row_taps(row).find(|&(t, _)| t == ty)?;
            let a = ((row - copies.rows.start) * g.dst[1] + x0) * n * BLOCK;
            let b = ((sy - copies.source_rows.start) * g.columns() + column) * n * BLOCK;
            Some((a as i32, b as i32))
        };
        Some((copies.rows.clone().filter_map(run).collect(), count * n))
    }

    /// The destination columns that a horizontal tap reaches: the first, their number, and the scratch column
    /// that the first reads.
    fn tap_columns(&self, tx: usize) -> Option<(usize, usize, usize)> {
        let mut found: Option<(usize, usize, usize)> = None;
        for run in &self.runs {
            if let Some(&(_, column)) = run.taps.iter().find(|&&(t, _)| t == tx) {
                found = match found {
                    None => Some((run.x0, run.count, column)),
                    Some((x0, count, first)) => Some((x0, count + run.count, first)),
                };
            }
        }
        found
    }
}
