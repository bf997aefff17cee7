//! Biases, unit length, prototypes, sums, fills, casts.

use swav_cuda::kernels::{
    AddBias, AddInto, BiasGradient, Cast, Fill, MeanRow, PrototypeNormalise, UnitLength, UnitLengthBackward,
};
use swav_cuda::shape::Element;

use crate::data::{Buffer, ELEMENTS, Random, close, exact, in_any_order, tolerance};

const SHAPES: [(usize, usize); 4] = [(37, 128), (1, 8), (129, 40), (9, 2600)];

#[test]
fn biases_and_their_gradient() {
    for ((rows, channels), element) in SHAPES.into_iter().flat_map(|s| ELEMENTS.map(|e| (s, e))) {
        let mut random = Random::new(rows as u64);
        let z = random.values(element, rows * channels, 1.0, 0.0);
        let bias = random.values(Element::F32, channels, 1.0, 0.0);
        in_any_order(|run| {
            let (buffer, b) = (Buffer::of(element, &z), Buffer::of(Element::F32, &bias));
            run(&AddBias { element, z: buffer.at(), bias: b.at(), rows, channels }.launches());
            let expected: Vec<f64> = z.iter().enumerate().map(|(i, z)| z + bias[i % channels]).collect();
            close("z", &buffer.read(element, z.len()), &expected, tolerance(element), 0.01);
            let (dz, gradient) = (Buffer::of(element, &z), Buffer::empty(Element::F32, channels));
            run(&BiasGradient { element, dz: dz.at(), gradient: gradient.at(), rows, channels }.launches());
            let mut sums = vec![0.0; channels];
            z.iter().enumerate().for_each(|(i, z)| sums[i % channels] += z);
            close("gradient", &gradient.read_f32(channels), &sums, 1e-5, 10.0);
            let mean = Buffer::empty(Element::F32, channels);
            run(&MeanRow { element, x: dz.at(), mean: mean.at(), rows, channels }.launches());
            let means: Vec<f64> = sums.iter().map(|sum| sum / rows as f64).collect();
            close("mean", &mean.read_f32(channels), &means, 1e-5, 1.0);
            vec![buffer, gradient, mean]
        });
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn unit_length_and_its_gradient() {
    for ((rows, channels), element) in SHAPES.into_iter().flat_map(|s| ELEMENTS.map(|e| (s, e))) {
        let mut random = Random::new(rows as u64);
        let mut z = random.values(element, rows * channels, 1.0, 0.1);
        if rows > 1 {
            z[..channels].fill(0.0);
        }
        let d = random.values(element, rows * channels, 1.0, 0.0);
        in_any_order(|run| {
            let n = z.len();
            let (input, unit, dz) =
                (Buffer::of(element, &z), Buffer::empty(element, n), Buffer::empty(element, n));
            let (f32_unit, lengths) = (Buffer::empty(Element::F32, n), Buffer::empty(Element::F32, rows));
            let mut op = UnitLength {
                element,
                z: input.at(),
                unit: unit.at(),
                exact: Some(f32_unit.at()),
                lengths: lengths.at(),
                rows,
                channels,
            };
            run(&op.launches());
            op.exact = None;
            run(&op.launches());
            let divisor: Vec<f64> = z.chunks(channels).map(|z| dot(z, z).sqrt().max(1e-12)).collect();
            let expected: Vec<f64> = z.iter().enumerate().map(|(i, z)| z / divisor[i / channels]).collect();
            close("lengths", &lengths.read_f32(rows), &divisor, 1e-6, 0.0);
            close("unit", &unit.read(element, n), &expected, tolerance(element), 0.0);
            close("unit in f32", &f32_unit.read_f32(n), &expected, 1e-6, 0.0);

            let gradient = Buffer::of(element, &d);
            let op = UnitLengthBackward {
                element,
                dunit: gradient.at(),
                unit: unit.at(),
                lengths: lengths.at(),
                dz: dz.at(),
                rows,
                channels,
            };
            run(&op.launches());
            let rounded = unit.read(element, n);
            let expected: Vec<f64> = (0..n)
                .map(|i| {
                    let row = i / channels * channels..(i / channels + 1) * channels;
                    let along =
                        if divisor[i / channels] > 1e-12 { dot(&d[row.clone()], &rounded[row]) } else { 0.0 };
                    (d[i] - rounded[i] * along) / divisor[i / channels]
                })
                .collect();
            close("dz", &dz.read(element, n), &expected, tolerance(element), 0.1);
            vec![unit, f32_unit, lengths, dz]
        });
    }
}

#[test]
fn prototypes_on_the_sphere() {
    for ((prototypes, channels), element) in SHAPES.into_iter().flat_map(|s| ELEMENTS.map(|e| (s, e))) {
        let mut weights = Random::new(8).values(Element::F32, prototypes * channels, 1.0, 0.0);
        if prototypes > 1 {
            weights[channels..2 * channels].fill(0.0);
        }
        let expected: Vec<f64> = weights
            .chunks(channels)
            .flat_map(|row| row.iter().map(|x| x / dot(row, row).sqrt().max(1e-12)).collect::<Vec<_>>())
            .collect();
        in_any_order(|run| {
            let (w, copy) = (Buffer::of(Element::F32, &weights), Buffer::empty(element, weights.len()));
            let mut op = PrototypeNormalise { element, weights: w.at(), copy: None, prototypes, channels };
            run(&op.launches());
            close("weights", &w.read_f32(weights.len()), &expected, 1e-6, 0.0);
            op.copy = Some(copy.at());
            run(&op.launches());
            close("copy", &copy.read(element, weights.len()), &expected, tolerance(element), 0.0);
            vec![w, copy]
        });
    }
}

#[test]
fn sums_fills_and_casts() {
    let len = 8 * 333;
    let mut random = Random::new(4);
    let (x, y) = (random.values(Element::F32, len, 1.0, 0.0), random.values(Element::F32, len, 1.0, 0.0));
    in_any_order(|run| {
        let mut written = Vec::new();
        for element in ELEMENTS {
            let (a, b) = (Buffer::of(element, &x), Buffer::of(element, &y));
            run(&AddInto { element, to: a.at(), from: b.at(), len }.launches());
            let expected: Vec<f64> = x
                .iter()
                .zip(&y)
                .map(|(x, y)| exact(element, exact(element, *x) + exact(element, *y)))
                .collect();
            close("sum", &a.read(element, len), &expected, 1e-7, 0.0);
            run(&Fill { element, to: b.at(), value: 0.75, len }.launches());
            assert!(b.read(element, len).iter().all(|&x| x == 0.75));
            written.extend([a, b]);
        }
        let (wide, narrow) = (Buffer::of(Element::F32, &x), Buffer::empty(Element::Bf16, len));
        run(&Cast { to_element: Element::Bf16, from: wide.at(), to: narrow.at(), len }.launches());
        let rounded: Vec<f64> = x.iter().map(|&x| exact(Element::Bf16, x)).collect();
        close("bf16", &narrow.read(Element::Bf16, len), &rounded, 0.0, 0.0);
        run(&Cast { to_element: Element::F32, from: narrow.at(), to: wide.at(), len }.launches());
        close("f32", &wide.read_f32(len), &rounded, 0.0, 0.0);
        written.extend([wide, narrow]);
        written
    });
}
