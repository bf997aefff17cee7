//! Operations of a network as data: a list that a machine runs, over buffers that only have a size.
//!
//! A [`Program`] names its buffers once; its [`Tape`]s (forward, backward, a whole training step) are lists of
//! operations on them. Who runs a tape decides where the buffers lie: [`crate::arena`] plans them into one allocation
//! for the card, [`crate::host`] gives each a vector.
//!
//! A tape runs on one or more *streams*. Operations of one stream run in order; what different streams do in between
//! is unordered, but for [`Op::Wait`].

mod buffer;
mod operands;
mod ops;
mod scalars;
mod views;

pub use buffer::{Buffer, BufferId, Role, View};
pub use operands::{
    BnGradientBranch, BnReduceBranch, CodesView, Gate, InputLayout, PixelFormat, PoolShape, Rule, ScoreShape,
    Shortcut, Statistics, UpdatedTensor,
};
pub use ops::Op;

pub use scalars::{N_CLASSES, Report, Scalars, UpdateScalars};

use crate::shape::{ConvShape, Element};

/// Values of a parameter that one block of threads updates.
pub const CHUNK: usize = 8192;

/// One operation and where it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The stream, from 0.
    pub stream: usize,
    /// What is done.
    pub op: Op,
}

/// A list of operations.
///
/// A run begins on stream 0 and ends when stream 0 does, so the others wait for it first ([`Tape::wait`]), and it for
/// them last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tape {
    /// The operations in an order that is right for one stream too.
    pub nodes: Vec<Node>,
}

impl Tape {
    /// Adds an operation.
    pub fn push(&mut self, stream: usize, op: Op) {
        self.nodes.push(Node { stream, op });
    }

    /// From here on, `stream` waits for everything that `other` was given so far.
    pub fn wait(&mut self, stream: usize, other: usize) {
        if stream != other {
            self.push(stream, Op::Wait { other });
        }
    }

    /// The number of streams, those that are only waited for among them.
    pub fn n_streams(&self) -> usize {
        let streams = |node: &Node| match node.op {
            Op::Wait { other } => node.stream.max(other),
            _ => node.stream,
        };
        self.nodes.iter().map(|node| streams(node) + 1).max().unwrap_or(1)
    }
}

/// Buffers, and the tapes over them by their number.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// The buffers, by [`BufferId`].
    pub buffers: Vec<Buffer>,
    /// The tapes, in the order in which a step runs them.
    pub tapes: Vec<Tape>,
    /// How activations, their gradients, and the weights that convolutions read and their gradients are stored.
    pub element: Element,
    /// Whether convolutions of f32 may round what they multiply to TF32's 11 bits; see [`Program::rounds`].
    pub tf32: bool,
}

impl Program {
    /// No buffers and no tapes yet, and no TF32.
    pub fn new(element: Element) -> Self {
        Program { buffers: Vec::new(), tapes: Vec::new(), element, tf32: false }
    }

    /// Whether what a convolution multiplies may be rounded to TF32. Linear layers are never rounded: they take little
    /// time, and the scores, which the codes are exponentials of, are among them.
    pub fn rounds(&self, shape: &ConvShape) -> bool {
        self.tf32 && self.element == Element::F32 && !shape.is_linear()
    }

    /// Adds a buffer of `bytes` bytes.
    pub fn buffer(&mut self, name: impl Into<String>, bytes: usize, role: Role) -> BufferId {
        self.buffers.push(Buffer { name: name.into(), bytes, role, contents: None });
        BufferId(self.buffers.len() - 1)
    }

    /// Adds a buffer that holds `contents` from the start.
    pub fn constant(&mut self, name: impl Into<String>, contents: Vec<u8>) -> BufferId {
        let id = self.buffer(name, contents.len(), Role::Persistent);
        self.buffers[id.0].contents = Some(contents);
        id
    }

    /// Adds scratch for the norms of an update.
    pub fn partial_norms(&mut self, tensors: &[UpdatedTensor]) -> View {
        let n_chunks: usize = tensors.iter().map(|tensor| tensor.len.div_ceil(CHUNK)).sum();
        self.buffer("partial norms", 8 * n_chunks, Role::Scratch).view()
    }
}
