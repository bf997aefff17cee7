//! Winograd's algorithm for 3×3 convolutions: fewer multiplications, between linear maps of tiles.
//!
//! A tile of 4×4 outputs takes 36 products for each pair of channels instead of 144, one at each *point*. See the modules:
//! [`side`] has what tiles there are, [`maps`] and [`two_taps`] the maps from inputs to points and from points to outputs,
//! [`tiling`] how a map is cut into tiles; [`input_tiles`], [`gradient_tiles`] and [`edge_tile`] apply the maps;
//! [`product`] runs forward and data passes, [`gradient`] the weight pass.

mod edge_tile;
pub(super) mod gradient;
mod gradient_tiles;
mod input_tiles;
pub(super) mod maps;
mod outputs;
pub(super) mod product;
mod side;
pub(super) mod tiling;
pub(super) mod two_taps;
