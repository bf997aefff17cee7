//! Zip archives as `torch.save` writes them: entries that are stored, not compressed.
//!
//! The reader gives the place of each entry in the file, so that tensors are read from there without a copy. It trusts
//! nothing that the archive says of itself: the central directory and the entries' own headers have to agree, entries lie
//! inside the file and do not overlap. Compressed entries, with which a small file could fill the memory, are refused.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::WeightsError;
use crate::source::Source;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
/// Bytes of the end record without its comment, which has at most 65535.
const END_LEN: u64 = 22;
/// Bytes of what says where the end record of large archives is.
const LOCATOR_LEN: u64 = 20;
const LOCAL_LEN: u64 = 30;
const CENTRAL_LEN: usize = 46;
/// PyTorch aligns entries to this.
const ALIGNMENT: u64 = 64;

/// A stored entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its first byte in the file.
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) crc: u32,
}

/// Entries by name.
pub(crate) type Directory = BTreeMap<String, Entry>;

/// Little-endian numbers, one after the other, of bytes whose length is known to suffice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number(&mut self, n_bytes: usize) -> u64 {
        let (number, rest) = self.0.split_at(n_bytes);
        self.0 = rest;
        number.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    fn u16(&mut self) -> u16 {
        self.number(2) as u16
    }

    fn u32(&mut self) -> u32 {
        self.number(4) as u32
    }
}

fn bad(expected: impl ToString, got: impl ToString) -> WeightsError {
    WeightsError::malformed("zip archive", expected, got)
}

/// Where the central directory lies.
struct Central {
    n_entries: u64,
    at: u64,
    len: u64,
}

/// Reads the directory of an archive.
pub(crate) fn read(source: &mut Source) -> Result<Directory, WeightsError> {
    let central = find(source)?;
    let end = central
        .at
        .checked_add(central.len)
        .ok_or_else(|| bad("a directory inside the file", "one behind it"))?;
    source.check(central.at, central.len, "zip archive: the central directory")?;
    let bytes = source.take(central.at, central.len, "zip archive: the central directory")?;
    let mut directory = Directory::new();
    let mut rest = bytes.as_slice();
    for _ in 0..central.n_entries {
        let (listed, after) = listed(rest)?;
        rest = after;
        let entry = check(source, &listed, central.at)?;
        if directory.insert(listed.name.clone(), entry).is_some() {
            return Err(bad("names that differ", format_args!("two entries `{}`", listed.name)));
        }
    }
    if !rest.is_empty() {
        return Err(bad(
            format_args!("{} entries up to byte {end}", central.n_entries),
            format_args!("{} bytes more", rest.len()),
        ));
    }
    let mut places: Vec<(&Entry, &String)> = directory.iter().map(|(name, entry)| (entry, name)).collect();
    places.sort_by_key(|(entry, _)| (entry.at, entry.len));
    for pair in places.windows(2) {
        if pair[0].0.at + pair[0].0.len > pair[1].0.at {
            return Err(bad(
                "entries that do not overlap",
                format_args!("`{}` and `{}`", pair[0].1, pair[1].1),
            ));
        }
    }
    Ok(directory)
}

/// Finds the central directory from the end of the file.
fn find(source: &mut Source) -> Result<Central, WeightsError> {
    let tail_len = source.len().min(END_LEN + 0xffff);
    let tail_at = source.len() - tail_len;
    let tail = source.take(tail_at, tail_len, "zip archive: the end record")?;
    let last = (tail.len() as u64).checked_sub(END_LEN);
    let place = last.and_then(|last| {
        (0..=last as usize).rev().find(|&at| {
            // The comment behind the record has to fill the file.
            tail[at..].starts_with(&END.to_le_bytes())
                && at as u64 + END_LEN + u64::from(u16::from_le_bytes([tail[at + 20], tail[at + 21]]))
                    == tail_len
        })
    });
    let place = place.ok_or_else(|| WeightsError::Truncated {
        part: "zip archive: the end record".to_owned(),
        expected: source.len() + 1,
        got: source.len(),
    })?;
    let mut fields = Fields(&tail[place + 4..]);
    let (disk, central_disk) = (fields.u16(), fields.u16());
    let (here, n_entries) = (fields.u16(), fields.u16());
    let (len, at) = (fields.u32(), fields.u32());
    let end_at = tail_at + place as u64;
    // PyTorch writes the 64-bit record into small archives, too.
    if let Some(locator_at) = end_at.checked_sub(LOCATOR_LEN) {
        let locator = source.take(locator_at, LOCATOR_LEN, "zip archive: the locator")?;
        if locator.starts_with(&LOCATOR_64.to_le_bytes()) {
            return find_64(source, &locator, locator_at);
        }
    }
    if n_entries == u16::MAX || len == u32::MAX || at == u32::MAX {
        return Err(bad("a locator of the 64-bit directory", "none"));
    }
    if (disk, central_disk) != (0, 0) || here != n_entries {
        return Err(bad("an archive in one part", "one of several"));
    }
    let central = Central { n_entries: n_entries.into(), at: at.into(), len: len.into() };
    ends_at(&central, end_at)?;
    Ok(central)
}

/// As [`find`], from the record that archives of more than 4 GiB or 65535 entries need.
fn find_64(source: &mut Source, locator: &[u8], locator_at: u64) -> Result<Central, WeightsError> {
    let mut fields = Fields(locator);
    let _signature_and_disk = (fields.u32(), fields.u32());
    let record_at = fields.number(8);
    if record_at > locator_at {
        return Err(bad("a 64-bit end record before its locator", format_args!("byte {record_at}")));
    }
    let record = source.take(record_at, 56, "zip archive: the 64-bit end record")?;
    let mut fields = Fields(&record);
    if fields.u32() != END_64 {
        return Err(bad("a 64-bit end record", "none"));
    }
    let _rest_and_versions = (fields.number(8), fields.u32());
    let disks = (fields.u32(), fields.u32());
    let (here, n_entries) = (fields.number(8), fields.number(8));
    let (len, at) = (fields.number(8), fields.number(8));
    if disks != (0, 0) || here != n_entries {
        return Err(bad("an archive in one part", "one of several"));
    }
    let central = Central { n_entries, at, len };
    ends_at(&central, record_at)?;
    Ok(central)
}

/// The directory lies right before the record that names it.
fn ends_at(central: &Central, record_at: u64) -> Result<(), WeightsError> {
    let end = central.at.checked_add(central.len);
    if end == Some(record_at) && central.n_entries <= central.len / CENTRAL_LEN as u64 {
        return Ok(());
    }
    Err(bad(
        format_args!("a central directory that ends at byte {record_at}"),
        format_args!("{} entries in {} bytes from {} on", central.n_entries, central.len, central.at),
    ))
}

/// What the central directory says of an entry.
struct Listed {
    name: String,
    method: u16,
    crc: u32,
    len: u64,
    header_at: u64,
}

/// The first entry of the rest of a directory, and what comes after it.
fn listed(bytes: &[u8]) -> Result<(Listed, &[u8]), WeightsError> {
    let cut = || bad("a whole entry in the central directory", "its end");
    let (head, rest) = bytes.split_at_checked(CENTRAL_LEN).ok_or_else(cut)?;
    let mut fields = Fields(head);
    if fields.u32() != CENTRAL {
        return Err(bad("an entry of the central directory", "something else"));
    }
    let _versions = fields.u32();
    let (flags, method) = (fields.u16(), fields.u16());
    let _time = fields.u32();
    let crc = fields.u32();
    let (mut compressed, mut len) = (u64::from(fields.u32()), u64::from(fields.u32()));
    let (name_len, extra_len, comment_len) = (fields.u16(), fields.u16(), fields.u16());
    let _disk_and_attributes = (fields.u16(), fields.u16(), fields.u32());
    let mut header_at = u64::from(fields.u32());
    let (name, rest) = rest.split_at_checked(name_len.into()).ok_or_else(cut)?;
    let (extra, rest) = rest.split_at_checked(extra_len.into()).ok_or_else(cut)?;
    let (_comment, rest) = rest.split_at_checked(comment_len.into()).ok_or_else(cut)?;
    let name = String::from_utf8(name.to_vec()).map_err(|_| bad("names in UTF-8", "other bytes"))?;
    if flags & 1 != 0 {
        return Err(bad("no encryption", format_args!("`{name}`, which is encrypted")));
    }
    let large = [&mut len, &mut compressed, &mut header_at];
    if large.iter().any(|value| **value == u64::from(u32::MAX)) {
        large_values(extra, large).ok_or_else(|| bad("64-bit sizes", format_args!("none of `{name}`")))?;
    }
    if method != 0 || compressed != len {
        return Err(bad(
            "entries that are stored, as torch.save writes them",
            format_args!("`{name}`, which is compressed"),
        ));
    }
    Ok((Listed { name, method, crc, len, header_at }, rest))
}

/// Replaces those values that are too large for 32 bits by those of the extra field, in this order.
fn large_values(mut extra: &[u8], values: [&mut u64; 3]) -> Option<()> {
    loop {
        let (head, rest) = extra.split_at_checked(4)?;
        let mut fields = Fields(head);
        let (kind, len) = (fields.u16(), fields.u16());
        let (field, rest) = rest.split_at_checked(len.into())?;
        extra = rest;
        if kind != 1 {
            continue;
        }
        let mut field = field;
        for value in values {
            if *value == u64::from(u32::MAX) {
                let (number, rest) = field.split_at_checked(8)?;
                *value = Fields(number).number(8);
                field = rest;
            }
        }
        return Some(());
    }
}

/// Compares an entry's own header with what the directory says, and gives the place of its data.
fn check(source: &mut Source, listed: &Listed, central_at: u64) -> Result<Entry, WeightsError> {
    let name = &listed.name;
    let head = source.take(listed.header_at, LOCAL_LEN, &format!("zip archive: the header of `{name}`"))?;
    let mut fields = Fields(&head);
    let signature = fields.u32();
    let _version = fields.u16();
    let (_flags, method) = (fields.u16(), fields.u16());
    let _time_and_crc = (fields.u32(), fields.u32());
    let _sizes = (fields.u32(), fields.u32());
    let (name_len, extra_len) = (fields.u16(), fields.u16());
    let name_at = listed.header_at + LOCAL_LEN;
    let own_name = source.take(name_at, name_len.into(), &format!("zip archive: the header of `{name}`"))?;
    if signature != LOCAL || method != listed.method || own_name != name.as_bytes() {
        return Err(bad(
            format_args!("the header of `{name}` at byte {}", listed.header_at),
            "something else; the central directory lies",
        ));
    }
    let at = name_at + u64::from(name_len) + u64::from(extra_len);
    if at.checked_add(listed.len).is_none_or(|end| end > central_at) {
        return Err(bad(
            format_args!("`{name}` before the central directory at byte {central_at}"),
            format_args!("{} bytes from {at} on", listed.len),
        ));
    }
    Ok(Entry { at, len: listed.len, crc: listed.crc })
}

/// Writes an archive of stored entries, aligned as PyTorch does it; of any size, with 64-bit fields where they are needed.
pub(crate) struct Writer<W> {
    to: W,
    at: u64,
    central: Vec<u8>,
    n_entries: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, at: 0, central: Vec::new(), n_entries: 0 }
    }

    /// Adds an entry.
    pub(crate) fn entry(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        self.head(name, data.len() as u64, crc32fast::hash(data))?;
        self.to.write_all(data)?;
        self.at += data.len() as u64;
        Ok(())
    }

    /// Writes the header of an entry of `len` bytes, which have to follow, and enters it into the directory.
    fn head(&mut self, name: &str, len: u64, crc: u32) -> io::Result<()> {
        let header_at = self.at;
        let name_len = u16::try_from(name.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a name of more than 65535 bytes"))?;
        let mut sizes = Vec::new();
        let short_len = short(len, &mut sizes);
        short(len, &mut sizes);
        // Version 2.0, or 4.5 for 64 bits; names in UTF-8, stored, the first day that there is.
        let version: u16 = if is_large(len) || is_large(header_at) { 45 } else { 20 };
        let mut shared = Vec::new();
        for field in [version, 0x800, 0, 0, 0x21] {
            shared.extend(field.to_le_bytes());
        }
        for field in [crc, short_len, short_len] {
            shared.extend(field.to_le_bytes());
        }
        shared.extend(name_len.to_le_bytes());
        let mut extra = extra_field(&sizes);
        // The field that fills up to the alignment has a head of 4 bytes.
        let before = self.at + LOCAL_LEN + u64::from(name_len) + extra.len() as u64 + 4;
        let padding = (before.next_multiple_of(ALIGNMENT) - before) as u16;
        extra.extend(b"FB");
        extra.extend(padding.to_le_bytes());
        extra.resize(extra.len() + usize::from(padding), b'Z');
        let mut head = LOCAL.to_le_bytes().to_vec();
        head.extend(&shared);
        head.extend((extra.len() as u16).to_le_bytes());
        head.extend(name.as_bytes());
        head.extend(extra);
        self.to.write_all(&head)?;
        self.at += head.len() as u64;

        let short_place = short(header_at, &mut sizes);
        let extra = extra_field(&sizes);
        self.central.extend(CENTRAL.to_le_bytes());
        self.central.extend(version.to_le_bytes());
        self.central.extend(&shared);
        self.central.extend((extra.len() as u16).to_le_bytes());
        // No comment, one part, no attributes.
        self.central.extend([0; 10]);
        self.central.extend(short_place.to_le_bytes());
        self.central.extend(name.as_bytes());
        self.central.extend(extra);
        self.n_entries += 1;
        Ok(())
    }

    /// Writes the directory and gives what was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        let (at, len) = (self.at, self.central.len() as u64);
        self.to.write_all(&self.central)?;
        let n_short = u16::try_from(self.n_entries).unwrap_or(u16::MAX);
        if n_short == u16::MAX || is_large(at) || is_large(len) {
            let mut record = END_64.to_le_bytes().to_vec();
            // Bytes that follow; versions 4.5; one part.
            record.extend(44u64.to_le_bytes());
            record.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            for field in [self.n_entries, self.n_entries, len, at] {
                record.extend(field.to_le_bytes());
            }
            record.extend(LOCATOR_64.to_le_bytes());
            record.extend(0u32.to_le_bytes());
            record.extend((at + len).to_le_bytes());
            record.extend(1u32.to_le_bytes());
            self.to.write_all(&record)?;
        }
        let mut end = END.to_le_bytes().to_vec();
        for field in [0, 0, n_short, n_short] {
            end.extend(field.to_le_bytes());
        }
        let mut unused = Vec::new();
        for field in [len, at] {
            end.extend(short(field, &mut unused).to_le_bytes());
        }
        end.extend(0u16.to_le_bytes());
        self.to.write_all(&end)?;
        Ok(self.to)
    }
}

/// Whether a number has to be written in 64 bits: the largest of 32 bits says that it is.
fn is_large(value: u64) -> bool {
    value >= u64::from(u32::MAX)
}

/// A number in 32 bits; a large one goes to the 64-bit ones of its entry.
fn short(value: u64, large: &mut Vec<u64>) -> u32 {
    if is_large(value) {
        large.push(value);
    }
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The extra field of 64-bit numbers; nothing without any.
fn extra_field(large: &[u64]) -> Vec<u8> {
    if large.is_empty() {
        return Vec::new();
    }
    let mut field = vec![1, 0];
    field.extend((8 * large.len() as u16).to_le_bytes());
    field.extend(large.iter().flat_map(|value| value.to_le_bytes()));
    field
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom};

    use super::*;

    /// An archive of these entries.
    pub(crate) fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (name, data) in entries {
            writer.entry(name, data).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Directory, WeightsError> {
        read(&mut Source::memory(bytes.to_vec()))
    }

    fn position(bytes: &[u8], pattern: &[u8]) -> usize {
        bytes.windows(pattern.len()).position(|window| window == pattern).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = archive(&[("a/one", b"first"), ("a/two", &[7; 100]), ("a/empty", b"")]);
        let directory = read_bytes(&bytes).unwrap();
        let entry = directory["a/two"];
        assert_eq!((entry.at % ALIGNMENT, entry.len, entry.crc), (0, 100, crc32fast::hash(&[7; 100])));
        assert_eq!(&bytes[directory["a/one"].at as usize..][..5], b"first");
        assert_eq!(directory.len(), 3);
        // A comment behind the end record is no harm.
        let mut commented = bytes.clone();
        let len = commented.len();
        commented[len - 2] = 3;
        commented.extend(b"...");
        assert_eq!(read_bytes(&commented).unwrap(), directory);
    }

    #[test]
    fn directories_that_lie_are_refused() {
        let good = archive(&[("a/one", b"first"), ("a/two", b"second")]);
        let central = position(&good, &CENTRAL.to_le_bytes());
        let second = central + CENTRAL_LEN + 5;
        let end = good.len() - END_LEN as usize;
        let changed = |place: usize, bytes: &[u8]| {
            let mut changed = good.clone();
            changed[place..place + bytes.len()].copy_from_slice(bytes);
            read_bytes(&changed)
        };
        let refused = |result: Result<Directory, WeightsError>| {
            assert!(
                matches!(result, Err(WeightsError::Malformed { .. } | WeightsError::Truncated { .. })),
                "{result:?}"
            );
        };
        // Sizes: one alone, both, both near 2^32.
        refused(changed(central + 20, &[9]));
        for size in [[200, 0, 0, 0], [0xfe, 0xff, 0xff, 0xff]] {
            refused(changed(central + 20, &[size, size].concat()));
        }
        // 64-bit sizes that are not there.
        refused(changed(central + 20, &[0xff; 8]));
        // Compressed; encrypted; another place; the same place as another; another name; the same name twice.
        refused(changed(central + 10, &[8]));
        refused(changed(central + 8, &[1, 8]));
        refused(changed(central + 42, &[1]));
        refused(changed(central + 42, &[0xff; 4]));
        refused(changed(second + 42, &[0; 4]));
        refused(changed(central + CENTRAL_LEN, b"b"));
        let mut twice = good.clone();
        let local = position(&good, b"a/two");
        twice[local..local + 5].copy_from_slice(b"a/one");
        twice[second + CENTRAL_LEN..][..5].copy_from_slice(b"a/one");
        refused(read_bytes(&twice));
        // The end record: more entries, fewer, another place, another size, several parts.
        for (place, value) in [(10, 3), (8, 3), (10, 1), (16, 1), (12, 1), (4, 1)] {
            refused(changed(end + place, &[value]));
        }
        refused(changed(end + 8, &[1, 0, 1, 0]));
        refused(changed(end + 8, &[0xff; 4]));
        // Overlapping entries: the first reaches into the second.
        refused(changed(central + 20, &[70, 0, 0, 0, 70, 0, 0, 0]));
    }

    #[test]
    fn truncated_archives_are_refused() {
        let good = archive(&[("a/one", b"first"), ("a/two", b"second")]);
        for len in 0..good.len() {
            assert!(read_bytes(&good[..len]).is_err(), "{len}");
        }
    }

    /// An entry of 5 GiB, and one behind it, in a file with a hole: nothing of that size is written or in memory.
    #[test]
    fn archives_of_more_than_4_gib_are_written_and_read() {
        const HOLE: u64 = 5 << 30;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.zip");
        let mut writer = Writer::new(File::create(&path).unwrap());
        writer.entry("a/one", b"first").unwrap();
        writer.head("a/two", HOLE, 7).unwrap();
        writer.to.seek(SeekFrom::Current(HOLE as i64)).unwrap();
        writer.at += HOLE;
        writer.entry("a/three", b"last").unwrap();
        writer.finish().unwrap();

        let mut source = Source::open(&path).unwrap();
        let directory = read(&mut source).unwrap();
        let two = directory["a/two"];
        assert_eq!((two.len, two.crc, two.at % ALIGNMENT), (HOLE, 7, 0));
        let three = directory["a/three"];
        assert!(three.at > HOLE && three.at.is_multiple_of(ALIGNMENT));
        assert_eq!(source.take(three.at, three.len, "three").unwrap(), b"last");
        assert_eq!(source.take(directory["a/one"].at, 5, "one").unwrap(), b"first");
    }

    #[test]
    fn archives_of_more_than_65535_entries_are_written_and_read() {
        let mut writer = Writer::new(Vec::new());
        for index in 0..66_000u32 {
            writer.entry(&index.to_string(), &index.to_le_bytes()).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let directory = read_bytes(&bytes).unwrap();
        assert_eq!(directory.len(), 66_000);
        assert_eq!(bytes[directory["65999"].at as usize..][..4], 65_999u32.to_le_bytes());
    }
}
