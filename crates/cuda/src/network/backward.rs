//! The backward pass.

use super::forward::{Kept, KeptBlock, KeptConv, KeptGroup, KeptHead, scratch};
use super::spec::{Head, Stem, padded};
use super::{Gradients, Network, Persistent};
use crate::shape::{ConvPass, ConvShape, Element};
use crate::tape::{
    BnGradientBranch, BnReduceBranch, BufferId, Gate, Op, Program, Role, Shortcut, Tape, View,
};

/// Writes backward tapes.
pub(super) struct Backward<'a> {
    network: &'a Network,
    program: &'a mut Program,
    persistent: Persistent,
    gradients: BufferId,
    layout: &'a Gradients,
    /// Whether the insides of blocks were not kept.
    recompute: bool,
    pub(super) tape: Tape,
}

/// The weights of a convolution: which parameter they are, and the shapes that they work on.
#[derive(Clone, Copy)]
struct Weights {
    parameter: usize,
    shape: ConvShape,
}

/// A norm in the backward pass: the convolution before it, its number, and the group whose gradient it is.
#[derive(Clone, Copy)]
struct Branch<'k> {
    conv: &'k KeptConv,
    number: usize,
    group: usize,
}

impl<'a> Backward<'a> {
    pub(super) fn new(
        network: &'a Network,
        program: &'a mut Program,
        persistent: Persistent,
        (gradients, layout): (BufferId, &'a Gradients),
        recompute: bool,
    ) -> Self {
        Backward { network, program, persistent, gradients, layout, recompute, tape: Tape::default() }
    }

    fn act(&mut self, name: &str, len: usize) -> View {
        let bytes = len * self.program.element.bytes();
        self.program.buffer(name, bytes, Role::Scratch).view()
    }

    /// A parameter's gradient of a group.
    fn gradient(&self, parameter: usize, group: usize) -> View {
        self.gradients.at(self.layout.at[parameter] + group * self.layout.step[parameter])
    }

    /// The whole pass from a gradient with respect to the head's output in f32.
    pub(super) fn start_at_host(&mut self, gradient: BufferId, kept: &Kept) {
        let len = kept.head.rows * padded(self.network.spec.embedding_dim());
        let from = gradient.view();
        let rounded = match self.program.element {
            Element::F32 => from,
            Element::Bf16 => self.act("rounded gradient", len),
        };
        if rounded != from {
            self.tape.push(0, Op::Round { from, to: rounded, len });
        }
        self.start_at_rounded(rounded, kept);
    }

    /// The whole pass from a gradient with respect to the head's output in act.
    pub(super) fn start_at_rounded(&mut self, gradient: View, kept: &Kept) {
        let features = self.head(gradient, &kept.head);
        for group in &kept.groups[1..] {
            self.tape.wait(group.stream, 0);
        }
        for (number, group) in kept.groups.iter().enumerate() {
            self.group(number, group, features);
        }
        for group in &kept.groups[1..] {
            self.tape.wait(0, group.stream);
        }
    }

    fn weight_gradient(&mut self, stream: usize, group: usize, weights: Weights, x: View, y: View) {
        let w = self.gradient(weights.parameter, group);
        let (pass, shape) = (ConvPass::WeightGradient, weights.shape);
        self.tape.push(stream, Op::Conv { pass, shape, x, w, y, accumulate: false });
    }

    fn data_gradient(&mut self, stream: usize, weights: Weights, x: View, y: View, accumulate: bool) {
        let w = self.network.weights(&self.persistent, weights.parameter, self.program.element);
        let (pass, shape) = (ConvPass::DataGradient, weights.shape);
        self.tape.push(stream, Op::Conv { pass, shape, x, w, y, accumulate });
    }

    fn reduce_branch(&mut self, branch: Branch<'_>, coefficients: View) -> BnReduceBranch {
        let gamma = self.network.parameters.norms[branch.number].gamma;
        BnReduceBranch {
            y: branch.conv.y,
            state: branch.conv.statistics.state,
            gamma: self.network.value(&self.persistent, gamma),
            d_gamma: self.gradient(gamma, branch.group),
            d_beta: self.gradient(gamma + 1, branch.group),
            coefficients,
        }
    }

    fn coefficients(&mut self, conv: &KeptConv) -> View {
        self.program.buffer("coefficients", 12 * conv.shape.filters, Role::Scratch).view()
    }

    /// Through a batch norm and a ReLU that were applied alone: `gradient` becomes that by the convolution's output.
    fn norm_in_place(&mut self, stream: usize, branch: Branch<'_>, gradient: View) {
        let (rows, channels) = (branch.conv.shape.out_pixels(), branch.conv.shape.filters);
        let coefficients = self.coefficients(branch.conv);
        let first = self.reduce_branch(branch, coefficients);
        let scratch = scratch(self.program, stream);
        let gate = Gate::Recomputed;
        self.tape.push(stream, Op::BnReduce { gradient, gate, first, second: None, scratch, rows, channels });
        let (y, state) = (branch.conv.y, branch.conv.statistics.state);
        let first = BnGradientBranch { y, state, coefficients, out: gradient };
        self.tape.push(
            stream,
            Op::BnGradient { gradient, gate, first, second: None, keep: false, rows, channels },
        );
    }

    /// From the gradient with respect to the head's output (act) to that with respect to the features.
    fn head(&mut self, gradient: View, kept: &KeptHead) -> View {
        let dim = padded(self.network.spec.embedding_dim());
        let features = padded(self.network.spec.feature_dim());
        let first = 3 * self.network.spec.convs().0.len();
        match (self.network.spec.head, kept.hidden) {
            (Head::Mlp { .. }, Some(hidden)) => {
                let width = hidden.shape.filters;
                let shape = ConvShape::linear(kept.rows, width, dim);
                let d_hidden = self.linear(first + 4, shape, kept.inputs[1], gradient);
                let number = self.network.parameters.norms.len() - 1;
                self.norm_in_place(0, Branch { conv: &hidden, number, group: 0 }, d_hidden);
                self.linear(first, ConvShape::linear(kept.rows, features, width), kept.inputs[0], d_hidden)
            }
            (Head::Linear { .. }, _) => {
                self.linear(first, ConvShape::linear(kept.rows, features, dim), kept.inputs[0], gradient)
            }
            _ => gradient,
        }
    }

    /// Through a linear layer; the gradient with respect to its input.
    fn linear(&mut self, parameter: usize, shape: ConvShape, x: View, gradient: View) -> View {
        let (rows, channels) = (shape.images, shape.filters);
        let d_bias = self.gradient(parameter + 1, 0);
        let scratch = scratch(self.program, 0);
        self.tape.push(0, Op::BiasGradient { gradient, d_bias, scratch, rows, channels });
        let weights = Weights { parameter, shape };
        self.weight_gradient(0, 0, weights, x, gradient);
        let out = self.act("gradient of linear input", shape.input_len());
        self.data_gradient(0, weights, out, gradient, false);
        out
    }

    fn group(&mut self, number: usize, kept: &KeptGroup, features: View) {
        let stream = kept.stream;
        let [images, pixels, channels, first_row] = kept.last;
        let mut flow = self.act("gradient of block output", images * pixels * channels);
        let gradient = features.plus(first_row * channels * self.program.element.bytes());
        self.tape.push(stream, Op::AveragePoolGradient { gradient, out: flow, images, pixels, channels });
        let (_, blocks) = self.network.spec.convs();
        for (block, layers) in kept.blocks.iter().zip(&blocks).rev() {
            let again;
            let block = if self.recompute {
                again = self.again(stream, block, &layers.convs, layers.downsample);
                &again
            } else {
                block
            };
            let numbers: Vec<usize> = layers.convs.iter().copied().chain(layers.downsample).collect();
            flow = self.block(stream, number, block, &numbers, flow);
        }
        self.stem(number, kept, flow);
    }

    /// Runs the convolutions of a block again, with the statistics that are known.
    fn again(
        &mut self,
        stream: usize,
        kept: &KeptBlock,
        main: &[usize],
        downsample: Option<usize>,
    ) -> KeptBlock {
        let mut block = kept.clone();
        let mut x = kept.input;
        for (position, &index) in main.iter().chain(&downsample).enumerate() {
            let conv = &mut block.convs[position];
            let shape = conv.shape;
            if position == main.len() {
                x = kept.input;
            }
            let y = self.act("y again", shape.output_len());
            conv.y = y;
            let (state, channels) = (conv.statistics.state, shape.filters);
            let w = self.network.weights(&self.persistent, 3 * index, self.program.element);
            self.tape.push(stream, Op::Conv { pass: ConvPass::Forward, shape, x, w, y, accumulate: false });
            if position + 1 < main.len() {
                x = self.act("inner again", shape.output_len());
                block.inner[position] = x;
                let (shortcut, rows) = (Shortcut::None, shape.out_pixels());
                self.tape
                    .push(stream, Op::BnApply { y, state, shortcut, out: x, mask: None, rows, channels });
            }
        }
        block
    }

    /// Through a block: from the gradient with respect to its output to that with respect to its input.
    fn block(
        &mut self,
        stream: usize,
        group: usize,
        kept: &KeptBlock,
        numbers: &[usize],
        gradient: View,
    ) -> View {
        let n_main = kept.inner.len() + 1;
        let last = kept.convs[n_main - 1];
        let (rows, channels) = (last.shape.out_pixels(), last.shape.filters);
        let gate = Gate::Mask(kept.mask);
        let scratch = scratch(self.program, stream);
        let branch =
            |position: usize| Branch { conv: &kept.convs[position], number: numbers[position], group };
        let coefficients = self.coefficients(&last);
        let first = self.reduce_branch(branch(n_main - 1), coefficients);
        let side = (kept.convs.len() > n_main).then(|| {
            let conv = kept.convs[n_main];
            let coefficients = self.coefficients(&conv);
            (self.reduce_branch(branch(n_main), coefficients), coefficients, conv)
        });
        let second = side.as_ref().map(|side| side.0);
        self.tape.push(stream, Op::BnReduce { gradient, gate, first, second, scratch, rows, channels });
        let mut d = self.act("gradient of y", last.shape.output_len());
        let first = BnGradientBranch { y: last.y, state: last.statistics.state, coefficients, out: d };
        let second = side.as_ref().map(|&(_, coefficients, conv)| {
            let out = self.act("gradient of downsampled", conv.shape.output_len());
            BnGradientBranch { y: conv.y, state: conv.statistics.state, coefficients, out }
        });
        let keep = second.is_none();
        self.tape.push(stream, Op::BnGradient { gradient, gate, first, second, keep, rows, channels });
        for position in (1..n_main).rev() {
            let shape = kept.convs[position].shape;
            let parameter = 3 * numbers[position];
            let weights = Weights { parameter, shape };
            self.weight_gradient(stream, group, weights, kept.inner[position - 1], d);
            let before = self.act("gradient of inner", shape.input_len());
            self.data_gradient(stream, weights, before, d, false);
            self.norm_in_place(stream, branch(position - 1), before);
            d = before;
        }
        let first = Weights { parameter: 3 * numbers[0], shape: kept.convs[0].shape };
        self.weight_gradient(stream, group, first, kept.input, d);
        let out = match second {
            None => gradient,
            Some(second) => {
                let weights = Weights { parameter: 3 * numbers[n_main], shape: kept.convs[n_main].shape };
                self.weight_gradient(stream, group, weights, kept.input, second.out);
                let out = self.act("gradient of block output", weights.shape.input_len());
                self.data_gradient(stream, weights, out, second.out, false);
                out
            }
        };
        self.data_gradient(stream, first, out, d, true);
        out
    }

    fn stem(&mut self, number: usize, kept: &KeptGroup, gradient: View) {
        let stream = kept.stream;
        let branch = Branch { conv: &kept.stem, number: 0, group: number };
        let d = match kept.pool {
            None => {
                self.norm_in_place(stream, branch, gradient);
                gradient
            }
            Some((shape, positions)) => {
                let coefficients = self.coefficients(&kept.stem);
                let scratch = scratch(self.program, stream);
                let reduce = self.reduce_branch(branch, coefficients);
                self.tape
                    .push(stream, Op::StemPoolReduce { gradient, positions, branch: reduce, scratch, shape });
                let out = self.act("gradient of stem", kept.stem.shape.output_len());
                let (y, state) = (kept.stem.y, kept.stem.statistics.state);
                let branch = BnGradientBranch { y, state, coefficients, out };
                self.tape.push(stream, Op::StemPoolGradient { gradient, positions, branch, shape });
                out
            }
        };
        let weights = Weights { parameter: 0, shape: kept.stem.shape };
        self.weight_gradient(stream, number, weights, kept.stem_input, d);
        if self.network.spec.stem == Stem::Imagenet {
            let weights = self.gradient(0, number);
            self.tape.push(stream, Op::MaskStem { weights, filters: kept.stem.shape.filters });
        }
    }
}
