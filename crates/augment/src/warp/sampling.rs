//! What rotation, perspective and elastic warps do to a canvas.

use image::{GrayImage, Luma};
use imageproc::geometric_transformations::{Border, Interpolation, Projection, warp_into, warp_into_with};

use super::{Elastic, Perspective, Rotation};
use crate::random::{happens, uniform};
use crate::{AugmentRng, Canvas, Transform};

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
