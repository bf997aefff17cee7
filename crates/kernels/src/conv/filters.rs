//! Filters, packed into panels as wide as the product tile.

use super::kept::Weights;
use super::plan::Products;
use crate::simd::{BLOCK, Job, SQUARE, Simd};
use crate::work::{Shared, tasks};

/// Blocks that a task packs.
const PER_TASK: usize = 4;

/// How output channels are cut into panels: all two vectors wide, but for a last one of a single vector where
/// that is enough.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panels {
    channels: usize,
    lanes: usize,
}

impl Panels {
    pub fn new<S: Simd>(channels: usize) -> Self {
        Self { channels, lanes: S::LANES }
    }

    /// Output channels of a full panel.
    pub fn full(&self) -> usize {
        2 * self.lanes
    }

    pub fn count(&self) -> usize {
        self.channels.div_ceil(self.full())
    }

    /// Output channels in panel `j`.
    pub fn cols(&self, j: usize) -> usize {
        (self.channels - j * self.full()).min(self.full())
    }

    /// Vectors in panel `j`.
    pub fn vectors(&self, j: usize) -> usize {
        self.cols(j).div_ceil(self.lanes)
    }

    /// Columns, with padding, of panel `j`.
    pub fn width(&self, j: usize) -> usize {
        self.vectors(j) * self.lanes
    }

    /// Columns, with padding, of all panels.
    pub fn total_width(&self) -> usize {
        (0..self.count()).map(|j| self.width(j)).sum()
    }
}

/// Which matrix the weights are, seen from the pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Reduction over input channels, one column per output channel.
    Forward,
    /// Reduction over output channels, one column an input channel.
    Backward,
}

impl Direction {
    /// Calls `pack` for each of `blocks` blocks of each of `panels` panels, with the numbers of both, in tasks of
    /// neighbours: in the order in which they lie in the weights.
    pub fn each_block(self, panels: usize, blocks: usize, pack: impl Fn(usize, usize) + Send + Sync) {
        let all = panels * blocks;
        tasks(all.div_ceil(PER_TASK), |task| {
            for i in task * PER_TASK..((task + 1) * PER_TASK).min(all) {
                match self {
                    Direction::Forward => pack(i / blocks, i % blocks),
                    Direction::Backward => pack(i % panels, i / panels),
                }
            }
        });
    }
}

/// Weights `[c_out][taps][c_in]`, to read as matrices.
#[derive(Clone, Copy)]
pub(super) struct Filters<'a> {
    values: &'a [f32],
    c_in: usize,
    c_out: usize,
    taps: usize,
    /// A factor for each output channel.
    scale: Option<&'a [f32]>,
    direction: Direction,
    /// Whether two rows are packed into one word as bf16, and whether they are cut in two.
    products: Products,
}

/// A block of filters: [`BLOCK`] rows (twice as many where two share a word) of a number of columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct FilterBlock {
    pub tap: usize,
    /// The first row: a channel that is summed over.
    pub row: usize,
    /// The first column: a channel of the result.
    pub column: usize,
    /// Columns, with padding.
    pub width: usize,
}

impl<'a> Filters<'a> {
    /// Of weights `[c_out, taps, c_in]`.
    pub fn new(
        Weights { values, scale, .. }: Weights<'a>,
        [c_out, taps, c_in]: [usize; 3],
        direction: Direction,
        products: Products,
    ) -> Self {
        assert_eq!(values.len(), c_out * taps * c_in, "weights of a convolution");
        Self { values, c_in, c_out, taps, scale, direction, products }
    }

    /// The same with all taps of an input as channels: what an output reads is one column.
    pub fn flat(self) -> Self {
        Self { c_in: self.taps * self.c_in, taps: 1, ..self }
    }

    /// Which matrix they are.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// What they are multiplied as.
    pub fn products(&self) -> Products {
        self.products
    }

    /// Channels summed over.
    pub fn depth(&self) -> usize {
        match self.direction {
            Direction::Forward => self.c_in,
            Direction::Backward => self.c_out,
        }
    }

    /// Channels of the result.
    pub fn channels(&self) -> usize {
        match self.direction {
            Direction::Forward => self.c_out,
            Direction::Backward => self.c_in,
        }
    }

    /// Blocks of channels summed over.
    pub fn blocks(&self) -> usize {
        self.depth().div_ceil(self.block_depth())
    }

    /// Channels summed over in a block.
    pub fn block_depth(&self) -> usize {
        if self.products == Products::F32 { BLOCK } else { 2 * BLOCK }
    }

    /// Words of a packed block of a number of columns.
    fn block_len(&self, width: usize) -> usize {
        let planes = if self.products == Products::Split { 2 } else { 1 };
        planes * BLOCK * width
    }

    /// Writes a block: its rows, zero where there are no weights. Those that are cut in two: all high parts, and then the low ones.
    ///
    /// # Panics
    /// If `dst` has no room for it, or it begins outside the filters.
    pub fn block<S: Simd>(&self, simd: S, block: FilterBlock, dst: &mut [f32]) {
        let room = dst.len() >= self.block_len(block.width);
        assert!(block.tap < self.taps && room, "a block of filters");
        if self.products == Products::F32 {
            self.block_of_singles(simd, block, dst);
        } else {
            self.block_of_pairs(simd, block, dst);
        }
    }

    /// Words of two bf16, for two successive rows each.
    fn block_of_pairs<S: Simd>(&self, simd: S, block: FilterBlock, dst: &mut [f32]) {
        let width = block.width;
        let half = BLOCK * width;
        // At most two registers of 16 lanes wide.
        let mut rows = [0.0f32; 2 * BLOCK * 2 * BLOCK];
        for i in 0..2 {
            let (row, rows) = (block.row + i * BLOCK, &mut rows[i * half..][..half]);
            if row < self.depth() {
                self.block_of_singles(simd, FilterBlock { row, ..block }, rows);
            } else {
                rows.fill(0.0);
            }
        }
        let split = self.products == Products::Split;
        // SAFETY: there are twice 16 rows, and the caller has checked the room for one plane, or for two.
        unsafe { simd.run(PairRows { rows: &rows[..2 * half], width, split, to: dst }) };
    }

    /// f32 of [`BLOCK`] rows.
    fn block_of_singles<S: Simd>(&self, simd: S, block: FilterBlock, dst: &mut [f32]) {
        let FilterBlock { tap, row: k0, column: n0, width } = block;
        let (depth, cols) = (BLOCK.min(self.depth() - k0), width.min(self.channels() - n0));
        let (dst, step) = (&mut dst[..BLOCK * width], self.taps * self.c_in);
        if depth < BLOCK || cols < width {
            dst.fill(0.0);
        }
        match self.direction {
            Direction::Forward => {
                let row = |n: usize| &self.values[((n0 + n) * self.taps + tap) * self.c_in + k0..][..depth];
                let whole = if depth == BLOCK { cols / SQUARE * SQUARE } else { 0 };
                for (n, k) in (0..whole).step_by(SQUARE).flat_map(|n| [(n, 0), (n, SQUARE)]) {
                    let (from, to) = (row(n)[k..].as_ptr(), dst[k * width + n..].as_mut_ptr());
                    // SAFETY: the square's columns are rows n to n + 7, all below `cols`, `step` apart in the weights, and
                    // the square lies in the block.
                    unsafe { simd.transpose(from, step, to, width) };
                }
                for n in whole..cols {
                    for (k, &w) in row(n).iter().enumerate() {
                        dst[k * width + n] = w;
                    }
                }
                if let Some(scale) = self.scale {
                    for row in dst.chunks_exact_mut(width) {
                        row.iter_mut().zip(&scale[n0..n0 + cols]).for_each(|(w, s)| *w *= s);
                    }
                }
            }
            Direction::Backward => {
                let row = |k: usize| &self.values[((k0 + k) * self.taps + tap) * self.c_in + n0..][..cols];
                if depth == BLOCK && cols == width {
                    // SAFETY: the rows that `row` gives lie `step` apart, and `dst` has room for all.
                    unsafe { simd.run(CopyRows { from: row(0), step, width, to: dst }) };
                } else {
                    (0..depth).for_each(|k| dst[k * width..][..cols].copy_from_slice(row(k)));
                }
            }
        }
    }
}

/// Packs two successive rows each of a block into words, and what remains of them into more.
struct PairRows<'a> {
    rows: &'a [f32],
    width: usize,
    split: bool,
    to: &'a mut [f32],
}

impl Job for PairRows<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        for k in 0..BLOCK {
            for lane in (0..self.width).step_by(S::LANES) {
                // SAFETY: `block_of_pairs` has as many rows, and room for their words.
                unsafe {
                    let from = self.rows.as_ptr().add(2 * k * self.width + lane);
                    let rows = [simd.load(from), simd.load(from.add(self.width))];
                    let to = self.to.as_mut_ptr().add(k * self.width + lane);
                    simd.store(to, simd.pair(rows[0], rows[1]));
                    if self.split {
                        let low = simd.pair(simd.remainder(rows[0]), simd.remainder(rows[1]));
                        simd.store(to.add(BLOCK * self.width), low);
                    }
                }
            }
        }
    }
}

/// Copies the rows of a block. Calls for them would take longer.
struct CopyRows<'a> {
    /// The first row, and how far it is to the next.
    from: &'a [f32],
    step: usize,
    width: usize,
    to: &'a mut [f32],
}

impl Job for CopyRows<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        for k in 0..BLOCK {
            for lane in (0..self.width).step_by(S::LANES) {
                // SAFETY: `block_of_singles` checks that there are 16 rows of `width`, at both ends.
                unsafe {
                    let value = simd.load(self.from.as_ptr().add(k * self.step + lane));
                    simd.store(self.to.as_mut_ptr().add(k * self.width + lane), value);
                }
            }
        }
    }
}

/// Words of packed filters.
pub(super) fn packed_len(filters: &Filters<'_>, panels: Panels) -> usize {
    filters.blocks() * filters.taps * filters.block_len(panels.total_width())
}

/// Packs filters: `[panel][block][tap][16][width]`, those that are cut in two `[panel][block][tap][plane][16][width]`.
///
/// # Panics
/// If there are not as many words as they need.
pub(super) fn pack<S: Simd>(simd: S, filters: Filters<'_>, panels: Panels, packed: &mut [f32]) {
    assert_eq!(packed.len(), packed_len(&filters, panels), "packed filters");
    let (blocks, taps) = (filters.blocks(), filters.taps);
    let out = Shared::new(packed);
    filters.direction.each_block(panels.count(), blocks, |j, block| {
        let width = panels.width(j);
        for tap in 0..taps {
            let size = filters.block_len(width);
            let at = j * blocks * taps * filters.block_len(panels.full()) + (block * taps + tap) * size;
            // SAFETY: the buffer holds every panel's blocks; each is written once.
            let dst = unsafe { std::slice::from_raw_parts_mut(out.get().add(at), size) };
            let (row, column) = (block * filters.block_depth(), j * panels.full());
            filters.block(simd, FilterBlock { tap, row, column, width }, dst);
        }
    });
}
