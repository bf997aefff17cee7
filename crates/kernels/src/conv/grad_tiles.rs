//! The transform of the output's gradient in Winograd's weight pass: tiles of 4×4 pixels, which do not overlap and so
//! need no copy, to 6×6 points.

use std::marker::PhantomData;

use super::tiling::{Place, SIDE, TileBuffer, Tiling};
use super::transforms::{AnyTile, OutputAdjoint, Outputs, POINTS, Side, two_sided};
use crate::load::{Load, LoadVisitor};
use crate::simd::{BLOCK, Job, Simd};

/// Transforms tiles of the output's gradient.
///
/// Whoever visits a source with it promises that the instruction set is available, and that the buffers have room.
pub(super) struct GradVisitor<'a, S> {
    pub tiling: &'a Tiling,
    /// Channels of the source.
    pub channels: usize,
    pub tiles: (usize, usize),
    pub buffer: TileBuffer,
    pub simd: PhantomData<S>,
}

impl<S: Simd> LoadVisitor for GradVisitor<'_, S> {
    fn visit<L: Load>(self, load: L) {
        // SAFETY: the promise of the visitor's maker.
        unsafe { S::run(GradTiles { load: &load, to: self }) }
    }
}

/// Tiles ahead that are asked for.
const AHEAD: usize = 8;

struct GradTiles<'a, L, S> {
    load: &'a L,
    to: GradVisitor<'a, S>,
}

impl<L: Load, V> GradTiles<'_, L, V> {
    /// Transforms one vector of a tile, which computes `outputs`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const PART: bool>(
        &self,
        place: Place,
        outputs: (usize, usize),
        (c, n): (usize, usize),
        out: *mut f32,
    ) {
        let t = self.to.tiling;
        // SAFETY: the caller's promise; pixels outside the map are not read.
        unsafe {
            let (at, step) = (place.pixel * self.to.channels + c, self.to.channels);
            let load = |r: usize, q: usize| self.load.vec::<S, PART>(at + (r * t.w + q) * step, c, n);
            if !PART && outputs == (SIDE, SIDE) {
                let put = |r: usize, q: usize, v: S::V| {
                    S::store(out.add((r * 6 + q) * self.to.buffer.point_stride), v)
                };
                two_sided!(S, OutputAdjoint, SIDE, SIDE, load, put);
                return;
            }
            let mut gradients = Outputs::uninit();
            let gradients = gradients.as_mut_ptr().cast::<f32>();
            for r in (0..SIDE).filter(|&r| OutputAdjoint::reads(outputs.0, r)) {
                for q in (0..SIDE).filter(|&q| OutputAdjoint::reads(outputs.1, q)) {
                    let inside = place.y0 + r < t.h && place.x0 + q < t.w;
                    let gradient = if inside { load(r, q) } else { S::zero() };
                    S::store(gradients.add((r * SIDE + q) * BLOCK), gradient);
                }
            }
            S::run(AnyTile {
                outputs,
                from: gradients,
                from_steps: (SIDE * BLOCK, BLOCK),
                to: out,
                to_steps: (6 * self.to.buffer.point_stride, self.to.buffer.point_stride),
                side: PhantomData::<OutputAdjoint>,
            });
        }
    }
}

impl<L: Load, V> Job for GradTiles<'_, L, V> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let (t, buffer) = (self.to.tiling, self.to.buffer);
        let count = self.to.tiles.1 - self.to.tiles.0;
        let (mut at, mut ahead) = (t.locate(self.to.tiles.0), t.locate(self.to.tiles.0 + AHEAD));
        let mut positions = buffer.positions;
        for _ in 0..count {
            let outputs = t.outputs(at);
            let position = positions.next(outputs);
            for c in (0..self.to.channels.next_multiple_of(BLOCK)).step_by(S::LANES) {
                let n = self.to.channels.saturating_sub(c).min(S::LANES);
                // A cache line holds two vectors of some instruction sets.
                if c.is_multiple_of(BLOCK) {
                    let mut first = ahead.pixel * self.to.channels + c;
                    for _ in 0..SIDE {
                        for q in 0..SIDE {
                            // SAFETY: the instruction set is available.
                            unsafe { self.load.prefetch::<S>(first + q * self.to.channels) };
                        }
                        first += t.w * self.to.channels;
                    }
                }
                // SAFETY: the maker of the job promises that the tiles exist and `out` has room.
                unsafe {
                    let out = buffer.out.add((c / BLOCK * buffer.tiles + position) * BLOCK + c % BLOCK);
                    match n {
                        0 => (0..POINTS).for_each(|p| S::store(out.add(p * buffer.point_stride), S::zero())),
                        n if n == S::LANES => self.tile::<S, false>(at, outputs, (c, n), out),
                        n => self.tile::<S, true>(at, outputs, (c, n), out),
                    }
                }
            }
            at.advance(t);
            ahead.advance(t);
        }
    }
}
