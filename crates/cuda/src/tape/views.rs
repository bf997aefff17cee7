//! Which places an operation touches.

use super::{BnGradientBranch, BnReduceBranch, CodesView, Gate, Op, Shortcut, UpdatedTensor, View};

fn gate(gate: &Gate) -> Option<View> {
    match *gate {
        Gate::Recomputed => None,
        Gate::Mask(mask) => Some(mask),
    }
}

fn reduce(branch: &BnReduceBranch) -> [View; 6] {
    [branch.y, branch.state, branch.gamma, branch.d_gamma, branch.d_beta, branch.coefficients]
}

fn gradient(branch: &BnGradientBranch) -> [View; 4] {
    [branch.y, branch.state, branch.coefficients, branch.out]
}

fn codes(codes: &CodesView) -> impl Iterator<Item = View> {
    [codes.scores, codes.assign, codes.over_prototypes, codes.over_samples]
        .into_iter()
        .chain(codes.queue_scores)
}

fn updated(tensors: &[UpdatedTensor]) -> impl Iterator<Item = View> {
    tensors.iter().flat_map(|t| [t.value, t.first, t.gradient].into_iter().chain(t.second).chain(t.copy))
}

impl Op {
    /// All places that the operation reads or writes.
    pub fn views(&self) -> Vec<View> {
        match self {
            Op::Wait { .. } => Vec::new(),
            Op::Fill { to, .. } => vec![*to],
            Op::Copy { from, to, .. } | Op::Round { from, to, .. } | Op::Widen { from, to, .. } => {
                vec![*from, *to]
            }
            Op::Input { pixels, out, .. } => vec![*pixels, *out],
            Op::Conv { x, w, y, .. } => vec![*x, *w, *y],
            Op::MaskStem { weights, .. } => vec![*weights],
            Op::BnStatistics { y, gamma, beta, statistics, scratch, .. } => {
                vec![*y, *gamma, *beta, statistics.state, statistics.moments, *scratch]
            }
            Op::BnFold { running, gamma, beta, state, .. } => vec![*running, *gamma, *beta, *state],
            Op::BnRunning { running, groups, .. } => groups.iter().copied().chain([*running]).collect(),
            Op::BnApply { y, state, shortcut, out, mask, .. } => {
                let mut views = vec![*y, *state, *out];
                match *shortcut {
                    Shortcut::None => {}
                    Shortcut::Identity(view) => views.push(view),
                    Shortcut::Norm { y, state } => views.extend([y, state]),
                }
                views.extend(mask);
                views
            }
            Op::BnReduce { gradient, gate: g, first, second, scratch, .. } => {
                let branches = reduce(first).into_iter().chain(second.iter().flat_map(reduce));
                branches.chain([*gradient, *scratch]).chain(gate(g)).collect()
            }
            Op::BnGradient { gradient: d, gate: g, first, second, .. } => {
                let branches = gradient(first).into_iter().chain(second.iter().flat_map(gradient));
                branches.chain([*d]).chain(gate(g)).collect()
            }
            Op::StemPool { y, state, out, positions, .. } => {
                [*y, *state, *out].into_iter().chain(*positions).collect()
            }
            Op::StemPoolReduce { gradient, positions, branch, scratch, .. } => {
                reduce(branch).into_iter().chain([*gradient, *positions, *scratch]).collect()
            }
            Op::StemPoolGradient { gradient: d, positions, branch, .. } => {
                gradient(branch).into_iter().chain([*d, *positions]).collect()
            }
            Op::AveragePool { x, out, .. } => vec![*x, *out],
            Op::AveragePoolGradient { gradient, out, .. } => vec![*gradient, *out],
            Op::Bias { x, bias, .. } => vec![*x, *bias],
            Op::BiasGradient { gradient, d_bias, scratch, .. } => vec![*gradient, *d_bias, *scratch],
            Op::UnitLength { x, out, exact, norms, .. } => {
                [*x, *out, *norms].into_iter().chain(*exact).collect()
            }
            Op::UnitLengthGradient { gradient, unit, norms, out, .. } => vec![*gradient, *unit, *norms, *out],
            Op::PrototypeNormalise { weights, copy, .. } => [*weights].into_iter().chain(*copy).collect(),
            Op::Codes { codes: c, scratch, .. } => codes(c).chain([*scratch]).collect(),
            Op::Loss { codes: c, gradient, unit, mean, report, scratch, .. } => {
                codes(c).chain([*gradient, *unit, *mean, *report, *scratch]).collect()
            }
            Op::QueuePush { unit, queue, assign, .. } => vec![*unit, *queue, *assign],
            Op::Update { tensors, partials, report, .. } => {
                updated(tensors).chain([*partials, *report]).collect()
            }
            Op::SumGradients { tensors, parameters, out } => {
                updated(tensors).chain([*parameters, *out]).collect()
            }
        }
    }
}
