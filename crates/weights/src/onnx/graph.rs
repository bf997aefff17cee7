//! The operations of a residual network, one after the other.

use std::borrow::Cow;

use swav_encoder::{Arch, BlockKind, EncoderConfig, Head, ResNet, StateDict, Stem};

use super::{Message, OnnxOptions};
use crate::WeightsError;
use crate::export::Part;
use crate::preprocessing::Preprocessing;
use crate::source::le_bytes;

/// Added to variances under the root, as everywhere in this project and in PyTorch.
const EPSILON: f32 = 1e-5;
/// Rows shorter than this are divided by this instead of by their length, as in PyTorch's `normalize`.
const MIN_LENGTH: f32 = 1e-12;

/// Kinds of numbers.
const FLOAT: u64 = 1;
const UINT8: u64 = 2;

/// An extent of an input or output.
enum Extent {
    Fixed(usize),
    Free(&'static str),
}

/// An attribute of an operation.
enum Attribute<'n> {
    Float(&'n str, f32),
    Int(&'n str, i64),
    Ints(&'n str, &'n [i64]),
}

/// A convolution with the batch norm behind it.
struct ConvNorm<'n> {
    conv: &'n str,
    norm: &'n str,
    stride: i64,
}

/// A graph that grows.
pub(super) struct Graph<'a, 'b> {
    state: &'a StateDict,
    options: &'b OnnxOptions,
    nodes: Message<'a>,
    weights: Message<'a>,
    outputs: Message<'a>,
    n_nodes: usize,
}

type Built<T> = Result<T, WeightsError>;

impl<'a, 'b> Graph<'a, 'b> {
    /// The message of the graph.
    pub(super) fn build(
        config: &EncoderConfig,
        state: &'a StateDict,
        options: &'b OnnxOptions,
    ) -> Built<Message<'a>> {
        let spec = config.check()?;
        fits(&spec.tensors(), state, options.part)?;
        let mut graph = Self {
            state,
            options,
            nodes: Message::new(),
            weights: Message::new(),
            outputs: Message::new(),
            n_nodes: 0,
        };
        let images = match &options.normalize {
            Some(preprocessing) => graph.normalised(preprocessing),
            None => "images".to_owned(),
        };
        let Arch::ResNet(resnet) = &config.arch else {
            return Err(WeightsError::NoPart { what: "ONNX", expected: "residual blocks" });
        };
        graph.resnet(resnet, images)?;
        graph.output("features", spec.feature_dim());
        if options.part >= Part::Head {
            graph.head(config.head)?;
            graph.output("embedding", spec.embedding_dim());
        }
        if options.part == Part::Prototypes {
            graph.prototypes(spec.embedding_dim())?;
        }
        let mut message = Message::new();
        message.append(graph.nodes);
        message.text(2, "swav");
        message.append(graph.weights);
        let (batch, height, width) = (Extent::Free("batch"), Extent::Free("height"), Extent::Free("width"));
        let input = match options.normalize {
            Some(_) => value("images", UINT8, &[batch, height, width, Extent::Fixed(3)]),
            None => value("images", FLOAT, &[batch, Extent::Fixed(3), height, width]),
        };
        message.message(11, input);
        message.append(graph.outputs);
        Ok(message)
    }

    /// Bytes (batch, height, width, 3) to normalised floats (batch, 3, height, width).
    fn normalised(&mut self, preprocessing: &Preprocessing) -> String {
        let Preprocessing { mean, std, .. } = preprocessing;
        let scale: Vec<f32> = std.iter().map(|std| 1.0 / (255.0 * std)).collect();
        let shift: Vec<f32> = mean.iter().zip(std).map(|(mean, std)| -mean / std).collect();
        self.weight("normalize.scale", &[1, 3, 1, 1], scale.into());
        self.weight("normalize.shift", &[1, 3, 1, 1], shift.into());
        let float = self.node("Cast", &["images"], &[Attribute::Int("to", FLOAT as i64)]);
        let planes = self.node("Transpose", &[&float], &[Attribute::Ints("perm", &[0, 3, 1, 2])]);
        let scaled = self.node("Mul", &[&planes, "normalize.scale"], &[]);
        self.node("Add", &[&scaled, "normalize.shift"], &[])
    }

    fn resnet(&mut self, resnet: &ResNet, images: String) -> Built<()> {
        let (block, layers, _) = resnet.variant.blocks();
        let stride = if resnet.stem == Stem::Imagenet { 2 } else { 1 };
        let mut x = self.conv_norm(&images, ConvNorm { conv: "conv1", norm: "bn1", stride })?;
        x = self.node("Relu", &[&x], &[]);
        if resnet.stem == Stem::Imagenet {
            let window = [
                Attribute::Ints("kernel_shape", &[3, 3]),
                Attribute::Ints("pads", &[1, 1, 1, 1]),
                Attribute::Ints("strides", &[2, 2]),
            ];
            x = self.node("MaxPool", &[&x], &window);
        }
        for (stage, &n_blocks) in layers.iter().enumerate() {
            for index in 0..n_blocks {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                x = self.block(block, &format!("layer{}.{index}", stage + 1), stride, x)?;
            }
        }
        let pooled = self.node("GlobalAveragePool", &[&x], &[]);
        self.named_node("Flatten", &[&pooled], "features", &[Attribute::Int("axis", 1)]);
        Ok(())
    }

    /// The second convolution of a bottleneck has the stride, the first of a basic block.
    fn block(&mut self, kind: BlockKind, name: &str, stride: i64, input: String) -> Built<String> {
        let strides: &[i64] = match kind {
            BlockKind::Basic => &[stride, 1],
            BlockKind::Bottleneck => &[1, stride, 1],
        };
        let mut x = input.clone();
        for (index, &stride) in strides.iter().enumerate() {
            if index > 0 {
                x = self.node("Relu", &[&x], &[]);
            }
            let (conv, norm) = (format!("{name}.conv{}", index + 1), format!("{name}.bn{}", index + 1));
            x = self.conv_norm(&x, ConvNorm { conv: &conv, norm: &norm, stride })?;
        }
        let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
        let shortcut = match self.state.get(&format!("{conv}.weight")) {
            Some(_) => self.conv_norm(&input, ConvNorm { conv: &conv, norm: &norm, stride })?,
            None => input,
        };
        let sum = self.node("Add", &[&x, &shortcut], &[]);
        Ok(self.node("Relu", &[&sum], &[]))
    }

    fn conv_norm(&mut self, input: &str, ConvNorm { conv, norm, stride }: ConvNorm<'_>) -> Built<String> {
        let weight = format!("{conv}.weight");
        let tensor = self.tensor(&weight)?;
        let kernel = tensor.shape()[2] as i64;
        let pad = kernel / 2;
        let window = [
            Attribute::Ints("kernel_shape", &[kernel, kernel]),
            Attribute::Ints("pads", &[pad, pad, pad, pad]),
            Attribute::Ints("strides", &[stride, stride]),
        ];
        if !self.options.fold_batch_norm {
            self.weight(&weight, tensor.shape(), tensor.data().into());
            let raw = self.node("Conv", &[input, &weight], &window);
            return self.norm(&raw, norm);
        }
        let bias = format!("{conv}.bias");
        self.folded(&weight, &bias, norm)?;
        Ok(self.node("Conv", &[input, &weight, &bias], &window))
    }

    fn norm(&mut self, input: &str, norm: &str) -> Built<String> {
        let names = ["weight", "bias", "running_mean", "running_var"].map(|part| format!("{norm}.{part}"));
        for name in &names {
            let tensor = self.tensor(name)?;
            self.weight(name, tensor.shape(), tensor.data().into());
        }
        let [scale, shift, mean, var] = &names;
        let inputs = [input, scale, shift, mean, var];
        Ok(self.node("BatchNormalization", &inputs, &[Attribute::Float("epsilon", EPSILON)]))
    }

    /// Enters weights and bias of a layer with the batch norm behind it inside.
    fn folded(&mut self, weight: &str, bias: &str, norm: &str) -> Built<()> {
        let part = |part: &str| Ok::<_, WeightsError>(self.tensor(&format!("{norm}.{part}"))?.data());
        let (gamma, beta) = (part("weight")?, part("bias")?);
        let (mean, var) = (part("running_mean")?, part("running_var")?);
        let tensor = self.tensor(weight)?;
        let n_inputs = tensor.data().len() / gamma.len();
        let own = self.state.get(bias).map(|bias| bias.data());
        let mut weights = Vec::with_capacity(tensor.data().len());
        let mut shifts = Vec::with_capacity(gamma.len());
        for channel in 0..gamma.len() {
            let scale = f64::from(gamma[channel]) / (f64::from(var[channel]) + f64::from(EPSILON)).sqrt();
            let values = &tensor.data()[channel * n_inputs..][..n_inputs];
            weights.extend(values.iter().map(|&value| (f64::from(value) * scale) as f32));
            let before = own.map_or(0.0, |own| f64::from(own[channel])) - f64::from(mean[channel]);
            shifts.push((f64::from(beta[channel]) + scale * before) as f32);
        }
        let (shape, n_channels) = (tensor.shape().to_vec(), gamma.len());
        self.weight(weight, &shape, weights.into());
        self.weight(bias, &[n_channels], shifts.into());
        Ok(())
    }

    fn head(&mut self, head: Head) -> Built<()> {
        let x = match head {
            Head::None => "features".to_owned(),
            Head::Linear => self.linear("features", "projection_head", None)?,
            Head::Mlp { .. } => {
                let x = self.linear("features", "projection_head.0", Some("projection_head.1"))?;
                let x = self.node("Relu", &[&x], &[]);
                self.linear(&x, "projection_head.3", None)?
            }
        };
        let axes = [Attribute::Ints("axes", &[1]), Attribute::Int("keepdims", 1)];
        let length = self.node("ReduceL2", &[&x], &axes);
        self.weight("min_length", &[1], vec![MIN_LENGTH].into());
        let divisor = self.node("Max", &[&length, "min_length"], &[]);
        self.named_node("Div", &[&x, &divisor], "embedding", &[]);
        Ok(())
    }

    /// A linear layer, and the batch norm behind it if there is one.
    fn linear(&mut self, input: &str, name: &str, norm: Option<&str>) -> Built<String> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let fold = norm.filter(|_| self.options.fold_batch_norm);
        match fold {
            Some(norm) => self.folded(&weight, &bias, norm)?,
            None => {
                for name in [&weight, &bias] {
                    let tensor = self.tensor(name)?;
                    self.weight(name, tensor.shape(), tensor.data().into());
                }
            }
        }
        let x = self.node("Gemm", &[input, &weight, &bias], &[Attribute::Int("transB", 1)]);
        match norm.filter(|_| fold.is_none()) {
            Some(norm) => self.norm(&x, norm),
            None => Ok(x),
        }
    }

    fn prototypes(&mut self, dim: usize) -> Built<()> {
        let names: Vec<&str> =
            self.state.iter().map(|(name, _)| name).filter(|name| name.starts_with("prototypes.")).collect();
        if names.is_empty() {
            return Err(WeightsError::NoPart { what: "prototypes", expected: "prototypes" });
        }
        for (head, name) in (0..names.len()).map(|head| {
            let name = match names.as_slice() {
                ["prototypes.weight"] => "prototypes.weight".to_owned(),
                _ => format!("prototypes.prototypes{head}.weight"),
            };
            (head, name)
        }) {
            let tensor = self.tensor(&name)?;
            let &[n_prototypes, width] = tensor.shape() else {
                return Err(WeightsError::tensor(&name, "a matrix", format_args!("{:?}", tensor.shape())));
            };
            if width != dim {
                return Err(WeightsError::tensor(&name, format_args!("{dim} columns"), width));
            }
            self.weight(&name, tensor.shape(), tensor.data().into());
            let output = if names.len() == 1 { "scores".to_owned() } else { format!("scores{head}") };
            let transposed = [Attribute::Int("transB", 1)];
            self.named_node("Gemm", &["embedding", &name], &output, &transposed);
            self.output(&output, n_prototypes);
        }
        Ok(())
    }

    fn tensor(&self, name: &str) -> Built<&'a swav_encoder::StateTensor> {
        Ok(self
            .state
            .get(name)
            .ok_or_else(|| swav_encoder::EncoderError::Missing { name: name.to_owned() })?)
    }

    /// Adds an operation and gives its output's name.
    fn node(&mut self, kind: &str, inputs: &[&str], attributes: &[Attribute<'_>]) -> String {
        let output = format!("{}_{}", kind.to_lowercase(), self.n_nodes);
        self.named_node(kind, inputs, &output, attributes);
        output
    }

    fn named_node(&mut self, kind: &str, inputs: &[&str], output: &str, attributes: &[Attribute<'_>]) {
        let mut node = Message::new();
        inputs.iter().for_each(|input| node.text(1, input));
        node.text(2, output);
        node.text(3, &format!("{kind}_{}", self.n_nodes));
        node.text(4, kind);
        for attribute in attributes {
            node.message(5, attribute.message());
        }
        self.nodes.message(1, node);
        self.n_nodes += 1;
    }

    /// Adds weights.
    fn weight(&mut self, name: &str, shape: &[usize], values: Cow<'a, [f32]>) {
        let mut tensor = Message::new();
        shape.iter().for_each(|&extent| tensor.number(1, extent as u64));
        tensor.number(2, FLOAT);
        tensor.text(8, name);
        tensor.bytes(
            9,
            match values {
                Cow::Borrowed(values) => le_bytes(values),
                Cow::Owned(values) => le_bytes(&values).into_owned().into(),
            },
        );
        self.weights.message(5, tensor);
    }

    fn output(&mut self, name: &str, width: usize) {
        let shape = [Extent::Free("batch"), Extent::Fixed(width)];
        self.outputs.message(12, value(name, FLOAT, &shape));
    }
}

impl Attribute<'_> {
    fn message<'a>(&self) -> Message<'a> {
        let mut message = Message::new();
        let (name, kind) = match *self {
            Self::Float(name, value) => {
                message.float(2, value);
                (name, 1)
            }
            Self::Int(name, value) => {
                message.number(3, value as u64);
                (name, 2)
            }
            Self::Ints(name, values) => {
                values.iter().for_each(|&value| message.number(8, value as u64));
                (name, 7)
            }
        };
        message.text(1, name);
        message.number(20, kind);
        message
    }
}

/// The description of an input or output.
fn value<'a>(name: &str, kind: u64, extents: &[Extent]) -> Message<'a> {
    let mut shape = Message::new();
    for extent in extents {
        let mut dimension = Message::new();
        match extent {
            Extent::Fixed(extent) => dimension.number(1, *extent as u64),
            Extent::Free(name) => dimension.text(2, name),
        }
        shape.message(1, dimension);
    }
    let mut tensor = Message::new();
    tensor.number(1, kind);
    tensor.message(2, shape);
    let mut of_type = Message::new();
    of_type.message(1, tensor);
    let mut value = Message::new();
    value.text(1, name);
    value.message(2, of_type);
    value
}

/// Checks that a state has the tensors of a part.
fn fits(expected: &[(String, Vec<usize>)], state: &StateDict, part: Part) -> Built<()> {
    let (mut missing, mut shapes) = (Vec::new(), Vec::new());
    let needed = |name: &str| part.has(name) && !name.ends_with("num_batches_tracked");
    for (name, shape) in expected.iter().filter(|(name, _)| needed(name)) {
        match state.get(name) {
            None => missing.push(name.clone()),
            Some(tensor) if tensor.shape() != shape => {
                shapes.push((name.clone(), shape.clone(), tensor.shape().to_vec()));
            }
            Some(_) => {}
        }
    }
    if missing.is_empty() && shapes.is_empty() {
        Ok(())
    } else {
        Err(WeightsError::Misfit { missing, shapes })
    }
}
