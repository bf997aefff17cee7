//! Convolutions of RGB images, forward and weight passes: three input channels, stride 1 or 2.
//!
//! Three channels do not fill a vector. But a row of an image is contiguous: what the taps of a row read for an output
//! pixel are `3·kernel` successive numbers, and those for the next pixel begin `3·stride` further on. So product tiles
//! run over padded copies of the rows as over a matrix of columns, and that matrix, many times as large as the image,
//! is never written. (For other small numbers of channels [`fill`](super::fill) does write it.)

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use std::ops::Range;

use super::fill::copy_line;
use super::finish::{Finisher, Output, Partials, PartialsPtr, ReadyTile};
use super::pack::{Direction, Panels, Weights, pack};
use super::{ConvSpec, Source};
use crate::Context;
use crate::activations::Activations;
use crate::load::{Load, LoadVisitor};
use crate::simd::{BLOCK, Job, Simd};
use crate::work::{Shared, part, parts, sweep, with_scratch};

/// Input channels.
const CHANNELS: usize = 3;
/// Output pixels that a task takes, about.
const PIXELS: usize = 3584;
/// Tasks of the weight pass.
const TASKS: usize = 16;
/// Numbers after a padded row: tiles may read past its end, and copies write whole vectors.
const SLACK: usize = 3 * BLOCK;
/// Most rows of a tile.
const MOST_ROWS: usize = 14;

/// Whether these kernels are for such a convolution.
pub(super) fn applies(spec: &ConvSpec) -> bool {
    spec.c_in == CHANNELS && spec.kernel > 1 && (1..=2).contains(&spec.stride)
}

/// The rows of the image that each row of the output reads.
#[derive(Clone, Copy)]
struct Rows<'a> {
    source: Source<'a>,
    spec: &'a ConvSpec,
    /// Height and width of the image, and of the output.
    image: [usize; 2],
    output: [usize; 2],
    images: usize,
}

impl<'a> Rows<'a> {
    fn new(source: Source<'a>, spec: &'a ConvSpec) -> Self {
        let [images, h, w, _] = source.shape();
        let [_, oh, ow, _] = spec.output_shape(source.shape());
        Self { source, spec, image: [h, w], output: [oh, ow], images }
    }

    /// Rows of the output, of all images.
    fn count(&self) -> usize {
        self.images * self.output[0]
    }

    /// Numbers that the taps of one row read for a pixel.
    fn depth(&self) -> usize {
        self.spec.kernel * CHANNELS
    }

    /// Numbers from one padded row to the next.
    fn stride(&self) -> usize {
        ((self.image[1] + 2 * self.spec.padding) * CHANNELS + SLACK).next_multiple_of(BLOCK)
    }

    /// Copies the rows that an output row reads, one for each vertical tap, with zeros around the image.
    ///
    /// # Safety
    /// The instruction set must be available, the output row exist, and `dst` have room.
    unsafe fn fill<S: Simd>(&self, row: usize, dst: *mut f32) {
        struct Visitor<'a, S>(&'a Rows<'a>, usize, *mut f32, std::marker::PhantomData<S>);
        impl<S: Simd> LoadVisitor for Visitor<'_, S> {
            fn visit<L: Load>(self, load: L) {
                // SAFETY: the caller's promise.
                unsafe { S::run(FillRows { load, rows: self.0, row: self.1, dst: self.2 }) }
            }
        }
        self.source.visit(Visitor::<S>(self, row, dst, std::marker::PhantomData));
    }
}

struct FillRows<'a, L> {
    load: L,
    rows: &'a Rows<'a>,
    row: usize,
    dst: *mut f32,
}

impl<L: Load> Job for FillRows<'_, L> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let r = self.rows;
        let ([h, w], stride, padding) = (r.image, r.stride(), r.spec.padding);
        let (image, top) = (self.row / r.output[0], self.row % r.output[0] * r.spec.stride);
        for tap in 0..r.spec.kernel {
            let y = (top + tap).wrapping_sub(padding);
            // SAFETY: `fill`'s caller promises room for all rows, and what is read lies in the image. A vector's overhang
            // is overwritten by what comes next, or falls on the slack.
            unsafe {
                let dst = self.dst.add(tap * stride);
                if y >= h {
                    copy_line::<S, L>(None, stride - BLOCK, dst);
                    continue;
                }
                copy_line::<S, L>(None, padding * CHANNELS, dst);
                let inside = dst.add(padding * CHANNELS);
                let at = (image * h + y) * w * CHANNELS;
                if L::PLAIN {
                    copy_line::<S, L>(Some((&self.load, at, 0)), w * CHANNELS, inside);
                } else {
                    for i in (0..w * CHANNELS).step_by(CHANNELS) {
                        copy_line::<S, L>(Some((&self.load, at + i, 0)), CHANNELS, inside.add(i));
                    }
                }
                let after = (padding + w) * CHANNELS;
                copy_line::<S, L>(None, stride - BLOCK - after, dst.add(after));
            }
        }
    }
}

/// `C[i] = Σ_tap Σ_k A[tap·row + i·STEP + k] · B[(tap·depth + k)·width ..]` for `MR` rows of `NV` vectors.
#[derive(Clone, Copy)]
struct Tile {
    a: *const f32,
    row: usize,
    taps: usize,
    depth: usize,
    b: *const f32,
    c: *mut f32,
    /// Where the products go in the end, in words from pixel to pixel, to be called into the cache meanwhile.
    target: *const f32,
    target_step: usize,
}

struct TileJob<const MR: usize, const NV: usize, const STEP: usize>(Tile);

impl<const MR: usize, const NV: usize, const STEP: usize> Job for TileJob<MR, NV, STEP> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let t = self.0;
        // SAFETY: the caller of `product` promises that all that the formula touches is valid.
        unsafe {
            for i in 0..MR {
                for j in 0..NV {
                    S::prefetch(t.target.wrapping_add(i * t.target_step + j * S::LANES));
                }
            }
            let mut acc = [[S::zero(); NV]; MR];
            let mut b = t.b;
            for tap in 0..t.taps {
                let a = t.a.add(tap * t.row);
                for k in 0..t.depth {
                    let mut bv = [S::zero(); NV];
                    for j in 0..NV {
                        bv[j] = S::load(b.add(j * S::LANES));
                    }
                    b = b.add(NV * S::LANES);
                    for i in 0..MR {
                        let av = S::splat(*a.add(i * STEP + k));
                        for j in 0..NV {
                            acc[i][j] = S::fma(av, bv[j], acc[i][j]);
                        }
                    }
                }
            }
            for i in 0..MR {
                for j in 0..NV {
                    S::store(t.c.add((i * NV + j) * S::LANES), acc[i][j]);
                }
            }
        }
    }
}

/// Runs the smallest tile of at least `rows` rows.
///
/// # Safety
/// The instruction set must be available; the operands valid for three rows more.
unsafe fn product<S: Simd, const NV: usize, const STEP: usize>(rows: usize, tile: Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            0..=4 => S::run(TileJob::<4, NV, STEP>(tile)),
            5..=6 => S::run(TileJob::<6, NV, STEP>(tile)),
            7..=8 => S::run(TileJob::<8, NV, STEP>(tile)),
            9..=10 => S::run(TileJob::<10, NV, STEP>(tile)),
            11..=12 => S::run(TileJob::<12, NV, STEP>(tile)),
            _ => S::run(TileJob::<14, NV, STEP>(tile)),
        }
    }
}

struct Forward<'a> {
    rows: Rows<'a>,
    channels: usize,
    panels: Panels,
    packed: &'a [f32],
    output: Output,
    finisher: Finisher<'a>,
    partials: PartialsPtr,
    tasks: usize,
}

/// Runs a forward pass; returns the partial sums and the values a channel behind each of them.
pub(super) fn forward<S: Simd>(
    ctx: &Context,
    spec: &ConvSpec,
    source: Source<'_>,
    weights: &[f32],
    out: &mut Activations,
    finisher: Finisher<'_>,
) -> (Partials, Vec<usize>) {
    let rows = Rows::new(source, spec);
    let panels = Panels::new::<S>(spec.c_out);
    let depth = spec.kernel * rows.depth();
    let direction = Direction::Forward;
    let matrix =
        Weights { values: weights, c_in: depth, c_out: spec.c_out, taps: 1, direction, pairs: false };
    let packed = pack::<S>(ctx, matrix, panels);
    let n_tasks = (rows.count() * rows.output[1]).div_ceil(PIXELS).clamp(1, rows.count().max(1));
    let mut partials = Partials::new(n_tasks, spec.c_out, finisher.sums());
    let pass = Forward {
        rows,
        channels: spec.c_out,
        panels,
        packed: &packed,
        output: Output::new(out),
        finisher,
        partials: partials.share(),
        tasks: n_tasks,
    };
    sweep(n_tasks, |task| pass.task::<S>(task));
    let counts = (0..n_tasks).map(|t| part(rows.count(), n_tasks, t).len() * rows.output[1]).collect();
    (partials, counts)
}

impl Forward<'_> {
    fn task<S: Simd>(&self, task: usize) {
        const { assert!(S::TILE_ROWS <= MOST_ROWS) };
        let rows = &self.rows;
        let (step, stride) = (rows.spec.stride * CHANNELS, rows.stride());
        let depth = rows.depth();
        let panel = (rows.spec.kernel * depth).next_multiple_of(BLOCK) * self.panels.full();
        let lens = [rows.spec.kernel * stride, MOST_ROWS * self.panels.full(), 0];
        with_scratch(lens, |[lines, values, _]| {
            let range = part(rows.count(), self.tasks, task);
            for row in range.clone() {
                // SAFETY: the instruction set is available; scratch memory has room for the rows.
                unsafe { rows.fill::<S>(row, lines) };
                let width = rows.output[1];
                let tiles = || parts(width, width.div_ceil(S::TILE_ROWS));
                for (j, columns) in (0..self.panels.count()).flat_map(|j| tiles().map(move |p| (j, p))) {
                    let element = (row * width + columns.start) * self.channels + j * self.panels.full();
                    let (target, target_step) = match self.output {
                        Output::F32(out) => (out.get().cast_const().wrapping_add(element), self.channels),
                        Output::Bf16(out) => {
                            (out.get().wrapping_add(element).cast_const().cast(), self.channels / 2)
                        }
                    };
                    let tile = Tile {
                        a: lines.wrapping_add(columns.start * step),
                        row: stride,
                        taps: rows.spec.kernel,
                        depth,
                        b: self.packed[j * panel..].as_ptr(),
                        c: values,
                        target,
                        target_step,
                    };
                    let run = match (self.panels.vectors(j), rows.spec.stride) {
                        (1, 1) => product::<S, 1, CHANNELS>,
                        (1, _) => product::<S, 1, { 2 * CHANNELS }>,
                        (_, 1) => product::<S, 2, CHANNELS>,
                        _ => product::<S, 2, { 2 * CHANNELS }>,
                    };
                    // SAFETY: the instruction set is available; what tiles read past a row's end is slack.
                    unsafe { run(columns.len(), tile) };
                    let at: [usize; MOST_ROWS] =
                        std::array::from_fn(|i| (row * width + columns.start + i) * self.channels);
                    let tile = ReadyTile {
                        values,
                        stride: self.panels.width(j),
                        at: &at[..columns.len()],
                        partial: None,
                        c0: j * self.panels.full(),
                        cols: self.panels.cols(j),
                        partials: self.partials,
                        task,
                        begins: row == range.start && columns.start == 0,
                    };
                    // SAFETY: the instruction set is available; the tile is complete, and its pixels belong to this task.
                    unsafe { self.finisher.tile::<S>(self.output, tile) };
                }
            }
        });
    }
}

/// `C[i] += Σ_x A[x·STEP + i] · B[x·width ..]` over the pixels of an output row, for `MR` rows of `NV` vectors, of which
/// `rows` are stored.
#[derive(Clone, Copy)]
struct GradTile {
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    pixels: usize,
    /// From one pixel of `b`, and from one row of `c`, to the next.
    width: usize,
    rows: usize,
}

struct GradJob<const MR: usize, const NV: usize, const STEP: usize>(GradTile);

impl<const MR: usize, const NV: usize, const STEP: usize> Job for GradJob<MR, NV, STEP> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let t = self.0;
        // SAFETY: the caller of `grad_product` promises that all that the formula touches is valid.
        unsafe {
            let mut acc = [[S::zero(); NV]; MR];
            let (mut a, mut b) = (t.a, t.b);
            for _ in 0..t.pixels {
                let mut bv = [S::zero(); NV];
                for j in 0..NV {
                    bv[j] = S::load(b.add(j * S::LANES));
                }
                for i in 0..MR {
                    let av = S::splat(*a.add(i));
                    for j in 0..NV {
                        acc[i][j] = S::fma(av, bv[j], acc[i][j]);
                    }
                }
                a = a.add(STEP);
                b = b.add(t.width);
            }
            for i in 0..MR {
                if i < t.rows {
                    for j in 0..NV {
                        let p = t.c.add(i * t.width + j * S::LANES);
                        S::store(p, S::add(S::load(p), acc[i][j]));
                    }
                }
            }
        }
    }
}

/// Most rows of a gradient tile: a row of taps of a 3×3 convolution.
const GRAD_ROWS: usize = 9;

/// Rows of an instruction set's gradient tiles: no more accumulators than there are registers.
const fn grad_rows<S: Simd>() -> usize {
    if S::TILE_ROWS < GRAD_ROWS { S::TILE_ROWS } else { GRAD_ROWS }
}

/// Runs the smallest gradient tile of at least `tile.rows` rows.
///
/// # Safety
/// The instruction set must be available, and the operands valid for three rows more.
unsafe fn grad_product<S: Simd, const NV: usize, const STEP: usize>(tile: GradTile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows {
            0..=4 => S::run(GradJob::<4, NV, STEP>(tile)),
            5 => S::run(GradJob::<5, NV, STEP>(tile)),
            6 => S::run(GradJob::<6, NV, STEP>(tile)),
            7 => S::run(GradJob::<7, NV, STEP>(tile)),
            _ => S::run(GradJob::<GRAD_ROWS, NV, STEP>(tile)),
        }
    }
}

/// Adds `Σ dy ⊗ x` to `grad`, whose layout is `[c_out][kernel][kernel][3]`.
pub(super) fn backward_weights<S: Simd>(
    ctx: &Context,
    spec: &ConvSpec,
    x: Source<'_>,
    dy: Source<'_>,
    grad: &mut [f32],
) {
    let rows = Rows::new(x, spec);
    let width = spec.c_out.next_multiple_of(S::LANES);
    let depth = spec.kernel * rows.depth();
    let sets = TASKS.min(rows.count()).max(1);
    let mut partial = ctx.pool().scratch(sets * depth * width);
    let out = Shared::new(&mut partial);
    sweep(sets, |set| {
        let lens = [spec.kernel * rows.stride(), rows.output[1] * width, 0];
        with_scratch(lens, |[lines, gradients, _]| {
            // SAFETY: each set has its own sums, `depth` rows of them.
            let sums = unsafe { out.get().add(set * depth * width) };
            // SAFETY: as above.
            unsafe { sums.write_bytes(0, depth * width) };
            for row in part(rows.count(), sets, set) {
                // SAFETY: the instruction set is available; scratch memory has room for the rows; tiles read a few
                // numbers past the last pixel's, which are slack.
                unsafe {
                    rows.fill::<S>(row, lines);
                    let pixels = row * rows.output[1]..(row + 1) * rows.output[1];
                    fill_gradients::<S>(&dy, pixels, width, gradients);
                    row_of_weights::<S>(&rows, lines, gradients, sums, width);
                }
            }
        });
    });
    for (o, grad) in grad.chunks_exact_mut(depth).enumerate() {
        for (k, grad) in grad.iter_mut().enumerate() {
            let of_sets = partial[k * width + o..].iter().step_by(depth * width);
            *grad += of_sets.sum::<f32>();
        }
    }
}

/// Adds one output row's share to the sums.
///
/// # Safety
/// As for [`grad_product`]; the operands hold the row.
unsafe fn row_of_weights<S: Simd>(
    rows: &Rows<'_>,
    lines: *const f32,
    gradients: *const f32,
    sums: *mut f32,
    width: usize,
) {
    let depth = rows.depth();
    let tiles = || parts(depth, depth.div_ceil(grad_rows::<S>()));
    for c in (0..width).step_by(2 * S::LANES) {
        for (tap, ks) in (0..rows.spec.kernel).flat_map(|tap| tiles().map(move |ks| (tap, ks))) {
            // SAFETY: the caller's promise.
            unsafe {
                let tile = GradTile {
                    a: lines.add(tap * rows.stride() + ks.start),
                    b: gradients.add(c),
                    c: sums.add((tap * depth + ks.start) * width + c),
                    pixels: rows.output[1],
                    width,
                    rows: ks.len(),
                };
                match (rows.spec.stride, (width - c) / S::LANES) {
                    (1, 1) => grad_product::<S, 1, CHANNELS>(tile),
                    (1, _) => grad_product::<S, 2, CHANNELS>(tile),
                    (_, 1) => grad_product::<S, 1, { 2 * CHANNELS }>(tile),
                    _ => grad_product::<S, 2, { 2 * CHANNELS }>(tile),
                }
            }
        }
    }
}

/// Copies the gradients of some pixels, `width` numbers each, zero where channels are missing.
///
/// # Safety
/// The instruction set must be available, the pixels exist, and `dst` have room.
unsafe fn fill_gradients<S: Simd>(dy: &Source<'_>, pixels: Range<usize>, width: usize, dst: *mut f32) {
    struct Fill<L> {
        load: L,
        pixels: Range<usize>,
        channels: usize,
        width: usize,
        dst: *mut f32,
    }
    impl<L: Load> Job for Fill<L> {
        type Out = ();
        #[inline(always)]
        unsafe fn call<S: Simd>(self) {
            for c in (0..self.width).step_by(S::LANES) {
                let n = (self.channels - c).min(S::LANES);
                for (i, pixel) in self.pixels.clone().enumerate() {
                    let at = pixel * self.channels + c;
                    // SAFETY: the promise of `fill_gradients`'s caller.
                    unsafe {
                        let v = if n == S::LANES {
                            self.load.vec::<S, false>(at, c, n)
                        } else {
                            self.load.vec::<S, true>(at, c, n)
                        };
                        S::store(self.dst.add(i * self.width + c), v);
                    }
                }
            }
        }
    }
    struct Visitor<S>(Range<usize>, usize, usize, *mut f32, std::marker::PhantomData<S>);
    impl<S: Simd> LoadVisitor for Visitor<S> {
        fn visit<L: Load>(self, load: L) {
            let Self(pixels, channels, width, dst, _) = self;
            // SAFETY: the promise of `fill_gradients`'s caller.
            unsafe { S::run(Fill { load, pixels, channels, width, dst }) }
        }
    }
    let channels = dy.shape()[3];
    dy.visit(Visitor::<S>(pixels, channels, width, dst, std::marker::PhantomData));
}
