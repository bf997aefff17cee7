//! Finds the members of a tar archive without unpacking it.
//!
//! Written here because an index needs offsets, and because a damaged archive should cost its damaged members only:
//! after a broken header the scan goes on at the next block that is a valid one, where general tar readers stop.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

/// A regular file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarMember {
    /// Its path in the archive, as bytes.
    pub name: Vec<u8>,
    /// Where its content starts, in bytes from the start of the archive.
    pub offset: u64,
    /// The length of its content in bytes.
    pub size: u64,
}

/// What a scan came across besides members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TarSummary {
    /// Regular files.
    pub n_members: usize,
    /// Stretches that were no valid header and were passed over.
    pub n_corrupt: usize,
    /// Whether the archive ends within a header or a member.
    pub truncated: bool,
}

const BLOCK: usize = 512;
/// Names and extended headers are short; a longer one is damage, not worth the memory.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// Visits every regular file of an uncompressed tar archive in order: POSIX ustar and pax, GNU long names and
/// base-256 sizes. Blocks of zeros are passed over, so that concatenated archives are read whole.
///
/// ```
/// let mut archive = tar::Builder::new(Vec::new());
/// let mut header = tar::Header::new_ustar();
/// header.set_size(3);
/// archive.append_data(&mut header, "a/b.cls", &b"7\n\n"[..])?;
/// let bytes = archive.into_inner()?;
/// let mut members = Vec::new();
/// let summary = swav_data::scan_tar(std::io::Cursor::new(&bytes), |member| members.push(member))?;
/// assert_eq!((summary.n_members, members[0].name.as_slice()), (1, &b"a/b.cls"[..]));
/// assert_eq!(&bytes[members[0].offset as usize..][..3], b"7\n\n");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Only those of the reader: damage is counted in the summary, not an error.
pub fn scan_tar(mut reader: impl Read + Seek, mut visit: impl FnMut(TarMember)) -> io::Result<TarSummary> {
    let length = reader.seek(SeekFrom::End(0))?;
    reader.seek(SeekFrom::Start(0))?;
    // Small, since between headers of photographs nearly everything read ahead is thrown away.
    let mut reader = BufReader::with_capacity(4096, reader);
    let mut summary = TarSummary::default();
    let mut extension = Extension::default();
    let (mut at, mut damaged) = (0_u64, false);
    let mut block = [0; BLOCK];
    while at + (BLOCK as u64) <= length {
        reader.read_exact(&mut block)?;
        at += BLOCK as u64;
        if block.iter().all(|&byte| byte == 0) {
            damaged = false;
            continue;
        }
        let Some(header) = Header::parse(&block) else {
            if !std::mem::replace(&mut damaged, true) {
                summary.n_corrupt += 1;
            }
            extension = Extension::default();
            continue;
        };
        damaged = false;
        let size = match header.kind {
            b'0' | 0 | b'7' => extension.size.unwrap_or(header.size),
            _ => header.size,
        };
        let padded = size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX);
        if size > length - at {
            summary.truncated = true;
            summary.n_corrupt += 1;
            return Ok(summary);
        }
        let mut consumed = 0;
        match header.kind {
            b'0' | 0 | b'7' => {
                let taken = std::mem::take(&mut extension);
                let name = taken.name.unwrap_or_else(|| header.name(&block));
                // Old archives write folders as files whose names end in a slash.
                if !name.is_empty() && name.last() != Some(&b'/') {
                    summary.n_members += 1;
                    visit(TarMember { name, offset: at, size });
                }
            }
            b'L' | b'x' if size <= MAX_EXTENSION_BYTES => {
                let mut data = vec![0; size as usize];
                reader.read_exact(&mut data)?;
                consumed = size;
                if header.kind == b'x' {
                    extension.read_pax(&data);
                } else {
                    data.truncate(data.iter().position(|&byte| byte == 0).unwrap_or(data.len()));
                    extension.name = Some(data);
                }
            }
            b'L' | b'x' => summary.n_corrupt += 1,
            // A global header or the long target of a link belongs to what follows and says nothing about its name.
            b'g' | b'K' => {}
            _ => extension = Extension::default(),
        }
        at = at.saturating_add(padded).min(length);
        reader.seek_relative(i64::try_from(padded.min(length) - consumed).unwrap_or(i64::MAX))?;
    }
    summary.truncated |= at < length;
    Ok(summary)
}

/// What extension headers say about the member that follows them.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extension {
    /// Reads pax records: `<length> <key>=<value>\n`, where the length counts the whole record.
    fn read_pax(&mut self, mut data: &[u8]) {
        while let Some(blank) = data.iter().position(|&byte| byte == b' ') {
            let length = std::str::from_utf8(&data[..blank]).ok().and_then(|text| text.parse::<usize>().ok());
            let Some(record) =
                length.filter(|&length| length > blank + 1).and_then(|length| data.get(..length))
            else {
                return;
            };
            data = &data[record.len()..];
            let record = record[blank + 1..].strip_suffix(b"\n").unwrap_or(&record[blank + 1..]);
            if let Some(path) = record.strip_prefix(b"path=") {
                self.name = Some(path.to_vec());
            } else if let Some(size) = record.strip_prefix(b"size=") {
                self.size = std::str::from_utf8(size).ok().and_then(|text| text.parse().ok());
            }
        }
    }
}

struct Header {
    kind: u8,
    size: u64,
    ustar: bool,
}

impl Header {
    /// Reads a header block; `None` if its checksum or size is wrong.
    fn parse(block: &[u8; BLOCK]) -> Option<Self> {
        let stored = number(&block[148..156])?;
        // The checksum counts its own field as blanks. Some old writers summed signed bytes.
        let bytes =
            || block.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if stored != unsigned && i64::try_from(stored) != Ok(signed) {
            return None;
        }
        Some(Self { kind: block[156], size: number(&block[124..136])?, ustar: &block[257..262] == b"ustar" })
    }

    fn name(&self, block: &[u8; BLOCK]) -> Vec<u8> {
        let name = until_zero(&block[..100]);
        // GNU archives (magic `ustar` and blanks) use the place of the prefix for times.
        let prefix = if self.ustar && block[262] == 0 { until_zero(&block[345..500]) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }
}

fn until_zero(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&byte| byte == 0).unwrap_or(field.len())]
}

/// A number in a header: octal digits between blanks or zeros, or big-endian binary if the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7f);
        return field[1..]
            .iter()
            .try_fold(first, |sum, &byte| sum.checked_mul(256)?.checked_add(u64::from(byte)));
    }
    let text = until_zero(field).trim_ascii();
    text.iter().try_fold(0_u64, |sum, &digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn archive(members: &[(Vec<u8>, Vec<u8>)], gnu: bool) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = if gnu { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            let path = crate::names::bytes_path(name);
            builder.append_data(&mut header, path, &content[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn scan(bytes: &[u8]) -> (Vec<TarMember>, TarSummary) {
        let mut members = Vec::new();
        let summary = scan_tar(Cursor::new(bytes), |member| members.push(member)).unwrap();
        (members, summary)
    }

    fn content<'a>(bytes: &'a [u8], member: &TarMember) -> &'a [u8] {
        &bytes[member.offset as usize..][..member.size as usize]
    }

    #[test]
    fn a_damaged_header_costs_one_member() {
        let members: Vec<_> =
            (0..5_u8).map(|i| (format!("{i}.jpg").into_bytes(), vec![i; 700 + usize::from(i)])).collect();
        let mut bytes = archive(&members, true);
        let (found, summary) = scan(&bytes);
        assert_eq!((found.len(), summary), (5, TarSummary { n_members: 5, ..TarSummary::default() }));
        bytes[found[2].offset as usize - BLOCK + 3] ^= 0x55;
        let (left, summary) = scan(&bytes);
        let names: Vec<_> = left.iter().map(|member| member.name.as_slice()).collect();
        assert_eq!(names, [b"0.jpg", b"1.jpg", b"3.jpg", b"4.jpg"]);
        assert_eq!(summary, TarSummary { n_members: 4, n_corrupt: 1, truncated: false });
    }

    #[test]
    fn a_cut_archive_keeps_its_whole_members() {
        let bytes = archive(&[(b"a.png".to_vec(), vec![1; 600]), (b"b.png".to_vec(), vec![2; 600])], true);
        let (found, summary) = scan(&bytes[..BLOCK + 1024 + BLOCK + 100]);
        assert_eq!((found.len(), summary.truncated), (1, true));
        assert_eq!(scan(&[]).1, TarSummary::default());
        assert!(scan(&bytes[..100]).1.truncated);
    }

    #[test]
    fn pax_paths_and_sizes_and_concatenated_archives_are_read() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = "d/".repeat(150) + "x.jpg";
        builder.append_pax_extensions([("path", long.as_bytes()), ("comment", b"one\ntwo")]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(4);
        header.set_path("short.jpg").unwrap();
        header.set_cksum();
        builder.append(&header, &b"pixl"[..]).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.extend(archive(&[(b"second.jpg".to_vec(), b"more".to_vec())], false));
        let (found, summary) = scan(&bytes);
        assert_eq!(
            found.iter().map(|m| m.name.clone()).collect::<Vec<_>>(),
            [long.into_bytes(), b"second.jpg".to_vec()]
        );
        assert_eq!((content(&bytes, &found[0]), content(&bytes, &found[1])), (&b"pixl"[..], &b"more"[..]));
        assert_eq!(summary.n_corrupt, 0);
    }

    #[test]
    fn binary_sizes_that_overflow_are_no_headers() {
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(b"00000000017\0"), Some(15));
        assert_eq!(number(b" 17 \0\0\0\0"), Some(15));
        assert_eq!(number(b"0000000009x\0"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn agrees_with_the_tar_crate(
            members in proptest::collection::vec(("[a-z]{1,9}(/[a-z]{1,20}[a-z.]{0,40}x){0,4}", proptest::collection::vec(any::<u8>(), 0..2000)), 0..8),
            gnu in any::<bool>(),
        ) {
            let members: Vec<_> = members.into_iter()
                .filter(|(name, _)| gnu || name.len() < 100)
                .map(|(name, data)| (name.into_bytes(), data)).collect();
            let bytes = archive(&members, gnu);
            let (found, summary) = scan(&bytes);
            prop_assert_eq!(summary.n_corrupt, 0);
            let mut oracle = tar::Archive::new(&bytes[..]);
            let theirs: Vec<_> = oracle.entries().unwrap().map(|e| e.unwrap()).map(|e| (e.path_bytes().into_owned(), e.raw_file_position())).collect();
            let ours: Vec<_> = found.iter().map(|m| (m.name.clone(), m.offset)).collect();
            prop_assert_eq!(ours, theirs);
            for (member, (_, data)) in found.iter().zip(&members) {
                prop_assert_eq!(content(&bytes, member), &data[..]);
            }
        }

        #[test]
        fn damage_never_panics_and_members_lie_inside(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = archive(&[(vec![b'n'; 150], vec![1; 900]), (b"b.cls".to_vec(), b"3".to_vec()), (b"c.jpg".to_vec(), vec![9; 1500])], true);
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let (found, _) = scan(&bytes);
            for member in found {
                prop_assert!(member.offset + member.size <= bytes.len() as u64);
            }
        }
    }
}
