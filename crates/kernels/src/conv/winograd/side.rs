//! The sides of Winograd's tiles, and the kinds of pixels of a convolution that strides.
//!
//! A tile computes up to 4×4 outputs from points out of `0, 1, -1, 2, -2, ∞` along each side. Which points, inputs and taps
//! a side has is here and nowhere else; the maps between them are in [`maps`](super::maps) and [`two_taps`](super::two_taps).

/// What a tile is along one of its sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The two outputs of a map of 2×2 pixels, which has zeros all around it.
    Lone,
    /// Two outputs of three taps.
    Dense2,
    /// Three outputs of three taps.
    Dense3,
    /// Four outputs of three taps: a whole side.
    Dense4,
    /// One output of the two taps on odd pixels.
    Odd1,
    /// Two outputs of the two taps on odd pixels.
    Odd2,
    /// Three outputs of the two taps on odd pixels.
    Odd3,
    /// Four outputs of the two taps on odd pixels.
    Odd4,
    /// One output of the tap on even pixels.
    Even1,
    /// Two outputs of the tap on even pixels.
    Even2,
    /// Three outputs of the tap on even pixels.
    Even3,
    /// Four outputs of the tap on even pixels.
    Even4,
}

/// The sides along rows and columns.
pub(super) type Sides = (Side, Side);

/// Outputs along a whole side.
pub(super) const SIDE: usize = 4;

impl Side {
    /// Up to four outputs of a map whose convolution has stride 1. A single one is computed as two.
    pub const fn dense(outputs: usize) -> Self {
        match outputs {
            4 => Side::Dense4,
            3 => Side::Dense3,
            _ => Side::Dense2,
        }
    }

    /// Up to four outputs that read odd pixels.
    pub const fn odd(outputs: usize) -> Self {
        match outputs {
            4 => Side::Odd4,
            3 => Side::Odd3,
            2 => Side::Odd2,
            _ => Side::Odd1,
        }
    }

    /// The side for a kind of pixels, of one for odd ones.
    #[inline(always)]
    pub const fn of(self, parity: Parity) -> Self {
        match (parity, self) {
            (Parity::Even, Side::Odd1) => Side::Even1,
            (Parity::Even, Side::Odd2) => Side::Even2,
            (Parity::Even, Side::Odd3) => Side::Even3,
            (Parity::Even, Side::Odd4) => Side::Even4,
            (_, side) => side,
        }
    }

    /// Outputs that a tile has room for.
    #[inline(always)]
    pub const fn outputs(self) -> usize {
        match self {
            Side::Odd1 | Side::Even1 => 1,
            Side::Lone | Side::Dense2 | Side::Odd2 | Side::Even2 => 2,
            Side::Dense3 | Side::Odd3 | Side::Even3 => 3,
            Side::Dense4 | Side::Odd4 | Side::Even4 => 4,
        }
    }

    /// Inputs that a tile has room for.
    #[inline(always)]
    pub const fn inputs(self) -> usize {
        match self {
            Side::Lone => 3,
            Side::Dense2 | Side::Dense3 | Side::Dense4 => self.outputs() + 2,
            Side::Odd1 | Side::Odd2 | Side::Odd3 | Side::Odd4 => self.outputs() + 1,
            Side::Even1 | Side::Even2 | Side::Even3 | Side::Even4 => self.outputs(),
        }
    }

    /// Whether it belongs to a convolution of stride 2.
    #[inline(always)]
    pub const fn is_strided(self) -> bool {
        !matches!(self, Side::Lone | Side::Dense2 | Side::Dense3 | Side::Dense4)
    }

    /// Whether it reads even pixels.
    #[inline(always)]
    pub const fn is_even(self) -> bool {
        matches!(self, Side::Even1 | Side::Even2 | Side::Even3 | Side::Even4)
    }

    /// Whether it has a point, numbered in the order `0, 1, -1, 2, -2, ∞`.
    #[inline(always)]
    pub const fn has_point(self, point: usize) -> bool {
        let points = match self {
            Side::Lone => 0b10_0011,
            Side::Dense2 => 0b10_0111,
            Side::Dense3 => 0b10_1111,
            Side::Dense4 => 0b11_1111,
            Side::Odd1 => 0b10_0001,
            Side::Odd2 => 0b10_0011,
            Side::Odd3 => 0b10_0111,
            Side::Odd4 => 0b10_1111,
            Side::Even1 => 0b1,
            Side::Even2 => 0b11,
            Side::Even3 => 0b111,
            Side::Even4 => 0b1111,
        };
        points >> point & 1 == 1
    }

    /// Whether it has a tap of the three.
    #[inline(always)]
    pub const fn has_tap(self, tap: usize) -> bool {
        tap < 3 && (!self.is_strided() || (tap == 1) == self.is_even())
    }
}

/// Which pixels along a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parity {
    /// All.
    Any,
    /// The first, third, and so on, counted from 1 behind the padding: those of two taps.
    Odd,
    /// The others, of one tap.
    Even,
}

/// A kind of pixels of a map, along rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Phase {
    pub rows: Parity,
    pub columns: Parity,
}

impl Phase {
    /// All pixels.
    pub const ANY: Self = Self { rows: Parity::Any, columns: Parity::Any };

    /// The kinds of pixels of a map whose convolution strides.
    pub const STRIDED: [Self; 4] = {
        const fn phase(rows: Parity, columns: Parity) -> Phase {
            Phase { rows, columns }
        }
        [
            phase(Parity::Odd, Parity::Odd),
            phase(Parity::Odd, Parity::Even),
            phase(Parity::Even, Parity::Odd),
            phase(Parity::Even, Parity::Even),
        ]
    };

    /// Of two kinds, of which one is [`Phase::ANY`], the other.
    pub fn or(self, other: Self) -> Self {
        if self == Self::ANY { other } else { self }
    }

    /// The sides of a tile for these pixels.
    #[inline(always)]
    pub const fn of(self, (rows, columns): Sides) -> Sides {
        (rows.of(self.rows), columns.of(self.columns))
    }
}

/// A side as a type: what code is compiled for.
pub(super) trait StaticSide {
    /// The side.
    const SIDE: Side;
}

macro_rules! static_sides {
    ($($name:ident),*) => {
        /// A type for each [`Side`].
        pub(in crate::conv::winograd) mod sides {
            $(pub struct $name;)*
        }
        $(impl StaticSide for sides::$name {
            const SIDE: Side = Side::$name;
        })*
    };
}
static_sides!(Lone, Dense2, Dense3, Dense4, Odd1, Odd2, Odd3, Odd4, Even1, Even2, Even3, Even4);

/// Runs a block for the [`StaticSide`] that a side is.
macro_rules! with_side {
    ($side:expr, $T:ident => $block:block) => {
        with_side!(
            $side, $T => $block;
            Lone Dense2 Dense3 Dense4 Odd1 Odd2 Odd3 Odd4 Even1 Even2 Even3 Even4
        )
    };
    ($side:expr, $T:ident => $block:block; $($name:ident)*) => {
        match $side {
            $($crate::conv::winograd::side::Side::$name => {
                type $T = $crate::conv::winograd::side::sides::$name;
                $block
            })*
        }
    };
}
pub(super) use with_side;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_as_many_as_products() {
        let points = |side: Side| (0..6).filter(|&point| side.has_point(point)).count();
        for outputs in 1..=4 {
            let odd = Side::odd(outputs);
            let even = odd.of(Parity::Even);
            assert_eq!((odd.outputs(), even.outputs()), (outputs, outputs));
            // A correlation of n outputs and t taps takes n + t - 1 products.
            assert_eq!((points(odd), points(even)), (outputs + 1, outputs));
            assert_eq!((odd.inputs(), even.inputs()), (outputs + 1, outputs));
        }
        for outputs in 2..=4 {
            assert_eq!(points(Side::dense(outputs)), outputs + 2);
        }
        assert_eq!(points(Side::Lone), 3);
    }

    #[test]
    fn odd_and_even_pixels_share_the_taps() {
        for tap in 0..3 {
            assert!(Side::Odd4.has_tap(tap) != Side::Even4.has_tap(tap) && Side::Dense4.has_tap(tap));
        }
        assert!(!Side::Dense4.has_tap(3) && !Side::Odd4.has_tap(3));
    }
}
