//! Encoded bytes to 8-bit RGB or grey: limits first, then the format's decoder, then one documented conversion.

use std::{
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};
use swav_augment::Image;

use crate::{SampleError, jpeg::JpegFault, jpeg::jpeg_end};

/// How encoded images become 8-bit RGB or grey.
///
/// - Grey stays grey (the augmentation repeats it for three channels); palettes are looked up; 16-bit and floating-point channels are scaled to
///   8 bits with rounding. (The reference's library clips 16-bit grey instead, which leaves it white.)
/// - Transparency is composited over [`background`](Self::background). (The reference drops the alpha channel,
///   which shows whatever colour happens to be stored below transparent pixels.)
/// - The orientation stored in EXIF is not applied, as in the reference, unless
///   [`apply_orientation`](Self::apply_orientation) is set.
/// - Of animations the first frame counts.
/// - A JPEG without its end is an error, although its decoder would fill the rest with grey.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(default, deny_unknown_fields))]
pub struct DecodeConfig {
    /// Images with more pixels are refused before anything is allocated for them. Default: 100 million, which is
    /// 300 MB of RGB.
    pub max_pixels: u64,
    /// The colour behind transparent pixels. Default: white.
    pub background: [u8; 3],
    /// Turns and mirrors photos as their EXIF data say. Default: false.
    pub apply_orientation: bool,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        Self { max_pixels: 100_000_000, background: [255; 3], apply_orientation: false }
    }
}

/// Decodes one image from the bytes of its file.
///
/// ```
/// use swav_data::{DecodeConfig, decode};
/// let image = decode(b"P3 2 1 255  255 0 0  0 0 255", &DecodeConfig::default())?;
/// assert_eq!((image.width(), image.height(), image.data()), (2, 1, &[255, 0, 0, 0, 0, 255][..]));
/// # Ok::<(), swav_data::SampleError>(())
/// ```
///
/// # Errors
/// [`SampleError::TooLarge`], [`SampleError::NoPixels`], [`SampleError::Truncated`],
/// [`SampleError::Unsupported`], [`SampleError::Corrupt`]; [`SampleError::DecoderPanic`] if the decoder panics
/// (its message then also appears on standard error).
pub fn decode(bytes: &[u8], config: &DecodeConfig) -> Result<Image, SampleError> {
    // Decoders are third-party parsers of hostile bytes; one of them panicking must cost one image, not the run.
    catch_unwind(AssertUnwindSafe(|| decode_checked(bytes, config))).unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "no message".to_owned());
        Err(SampleError::DecoderPanic(message))
    })
}

fn decode_checked(bytes: &[u8], config: &DecodeConfig) -> Result<Image, SampleError> {
    if bytes.is_empty() {
        return Err(SampleError::Truncated("the file is empty".into()));
    }
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let format = reader.format().ok_or_else(|| {
        let start = &bytes[..bytes.len().min(512)];
        let why = match crate::kinds::of_bytes(start) {
            Some(kind) => format!("this is a {} file; {}", kind.name, kind.advice),
            None => {
                format!("no known image format starts with the bytes {:02x?}", &start[..start.len().min(8)])
            }
        };
        SampleError::Unsupported(why.into())
    })?;
    if format == ImageFormat::Jpeg {
        jpeg_end(bytes).map_err(|fault| match fault {
            JpegFault::Truncated { .. } => SampleError::Truncated(fault.into()),
            JpegFault::Corrupt { .. } => SampleError::Corrupt(fault.into()),
        })?;
    }
    // Up to 16 bytes a pixel (RGBA in f32) and as much again for the decoder's own tables.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(config.max_pixels.saturating_mul(32).saturating_add(1 << 24));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(from_image_error)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(SampleError::NoPixels { width, height });
    }
    if u64::from(width) * u64::from(height) > config.max_pixels {
        return Err(SampleError::TooLarge { width, height, max_pixels: config.max_pixels });
    }
    let orientation = if config.apply_orientation { decoder.orientation().ok() } else { None };
    let mut image = DynamicImage::from_decoder(decoder).map_err(from_image_error)?;
    if let Some(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    let image = if image.color().has_alpha() {
        composite(image, config.background).try_into()
    } else {
        Image::from_decoded(image)
    };
    image.map_err(|error| SampleError::Corrupt(error.into()))
}

/// Composites transparency over `background`, in 8 bits.
fn composite(image: DynamicImage, background: [u8; 3]) -> RgbImage {
    let rgba = image.into_rgba8();
    let (width, height) = rgba.dimensions();
    let mut rgb = RgbImage::new(width, height);
    for (to, from) in rgb.pixels_mut().zip(rgba.pixels()) {
        let alpha = u32::from(from[3]);
        for channel in 0..3 {
            let sum = u32::from(from[channel]) * alpha + u32::from(background[channel]) * (255 - alpha);
            to[channel] = ((sum + 127) / 255) as u8;
        }
    }
    rgb
}

fn from_image_error(error: ImageError) -> SampleError {
    match error {
        ImageError::IoError(error) => error.into(),
        ImageError::Unsupported(error) => SampleError::Unsupported(error.into()),
        // Decoders wrap the end of their input in their own error types.
        error if ends_early(&error) => SampleError::Truncated(error.into()),
        error => SampleError::Corrupt(error.into()),
    }
}

/// Whether an error, or what caused it, is the end of the input.
fn ends_early(error: &ImageError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof) {
            return true;
        }
        cause = error.source();
    }
    false
}
