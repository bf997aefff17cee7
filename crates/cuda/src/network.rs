//! Networks as tapes.
