//! The members of a zip archive, by its directory at the end: stored and deflated ones, archives above 4 GiB included.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use flate2::read::DeflateDecoder;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ZipMember {
    pub(crate) name: Vec<u8>,
    /// The length of its content in bytes, by the directory.
    pub(crate) size: u64,
    packed_size: u64,
    /// Where its own header starts.
    header: u64,
    method: u16,
    is_encrypted: bool,
}

/// The end of the directory with the longest comment that it may have.
const MAX_END_BYTES: u64 = 22 + 65_535;
const MAX_U32: u64 = 0xffff_ffff;

/// Lists the files of an archive, in the order of its directory.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] with what is wrong, and those of the reader. Memory grows with what is really there.
pub(crate) fn zip_members(reader: &mut (impl Read + Seek)) -> io::Result<Vec<ZipMember>> {
    let length = reader.seek(SeekFrom::End(0))?;
    let tail_from = length.saturating_sub(MAX_END_BYTES);
    reader.seek(SeekFrom::Start(tail_from))?;
    let mut tail = Vec::new();
    reader.by_ref().take(MAX_END_BYTES).read_to_end(&mut tail)?;
    let is_end = |at: &usize| {
        tail[*at..].starts_with(b"PK\x05\x06") && tail.len() - at == 22 + usize::from(u16_at(&tail, at + 20))
    };
    let end = (0..tail.len().saturating_sub(21))
        .rev()
        .find(is_end)
        .ok_or_else(|| invalid("no end of the directory"))?;
    let mut offset = u64::from(u32_at(&tail, end + 16));
    let mut size = u64::from(u32_at(&tail, end + 12));
    let locator = end.checked_sub(20).map(|at| &tail[at..end]).filter(|text| text.starts_with(b"PK\x06\x07"));
    if let (true, Some(locator)) =
        (offset == MAX_U32 || size == MAX_U32 || u16_at(&tail, end + 10) == u16::MAX, locator)
    {
        reader.seek(SeekFrom::Start(u64_at(locator, 8)))?;
        let mut large = [0; 56];
        reader.read_exact(&mut large)?;
        if !large.starts_with(b"PK\x06\x06") {
            return Err(invalid("no large end of the directory"));
        }
        (size, offset) = (u64_at(&large, 40), u64_at(&large, 48));
    }
    if offset.checked_add(size).is_none_or(|end| end > length) {
        return Err(invalid("the directory lies beyond the end of the file"));
    }
    reader.seek(SeekFrom::Start(offset))?;
    let mut directory = BufReader::new(reader.by_ref().take(size));
    let mut members = Vec::new();
    let mut fixed = [0; 46];
    loop {
        match directory.read_exact(&mut fixed) {
            Ok(()) if fixed.starts_with(b"PK\x01\x02") => {}
            Ok(()) | Err(_) => return Ok(members),
        }
        let mut rest = vec![0; [28, 30, 32].iter().map(|&at| usize::from(u16_at(&fixed, at))).sum()];
        directory.read_exact(&mut rest)?;
        let (name, extra) = rest.split_at(usize::from(u16_at(&fixed, 28)));
        let mut member = ZipMember {
            name: name.to_vec(),
            size: u64::from(u32_at(&fixed, 24)),
            packed_size: u64::from(u32_at(&fixed, 20)),
            header: u64::from(u32_at(&fixed, 42)),
            method: u16_at(&fixed, 10),
            is_encrypted: u16_at(&fixed, 8) & 1 != 0,
        };
        member.read_large(&extra[..usize::from(u16_at(&fixed, 30))]);
        // Folders are members whose names end in a slash.
        if name.last().is_some_and(|&last| last != b'/') {
            members.push(member);
        }
    }
}

impl ZipMember {
    /// Takes the numbers that do not fit 32 bits from the extra field for them, where they stand in this order.
    fn read_large(&mut self, mut extra: &[u8]) {
        while extra.len() >= 4 {
            let length = usize::from(u16_at(extra, 2));
            let Some(mut field) = extra.get(4..4 + length) else { return };
            if u16_at(extra, 0) == 1 {
                for number in [&mut self.size, &mut self.packed_size, &mut self.header] {
                    if *number == MAX_U32 && field.len() >= 8 {
                        *number = u64_at(field, 0);
                        field = &field[8..];
                    }
                }
                return;
            }
            extra = &extra[4 + length..];
        }
    }

    /// Writes the content, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] for what is packed by another method, [`io::ErrorKind::PermissionDenied`] for what is encrypted,
    /// [`io::ErrorKind::InvalidData`] for what is damaged;
    /// [`io::ErrorKind::FileTooLarge`]; those of reader and writer.
    pub(crate) fn unpack(
        &self,
        reader: &mut (impl Read + Seek),
        to: &mut impl io::Write,
        limit: u64,
    ) -> io::Result<()> {
        if self.is_encrypted {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if self.size > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        reader.seek(SeekFrom::Start(self.header))?;
        let mut fixed = [0; 30];
        reader.read_exact(&mut fixed)?;
        if !fixed.starts_with(b"PK\x03\x04") {
            return Err(invalid("no header where the directory says"));
        }
        let skipped = i64::from(u16_at(&fixed, 26)) + i64::from(u16_at(&fixed, 28));
        reader.seek_relative(skipped)?;
        let packed = reader.by_ref().take(self.packed_size);
        let written = match self.method {
            0 => io::copy(&mut packed.take(self.size), to)?,
            8 => io::copy(&mut DeflateDecoder::new(BufReader::new(packed)).take(self.size), to)?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        if written == self.size { Ok(()) } else { Err(invalid("the content ends early")) }
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
#[path = "../tests/common/zip.rs"]
mod archive;

#[cfg(test)]
mod tests {
    use super::archive::zip_of;
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    #[test]
    fn members_come_whole_and_within_their_limit() {
        let long = vec![7; 100_000];
        let bytes = zip_of(&[("a/1.png", b"one"), ("a/", b""), ("b.cls", b"3"), ("long", &long)]);
        let mut reader = Cursor::new(&bytes);
        let members = zip_members(&mut reader).unwrap();
        let names: Vec<_> = members.iter().map(|member| member.name.clone()).collect();
        assert_eq!(names, [&b"a/1.png"[..], b"b.cls", b"long"]);
        for (member, expected) in members.iter().zip([&b"one"[..], b"3", &long]) {
            let mut content = Vec::new();
            member.unpack(&mut reader, &mut content, 100_000).unwrap();
            assert_eq!(content, expected);
        }
        let error = members[2].unpack(&mut reader, &mut Vec::new(), 99_999).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(zip_members(&mut Cursor::new(b"PK\x03\x04")).is_err());
    }

    #[test]
    fn numbers_above_32_bits_are_in_the_extra_field() {
        let bytes = zip_of(&[("x", b"y")]);
        let mut member = zip_members(&mut Cursor::new(&bytes)).unwrap().remove(0);
        (member.size, member.header) = (MAX_U32, MAX_U32);
        let mut extra = vec![9, 0, 1, 0, 0, 1, 0, 16, 0];
        extra.extend([5_000_000_000_u64, 6_000_000_000].map(u64::to_le_bytes).concat());
        member.read_large(&extra);
        assert_eq!((member.size, member.packed_size, member.header), (5_000_000_000, 1, 6_000_000_000));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damage_never_panics_and_content_stays_within_the_limit(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = zip_of(&[("a.png", &[1; 900]), ("b.cls", b"3"), ("c.jpg", &[9; 1500]), ("d.jpg", &[8; 700])]);
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.drain(..cut.index(20));
            let mut reader = Cursor::new(&bytes);
            for member in zip_members(&mut reader).unwrap_or_default() {
                let mut content = Vec::new();
                let _ = member.unpack(&mut reader, &mut content, 4000);
                prop_assert!(content.len() <= 4000);
            }
        }
    }
}
