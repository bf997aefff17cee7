//! Crops on their way to a device: values, or bytes and how they become values.
//!
//! Images are made of bytes, and normalising is the last that happens to them. A device of its own memory may do that
//! itself, and is then sent a quarter of what the values take.

use ndarray::{Array4, ArrayView4, Axis};
use rayon::prelude::*;

use crate::IMAGE_CHANNELS;

/// How bytes become values: of a channel c, `byte scale[c] + shift[c]` in f32, product and sum rounded one after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// `1 / (255 deviation)` of each channel, usually.
    pub scale: [f32; IMAGE_CHANNELS],
    /// `-mean / deviation` of each channel, usually.
    pub shift: [f32; IMAGE_CHANNELS],
}

impl Scaling {
    /// The values of images (images, height, width, 3).
    ///
    /// ```
    /// use ndarray::Array4;
    /// use swav_encoder::Scaling;
    ///
    /// let scaling = Scaling { scale: [0.5, 1.0, 2.0], shift: [0.0, -1.0, -2.0] };
    /// let pixel = Array4::from_shape_vec((1, 1, 1, 3), vec![4, 5, 6]).unwrap();
    /// assert_eq!(scaling.values(pixel.view()).as_slice(), Some(&[2.0, 4.0, 10.0][..]));
    /// ```
    ///
    /// # Panics
    /// If there are more than three channels.
    pub fn values(&self, images: ArrayView4<'_, u8>) -> Array4<f32> {
        let mut values = Array4::zeros(images.dim());
        let pairs = values.axis_iter_mut(Axis(0)).zip(images.axis_iter(Axis(0))).collect::<Vec<_>>();
        pairs.into_par_iter().for_each(|(mut values, bytes)| {
            for (mut values, bytes) in values.lanes_mut(Axis(2)).into_iter().zip(bytes.lanes(Axis(2))) {
                for (channel, (value, &byte)) in values.iter_mut().zip(bytes).enumerate() {
                    *value = f32::from(byte) * self.scale[channel] + self.shift[channel];
                }
            }
        });
        values
    }
}

/// The crops of a step, group by group, each (images, height, width, 3).
#[derive(Clone, Copy, Debug)]
pub enum Crops<'a> {
    /// Normalised values.
    Values(&'a [ArrayView4<'a, f32>]),
    /// Bytes, which the device scales as it was told.
    Bytes(&'a [ArrayView4<'a, u8>]),
}

impl Crops<'_> {
    /// The shape of each group.
    pub fn shapes(&self) -> Vec<[usize; 4]> {
        fn of<T>(groups: &[ArrayView4<'_, T>]) -> Vec<[usize; 4]> {
            groups.iter().map(|group| group.dim().into()).collect()
        }
        match self {
            Crops::Values(groups) => of(groups),
            Crops::Bytes(groups) => of(groups),
        }
    }
}
