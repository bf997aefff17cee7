//! Batch norm: statistics, application, gradients.

use swav_cuda::kernels::{
    ApplyGate, Branch, Launch, MergeRunning, NormApply, NormBackwardApply, NormBackwardSums, NormFromRunning,
    NormGrad, NormStatistics, Shortcut, StepScalars, SumsGate, norm_scratch_len,
};
use swav_cuda::shape::Element;

use crate::data::{Buffer, ELEMENTS, Random, close, in_any_order, tolerance};

const EPSILON: f32 = 1e-5;

/// Rows and channels: a row only, one vector, widths that are no power of two, several tiles, many row blocks.
const SHAPES: [(usize, usize); 7] = [(1, 8), (3, 24), (777, 8), (333, 40), (45, 320), (3500, 64), (19, 2576)];

type Run<'a> = &'a dyn Fn(&[Launch<u64>]);

/// A batch that is normalised, with its parameters.
struct Case {
    element: Element,
    rows: usize,
    channels: usize,
    reversed: bool,
    y: Vec<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
}

impl Case {
    fn new(element: Element, rows: usize, channels: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let y = random.values(element, rows * channels, 1.0, 0.5);
        let gamma = random.values(Element::F32, channels, 0.3, 1.0);
        let beta = random.values(Element::F32, channels, 0.3, 0.0);
        Self { element, rows, channels, reversed: seed % 2 == 1, y, gamma, beta }
    }

    /// Mean, biased variance.
    fn statistics(&self) -> (Vec<f64>, Vec<f64>) {
        let (m, c) = (self.rows as f64, self.channels);
        let (mut mean, mut variance) = (vec![0.0; c], vec![0.0; c]);
        self.y.iter().enumerate().for_each(|(i, y)| mean[i % c] += y / m);
        self.y.iter().enumerate().for_each(|(i, y)| variance[i % c] += (y - mean[i % c]).powi(2) / m);
        (mean, variance)
    }

    /// The affine map by channel of all values, from a state that a kernel wrote.
    fn affine(&self, state: &Buffer) -> Vec<f64> {
        let (s, c) = (state.read_f32(4 * self.channels), self.channels);
        self.y.iter().enumerate().map(|(i, y)| s[2 * c + i % c] * y + s[3 * c + i % c]).collect()
    }

    fn scratch(&self, sums: usize) -> Buffer {
        Buffer::empty(Element::F32, norm_scratch_len(self.rows, self.channels, sums))
    }

    /// y, state, moments as the kernels see them.
    fn forward(&self, run: Run<'_>) -> (Buffer, Buffer, Buffer) {
        let y = Buffer::of(self.element, &self.y);
        let (gamma, beta) = (Buffer::of(Element::F32, &self.gamma), Buffer::of(Element::F32, &self.beta));
        let state = Buffer::empty(Element::F32, 4 * self.channels);
        let moments = Buffer::empty(Element::F32, 2 * self.channels);
        let scratch = self.scratch(2);
        let op = NormStatistics {
            element: self.element,
            y: y.at(),
            rows: self.rows,
            channels: self.channels,
            gamma: gamma.at(),
            beta: beta.at(),
            state: state.at(),
            moments: moments.at(),
            epsilon: EPSILON,
            scratch: scratch.at(),
            reversed: self.reversed,
        };
        run(&op.launches());
        (y, state, moments)
    }

    fn apply(
        &self,
        y: &Buffer,
        state: &Buffer,
        shortcut: Shortcut<u64>,
        mask: Option<&Buffer>,
        run: Run<'_>,
    ) -> Buffer {
        let out = Buffer::empty(self.element, self.y.len());
        let op = NormApply {
            element: self.element,
            y: y.at(),
            state: state.at(),
            shortcut,
            out: out.at(),
            mask: mask.map(Buffer::at),
            rows: self.rows,
            channels: self.channels,
            reversed: !self.reversed,
        };
        run(&op.launches());
        out
    }

    /// Gradients of y, gamma and beta from the gated gradient g, by the formula.
    fn gradients(&self, g: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let (mean, variance) = self.statistics();
        let (m, c) = (self.rows as f64, self.channels);
        let r: Vec<f64> = variance.iter().map(|v| 1.0 / (v + f64::from(EPSILON)).sqrt()).collect();
        let (mut s1, mut s2) = (vec![0.0; c], vec![0.0; c]);
        for (i, g) in g.iter().enumerate() {
            s1[i % c] += g;
            s2[i % c] += g * (self.y[i] - mean[i % c]) * r[i % c];
        }
        let dy = g.iter().enumerate().map(|(i, g)| {
            let k = i % c;
            self.gamma[k] * r[k] * (g - s1[k] / m - (self.y[i] - mean[k]) * r[k] * s2[k] / m)
        });
        (dy.collect(), s2, s1)
    }

    fn check_gradients(&self, what: &str, g: &[f64], dy: &Buffer, grad: &Grad) {
        let (expected, dgamma, dbeta) = self.gradients(g);
        let scale = (self.rows as f64).sqrt();
        close(&format!("{what} dgamma"), &grad.dgamma.read_f32(self.channels), &dgamma, 2e-4, scale);
        close(&format!("{what} dbeta"), &grad.dbeta.read_f32(self.channels), &dbeta, 2e-4, scale);
        // One row only: y equals its mean, and 1/deviation amplifies rounding.
        let slack = if self.rows < 4 { 600.0 } else { 3.0 };
        close(
            &format!("{what} dy"),
            &dy.read(self.element, g.len()),
            &expected,
            tolerance(self.element),
            slack,
        );
    }
}

/// The buffers of a [`NormGrad`].
struct Grad {
    gamma: Buffer,
    coefficients: Buffer,
    dgamma: Buffer,
    dbeta: Buffer,
}

impl Grad {
    fn new(case: &Case) -> Self {
        let empty = |n| Buffer::empty(Element::F32, n * case.channels);
        let gamma = Buffer::of(Element::F32, &case.gamma);
        Self { gamma, coefficients: empty(3), dgamma: empty(1), dbeta: empty(1) }
    }

    fn of(&self, state: &Buffer) -> NormGrad<u64> {
        NormGrad {
            gamma: self.gamma.at(),
            state: state.at(),
            coefficients: self.coefficients.at(),
            dgamma: self.dgamma.at(),
            dbeta: self.dbeta.at(),
        }
    }
}

fn each_case(f: impl Fn(&Case, &Case, u64)) {
    for (index, (rows, channels)) in SHAPES.into_iter().enumerate() {
        for element in ELEMENTS {
            for seed in [2 * index as u64 + 10, 2 * index as u64 + 11] {
                f(
                    &Case::new(element, rows, channels, seed),
                    &Case::new(element, rows, channels, seed + 1000),
                    seed,
                );
            }
        }
    }
}

#[test]
fn statistics_and_moments() {
    each_case(|case, _, _| {
        in_any_order(|run| {
            let (_, state, moments) = case.forward(run);
            let (mean, variance) = case.statistics();
            let (c, m) = (case.channels, case.rows as f64);
            let (s, moved) = (state.read_f32(4 * c), moments.read_f32(2 * c));
            let inverse: Vec<f64> = variance.iter().map(|v| 1.0 / (v + f64::from(EPSILON)).sqrt()).collect();
            close("mean", &s[..c], &mean, 1e-5, 1.0);
            close("1 / deviation", &s[c..2 * c], &inverse, 1e-4, 0.0);
            let scale: Vec<f64> = (0..c).map(|k| case.gamma[k] * inverse[k]).collect();
            let shift: Vec<f64> = (0..c).map(|k| case.beta[k] - mean[k] * scale[k]).collect();
            close("scale", &s[2 * c..3 * c], &scale, 1e-4, 0.0);
            close("shift", &s[3 * c..], &shift, 1e-4, 1.0);
            let unbiased: Vec<f64> = variance.iter().map(|v| v * m / (m - 1.0).max(1.0)).collect();
            close("mean that moves", &moved[..c], &mean, 1e-5, 1.0);
            close("variance that moves", &moved[c..], &unbiased, 1e-4, 1e-6);
            vec![state, moments]
        });
    });
}

#[test]
fn a_large_mean_costs_no_accuracy() {
    let mut case = Case::new(Element::F32, 3000, 16, 5);
    case.y.iter_mut().for_each(|y| *y = f64::from((*y * 0.01 + 1000.0) as f32));
    in_any_order(|run| {
        let (_, state, _) = case.forward(run);
        let (_, variance) = case.statistics();
        let inverse: Vec<f64> = variance.iter().map(|v| 1.0 / (v + f64::from(EPSILON)).sqrt()).collect();
        close("1 / deviation", &state.read_f32(32)[16..], &inverse, 1e-3, 0.0);
        vec![state]
    });
}

#[test]
fn apply_with_all_shortcuts() {
    each_case(|case, other, seed| {
        let identity = Random::new(seed + 7).values(case.element, case.y.len(), 1.0, 0.0);
        in_any_order(|run| {
            let (y, state, _) = case.forward(run);
            let (y2, state2, _) = other.forward(run);
            let n = case.y.len();
            let (z, z2) = (case.affine(&state), other.affine(&state2));
            let close_out = |what: &str, out: &Buffer, expected: &dyn Fn(usize) -> f64| {
                let expected: Vec<f64> = (0..n).map(|i| expected(i).max(0.0)).collect();
                // One row only: 1/deviation amplifies the rounding of the shift.
                let slack = if case.rows < 4 { 100.0 } else { 0.5 };
                close(what, &out.read(case.element, n), &expected, tolerance(case.element), slack);
            };
            let plain = case.apply(&y, &state, Shortcut::None, None, run);
            close_out("plain", &plain, &|i| z[i]);
            let shortcut = Buffer::of(case.element, &identity);
            let mask = Buffer::bytes(n / 8);
            let added = case.apply(&y, &state, Shortcut::Identity(shortcut.at()), Some(&mask), run);
            close_out("identity", &added, &|i| z[i] + identity[i]);
            let bits = mask.to_bytes();
            for (i, &x) in added.read(case.element, n).iter().enumerate() {
                assert_eq!(x > 0.0, bits[i / 8] >> (i % 8) & 1 == 1, "mask of {i}");
            }
            let unmasked = case.apply(&y, &state, Shortcut::Identity(shortcut.at()), None, run);
            assert_eq!(unmasked.to_bytes(), added.to_bytes());
            let normed = Shortcut::Normed { y: y2.at(), state: state2.at() };
            let pair = case.apply(&y, &state, normed, Some(&mask), run);
            close_out("normed", &pair, &|i| z[i] + z2[i]);
            vec![plain, added, mask, pair]
        });
    });
}

#[test]
fn gradients_where_the_sign_decides() {
    each_case(|case, _, seed| {
        let n = case.y.len();
        let dout = Random::new(seed + 8).values(case.element, n, 1.0, 0.0);
        in_any_order(|run| {
            let (y, state, _) = case.forward(run);
            let (grad, scratch, gradient) =
                (Grad::new(case), case.scratch(2), Buffer::of(case.element, &dout));
            let out = case.apply(&y, &state, Shortcut::None, None, run).read(case.element, n);
            run(&case.sums(&gradient, &y, grad.of(&state), SumsGate::Sign, &scratch));
            // In place.
            let gate = ApplyGate::Sign { state: state.at() };
            run(&case.backward(&gradient, &y, &grad, gate, &gradient));
            // Tiny positive values round to 0 in no type here, so the output's sign is the gate.
            let g: Vec<f64> = (0..n).map(|i| if out[i] > 0.0 { dout[i] } else { 0.0 }).collect();
            case.check_gradients("sign", &g, &gradient, &grad);
            vec![gradient, grad.dgamma, grad.dbeta]
        });
    });
}

#[test]
fn gradients_where_a_mask_decides() {
    each_case(|case, other, seed| {
        let n = case.y.len();
        let mut random = Random::new(seed + 9);
        let dout = random.values(case.element, n, 1.0, 0.0);
        let bytes: Vec<u8> = (0..n / 8).map(|_| random.next() as u8).collect();
        let g: Vec<f64> =
            (0..n).map(|i| if bytes[i / 8] >> (i % 8) & 1 == 1 { dout[i] } else { 0.0 }).collect();
        in_any_order(|run| {
            let (y, state, _) = case.forward(run);
            let (y2, state2, _) = other.forward(run);
            let (mask, scratch, gradient) =
                (Buffer::raw(&bytes), case.scratch(3), Buffer::of(case.element, &dout));
            let (grad, pair, second) = (Grad::new(case), Grad::new(case), Grad::new(other));
            let (dy, dy2, pair_dy) = (
                Buffer::empty(case.element, n),
                Buffer::empty(case.element, n),
                Buffer::empty(case.element, n),
            );
            let branch = Branch { y: y2.at(), norm: second.of(&state2) };
            let gate = SumsGate::Pair { mask: mask.at(), branch };
            run(&case.sums(&gradient, &y, pair.of(&state), gate, &scratch));
            let coefficients = second.coefficients.at();
            let gate = ApplyGate::Pair { mask: mask.at(), y: y2.at(), coefficients, out: dy2.at() };
            run(&case.backward(&gradient, &y, &pair, gate, &pair_dy));
            case.check_gradients("pair", &g, &pair_dy, &pair);
            other.check_gradients("second of a pair", &g, &dy2, &second);
            assert_eq!(gradient.read(case.element, n), dout, "a pair leaves the gradient");

            run(&case.sums(&gradient, &y, grad.of(&state), SumsGate::Mask(mask.at()), &scratch));
            run(&case.backward(&gradient, &y, &grad, ApplyGate::Mask(mask.at()), &dy));
            case.check_gradients("mask", &g, &dy, &grad);
            assert_eq!(gradient.read(case.element, n), g, "the gated gradient is left for the shortcut");
            vec![gradient, dy, dy2, pair_dy, grad.dgamma, second.dgamma]
        });
    });
}

impl Case {
    fn sums(
        &self,
        dout: &Buffer,
        y: &Buffer,
        norm: NormGrad<u64>,
        gate: SumsGate<u64>,
        scratch: &Buffer,
    ) -> Vec<Launch<u64>> {
        let op = NormBackwardSums {
            element: self.element,
            dout: dout.at(),
            y: y.at(),
            norm,
            gate,
            rows: self.rows,
            channels: self.channels,
            scratch: scratch.at(),
            reversed: self.reversed,
        };
        op.launches()
    }

    fn backward(
        &self,
        dout: &Buffer,
        y: &Buffer,
        grad: &Grad,
        gate: ApplyGate<u64>,
        out: &Buffer,
    ) -> Vec<Launch<u64>> {
        let op = NormBackwardApply {
            element: self.element,
            dout: dout.at(),
            y: y.at(),
            coefficients: grad.coefficients.at(),
            gate,
            out: out.at(),
            rows: self.rows,
            channels: self.channels,
            reversed: !self.reversed,
        };
        op.launches()
    }
}

#[test]
fn padding_channels_stay_zero() {
    for element in ELEMENTS {
        let (rows, channels) = (50, 16);
        let mut case = Case::new(element, rows, channels, 3);
        let pad = |i: usize| i % channels >= 11;
        case.y.iter_mut().enumerate().filter(|(i, _)| pad(*i)).for_each(|(_, y)| *y = 0.0);
        case.gamma[11..].fill(0.0);
        case.beta[11..].fill(0.0);
        let mut dout = Random::new(4).values(element, rows * channels, 1.0, 0.0);
        dout.iter_mut().enumerate().filter(|(i, _)| pad(*i)).for_each(|(_, d)| *d = 0.0);
        in_any_order(|run| {
            let (y, state, _) = case.forward(run);
            let (grad, scratch, gradient) = (Grad::new(&case), case.scratch(2), Buffer::of(element, &dout));
            let out = case.apply(&y, &state, Shortcut::None, None, run);
            run(&case.sums(&gradient, &y, grad.of(&state), SumsGate::Sign, &scratch));
            run(&case.backward(&gradient, &y, &grad, ApplyGate::Sign { state: state.at() }, &gradient));
            for buffer in [&out, &gradient] {
                let values = buffer.read(element, rows * channels);
                assert!(values.iter().enumerate().all(|(i, &x)| !pad(i) || x == 0.0));
            }
            assert!(grad.dgamma.read_f32(channels)[11..].iter().all(|&x| x == 0.0));
            assert!(grad.dbeta.read_f32(channels)[11..].iter().all(|&x| x == 0.0));
            vec![out, gradient]
        });
    }
}

#[test]
fn a_value_that_is_not_a_number_is_not_hidden() {
    for element in ELEMENTS {
        let mut case = Case::new(element, 20, 8, 3);
        case.y[8 * 5 + 2] = f64::NAN;
        in_any_order(|run| {
            let (y, state, moments) = case.forward(run);
            let out = case.apply(&y, &state, Shortcut::None, None, run);
            let nan = |i: usize, x: &f64| x.is_nan() == (i % 8 == 2);
            assert!(out.read(element, 160).iter().enumerate().all(|(i, x)| nan(i, x)));
            assert!(moments.read_f32(8)[2].is_nan());
            vec![out]
        });
    }
}

#[test]
fn running_statistics_of_groups_are_merged_in_order() {
    for groups in [1, 3, 8, 11] {
        let len = 300;
        let mut random = Random::new(groups as u64);
        let start = random.values(Element::F32, len, 1.0, 0.0);
        let moments: Vec<Vec<f64>> =
            (0..groups).map(|_| random.values(Element::F32, len, 1.0, 0.0)).collect();
        let mut expected = start.clone();
        for group in &moments {
            expected.iter_mut().zip(group).for_each(|(x, m)| *x += 0.1 * (m - *x));
        }
        in_any_order(|run| {
            let running = Buffer::of(Element::F32, &start);
            let buffers: Vec<Buffer> = moments.iter().map(|m| Buffer::of(Element::F32, m)).collect();
            let scalars = Buffer::raw(&StepScalars { bn_momentum: 0.1, ..StepScalars::default() }.to_bytes());
            let op = MergeRunning {
                running: running.at(),
                moments: buffers.iter().map(Buffer::at).collect(),
                scalars: scalars.at(),
                len,
            };
            run(&op.launches());
            close("running statistics", &running.read_f32(len), &expected, 1e-6, 1.0);
            vec![running]
        });
    }
}

#[test]
fn inference_uses_running_statistics() {
    let channels = 40;
    let mut random = Random::new(1);
    let mean = random.values(Element::F32, channels, 1.0, 0.0);
    let variance = random.values(Element::F32, channels, 0.2, 1.0);
    let gamma = random.values(Element::F32, channels, 1.0, 0.0);
    let beta = random.values(Element::F32, channels, 1.0, 0.0);
    in_any_order(|run| {
        let running = Buffer::of(Element::F32, &[mean.clone(), variance.clone()].concat());
        let (g, b) = (Buffer::of(Element::F32, &gamma), Buffer::of(Element::F32, &beta));
        let state = Buffer::empty(Element::F32, 4 * channels);
        let op = NormFromRunning {
            running: running.at(),
            gamma: g.at(),
            beta: b.at(),
            state: state.at(),
            channels,
            epsilon: EPSILON,
        };
        run(&op.launches());
        let inverse: Vec<f64> = variance.iter().map(|v| 1.0 / (v + f64::from(EPSILON)).sqrt()).collect();
        let scale: Vec<f64> = (0..channels).map(|k| gamma[k] * inverse[k]).collect();
        let shift: Vec<f64> = (0..channels).map(|k| beta[k] - mean[k] * scale[k]).collect();
        let expected = [mean.clone(), inverse, scale, shift].concat();
        close("state", &state.read_f32(4 * channels), &expected, 1e-6, 0.1);
        vec![state]
    });
}
