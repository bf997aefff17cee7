//! Batch norm, and the stem's pooling.

use super::Memory;
use crate::tape::{BnGradientBranch, BnReduceBranch, Gate, Op, PoolShape, Scalars, Shortcut, View};

/// Added to the variance before its square root.
const EPSILON: f64 = 1e-5;

/// Statistics of the forward pass, by channel.
struct State {
    mean: Vec<f64>,
    inverse: Vec<f64>,
    scale: Vec<f64>,
    shift: Vec<f64>,
}

impl State {
    fn load(memory: &Memory<'_>, state: View, channels: usize) -> Self {
        let row = |i: usize| memory.floats(state.plus(4 * i * channels), channels);
        State { mean: row(0), inverse: row(1), scale: row(2), shift: row(3) }
    }

    fn normalised(&self, c: usize, y: f64) -> f64 {
        y.mul_add(self.scale[c], self.shift[c])
    }
}

/// Writes the four rows of a state.
fn store_state(memory: &mut Memory<'_>, state: View, [mean, var, gamma, beta]: [&[f64]; 4]) {
    let channels = mean.len();
    let mut rows = vec![0.0; 4 * channels];
    for c in 0..channels {
        // Rounded step by step, since scale and shift are made of what is stored.
        let inverse = f64::from((1.0 / (var[c] + EPSILON).sqrt()) as f32);
        let scale = f64::from((gamma[c] * inverse) as f32);
        rows[c] = mean[c];
        rows[channels + c] = inverse;
        rows[2 * channels + c] = scale;
        rows[3 * channels + c] = beta[c] - mean[c] * scale;
    }
    memory.store_floats(state, &rows);
}

pub(super) fn forward(op: &Op, memory: &mut Memory<'_>, scalars: &Scalars) {
    match op {
        Op::BnStatistics { y, rows, channels, gamma, beta, statistics, .. } => {
            let n = *rows as f64;
            let values = memory.load_act(*y, rows * channels);
            let (mut mean, mut var) = (vec![0.0; *channels], vec![0.0; *channels]);
            for row in values.chunks_exact(*channels) {
                mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x / n);
            }
            for row in values.chunks_exact(*channels) {
                for (c, x) in row.iter().enumerate() {
                    var[c] += (x - mean[c]).powi(2) / n;
                }
            }
            let (gamma, beta) = (memory.floats(*gamma, *channels), memory.floats(*beta, *channels));
            store_state(memory, statistics.state, [&mean, &var, &gamma, &beta]);
            mean.extend(var.iter().map(|v| v * n / (n - 1.0).max(1.0)));
            memory.store_floats(statistics.moments, &mean);
        }
        Op::BnFold { running, gamma, beta, state, channels } => {
            let running = memory.floats(*running, 2 * channels);
            let (gamma, beta) = (memory.floats(*gamma, *channels), memory.floats(*beta, *channels));
            store_state(memory, *state, [&running[..*channels], &running[*channels..], &gamma, &beta]);
        }
        Op::BnRunning { running, groups, len } => {
            let mut values = memory.floats(*running, *len);
            for &group in groups {
                let moments = memory.floats(group, *len);
                for (value, moment) in values.iter_mut().zip(moments) {
                    *value += f64::from(scalars.bn_momentum) * (moment - *value);
                }
            }
            memory.store_floats(*running, &values);
        }
        Op::BnApply { y, state, shortcut, out, mask, rows, channels } => {
            let len = rows * channels;
            let values = memory.load_act(*y, len);
            let state = State::load(memory, *state, *channels);
            let mut sums: Vec<f64> =
                values.iter().enumerate().map(|(i, &y)| state.normalised(i % channels, y)).collect();
            match *shortcut {
                Shortcut::None => {}
                Shortcut::Identity(view) => {
                    sums.iter_mut().zip(memory.load_act(view, len)).for_each(|(sum, x)| *sum += x);
                }
                Shortcut::Norm { y, state } => {
                    let state = State::load(memory, state, *channels);
                    for (i, y) in memory.load_act(y, len).into_iter().enumerate() {
                        sums[i] += state.normalised(i % channels, y);
                    }
                }
            }
            if let Some(mask) = mask {
                let bits: Vec<u8> = sums.chunks_exact(8).map(bits).collect();
                memory.bytes_mut(*mask, len / 8).copy_from_slice(&bits);
            }
            sums.iter_mut().for_each(|sum| *sum = sum.max(0.0));
            memory.store_act(*out, &sums);
        }
        _ => unreachable!("called with a norm's operation"),
    }
}

fn bits(values: &[f64]) -> u8 {
    values.iter().enumerate().map(|(j, &x)| u8::from(x > 0.0) << j).sum()
}

/// The gradient behind the ReLU.
fn gated(memory: &Memory<'_>, gradient: View, gate: &Gate, y: View, state: &State, len: usize) -> Vec<f64> {
    let mut g = memory.load_act(gradient, len);
    match *gate {
        Gate::Recomputed => {
            let channels = state.mean.len();
            for (i, y) in memory.load_act(y, len).into_iter().enumerate() {
                if state.normalised(i % channels, y) <= 0.0 {
                    g[i] = 0.0;
                }
            }
        }
        Gate::Mask(mask) => {
            for (i, &byte) in memory.bytes(mask, len / 8).iter().enumerate() {
                for j in (0..8).filter(|j| byte >> j & 1 == 0) {
                    g[8 * i + j] = 0.0;
                }
            }
        }
    }
    g
}

/// Sums, the parameters' gradients and the coefficients of one branch.
fn reduce(memory: &mut Memory<'_>, branch: &BnReduceBranch, g: &[f64], channels: usize) {
    let state = State::load(memory, branch.state, channels);
    let gamma = memory.floats(branch.gamma, channels);
    let n = (g.len() / channels) as f64;
    let (mut d_gamma, mut d_beta) = (vec![0.0; channels], vec![0.0; channels]);
    for (i, (&g, y)) in g.iter().zip(memory.load_act(branch.y, g.len())).enumerate() {
        let c = i % channels;
        d_beta[c] += g;
        d_gamma[c] += g * (y - state.mean[c]) * state.inverse[c];
    }
    let mut coefficients = vec![0.0; 3 * channels];
    for c in 0..channels {
        let c1 = gamma[c] * state.inverse[c];
        let c2 = -c1 * state.inverse[c] * d_gamma[c] / n;
        coefficients[c] = c1;
        coefficients[channels + c] = c2;
        coefficients[2 * channels + c] = -c1 * d_beta[c] / n - c2 * state.mean[c];
    }
    memory.store_floats(branch.d_gamma, &d_gamma);
    memory.store_floats(branch.d_beta, &d_beta);
    memory.store_floats(branch.coefficients, &coefficients);
}

/// The gradient with respect to a convolution's output.
fn apply(memory: &mut Memory<'_>, branch: &BnGradientBranch, g: &[f64], channels: usize) {
    let c = memory.floats(branch.coefficients, 3 * channels);
    let y = memory.load_act(branch.y, g.len());
    let out: Vec<f64> = (g.iter().zip(y).enumerate())
        .map(|(i, (&g, y))| {
            let i = i % channels;
            c[i] * g + (c[channels + i] * y + c[2 * channels + i])
        })
        .collect();
    memory.store_act(branch.out, &out);
}

pub(super) fn backward(op: &Op, memory: &mut Memory<'_>) {
    match op {
        Op::BnReduce { gradient, gate, first, second, rows, channels, .. } => {
            let state = State::load(memory, first.state, *channels);
            let g = gated(memory, *gradient, gate, first.y, &state, rows * channels);
            for branch in [first].into_iter().chain(second) {
                reduce(memory, branch, &g, *channels);
            }
        }
        Op::BnGradient { gradient, gate, first, second, keep, rows, channels } => {
            let state = State::load(memory, first.state, *channels);
            let g = gated(memory, *gradient, gate, first.y, &state, rows * channels);
            for branch in [first].into_iter().chain(second) {
                apply(memory, branch, &g, *channels);
            }
            if *keep {
                memory.store_act(*gradient, &g);
            }
        }
        _ => unreachable!("called with a norm's operation"),
    }
}

/// Calls `visit(output, position, input)` for the pixels of all windows.
fn for_each_window(s: &PoolShape, mut visit: impl FnMut(usize, usize, usize)) {
    let (oh, ow) = (s.out_height(), s.out_width());
    for out in 0..s.images * oh * ow {
        let (image, y, x) = (out / (oh * ow), out / ow % oh, out % ow);
        for position in 0..9 {
            let row = (2 * y + position / 3).checked_sub(1).filter(|&r| r < s.height);
            let column = (2 * x + position % 3).checked_sub(1).filter(|&c| c < s.width);
            if let (Some(row), Some(column)) = (row, column) {
                visit(out, position, (image * s.height + row) * s.width + column);
            }
        }
    }
}

/// The gradient behind pooling and ReLU, from that of the pooled values.
fn spread(
    memory: &Memory<'_>,
    gradient: View,
    positions: View,
    y: View,
    state: &State,
    s: &PoolShape,
) -> Vec<f64> {
    let c = s.channels;
    let d = memory.load_act(gradient, s.out_len());
    let positions = memory.bytes(positions, s.out_len() / 2);
    let y = memory.load_act(y, s.images * s.height * s.width * c);
    let mut g = vec![0.0; y.len()];
    for_each_window(s, |out, position, from| {
        for channel in 0..c {
            let index = out * c + channel;
            let taken = usize::from(positions[index / 2] >> (4 * (index % 2)) & 15) == position;
            let at = from * c + channel;
            if taken && state.normalised(channel, y[at]) > 0.0 {
                g[at] += d[index];
            }
        }
    });
    g
}

pub(super) fn pool(op: &Op, memory: &mut Memory<'_>) {
    match op {
        Op::StemPool { y, state, out, positions, shape } => {
            let c = shape.channels;
            let y = memory.load_act(*y, shape.images * shape.height * shape.width * c);
            let state = State::load(memory, *state, c);
            let mut best = vec![-1.0; shape.out_len()];
            let mut taken = vec![0u8; shape.out_len()];
            for_each_window(shape, |out, position, from| {
                for channel in 0..c {
                    let z = state.normalised(channel, y[from * c + channel]).max(0.0);
                    if z > best[out * c + channel] {
                        best[out * c + channel] = z;
                        taken[out * c + channel] = position as u8;
                    }
                }
            });
            memory.store_act(*out, &best);
            if let Some(positions) = positions {
                let bytes: Vec<u8> = taken.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect();
                memory.bytes_mut(*positions, bytes.len()).copy_from_slice(&bytes);
            }
        }
        Op::StemPoolReduce { gradient, positions, branch, shape, .. } => {
            let state = State::load(memory, branch.state, shape.channels);
            let g = spread(memory, *gradient, *positions, branch.y, &state, shape);
            reduce(memory, branch, &g, shape.channels);
        }
        Op::StemPoolGradient { gradient, positions, branch, shape } => {
            let state = State::load(memory, branch.state, shape.channels);
            let g = spread(memory, *gradient, *positions, branch.y, &state, shape);
            apply(memory, branch, &g, shape.channels);
        }
        _ => unreachable!("called with a pooling"),
    }
}
