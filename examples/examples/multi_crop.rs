//! Makes the crops of one image and writes them as pictures: `cargo run --release --example multi_crop -- [IMAGE]`.
//!
//! Without an argument, it draws an image of its own. The recipe is a preset with overrides, as in a config file; its
//! crops go to the folder `crops`.

use std::fs;

use image::RgbImage;
use swav_augment::{CropConfig, CropKey, Image, MultiCropConfig, Preset, Scratch};

fn main() -> anyhow::Result<()> {
    let image = match std::env::args().nth(1) {
        Some(path) => Image::from_decoded(image::open(path)?)?,
        None => drawing().try_into()?,
    };
    let recipe = recipe().check()?;

    fs::create_dir_all("crops")?;
    let mut scratch = Scratch::default();
    for crop in 0..recipe.n_crops() {
        let (group, number) = recipe.locate(crop).expect("crop is below n_crops");
        let size = recipe.groups()[group].crop.size;
        // In training this is a place in the batch: (size, size, 3), normalised.
        let mut pixels = vec![0.0; size * size * 3];
        let key = CropKey { seed: 31, epoch: 0, sample: 0, crop: crop as u64 };
        recipe.fill(image.view(), key, &mut pixels, &mut scratch)?;

        let mean = pixels.iter().sum::<f32>() / pixels.len() as f32;
        let path = format!("crops/{size}-{number}.png");
        let picture = RgbImage::from_raw(size as u32, size as u32, recipe.normalize().invert(&pixels));
        picture.expect("a square of RGB pixels").save(&path)?;
        println!("{path}: mean of the normalised values {mean:.2}");
    }
    Ok(())
}

/// Two large crops and four small ones, without changes of hue.
fn recipe() -> MultiCropConfig {
    let crop = |size, n_crops, min_scale, max_scale| CropConfig {
        min_scale,
        max_scale,
        ..CropConfig::square(size, n_crops)
    };
    let mut config = MultiCropConfig::preset(Preset::Swav);
    config.crops = Some(vec![crop(128, 2, 0.3, 1.0), crop(64, 4, 0.05, 0.3)]);
    config.color_jitter.hue = Some(0.0);
    config
}

/// Coloured rings.
fn drawing() -> RgbImage {
    RgbImage::from_fn(400, 300, |x, y| {
        let (dx, dy) = (x as f32 - 200.0, y as f32 - 150.0);
        let ring = ((dx * dx + dy * dy).sqrt() / 12.0).sin();
        image::Rgb([(127.0 + 120.0 * ring) as u8, (x * 255 / 400) as u8, (y * 255 / 300) as u8])
    })
}
