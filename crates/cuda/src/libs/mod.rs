//! Where the libraries are.
