//! The machine that runs a tape on the CPU, to test against.
