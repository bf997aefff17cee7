//! The two inner kernels: the product tile, which every forward and data pass ends in, and the gradient
//! tile, which every weight pass ends in.
//!
//! We write these ourselves because both read their left operand from blocked scratch memory
//! (`[block of 16 channels][position][16]`) that is filled once and used by every tap, which no library's
//! matrix product can; the published ones also reach only a sixth to a half of the peak on these shapes.
//! Accumulators live in registers for the whole sum: the loops over rows and vectors have constant bounds and
//! are unrolled, and results are stored without passing the accumulators on.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use crate::simd::{BLOCK, Job, Simd};

/// `C[i][..cols] (+)= Σ_b Σ_k A[a_b + 16·i + k] · B[b_b + k·width ..]` over a list of blocks of 16 channels.
pub(crate) struct ProductTile {
    /// Offsets into `a` and `b`, one pair a block.
    pub list: *const (i32, i32),
    /// Length of the list.
    pub blocks: usize,
    /// Blocked scratch, at the tile's first row.
    pub a: *const f32,
    /// Packed weights: 16 rows of the panel's width for each block.
    pub b: *const f32,
    /// The output; row `i` begins at `c + rows[i]`.
    pub c: *mut f32,
    /// Offsets of the rows.
    pub rows: *const usize,
    /// Whether the sum is added to what is there.
    pub accumulate: bool,
    /// Columns to store.
    pub cols: usize,
    /// Whether the output is likely not to be in cache.
    pub cold: bool,
    /// What to ask memory for.
    pub ahead: Ahead,
}

/// Weights that later tiles read, for which memory is asked while this one multiplies: tiles of few rows would wait for them else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// Where they begin; nothing is read there.
    pub from: *const f32,
    /// Lines of [`BLOCK`] to ask for with each block.
    pub lines: usize,
}

impl Ahead {
    /// Nothing to ask for.
    pub const NONE: Self = Self { from: std::ptr::null(), lines: 0 };
}

/// The weights after those that some tiles read, shared out among these.
pub(crate) struct NextWeights {
    next: Ahead,
    end: *const f32,
}

impl NextWeights {
    /// `len` weights from `from` on, for tiles of so many blocks in all.
    pub fn new(from: *const f32, len: usize, blocks: usize) -> Self {
        let lines = len.div_ceil(BLOCK).div_ceil(blocks.max(1));
        Self { next: Ahead { from, lines }, end: from.wrapping_add(len) }
    }

    /// The part of the next tile, which has so many blocks.
    pub fn part(&mut self, blocks: usize) -> Ahead {
        let Ahead { from, lines } = self.next;
        if from >= self.end {
            return Ahead::NONE;
        }
        self.next.from = from.wrapping_add(blocks * lines * BLOCK);
        Ahead { from, lines }
    }
}

/// A product tile's kernel.
///
/// # Safety
/// Every pointer must be valid for what the formula touches.
pub(crate) type ProductTileFn<S> = unsafe fn(S, &ProductTile);

struct ProductJob<'a, const MR: usize, const NV: usize, const PAIRS: bool>(&'a ProductTile);

impl<const MR: usize, const NV: usize, const PAIRS: bool> Job for ProductJob<'_, MR, NV, PAIRS> {
    type Out = ();

    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let t = self.0;
        // SAFETY: `ProductTileFn` says that all that the formula touches is valid; the loops touch just that.
        unsafe {
            if t.cold {
                for i in 0..MR {
                    for j in 0..NV {
                        simd.prefetch(t.c.wrapping_add(*t.rows.add(i) + j * S::LANES));
                    }
                }
            }
            let mut acc = [[simd.zero(); NV]; MR];
            for block in 0..t.blocks {
                let (a, b) = *t.list.add(block);
                let mut a = t.a.offset(a as isize);
                let mut b = t.b.offset(b as isize);
                for line in 0..t.ahead.lines {
                    simd.prefetch(t.ahead.from.wrapping_add((block * t.ahead.lines + line) * BLOCK));
                }
                for _ in 0..BLOCK / 4 {
                    for k in 0..4 {
                        let mut bv = [simd.zero(); NV];
                        for j in 0..NV {
                            bv[j] = simd.load(b.add((k * NV + j) * S::LANES));
                        }
                        for i in 0..MR {
                            let av = simd.splat(*a.add(i * BLOCK + k));
                            for j in 0..NV {
                                acc[i][j] = product::<S, PAIRS>(simd, av, bv[j], acc[i][j]);
                            }
                        }
                    }
                    a = a.add(4);
                    b = b.add(4 * NV * S::LANES);
                }
            }
            if t.cols == NV * S::LANES {
                for i in 0..MR {
                    let c = t.c.add(*t.rows.add(i));
                    for j in 0..NV {
                        let p = c.add(j * S::LANES);
                        simd.store(
                            p,
                            if t.accumulate { simd.add(simd.load(p), acc[i][j]) } else { acc[i][j] },
                        );
                    }
                }
            } else {
                for i in 0..MR {
                    let c = t.c.add(*t.rows.add(i));
                    for j in 0..NV {
                        let n = t.cols.saturating_sub(j * S::LANES).min(S::LANES);
                        let p = c.wrapping_add(j * S::LANES);
                        let old = if t.accumulate { simd.load_part(p, n) } else { simd.zero() };
                        simd.store_part(p, n, simd.add(old, acc[i][j]));
                    }
                }
            }
        }
    }
}

/// The product tile of `MR` rows and `NV` vectors.
///
/// # Safety
/// See [`ProductTileFn`].
pub(crate) unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(simd: S, t: &ProductTile) {
    // SAFETY: the tile's pointers are valid for what the formula touches.
    unsafe { simd.base().run(ProductJob::<MR, NV, false>(t)) }
}

/// The product tile of `MR` rows and `NV` vectors whose operands are words of two bf16 each.
///
/// # Safety
/// See [`ProductTileFn`].
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no instruction for it there"))]
pub(crate) unsafe fn pair_tile<S: Simd, const MR: usize, const NV: usize>(simd: S, t: &ProductTile) {
    // SAFETY: the tile's pointers are valid for what the formula touches.
    unsafe { simd.run(ProductJob::<MR, NV, true>(t)) }
}

/// One step of a sum of products, of f32 or of pairs of bf16.
#[inline(always)]
fn product<S: Simd, const PAIRS: bool>(simd: S, a: S::V, b: S::V, c: S::V) -> S::V {
    if PAIRS { simd.dot_pairs(a, b, c) } else { simd.fma(a, b, c) }
}

/// The product tiles of an instruction set, `NV` vectors wide, by number of rows.
macro_rules! tile_table {
    ($S:ty, $nv:literal; $($mr:literal)*) => {
        [$($crate::micro::tile::<$S, $mr, $nv> as $crate::micro::ProductTileFn<$S>),*]
    };
}
pub(crate) use tile_table;

/// The same for pairs of bf16.
#[cfg(target_arch = "x86_64")]
macro_rules! pair_tile_table {
    ($S:ty, $nv:literal; $($mr:literal)*) => {
        [$($crate::micro::pair_tile::<$S, $mr, $nv> as $crate::micro::ProductTileFn<$S>),*]
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use pair_tile_table;

/// `C[i][..cols] (+)= Σ_r Σ_k A[a_r + 16·k + i] · B[b_r + 16·k ..]` over runs of positions.
pub(crate) struct GradientTile {
    /// Offsets into `a` and `b`, one pair a run.
    pub runs: *const (i32, i32),
    /// The number of runs.
    pub n_runs: usize,
    /// Positions in each run.
    pub len: usize,
    /// Blocked scratch of the left operand, at the tile's first channel.
    pub a: *const f32,
    /// Blocked scratch of the right operand, at a block.
    pub b: *const f32,
    /// From one block of the right operand to the next.
    pub b_block: usize,
    /// The output.
    pub c: *mut f32,
    /// From one row of the output to the next.
    pub row: usize,
    /// Rows to store.
    pub rows: usize,
    /// Columns to store.
    pub cols: usize,
    /// Whether the sum is added to what is there.
    pub accumulate: bool,
}

/// A gradient tile's kernel.
///
/// # Safety
/// Every pointer must be valid for what the formula touches.
pub(crate) type GradientTileFn<S> = unsafe fn(S, &GradientTile);

/// The gradient tiles of a number of rows.
#[derive(Clone, Copy)]
pub(crate) struct GradientTiles<S> {
    /// Their rows.
    pub rows: usize,
    /// Kernels: [`BLOCK`] columns wide, and [`Simd::GRAD_COLS`].
    pub kernels: [GradientTileFn<S>; 2],
}

struct GradientJob<'a, const MR: usize, const NV: usize, const PAIRS: bool>(&'a GradientTile);

impl<const MR: usize, const NV: usize, const PAIRS: bool> Job for GradientJob<'_, MR, NV, PAIRS> {
    type Out = ();

    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let t = self.0;
        // SAFETY: `GradientTileFn` says that all that the formula touches is valid; the loops touch just that.
        unsafe {
            if t.accumulate {
                for i in 0..MR {
                    for j in 0..NV {
                        simd.prefetch(t.c.wrapping_add(i * t.row + j * S::LANES));
                    }
                }
            }
            let mut acc = [[simd.zero(); NV]; MR];
            for run in 0..t.n_runs {
                let (a, b) = *t.runs.add(run);
                let mut a = t.a.offset(a as isize);
                let mut b = t.b.offset(b as isize);
                for _ in 0..t.len {
                    let mut bv = [simd.zero(); NV];
                    for j in 0..NV {
                        let lane = j * S::LANES;
                        bv[j] = simd.load(b.add(lane / BLOCK * t.b_block + lane % BLOCK));
                    }
                    for i in 0..MR {
                        let av = simd.splat(*a.add(i));
                        for j in 0..NV {
                            acc[i][j] = product::<S, PAIRS>(simd, av, bv[j], acc[i][j]);
                        }
                    }
                    a = a.add(BLOCK);
                    b = b.add(BLOCK);
                }
            }
            if t.rows == MR && t.cols == NV * S::LANES {
                for i in 0..MR {
                    for j in 0..NV {
                        let p = t.c.add(i * t.row + j * S::LANES);
                        simd.store(
                            p,
                            if t.accumulate { simd.add(simd.load(p), acc[i][j]) } else { acc[i][j] },
                        );
                    }
                }
            } else {
                for i in 0..MR {
                    for j in 0..NV {
                        let p = t.c.wrapping_add(i * t.row + j * S::LANES);
                        let n =
                            if i < t.rows { t.cols.saturating_sub(j * S::LANES).min(S::LANES) } else { 0 };
                        if n > 0 {
                            let old = if t.accumulate { simd.load_part(p, n) } else { simd.zero() };
                            simd.store_part(p, n, simd.add(old, acc[i][j]));
                        }
                    }
                }
            }
        }
    }
}

/// The gradient tile of `MR` rows and `NV` vectors.
///
/// # Safety
/// See [`GradientTileFn`].
pub(crate) unsafe fn grad_tile<S: Simd, const MR: usize, const NV: usize>(simd: S, t: &GradientTile) {
    // SAFETY: the tile's pointers are valid for what the formula touches.
    unsafe { simd.base().run(GradientJob::<MR, NV, false>(t)) }
}

/// The gradient tile of `MR` rows and `NV` vectors whose operands are words of two bf16 each.
///
/// # Safety
/// See [`GradientTileFn`].
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no instruction for it there"))]
pub(crate) unsafe fn pair_grad_tile<S: Simd, const MR: usize, const NV: usize>(simd: S, t: &GradientTile) {
    // SAFETY: the tile's pointers are valid for what the formula touches.
    unsafe { simd.run(GradientJob::<MR, NV, true>(t)) }
}

/// Floating-point operations per second of the widest product tile on data in the first-level cache, all
/// threads of the current rayon pool together: what the convolutions are to be compared with. The tile is that of
/// direct convolutions: of bf16 where [`Context::bf16_products`](crate::Context::bf16_products) says so; never the matrix unit's. Takes about a
/// quarter of a second; the best of several short runs counts.
pub fn peak_flops(ctx: &crate::Context) -> f64 {
    fn run<S: Simd>(simd: S, pairs: bool) -> f64 {
        const BLOCKS: usize = 8;
        let (rows, width) = (S::TILE_ROWS, 2 * S::LANES);
        let a = vec![0.5f32; rows * BLOCK * BLOCKS];
        let b = vec![0.5f32; width * BLOCK * BLOCKS];
        let list: Vec<(i32, i32)> =
            (0..BLOCKS).map(|i| ((i * rows * BLOCK) as i32, (i * width * BLOCK) as i32)).collect();
        let offsets: Vec<usize> = (0..rows).map(|i| i * width).collect();
        let (tiles, products) = match S::PAIR_TILES {
            Some(tiles) if pairs => (tiles, 2),
            _ => (S::TILES, 1),
        };
        let (repeats, mut best) = (2000, f64::MAX);
        for _ in 0..20 {
            let begin = std::time::Instant::now();
            rayon::broadcast(|_| {
                let mut c = vec![0.0f32; rows * width];
                for _ in 0..repeats {
                    // SAFETY: lists and rows stay inside the buffers.
                    unsafe {
                        tiles[1][rows - 1](
                            simd,
                            &ProductTile {
                                list: list.as_ptr(),
                                blocks: BLOCKS,
                                a: a.as_ptr(),
                                b: b.as_ptr(),
                                c: c.as_mut_ptr(),
                                rows: offsets.as_ptr(),
                                accumulate: false,
                                cols: width,
                                cold: false,
                                ahead: Ahead::NONE,
                            },
                        );
                    }
                }
                std::hint::black_box(c)
            });
            best = best.min(begin.elapsed().as_secs_f64());
        }
        let flops = 2 * products * rows * width * BLOCK * BLOCKS * repeats * rayon::current_num_threads();
        flops as f64 / best
    }
    crate::simd::dispatch!(ctx.vectors(), simd => run(simd, ctx.bf16_products()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles ask for all that comes next, and for little more.
    #[test]
    fn next_weights_are_asked_for_once() {
        let words = [0.0f32; 1000];
        for (len, tiles, blocks) in
            [(1000, 3, 4), (1000, 1, 2), (16, 4, 4), (1, 1, 1), (0, 2, 2), (640, 5, 8)]
        {
            let mut next = NextWeights::new(words.as_ptr(), len, tiles * blocks);
            let mut at = words.as_ptr();
            for _ in 0..tiles {
                let part = next.part(blocks);
                assert!(part == Ahead::NONE || part.from == at);
                at = at.wrapping_add(blocks * part.lines * BLOCK);
            }
            let asked = (at.addr() - words.as_ptr().addr()) / size_of::<f32>();
            assert!(
                (len..len + blocks * BLOCK + tiles * blocks * BLOCK).contains(&asked) || len == 0,
                "{len}: {asked}"
            );
            assert!(len > 0 || asked == 0);
            assert_eq!(next.part(blocks), Ahead::NONE);
        }
    }
}
