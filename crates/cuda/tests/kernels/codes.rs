//! Sinkhorn's codes, the swapped loss with gradient and diagnostics, the queue.

use swav_cuda::kernels::{
    MeanRow, QueuePush, SinkhornCodes, StepReport, StepScalars, StoreCodes, SwappedLoss, padded,
};
use swav_cuda::shape::Element;

use crate::data::{Buffer, ELEMENTS, Random, close, in_any_order, tolerance};

/// One problem.
#[derive(Clone, Copy)]
struct Case {
    n_crops: usize,
    batch: usize,
    prototypes: usize,
    assign: &'static [usize],
    queued: usize,
    ready: bool,
    n_iters: usize,
    epsilon: f32,
}

const FIRST: Case = Case {
    n_crops: 4,
    batch: 5,
    prototypes: 12,
    assign: &[0, 1],
    queued: 0,
    ready: false,
    n_iters: 3,
    epsilon: 0.05,
};

const CASES: [Case; 8] = [
    FIRST,
    Case { n_crops: 3, batch: 7, prototypes: 300, assign: &[2, 0], queued: 14, ready: true, ..FIRST },
    Case { n_crops: 3, batch: 7, prototypes: 300, assign: &[2, 0], queued: 14, ready: false, ..FIRST },
    Case { n_crops: 2, batch: 33, prototypes: 33, queued: 297, ready: true, n_iters: 2, ..FIRST },
    Case { n_crops: 2, batch: 33, prototypes: 33, queued: 297, ready: false, n_iters: 2, ..FIRST },
    Case { n_crops: 2, batch: 4, prototypes: 9, assign: &[1], n_iters: 0, ..FIRST },
    Case { n_crops: 3, batch: 6, prototypes: 1100, assign: &[0, 1, 2], n_iters: 1, ..FIRST },
    // exp(score / epsilon) is beyond what f32 holds.
    Case { epsilon: 0.004, prototypes: 50, batch: 40, ..FIRST },
];

const TEMPERATURE: f32 = 0.1;

/// Rows of `stride` columns, of which the last are padding.
fn scores(element: Element, rows: usize, case: &Case, seed: u64) -> Vec<f64> {
    let stride = padded(case.prototypes);
    let mut values = Random::new(seed).values(element, rows * stride, 0.3, 0.0);
    values.iter_mut().enumerate().filter(|(i, _)| i % stride >= case.prototypes).for_each(|(_, x)| *x = 0.0);
    values
}

/// Codes of the last `batch` of these rows, by the definition.
fn sinkhorn(rows: &[&[f64]], case: &Case) -> Vec<Vec<f64>> {
    let exponential = |x: &f64| (x / f64::from(case.epsilon)).exp();
    let mut q: Vec<Vec<f64>> =
        rows.iter().map(|row| row[..case.prototypes].iter().map(exponential).collect()).collect();
    for iteration in 0..case.n_iters.max(1) {
        if iteration < case.n_iters {
            for k in 0..case.prototypes {
                let sum: f64 = q.iter().map(|row| row[k]).sum();
                q.iter_mut().for_each(|row| row[k] /= sum);
            }
        }
        for row in &mut q {
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|x| *x /= sum);
        }
    }
    q.split_off(q.len() - case.batch)
}

fn entropy(weights: &[f64]) -> f64 {
    let mass: f64 = weights.iter().sum();
    weights.iter().filter(|&&w| w > 0.0).map(|w| -w / mass * (w / mass).ln()).sum()
}

/// Loss, gradient (with padding), code entropy, code perplexity, prediction perplexity.
fn swapped(scores: &[f64], codes: &[Vec<Vec<f64>>], case: &Case) -> (f64, Vec<f64>, [f64; 3]) {
    let (stride, k, tau) = (padded(case.prototypes), case.prototypes, f64::from(TEMPERATURE));
    let pairs = (case.assign.len() * (case.n_crops - 1) * case.batch) as f64;
    let (mut loss, mut gradient) = (0.0, vec![0.0; scores.len()]);
    let (mut predictions, mut mean, mut code_entropy) = (vec![0.0; k], vec![0.0; k], 0.0);
    for (row, s) in scores.chunks(stride).enumerate() {
        let (crop, sample) = (row / case.batch, row % case.batch);
        let log_sum = s[..k].iter().map(|x| (x / tau).exp()).sum::<f64>().ln();
        let p: Vec<f64> = s[..k].iter().map(|x| (x / tau - log_sum).exp()).collect();
        predictions.iter_mut().zip(&p).for_each(|(sum, p)| *sum += p);
        for (code, &assign) in codes.iter().zip(case.assign) {
            let q = &code[sample];
            if assign == crop {
                code_entropy += entropy(q) / (case.assign.len() * case.batch) as f64;
                mean.iter_mut().zip(q).for_each(|(sum, q)| *sum += q);
                continue;
            }
            for j in 0..k {
                loss -= q[j] * (s[j] / tau - log_sum) / pairs;
                gradient[row * stride + j] += (p[j] - q[j]) / (tau * pairs);
            }
        }
    }
    (loss, gradient, [code_entropy, entropy(&mean).exp(), entropy(&predictions).exp()])
}

/// One long function, since each operation reads what the one before wrote.
#[allow(clippy::too_many_lines)]
#[test]
fn codes_loss_gradient_and_diagnostics() {
    for (case, element) in CASES.iter().flat_map(|case| ELEMENTS.map(|element| (case, element))) {
        let (stride, n_assign) = (padded(case.prototypes), case.assign.len());
        let batch_scores = scores(element, case.n_crops * case.batch, case, 1);
        let queue_scores = scores(element, n_assign * case.queued, case, 2);
        let codes: Vec<Vec<Vec<f64>>> = (0..n_assign)
            .map(|i| {
                let queue = queue_scores.chunks(stride).skip(i * case.queued).take(case.queued);
                let own = batch_scores.chunks(stride).skip(case.assign[i] * case.batch).take(case.batch);
                let rows: Vec<&[f64]> = queue.filter(|_| case.ready).chain(own).collect();
                sinkhorn(&rows, case)
            })
            .collect();
        let (loss, gradient, diagnostics) = swapped(&batch_scores, &codes, case);
        let embeddings = Random::new(3).values(element, case.n_crops * case.batch * 16, 0.2, 0.05);
        in_any_order(|run| {
            let f32s = |n| Buffer::empty(Element::F32, n);
            let (s, queue) = (Buffer::of(element, &batch_scores), Buffer::of(element, &queue_scores));
            let assign = Buffer::i32(&case.assign.iter().map(|&crop| crop as i32).collect::<Vec<_>>());
            let values = StepScalars { queue_ready: case.ready, serial: 7, ..StepScalars::default() };
            let scalars = Buffer::raw(&values.to_bytes());
            let (f, g) = (f32s(n_assign * stride), f32s(n_assign * (case.queued + case.batch)));
            let mut op = SinkhornCodes {
                element,
                scores: s.at(),
                queue_scores: (case.queued > 0).then(|| queue.at()),
                scalars: scalars.at(),
                assign: assign.at(),
                n_assign,
                batch: case.batch,
                queued: case.queued,
                prototypes: case.prototypes,
                stride,
                epsilon: case.epsilon,
                n_iters: case.n_iters,
                f: f.at(),
                g: g.at(),
                scratch: 0,
            };
            let scratch = f32s(op.scratch_len());
            op.scratch = scratch.at();
            run(&op.launches());
            let stored = f32s(n_assign * case.batch * stride);
            run(&StoreCodes { codes: op, out: stored.at() }.launches());
            let pad = |q: &Vec<f64>| [q.clone(), vec![0.0; stride - case.prototypes]].concat();
            let expected: Vec<f64> = codes.iter().flatten().flat_map(pad).collect();
            close("codes", &stored.read_f32(expected.len()), &expected, 3e-4, 1e-6);

            let (unit, mean) = (Buffer::of(element, &embeddings), f32s(16));
            let rows = case.n_crops * case.batch;
            run(&MeanRow { element, x: unit.at(), mean: mean.at(), rows, channels: 16 }.launches());
            let (ds, report) = (Buffer::empty(element, gradient.len()), Buffer::bytes(StepReport::BYTES));
            let mut op = SwappedLoss {
                codes: op,
                n_crops: case.n_crops,
                temperature: TEMPERATURE,
                gradient: ds.at(),
                mean: mean.at(),
                channels: 16,
                report: report.at(),
                row_scratch: 0,
                usage_scratch: 0,
            };
            let (row_scratch, usage) = (f32s(op.scratch_len()), f32s(op.usage_len()));
            (op.row_scratch, op.usage_scratch) = (row_scratch.at(), usage.at());
            run(&op.launches());
            let scale = 1.0 / (f64::from(TEMPERATURE) * rows as f64 * case.prototypes as f64);
            close("gradient", &ds.read(element, gradient.len()), &gradient, tolerance(element) + 3e-4, scale);
            let report = StepReport::from_bytes(&report.to_bytes());
            let square: f64 = (0..16)
                .map(|c| embeddings.iter().skip(c).step_by(16).sum::<f64>() / rows as f64)
                .map(|m| m * m)
                .sum();
            let got = [
                report.loss,
                report.code_entropy,
                report.code_perplexity,
                report.prediction_perplexity,
                report.spread,
            ];
            let [entropy, code, prediction] = diagnostics;
            close("report", &got, &[loss, entropy, code, prediction, 1.0 - square], 1e-4, 1e-4);
            assert_eq!(report.serial, 7);
            vec![f, stored, ds]
        });
    }
}

#[test]
fn a_score_that_is_not_a_number_is_not_hidden() {
    let case = FIRST;
    let mut values = scores(Element::F32, 20, &case, 1);
    values[16 * 6 + 3] = f64::NAN; // sample 1 of crop 1
    in_any_order(|run| {
        let f32s = |n| Buffer::empty(Element::F32, n);
        let (s, assign) = (Buffer::of(Element::F32, &values), Buffer::i32(&[0, 1]));
        let scalars = Buffer::raw(&StepScalars::default().to_bytes());
        let (f, g, scratch, rows, usage) = (f32s(32), f32s(10), f32s(64), f32s(80), f32s(24));
        let (gradient, mean) = (f32s(320), Buffer::of(Element::F32, &[0.0; 8]));
        let report = Buffer::bytes(StepReport::BYTES);
        let codes = SinkhornCodes {
            element: Element::F32,
            scores: s.at(),
            queue_scores: None,
            scalars: scalars.at(),
            assign: assign.at(),
            n_assign: 2,
            batch: 5,
            queued: 0,
            prototypes: 12,
            stride: 16,
            epsilon: 0.05,
            n_iters: 3,
            f: f.at(),
            g: g.at(),
            scratch: scratch.at(),
        };
        run(&codes.launches());
        let loss = SwappedLoss {
            codes,
            n_crops: 4,
            temperature: TEMPERATURE,
            gradient: gradient.at(),
            mean: mean.at(),
            channels: 8,
            report: report.at(),
            row_scratch: rows.at(),
            usage_scratch: usage.at(),
        };
        run(&loss.launches());
        assert!(StepReport::from_bytes(&report.to_bytes()).loss.is_nan());
        vec![report]
    });
}

#[test]
fn the_batch_enters_the_queue_where_the_host_says() {
    let (batch, queued, channels) = (6, 18, 16);
    for (element, push) in ELEMENTS.into_iter().flat_map(|e| [(e, true), (e, false)]) {
        let unit = Random::new(1).values(element, 4 * batch * channels, 1.0, 0.0);
        let old = Random::new(2).values(element, 2 * queued * channels, 1.0, 0.0);
        let mut expected = old.clone();
        for (i, crop) in [3, 1].into_iter().enumerate().filter(|_| push) {
            let rows = &unit[crop * batch * channels..][..batch * channels];
            expected[(i * queued + 12) * channels..][..batch * channels].copy_from_slice(rows);
        }
        in_any_order(|run| {
            let (u, queue) = (Buffer::of(element, &unit), Buffer::of(element, &old));
            let assign = Buffer::i32(&[3, 1]);
            let values = StepScalars { queue_push: push, queue_slot: 12, ..StepScalars::default() };
            let scalars = Buffer::raw(&values.to_bytes());
            let op = QueuePush {
                element,
                unit: u.at(),
                queue: queue.at(),
                scalars: scalars.at(),
                assign: assign.at(),
                n_assign: 2,
                batch,
                queued,
                channels,
            };
            run(&op.launches());
            assert_eq!(queue.read(element, old.len()), expected);
            vec![queue]
        });
    }
}
