//! The transform of the output's gradient in Winograd's weight pass: tiles of 4×4 pixels, which do not overlap and so
//! need no copy, to 6×6 points.

use std::marker::PhantomData;

use super::edge_tile::EdgeTile;
use super::maps::{OutputAdjointMap, Outputs, POINTS, SideMap, two_sided};
use super::side::{SIDE, Side, Sides, sides};
use super::tiling::{Place, Transform};
use crate::conv::Source;
use crate::load::{Load, LoadVisitor};
use crate::simd::{BLOCK, Job, Simd};

/// Transforms tiles of the output's gradient.
///
/// # Safety
/// The output have room; no other task may have these tiles.
pub(super) unsafe fn transform_gradients<S: Simd>(simd: S, source: &Source<'_>, to: Transform<'_>) {
    struct TransformGradients<'a, S>(Transform<'a>, S);
    impl<S: Simd> LoadVisitor for TransformGradients<'_, S> {
        fn visit<L: Load>(self, load: L) {
            // SAFETY: the output has room for these tiles, which are this task's alone.
            unsafe { self.1.run(GradientTransform { load: &load, to: self.0 }) }
        }
    }
    source.visit(TransformGradients(to, simd));
}

/// Tiles ahead that are asked for.
const AHEAD: usize = 8;

struct GradientTransform<'a, L> {
    load: &'a L,
    to: Transform<'a>,
}

impl<L: Load> GradientTransform<'_, L> {
    /// Transforms one vector of a tile.
    ///
    /// # Safety
    /// The tile and the channels must exist, and `out` have room for all points.
    #[inline(always)]
    unsafe fn tile<S: Simd, const PART: bool>(
        &self,
        simd: S,
        place: Place,
        sides: Sides,
        (c, n): (usize, usize),
        out: *mut f32,
    ) {
        let (t, point_stride) = (self.to.tiling, self.to.point_stride);
        // SAFETY: pixels outside the map are not read; `out` has room for all points.
        unsafe {
            let (at, step) = (place.pixel * self.to.channels + c, self.to.channels);
            let load = |r: usize, q: usize| self.load.vec::<S, PART>(simd, at + (r * t.w + q) * step, c, n);
            if !PART && sides == (Side::Dense4, Side::Dense4) {
                let put = |r: usize, q: usize, v: S::V| simd.store(out.add((r * 6 + q) * point_stride), v);
                two_sided!(simd, OutputAdjointMap, sides::Dense4, sides::Dense4, load, put);
                return;
            }
            let mut gradients = Outputs::uninit();
            let gradients = gradients.as_mut_ptr().cast::<f32>();
            for r in (0..SIDE).filter(|&r| OutputAdjointMap::reads(sides.0, r)) {
                for q in (0..SIDE).filter(|&q| OutputAdjointMap::reads(sides.1, q)) {
                    let inside = place.y0 + r < t.h && place.x0 + q < t.w;
                    let gradient = if inside { load(r, q) } else { simd.zero() };
                    simd.store(gradients.add((r * SIDE + q) * BLOCK), gradient);
                }
            }
            simd.run(EdgeTile {
                sides,
                from: gradients,
                from_steps: (SIDE * BLOCK, BLOCK),
                to: out,
                to_steps: (6 * point_stride, point_stride),
                side: PhantomData::<OutputAdjointMap>,
            });
        }
    }
}

impl<L: Load> Job for GradientTransform<'_, L> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let (t, first) = (self.to.tiling, self.to.tiles.start);
        let (mut at, mut ahead) = (t.locate(first), t.locate(first + AHEAD));
        let mut positions = self.to.positions;
        for _ in 0..self.to.tiles.len() {
            let sides = t.sides(at);
            let position = positions.next(sides);
            for c in (0..self.to.channels.next_multiple_of(BLOCK)).step_by(S::LANES) {
                let n = self.to.channels.saturating_sub(c).min(S::LANES);
                // A cache line holds two vectors of some instruction sets.
                if c.is_multiple_of(BLOCK) {
                    let mut first = ahead.pixel * self.to.channels + c;
                    for _ in 0..SIDE {
                        for q in 0..SIDE {
                            self.load.prefetch(simd, first + q * self.to.channels);
                        }
                        first += t.w * self.to.channels;
                    }
                }
                // SAFETY: the tiles exist, and the output has room for each in its position.
                unsafe {
                    let out = self.to.at(c / BLOCK, position).add(c % BLOCK);
                    match n {
                        0 => (0..POINTS)
                            .for_each(|p| simd.store(out.add(p * self.to.point_stride), simd.zero())),
                        n if n == S::LANES => self.tile::<S, false>(simd, at, sides, (c, n), out),
                        n => self.tile::<S, true>(simd, at, sides, (c, n), out),
                    }
                }
            }
            at.advance(t);
            ahead.advance(t);
        }
    }
}
