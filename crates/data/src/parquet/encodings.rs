//! How Parquet writes values: in runs, packed in bits, as differences. Every reader here takes what it needs and says what is left.

use super::thrift::Parsed;

/// Bits from the lowest of each byte up, as Parquet packs them.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next `width` bits, at most 64; `None` beyond the end.
    fn take(&mut self, width: u32) -> Option<u64> {
        let end = self.at + width as usize;
        if end > self.bytes.len() * 8 {
            return None;
        }
        let (mut value, mut filled) = (0_u64, 0_u32);
        while filled < width {
            let skip = (self.at % 8) as u32;
            let take = (8 - skip).min(width - filled);
            let part = u64::from(self.bytes[self.at / 8] >> skip) & ((1 << take) - 1);
            value |= part << filled;
            filled += take;
            self.at += take as usize;
        }
        Some(value)
    }
}

/// Calls `put` with (value, how often) for `count` values in the hybrid of runs and packed bits.
pub(super) fn hybrid(
    mut bytes: &[u8],
    width: u32,
    count: usize,
    mut put: impl FnMut(u32, usize) -> Parsed<()>,
) -> Parsed<()> {
    if width > 32 {
        return Err(format!("values of {width} bits").into());
    }
    let mut left = count;
    while left > 0 {
        let head = varint(&mut bytes)?;
        let n = usize::try_from(head >> 1).unwrap_or(usize::MAX);
        if head & 1 == 0 {
            let value_bytes = (width as usize).div_ceil(8);
            let value = bytes.get(..value_bytes).ok_or("a run has no value")?;
            bytes = &bytes[value_bytes..];
            let value = value.iter().rev().fold(0_u32, |value, &byte| value << 8 | u32::from(byte));
            let n = n.min(left);
            if n == 0 {
                return Err("a run of length 0".into());
            }
            put(value, n)?;
            left -= n;
        } else {
            // Groups of 8; the last one may hold more than there are values.
            let packed = n.saturating_mul(width as usize);
            let mut bits = Bits { bytes: &bytes[..packed.min(bytes.len())], at: 0 };
            let n = n.saturating_mul(8).min(left);
            if n == 0 {
                return Err("a run of length 0".into());
            }
            for _ in 0..n {
                put(bits.take(width).ok_or("packed values are missing")? as u32, 1)?;
            }
            bytes = bytes.get(packed..).unwrap_or_default();
            left -= n;
        }
    }
    Ok(())
}

/// Reads numbers written as packed differences; gives them and the bytes behind them. There may be at most `max_count`.
pub(super) fn deltas(mut bytes: &[u8], max_count: usize) -> Parsed<(Vec<i64>, &[u8])> {
    let block = varint(&mut bytes)?;
    let n_parts = varint(&mut bytes)?;
    let count = varint(&mut bytes)?;
    let first = zigzag(&mut bytes)?;
    if n_parts == 0
        || block % n_parts != 0
        || !(block / n_parts).is_multiple_of(8)
        || block > 1 << 20
        || block == 0
    {
        return Err(format!("blocks of {block} differences in {n_parts} parts").into());
    }
    if count > max_count as u64 {
        return Err(format!("{count} numbers where there are at most {max_count}").into());
    }
    let (count, per_part) = (count as usize, (block / n_parts) as usize);
    let mut numbers = Vec::with_capacity(count);
    if count > 0 {
        numbers.push(first);
    }
    let mut last = first;
    while numbers.len() < count {
        let least = zigzag(&mut bytes)?;
        let widths = bytes.get(..n_parts as usize).ok_or("differences are missing")?;
        bytes = &bytes[n_parts as usize..];
        for &width in widths {
            if numbers.len() == count {
                break;
            }
            if width > 64 {
                return Err(format!("differences of {width} bits").into());
            }
            let packed = per_part * usize::from(width) / 8;
            let mut bits = Bits { bytes: &bytes[..packed.min(bytes.len())], at: 0 };
            for _ in 0..per_part.min(count - numbers.len()) {
                let difference = bits.take(width.into()).ok_or("differences are missing")?;
                last = last.wrapping_add(least).wrapping_add(difference.cast_signed());
                numbers.push(last);
            }
            bytes = bytes.get(packed..).unwrap_or_default();
        }
    }
    Ok((numbers, bytes))
}

/// As [`deltas`], for lengths.
pub(super) fn lengths(bytes: &[u8], max_count: usize) -> Parsed<(Vec<usize>, &[u8])> {
    let (numbers, rest) = deltas(bytes, max_count)?;
    let lengths = numbers.into_iter().map(usize::try_from).collect::<Result<_, _>>();
    Ok((lengths.map_err(|_| "a length is negative")?, rest))
}

fn varint(bytes: &mut &[u8]) -> Parsed<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or("a number has no end")?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a number is longer than 64 bits".into())
}

fn zigzag(bytes: &mut &[u8]) -> Parsed<i64> {
    let raw = varint(bytes)?;
    Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_own_examples_are_read() {
        // Numbers 0 to 7 in 3 bits each, from the description of the encoding.
        let mut values = Vec::new();
        hybrid(&[0b11, 0x88, 0xc6, 0xfa], 3, 8, |value, n| {
            values.extend(std::iter::repeat_n(value, n));
            Ok(())
        })
        .unwrap();
        assert_eq!(values, [0, 1, 2, 3, 4, 5, 6, 7]);
        let mut runs = Vec::new();
        hybrid(&[20, 7, 4, 1], 3, 12, |value, n| {
            runs.push((value, n));
            Ok(())
        })
        .unwrap();
        assert_eq!(runs, [(7, 10), (1, 2)]);
        // 1 to 5: the differences are all 1, so that the least one is all there is.
        let mut bytes = vec![128, 1, 4, 5, 2, 2];
        bytes.extend([0; 4]);
        bytes.push(99);
        assert_eq!(deltas(&bytes, 5).unwrap(), (vec![1, 2, 3, 4, 5], &[99][..]));
        assert!(deltas(&bytes, 4).is_err());
    }

    #[test]
    fn what_is_missing_or_makes_no_sense_is_an_error() {
        let none = |_, _| Ok(());
        assert!(hybrid(&[], 3, 1, none).is_err());
        assert!(hybrid(&[0, 1], 3, 1, none).is_err());
        assert!(hybrid(&[3, 1], 3, 8, none).is_err());
        assert!(hybrid(&[2, 1, 1], 40, 1, none).is_err());
        assert!(hybrid(&[0xff; 12], 8, 1, none).is_err());
        for head in [[0, 1, 5, 2], [128, 0, 5, 2], [7, 1, 5, 2]] {
            assert!(deltas(&head, 9).is_err(), "{head:?}");
        }
        assert!(deltas(&[128, 1, 1, 2, 2, 0, 65], 9).is_err());
    }
}
