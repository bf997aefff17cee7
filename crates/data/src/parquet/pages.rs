//! The pages of one chunk of a column, as byte strings or as numbers. Only columns with at most one value a row are read.

use std::ops::Range;

use super::{
    codecs::decompress,
    encodings::{deltas, hybrid, lengths},
    footer::{Chunk, Column, Physical, check_inflation},
    thrift::{Kind, Parsed, Reader},
};

/// Byte strings of a chunk. Those of a dictionary are in memory once, however often they occur.
#[derive(Debug, Default)]
pub(super) struct Strings {
    buffer: Vec<u8>,
    /// Offset and length of each row's string in the buffer.
    cells: Vec<Option<Cell>>,
}

type Cell = (u64, u32);

impl Strings {
    /// The string of a row; `None` for a null, and beyond the end.
    pub(super) fn get(&self, row: usize) -> Option<&[u8]> {
        let (offset, length) = (*self.cells.get(row)?)?;
        self.buffer.get(offset as usize..)?.get(..length as usize)
    }

    /// Rows, nulls among them.
    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether some rows have no string.
    pub(super) fn has_nulls(&self) -> bool {
        self.cells.contains(&None)
    }

    /// The memory that it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.buffer.capacity() + self.cells.capacity() * size_of::<Option<Cell>>()
    }
}

/// Reads a chunk of byte strings from its bytes.
pub(super) fn read_strings(bytes: &[u8], chunk: &Chunk, column: &Column) -> Parsed<Strings> {
    let mut strings = Strings::default();
    let mut dictionary = Vec::new();
    let out = &mut strings.buffer;
    let mut pages = Pages::new(bytes, chunk);
    while let Some(page) = pages.next_page()? {
        let start = out.len();
        let Body { present, values } = page.inflate(chunk, column, out)?;
        if page.is_dictionary {
            dictionary = plain_strings(out, values, page.n_values)?;
            continue;
        }
        let n = present.count();
        let found = match page.encoding {
            0 => plain_strings(out, values, n)?,
            2 | 8 => {
                let found = looked_up(&out[values], n, &dictionary)?;
                out.truncate(start);
                found
            }
            6 => {
                let (lengths, rest) = lengths(&out[values.clone()], n)?;
                let mut place = values.end - rest.len()..values.end;
                lengths.into_iter().map(|length| cut(&mut place, length)).collect::<Parsed<Vec<_>>>()?
            }
            7 => prefixed_strings(out, values, n)?,
            other => return Err(unknown(other)),
        };
        present.spread(found, &mut strings.cells)?;
    }
    expect_rows(strings.cells.len(), chunk)?;
    strings.buffer.shrink_to_fit();
    Ok(strings)
}

/// Reads a chunk of numbers or truth values from its bytes; of floats, their bits.
pub(super) fn read_numbers(bytes: &[u8], chunk: &Chunk, column: &Column) -> Parsed<Vec<Option<i64>>> {
    let (mut numbers, mut dictionary, mut out) = (Vec::new(), Vec::new(), Vec::new());
    let mut pages = Pages::new(bytes, chunk);
    while let Some(page) = pages.next_page()? {
        out.clear();
        let Body { present, values } = page.inflate(chunk, column, &mut out)?;
        let values = &out[values];
        if page.is_dictionary {
            dictionary = plain_numbers(values, page.n_values, column.physical)?;
            continue;
        }
        let n = present.count();
        let found = match page.encoding {
            0 => plain_numbers(values, n, column.physical)?,
            2 | 8 => looked_up(values, n, &dictionary)?,
            3 if column.physical == Physical::Boolean => {
                let mut found = Vec::new();
                let runs = values.get(4..).ok_or("truth values are missing")?;
                hybrid(runs, 1, n, |value, n| {
                    found.extend(std::iter::repeat_n(i64::from(value), n));
                    Ok(())
                })?;
                found
            }
            5 => {
                let found = deltas(values, n)?.0;
                // Differences of 32 bits wrap as such.
                if column.physical == Physical::Int32 {
                    found.into_iter().map(|number| i64::from(number as i32)).collect()
                } else {
                    found
                }
            }
            other => return Err(unknown(other)),
        };
        present.spread(found, &mut numbers)?;
    }
    expect_rows(numbers.len(), chunk)?;
    Ok(numbers)
}

fn expect_rows(got: usize, chunk: &Chunk) -> Parsed<()> {
    if got as u64 == chunk.n_values {
        Ok(())
    } else {
        Err(format!("{} values, but should have {}", got, chunk.n_values).into())
    }
}

fn unknown(encoding: i64) -> crate::Cause {
    format!("values are in encoding {encoding}, which is not read here").into()
}

/// The pages of a chunk, one after the other.
struct Pages<'a> {
    rest: &'a [u8],
    /// Values that data pages may still have.
    n_left: u64,
}

struct Page<'a> {
    is_dictionary: bool,
    encoding: i64,
    n_values: usize,
    raw_bytes: usize,
    content: &'a [u8],
    /// For pages of version 2, the bytes of the levels, which stand before the compressed values, and whether these are compressed.
    second: Option<(usize, bool)>,
}

impl<'a> Pages<'a> {
    fn new(bytes: &'a [u8], chunk: &Chunk) -> Self {
        Self { rest: bytes, n_left: chunk.n_values }
    }

    /// The next page with values; `None` when there are all.
    fn next_page(&mut self) -> Parsed<Option<Page<'a>>> {
        while self.n_left > 0 {
            let mut reader = Reader::new(self.rest);
            let header = PageHeader::read(&mut reader)?;
            let content = &self.rest[self.rest.len() - reader.left()..];
            let bytes = usize::try_from(header.bytes).unwrap_or(usize::MAX);
            if bytes > content.len() {
                return Err(format!("a page of {bytes} bytes where {} are left", content.len()).into());
            }
            let (content, rest) = content.split_at(bytes);
            self.rest = rest;
            check_inflation(header.raw_bytes, header.bytes, header.n_values)?;
            let page = Page {
                is_dictionary: header.kind == 2,
                encoding: header.encoding,
                n_values: header.n_values as usize,
                raw_bytes: header.raw_bytes as usize,
                content,
                second: (header.kind == 3).then_some((header.level_bytes as usize, header.is_compressed)),
            };
            match header.kind {
                0 | 3 => {
                    self.n_left = self
                        .n_left
                        .checked_sub(header.n_values)
                        .ok_or("pages have more values than the chunk")?;
                    // A writer may close a chunk with an empty page, but not fill it with them.
                    if header.n_values > 0 {
                        return Ok(Some(page));
                    }
                }
                // As long as their bytes, at least: a string has its length before it.
                2 if header.n_values <= header.raw_bytes => return Ok(Some(page)),
                2 => return Err("a dictionary claims more values than it has bytes".into()),
                _ => {}
            }
        }
        Ok(None)
    }
}

#[derive(Default)]
struct PageHeader {
    kind: i64,
    raw_bytes: u64,
    bytes: u64,
    n_values: u64,
    encoding: i64,
    level_bytes: u64,
    is_compressed: bool,
}

impl PageHeader {
    fn read(reader: &mut Reader<'_>) -> Parsed<Self> {
        let mut header = Self { is_compressed: true, ..Self::default() };
        reader.structure(|reader, number, kind| {
            match (number, kind) {
                (1, Kind::Integer) => header.kind = reader.integer()?,
                (2, Kind::Integer) => header.raw_bytes = reader.count()?,
                (3, Kind::Integer) => header.bytes = reader.count()?,
                (5 | 7, Kind::Struct) => reader.structure(|reader, number, kind| {
                    match (number, kind) {
                        (1, Kind::Integer) => header.n_values = reader.count()?,
                        (2, Kind::Integer) => header.encoding = reader.integer()?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?,
                (8, Kind::Struct) => reader.structure(|reader, number, kind| {
                    match (number, kind) {
                        (1, Kind::Integer) => header.n_values = reader.count()?,
                        (4, Kind::Integer) => header.encoding = reader.integer()?,
                        (5 | 6, Kind::Integer) => {
                            header.level_bytes = header.level_bytes.saturating_add(reader.count()?);
                        }
                        (7, Kind::True | Kind::False) => header.is_compressed = kind == Kind::True,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(header)
    }
}

/// A page inflated: which rows have values, and where these lie.
struct Body {
    present: Present,
    values: Range<usize>,
}

impl Page<'_> {
    /// Appends the page to `out`.
    fn inflate(&self, chunk: &Chunk, column: &Column, out: &mut Vec<u8>) -> Parsed<Body> {
        let start = out.len();
        let levels_at = if let Some((level_bytes, is_compressed)) = self.second {
            let levels = self.content.get(..level_bytes).ok_or("levels are missing")?;
            out.extend_from_slice(levels);
            let raw = self.raw_bytes.checked_sub(level_bytes).ok_or("levels take more than the page")?;
            let codec = if is_compressed { chunk.codec } else { 0 };
            let values = &self.content[level_bytes..];
            if !values.is_empty() {
                decompress(codec, values, raw, out)?;
            }
            Some(start..start + level_bytes)
        } else {
            decompress(chunk.codec, self.content, self.raw_bytes, out)?;
            None
        };
        if self.is_dictionary || column.max_definition == 0 {
            let values_at = levels_at.map_or(start, |levels| levels.end);
            return Ok(Body { present: Present::All(self.n_values), values: values_at..out.len() });
        }
        let (levels, values_at) = match levels_at {
            Some(levels) => (&out[levels.clone()], levels.end),
            None => {
                let field = out.get(start..start + 4).and_then(|field| field.try_into().ok());
                let length = u32::from_le_bytes(field.ok_or("levels are missing")?) as usize;
                let levels = out[start + 4..].get(..length).ok_or("levels are missing")?;
                (levels, start + 4 + length)
            }
        };
        let width = u8::BITS - column.max_definition.leading_zeros();
        let mut runs: Vec<(bool, usize)> = Vec::new();
        hybrid(levels, width, self.n_values, |level, n| {
            let is_present = level == u32::from(column.max_definition);
            match runs.last_mut() {
                Some(last) if last.0 == is_present => last.1 += n,
                _ => runs.push((is_present, n)),
            }
            Ok(())
        })?;
        Ok(Body { present: Present::Runs(runs), values: values_at..out.len() })
    }
}

/// Which rows of a page have a value.
enum Present {
    All(usize),
    Runs(Vec<(bool, usize)>),
}

impl Present {
    /// How many do.
    fn count(&self) -> usize {
        match self {
            Self::All(n) => *n,
            Self::Runs(runs) => runs.iter().filter(|run| run.0).map(|run| run.1).sum(),
        }
    }

    /// Appends the values to `rows`, with nulls between them.
    fn spread<T>(&self, values: Vec<T>, rows: &mut Vec<Option<T>>) -> Parsed<()> {
        if values.len() != self.count() {
            return Err(
                format!("a page has {} values, but should have {}", values.len(), self.count()).into()
            );
        }
        let mut values = values.into_iter();
        match self {
            Self::All(_) => rows.extend(values.map(Some)),
            Self::Runs(runs) => {
                for &(is_present, n) in runs {
                    if is_present {
                        rows.extend(values.by_ref().take(n).map(Some));
                    } else {
                        rows.extend(std::iter::repeat_with(|| None).take(n));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Strings with their lengths of 4 bytes before them.
fn plain_strings(buffer: &[u8], mut place: Range<usize>, n: usize) -> Parsed<Vec<Cell>> {
    (0..n)
        .map(|_| {
            let head = cut(&mut place, 4)?.0 as usize;
            let length = buffer[head..head + 4].try_into().map_err(|_| "a string is cut")?;
            cut(&mut place, u32::from_le_bytes(length) as usize)
        })
        .collect()
}

/// The next string of that length.
fn cut(place: &mut Range<usize>, length: usize) -> Parsed<Cell> {
    if length > place.len() {
        return Err(format!("a string of {length} bytes where {} are left", place.len()).into());
    }
    let cell = (place.start as u64, u32::try_from(length).map_err(|_| "a string is above 4 GiB")?);
    place.start += length;
    Ok(cell)
}

/// Strings that share their beginnings with the one before: they are written out behind the page.
fn prefixed_strings(buffer: &mut Vec<u8>, place: Range<usize>, n: usize) -> Parsed<Vec<Cell>> {
    let (prefixes, rest) = lengths(&buffer[place.clone()], n)?;
    let (suffixes, rest) = lengths(rest, n)?;
    let mut suffix = place.end - rest.len()..place.end;
    let total: u64 = prefixes.iter().chain(&suffixes).map(|&length| length as u64).sum();
    check_inflation(total, place.len() as u64, n as u64)?;
    let mut last: Range<usize> = 0..0;
    prefixes
        .into_iter()
        .zip(suffixes)
        .map(|(shared, length)| {
            if shared > last.len() {
                return Err("a string shares more than the one before has".into());
            }
            let (from, _) = cut(&mut suffix, length)?;
            let start = buffer.len();
            buffer.extend_from_within(last.start..last.start + shared);
            buffer.extend_from_within(from as usize..from as usize + length);
            last = start..buffer.len();
            cut(&mut last.clone(), last.len())
        })
        .collect()
}

/// Values by their places in the dictionary; the first byte says how many bits a place has.
fn looked_up<T: Copy>(values: &[u8], n: usize, dictionary: &[T]) -> Parsed<Vec<T>> {
    let Some((&width, runs)) = values.split_first() else {
        return if n == 0 { Ok(Vec::new()) } else { Err("places in the dictionary are missing".into()) };
    };
    let mut found = Vec::with_capacity(n);
    hybrid(runs, width.into(), n, |place, n| {
        let value = dictionary.get(place as usize);
        let value = value.ok_or_else(|| format!("place {place} in a dictionary of {}", dictionary.len()))?;
        found.extend(std::iter::repeat_n(*value, n));
        Ok(())
    })?;
    Ok(found)
}

fn plain_numbers(values: &[u8], n: usize, physical: Physical) -> Parsed<Vec<i64>> {
    let found: Vec<i64> = match physical {
        Physical::Boolean => {
            (0..n.min(values.len() * 8)).map(|at| i64::from(values[at / 8] >> (at % 8) & 1)).collect()
        }
        Physical::Int32 | Physical::Float => {
            let four = |value: &[u8]| i32::from_le_bytes([value[0], value[1], value[2], value[3]]);
            values.chunks_exact(4).take(n).map(|value| i64::from(four(value))).collect()
        }
        Physical::Int64 | Physical::Double => values
            .chunks_exact(8)
            .take(n)
            .map(|value| {
                value.iter().rev().fold(0_u64, |number, &byte| number << 8 | u64::from(byte)).cast_signed()
            })
            .collect(),
        other => return Err(format!("{other:?} is no number").into()),
    };
    Ok(found)
}
