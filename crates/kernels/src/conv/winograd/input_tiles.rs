//! Winograd's transform of the input: tiles of 6×6 pixels that overlap by two.
//!
//! Columns of a strip of neighbouring tiles are read, normalised and transformed once, also those that two tiles share,
//! into a buffer that stays in the first-level cache; then the rows of each tile are. Pixels outside the map are zero.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use std::mem::MaybeUninit;

use super::edge_tile::{one_side, put_side};
use super::maps::{InputMap, SideMap};
use super::side::{SIDE, Side, Sides, sides, with_side};
use super::tiling::{Grid, Place, Transform};
use crate::conv::Source;
use crate::load::{BlockCoefficients, Load, LoadVisitor, block_coefficients};
use crate::simd::{BLOCK, Job, Simd};

/// Most tiles in a strip.
const TILES: usize = 8;
/// Pixels in a row of a strip.
const WIDTH: usize = TILES * SIDE + 2;

/// Memory for the transformed columns of one strip: `[point][pixel][16]`.
#[repr(align(64))]
struct Strip([MaybeUninit<f32>; 6 * WIDTH * BLOCK]);

/// Transforms tiles of the input.
///
/// # Safety
/// The output have room; no other task may have these tiles.
pub(super) unsafe fn transform_inputs<S: Simd>(simd: S, source: &Source<'_>, grid: Grid, to: Transform<'_>) {
    struct TransformInputs<'a, S>(Grid, Transform<'a>, S);
    impl<S: Simd> LoadVisitor for TransformInputs<'_, S> {
        fn visit<L: Load>(self, load: L) {
            // SAFETY: the output has room for these tiles, which are this task's alone.
            unsafe { self.2.run(InputTransform { load: &load, grid: self.0, to: self.1 }) }
        }
    }
    source.visit(TransformInputs(grid, to, simd));
}

struct InputTransform<'a, L> {
    load: &'a L,
    /// Which pixels the inputs are.
    grid: Grid,
    to: Transform<'a>,
}

/// Columns of a strip.
#[derive(Clone, Copy)]
struct StripColumns {
    /// The side along them.
    side: Side,
    /// Those of the map: the first element of the first column, and elements from one pixel to the next along columns and
    /// rows.
    at: isize,
    steps: (usize, usize),
    /// The rows that lie in the map.
    rows: (usize, usize),
    /// How many elements further on to ask for what comes next.
    ahead: usize,
    /// Channels from the block's first on.
    valid: usize,
}

/// Neighbouring tiles whose columns are transformed together.
struct StripPart {
    /// The first tile.
    place: Place,
    /// Their side along columns.
    side: Side,
    /// Columns of inputs.
    columns: usize,
    /// How many elements further on to ask for what comes next.
    ahead: usize,
}

impl<L: Load> InputTransform<'_, L> {
    /// Transforms a block of columns of inputs.
    ///
    /// # Safety
    /// The tiles must exist, and the strip have room for their columns.
    #[inline(always)]
    unsafe fn columns<S: Simd, const PART: bool>(
        &self,
        simd: S,
        of_strip: &StripPart,
        block: usize,
        strip: *mut f32,
    ) {
        let &StripPart { place, side, columns, ahead } = of_strip;
        let grid = &self.grid;
        let (y0, x0) = grid.first(place);
        // Padding to the left is one pixel at most.
        let first = usize::from(x0 < 0);
        let end = grid.inside(x0, grid.w).min(columns).max(first);
        let (channels, c) = (self.to.channels, block * BLOCK);
        let rows = (usize::from(y0 < 0), grid.inside(y0, grid.h).min(side.inputs()));
        let steps = (grid.step * grid.w * channels, grid.step * channels);
        let at = grid.pixel(place) * channels as isize + (first * steps.1 + c) as isize;
        let mut next = StripColumns { side, at, steps, rows, ahead, valid: channels - c };
        // SAFETY: pixels outside the map are not read, and the strip has room for the columns.
        unsafe {
            let affine = block_coefficients::<S, L, PART>(simd, self.load, c, channels - c);
            for outside in (0..first).chain(end..columns) {
                for point in (0..6).filter(|&point| InputMap::gives(side, point)) {
                    for lane in (0..BLOCK).step_by(S::LANES) {
                        simd.store(strip.add((point * WIDTH + outside) * BLOCK + lane), simd.zero());
                    }
                }
            }
            let whole = side == Side::Dense4 && rows == (0, 6);
            for pixel in first..end {
                let to = strip.add(pixel * BLOCK);
                if whole {
                    self.column::<S, PART, true>(simd, &affine, &next, to);
                } else {
                    self.column::<S, PART, false>(simd, &affine, &next, to);
                }
                next.at += steps.1 as isize;
            }
        }
    }

    /// Transforms a block of the next column, which is `WHOLE` or shorter than that. If `PART`, there are only some
    /// channels.
    ///
    /// # Safety
    /// The rows that are said to lie in the map must do so, and `to` have room for six points.
    #[inline(always)]
    unsafe fn column<S: Simd, const PART: bool, const WHOLE: bool>(
        &self,
        simd: S,
        affine: &BlockCoefficients<S, L>,
        columns: &StripColumns,
        to: *mut f32,
    ) {
        let at = |r: usize| (columns.at + (r * columns.steps.0) as isize) as usize;
        let inside = |r: usize| WHOLE || (columns.rows.0 <= r && r < columns.rows.1);
        // SAFETY: only rows in the map are read.
        unsafe {
            for r in 0..6 {
                if inside(r) {
                    self.load.prefetch(simd, at(r) + columns.ahead);
                }
            }
            for (i, &affine) in affine.iter().enumerate().take(BLOCK / S::LANES) {
                let lane = i * S::LANES;
                let n = if PART { columns.valid.saturating_sub(lane).min(S::LANES) } else { S::LANES };
                let mut pixels = [simd.zero(); 6];
                for r in 0..6 {
                    if inside(r) && n > 0 {
                        pixels[r] = self.load.apply::<S, PART>(simd, affine, at(r) + lane, n);
                    }
                }
                let to = (to.add(lane), WIDTH * BLOCK);
                if WHOLE {
                    put_side::<S, InputMap, sides::Dense4>(simd, pixels, to);
                } else {
                    with_side!(columns.side, T => { put_side::<S, InputMap, T>(simd, pixels, to) });
                }
            }
        }
    }
}

/// Transforms the rows of a block of a strip's tiles, whose columns are transformed.
struct StripRows<'a> {
    strip: *const f32,
    /// The sides of all tiles but the last, and of that one.
    whole: Sides,
    last: Sides,
    /// Where the first point of each tile goes, as a position.
    places: &'a [usize],
    block: usize,
    to: &'a Transform<'a>,
}

impl Job for StripRows<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let point_stride = self.to.point_stride;
        for (tile, &position) in self.places.iter().enumerate() {
            let (rows, columns) = if tile + 1 < self.places.len() { self.whole } else { self.last };
            // SAFETY: the strip's columns are transformed, and the output has room for each tile in its position.
            unsafe {
                let (from, to) = (self.strip.add(tile * SIDE * BLOCK), self.to.at(self.block, position));
                with_side!(columns, T => {
                    for r in (0..6).filter(|&r| InputMap::gives(rows, r)) {
                        // All vectors of a tile, one after the other: they share the cache lines that are written.
                        for lane in (0..BLOCK).step_by(S::LANES) {
                            let from = from.add(r * WIDTH * BLOCK + lane);
                            let to = to.add(r * 6 * point_stride + lane);
                            one_side::<S, InputMap, T>(simd, (from, BLOCK), (to, point_stride));
                        }
                    }
                });
            }
        }
    }
}

impl<L: Load> Job for InputTransform<'_, L> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let grid = &self.grid;
        let (t, first, count) = (self.to.tiling, self.to.tiles.start, self.to.tiles.len());
        let mut strip = Strip([const { MaybeUninit::uninit() }; 6 * WIDTH * BLOCK]);
        let strip = strip.0.as_mut_ptr().cast::<f32>();
        let mut positions = self.to.positions;
        let mut done = 0;
        while done < count {
            let at = t.locate(first + done);
            let tiles = (t.columns - at.x0 / SIDE).min(count - done).min(TILES);
            // All tiles of the strip are equally high, and all but the last are whole in width.
            let mut places = [0; TILES];
            let mut place = at;
            let mut sides = (t.whole, t.whole);
            for position in &mut places[..tiles] {
                sides = t.sides(place);
                *position = positions.next(sides);
                place.advance(t);
            }
            let last = grid.phase.of(sides);
            let whole = grid.phase.of((sides.0, t.whole));
            // The strip after the next.
            let next = t.locate(first + (done + 2 * tiles).min(count));
            let ahead = (grid.pixel(next) - grid.pixel(at)) as usize * self.to.channels;
            let columns = (tiles - 1) * SIDE + last.1.inputs();
            let of_strip = StripPart { place: at, side: last.0, columns, ahead };
            for block in 0..self.to.channels.div_ceil(BLOCK) {
                // SAFETY: the tiles exist and the output has room; the strip has room
                // for the tiles, and what is read of it was written.
                unsafe {
                    if self.to.channels - block * BLOCK >= BLOCK {
                        self.columns::<S, false>(simd, &of_strip, block, strip);
                    } else {
                        self.columns::<S, true>(simd, &of_strip, block, strip);
                    }
                    simd.run(StripRows { strip, whole, last, places: &places[..tiles], block, to: &self.to });
                }
            }
            done += tiles;
        }
    }
}
