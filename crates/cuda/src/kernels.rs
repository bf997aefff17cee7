//! The crate's own kernels and their launch descriptions.
