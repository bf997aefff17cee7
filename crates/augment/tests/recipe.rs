//! What a recipe promises to its caller: determinism, independence of batches and threads, equal results for grey
//! and for three equal channels, and sense on images of any size.

use std::collections::HashSet;

use proptest::prelude::*;
use swav_augment::{
    AugmentError, CenterCrop, Channels, CropKey, EvalView, Image, ImageView, MultiCrop, MultiCropConfig,
    Normalize, Preset, Scratch,
};

fn recipe(text: &str) -> MultiCrop {
    toml::from_str::<MultiCropConfig>(text).unwrap().check().unwrap()
}

/// Two sizes, with every step that exists.
fn everything() -> MultiCrop {
    recipe(
        r#"
        crops = [
            { size = 20, n_crops = 2, min_scale = 0.14, max_scale = 1.0 },
            { size = 9, n_crops = 3, min_scale = 0.05, max_scale = 0.14 },
        ]
        vertical_flip.probability = 0.5
        rotation.probability = 0.5
        perspective.probability = 0.5
        elastic.probability = 0.5
        solarize.probability = 0.5
        equalize.probability = 0.5
        "#,
    )
}

fn noise(width: u32, height: u32, channels: Channels) -> Image {
    let n = (width * height) as usize * channels.count();
    let bytes = (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as u8).collect();
    Image::new(width, height, channels, bytes).unwrap()
}

fn fill(recipe: &MultiCrop, image: ImageView<'_>, key: CropKey, scratch: &mut Scratch) -> Vec<f32> {
    let (group, _) = recipe.locate(key.crop as usize).unwrap();
    let mut out = vec![f32::NAN; recipe.groups()[group].crop.size.pow(2) * 3];
    recipe.fill(image, key, &mut out, scratch).unwrap();
    out
}

#[test]
fn a_crop_depends_on_its_key_alone() {
    let (recipe, image, other) = (everything(), noise(60, 40, Channels::Rgb), noise(33, 70, Channels::Grey));
    let mut used = Scratch::default();
    let mut seen = HashSet::new();
    for sample in 0..8 {
        for crop in 0..5 {
            let key = CropKey { seed: 31, epoch: 2, sample, crop };
            let fresh = fill(&recipe, image.view(), key, &mut Scratch::default());
            // Whatever went through the scratch before.
            fill(&recipe, other.view(), CropKey { sample: sample + 100, ..key }, &mut used);
            assert_eq!(fill(&recipe, image.view(), key, &mut used), fresh);
            assert!(fresh.iter().all(|x| x.is_finite()));
            assert!(
                seen.insert(fresh.iter().map(|x| x.to_bits()).collect::<Vec<_>>()),
                "{key:?} repeats another"
            );
        }
    }
}

#[test]
fn batches_are_crop_major_for_any_number_of_threads() {
    let recipe = everything();
    let images: Vec<Image> = (0..4).map(|i| noise(30 + i, 25, Channels::Rgb)).collect();
    let views: Vec<ImageView> = images.iter().map(Image::view).collect();
    let samples = [5, 9, 2, 7];
    for n_threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let mut out = vec![Vec::new(); 2];
        pool.install(|| recipe.fill_batch(&views, 31, 1, &samples, &mut out)).unwrap();
        for (i, (&image, sample)) in views.iter().zip(samples).enumerate() {
            for crop in 0..recipe.n_crops() {
                let (group, number) = recipe.locate(crop).unwrap();
                let len = recipe.groups()[group].crop.size.pow(2) * 3;
                let at = (number * images.len() + i) * len;
                let key = CropKey { seed: 31, epoch: 1, sample, crop: crop as u64 };
                assert_eq!(out[group][at..at + len], fill(&recipe, image, key, &mut Scratch::default()));
            }
        }
    }
    let error = recipe.fill_batch(&views, 31, 1, &samples[1..], &mut [Vec::new(), Vec::new()]).unwrap_err();
    assert_eq!(error, AugmentError::Count { what: "sample numbers", expected: 4, got: 3 });
}

#[test]
fn grey_images_give_what_three_equal_channels_give() {
    let recipe = everything();
    let grey = noise(28, 28, Channels::Grey);
    let colour: Image = grey.to_rgb().try_into().unwrap();
    for sample in 0..50 {
        for crop in 0..5 {
            let key = CropKey { seed: 31, epoch: 0, sample, crop };
            let one = fill(&recipe, grey.view(), key, &mut Scratch::default());
            let three = fill(&recipe, colour.view(), key, &mut Scratch::default());
            assert_eq!(one, three, "{key:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_image_gives_finite_crops(width in 1u32..70, height in 1u32..70, colour: bool, sample: u64) {
        let image = noise(width, height, if colour { Channels::Rgb } else { Channels::Grey });
        let recipe = everything();
        for crop in 0..recipe.n_crops() as u64 {
            let key = CropKey { seed: 31, epoch: 0, sample, crop };
            let out = fill(&recipe, image.view(), key, &mut Scratch::default());
            prop_assert!(out.iter().all(|x| x.abs() < 10.0));
        }
    }
}

#[test]
fn extreme_shapes_are_cropped() {
    let recipe = everything();
    let view = EvalView::new(CenterCrop { resize: 24, size: 20 }, Normalize::default()).unwrap();
    for (width, height) in [(1, 1), (1, 20_000), (20_000, 1), (2, 3)] {
        let image = noise(width, height, Channels::Rgb);
        for crop in 0..5 {
            let key = CropKey { seed: 31, epoch: 0, sample: 0, crop };
            assert!(fill(&recipe, image.view(), key, &mut Scratch::default()).iter().all(|x| x.is_finite()));
        }
        let mut out = vec![f32::NAN; 20 * 20 * 3];
        view.fill(image.view(), &mut out, &mut Scratch::default()).unwrap();
        assert!(out.iter().all(|x| x.is_finite()));
    }
}

/// A crop of an image of 400 million pixels reads only what it shows: the untouched pages of these zeros stay
/// untouched, and no copy is made of them.
#[test]
fn a_huge_image_is_read_in_place() {
    let side = 20_000;
    let bytes = vec![0; side * side];
    let image = ImageView::new(side as u32, side as u32, Channels::Grey, &bytes).unwrap();
    let plain = recipe(
        r#"
        crops = [{ size = 4, n_crops = 1, min_scale = 0.001, max_scale = 0.01 }]
        color_jitter.probability = 0
        normalize = { mean = [0.5, 0.5, 0.5], std = [1, 1, 1] }
        "#,
    );
    for sample in 0..4 {
        let key = CropKey { seed: 31, epoch: 0, sample, crop: 0 };
        for x in fill(&plain, image, key, &mut Scratch::default()) {
            assert_eq!(x, -0.5);
        }
    }
}

#[test]
fn wrong_buffers_and_crops_are_refused() {
    let (recipe, image) = (everything(), noise(30, 30, Channels::Rgb));
    let key = CropKey { seed: 31, epoch: 0, sample: 0, crop: 5 };
    let refused =
        |key, len| recipe.fill(image.view(), key, &mut vec![0.0; len], &mut Scratch::default()).unwrap_err();
    assert_eq!(refused(key, 1200), AugmentError::NoSuchCrop { got: 5, n_crops: 5 });
    assert_eq!(
        refused(CropKey { crop: 4, ..key }, 1200),
        AugmentError::OutputLength { width: 9, height: 9, expected: 243, got: 1200 }
    );
}

/// A crop's bytes, scaled by the recipe's numbers, are the values of the crop: for every step, colour and grey.
#[test]
fn bytes_become_the_very_values() {
    let (recipe, mut scratch) = (everything(), Scratch::default());
    let (scale, offset) = recipe.normalize().scale_and_offset();
    for (image, sample) in [noise(60, 40, Channels::Rgb), noise(33, 70, Channels::Grey)].iter().zip(0..) {
        for at in 0..200 {
            let key = CropKey { seed: 31, epoch: at / 5, sample, crop: at % 5 };
            let values = fill(&recipe, image.view(), key, &mut scratch);
            let mut bytes = vec![0; values.len()];
            recipe.fill_bytes(image.view(), key, &mut bytes, &mut scratch).unwrap();
            let scaled = bytes.iter().enumerate().map(|(i, &v)| f32::from(v) * scale[i % 3] + offset[i % 3]);
            assert!(scaled.map(f32::to_bits).eq(values.iter().map(|x| x.to_bits())), "{key:?}");
        }
    }
    let key = CropKey { seed: 31, epoch: 0, sample: 0, crop: 5 };
    let refused = recipe.fill_bytes(noise(9, 9, Channels::Rgb).view(), key, &mut [], &mut scratch);
    assert_eq!(refused.unwrap_err(), AugmentError::NoSuchCrop { got: 5, n_crops: 5 });
}

#[test]
fn presets_have_the_crops_that_they_promise() {
    for (preset, crops) in [
        (Preset::Swav, vec![(224, 2), (96, 6)]),
        (Preset::SimclrCifar, vec![(32, 2)]),
        (Preset::Greyscale, vec![(28, 2), (14, 4)]),
        (Preset::Medical, vec![(224, 2), (96, 6)]),
    ] {
        let recipe = MultiCropConfig::preset(preset).check().unwrap();
        let found: Vec<_> = recipe.groups().iter().map(|group| (group.crop.size, group.n_crops)).collect();
        assert_eq!(found, crops, "{preset:?}");
    }
}
