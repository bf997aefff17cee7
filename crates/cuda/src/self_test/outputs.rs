//! What an operation writes, and how to compare it.

use super::relative_error;
use crate::shape::{ConvPass, Element};
use crate::tape::{BnReduceBranch, InputLayout, Op, Report, View};

/// How bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Numbers.
    Numbers(Element),
    /// Bits, or what is only copied.
    Bytes,
    /// A [`Report`].
    Report,
}

/// A range that an operation writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) view: View,
    pub(super) bytes: usize,
    pub(super) kind: Kind,
}

const F32: Kind = Kind::Numbers(Element::F32);

impl Output {
    fn numbers(view: View, element: Element, len: usize) -> Output {
        Output { view, bytes: len * element.bytes(), kind: Kind::Numbers(element) }
    }

    fn floats(view: View, len: usize) -> Output {
        Output { view, bytes: 4 * len, kind: F32 }
    }

    fn bytes(view: View, bytes: usize) -> Output {
        Output { view, bytes, kind: Kind::Bytes }
    }

    fn report(view: View) -> Output {
        Output { view, bytes: Report::BYTES, kind: Kind::Report }
    }
}

impl Kind {
    /// The error of `got`, as a part of the largest that passes: a sum's order, and what that does to one rounding.
    pub(super) fn error(self, got: &[u8], right: &[u8]) -> (f64, f64) {
        match self {
            Kind::Numbers(element) => {
                let limit = if element == Element::F32 { 2e-5 } else { 4e-3 };
                (relative_error(&element.to_values(got), &element.to_values(right)), limit)
            }
            Kind::Bytes => {
                let differ = got.iter().zip(right).filter(|(got, right)| got != right).count();
                // Where a value is as good as 0, its sign may differ.
                (differ as f64 / right.len().max(1) as f64, 2e-3)
            }
            Kind::Report => {
                let read = |bytes: &[u8]| bytes.first_chunk().map(Report::from_bytes).unwrap_or_default();
                let (got, right) = (read(got), read(right));
                let pairs = [
                    (got.loss, right.loss),
                    (got.code_entropy, right.code_entropy),
                    (got.code_perplexity, right.code_perplexity),
                    (got.prediction_perplexity, right.prediction_perplexity),
                    (got.spread, right.spread),
                    (got.parameter_norm, right.parameter_norm),
                    (got.gradient_norm, right.gradient_norm),
                    (f64::from(got.clip_scale), f64::from(right.clip_scale)),
                ];
                let error = |(got, right): (f64, f64)| (got - right).abs() / right.abs().max(1e-3);
                (pairs.map(error).into_iter().fold(0.0, f64::max), 1e-4)
            }
        }
    }
}

/// Where an operation sums rows that may cancel out: `[rows][channels]` (act), rows, channels. The gradient of a bias
/// before a batch norm is such a sum; its error is that of the addends.
pub(super) fn addends(op: &Op) -> Option<(View, usize, usize)> {
    match op {
        Op::BiasGradient { gradient, rows, channels, .. } => Some((*gradient, *rows, *channels)),
        _ => None,
    }
}

/// The ranges that an operation writes, scratch left out.
pub(super) fn outputs(op: &Op, act: Element) -> Vec<Output> {
    let acts = |view, len| Output::numbers(view, act, len);
    match op {
        Op::Fill { to, bytes, .. } | Op::Copy { to, bytes, .. } => vec![Output::bytes(*to, *bytes)],
        Op::Round { to, len, .. } => vec![acts(*to, *len)],
        Op::Widen { to, len, .. } => vec![Output::floats(*to, *len)],
        Op::Input { out, layout, images, height, width, .. } => vec![acts(
            *out,
            match layout {
                InputLayout::Padded => images * height * width * 8,
                InputLayout::Rows => images * (height.div_ceil(2) + 3) * width.div_ceil(2) * 64,
            },
        )],
        Op::Conv { pass, shape, x, w, y, .. } => vec![match pass {
            ConvPass::Forward => acts(*y, shape.output_len()),
            ConvPass::DataGradient => acts(*x, shape.input_len()),
            ConvPass::WeightGradient => acts(*w, shape.weight_len()),
        }],
        Op::MaskStem { weights, filters } => vec![acts(*weights, filters * 256)],
        Op::Bias { x, rows, channels, .. } => vec![acts(*x, rows * channels)],
        Op::BiasGradient { d_bias, channels, .. } => vec![Output::floats(*d_bias, *channels)],
        Op::AveragePool { out, images, channels, .. } => vec![acts(*out, images * channels)],
        Op::AveragePoolGradient { out, images, pixels, channels, .. } => {
            vec![acts(*out, images * pixels * channels)]
        }
        Op::UnitLength { out, exact, norms, rows, dim, .. } => {
            let exact = exact.map(|exact| Output::floats(exact, rows * dim));
            [acts(*out, rows * dim), Output::floats(*norms, *rows)].into_iter().chain(exact).collect()
        }
        Op::UnitLengthGradient { out, rows, dim, .. } => vec![acts(*out, rows * dim)],
        Op::PrototypeNormalise { weights, copy, rows, dim } => {
            let copy = copy.map(|copy| acts(copy, rows * dim));
            [Output::floats(*weights, rows * dim)].into_iter().chain(copy).collect()
        }
        _ => norm_outputs(op, act).unwrap_or_else(|| step_outputs(op, act)),
    }
}

/// Those of batch norms and the stem's pooling.
fn norm_outputs(op: &Op, act: Element) -> Option<Vec<Output>> {
    let acts = |view, len| Output::numbers(view, act, len);
    Some(match op {
        Op::BnStatistics { statistics, channels, .. } => {
            vec![
                Output::floats(statistics.state, 4 * channels),
                Output::floats(statistics.moments, 2 * channels),
            ]
        }
        Op::BnFold { state, channels, .. } => vec![Output::floats(*state, 4 * channels)],
        Op::BnRunning { running, len, .. } => vec![Output::floats(*running, *len)],
        Op::BnApply { out, mask, rows, channels, .. } => {
            let mask = mask.map(|mask| Output::bytes(mask, rows * channels / 8));
            [acts(*out, rows * channels)].into_iter().chain(mask).collect()
        }
        Op::BnReduce { first, second, channels, .. } => {
            [Some(first), second.as_ref()].into_iter().flatten().flat_map(|b| reduced(b, *channels)).collect()
        }
        Op::BnGradient { gradient, first, second, keep, rows, channels, .. } => {
            let kept = keep.then_some(*gradient);
            let views = [first.out].into_iter().chain(second.as_ref().map(|branch| branch.out)).chain(kept);
            views.map(|view| acts(view, rows * channels)).collect()
        }
        Op::StemPool { out, positions, shape, .. } => {
            let positions = positions.map(|positions| Output::bytes(positions, shape.out_len() / 2));
            [acts(*out, shape.out_len())].into_iter().chain(positions).collect()
        }
        Op::StemPoolReduce { branch, shape, .. } => reduced(branch, shape.channels).to_vec(),
        Op::StemPoolGradient { branch, shape, .. } => {
            vec![acts(branch.out, shape.images * shape.height * shape.width * shape.channels)]
        }
        _ => return None,
    })
}

fn reduced(branch: &BnReduceBranch, channels: usize) -> [Output; 3] {
    [
        Output::floats(branch.d_gamma, channels),
        Output::floats(branch.d_beta, channels),
        Output::floats(branch.coefficients, 3 * channels),
    ]
}

/// Those of codes, loss, queue and update.
fn step_outputs(op: &Op, act: Element) -> Vec<Output> {
    let acts = |view, len| Output::numbers(view, act, len);
    match op {
        Op::Codes { codes, shape, .. } => {
            // After the last iteration nobody needs the potentials of the queue's samples.
            let lists = (0..shape.assign.len()).map(|list| {
                let batch = codes.over_samples.plus(4 * (list * shape.samples() + shape.queue));
                let prototypes = codes.over_prototypes.plus(4 * list * shape.stride);
                [Output::floats(prototypes, shape.n_prototypes), Output::floats(batch, shape.batch)]
            });
            lists.flatten().collect()
        }
        Op::Loss { shape, gradient, report, .. } => {
            vec![acts(*gradient, shape.n_crops * shape.batch * shape.stride), Output::report(*report)]
        }
        Op::QueuePush { queue, shape, dim, .. } => {
            vec![Output::bytes(*queue, shape.assign.len() * shape.queue * dim * act.bytes())]
        }
        Op::Update { tensors, report, .. } => {
            let each = tensors.iter().flat_map(|tensor| {
                let floats = [Some(tensor.value), Some(tensor.first), tensor.second];
                let floats = floats.into_iter().flatten().map(|view| Output::floats(view, tensor.len));
                floats.chain(tensor.copy.map(|copy| acts(copy, tensor.len)))
            });
            each.chain([Output::report(*report)]).collect()
        }
        Op::SumGradients { tensors, parameters, out } => {
            let place = |value: View| out.plus(value.offset - parameters.offset);
            tensors.iter().map(|tensor| Output::floats(place(tensor.value), tensor.len)).collect()
        }
        // An operation that nobody knows how to compare must not pass for one that agrees.
        other => panic!("no comparison for {other:?}"),
    }
}
