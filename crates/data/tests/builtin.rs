//! The built-in images: colours give nothing away, raw pixels little, the classes are there.

use swav_data::{Dataset, Shapes, ShapesConfig, Split};

const N_CLASSES: usize = 12;

fn split(split: Split) -> (Vec<Vec<u8>>, Vec<u32>) {
    let config = ShapesConfig { n_train: 1200, n_test: 360, size: 32, seed: 1 };
    let data = Shapes::new(&config.check().unwrap(), split);
    (0..data.len())
        .map(|index| (data.image(index).unwrap().data().to_vec(), data.label(index).unwrap()))
        .unzip()
}

/// The accuracy of a vote among the 15 nearest by Euclidean distance.
fn nearest_neighbours(of: impl Fn(&[u8]) -> Vec<f32>) -> f64 {
    let ((train, train_labels), (test, test_labels)) = (split(Split::Train), split(Split::Test));
    let bank: Vec<_> = train.iter().map(|image| of(image)).collect();
    let right = test.iter().zip(&test_labels).filter(|(image, label)| {
        let query = of(image);
        let distance = |other: &[f32]| query.iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let mut near: Vec<_> = bank.iter().map(|other| distance(other)).zip(&train_labels).collect();
        near.select_nth_unstable_by(15, |a, b| a.0.total_cmp(&b.0));
        let mut votes = [0; N_CLASSES];
        near[..15].iter().for_each(|(_, label)| votes[**label as usize] += 1);
        let best = (0..N_CLASSES).max_by_key(|&class| votes[class]).unwrap();
        best as u32 == **label
    });
    right.count() as f64 / test.len() as f64
}

fn channel_moments(image: &[u8]) -> [(f32, f32); 3] {
    [0, 1, 2].map(|channel| {
        let values = || image.iter().skip(channel).step_by(3).map(|&value| f32::from(value) / 255.0);
        let n = values().count() as f32;
        let mean = values().sum::<f32>() / n;
        (mean, (values().map(|value| (value - mean).powi(2)).sum::<f32>() / n).sqrt())
    })
}

#[test]
fn mean_colours_do_not_tell_the_class() {
    let accuracy =
        nearest_neighbours(|image| channel_moments(image).iter().map(|moments| moments.0).collect());
    // Chance is 8.3%, with a standard error of 1.5% on 360 images.
    assert!(accuracy < 0.14, "mean colours reach {accuracy:.3}");
}

#[test]
fn raw_pixels_tell_little() {
    let accuracy = nearest_neighbours(|image| image.iter().map(|&value| f32::from(value)).collect());
    assert!(accuracy < 0.2, "raw pixels reach {accuracy:.3}");
}

#[test]
fn what_ignores_colour_and_place_tells_much() {
    // Magnitudes of a small windowed spectrum of the brightness know texture and outline, whatever their place.
    let spectrum = |image: &[u8]| {
        let grey: Vec<f32> =
            image.chunks_exact(3).map(|p| p.iter().map(|&v| f32::from(v)).sum::<f32>() / 3.0).collect();
        let mean = grey.iter().sum::<f32>() / grey.len() as f32;
        let mut out = Vec::new();
        for fy in 0..12 {
            for fx in -11..12 {
                let (mut re, mut im) = (0.0_f32, 0.0_f32);
                let step = std::f32::consts::TAU / 32.0;
                let (mut row_phase, dx, dy) = (0.0_f32, fx as f32 * step, fy as f32 * step);
                for row in grey.chunks_exact(32) {
                    // One rotation a pixel instead of a sine each.
                    let (sin, cos) = dx.sin_cos();
                    let (mut c, mut s) = (row_phase.cos(), row_phase.sin());
                    for value in row {
                        re += (value - mean) * c;
                        im += (value - mean) * s;
                        (c, s) = (c * cos - s * sin, s * cos + c * sin);
                    }
                    row_phase += dy;
                }
                out.push((1.0 + re.hypot(im)).ln());
            }
        }
        let norm = out.iter().map(|value| value * value).sum::<f32>().sqrt();
        out.iter().map(|value| value / norm).collect()
    };
    let accuracy = nearest_neighbours(spectrum);
    assert!(accuracy > 0.28, "the spectrum reaches only {accuracy:.3}");
}

#[test]
fn drawing_is_a_function_of_the_seed_and_the_index() {
    let (a, b) = (split(Split::Train), split(Split::Train));
    assert!(a == b);
    let (mut seen, images) = (std::collections::HashSet::new(), a.0.len());
    a.0.into_iter().for_each(|image| assert!(seen.insert(image)));
    assert_eq!(seen.len(), images);
    for class in 0..N_CLASSES as u32 {
        assert_eq!(a.1.iter().filter(|&&label| label == class).count(), images / N_CLASSES);
    }
}
