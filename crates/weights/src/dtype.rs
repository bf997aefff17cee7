//! The kinds of numbers in files of weights, and how they become 32-bit floats.

use half::{bf16, f16};

/// A kind of number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// 64-bit floats, rounded to 32 bits when they are read.
    F64,
    /// 32-bit floats.
    F32,
    /// IEEE half precision, widened exactly.
    F16,
    /// The upper half of a 32-bit float, widened exactly.
    Bf16,
    /// 64-bit integers, exact up to 2^24 when they are read.
    I64,
    /// 32-bit integers, exact up to 2^24 when they are read.
    I32,
    /// 16-bit integers.
    I16,
    /// 8-bit integers.
    I8,
    /// Bytes.
    U8,
    /// Truth values, 0 and 1 when they are read.
    Bool,
}

/// Every kind with its names: in safetensors, and of PyTorch's storages.
const NAMES: [(Dtype, &str, &str); 10] = [
    (Dtype::F64, "F64", "DoubleStorage"),
    (Dtype::F32, "F32", "FloatStorage"),
    (Dtype::F16, "F16", "HalfStorage"),
    (Dtype::Bf16, "BF16", "BFloat16Storage"),
    (Dtype::I64, "I64", "LongStorage"),
    (Dtype::I32, "I32", "IntStorage"),
    (Dtype::I16, "I16", "ShortStorage"),
    (Dtype::I8, "I8", "CharStorage"),
    (Dtype::U8, "U8", "ByteStorage"),
    (Dtype::Bool, "BOOL", "BoolStorage"),
];

impl Dtype {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// What safetensors calls it.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(dtype, ..)| *dtype == self).map_or("", |(_, name, _)| name)
    }

    pub(crate) fn of_safetensors(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known, _)| *known == name).map(|(dtype, ..)| *dtype)
    }

    pub(crate) fn of_storage(name: &str) -> Option<Self> {
        NAMES.iter().find(|(.., known)| *known == name).map(|(dtype, ..)| *dtype)
    }

    /// Appends little-endian numbers as 32-bit floats; bytes of an incomplete last number are left out.
    pub(crate) fn widen(self, bytes: &[u8], to: &mut Vec<f32>) {
        fn each<const N: usize>(bytes: &[u8], to: &mut Vec<f32>, number: impl Fn([u8; N]) -> f32) {
            to.extend(bytes.as_chunks::<N>().0.iter().map(|&bytes| number(bytes)));
        }
        match self {
            Self::F64 => each(bytes, to, |b| f64::from_le_bytes(b) as f32),
            Self::F32 => each(bytes, to, f32::from_le_bytes),
            Self::F16 => each(bytes, to, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => each(bytes, to, |b| bf16::from_le_bytes(b).to_f32()),
            Self::I64 => each(bytes, to, |b| i64::from_le_bytes(b) as f32),
            Self::I32 => each(bytes, to, |b| i32::from_le_bytes(b) as f32),
            Self::I16 => each(bytes, to, |b| f32::from(i16::from_le_bytes(b))),
            Self::I8 => each(bytes, to, |b| f32::from(i8::from_le_bytes(b))),
            Self::U8 => each(bytes, to, |[b]| f32::from(b)),
            Self::Bool => each(bytes, to, |[b]| f32::from(u8::from(b != 0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_floats() {
        let widened = |dtype: Dtype, bytes: &[u8]| {
            let mut to = Vec::new();
            dtype.widen(bytes, &mut to);
            to
        };
        assert_eq!(widened(Dtype::F64, &(-0.1f64).to_le_bytes()), [-0.1f32]);
        // 1.5, the smallest subnormal, infinity.
        assert_eq!(widened(Dtype::F16, &[0, 0x3e, 1, 0, 0, 0x7c]), [1.5, 2f32.powi(-24), f32::INFINITY]);
        assert_eq!(widened(Dtype::Bf16, &[0xc0, 0x3f, 0x80, 0xff]), [1.5, f32::NEG_INFINITY]);
        assert_eq!(widened(Dtype::I64, &(-7i64).to_le_bytes()), [-7.0]);
        assert_eq!(widened(Dtype::I16, &[0xff, 0xff, 9]), [-1.0]);
        assert_eq!(widened(Dtype::Bool, &[0, 7]), [0.0, 1.0]);
        for (dtype, name, storage) in NAMES {
            assert_eq!((Dtype::of_safetensors(name), Dtype::of_storage(storage)), (Some(dtype), Some(dtype)));
        }
    }
}
