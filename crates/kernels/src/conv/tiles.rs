//! Winograd's transform of the input: tiles of 6×6 pixels that overlap by two.
//!
//! A strip of neighbouring tiles is first copied to a buffer that stays in the first-level cache, with zeros for what
//! lies outside the map. So pixels that several tiles share are normalised once and read from memory in long rows,
//! and the transform itself knows no edges.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::transforms::{EdgeTile, Input, POINTS, input, two_sided};
use super::winograd::{Place, SIDE, TileOrder, Tiling};
use crate::load::Load;
use crate::simd::{BLOCK, Job, Simd};

/// Most tiles in a strip.
const TILES: usize = 8;
/// Rows and pixels a row of a strip.
const ROWS: usize = SIDE + 2;
const WIDTH: usize = TILES * SIDE + 2;

/// Memory for one strip: `[row][pixel][16]`.
#[repr(align(64))]
struct Strip([MaybeUninit<f32>; ROWS * WIDTH * BLOCK]);

/// Transforms tiles of a source: `[point][block][tile][16]`, tiles in a given order. Points that a tile does not have are
/// not written.
pub(super) struct TransformTiles<'a, L> {
    pub load: &'a L,
    pub tiling: &'a Tiling,
    /// Channels of the source, and blocks of them to take.
    pub channels: usize,
    pub blocks: (usize, usize),
    pub tiles: (usize, usize),
    pub order: TileOrder,
    pub out: *mut f32,
    /// f32 from one point to the next.
    pub point_stride: usize,
}

impl<L: Load> TransformTiles<'_, L> {
    /// Copies the pixels that `rows` by `columns` outputs read, from the tile at row `y0` and column `x0` on.
    #[inline(always)]
    unsafe fn fill<S: Simd, const PART: bool>(
        &self,
        Place { image, y0, x0, .. }: Place,
        (rows, columns): (usize, usize),
        (c, n): (usize, usize),
        strip: *mut f32,
    ) {
        let t = self.tiling;
        let width = columns + 2;
        // One pixel of padding above and to the left: pixel `p` of the strip is `x0 + p - 1` of the map.
        let first = usize::from(x0 == 0);
        let end = (t.w + 1 - x0).min(width);
        // SAFETY: the caller's promise; pixels outside the map are not read.
        unsafe {
            for r in 0..rows + 2 {
                let row = strip.add(r * WIDTH * BLOCK);
                let y = (y0 + r).wrapping_sub(1);
                if y >= t.h {
                    (0..width).for_each(|p| S::store(row.add(p * BLOCK), S::zero()));
                    continue;
                }
                if first == 1 {
                    S::store(row, S::zero());
                }
                let at = ((image * t.h + y) * t.w + x0) * self.channels + c;
                for p in first..end {
                    let at = at + p * self.channels - self.channels;
                    S::store(row.add(p * BLOCK), self.load.vec::<S, PART>(at, c, n));
                }
                (end..width).for_each(|p| S::store(row.add(p * BLOCK), S::zero()));
            }
        }
    }
}

impl<L: Load> Job for TransformTiles<'_, L> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let t = self.tiling;
        let count = self.tiles.1 - self.tiles.0;
        let mut strip = Strip([const { MaybeUninit::uninit() }; ROWS * WIDTH * BLOCK]);
        let strip = strip.0.as_mut_ptr().cast::<f32>();
        let mut positions = self.order.positions();
        let mut done = 0;
        while done < count {
            let at = t.locate(self.tiles.0 + done);
            let tiles = (t.columns - at.x0 / SIDE).min(count - done).min(TILES);
            // All tiles of the strip are equally high, and all but the last are whole in width.
            let mut places = [0; TILES];
            let mut place = at;
            let mut outputs = (0, 0);
            for position in &mut places[..tiles] {
                outputs = t.outputs(place);
                *position = positions.next(outputs);
                place.advance(t);
            }
            let size = (outputs.0, (tiles - 1) * SIDE + outputs.1);
            // The strip after the next.
            let ahead = t.locate(self.tiles.0 + done + 2 * tiles);
            let n_ahead = tiles.min(count.saturating_sub(done + 2 * tiles));
            for block in self.blocks.0..self.blocks.1 {
                for lane in (0..BLOCK).step_by(S::LANES) {
                    let c = block * BLOCK + lane;
                    let n = self.channels.saturating_sub(c).min(S::LANES);
                    // SAFETY: the maker of the job promises that the tiles exist and `out` has room; the strip has room
                    // for the tiles, and what is read of it was written.
                    unsafe {
                        let strip = strip.add(lane);
                        let out = self.out.add((block - self.blocks.0) * count * BLOCK + lane);
                        match n {
                            0 => {
                                for i in 0..tiles * POINTS {
                                    let (tile, point) = (i / POINTS, i % POINTS);
                                    S::store(
                                        out.add(places[tile] * BLOCK + point * self.point_stride),
                                        S::zero(),
                                    );
                                }
                                continue;
                            }
                            n if n == S::LANES => self.fill::<S, false>(at, size, (c, n), strip),
                            n => self.fill::<S, true>(at, size, (c, n), strip),
                        }
                        let mut ahead = ahead;
                        for (tile, &position) in places[..tiles].iter().enumerate() {
                            // New pixels, while these are computed with. A cache line holds two vectors of some
                            // instruction sets.
                            if lane == 0 && tile < n_ahead {
                                let mut at = ahead.pixel.saturating_sub(t.w) * self.channels + c;
                                for _ in 0..ROWS {
                                    (0..SIDE).for_each(|q| self.load.prefetch::<S>(at + q * self.channels));
                                    at += t.w * self.channels;
                                }
                                ahead.advance(t);
                            }
                            let (strip, out) = (strip.add(tile * SIDE * BLOCK), out.add(position * BLOCK));
                            let get = |r: usize, q: usize| S::load(strip.add((r * WIDTH + q) * BLOCK));
                            let put = |r: usize, q: usize, v: S::V| {
                                S::store(out.add((r * 6 + q) * self.point_stride), v);
                            };
                            let columns = if tile + 1 < tiles { SIDE } else { outputs.1 };
                            if (outputs.0, columns) == (SIDE, SIDE) {
                                two_sided!(S, 6 -> 6, input::<S>, get, put);
                            } else {
                                S::run(EdgeTile {
                                    outputs: (outputs.0, columns),
                                    from: strip,
                                    from_steps: (WIDTH * BLOCK, BLOCK),
                                    to: out,
                                    to_steps: (6 * self.point_stride, self.point_stride),
                                    side: PhantomData::<Input>,
                                });
                            }
                        }
                    }
                }
            }
            done += tiles;
        }
    }
}
