//! Scalars as TensorBoard reads them: event files of records with masked checksums.
//!
//! Why our own: the published writers are unmaintained or pull in a protobuf compiler, and a scalar event is
//! forty bytes. Format: TensorFlow's `record_writer.h` (length, masked CRC-32C of the length, data, masked CRC-32C of
//! the data) around the messages `Event`, `Summary` and `SessionLog` of its `event.proto` and `summary.proto`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that scalars are appended to.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
}

/// Field numbers of the messages, with their wire types: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
mod field {
    pub const EVENT_WALL_TIME: u8 = (1 << 3) | 1;
    pub const EVENT_STEP: u8 = 2 << 3;
    pub const EVENT_FILE_VERSION: u8 = (3 << 3) | 2;
    pub const EVENT_SUMMARY: u8 = (5 << 3) | 2;
    pub const EVENT_SESSION_LOG: u8 = (7 << 3) | 2;
    pub const SESSION_LOG_STATUS: u8 = 1 << 3;
    pub const SUMMARY_VALUE: u8 = (1 << 3) | 2;
    pub const VALUE_TAG: u8 = (1 << 3) | 2;
    pub const VALUE_SIMPLE: u8 = (2 << 3) | 5;
}

/// `SessionLog::START`: events of older files at this step or later are void.
const SESSION_START: u64 = 1;

impl EventWriter {
    /// Begins a new event file in `folder`, for steps from `first_step` on. TensorBoard then drops what older
    /// files in the folder say about these steps, so that a resumed run leaves no doubled curves.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn create(folder: &Path, first_step: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let now = wall_time();
        // TensorBoard reads the files of a folder in the order of their names: time first, then a counter for two
        // within a second.
        let file = (0..1000)
            .map(|n| folder.join(format!("events.out.tfevents.{:010}.{n:03}.swav", now as u64)))
            .find_map(|path| match File::create_new(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                result => Some(result),
            })
            .unwrap_or_else(|| Err(io::Error::other("a thousand event files within a second")))?;
        let mut writer = Self { file };
        let mut version = event(now, None);
        put_bytes(&mut version, field::EVENT_FILE_VERSION, b"brain.Event:2");
        writer.record(&version)?;
        let mut status = Vec::new();
        put_varint(&mut status, field::SESSION_LOG_STATUS, SESSION_START);
        let mut start = event(now, Some(first_step));
        put_bytes(&mut start, field::EVENT_SESSION_LOG, &status);
        writer.record(&start)?;
        Ok(writer)
    }

    /// Appends scalars of one step.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for &(tag, value) in values {
            let mut entry = Vec::new();
            put_bytes(&mut entry, field::VALUE_TAG, tag.as_bytes());
            entry.push(field::VALUE_SIMPLE);
            entry.extend((value as f32).to_le_bytes());
            put_bytes(&mut summary, field::SUMMARY_VALUE, &entry);
        }
        let mut event = event(wall_time(), Some(step));
        put_bytes(&mut event, field::EVENT_SUMMARY, &summary);
        self.record(&event)
    }

    /// One record, in one write, so that a kill leaves whole records but for the last.
    fn record(&mut self, data: &[u8]) -> io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked_crc(data).to_le_bytes());
        self.file.write_all(&record)
    }
}

fn wall_time() -> f64 {
    // A clock before 1970 only spoils the time axis.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

fn event(wall_time: f64, step: Option<u64>) -> Vec<u8> {
    let mut bytes = vec![field::EVENT_WALL_TIME];
    bytes.extend(wall_time.to_le_bytes());
    if let Some(step) = step {
        put_varint(&mut bytes, field::EVENT_STEP, step);
    }
    bytes
}

fn put_varint(bytes: &mut Vec<u8>, field: u8, value: u64) {
    bytes.push(field);
    varint(bytes, value);
}

fn put_bytes(bytes: &mut Vec<u8>, field: u8, contents: &[u8]) {
    bytes.push(field);
    varint(bytes, contents.len() as u64);
    bytes.extend(contents);
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// CRC-32C, rotated and offset, so that a checksum of data that hold checksums is not degenerate.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_lengths_and_checksums_of_the_format() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 300).unwrap();
        writer.scalars(300, &[("loss", 2.5), ("lr", 0.1)]).unwrap();
        let path = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = fs::read(path).unwrap();
        let (mut rest, mut records) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
            let data = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc(data).to_le_bytes());
            records.push(data);
            rest = &rest[16 + length..];
        }
        assert_eq!(records.len(), 3);
        assert!(records[0].ends_with(b"brain.Event:2"));
        // Step 300 is the varint ac 02; START is 1.
        assert_eq!(records[1][9..], [0x10, 0xac, 0x02, 0x3a, 2, 0x08, 1]);
        let loss: Vec<u8> = [&[0x0a, 4][..], b"loss", &[0x15], &2.5f32.to_le_bytes()].concat();
        assert!(records[2].windows(loss.len()).any(|window| window == loss));
    }

    #[test]
    fn masking_agrees_with_the_published_example() {
        // CRC-32C of "123456789" is e3069283 (RFC 3720's polynomial); masked as record_writer.h says.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn two_files_within_a_second_do_not_collide() {
        let folder = tempfile::tempdir().unwrap();
        let _first = EventWriter::create(folder.path(), 0).unwrap();
        let _second = EventWriter::create(folder.path(), 5).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
