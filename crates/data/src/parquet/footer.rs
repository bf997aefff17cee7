//! The footer of a Parquet file: its columns and row groups, and the checks that make everything after it safe to follow.
//!
//! What holds of a footer that was read: the schema is a tree of bounded depth; every row group has a chunk for each column; a
//! chunk lies inside the file before the footer, and does not inflate by more than [`MAX_INFLATION`]; and there are no more rows than the file has
//! bytes, since an image that takes less than a byte is none.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
};

use super::thrift::{Kind, Parsed, Reader};

/// By how much data may inflate.
const MAX_INFLATION: u64 = 1024;
/// What each value, and all of them together, may inflate to freely.
const VALUE_BYTES: u64 = 16;
const FREE_BYTES: u64 = 1 << 20;
/// Groups within groups of the schema.
const MAX_GROUPS: usize = 32;
const MAGIC: &[u8; 4] = b"PAR1";

/// What the values of a column are in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Physical {
    Boolean,
    Int32,
    Int64,
    Int96,
    Float,
    Double,
    ByteArray,
    FixedBytes,
}

/// A column: a leaf of the schema.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// Names from the root's child down.
    pub path: Vec<String>,
    pub physical: Physical,
    /// Whether bytes are said to be text.
    pub is_text: bool,
    /// The width of integers that are said to be unsigned, in bits.
    pub unsigned_bits: Option<u8>,
    /// Whether numbers are said to be something else: dates, times, decimals.
    pub is_special: bool,
    /// How many of its ancestors and itself may be missing.
    pub max_definition: u8,
    /// Whether a row may have several values.
    pub is_repeated: bool,
}

/// The part of a column that lies in one row group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub offset: u64,
    pub bytes: u64,
    pub codec: i64,
    pub n_values: u64,
}

/// A row group: one chunk for each column.
#[derive(Clone, Debug)]
pub(super) struct RowGroup {
    pub n_rows: u64,
    /// Uncompressed bytes by the file's own account.
    pub total_bytes: u64,
    pub chunks: Vec<Chunk>,
}

/// A footer that was read and checked.
#[derive(Clone, Debug)]
pub(super) struct Footer {
    pub columns: Vec<Column>,
    pub groups: Vec<RowGroup>,
    /// What the writer says besides, by key.
    pub notes: Vec<(String, String)>,
}

impl Footer {
    /// Reads the footer of a file.
    pub(super) fn read(file: &mut File) -> Parsed<Self> {
        let length = file.metadata()?.len();
        if length < 12 {
            return Err(format!("no Parquet file has {length} bytes").into());
        }
        let mut ends = [0; 12];
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut ends[..4])?;
        file.seek(SeekFrom::Start(length - 8))?;
        file.read_exact(&mut ends[4..])?;
        if &ends[..4] != MAGIC || &ends[8..] != MAGIC {
            let reason =
                if &ends[8..] == b"PARE" { "it is encrypted" } else { "it does not begin and end with PAR1" };
            return Err(format!("not a Parquet file, or cut: {reason}").into());
        }
        let footer_bytes = u64::from(u32::from_le_bytes([ends[4], ends[5], ends[6], ends[7]]));
        if footer_bytes > length - 12 {
            return Err(format!("a Parquet footer of {footer_bytes} bytes in a file of {length}").into());
        }
        let end = length - 8 - footer_bytes;
        file.seek(SeekFrom::Start(end))?;
        let mut bytes = vec![0; footer_bytes as usize];
        file.read_exact(&mut bytes)?;
        Self::parse(&bytes, end)
    }

    /// Reads a footer from its bytes, for a file whose data end at `end`.
    pub(super) fn parse(bytes: &[u8], end: u64) -> Parsed<Self> {
        let (mut schema, mut raw_groups, mut notes, mut encrypted) =
            (Vec::new(), Vec::new(), Vec::new(), false);
        Reader::new(bytes).structure(|reader, number, kind| {
            match (number, kind) {
                (2, Kind::List) => schema = reader.list(3, |reader, _| SchemaElement::read(reader))?,
                (4, Kind::List) => raw_groups = reader.list(7, |reader, _| RawGroup::read(reader))?,
                (5, Kind::List) => notes = reader.list(3, |reader, _| note(reader))?,
                (8, _) => {
                    encrypted = true;
                    return Ok(false);
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if encrypted {
            return Err("the file is encrypted".into());
        }
        let columns = columns(&schema)?;
        let mut n_rows = 0_u64;
        let groups = raw_groups
            .into_iter()
            .enumerate()
            .map(|(at, group)| {
                n_rows = n_rows.saturating_add(group.n_rows);
                group.check(&columns, end).map_err(|reason| format!("row group {at}: {reason}").into())
            })
            .collect::<Parsed<Vec<RowGroup>>>()?;
        if n_rows > end {
            return Err(format!("{n_rows} rows in a file with {end} bytes of data").into());
        }
        Ok(Self { columns, groups, notes })
    }
}

fn note(reader: &mut Reader<'_>) -> Parsed<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    reader.structure(|reader, number, kind| {
        match (number, kind) {
            (1, Kind::Bytes) => key = reader.text()?,
            (2, Kind::Bytes) => value = reader.text()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((key, value))
}

/// A node of the schema, in the order of a walk from the root.
#[derive(Default)]
struct SchemaElement {
    name: String,
    physical: Option<i64>,
    repetition: i64,
    n_children: u64,
    converted: Option<i64>,
    /// The number of the logical type's variant, and for integers the width and whether they are signed.
    logical: Option<(i16, u8, bool)>,
}

impl SchemaElement {
    fn read(reader: &mut Reader<'_>) -> Parsed<Self> {
        let mut element = Self::default();
        reader.structure(|reader, number, kind| {
            match (number, kind) {
                (1, Kind::Integer) => element.physical = Some(reader.integer()?),
                (3, Kind::Integer) => element.repetition = reader.integer()?,
                (4, Kind::Bytes) => element.name = reader.text()?,
                (5, Kind::Integer) => element.n_children = reader.count()?,
                (6, Kind::Integer) => element.converted = Some(reader.integer()?),
                (10, Kind::Struct) => reader.structure(|reader, variant, kind| {
                    let (mut bits, mut signed) = (0, true);
                    let is_integer = variant == 10 && kind == Kind::Struct;
                    if is_integer {
                        reader.structure(|reader, number, kind| {
                            match (number, kind) {
                                (1, Kind::Byte) => bits = reader.byte()?,
                                (2, Kind::True | Kind::False) => signed = kind == Kind::True,
                                _ => return Ok(false),
                            }
                            Ok(true)
                        })?;
                    }
                    element.logical = Some((variant, bits, signed));
                    Ok(is_integer)
                })?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(element)
    }

    fn unsigned_bits(&self) -> Option<u8> {
        match (self.logical, self.converted) {
            (Some((10, bits, false)), _) => Some(bits),
            (None, Some(converted @ 11..=14)) => Some(8 << (converted - 11)),
            _ => None,
        }
    }

    fn is_text(&self) -> bool {
        matches!(self.logical, Some((1 | 4 | 12, ..))) || matches!(self.converted, Some(0 | 4 | 19))
    }

    /// Dates, times, decimals and the like, whose numbers mean something else.
    fn is_special(&self) -> bool {
        let by_logical = matches!(self.logical, Some((variant, ..)) if !matches!(variant, 1 | 4 | 10 | 12));
        by_logical || (self.logical.is_none() && matches!(self.converted, Some(5..=10 | 20 | 21)))
    }
}

/// The leaves of the schema.
fn columns(schema: &[SchemaElement]) -> Parsed<Vec<Column>> {
    let (root, elements) = schema.split_first().ok_or("the schema is empty")?;
    let mut columns = Vec::new();
    // The groups that the walk is in: children still to come, definition level, repetition.
    let mut open = vec![(root.n_children, String::new(), 0_u8, false)];
    for element in elements {
        while open.len() > 1 && open.last().is_some_and(|group| group.0 == 0) {
            open.pop();
        }
        let group =
            open.last_mut().filter(|group| group.0 > 0).ok_or("the schema has more nodes than children")?;
        group.0 -= 1;
        let max_definition = group.2 + u8::from(element.repetition != 0);
        let is_repeated = group.3 || element.repetition == 2;
        if element.n_children > 0 || element.physical.is_none() {
            if open.len() > MAX_GROUPS {
                return Err("the schema is nested too deeply".into());
            }
            open.push((element.n_children, element.name.clone(), max_definition, is_repeated));
            continue;
        }
        let physical = match element.physical.unwrap_or(-1) {
            0 => Physical::Boolean,
            1 => Physical::Int32,
            2 => Physical::Int64,
            3 => Physical::Int96,
            4 => Physical::Float,
            5 => Physical::Double,
            6 => Physical::ByteArray,
            7 => Physical::FixedBytes,
            other => return Err(format!("no physical type has the number {other}").into()),
        };
        let path = open.iter().skip(1).map(|group| group.1.clone()).chain([element.name.clone()]).collect();
        columns.push(Column {
            path,
            physical,
            is_text: element.is_text(),
            unsigned_bits: element.unsigned_bits(),
            is_special: element.is_special(),
            max_definition,
            is_repeated,
        });
    }
    if open.iter().any(|group| group.0 > 0) {
        return Err("the schema has fewer nodes than children".into());
    }
    Ok(columns)
}

/// A row group as it is written.
#[derive(Default)]
struct RawGroup {
    n_rows: u64,
    total_bytes: u64,
    chunks: Vec<RawChunk>,
}

#[derive(Default)]
struct RawChunk {
    elsewhere: bool,
    encrypted: bool,
    codec: i64,
    n_values: u64,
    raw_bytes: u64,
    bytes: u64,
    data_offset: u64,
    dictionary_offset: Option<u64>,
}

impl RawGroup {
    fn read(reader: &mut Reader<'_>) -> Parsed<Self> {
        let mut group = Self::default();
        reader.structure(|reader, number, kind| {
            match (number, kind) {
                (1, Kind::List) => group.chunks = reader.list(12, |reader, _| RawChunk::read(reader))?,
                (2, Kind::Integer) => group.total_bytes = reader.count()?,
                (3, Kind::Integer) => group.n_rows = reader.count()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(group)
    }

    fn check(self, columns: &[Column], end: u64) -> Parsed<RowGroup> {
        if self.chunks.len() != columns.len() {
            return Err(format!("{} chunks for {} columns", self.chunks.len(), columns.len()).into());
        }
        let chunks = self.chunks.into_iter().zip(columns).map(|(chunk, column)| {
            chunk
                .check(end, (!column.is_repeated).then_some(self.n_rows))
                .map_err(|reason| format!("column {}: {reason}", column.path.join(".")).into())
        });
        let chunks = chunks.collect::<Parsed<Vec<Chunk>>>()?;
        Ok(RowGroup { n_rows: self.n_rows, total_bytes: self.total_bytes, chunks })
    }
}

impl RawChunk {
    fn read(reader: &mut Reader<'_>) -> Parsed<Self> {
        let mut chunk = Self::default();
        reader.structure(|reader, number, kind| {
            match (number, kind) {
                (1, Kind::Bytes) => chunk.elsewhere = !reader.bytes()?.is_empty(),
                (3, Kind::Struct) => reader.structure(|reader, number, kind| {
                    match (number, kind) {
                        (4, Kind::Integer) => chunk.codec = reader.integer()?,
                        (5, Kind::Integer) => chunk.n_values = reader.count()?,
                        (6, Kind::Integer) => chunk.raw_bytes = reader.count()?,
                        (7, Kind::Integer) => chunk.bytes = reader.count()?,
                        (9, Kind::Integer) => chunk.data_offset = reader.count()?,
                        // Some writers put 0 where there is none.
                        (11, Kind::Integer) => {
                            chunk.dictionary_offset = Some(reader.count()?).filter(|&offset| offset > 0);
                        }
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?,
                (8, _) => {
                    chunk.encrypted = true;
                    return Ok(false);
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(chunk)
    }

    fn check(self, end: u64, n_rows: Option<u64>) -> Parsed<Chunk> {
        if self.elsewhere {
            return Err("its data are in another file".into());
        }
        if self.encrypted {
            return Err("it is encrypted".into());
        }
        if let Some(n_rows) = n_rows.filter(|&n_rows| n_rows != self.n_values) {
            return Err(format!("{} values for {n_rows} rows", self.n_values).into());
        }
        let offset = self.dictionary_offset.map_or(self.data_offset, |first| first.min(self.data_offset));
        let ends = offset.checked_add(self.bytes);
        if offset < 4 || ends.is_none_or(|ends| ends > end) {
            return Err(format!("{} bytes from {offset} on, where data end at {end}", self.bytes).into());
        }
        check_inflation(self.raw_bytes, self.bytes, self.n_values)?;
        Ok(Chunk { offset, bytes: self.bytes, codec: self.codec, n_values: self.n_values })
    }
}

/// Refuses what claims to inflate beyond all measure: encoded images do not get smaller by compression; raw pixels do, but not
/// by more than [`MAX_INFLATION`]; and numbers, which may, take few bytes each.
pub(super) fn check_inflation(raw_bytes: u64, bytes: u64, n_values: u64) -> Parsed<()> {
    let allowed = bytes.saturating_mul(MAX_INFLATION).max(n_values.saturating_mul(VALUE_BYTES));
    if raw_bytes > allowed.saturating_add(FREE_BYTES) {
        return Err(format!("{bytes} bytes claim to inflate to {raw_bytes}").into());
    }
    Ok(())
}
