//! From whole files to damaged ones: what storage does to them, and what somebody would who means harm.

use rand::{Rng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use crate::{parsers::Parser, seeds};

/// Numbers at which things go wrong, in either order of bytes.
const NUMBERS: [u64; 12] =
    [0, 1, 127, 128, 255, 32_767, 65_535, 1 << 24, 0x7fff_ffff, 0xffff_ffff, 1 << 62, u64::MAX];

/// Words that configurations and lists break on.
const WORDS: [&str; 22] = [
    "-1",
    "0",
    "1e999",
    "nan",
    "inf",
    "4611686018427387904",
    "9223372036854775807",
    "1e-320",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[[",
    "]",
    "=",
    "\n",
    "\t",
    ",",
    "../../etc/passwd",
    "/dev/zero",
    "\u{feff}",
    "#",
];

/// An input of a campaign: mostly a whole file with some damage, sometimes noise.
pub fn case(parser: Parser, seeds: &[Vec<u8>], rng: &mut ChaCha8Rng) -> Vec<u8> {
    if parser != Parser::Tgz {
        return damaged(parser, seeds, rng);
    }
    // Damage to the packed bytes hardly ever reaches what reads the archive.
    let mut bytes = damaged(Parser::Tar, seeds, rng);
    bytes = seeds::gzip(&bytes).unwrap_or(bytes);
    if rng.random_bool(0.3) { damaged(parser, &[bytes], rng) } else { bytes }
}

fn damaged(parser: Parser, seeds: &[Vec<u8>], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seeds.choose(rng).cloned().unwrap_or_default();
    if rng.random_bool(0.02) {
        // Noise behind a beginning that is right.
        bytes.truncate(rng.random_range(0..=bytes.len().min(32)));
        let length = rng.random_range(0..300);
        bytes.extend((0..length).map(|_| rng.random::<u8>()));
        return bytes;
    }
    let is_text = is_text(parser);
    for _ in 0..rng.random_range(0..6) {
        let at = place(parser, bytes.len(), rng);
        match rng.random_range(0..10) {
            0 if !bytes.is_empty() => bytes[at] = rng.random(),
            1 | 2 if !bytes.is_empty() => bytes[at] ^= 1 << rng.random_range(0..8),
            3 => {
                let to = bytes.len().min(at + rng.random_range(1..64));
                bytes.drain(at..to);
            }
            4 => {
                let to = bytes.len().min(at + rng.random_range(1..256));
                let part = bytes[at..to].to_vec();
                bytes.splice(at..at, part);
            }
            5 if rng.random_bool(0.3) => bytes.truncate(at),
            6 => {
                let other = seeds.choose(rng).map_or(&[][..], Vec::as_slice);
                let from = rng.random_range(0..=other.len());
                let part = &other[from..other.len().min(from + rng.random_range(0..256))];
                bytes.splice(at..at, part.iter().copied());
            }
            _ if is_text => {
                let word = WORDS.choose(rng).copied().unwrap_or_default();
                let to = if rng.random_bool(0.5) { end_of_word(&bytes, at) } else { at };
                bytes.splice(at..to, word.bytes());
            }
            _ => {
                let number = NUMBERS.choose(rng).copied().unwrap_or_default();
                let width = [1, 2, 4, 8].choose(rng).copied().unwrap_or(1);
                let mut value = number.to_le_bytes()[..width].to_vec();
                if rng.random() {
                    value.reverse();
                }
                let to = bytes.len().min(at + width);
                bytes.splice(at..to, value);
            }
        }
    }
    // Checksums keep most damage from the code behind them.
    if rng.random_bool(0.7) {
        match parser {
            Parser::Image => repair_png(&mut bytes),
            Parser::Tar => repair_tar(&mut bytes),
            _ => {}
        }
    }
    bytes
}

fn is_text(parser: Parser) -> bool {
    #[cfg(feature = "train")]
    if parser == Parser::Config {
        return true;
    }
    parser == Parser::List
}

/// Where damage goes: anywhere, but rather where structures are described.
fn place(parser: Parser, length: usize, rng: &mut ChaCha8Rng) -> usize {
    let head = match parser {
        Parser::Idx => 16,
        Parser::Image => 200,
        #[cfg(feature = "train")]
        Parser::Checkpoint => 800,
        Parser::Parquet | Parser::Zip if rng.random_bool(0.6) => {
            let foot = if parser == Parser::Zip { 300 } else { 800 };
            return length.saturating_sub(rng.random_range(1..foot)).min(length.saturating_sub(1));
        }
        _ => length,
    };
    let until = if rng.random_bool(0.5) { head.min(length) } else { length };
    if until == 0 { 0 } else { rng.random_range(0..until) }
}

fn end_of_word(bytes: &[u8], at: usize) -> usize {
    let ends = |byte: &u8| !byte.is_ascii_alphanumeric() && !b"._-/".contains(byte);
    at + bytes[at..].iter().position(ends).unwrap_or(bytes.len() - at)
}

/// Makes the checksums of a PNG's chunks right.
fn repair_png(bytes: &mut [u8]) {
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return;
    }
    let mut at = 8;
    while let Some(length) =
        bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map(u32::from_be_bytes)
    {
        let end = at + 8 + length as usize;
        if end + 4 > bytes.len() {
            return;
        }
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&crc.sum().to_be_bytes());
        at = end + 4;
    }
}

/// Makes the checksums of a tar archive's headers right, block by block.
fn repair_tar(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
