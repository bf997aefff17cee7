//! Winograd's transform of the input: tiles of 6×6 pixels that overlap by two.
//!
//! A strip of neighbouring tiles is first copied to a buffer that stays in the first-level cache, with zeros for what
//! lies outside the map. So pixels that several tiles share are normalised once and read from memory in long rows,
//! and the transform itself knows no edges.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::tiling::{Place, SIDE, TileBuffer, Tiling};
use super::transforms::{AnyTile, Input, two_sided};
use crate::load::{Load, LoadVisitor, block_affine, copy_block};
use crate::simd::{BLOCK, Job, Simd};

/// Most tiles in a strip.
const TILES: usize = 8;
/// Rows and pixels a row of a strip.
const ROWS: usize = SIDE + 2;
const WIDTH: usize = TILES * SIDE + 2;

/// Memory for one strip: `[row][pixel][16]`.
#[repr(align(64))]
struct Strip([MaybeUninit<f32>; ROWS * WIDTH * BLOCK]);

/// Transforms tiles of a source.
///
/// Whoever visits a source with it promises that the instruction set is available, and that the buffers have room.
#[derive(Clone, Copy)]
pub(super) struct TransformVisitor<'a, S> {
    pub tiling: &'a Tiling,
    /// Channels of the source.
    pub channels: usize,
    pub tiles: (usize, usize),
    pub buffer: TileBuffer,
    pub simd: PhantomData<S>,
}

impl<S: Simd> LoadVisitor for TransformVisitor<'_, S> {
    fn visit<L: Load>(self, load: L) {
        // SAFETY: the promise of the visitor's maker.
        unsafe { S::run(TransformTiles { load: &load, to: self }) }
    }
}

struct TransformTiles<'a, L, S> {
    load: &'a L,
    to: TransformVisitor<'a, S>,
}

impl<L: Load, V> TransformTiles<'_, L, V> {
    /// Copies a block of the pixels that `rows` by `columns` outputs read, from the tile at row `y0` and column `x0` on.
    /// Asks for the pixels that lie `ahead` elements further on.
    #[inline(always)]
    unsafe fn fill<S: Simd, const PART: bool>(
        &self,
        Place { image, y0, x0, .. }: Place,
        (rows, columns): (usize, usize),
        block: usize,
        ahead: usize,
        strip: *mut f32,
    ) {
        let t = self.to.tiling;
        let width = columns + 2;
        // One pixel of padding above and to the left: pixel `p` of the strip is `x0 + p - 1` of the map.
        let first = usize::from(x0 == 0);
        let end = (t.w + 1 - x0).min(width);
        let (channels, c) = (self.to.channels, block * BLOCK);
        // SAFETY: the caller's promise; pixels outside the map are not read.
        unsafe {
            let clear = |pixel: *mut f32| {
                for lane in (0..BLOCK).step_by(S::LANES) {
                    S::store(pixel.add(lane), S::zero());
                }
            };
            let affine = block_affine::<S, L, PART>(self.load, c, channels - c);
            for r in 0..rows + 2 {
                let row = strip.add(r * WIDTH * BLOCK);
                let y = (y0 + r).wrapping_sub(1);
                if y >= t.h {
                    (0..width).for_each(|p| clear(row.add(p * BLOCK)));
                    continue;
                }
                if first == 1 {
                    clear(row);
                }
                let mut at = ((image * t.h + y) * t.w + x0 + first - 1) * channels + c;
                let mut pixel = row.add(first * BLOCK);
                for _ in first..end {
                    self.load.prefetch::<S>(at + ahead);
                    copy_block::<S, L, PART>(self.load, &affine, at, channels - c, pixel);
                    (at, pixel) = (at + channels, pixel.add(BLOCK));
                }
                (end..width).for_each(|p| clear(row.add(p * BLOCK)));
            }
        }
    }
}

impl<L: Load, V> Job for TransformTiles<'_, L, V> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let (t, buffer) = (self.to.tiling, self.to.buffer);
        let count = self.to.tiles.1 - self.to.tiles.0;
        let mut strip = Strip([const { MaybeUninit::uninit() }; ROWS * WIDTH * BLOCK]);
        let strip = strip.0.as_mut_ptr().cast::<f32>();
        let mut positions = buffer.positions;
        let mut done = 0;
        while done < count {
            let at = t.locate(self.to.tiles.0 + done);
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
            let next = t.locate(self.to.tiles.0 + (done + 2 * tiles).min(count));
            let ahead = (next.pixel - at.pixel) * self.to.channels;
            for block in 0..self.to.channels.div_ceil(BLOCK) {
                // SAFETY: the maker of the job promises that the tiles exist and the buffers have room; the strip has room
                // for the tiles, and what is read of it was written.
                unsafe {
                    if self.to.channels - block * BLOCK >= BLOCK {
                        self.fill::<S, false>(at, size, block, ahead, strip);
                    } else {
                        self.fill::<S, true>(at, size, block, ahead, strip);
                    }
                    for (tile, &position) in places[..tiles].iter().enumerate() {
                        let columns = if tile + 1 < tiles { SIDE } else { outputs.1 };
                        let to = (block * buffer.tiles + position) * BLOCK;
                        // All vectors of a tile, one after the other: they share the cache lines that are written.
                        for lane in (0..BLOCK).step_by(S::LANES) {
                            let from = strip.add(tile * SIDE * BLOCK + lane);
                            let out = buffer.out.add(to + lane);
                            if (outputs.0, columns) == (SIDE, SIDE) {
                                let get = |r: usize, q: usize| S::load(from.add((r * WIDTH + q) * BLOCK));
                                let put = |r: usize, q: usize, v: S::V| {
                                    S::store(out.add((r * 6 + q) * buffer.point_stride), v);
                                };
                                two_sided!(S, Input, SIDE, SIDE, get, put);
                            } else {
                                S::run(AnyTile {
                                    outputs: (outputs.0, columns),
                                    from,
                                    from_steps: (WIDTH * BLOCK, BLOCK),
                                    to: out,
                                    to_steps: (6 * buffer.point_stride, buffer.point_stride),
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
