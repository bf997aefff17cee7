//! Winograd's transform of products to outputs, which are finished in registers.

use std::marker::PhantomData;

use super::edge_tile::EdgeTile;
use super::maps::{OutputMap, Outputs, columns, row};
use super::product::{PLACES, TilePart, WinogradProduct};
use super::side::{SIDE, Side, sides};
use super::tiling::{Grid, Place};
use crate::conv::finish::{Finish, FinishVisitor};
use crate::conv::partials::ChannelSums;
use crate::simd::{BLOCK, Job, Simd};

pub(super) struct OutputVisitor<'a, S> {
    pub pass: &'a WinogradProduct<'a>,
    pub part: &'a TilePart,
    /// Which pixels the outputs are.
    pub grid: Grid,
    /// `[tile][point][channel of a full panel]`
    pub products: *const f32,
    pub width: usize,
    pub c0: usize,
    pub simd: PhantomData<S>,
}

impl<S: Simd> FinishVisitor for OutputVisitor<'_, S> {
    fn visit<F: Finish>(self, finish: F) {
        // SAFETY: the instruction set is available; the products are there, and this task alone writes these
        // tiles' channels.
        unsafe { S::run(OutputJob { finish, visitor: &self }) }
    }
}

/// Tiles ahead whose outputs are asked for.
const AHEAD: usize = 6;

struct OutputJob<'a, F, S> {
    finish: F,
    visitor: &'a OutputVisitor<'a, S>,
}

impl<F: Finish, U> OutputJob<'_, F, U> {
    /// Finishes all tiles, vector by vector: the vectors of a tile share cache lines.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const PART: bool>(&self) {
        let v = self.visitor;
        let (pass, t, tiles) = (v.pass, &v.pass.tiling, &v.part.tiles);
        let channels = pass.filters.channels();
        let lanes = || (0..v.width).step_by(S::LANES);
        // The channels of a full panel: constant, so that a tile's points are at constant distances.
        let full = 2 * S::LANES;
        debug_assert_eq!(full, pass.panels.full());
        let counted = |lane: usize| (channels - v.c0 - lane).min(S::LANES);
        // SAFETY: the caller's promise; outputs outside the map are not written.
        unsafe {
            let mut sums = [ChannelSums { shift: S::zero(), first: S::zero(), second: S::zero() }; 2];
            for (lane, sums) in lanes().zip(&mut sums) {
                *sums = pass.partials.load::<S>(v.part.index, v.c0 + lane, counted(lane));
            }
            let (grid, step) = (&v.grid, v.grid.step * channels);
            let row_step = grid.w * step;
            // With stride 1 the pixel is known.
            let pixel = |place: Place| if grid.step == 1 { place.pixel } else { grid.pixel(place) as usize };
            let (mut place, mut ahead) = (t.locate(tiles.start), t.locate(tiles.start + AHEAD));
            let mut positions = v.part.order.positions();
            for i in 0..tiles.len() {
                if i + AHEAD < tiles.len() {
                    for line in (0..v.width).step_by(BLOCK) {
                        let mut at = pixel(ahead) * channels + v.c0 + line;
                        for _ in 0..SIDE {
                            (0..SIDE).for_each(|q| self.finish.prefetch::<S>(at + q * step));
                            at += row_step;
                        }
                    }
                }
                let sides = grid.phase.of(t.sides(place));
                let products = v.products.add(positions.next(sides) * PLACES * full);
                let first = pixel(place) * channels;
                for (lane, of_vector) in lanes().zip(&mut sums) {
                    let (c, n) = (v.c0 + lane, counted(lane));
                    let products = products.add(lane);
                    // A copy, which can stay in registers.
                    let mut sums = *of_vector;
                    let mut at = first + c;
                    if sides == (Side::Dense4, Side::Dense4) {
                        let get = |r: usize, q: usize| S::load(products.add((r * 6 + q) * full));
                        let half = columns::<S, OutputMap, sides::Dense4, sides::Dense4>(get);
                        for r in 0..SIDE {
                            let row = row::<S, OutputMap, sides::Dense4>(&half, r);
                            if i == 0 && r == 0 {
                                sums.shift = row[0];
                            }
                            // Constant bounds, so that outputs stay in registers.
                            for (q, &value) in row[..SIDE].iter().enumerate() {
                                self.finish.vec::<S, PART>(value, at + q * step, c, n, &mut sums);
                            }
                            at += row_step;
                        }
                    } else {
                        let mut done = Outputs::uninit();
                        let done = done.as_mut_ptr().cast::<f32>();
                        S::run(EdgeTile {
                            sides,
                            from: products,
                            from_steps: (6 * full, full),
                            to: done,
                            to_steps: (SIDE * BLOCK, BLOCK),
                            side: PhantomData::<OutputMap>,
                        });
                        let done = |r: usize, q: usize| S::load(done.add((r * SIDE + q) * BLOCK));
                        if i == 0 {
                            sums.shift = done(0, 0);
                        }
                        let (y, x) = grid.first(place);
                        let inside = (grid.inside(y, grid.h), grid.inside(x, grid.w));
                        for r in 0..sides.0.outputs().min(inside.0) {
                            for q in 0..sides.1.outputs().min(inside.1) {
                                self.finish.vec::<S, PART>(done(r, q), at + q * step, c, n, &mut sums);
                            }
                            at += row_step;
                        }
                    }
                    *of_vector = sums;
                }
                place.advance(t);
                ahead.advance(t);
            }
            for (lane, sums) in lanes().zip(&sums) {
                pass.partials.store::<S>(v.part.index, v.c0 + lane, counted(lane), sums);
            }
        }
    }
}

impl<F: Finish, U> Job for OutputJob<'_, F, U> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let v = self.visitor;
        // SAFETY: the maker of the job promises it.
        unsafe {
            if v.pass.filters.channels() - v.c0 >= v.width {
                self.tiles::<S, false>()
            } else {
                self.tiles::<S, true>()
            }
        }
    }
}
