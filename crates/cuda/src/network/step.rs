//! A whole training step as one tape: crops in, updated parameters and a report out.

use super::backward::Backward;
use super::forward::Forward;
use super::{Group, Network, Options, Persistent, padded};
use crate::shape::{ConvPass, ConvShape, Element};
use crate::tape::{BufferId, CodesView, Op, Program, Report, Role, Rule, ScoreShape, UpdatedTensor, View};

/// What a step does beside the network.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSpec {
    /// Crops of each resolution, in the order of the loss's crops.
    pub groups: Vec<Group>,
    /// Scores, codes and loss; `n_crops * batch` is the number of all crops.
    pub scores: ScoreShape,
    /// Iterations of Sinkhorn-Knopp.
    pub n_iters: usize,
    /// The optimiser.
    pub rule: Rule,
}

/// A program of one tape: a whole step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepProgram {
    /// Buffers and tape.
    pub program: Program,
    /// The network's shared buffers.
    pub persistent: Persistent,
    /// Those of prototypes and queue.
    pub prototypes: PrototypeBuffers,
    /// Pixels of each group, written by the host.
    pub pixels: Vec<BufferId>,
    /// What the step reports.
    pub report: BufferId,
    /// Gradients of the network's parameters.
    pub gradients: BufferId,
    /// The embeddings, scaled to unit length (act, `[crops][padded dim]`).
    pub embeddings: View,
}

/// Buffers of prototypes and queue, persistent. Rows are padded to multiples of 8 values, and there are padding rows of
/// zeros up to a multiple of 8 prototypes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrototypeBuffers {
    /// f32 `[padded K][padded dim]`.
    pub weights: BufferId,
    /// Momentum, or the mean of gradients.
    pub first: BufferId,
    /// The mean of squared gradients (AdamW).
    pub second: Option<BufferId>,
    /// What scores are computed from, if that is not f32.
    pub copy: Option<BufferId>,
    /// The gradient (act).
    pub gradient: BufferId,
    /// act `[A][queue][padded dim]`.
    pub queue: Option<BufferId>,
}

impl PrototypeBuffers {
    fn new(program: &mut Program, dim: usize, shape: &ScoreShape, rule: Rule) -> Self {
        let act = program.element.bytes();
        let len = shape.stride * dim;
        let mut buffer = |name: &str, bytes: usize| program.buffer(name, bytes, Role::Persistent);
        PrototypeBuffers {
            weights: buffer("prototypes", 4 * len),
            first: buffer("first of prototypes", 4 * len),
            second: (rule == Rule::AdamW).then(|| buffer("second of prototypes", 4 * len)),
            copy: (act != 4).then(|| buffer("copy of prototypes", act * len)),
            gradient: buffer("gradient of prototypes", act * len),
            queue: (shape.queue > 0).then(|| buffer("queue", shape.assign.len() * shape.queue * dim * act)),
        }
    }
}

impl Network {
    /// A whole step.
    pub fn step(&self, spec: &StepSpec, options: &Options) -> StepProgram {
        let (element, dim) = (options.element, padded(self.spec.embedding_dim()));
        let mut program = options.program();
        let persistent = self.persistent(&mut program);
        let layout = self.parameters.gradients(spec.groups.len(), element);
        let name = super::gradients_name(spec.groups.len());
        let gradients = program.buffer(name, layout.bytes, Role::Persistent);
        let second = (spec.rule == Rule::AdamW)
            .then(|| program.buffer("second", 4 * self.parameters.len, Role::Persistent));
        let prototypes = PrototypeBuffers::new(&mut program, dim, &spec.scores, spec.rule);
        let report = program.buffer("report", Report::BYTES, Role::Output);
        let assign = spec.scores.assign.iter().flat_map(|&crop| (crop as u32).to_le_bytes()).collect();
        let name = format!("assignment crops {:?}", spec.scores.assign);
        let assign = program.constant(name, assign);

        let mut forward = Forward::train(self, program, persistent, options, spec.groups.len());
        let normalise = Op::PrototypeNormalise {
            weights: prototypes.weights.view(),
            copy: prototypes.copy.map(BufferId::view),
            rows: spec.scores.n_prototypes,
            dim,
        };
        forward.tape.push(0, normalise);
        let kept = forward.groups_and_head(&spec.groups);
        let pixels = kept.groups.iter().map(|group| group.pixels).collect();
        let mut middle = Middle { forward: &mut forward, spec, prototypes, dim, report: report.view() };
        let (embeddings, gradient) = middle.write(kept.head.output, assign.view());
        forward.running(&kept);
        let (mut program, tape) = forward.into_parts();
        let mut backward =
            Backward::new(self, &mut program, persistent, (gradients, &layout), options.checkpointing);
        backward.tape = tape;
        backward.start_at_rounded(gradient, &kept);
        let mut tape = backward.tape;
        let mut tensors = self.updated(&persistent, second, (gradients, &layout), element);
        tensors.push(prototypes.updated(spec.scores.stride * dim, element));
        let partials = program.partial_norms(&tensors);
        tape.push(0, Op::Update { rule: spec.rule, tensors, partials, report: report.view() });
        program.tapes.push(tape);
        StepProgram { program, persistent, prototypes, pixels, report, gradients, embeddings }
    }
}

impl PrototypeBuffers {
    /// The prototypes as an update takes them: class 2.
    fn updated(&self, len: usize, element: Element) -> UpdatedTensor {
        UpdatedTensor {
            value: self.weights.view(),
            first: self.first.view(),
            second: self.second.map(BufferId::view),
            copy: self.copy.map(BufferId::view),
            gradient: self.gradient.view(),
            gradient_step: 0,
            n_gradients: 1,
            element,
            len,
            class: 2,
        }
    }
}

/// What comes between the network's two passes.
struct Middle<'a, 'n> {
    forward: &'a mut Forward<'n>,
    spec: &'a StepSpec,
    prototypes: PrototypeBuffers,
    dim: usize,
    report: View,
}

impl Middle<'_, '_> {
    /// From the head's output to the gradient with respect to it; the embeddings, and that.
    fn write(&mut self, x: View, assign: View) -> (View, View) {
        let shape = &self.spec.scores;
        let (rows, dim) = (shape.n_crops * shape.batch, self.dim);
        let unit = self.forward.act("embeddings", rows * dim);
        let norms = self.forward.floats("norms of embeddings", rows);
        self.push(Op::UnitLength { x, out: unit, exact: None, norms, rows, dim });
        let linear = ConvShape::linear(rows, dim, shape.stride);
        let scores = self.forward.act("scores", linear.output_len());
        self.product(ConvPass::Forward, linear, unit, scores);
        let queue_scores = self.prototypes.queue.map(|queue| {
            let linear = ConvShape::linear(shape.assign.len() * shape.queue, dim, shape.stride);
            let scores = self.forward.act("scores of the queue", linear.output_len());
            self.product(ConvPass::Forward, linear, queue.view(), scores);
            scores
        });
        let over_prototypes =
            self.forward.floats("potentials of prototypes", shape.assign.len() * shape.stride);
        let over_samples = self.forward.floats("potentials of samples", shape.assign.len() * shape.samples());
        let codes = CodesView { scores, queue_scores, assign, over_prototypes, over_samples };
        let n_iters = self.spec.n_iters;
        let scratch = 2 * shape.assign.len() * shape.samples().div_ceil(256) * shape.n_prototypes;
        let scratch = self.forward.floats("scratch of codes", scratch);
        self.push(Op::Codes { codes, shape: shape.clone(), n_iters, scratch });
        let d_scores = self.forward.act("gradient of scores", linear.output_len());
        let scratch = 4 * rows + 2 * rows.div_ceil(64) * shape.n_prototypes;
        let scratch = self.forward.floats("scratch of the loss", scratch);
        let mean = self.forward.floats("mean embedding", dim);
        let (gradient, report, shape) = (d_scores, self.report, shape.clone());
        self.push(Op::Loss { codes, shape, gradient, unit, dim, mean, report, scratch });
        if let Some(queue) = self.prototypes.queue {
            let shape = self.spec.scores.clone();
            self.push(Op::QueuePush { unit, queue: queue.view(), assign, shape, dim });
        }
        let d_unit = self.forward.act("gradient of embeddings", rows * dim);
        self.product(ConvPass::WeightGradient, linear, unit, d_scores);
        self.product(ConvPass::DataGradient, linear, d_unit, d_scores);
        let out = self.forward.act("gradient of output", rows * dim);
        self.push(Op::UnitLengthGradient { gradient: d_unit, unit, norms, out, rows, dim });
        (unit, out)
    }

    fn push(&mut self, op: Op) {
        self.forward.tape.push(0, op);
    }

    /// A product of the scores' linear layer.
    fn product(&mut self, pass: ConvPass, shape: ConvShape, x: View, y: View) {
        let w = match pass {
            ConvPass::WeightGradient => self.prototypes.gradient,
            _ => self.prototypes.copy.unwrap_or(self.prototypes.weights),
        };
        self.push(Op::Conv { pass, shape, x, w: w.view(), y, accumulate: false });
    }
}
