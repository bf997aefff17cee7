//! Thrift's compact protocol, as Parquet's footer and page headers are written in: read in place, never beyond the bytes that are
//! there, to a bounded depth.

use crate::Cause;

pub(super) type Parsed<T> = Result<T, Cause>;

/// Structures within structures; the format itself needs 6.
const MAX_DEPTH: u32 = 24;

/// What a field holds, by its number in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    True,
    False,
    Byte,
    /// Of 16, 32 or 64 bits: all are written alike.
    Integer,
    Double,
    Bytes,
    List,
    Map,
    Struct,
}

impl Kind {
    fn of(code: u8) -> Parsed<Self> {
        Ok(match code {
            1 => Self::True,
            2 => Self::False,
            3 => Self::Byte,
            4..=6 => Self::Integer,
            7 => Self::Double,
            8 => Self::Bytes,
            9 | 10 => Self::List,
            11 => Self::Map,
            12 => Self::Struct,
            other => return Err(format!("no thrift type has the number {other}").into()),
        })
    }
}

/// What is left to read.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    depth: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, depth: 0 }
    }

    /// Bytes not read yet.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Reads a structure: `field` gets the number and kind of each field and reads it, or says that it has not (`false`), so that the
    /// field is passed over.
    pub(super) fn structure(
        &mut self,
        mut field: impl FnMut(&mut Self, i16, Kind) -> Parsed<bool>,
    ) -> Parsed<()> {
        self.deeper()?;
        let mut number = 0_i16;
        loop {
            let head = self.byte()?;
            if head == 0 {
                self.depth -= 1;
                return Ok(());
            }
            let kind = Kind::of(head & 0x0f)?;
            number = match head >> 4 {
                0 => i16::try_from(self.integer()?).map_err(|_| "a field number is out of range")?,
                step => number.checked_add(i16::from(step)).ok_or("a field number is out of range")?,
            };
            if !field(self, number, kind)? {
                self.skip(kind)?;
            }
        }
    }

    /// Reads a list whose elements take at least `min_bytes` each, so that the file cannot claim more than it has.
    pub(super) fn list<T>(
        &mut self,
        min_bytes: usize,
        mut element: impl FnMut(&mut Self, Kind) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let (kind, count) = self.list_head()?;
        if count.saturating_mul(min_bytes.max(1)) > self.rest.len() {
            return Err(format!("a list of {count} elements in {} bytes", self.rest.len()).into());
        }
        (0..count).map(|_| element(self, kind)).collect()
    }

    /// A whole number of any width.
    pub(super) fn integer(&mut self) -> Parsed<i64> {
        let raw = self.varint()?;
        Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    /// A whole number that may not be negative.
    pub(super) fn count(&mut self) -> Parsed<u64> {
        let number = self.integer()?;
        u64::try_from(number).map_err(|_| format!("expected a count, found {number}").into())
    }

    /// A string or byte string.
    pub(super) fn bytes(&mut self) -> Parsed<&'a [u8]> {
        let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        let rest = self.rest;
        if length > rest.len() {
            return Err(format!("a string of {length} bytes in {}", rest.len()).into());
        }
        let (found, after) = rest.split_at(length);
        self.rest = after;
        Ok(found)
    }

    /// A string; what is no UTF-8 in it is replaced.
    pub(super) fn text(&mut self) -> Parsed<String> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    /// A byte, as fields of that kind have it.
    pub(super) fn byte(&mut self) -> Parsed<u8> {
        let (&first, rest) = self.rest.split_first().ok_or("the structure has no end")?;
        self.rest = rest;
        Ok(first)
    }

    fn varint(&mut self) -> Parsed<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number is longer than 64 bits".into())
    }

    fn list_head(&mut self) -> Parsed<(Kind, usize)> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => usize::try_from(self.varint()?).unwrap_or(usize::MAX),
            count => usize::from(count),
        };
        Ok((Kind::of(head & 0x0f)?, count))
    }

    fn deeper(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err("structures are nested too deeply".into()) } else { Ok(()) }
    }

    /// Passes over a value.
    pub(super) fn skip(&mut self, kind: Kind) -> Parsed<()> {
        match kind {
            Kind::True | Kind::False => {}
            Kind::Byte => _ = self.byte()?,
            Kind::Integer => _ = self.varint()?,
            Kind::Double => self.rest = self.rest.get(8..).ok_or("the structure has no end")?,
            Kind::Bytes => _ = self.bytes()?,
            Kind::Struct => self.structure(|_, _, _| Ok(false))?,
            Kind::List => {
                let (kind, count) = self.list_head()?;
                self.deeper()?;
                for _ in 0..count {
                    self.skip_element(kind)?;
                }
                self.depth -= 1;
            }
            Kind::Map => {
                let count = self.varint()?;
                if count > 0 {
                    let kinds = self.byte()?;
                    let (key, value) = (Kind::of(kinds >> 4)?, Kind::of(kinds & 0x0f)?);
                    self.deeper()?;
                    for _ in 0..count {
                        self.skip_element(key)?;
                        self.skip_element(value)?;
                    }
                    self.depth -= 1;
                }
            }
        }
        Ok(())
    }

    /// Truth values take a byte in lists, none in fields; so no element takes no byte, and a count cannot outlast the file.
    fn skip_element(&mut self, kind: Kind) -> Parsed<()> {
        match kind {
            Kind::True | Kind::False => self.byte().map(|_| ()),
            other => self.skip(other),
        }
    }
}
