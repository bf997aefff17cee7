//! PNG, row by row: besides the picture of 8 bits nothing of its size is ever in memory, whatever its depth, and colour profiles
//! and texts, which may inflate without bounds, are not read at all.

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodingError, Transformations};
use swav_augment::{Channels, Image};

use super::{DecodeConfig, check_size, container::png_chunks, ends_early, over};
use crate::SampleError;

/// Decodes a PNG. What comes after the last row (a checksum, the end mark) may be missing, unless it must be whole.
pub(super) fn decode(bytes: &[u8], config: &DecodeConfig) -> Result<Image, SampleError> {
    if config.strict && !png_chunks(bytes).any(|(kind, _)| &kind == b"IEND") {
        return Err(SampleError::Truncated("the PNG has no end mark (IEND)".into()));
    }
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND);
    let (width, height) = decoder.read_header_info().map_err(from_png)?.size();
    check_size(width, height, config)?;
    // Two rows of 8 bytes a pixel, and chunks that are held whole, none of which can be longer than the file.
    decoder.set_limits(png::Limits { bytes: width as usize * 32 + bytes.len() + (1 << 16) });
    let mut reader = decoder.read_info().map_err(from_png)?;
    let (colour, depth) = reader.output_color_type();
    if depth != BitDepth::Eight && depth != BitDepth::Sixteen {
        return Err(SampleError::Unsupported(format!("{colour:?} of {depth:?} bits").into()));
    }
    let line = reader
        .output_line_size(width)
        .ok_or_else(|| SampleError::Corrupt("no row has such a length".into()))?;
    let mut rows = Rows::new(width, height, colour, depth, config.background);
    if reader.info().interlaced {
        let mut whole = vec![0; line * height as usize];
        reader.next_frame(&mut whole).map_err(from_png)?;
        whole.chunks_exact(line).for_each(|row| rows.push(row));
    } else {
        for _ in 0..height {
            match reader.next_row().map_err(from_png)? {
                Some(row) if row.data().len() == line => rows.push(row.data()),
                Some(_) => return Err(SampleError::Corrupt("a frame is narrower than the picture".into())),
                None => return Err(SampleError::Truncated("rows are missing".into())),
            }
        }
    }
    rows.finish()
}

/// Rows of any PNG, made 8-bit grey or RGB as they come.
struct Rows {
    width: u32,
    height: u32,
    colour: ColorType,
    depth: BitDepth,
    background: [u8; 3],
    eight_bits: Vec<u8>,
    data: Vec<u8>,
}

impl Rows {
    fn new(width: u32, height: u32, colour: ColorType, depth: BitDepth, background: [u8; 3]) -> Self {
        let channels = if colour == ColorType::Grayscale { 1 } else { 3 };
        let data = Vec::with_capacity(width as usize * height as usize * channels);
        Self { width, height, colour, depth, background, eight_bits: Vec::new(), data }
    }

    fn push(&mut self, row: &[u8]) {
        let row = if self.depth == BitDepth::Sixteen {
            self.eight_bits.clear();
            let scaled = |value: &[u8]| ((u32::from(value[0]) << 8 | u32::from(value[1])) + 128) / 257;
            self.eight_bits.extend(row.chunks_exact(2).map(|value| scaled(value) as u8));
            &self.eight_bits
        } else {
            row
        };
        match self.colour {
            ColorType::GrayscaleAlpha => self
                .data
                .extend(row.chunks_exact(2).flat_map(|pixel| over([pixel[0]; 3], pixel[1], self.background))),
            ColorType::Rgba => self.data.extend(
                row.chunks_exact(4)
                    .flat_map(|pixel| over([pixel[0], pixel[1], pixel[2]], pixel[3], self.background)),
            ),
            ColorType::Grayscale | ColorType::Rgb | ColorType::Indexed => self.data.extend_from_slice(row),
        }
    }

    fn finish(self) -> Result<Image, SampleError> {
        let channels = if self.colour == ColorType::Grayscale { Channels::Grey } else { Channels::Rgb };
        Image::new(self.width, self.height, channels, self.data)
            .map_err(|error| SampleError::Corrupt(error.into()))
    }
}

fn from_png(error: DecodingError) -> SampleError {
    match error {
        error if ends_early(&error) => SampleError::Truncated(error.into()),
        DecodingError::IoError(error) => error.into(),
        error => SampleError::Corrupt(error.into()),
    }
}
