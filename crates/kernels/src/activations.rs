//! Feature maps as they lie in memory.

use crate::Error;

/// How feature maps (and their gradients) are stored. Arithmetic, weights and statistics are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16, rounded to nearest even: half the memory, 8 bits of mantissa.
    Mixed,
}

/// A batch of feature maps, NHWC, contiguous.
///
/// `words` is a plain `Vec<f32>` in both precisions, so that a buffer can move in and out of tensor
/// libraries without a copy. In [`Precision::Mixed`] each word holds the bits of two consecutive bf16
/// values; the last one is half used when the count is odd.
#[derive(Debug, Clone)]
pub struct Activations {
    /// `[images, height, width, channels]`.
    pub shape: [usize; 4],
    /// How `words` is to be read.
    pub precision: Precision,
    /// The storage: `shape.iter().product()` values in f32, half as many words (rounded up) in mixed.
    pub words: Vec<f32>,
}

/// Equal shapes, storage and bits: the words of mixed precision are no numbers, and in f32 a NaN equals itself and 0 differs
/// from -0.
impl PartialEq for Activations {
    fn eq(&self, other: &Self) -> bool {
        (self.shape, self.precision) == (other.shape, other.precision)
            && self.words.len() == other.words.len()
            && self.words.iter().zip(&other.words).all(|(a, b)| a.to_bits() == b.to_bits())
    }
}

impl Eq for Activations {}

impl Activations {
    /// Wraps f32 values (NHWC) without copying.
    ///
    /// # Errors
    /// [`Error::Shape`] if `values` does not have `shape.iter().product()` elements.
    pub fn from_f32(shape: [usize; 4], values: Vec<f32>) -> Result<Self, Error> {
        Self::from_words(shape, Precision::F32, values)
    }

    /// Wraps storage words without copying.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of words does not fit the shape.
    pub fn from_words(shape: [usize; 4], precision: Precision, words: Vec<f32>) -> Result<Self, Error> {
        let expected = words_for(shape, precision);
        if words.len() != expected {
            return Err(Error::shape(format!("words of activations {shape:?}"), expected, words.len()));
        }
        Ok(Self { shape, precision, words })
    }

    /// The number of values: images × height × width × channels.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no value at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of pixels: images × height × width.
    pub fn pixels(&self) -> usize {
        self.shape[0] * self.shape[1] * self.shape[2]
    }

    /// A copy of the values in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.data() {
            Data::F32(values) => values.to_vec(),
            Data::Bf16(values) => values.iter().map(|&bits| bf16_to_f32(bits)).collect(),
        }
    }

    /// Checks what a caller could have built by hand through the public fields.
    pub(crate) fn check(&self, what: &str) -> Result<(), Error> {
        let expected = words_for(self.shape, self.precision);
        if self.words.len() != expected {
            return Err(Error::shape(format!("words of {what}"), expected, self.words.len()));
        }
        Ok(())
    }

    /// The values, by storage type.
    pub(crate) fn data(&self) -> Data<'_> {
        match self.precision {
            Precision::F32 => {
                assert_eq!(self.words.len(), self.len(), "words of activations");
                Data::F32(&self.words)
            }
            Precision::Mixed => {
                assert!(self.words.len() * 2 >= self.len(), "words of activations");
                // SAFETY: `words` holds at least ceil(len / 2) f32, that is 2 * ceil(len / 2) >= len u16 of
                // initialised memory; u16 needs less alignment than f32 and any bit pattern is a valid u16.
                Data::Bf16(unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len()) })
            }
        }
    }

    /// The values, by storage type, to write.
    pub(crate) fn data_mut(&mut self) -> DataMut<'_> {
        match self.precision {
            Precision::F32 => {
                assert_eq!(self.words.len(), self.len(), "words of activations");
                DataMut::F32(&mut self.words)
            }
            Precision::Mixed => {
                let len = self.len();
                assert!(self.words.len() * 2 >= len, "words of activations");
                // SAFETY: the words hold at least `len` u16, which need less alignment than f32, and any bits are valid u16; the
                // borrow of `self` is exclusive.
                DataMut::Bf16(unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), len) })
            }
        }
    }
}

/// Values to read, by storage type.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Data<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16 bits.
    Bf16(&'a [u16]),
}

/// Values to write, by storage type.
#[derive(Debug)]
pub(crate) enum DataMut<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// bfloat16 bits.
    Bf16(&'a mut [u16]),
}

/// Storage words for a shape.
pub(crate) fn words_for(shape: [usize; 4], precision: Precision) -> usize {
    let len: usize = shape.iter().product();
    match precision {
        Precision::F32 => len,
        Precision::Mixed => len.div_ceil(2),
    }
}

/// Widens bfloat16 bits; exact.
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_counts_round_words_up_in_mixed() {
        assert_eq!(words_for([1, 3, 1, 1], Precision::Mixed), 2);
        assert!(Activations::from_words([1, 3, 1, 1], Precision::Mixed, vec![0.0; 2]).is_ok());
        assert!(matches!(
            Activations::from_words([1, 3, 1, 1], Precision::F32, vec![0.0; 2]),
            Err(Error::Shape { .. })
        ));
    }

    #[test]
    fn mixed_reads_back_what_was_stored() {
        let word = f32::from_bits(0x4000_3f80); // low half 1.0, high half 2.0
        let a = Activations::from_words([1, 1, 1, 2], Precision::Mixed, vec![word]).unwrap();
        let expected = if cfg!(target_endian = "little") { vec![1.0, 2.0] } else { vec![2.0, 1.0] };
        assert_eq!(a.to_f32(), expected);
    }

    #[test]
    fn words_are_compared_by_their_bits() {
        let of = |bits: u32| {
            Activations::from_words([1, 1, 1, 2], Precision::Mixed, vec![f32::from_bits(bits)]).unwrap()
        };
        // As f32 the first is a NaN, and the others are 0 and -0.
        for bits in [0x7fc0_3f80, 0, 0x8000_0000] {
            assert_eq!(of(bits), of(bits));
        }
        assert_ne!(of(0), of(0x8000_0000));
    }
}
