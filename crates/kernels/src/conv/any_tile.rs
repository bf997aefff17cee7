//! The maps of Winograd's tiles for sides that are known at run time only: at the edges of maps, and wherever there are two
//! taps.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::transforms::{LONE, Side, two_sided};
use super::two_taps::{EVEN, ODD, has_two_taps};
use crate::simd::{BLOCK, Job, Simd};

/// Runs a block for the constant that a side is.
macro_rules! with_side {
    ($side:expr, $T:ident => $block:block) => {{
        use $crate::conv::transforms::LONE;
        use $crate::conv::two_taps::{EVEN, ODD};
        with_side!(
            $side, $T => $block;
            LONE, 2, 3, ODD + 1, ODD + 2, ODD + 3, ODD + 4, EVEN + 1, EVEN + 2, EVEN + 3, EVEN + 4; 4
        )
    }};
    ($side:expr, $T:ident => $block:block; $($some:expr),*; $last:expr) => {
        match $side {
            $(side if side == $some => { const $T: usize = $some; $block })*
            _ => { const $T: usize = $last; $block }
        }
    };
}
pub(super) use with_side;

/// Applies a map to one vector of a tile, of any size, in memory.
pub(super) struct AnyTile<X> {
    /// The sides along rows and columns.
    pub sides: (usize, usize),
    /// Values to read, and how far it is from row to row and from column to column.
    pub from: *const f32,
    pub from_steps: (usize, usize),
    /// Values to write.
    pub to: *mut f32,
    pub to_steps: (usize, usize),
    pub side: PhantomData<X>,
}

/// Whole sides with two taps.
const ODD_4: usize = ODD + 4;
const EVEN_4: usize = EVEN + 4;

impl<X: Side> Job for AnyTile<X> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        // SAFETY: whoever runs the job promises that what the maps read and give is there.
        unsafe {
            match self.sides {
                (ODD_4, ODD_4) => self.two_sided::<S, ODD_4, ODD_4>(),
                (ODD_4, EVEN_4) => self.two_sided::<S, ODD_4, EVEN_4>(),
                (EVEN_4, ODD_4) => self.two_sided::<S, EVEN_4, ODD_4>(),
                (EVEN_4, EVEN_4) => self.two_sided::<S, EVEN_4, EVEN_4>(),
                (rows, _) if has_two_taps(rows) => self.side_by_side::<S>(),
                (LONE, _) => self.two_sided::<S, LONE, LONE>(),
                (2, 2) => self.two_sided::<S, 2, 2>(),
                (2, 3) => self.two_sided::<S, 2, 3>(),
                (2, _) => self.two_sided::<S, 2, 4>(),
                (3, 2) => self.two_sided::<S, 3, 2>(),
                (3, 3) => self.two_sided::<S, 3, 3>(),
                (3, _) => self.two_sided::<S, 3, 4>(),
                (_, 2) => self.two_sided::<S, 4, 2>(),
                (_, 3) => self.two_sided::<S, 4, 3>(),
                _ => self.two_sided::<S, 4, 4>(),
            }
        }
    }
}

impl<X: Side> AnyTile<X> {
    /// Both sides at once.
    #[inline(always)]
    unsafe fn two_sided<S: Simd, const R: usize, const C: usize>(&self) {
        // SAFETY: as for `call`.
        unsafe {
            let get =
                |r: usize, q: usize| S::load(self.from.add(r * self.from_steps.0 + q * self.from_steps.1));
            let put = |r: usize, q: usize, v: S::V| {
                S::store(self.to.add(r * self.to_steps.0 + q * self.to_steps.1), v)
            };
            two_sided!(S, X, R, C, get, put);
        }
    }

    /// One side after the other, for two taps, where there are 64 pairs of sides.
    #[inline(always)]
    unsafe fn side_by_side<S: Simd>(&self) {
        let (rows, columns) = self.sides;
        let mut half = MaybeUninit::<[[f32; BLOCK]; 36]>::uninit();
        let half = half.as_mut_ptr().cast::<f32>();
        let (row, column) = (6 * BLOCK, BLOCK);
        // SAFETY: as for `call`; of the memory between, only what was written is read.
        unsafe {
            with_side!(rows, R => {
                for q in (0..6).filter(|&q| X::reads(columns, q)) {
                    let from = self.from.add(q * self.from_steps.1);
                    one_side::<S, X, R>((from, self.from_steps.0), (half.add(q * column), row));
                }
            });
            with_side!(columns, C => {
                for r in (0..6).filter(|&r| X::gives(rows, r)) {
                    let to = self.to.add(r * self.to_steps.0);
                    one_side::<S, X, C>((half.add(r * row), column), (to, self.to_steps.1));
                }
            });
        }
    }
}

/// Applies the map for a side `T` to values in memory: where they are, and how far it is from one to the next.
///
/// # Safety
/// The instruction set must be available, and what the map reads and gives be there.
#[inline(always)]
pub(super) unsafe fn one_side<S: Simd, X: Side, const T: usize>(
    from: (*const f32, usize),
    to: (*mut f32, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut values = [S::zero(); 6];
        for i in 0..6 {
            if X::reads(T, i) {
                values[i] = S::load(from.0.add(i * from.1));
            }
        }
        put_side::<S, X, T>(values, to);
    }
}

/// The same for values in registers.
///
/// # Safety
/// As for [`one_side`].
#[inline(always)]
pub(super) unsafe fn put_side<S: Simd, X: Side, const T: usize>(values: [S::V; 6], to: (*mut f32, usize)) {
    // SAFETY: the caller's promise.
    unsafe {
        let values = X::apply::<S, T>(values);
        for i in 0..6 {
            if X::gives(T, i) {
                S::store(to.0.add(i * to.1), values[i]);
            }
        }
    }
}
