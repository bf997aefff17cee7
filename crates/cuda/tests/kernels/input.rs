//! Images to the stem's input.

use swav_cuda::kernels::{PixelPad, PixelRows, PixelSource, StemMask, rows_from_square, square_from_rows};
use swav_cuda::shape::Element;

use crate::data::{Buffer, ELEMENTS, Random, close, in_any_order, tolerance};

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// Images of bytes, and what they stand for.
fn images(pixels: usize) -> (Vec<u8>, Vec<f64>) {
    let mut random = Random::new(pixels as u64);
    let bytes: Vec<u8> = (0..pixels * 3).map(|_| (random.next() >> 20) as u8).collect();
    let value = |(i, &x): (usize, &u8)| {
        let (mean, deviation) = (f64::from(MEAN[i % 3]), f64::from(DEVIATION[i % 3]));
        (f64::from(x) / 255.0 - mean) / deviation
    };
    let values = bytes.iter().enumerate().map(value).collect();
    (bytes, values)
}

/// The same images both ways: f32 values, bytes with a normalisation.
fn sources(bytes: &[u8], values: &[f64]) -> [(Buffer, PixelSource); 2] {
    [
        (Buffer::of(Element::F32, values), PixelSource::F32),
        (Buffer::raw(bytes), PixelSource::normalised(MEAN, DEVIATION)),
    ]
}

#[test]
fn pixels_are_padded_to_eight_channels() {
    let pixels = 333;
    let (bytes, values) = images(pixels);
    let expected: Vec<f64> =
        (0..pixels * 8).map(|i| if i % 8 < 3 { values[i / 8 * 3 + i % 8] } else { 0.0 }).collect();
    for element in ELEMENTS {
        in_any_order(|run| {
            let outputs = sources(&bytes, &values).map(|(images, source)| {
                let out = Buffer::empty(element, pixels * 8);
                run(&PixelPad { element, images: images.at(), source, out: out.at(), pixels }.launches());
                close("padded", &out.read(element, pixels * 8), &expected, tolerance(element), 0.1);
                out
            });
            outputs.into()
        });
    }
}

/// Bytes become what a host makes of them with a product and a sum in f32: bit for bit, and rounded from there.
#[test]
fn bytes_have_the_bits_of_values() {
    let PixelSource::U8 { scale, shift } = PixelSource::normalised(MEAN, DEVIATION) else {
        unreachable!("bytes are asked for")
    };
    let [n_images, height, width] = [3, 17, 29];
    let (mut bytes, _) = images(n_images * height * width);
    // All bytes in every channel.
    (0..768).for_each(|i| bytes[i] = (i / 3) as u8);
    let values: Vec<f32> =
        bytes.iter().enumerate().map(|(i, &x)| f32::from(x) * scale[i % 3] + shift[i % 3]).collect();
    let sources = || {
        [(Buffer::raw(&bytes), PixelSource::U8 { scale, shift }), (Buffer::f32(&values), PixelSource::F32)]
    };
    for element in ELEMENTS {
        in_any_order(|run| {
            let pixels = n_images * height * width;
            let [(mut of_bytes, rows_of_bytes), (of_values, rows_of_values)] =
                sources().map(|(images, source)| {
                    let out = Buffer::empty(element, pixels * 8);
                    run(&PixelPad { element, images: images.at(), source, out: out.at(), pixels }.launches());
                    let mut op =
                        PixelRows { element, images: images.at(), source, n_images, height, width, out: 0 };
                    let rows = Buffer::empty(element, op.out_len());
                    op.out = rows.at();
                    run(&op.launches());
                    let len = op.out_len();
                    ((out.read(element, pixels * 8), rows.read(element, len)), (out, rows))
                });
            assert!(of_bytes.0 == of_values.0 && of_bytes.1 == of_values.1);
            // And f32 values are written as they are.
            if element == Element::F32 {
                let kept = of_bytes.0.drain(..).enumerate().filter(|(i, _)| i % 8 < 3).map(|(_, x)| x as f32);
                assert!(kept.eq(values.iter().copied()));
            }
            [rows_of_bytes, rows_of_values].into_iter().flat_map(|(a, b)| [a, b]).collect()
        });
    }
}

/// A 7x7 convolution of stride 2 and padding 3 equals the one with a 4x1 kernel on rows of blocks.
#[test]
fn a_convolution_on_rows_is_the_stem() {
    for [n_images, height, width] in [[2, 14, 10], [1, 9, 13], [1, 1, 1], [2, 8, 7], [1, 7, 2]] {
        let (bytes, values) = images(n_images * height * width);
        let filter: Vec<f32> =
            Random::new(5).values(Element::F32, 147, 1.0, 0.0).iter().map(|&x| x as f32).collect();
        let rows = rows_from_square(&filter);
        assert_eq!(square_from_rows(&rows), filter);
        let (oh, ow) = (height.div_ceil(2), width.div_ceil(2));
        let at = |image: usize, row: isize, col: isize, c: usize| {
            let inside = row >= 0 && col >= 0 && row < height as isize && col < width as isize;
            if inside {
                values[((image * height + row as usize) * width + col as usize) * 3 + c]
            } else {
                0.0
            }
        };
        for element in ELEMENTS {
            in_any_order(|run| {
                let outputs = sources(&bytes, &values).map(|(images, source)| {
                    let mut op =
                        PixelRows { element, images: images.at(), source, n_images, height, width, out: 0 };
                    let out = Buffer::empty(element, op.out_len());
                    op.out = out.at();
                    run(&op.launches());
                    let x = out.read(element, op.out_len());
                    for (image, i, j) in (0..n_images * oh * ow).map(|k| (k / (oh * ow), k / ow % oh, k % ow))
                    {
                        let direct: f64 = (0..147)
                            .map(|k| {
                                let (row, col) =
                                    ((2 * i + k / 21) as isize - 3, (2 * j + k / 3 % 7) as isize - 3);
                                f64::from(filter[k]) * at(image, row, col, k % 3)
                            })
                            .sum();
                        let on_rows: f64 = (0..256)
                            .map(|k| {
                                let row = (image * (oh + 3) + i + k / 64) * ow + j;
                                f64::from(rows[k]) * x[row * 64 + k % 64]
                            })
                            .sum();
                        close("convolution", &[on_rows], &[direct], tolerance(element), 30.0);
                    }
                    out
                });
                outputs.into()
            });
        }
    }
}

#[test]
fn gradients_of_weights_that_do_not_exist_are_cleared() {
    let filters = 9;
    let values = Random::new(2).values(Element::Bf16, filters * 256, 1.0, 5.0);
    let kept = rows_from_square(&vec![1.0; filters * 147]);
    let expected: Vec<f64> = values.iter().zip(&kept).map(|(x, &k)| x * f64::from(k)).collect();
    for element in ELEMENTS {
        in_any_order(|run| {
            let gradient = Buffer::of(element, &values);
            run(&StemMask { element, gradient: gradient.at(), filters }.launches());
            assert_eq!(gradient.read(element, values.len()), expected);
            vec![gradient]
        });
    }
}
