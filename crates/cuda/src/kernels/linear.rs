//! What linear layers need beside their products: biases, unit length, prototypes; and sums, fills and casts.

use super::{Launch, THREADS, Tiling, typed};
use crate::shape::Element;

/// `z[row] += bias`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AddBias<P> {
    /// Type of `z`.
    pub element: Element,
    /// `[rows][channels]`, in place.
    pub z: P,
    /// f32.
    pub bias: P,
    /// Rows.
    pub rows: usize,
    /// Padded channels.
    pub channels: usize,
}

impl<P: Copy> AddBias<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let total = self.rows * self.channels / 8;
        let launch = Launch::each(typed!(self.element, "add_bias"), total).pointer(self.z).pointer(self.bias);
        vec![launch.int(total).int(self.channels / 8)]
    }
}

/// `gradient[c]` = sum over rows of `dz[row][c]`, f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BiasGradient<P> {
    /// Type of `dz`.
    pub element: Element,
    /// `[rows][channels]`.
    pub dz: P,
    /// Written.
    pub gradient: P,
    /// Rows.
    pub rows: usize,
    /// Padded channels.
    pub channels: usize,
}

impl<P: Copy> BiasGradient<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        // Narrow tiles: there are few channels, and a block takes all rows of its own.
        let t = Tiling::new(self.channels, 4);
        let launch = Launch::blocks(typed!(self.element, "bias_gradient"), [t.tiles, 1, 1]);
        vec![launch.pointer(self.dz).pointer(self.gradient).int(self.rows).int(t.vectors).int(t.tile)]
    }
}

/// Blocks of a kernel with a warp for each row.
fn warps<P>(kernel: &'static str, rows: usize) -> Launch<P> {
    Launch::blocks(kernel, [rows.div_ceil(THREADS / 32), 1, 1])
}

/// `unit = z / max(|z|, 1e-12)` row by row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UnitLength<P> {
    /// Type of `z` and `unit`.
    pub element: Element,
    /// `[rows][channels]`.
    pub z: P,
    /// Written.
    pub unit: P,
    /// The same without rounding, f32, where it is wanted.
    pub exact: Option<P>,
    /// Written: the divisor of each row, f32.
    pub lengths: P,
    /// Rows.
    pub rows: usize,
    /// Padded channels.
    pub channels: usize,
}

impl<P: Copy> UnitLength<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let launch = warps(typed!(self.element, "unit_length"), self.rows)
            .pointer(self.z)
            .pointer(self.unit)
            .optional(self.exact)
            .pointer(self.lengths);
        vec![launch.int(self.rows).int(self.channels)]
    }
}

/// `dz = (dunit - unit·(dunit·unit)) / length`; `dunit / length` where the length was below 1e-12.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UnitLengthBackward<P> {
    /// Type of all but the lengths.
    pub element: Element,
    /// Gradient with respect to `unit`.
    pub dunit: P,
    /// From [`UnitLength`].
    pub unit: P,
    /// From [`UnitLength`].
    pub lengths: P,
    /// Written; may be `dunit`.
    pub dz: P,
    /// Rows.
    pub rows: usize,
    /// Padded channels.
    pub channels: usize,
}

impl<P: Copy> UnitLengthBackward<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let launch = warps(typed!(self.element, "unit_length_backward"), self.rows)
            .pointer(self.dunit)
            .pointer(self.unit)
            .pointer(self.lengths)
            .pointer(self.dz);
        vec![launch.int(self.rows).int(self.channels)]
    }
}

/// Prototypes to unit length in place, and their copy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrototypeNormalise<P> {
    /// Type of the copy.
    pub element: Element,
    /// `[prototypes][channels]`, f32, in place.
    pub weights: P,
    /// The same in `element`, where it is wanted.
    pub copy: Option<P>,
    /// Prototypes.
    pub prototypes: usize,
    /// Padded channels.
    pub channels: usize,
}

impl<P: Copy> PrototypeNormalise<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let launch = warps(typed!(self.element, "prototype_normalise"), self.prototypes)
            .pointer(self.weights)
            .optional(self.copy);
        vec![launch.int(self.prototypes).int(self.channels)]
    }
}

/// `to += from`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AddInto<P> {
    /// Type of both.
    pub element: Element,
    /// In place.
    pub to: P,
    /// What is added.
    pub from: P,
    /// Values, a multiple of 8.
    pub len: usize,
}

impl<P: Copy> AddInto<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let total = vectors(self.len);
        let launch =
            Launch::each(typed!(self.element, "add_into"), total).pointer(self.to).pointer(self.from);
        vec![launch.int(total)]
    }
}

/// `to = value`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fill<P> {
    /// Type of `to`.
    pub element: Element,
    /// Written.
    pub to: P,
    /// The value.
    pub value: f32,
    /// Values, a multiple of 8.
    pub len: usize,
}

impl<P: Copy> Fill<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let total = vectors(self.len);
        let launch = Launch::each(typed!(self.element, "fill"), total).pointer(self.to).float(self.value);
        vec![launch.int(total)]
    }
}

/// A copy in the other type, rounded to nearest even.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cast<P> {
    /// The type of `to`; `from` has the other.
    pub to_element: Element,
    /// Read.
    pub from: P,
    /// Written.
    pub to: P,
    /// Values, a multiple of 8.
    pub len: usize,
}

impl<P: Copy> Cast<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let total = vectors(self.len);
        let kernel = match self.to_element {
            Element::Bf16 => "cast_to_bf16",
            Element::F32 => "cast_to_f32",
        };
        vec![Launch::each(kernel, total).pointer(self.from).pointer(self.to).int(total)]
    }
}

/// Vectors of `len` values.
fn vectors(len: usize) -> usize {
    assert!(len.is_multiple_of(8), "{len} values are no whole number of vectors");
    len / 8
}
