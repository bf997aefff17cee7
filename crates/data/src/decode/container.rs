//! What can be told from the bytes of a file before a decoder sees them: the format, the size, the orientation.

use image::{ImageFormat, metadata::Orientation};

use super::{
    jpeg,
    tags::{self, Tags},
};
use crate::{SampleError, kinds};

/// The format by the first bytes.
///
/// # Errors
/// [`SampleError::Unsupported`], which names what it is where that is known.
pub(super) fn format_of(bytes: &[u8]) -> Result<ImageFormat, SampleError> {
    let tiffs: [&[u8]; 4] = [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"];
    if tiffs.iter().any(|magic| bytes.starts_with(magic)) {
        return Ok(ImageFormat::Tiff);
    }
    image::guess_format(bytes).ok().filter(|format| is_known(*format)).ok_or_else(|| {
        let start = &bytes[..bytes.len().min(512)];
        SampleError::Unsupported(match kinds::of_bytes(start) {
            Some(kind) => format!("this is a {} file; {}", kind.name, kind.advice).into(),
            None if is_web_page(start) => "this is a web page".into(),
            None => {
                let start = &start[..start.len().min(8)];
                format!("no known image format starts with the bytes {start:02x?}").into()
            }
        })
    })
}

/// What downloads leave that were refused.
fn is_web_page(start: &[u8]) -> bool {
    let text = start.trim_ascii_start().to_ascii_lowercase();
    text.starts_with(b"<!doctype html") || text.starts_with(b"<html")
}

fn is_known(format: ImageFormat) -> bool {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Pnm, Tiff, WebP};
    matches!(format, Bmp | Gif | Jpeg | Png | Pnm | Tiff | WebP)
}

/// Width and height by the header, where the bytes reach that far.
pub(super) fn size_of(bytes: &[u8], format: ImageFormat) -> Option<(u32, u32)> {
    let le16 = |at: usize| Some(u32::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    match format {
        ImageFormat::Jpeg => jpeg::size(bytes),
        ImageFormat::Png => {
            let side = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
            Some((side(16)?, side(20)?))
        }
        ImageFormat::Gif => Some((le16(6)?, le16(8)?)),
        ImageFormat::Bmp if le16(14)? == 12 => Some((le16(18)?, le16(20)?)),
        ImageFormat::Bmp => {
            let side = |at: usize| Some(i32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
            Some((side(18)?.unsigned_abs(), side(22)?.unsigned_abs()))
        }
        ImageFormat::Tiff => {
            let tags = Tags::first(bytes)?;
            let side = |id| u32::try_from(tags.one(id)?).ok();
            Some((side(tags::WIDTH)?, side(tags::HEIGHT)?))
        }
        _ => None,
    }
}

/// How the camera says that it was held; `None` where it says nothing that makes sense.
pub(super) fn orientation_of(bytes: &[u8], format: ImageFormat) -> Option<Orientation> {
    let block = match format {
        ImageFormat::Jpeg => jpeg::exif(bytes)?,
        ImageFormat::Png => png_chunks(bytes).find(|(kind, _)| kind == b"eXIf")?.1,
        ImageFormat::WebP => {
            let (_, block) = riff_chunks(bytes.get(12..)?).find(|(kind, _)| kind == b"EXIF")?;
            block.strip_prefix(b"Exif\0\0").unwrap_or(block)
        }
        ImageFormat::Tiff => bytes,
        _ => return None,
    };
    Orientation::from_exif(u8::try_from(Tags::first(block)?.one(tags::ORIENTATION)?).ok()?)
}

/// The chunks of a PNG as (kind, content), as far as they are whole.
pub(super) fn png_chunks(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = rest.get(4..8)?.try_into().ok()?;
        let content = rest.get(8..)?.get(..length)?;
        rest = rest.get(8 + length + 4..).unwrap_or_default();
        Some((kind, content))
    })
}

/// The chunks of a RIFF container as (kind, content); the last one may be cut.
pub(super) fn riff_chunks(mut rest: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let kind = rest.get(..4)?.try_into().ok()?;
        let length = u32::from_le_bytes(rest.get(4..8)?.try_into().ok()?) as usize;
        let content = rest.get(8..)?;
        rest = content.get(length + length % 2..).unwrap_or_default();
        Some((kind, &content[..length.min(content.len())]))
    })
}
