//! The built-in data set: textured shapes, drawn from a seed, so that everything can be tried without a download.
//!
//! Twelve classes. Each is a pair of one of six shapes and one of six textures; every shape and every texture occurs in
//! two classes, so that neither alone tells the class. Colours, place, size, angle, lighting, background and noise are
//! drawn without regard to the class: mean colours say nothing, and raw pixels say little.

use std::{
    f32::consts::{PI, TAU},
    sync::Arc,
};

use image::{Rgb, RgbImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};
use swav_augment::Image;

use crate::counted::counted;
use crate::{DataError, Dataset, SampleError, Split, StableHash};

/// The size of the built-in data set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(default, deny_unknown_fields))]
pub struct ShapesConfig {
    /// Images of the `train` split. Default: 6000.
    pub n_train: usize,
    /// Images of the `test` (and `val`) split. Default: 1200.
    pub n_test: usize,
    /// Height and width in pixels, 16 to 1024. Default: 48.
    pub size: u32,
    /// The seed of everything drawn. Default: 0.
    pub seed: u64,
}

impl Default for ShapesConfig {
    fn default() -> Self {
        Self { n_train: 6000, n_test: 1200, size: 48, seed: 0 }
    }
}

/// A checked [`ShapesConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapesSpec(ShapesConfig);

impl ShapesConfig {
    /// Checks the ranges of all values.
    ///
    /// # Errors
    /// [`DataError::Config`] with the field, its range and the value.
    pub fn check(&self) -> Result<ShapesSpec, DataError> {
        if !(16..=1024).contains(&self.size) {
            let got = self.size.to_string();
            return Err(DataError::Config { field: "builtin.size", expected: "16 to 1024 pixels", got });
        }
        for (field, count) in [("builtin.n_train", self.n_train), ("builtin.n_test", self.n_test)] {
            if count == 0 || count > u32::MAX as usize / 2 {
                let got = count.to_string();
                return Err(DataError::Config { field, expected: "1 to 2147483647 images", got });
            }
        }
        Ok(ShapesSpec(self.clone()))
    }
}

/// The built-in images of one split. Images are drawn when they are asked for; image `i` has the label `i % 12`.
pub struct Shapes {
    config: ShapesConfig,
    split: Split,
    class_names: Vec<String>,
}

impl Shapes {
    /// The images of a split; `All` is train, then test.
    ///
    /// ```
    /// use swav_data::{Dataset, Shapes, ShapesConfig, Split};
    /// let shapes = Shapes::new(&ShapesConfig::default().check()?, Split::Train);
    /// assert_eq!((shapes.len(), shapes.class_names().len()), (6000, 12));
    /// assert_eq!(shapes.class_names()[0], "striped disc");
    /// # Ok::<(), swav_data::DataError>(())
    /// ```
    pub fn new(spec: &ShapesSpec, split: Split) -> Self {
        let class_names =
            CLASSES.iter().map(|(shape, texture)| format!("{} {}", texture.name(), shape.name())).collect();
        Self { config: spec.0.clone(), split, class_names }
    }

    /// The stream of one image: test images are other images, whatever the numbers.
    fn generator(&self, index: usize) -> ChaCha8Rng {
        let (test, index) = match self.split {
            Split::Train => (false, index),
            Split::Val | Split::Test => (true, index),
            Split::All if index < self.config.n_train => (false, index),
            Split::All => (true, index - self.config.n_train),
        };
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.config.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&(index as u64).to_le_bytes());
        seed[16] = u8::from(test);
        ChaCha8Rng::from_seed(seed)
    }

    fn class(&self, index: usize) -> usize {
        let index = if self.split == Split::All && index >= self.config.n_train {
            index - self.config.n_train
        } else {
            index
        };
        index % CLASSES.len()
    }
}

impl Dataset for Shapes {
    fn len(&self) -> usize {
        match self.split {
            Split::Train => self.config.n_train,
            Split::Val | Split::Test => self.config.n_test,
            Split::All => self.config.n_train + self.config.n_test,
        }
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        if index >= self.len() {
            return Err(SampleError::OutOfRange { index, len: self.len() });
        }
        let (shape, texture) = CLASSES[self.class(index)];
        let drawn = Scene::draw(&mut self.generator(index)).render(shape, texture, self.config.size);
        Ok(Arc::new(Image::try_from(drawn).expect("the size is at least 16")))
    }

    fn label(&self, index: usize) -> Option<u32> {
        (index < self.len()).then(|| self.class(index) as u32)
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn name(&self, index: usize) -> String {
        format!("builtin/{}[{index}]", self.split)
    }

    fn describe(&self) -> String {
        let size = self.config.size;
        format!(
            "built-in shapes: {} of {size}x{size} ({}), {} classes",
            counted(self.len(), "image"),
            self.split,
            CLASSES.len()
        )
    }

    fn fingerprint(&self) -> u64 {
        let mut hash = StableHash::new(DRAWING_VERSION);
        for number in
            [self.config.n_train as u64, self.config.n_test as u64, self.config.size.into(), self.config.seed]
        {
            hash.number(number);
        }
        hash.number(self.split as u64);
        hash.finish()
    }
}

/// To be raised with every change of the drawing, so that checkpoints notice.
const DRAWING_VERSION: u64 = 1;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Disc,
    Square,
    Triangle,
    Star,
    Cross,
    Ring,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Texture {
    Stripes,
    Checks,
    Dots,
    Waves,
    Blotches,
    Bricks,
}

const CLASSES: [(Shape, Texture); 12] = {
    use {Shape::*, Texture::*};
    [
        (Disc, Stripes),
        (Square, Checks),
        (Triangle, Dots),
        (Star, Waves),
        (Cross, Blotches),
        (Ring, Bricks),
        (Disc, Dots),
        (Square, Waves),
        (Triangle, Blotches),
        (Star, Bricks),
        (Cross, Stripes),
        (Ring, Checks),
    ]
};

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Disc => "disc",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Cross => "cross",
            Self::Ring => "ring",
        }
    }

    /// The signed distance from the outline, negative inside, of a shape whose area is about that of the unit disc.
    fn distance(self, x: f32, y: f32) -> f32 {
        let radius = x.hypot(y);
        match self {
            Self::Disc => radius - 1.0,
            Self::Square => x.abs().max(y.abs()) - 0.886,
            // Three half planes around the centroid.
            Self::Triangle => (y).max(-0.5 * y + 0.866 * x).max(-0.5 * y - 0.866 * x) - 0.777,
            Self::Star => {
                // The outline of a five-pointed star is a line between a tip and a notch, mirrored ten times.
                let angle = (y.atan2(x).rem_euclid(TAU / 5.0) - PI / 5.0).abs();
                let (tip, notch) = (1.53, 0.70);
                let (nx, ny) = (notch, 0.0);
                let (tx, ty) = (tip * (PI / 5.0).cos(), tip * (PI / 5.0).sin());
                let (px, py) = (radius * angle.cos(), radius * angle.sin());
                let (ex, ey) = (tx - nx, ty - ny);
                ((px - nx) * ey - (py - ny) * ex) / ex.hypot(ey)
            }
            Self::Cross => {
                let (long, short) = (x.abs().max(y.abs()), x.abs().min(y.abs()));
                (long - 1.19).max(short - 0.41)
            }
            Self::Ring => (radius - 0.92).abs() - 0.272,
        }
    }
}

impl Texture {
    fn name(self) -> &'static str {
        match self {
            Self::Stripes => "striped",
            Self::Checks => "checked",
            Self::Dots => "dotted",
            Self::Waves => "wavy",
            Self::Blotches => "blotched",
            Self::Bricks => "bricked",
        }
    }

    /// Which of two colours lies at a point, -1 to 1 with soft borders; `u`, `v` count periods. About half of the plane
    /// is either colour, so that textures do not differ in their mean.
    fn value(self, u: f32, v: f32, noise_seed: u32) -> f32 {
        let field = match self {
            Self::Stripes => (TAU * u).sin(),
            Self::Checks => 1.6 * (PI * u).sin() * (PI * v).sin(),
            Self::Dots => {
                let (du, dv) = (u.rem_euclid(1.0) - 0.5, v.rem_euclid(1.0) - 0.5);
                (0.4 - du.hypot(dv)) * 6.0
            }
            Self::Waves => (TAU * (u + 0.3 * (PI * v).sin())).sin(),
            Self::Blotches => 5.0 * (smooth_noise(1.6 * u, 1.6 * v, noise_seed) - 0.5),
            Self::Bricks => {
                // Joints of .146 on every side leave half of the plane to the bricks.
                let row = (v * 1.2).floor();
                let along = (0.7 * u + 0.5 * row.rem_euclid(2.0)).rem_euclid(1.0);
                let across = (v * 1.2).rem_euclid(1.0);
                (along.min(1.0 - along).min(across.min(1.0 - across)) - 0.146) * 9.0
            }
        };
        (2.2 * field).clamp(-1.0, 1.0)
    }
}

/// Everything about an image except its class.
struct Scene {
    centre: [f32; 2],
    radius: f32,
    turn: f32,
    squeeze: f32,
    texture_turn: f32,
    period: f32,
    phase: [f32; 2],
    figure: [[f32; 3]; 2],
    ground: [[f32; 3]; 2],
    ground_scale: f32,
    light: [f32; 3],
    noise: f32,
    blur: f32,
    noise_seed: u32,
}

impl Scene {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        // Pale colours: what a learner without labels takes up first should be the figure, not its paint.
        let mut colour = || {
            let grey = rng.random_range(0.15..0.85_f32);
            [0; 3].map(|_| (grey + rng.random_range(-0.12..0.12_f32)).clamp(0.0, 1.0))
        };
        let ground_colour = colour();
        let ground = [ground_colour, blend(ground_colour, colour(), 0.35)];
        let first = colour();
        let mut second = colour();
        // The two colours of a texture must differ in brightness, or there is no texture; which is brighter is chance.
        let gap = brightness(second) - brightness(first);
        if gap.abs() < 0.35 {
            let shift = if brightness(first) > 0.5 { -0.35 } else { 0.35 } - gap;
            second = second.map(|value| (value + shift).clamp(0.0, 1.0));
        }
        let radius = rng.random_range(0.62..0.82);
        // Most of the shape stays inside the image.
        let room = 0.95 - radius;
        Self {
            centre: [rng.random_range(-room..room), rng.random_range(-room..room)],
            radius,
            turn: rng.random_range(0.0..TAU),
            squeeze: rng.random_range(0.85..1.18),
            texture_turn: rng.random_range(0.0..TAU),
            period: rng.random_range(0.26..0.36),
            phase: [rng.random_range(0.0..10.0), rng.random_range(0.0..10.0)],
            figure: if rng.random() { [first, second] } else { [second, first] },
            ground,
            ground_scale: rng.random_range(0.8..2.5),
            light: [
                rng.random_range(-0.25..0.25),
                rng.random_range(-0.25..0.25),
                rng.random_range(0.8..1.15),
            ],
            noise: rng.random_range(0.0..0.05),
            blur: rng.random_range(0.8..2.0),
            noise_seed: rng.random(),
        }
    }

    fn render(&self, shape: Shape, texture: Texture, size: u32) -> RgbImage {
        let pixel = 2.0 / size as f32;
        let (sin, cos) = self.turn.sin_cos();
        let (texture_sin, texture_cos) = self.texture_turn.sin_cos();
        RgbImage::from_fn(size, size, |column, row| {
            let (x, y) = ((column as f32 + 0.5) * pixel - 1.0, (row as f32 + 0.5) * pixel - 1.0);
            let (dx, dy) = ((x - self.centre[0]) / self.radius, (y - self.centre[1]) / self.radius);
            let (a, b) = ((cos * dx + sin * dy) * self.squeeze, (cos * dy - sin * dx) / self.squeeze);
            let edge = pixel / self.radius * self.blur;
            let cover = (0.5 - shape.distance(a, b) / edge).clamp(0.0, 1.0);
            let u = (texture_cos * x + texture_sin * y) / self.period + self.phase[0];
            let v = (texture_cos * y - texture_sin * x) / self.period + self.phase[1];
            let figure =
                blend(self.figure[0], self.figure[1], 0.5 + 0.5 * texture.value(u, v, self.noise_seed));
            let (gx, gy) = (x * self.ground_scale + 7.0, y * self.ground_scale + 7.0);
            let cloud = 0.7 * smooth_noise(gx, gy, !self.noise_seed)
                + 0.3 * smooth_noise(2.7 * gx, 2.7 * gy, self.noise_seed.rotate_left(9));
            let colour = blend(blend(self.ground[0], self.ground[1], cloud), figure, cover);
            let light = self.light[2] * (1.0 + self.light[0] * x + self.light[1] * y);
            let grain = |channel: u32| {
                self.noise * (2.0 * lattice(column, row, self.noise_seed ^ (channel << 30)) - 1.0)
            };
            let byte =
                |channel: usize| ((colour[channel] * light + grain(channel as u32)) * 255.0 + 0.5) as u8;
            Rgb([byte(0), byte(1), byte(2)])
        })
    }
}

fn brightness(colour: [f32; 3]) -> f32 {
    0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
}

fn blend(from: [f32; 3], to: [f32; 3], share: f32) -> [f32; 3] {
    [0, 1, 2].map(|channel| from[channel] + (to[channel] - from[channel]) * share)
}

/// Value noise from 0 to 1: random values on the integer lattice, smoothly interpolated.
fn smooth_noise(x: f32, y: f32, seed: u32) -> f32 {
    let (column, row) = (x.floor(), y.floor());
    let ease = |t: f32| t * t * (3.0 - 2.0 * t);
    let (s, t) = (ease(x - column), ease(y - row));
    let (column, row) = ((column as i32).cast_unsigned(), (row as i32).cast_unsigned());
    let at = |dx: u32, dy: u32| lattice(column.wrapping_add(dx), row.wrapping_add(dy), seed);
    let (top, bottom) = (at(0, 0) + (at(1, 0) - at(0, 0)) * s, at(0, 1) + (at(1, 1) - at(0, 1)) * s);
    top + (bottom - top) * t
}

/// A number from 0 to 1 for a lattice point.
fn lattice(x: u32, y: u32, seed: u32) -> f32 {
    let key = (u64::from(x) << 32 | u64::from(y)) ^ u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (crate::hash::mix(key) >> 40) as f32 / (1 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_of_shapes_and_means_of_textures_agree() {
        for (shape, texture) in CLASSES {
            let grid = || {
                (0..400).flat_map(|i| (0..400).map(move |j| (i as f32 / 100.0 - 2.0, j as f32 / 100.0 - 2.0)))
            };
            let area = grid().filter(|&(x, y)| shape.distance(x, y) < 0.0).count() as f32 / 1e4;
            assert!((area / PI - 1.0).abs() < 0.06, "{shape:?} has {:.3} of the disc's area", area / PI);
            let means: Vec<f32> = (0..8)
                .map(|seed| {
                    grid().map(|(x, y)| texture.value(x * 5.0, y * 5.0, seed)).sum::<f32>() / 160_000.0
                })
                .collect();
            let mean = means.iter().sum::<f32>() / 8.0;
            assert!(mean.abs() < 0.08, "{texture:?} has the mean {mean:.3}");
        }
    }

    #[test]
    fn every_shape_and_texture_is_in_two_classes() {
        for (shape, texture) in CLASSES {
            assert_eq!(CLASSES.iter().filter(|class| class.0 == shape).count(), 2);
            assert_eq!(CLASSES.iter().filter(|class| class.1 == texture).count(), 2);
            assert_eq!(CLASSES.iter().filter(|class| **class == (shape, texture)).count(), 1);
        }
    }

    #[test]
    fn splits_are_other_images_and_all_is_both() {
        let config = ShapesConfig { n_train: 30, n_test: 20, size: 16, seed: 3 };
        let split = |split| Shapes::new(&config.check().unwrap(), split);
        let (train, test, all) = (split(Split::Train), split(Split::Test), split(Split::All));
        assert_ne!(train.image(0).unwrap(), test.image(0).unwrap());
        for index in 0..50 {
            let (part, at) = if index < 30 { (&train, index) } else { (&test, index - 30) };
            assert_eq!(all.image(index).unwrap(), part.image(at).unwrap());
            assert_eq!(all.label(index), part.label(at));
        }
        assert!(matches!(all.image(50), Err(SampleError::OutOfRange { .. })));
        assert_ne!(train.fingerprint(), test.fingerprint());
        let other = ShapesConfig { seed: 4, ..config }.check().unwrap();
        let other = Shapes::new(&other, Split::Train);
        assert_ne!(other.image(1).unwrap(), train.image(1).unwrap());
    }
}
