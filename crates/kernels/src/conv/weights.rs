//! The direct path of the weight pass: any kernel, stride and padding.
//!
//! Both operands go to blocked scratch memory; every tap is then a product over runs of positions, with
//! output channels as rows and input channels as columns. Where weights are few, tasks sum over different pixels
//! into separate buffers, which are added up in order.

use super::fill::{Reader, Region, Words, fill};
use super::geometry::{Geometry, Run, Split};
use super::{ConvSpec, Source};
use crate::Context;
use crate::micro::GradTile;
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{Shared, part, sweep, tasks, with_scratch};

/// Tasks to aim for.
const TASKS: usize = 16;

struct Pass<'a> {
    x: Reader<'a>,
    dy: Source<'a>,
    /// Of the forward pass.
    geometry: Geometry,
    /// One pixel an image, as many channels as outputs, for reading `dy`.
    dy_geometry: Geometry,
    runs: Vec<Run>,
    split: Split,
    /// Sets of partial sums.
    sets: usize,
    /// Parts of the input channels' tile columns, and of the output channels' blocks.
    column_parts: usize,
    row_parts: usize,
    words: Words,
}

/// Adds `Σ dy ⊗ x` to `grad`, whose layout is `[c_out][taps][c_in]`.
pub(super) fn run<S: Simd>(
    ctx: &Context,
    x: Reader<'_>,
    dy: Source<'_>,
    geometry: Geometry,
    pairs: bool,
    grad: &mut [f32],
) {
    let [dh, dw, co] = geometry.dst;
    let per_set = grad.len().max(1);
    let (split, [sets, column_parts, row_parts]) = share_out::<S>(&geometry, per_set);
    // Two images share a word; where tasks take single ones, half of each product would be with zero.
    let pairs = pairs && geometry.n / split.groups >= 2;
    let dy_spec = ConvSpec { c_in: co, c_out: co, kernel: 1, stride: 1, padding: 0 };
    let pass = Pass {
        x,
        dy,
        geometry,
        dy_geometry: Geometry {
            src: [dh, dw, co],
            n: geometry.n,
            ..Geometry::forward(&dy_spec, [1, 1, 1, co])
        },
        runs: geometry.runs(),
        split,
        sets,
        column_parts,
        row_parts,
        words: if pairs { Words::Images } else { Words::Single },
    };
    let mut partial = ctx.pool().scratch(if sets > 1 { sets * per_set } else { 0 });
    let out = if sets > 1 { Shared::new(&mut partial) } else { Shared::new(grad) };
    sweep(sets * column_parts * row_parts, |task| pass.task::<S>(task, out));
    if sets > 1 {
        add_sets::<S>(&partial, grad);
    }
}

/// Into how many sets of pixels, parts of the input channels and parts of the output channels to cut the work:
/// the cheapest way to get enough tasks. More sets cost memory traffic for their sums, more parts cost reading the
/// other operand again. With it the pixels that a task copies at once, of its parts of the channels only: the more they
/// are, the fewer times all sums are added to memory.
fn share_out<S: Simd>(geometry: &Geometry, per_set: usize) -> (Split, [usize; 3]) {
    let ([h, w, c_in], [dh, dw, c_out]) = (geometry.src, geometry.dst);
    let (pixels, columns) = (geometry.n * dh * dw, c_in.div_ceil(S::GRAD_COLS));
    let mut best = (Split::new(geometry, S::TILE_ROWS, c_out), [1, 1, 1]);
    let mut least = usize::MAX;
    for column_parts in 1..=columns.min(TASKS) {
        for sets in [1, 2, 4, 8, 16] {
            let row_parts = TASKS.div_ceil(sets * column_parts).min(c_out.div_ceil(BLOCK));
            let part = Geometry { src: [h, w, c_in.div_ceil(column_parts)], ..*geometry };
            let split = Split::new(&part, S::TILE_ROWS, c_out.div_ceil(row_parts));
            // The fewer tasks, the more threads may wait for the last one.
            let missing = TASKS.saturating_sub(sets * column_parts * row_parts);
            let fill = 4 * pixels * (column_parts * c_out + row_parts * c_in);
            let sums = if sets > 1 { 6 * sets * per_set } else { 0 };
            let cost = fill + sums + missing * pixels * per_set / 128;
            if sets <= split.count() && cost < least {
                (best, least) = ((split, [sets, column_parts, row_parts]), cost);
            }
        }
    }
    best
}

/// `grad += Σ sets`, in order.
pub(super) fn add_sets<S: Simd>(sets: &[f32], grad: &mut [f32]) {
    struct Add<'a> {
        sets: &'a [f32],
        len: usize,
        range: std::ops::Range<usize>,
        grad: Shared<f32>,
    }
    impl Job for Add<'_> {
        type Out = ();
        #[inline(always)]
        unsafe fn call<S: Simd>(self) {
            let mut i = self.range.start;
            while i < self.range.end {
                let n = (self.range.end - i).min(S::LANES);
                // SAFETY: i + n is within the range, which is within every set and the gradient.
                unsafe {
                    let p = self.grad.get().add(i);
                    let mut sum = S::zero();
                    for set in self.sets.chunks_exact(self.len) {
                        sum = S::add(sum, S::load_part(set.as_ptr().add(i), n));
                    }
                    S::store_part(p, n, S::add(S::load_part(p, n), sum));
                }
                i += n;
            }
        }
    }
    let len = grad.len();
    let parts = len.div_ceil(16 << 10).max(1);
    let grad = Shared::new(grad);
    tasks(parts, |task| {
        let range = part(len, parts, task);
        // SAFETY: the instruction set is available; tasks have disjoint ranges.
        unsafe { S::run(Add { sets, len, range, grad }) }
    });
}

/// The f32 of the right operand that a tile sums over at once.
const PIECE: usize = 3584;

/// Cuts runs of `len` positions into lists of runs of equal length, of about `most` positions in all.
fn pieces(runs: &[(i32, i32)], len: usize, most: usize) -> Vec<(Vec<(i32, i32)>, usize)> {
    if len <= most {
        return runs.chunks((most / len).max(1)).map(|runs| (runs.to_vec(), len)).collect();
    }
    let parts = len.div_ceil(most);
    let cut = |&(a, b): &(i32, i32)| {
        (0..parts).map(move |i| {
            let range = part(len, parts, i);
            let offset = (range.start * BLOCK) as i32;
            (vec![(a + offset, b + offset)], range.len())
        })
    };
    runs.iter().flat_map(cut).collect()
}

impl Pass<'_> {
    fn task<S: Simd>(&self, task: usize, out: Shared<f32>) {
        let g = &self.geometry;
        let ([_, _, ci], [dh, dw, co]) = (g.src, g.dst);
        let taps = g.kernel * g.kernel;
        let row = taps * ci;
        let (set, rest) =
            (task / (self.column_parts * self.row_parts), task % (self.column_parts * self.row_parts));
        let wide = S::GRAD_COLS / BLOCK;
        let columns = part(ci.div_ceil(S::GRAD_COLS), self.column_parts, rest % self.column_parts);
        let x_blocks = (columns.start * wide, (columns.end * wide).min(ci.div_ceil(BLOCK)));
        let y_blocks = part(co.div_ceil(BLOCK), self.row_parts, rest / self.column_parts);
        let c_range = x_blocks.0 * BLOCK..(x_blocks.1 * BLOCK).min(ci);
        let o_range = y_blocks.start * BLOCK..(y_blocks.end * BLOCK).min(co);
        // SAFETY: a set is as long as the gradient, and this task's rows and columns are its own.
        let out = unsafe { out.get().add(set * co * row) };
        if self.sets > 1 {
            for o in o_range.clone() {
                for tap in 0..taps {
                    // SAFETY: as above.
                    unsafe { out.add(o * row + tap * ci + c_range.start).write_bytes(0, c_range.len()) };
                }
            }
        }
        let tiles = match S::PAIR_GRAD_TILES {
            Some(pairs) if self.words == Words::Images => pairs,
            _ => S::GRAD_TILES,
        };
        for share in part(self.split.count(), self.sets, set) {
            let images = part(g.n, self.split.groups, share / self.split.strips);
            let rows = part(dh, self.split.strips, share % self.split.strips);
            let source_rows = g.source_rows(rows.clone());
            let n = self.words.images(images.len());
            let words = self.words;
            let x_stride = source_rows.len() * g.columns() * n * BLOCK;
            let y_stride = rows.len() * dw * n * BLOCK;
            let lens = [x_stride * (x_blocks.1 - x_blocks.0), y_stride * y_blocks.len(), 0];
            with_scratch(lens, |[x, y, _]| {
                let images = (images.start, images.end);
                // SAFETY: the instruction set is available; the buffers hold the regions, and what the tiles touch
                // lies inside them and inside this task's part of the gradient.
                unsafe {
                    let of_x = Region {
                        geometry: g,
                        images,
                        rows: (source_rows.start, source_rows.end),
                        blocks: x_blocks,
                        words,
                        dst: x,
                    };
                    self.x.fill::<S>(of_x);
                    let of_y = Region {
                        geometry: &self.dy_geometry,
                        images,
                        rows: (rows.start, rows.end),
                        blocks: (y_blocks.start, y_blocks.end),
                        words,
                        dst: y,
                    };
                    fill::<S>(&self.dy, of_y);
                    for tap in 0..taps {
                        let (ty, tx) = (tap / g.kernel, tap % g.kernel);
                        let Some((x0, count, column)) = self.tap_columns(tx) else { continue };
                        let runs: Vec<(i32, i32)> = rows
                            .clone()
                            .filter_map(|row| {
                                let (_, sy) = g.row_taps(row).find(|&(t, _)| t == ty)?;
                                let a = ((row - rows.start) * dw + x0) * n * BLOCK;
                                let b = ((sy - source_rows.start) * g.columns() + column) * n * BLOCK;
                                Some((a as i32, b as i32))
                            })
                            .collect();
                        // Pieces short enough for the right operand to stay in the first-level cache while all
                        // rows pass by.
                        for (runs, len) in pieces(&runs, count * n, PIECE / S::GRAD_COLS) {
                            let mut c = c_range.start;
                            while c < c_range.end {
                                let cols = (c_range.end - c).min(S::GRAD_COLS);
                                let mut o = o_range.start;
                                for tile in tiles.iter().cycle() {
                                    if o >= o_range.end {
                                        break;
                                    }
                                    let local = o - o_range.start;
                                    tile.kernels[usize::from(cols > BLOCK)](&GradTile {
                                        runs: runs.as_ptr(),
                                        n_runs: runs.len(),
                                        len,
                                        a: y.add(local / BLOCK * y_stride + local % BLOCK),
                                        b: x.add((c - c_range.start) / BLOCK * x_stride),
                                        b_block: x_stride,
                                        c: out.add(o * row + tap * ci + c),
                                        row,
                                        rows: (o_range.end - o).min(tile.rows),
                                        cols,
                                        accumulate: true,
                                    });
                                    o += tile.rows;
                                }
                                c += S::GRAD_COLS;
                            }
                        }
                    }
                }
            });
        }
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
