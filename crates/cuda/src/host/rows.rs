//! Operations on rows: averages, biases, unit length, conversions.

use super::Memory;
use crate::shape::Element;
use crate::tape::Op;

/// The smallest norm that is divided by.
const MIN_NORM: f64 = 1e-12;

pub(super) fn run(op: &Op, memory: &mut Memory<'_>) {
    match op {
        Op::AveragePool { x, out, images, pixels, channels } => {
            let values = memory.load_act(*x, images * pixels * channels);
            let mut means = vec![0.0; images * channels];
            for (i, x) in values.iter().enumerate() {
                means[i / (pixels * channels) * channels + i % channels] += x / *pixels as f64;
            }
            memory.store_act(*out, &means);
        }
        Op::AveragePoolGradient { gradient, out, images, pixels, channels } => {
            let d = memory.load_act(*gradient, images * channels);
            let values: Vec<f64> = (0..images * pixels * channels)
                .map(|i| d[i / (pixels * channels) * channels + i % channels] / *pixels as f64)
                .collect();
            memory.store_act(*out, &values);
        }
        Op::Bias { x, bias, rows, channels } => {
            let bias = memory.floats(*bias, *channels);
            let mut values = memory.load_act(*x, rows * channels);
            values.iter_mut().enumerate().for_each(|(i, x)| *x += bias[i % channels]);
            memory.store_act(*x, &values);
        }
        Op::BiasGradient { gradient, d_bias, rows, channels, .. } => {
            let mut sums = vec![0.0; *channels];
            for (i, x) in memory.load_act(*gradient, rows * channels).into_iter().enumerate() {
                sums[i % channels] += x;
            }
            memory.store_floats(*d_bias, &sums);
        }
        Op::UnitLength { x, out, exact, norms, rows, dim } => {
            let mut values = memory.load_act(*x, rows * dim);
            let lengths = normalise(&mut values, *dim);
            memory.store_floats(*norms, &lengths);
            memory.store_act(*out, &values);
            if let Some(exact) = exact {
                memory.store_floats(*exact, &values);
            }
        }
        Op::UnitLengthGradient { gradient, unit, norms, out, rows, dim } => {
            let mut g = memory.load_act(*gradient, rows * dim);
            let z = memory.load_act(*unit, rows * dim);
            let norms = memory.floats(*norms, *rows);
            for ((g, z), norm) in g.chunks_exact_mut(*dim).zip(z.chunks_exact(*dim)).zip(norms) {
                let along: f64 = g.iter().zip(z).map(|(g, z)| g * z).sum();
                g.iter_mut().zip(z).for_each(|(g, z)| *g = (*g - z * along) / norm);
            }
            memory.store_act(*out, &g);
        }
        Op::Round { from, to, len } => {
            let values = memory.floats(*from, *len);
            memory.store_act(*to, &values);
        }
        Op::Widen { from, to, len } => {
            let values = memory.load_act(*from, *len);
            memory.store_floats(*to, &values);
        }
        Op::PrototypeNormalise { weights, copy, rows, dim } => {
            let mut values = memory.floats(*weights, rows * dim);
            normalise(&mut values, *dim);
            memory.store_floats(*weights, &values);
            if let Some(copy) = copy {
                memory.store(*copy, Element::Bf16, &values);
            }
        }
        _ => unreachable!("called with an operation on rows"),
    }
}

/// Scales rows to unit length, and returns what they were divided by.
fn normalise(values: &mut [f64], dim: usize) -> Vec<f64> {
    let rows = values.chunks_exact_mut(dim);
    rows.map(|row| {
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(MIN_NORM);
        row.iter_mut().for_each(|x| *x /= norm);
        norm
    })
    .collect()
}
