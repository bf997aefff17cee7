//! Geometric steps beyond cropping: rotation, perspective, elastic warps. All sample bilinearly, and show black where they look
//! outside the crop.

use image::{GrayImage, Luma};
use imageproc::geometric_transformations::{Border, Interpolation, Projection, warp_into, warp_into_with};
use serde::{Deserialize, Serialize};

use crate::random::{happens, uniform};
use crate::{AugmentRng, Canvas, Transform};

/// Turns about the centre by an angle uniform in `[-max_degrees, max_degrees]`, as torchvision's `RandomRotation` with
/// bilinear interpolation.
///
/// ```
/// use swav_augment::{Canvas, Channels, ImageView, Rotation};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(2, 2, Channels::Grey, &[1, 2, 3, 4]).unwrap());
/// Rotation::rotate(&mut canvas, 90.0);
/// assert_eq!(canvas.planes(), [2, 4, 1, 3]); // counter-clockwise
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// How often, 0 to 1.
    pub probability: f32,
    /// The largest angle in degrees, 0 to 180.
    pub max_degrees: f32,
}

/// Shows the crop as if its plane were tilted: each corner moves inward by distances uniform in
/// `[0, distortion * side / 2]`, as torchvision's `RandomPerspective` (which draws whole pixels; we do not round).
///
/// ```
/// use swav_augment::{Canvas, Channels, CropKey, ImageView, Perspective, Transform};
///
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(3, 3, Channels::Grey, &[200; 9]).unwrap());
/// let tilt = Perspective { probability: 1.0, distortion: 0.9 };
/// tilt.apply(&mut canvas, &mut CropKey { seed: 1, epoch: 0, sample: 0, crop: 0 }.rng());
/// assert_eq!(canvas.planes()[4], 200); // the middle stays inside
/// assert!(canvas.planes().contains(&0)); // some corner does not
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perspective {
    /// How often, 0 to 1.
    pub probability: f32,
    /// How far the corners move, 0 to .9.
    pub distortion: f32,
}

/// Warps the crop smoothly: a grid of random displacements, interpolated by cubic B-splines, in the manner of
/// Ronneberger et al. 2015 (U-Net, section 3.1).
///
/// The displacements at the grid points are uniform in `[-amplitude, amplitude]` times the crop's side in both directions;
/// the grid's spacing is `smoothness` times the side. Splines do not overshoot, so no pixel moves further than that.
///
/// ```
/// use swav_augment::{Canvas, Channels, CropKey, Elastic, ImageView, Transform};
///
/// let bytes: Vec<u8> = (0..64).map(|i| i * 3).collect();
/// let mut canvas = Canvas::default();
/// canvas.load(ImageView::new(8, 8, Channels::Grey, &bytes).unwrap());
/// let elastic = Elastic { probability: 1.0, amplitude: 0.0, smoothness: 0.25 };
/// elastic.apply(&mut canvas, &mut CropKey { seed: 1, epoch: 0, sample: 0, crop: 0 }.rng());
/// assert_eq!(canvas.planes(), bytes); // without displacement nothing changes
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elastic {
    /// How often, 0 to 1.
    pub probability: f32,
    /// The largest displacement as a share of the crop's side, 0 to .5.
    pub amplitude: f32,
    /// Distance of the grid points as a share of the crop's side, .01 to 1.
    pub smoothness: f32,
}

impl Default for Rotation {
    /// Always, up to 15 degrees.
    fn default() -> Self {
        Self { probability: 1.0, max_degrees: 15.0 }
    }
}

impl Default for Perspective {
    /// torchvision's: half of the crops, distortion .5.
    fn default() -> Self {
        Self { probability: 0.5, distortion: 0.5 }
    }
}

impl Default for Elastic {
    /// Half of the crops, up to a twentieth of the side, grid points a quarter of it apart.
    fn default() -> Self {
        Self { probability: 0.5, amplitude: 0.05, smoothness: 0.25 }
    }
}

impl Rotation {
    /// Turns counter-clockwise by this angle.
    pub fn rotate(canvas: &mut Canvas, degrees: f32) {
        let (x, y) = ((canvas.width() - 1) as f32 / 2.0, (canvas.height() - 1) as f32 / 2.0);
        let turn = Projection::rotate(-degrees.to_radians());
        project(canvas, Projection::translate(x, y) * turn * Projection::translate(-x, -y));
    }
}

impl Transform for Rotation {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        if happens(rng, self.probability) {
            let degrees = uniform(rng, -self.max_degrees, self.max_degrees);
            Self::rotate(canvas, degrees);
        }
    }
}

impl Transform for Perspective {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        if !happens(rng, self.probability) {
            return;
        }
        let (right, bottom) = ((canvas.width() - 1) as f32, (canvas.height() - 1) as f32);
        let corners = [(0.0, 0.0), (right, 0.0), (right, bottom), (0.0, bottom)];
        let moved = corners.map(|(x, y)| {
            let inward = |at: f32, end: f32, rng: &mut AugmentRng| {
                let distance = uniform(rng, 0.0, self.distortion * end / 2.0);
                if at == 0.0 { distance } else { at - distance }
            };
            (inward(x, right, rng), inward(y, bottom, rng))
        });
        // A crop of one pixel's width has no four corners: it stays as it is.
        if right > 0.0
            && bottom > 0.0
            && let Some(projection) = Projection::from_control_points(corners, moved)
        {
            project(canvas, projection);
        }
    }
}

impl Transform for Elastic {
    fn apply(&self, canvas: &mut Canvas, rng: &mut AugmentRng) {
        if !happens(rng, self.probability) {
            return;
        }
        let (width, height) = (canvas.width() as f32, canvas.height() as f32);
        // A spline at cell i takes the points i to i + 3.
        let cells = (1.0 / self.smoothness).ceil() as usize;
        let points = cells + 3;
        let mut grid = std::mem::take(&mut canvas.planes_and_work().1.floats);
        grid.clear();
        grid.extend((0..2 * points * points).map(|_| uniform(rng, -self.amplitude, self.amplitude)));
        let displaced = |x: f32, y: f32| {
            let (column, along) = place(x / width, self.smoothness, cells);
            let (row, down) = place(y / height, self.smoothness, cells);
            let (mut dx, mut dy) = (0.0, 0.0);
            for (j, wy) in down.into_iter().enumerate() {
                for (i, wx) in along.into_iter().enumerate() {
                    let point = 2 * ((row + j) * points + column + i);
                    dx += wx * wy * grid[point];
                    dy += wx * wy * grid[point + 1];
                }
            }
            (x + dx * width, y + dy * height)
        };
        each_plane(canvas, |from, to| {
            warp_into_with(from, displaced, Interpolation::Bilinear, Border::Constant(Luma([0])), to);
        });
        canvas.planes_and_work().1.floats = grid;
    }
}

/// The cell of the grid that a position from 0 to 1 is in, and the cubic B-spline's weights of its four points.
fn place(position: f32, spacing: f32, cells: usize) -> (usize, [f32; 4]) {
    let at = position / spacing;
    let cell = (at as usize).min(cells - 1);
    let t = at - cell as f32;
    let u = 1.0 - t;
    let weights =
        [u * u * u, 3.0 * t * t * t - 6.0 * t * t + 4.0, 3.0 * u * u * u - 6.0 * u * u + 4.0, t * t * t];
    (cell, weights.map(|weight| weight / 6.0))
}

fn project(canvas: &mut Canvas, projection: Projection) {
    each_plane(canvas, |from, to| {
        warp_into(from, projection, Interpolation::Bilinear, Border::Constant(Luma([0])), to);
    });
}

/// Replaces each plane by what `change` writes to its second argument.
fn each_plane(canvas: &mut Canvas, change: impl Fn(&GrayImage, &mut GrayImage)) {
    let (width, height) = (canvas.width(), canvas.height());
    let (planes, work) = canvas.planes_and_work();
    for plane in planes.chunks_exact_mut(width * height) {
        let mut from = std::mem::take(&mut work.bytes);
        let mut to = std::mem::take(&mut work.more_bytes);
        from.clear();
        from.extend_from_slice(plane);
        to.resize(plane.len(), 0);
        let picture = |bytes| {
            GrayImage::from_raw(width as u32, height as u32, bytes)
                .expect("the buffers have a plane's length")
        };
        let (from, mut to) = (picture(from), picture(to));
        change(&from, &mut to);
        plane.copy_from_slice(&to);
        (work.bytes, work.more_bytes) = (from.into_raw(), to.into_raw());
    }
}
