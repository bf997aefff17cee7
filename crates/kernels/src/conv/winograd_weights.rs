//! The weight pass of 3×3 convolutions by the adjoint of Winograd's F(4×4, 3×3), and with stride 2 by that of
//! F(4×4, 2×2) of even and odd pixels, see the module `two_taps`.
//!
//! Tiles of both operands are transformed, their products are summed point by point, and the sums are transformed back.
//! With few channels, a task does all of it for some tiles, a few at a time: the sums of all points stay in its cache, and
//! tasks' results are added in order. With more, tasks first transform some hundred tiles, and then each sums a point of all
//! weights, or all points of a block of them.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::Source;
use super::any_tile::AnyTile;
use super::grad_tiles::transform_gradients;
use super::tiles::transform_inputs;
use super::tiling::{Grid, Positions, SIDE, TileOrder, Tiling, Transform, of_phase, point_stride};
use super::transforms::{FilterAdjoint, LONE, POINTS, Side, two_sided};
use super::two_taps::Phase;
use super::weights::add_sets;
use crate::Context;
use crate::micro::GradTile;
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{Shared, part, sweep, tasks, with_scratch};

/// Tasks to aim for.
const TASKS: usize = 12;

/// From so many weights at a point on, a task does not take all of them: the sums would not stay in its cache.
const MANY: usize = 4096;

/// Where tasks share transformed tiles: the f32 of tiles that there are at a time, the tiles that a task transforms, and the
/// channels of a block of weights.
const TRANSFORMED: usize = 1 << 20;
const SET: usize = 16;
const BLOCK_ROWS: usize = 64;
const BLOCK_COLUMNS: usize = 32;

/// Tiles that a product sums over before it turns to the next rows: their inputs stay in the first-level cache.
const DEPTH: usize = 128;

struct Pass<'a> {
    x: Source<'a>,
    dy: Source<'a>,
    tiling: Tiling,
    c_in: usize,
    c_out: usize,
    /// The kinds of pixels of the input.
    phases: &'static [Phase],
    /// Output and input channels, as multiples of 16. The input's are there once for each kind of its pixels.
    rows: usize,
    columns: usize,
}

/// Adds `Σ dy ⊗ x` to `grad`, whose layout is `[c_out][3][3][c_in]`.
pub(super) fn run<S: Simd>(ctx: &Context, x: Source<'_>, dy: Source<'_>, stride: usize, grad: &mut [f32]) {
    let (c_in, c_out) = (x.shape()[3], dy.shape()[3]);
    let [columns, rows] = [c_in, c_out].map(|channels| channels.next_multiple_of(BLOCK));
    let tiling = Tiling::new(dy.shape(), stride);
    let phases = tiling.phases();
    let pass = Pass { x, dy, tiling, c_in, c_out, phases, rows, columns: phases.len() * columns };
    if rows * columns < MANY {
        pass.run_by_tiles::<S>(ctx, grad);
    } else {
        pass.run_by_weights::<S>(ctx, grad);
    }
}

impl Pass<'_> {
    /// Each task takes some tiles and all weights.
    fn run_by_tiles<S: Simd>(&self, ctx: &Context, grad: &mut [f32]) {
        let &Self { rows, columns, .. } = self;
        let sets = TASKS.min(self.tiling.count.div_ceil(32));
        let chunk = (4096 / rows).clamp(32, 64);
        let len = grad.len();
        let task = |set: usize, out: Shared<f32>, add: bool| {
            let tiles = part(self.tiling.count, sets, set);
            let chunks = tiles.len().div_ceil(chunk);
            let most = tiles.len().div_ceil(chunks);
            let lens = [point_stride(most, rows), point_stride(most, columns), point_stride(rows, columns)];
            with_scratch(lens.map(|len| POINTS * len), |[y, x, sums]| {
                let block = Block { rows: 0..rows, columns: 0..columns, sums };
                for i in 0..chunks {
                    let range = part(tiles.len(), chunks, i);
                    let tiles = tiles.start + range.start..tiles.start + range.end;
                    let order = TileOrder::new(&self.tiling, tiles.clone());
                    let operands = Operands { order, count: tiles.len(), y, x };
                    // SAFETY: the instruction set is available, and scratch memory has room; all tiles are transformed
                    // before they are multiplied.
                    unsafe {
                        self.transform::<S>(&operands, tiles, order.positions());
                        for point in self.points() {
                            self.add_products::<S>(&operands, &block, 0..rows, point, i > 0);
                        }
                    }
                }
                // SAFETY: the instruction set is available; no other task writes this set.
                unsafe {
                    S::run(Back { pass: self, block: &block, rows: 0..self.c_out, out: out.get(), add })
                }
            });
        };
        if sets == 1 {
            task(0, Shared::new(grad), true);
        } else {
            let mut partial = ctx.pool().scratch(sets * len);
            let out = Shared::new(&mut partial);
            sweep(sets, |set| task(set, out.offset(set * len), false));
            add_sets::<S>(&partial, grad);
        }
    }

    /// Tasks transform tiles, and then each takes a point of all weights, or, where they are enough, a block of them.
    fn run_by_weights<S: Simd>(&self, ctx: &Context, grad: &mut [f32]) {
        let (count, columns) = (self.tiling.count, BLOCK_COLUMNS.max(S::GRAD_COLS));
        let [down, across] = [self.rows.div_ceil(BLOCK_ROWS), self.columns.div_ceil(columns)];
        let points: Vec<usize> = self.points().collect();
        let by_points = down * across < TASKS;
        // Maps of 2×2 pixels have few points.
        let row_parts = TASKS.div_ceil(points.len()).min(self.rows / BLOCK);
        let most = (TRANSFORMED / (POINTS * (self.rows + self.columns))).max(DEPTH);
        let pieces = count.div_ceil(most).max(1);
        let longest = count.div_ceil(pieces);
        let lens = [
            point_stride(longest, self.rows),
            point_stride(longest, self.columns),
            if by_points { point_stride(self.rows, self.columns) } else { 0 },
        ];
        let mut buffers = lens.map(|len| ctx.pool().scratch(POINTS * len));
        let [y, x, sums] = buffers.each_mut().map(|buffer| Shared::new(buffer));
        let out = Shared::new(grad);
        let all = || Block { rows: 0..self.rows, columns: 0..self.columns, sums: sums.get() };
        for piece in 0..pieces {
            let tiles = part(count, pieces, piece);
            let order = TileOrder::new(&self.tiling, tiles.clone());
            let operands = || Operands { order, count: tiles.len(), y: y.get(), x: x.get() };
            let sets = tiles.len().div_ceil(SET);
            sweep(sets, |set| {
                let range = part(tiles.len(), sets, set);
                let (first, end) = (tiles.start + range.start, tiles.start + range.end);
                let positions = order.positions_after(&self.tiling, tiles.start..first);
                // SAFETY: the instruction set is available, and the buffers have room; each tile is in one set.
                unsafe { self.transform::<S>(&operands(), first..end, positions) };
            });
            if by_points {
                tasks(points.len() * row_parts, |task| {
                    let blocks = part(self.rows / BLOCK, row_parts, task % row_parts);
                    let rows = blocks.start * BLOCK..blocks.end * BLOCK;
                    let point = points[task / row_parts];
                    // SAFETY: the instruction set is available, and all tiles are transformed; each task has its own sums.
                    unsafe { self.add_products::<S>(&operands(), &all(), rows, point, piece > 0) };
                });
                continue;
            }
            tasks(down * across, |task| {
                let (row, column) = (task / across * BLOCK_ROWS, task % across * columns);
                let rows = row..(row + BLOCK_ROWS).min(self.rows);
                let columns = column..(column + columns).min(self.columns);
                with_scratch([POINTS * point_stride(rows.len(), columns.len()), 0, 0], |[sums, ..]| {
                    let block = Block { rows: rows.clone(), columns, sums };
                    // SAFETY: the instruction set is available, all tiles are transformed, and scratch memory has room; no
                    // other task writes this block.
                    unsafe {
                        for &point in &points {
                            self.add_products::<S>(&operands(), &block, rows.clone(), point, false);
                        }
                        S::run(Back { pass: self, block: &block, rows, out: out.get(), add: true });
                    }
                });
            });
        }
        if by_points {
            tasks(self.rows / BLOCK, |task| {
                let rows = task * BLOCK..(task + 1) * BLOCK;
                // SAFETY: the instruction set is available, and all points are summed; no other task writes these rows.
                unsafe { S::run(Back { pass: self, block: &all(), rows, out: out.get(), add: true }) };
            });
        }
    }

    /// The points that tiles have.
    fn points(&self) -> impl Iterator<Item = usize> {
        (0..POINTS).filter(|&point| self.tiling.has_point(point))
    }

    /// Transforms some tiles of both operands.
    ///
    /// # Safety
    /// The instruction set must be available, the buffers have room for the tiles, and no other task have these tiles.
    unsafe fn transform<S: Simd>(&self, operands: &Operands, tiles: Range<usize>, positions: Positions) {
        let dy = Transform {
            tiling: &self.tiling,
            channels: self.c_out,
            tiles: tiles.clone(),
            positions,
            room: operands.count,
            point_stride: point_stride(operands.count, self.rows),
            out: operands.y,
        };
        let blocks_len = self.phase_columns() * operands.count;
        let x = |i: usize| Transform {
            channels: self.c_in,
            point_stride: point_stride(operands.count, self.columns),
            out: operands.x.wrapping_add(i * blocks_len),
            ..dy.clone()
        };
        // SAFETY: the caller's promise.
        unsafe {
            for (i, &phase) in self.phases.iter().enumerate() {
                transform_inputs::<S>(&self.x, Grid::inputs(self.x.shape(), phase), x(i));
            }
            transform_gradients::<S>(&self.dy, dy.clone());
        }
    }

    /// The input channels of a kind of pixels.
    fn phase_columns(&self) -> usize {
        self.columns / self.phases.len()
    }

    /// The kind of pixels that a column is of, and the first column of the next.
    fn phase(&self, column: usize) -> (Phase, usize) {
        let phase = column / self.phase_columns();
        (self.phases[phase], (phase + 1) * self.phase_columns())
    }

    /// Sums a point's products over the tiles, for some rows of a block.
    ///
    /// # Safety
    /// The instruction set must be available, the point of all tiles be there, and the block's sums have room.
    unsafe fn add_products<S: Simd>(
        &self,
        operands: &Operands,
        block: &Block,
        rows: Range<usize>,
        point: usize,
        accumulate: bool,
    ) {
        let (count, width) = (operands.count, block.columns.len());
        let with_point = operands.order.with_point(point);
        let parts = with_point.len().div_ceil(DEPTH).max(1);
        for depth in 0..parts {
            let tiles = part(with_point.len(), parts, depth);
            let first = (with_point.start + tiles.start) * BLOCK;
            let mut c = 0;
            while c < width {
                let (phase, end) = self.phase(block.columns.start + c);
                let end = (end - block.columns.start).min(width);
                let cols = (end - c).min(S::GRAD_COLS);
                if !self.tiling.phase_has_point(phase, point) {
                    c = end;
                    continue;
                }
                let mut row = rows.start;
                for tile in S::GRAD_TILES.iter().cycle().take(rows.len() / BLOCK * S::GRAD_TILES.len()) {
                    let sum = point * block.stride() + (row - block.rows.start) * width + c;
                    let y =
                        point * point_stride(count, self.rows) + row / BLOCK * count * BLOCK + row % BLOCK;
                    let x = point * point_stride(count, self.columns) + (block.columns.start + c) * count;
                    // SAFETY: the caller's promise; all offsets are inside the buffers.
                    unsafe {
                        tile.kernels[usize::from(cols > BLOCK)](&GradTile {
                            runs: &(0, 0),
                            n_runs: 1,
                            len: tiles.len(),
                            a: operands.y.add(y + first),
                            b: operands.x.add(x + first),
                            b_block: count * BLOCK,
                            c: block.sums.add(sum),
                            row: width,
                            rows: tile.rows,
                            cols,
                            accumulate: accumulate || depth > 0,
                        });
                    }
                    row += tile.rows;
                }
                c += cols;
            }
        }
    }
}

/// Transformed tiles of both operands, `[point][block][tile][16]`, with the distances of [`point_stride`].
struct Operands {
    order: TileOrder,
    /// Tiles.
    count: usize,
    /// The outputs' gradients, and the inputs.
    y: *mut f32,
    x: *mut f32,
}

/// A block of the weights: output channels as rows, and input channels.
struct Block {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Sums over the tiles, `[point][row][column]`, with the distances of [`point_stride`].
    sums: *mut f32,
}

impl Block {
    /// The f32 from one point's sums to the next.
    fn stride(&self) -> usize {
        point_stride(self.rows.len(), self.columns.len())
    }
}

/// Memory for one vector of each tap.
type Taps = MaybeUninit<[[f32; BLOCK]; 9]>;

/// Transforms some rows of a block's sums back.
struct Back<'a> {
    pass: &'a Pass<'a>,
    block: &'a Block,
    rows: Range<usize>,
    /// All weights' gradients.
    out: *mut f32,
    /// Whether to add to what is there.
    add: bool,
}

impl Job for Back<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let Self { pass: &Pass { c_in, c_out, ref tiling, .. }, block, rows, out, add } = self;
        for o in rows.start..rows.end.min(c_out) {
            for column in block.columns.clone().step_by(S::LANES) {
                let (phase, end) = self.pass.phase(column);
                let c = column + self.pass.phase_columns() - end;
                if c >= c_in {
                    continue;
                }
                let n = (c_in - c).min(S::LANES);
                // SAFETY: there are sums of all points for these channels, and the output has this row.
                unsafe {
                    let at = (o - block.rows.start) * block.columns.len() + column - block.columns.start;
                    let sums = block.sums.add(at);
                    let get = |r: usize, q: usize| S::load(sums.add((r * 6 + q) * block.stride()));
                    let put = |r: usize, q: usize, v: S::V| {
                        let p = out.add((o * 9 + r * 3 + q) * c_in + c);
                        let old = if add { S::load_part(p, n) } else { S::zero() };
                        S::store_part(p, n, S::add(old, v));
                    };
                    if tiling.strided() {
                        let sides = of_phase(tiling.filter(), phase);
                        let mut taps = Taps::uninit();
                        let taps = taps.as_mut_ptr().cast::<f32>();
                        S::run(AnyTile {
                            sides,
                            from: sums,
                            from_steps: (6 * block.stride(), block.stride()),
                            to: taps,
                            to_steps: (3 * BLOCK, BLOCK),
                            side: PhantomData::<FilterAdjoint>,
                        });
                        for r in (0..3).filter(|&r| FilterAdjoint::gives(sides.0, r)) {
                            for q in (0..3).filter(|&q| FilterAdjoint::gives(sides.1, q)) {
                                put(r, q, S::load(taps.add((r * 3 + q) * BLOCK)));
                            }
                        }
                    } else if tiling.filter() == (LONE, LONE) {
                        two_sided!(S, FilterAdjoint, LONE, LONE, get, put);
                    } else {
                        two_sided!(S, FilterAdjoint, SIDE, SIDE, get, put);
                    }
                }
            }
        }
    }
}
