//! Fields of tables with commas between them (RFC 4180).

use std::borrow::Cow;

/// A field: in quotes where it holds a comma, a quote or the end of a line.
pub(crate) fn field(text: &str) -> Cow<'_, str> {
    match text.contains([',', '"', '\n', '\r']) {
        true => Cow::Owned(format!("\"{}\"", text.replace('"', "\"\""))),
        false => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_to_be_is_quoted() {
        assert_eq!(field("a b/c.jpg"), "a b/c.jpg");
        assert_eq!(field("one, \"two\""), "\"one, \"\"two\"\"\"");
    }
}
