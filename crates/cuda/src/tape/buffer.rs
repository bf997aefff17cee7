//! Buffers and places in them.

/// A buffer of a [`Program`](super::Program).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub usize);

impl BufferId {
    /// The buffer's start.
    pub fn view(self) -> View {
        self.at(0)
    }

    /// A place in the buffer.
    pub fn at(self, offset: usize) -> View {
        View { buffer: self, offset }
    }
}

/// A place in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct View {
    /// The buffer.
    pub buffer: BufferId,
    /// Bytes from its start; a multiple of 16 for whatever is read in vectors.
    pub offset: usize,
}

impl View {
    /// The place `bytes` bytes further on.
    pub fn plus(self, bytes: usize) -> View {
        View { offset: self.offset + bytes, ..self }
    }
}

/// How long a buffer's contents matter, which decides what may share its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// From one run to the next: parameters, momenta, running statistics, the queue, tables. Zero at first, or
    /// [`Buffer::contents`].
    Persistent,
    /// Written by the host before a run, read until its last use.
    Input,
    /// Read by the host after a run (of the tape that writes it, and up to the next run of that tape).
    Output,
    /// From its first to its last use within the tapes of a step, run in order.
    Scratch,
}

/// A region of memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    /// For messages.
    pub name: String,
    /// Its size.
    pub bytes: usize,
    /// How long its contents matter.
    pub role: Role,
    /// What a persistent buffer holds from the start; zeros if nothing is given.
    pub contents: Option<Vec<u8>>,
}
