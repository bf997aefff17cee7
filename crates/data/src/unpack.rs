//! A tar shard as it lies, or unpacked: images are read by offset, which gzipped and zip files do not allow.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use flate2::read::MultiGzDecoder;

use crate::{
    DataError, DecodeConfig, SampleError, TarMember, kinds, scan_tar,
    source::{HEADER_BYTES, SMALL_BYTES, check_length, read_part},
    survey::{Reason, Tally},
    zip::{ZipMember, zip_members},
};

/// How many bytes may still be unpacked.
pub(crate) struct Budget {
    mib: usize,
    left_bytes: AtomicU64,
}

impl Budget {
    pub(crate) fn of_mib(mib: usize) -> Self {
        Self { mib, left_bytes: AtomicU64::new((mib as u64).saturating_mul(1 << 20)) }
    }

    /// Takes some bytes, if they are left.
    fn take(&self, bytes: u64) -> bool {
        self.left_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes))
            .is_ok()
    }
}

/// Archives within archives are read to this depth.
const MAX_DEPTH: usize = 3;

/// What a visit to the members of a shard found besides.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Visit {
    pub(crate) n_damaged: usize,
    /// Whether there were archives in the archive.
    pub(crate) is_nested: bool,
}

/// A shard that can be read at any place.
pub(crate) struct Shard {
    path: PathBuf,
    /// The unpacked shard, in a file that has no name and ends with the process.
    unpacked: Option<File>,
    /// What was unpacked of a zip archive; a tar archive is scanned for its members.
    zipped: Option<Zipped>,
}

#[derive(Default)]
struct Zipped {
    members: Vec<TarMember>,
    n_damaged: usize,
    /// Members that cannot be unpacked, and why.
    aside: Tally,
}

impl Shard {
    /// Opens a shard, and unpacks it if it is gzipped; of a zip archive, the members with a wanted name.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`]; [`DataError::Malformed`] for other compressions, and where the budget
    /// does not do.
    pub(crate) fn open(
        path: &Path,
        budget: &Budget,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Self, DataError> {
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => DataError::Missing { path: path.to_owned() },
            _ => DataError::Io { path: path.to_owned(), source },
        };
        let malformed = |reason: String| DataError::Malformed {
            path: path.to_owned(),
            format: "tar",
            source: reason.into(),
        };
        let mut file = File::open(path).map_err(io)?;
        let mut start = Vec::new();
        (&mut file).take(6).read_to_end(&mut start).map_err(io)?;
        let others: [(&[u8], &str); 3] =
            [(&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz")];
        if let Some((_, name)) = others.iter().find(|(magic, _)| start.starts_with(magic)) {
            let reason = format!(
                "compressed with {name}; images are read by offset, so decompress the shard first (pictures hardly shrink anyway)"
            );
            return Err(malformed(reason));
        }
        let mut shard = Self { path: path.to_owned(), unpacked: None, zipped: None };
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let unpacked = if start.starts_with(&[0x1f, 0x8b]) {
            tracing::info!(shard = %path.display(), "unpacking into a temporary file");
            unpack(file, budget)
        } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            tracing::info!(shard = %path.display(), "unpacking into a temporary file");
            unzip(file, budget, is_wanted, shard.zipped.insert(Zipped::default()))
        } else if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("zip")) {
            return Err(malformed(format!(
                "expected a zip archive, found the bytes {start:02x?} at its start"
            )));
        } else {
            return Ok(shard);
        };
        shard.unpacked = Some(unpacked.map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => malformed(format!(
                "more than {} MiB unpacked (`unpack_mib`); unpack it first (pictures hardly shrink anyway)",
                budget.mib
            )),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                malformed(format!("damaged: {error}"))
            }
            _ => malformed(format!("cannot be unpacked into a temporary file: {error}")),
        })?);
        Ok(shard)
    }

    /// Visits all members in order. Tar archives among them are read in place: their members come behind all others, in a folder
    /// of the inner archive's name.
    pub(crate) fn visit(&self, mut visit: impl FnMut(TarMember)) -> io::Result<Visit> {
        if let Some(Zipped { members, n_damaged, .. }) = &self.zipped {
            members.iter().cloned().for_each(visit);
            return Ok(Visit { n_damaged: *n_damaged, is_nested: false });
        }
        let mut reader = self.reader()?;
        let length = reader.seek(SeekFrom::End(0))?;
        let mut found = Visit::default();
        self.visit_part(&mut Section::new(reader, 0, length), &[], MAX_DEPTH, &mut visit, &mut found)?;
        Ok(found)
    }

    /// Visits an archive at some place of the shard, whose members lie in a folder.
    fn visit_part(
        &self,
        part: &mut Section<File>,
        folder: &[u8],
        depth: usize,
        visit: &mut dyn FnMut(TarMember),
        found: &mut Visit,
    ) -> io::Result<()> {
        let from = part.from;
        let mut inner = Vec::new();
        let summary = scan_tar(&mut *part, |mut member| {
            member.offset += from;
            if !folder.is_empty() {
                let name = member.name.strip_prefix(b"./").unwrap_or(&member.name);
                member.name = [folder, b"/", name].concat();
            }
            if depth > 1 && is_inner(&member.name) {
                inner.push(member);
            } else {
                visit(member);
            }
        })?;
        if summary.truncated {
            tracing::warn!(shard = %self.path.display(), "the shard ends within a member");
        }
        found.n_damaged += summary.n_corrupt;
        found.is_nested |= !inner.is_empty();
        for TarMember { name, offset, size } in inner {
            let mut part = Section::new(self.reader()?, offset, size);
            self.visit_part(&mut part, &name[..name.len() - ".tar".len()], depth - 1, visit, found)?;
        }
        Ok(())
    }

    /// Members of a zip archive that cannot be unpacked.
    pub(crate) fn left_aside(&self) -> Tally {
        self.zipped.as_ref().map(|zipped| zipped.aside.clone()).unwrap_or_default()
    }

    /// Whether this is a zip archive.
    pub(crate) fn is_zip(&self) -> bool {
        self.zipped.is_some()
    }

    /// Whether the members are those of a packed archive, which nobody makes for labels.
    pub(crate) fn is_packed(&self) -> bool {
        self.unpacked.is_some()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the shard from its start.
    pub(crate) fn reader(&self) -> io::Result<File> {
        match &self.unpacked {
            Some(file) => file.try_clone(),
            None => File::open(&self.path),
        }
    }

    /// Reads an image of the shard.
    pub(crate) fn read_at(
        &self,
        offset: u64,
        length: u64,
        config: &DecodeConfig,
    ) -> Result<Vec<u8>, SampleError> {
        let Some(file) = &self.unpacked else { return read_part(&self.path, offset, length, config) };
        let mut bytes = Vec::new();
        if length > SMALL_BYTES {
            bytes.resize(HEADER_BYTES, 0);
            read_exact_at(file, &mut bytes, offset)?;
            check_length(&bytes, length, config)?;
        }
        bytes.resize(length as usize, 0);
        read_exact_at(file, &mut bytes, offset)?;
        Ok(bytes)
    }
}

/// Unpacks a gzipped file; what is cut short is kept as far as it goes, as a shard that is not gzipped is.
fn unpack(packed: File, budget: &Budget) -> io::Result<File> {
    let mut to = nameless_file()?;
    let mut from = MultiGzDecoder::new(io::BufReader::with_capacity(1 << 16, packed));
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        };
        if !budget.take(read as u64) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        to.write_all(&buffer[..read])?;
    }
    to.flush()?;
    Ok(to)
}

/// Unpacks the wanted members of a zip archive one after another. Damaged ones are counted; the others are named only, with no
/// content.
fn unzip(
    packed: File,
    budget: &Budget,
    is_wanted: impl Fn(&[u8]) -> bool,
    found: &mut Zipped,
) -> io::Result<File> {
    let mut to = nameless_file()?;
    let mut from = io::BufReader::with_capacity(1 << 16, packed);
    let mut members: Vec<ZipMember> = zip_members(&mut from)?;
    // Members of one sample together, as in a tar archive.
    members.sort_by(|a, b| a.name.cmp(&b.name));
    for member in members {
        let offset = to.stream_position()?;
        if !is_wanted(&member.name) {
            found.members.push(TarMember { name: member.name, offset, size: 0 });
            continue;
        }
        if !budget.take(member.size) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        match member.unpack(&mut from, &mut to, member.size) {
            Ok(()) => found.members.push(TarMember { name: member.name, offset, size: member.size }),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(error),
            Err(error) => match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    found.aside.add(Reason::unread(&kinds::ENCRYPTED), &member.name)
                }
                io::ErrorKind::Unsupported => {
                    found.aside.add(Reason::unread(&kinds::PACKED_OTHERWISE), &member.name)
                }
                _ => found.n_damaged += 1,
            },
        }
    }
    to.flush()?;
    Ok(to)
}

/// Whether a member is an archive of its own, by its name.
fn is_inner(name: &[u8]) -> bool {
    let base = name.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    base.len() > 4 && !base.starts_with(b".") && base[base.len() - 4..].eq_ignore_ascii_case(b".tar")
}

/// A part of something as something of its own.
struct Section<R> {
    whole: R,
    from: u64,
    length: u64,
    at: u64,
}

impl<R: Seek> Section<R> {
    /// Of `length` bytes from `from` on; it has to be sought in before it is read.
    fn new(whole: R, from: u64, length: u64) -> Self {
        Self { whole, from, length, at: 0 }
    }
}

impl<R: Read> Read for Section<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at);
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(to.len());
        let read = self.whole.read(&mut to[..n])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl<R: Seek> Seek for Section<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        self.whole.seek(SeekFrom::Start(self.from.saturating_add(self.at)))?;
        Ok(self.at)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn read_exact_at(_file: &File, _bytes: &mut [u8], _offset: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A file in the folder for temporary ones, whose name is gone already: nothing is left whatever ends the process.
#[cfg(unix)]
fn nameless_file() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("swav-shard-{}-{number}", std::process::id()));
        match File::options().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return std::fs::remove_file(&path).map(|()| file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(not(unix))]
fn nameless_file() -> io::Result<File> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only on Unix are there files without names"))
}
