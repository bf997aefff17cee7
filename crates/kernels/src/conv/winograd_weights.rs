//! The weight pass of 3×3 convolutions of stride 1 by the adjoint of Winograd's F(4×4, 3×3).
//!
//! Tasks take parts of the tiles and of the input channels. Each transforms its tiles of the input and of the
//! output's gradient a few at a time, and adds their products, point by point, to a sum in the transformed
//! domain; the sums of all tasks are added in order and transformed back.

use super::Source;
use super::transforms::{POINTS, filter_adjoint, output_adjoint, two_sided};
use super::winograd::{SIDE, Tiling, TransformTiles};
use crate::Context;
use crate::load::{Load, LoadVisitor};
use crate::micro::GradTile;
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{Shared, part, tasks, with_scratch};

/// Tasks to aim for.
const TASKS: usize = 12;

struct Pass<'a> {
    x: Source<'a>,
    dy: Source<'a>,
    tiling: Tiling,
    c_in: usize,
    c_out: usize,
    /// Sets of tiles, each with its own sum, and parts of the input channels.
    sets: usize,
    column_parts: usize,
    /// Tiles transformed at a time.
    chunk: usize,
}

impl Pass<'_> {
    /// f32 of one set of sums: `[point][c_out][c_in]`, both padded to blocks.
    fn set_len(&self) -> usize {
        POINTS * self.c_out.next_multiple_of(BLOCK) * self.c_in.next_multiple_of(BLOCK)
    }
}

/// Adds `Σ dy ⊗ x` to `grad`, whose layout is `[c_out][3][3][c_in]`.
pub(super) fn run<S: Simd>(ctx: &Context, x: Source<'_>, dy: Source<'_>, grad: &mut [f32]) {
    let (c_in, c_out) = (x.shape()[3], dy.shape()[3]);
    let tiling = Tiling::new(dy.shape());
    let padded = POINTS * c_out.next_multiple_of(BLOCK) * c_in.next_multiple_of(BLOCK);
    let columns = c_in.div_ceil(S::GRAD_COLS);
    // Sums of deep layers are large, so there tasks share channels out rather than tiles.
    let sets = ((3 << 19) / padded).clamp(1, TASKS).min(tiling.count.div_ceil(32));
    let column_parts = TASKS.div_ceil(sets).min(columns);
    let chunk = (4096 / c_out.max(1)).clamp(16, 64);
    let pass = Pass { x, dy, tiling, c_in, c_out, sets, column_parts, chunk };
    let mut sums = ctx.pool().take(sets * pass.set_len());
    let shared = Shared::new(&mut sums);
    tasks(sets * column_parts, |task| pass.task::<S>(task, shared));
    let grad = Shared::new(grad);
    let pieces = c_out.div_ceil(8);
    tasks(pieces, |task| {
        let rows = part(c_out, pieces, task);
        // SAFETY: the instruction set is available; each task writes its own rows of the gradient.
        unsafe { S::run(Back { pass: &pass, sums: &sums, rows, grad: grad.get() }) };
    });
    ctx.pool().give(sums);
}

impl Pass<'_> {
    fn task<S: Simd>(&self, task: usize, sums: Shared<f32>) {
        let (set, column_part) = (task / self.column_parts, task % self.column_parts);
        let tiles = part(self.tiling.count, self.sets, set);
        let columns = part(self.c_in.div_ceil(S::GRAD_COLS), self.column_parts, column_part);
        let (rows, row) = (self.c_out.next_multiple_of(BLOCK), self.c_in.next_multiple_of(BLOCK));
        // SAFETY: the sets lie one after the other.
        let sums = unsafe { sums.get().add(set * self.set_len()) };
        let chunks = tiles.len().div_ceil(self.chunk);
        for i in 0..chunks {
            let range = part(tiles.len(), chunks, i);
            let range = (tiles.start + range.start, tiles.start + range.end);
            let count = range.1 - range.0;
            // A line more than needed between points, so that they do not fall on the same cache sets.
            let (y_stride, x_stride) = (count * rows + BLOCK, count * S::GRAD_COLS + BLOCK);
            with_scratch([POINTS * y_stride, POINTS * x_stride, 0], |[y, x, _]| {
                self.dy.visit(GradVisitor::<S> {
                    pass: self,
                    tiles: range,
                    out: y,
                    point_stride: y_stride,
                    simd: std::marker::PhantomData,
                });
                for column in columns.clone() {
                    let c = column * S::GRAD_COLS;
                    let blocks = (c / BLOCK, ((c + S::GRAD_COLS) / BLOCK).min(row / BLOCK));
                    self.x.visit(InputVisitor::<S> {
                        pass: self,
                        tiles: range,
                        blocks,
                        out: x,
                        point_stride: x_stride,
                        simd: std::marker::PhantomData,
                    });
                    let cols = (blocks.1 - blocks.0) * BLOCK;
                    let kernel = S::GRAD_TILES[usize::from(cols > BLOCK)];
                    for point in 0..POINTS {
                        for o in (0..rows).step_by(S::GRAD_ROWS) {
                            // SAFETY: the instruction set is available, and all offsets are inside the buffers;
                            // this task alone writes these columns of the set.
                            unsafe {
                                kernel(&GradTile {
                                    runs: &(0, 0),
                                    n_runs: 1,
                                    len: count,
                                    a: y.add(point * y_stride + o / BLOCK * count * BLOCK + o % BLOCK),
                                    b: x.add(point * x_stride),
                                    b_block: count * BLOCK,
                                    c: sums.add((point * rows + o) * row + c),
                                    row,
                                    rows: S::GRAD_ROWS,
                                    cols,
                                    accumulate: i > 0,
                                });
                            }
                        }
                    }
                }
            });
        }
    }
}

struct InputVisitor<'a, S> {
    pass: &'a Pass<'a>,
    tiles: (usize, usize),
    blocks: (usize, usize),
    out: *mut f32,
    point_stride: usize,
    simd: std::marker::PhantomData<S>,
}

impl<S: Simd> LoadVisitor for InputVisitor<'_, S> {
    fn visit<L: Load>(self, load: L) {
        let job = TransformTiles {
            load: &load,
            tiling: &self.pass.tiling,
            channels: self.pass.c_in,
            blocks: self.blocks,
            tiles: self.tiles,
            out: self.out,
            point_stride: self.point_stride,
        };
        // SAFETY: the instruction set is available; scratch memory has room for these tiles.
        unsafe { S::run(job) }
    }
}

struct GradVisitor<'a, S> {
    pass: &'a Pass<'a>,
    tiles: (usize, usize),
    out: *mut f32,
    point_stride: usize,
    simd: std::marker::PhantomData<S>,
}

impl<S: Simd> LoadVisitor for GradVisitor<'_, S> {
    fn visit<L: Load>(self, load: L) {
        let (pass, tiles, out, point_stride) = (self.pass, self.tiles, self.out, self.point_stride);
        // SAFETY: the instruction set is available; scratch memory has room for these tiles.
        unsafe { S::run(GradTiles { load: &load, pass, tiles, out, point_stride }) }
    }
}

/// Transforms tiles of the output's gradient: `[point][block][tile][16]`.
struct GradTiles<'a, L> {
    load: &'a L,
    pass: &'a Pass<'a>,
    tiles: (usize, usize),
    out: *mut f32,
    point_stride: usize,
}

impl<L: Load> GradTiles<'_, L> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const PART: bool, const EDGE: bool>(
        &self,
        (image, y0, x0): (usize, usize, usize),
        c: usize,
        n: usize,
        out: *mut f32,
    ) {
        let t = &self.pass.tiling;
        // SAFETY: the caller's promise; pixels outside the map are not read.
        unsafe {
            let get = |r: usize, q: usize| {
                let (y, x) = (y0 + r, x0 + q);
                if EDGE && (y >= t.h || x >= t.w) {
                    return S::zero();
                }
                self.load.vec::<S, PART>(((image * t.h + y) * t.w + x) * self.pass.c_out + c, c, n)
            };
            let put = |r: usize, q: usize, v: S::V| S::store(out.add((r * 6 + q) * self.point_stride), v);
            two_sided!(S, 4 -> 6, output_adjoint::<S>, get, put);
        }
    }
}

impl<L: Load> Job for GradTiles<'_, L> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let t = &self.pass.tiling;
        let count = self.tiles.1 - self.tiles.0;
        for i in 0..count {
            let at = t.locate(self.tiles.0 + i);
            let inside = at.1 + SIDE <= t.h && at.2 + SIDE <= t.w;
            for c in (0..self.pass.c_out.next_multiple_of(BLOCK)).step_by(S::LANES) {
                let n = self.pass.c_out.saturating_sub(c).min(S::LANES);
                // SAFETY: the maker of the job promises that the tiles exist and `out` has room.
                unsafe {
                    let out = self.out.add((c / BLOCK * count + i) * BLOCK + c % BLOCK);
                    match (n == S::LANES, inside) {
                        (true, true) => self.tile::<S, false, false>(at, c, n, out),
                        (true, false) => self.tile::<S, false, true>(at, c, n, out),
                        (false, _) if n > 0 => self.tile::<S, true, true>(at, c, n, out),
                        _ => (0..POINTS).for_each(|p| S::store(out.add(p * self.point_stride), S::zero())),
                    }
                }
            }
        }
    }
}

/// Adds up the sets and transforms back.
struct Back<'a> {
    pass: &'a Pass<'a>,
    sums: &'a [f32],
    rows: std::ops::Range<usize>,
    grad: *mut f32,
}

impl Job for Back<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let pass = self.pass;
        let (rows, row) = (pass.c_out.next_multiple_of(BLOCK), pass.c_in.next_multiple_of(BLOCK));
        for o in self.rows.clone() {
            for c in (0..pass.c_in).step_by(S::LANES) {
                let n = (pass.c_in - c).min(S::LANES);
                // SAFETY: every set has all points of the padded matrix, and the gradient has this row.
                unsafe {
                    let get = |r: usize, q: usize| {
                        let at = ((r * 6 + q) * rows + o) * row + c;
                        let mut sum = S::load(self.sums.as_ptr().add(at));
                        for set in 1..pass.sets {
                            sum = S::add(sum, S::load(self.sums.as_ptr().add(set * pass.set_len() + at)));
                        }
                        sum
                    };
                    let put = |r: usize, q: usize, v: S::V| {
                        let p = self.grad.add((o * 9 + r * 3 + q) * pass.c_in + c);
                        S::store_part(p, n, S::add(S::load_part(p, n), v));
                    };
                    two_sided!(S, 6 -> 3, filter_adjoint::<S>, get, put);
                }
            }
        }
    }
}
