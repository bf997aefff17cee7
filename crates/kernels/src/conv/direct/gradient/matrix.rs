//! The weight pass on the matrix unit.
//!
//! Two images share a word, and what is summed over are positions: a column and a pair of images each. The input's blocks are
//! copied as they are, `[block][plane][row][column][pair][16]`, with margins, so that each tap reads successive positions. The
//! gradient's blocks are copied likewise and then turned, 16 positions at a time, so that a register's row is an output
//! channel: `[block][plane][row][chunk][16 channels][16 positions]`, with zeros behind a row's last position. Those meet whatever
//! comes next in the input's copy.

use std::ops::Range;

use super::{DirectGradient, TaskWeights};
use crate::amx::{self, Amx, Ready, SplitTile};
use crate::conv::direct::fill::{Fill, fill};
use crate::simd::{BLOCK, Job, SQUARE, Simd};
use crate::work::with_scratch;

/// Words of a register.
const REGISTER: usize = BLOCK * BLOCK;

/// Rows of a tile, and its columns.
const TILE: usize = amx::ROWS;

/// A part of the pixels, and how its copies lie.
struct Part {
    images: Range<usize>,
    rows: Range<usize>,
    source_rows: Range<usize>,
    /// Pairs of images.
    pairs: usize,
    /// Registers of positions in a row.
    chunks: usize,
    /// Words of a plane: of the input, of the turned gradient, and of the gradient before that.
    x_plane: usize,
    y_plane: usize,
    unturned_plane: usize,
}

impl<S: Simd> DirectGradient<'_, S> {
    /// Adds the products of a part of the pixels to a task's sums.
    ///
    /// # Safety
    /// The part must be one that there is, and the task's sums be touched by no other thread.
    pub(super) unsafe fn add_split(
        &self,
        unit: Amx,
        weights: &TaskWeights,
        images: Range<usize>,
        rows: Range<usize>,
    ) {
        let g = &self.geometry;
        let (source_rows, pairs) = (g.source_rows(rows.clone()), self.words.images(images.len()));
        let positions = g.dst[1] * pairs;
        let chunks = positions.div_ceil(BLOCK);
        let part = Part {
            x_plane: source_rows.len() * g.columns() * pairs * BLOCK,
            y_plane: rows.len() * chunks * REGISTER,
            unturned_plane: rows.len() * positions * BLOCK,
            images,
            rows,
            source_rows,
            pairs,
            chunks,
        };
        let (x_planes, y_planes) = (2 * weights.x_blocks.len(), 2 * weights.y_blocks.len());
        let lens = [
            x_planes * part.x_plane + REGISTER,
            y_planes * part.y_plane,
            (y_planes * part.unturned_plane).max(TILE * TILE),
        ];
        with_scratch(lens, |[x, y, unturned]| {
            let ends = |range: &Range<usize>| (range.start, range.end);
            let of_x = Fill {
                geometry: g,
                images: ends(&part.images),
                rows: ends(&part.source_rows),
                blocks: ends(&weights.x_blocks),
                words: self.words,
                dst: x,
            };
            let of_y = Fill {
                geometry: &self.dy_geometry,
                rows: ends(&part.rows),
                blocks: ends(&weights.y_blocks),
                dst: unturned,
                ..of_x
            };
            // SAFETY: images, rows and blocks are parts of those that there are, and the copies have room. The tile takes the place of
            // the gradient that is turned by then.
            unsafe {
                self.x.fill(self.simd, of_x);
                x.add(x_planes * part.x_plane).write_bytes(0, REGISTER);
                fill(self.simd, &self.dy, of_y);
                self.simd.run(Turn { part: &part, planes: y_planes, positions, from: unturned, to: y });
                let unit = unit.ready();
                for tap in 0..g.kernel * g.kernel {
                    self.add_split_tap(&unit, weights, &part, tap, [x, y, unturned]);
                }
            }
        });
    }

    /// Adds a tap's products.
    ///
    /// # Safety
    /// Both operands must be copied to the first two of the buffers, and the third have room for a tile.
    unsafe fn add_split_tap(
        &self,
        unit: &Ready,
        weights: &TaskWeights,
        part: &Part,
        tap: usize,
        [x, y, tile]: [*mut f32; 3],
    ) {
        let (g, list) = (&self.geometry, self.split_list(part, tap));
        let row = g.kernel * g.kernel * g.src[2];
        for c in weights.inputs.clone().step_by(TILE) {
            for o in weights.outputs.clone().step_by(TILE) {
                let (rows, cols) = ((weights.outputs.end - o).min(TILE), (weights.inputs.end - c).min(TILE));
                let y_block = (o - weights.outputs.start) / BLOCK;
                let x_block = (c - weights.inputs.start) / BLOCK;
                let product = SplitTile {
                    list: &list,
                    a: y.wrapping_add(2 * y_block * part.y_plane),
                    b: x.wrapping_add(2 * x_block * part.x_plane),
                    b_row: BLOCK,
                    next: [2 * part.y_plane, 2 * part.x_plane],
                    c: tile,
                    n_rows: rows,
                    vectors: cols.div_ceil(BLOCK),
                    a_low: part.y_plane,
                    b_low: part.x_plane,
                };
                let to = weights.out.wrapping_add(o * row + tap * g.src[2] + c);
                // SAFETY: both operands are copied, rows and columns are this task's weights, and all lists stay in the copies.
                unsafe {
                    unit.product(&product);
                    self.simd.run(AddTile { tile, rows, cols, to, row });
                }
            }
        }
    }

    /// Where a tap's operands are in the copies, one pair for each register of positions.
    fn split_list(&self, part: &Part, tap: usize) -> Vec<(i32, i32)> {
        let g = &self.geometry;
        let (ty, tx) = (tap / g.kernel, tap % g.kernel);
        let column = g.tap_column(0, tx).expect("margins are as wide as taps reach");
        let mut list = Vec::with_capacity(part.rows.len() * part.chunks);
        for (i, y) in part.rows.clone().enumerate() {
            let Some((_, sy)) = g.row_taps(y).find(|&(t, _)| t == ty) else { continue };
            let first = ((sy - part.source_rows.start) * g.columns() + column) * part.pairs * BLOCK;
            let of_chunk =
                |k: usize| (((i * part.chunks + k) * REGISTER) as i32, (first + k * REGISTER) as i32);
            list.extend((0..part.chunks).map(of_chunk));
        }
        list
    }
}

/// Turns the gradient's copy.
struct Turn<'a> {
    part: &'a Part,
    planes: usize,
    /// Positions of a row.
    positions: usize,
    from: *const f32,
    to: *mut f32,
}

impl Job for Turn<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let mut last = [0.0f32; REGISTER];
        for row in 0..self.planes * self.part.rows.len() {
            for chunk in 0..self.part.chunks {
                let first = row * self.positions + chunk * BLOCK;
                let valid = (self.positions - chunk * BLOCK).min(BLOCK);
                // SAFETY: each plane has so many positions of 16 words, and there is a register for each chunk.
                unsafe {
                    let mut from = self.from.add(first * BLOCK);
                    if valid < BLOCK {
                        last.fill(0.0);
                        std::ptr::copy_nonoverlapping(from, last.as_mut_ptr(), valid * BLOCK);
                        from = last.as_ptr();
                    }
                    let to = self.to.add((row * self.part.chunks + chunk) * REGISTER);
                    for i in (0..BLOCK).step_by(SQUARE) {
                        for j in (0..BLOCK).step_by(SQUARE) {
                            simd.transpose(from.add(i * BLOCK + j), BLOCK, to.add(j * BLOCK + i), BLOCK);
                        }
                    }
                }
            }
        }
    }
}

/// Adds a tile to a task's sums.
struct AddTile {
    tile: *const f32,
    rows: usize,
    cols: usize,
    to: *mut f32,
    /// From one output channel to the next.
    row: usize,
}

impl Job for AddTile {
    type Out = ();

    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        for i in 0..self.rows {
            for lane in (0..self.cols).step_by(S::LANES) {
                let n = (self.cols - lane).min(S::LANES);
                // SAFETY: rows and columns lie in the tile and in the sums.
                unsafe {
                    let to = self.to.add(i * self.row + lane);
                    let sum = simd.add(simd.load_part(to, n), simd.load(self.tile.add(i * TILE + lane)));
                    simd.store_part(to, n, sum);
                }
            }
        }
    }
}
