//! Operations of a network as data.
