//! A tar shard as it lies, or unpacked: images are read by offset, which a gzipped file does not allow.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use flate2::read::MultiGzDecoder;

use crate::{
    DataError, DecodeConfig, SampleError,
    source::{HEADER_BYTES, SMALL_BYTES, check_length, read_part},
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

/// A shard that can be read at any place.
pub(crate) struct Shard {
    path: PathBuf,
    /// The unpacked shard, in a file that has no name and ends with the process.
    unpacked: Option<File>,
}

impl Shard {
    /// Opens a shard, and unpacks it if it is gzipped.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`]; [`DataError::Malformed`] for other compressions, and where the budget
    /// does not do.
    pub(crate) fn open(path: &Path, budget: &Budget) -> Result<Self, DataError> {
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
        let mut shard = Self { path: path.to_owned(), unpacked: None };
        if start.starts_with(&[0x1f, 0x8b]) {
            tracing::info!(shard = %path.display(), "unpacking into a temporary file");
            file.seek(SeekFrom::Start(0)).map_err(io)?;
            shard.unpacked = Some(unpack(file, budget).map_err(|error| match error.kind() {
                io::ErrorKind::FileTooLarge => malformed(format!(
                    "gzipped, and more than {} MiB unpacked (`unpack_mib`); unpack the shard first (pictures hardly shrink anyway)",
                    budget.mib
                )),
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                    malformed(format!("the gzip data are damaged: {error}"))
                }
                _ => malformed(format!("cannot be unpacked into a temporary file: {error}")),
            })?);
        }
        Ok(shard)
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
