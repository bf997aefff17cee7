//! The tag directories of TIFF, in which cameras also write EXIF: read in place, with every offset checked.

/// The first directory of a TIFF or BigTIFF file, or of an EXIF block.
pub(super) struct Tags<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    /// Offsets of 8 bytes: BigTIFF.
    wide: bool,
    first: usize,
    count: usize,
}

/// An entry: some numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    /// Bytes of each number.
    size: usize,
    /// How many there are.
    pub count: u64,
    /// Where they begin.
    pub at: usize,
}

pub(super) const WIDTH: u16 = 256;
pub(super) const HEIGHT: u16 = 257;
pub(super) const ORIENTATION: u16 = 274;

/// Tags that say how the pixels of a TIFF are stored.
#[cfg(feature = "tiff")]
pub(super) mod storage {
    pub const BITS: u16 = 258;
    pub const COMPRESSION: u16 = 259;
    pub const PHOTOMETRIC: u16 = 262;
    pub const STRIP_OFFSETS: u16 = 273;
    pub const ROWS_PER_STRIP: u16 = 278;
    pub const STRIP_BYTES: u16 = 279;
    pub const COLOUR_MAP: u16 = 320;
    pub const TILE_WIDTH: u16 = 322;
    pub const TILE_HEIGHT: u16 = 323;
    pub const TILE_OFFSETS: u16 = 324;
    pub const TILE_BYTES: u16 = 325;
    pub const SAMPLE_FORMAT: u16 = 339;
}

impl<'a> Tags<'a> {
    /// The first directory; `None` where there is none.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Self> {
        let big_endian = match bytes.get(..2)? {
            b"II" => false,
            b"MM" => true,
            _ => return None,
        };
        let mut tags = Self { bytes, big_endian, wide: false, first: 0, count: 0 };
        let (offset, count_bytes) = match tags.number(2, 2)? {
            42 => (tags.number(4, 4)?, 2),
            43 if tags.number(4, 2)? == 8 => {
                tags.wide = true;
                (tags.number(8, 8)?, 8)
            }
            _ => return None,
        };
        let offset = usize::try_from(offset).ok()?;
        let count = tags.number(offset, count_bytes)?;
        tags.first = offset.checked_add(count_bytes)?;
        let room = bytes.len().saturating_sub(tags.first) / tags.entry_bytes();
        tags.count = usize::try_from(count).map_or(room, |count| count.min(room));
        Some(tags)
    }

    /// The entry with an id, if it is there and is made of whole numbers that lie inside the file.
    pub(super) fn find(&self, id: u16) -> Option<Tag> {
        let entry = (0..self.count)
            .map(|entry| self.first + entry * self.entry_bytes())
            .find(|&at| self.number(at, 2) == Some(u64::from(id)))?;
        let size = match self.number(entry + 2, 2)? {
            1 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 13 => 4,
            16..=18 => 8,
            _ => return None,
        };
        let field = if self.wide { 8 } else { 4 };
        let count = self.number(entry + 4, field)?;
        let bytes = usize::try_from(count).ok()?.checked_mul(size)?;
        let value = entry + 4 + field;
        let at = if bytes <= field { value } else { usize::try_from(self.number(value, field)?).ok()? };
        self.bytes.get(at..at.checked_add(bytes)?)?;
        Some(Tag { size, count, at })
    }

    /// Number `index` of an entry.
    pub(super) fn value(&self, tag: Tag, index: u64) -> Option<u64> {
        (index < tag.count).then(|| self.number(tag.at + index as usize * tag.size, tag.size))?
    }

    /// The only, or first, number of the entry with an id.
    pub(super) fn one(&self, id: u16) -> Option<u64> {
        self.value(self.find(id)?, 0)
    }

    /// Whether numbers are written with their highest byte first.
    #[cfg(feature = "tiff")]
    pub(super) fn is_big_endian(&self) -> bool {
        self.big_endian
    }

    fn entry_bytes(&self) -> usize {
        if self.wide { 20 } else { 12 }
    }

    fn number(&self, at: usize, size: usize) -> Option<u64> {
        let field = self.bytes.get(at..at.checked_add(size)?)?;
        let join = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
        Some(if self.big_endian { field.iter().fold(0, join) } else { field.iter().rev().fold(0, join) })
    }
}
