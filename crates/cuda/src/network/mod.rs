//! A residual network as tapes: from layers and groups of crops to operations on buffers.
//!
//! The network pads its channels to multiples of 8; what is padding stays zero through every operation and update.
//! Parameters, momenta and running statistics are persistent buffers, which all programs of a network share by name;
//! everything else belongs to one program.

mod backward;
mod forward;
mod memory;
mod parameters;
mod spec;
mod step;
mod update;

pub(crate) use memory::CONTEXT;
pub use memory::program_bytes;
pub use parameters::{Gradients, Norm, Parameter, ParameterShape, Parameters};
pub use spec::{BlockKind, Head, NetworkSpec, Stem, padded};
pub use step::{PrototypeBuffers, StepProgram, StepSpec};
pub use update::{GradientSource, SUMMED, gradients_name};

use crate::shape::Element;
use crate::tape::{BufferId, PixelFormat, Program, Role, View};
use backward::Backward;
use forward::Forward;

/// Bytes of scratch that sums over rows may take on each stream.
pub const SCRATCH_BYTES: usize = 16 << 20;

/// A group of crops: all of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    /// Crops.
    pub images: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

/// How a network's programs are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// How activations are stored.
    pub element: Element,
    /// Whether convolutions of f32 may use the card's matrix units, which round what they multiply to TF32's 11 bits;
    /// see [`Program::rounds`].
    pub tf32: bool,
    /// Whether only the inputs of blocks are kept, and their insides computed again in the backward pass.
    pub checkpointing: bool,
    /// How pixels come.
    pub pixels: PixelFormat,
}

impl Options {
    /// A program of these options, without anything in it.
    fn program(&self) -> Program {
        Program { tf32: self.tf32, ..Program::new(self.element) }
    }
}

/// What a program for inference ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// The output of global average pooling.
    Features,
    /// The head's output, not scaled to unit length.
    Head,
}

/// A network: its layers, and where its parameters lie.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    spec: NetworkSpec,
    parameters: Parameters,
}

/// The buffers of a network that outlive its programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Persistent {
    /// All parameters, f32.
    pub parameters: BufferId,
    /// Momenta, or means of gradients, f32.
    pub first: BufferId,
    /// Copies of the parameters that convolutions read, unless they read f32.
    pub copy: Option<BufferId>,
    /// Running statistics, f32: norm by norm mean, then variance.
    pub running: BufferId,
}

/// A program for training: tape 0 forward, which moves the running statistics too, tape 1 backward.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainProgram {
    /// Buffers and tapes.
    pub program: Program,
    /// The shared buffers.
    pub persistent: Persistent,
    /// Pixels of each group, written by the host before tape 0.
    pub pixels: Vec<BufferId>,
    /// `[crops][padded dim]` f32: the head's output, not scaled to unit length, after tape 0.
    pub output: BufferId,
    /// `[crops][padded dim]` f32: the gradient with respect to it, written by the host before tape 1.
    pub gradient: BufferId,
    /// All gradients, after tape 1.
    pub gradients: BufferId,
    /// Where they lie.
    pub gradient_layout: Gradients,
}

/// A program for inference: one tape.
#[derive(Debug, Clone, PartialEq)]
pub struct InferProgram {
    /// Buffers and tape.
    pub program: Program,
    /// The shared buffers.
    pub persistent: Persistent,
    /// Pixels, written by the host.
    pub pixels: BufferId,
    /// `[images][padded dim]` f32.
    pub output: BufferId,
}

impl Network {
    /// A network of these layers.
    pub fn new(spec: NetworkSpec) -> Self {
        let parameters = Parameters::new(&spec);
        Network { spec, parameters }
    }

    /// The layers.
    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// The parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Adds the shared buffers to a program.
    pub fn persistent(&self, program: &mut Program) -> Persistent {
        let bytes = 4 * self.parameters.len;
        let copy = |program: &mut Program| {
            program.buffer("copies", program.element.bytes() * self.parameters.len, Role::Persistent)
        };
        Persistent {
            parameters: program.buffer("parameters", bytes, Role::Persistent),
            first: program.buffer("first", bytes, Role::Persistent),
            copy: (program.element != Element::F32).then(|| copy(program)),
            running: program.buffer("running", 8 * self.parameters.norm_channels, Role::Persistent),
        }
    }

    /// Forward and backward pass over groups of crops. The output's rows are those of all crops, group by group.
    pub fn train(&self, groups: &[Group], options: &Options) -> TrainProgram {
        let mut program = options.program();
        let persistent = self.persistent(&mut program);
        let gradient_layout = self.parameters.gradients(groups.len(), options.element);
        let name = gradients_name(groups.len());
        let gradients = program.buffer(name, gradient_layout.bytes, Role::Persistent);
        let dim = padded(self.spec.embedding_dim());
        let rows: usize = groups.iter().map(|group| group.images).sum();
        let output = program.buffer("output", 4 * rows * dim, Role::Output);
        let gradient = program.buffer("gradient of output", 4 * rows * dim, Role::Input);

        let mut forward = Forward::train(self, program, persistent, options, groups.len());
        let kept = forward.groups_and_head(groups);
        forward.widen(kept.head.output, output, rows * dim);
        let pixels = kept.groups.iter().map(|group| group.pixels).collect();
        forward.running(&kept);
        let (mut program, tape) = forward.into_parts();
        program.tapes.push(tape);
        let gradients_at = (gradients, &gradient_layout);
        let mut backward = Backward::new(self, &mut program, persistent, gradients_at, options.checkpointing);
        backward.start_at_host(gradient, &kept);
        let tape = backward.tape;
        program.tapes.push(tape);
        TrainProgram { program, persistent, pixels, output, gradient, gradients, gradient_layout }
    }

    /// Inference with running statistics.
    pub fn infer(&self, group: Group, output: Output, options: &Options) -> InferProgram {
        let mut program = options.program();
        let persistent = self.persistent(&mut program);
        let dim = match output {
            Output::Features => self.spec.feature_dim(),
            Output::Head => self.spec.embedding_dim(),
        };
        let out = program.buffer("output", 4 * group.images * padded(dim), Role::Output);
        let mut forward = Forward::infer(self, program, persistent, options);
        let pixels = forward.infer_all(group, output, out);
        let (mut program, tape) = forward.into_parts();
        program.tapes.push(tape);
        InferProgram { program, persistent, pixels, output: out }
    }

    /// Where a parameter's weights for convolutions lie.
    fn weights(&self, persistent: &Persistent, parameter: usize, element: Element) -> View {
        let at = self.parameters.list[parameter].at;
        match persistent.copy {
            Some(copy) => copy.at(at * element.bytes()),
            None => persistent.parameters.at(4 * at),
        }
    }

    /// Where a parameter itself lies.
    fn value(&self, persistent: &Persistent, parameter: usize) -> View {
        persistent.parameters.at(4 * self.parameters.list[parameter].at)
    }
}
