//! 3×3 convolutions of stride 1 by Winograd's F(4×4, 3×3): a quarter of the multiplications, forward and data
//! passes.
//!
//! Some tiles of the source are transformed into scratch memory, multiplied with the transformed weights, point by point
//! and panel by panel, and each panel's products are transformed into outputs, which are finished in registers. A task
//! has some tiles, or, where tiles are few, a panel. Errors are about 15 to 45 times those of a direct sum. Tiles at the
//! lower and right edges compute no more outputs than the map has, at fewer points; a map of 2×2 pixels is a tile of its
//! own kind, of 9 points.

use std::marker::PhantomData;
use std::ops::Range;

use super::Source;
use super::finish::{Finish, FinishVisitor, Finisher, Output, Partials, PartialsPtr, Sums};
use super::pack::{Panels, Weights};
use super::tiles::transform_inputs;
use super::tiling::{Place, SIDE, TileOrder, Tiling, Transform, point_stride};
use super::transforms::{AnyTile, Filter, Output as OutputSide, Outputs, POINTS, columns, row};
use crate::Context;
use crate::activations::Activations;
use crate::micro::Tile;
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{Shared, part, sweep, tasks, with_scratch};

struct Pass<'a> {
    source: Source<'a>,
    weights: Weights<'a>,
    /// Whether the filter is to be turned by 180 degrees.
    flip: bool,
    tiling: Tiling,
    panels: Panels,
    output: Output,
    finisher: Finisher<'a>,
    partials: PartialsPtr,
    /// Sets of tiles.
    sets: usize,
}

/// The f32 of transformed tiles that a task keeps: together with products and weights they should stay in the
/// second-level cache.
const SCRATCH: usize = 64 << 10;

/// Places for a tile's products: one more than needed, so that tiles do not fall on the same cache sets.
const PLACES: usize = POINTS + 1;

/// Tasks to aim for.
const TASKS: usize = 12;

/// Runs a pass; returns the partial sums and the values a channel behind each of them.
pub(super) fn run<S: Simd>(
    ctx: &Context,
    source: Source<'_>,
    weights: Weights<'_>,
    flip: bool,
    out: &mut Activations,
    finisher: Finisher<'_>,
) -> (Partials, Vec<usize>) {
    let tiling = Tiling::new(out.shape);
    let rows = S::TILE_ROWS;
    let few_tiles = tiling.count < weights.channels();
    let points = (0..POINTS).filter(|&point| tiling.has_point(point)).count();
    let most =
        if few_tiles { 8 * rows } else { SCRATCH / (points * weights.depth().next_multiple_of(BLOCK)) };
    let sets = tiling.count.div_ceil(most.clamp(rows, 8 * rows).next_multiple_of(rows));
    let mut partials = Partials::new(sets, weights.channels(), finisher.sums());
    let pass = Pass {
        source,
        weights,
        flip,
        tiling,
        panels: Panels::new::<S>(weights.channels()),
        output: Output::new(out),
        finisher,
        partials: partials.share(),
        sets,
    };
    if few_tiles {
        pass.run_by_panels::<S>(ctx);
    } else {
        pass.run_by_tiles::<S>(ctx);
    }
    let values = |place: Place| SIDE.min(tiling.h - place.y0) * SIDE.min(tiling.w - place.x0);
    let counts =
        (0..sets).map(|set| tiling.places(part(tiling.count, sets, set)).map(values).sum()).collect();
    (partials, counts)
}

/// One of the sets of tiles.
struct Set {
    index: usize,
    tiles: Range<usize>,
    order: TileOrder,
}

impl Pass<'_> {
    /// First all weights are transformed, and then each task transforms some tiles and computes their outputs.
    fn run_by_tiles<S: Simd>(&self, ctx: &Context) {
        let blocks = self.weights.blocks();
        let mut weights = ctx.pool().take(self.panels.count() * self.weights_len());
        let shared = Shared::new(&mut weights);
        let of_panel = |j: usize| shared.offset(j * self.weights_len()).get();
        tasks(self.panels.count() * blocks, |task| {
            let (j, block) = (task / blocks, task % blocks);
            with_scratch([9 * BLOCK * self.panels.full(), 0, 0], |[taps, ..]| {
                // SAFETY: scratch memory holds nine blocks, and each task writes its own block of each point.
                unsafe { self.transform_weights::<S>(j, block, taps, of_panel(j)) };
            });
        });
        let panel_parts = TASKS.div_ceil(self.sets).min(self.panels.count());
        sweep(self.sets * panel_parts, |task| {
            let set = self.set(task / panel_parts);
            let lens = [POINTS * self.stride(set.tiles.len()), self.products_len(set.tiles.len()), 0];
            with_scratch(lens, |[v, m, _]| {
                // SAFETY: scratch memory has room for the tiles.
                unsafe { self.transform_tiles::<S>(&set, v) };
                for j in part(self.panels.count(), panel_parts, task % panel_parts) {
                    // SAFETY: the tiles and weights are there, scratch memory has room for their products, and no other
                    // task has this set and panel.
                    unsafe { self.outputs::<S>(&set, j, of_panel(j), v, m) };
                }
            });
        });
        ctx.pool().give(weights);
    }

    /// First all tiles are transformed, and then each task transforms a panel of weights and computes its channels. Where
    /// tiles are few, as in deep layers, the transformed weights would take more memory than the tiles, and more time to
    /// read for every set.
    fn run_by_panels<S: Simd>(&self, ctx: &Context) {
        let most = self.tiling.count.div_ceil(self.sets);
        let longest = POINTS * self.stride(most);
        let mut tiles = ctx.pool().take(self.sets * longest);
        let shared = Shared::new(&mut tiles);
        let of_set = |set: usize| shared.offset(set * longest).get();
        // SAFETY: each set has room for its tiles.
        sweep(self.sets, |set| unsafe { self.transform_tiles::<S>(&self.set(set), of_set(set)) });
        let set_parts = TASKS.div_ceil(self.panels.count()).min(self.sets);
        let lens = [9 * BLOCK * self.panels.full(), self.weights_len(), self.products_len(most)];
        tasks(self.panels.count() * set_parts, |task| {
            let (j, set_part) = (task / set_parts, task % set_parts);
            with_scratch(lens, |[taps, weights, m]| {
                for block in 0..self.weights.blocks() {
                    // SAFETY: scratch memory holds nine blocks, and the panel.
                    unsafe { self.transform_weights::<S>(j, block, taps, weights) };
                }
                for set in part(self.sets, set_parts, set_part) {
                    // SAFETY: the tiles and weights are there, scratch memory has room for their products, and no other
                    // task has this set and panel.
                    unsafe { self.outputs::<S>(&self.set(set), j, weights, of_set(set), m) };
                }
            });
        });
        ctx.pool().give(tiles);
    }

    fn set(&self, index: usize) -> Set {
        let tiles = part(self.tiling.count, self.sets, index);
        Set { index, order: TileOrder::new(&self.tiling, tiles.clone()), tiles }
    }

    /// The f32 of a panel of transformed weights.
    fn weights_len(&self) -> usize {
        POINTS * self.weights.blocks() * BLOCK * self.panels.full()
    }

    /// The f32 of transformed tiles from one point to the next.
    fn stride(&self, tiles: usize) -> usize {
        point_stride(tiles, self.weights.blocks() * BLOCK)
    }

    /// The f32 of a panel's products: tile by tile, for its output reads all points at constant distances.
    fn products_len(&self, tiles: usize) -> usize {
        tiles * PLACES * self.panels.full()
    }

    /// Transforms a block of a panel's weights: `[point][block][16][width]`, only points that tiles have.
    ///
    /// # Safety
    /// The instruction set must be available, and `taps` and `out` have room for nine blocks, and for the panel; no other
    /// task writes this block.
    unsafe fn transform_weights<S: Simd>(&self, j: usize, block: usize, taps: *mut f32, out: *mut f32) {
        let width = self.panels.width(j);
        let size = BLOCK * width;
        let blocks = self.weights.blocks();
        // SAFETY: the caller's promise.
        unsafe {
            let dst = std::slice::from_raw_parts_mut(taps, 9 * size);
            for (t, dst) in dst.chunks_exact_mut(size).enumerate() {
                // The data pass correlates with the filter turned by 180 degrees.
                let tap = if self.flip { 8 - t } else { t };
                self.weights.block::<S>(tap, block * BLOCK, j * self.panels.full(), width, dst);
            }
            for lane in (0..size).step_by(S::LANES) {
                S::run(AnyTile {
                    outputs: self.tiling.filter(),
                    from: taps.add(lane),
                    from_steps: (3 * size, size),
                    to: out.add(block * size + lane),
                    to_steps: (6 * blocks * size, blocks * size),
                    side: PhantomData::<Filter>,
                });
            }
        }
    }

    /// Transforms the tiles of a set.
    ///
    /// # Safety
    /// The instruction set must be available, and `out` have room for them.
    unsafe fn transform_tiles<S: Simd>(&self, set: &Set, out: *mut f32) {
        let to = Transform {
            tiling: &self.tiling,
            channels: self.weights.depth(),
            tiles: set.tiles.clone(),
            positions: set.order.positions(),
            room: set.tiles.len(),
            out,
        };
        // SAFETY: the caller's promise.
        unsafe { transform_inputs::<S>(&self.source, to) };
    }

    /// Computes a panel's outputs for a set, from the transformed tiles `v` and the panel's weights, over scratch memory
    /// `m`.
    ///
    /// # Safety
    /// The instruction set must be available. Tiles and weights are there and `m` has room for their products; no other task
    /// has this set and panel.
    unsafe fn outputs<S: Simd>(&self, set: &Set, j: usize, weights: *const f32, v: *const f32, m: *mut f32) {
        let (count, blocks, width) = (set.tiles.len(), self.weights.blocks(), self.panels.width(j));
        let (stride, tile_len) = (self.stride(count), PLACES * self.panels.full());
        let size = BLOCK * width;
        let kernels = S::TILES[self.panels.vectors(j) - 1];
        let list: Vec<(i32, i32)> =
            (0..blocks).map(|b| ((b * count * BLOCK) as i32, (b * size) as i32)).collect();
        let rows: [usize; 32] = std::array::from_fn(|i| i * tile_len);
        for point in 0..POINTS {
            let with_point = set.order.with_point(point);
            let parts = with_point.len().div_ceil(S::TILE_ROWS);
            for p in 0..parts {
                let r = part(with_point.len(), parts, p);
                let first = with_point.start + r.start;
                // SAFETY: the caller's promise; all offsets are inside the buffers.
                unsafe {
                    kernels[r.len() - 1](&Tile {
                        list: list.as_ptr(),
                        blocks,
                        a: v.add(point * stride + first * BLOCK),
                        b: weights.add(point * blocks * size),
                        c: m.add(first * tile_len + point * self.panels.full()),
                        rows: rows.as_ptr(),
                        accumulate: false,
                        cols: width,
                        cold: false,
                    });
                }
            }
        }
        let visitor = OutputVisitor::<S> {
            pass: self,
            set,
            products: m,
            width,
            c0: j * self.panels.full(),
            simd: PhantomData,
        };
        self.finisher.visit(self.output, visitor);
    }
}

struct OutputVisitor<'a, S> {
    pass: &'a Pass<'a>,
    set: &'a Set,
    /// `[tile][point][channel of a full panel]`
    products: *const f32,
    width: usize,
    c0: usize,
    simd: PhantomData<S>,
}

impl<S: Simd> FinishVisitor for OutputVisitor<'_, S> {
    fn visit<F: Finish>(self, finish: F) {
        // SAFETY: the instruction set is available; the products are there, and this task alone writes these
        // tiles' channels.
        unsafe { S::run(OutputJob { finish, visitor: &self }) }
    }
}

/// Tiles ahead whose outputs are asked for.
const AHEAD: usize = 6;

struct OutputJob<'a, F, S> {
    finish: F,
    visitor: &'a OutputVisitor<'a, S>,
}

impl<F: Finish, U> OutputJob<'_, F, U> {
    /// Finishes all tiles, vector by vector: the vectors of a tile share cache lines.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const PART: bool>(&self) {
        let v = self.visitor;
        let (pass, t, tiles) = (v.pass, &v.pass.tiling, &v.set.tiles);
        let channels = pass.weights.channels();
        let lanes = || (0..v.width).step_by(S::LANES);
        // The channels of a full panel: constant, so that a tile's points are at constant distances.
        let full = 2 * S::LANES;
        debug_assert_eq!(full, pass.panels.full());
        let counted = |lane: usize| (channels - v.c0 - lane).min(S::LANES);
        // SAFETY: the caller's promise; outputs outside the map are not written.
        unsafe {
            let mut sums = [Sums { shift: S::zero(), first: S::zero(), second: S::zero() }; 2];
            for (lane, sums) in lanes().zip(&mut sums) {
                *sums = pass.partials.load::<S>(v.set.index, v.c0 + lane, counted(lane));
            }
            let (step, row_step) = (channels, t.w * channels);
            let (mut place, mut ahead) = (t.locate(tiles.start), t.locate(tiles.start + AHEAD));
            let mut positions = v.set.order.positions();
            for i in 0..tiles.len() {
                if i + AHEAD < tiles.len() {
                    for line in (0..v.width).step_by(BLOCK) {
                        let mut at = ahead.pixel * step + v.c0 + line;
                        for _ in 0..SIDE {
                            (0..SIDE).for_each(|q| self.finish.prefetch::<S>(at + q * step));
                            at += row_step;
                        }
                    }
                }
                let outputs = t.outputs(place);
                let products = v.products.add(positions.next(outputs) * PLACES * full);
                for (lane, of_vector) in lanes().zip(&mut sums) {
                    let (c, n) = (v.c0 + lane, counted(lane));
                    let products = products.add(lane);
                    // A copy, which can stay in registers.
                    let mut sums = *of_vector;
                    let mut at = place.pixel * step + c;
                    if outputs == (SIDE, SIDE) {
                        let get = |r: usize, q: usize| S::load(products.add((r * 6 + q) * full));
                        let half = columns::<S, OutputSide, SIDE, SIDE>(get);
                        for r in 0..SIDE {
                            let row = row::<S, OutputSide, SIDE>(&half, r);
                            if i == 0 && r == 0 {
                                sums.shift = row[0];
                            }
                            // Constant bounds, so that outputs stay in registers.
                            for (q, &value) in row[..SIDE].iter().enumerate() {
                                self.finish.vec::<S, PART>(value, at + q * step, c, n, &mut sums);
                            }
                            at += row_step;
                        }
                    } else {
                        let mut done = Outputs::uninit();
                        let done = done.as_mut_ptr().cast::<f32>();
                        S::run(AnyTile {
                            outputs,
                            from: products,
                            from_steps: (6 * full, full),
                            to: done,
                            to_steps: (SIDE * BLOCK, BLOCK),
                            side: PhantomData::<OutputSide>,
                        });
                        let done = |r: usize, q: usize| S::load(done.add((r * SIDE + q) * BLOCK));
                        if i == 0 {
                            sums.shift = done(0, 0);
                        }
                        for r in 0..SIDE.min(t.h - place.y0) {
                            for q in 0..SIDE.min(t.w - place.x0) {
                                self.finish.vec::<S, PART>(done(r, q), at + q * step, c, n, &mut sums);
                            }
                            at += row_step;
                        }
                    }
                    *of_vector = sums;
                }
                place.advance(t);
                ahead.advance(t);
            }
            for (lane, sums) in lanes().zip(&sums) {
                pass.partials.store::<S>(v.set.index, v.c0 + lane, counted(lane), sums);
            }
        }
    }
}

impl<F: Finish, U> Job for OutputJob<'_, F, U> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let v = self.visitor;
        // SAFETY: the maker of the job promises it.
        unsafe {
            if v.pass.weights.channels() - v.c0 >= v.width {
                self.tiles::<S, false>()
            } else {
                self.tiles::<S, true>()
            }
        }
    }
}
