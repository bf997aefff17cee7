//! Codes, loss, diagnostics, queue.

use super::Memory;
use crate::tape::{CodesView, Op, Scalars, ScoreShape};

/// Scores of the samples of one assignment problem, row by row without padding: the queue's if it takes part, then
/// the batch's.
fn problem(
    memory: &Memory<'_>,
    codes: &CodesView,
    shape: &ScoreShape,
    list: usize,
    ready: bool,
) -> Vec<Vec<f64>> {
    let bytes = shape.stride * memory.act().bytes();
    let mut rows = Vec::new();
    if let (true, Some(queue)) = (ready, codes.queue_scores) {
        for row in 0..shape.queue {
            rows.push(memory.load_act(queue.plus((list * shape.queue + row) * bytes), shape.n_prototypes));
        }
    }
    for row in 0..shape.batch {
        let row = shape.assign[list] * shape.batch + row;
        rows.push(memory.load_act(codes.scores.plus(row * bytes), shape.n_prototypes));
    }
    rows
}

fn log_sum(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + values.map(|x| (x - largest).exp()).sum::<f64>().ln()
}

/// The codes of the batch, `[A][B][K]`.
fn batch_codes(
    memory: &Memory<'_>,
    codes: &CodesView,
    shape: &ScoreShape,
    ready: bool,
) -> Vec<Vec<Vec<f64>>> {
    let lists = 0..shape.assign.len();
    lists
        .map(|list| {
            let f = memory.floats(codes.over_prototypes.plus(4 * list * shape.stride), shape.n_prototypes);
            let at = list * shape.samples() + shape.queue;
            let g = memory.floats(codes.over_samples.plus(4 * at), shape.batch);
            let scores = problem(memory, codes, shape, list, ready);
            let batch = scores[scores.len() - shape.batch..].iter().zip(g);
            batch
                .map(|(row, g)| {
                    let row = row.iter().zip(&f);
                    row.map(|(s, f)| (s / f64::from(shape.epsilon) + f + g).exp()).collect()
                })
                .collect()
        })
        .collect()
}

fn entropy(weights: &[f64]) -> f64 {
    let mass: f64 = weights.iter().sum();
    let sum: f64 = weights.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum();
    if mass > 0.0 { (mass.ln() - sum / mass).max(0.0) } else { 0.0 }
}

fn sinkhorn(memory: &mut Memory<'_>, codes: &CodesView, shape: &ScoreShape, n_iters: usize, ready: bool) {
    let epsilon = f64::from(shape.epsilon);
    for list in 0..shape.assign.len() {
        let scores = problem(memory, codes, shape, list, ready);
        let (n, k) = (scores.len(), shape.n_prototypes);
        let (mut f, mut g) = (vec![0.0; k], vec![0.0; n]);
        for _ in 0..n_iters {
            for (k_index, f) in f.iter_mut().enumerate() {
                let values = scores.iter().zip(&g).map(|(row, g)| row[k_index] / epsilon + g);
                *f = -log_sum(values);
            }
            for (row, g) in scores.iter().zip(&mut g) {
                *g = -log_sum(row.iter().zip(&f).map(|(s, f)| s / epsilon + f));
            }
        }
        memory.store_floats(codes.over_prototypes.plus(4 * list * shape.stride), &f);
        let first = list * shape.samples() + shape.samples() - n;
        memory.store_floats(codes.over_samples.plus(4 * first), &g);
    }
}

pub(super) fn run(op: &Op, memory: &mut Memory<'_>, scalars: &Scalars) {
    let ready = scalars.queue_ready;
    match op {
        Op::Codes { codes, shape, n_iters, .. } => sinkhorn(memory, codes, shape, *n_iters, ready),
        Op::Loss { .. } => loss(op, memory, scalars),
        Op::QueuePush { unit, queue, shape, dim, .. } if scalars.queue_push => {
            for (list, crop) in shape.assign.iter().enumerate() {
                let row = dim * memory.act().bytes();
                let batch = memory.bytes(unit.plus(crop * shape.batch * row), shape.batch * row).to_vec();
                let at = queue.plus((list * shape.queue + scalars.queue_row as usize) * row);
                memory.bytes_mut(at, batch.len()).copy_from_slice(&batch);
            }
        }
        Op::QueuePush { .. } => {}
        _ => unreachable!("called with an operation on codes"),
    }
}

fn loss(op: &Op, memory: &mut Memory<'_>, scalars: &Scalars) {
    let Op::Loss { codes, shape, gradient, unit, dim, report, .. } = op else {
        unreachable!("called with a loss")
    };
    let (k, batch) = (shape.n_prototypes, shape.batch);
    let temperature = f64::from(shape.temperature);
    let c = 1.0 / (shape.assign.len() * (shape.n_crops - 1) * batch) as f64;
    let all = batch_codes(memory, codes, shape, scalars.queue_ready);
    let (mut loss, mut predictions) = (0.0, vec![0.0; k]);
    for row in 0..shape.n_crops * batch {
        let (crop, sample) = (row / batch, row % batch);
        let at = row * shape.stride * memory.act().bytes();
        let scores = memory.load_act(codes.scores.plus(at), k);
        let scaled: Vec<f64> = scores.iter().map(|s| s / temperature).collect();
        let log_z = log_sum(scaled.iter().copied());
        let mut d = vec![0.0; shape.stride];
        let targets = shape.assign.iter().zip(&all).filter(|&(&assign, _)| assign != crop);
        let targets: Vec<&Vec<f64>> = targets.map(|(_, codes)| &codes[sample]).collect();
        for (index, scaled) in scaled.iter().enumerate() {
            let p = (scaled - log_z).exp();
            predictions[index] += p;
            for target in &targets {
                loss -= c * target[index] * (scaled - log_z);
                d[index] += c / temperature * (target.iter().sum::<f64>() * p - target[index]);
            }
        }
        memory.store_act(gradient.plus(at), &d);
    }
    let rows = all.iter().flatten();
    let code_entropy =
        rows.clone().map(|code| entropy(code)).sum::<f64>() / (shape.assign.len() * batch) as f64;
    let mut mean_code = vec![0.0; k];
    rows.for_each(|code| mean_code.iter_mut().zip(code).for_each(|(sum, q)| *sum += q));
    let rows = shape.n_crops * batch;
    let mut mean = vec![0.0; *dim];
    memory.load_act(*unit, rows * dim).iter().enumerate().for_each(|(i, x)| mean[i % dim] += x / rows as f64);
    memory.change_report(*report, |report| {
        report.spread = 1.0 - mean.iter().map(|x| x * x).sum::<f64>();
        report.loss = loss;
        report.code_entropy = code_entropy;
        report.code_perplexity = entropy(&mean_code).exp();
        report.prediction_perplexity = entropy(&predictions).exp();
        report.serial = scalars.serial;
    });
}
