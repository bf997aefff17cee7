//! The direct path: any kernel, stride and padding, by product tiles over blocked copies of the operands.

pub(super) mod columns;
pub(super) mod fill;
pub(super) mod geometry;
pub(super) mod gradient;
pub(super) mod product;
