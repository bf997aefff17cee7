//! 3×3 convolutions of stride 1 by Winograd's F(4×4, 3×3): a quarter of the multiplications, forward and data
//! passes. Those of stride 2 by F(4×4, 2×2) of even and odd pixels: 56% of them, see the module `two_taps`.
//!
//! Some tiles of the source are transformed into scratch memory, multiplied with the transformed weights, point by point
//! and panel by panel, and each panel's products are transformed into outputs, which are finished in registers. A task
//! has some tiles, or, where tiles are few, a panel. Errors are about 15 to 45 times those of a direct sum. Tiles at the
//! lower and right edges compute no more outputs than the map has, at fewer points; a map of 2×2 pixels is a tile of its
//! own kind, of 9 points.

use std::marker::PhantomData;
use std::ops::Range;

use super::Source;
use super::any_tile::AnyTile;
use super::finish::{Finish, FinishVisitor, Finisher, Output, Partials, PartialsPtr, Sums};
use super::pack::{Direction, Panels, Weights};
use super::tiles::transform_inputs;
use super::tiling::{Grid, Place, SIDE, TileOrder, Tiling, Transform, of_phase, point_stride};
use super::transforms::{Filter, Output as OutputSide, Outputs, POINTS, columns, outputs, row};
use super::two_taps::{ANY, Phase};
use crate::Context;
use crate::activations::Activations;
use crate::micro::Tile;
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{Shared, part, parts, sweep, tasks, with_scratch};

struct Pass<'a> {
    source: Source<'a>,
    weights: Weights<'a>,
    tiling: Tiling,
    /// The kinds of pixels that are read, and those that are written.
    sources: &'static [Phase],
    targets: &'static [Phase],
    /// For each target its points, and which of the sources have them.
    points: Vec<Vec<(usize, Vec<usize>)>>,
    /// The output's shape.
    shape: [usize; 4],
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
    stride: usize,
    out: &mut Activations,
    finisher: Finisher<'_>,
) -> (Partials, Vec<usize>) {
    const ALL: &[Phase] = &[ANY];
    let forward = weights.direction == Direction::Forward;
    let tiling = Tiling::new(if forward { out.shape } else { source.shape() }, stride);
    let (sources, targets) = if forward { (tiling.phases(), ALL) } else { (ALL, tiling.phases()) };
    let rows = S::TILE_ROWS;
    let few_tiles = tiling.count < weights.channels() * targets.len();
    let having = |phases: &[Phase], point: usize| -> Vec<usize> {
        (0..phases.len()).filter(|&i| tiling.phase_has_point(phases[i], point)).collect()
    };
    let points_of = |target: &Phase| -> Vec<(usize, Vec<usize>)> {
        let points = (0..POINTS).filter(|&point| tiling.phase_has_point(*target, point));
        points.map(|point| (point, having(sources, point))).collect()
    };
    let points: Vec<_> = targets.iter().map(points_of).collect();
    // The first kind of pixels has all points.
    let transformed: usize = points[0].iter().map(|(_, sources)| sources.len()).sum();
    let most =
        if few_tiles { 8 * rows } else { SCRATCH / (transformed * weights.depth().next_multiple_of(BLOCK)) };
    let sets = tiling.count.div_ceil(most.clamp(rows, 8 * rows).next_multiple_of(rows));
    let mut partials = Partials::new(sets, weights.channels(), finisher.sums());
    let pass = Pass {
        source,
        weights,
        tiling,
        sources,
        targets,
        points,
        shape: out.shape,
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
        let mut weights = ctx.pool().scratch(self.panels.count() * self.weights_len());
        let shared = Shared::new(&mut weights);
        let of_panel = |j: usize| shared.offset(j * self.weights_len()).get();
        self.weights.direction.each_block(self.panels.count(), blocks, |j, block| {
            with_scratch([9 * BLOCK * self.panels.full(), 0, 0], |[taps, ..]| {
                // SAFETY: scratch memory holds nine blocks, and each block is written once.
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
    }

    /// First all tiles are transformed, and then each task transforms a panel of weights and computes its channels. Where
    /// tiles are few, as in deep layers, the transformed weights would take more memory than the tiles, and more time to
    /// read for every set.
    fn run_by_panels<S: Simd>(&self, ctx: &Context) {
        let most = self.tiling.count.div_ceil(self.sets);
        let longest = POINTS * self.stride(most);
        let mut tiles = ctx.pool().scratch(self.sets * longest);
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
    }

    fn set(&self, index: usize) -> Set {
        let tiles = part(self.tiling.count, self.sets, index);
        Set { index, order: TileOrder::new(&self.tiling, tiles.clone()), tiles }
    }

    /// Blocks that a point's products are summed over.
    fn depth_blocks(&self) -> usize {
        self.sources.len() * self.weights.blocks()
    }

    /// The f32 of a panel of transformed weights.
    fn weights_len(&self) -> usize {
        self.targets.len() * POINTS * self.depth_blocks() * BLOCK * self.panels.full()
    }

    /// The f32 of transformed tiles from one point to the next.
    fn stride(&self, tiles: usize) -> usize {
        point_stride(tiles, self.depth_blocks() * BLOCK)
    }

    /// The f32 of a panel's products: tile by tile, for its output reads all points at constant distances.
    fn products_len(&self, tiles: usize) -> usize {
        tiles * PLACES * self.panels.full()
    }

    /// Transforms a block of a panel's weights: `[target][point][source][block][16][width]`, only points that tiles have.
    ///
    /// # Safety
    /// The instruction set must be available, and `taps` and `out` have room for nine blocks, and for the panel; no other
    /// task writes this block.
    unsafe fn transform_weights<S: Simd>(&self, j: usize, block: usize, taps: *mut f32, out: *mut f32) {
        let width = self.panels.width(j);
        let size = BLOCK * width;
        let (blocks, depth_blocks) = (self.weights.blocks(), self.depth_blocks());
        // SAFETY: the caller's promise.
        unsafe {
            let dst = std::slice::from_raw_parts_mut(taps, 9 * size);
            for (t, dst) in dst.chunks_exact_mut(size).enumerate() {
                // The data pass correlates with the filter turned by 180 degrees.
                let tap = if self.weights.direction == Direction::Backward { 8 - t } else { t };
                self.weights.block::<S>(tap, block * BLOCK, j * self.panels.full(), width, dst);
            }
            for (target, &to_phase) in self.targets.iter().enumerate() {
                for (source, &from_phase) in self.sources.iter().enumerate() {
                    let phase = (to_phase.0 + from_phase.0, to_phase.1 + from_phase.1);
                    let out = out.add((target * POINTS * depth_blocks + source * blocks + block) * size);
                    for lane in (0..size).step_by(S::LANES) {
                        S::run(AnyTile {
                            sides: of_phase(self.tiling.filter(), phase),
                            from: taps.add(lane),
                            from_steps: (3 * size, size),
                            to: out.add(lane),
                            to_steps: (6 * depth_blocks * size, depth_blocks * size),
                            side: PhantomData::<Filter>,
                        });
                    }
                }
            }
        }
    }

    /// Transforms the tiles of a set.
    ///
    /// # Safety
    /// The instruction set must be available, and `out` have room for them.
    unsafe fn transform_tiles<S: Simd>(&self, set: &Set, out: *mut f32) {
        let block_len = set.tiles.len() * BLOCK;
        for (i, &phase) in self.sources.iter().enumerate() {
            // A strided data pass reads the map that the tiles are of.
            let shape = self.source.shape();
            let of_tiles = self.tiling.strided() && phase == ANY;
            let grid = if of_tiles { Grid::outputs(shape, phase) } else { Grid::inputs(shape, phase) };
            let to = Transform {
                tiling: &self.tiling,
                channels: self.weights.depth(),
                tiles: set.tiles.clone(),
                positions: set.order.positions(),
                room: set.tiles.len(),
                point_stride: self.stride(set.tiles.len()),
                out: out.wrapping_add(i * self.weights.blocks() * block_len),
            };
            // SAFETY: the caller's promise.
            unsafe { transform_inputs::<S>(&self.source, grid, to) };
        }
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
        let rows: [usize; 32] = std::array::from_fn(|i| i * tile_len);
        let (mut list, mut listed): (Vec<(i32, i32)>, &[usize]) = (Vec::new(), &[]);
        for (target, &phase) in self.targets.iter().enumerate() {
            let weights = weights.wrapping_add(target * POINTS * self.depth_blocks() * size);
            for (point, sources) in &self.points[target] {
                if listed != sources.as_slice() {
                    let blocks = sources.iter().flat_map(|source| source * blocks..(source + 1) * blocks);
                    list = blocks.map(|b| ((b * count * BLOCK) as i32, (b * size) as i32)).collect();
                    listed = sources;
                }
                let point = *point;
                let with_point = set.order.with_point(point);
                // With few channels, dividing for each product takes as long as some of its steps.
                let tiles = with_point.len().div_ceil(S::TILE_ROWS);
                for r in parts(with_point.len(), tiles) {
                    let first = with_point.start + r.start;
                    // SAFETY: the caller's promise; all offsets are inside the buffers.
                    unsafe {
                        kernels[r.len() - 1](&Tile {
                            list: list.as_ptr(),
                            blocks: list.len(),
                            a: v.add(point * stride + first * BLOCK),
                            b: weights.add(point * self.depth_blocks() * size),
                            c: m.add(first * tile_len + point * self.panels.full()),
                            rows: rows.as_ptr(),
                            accumulate: false,
                            cols: width,
                            cold: false,
                        });
                    }
                }
            }
            let (grid, c0) = (Grid::outputs(self.shape, phase), j * self.panels.full());
            let visitor =
                OutputVisitor::<S> { pass: self, set, grid, products: m, width, c0, simd: PhantomData };
            self.finisher.visit(self.output, visitor);
        }
    }
}

struct OutputVisitor<'a, S> {
    pass: &'a Pass<'a>,
    set: &'a Set,
    /// Which pixels the outputs are.
    grid: Grid,
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
            let (grid, step) = (&v.grid, v.grid.step * channels);
            let row_step = grid.w * step;
            // With stride 1 the pixel is known.
            let pixel = |place: Place| if grid.step == 1 { place.pixel } else { grid.pixel(place) as usize };
            let (mut place, mut ahead) = (t.locate(tiles.start), t.locate(tiles.start + AHEAD));
            let mut positions = v.set.order.positions();
            for i in 0..tiles.len() {
                if i + AHEAD < tiles.len() {
                    for line in (0..v.width).step_by(BLOCK) {
                        let mut at = pixel(ahead) * channels + v.c0 + line;
                        for _ in 0..SIDE {
                            (0..SIDE).for_each(|q| self.finish.prefetch::<S>(at + q * step));
                            at += row_step;
                        }
                    }
                }
                let sides = of_phase(t.sides(place), grid.phase);
                let products = v.products.add(positions.next(sides) * PLACES * full);
                let first = pixel(place) * channels;
                for (lane, of_vector) in lanes().zip(&mut sums) {
                    let (c, n) = (v.c0 + lane, counted(lane));
                    let products = products.add(lane);
                    // A copy, which can stay in registers.
                    let mut sums = *of_vector;
                    let mut at = first + c;
                    if sides == (SIDE, SIDE) {
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
                            sides,
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
                        let (y, x) = grid.first(place);
                        let inside = (grid.inside(y, grid.h), grid.inside(x, grid.w));
                        for r in 0..outputs(sides.0).min(inside.0) {
                            for q in 0..outputs(sides.1).min(inside.1) {
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
