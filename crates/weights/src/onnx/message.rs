//! Messages of protocol buffers: fields with numbers, one after the other. Large contents are borrowed until they are written.

use std::borrow::Cow;
use std::io::{self, Write};

/// Contents of fewer bytes are copied.
const SMALL: usize = 1 << 12;

/// A message that grows field by field.
#[derive(Default)]
pub(super) struct Message<'a> {
    pieces: Vec<Cow<'a, [u8]>>,
    len: u64,
}

impl<'a> Message<'a> {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// An integer.
    pub(super) fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    /// A 32-bit float.
    pub(super) fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.push(value.to_le_bytes().to_vec().into());
    }

    pub(super) fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes().to_vec().into());
    }

    pub(super) fn bytes(&mut self, field: u64, bytes: Cow<'a, [u8]>) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.push(bytes);
    }

    /// A message inside this one.
    pub(super) fn message(&mut self, field: u64, message: Message<'a>) {
        self.varint(field << 3 | 2);
        self.varint(message.len);
        for piece in message.pieces {
            self.push(piece);
        }
    }

    /// The fields of another message, behind those of this one.
    pub(super) fn append(&mut self, message: Message<'a>) {
        for piece in message.pieces {
            self.push(piece);
        }
    }

    pub(super) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        self.pieces.iter().try_for_each(|piece| to.write_all(piece))
    }

    /// Seven bits a byte, the lowest first.
    fn varint(&mut self, mut value: u64) {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        self.push(bytes.into());
    }

    fn push(&mut self, piece: Cow<'a, [u8]>) {
        self.len += piece.len() as u64;
        match self.pieces.last_mut() {
            Some(Cow::Owned(last)) if piece.len() < SMALL && last.len() < 4 * SMALL => {
                last.extend_from_slice(&piece)
            }
            _ if piece.len() < SMALL => self.pieces.push(Cow::Owned(piece.into_owned())),
            _ => self.pieces.push(piece),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the examples in the documentation of protocol buffers.
    #[test]
    fn fields_are_written_as_documented() {
        let mut inner = Message::new();
        inner.number(1, 150);
        let mut message = Message::new();
        message.text(2, "testing");
        message.message(3, inner);
        message.float(4, 1.0);
        let mut bytes = Vec::new();
        message.write(&mut bytes).unwrap();
        assert_eq!(bytes, b"\x12\x07testing\x1a\x03\x08\x96\x01\x25\0\0\x80\x3f");
        assert_eq!(message.len(), bytes.len() as u64);
    }
}
