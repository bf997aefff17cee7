//! Places of buffers in one block of memory.
