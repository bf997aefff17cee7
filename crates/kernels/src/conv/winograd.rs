//! 3×3 convolutions of stride 1 by Winograd's F(4×4, 3×3): a quarter of the multiplications, forward and data
//! passes.
//!
//! A task transforms some tiles of the source into scratch memory, multiplies them with the transformed weights,
//! point by point and panel by panel, and transforms each panel's products into outputs, which are finished in
//! registers. Its errors are about 15 to 45 times those of a direct sum. Tiles at the lower and right edges compute no
//! more outputs than the map has, at fewer points; a map of 2×2 pixels is a tile of its own kind, of 9 points.

use std::marker::PhantomData;
use std::ops::Range;

use super::Source;
use super::finish::{Finish, FinishVisitor, Finisher, Output, Partials, PartialsPtr, Sums};
use super::pack::{Panels, Weights};
use super::tiles::TransformVisitor;
use super::transforms::{
    AnyTile, Filter, LONE, Output as OutputSide, Outputs, POINTS, columns, has_point, last_outputs, row,
};
use crate::Context;
use crate::activations::Activations;
use crate::micro::Tile;
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{Shared, part, sweep, tasks, with_scratch};

/// Outputs along a tile's side.
pub(super) const SIDE: usize = 4;

/// How maps are cut into tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    pub h: usize,
    pub w: usize,
    pub rows: usize,
    pub columns: usize,
    /// All tiles of all images.
    pub count: usize,
    /// [`last_outputs`].
    last: (usize, usize),
}

impl Tiling {
    pub fn new([n, h, w, _]: [usize; 4]) -> Self {
        let (rows, columns) = (h.div_ceil(SIDE), w.div_ceil(SIDE));
        Self { h, w, rows, columns, count: n * rows * columns, last: last_outputs([h, w]) }
    }

    /// Outputs that a tile computes: rows and columns.
    #[inline(always)]
    pub fn outputs(&self, place: Place) -> (usize, usize) {
        let outputs = |from: usize, side: usize, last| if from + SIDE <= side { SIDE } else { last };
        (outputs(place.y0, self.h, self.last.0), outputs(place.x0, self.w, self.last.1))
    }

    /// The tiles whose filter all tiles share.
    pub fn filter(&self) -> (usize, usize) {
        if self.last == (LONE, LONE) { self.last } else { (SIDE, SIDE) }
    }

    /// Whether any tile has a point.
    pub fn has_point(&self, point: usize) -> bool {
        let (rows, columns) = self.filter();
        has_point(rows, point / 6) && has_point(columns, point % 6)
    }

    /// Where successive tiles lie.
    pub fn places(&self, tiles: Range<usize>) -> impl Iterator<Item = Place> {
        let mut next = self.locate(tiles.start);
        tiles.map(move |_| {
            let place = next;
            next.advance(self);
            place
        })
    }

    /// Where a tile lies.
    #[inline(always)]
    pub fn locate(&self, tile: usize) -> Place {
        let (column, rest) = (tile % self.columns, tile / self.columns);
        let (image, y0, x0) = (rest / self.rows, rest % self.rows * SIDE, column * SIDE);
        Place { image, y0, x0, pixel: (image * self.h + y0) * self.w + x0 }
    }
}

/// Where a tile lies. To go from tile to tile is cheaper than to divide for each: with few channels, transforms take no
/// longer than some divisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub image: usize,
    /// Top row and left column.
    pub y0: usize,
    pub x0: usize,
    /// The top left pixel, counted through all images.
    pub pixel: usize,
}

impl Place {
    /// Moves on to the next tile; past the last one it goes to an image that is not there.
    #[inline(always)]
    pub fn advance(&mut self, t: &Tiling) {
        self.x0 += SIDE;
        self.pixel += SIDE;
        if self.x0 >= t.w {
            (self.x0, self.y0) = (0, self.y0 + SIDE);
            if self.y0 >= t.h {
                (self.y0, self.image) = (0, self.image + 1);
            }
            self.pixel = (self.image * t.h + self.y0) * t.w;
        }
    }
}

/// In which order a task keeps its tiles: such that the tiles of each point are neighbours.
///
/// First the tiles that are short of columns, then whole ones, those short of rows, and those short of both.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileOrder {
    /// Outputs along the sides of the last tiles.
    last: (usize, usize),
    /// Where each kind begins, by [`TileOrder::kind`], and how many tiles there are.
    starts: [usize; 4],
    count: usize,
}

impl TileOrder {
    pub fn new(tiling: &Tiling, tiles: Range<usize>) -> Self {
        let (last, mut kinds, count) = (tiling.last, [0; 4], tiles.len());
        for place in tiling.places(tiles) {
            kinds[Self::kind(tiling.outputs(place))] += 1;
        }
        let [whole, narrow, low, _] = kinds;
        Self { last, starts: [narrow, 0, narrow + whole, narrow + whole + low], count }
    }

    #[inline(always)]
    fn kind((rows, columns): (usize, usize)) -> usize {
        usize::from(columns < SIDE) + 2 * usize::from(rows < SIDE)
    }

    /// Positions for tiles that come in the map's order.
    pub fn positions(&self) -> Positions {
        Positions { next: self.starts }
    }

    /// The positions of the tiles that have a point.
    pub fn with_point(&self, point: usize) -> Range<usize> {
        let [whole, _, low, lowest] = self.starts;
        match (has_point(self.last.0, point / 6), has_point(self.last.1, point % 6)) {
            (true, true) => 0..self.count,
            (true, false) => whole..lowest,
            (false, true) => 0..low,
            (false, false) => whole..low,
        }
    }
}

/// Gives tiles their positions in a [`TileOrder`].
pub(super) struct Positions {
    next: [usize; 4],
}

impl Positions {
    /// The position of the next tile, which computes these outputs.
    #[inline(always)]
    pub fn next(&mut self, outputs: (usize, usize)) -> usize {
        let next = &mut self.next[TileOrder::kind(outputs)];
        *next += 1;
        *next - 1
    }
}

/// Transforms the weights: `[panel][point][block][16][width]`, in a buffer of the pool; only points that tiles have.
fn transform_weights<S: Simd>(ctx: &Context, weights: Weights<'_>, tiling: &Tiling, flip: bool) -> Vec<f32> {
    let (blocks, panels) = (weights.blocks(), Panels::new::<S>(weights.channels()));
    let mut out = ctx.pool().take(POINTS * blocks * BLOCK * panels.total_width());
    let shared = Shared::new(&mut out);
    tasks(panels.count() * blocks, |task| {
        let (j, block) = (task / blocks, task % blocks);
        let width = panels.width(j);
        let size = BLOCK * width;
        with_scratch([9 * size, 0, 0], |[taps, ..]| {
            // SAFETY: scratch memory holds nine blocks, and each task writes its own block of each point.
            unsafe {
                for (t, dst) in
                    std::slice::from_raw_parts_mut(taps, 9 * size).chunks_exact_mut(size).enumerate()
                {
                    // The data pass correlates with the filter turned by 180 degrees.
                    let tap = if flip { 8 - t } else { t };
                    weights.block::<S>(tap, block * BLOCK, j * panels.full(), width, dst);
                }
                let out = shared.get().add(j * panels.full() * POINTS * blocks * BLOCK + block * size);
                for lane in (0..size).step_by(S::LANES) {
                    S::run(AnyTile {
                        outputs: tiling.filter(),
                        from: taps.add(lane),
                        from_steps: (3 * size, size),
                        to: out.add(lane),
                        to_steps: (6 * blocks * size, blocks * size),
                        side: PhantomData::<Filter>,
                    });
                }
            }
        });
    });
    out
}

struct Pass<'a> {
    source: Source<'a>,
    products: Products<'a>,
    /// Sets of tiles, and parts of the panels.
    sets: usize,
    panel_parts: usize,
}

/// The f32 of transformed tiles that a task keeps: together with products and weights they should stay in the
/// second-level cache.
const SCRATCH: usize = 128 << 10;

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
    let transformed = transform_weights::<S>(ctx, weights, &tiling, flip);
    let rows = S::TILE_ROWS;
    let points = (0..POINTS).filter(|&point| tiling.has_point(point)).count();
    let most = (SCRATCH / (points * weights.depth().next_multiple_of(BLOCK)))
        .clamp(rows, 8 * rows)
        .next_multiple_of(rows);
    let sets = tiling.count.div_ceil(most);
    let mut partials = Partials::new(sets, weights.channels(), finisher.sums());
    let products = Products {
        tiling,
        depth: weights.depth(),
        channels: weights.channels(),
        panels: Panels::new::<S>(weights.channels()),
        weights: &transformed,
        output: Output::new(out),
        finisher,
        partials: partials.share(),
    };
    let panel_parts = 12usize.div_ceil(sets).min(products.panels.count());
    let pass = Pass { source, products, sets, panel_parts };
    sweep(sets * panel_parts, |task| pass.task::<S>(task));
    let values = |place: Place| SIDE.min(tiling.h - place.y0) * SIDE.min(tiling.w - place.x0);
    let counts =
        (0..sets).map(|set| tiling.places(part(tiling.count, sets, set)).map(values).sum()).collect();
    ctx.pool().give(transformed);
    (partials, counts)
}

impl Pass<'_> {
    fn task<S: Simd>(&self, task: usize) {
        let (set, panel_part) = (task / self.panel_parts, task % self.panel_parts);
        let products = &self.products;
        let tiles = part(products.tiling.count, self.sets, set);
        let panels = part(products.panels.count(), self.panel_parts, panel_part);
        let order = TileOrder::new(&products.tiling, tiles.clone());
        let (in_stride, out_stride) = products.strides(tiles.len());
        with_scratch([POINTS * in_stride, POINTS * out_stride, 0], |[v, m, _]| {
            self.source.visit(TransformVisitor::<S> {
                tiling: &products.tiling,
                channels: products.depth,
                blocks: (0, products.depth.div_ceil(BLOCK)),
                tiles: (tiles.start, tiles.end),
                order,
                out: v,
                point_stride: in_stride,
                simd: PhantomData,
            });
            // SAFETY: scratch memory holds the transformed tiles and has room for their products.
            unsafe { products.run::<S>(tiles, order, panels, set, (v, m)) };
        });
    }
}

/// What transformed tiles are multiplied with, and where the outputs go.
#[derive(Clone, Copy)]
struct Products<'a> {
    tiling: Tiling,
    /// Channels read and written.
    depth: usize,
    channels: usize,
    panels: Panels,
    /// The transformed weights.
    weights: &'a [f32],
    output: Output,
    finisher: Finisher<'a>,
    partials: PartialsPtr,
}

impl Products<'_> {
    /// The f32 from one point to the next, in the transformed tiles and in a panel's products: a line more than needed,
    /// so that points do not fall on the same cache sets.
    fn strides(&self, tiles: usize) -> (usize, usize) {
        let blocks = self.depth.div_ceil(BLOCK);
        (tiles * blocks * BLOCK + BLOCK, tiles * self.panels.full() + BLOCK)
    }

    /// Computes the outputs of tiles in some panels' channels, from the transformed tiles `v`, over scratch memory `m`.
    ///
    /// # Safety
    /// The instruction set must be available. `v` holds all points of the tiles and `m` has room for their products, with
    /// the distances of [`strides`](Self::strides); no other task touches these outputs, or these channels of this set of
    /// partial sums.
    unsafe fn run<S: Simd>(
        &self,
        tiles: Range<usize>,
        order: TileOrder,
        panels: Range<usize>,
        set: usize,
        (v, m): (*const f32, *mut f32),
    ) {
        let (count, blocks) = (tiles.len(), self.depth.div_ceil(BLOCK));
        let (in_stride, out_stride) = self.strides(count);
        for j in panels {
            let width = self.panels.width(j);
            let size = BLOCK * width;
            let kernels = S::TILES[self.panels.vectors(j) - 1];
            let list: Vec<(i32, i32)> =
                (0..blocks).map(|b| ((b * count * BLOCK) as i32, (b * size) as i32)).collect();
            let rows: [usize; 32] = std::array::from_fn(|i| i * width);
            let weights = self.weights[j * self.panels.full() * POINTS * blocks * BLOCK..].as_ptr();
            for point in 0..POINTS {
                let with_point = order.with_point(point);
                let parts = with_point.len().div_ceil(S::TILE_ROWS);
                for p in 0..parts {
                    let r = part(with_point.len(), parts, p);
                    let first = with_point.start + r.start;
                    // SAFETY: the caller's promise; all offsets are inside the buffers.
                    unsafe {
                        kernels[r.len() - 1](&Tile {
                            list: list.as_ptr(),
                            blocks,
                            a: v.add(point * in_stride + first * BLOCK),
                            b: weights.add(point * blocks * size),
                            c: m.add(point * out_stride + first * width),
                            rows: rows.as_ptr(),
                            accumulate: false,
                            cols: width,
                            cold: false,
                        });
                    }
                }
            }
            let visitor = OutputVisitor::<S> {
                products: self,
                tiles: tiles.clone(),
                order,
                values: m,
                point_stride: out_stride,
                width,
                c0: j * self.panels.full(),
                set,
                simd: PhantomData,
            };
            self.finisher.visit(self.output, visitor);
        }
    }
}

struct OutputVisitor<'a, S> {
    products: &'a Products<'a>,
    tiles: Range<usize>,
    order: TileOrder,
    values: *const f32,
    point_stride: usize,
    width: usize,
    c0: usize,
    set: usize,
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
        let (pass, t) = (v.products, &v.products.tiling);
        let lanes = || (0..v.width).step_by(S::LANES);
        let counted = |lane: usize| (pass.channels - v.c0 - lane).min(S::LANES);
        // SAFETY: the caller's promise; outputs outside the map are not written.
        unsafe {
            let mut sums = [Sums { shift: S::zero(), first: S::zero(), second: S::zero() }; 2];
            for (lane, sums) in lanes().zip(&mut sums) {
                *sums = pass.partials.load::<S>(v.set, v.c0 + lane, counted(lane));
            }
            let (step, row_step) = (pass.channels, t.w * pass.channels);
            let (mut place, mut ahead) = (t.locate(v.tiles.start), t.locate(v.tiles.start + AHEAD));
            let mut positions = v.order.positions();
            for i in 0..v.tiles.len() {
                if i + AHEAD < v.tiles.len() {
                    for line in (0..v.width).step_by(BLOCK) {
                        let mut at = ahead.pixel * step + v.c0 + line;
                        for _ in 0..SIDE {
                            (0..SIDE).for_each(|q| self.finish.prefetch::<S>(at + q * step));
                            at += row_step;
                        }
                    }
                }
                let outputs = t.outputs(place);
                let products = v.values.add(positions.next(outputs) * v.width);
                for (lane, of_vector) in lanes().zip(&mut sums) {
                    let (c, n) = (v.c0 + lane, counted(lane));
                    let products = products.add(lane);
                    // A copy, which can stay in registers.
                    let mut sums = *of_vector;
                    let mut at = place.pixel * step + c;
                    if outputs == (SIDE, SIDE) {
                        let get = |r: usize, q: usize| S::load(products.add((r * 6 + q) * v.point_stride));
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
                            from_steps: (6 * v.point_stride, v.point_stride),
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
                pass.partials.store::<S>(v.set, v.c0 + lane, counted(lane), sums);
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
            if v.products.channels - v.c0 >= v.width {
                self.tiles::<S, false>()
            } else {
                self.tiles::<S, true>()
            }
        }
    }
}
