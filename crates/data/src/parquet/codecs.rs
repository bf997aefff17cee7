//! Decompression of pages to a size that is known before, and never beyond it.

use std::io::Read;

use super::thrift::Parsed;

/// Appends the `raw_bytes` that a compressed page holds to `out`.
pub(super) fn decompress(codec: i64, page: &[u8], raw_bytes: usize, out: &mut Vec<u8>) -> Parsed<()> {
    match codec {
        0 => out.extend_from_slice(page),
        1 => {
            let claimed = snap::raw::decompress_len(page)?;
            if claimed != raw_bytes {
                return Err(wrong_size(raw_bytes, claimed));
            }
            fill(out, raw_bytes, |room| Ok(snap::raw::Decoder::new().decompress(page, room)?))?;
        }
        2 => stream(flate2::read::MultiGzDecoder::new(page), raw_bytes, out)?,
        4 => stream(brotli_decompressor::Decompressor::new(page, 4096), raw_bytes, out)?,
        5 => lz4_of_hadoop(page, raw_bytes, out)?,
        6 => stream(ruzstd::decoding::StreamingDecoder::new(page)?, raw_bytes, out)?,
        7 => lz4(page, raw_bytes, out)?,
        other => return Err(format!("pages are compressed by codec {other}, which is not read here").into()),
    }
    Ok(())
}

fn stream(reader: impl Read, raw_bytes: usize, out: &mut Vec<u8>) -> Parsed<()> {
    let got = reader.take(raw_bytes as u64 + 1).read_to_end(out)?;
    if got != raw_bytes { Err(wrong_size(raw_bytes, got)) } else { Ok(()) }
}

fn lz4(page: &[u8], raw_bytes: usize, out: &mut Vec<u8>) -> Parsed<()> {
    fill(out, raw_bytes, |room| Ok(lz4_flex::block::decompress_into(page, room)?))
}

/// The older LZ4: blocks with their sizes before them, as Hadoop frames them, or one block without.
fn lz4_of_hadoop(page: &[u8], raw_bytes: usize, out: &mut Vec<u8>) -> Parsed<()> {
    let (mut rest, start) = (page, out.len());
    let framed = loop {
        if rest.is_empty() {
            break out.len() - start == raw_bytes;
        }
        let size = |at: usize| {
            let field = rest.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(field) as usize)
        };
        let (Some(raw), Some(packed)) = (size(0), size(4)) else { break false };
        let block = rest.get(8..).and_then(|rest| rest.get(..packed));
        let Some(block) = block.filter(|_| raw <= raw_bytes - (out.len() - start)) else { break false };
        if lz4(block, raw, out).is_err() {
            break false;
        }
        rest = &rest[8 + packed..];
    };
    if framed {
        return Ok(());
    }
    out.truncate(start);
    lz4(page, raw_bytes, out)
}

fn fill(out: &mut Vec<u8>, raw_bytes: usize, decode: impl FnOnce(&mut [u8]) -> Parsed<usize>) -> Parsed<()> {
    let start = out.len();
    out.resize(start + raw_bytes, 0);
    let got = decode(&mut out[start..])?;
    if got != raw_bytes { Err(wrong_size(raw_bytes, got)) } else { Ok(()) }
}

fn wrong_size(expected: usize, got: usize) -> crate::Cause {
    format!("a page should inflate to {expected} bytes, but has {got}").into()
}
