//! From operations of a tape to launches of kernels.

use std::collections::HashMap;

use super::{
    AddBias, ApplyGate, AveragePool, AveragePoolBackward, BiasGradient, Branch, Cast, Launch, MeanRow,
    MergeRunning, NormApply, NormBackwardApply, NormBackwardSums, NormFromRunning, NormGrad, NormPool,
    NormPoolBackwardApply, NormPoolBackwardSums, NormStatistics, PixelPad, PixelRows, PixelSource, PoolShape,
    PrototypeNormalise, QueuePush, Rule, RuleScalars, Shortcut, SinkhornCodes, StemMask, StepScalars,
    SumGradients, SumsGate, SwappedLoss, TensorEntry, UnitLength, UnitLengthBackward, Update, tensor_table,
};
use crate::error::Result;
use crate::shape::Element;
use crate::tape::{
    self, BnGradientBranch, BnReduceBranch, CodesView, Gate, InputLayout, Op, PixelFormat, Scalars,
    ScoreShape, UpdateScalars, UpdatedTensor, View,
};

/// Added to the variance before its square root.
const EPSILON: f32 = 1e-5;

/// Where a program's buffers lie on a card.
pub(crate) trait Binding {
    /// A place's address.
    ///
    /// # Errors
    /// If the place has none.
    fn address(&self, view: View) -> Result<u64>;

    /// The address of the scalars, [`SCALAR_BYTES`] long.
    ///
    /// # Errors
    /// The card's.
    fn scalars(&self) -> Result<u64>;

    /// Uploads what kernels read and nobody writes; its address.
    ///
    /// # Errors
    /// The card's.
    fn table(&mut self, bytes: &[u8]) -> Result<u64>;
}

/// The addresses of one operation's places.
struct Places {
    addresses: HashMap<View, u64>,
    scalars: u64,
}

impl Places {
    fn new(op: &Op, binding: &dyn Binding) -> Result<Self> {
        let addresses = op.views().into_iter().map(|view| Ok((view, binding.address(view)?)));
        Ok(Places { addresses: addresses.collect::<Result<_>>()?, scalars: binding.scalars()? })
    }

    fn address(&self, view: View) -> u64 {
        self.addresses.get(&view).copied().unwrap_or_else(|| unreachable!("an operation names its places"))
    }
}

/// Bytes of the scalars.
pub(crate) const SCALAR_BYTES: usize = StepScalars::BYTES;

/// The scalars as bytes that the kernels read.
pub(crate) fn scalar_bytes(scalars: &Scalars) -> Vec<u8> {
    step_scalars(scalars).to_bytes()
}

/// The scalars as the kernels read them.
fn step_scalars(scalars: &Scalars) -> StepScalars {
    let rule = |numbers: &UpdateScalars| RuleScalars {
        lr: numbers.lr,
        momentum: numbers.momentum,
        second_decay: numbers.beta2,
        epsilon: numbers.epsilon,
        weight_decay: numbers.weight_decay,
        trust: numbers.trust,
        first_correction: numbers.first_correction,
        second_correction: numbers.second_correction,
        enabled: numbers.enabled,
        gradient_scale: numbers.gradient_scale,
    };
    StepScalars {
        classes: scalars.classes.each_ref().map(rule),
        queue_push: scalars.queue_push,
        queue_ready: scalars.queue_ready,
        queue_slot: scalars.queue_row,
        serial: scalars.serial,
        bn_momentum: scalars.bn_momentum,
        max_gradient_norm: scalars.max_gradient_norm.unwrap_or(0.0),
    }
}

/// The launches of an operation, in their order.
///
/// # Errors
/// Those of [`Binding::table`].
///
/// # Panics
/// For convolutions, copies, fills and waits, which are no kernels of this crate.
pub(crate) fn launches(op: &Op, element: Element, binding: &mut dyn Binding) -> Result<Vec<Launch<u64>>> {
    let places = Places::new(op, binding)?;
    match op {
        Op::Update { .. } | Op::SumGradients { .. } => update(op, &places, binding),
        Op::Codes { .. } | Op::Loss { .. } | Op::QueuePush { .. } => Ok(codes(op, element, &places)),
        Op::BnStatistics { .. } | Op::BnFold { .. } | Op::BnRunning { .. } | Op::BnApply { .. } => {
            Ok(norm(op, element, &places))
        }
        Op::BnReduce { .. } | Op::BnGradient { .. } => Ok(norm_gradient(op, element, &places)),
        Op::StemPool { .. } | Op::StemPoolReduce { .. } | Op::StemPoolGradient { .. } => {
            Ok(pool(op, element, &places))
        }
        _ => Ok(rows(op, element, &places)),
    }
}

fn norm(op: &Op, element: Element, places: &Places) -> Vec<Launch<u64>> {
    let at = |view: &View| places.address(*view);
    match op {
        Op::BnStatistics { y, rows, channels, gamma, beta, statistics, scratch } => NormStatistics {
            element,
            y: at(y),
            rows: *rows,
            channels: *channels,
            gamma: at(gamma),
            beta: at(beta),
            state: at(&statistics.state),
            moments: at(&statistics.moments),
            epsilon: EPSILON,
            scratch: at(scratch),
            reversed: false,
        }
        .launches(),
        Op::BnFold { running, gamma, beta, state, channels } => NormFromRunning {
            running: at(running),
            gamma: at(gamma),
            beta: at(beta),
            state: at(state),
            channels: *channels,
            epsilon: EPSILON,
        }
        .launches(),
        Op::BnRunning { running, groups, len } => MergeRunning {
            running: at(running),
            moments: groups.iter().map(at).collect(),
            scalars: places.scalars,
            len: *len,
        }
        .launches(),
        Op::BnApply { y, state, shortcut, out, mask, rows, channels } => NormApply {
            element,
            y: at(y),
            state: at(state),
            shortcut: match shortcut {
                tape::Shortcut::None => Shortcut::None,
                tape::Shortcut::Identity(view) => Shortcut::Identity(at(view)),
                tape::Shortcut::Norm { y, state } => Shortcut::Normed { y: at(y), state: at(state) },
            },
            out: at(out),
            mask: mask.as_ref().map(at),
            rows: *rows,
            channels: *channels,
            // What the statistics' pass read last is still in the cache.
            reversed: true,
        }
        .launches(),
        _ => unreachable!("called with a norm's operation"),
    }
}

fn grad(branch: &BnReduceBranch, places: &Places) -> NormGrad<u64> {
    NormGrad {
        gamma: places.address(branch.gamma),
        state: places.address(branch.state),
        coefficients: places.address(branch.coefficients),
        dgamma: places.address(branch.d_gamma),
        dbeta: places.address(branch.d_beta),
    }
}

fn norm_gradient(op: &Op, element: Element, places: &Places) -> Vec<Launch<u64>> {
    let at = |view: &View| places.address(*view);
    match op {
        Op::BnReduce { gradient, gate, first, second, scratch, rows, channels } => NormBackwardSums {
            element,
            dout: at(gradient),
            y: at(&first.y),
            norm: grad(first, places),
            gate: match (gate, second) {
                (Gate::Recomputed, _) => SumsGate::Sign,
                (Gate::Mask(mask), None) => SumsGate::Mask(at(mask)),
                (Gate::Mask(mask), Some(second)) => {
                    let branch = Branch { y: at(&second.y), norm: grad(second, places) };
                    SumsGate::Pair { mask: at(mask), branch }
                }
            },
            rows: *rows,
            channels: *channels,
            scratch: at(scratch),
            reversed: false,
        }
        .launches(),
        Op::BnGradient { gradient, gate, first, second, rows, channels, .. } => NormBackwardApply {
            element,
            dout: at(gradient),
            y: at(&first.y),
            coefficients: at(&first.coefficients),
            gate: match (gate, second) {
                (Gate::Recomputed, _) => ApplyGate::Sign { state: at(&first.state) },
                (Gate::Mask(mask), None) => ApplyGate::Mask(at(mask)),
                (Gate::Mask(mask), Some(BnGradientBranch { y, coefficients, out, .. })) => {
                    ApplyGate::Pair { mask: at(mask), y: at(y), coefficients: at(coefficients), out: at(out) }
                }
            },
            out: at(&first.out),
            rows: *rows,
            channels: *channels,
            reversed: true,
        }
        .launches(),
        _ => unreachable!("called with a norm's gradient"),
    }
}

fn pool(op: &Op, element: Element, places: &Places) -> Vec<Launch<u64>> {
    let at = |view: &View| places.address(*view);
    let shape = |s: &tape::PoolShape| PoolShape {
        images: s.images,
        height: s.height,
        width: s.width,
        channels: s.channels,
    };
    match op {
        Op::StemPool { y, state, out, positions, shape: s } => NormPool {
            element,
            y: at(y),
            state: at(state),
            shape: shape(s),
            out: at(out),
            positions: positions.as_ref().map(at),
        }
        .launches(),
        Op::StemPoolReduce { gradient, positions, branch, scratch, shape: s } => NormPoolBackwardSums {
            element,
            dout: at(gradient),
            positions: at(positions),
            y: at(&branch.y),
            norm: grad(branch, places),
            shape: shape(s),
            scratch: at(scratch),
        }
        .launches(),
        Op::StemPoolGradient { gradient, positions, branch, shape: s } => NormPoolBackwardApply {
            element,
            dout: at(gradient),
            positions: at(positions),
            y: at(&branch.y),
            state: at(&branch.state),
            coefficients: at(&branch.coefficients),
            shape: shape(s),
            out: at(&branch.out),
        }
        .launches(),
        _ => unreachable!("called with a pooling"),
    }
}

fn pixels(op: &Op, element: Element, places: &Places) -> Vec<Launch<u64>> {
    let Op::Input { pixels, format, out, layout, images, height, width } = op else {
        unreachable!("called with an input")
    };
    let source = match *format {
        PixelFormat::F32 => PixelSource::F32,
        PixelFormat::U8 { scale, shift } => PixelSource::U8 { scale, shift },
    };
    let (from, out) = (places.address(*pixels), places.address(*out));
    match layout {
        InputLayout::Padded => {
            PixelPad { element, images: from, source, out, pixels: images * height * width }.launches()
        }
        InputLayout::Rows => {
            let (height, width) = (*height, *width);
            PixelRows { element, images: from, source, n_images: *images, height, width, out }.launches()
        }
    }
}

fn rows(op: &Op, element: Element, places: &Places) -> Vec<Launch<u64>> {
    let at = |view: &View| places.address(*view);
    match op {
        Op::Input { .. } => pixels(op, element, places),
        Op::MaskStem { weights, filters } => {
            StemMask { element, gradient: at(weights), filters: *filters }.launches()
        }
        Op::AveragePool { x, out, images, pixels, channels } => {
            let (images, pixels, channels) = (*images, *pixels, *channels);
            AveragePool { element, x: at(x), out: at(out), images, pixels, channels }.launches()
        }
        Op::AveragePoolGradient { gradient, out, images, pixels, channels } => {
            let (images, pixels, channels) = (*images, *pixels, *channels);
            AveragePoolBackward { element, dout: at(gradient), dx: at(out), images, pixels, channels }
                .launches()
        }
        Op::Bias { x, bias, rows, channels } => {
            AddBias { element, z: at(x), bias: at(bias), rows: *rows, channels: *channels }.launches()
        }
        Op::BiasGradient { gradient, d_bias, rows, channels, .. } => {
            let (dz, gradient) = (at(gradient), at(d_bias));
            BiasGradient { element, dz, gradient, rows: *rows, channels: *channels }.launches()
        }
        Op::UnitLength { x, out, exact, norms, rows, dim } => UnitLength {
            element,
            z: at(x),
            unit: at(out),
            exact: exact.as_ref().map(at),
            lengths: at(norms),
            rows: *rows,
            channels: *dim,
        }
        .launches(),
        Op::UnitLengthGradient { gradient, unit, norms, out, rows, dim } => UnitLengthBackward {
            element,
            dunit: at(gradient),
            unit: at(unit),
            lengths: at(norms),
            dz: at(out),
            rows: *rows,
            channels: *dim,
        }
        .launches(),
        Op::Round { from, to, len } => {
            Cast { to_element: Element::Bf16, from: at(from), to: at(to), len: *len }.launches()
        }
        Op::Widen { from, to, len } => {
            Cast { to_element: Element::F32, from: at(from), to: at(to), len: *len }.launches()
        }
        Op::PrototypeNormalise { weights, copy, rows, dim } => PrototypeNormalise {
            element,
            weights: at(weights),
            copy: copy.as_ref().map(at),
            prototypes: *rows,
            channels: *dim,
        }
        .launches(),
        _ => unreachable!("no kernel of this crate: {op:?}"),
    }
}

/// What all operations on codes share.
fn sinkhorn(
    codes: &CodesView,
    shape: &ScoreShape,
    n_iters: usize,
    scratch: &View,
    element: Element,
    places: &Places,
) -> SinkhornCodes<u64> {
    SinkhornCodes {
        element,
        scores: places.address(codes.scores),
        queue_scores: codes.queue_scores.map(|view| places.address(view)),
        scalars: places.scalars,
        assign: places.address(codes.assign),
        n_assign: shape.assign.len(),
        batch: shape.batch,
        queued: shape.queue,
        prototypes: shape.n_prototypes,
        stride: shape.stride,
        epsilon: shape.epsilon,
        n_iters,
        f: places.address(codes.over_prototypes),
        g: places.address(codes.over_samples),
        scratch: places.address(*scratch),
    }
}

fn codes(op: &Op, element: Element, places: &Places) -> Vec<Launch<u64>> {
    let at = |view: &View| places.address(*view);
    match op {
        Op::Codes { codes, shape, n_iters, scratch } => {
            sinkhorn(codes, shape, *n_iters, scratch, element, places).launches()
        }
        Op::Loss { codes, shape, gradient, unit, dim, mean, report, scratch } => {
            let rows = shape.n_crops * shape.batch;
            let mean_row = MeanRow { element, x: at(unit), mean: at(mean), rows, channels: *dim };
            let mut loss = SwappedLoss {
                codes: sinkhorn(codes, shape, 0, scratch, element, places),
                n_crops: shape.n_crops,
                temperature: shape.temperature,
                gradient: at(gradient),
                mean: at(mean),
                channels: *dim,
                report: at(report),
                row_scratch: at(scratch),
                usage_scratch: 0,
            };
            loss.usage_scratch = at(scratch) + 4 * loss.scratch_len() as u64;
            mean_row.launches().into_iter().chain(loss.launches()).collect()
        }
        Op::QueuePush { unit, queue, assign, shape, dim } => QueuePush {
            element,
            unit: at(unit),
            queue: at(queue),
            scalars: places.scalars,
            assign: at(assign),
            n_assign: shape.assign.len(),
            batch: shape.batch,
            queued: shape.queue,
            channels: *dim,
        }
        .launches(),
        _ => unreachable!("called with an operation on codes"),
    }
}

/// A parameter as the kernels know it; its place among summed gradients is relative to `parameters`.
fn entry(tensor: &UpdatedTensor, parameters: Option<&View>, places: &Places) -> TensorEntry<u64> {
    let at = |view: View| places.address(view);
    TensorEntry {
        weights: at(tensor.value),
        first: at(tensor.first),
        second: tensor.second.map(at),
        gradient: at(tensor.gradient),
        element: tensor.element,
        groups: tensor.n_gradients,
        group_stride: tensor.gradient_step as u64,
        copy: tensor.copy.map(at),
        len: tensor.len,
        class: tensor.class,
        flat: parameters.map_or(0, |base| (tensor.value.offset - base.offset) as u64 / 4),
    }
}

fn update(op: &Op, places: &Places, binding: &mut dyn Binding) -> Result<Vec<Launch<u64>>> {
    let (list, base) = match op {
        Op::Update { tensors, .. } => (tensors, None),
        Op::SumGradients { tensors, parameters, .. } => (tensors, Some(parameters)),
        _ => unreachable!("called with an update"),
    };
    let entries: Vec<_> = list.iter().map(|tensor| entry(tensor, base, places)).collect();
    let n_chunks = entries.iter().map(TensorEntry::chunks).sum();
    let (tensors, chunks) = tensor_table(&entries);
    let (tensors, chunks) = (binding.table(&tensors)?, binding.table(&chunks)?);
    Ok(match op {
        Op::Update { rule, partials, report, .. } => Update {
            rule: match rule {
                tape::Rule::Larc => Rule::Larc,
                tape::Rule::Sgd => Rule::Sgd,
                tape::Rule::AdamW => Rule::AdamW,
            },
            tensors,
            chunks,
            n_chunks,
            scalars: places.scalars,
            partials: places.address(*partials),
            report: places.address(*report),
        }
        .launches(),
        Op::SumGradients { out, .. } => {
            SumGradients { tensors, chunks, n_chunks, flat: places.address(*out) }.launches()
        }
        _ => unreachable!("called with an update"),
    })
}
