//! What a WebP may not claim: its decoder allocates for a frame by the frame's own header, not by the picture's.

use super::container::riff_chunks;
use crate::SampleError;

/// Checks that every picture inside the first frame has the size of its canvas, or of its place on it.
///
/// # Errors
/// [`SampleError::TooLarge`], [`SampleError::Corrupt`]. What makes no sense otherwise is left to the decoder.
pub(super) fn check_frames(bytes: &[u8], max_pixels: u64) -> Result<(), SampleError> {
    let mut canvas = None;
    let mut frame = None;
    for (kind, content) in riff_chunks(bytes.get(12..).unwrap_or_default()) {
        match &kind {
            b"VP8X" => canvas = pair(content, 4, number24),
            b"ANMF" if frame.is_none() => {
                let place = pair(content, 6, number24);
                frame = place;
                for (kind, content) in riff_chunks(content.get(16..).unwrap_or_default()) {
                    check_picture(&kind, content, place, max_pixels)?;
                }
            }
            _ => check_picture(&kind, content, canvas, max_pixels)?,
        }
    }
    match (canvas, frame) {
        (Some(canvas), Some(frame)) if frame.0 > canvas.0 || frame.1 > canvas.1 => Err(beyond(frame, canvas)),
        _ => Ok(()),
    }
}

fn check_picture(
    kind: &[u8; 4],
    content: &[u8],
    place: Option<(u32, u32)>,
    max_pixels: u64,
) -> Result<(), SampleError> {
    let size = match content {
        [_, a, b, c, d, ..] if kind == b"VP8L" => {
            let bits = u32::from_le_bytes([*a, *b, *c, *d]);
            Some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
        }
        // Whatever the chunk is called: the decoder does not always ask.
        [_, _, _, 0x9d, 0x01, 0x2a, a, b, c, d, ..] => {
            let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
            Some((side(*a, *b), side(*c, *d)))
        }
        _ => None,
    };
    let Some((width, height)) = size else { return Ok(()) };
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(SampleError::TooLarge { width, height, max_pixels });
    }
    match place {
        Some(place) if place != (width, height) => Err(beyond((width, height), place)),
        _ => Ok(()),
    }
}

fn beyond(frame: (u32, u32), canvas: (u32, u32)) -> SampleError {
    let ((width, height), (across, down)) = (frame, canvas);
    SampleError::Corrupt(format!("a frame of {width}x{height} in a place of {across}x{down}").into())
}

/// Two numbers of 24 bits, each one less than what it stands for.
fn pair(content: &[u8], at: usize, number: impl Fn(&[u8]) -> Option<u32>) -> Option<(u32, u32)> {
    Some((number(content.get(at..)?)? + 1, number(content.get(at + 3..)?)? + 1))
}

fn number24(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes([*bytes.first()?, *bytes.get(1)?, *bytes.get(2)?, 0]))
}
