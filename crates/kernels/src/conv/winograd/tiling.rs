//! How maps are cut into the tiles of Winograd's algorithm, and in which order a task keeps its tiles.

use std::ops::Range;

use super::maps::last_sides;
use super::side::{Parity, Phase, SIDE, Side, Sides};
use crate::simd::BLOCK;

/// How maps are cut into tiles: those of a convolution's outputs, in all passes. With stride 2 they are the smaller ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    pub h: usize,
    pub w: usize,
    pub rows: usize,
    pub columns: usize,
    /// All tiles of all images.
    pub count: usize,
    /// Sides of whole tiles, and of the last ones.
    pub whole: Side,
    last: Sides,
}

/// The tiles of all maps `[n, h, w, _]`.
pub(in crate::conv) fn tile_count([n, h, w, _]: [usize; 4]) -> usize {
    n * h.div_ceil(SIDE) * w.div_ceil(SIDE)
}

impl Tiling {
    pub fn new(shape: [usize; 4], stride: usize) -> Self {
        let [_, h, w, _] = shape;
        let (rows, columns) = (h.div_ceil(SIDE), w.div_ceil(SIDE));
        let (whole, last) = match stride {
            1 => (Side::Dense4, last_sides([h, w])),
            _ => (Side::Odd4, (Side::odd(h - (rows - 1) * SIDE), Side::odd(w - (columns - 1) * SIDE))),
        };
        Self { h, w, rows, columns, count: tile_count(shape), whole, last }
    }

    /// The sides of a tile.
    #[inline(always)]
    pub fn sides(&self, place: Place) -> Sides {
        let side = |from: usize, side: usize, last| if from + SIDE <= side { self.whole } else { last };
        (side(place.y0, self.h, self.last.0), side(place.x0, self.w, self.last.1))
    }

    /// The sides whose filter all tiles share.
    pub fn filter(&self) -> Sides {
        if self.last == (Side::Lone, Side::Lone) {
            return self.last;
        }
        let side = |count, last| if count == 1 && self.strided() { last } else { self.whole };
        (side(self.rows, self.last.0), side(self.columns, self.last.1))
    }

    /// Whether the convolution has stride 2.
    pub fn strided(&self) -> bool {
        self.whole.is_strided()
    }

    /// The kinds of pixels of the larger map: with stride 1 there is a single one.
    pub fn phases(&self) -> &'static [Phase] {
        if self.strided() { &Phase::STRIDED } else { &[Phase::ANY] }
    }

    /// Whether any tile has a point.
    pub fn has_point(&self, point: usize) -> bool {
        self.phase_has_point(Phase::ANY, point)
    }

    /// Whether any tile has a point for a kind of pixels.
    pub fn phase_has_point(&self, phase: Phase, point: usize) -> bool {
        let (rows, columns) = phase.of(self.filter());
        rows.has_point(point / 6) && columns.has_point(point % 6)
    }

    /// Where successive tiles lie.
    pub fn places(&self, tiles: Range<usize>) -> impl Iterator<Item = Place> {
        let mut next = self.locate(tiles.start);
        tiles.map(move |_| {
            let place = next;
            next.advance(self);
            place
        })
    }

    /// Where a tile lies.
    #[inline(always)]
    pub fn locate(&self, tile: usize) -> Place {
        let (column, rest) = (tile % self.columns, tile / self.columns);
        let (image, y0, x0) = (rest / self.rows, rest % self.rows * SIDE, column * SIDE);
        Place { image, y0, x0, pixel: (image * self.h + y0) * self.w + x0 }
    }
}

/// Which pixels of a map the values of tiles are: value `i` of a side that begins at `from` is pixel
/// `step * (from + i) + offset`, if there is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub h: usize,
    pub w: usize,
    pub step: usize,
    /// Along columns, and along rows.
    pub offset: (isize, isize),
    /// The kind of pixels.
    pub phase: Phase,
}

impl Grid {
    /// The inputs of a convolution: there is a pixel of padding above and to the left.
    pub fn inputs(shape: [usize; 4], phase: Phase) -> Self {
        Self::new(shape, phase, |parity| if parity == Parity::Even { 0 } else { -1 })
    }

    /// What a pass writes, and what the data pass of a strided convolution reads: tiles begin at a map's first pixel.
    pub fn outputs(shape: [usize; 4], phase: Phase) -> Self {
        Self::new(shape, phase, |parity| isize::from(parity == Parity::Odd))
    }

    fn new([_, h, w, _]: [usize; 4], phase: Phase, offset: fn(Parity) -> isize) -> Self {
        let step = if phase == Phase::ANY { 1 } else { 2 };
        Self { h, w, step, offset: (offset(phase.rows), offset(phase.columns)), phase }
    }

    /// The first row and column of a tile; they may lie outside the map.
    #[inline(always)]
    pub fn first(&self, place: Place) -> (isize, isize) {
        let first = |from: usize, offset| (self.step * from) as isize + offset;
        (first(place.y0, self.offset.0), first(place.x0, self.offset.1))
    }

    /// The pixel there, counted through all images.
    #[inline(always)]
    pub fn pixel(&self, place: Place) -> isize {
        let (y, x) = self.first(place);
        (((place.image * self.h) as isize + y) * self.w as isize) + x
    }

    /// How many of the values from a row or column on are inside.
    #[inline(always)]
    pub fn inside(&self, first: isize, side: usize) -> usize {
        ((side as isize - first + self.step as isize - 1) / self.step as isize).max(0) as usize
    }
}

/// Where a tile lies. To go from tile to tile is cheaper than to divide for each: with few channels, transforms take no
/// longer than some divisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub image: usize,
    /// Top row and left column.
    pub y0: usize,
    pub x0: usize,
    /// The top left pixel, counted through all images.
    pub pixel: usize,
}

impl Place {
    /// Moves on to the next tile; past the last one it goes to an image that is not there.
    #[inline(always)]
    pub fn advance(&mut self, t: &Tiling) {
        self.x0 += SIDE;
        self.pixel += SIDE;
        if self.x0 >= t.w {
            (self.x0, self.y0) = (0, self.y0 + SIDE);
            if self.y0 >= t.h {
                (self.y0, self.image) = (0, self.image + 1);
            }
            self.pixel = (self.image * t.h + self.y0) * t.w;
        }
    }
}

/// In which order a task keeps its tiles: such that the tiles of each point are neighbours.
///
/// First the tiles that are short of columns, then whole ones, those short of rows, and those short of both.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileOrder {
    /// The sides of the last tiles.
    last: Sides,
    /// Where each kind begins, by [`TileOrder::kind`], and how many tiles there are.
    starts: [usize; 4],
    count: usize,
}

impl TileOrder {
    pub fn new(tiling: &Tiling, tiles: Range<usize>) -> Self {
        let (last, mut kinds, count) = (tiling.last, [0; 4], tiles.len());
        for place in tiling.places(tiles) {
            kinds[Self::kind(tiling.sides(place))] += 1;
        }
        let [whole, narrow, low, _] = kinds;
        Self { last, starts: [narrow, 0, narrow + whole, narrow + whole + low], count }
    }

    #[inline(always)]
    fn kind((rows, columns): Sides) -> usize {
        let short = |side: Side| usize::from(side.outputs() < SIDE);
        short(columns) + 2 * short(rows)
    }

    /// Positions for tiles that come in the map's order, after some have had theirs.
    pub fn positions_after(&self, tiling: &Tiling, tiles: Range<usize>) -> Positions {
        let mut positions = self.positions();
        for place in tiling.places(tiles) {
            positions.next(tiling.sides(place));
        }
        positions
    }

    /// Positions for tiles that come in the map's order.
    pub fn positions(&self) -> Positions {
        Positions { next: self.starts }
    }

    /// The positions of the tiles that have a point.
    pub fn with_point(&self, point: usize) -> Range<usize> {
        let [whole, _, low, lowest] = self.starts;
        match (self.last.0.has_point(point / 6), self.last.1.has_point(point % 6)) {
            (true, true) => 0..self.count,
            (true, false) => whole..lowest,
            (false, true) => 0..low,
            (false, false) => whole..low,
        }
    }
}

/// Tiles of a source to transform, and where to: `[point][block][tile][16]`, tiles in a [`TileOrder`]. Points that a tile
/// does not have are not written.
#[derive(Clone)]
pub(super) struct Transform<'a> {
    pub tiling: &'a Tiling,
    /// Channels of the source.
    pub channels: usize,
    pub tiles: Range<usize>,
    /// Where the first of them goes.
    pub positions: Positions,
    /// Tiles in each block of the output, f32 from one point to the next, and the output.
    pub room: usize,
    pub point_stride: usize,
    pub out: *mut f32,
}

impl Transform<'_> {
    /// Where the first point of a block of a tile goes.
    ///
    /// # Safety
    /// The output must have room for it.
    #[inline(always)]
    pub unsafe fn at(&self, block: usize, position: usize) -> *mut f32 {
        // SAFETY: the output has room for the block's position.
        unsafe { self.out.add((block * self.room + position) * BLOCK) }
    }
}

/// The f32 from one point to the next where each has `rows` times `columns`: a line more than needed, so that points do
/// not fall on the same cache sets.
#[inline(always)]
pub(super) fn point_stride(rows: usize, columns: usize) -> usize {
    rows * columns + BLOCK
}

/// Gives tiles their positions in a [`TileOrder`].
#[derive(Clone, Copy)]
pub(super) struct Positions {
    next: [usize; 4],
}

impl Positions {
    /// The position of the next tile, which has these sides.
    #[inline(always)]
    pub fn next(&mut self, sides: Sides) -> usize {
        let next = &mut self.next[TileOrder::kind(sides)];
        *next += 1;
        *next - 1
    }
}
