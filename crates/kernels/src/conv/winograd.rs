//! 3×3 convolutions of stride 1 by Winograd's F(4×4, 3×3): a quarter of the multiplications, forward and data
//! passes.
//!
//! A task transforms some tiles of the source into scratch memory, multiplies them with the transformed weights,
//! point by point and panel by panel, and transforms each panel's products into outputs, which are finished in
//! registers. Its errors are about 15 to 45 times those of a direct sum. Tiles at the lower and right edges compute no
//! more outputs than the map has, at fewer points.

use std::marker::PhantomData;

use super::Source;
use super::finish::{Finish, FinishVisitor, Finisher, Output, Partials, PartialsPtr};
use super::pack::{Panels, Weights};
use super::tiles::TransformTiles;
use super::transforms::{
    EdgeTile, Output as OutputSide, Outputs, POINTS, filter, has_point, last_outputs, output, two_sided,
};
use crate::Context;
use crate::activations::Activations;
use crate::load::{Load, LoadVisitor};
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
}

impl Tiling {
    pub fn new([n, h, w, _]: [usize; 4]) -> Self {
        let (rows, columns) = (h.div_ceil(SIDE), w.div_ceil(SIDE));
        Self { h, w, rows, columns, count: n * rows * columns }
    }

    /// Outputs that a tile computes: rows and columns.
    #[inline(always)]
    pub fn outputs(&self, place: Place) -> (usize, usize) {
        let outputs = |from: usize, side: usize| if from + SIDE <= side { SIDE } else { last_outputs(side) };
        (outputs(place.y0, self.h), outputs(place.x0, self.w))
    }

    /// Where successive tiles lie.
    pub fn places(&self, tiles: std::ops::Range<usize>) -> impl Iterator<Item = Place> {
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
    pub fn new(tiling: &Tiling, tiles: std::ops::Range<usize>) -> Self {
        let last = (last_outputs(tiling.h), last_outputs(tiling.w));
        let (mut kinds, count) = ([0; 4], tiles.len());
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
    pub fn with_point(&self, point: usize) -> std::ops::Range<usize> {
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

/// Transforms the weights: `[panel][point][block][16][width]`, in a buffer of the pool.
fn transform_weights<S: Simd>(ctx: &Context, weights: Weights<'_>, panels: Panels, flip: bool) -> Vec<f32> {
    struct Block<'a> {
        taps: &'a [f32],
        width: usize,
        out: *mut f32,
        point_stride: usize,
    }
    impl Job for Block<'_> {
        type Out = ();
        #[inline(always)]
        unsafe fn call<S: Simd>(self) {
            let size = BLOCK * self.width;
            for lane in (0..size).step_by(S::LANES) {
                // SAFETY: `taps` has nine blocks and `out` room for one at each point.
                unsafe {
                    let get = |r: usize, q: usize| S::load(self.taps.as_ptr().add((r * 3 + q) * size + lane));
                    let put = |r: usize, q: usize, v: S::V| {
                        S::store(self.out.add((r * 6 + q) * self.point_stride + lane), v);
                    };
                    two_sided!(S, 3 -> 6, filter::<S>, get, put);
                }
            }
        }
    }
    let blocks = weights.blocks();
    let mut out = ctx.pool().take(POINTS * blocks * BLOCK * panels.total_width());
    let shared = Shared::new(&mut out);
    tasks(panels.count() * blocks, |task| {
        let (j, block) = (task / blocks, task % blocks);
        let width = panels.width(j);
        let size = BLOCK * width;
        with_scratch([9 * size, 0, 0], |[taps, ..]| {
            // SAFETY: scratch memory holds nine blocks, and each task writes its own block of each point.
            unsafe {
                let taps = std::slice::from_raw_parts_mut(taps, 9 * size);
                for (t, dst) in taps.chunks_exact_mut(size).enumerate() {
                    // The data pass correlates with the filter turned by 180 degrees.
                    let tap = if flip { 8 - t } else { t };
                    weights.block::<S>(tap, block * BLOCK, j * panels.full(), width, dst);
                }
                let out = shared.get().add(j * panels.full() * POINTS * blocks * BLOCK + block * size);
                S::run(Block { taps, width, out, point_stride: blocks * size });
            }
        });
    });
    out
}

struct Pass<'a> {
    source: Source<'a>,
    tiling: Tiling,
    /// Channels read and written.
    depth: usize,
    channels: usize,
    panels: Panels,
    weights: &'a [f32],
    output: Output,
    finisher: Finisher<'a>,
    partials: PartialsPtr,
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
    let (depth, channels) = (weights.depth(), weights.channels());
    let panels = Panels::new::<S>(channels);
    let transformed = transform_weights::<S>(ctx, weights, panels, flip);
    let rows = S::TILE_ROWS;
    let most =
        (SCRATCH / (POINTS * depth.next_multiple_of(BLOCK))).clamp(rows, 8 * rows).next_multiple_of(rows);
    let sets = tiling.count.div_ceil(most);
    let mut partials = Partials::new(sets, channels, finisher.sums());
    let pass = Pass {
        source,
        tiling,
        depth,
        channels,
        panels,
        weights: &transformed,
        output: Output::new(out),
        finisher,
        partials: partials.share(),
        sets,
        panel_parts: 12usize.div_ceil(sets).min(panels.count()),
    };
    sweep(sets * pass.panel_parts, |task| pass.task::<S>(task));
    let values = |place: Place| SIDE.min(tiling.h - place.y0) * SIDE.min(tiling.w - place.x0);
    let counts =
        (0..sets).map(|set| tiling.places(part(tiling.count, sets, set)).map(values).sum()).collect();
    ctx.pool().give(transformed);
    (partials, counts)
}

impl Pass<'_> {
    fn task<S: Simd>(&self, task: usize) {
        let (set, panel_part) = (task / self.panel_parts, task % self.panel_parts);
        let tiles = part(self.tiling.count, self.sets, set);
        let panels = part(self.panels.count(), self.panel_parts, panel_part);
        let (count, blocks) = (tiles.len(), self.depth.div_ceil(BLOCK));
        let order = TileOrder::new(&self.tiling, tiles.clone());
        // A line more than needed between points, so that they do not fall on the same cache sets.
        let (in_stride, out_stride) = (count * blocks * BLOCK + BLOCK, count * self.panels.full() + BLOCK);
        with_scratch([POINTS * in_stride, POINTS * out_stride, 0], |[v, m, _]| {
            self.source.visit(TransformVisitor::<S> {
                pass: self,
                tiles: (tiles.start, tiles.end),
                order,
                out: v,
                point_stride: in_stride,
                simd: PhantomData,
            });
            for j in panels {
                let width = self.panels.width(j);
                let size = BLOCK * width;
                let kernels = S::TILES[self.panels.vectors(j) - 1];
                let list: Vec<(i32, i32)> =
                    (0..blocks).map(|b| ((b * count * BLOCK) as i32, (b * size) as i32)).collect();
                let rows: [usize; 32] = std::array::from_fn(|i| i * width);
                let weights = self.weights[j * self.panels.full() * POINTS * blocks * BLOCK..].as_ptr();
                for point in 0..POINTS {
                    let tiles = order.with_point(point);
                    let parts = tiles.len().div_ceil(S::TILE_ROWS);
                    for p in 0..parts {
                        let r = part(tiles.len(), parts, p);
                        let first = tiles.start + r.start;
                        // SAFETY: the instruction set is available, and all offsets are inside the buffers.
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
                self.finisher.visit(
                    self.output,
                    OutputVisitor::<S> {
                        pass: self,
                        tiles: tiles.clone(),
                        order,
                        products: m,
                        point_stride: out_stride,
                        width,
                        c0: j * self.panels.full(),
                        set,
                        simd: PhantomData,
                    },
                );
            }
        });
    }
}

struct TransformVisitor<'a, S> {
    pass: &'a Pass<'a>,
    tiles: (usize, usize),
    order: TileOrder,
    out: *mut f32,
    point_stride: usize,
    simd: PhantomData<S>,
}

impl<S: Simd> LoadVisitor for TransformVisitor<'_, S> {
    fn visit<L: Load>(self, load: L) {
        let job = TransformTiles {
            load: &load,
            tiling: &self.pass.tiling,
            channels: self.pass.depth,
            blocks: (0, self.pass.depth.div_ceil(BLOCK)),
            tiles: self.tiles,
            order: self.order,
            out: self.out,
            point_stride: self.point_stride,
        };
        // SAFETY: the instruction set is available; scratch memory has room for these tiles.
        unsafe { S::run(job) }
    }
}

struct OutputVisitor<'a, S> {
    pass: &'a Pass<'a>,
    tiles: std::ops::Range<usize>,
    order: TileOrder,
    products: *const f32,
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
    #[inline(always)]
    unsafe fn column<S: Simd, const PART: bool>(&self, lane: usize, n: usize) {
        let v = self.visitor;
        let (pass, t) = (v.pass, &v.pass.tiling);
        let c = v.c0 + lane;
        // SAFETY: the caller's promise; outputs outside the map are not written.
        unsafe {
            let mut sums = pass.partials.load::<S>(v.set, c, n);
            let (step, row_step) = (pass.channels, t.w * pass.channels);
            let (mut place, mut ahead) = (t.locate(v.tiles.start), t.locate(v.tiles.start + AHEAD));
            let mut positions = v.order.positions();
            for i in 0..v.tiles.len() {
                // A cache line holds two vectors of some instruction sets.
                if lane.is_multiple_of(BLOCK) && i + AHEAD < v.tiles.len() {
                    let mut at = ahead.pixel * step + c;
                    for _ in 0..SIDE {
                        (0..SIDE).for_each(|q| self.finish.prefetch::<S>(at + q * step));
                        at += row_step;
                    }
                }
                let outputs = t.outputs(place);
                let products = v.products.add(positions.next(outputs) * v.width + lane);
                let get = |r: usize, q: usize| S::load(products.add((r * 6 + q) * v.point_stride));
                let mut at = place.pixel * step + c;
                if outputs == (SIDE, SIDE) {
                    let mut done = [[S::zero(); SIDE]; SIDE];
                    two_sided_output::<S>(get, &mut done);
                    if i == 0 {
                        sums.shift = done[0][0];
                    }
                    // Constant bounds, so that outputs stay in registers.
                    for row in &done {
                        for (q, &value) in row.iter().enumerate() {
                            self.finish.vec::<S, PART>(value, at + q * step, c, n, &mut sums);
                        }
                        at += row_step;
                    }
                } else {
                    let mut done = Outputs::uninit();
                    let done = done.as_mut_ptr().cast::<f32>();
                    S::run(EdgeTile {
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
                    for r in 0..outputs.0.min(t.h - place.y0) {
                        for q in 0..outputs.1.min(t.w - place.x0) {
                            self.finish.vec::<S, PART>(done(r, q), at + q * step, c, n, &mut sums);
                        }
                        at += row_step;
                    }
                }
                place.advance(t);
                ahead.advance(t);
            }
            pass.partials.store::<S>(v.set, c, n, &sums);
        }
    }
}

/// `Aᵀ m A`: 6×6 points to 4×4 outputs.
#[inline(always)]
unsafe fn two_sided_output<S: Simd>(get: impl Fn(usize, usize) -> S::V, done: &mut [[S::V; SIDE]; SIDE]) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut half = [[S::zero(); SIDE]; 6];
        for (q, half) in half.iter_mut().enumerate() {
            *half = output::<S>([get(0, q), get(1, q), get(2, q), get(3, q), get(4, q), get(5, q)]);
        }
        for (r, done) in done.iter_mut().enumerate() {
            *done = output::<S>([half[0][r], half[1][r], half[2][r], half[3][r], half[4][r], half[5][r]]);
        }
    }
}

impl<F: Finish, U> Job for OutputJob<'_, F, U> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let v = self.visitor;
        for lane in (0..v.width).step_by(S::LANES) {
            let n = v.pass.channels.saturating_sub(v.c0 + lane).min(S::LANES);
            // SAFETY: the maker of the job promises it.
            unsafe {
                if n == S::LANES {
                    self.column::<S, false>(lane, n);
                } else if n > 0 {
                    self.column::<S, true>(lane, n);
                }
            }
        }
    }
}
