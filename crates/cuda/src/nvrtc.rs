//! The compiler of the crate's own kernels.
