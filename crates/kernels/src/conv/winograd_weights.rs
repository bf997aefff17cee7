//! The weight pass of 3×3 convolutions of stride 1 by the adjoint of Winograd's F(4×4, 3×3).
//!
//! A task takes some tiles, input channels and output channels. It transforms its tiles of both operands a few at a
//! time and adds their products, point by point, to sums that stay in its cache, and transforms those back at the
//! end. Where weights are few, tasks take different tiles; their results are added in order.

use std::marker::PhantomData;

use super::Source;
use super::tiles::TransformVisitor;
use super::tiling::{Place, SIDE, TileOrder, Tiling};
use super::transforms::{AnyTile, FilterAdjoint, LONE, OutputAdjoint, Outputs, POINTS, Side, two_sided};
use super::weights::add_sets;
use crate::Context;
use crate::load::{Load, LoadVisitor};
use crate::micro::GradTile;
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{Shared, part, sweep, with_scratch};

/// Tasks to aim for.
const TASKS: usize = 12;

/// Sums, in f32 at each point, that a task keeps.
const SUMS: usize = 4096;

struct Pass<'a> {
    x: Source<'a>,
    dy: Source<'a>,
    tiling: Tiling,
    c_in: usize,
    c_out: usize,
    /// Sets of tiles; input and output channels of a task, multiples of 16.
    sets: usize,
    columns: usize,
    rows: usize,
    /// Tiles transformed at a time.
    chunk: usize,
}

/// Adds `Σ dy ⊗ x` to `grad`, whose layout is `[c_out][3][3][c_in]`.
pub(super) fn run<S: Simd>(ctx: &Context, x: Source<'_>, dy: Source<'_>, grad: &mut [f32]) {
    let (c_in, c_out) = (x.shape()[3], dy.shape()[3]);
    let tiling = Tiling::new(dy.shape());
    let rows = c_out.next_multiple_of(BLOCK).min(128);
    let columns = c_in.next_multiple_of(S::GRAD_COLS).min((SUMS / rows).next_multiple_of(S::GRAD_COLS));
    let parts = c_out.div_ceil(rows) * c_in.div_ceil(columns);
    let sets = TASKS.div_ceil(parts).min(tiling.count.div_ceil(32));
    let chunk = (4096 / rows).clamp(32, 64);
    let pass = Pass { x, dy, tiling, c_in, c_out, sets, columns, rows, chunk };
    let len = grad.len();
    if sets == 1 {
        let out = Shared::new(grad);
        sweep(parts, |task| pass.task::<S>(0, task, out, true));
    } else {
        let mut partial = ctx.pool().take(sets * len);
        let out = Shared::new(&mut partial);
        sweep(sets * parts, |task| {
            let set = task / parts;
            pass.task::<S>(set, task % parts, out.offset(set * len), false);
        });
        add_sets::<S>(&partial, grad);
        ctx.pool().give(partial);
    }
}

impl Pass<'_> {
    fn task<S: Simd>(&self, set: usize, share: usize, out: Shared<f32>, add: bool) {
        let tiles = part(self.tiling.count, self.sets, set);
        let across = self.c_in.div_ceil(self.columns);
        let c0 = share % across * self.columns;
        let o0 = share / across * self.rows;
        let columns = self.columns.min(self.c_in - c0).next_multiple_of(BLOCK);
        let rows = self.rows.min(self.c_out - o0).next_multiple_of(BLOCK);
        let chunks = tiles.len().div_ceil(self.chunk);
        let most = tiles.len().div_ceil(chunks);
        let lens =
            [stride(most, rows), stride(most, columns), stride(rows, columns)].map(|stride| POINTS * stride);
        with_scratch(lens, |[y, x, sums]| {
            for i in 0..chunks {
                let range = part(tiles.len(), chunks, i);
                let range = (tiles.start + range.start, tiles.start + range.end);
                let count = range.1 - range.0;
                let simd = PhantomData;
                let order = TileOrder::new(&self.tiling, range.0..range.1);
                let blocks = (o0 / BLOCK, (o0 + rows) / BLOCK);
                let (tiles, out, point_stride) = (range, y, stride(count, rows));
                self.dy.visit(GradVisitor::<S> { pass: self, tiles, order, blocks, out, point_stride, simd });
                let blocks = (c0 / BLOCK, (c0 + columns) / BLOCK);
                let (out, point_stride) = (x, stride(count, columns));
                self.x.visit(TransformVisitor::<S> {
                    tiling: &self.tiling,
                    channels: self.c_in,
                    blocks,
                    tiles,
                    order,
                    out,
                    point_stride,
                    simd,
                });
                let operands = Operands { tiling: &self.tiling, order, count, y, rows, x, columns };
                // SAFETY: the instruction set is available; all points of both operands were written.
                unsafe { operands.add_products::<S>(sums, i > 0) };
            }
            let rows = (o0, (o0 + rows).min(self.c_out));
            let back = Back {
                c_in: self.c_in,
                filter: self.tiling.filter(),
                sums,
                columns,
                rows,
                c0,
                out: out.get(),
                add,
            };
            // SAFETY: the instruction set is available; no other task writes these rows and columns.
            unsafe { S::run(back) }
        });
    }
}

/// The f32 from one point to the next where each has `rows` times `columns`: a line more than needed, so that points do
/// not fall on the same cache sets.
fn stride(rows: usize, columns: usize) -> usize {
    rows * columns + BLOCK
}

/// Transformed tiles of both operands, `[point][block][tile][16]`, with the distances of [`stride`].
struct Operands<'a> {
    tiling: &'a Tiling,
    order: TileOrder,
    /// Tiles.
    count: usize,
    /// The outputs' gradients, and their channels.
    y: *const f32,
    rows: usize,
    /// The inputs, and their channels.
    x: *const f32,
    columns: usize,
}

impl Operands<'_> {
    /// Sums products over the tiles, point by point: `[point][row][column]`.
    ///
    /// # Safety
    /// The instruction set must be available, all points of all tiles be there, and `sums` have room.
    unsafe fn add_products<S: Simd>(&self, sums: *mut f32, accumulate: bool) {
        let &Self { tiling, order, count, y, rows, x, columns } = self;
        for point in (0..POINTS).filter(|&point| tiling.has_point(point)) {
            let with_point = order.with_point(point);
            let first = with_point.start * BLOCK;
            for c in (0..columns).step_by(S::GRAD_COLS) {
                let cols = (columns - c).min(S::GRAD_COLS);
                let mut o = 0;
                for tile in S::GRAD_TILES.iter().cycle().take(rows / BLOCK * S::GRAD_TILES.len()) {
                    let from = o / BLOCK * count * BLOCK + o % BLOCK;
                    // SAFETY: the caller's promise; all offsets are inside the buffers.
                    unsafe {
                        tile.kernels[usize::from(cols > BLOCK)](&GradTile {
                            runs: &(0, 0),
                            n_runs: 1,
                            len: with_point.len(),
                            a: y.add(point * stride(count, rows) + first + from),
                            b: x.add(point * stride(count, columns) + first + c * count),
                            b_block: count * BLOCK,
                            c: sums.add(point * stride(rows, columns) + o * columns + c),
                            row: columns,
                            rows: tile.rows,
                            cols,
                            accumulate,
                        });
                    }
                    o += tile.rows;
                }
            }
        }
    }
}

/// Transforms tiles of the output's gradient: `[point][block][tile][16]`, tiles in a given order. Points that a tile does
/// not have are not written.
struct GradVisitor<'a, S> {
    pass: &'a Pass<'a>,
    tiles: (usize, usize),
    order: TileOrder,
    blocks: (usize, usize),
    out: *mut f32,
    point_stride: usize,
    simd: PhantomData<S>,
}

impl<S: Simd> LoadVisitor for GradVisitor<'_, S> {
    fn visit<L: Load>(self, load: L) {
        // SAFETY: the instruction set is available; scratch memory has room for these tiles.
        unsafe { S::run(GradTiles { load: &load, to: self }) }
    }
}

/// Tiles ahead that are asked for.
const AHEAD: usize = 8;

struct GradTiles<'a, L, S> {
    load: &'a L,
    to: GradVisitor<'a, S>,
}

impl<L: Load, V> GradTiles<'_, L, V> {
    /// Transforms one vector of a tile, which computes `outputs`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const PART: bool>(
        &self,
        place: Place,
        outputs: (usize, usize),
        (c, n): (usize, usize),
        out: *mut f32,
    ) {
        let t = &self.to.pass.tiling;
        // SAFETY: the caller's promise; pixels outside the map are not read.
        unsafe {
            let (at, step) = (place.pixel * self.to.pass.c_out + c, self.to.pass.c_out);
            let load = |r: usize, q: usize| self.load.vec::<S, PART>(at + (r * t.w + q) * step, c, n);
            if !PART && outputs == (SIDE, SIDE) {
                let put =
                    |r: usize, q: usize, v: S::V| S::store(out.add((r * 6 + q) * self.to.point_stride), v);
                two_sided!(S, OutputAdjoint, SIDE, SIDE, load, put);
                return;
            }
            let mut gradients = Outputs::uninit();
            let gradients = gradients.as_mut_ptr().cast::<f32>();
            for r in (0..SIDE).filter(|&r| OutputAdjoint::reads(outputs.0, r)) {
                for q in (0..SIDE).filter(|&q| OutputAdjoint::reads(outputs.1, q)) {
                    let inside = place.y0 + r < t.h && place.x0 + q < t.w;
                    let gradient = if inside { load(r, q) } else { S::zero() };
                    S::store(gradients.add((r * SIDE + q) * BLOCK), gradient);
                }
            }
            S::run(AnyTile {
                outputs,
                from: gradients,
                from_steps: (SIDE * BLOCK, BLOCK),
                to: out,
                to_steps: (6 * self.to.point_stride, self.to.point_stride),
                side: PhantomData::<OutputAdjoint>,
            });
        }
    }
}

impl<L: Load, V> Job for GradTiles<'_, L, V> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let t = &self.to.pass.tiling;
        let count = self.to.tiles.1 - self.to.tiles.0;
        let (mut at, mut ahead) = (t.locate(self.to.tiles.0), t.locate(self.to.tiles.0 + AHEAD));
        let mut positions = self.to.order.positions();
        for _ in 0..count {
            let outputs = t.outputs(at);
            let position = positions.next(outputs);
            for c in (self.to.blocks.0 * BLOCK..self.to.blocks.1 * BLOCK).step_by(S::LANES) {
                let n = self.to.pass.c_out.saturating_sub(c).min(S::LANES);
                // A cache line holds two vectors of some instruction sets.
                if c.is_multiple_of(BLOCK) {
                    let mut first = ahead.pixel * self.to.pass.c_out + c;
                    for _ in 0..SIDE {
                        for q in 0..SIDE {
                            // SAFETY: the instruction set is available.
                            unsafe { self.load.prefetch::<S>(first + q * self.to.pass.c_out) };
                        }
                        first += t.w * self.to.pass.c_out;
                    }
                }
                // SAFETY: the maker of the job promises that the tiles exist and `out` has room.
                unsafe {
                    let out = self
                        .to
                        .out
                        .add(((c / BLOCK - self.to.blocks.0) * count + position) * BLOCK + c % BLOCK);
                    match n {
                        0 => (0..POINTS).for_each(|p| S::store(out.add(p * self.to.point_stride), S::zero())),
                        n if n == S::LANES => self.tile::<S, false>(at, outputs, (c, n), out),
                        n => self.tile::<S, true>(at, outputs, (c, n), out),
                    }
                }
            }
            at.advance(t);
            ahead.advance(t);
        }
    }
}

/// Transforms sums back.
struct Back {
    /// Input channels of the convolution, and the tiles whose filter it is.
    c_in: usize,
    filter: (usize, usize),
    /// What [`Operands::add_products`] summed, and its columns.
    sums: *const f32,
    columns: usize,
    /// Output channels, and the first input channel.
    rows: (usize, usize),
    c0: usize,
    out: *mut f32,
    /// Whether to add to what is there.
    add: bool,
}

impl Job for Back {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let c_in = self.c_in;
        let sum_stride = stride((self.rows.1 - self.rows.0).next_multiple_of(BLOCK), self.columns);
        for o in self.rows.0..self.rows.1 {
            for c in (0..self.columns.min(c_in - self.c0)).step_by(S::LANES) {
                let n = (c_in - self.c0 - c).min(S::LANES);
                // SAFETY: there are sums of all points for these channels, and the output has this row.
                unsafe {
                    let sums = self.sums.add((o - self.rows.0) * self.columns + c);
                    let get = |r: usize, q: usize| S::load(sums.add((r * 6 + q) * sum_stride));
                    let put = |r: usize, q: usize, v: S::V| {
                        let p = self.out.add((o * 9 + r * 3 + q) * c_in + self.c0 + c);
                        let old = if self.add { S::load_part(p, n) } else { S::zero() };
                        S::store_part(p, n, S::add(old, v));
                    };
                    if self.filter == (LONE, LONE) {
                        two_sided!(S, FilterAdjoint, LONE, LONE, get, put);
                    } else {
                        two_sided!(S, FilterAdjoint, SIDE, SIDE, get, put);
                    }
                }
            }
        }
    }
}
