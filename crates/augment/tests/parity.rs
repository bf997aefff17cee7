//! Every step against what Pillow and torchvision made of the same pixels.

use serde_json::Value;
use swav_augment::{
    AugmentRng, Canvas, CropKey, GaussianBlur, HorizontalFlip, Image, Normalize, PointOp, RandomResizedCrop,
    Region, Resizer, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation,
};
use swav_fixtures::{Tensors, json, path};

fn number(entry: &Value, key: &str) -> f64 {
    entry[key].as_f64().unwrap_or_else(|| panic!("`{key}` of {entry}"))
}

fn whole(entry: &Value, key: &str) -> usize {
    entry[key].as_u64().unwrap_or_else(|| panic!("`{key}` of {entry}")) as usize
}

/// Runs `step` on the image of every entry whose operation starts with one of `names`, and asserts that
/// the mean absolute difference from the expected bytes is at most `levels`.
fn assert_parity(names: &[&str], levels: f64, step: impl Fn(&Value, &Image, &mut Canvas)) {
    let (description, tensors) = (json("augment"), Tensors::open("augment"));
    let mut n_checked = 0;
    for entry in description["ops"].as_array().expect("a list of operations") {
        let name = entry["op"].as_str().expect("a name");
        if !names.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let file = path("images").join(entry["image"].as_str().expect("a file name"));
        let decoded = image::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let image = Image::from_decoded(decoded).unwrap();
        let mut canvas = Canvas::default();
        canvas.load(image.view());
        step(entry, &image, &mut canvas);
        let expected = tensors.u8(entry["key"].as_str().expect("a key"));
        let actual = canvas.to_rgb_bytes();
        assert_eq!(actual.len(), expected.len(), "{entry}");
        let sum: f64 = actual.iter().zip(&expected).map(|(&a, &e)| f64::from(a.abs_diff(e))).sum();
        let mean = sum / actual.len() as f64;
        println!("{}: mean absolute difference of {mean:.4} levels", entry["key"]);
        assert!(mean <= levels, "{entry}: mean absolute difference of {mean} levels");
        n_checked += 1;
    }
    assert!(n_checked > 0, "no operations named {names:?}");
}

#[test]
fn parity_of_resized_crops() {
    assert_parity(&["resized_crop"], 2.0, |entry, image, canvas| {
        let region = Region {
            left: whole(entry, "left"),
            top: whole(entry, "top"),
            width: whole(entry, "width"),
            height: whole(entry, "height"),
        };
        let size = whole(entry, "size");
        Resizer::default().resize(image.view(), region, size, size, canvas);
    });
}

#[test]
fn parity_of_flips() {
    assert_parity(&["hflip"], 0.0, |_, _, canvas| HorizontalFlip::flip(canvas));
}

#[test]
fn parity_of_jitter() {
    for (name, adjust) in [
        ("brightness", adjust_brightness as fn(&mut Canvas, f32)),
        ("contrast", adjust_contrast),
        ("saturation", adjust_saturation),
        ("hue", adjust_hue),
    ] {
        assert_parity(&[name], 1.0, |entry, _, canvas| adjust(canvas, number(entry, "factor") as f32));
    }
}

#[test]
fn parity_of_grayscale() {
    assert_parity(&["grayscale"], 0.0, |_, _, canvas| canvas.push(PointOp::Grayscale));
}

#[test]
fn parity_of_blur() {
    assert_parity(&["blur"], 3.0, |entry, _, canvas| {
        GaussianBlur::blur(canvas, number(entry, "radius") as f32)
    });
}

#[test]
fn parity_of_normalization() {
    let (description, tensors) = (json("augment"), Tensors::open("augment"));
    let mut n_checked = 0;
    for entry in description["ops"].as_array().expect("a list of operations") {
        if entry["op"] != "normalized" {
            continue;
        }
        let triple = |key: &str| [0, 1, 2].map(|c| entry[key][c].as_f64().expect("three numbers") as f32);
        let normalize = Normalize { mean: triple("mean"), std: triple("std") };
        let decoded =
            image::open(path("images").join(entry["image"].as_str().expect("a file name"))).unwrap();
        let mut canvas = Canvas::default();
        canvas.load(Image::from_decoded(decoded).unwrap().view());
        let mut out = vec![0.0; 3 * canvas.width() * canvas.height()];
        normalize.write(&canvas, &mut out).unwrap();
        let expected = tensors.f32(entry["key"].as_str().expect("a key"));
        assert_eq!(expected.shape(), [3, canvas.height(), canvas.width()]);
        for ((at, &value), n) in expected.indexed_iter().zip(0..) {
            let actual = out[3 * (at[1] * canvas.width() + at[2]) + at[0]];
            assert!((actual - value).abs() < 1e-5, "value {n}: {actual}, but expected {value}");
        }
        n_checked += 1;
    }
    assert!(n_checked > 0, "no normalised images");
}

/// Means over many draws. The means of area and place must be within 2%; so must that of the logarithm of the
/// aspect ratio, or, since it is near 0, within three standard errors of the fixture's own mean.
#[test]
fn parity_of_crop_parameters() {
    const N_DRAWS: u64 = 200_000;
    let description = json("augment");
    let entries = description["random_resized_crop"].as_array().expect("a list of distributions");
    assert!(!entries.is_empty());
    for entry in entries {
        let (width, height) = (whole(entry, "width"), whole(entry, "height"));
        let scale = |i: usize| entry["scale"][i].as_f64().expect("two scales") as f32;
        let crop =
            RandomResizedCrop { min_scale: scale(0), max_scale: scale(1), ..RandomResizedCrop::default() };
        let mut sums = [0.0; 6];
        for sample in 0..N_DRAWS {
            let mut rng: AugmentRng = CropKey { seed: 31, epoch: 0, sample, crop: 0 }.rng();
            let region = crop.draw(width, height, &mut rng);
            let area = (region.width * region.height) as f64 / (width * height) as f64;
            let aspect = (region.width as f64 / region.height as f64).ln();
            for (sum, value) in sums.iter_mut().zip([
                area,
                area * area,
                aspect,
                aspect * aspect,
                region.top as f64,
                region.left as f64,
            ]) {
                *sum += value;
            }
        }
        let [area, area_2, aspect, aspect_2, top, left] = sums.map(|sum| sum / N_DRAWS as f64);
        let std = |square: f64, mean: f64| (square - mean * mean).sqrt();
        // The fixture itself is a mean over 20,000 draws: its standard error in `mean_log_aspect` is a 140th of the
        // deviation, so three of them are a 47th.
        let std_log_aspect = number(entry, "std_log_aspect");
        for (key, actual, floor) in [
            ("mean_area", area, 0.0),
            ("std_area", std(area_2, area), 0.0),
            ("mean_log_aspect", aspect, 0.021 * std_log_aspect),
            ("std_log_aspect", std(aspect_2, aspect), 0.0),
            ("mean_top", top, 0.0),
            ("mean_left", left, 0.0),
        ] {
            let expected = number(entry, key);
            let tolerance = (0.02 * expected.abs()).max(floor);
            assert!(
                (actual - expected).abs() <= tolerance,
                "{key}: {actual}, but expected {expected} ({entry})"
            );
        }
    }
}
