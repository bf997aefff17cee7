//! The map of the embeddings: points on a canvas, with their pictures.

use serde_json::{Value, json};

use crate::base64;
use crate::pictures::Sheet;
use crate::plane::Plane;

/// Embeddings in the plane, each with a picture.
#[derive(Debug, Clone)]
pub struct Map {
    /// What is shown, of how many images.
    pub note: String,
    /// Ways to see them, the best first; all of as many points.
    pub projections: Vec<Projection>,
    /// Names of the images.
    pub names: Vec<String>,
    /// Class of each image, -1 for none; empty without labels.
    pub labels: Vec<i64>,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    /// Prototype of each image.
    pub clusters: Vec<u32>,
    /// A picture of each.
    pub pictures: Sheet,
}

/// One way to see the points.
#[derive(Debug, Clone)]
pub struct Projection {
    /// Its name.
    pub name: String,
    /// Where the points are.
    pub plane: Plane,
}

impl Map {
    /// The points for the script: each projection as pairs of 16 bits, 0 to 65535 over the longer side.
    pub(crate) fn numbers(&self) -> Value {
        let projections = self.projections.iter().map(|Projection { name, plane }| {
            let variance = plane.variance.map(|share| (1000.0 * share).round() / 10.0);
            json!({ "name": name, "variance": variance, "points": base64::encode(&packed(&plane.points)) })
        });
        json!({
            "projections": projections.collect::<Vec<_>>(),
            "names": self.names,
            "labels": self.labels,
            "classes": self.classes,
            "clusters": self.clusters,
            "side": self.pictures.side,
            "columns": self.pictures.columns,
            "rows": self.pictures.rows_per_file(),
        })
    }
}

/// Coordinates in 16 bits, little-endian, with equal units on both axes.
fn packed(points: &[[f32; 2]]) -> Vec<u8> {
    let range = |axis: usize| {
        let values = points.iter().map(|point| point[axis]).filter(|x| x.is_finite());
        values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
    };
    let (x, y) = (range(0), range(1));
    let widest = (x.1 - x.0).max(y.1 - y.0).max(f32::MIN_POSITIVE);
    let place = |value: f32, (low, high): (f32, f32)| {
        let value = if value.is_finite() { value } else { low };
        (65535.0 * ((value - (low + high) / 2.0) / widest + 0.5)).round().clamp(0.0, 65535.0) as u16
    };
    points
        .iter()
        .flat_map(|point| [place(point[0], x), place(point[1], y)])
        .flat_map(u16::to_le_bytes)
        .collect()
}
