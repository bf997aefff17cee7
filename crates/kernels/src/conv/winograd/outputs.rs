//! Winograd's transform of products to outputs, which are finished in registers.

use std::marker::PhantomData;

use super::edge_tile::EdgeTile;
use super::maps::{OutputMap, Outputs, columns, row};
use super::product::{PLACES, TilePart, WinogradProduct};
use super::side::{SIDE, Side, Sides, sides};
use super::tiling::{Grid, Place};
use crate::conv::finish::{Finish, FinishVisitor};
use crate::conv::partials::ChannelSums;
use crate::simd::{BLOCK, Job, Simd};

pub(super) struct OutputVisitor<'a, S> {
    pub pass: &'a WinogradProduct<'a, S>,
    pub part: &'a TilePart,
    /// Which pixels the outputs are.
    pub grid: Grid,
    /// `[tile][point][channel of a full panel]`
    pub products: *const f32,
    pub width: usize,
    pub c0: usize,
    pub simd: S,
}

impl<S: Simd> FinishVisitor for OutputVisitor<'_, S> {
    fn visit<F: Finish>(self, finish: F) {
        // SAFETY: whoever visits has computed the products, and this task alone writes these tiles' channels.
        unsafe { self.simd.run(OutputJob { finish, visitor: &self }) }
    }
}

/// Tiles ahead whose outputs are asked for.
const AHEAD: usize = 6;

struct OutputJob<'a, F, S> {
    finish: F,
    visitor: &'a OutputVisitor<'a, S>,
}

impl<F: Finish, U: Simd> OutputJob<'_, F, U> {
    /// Finishes all tiles, vector by vector: the vectors of a tile share cache lines.
    ///
    /// # Safety
    /// The products must be there, and no other task have these tiles' channels.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const PART: bool>(&self, simd: S) {
        let v = self.visitor;
        let (pass, t, tiles) = (v.pass, &v.pass.tiling, &v.part.tiles);
        let channels = pass.filters.channels();
        let lanes = || (0..v.width).step_by(S::LANES);
        // The channels of a full panel: constant, so that a tile's points are at constant distances.
        let full = 2 * S::LANES;
        debug_assert_eq!(full, pass.panels.full());
        let counted = |lane: usize| (channels - v.c0 - lane).min(S::LANES);
        // SAFETY: there is a part of the sums for this part of the tiles, there are `PLACES` products of each tile, and the
        // pixels of a tile that are written lie in the map.
        unsafe {
            let mut sums = [ChannelSums::new(simd); 2];
            for (lane, sums) in lanes().zip(&mut sums) {
                *sums = pass.partials.load(simd, v.part.index, v.c0 + lane, counted(lane));
            }
            let grid = &v.grid;
            let steps = (grid.w * grid.step * channels, grid.step * channels);
            // With stride 1 the pixel is known.
            let pixel = |place: Place| if grid.step == 1 { place.pixel } else { grid.pixel(place) as usize };
            let (mut place, mut ahead) = (t.locate(tiles.start), t.locate(tiles.start + AHEAD));
            let mut positions = v.part.order.positions();
            for i in 0..tiles.len() {
                if i + AHEAD < tiles.len() {
                    for line in (0..v.width).step_by(BLOCK) {
                        let mut at = pixel(ahead) * channels + v.c0 + line;
                        for _ in 0..SIDE {
                            (0..SIDE).for_each(|q| self.finish.prefetch(simd, at + q * steps.1));
                            at += steps.0;
                        }
                    }
                }
                let sides = grid.phase.of(t.sides(place));
                let products = v.products.add(positions.next(sides) * PLACES * full);
                let first = pixel(place) * channels;
                for (lane, of_vector) in lanes().zip(&mut sums) {
                    let (c, n) = (v.c0 + lane, counted(lane));
                    let tile = TileVector {
                        products: products.add(lane),
                        at: first + c,
                        steps,
                        c,
                        n,
                        begins: i == 0,
                    };
                    // A copy, which can stay in registers.
                    let mut sums = *of_vector;
                    if sides == (Side::Dense4, Side::Dense4) {
                        self.whole_tile::<S, PART>(&tile, &mut sums);
                    } else {
                        self.edge_tile::<S, PART>(&tile, sides, place, &mut sums);
                    }
                    *of_vector = sums;
                }
                place.advance(t);
                ahead.advance(t);
            }
            for (lane, sums) in lanes().zip(&sums) {
                pass.partials.store(v.part.index, v.c0 + lane, counted(lane), sums);
            }
        }
    }

    /// Finishes a vector of a whole tile of a map without stride: all in registers.
    ///
    /// # Safety
    /// The vector's products must be there, and its outputs in the map.
    #[inline(always)]
    unsafe fn whole_tile<S: Simd, const PART: bool>(&self, tile: &TileVector, sums: &mut ChannelSums<S>) {
        let (simd, full) = (sums.simd, 2 * S::LANES);
        let mut at = tile.at;
        // SAFETY: a whole tile has all 36 points, and 4×4 outputs in the map.
        unsafe {
            let get = |r: usize, q: usize| simd.load(tile.products.add((r * 6 + q) * full));
            let half = columns::<S, OutputMap, sides::Dense4, sides::Dense4>(simd, get);
            for r in 0..SIDE {
                let row = row::<S, OutputMap, sides::Dense4>(simd, &half, r);
                if tile.begins && r == 0 {
                    sums.shift = row[0];
                }
                // Constant bounds, so that outputs stay in registers.
                for (q, &value) in row[..SIDE].iter().enumerate() {
                    self.finish.vec::<S, PART>(value, at + q * tile.steps.1, tile.c, tile.n, sums);
                }
                at += tile.steps.0;
            }
        }
    }

    /// Finishes a vector of any tile.
    ///
    /// # Safety
    /// The vector's products must be there.
    #[inline(always)]
    unsafe fn edge_tile<S: Simd, const PART: bool>(
        &self,
        tile: &TileVector,
        sides: Sides,
        place: Place,
        sums: &mut ChannelSums<S>,
    ) {
        let (simd, full, grid) = (sums.simd, 2 * S::LANES, &self.visitor.grid);
        let mut at = tile.at;
        let mut done = Outputs::uninit();
        let done = done.as_mut_ptr().cast::<f32>();
        // SAFETY: the products of the points that such sides have are there, `done` has room for 4×4 outputs, and outputs
        // outside the map are not written.
        unsafe {
            simd.run(EdgeTile {
                sides,
                from: tile.products,
                from_steps: (6 * full, full),
                to: done,
                to_steps: (SIDE * BLOCK, BLOCK),
                side: PhantomData::<OutputMap>,
            });
            let done = |r: usize, q: usize| simd.load(done.add((r * SIDE + q) * BLOCK));
            if tile.begins {
                sums.shift = done(0, 0);
            }
            let (y, x) = grid.first(place);
            let inside = (grid.inside(y, grid.h), grid.inside(x, grid.w));
            for r in 0..sides.0.outputs().min(inside.0) {
                for q in 0..sides.1.outputs().min(inside.1) {
                    self.finish.vec::<S, PART>(done(r, q), at + q * tile.steps.1, tile.c, tile.n, sums);
                }
                at += tile.steps.0;
            }
        }
    }
}

/// One vector of a tile: where its products are and where its outputs go.
struct TileVector {
    /// The first point's; others are at the distance of a full panel.
    products: *const f32,
    /// The first output's element, and elements from row to row and from column to column.
    at: usize,
    steps: (usize, usize),
    /// The first channel, and the channels that count.
    c: usize,
    n: usize,
    /// Whether the part's sums begin here.
    begins: bool,
}

impl<F: Finish, U: Simd> Job for OutputJob<'_, F, U> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let v = self.visitor;
        // SAFETY: the products are there, and this task alone has these tiles' channels.
        unsafe {
            if v.pass.filters.channels() - v.c0 >= v.width {
                self.tiles::<S, false>(simd)
            } else {
                self.tiles::<S, true>(simd)
            }
        }
    }
}
