//! Where the tensors of a file lie, and how they are read.

use std::collections::BTreeMap;

use swav_encoder::StateTensor;

use crate::source::Source;
use crate::{Dtype, WeightsError};

/// Dimensions that a tensor has at most.
pub(crate) const MAX_RANK: usize = 8;
/// Numbers that are not 32-bit floats are converted so many bytes at a time.
const CHUNK: usize = 1 << 16;

/// A tensor of a file: what it is, and where. Everything is inside the file, as is checked when one is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Distance in numbers from one element to the next, for each dimension; `None` for row-major.
    strides: Option<Vec<usize>>,
    /// The first byte of the first number.
    at: u64,
    /// The checksum of the storage, where the tensor is all of it.
    crc: Option<u32>,
}

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// Consecutive numbers in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage {
    pub(crate) dtype: Dtype,
    /// How many numbers.
    pub(crate) len: u64,
    /// The first byte.
    pub(crate) at: u64,
    /// CRC-32 of all its bytes, where the file has one.
    pub(crate) crc: Option<u32>,
}

impl Tensor {
    /// A row-major tensor that is all of a storage.
    pub(crate) fn whole(name: &str, storage: Storage, shape: &[u64]) -> Result<Self, WeightsError> {
        let (shape, len) = checked_shape(name, shape)?;
        if len != storage.len {
            return Err(WeightsError::tensor(
                name,
                format_args!("{len} numbers for shape {shape:?}"),
                storage.len,
            ));
        }
        Ok(Self { dtype: storage.dtype, shape, strides: None, at: storage.at, crc: storage.crc })
    }

    /// A view of a storage, as PyTorch has them.
    pub(crate) fn view(
        name: &str,
        storage: Storage,
        offset: u64,
        shape: &[u64],
        strides: &[u64],
    ) -> Result<Self, WeightsError> {
        if strides.len() != shape.len() {
            return Err(WeightsError::tensor(name, format_args!("{} strides", shape.len()), strides.len()));
        }
        let (extents, len) = checked_shape(name, shape)?;
        if len > storage.len {
            return Err(WeightsError::tensor(
                name,
                format_args!("no more numbers than the {} of its storage", storage.len),
                len,
            ));
        }
        let end = shape.iter().zip(strides).try_fold(offset, |end, (&extent, &stride)| {
            end.checked_add(extent.saturating_sub(1).checked_mul(stride)?)
        });
        let end = if len == 0 { Some(offset) } else { end.and_then(|last| last.checked_add(1)) };
        if end.is_none_or(|end| end > storage.len) {
            return Err(WeightsError::tensor(
                name,
                format_args!("a place inside its storage of {} numbers", storage.len),
                format_args!("shape {shape:?} with strides {strides:?} from {offset} on"),
            ));
        }
        let row_major = row_major(&extents);
        // Where there is one element or none in a direction, its stride is never taken.
        let plain = len == 0
            || extents.iter().zip(strides).zip(&row_major).all(|((&n, &a), &b)| n == 1 || a == b as u64);
        let whole = plain && len == storage.len;
        Ok(Self {
            dtype: storage.dtype,
            shape: extents,
            strides: (!plain).then(|| strides.iter().map(|&stride| stride as usize).collect()),
            at: storage.at + offset * storage.dtype.size() as u64,
            crc: storage.crc.filter(|_| whole),
        })
    }

    /// The kind of its numbers.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The lengths of the dimensions; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many numbers it has.
    pub fn n_values(&self) -> usize {
        self.shape.iter().product()
    }

    /// The numbers as 32-bit floats, row-major.
    pub(crate) fn read(&self, name: &str, source: &mut Source) -> Result<StateTensor, WeightsError> {
        let values = match &self.strides {
            None => self.read_plain(name, source)?,
            Some(strides) => self.gather(name, strides, source)?,
        };
        Ok(StateTensor::new(self.shape.clone(), values)?)
    }

    fn read_plain(&self, name: &str, source: &mut Source) -> Result<Vec<f32>, WeightsError> {
        let len = self.n_values();
        let size = self.dtype.size();
        source.check(self.at, (len * size) as u64, name)?;
        let mut crc = self.crc.map(|expected| (expected, crc32fast::Hasher::new()));
        let values = if self.dtype == Dtype::F32 && cfg!(target_endian = "little") {
            let mut values = vec![0.0f32; len];
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
            source.read(self.at, bytes, name)?;
            if let Some((_, hasher)) = &mut crc {
                hasher.update(bytes);
            }
            values
        } else {
            let mut values = Vec::with_capacity(len);
            let mut chunk = vec![0; CHUNK.min(len * size)];
            let mut at = self.at;
            let end = self.at + (len * size) as u64;
            while at < end {
                let n_bytes = (end - at).min(CHUNK as u64) as usize;
                source.read(at, &mut chunk[..n_bytes], name)?;
                self.dtype.widen(&chunk[..n_bytes], &mut values);
                if let Some((_, hasher)) = &mut crc {
                    hasher.update(&chunk[..n_bytes]);
                }
                at += n_bytes as u64;
            }
            values
        };
        match crc {
            Some((expected, hasher)) => check_crc(name, expected, hasher.finalize()).map(|()| values),
            None => Ok(values),
        }
    }

    /// Reads all between the first and the last number, and puts them in order.
    fn gather(&self, name: &str, strides: &[usize], source: &mut Source) -> Result<Vec<f32>, WeightsError> {
        let span: usize = self.shape.iter().zip(strides).map(|(&n, &stride)| (n - 1) * stride).sum();
        let size = self.dtype.size();
        let bytes = source.take(self.at, ((span + 1) * size) as u64, name)?;
        let mut all = Vec::with_capacity(span + 1);
        self.dtype.widen(&bytes, &mut all);
        drop(bytes);
        let mut index = vec![0; self.shape.len()];
        let mut place = 0;
        let mut values = Vec::with_capacity(self.n_values());
        loop {
            values.push(all[place]);
            let Some(axis) = (0..index.len()).rev().find(|&axis| index[axis] + 1 < self.shape[axis]) else {
                return Ok(values);
            };
            for inner in axis + 1..index.len() {
                place -= index[inner] * strides[inner];
                index[inner] = 0;
            }
            index[axis] += 1;
            place += strides[axis];
        }
    }
}

/// Compares a checksum. Zero is what PyTorch writes where it was told not to compute any.
pub(crate) fn check_crc(part: &str, expected: u32, got: u32) -> Result<(), WeightsError> {
    if expected == 0 || expected == got {
        return Ok(());
    }
    Err(WeightsError::malformed(part, format_args!("checksum {expected:08x}"), format_args!("{got:08x}")))
}

/// The shape as sizes in memory, and their product.
fn checked_shape(name: &str, shape: &[u64]) -> Result<(Vec<usize>, u64), WeightsError> {
    let bad = |expected: &str| WeightsError::tensor(name, expected, format_args!("shape {shape:?}"));
    if shape.len() > MAX_RANK {
        let expected = format!("at most {MAX_RANK} dimensions");
        return Err(WeightsError::tensor(name, expected, shape.len()));
    }
    // Extents beside a zero have to be sensible, too: products of parts must not overflow.
    let bound = shape.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent.max(1)));
    if bound.is_none_or(|bound| bound > 1 << 48) {
        return Err(bad("fewer than 2^48 numbers"));
    }
    let extents = shape.iter().map(|&extent| extent as usize).collect();
    Ok((extents, shape.iter().product()))
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(len: u64) -> Storage {
        Storage { dtype: Dtype::F32, len, at: 4, crc: None }
    }

    fn source(len: usize) -> Source {
        let values: Vec<f32> = (0..=len).map(|i| i as f32 - 1.0).collect();
        Source::memory(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    #[test]
    fn views_are_put_in_order() {
        // (2, 3) of a (3, 2) transposed, without its first row.
        let tensor = Tensor::view("t", storage(8), 2, &[2, 3], &[1, 2]).unwrap();
        let read = tensor.read("t", &mut source(8)).unwrap();
        assert_eq!((read.shape(), read.data()), (&[2, 3][..], &[2.0, 4.0, 6.0, 3.0, 5.0, 7.0][..]));
        // A stride that is never taken does not matter.
        let tensor = Tensor::view("t", storage(8), 1, &[1, 3, 1], &[99, 1, 77]).unwrap();
        assert_eq!(tensor.read("t", &mut source(8)).unwrap().data(), [1.0, 2.0, 3.0]);
        let empty = Tensor::view("t", storage(8), 8, &[0, 3], &[3, 1]).unwrap();
        assert!(empty.read("t", &mut source(8)).unwrap().data().is_empty());
    }

    #[test]
    fn views_that_leave_their_storage_are_refused() {
        for (offset, shape, strides) in [
            (0, &[9][..], &[1][..]),
            (1, &[8], &[1]),
            (0, &[2, 2], &[7, 2]),
            (u64::MAX, &[1], &[1]),
            (0, &[2], &[u64::MAX]),
            (0, &[1 << 60, 1 << 60], &[0, 0]),
            (0, &[0, u64::MAX], &[0, 0]),
            // More numbers than there are, all of them the same one.
            (0, &[100, 100], &[0, 0]),
            (0, &[2, 2], &[1]),
            (0, &[1; 9], &[1; 9]),
        ] {
            let view = Tensor::view("t", storage(8), offset, shape, strides);
            assert!(
                matches!(view, Err(WeightsError::Tensor { .. })),
                "{offset} {shape:?} {strides:?}: {view:?}"
            );
        }
    }
}
