//! 1×1 convolutions with many channels by one step of Strassen's algorithm in Winograd's form: seven products of halves
//! instead of eight.
//!
//! Rows of the matrix product are pixels, its depth the channels that are read, its columns those that are written. With
//! each cut in halves,
//!
//! ```text
//! S1 = A21 + A22   S2 = S1 - A11    S3 = A11 - A21   S4 = A12 - S2
//! T1 = B12 - B11   T2 = B22 - T1    T3 = B22 - B12   T4 = B21 - T2
//! U = A11 B11 + S2 T2    V = S1 T1
//! C11 = A11 B11 + A12 B21   C12 = U + V + S4 B22   C21 = U + S3 T3 + A22 T4   C22 = U + S3 T3 + V
//! ```
//!
//! (Winograd, "On multiplication of 2×2 matrices", 1971). The sums are made once for each pixel, while it is copied to
//! scratch memory, and once for each weight, while it is packed; those of products wait in the first-level cache. Rounding
//! errors are two to three times those of a direct sum.

use std::ops::Range;

use super::Product;
use super::direct::fill::{Fill, Reader, Words};
use super::direct::geometry::Geometry;
use super::filters::{FilterBlock, Filters, Panels};
use super::finish::{Finisher, OutputPtr, ReadyTile};
use super::kept::Layout;
use super::partials::{Partials, PartialsPtr};
use crate::Context;
use crate::activations::Activations;
use crate::micro::{Ahead, ProductTile};
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{Shared, part, parts, sweep, with_scratch};

/// The f32 of copied pixels and their sums that a task keeps: a quarter of the second-level cache, through which the weights
/// and their sums pass as well.
const SCRATCH: usize = 32 << 10;

/// Halves of an operand, and their sums: what there is a product of.
const OPERANDS: usize = 7;

/// Tasks to aim for.
const TASKS: usize = 16;

struct StrassenProduct<'a, S> {
    simd: S,
    reader: Reader<'a>,
    geometry: Geometry,
    packed: &'a [f32],
    /// Blocks of half the depth.
    blocks: usize,
    panels: Panels,
    /// Into how many parts pixels and pairs of panels are cut.
    pixel_parts: usize,
    panel_parts: usize,
    output: OutputPtr,
    finisher: Finisher<'a>,
    partials: PartialsPtr,
}

/// Runs a pass; returns the sums of each part, and the values per channel behind each of them.
pub(super) fn run<S: Simd>(
    simd: S,
    ctx: &Context,
    product: &Product<'_>,
    out: &mut Activations,
) -> (Partials, Vec<usize>) {
    product.check(out);
    let (filters, (reader, geometry), finisher) = (product.filters(), product.reader(), product.finisher);
    let panels = Panels::new::<S>(filters.channels());
    let (pairs, blocks) = (panels.count() / 2, filters.blocks() / 2);
    let len = pairs * OPERANDS * blocks * BLOCK * panels.full();
    let pack = |words: &mut [f32]| pack(simd, filters, panels, words);
    let packed = product.weights.packed(ctx, Layout::Strassen, len, pack);
    let rows = 2 * S::TILE_ROWS;
    let most = (4 * SCRATCH / (OPERANDS * filters.depth())).clamp(rows, 32 * rows) / rows * rows;
    let pixel_parts = geometry.n.div_ceil(most);
    let mut partials = Partials::new(pixel_parts, filters.channels(), finisher.sums());
    let panel_parts = TASKS.div_ceil(pixel_parts).min(pairs);
    let pass = StrassenProduct {
        simd,
        reader,
        geometry,
        packed: &packed,
        blocks,
        panels,
        pixel_parts,
        panel_parts,
        output: OutputPtr::new(out),
        finisher,
        partials: partials.share(),
    };
    // SAFETY: each number is a task's, and comes once.
    sweep(pixel_parts * panel_parts, |task| unsafe { pass.task(task) });
    let counts = (0..pixel_parts).map(|i| 2 * part(geometry.n / 2, pixel_parts, i).len()).collect();
    (partials, counts)
}

/// Packs weights and their sums, in the order of their products: `[pair of panels][part][block][16][width]`.
fn pack<S: Simd>(simd: S, filters: Filters<'_>, panels: Panels, packed: &mut [f32]) {
    let (pairs, blocks, width) = (panels.count() / 2, filters.blocks() / 2, panels.full());
    let size = BLOCK * width;
    let out = Shared::new(packed);
    filters.direction().each_block(pairs, blocks, |pair, block| {
        with_scratch([4 * size, 0, 0], |[halves, ..]| {
            // SAFETY: scratch memory holds four blocks.
            let halves = unsafe { std::slice::from_raw_parts_mut(halves, 4 * size) };
            for (i, half) in halves.chunks_exact_mut(size).enumerate() {
                let (row, column) = ((block + i / 2 * blocks) * BLOCK, (pair + i % 2 * pairs) * width);
                filters.block(simd, FilterBlock { tap: 0, row, column, width }, half);
            }
            let first = (pair * OPERANDS * blocks + block) * size;
            // SAFETY: each block is written once.
            unsafe {
                let out = out.get().add(first);
                simd.run(WeightSums { halves: halves.as_ptr(), size, out, step: blocks * size });
            }
        });
    });
}

/// Sums of the four halves of a block of weights.
struct WeightSums {
    halves: *const f32,
    size: usize,
    out: *mut f32,
    /// From one part to the next.
    step: usize,
}

impl Job for WeightSums {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        for i in (0..self.size).step_by(S::LANES) {
            // SAFETY: four halves are read, and seven operands written, a vector of each.
            unsafe {
                let half = |h: usize| simd.load(self.halves.add(h * self.size + i));
                let (b11, b12, b21, b22) = (half(0), half(1), half(2), half(3));
                let t1 = simd.sub(b12, b11);
                let t2 = simd.sub(b22, t1);
                let parts = [b11, b21, t2, t1, b22, simd.sub(b22, b12), simd.sub(b21, t2)];
                for (p, &v) in parts.iter().enumerate() {
                    simd.store(self.out.add(p * self.step + i), v);
                }
            }
        }
    }
}

/// Sums of the four quarters of some pixels, which lie one after the other, and room for three more.
struct PixelSums {
    quarters: *mut f32,
    len: usize,
}

/// Where the operand of each product lies then, in the order of [`pack`].
const QUARTERS: [usize; OPERANDS] = [0, 1, 5, 4, 6, 2, 3];

impl Job for PixelSums {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        for i in (0..self.len).step_by(S::LANES) {
            // SAFETY: there are seven quarters of this length; four are read.
            unsafe {
                let at = |q: usize| self.quarters.add(q * self.len + i);
                let (a11, a12, a21, a22) =
                    (simd.load(at(0)), simd.load(at(1)), simd.load(at(2)), simd.load(at(3)));
                let s1 = simd.add(a21, a22);
                let s2 = simd.sub(s1, a11);
                simd.store(at(2), simd.sub(a11, a21));
                simd.store(at(4), s1);
                simd.store(at(5), s2);
                simd.store(at(6), simd.sub(a12, s2));
            }
        }
    }
}

/// Scratch memory of a task: operands, sums of products for all rows, and a tile.
struct Buffers {
    quarters: *const f32,
    u: *mut f32,
    v: *mut f32,
    tile: *mut f32,
}

impl<S: Simd> StrassenProduct<'_, S> {
    /// Runs a task.
    ///
    /// # Safety
    /// It must be one of the pass's tasks, and run by one thread only.
    unsafe fn task(&self, task: usize) {
        let index = task / self.panel_parts;
        let pixels = part(self.geometry.n / 2, self.pixel_parts, index);
        let (first, rows) = (2 * pixels.start, pixels.len());
        let pairs = part(self.panels.count() / 2, self.panel_parts, task % self.panel_parts);
        let (quarter, width) = (rows * self.blocks * BLOCK, self.panels.full());
        let lens = [OPERANDS * quarter, 2 * rows * width, S::TILE_ROWS * width];
        with_scratch(lens, |[quarters, sums, tile]| {
            // SAFETY: scratch memory has room; no other task has these pixels' panels.
            unsafe {
                for q in 0..4 {
                    let first = first + q / 2 * rows;
                    self.reader.fill(
                        self.simd,
                        Fill {
                            geometry: &self.geometry,
                            images: (first, first + rows),
                            rows: (0, 1),
                            blocks: (q % 2 * self.blocks, (q % 2 + 1) * self.blocks),
                            words: Words::Single,
                            dst: quarters.add(q * quarter),
                        },
                    );
                }
                self.simd.run(PixelSums { quarters, len: quarter });
                let buffers = Buffers { quarters, u: sums, v: sums.add(rows * width), tile };
                for pair in pairs {
                    self.pair(index, first..first + rows, pair, &buffers);
                }
            }
        });
    }

    /// Computes a pair of panels for a part of the pixels, whose first half is given.
    unsafe fn pair(&self, part: usize, pixels: Range<usize>, pair: usize, buffers: &Buffers) {
        let (count, width) = (pixels.len(), self.panels.full());
        let (quarter, size) = (count * self.blocks * BLOCK, BLOCK * width);
        let channels = self.geometry.dst[2];
        let list: Vec<(i32, i32)> =
            (0..self.blocks).map(|b| ((b * count * BLOCK) as i32, (b * size) as i32)).collect();
        let in_tile: [usize; 32] = std::array::from_fn(|i| i * width);
        let outputs: Vec<usize> = (0..2 * count).map(|i| (pixels.start + i) * channels).collect();
        let tiles = || parts(count, count.div_ceil(S::TILE_ROWS));
        // The product of a part, for the rows of a tile.
        let multiply = |product: usize, rows: &Range<usize>, c: *mut f32, accumulate: bool| {
            let b = (pair * OPERANDS + product) * self.blocks * size;
            let a = QUARTERS[product] * quarter + rows.start * BLOCK;
            // SAFETY: operands, filters and `c` have the blocks, columns and rows that the offsets reach.
            unsafe {
                S::TILES[1][rows.len() - 1](
                    self.simd,
                    &ProductTile {
                        list: list.as_ptr(),
                        blocks: list.len(),
                        a: buffers.quarters.add(a),
                        b: self.packed.as_ptr().add(b),
                        c,
                        rows: in_tile.as_ptr(),
                        accumulate,
                        cols: width,
                        cold: false,
                        ahead: Ahead::NONE,
                    },
                );
            }
        };
        // Finishes the outputs of a half of the pixels and of the channels, which are these values plus `u`.
        let finish = |values: *const f32, rows: &Range<usize>, (half, side): (usize, usize)| {
            let at = &outputs[half * count + rows.start..half * count + rows.end];
            let tile = ReadyTile {
                values,
                stride: width,
                at,
                partial: Some((buffers.u.wrapping_add(rows.start * width).cast_const(), &in_tile)),
                c0: (pair + side * self.panels.count() / 2) * width,
                cols: width,
                partials: self.partials,
                part,
                begins: half == 0 && rows.start == 0,
            };
            // SAFETY: the tile is complete; its pixels and channels are this task's alone.
            unsafe { self.finisher.tile(self.simd, self.output, tile) };
        };
        let at = |buffer: *mut f32, rows: &Range<usize>| buffer.wrapping_add(rows.start * width);
        tiles().for_each(|rows| multiply(0, &rows, at(buffers.u, &rows), false));
        for rows in tiles() {
            multiply(1, &rows, buffers.tile, false);
            finish(buffers.tile, &rows, (0, 0));
        }
        tiles().for_each(|rows| multiply(2, &rows, at(buffers.u, &rows), true));
        tiles().for_each(|rows| multiply(3, &rows, at(buffers.v, &rows), false));
        for rows in tiles() {
            // SAFETY: `v` has these rows, and a tile has room for them.
            unsafe { buffers.tile.copy_from_nonoverlapping(at(buffers.v, &rows), rows.len() * width) };
            multiply(4, &rows, buffers.tile, true);
            finish(buffers.tile, &rows, (0, 1));
        }
        tiles().for_each(|rows| multiply(5, &rows, at(buffers.u, &rows), true));
        for rows in tiles() {
            multiply(6, &rows, buffers.tile, false);
            finish(buffers.tile, &rows, (1, 0));
            finish(at(buffers.v, &rows), &rows, (1, 1));
        }
    }
}
