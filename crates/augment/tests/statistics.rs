//! The whole recipe against torchvision's on the same photographs: statistics of the pixels over many random crops,
//! and single crops whose parameters are given; and Pillow's deterministic operations, exactly.
//! `data/make_statistics.py` made the numbers.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;
use swav_augment::{
    Canvas, CropConfig, CropKey, Equalize, GaussianBlur, HorizontalFlip, Image, MultiCrop, MultiCropConfig,
    PointOp, Region, Resizer, Scratch, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation,
};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn expectations() -> Value {
    serde_json::from_str(&std::fs::read_to_string(data("statistics.json")).unwrap()).unwrap()
}

fn photo(name: &Value) -> Image {
    Image::from_decoded(image::open(data(name.as_str().expect("a name"))).unwrap()).unwrap()
}

/// Crops of each photograph. More make the comparison sharper: the standard error falls with the square root.
const N_CROPS: u64 = 50_000;

/// Mean, variance and histogram of every channel within 1%.
///
/// Random crops differ much, and colour jitter more: the difference of two fair means of this many crops has a standard
/// error of a quarter of a percent, that of variances .4%. They are printed. The seeds on both sides are fixed, so that
/// the outcome is the same at every run.
#[test]
fn statistics_are_those_of_torchvision() {
    let expected = expectations();
    let photos: Vec<Image> = expected["photos"].as_array().unwrap().iter().map(photo).collect();
    let n_recorded = expected["n_crops"].as_u64().unwrap();
    let n_bins = expected["n_bins"].as_u64().unwrap() as usize;
    for group in expected["recipe"].as_array().unwrap() {
        let size = group["size"].as_u64().unwrap() as usize;
        let scale = |key: &str| group[key].as_f64().unwrap() as f32;
        let crop = CropConfig {
            min_scale: scale("min_scale"),
            max_scale: scale("max_scale"),
            ..CropConfig::square(size, 1)
        };
        let recipe =
            MultiCropConfig { crops: Some(vec![crop]), ..MultiCropConfig::default() }.check().unwrap();
        for (c, counts) in count_values(&recipe, &photos).iter().enumerate() {
            let n = counts.iter().sum::<u64>() as f64;
            let moment = |power: i32| {
                let terms = counts.iter().zip(0..);
                terms.map(|(&count, v)| count as f64 / n * (f64::from(v) / 255.0).powi(power)).sum::<f64>()
            };
            let (mean, variance) = (moment(1), moment(2) - moment(1).powi(2));
            let distance: f64 = counts
                .chunks(256 / n_bins)
                .zip(numbers(&group["histogram"][c]))
                .map(|(bin, share)| (bin.iter().sum::<u64>() as f64 / n - share).abs() / 2.0)
                .sum();
            assert!(distance < 0.01, "size {size}, channel {c}: histograms differ by {distance}");
            for (key, actual) in [("mean", mean), ("variance", variance)] {
                let expected = numbers(&group[key])[c];
                let off = (actual - expected) / expected;
                // The recorded error is of one side.
                let both = (1.0 + n_recorded as f64 / N_CROPS as f64).sqrt();
                let error = both * numbers(&group[format!("{key}_error")])[c] / expected;
                println!("size {size} channel {c}: {key} off by {off:.4}, standard error {error:.4}");
                assert!(off.abs() < 0.01, "size {size}, channel {c}: the {key} is off by {off}");
            }
            println!("size {size} channel {c}: histograms differ by {distance:.4}");
        }
    }
}

/// How often each value occurs in each channel, over all crops of all photographs.
fn count_values(recipe: &MultiCrop, photos: &[Image]) -> Vec<[u64; 256]> {
    let len = recipe.groups()[0].crop.size.pow(2) * 3;
    let zero = || (vec![[0; 256]; 3], vec![0.0; len], Scratch::default());
    let count = |(mut counts, mut out, mut scratch): (Vec<[u64; 256]>, Vec<f32>, Scratch), at: u64| {
        let (sample, epoch) = (at / N_CROPS, at % N_CROPS);
        let key = CropKey { seed: 31, epoch, sample, crop: 0 };
        recipe.fill(photos[sample as usize].view(), key, &mut out, &mut scratch).unwrap();
        for pixel in recipe.normalize().invert(&out).as_chunks::<3>().0 {
            for (counts, &value) in counts.iter_mut().zip(pixel) {
                counts[usize::from(value)] += 1;
            }
        }
        (counts, out, scratch)
    };
    let add = |mut sums: Vec<[u64; 256]>, counts: Vec<[u64; 256]>| {
        sums.as_flattened_mut().iter_mut().zip(counts.as_flattened()).for_each(|(sum, count)| *sum += count);
        sums
    };
    let parts = (0..photos.len() as u64 * N_CROPS).into_par_iter().fold(zero, count).map(|part| part.0);
    parts.reduce(|| vec![[0; 256]; 3], add)
}

/// The steps one after the other with given parameters, so that nothing is random. Each crop's mean within a level of
/// 255 (contrast rounds the mean luminance, and moves everything by up to .8 if that falls on the other side of a half)
/// and its standard deviation within half a level; and, since rounding must not lean to one side, all means together
/// within a twentieth.
#[test]
fn chains_of_steps_are_those_of_torchvision() {
    let expected = expectations();
    let chains = expected["chains"].as_array().unwrap();
    let mut sum_of_differences = 0.0;
    for chain in chains {
        let whole = |key: &str| chain[key].as_u64().unwrap() as usize;
        let region =
            Region { left: whole("left"), top: whole("top"), width: whole("width"), height: whole("height") };
        let (size, mut canvas) = (whole("size"), Canvas::default());
        Resizer::default().resize(photo(&chain["photo"]).view(), region, size, size, &mut canvas);
        if chain["flip"] == true {
            HorizontalFlip::flip(&mut canvas);
        }
        for step in chain["jitter"].as_array().unwrap() {
            let adjust = match step["step"].as_str().unwrap() {
                "adjust_brightness" => adjust_brightness,
                "adjust_contrast" => adjust_contrast,
                "adjust_saturation" => adjust_saturation,
                "adjust_hue" => adjust_hue,
                other => panic!("a step that this test does not know: {other}"),
            };
            adjust(&mut canvas, step["factor"].as_f64().unwrap() as f32);
        }
        if chain["grey"] == true {
            canvas.push(PointOp::Grayscale);
        }
        GaussianBlur::blur(&mut canvas, chain["radius"].as_f64().unwrap() as f32);
        let n = (size * size) as f64;
        let (means, squares) = (numbers(&chain["mean"]), numbers(&chain["mean_square"]));
        for ((plane, expected), square) in canvas.planes().chunks_exact(size * size).zip(means).zip(squares) {
            let mean = plane.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let mean_square = plane.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
            let deviation = |mean: f64, square: f64| (square - mean * mean).max(0.0).sqrt();
            let (actual_deviation, deviation) = (deviation(mean, mean_square), deviation(expected, square));
            assert!((mean - expected).abs() < 1.0, "a mean of {mean} ({chain})");
            assert!(
                (actual_deviation - deviation).abs() < 0.5,
                "a deviation of {actual_deviation}, but expected {deviation} ({chain})"
            );
            sum_of_differences += mean - expected;
        }
    }
    let lean = sum_of_differences / (3 * chains.len()) as f64;
    println!("{} crops: on average the mean is off by {lean:.4} levels", chains.len());
    assert!(lean.abs() < 0.05, "on average the mean is off by {lean} levels");
}

#[test]
fn equalize_and_solarize_are_those_of_pillow() {
    for entry in expectations()["exact"].as_array().unwrap() {
        let mut canvas = Canvas::default();
        canvas.load(photo(&entry["photo"]).view());
        match entry["operation"].as_str().unwrap() {
            "equalize" => Equalize::equalize(&mut canvas),
            "solarize" => canvas.push(PointOp::Solarize { threshold: 128 }),
            other => panic!("an operation that this test does not know: {other}"),
        }
        let n = canvas.width() * canvas.height();
        for (plane, expected) in canvas.planes().chunks_exact(n).zip(numbers(&entry["weighted_sums"])) {
            let sum: u64 = plane.iter().enumerate().map(|(i, &v)| (i % 997) as u64 * u64::from(v)).sum();
            assert_eq!(sum as f64, expected, "{entry}");
        }
    }
}
