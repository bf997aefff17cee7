//! JPEG: tells a truncated file from a whole one, finds the size and the EXIF block, and decodes, at a reduced size on
//! request.
//!
//! Decoders that are lenient fill what is missing with grey, which would train a network on grey. So a file without its end is
//! shown only if nearly all of it is there.

use image::{DynamicImage, ImageFormat};
#[cfg(feature = "jpeg")]
use swav_augment::{Channels, Image};

use super::{DecodeConfig, plain};
use crate::SampleError;

/// The share of the rows that a JPEG without its end may lack, unless it must be whole.
const MAX_MISSING_SHARE: f64 = 0.1;

/// Why a byte string is not a whole JPEG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JpegFault {
    /// The data end before the end-of-image marker.
    #[error("the JPEG has no end-of-image marker in its {bytes} bytes")]
    Truncated {
        /// Bytes present.
        bytes: usize,
    },
    /// A segment has an impossible length or a marker stands where none may.
    #[error("broken JPEG segment at byte {offset}")]
    Corrupt {
        /// Where.
        offset: usize,
    },
}

/// Walks the segments of a JPEG (ITU-T T.81, annex B) up to its end-of-image marker and says where that ends.
///
/// Entropy-coded data are only searched for markers, so the cost is that of one pass over the bytes. Whatever
/// follows the end marker is not looked at: cameras append previews.
///
/// # Errors
/// [`JpegFault::Truncated`] if the data end first, [`JpegFault::Corrupt`] if the segments make no sense.
pub fn jpeg_end(data: &[u8]) -> Result<usize, JpegFault> {
    let truncated = JpegFault::Truncated { bytes: data.len() };
    if data.len() < 2 {
        return Err(truncated);
    }
    if data[..2] != [0xff, 0xd8] {
        return Err(JpegFault::Corrupt { offset: 0 });
    }
    let mut at = 2;
    loop {
        // A marker is 0xff, any number of fill bytes 0xff, then its code.
        if *data.get(at).ok_or(truncated)? != 0xff {
            // Lenient like every decoder: stray bytes between segments are passed over.
            at = next_marker(data, at).ok_or(truncated)?;
        }
        while *data.get(at).ok_or(truncated)? == 0xff {
            at += 1;
        }
        let code = data[at];
        at += 1;
        match code {
            0xd9 => return Ok(at),
            // Standalone: stuffed zero, TEM, restart, start of image.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            _ => {
                let length = data.get(at..at + 2).ok_or(truncated)?;
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                if length < 2 {
                    return Err(JpegFault::Corrupt { offset: at });
                }
                at += length;
                if code == 0xda {
                    at = next_marker(data, at).ok_or(truncated)?;
                }
            }
        }
    }
}

/// The first 0xff at or after `from` that starts a marker other than a restart; `None` if the data end first.
fn next_marker(data: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += data.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        match *data.get(at + 1)? {
            0x00 | 0xd0..=0xd7 => at += 2,
            // A fill byte: the next 0xff may start the marker.
            0xff => at += 1,
            _ => return Some(at),
        }
    }
}

/// The segments before the picture's data, as (marker, content), as far as they are whole.
fn segments(data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut at = 2;
    std::iter::from_fn(move || {
        loop {
            at += data.get(at..)?.iter().position(|&byte| byte == 0xff)?;
            at += data.get(at..)?.iter().position(|&byte| byte != 0xff)?;
            let code = data[at];
            at += 1;
            match code {
                0xd9 | 0xda => return None,
                0x00 | 0x01 | 0xd0..=0xd8 => {}
                _ => {
                    let length = usize::from(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?));
                    let content = data.get(at + 2..at + length)?;
                    at += length;
                    return Some((code, content));
                }
            }
        }
    })
}

/// Width and height, by the frame header.
pub(super) fn size(data: &[u8]) -> Option<(u32, u32)> {
    let is_frame = |code: u8| matches!(code, 0xc0..=0xcf) && !matches!(code, 0xc4 | 0xc8 | 0xcc);
    let (_, frame) = segments(data).find(|(code, _)| is_frame(*code))?;
    let side = |at: usize| Some(u32::from(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?)));
    Some((side(3)?, side(1)?))
}

/// The EXIF block, which is a TIFF directory.
pub(super) fn exif(data: &[u8]) -> Option<&[u8]> {
    segments(data)
        .filter(|(code, _)| *code == 0xe1)
        .find_map(|(_, content)| content.strip_prefix(b"Exif\0\0"))
}

/// Decodes a JPEG whose size has been checked.
pub(super) fn decode(bytes: &[u8], config: &DecodeConfig) -> Result<DynamicImage, SampleError> {
    let cut = match jpeg_end(bytes) {
        Ok(_) => None,
        Err(fault @ JpegFault::Corrupt { .. }) => return Err(SampleError::Corrupt(fault.into())),
        Err(fault) if config.strict => return Err(SampleError::Truncated(fault.into())),
        Err(fault) => Some(fault),
    };
    if cut.is_none()
        && let Some(image) = config.max_side.and_then(|max_side| reduced(bytes, max_side))
    {
        return Ok(image);
    }
    let image = plain(bytes, ImageFormat::Jpeg, config);
    let Some(fault) = cut else { return image };
    match image {
        Ok(image) if missing_rows(&image) as f64 <= MAX_MISSING_SHARE * f64::from(image.height()) => {
            Ok(image)
        }
        _ => Err(SampleError::Truncated(fault.into())),
    }
}

/// The rows at the bottom that the decoder had no data for, which it leaves in the middle grey of its transform.
fn missing_rows(image: &DynamicImage) -> usize {
    let row = image.as_bytes().len() / image.height().max(1) as usize;
    let is_missing = |row: &&[u8]| row.iter().all(|&value| value == 128);
    image.as_bytes().rchunks_exact(row.max(1)).take_while(is_missing).count()
}

/// Decodes at 1/8, 1/4 or 1/2 of the size, whichever is the smallest whose longer side is not below `max_side`: the inverse
/// transform of each block of 8 x 8 then takes its lowest frequencies only (as libjpeg does, and Pillow's `draft`). `None` where
/// that is of no use or not possible.
#[cfg(feature = "jpeg")]
fn reduced(bytes: &[u8], max_side: u32) -> Option<DynamicImage> {
    let (width, height) = size(bytes)?;
    if width.max(height) / 2 < max_side {
        return None;
    }
    let side = u16::try_from(max_side).ok()?;
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.read_info().ok()?;
    if decoder.info().map(|info| (u32::from(info.width), u32::from(info.height))) != Some((width, height)) {
        return None;
    }
    let (width, height) = decoder.scale(side, side).ok()?;
    let (width, height) = (u32::from(width), u32::from(height));
    let channels = match decoder.info()?.pixel_format {
        jpeg_decoder::PixelFormat::L8 => Channels::Grey,
        jpeg_decoder::PixelFormat::RGB24 => Channels::Rgb,
        _ => return None,
    };
    let data = decoder.decode().ok()?;
    Some(super::dynamic(Image::new(width, height, channels, data).ok()?))
}

#[cfg(not(feature = "jpeg"))]
fn reduced(_bytes: &[u8], _max_side: u32) -> Option<DynamicImage> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let image = image::RgbImage::from_fn(37, 29, |x, y| image::Rgb([(x * 7) as u8, (y * 9) as u8, 200]));
        let mut bytes = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(&image).unwrap();
        bytes
    }

    #[test]
    fn a_whole_file_ends_at_its_last_byte_whatever_follows() {
        let mut bytes = sample();
        let length = bytes.len();
        assert_eq!(jpeg_end(&bytes), Ok(length));
        bytes.extend_from_slice(&[1, 2, 3, 0xff, 0xd8]);
        assert_eq!(jpeg_end(&bytes), Ok(length));
    }

    #[test]
    fn every_proper_prefix_is_truncated() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert_eq!(jpeg_end(&bytes[..length]), Err(JpegFault::Truncated { bytes: length }));
        }
    }

    #[test]
    fn an_end_marker_inside_a_thumbnail_does_not_count() {
        let bytes = sample();
        let mut with_thumbnail = vec![0xff, 0xd8, 0xff, 0xe1];
        with_thumbnail.extend_from_slice(&(bytes.len() as u16 + 2).to_be_bytes());
        with_thumbnail.extend_from_slice(&bytes);
        with_thumbnail.extend_from_slice(&bytes[2..bytes.len() / 2]);
        assert!(matches!(jpeg_end(&with_thumbnail), Err(JpegFault::Truncated { .. })));
    }

    #[test]
    fn an_impossible_length_is_corrupt() {
        assert_eq!(jpeg_end(&[0xff, 0xd8, 0xff, 0xe0, 0, 1, 9, 9]), Err(JpegFault::Corrupt { offset: 4 }));
        assert_eq!(jpeg_end(b"GIF89a"), Err(JpegFault::Corrupt { offset: 0 }));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), start in any::<bool>()) {
            if start {
                bytes.splice(0..0, [0xff, 0xd8]);
            }
            if let Ok(end) = jpeg_end(&bytes) {
                prop_assert!(end <= bytes.len() && bytes[end - 1] == 0xd9);
            }
        }
    }
}
