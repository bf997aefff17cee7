//! Decoded images as they come in: bytes, row by row, one or three to a pixel.

use image::{DynamicImage, GrayImage, RgbImage};

use crate::AugmentError;

/// How many bytes a pixel has.
///
/// Greyscale images stay greyscale until the very end, where the value is repeated for the three output
/// channels. Every step gives the same numbers on the one channel as it would on three equal ones, so
/// this is only faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channels {
    /// One byte: the luminance.
    Grey,
    /// Three bytes: red, green, blue.
    Rgb,
}

impl Channels {
    /// Bytes in a pixel: 1 or 3.
    pub const fn count(self) -> usize {
        match self {
            Channels::Grey => 1,
            Channels::Rgb => 3,
        }
    }
}

/// A decoded image: (height, width, channels) bytes, row by row, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    channels: Channels,
    data: Vec<u8>,
}

/// A borrowed [`Image`]: the same layout in memory that belongs to someone else, an IDX file for example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageView<'a> {
    width: u32,
    height: u32,
    channels: Channels,
    data: &'a [u8],
}

impl Image {
    /// Takes the bytes of an image, (height, width, channels), row by row.
    ///
    /// # Errors
    /// [`AugmentError::EmptyImage`] if a side is 0, [`AugmentError::ByteCount`] if `data` has not
    /// `width * height * channels` bytes.
    pub fn new(width: u32, height: u32, channels: Channels, data: Vec<u8>) -> Result<Self, AugmentError> {
        ImageView::new(width, height, channels, &data)?;
        Ok(Self { width, height, channels, data })
    }

    /// Converts what a decoder gives to 8 bits: RGB, or greyscale where the file is greyscale.
    ///
    /// 16-bit values are scaled by 255/65535 and rounded, floating-point values by 255 and clamped,
    /// palettes are already resolved by the decoder. Alpha is dropped, not blended, as Pillow's
    /// `convert("RGB")` does.
    ///
    /// # Errors
    /// [`AugmentError::EmptyImage`] if a side is 0.
    ///
    /// ```
    /// use image::{DynamicImage, ImageBuffer, LumaA};
    /// use swav_augment::{Channels, Image};
    ///
    /// let sixteen_bit = ImageBuffer::from_pixel(2, 1, LumaA([65535u16, 0]));
    /// let image = Image::from_decoded(DynamicImage::ImageLumaA16(sixteen_bit)).unwrap();
    /// assert_eq!((image.channels(), image.data()), (Channels::Grey, &[255, 255][..]));
    /// ```
    pub fn from_decoded(decoded: DynamicImage) -> Result<Self, AugmentError> {
        match decoded {
            DynamicImage::ImageLuma8(_)
            | DynamicImage::ImageLumaA8(_)
            | DynamicImage::ImageLuma16(_)
            | DynamicImage::ImageLumaA16(_) => decoded.into_luma8().try_into(),
            colour => colour.into_rgb8().try_into(),
        }
    }

    /// The image, borrowed.
    pub fn view(&self) -> ImageView<'_> {
        ImageView { width: self.width, height: self.height, channels: self.channels, data: &self.data }
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Greyscale or colour.
    pub fn channels(&self) -> Channels {
        self.channels
    }

    /// The bytes, (height, width, channels).
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Gives the bytes back, for reuse.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// The same image with three channels.
    pub fn to_rgb(&self) -> RgbImage {
        let data = match self.channels {
            Channels::Rgb => self.data.clone(),
            Channels::Grey => self.data.iter().flat_map(|&value| [value; 3]).collect(),
        };
        RgbImage::from_raw(self.width, self.height, data).expect("the constructors check the length")
    }
}

impl TryFrom<RgbImage> for Image {
    type Error = AugmentError;

    fn try_from(image: RgbImage) -> Result<Self, AugmentError> {
        Self::new(image.width(), image.height(), Channels::Rgb, image.into_raw())
    }
}

impl TryFrom<GrayImage> for Image {
    type Error = AugmentError;

    fn try_from(image: GrayImage) -> Result<Self, AugmentError> {
        Self::new(image.width(), image.height(), Channels::Grey, image.into_raw())
    }
}

impl<'a> ImageView<'a> {
    /// Looks at bytes as an image of this size, (height, width, channels), row by row.
    ///
    /// # Errors
    /// As [`Image::new`].
    pub fn new(width: u32, height: u32, channels: Channels, data: &'a [u8]) -> Result<Self, AugmentError> {
        if width == 0 || height == 0 {
            return Err(AugmentError::EmptyImage { width, height });
        }
        let expected = u128::from(width) * u128::from(height) * channels.count() as u128;
        if expected != data.len() as u128 {
            return Err(AugmentError::ByteCount {
                width,
                height,
                channels: channels.count(),
                expected: u64::try_from(expected).unwrap_or(u64::MAX),
                got: data.len(),
            });
        }
        Ok(Self { width, height, channels, data })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Greyscale or colour.
    pub fn channels(&self) -> Channels {
        self.channels
    }

    /// The bytes, (height, width, channels).
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// An owned copy.
    pub fn to_image(&self) -> Image {
        Image { width: self.width, height: self.height, channels: self.channels, data: self.data.to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use image::{ImageBuffer, Rgb, Rgba};

    use super::*;

    #[test]
    fn refuses_sizes_that_do_not_fit() {
        assert_eq!(
            Image::new(0, 3, Channels::Rgb, vec![]).unwrap_err(),
            AugmentError::EmptyImage { width: 0, height: 3 }
        );
        let error = Image::new(2, 3, Channels::Rgb, vec![0; 17]).unwrap_err();
        assert!(matches!(error, AugmentError::ByteCount { expected: 18, got: 17, .. }));
        let error = ImageView::new(u32::MAX, u32::MAX, Channels::Rgb, &[1]).unwrap_err();
        assert!(matches!(error, AugmentError::ByteCount { got: 1, .. }));
    }

    #[test]
    fn drops_alpha_and_narrows_16_bit() {
        let rgba = DynamicImage::ImageRgba8(ImageBuffer::from_pixel(1, 1, Rgba([10, 20, 30, 0])));
        assert_eq!(Image::from_decoded(rgba).unwrap().data(), [10, 20, 30]);
        let wide = DynamicImage::ImageRgb16(ImageBuffer::from_pixel(1, 1, Rgb([0, 257 * 7, 65535])));
        assert_eq!(Image::from_decoded(wide).unwrap().data(), [0, 7, 255]);
    }

    #[test]
    fn grey_images_become_three_equal_channels() {
        let image = Image::new(2, 1, Channels::Grey, vec![3, 9]).unwrap();
        assert_eq!(image.to_rgb().into_raw(), [3, 3, 3, 9, 9, 9]);
    }
}
