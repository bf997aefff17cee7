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

use super::edge_tile::EdgeTile;
use super::gradient_tiles::transform_gradients;
use super::input_tiles::transform_inputs;
use super::maps::{FilterAdjointMap, POINTS, SideMap, two_sided};
use super::side::{Phase, Side, sides};
use super::tiling::{Grid, Positions, TileOrder, Tiling, Transform, point_stride};
use crate::Context;
use crate::conv::direct::gradient::add_parts;
use crate::conv::plan::{WinogradOrder, gradient_blocks};
use crate::conv::{Gradient, Source};
use crate::micro::GradientTile;
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{Shared, part, sweep, tasks, with_scratch};

/// Tasks to aim for.
const TASKS: usize = 12;

/// Where tasks share transformed tiles: the f32 of tiles that there are at a time, and the tiles that a task transforms.
const TRANSFORMED: usize = 1 << 20;
const TILES: usize = 16;

/// Tiles that a product sums over before it turns to the next rows: their inputs stay in the first-level cache.
const DEPTH: usize = 128;

struct WinogradGradient<'a, S> {
    simd: S,
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
pub(in crate::conv) fn run<S: Simd>(
    simd: S,
    ctx: &Context,
    gradient: &Gradient<'_>,
    order: WinogradOrder,
    grad: &mut [f32],
) {
    gradient.check(grad);
    let &Gradient { spec, x, dy, .. } = gradient;
    let (c_in, c_out) = (x.shape()[3], dy.shape()[3]);
    let [columns, rows] = [c_in, c_out].map(|channels| channels.next_multiple_of(BLOCK));
    let tiling = Tiling::new(dy.shape(), spec.stride);
    let phases = tiling.phases();
    let pass =
        WinogradGradient { simd, x, dy, tiling, c_in, c_out, phases, rows, columns: phases.len() * columns };
    match order {
        WinogradOrder::Tiles => pass.run_by_tiles(ctx, grad),
        WinogradOrder::Points => pass.run_by_points(ctx, grad),
        WinogradOrder::Panels | WinogradOrder::Blocks => pass.run_by_blocks(ctx, grad),
    }
}

impl<S: Simd> WinogradGradient<'_, S> {
    /// Each task takes some tiles and all weights.
    fn run_by_tiles(&self, ctx: &Context, grad: &mut [f32]) {
        let &Self { rows, columns, .. } = self;
        let tile_parts = TASKS.min(self.tiling.count.div_ceil(32));
        let at_once = (4096 / rows).clamp(32, 64);
        let len = grad.len();
        let task = |i: usize, out: Shared<f32>, add: bool| {
            let tiles = part(self.tiling.count, tile_parts, i);
            let parts = tiles.len().div_ceil(at_once);
            let most = tiles.len().div_ceil(parts);
            let lens = [point_stride(most, rows), point_stride(most, columns), point_stride(rows, columns)];
            with_scratch(lens.map(|len| POINTS * len), |[y, x, sums]| {
                let block = WeightBlock { rows: 0..rows, columns: 0..columns, sums };
                for i in 0..parts {
                    let range = part(tiles.len(), parts, i);
                    let tiles = tiles.start + range.start..tiles.start + range.end;
                    let order = TileOrder::new(&self.tiling, tiles.clone());
                    let operands = Operands { order, count: tiles.len(), y, x };
                    // SAFETY: scratch memory has room; all tiles are transformed
                    // before they are multiplied.
                    unsafe {
                        self.transform(&operands, tiles, order.positions());
                        for point in self.points() {
                            self.add_products(&operands, &block, 0..rows, point, i > 0);
                        }
                    }
                }
                // SAFETY: no other task writes this part's sums.
                unsafe {
                    self.simd.run(BackTransform {
                        pass: self,
                        block: &block,
                        rows: 0..self.c_out,
                        out: out.get(),
                        add,
                    })
                }
            });
        };
        if tile_parts == 1 {
            task(0, Shared::new(grad), true);
        } else {
            let mut partial = ctx.pool().scratch(tile_parts * len);
            let out = Shared::new(&mut partial);
            sweep(tile_parts, |i| task(i, out.offset(i * len), false));
            add_parts(self.simd, &partial, grad);
        }
    }

    /// Tasks transform tiles, and then each sums a point of all weights; in the end each transforms some rows back.
    fn run_by_points(&self, ctx: &Context, grad: &mut [f32]) {
        let points: Vec<usize> = self.points().collect();
        // Maps of 2×2 pixels have few points.
        let row_parts = TASKS.div_ceil(points.len()).min(self.rows / BLOCK);
        let mut sums = ctx.pool().scratch(POINTS * point_stride(self.rows, self.columns));
        let sums = Shared::new(&mut sums);
        let all = || WeightBlock { rows: 0..self.rows, columns: 0..self.columns, sums: sums.get() };
        self.each_tile_part(ctx, |operands, tile_part| {
            tasks(points.len() * row_parts, |task| {
                let blocks = part(self.rows / BLOCK, row_parts, task % row_parts);
                let rows = blocks.start * BLOCK..blocks.end * BLOCK;
                let point = points[task / row_parts];
                // SAFETY: all tiles are transformed; each task has its own sums.
                unsafe { self.add_products(&operands.get(), &all(), rows, point, tile_part > 0) };
            });
        });
        let out = Shared::new(grad);
        tasks(self.rows / BLOCK, |task| {
            let rows = task * BLOCK..(task + 1) * BLOCK;
            // SAFETY: all points are summed; no other task writes these rows.
            unsafe {
                self.simd.run(BackTransform { pass: self, block: &all(), rows, out: out.get(), add: true })
            };
        });
    }

    /// Tasks transform tiles, and then each sums a block of weights, and transforms it back.
    fn run_by_blocks(&self, ctx: &Context, grad: &mut [f32]) {
        const { assert!(gradient_blocks::COLUMNS.is_multiple_of(S::GRAD_COLS)) };
        let (block_rows, block_columns) = (gradient_blocks::ROWS, gradient_blocks::COLUMNS);
        let [down, across] = [self.rows.div_ceil(block_rows), self.columns.div_ceil(block_columns)];
        let out = Shared::new(grad);
        self.each_tile_part(ctx, |operands, _| {
            tasks(down * across, |task| {
                let (row, column) = (task / across * block_rows, task % across * block_columns);
                let rows = row..(row + block_rows).min(self.rows);
                let columns = column..(column + block_columns).min(self.columns);
                with_scratch([POINTS * point_stride(rows.len(), columns.len()), 0, 0], |[sums, ..]| {
                    let block = WeightBlock { rows: rows.clone(), columns, sums };
                    // SAFETY: all tiles are transformed, and scratch memory has room; no
                    // other task writes this block.
                    unsafe {
                        for point in self.points() {
                            self.add_products(&operands.get(), &block, rows.clone(), point, false);
                        }
                        self.simd.run(BackTransform {
                            pass: self,
                            block: &block,
                            rows,
                            out: out.get(),
                            add: true,
                        });
                    }
                });
            });
        });
    }

    /// Transforms as many tiles at a time as stay in the last-level cache, and calls `use_them` with them and the number of
    /// their part.
    fn each_tile_part(&self, ctx: &Context, use_them: impl Fn(&SharedOperands, usize)) {
        let count = self.tiling.count;
        let most = (TRANSFORMED / (POINTS * (self.rows + self.columns))).max(DEPTH);
        let parts = count.div_ceil(most).max(1);
        let longest = count.div_ceil(parts);
        let lens = [point_stride(longest, self.rows), point_stride(longest, self.columns)];
        let mut buffers = lens.map(|len| ctx.pool().scratch(POINTS * len));
        let [y, x] = buffers.each_mut().map(|buffer| Shared::new(buffer));
        for i in 0..parts {
            let tiles = part(count, parts, i);
            let order = TileOrder::new(&self.tiling, tiles.clone());
            let operands = SharedOperands { order, count: tiles.len(), y, x };
            let n_tasks = tiles.len().div_ceil(TILES);
            sweep(n_tasks, |task| {
                let range = part(tiles.len(), n_tasks, task);
                let (first, end) = (tiles.start + range.start, tiles.start + range.end);
                let positions = order.positions_after(&self.tiling, tiles.start..first);
                // SAFETY: the buffers have room; each tile is of one task.
                unsafe { self.transform(&operands.get(), first..end, positions) };
            });
            use_them(&operands, i);
        }
    }

    /// The points that tiles have.
    fn points(&self) -> impl Iterator<Item = usize> {
        (0..POINTS).filter(|&point| self.tiling.has_point(point))
    }

    /// Transforms some tiles of both operands.
    ///
    /// # Safety
    /// the buffers have room for the tiles, and no other task have these tiles.
    unsafe fn transform(&self, operands: &Operands, tiles: Range<usize>, positions: Positions) {
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
        // SAFETY: the buffers have room for the tiles of each kind of pixels; no other task has these tiles.
        unsafe {
            for (i, &phase) in self.phases.iter().enumerate() {
                transform_inputs(self.simd, &self.x, Grid::inputs(self.x.shape(), phase), x(i));
            }
            transform_gradients(self.simd, &self.dy, dy.clone());
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
    /// the point of all tiles be there, and the block's sums have room.
    unsafe fn add_products(
        &self,
        operands: &Operands,
        block: &WeightBlock,
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
                    // SAFETY: the tiles' point is there and the sums have room for rows and columns; offsets stay inside both.
                    unsafe {
                        tile.kernels[usize::from(cols > BLOCK)](
                            self.simd,
                            &GradientTile {
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
                            },
                        );
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

/// [`Operands`] that tasks share.
struct SharedOperands {
    order: TileOrder,
    count: usize,
    y: Shared<f32>,
    x: Shared<f32>,
}

impl SharedOperands {
    fn get(&self) -> Operands {
        Operands { order: self.order, count: self.count, y: self.y.get(), x: self.x.get() }
    }
}

/// A block of the weights: output channels as rows, and input channels.
struct WeightBlock {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Sums over the tiles, `[point][row][column]`, with the distances of [`point_stride`].
    sums: *mut f32,
}

impl WeightBlock {
    /// The f32 from one point's sums to the next.
    fn stride(&self) -> usize {
        point_stride(self.rows.len(), self.columns.len())
    }
}

/// Memory for one vector of each tap.
type Taps = MaybeUninit<[[f32; BLOCK]; 9]>;

/// Transforms some rows of a block's sums back.
struct BackTransform<'a, P> {
    pass: &'a WinogradGradient<'a, P>,
    block: &'a WeightBlock,
    rows: Range<usize>,
    /// All weights' gradients.
    out: *mut f32,
    /// Whether to add to what is there.
    add: bool,
}

impl<P: Simd> Job for BackTransform<'_, P> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let Self { pass: &WinogradGradient { c_in, c_out, ref tiling, .. }, block, rows, out, add } = self;
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
                    let get = |r: usize, q: usize| simd.load(sums.add((r * 6 + q) * block.stride()));
                    let put = |r: usize, q: usize, v: S::V| {
                        let p = out.add((o * 9 + r * 3 + q) * c_in + c);
                        let old = if add { simd.load_part(p, n) } else { simd.zero() };
                        simd.store_part(p, n, simd.add(old, v));
                    };
                    if tiling.strided() {
                        let sides = phase.of(tiling.filter());
                        let mut taps = Taps::uninit();
                        let taps = taps.as_mut_ptr().cast::<f32>();
                        simd.run(EdgeTile {
                            sides,
                            from: sums,
                            from_steps: (6 * block.stride(), block.stride()),
                            to: taps,
                            to_steps: (3 * BLOCK, BLOCK),
                            side: PhantomData::<FilterAdjointMap>,
                        });
                        for r in (0..3).filter(|&r| FilterAdjointMap::gives(sides.0, r)) {
                            for q in (0..3).filter(|&q| FilterAdjointMap::gives(sides.1, q)) {
                                put(r, q, simd.load(taps.add((r * 3 + q) * BLOCK)));
                            }
                        }
                    } else if tiling.filter() == (Side::Lone, Side::Lone) {
                        two_sided!(simd, FilterAdjointMap, sides::Lone, sides::Lone, get, put);
                    } else {
                        two_sided!(simd, FilterAdjointMap, sides::Dense4, sides::Dense4, get, put);
                    }
                }
            }
        }
    }
}
