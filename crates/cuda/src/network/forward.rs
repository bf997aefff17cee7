//! The forward pass.

use super::spec::{BlockLayer, ConvLayer, Head, Stem, padded};
use super::{Group, Network, Options, Output, Persistent, SCRATCH_BYTES};
use crate::shape::{ConvPass, ConvShape, Element};
use crate::tape::{BufferId, InputLayout, Op, PoolShape, Program, Role, Shortcut, Statistics, Tape, View};

/// A convolution's output and its statistics.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeptConv {
    pub(super) shape: ConvShape,
    /// The output; another buffer in the backward pass where the forward pass does not keep it.
    pub(super) y: View,
    pub(super) statistics: Statistics,
}

/// What a block's backward pass needs.
#[derive(Debug, Clone)]
pub(super) struct KeptBlock {
    pub(super) input: View,
    /// All convolutions, the downsampling one last.
    pub(super) convs: Vec<KeptConv>,
    /// Activations behind all but the last.
    pub(super) inner: Vec<View>,
    pub(super) mask: View,
}

/// What a group's backward pass needs.
#[derive(Debug, Clone)]
pub(super) struct KeptGroup {
    pub(super) stream: usize,
    pub(super) pixels: BufferId,
    pub(super) stem_input: View,
    pub(super) stem: KeptConv,
    pub(super) pool: Option<(PoolShape, View)>,
    pub(super) blocks: Vec<KeptBlock>,
    pub(super) moments: View,
    /// Images, pixels, channels of the last block's output, and its first row among the features.
    pub(super) last: [usize; 4],
}

/// What the head's backward pass needs.
#[derive(Debug, Clone)]
pub(super) struct KeptHead {
    pub(super) rows: usize,
    /// Inputs of the linear layers.
    pub(super) inputs: Vec<View>,
    pub(super) hidden: Option<KeptConv>,
    pub(super) hidden_moments: Option<View>,
    pub(super) output: View,
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) groups: Vec<KeptGroup>,
    pub(super) head: KeptHead,
}

/// Writes forward tapes.
pub(super) struct Forward<'a> {
    pub(super) network: &'a Network,
    pub(super) program: Program,
    pub(super) persistent: Persistent,
    pub(super) tape: Tape,
    convs: Vec<ConvLayer>,
    blocks: Vec<BlockLayer>,
    options: Options,
    training: bool,
    /// Moments of the group that is written.
    moments: View,
    scratch: Vec<View>,
}

/// Scratch of each stream.
pub(super) fn scratch(program: &mut Program, stream: usize) -> View {
    let name = format!("scratch of stream {stream}");
    let known = program.buffers.iter().position(|buffer| buffer.name == name);
    known.map_or_else(|| program.buffer(name, SCRATCH_BYTES, Role::Persistent), BufferId).view()
}

impl<'a> Forward<'a> {
    /// A forward pass that keeps what a backward pass needs.
    pub(super) fn train(
        network: &'a Network,
        program: Program,
        persistent: Persistent,
        options: &Options,
        n_groups: usize,
    ) -> Self {
        let mut forward = Self::infer(network, program, persistent, options);
        forward.training = true;
        for stream in 1..n_groups {
            let scratch = scratch(&mut forward.program, stream);
            forward.scratch.push(scratch);
        }
        forward
    }

    /// A forward pass with running statistics.
    pub(super) fn infer(
        network: &'a Network,
        mut program: Program,
        persistent: Persistent,
        options: &Options,
    ) -> Self {
        let (convs, blocks) = network.spec.convs();
        let scratch = vec![scratch(&mut program, 0)];
        Forward {
            network,
            program,
            persistent,
            tape: Tape::default(),
            convs,
            blocks,
            options: *options,
            training: false,
            moments: persistent.running.view(),
            scratch,
        }
    }

    pub(super) fn act(&mut self, name: &str, len: usize) -> View {
        let bytes = len * self.program.element.bytes();
        self.program.buffer(name, bytes, Role::Scratch).view()
    }

    pub(super) fn floats(&mut self, name: &str, len: usize) -> View {
        self.program.buffer(name, 4 * len, Role::Scratch).view()
    }

    /// A convolution into a new buffer, and its norm's statistics: of the batch, or those that run.
    fn conv_norm(&mut self, stream: usize, index: usize, shape: ConvShape, x: View) -> KeptConv {
        let y = self.act("y", shape.output_len());
        self.conv(stream, 3 * index, shape, x, y);
        self.norm(stream, index, shape, y)
    }

    fn conv(&mut self, stream: usize, parameter: usize, shape: ConvShape, x: View, y: View) {
        let w = self.network.weights(&self.persistent, parameter, self.program.element);
        let op = Op::Conv { pass: ConvPass::Forward, shape, x, w, y, accumulate: false };
        self.tape.push(stream, op);
    }

    fn norm(&mut self, stream: usize, index: usize, shape: ConvShape, y: View) -> KeptConv {
        let norm = self.network.parameters.norms[index];
        let channels = padded(norm.channels);
        let state = self.floats("state", 4 * channels);
        let first = if norm.by_group { 0 } else { self.network.parameters.backbone_norm_channels };
        let moments = self.moments.plus(8 * (norm.at - first));
        let gamma = self.network.value(&self.persistent, norm.gamma);
        let beta = self.network.value(&self.persistent, norm.gamma + 1);
        self.tape.push(
            stream,
            if self.training {
                Op::BnStatistics {
                    y,
                    rows: shape.out_pixels(),
                    channels,
                    gamma,
                    beta,
                    statistics: Statistics { state, moments },
                    scratch: self.scratch[stream],
                }
            } else {
                let running = self.persistent.running.at(8 * norm.at);
                Op::BnFold { running, gamma, beta, state, channels }
            },
        );
        KeptConv { shape, y, statistics: Statistics { state, moments } }
    }

    fn apply(&mut self, stream: usize, conv: &KeptConv, shortcut: Shortcut, out: View, mask: Option<View>) {
        let (rows, channels) = (conv.shape.out_pixels(), conv.shape.filters);
        let (y, state) = (conv.y, conv.statistics.state);
        self.tape.push(stream, Op::BnApply { y, state, shortcut, out, mask, rows, channels });
    }

    /// The stem; the kept part, and the activations with their rows and columns of pixels.
    fn stem(&mut self, stream: usize, group: Group) -> (KeptGroup, View, [usize; 2]) {
        let Group { images, height, width } = group;
        let pixel_bytes = match self.options.pixels {
            crate::tape::PixelFormat::F32 => 4,
            crate::tape::PixelFormat::U8 { .. } => 1,
        };
        let pixels = self.program.buffer("pixels", images * height * width * 3 * pixel_bytes, Role::Input);
        let filters = padded(self.convs[0].filters);
        let imagenet = self.network.spec.stem == Stem::Imagenet;
        let (shape, layout) = if imagenet {
            let (oh, ow) = (height.div_ceil(2), width.div_ceil(2));
            let (kernel, padding) = ([4, 1], [0, 0]);
            let shape = ConvShape {
                images,
                height: oh + 3,
                width: ow,
                channels: 64,
                filters,
                kernel,
                stride: 1,
                padding,
            };
            (shape, InputLayout::Rows)
        } else {
            (self.convs[0].shape(images, height, width), InputLayout::Padded)
        };
        let stem_input = self.act("stem input", shape.input_len());
        let format = self.options.pixels;
        let input =
            Op::Input { pixels: pixels.view(), format, out: stem_input, layout, images, height, width };
        self.tape.push(stream, input);
        let stem = self.conv_norm(stream, 0, shape, stem_input);
        let (oh, ow) = (shape.out_height(), shape.out_width());
        let (out, pool, size) = if imagenet {
            let pool = PoolShape { images, height: oh, width: ow, channels: filters };
            let out = self.act("stem output", pool.out_len());
            let positions =
                self.training.then(|| self.program.buffer("positions", pool.out_len() / 2, Role::Scratch));
            let positions = positions.map(BufferId::view);
            let (y, state) = (stem.y, stem.statistics.state);
            self.tape.push(stream, Op::StemPool { y, state, out, positions, shape: pool });
            (out, positions.map(|positions| (pool, positions)), [pool.out_height(), pool.out_width()])
        } else {
            let out = self.act("stem output", shape.output_len());
            self.apply(stream, &stem, Shortcut::None, out, None);
            (out, None, [oh, ow])
        };
        let kept = KeptGroup {
            stream,
            pixels,
            stem_input,
            stem,
            pool,
            blocks: Vec::new(),
            moments: self.moments,
            last: [0; 4],
        };
        (kept, out, size)
    }

    /// A block; the kept part, the output and its rows and columns.
    fn block(
        &mut self,
        stream: usize,
        block: &BlockLayer,
        input: View,
        images: usize,
        size: [usize; 2],
    ) -> (KeptBlock, View, [usize; 2]) {
        let (mut x, mut now) = (input, size);
        let (mut convs, mut inner) = (Vec::new(), Vec::new());
        for (position, &index) in block.convs.iter().enumerate() {
            let shape = self.convs[index].shape(images, now[0], now[1]);
            let conv = self.conv_norm(stream, index, shape, x);
            now = [shape.out_height(), shape.out_width()];
            convs.push(conv);
            if position + 1 < block.convs.len() {
                x = self.act("inner", shape.output_len());
                self.apply(stream, &conv, Shortcut::None, x, None);
                inner.push(x);
            }
        }
        let last = convs[convs.len() - 1];
        let shortcut = match block.downsample {
            None => Shortcut::Identity(input),
            Some(index) => {
                let shape = self.convs[index].shape(images, size[0], size[1]);
                let conv = self.conv_norm(stream, index, shape, input);
                convs.push(conv);
                Shortcut::Norm { y: conv.y, state: conv.statistics.state }
            }
        };
        let out = self.act("block output", last.shape.output_len());
        let mask = self.program.buffer("mask", last.shape.output_len() / 8, Role::Scratch).view();
        self.apply(stream, &last, shortcut, out, self.training.then_some(mask));
        (KeptBlock { input, convs, inner, mask }, out, now)
    }

    /// The backbone on one group; features go to their rows of `features` (act).
    fn backbone(&mut self, stream: usize, group: Group, features: View, first_row: usize) -> KeptGroup {
        let (mut kept, mut flow, mut size) = self.stem(stream, group);
        for index in 0..self.blocks.len() {
            let block = self.blocks[index].clone();
            let (kept_block, out, out_size) = self.block(stream, &block, flow, group.images, size);
            kept.blocks.push(kept_block);
            (flow, size) = (out, out_size);
        }
        let (pixels, channels) = (size[0] * size[1], padded(self.network.spec.feature_dim()));
        kept.last = [group.images, pixels, channels, first_row];
        let out = features.plus(first_row * channels * self.program.element.bytes());
        self.tape.push(stream, Op::AveragePool { x: flow, out, images: group.images, pixels, channels });
        kept
    }

    /// A linear layer with bias on stream 0.
    fn linear(&mut self, parameter: usize, shape: ConvShape, x: View) -> View {
        let y = self.act("linear", shape.output_len());
        self.conv(0, parameter, shape, x, y);
        let bias = self.network.value(&self.persistent, parameter + 1);
        self.tape.push(0, Op::Bias { x: y, bias, rows: shape.images, channels: shape.filters });
        y
    }

    /// The head on all rows.
    fn head(&mut self, rows: usize, features: View) -> KeptHead {
        let inputs = padded(self.network.spec.feature_dim());
        let first = 3 * self.convs.len();
        let mut kept =
            KeptHead { rows, inputs: Vec::new(), hidden: None, hidden_moments: None, output: features };
        kept.output = match self.network.spec.head {
            Head::None => features,
            Head::Linear { dim } => {
                kept.inputs.push(features);
                self.linear(first, ConvShape::linear(rows, inputs, padded(dim)), features)
            }
            Head::Mlp { hidden, dim } => {
                let shape = ConvShape::linear(rows, inputs, padded(hidden));
                let y = self.linear(first, shape, features);
                if self.training {
                    self.moments = self.floats("moments of the head", 2 * shape.filters);
                    kept.hidden_moments = Some(self.moments);
                }
                let conv = self.norm(0, self.convs.len(), shape, y);
                let a = self.act("hidden", shape.output_len());
                self.apply(0, &conv, Shortcut::None, a, None);
                kept.hidden = Some(conv);
                kept.inputs = vec![features, a];
                self.linear(first + 4, ConvShape::linear(rows, shape.filters, padded(dim)), a)
            }
        };
        kept
    }

    /// Activations in f32, for the host.
    pub(super) fn widen(&mut self, from: View, to: BufferId, len: usize) {
        let to = to.view();
        self.tape.push(
            0,
            match self.program.element {
                Element::Bf16 => Op::Widen { from, to, len },
                Element::F32 => Op::Copy { from, to, bytes: 4 * len },
            },
        );
    }

    /// All groups, each on its stream, then the head.
    pub(super) fn groups_and_head(&mut self, groups: &[Group]) -> Kept {
        let rows: usize = groups.iter().map(|group| group.images).sum();
        let features = self.act("features", rows * padded(self.network.spec.feature_dim()));
        let mut kept = Vec::new();
        for stream in 1..groups.len() {
            self.tape.wait(stream, 0);
        }
        let mut first_row = 0;
        for (stream, &group) in groups.iter().enumerate() {
            self.moments = self.floats("moments", 2 * self.network.parameters.backbone_norm_channels);
            kept.push(self.backbone(stream, group, features, first_row));
            first_row += group.images;
        }
        for stream in 1..groups.len() {
            self.tape.wait(0, stream);
        }
        let head = self.head(rows, features);
        Kept { groups: kept, head }
    }

    /// Inference on one group; the pixels' buffer.
    pub(super) fn infer_all(&mut self, group: Group, output: Output, out: BufferId) -> BufferId {
        let dim = padded(self.network.spec.feature_dim());
        let features = self.act("features", group.images * dim);
        let kept = self.backbone(0, group, features, 0);
        match output {
            Output::Features => self.widen(features, out, group.images * dim),
            Output::Head => {
                let kept = self.head(group.images, features);
                self.widen(kept.output, out, group.images * padded(self.network.spec.embedding_dim()));
            }
        }
        kept.pixels
    }

    /// Moves the running statistics.
    pub(super) fn running(&mut self, kept: &Kept) {
        let parameters = &self.network.parameters;
        let running = self.persistent.running;
        let groups = kept.groups.iter().map(|group| group.moments).collect();
        let len = 2 * parameters.backbone_norm_channels;
        self.tape.push(0, Op::BnRunning { running: running.view(), groups, len });
        if let Some(moments) = kept.head.hidden_moments {
            let running = running.at(8 * parameters.backbone_norm_channels);
            let len = 2 * (parameters.norm_channels - parameters.backbone_norm_channels);
            self.tape.push(0, Op::BnRunning { running, groups: vec![moments], len });
        }
    }

    /// The program, and the forward tape.
    pub(super) fn into_parts(self) -> (Program, Tape) {
        (self.program, self.tape)
    }
}
