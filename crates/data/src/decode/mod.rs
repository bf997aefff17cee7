//! Encoded bytes to 8-bit RGB or grey: limits first, then the format's decoder, then one documented conversion.

mod container;
mod jpeg;
#[cfg(feature = "png")]
mod png;
mod tags;
#[cfg(feature = "tiff")]
mod tiff;
mod webp;

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};
use swav_augment::{Canvas, Channels, Image, ImageView, Region, Resizer};

pub use self::jpeg::{JpegFault, jpeg_end};
use crate::{SampleError, error::contained};

/// How encoded images become 8-bit RGB or grey.
///
/// - Grey stays grey (the augmentation repeats it for three channels); palettes are looked up; 16-bit and floating-point channels are scaled to
///   8 bits with rounding. (The reference's library clips 16-bit grey instead, which leaves it white.) Grey TIFF of
///   32 bits and more does not say which value is white: it is the smallest of 1 (for floats), 255 and 65535 that no value
///   exceeds, or else the largest value, with the smallest as black.
/// - Transparency is composited over [`background`](Self::background). (The reference drops the alpha channel,
///   which shows whatever colour happens to be stored below transparent pixels.)
/// - Photos are turned as the camera says that it was held ([`orientation`](Self::orientation)).
/// - Of animations the first frame counts.
/// - Files that lack their last bytes are shown where the picture is (nearly) whole: PNG without what follows its last
///   row, JPEG without its end mark and at most a tenth of its rows. [`strict`](Self::strict) refuses them.
///
/// Decoding takes memory in proportion to the pixels, and as much as the file itself: at most 3 bytes a pixel for PNG (11 if it is
/// interlaced) and baseline JPEG, 12 for progressive JPEG, 9 for GIF, 14 for WebP, 20 for TIFF of 16 bits with transparency.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(default, deny_unknown_fields))]
pub struct DecodeConfig {
    /// Images with more pixels are refused before anything is allocated for them. Default: 100 million, which is
    /// 300 MB of RGB.
    pub max_pixels: u64,
    /// Images whose longer side is above this are reduced to it, in pixels, at least 1, while they are decoded; what is kept in
    /// memory is the reduced image. JPEG is decoded at 1/2, 1/4 or 1/8 of its size first, which takes less memory. Crops
    /// should still find their pixels: for crops of 224 that take 14% of an image or more, 600 is enough. On photos of 1 to 4 megapixels,
    /// 600 decodes 1.5 times as many images a second (2.2 times on 12 megapixels), and 1 GiB of cache holds 1500 of them instead of 115. Default: none.
    pub max_side: Option<u32>,
    /// The colour behind transparent pixels. Default: white.
    pub background: [u8; 3],
    /// Turns and mirrors photos as their EXIF data say. Default: true. The SwAV reference does not, nor do its recipes here.
    #[cfg_attr(feature = "serde", serde(alias = "apply_orientation"))]
    pub orientation: bool,
    /// Refuses files that are not whole, even where the picture is. Default: false.
    pub strict: bool,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        Self {
            max_pixels: 100_000_000,
            max_side: None,
            background: [255; 3],
            orientation: true,
            strict: false,
        }
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
    contained(|| decode_checked(bytes, config))
}

fn decode_checked(bytes: &[u8], config: &DecodeConfig) -> Result<Image, SampleError> {
    if bytes.is_empty() {
        return Err(SampleError::Truncated("the file is empty".into()));
    }
    let format = container::format_of(bytes)?;
    let size = container::size_of(bytes, format);
    if let Some((width, height)) = size {
        check_size(width, height, config)?;
    }
    let image = match (format, size) {
        #[cfg(feature = "png")]
        (ImageFormat::Png, _) => dynamic(png::decode(bytes, config)?),
        #[cfg(feature = "tiff")]
        (ImageFormat::Tiff, Some(size)) => tiff::decode(bytes, size)?,
        (ImageFormat::Jpeg, _) => jpeg::decode(bytes, config)?,
        _ => plain(bytes, format, config)?,
    };
    let mut image = reduced(eight_bits(image, config.background), config.max_side);
    if config.orientation
        && let Some(orientation) = container::orientation_of(bytes, format)
    {
        image.apply_orientation(orientation);
    }
    Image::from_decoded(image).map_err(|error| SampleError::Corrupt(error.into()))
}

/// The width and height that the first bytes of a file tell, if they do.
///
/// # Errors
/// [`SampleError::Unsupported`] for what is no image.
pub(crate) fn size_by_header(bytes: &[u8]) -> Result<Option<(u32, u32)>, SampleError> {
    container::format_of(bytes).map(|format| container::size_of(bytes, format))
}

/// Refuses sizes without pixels and above the limit.
fn check_size(width: u32, height: u32, config: &DecodeConfig) -> Result<(), SampleError> {
    if width == 0 || height == 0 {
        return Err(SampleError::NoPixels { width, height });
    }
    if u64::from(width) * u64::from(height) > config.max_pixels {
        return Err(SampleError::TooLarge { width, height, max_pixels: config.max_pixels });
    }
    Ok(())
}

/// Any format as the image library decodes it.
fn plain(bytes: &[u8], format: ImageFormat, config: &DecodeConfig) -> Result<DynamicImage, SampleError> {
    if format == ImageFormat::WebP {
        webp::check_frames(bytes, config.max_pixels)?;
    }
    let reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut decoder = reader.into_decoder().map_err(from_image_error)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, config)?;
    decoder.set_limits(memory_limits((width, height), 8, bytes.len())).map_err(from_image_error)?;
    DynamicImage::from_decoder(decoder).map_err(from_image_error)
}

/// What a decoder may allocate for an image of this size.
fn memory_limits((width, height): (u32, u32), bytes_per_pixel: u64, file_bytes: usize) -> Limits {
    let pixels = u64::from(width) * u64::from(height);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(pixels.saturating_mul(bytes_per_pixel) + file_bytes as u64 + (1 << 20));
    limits
}

/// Pixels as the image library's type, without a copy.
fn dynamic(image: Image) -> DynamicImage {
    use image::GrayImage;

    let (width, height, channels) = (image.width(), image.height(), image.channels());
    let data = image.into_data();
    let made = match channels {
        Channels::Grey => GrayImage::from_raw(width, height, data).map(DynamicImage::from),
        Channels::Rgb => RgbImage::from_raw(width, height, data).map(DynamicImage::from),
    };
    made.expect("an image has as many bytes as its size says")
}

/// 8 bits, and no transparency.
fn eight_bits(image: DynamicImage, background: [u8; 3]) -> DynamicImage {
    if image.color().has_alpha() {
        return composite(image, background).into();
    }
    match image {
        DynamicImage::ImageLuma8(_) | DynamicImage::ImageRgb8(_) => image,
        DynamicImage::ImageLuma16(_) => image.into_luma8().into(),
        colour => colour.into_rgb8().into(),
    }
}

/// The image with a longer side of at most `max_side`.
fn reduced(image: DynamicImage, max_side: Option<u32>) -> DynamicImage {
    let (width, height) = (image.width(), image.height());
    let long = width.max(height);
    match max_side {
        Some(max_side) if long > max_side => {
            let side = |side: u32| {
                let exact = f64::from(side) * f64::from(max_side) / f64::from(long);
                (exact.round() as u32).clamp(1, max_side)
            };
            resized(&image, side(width), side(height)).unwrap_or(image)
        }
        _ => image,
    }
}

/// An 8-bit image at another size, through the filter that crops are made with.
fn resized(image: &DynamicImage, width: u32, height: u32) -> Option<DynamicImage> {
    let channels = if image.color().has_color() { Channels::Rgb } else { Channels::Grey };
    let view = ImageView::new(image.width(), image.height(), channels, image.as_bytes()).ok()?;
    let whole = Region { left: 0, top: 0, width: image.width() as usize, height: image.height() as usize };
    let mut canvas = Canvas::default();
    Resizer::default().resize(view, whole, width as usize, height as usize, &mut canvas);
    let data = match channels {
        Channels::Grey => canvas.planes().to_vec(),
        Channels::Rgb => canvas.to_rgb_bytes(),
    };
    Some(dynamic(Image::new(width, height, channels, data).ok()?))
}

/// Composites transparency over `background`, in 8 bits and in place.
fn composite(image: DynamicImage, background: [u8; 3]) -> RgbImage {
    let rgba = image.into_rgba8();
    let (width, height) = rgba.dimensions();
    let mut data = rgba.into_raw();
    let n_pixels = data.len() / 4;
    for pixel in 0..n_pixels {
        let from = 4 * pixel;
        let rgb = over([data[from], data[from + 1], data[from + 2]], data[from + 3], background);
        data[3 * pixel..3 * pixel + 3].copy_from_slice(&rgb);
    }
    data.truncate(3 * n_pixels);
    data.shrink_to_fit();
    RgbImage::from_raw(width, height, data).expect("three bytes for each pixel")
}

/// One pixel of that opacity over the background.
fn over(rgb: [u8; 3], alpha: u8, background: [u8; 3]) -> [u8; 3] {
    let alpha = u32::from(alpha);
    let blend = |front: u8, back: u8| {
        ((u32::from(front) * alpha + u32::from(back) * (255 - alpha) + 127) / 255) as u8
    };
    [blend(rgb[0], background[0]), blend(rgb[1], background[1]), blend(rgb[2], background[2])]
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
fn ends_early(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof) {
            return true;
        }
        cause = error.source();
    }
    false
}
