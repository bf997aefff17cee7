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

use super::edge_tile::EdgeTile;
use super::input_tiles::transform_inputs;
use super::maps::{FilterMap, POINTS};
use super::outputs::OutputVisitor;
use super::side::{Phase, SIDE};
use super::tiling::{Grid, Place, TileOrder, Tiling, Transform, point_stride};
use crate::Context;
use crate::activations::Activations;
use crate::conv::filters::{Direction, FilterBlock, Filters, Panels};
use crate::conv::finish::{Finisher, OutputPtr};
use crate::conv::kept::{Layout, Weights};
use crate::conv::partials::{Partials, PartialsPtr};
use crate::conv::plan::{Algorithm, WinogradOrder};
use crate::conv::{Product, Source};
use crate::micro::{NextWeights, ProductTile};
use crate::simd::{BLOCK, Simd};
use crate::work::{Shared, part, parts, sweep, tasks, with_scratch};

pub(super) struct WinogradProduct<'a, S> {
    simd: S,
    source: Source<'a>,
    pub filters: Filters<'a>,
    pub tiling: Tiling,
    /// The kinds of pixels that are read, and those that are written.
    sources: &'static [Phase],
    targets: &'static [Phase],
    /// For each target its points, and which of the sources have them.
    points: Vec<Vec<(usize, Vec<usize>)>>,
    /// The output's shape.
    shape: [usize; 4],
    pub panels: Panels,
    output: OutputPtr,
    finisher: Finisher<'a>,
    pub partials: PartialsPtr,
    /// Into how many parts tiles are cut.
    tile_parts: usize,
    /// Whether weights come from memory, a panel's once: kept ones, which no task has made in its cache.
    reads_memory: bool,
}

/// The f32 of transformed tiles that a task keeps: together with products and weights they should stay in the
/// second-level cache.
const SCRATCH: usize = 64 << 10;

/// Places for a tile's products: one more than needed, so that tiles do not fall on the same cache sets.
pub(super) const PLACES: usize = POINTS + 1;

/// Tasks to aim for.
const TASKS: usize = 12;

/// Runs a pass; returns the sums of each part, and the values per channel behind each of them.
pub(in crate::conv) fn run<S: Simd>(
    simd: S,
    ctx: &Context,
    product: &Product<'_>,
    out: &mut Activations,
) -> (Partials, Vec<usize>) {
    product.check(out);
    const ALL: &[Phase] = &[Phase::ANY];
    let (source, filters, finisher) = (product.source, product.filters(), product.finisher);
    let tiling = Tiling::new(product.spec.output_shape(product.input), product.spec.stride);
    let (sources, targets) = match product.direction {
        Direction::Forward => (tiling.phases(), ALL),
        Direction::Backward => (ALL, tiling.phases()),
    };
    let rows = S::TILE_ROWS;
    let by_panels = product.plan.algorithm == Algorithm::Winograd(WinogradOrder::Panels);
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
    let panels = Panels::new::<S>(filters.channels());
    let most = match (by_panels, product.weights.kept) {
        (true, None) => 8 * rows,
        // A part is transformed by one thread, and its panels are multiplied by one each: a single image should have several.
        (true, Some(_)) => tiling.count.div_ceil(TASKS.div_ceil(panels.count())),
        (false, _) => SCRATCH / (transformed * filters.depth().next_multiple_of(BLOCK)),
    };
    let tile_parts = tiling.count.div_ceil(most.clamp(rows, 8 * rows).next_multiple_of(rows));
    let mut partials = Partials::new(tile_parts, filters.channels(), finisher.sums());
    let pass = WinogradProduct {
        simd,
        source,
        filters,
        tiling,
        sources,
        targets,
        points,
        shape: out.shape,
        panels,
        output: OutputPtr::new(out),
        finisher,
        partials: partials.share(),
        tile_parts,
        reads_memory: by_panels && product.weights.kept.is_some(),
    };
    if by_panels {
        pass.run_by_panels(ctx, product.weights);
    } else {
        pass.run_by_tiles(ctx, product.weights);
    }
    let values = |place: Place| SIDE.min(tiling.h - place.y0) * SIDE.min(tiling.w - place.x0);
    let counts =
        (0..tile_parts).map(|i| tiling.places(part(tiling.count, tile_parts, i)).map(values).sum()).collect();
    (partials, counts)
}

/// A part of the tiles.
pub(super) struct TilePart {
    pub index: usize,
    pub tiles: Range<usize>,
    pub order: TileOrder,
}

impl<S: Simd> WinogradProduct<'_, S> {
    /// The words of all transformed weights, and how they lie.
    fn all_weights(&self) -> (usize, Layout) {
        let (rows, columns) = self.tiling.filter();
        (self.panels.count() * self.weights_len(), Layout::Winograd([rows as u8, columns as u8]))
    }

    /// Transforms all weights.
    fn transform_all(&self, weights: &mut [f32]) {
        assert_eq!(weights.len(), self.all_weights().0, "transformed weights");
        let (blocks, shared) = (self.filters.blocks(), Shared::new(weights));
        self.filters.direction().each_block(self.panels.count(), blocks, |j, block| {
            with_scratch([9 * BLOCK * self.panels.full(), 0, 0], |[taps, ..]| {
                let of_panel = shared.offset(j * self.weights_len()).get();
                // SAFETY: scratch memory holds nine blocks, and each block is written once.
                unsafe { self.transform_weights(j, block, taps, of_panel) };
            });
        });
    }

    /// First all weights are transformed, and then each task transforms some tiles and computes their outputs.
    fn run_by_tiles(&self, ctx: &Context, weights: Weights<'_>) {
        let (len, layout) = self.all_weights();
        let weights = weights.packed(ctx, layout, len, |words| self.transform_all(words));
        let of_panel = |j: usize| weights[j * self.weights_len()..].as_ptr();
        let panel_parts = TASKS.div_ceil(self.tile_parts).min(self.panels.count());
        sweep(self.tile_parts * panel_parts, |task| {
            let tiles = self.tile_part(task / panel_parts);
            let lens = [POINTS * self.stride(tiles.tiles.len()), self.products_len(tiles.tiles.len()), 0];
            with_scratch(lens, |[v, m, _]| {
                // SAFETY: scratch memory has room for the tiles.
                unsafe { self.transform_tiles(&tiles, v) };
                for j in part(self.panels.count(), panel_parts, task % panel_parts) {
                    // SAFETY: the tiles and weights are there, scratch memory has room for their products, and no other
                    // task has this part and panel.
                    unsafe { self.outputs(&tiles, j, of_panel(j), v, m) };
                }
            });
        });
    }

    /// First all tiles are transformed, and then each task transforms a panel of weights and computes its channels. Where
    /// tiles are few, as in deep layers, the transformed weights would take more memory than the tiles, and more time to
    /// read for every part of the tiles.
    fn run_by_panels(&self, ctx: &Context, weights: Weights<'_>) {
        let (len, layout) = self.all_weights();
        let kept = weights.kept(ctx, layout, len, |words| self.transform_all(words));
        let most = self.tiling.count.div_ceil(self.tile_parts);
        let longest = POINTS * self.stride(most);
        let mut tiles = ctx.pool().scratch(self.tile_parts * longest);
        let shared = Shared::new(&mut tiles);
        let of_part = |i: usize| shared.offset(i * longest).get();
        // SAFETY: each part has room for its tiles, which no other task has.
        sweep(self.tile_parts, |i| unsafe { self.transform_tiles(&self.tile_part(i), of_part(i)) });
        let task_parts = TASKS.div_ceil(self.panels.count()).min(self.tile_parts);
        let own = if kept.is_some() { 0 } else { self.weights_len() };
        let lens = [9 * BLOCK * self.panels.full(), own, self.products_len(most)];
        tasks(self.panels.count() * task_parts, |task| {
            let (j, task_part) = (task / task_parts, task % task_parts);
            with_scratch(lens, |[taps, own, m]| {
                let weights = match &kept {
                    Some(all) => all[j * self.weights_len()..].as_ptr(),
                    None => {
                        for block in 0..self.filters.blocks() {
                            // SAFETY: scratch memory holds nine blocks, and the panel.
                            unsafe { self.transform_weights(j, block, taps, own) };
                        }
                        own.cast_const()
                    }
                };
                for i in part(self.tile_parts, task_parts, task_part) {
                    // SAFETY: the tiles and weights are there, scratch memory has room for their products, and no other
                    // task has this part and panel.
                    unsafe { self.outputs(&self.tile_part(i), j, weights, of_part(i), m) };
                }
            });
        });
    }

    fn tile_part(&self, index: usize) -> TilePart {
        let tiles = part(self.tiling.count, self.tile_parts, index);
        TilePart { index, order: TileOrder::new(&self.tiling, tiles.clone()), tiles }
    }

    /// Blocks that a point's products are summed over.
    fn depth_blocks(&self) -> usize {
        self.sources.len() * self.filters.blocks()
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
    /// and `taps` and `out` have room for nine blocks, and for the panel; no other
    /// task writes this block.
    unsafe fn transform_weights(&self, j: usize, block: usize, taps: *mut f32, out: *mut f32) {
        let width = self.panels.width(j);
        let size = BLOCK * width;
        let (blocks, depth_blocks) = (self.filters.blocks(), self.depth_blocks());
        // SAFETY: `taps` has room for nine blocks, and `out` for the panel's points; a vector of each is read and written.
        unsafe {
            let dst = std::slice::from_raw_parts_mut(taps, 9 * size);
            for (t, dst) in dst.chunks_exact_mut(size).enumerate() {
                // The data pass correlates with the filter turned by 180 degrees.
                let tap = if self.filters.direction() == Direction::Backward { 8 - t } else { t };
                let (row, column) = (block * BLOCK, j * self.panels.full());
                self.filters.block(self.simd, FilterBlock { tap, row, column, width }, dst);
            }
            for (target, &to_phase) in self.targets.iter().enumerate() {
                for (source, &from_phase) in self.sources.iter().enumerate() {
                    let phase = to_phase.or(from_phase);
                    let out = out.add((target * POINTS * depth_blocks + source * blocks + block) * size);
                    for lane in (0..size).step_by(S::LANES) {
                        self.simd.run(EdgeTile {
                            sides: phase.of(self.tiling.filter()),
                            from: taps.add(lane),
                            from_steps: (3 * size, size),
                            to: out.add(lane),
                            to_steps: (6 * depth_blocks * size, depth_blocks * size),
                            side: PhantomData::<FilterMap>,
                        });
                    }
                }
            }
        }
    }

    /// Transforms a part of the tiles.
    ///
    /// # Safety
    /// and `out` have room for them.
    unsafe fn transform_tiles(&self, part: &TilePart, out: *mut f32) {
        let block_len = part.tiles.len() * BLOCK;
        for (i, &phase) in self.sources.iter().enumerate() {
            // A strided data pass reads the map that the tiles are of.
            let shape = self.source.shape();
            let of_tiles = self.tiling.strided() && phase == Phase::ANY;
            let grid = if of_tiles { Grid::outputs(shape, phase) } else { Grid::inputs(shape, phase) };
            let to = Transform {
                tiling: &self.tiling,
                channels: self.filters.depth(),
                tiles: part.tiles.clone(),
                positions: part.order.positions(),
                room: part.tiles.len(),
                point_stride: self.stride(part.tiles.len()),
                out: out.wrapping_add(i * self.filters.blocks() * block_len),
            };
            // SAFETY: `out` has room for the tiles of each kind of pixels, which are this task's alone.
            unsafe { transform_inputs(self.simd, &self.source, grid, to) };
        }
    }

    /// Computes a panel's outputs for a part of the tiles, from the transformed tiles `v` and the panel's weights, over scratch memory
    /// `m`.
    ///
    /// # Safety
    /// Tiles and weights must be there, and `m` have room for their products; no other task
    /// has this part and panel.
    unsafe fn outputs(&self, part: &TilePart, j: usize, weights: *const f32, v: *const f32, m: *mut f32) {
        let (count, blocks, width) = (part.tiles.len(), self.filters.blocks(), self.panels.width(j));
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
                let with_point = part.order.with_point(point);
                // With few channels, dividing for each product takes as long as some of its steps.
                let tiles = with_point.len().div_ceil(S::TILE_ROWS);
                let len = self.depth_blocks() * size;
                let b = weights.wrapping_add(point * len);
                let asked = if self.reads_memory { len } else { 0 };
                let mut next = NextWeights::new(b.wrapping_add(len), asked, tiles * list.len());
                for r in parts(with_point.len(), tiles) {
                    let first = with_point.start + r.start;
                    // SAFETY: tiles, weights and products have all points, blocks and rows that the offsets reach.
                    unsafe {
                        kernels[r.len() - 1](
                            self.simd,
                            &ProductTile {
                                list: list.as_ptr(),
                                blocks: list.len(),
                                a: v.add(point * stride + first * BLOCK),
                                b,
                                c: m.add(first * tile_len + point * self.panels.full()),
                                rows: rows.as_ptr(),
                                accumulate: false,
                                cols: width,
                                cold: false,
                                ahead: next.part(list.len()),
                            },
                        );
                    }
                }
            }
            let (grid, c0) = (Grid::outputs(self.shape, phase), j * self.panels.full());
            let visitor = OutputVisitor { pass: self, part, grid, products: m, width, c0, simd: self.simd };
            self.finisher.visit(self.output, visitor);
        }
    }
}
