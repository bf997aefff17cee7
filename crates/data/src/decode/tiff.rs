//! TIFF beyond what the general decoder reads: palettes, YCbCr (JPEG inside TIFF), and grey of 2, 4, 32 or 64 bits, whole
//! numbers or floats. The size and shape of what is inside is checked first.

use std::{borrow::Cow, io::Cursor};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use swav_augment::{Channels, Image};
use tiff::{
    ColorType, TiffError,
    decoder::{Decoder, DecodingResult, Limits},
};

use super::{
    ends_early, from_image_error, jpeg, memory_limits,
    tags::{Tag, Tags, storage},
};
use crate::SampleError;

const BLACK_IS_ZERO: u64 = 1;
const PALETTE: u64 = 3;
const YCBCR: u64 = 6;
const JPEG: u64 = 7;
const UNSIGNED: u64 = 1;

/// Decodes a TIFF or BigTIFF whose size has been checked.
pub(super) fn decode(bytes: &[u8], size: (u32, u32)) -> Result<DynamicImage, SampleError> {
    let tags = Tags::first(bytes).ok_or_else(|| corrupt("there is no directory"))?;
    check_parts(bytes, &tags, size)?;
    let bits = tags.one(storage::BITS).unwrap_or(1);
    let is_unsigned = tags.one(storage::SAMPLE_FORMAT).unwrap_or(UNSIGNED) == UNSIGNED;
    let image = match tags.one(storage::PHOTOMETRIC) {
        Some(PALETTE) => palette(bytes, &tags, size, bits)?,
        Some(YCBCR) => ycbcr(bytes, size)?,
        Some(0 | BLACK_IS_ZERO) if !is_unsigned || !matches!(bits, 1 | 8 | 16) => grey(bytes, size)?,
        _ => {
            let mut reader = ImageReader::with_format(Cursor::new(bytes), ImageFormat::Tiff);
            reader.limits(memory_limits(size, 16, bytes.len()));
            let decoder = reader.into_decoder().map_err(from_image_error)?;
            if decoder.dimensions() != size {
                return Err(corrupt("it has its size twice"));
            }
            return DynamicImage::from_decoder(decoder).map_err(from_image_error);
        }
    };
    Ok(super::dynamic(image))
}

/// Tiles much larger than the picture, and JPEGs inside that are larger than their tile, would take memory for nothing.
fn check_parts(bytes: &[u8], tags: &Tags<'_>, (width, height): (u32, u32)) -> Result<(), SampleError> {
    let (width, height) = (u64::from(width), u64::from(height));
    let tiled = tags.find(storage::TILE_WIDTH).is_some();
    let (across, down) = if tiled {
        (tags.one(storage::TILE_WIDTH).unwrap_or(0), tags.one(storage::TILE_HEIGHT).unwrap_or(0))
    } else {
        (width, tags.one(storage::ROWS_PER_STRIP).unwrap_or(height).min(height))
    };
    let area = |across: u64, down: u64| across.saturating_mul(down);
    if area(across, down) > area(width, height).saturating_mul(4).max(1 << 20) {
        return Err(corrupt(format!("tiles of {across}x{down} in a picture of {width}x{height}")));
    }
    if tags.one(storage::COMPRESSION) != Some(JPEG) {
        return Ok(());
    }
    let ids = if tiled {
        (storage::TILE_OFFSETS, storage::TILE_BYTES)
    } else {
        (storage::STRIP_OFFSETS, storage::STRIP_BYTES)
    };
    let (Some(offsets), Some(lengths)) = (tags.find(ids.0), tags.find(ids.1)) else { return Ok(()) };
    for part in 0..offsets.count.min(lengths.count) {
        let range = |tag: Tag| tags.value(tag, part).and_then(|number| usize::try_from(number).ok());
        let (Some(from), Some(length)) = (range(offsets), range(lengths)) else { continue };
        let data = bytes.get(from..from.saturating_add(length).min(bytes.len())).unwrap_or_default();
        let Some((wide, high)) = jpeg::size(data) else { continue };
        if area(wide.into(), high.into()) > area(across + 16, down + 16) {
            return Err(corrupt(format!("a JPEG of {wide}x{high} in a part of {across}x{down}")));
        }
    }
    Ok(())
}

/// The samples as they are in the file, and what they are.
fn samples(bytes: &[u8], (width, height): (u32, u32)) -> Result<(DecodingResult, ColorType), SampleError> {
    let pixels = width as usize * height as usize;
    let mut limits = Limits::default();
    limits.decoding_buffer_size = pixels.saturating_mul(16) + (1 << 16);
    limits.intermediate_buffer_size = pixels.saturating_mul(64) + bytes.len() + (1 << 22);
    limits.ifd_value_size = bytes.len() + (1 << 16);
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(from_tiff)?.with_limits(limits);
    let colour = decoder.colortype().map_err(from_tiff)?;
    let mut buffer = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut buffer).map_err(from_tiff)?;
    if layout.planes > 1 {
        return Err(SampleError::Unsupported(format!("{colour:?} in separate planes").into()));
    }
    Ok((buffer, colour))
}

/// A picture of indices: read as if they were grey, then looked up.
fn palette(bytes: &[u8], tags: &Tags<'_>, size: (u32, u32), bits: u64) -> Result<Image, SampleError> {
    let kind = tags.find(storage::PHOTOMETRIC).ok_or_else(|| corrupt("no colour space"))?;
    let map = tags.find(storage::COLOUR_MAP).ok_or_else(|| corrupt("a palette without its colours"))?;
    let n_colours = match bits {
        1 | 2 | 4 | 8 => 1_u64 << bits,
        other => return Err(SampleError::Unsupported(format!("a palette of {other} bits").into())),
    };
    let mut patched = Cow::Borrowed(bytes);
    let low = if tags.is_big_endian() { kind.at + 1 } else { kind.at };
    patched.to_mut()[low] = BLACK_IS_ZERO as u8;
    let colours: Vec<u16> = (0..3 * n_colours)
        .map(|at| tags.value(map, at).and_then(|value| u16::try_from(value).ok()).unwrap_or(0))
        .collect();
    // Some writers give 8 bits where 16 belong.
    let shift = if colours.iter().all(|&value| value < 256) { 0 } else { 8 };
    let (buffer, _) = samples(&patched, size)?;
    let DecodingResult::U8(packed) = buffer else { return Err(corrupt("indices of more than 8 bits")) };
    let n = n_colours as usize;
    let indices = unpacked(&packed, size, bits as usize)?;
    let look_up = |index: u8| [0, n, 2 * n].map(|plane| (colours[plane + usize::from(index)] >> shift) as u8);
    made(size, Channels::Rgb, indices.into_iter().flat_map(look_up).collect())
}

/// Values of 1, 2, 4 or 8 bits, rows of which begin at whole bytes, each in a byte of its own.
fn unpacked(packed: &[u8], (width, height): (u32, u32), bits: usize) -> Result<Vec<u8>, SampleError> {
    let (width, height) = (width as usize, height as usize);
    let row_bytes = (width * bits).div_ceil(8);
    if packed.len() < row_bytes * height {
        return Err(corrupt("rows are missing"));
    }
    let mask = 0xff_u8 >> (8 - bits);
    let rows = packed.chunks_exact(row_bytes).take(height);
    Ok(rows
        .flat_map(|row| (0..width).map(move |x| (row[x * bits / 8] >> (8 - bits - x * bits % 8)) & mask))
        .collect())
}

/// YCbCr of full range (ITU-R BT.601, as JFIF has it).
fn ycbcr(bytes: &[u8], size: (u32, u32)) -> Result<Image, SampleError> {
    let (buffer, colour) = samples(bytes, size)?;
    let (DecodingResult::U8(mut data), ColorType::YCbCr(8)) = (buffer, colour) else {
        return Err(SampleError::Unsupported(format!("{colour:?}").into()));
    };
    for pixel in data.chunks_exact_mut(3) {
        let (y, cb, cr) = (f32::from(pixel[0]), f32::from(pixel[1]) - 128.0, f32::from(pixel[2]) - 128.0);
        let rgb = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
        pixel.copy_from_slice(&rgb.map(|value| value.round().clamp(0.0, 255.0) as u8));
    }
    made(size, Channels::Rgb, data)
}

/// Grey of unusual depth.
fn grey(bytes: &[u8], size: (u32, u32)) -> Result<Image, SampleError> {
    let (buffer, colour) = samples(bytes, size)?;
    let ColorType::Gray(bits) = colour else {
        return Err(SampleError::Unsupported(format!("{colour:?}").into()));
    };
    let data = match buffer {
        DecodingResult::U8(packed) if bits < 8 => {
            let white = (1_u16 << bits) - 1;
            let mut values = unpacked(&packed, size, usize::from(bits))?;
            values.iter_mut().for_each(|value| *value = (u16::from(*value) * 255 / white) as u8);
            values
        }
        DecodingResult::U8(values) => values,
        DecodingResult::U16(values) => eight_bits(&values, false, f64::from),
        DecodingResult::U32(values) => eight_bits(&values, false, f64::from),
        DecodingResult::U64(values) => eight_bits(&values, false, |value| value as f64),
        DecodingResult::I8(values) => eight_bits(&values, false, f64::from),
        DecodingResult::I16(values) => eight_bits(&values, false, f64::from),
        DecodingResult::I32(values) => eight_bits(&values, false, f64::from),
        DecodingResult::I64(values) => eight_bits(&values, false, |value| value as f64),
        DecodingResult::F16(values) => eight_bits(&values, true, |value| f64::from(value.to_f32())),
        DecodingResult::F32(values) => eight_bits(&values, true, f64::from),
        DecodingResult::F64(values) => eight_bits(&values, true, std::convert::identity),
    };
    made(size, Channels::Grey, data)
}

/// Grey values of wide types, in 8 bits. Their file does not say which value is white, so the values themselves do: it is the
/// smallest of 1 (for floats), 255 and 65535 that none of them exceeds. Where some are negative or above that, the smallest is
/// black and the largest white. What is no number is black.
fn eight_bits<T: Copy>(values: &[T], is_float: bool, wide: impl Fn(T) -> f64) -> Vec<u8> {
    let finite = values.iter().map(|&value| wide(value)).filter(|value| value.is_finite());
    let (low, high) = finite
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let whites = if is_float { &[1.0, 255.0, 65535.0][..] } else { &[255.0, 65535.0] };
    let (black, white) = match whites.iter().find(|&&white| high <= white) {
        Some(&white) if low >= 0.0 => (0.0, white),
        _ => (low, high),
    };
    let scale = if white > black { 255.0 / (white - black) } else { 0.0 };
    let map = |value: f64| ((value - black) * scale).round().clamp(0.0, 255.0) as u8;
    values.iter().map(|&value| map(wide(value))).collect()
}

fn made((width, height): (u32, u32), channels: Channels, mut data: Vec<u8>) -> Result<Image, SampleError> {
    data.truncate(width as usize * height as usize * channels.count());
    Image::new(width, height, channels, data).map_err(|error| SampleError::Corrupt(error.into()))
}

fn corrupt(reason: impl Into<crate::Cause>) -> SampleError {
    SampleError::Corrupt(reason.into())
}

fn from_tiff(error: TiffError) -> SampleError {
    match error {
        error if ends_early(&error) => SampleError::Truncated(error.into()),
        TiffError::IoError(error) => error.into(),
        TiffError::UnsupportedError(error) => SampleError::Unsupported(error.into()),
        error => SampleError::Corrupt(error.into()),
    }
}
