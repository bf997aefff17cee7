//! Time of the augmentation of one image, whole recipes and single steps: `cargo bench -p swav-benches --bench augment`.

use criterion::{Criterion, criterion_group, criterion_main};
use swav_augment::{
    Canvas, CenterCrop, Channels, ColorJitter, CropKey, Elastic, Equalize, GaussianBlur, Grayscale, Image,
    MultiCropConfig, Preset, Region, Resizer, Rotation, Scratch, Transform,
};

/// Smooth waves with some noise, so that no step has an easy case.
fn picture(width: u32, height: u32, channels: Channels) -> Image {
    let mut bytes = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for c in 0..channels.count() as u32 {
                let wave = (x as f32 / (20.0 + c as f32) + y as f32 / 31.0).sin();
                let noise = (x * 7919 + y * 104_729 + c * 31) % 17;
                bytes.push((110.0 + 90.0 * wave) as u8 + noise as u8);
            }
        }
    }
    Image::new(width, height, channels, bytes).expect("the size fits")
}

fn recipes(criterion: &mut Criterion) {
    let photo = picture(500, 375, Channels::Rgb);
    let garment = picture(28, 28, Channels::Grey);
    for (name, preset, image) in [
        ("swav, 2x224 + 6x96 of 500x375", Preset::Swav, &photo),
        ("medical, 2x224 + 6x96 of 500x375", Preset::Medical, &photo),
        ("simclr-cifar, 2x32 of 500x375", Preset::SimclrCifar, &photo),
        ("greyscale, 2x28 + 4x14 of 28x28", Preset::Greyscale, &garment),
    ] {
        let recipe = MultiCropConfig::preset(preset).check().expect("presets are valid");
        let mut out: Vec<Vec<f32>> = (0..recipe.n_crops())
            .map(|crop| {
                let (group, _) = recipe.locate(crop).expect("crop is below n_crops");
                vec![0.0; recipe.groups()[group].crop.size.pow(2) * 3]
            })
            .collect();
        let (mut scratch, mut sample) = (Scratch::default(), 0);
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                for (crop, out) in (0..).zip(&mut out) {
                    let key = CropKey { seed: 31, epoch: 0, sample, crop };
                    recipe.fill(image.view(), key, out, &mut scratch).expect("the buffers fit");
                }
                sample += 1;
            });
        });
    }
}

fn steps(criterion: &mut Criterion) {
    let photo = picture(500, 375, Channels::Rgb);
    let (mut resizer, mut canvas) = (Resizer::default(), Canvas::default());
    for side in [110, 300] {
        let region = Region { left: 20, top: 30, width: side, height: side };
        criterion.bench_function(&format!("resize {side} to 224"), |bencher| {
            bencher.iter(|| resizer.resize(photo.view(), region, 224, 224, &mut canvas));
        });
    }
    CenterCrop::default().apply(photo.view(), &mut resizer, &mut canvas);
    let steps: [(&str, Box<dyn Transform>); 6] = [
        ("color jitter", Box::new(ColorJitter { probability: 1.0, ..ColorJitter::default() })),
        ("grayscale", Box::new(Grayscale { probability: 1.0 })),
        ("blur", Box::new(GaussianBlur { probability: 1.0, ..GaussianBlur::default() })),
        ("equalize", Box::new(Equalize { probability: 1.0 })),
        ("rotation", Box::new(Rotation::default())),
        ("elastic", Box::new(Elastic { probability: 1.0, ..Elastic::default() })),
    ];
    for (name, step) in steps {
        let mut rng = CropKey { seed: 31, epoch: 0, sample: 0, crop: 0 }.rng();
        criterion.bench_function(&format!("{name} on 224"), |bencher| {
            bencher.iter(|| {
                step.apply(&mut canvas, &mut rng);
                // Runs what waits.
                canvas.planes()[0]
            });
        });
    }
}

criterion_group!(augment, recipes, steps);
criterion_main!(augment);
