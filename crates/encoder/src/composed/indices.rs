//! Where the pixels of patches are: index tensors on the device, made once per geometry.

use std::cell::RefCell;
use std::collections::HashMap;

use dfdx::prelude::{Device, Tensor};

use super::Matrix;

/// What decides the indices of a patch gather: the shape of the image batch, and the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Window {
    pub(super) n_images: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
}

impl Window {
    /// Height and width of the output.
    pub(super) fn output_sides(&self) -> (usize, usize) {
        let side = |s: usize| (s + 2 * self.padding).saturating_sub(self.kernel) / self.stride + 1;
        (side(self.height), side(self.width))
    }

    /// For every output pixel the row of each tap; `n_images·height·width` where a tap is outside the image.
    fn rows(&self) -> Vec<usize> {
        let outside = self.n_images * self.height * self.width;
        let (out_height, out_width) = self.output_sides();
        let mut rows = Vec::with_capacity(self.n_images * out_height * out_width * self.kernel * self.kernel);
        for image in 0..self.n_images {
            for (y, x) in (0..out_height).flat_map(|y| (0..out_width).map(move |x| (y, x))) {
                for (i, j) in (0..self.kernel).flat_map(|i| (0..self.kernel).map(move |j| (i, j))) {
                    let inside = |at: usize, side| at.checked_sub(self.padding).filter(|&at| at < side);
                    let at =
                        inside(y * self.stride + i, self.height).zip(inside(x * self.stride + j, self.width));
                    rows.push(at.map_or(outside, |(y, x)| (image * self.height + y) * self.width + x));
                }
            }
        }
        rows
    }
}

type Rows<S, D> = Tensor<S, usize, D>;
type Cache<K, V> = RefCell<HashMap<K, V>>;

/// The index tensors and constants of a device.
pub(super) struct Indices<D: Device<f32>> {
    tensors: D,
    patches: Cache<Window, Rows<(usize, usize), D>>,
    padded: Cache<usize, Padding<D>>,
    constants: Cache<(usize, usize, u32), Matrix<D>>,
}

/// Appends a row of zeros: first gather these rows, then scale by these factors.
#[derive(Clone)]
pub(super) struct Padding<D: Device<f32>> {
    pub(super) rows: Rows<(usize,), D>,
    pub(super) factors: Tensor<(usize,), f32, D>,
}

impl<D: Device<f32>> Indices<D> {
    pub(super) fn new(tensors: D) -> Self {
        let (patches, padded, constants) = Default::default();
        Self { tensors, patches, padded, constants }
    }

    /// `[output pixels, taps]`: rows of the padded input.
    pub(super) fn patches(&self, window: Window) -> Result<Rows<(usize, usize), D>, D::Err> {
        cached(&self.patches, window, || {
            let (height, width) = window.output_sides();
            let shape = (window.n_images * height * width, window.kernel * window.kernel);
            self.tensors.try_tensor_from_vec(window.rows(), shape)
        })
    }

    /// For a matrix of `n_rows`: itself and one row more.
    pub(super) fn padding(&self, n_rows: usize) -> Result<Padding<D>, D::Err> {
        cached(&self.padded, n_rows, || {
            let rows = (0..n_rows).chain([0]).collect();
            let factors = (0..=n_rows).map(|row| if row < n_rows { 1.0 } else { 0.0 }).collect();
            Ok(Padding {
                rows: self.tensors.try_tensor_from_vec(rows, (n_rows + 1,))?,
                factors: self.tensors.try_tensor_from_vec(factors, (n_rows + 1,))?,
            })
        })
    }

    /// A matrix of one value.
    pub(super) fn constant(&self, rows: usize, columns: usize, value: f32) -> Result<Matrix<D>, D::Err> {
        cached(&self.constants, (rows, columns, value.to_bits()), || {
            self.tensors.try_tensor_from_vec(vec![value; rows * columns], (rows, columns))
        })
    }
}

fn cached<K: Copy + Eq + std::hash::Hash, V: Clone, E>(
    cache: &Cache<K, V>,
    key: K,
    make: impl FnOnce() -> Result<V, E>,
) -> Result<V, E> {
    if let Some(value) = cache.borrow().get(&key) {
        return Ok(value.clone());
    }
    let value = make()?;
    cache.borrow_mut().insert(key, value.clone());
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_name_rows_and_the_outside() {
        let window = Window { n_images: 2, height: 2, width: 3, kernel: 3, stride: 2, padding: 1 };
        assert_eq!(window.output_sides(), (1, 2));
        let rows = window.rows();
        assert_eq!(rows.len(), 2 * 2 * 9);
        // The first image's first output pixel is centred on (0, 0).
        assert_eq!(rows[..9], [12, 12, 12, 12, 0, 1, 12, 3, 4]);
        // The second image's second output pixel is centred on (0, 2).
        assert_eq!(rows[27..], [12, 12, 12, 7, 8, 12, 10, 11, 12]);
    }
}
