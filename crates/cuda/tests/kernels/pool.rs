//! The stem's pooling and the average over an image.

use swav_cuda::kernels::{
    AveragePool, AveragePoolBackward, NormGrad, NormPool, NormPoolBackwardApply, NormPoolBackwardSums,
    PoolShape, norm_scratch_len,
};
use swav_cuda::shape::Element;

use crate::data::{Buffer, ELEMENTS, Random, close, in_any_order, tolerance};

/// Even and odd sides, one pixel, channels that are no power of two, more than a tile of channels.
const SHAPES: [[usize; 4]; 6] =
    [[3, 14, 10, 64], [2, 7, 9, 8], [1, 1, 1, 8], [2, 1, 6, 24], [2, 5, 4, 320], [5, 13, 12, 16]];

/// A map, its norm's state as the formula has it, and the pooling by the definition.
struct Case {
    shape: PoolShape,
    y: Vec<f64>,
    /// Mean, 1/deviation, scale, shift.
    state: [Vec<f64>; 4],
    gamma: Vec<f64>,
    /// The pooled map, and for each value the place of its maximum in y.
    out: Vec<f64>,
    places: Vec<usize>,
}

impl Case {
    fn new(element: Element, [images, height, width, channels]: [usize; 4]) -> Self {
        let shape = PoolShape { images, height, width, channels };
        let mut random = Random::new((height * width * channels) as u64);
        let y = random.values(element, shape.rows() * channels, 1.0, 0.3);
        let f32_values = |random: &mut Random, shift| random.values(Element::F32, channels, 0.3, shift);
        let gamma = f32_values(&mut random, 1.0);
        let inverse = f32_values(&mut random, 1.2);
        let scale: Vec<f64> = (0..channels).map(|c| f64::from((gamma[c] * inverse[c]) as f32)).collect();
        let state = [f32_values(&mut random, 0.0), inverse, scale, f32_values(&mut random, 0.0)];
        let mut case = Self { shape, y, state, gamma, out: Vec::new(), places: Vec::new() };
        case.pool();
        case
    }

    /// relu(a·y + b) with the rounding of one multiplication and addition in f32.
    fn activation(&self, i: usize) -> f64 {
        let c = i % self.shape.channels;
        let z = (self.state[2][c] as f32).mul_add(self.y[i] as f32, self.state[3][c] as f32);
        f64::from(z.max(0.0))
    }

    fn pool(&mut self) {
        let PoolShape { images, height, width, channels } = self.shape;
        for image in 0..images {
            for row in 0..height.div_ceil(2) {
                for col in 0..width.div_ceil(2) {
                    for c in 0..channels {
                        let (mut best, mut place) = (-1.0, 0);
                        for h in (2 * row).saturating_sub(1)..(2 * row + 2).min(height) {
                            for w in (2 * col).saturating_sub(1)..(2 * col + 2).min(width) {
                                let i = ((image * height + h) * width + w) * channels + c;
                                if self.activation(i) > best {
                                    (best, place) = (self.activation(i), i);
                                }
                            }
                        }
                        self.out.push(best);
                        self.places.push(place);
                    }
                }
            }
        }
    }

    fn state(&self) -> Buffer {
        Buffer::of(Element::F32, &self.state.concat())
    }
}

#[test]
fn norm_and_max_pool_in_one_pass() {
    for (element, shape) in ELEMENTS.into_iter().flat_map(|e| SHAPES.map(|s| (e, s))) {
        let case = Case::new(element, shape);
        in_any_order(|run| {
            let (y, state) = (Buffer::of(element, &case.y), case.state());
            let len = case.shape.out_len();
            let (out, positions) = (Buffer::empty(element, len), Buffer::empty(Element::F32, len / 8));
            let mut op = NormPool {
                element,
                y: y.at(),
                state: state.at(),
                shape: case.shape,
                out: out.at(),
                positions: Some(positions.at()),
            };
            run(&op.launches());
            close("pooled", &out.read(element, len), &case.out, tolerance(element), 0.0);
            let again = Buffer::empty(element, len);
            (op.positions, op.out) = (None, again.at());
            run(&op.launches());
            assert_eq!(out.to_bytes(), again.to_bytes());
            vec![out, positions]
        });
    }
}

#[test]
fn gradients_of_the_pooled_norm() {
    for (element, shape) in ELEMENTS.into_iter().flat_map(|e| SHAPES.map(|s| (e, s))) {
        let case = Case::new(element, shape);
        let (len, n, channels) = (case.shape.out_len(), case.y.len(), case.shape.channels);
        let dout = Random::new(77).values(element, len, 1.0, 0.0);
        let mut g = vec![0.0; n];
        for (d, &place) in dout.iter().zip(&case.places) {
            if case.activation(place) > 0.0 {
                g[place] += d;
            }
        }
        let [mean, inverse, ..] = &case.state;
        let (mut s1, mut s2) = (vec![0.0; channels], vec![0.0; channels]);
        for (i, g) in g.iter().enumerate() {
            let c = i % channels;
            s1[c] += g;
            s2[c] += g * (case.y[i] - mean[c]) * inverse[c];
        }
        let m = case.shape.rows() as f64;
        let gradient = |(i, g): (usize, &f64)| {
            let c = i % channels;
            let xhat = (case.y[i] - mean[c]) * inverse[c];
            case.gamma[c] * inverse[c] * (g - s1[c] / m - xhat * s2[c] / m)
        };
        let expected: Vec<f64> = g.iter().enumerate().map(gradient).collect();
        in_any_order(|run| {
            let (y, state, gamma) =
                (Buffer::of(element, &case.y), case.state(), Buffer::of(Element::F32, &case.gamma));
            let (out, positions) = (Buffer::empty(element, len), Buffer::empty(Element::F32, len / 8));
            let positions_at = Some(positions.at());
            let (element, shape) = (element, case.shape);
            let pool = NormPool {
                element,
                y: y.at(),
                state: state.at(),
                shape,
                out: out.at(),
                positions: positions_at,
            };
            run(&pool.launches());
            let d = Buffer::of(element, &dout);
            let channel_values = |k: usize| Buffer::empty(Element::F32, k * channels);
            let (coefficients, dgamma, dbeta) = (channel_values(3), channel_values(1), channel_values(1));
            let scratch = Buffer::empty(Element::F32, norm_scratch_len(shape.rows(), channels, 2));
            let sums = NormPoolBackwardSums {
                element,
                dout: d.at(),
                positions: positions.at(),
                y: y.at(),
                norm: NormGrad {
                    gamma: gamma.at(),
                    state: state.at(),
                    coefficients: coefficients.at(),
                    dgamma: dgamma.at(),
                    dbeta: dbeta.at(),
                },
                shape,
                scratch: scratch.at(),
            };
            run(&sums.launches());
            let dy = Buffer::empty(element, n);
            let apply = NormPoolBackwardApply {
                element,
                dout: d.at(),
                positions: positions.at(),
                y: y.at(),
                state: state.at(),
                coefficients: coefficients.at(),
                shape,
                out: dy.at(),
            };
            run(&apply.launches());
            close("dgamma", &dgamma.read_f32(channels), &s2, 1e-5, 10.0);
            close("dbeta", &dbeta.read_f32(channels), &s1, 1e-5, 10.0);
            close("dy", &dy.read(element, n), &expected, tolerance(element), 1.0);
            vec![dy, dgamma, dbeta]
        });
    }
}

#[test]
fn average_over_an_image_and_its_gradient() {
    for (images, pixels, channels) in [(3, 49, 2048), (2, 1, 8), (5, 9, 40), (1, 6, 2600)] {
        for element in ELEMENTS {
            let x = Random::new(3).values(element, images * pixels * channels, 1.0, 0.3);
            let mut mean = vec![0.0; images * channels];
            for (i, x) in x.iter().enumerate() {
                mean[i / (pixels * channels) * channels + i % channels] += x / pixels as f64;
            }
            in_any_order(|run| {
                let input = Buffer::of(element, &x);
                let out = Buffer::empty(element, images * channels);
                let op = AveragePool { element, x: input.at(), out: out.at(), images, pixels, channels };
                run(&op.launches());
                close("mean", &out.read(element, mean.len()), &mean, tolerance(element), 0.5);
                let dx = Buffer::empty(element, x.len());
                let op =
                    AveragePoolBackward { element, dout: out.at(), dx: dx.at(), images, pixels, channels };
                run(&op.launches());
                let dout = out.read(element, mean.len());
                let spread =
                    |i: usize| dout[i / (pixels * channels) * channels + i % channels] / pixels as f64;
                let expected: Vec<f64> = (0..x.len()).map(spread).collect();
                close("gradient", &dx.read(element, x.len()), &expected, tolerance(element), 0.0);
                vec![out, dx]
            });
        }
    }
}
