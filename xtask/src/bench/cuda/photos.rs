//! Photographs that nobody has taken: JPEG files which are as large and as dear to decode as those of ImageNet.

use std::path::Path;

use anyhow::Context;
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use rayon::prelude::*;
use swav_cuda::self_test::noise;

/// Width and height, those of many photographs in ImageNet.
const SIZE: (u32, u32) = (500, 375);
const QUALITY: u8 = 90;
/// Sides in pixels and strengths of the patterns that make up a texture: coarse ones are strong, as in photographs, and fine
/// ones give files their length.
const OCTAVES: [(usize, f32); 4] = [(61, 30.0), (17, 18.0), (5, 13.0), (2, 16.0)];
/// Things in a photograph.
const SHAPES: usize = 6;

/// Writes so many photographs into a folder; the mean length of their files in bytes.
pub fn write(folder: &Path, n: usize) -> anyhow::Result<f64> {
    let write = |index: usize| {
        let bytes = jpeg(&photo(index as u32))?;
        let path = folder.join(format!("{index:05}.jpg"));
        std::fs::write(&path, &bytes).with_context(|| path.display().to_string())?;
        anyhow::Ok(bytes.len())
    };
    let lengths: Vec<usize> = (0..n).into_par_iter().map(write).collect::<Result<_, _>>()?;
    Ok(lengths.iter().sum::<usize>() as f64 / n.max(1) as f64)
}

/// The file. Colours are not subsampled, so that it takes a little longer to decode than most photographs of its length.
fn jpeg(photo: &RgbImage) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(photo)?;
    Ok(bytes)
}

/// A background that changes slowly, things on it, and a texture over everything.
fn photo(index: u32) -> RgbImage {
    let (width, height) = SIZE;
    let seed = index.wrapping_mul(64) + 1;
    let corners: Vec<[f32; 3]> = (0..4).map(|corner| colour(seed + corner)).collect();
    let shapes: Vec<Shape> = (0..SHAPES as u32).map(|shape| Shape::new(seed + 8 + shape)).collect();
    let octaves = OCTAVES.iter().zip(0..);
    let octaves: Vec<Octave> = octaves.map(|(&octave, at)| Octave::new(octave, seed + 32 + at)).collect();
    RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
        let shape = shapes.iter().rev().find(|shape| shape.covers(u, v));
        let texture: f32 = octaves.iter().map(|octave| octave.at(x as usize, y as usize)).sum();
        Rgb(std::array::from_fn(|channel| {
            let corner = |at: usize| corners[at][channel];
            let ground = between(between(corner(0), corner(1), u), between(corner(2), corner(3), u), v);
            let plain = shape.map_or(ground, |shape| shape.colour[channel]);
            (plain + texture).clamp(0.0, 255.0) as u8
        }))
    })
}

/// A colour that is not too near to black and white.
fn colour(seed: u32) -> [f32; 3] {
    let values = noise(3, seed);
    std::array::from_fn(|channel| 128.0 + 80.0 * values[channel])
}

fn between(a: f32, b: f32, share: f32) -> f32 {
    a + (b - a) * share
}

/// An ellipse.
struct Shape {
    centre: [f32; 2],
    radii: [f32; 2],
    colour: [f32; 3],
}

impl Shape {
    fn new(seed: u32) -> Self {
        let [x, y, a, b] = noise(4, seed.wrapping_mul(31) + 7)[..] else {
            unreachable!("four were asked for")
        };
        let radius = |value: f32| 0.12 + 0.08 * value;
        Self {
            centre: [x, y].map(|value| 0.5 + 0.5 * value),
            radii: [a, b].map(radius),
            colour: colour(seed.wrapping_mul(17) + 3),
        }
    }

    fn covers(&self, u: f32, v: f32) -> bool {
        let square = |value: f32| value * value;
        square((u - self.centre[0]) / self.radii[0]) + square((v - self.centre[1]) / self.radii[1]) < 1.0
    }
}

/// Values at the corners of squares, and straight lines between them.
struct Octave {
    side: usize,
    strength: f32,
    columns: usize,
    values: Vec<f32>,
}

impl Octave {
    fn new((side, strength): (usize, f32), seed: u32) -> Self {
        let [columns, rows] = [SIZE.0, SIZE.1].map(|size| size as usize / side + 2);
        Self { side, strength, columns, values: noise(columns * rows, seed) }
    }

    fn at(&self, x: usize, y: usize) -> f32 {
        let (column, row) = (x / self.side, y / self.side);
        let share = |at: usize| (at % self.side) as f32 / self.side as f32;
        let value = |column: usize, row: usize| self.values[row * self.columns + column];
        let line = |row: usize| between(value(column, row), value(column + 1, row), share(x));
        self.strength * between(line(row), line(row + 1), share(y))
    }
}

#[cfg(test)]
mod tests {
    use swav_data::{DecodeConfig, decode};

    use super::*;

    #[test]
    fn they_are_as_long_as_photographs_and_all_different() {
        let folder = tempfile::tempdir().unwrap();
        let mean = write(folder.path(), 6).unwrap();
        assert!((40e3..80e3).contains(&mean), "{mean}");
        let read = |index: usize| std::fs::read(folder.path().join(format!("{index:05}.jpg"))).unwrap();
        assert!((1..6).all(|index| read(index) != read(0)));
        let image = decode(&read(3), &DecodeConfig::default()).unwrap();
        assert_eq!((image.width(), image.height()), (500, 375));
    }

    #[test]
    fn the_same_number_gives_the_same_photograph() {
        assert_eq!(photo(5), photo(5));
    }
}
