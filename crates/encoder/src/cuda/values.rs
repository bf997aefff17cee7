//! Values as they lie on a machine: images in order, rows padded to multiples of 8.

use ndarray::ArrayView4;
use rayon::prelude::*;
use swav_cuda::network::padded;

/// Values or bytes of this many at a time are copied by a thread.
const COPIED: usize = 1 << 16;

/// Writes images of bytes, in order.
pub(super) fn fill_bytes(images: &ArrayView4<'_, u8>, bytes: &mut [u8]) {
    match images.as_slice() {
        Some(values) => {
            let pairs = bytes.par_chunks_mut(4 * COPIED).zip(values.par_chunks(4 * COPIED));
            pairs.for_each(|(bytes, values)| bytes.copy_from_slice(values));
        }
        None => bytes.iter_mut().zip(images).for_each(|(slot, &x)| *slot = x),
    }
}

/// Writes images as f32, in order.
pub(super) fn fill(images: &ArrayView4<'_, f32>, bytes: &mut [u8]) {
    let (slots, _) = bytes.as_chunks_mut::<4>();
    match images.as_slice() {
        // A core alone would take as long for a large batch as the card for a step.
        Some(values) => {
            slots.par_chunks_mut(COPIED).zip(values.par_chunks(COPIED)).for_each(|(slots, values)| {
                slots.iter_mut().zip(values).for_each(|(slot, x)| *slot = x.to_le_bytes());
            })
        }
        None => slots.iter_mut().zip(images).for_each(|(slot, x)| *slot = x.to_le_bytes()),
    }
}

/// Rows without the padding at their ends.
pub(super) fn strip(values: &[f32], dim: usize) -> Vec<f32> {
    values.chunks_exact(padded(dim)).flat_map(|row| &row[..dim]).copied().collect()
}

/// Rows with zeros at their ends.
pub(super) fn pad(values: impl IntoIterator<Item = f32>, dim: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for (index, value) in values.into_iter().enumerate() {
        out.push(value);
        if index % dim + 1 == dim {
            out.resize(out.len() + padded(dim) - dim, 0.0);
        }
    }
    out
}
