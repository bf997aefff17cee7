//! Winograd's transform of the input: tiles of 6×6 pixels that overlap by two.
//!
//! A strip of neighbouring tiles is first copied to a buffer that stays in the first-level cache, with zeros for what
//! lies outside the map. So pixels that several tiles share are normalised once and read from memory in long rows,
//! and the transform itself knows no edges.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::Source;
use super::any_tile::AnyTile;
use super::tiling::{Place, SIDE, Transform, of_phase};
use super::transforms::{Input, inputs, two_sided};
use crate::load::{Load, LoadVisitor, Pixels, block_affine, copy_pixels};
use crate::simd::{BLOCK, Job, Simd};

/// Most tiles in a strip.
const TILES: usize = 8;
/// Rows and pixels a row of a strip.
const ROWS: usize = SIDE + 2;
const WIDTH: usize = TILES * SIDE + 2;

/// Memory for one strip: `[row][pixel][16]`.
#[repr(align(64))]
struct Strip([MaybeUninit<f32>; ROWS * WIDTH * BLOCK]);

/// Transforms tiles of the input.
///
/// # Safety
/// The instruction set must be available, and the output have room; no other task may have these tiles.
pub(super) unsafe fn transform_inputs<S: Simd>(source: &Source<'_>, to: Transform<'_>) {
    struct Visitor<'a, S>(Transform<'a>, PhantomData<S>);
    impl<S: Simd> LoadVisitor for Visitor<'_, S> {
        fn visit<L: Load>(self, load: L) {
            // SAFETY: the promise of `transform_inputs`'s caller.
            unsafe { S::run(TransformTiles { load: &load, to: self.0 }) }
        }
    }
    source.visit(Visitor::<S>(to, PhantomData));
}

struct TransformTiles<'a, L> {
    load: &'a L,
    to: Transform<'a>,
}

impl<L: Load> TransformTiles<'_, L> {
    /// Copies a block of the given rows and columns of inputs, from those of the tile at `place` on. Asks for the pixels that
    /// lie `ahead` elements further on.
    #[inline(always)]
    unsafe fn fill<S: Simd, const PART: bool>(
        &self,
        place: Place,
        (rows, columns): (usize, usize),
        block: usize,
        ahead: usize,
        strip: *mut f32,
    ) {
        let grid = &self.to.grid;
        let (y0, x0) = grid.first(place);
        // Padding to the left is one pixel at most.
        let first = usize::from(x0 < 0);
        let end = grid.inside(x0, grid.w).min(columns);
        let (channels, c) = (self.to.channels, block * BLOCK);
        // SAFETY: the caller's promise; pixels outside the map are not read.
        unsafe {
            let clear = |pixel: *mut f32| {
                for lane in (0..BLOCK).step_by(S::LANES) {
                    S::store(pixel.add(lane), S::zero());
                }
            };
            let affine = block_affine::<S, L, PART>(self.load, c, channels - c);
            for r in 0..rows {
                let row = strip.add(r * WIDTH * BLOCK);
                let y = (y0 + (r * grid.step) as isize) as usize;
                if y >= grid.h {
                    (0..columns).for_each(|p| clear(row.add(p * BLOCK)));
                    continue;
                }
                if first == 1 {
                    clear(row);
                }
                let pixel =
                    (place.image * grid.h + y) * grid.w + (x0 + (first * grid.step) as isize) as usize;
                let (at, step) = (pixel * channels + c, grid.step * channels);
                let pixels = Pixels { at, step, count: end.saturating_sub(first), ahead };
                copy_pixels::<S, L, PART>(self.load, &affine, pixels, channels - c, row.add(first * BLOCK));
                (end.max(first)..columns).for_each(|p| clear(row.add(p * BLOCK)));
            }
        }
    }
}

impl<L: Load> Job for TransformTiles<'_, L> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let (t, first, count) = (self.to.tiling, self.to.tiles.start, self.to.tiles.len());
        let point_stride = self.to.point_stride;
        let mut strip = Strip([const { MaybeUninit::uninit() }; ROWS * WIDTH * BLOCK]);
        let strip = strip.0.as_mut_ptr().cast::<f32>();
        let mut positions = self.to.positions;
        let mut done = 0;
        while done < count {
            let at = t.locate(first + done);
            let tiles = (t.columns - at.x0 / SIDE).min(count - done).min(TILES);
            // All tiles of the strip are equally high, and all but the last are whole in width.
            let mut places = [0; TILES];
            let mut place = at;
            let mut sides = (0, 0);
            for position in &mut places[..tiles] {
                sides = t.sides(place);
                *position = positions.next(sides);
                place.advance(t);
            }
            let last = of_phase(sides, self.to.phase);
            let whole = of_phase((sides.0, t.whole), self.to.phase);
            let size = (inputs(last.0), (tiles - 1) * SIDE + inputs(last.1));
            // The strip after the next.
            let next = t.locate(first + (done + 2 * tiles).min(count));
            let grid = &self.to.grid;
            let ahead = (grid.pixel(next) - grid.pixel(at)) as usize * self.to.channels;
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
                        let sides = if tile + 1 < tiles { whole } else { last };
                        let to = self.to.at(block, position);
                        // All vectors of a tile, one after the other: they share the cache lines that are written.
                        for lane in (0..BLOCK).step_by(S::LANES) {
                            let from = strip.add(tile * SIDE * BLOCK + lane);
                            let out = to.add(lane);
                            if sides == (SIDE, SIDE) {
                                let get = |r: usize, q: usize| S::load(from.add((r * WIDTH + q) * BLOCK));
                                let put = |r: usize, q: usize, v: S::V| {
                                    S::store(out.add((r * 6 + q) * point_stride), v);
                                };
                                two_sided!(S, Input, SIDE, SIDE, get, put);
                            } else {
                                S::run(AnyTile {
                                    sides,
                                    from,
                                    from_steps: (WIDTH * BLOCK, BLOCK),
                                    to: out,
                                    to_steps: (6 * point_stride, point_stride),
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
