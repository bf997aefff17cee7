//! The maps of Winograd's tiles for sides that are known at run time only: at the edges of maps, and wherever there are two
//! taps.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::maps::{SideMap, two_sided};
use super::side::{Side, Sides, StaticSide, sides, with_side};
use crate::simd::{BLOCK, Job, Simd};

/// Applies a map to one vector of a tile, of any size, in memory.
pub(super) struct EdgeTile<X> {
    /// The sides along rows and columns.
    pub sides: Sides,
    /// Values to read, and how far it is from row to row and from column to column.
    pub from: *const f32,
    pub from_steps: (usize, usize),
    /// Values to write.
    pub to: *mut f32,
    pub to_steps: (usize, usize),
    pub side: PhantomData<X>,
}

impl<X: SideMap> Job for EdgeTile<X> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        use Side::{Dense2, Dense3, Even4, Lone, Odd4};
        // SAFETY: a job's pointers are valid: for what maps of these sides read and give.
        unsafe {
            match self.sides {
                (Odd4, Odd4) => self.two_sided::<S, sides::Odd4, sides::Odd4>(simd),
                (Odd4, Even4) => self.two_sided::<S, sides::Odd4, sides::Even4>(simd),
                (Even4, Odd4) => self.two_sided::<S, sides::Even4, sides::Odd4>(simd),
                (Even4, Even4) => self.two_sided::<S, sides::Even4, sides::Even4>(simd),
                (rows, _) if rows.is_strided() => self.side_by_side(simd),
                (Lone, _) => self.two_sided::<S, sides::Lone, sides::Lone>(simd),
                (Dense2, Dense2) => self.two_sided::<S, sides::Dense2, sides::Dense2>(simd),
                (Dense2, Dense3) => self.two_sided::<S, sides::Dense2, sides::Dense3>(simd),
                (Dense2, _) => self.two_sided::<S, sides::Dense2, sides::Dense4>(simd),
                (Dense3, Dense2) => self.two_sided::<S, sides::Dense3, sides::Dense2>(simd),
                (Dense3, Dense3) => self.two_sided::<S, sides::Dense3, sides::Dense3>(simd),
                (Dense3, _) => self.two_sided::<S, sides::Dense3, sides::Dense4>(simd),
                (_, Dense2) => self.two_sided::<S, sides::Dense4, sides::Dense2>(simd),
                (_, Dense3) => self.two_sided::<S, sides::Dense4, sides::Dense3>(simd),
                _ => self.two_sided::<S, sides::Dense4, sides::Dense4>(simd),
            }
        }
    }
}

impl<X: SideMap> EdgeTile<X> {
    /// Both sides at once.
    ///
    /// # Safety
    /// What the maps read and give must be there.
    #[inline(always)]
    unsafe fn two_sided<S: Simd, R: StaticSide, C: StaticSide>(&self, simd: S) {
        // SAFETY: both pointers are valid for what the map of these sides reads and gives.
        unsafe {
            let get =
                |r: usize, q: usize| simd.load(self.from.add(r * self.from_steps.0 + q * self.from_steps.1));
            let put = |r: usize, q: usize, v: S::V| {
                simd.store(self.to.add(r * self.to_steps.0 + q * self.to_steps.1), v)
            };
            two_sided!(simd, X, R, C, get, put);
        }
    }

    /// One side after the other, for two taps, where there are 64 pairs of sides.
    ///
    /// # Safety
    /// What the maps read and give must be there.
    #[inline(always)]
    unsafe fn side_by_side<S: Simd>(&self, simd: S) {
        let (rows, columns) = self.sides;
        let mut half = MaybeUninit::<[[f32; BLOCK]; 36]>::uninit();
        let half = half.as_mut_ptr().cast::<f32>();
        let (row, column) = (6 * BLOCK, BLOCK);
        // SAFETY: both pointers are valid for what the map of these sides reads and gives; of the memory between, only what was written is read.
        unsafe {
            with_side!(rows, R => {
                for q in (0..6).filter(|&q| X::reads(columns, q)) {
                    let from = self.from.add(q * self.from_steps.1);
                    one_side::<S, X, R>(simd, (from, self.from_steps.0), (half.add(q * column), row));
                }
            });
            with_side!(columns, C => {
                for r in (0..6).filter(|&r| X::gives(rows, r)) {
                    let to = self.to.add(r * self.to_steps.0);
                    one_side::<S, X, C>(simd, (half.add(r * row), column), (to, self.to_steps.1));
                }
            });
        }
    }
}

/// Applies the map for a side `T` to values in memory: where they are, and how far it is from one to the next.
///
/// # Safety
/// What the map reads and gives be there.
#[inline(always)]
pub(super) unsafe fn one_side<S: Simd, X: SideMap, T: StaticSide>(
    simd: S,
    from: (*const f32, usize),
    to: (*mut f32, usize),
) {
    // SAFETY: only what the map reads is read.
    unsafe {
        let mut values = [simd.zero(); 6];
        for i in 0..6 {
            if X::reads(T::SIDE, i) {
                values[i] = simd.load(from.0.add(i * from.1));
            }
        }
        put_side::<S, X, T>(simd, values, to);
    }
}

/// The same for values in registers.
///
/// # Safety
/// What the map gives must be there.
#[inline(always)]
pub(super) unsafe fn put_side<S: Simd, X: SideMap, T: StaticSide>(
    simd: S,
    values: [S::V; 6],
    to: (*mut f32, usize),
) {
    // SAFETY: only what the map gives is written.
    unsafe {
        let values = X::apply::<S, T>(simd, values);
        for i in 0..6 {
            if X::gives(T::SIDE, i) {
                simd.store(to.0.add(i * to.1), values[i]);
            }
        }
    }
}
