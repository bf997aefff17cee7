//! How maps are cut into the tiles of Winograd's algorithm, and in which order a task keeps its tiles.

use std::ops::Range;

use super::transforms::{LONE, has_point, last_outputs};
use crate::simd::BLOCK;

/// Outputs along a tile's side.
pub(super) const SIDE: usize = 4;

/// How maps are cut into tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    pub h: usize,
    pub w: usize,
    pub rows: usize,
    pub columns: usize,
    /// All tiles of all images.
    pub count: usize,
    /// [`last_outputs`].
    last: (usize, usize),
}

impl Tiling {
    pub fn new([n, h, w, _]: [usize; 4]) -> Self {
        let (rows, columns) = (h.div_ceil(SIDE), w.div_ceil(SIDE));
        Self { h, w, rows, columns, count: n * rows * columns, last: last_outputs([h, w]) }
    }

    /// Outputs that a tile computes: rows and columns.
    #[inline(always)]
    pub fn outputs(&self, place: Place) -> (usize, usize) {
        let outputs = |from: usize, side: usize, last| if from + SIDE <= side { SIDE } else { last };
        (outputs(place.y0, self.h, self.last.0), outputs(place.x0, self.w, self.last.1))
    }

    /// The tiles whose filter all tiles share.
    pub fn filter(&self) -> (usize, usize) {
        if self.last == (LONE, LONE) { self.last } else { (SIDE, SIDE) }
    }

    /// Whether any tile has a point.
    pub fn has_point(&self, point: usize) -> bool {
        let (rows, columns) = self.filter();
        has_point(rows, point / 6) && has_point(columns, point % 6)
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
    /// Outputs along the sides of the last tiles.
    last: (usize, usize),
    /// Where each kind begins, by [`TileOrder::kind`], and how many tiles there are.
    starts: [usize; 4],
    count: usize,
}

impl TileOrder {
    pub fn new(tiling: &Tiling, tiles: Range<usize>) -> Self {
        let (last, mut kinds, count) = (tiling.last, [0; 4], tiles.len());
        for place in tiling.places(tiles) {
            kinds[Self::kind(tiling.outputs(place))] += 1;
        }
        let [whole, narrow, low, _] = kinds;
        Self { last, starts: [narrow, 0, narrow + whole, narrow + whole + low], count }
    }

    #[inline(always)]
    fn kind((rows, columns): (usize, usize)) -> usize {
        usize::from(columns < SIDE) + 2 * usize::from(rows < SIDE)
    }

    /// Positions for tiles that come in the map's order, after some have had theirs.
    pub fn positions_after(&self, tiling: &Tiling, tiles: Range<usize>) -> Positions {
        let mut positions = self.positions();
        for place in tiling.places(tiles) {
            positions.next(tiling.outputs(place));
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
        match (has_point(self.last.0, point / 6), has_point(self.last.1, point % 6)) {
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
    /// Tiles in each block of the output, and the output, whose points lie [`point_stride`] apart.
    pub room: usize,
    pub out: *mut f32,
}

impl Transform<'_> {
    /// f32 from one point to the next.
    #[inline(always)]
    pub fn point_stride(&self) -> usize {
        point_stride(self.room, self.channels.next_multiple_of(BLOCK))
    }

    /// Where the first point of a block of a tile goes.
    ///
    /// # Safety
    /// The output must have room for it.
    #[inline(always)]
    pub unsafe fn at(&self, block: usize, position: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
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
    /// The position of the next tile, which computes these outputs.
    #[inline(always)]
    pub fn next(&mut self, outputs: (usize, usize)) -> usize {
        let next = &mut self.next[TileOrder::kind(outputs)];
        *next += 1;
        *next - 1
    }
}
