//! How a list of images is written: what divides its columns, which of them hold paths, labels and splits, and whether the
//! first line names them. Told from the first lines, and where that is not enough, from whether files exist.

use std::{borrow::Cow, path::Path};

use crate::{DataSpec, Split, list::split_list_line, names::bytes_path};

/// How the lines of a list are to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// What divides columns; blanks behind the path where nothing does.
    delimiter: Option<u8>,
    /// Whether the first line names the columns.
    pub(crate) has_header: bool,
    path: usize,
    label: Option<usize>,
    split: Option<usize>,
    /// Columns that are not used, by name or number.
    unused: Vec<String>,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub(crate) path: Cow<'a, [u8]>,
    pub(crate) label: Option<Cow<'a, [u8]>>,
    pub(crate) split: Option<Split>,
}

/// Lines that are looked at before the rest is read.
const N_LINES: usize = 256;
const DELIMITERS: [u8; 4] = [b'\t', b';', b',', b'|'];
const PATHS: [&str; 17] = [
    "path",
    "file_path",
    "filepath",
    "image_path",
    "img_path",
    "file",
    "file_name",
    "filename",
    "image_name",
    "image",
    "img_name",
    "img",
    "image_id",
    "photo",
    "picture",
    "name",
    "id",
];
const LABELS: [&str; 14] = [
    "label",
    "class",
    "category",
    "target",
    "class_name",
    "label_name",
    "class_id",
    "label_id",
    "category_name",
    "species",
    "breed",
    "labels",
    "classes",
    "y",
];
const SPLITS: [&str; 6] = ["split", "subset", "set", "partition", "phase", "usage"];

impl Dialect {
    /// Tells how lines are written that are neither empty nor comments.
    pub(crate) fn of(lines: &[&[u8]], folder: &Path, config: &DataSpec) -> Self {
        let lines = &lines[..lines.len().min(N_LINES)];
        let columns = DELIMITERS.iter().find_map(|&delimiter| Self::with(delimiter, lines, folder, config));
        columns.unwrap_or_else(|| Self::blanks(lines, folder, config))
    }

    /// Lists whose columns are divided by a character, if these lines can be one.
    fn with(delimiter: u8, lines: &[&[u8]], folder: &Path, config: &DataSpec) -> Option<Self> {
        let rows: Vec<Vec<Cow<'_, [u8]>>> = lines.iter().map(|line| fields(line, delimiter)).collect();
        let n_columns = rows.iter().map(Vec::len).max().filter(|&columns| columns >= 2)?;
        let body = &rows[usize::from(rows.len() > 1)..];
        let is_image = |row: &[Cow<'_, [u8]>], column: usize| {
            row.get(column).is_some_and(|field| config.is_image_name(field))
        };
        let hits = |column: usize| body.iter().filter(|row| is_image(row, column)).count();
        let best = (0..n_columns).rev().max_by_key(|&column| hits(column)).unwrap_or(0);
        let names: Vec<String> =
            rows[0].iter().map(|name| String::from_utf8_lossy(name).to_lowercase()).collect();
        let named =
            |known: &[&str]| known.iter().find_map(|known| names.iter().position(|name| name == known));
        let is_known = named(&PATHS).is_some() && (named(&LABELS).is_some() || named(&SPLITS).is_some());
        let path = match (hits(best), named(&PATHS)) {
            (0, Some(path)) if is_known => path,
            (0, _) => return None,
            _ => best,
        };
        let names_columns =
            !config.is_image_name(lines[0]) && !rows[0].iter().any(|field| config.is_image_name(field));
        let has_header = names_columns && (is_known || rows.len() > 1) && rows[0].len() >= 2;
        let exists = |path: &[u8]| folder.join(bytes_path(path)).is_file();
        // A path may hold the character itself.
        let whole = lines.iter().zip(&rows).skip(usize::from(has_header)).filter(|(_, row)| row.len() >= 2);
        if whole.clone().take(4).any(|(line, _)| exists(line)) {
            return None;
        }
        if path > 0 {
            let is_plain = !has_header && n_columns == 2 && delimiter == b',';
            let first = body.first().and_then(|row| row.get(path));
            if body.iter().any(|row| row.len() <= path)
                || (is_plain && !first.is_some_and(|path| exists(path)))
            {
                return None;
            }
        }
        let mut dialect = Self { delimiter: Some(delimiter), has_header, path, ..Self::default() };
        let values =
            |column: usize| rows[usize::from(has_header)..].iter().filter_map(move |row| row.get(column));
        let is_split = |column: usize| {
            values(column).all(|value| Split::of_name(&String::from_utf8_lossy(value)).is_some())
        };
        let others = || (0..n_columns).filter(|&column| column != path);
        dialect.split = match (has_header, named(&SPLITS)) {
            (true, Some(column)) if column != path => Some(column),
            _ if n_columns >= 3 => others().find(|&column| is_split(column)),
            _ => None,
        };
        let free = |column: &usize| Some(*column) != dialect.split;
        let by_name = named(&LABELS).filter(|column| has_header && *column != path && free(column));
        let is_index = path == 1 && values(0).zip(values(0).skip(1)).all(|(a, b)| follows(a, b));
        let after = || (path + 1..n_columns).find(free);
        dialect.label = match by_name {
            Some(column) => Some(column),
            None if path == 0 || is_index => after(),
            None => (0..path).find(free),
        };
        let is_used = |column: &usize| [dialect.label, dialect.split].contains(&Some(*column));
        let name = |column: usize| match names.get(column).filter(|name| has_header && !name.is_empty()) {
            Some(name) => format!("`{name}`"),
            None => format!("number {}", column + 1),
        };
        dialect.unused = others().filter(|column| !is_used(column)).map(name).collect();
        Some(dialect)
    }

    /// Lists with at most blanks between path and label.
    fn blanks(lines: &[&[u8]], folder: &Path, config: &DataSpec) -> Self {
        let is_image = |line: &[u8]| config.is_image_name(line);
        let names_column = |line: &&[u8]| PATHS.iter().any(|name| line.eq_ignore_ascii_case(name.as_bytes()));
        let has_header = lines.first().is_some_and(names_column)
            || (lines.len() > 1
                && !lines[0].iter().any(|byte| b"./ ".contains(byte))
                && lines[1..].iter().all(|line| is_image(line)));
        let mut dialect = Self { has_header, ..Self::default() };
        // Numbers before the paths: a path may begin so itself, so that the files decide.
        let body = &lines[usize::from(has_header).min(lines.len())..];
        let cut: Option<Vec<(&[u8], &[u8])>> = body.iter().map(|line| numbered(line)).collect();
        if let Some(cut) = cut
            && let Some((_, first)) = cut.first()
        {
            let exists = |path: &[u8]| folder.join(bytes_path(path)).is_file();
            if exists(first) && !exists(body[0]) {
                dialect.path = 1;
                let is_index = cut.iter().zip(cut.iter().skip(1)).all(|((a, _), (b, _))| follows(a, b));
                dialect.label = (!is_index).then_some(0);
            }
        }
        dialect
    }

    /// Takes a line apart; `None` if it has no path.
    pub(crate) fn read<'a>(&self, line: &'a [u8], config: &DataSpec) -> Option<Row<'a>> {
        let Some(delimiter) = self.delimiter else { return self.read_blanks(line, config) };
        let mut fields = fields(line, delimiter);
        let mut take =
            |column: usize| fields.get_mut(column).map(std::mem::take).filter(|field| !field.is_empty());
        let path = take(self.path)?;
        let label = self.label.and_then(&mut take);
        let split = self.split.and_then(&mut take);
        Some(Row {
            path,
            label,
            split: split.and_then(|split| Split::of_name(&String::from_utf8_lossy(&split))),
        })
    }

    fn read_blanks<'a>(&self, line: &'a [u8], config: &DataSpec) -> Option<Row<'a>> {
        let row = |path: &'a [u8], label: Option<&'a [u8]>| {
            Some(Row { path: unquoted(path), label: label.map(unquoted), split: None })
        };
        if self.path == 1 {
            let (number, path) = numbered(line)?;
            return row(path, self.label.map(|_| number));
        }
        if config.is_image_name(&unquoted(line)) {
            return row(line, None);
        }
        let blanks = (0..line.len()).rev().filter(|&at| line[at] == b' ' || line[at] == b'\t');
        for at in blanks {
            let path = line[..at].trim_ascii_end();
            if config.is_image_name(&unquoted(path)) {
                let label = line[at + 1..].split(u8::is_ascii_whitespace).find(|word| !word.is_empty());
                return row(path, label);
            }
        }
        let (path, label) = split_list_line(line)?;
        row(path, label)
    }

    /// Whether a column divides the list.
    pub(crate) fn has_splits(&self) -> bool {
        self.split.is_some()
    }

    /// What was inferred, if it is not plain: a path, then a label, on every line.
    pub(crate) fn remark(&self) -> Option<String> {
        let mut words = Vec::new();
        if self.has_header {
            words.push("the first line names the columns".to_owned());
        }
        if self.path > 0 {
            words.push(format!("paths are in column {}", self.path + 1));
        }
        if let Some(label) = self.label.filter(|&label| label != self.path + 1) {
            words.push(format!("labels in column {}", label + 1));
        }
        if let Some(split) = self.split {
            words.push(format!("splits in column {}", split + 1));
        }
        if !self.unused.is_empty() {
            words.push(format!("not used: column {}", self.unused.join(", ")));
        }
        (!words.is_empty()).then(|| format!("list: {}", words.join("; ")))
    }
}

/// A line that begins with a number: the number, and what follows.
fn numbered(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(u8::is_ascii_whitespace)?;
    line[..at].iter().all(u8::is_ascii_digit).then(|| (&line[..at], line[at..].trim_ascii()))
}

/// Whether one number comes right after another.
fn follows(a: &[u8], b: &[u8]) -> bool {
    let number = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
    matches!((number(a), number(b)), (Some(a), Some(b)) if a.checked_add(1) == Some(b))
}

/// The columns of a line. Quotes hold delimiters, and double quotes within them stand for one.
fn fields(line: &[u8], delimiter: u8) -> Vec<Cow<'_, [u8]>> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let start = rest.len() - rest.trim_ascii_start().len();
        let (field, after) = match quoted(&rest[start..], delimiter) {
            // A tab is a blank, too: it may not be trimmed away before an empty field.
            Some((field, after)) if !rest[..start].contains(&delimiter) => (field, after),
            _ => {
                let end = rest.iter().position(|&byte| byte == delimiter);
                let field = Cow::Borrowed(rest[..end.unwrap_or(rest.len())].trim_ascii());
                (field, end.map(|end| &rest[end + 1..]))
            }
        };
        fields.push(field);
        match after {
            Some(after) => rest = after,
            None => return fields,
        }
    }
}

/// A field, and what follows its delimiter if there is one.
type Field<'a> = (Cow<'a, [u8]>, Option<&'a [u8]>);

/// A field in quotes, and what follows its delimiter; `None` if it is not one.
fn quoted(text: &[u8], delimiter: u8) -> Option<Field<'_>> {
    let inside = text.strip_prefix(b"\"")?;
    let mut field = Vec::new();
    let mut at = 0;
    loop {
        match inside.get(at)? {
            b'"' if inside.get(at + 1) == Some(&b'"') => {
                field.push(b'"');
                at += 2;
            }
            b'"' => break,
            &byte => {
                field.push(byte);
                at += 1;
            }
        }
    }
    let rest = &inside[at + 1..];
    let end = rest.iter().position(|&byte| byte == delimiter);
    let between = &rest[..end.unwrap_or(rest.len())];
    between.trim_ascii().is_empty().then(|| (Cow::Owned(field), end.map(|end| &rest[end + 1..])))
}

/// A text without the quotes around it.
fn unquoted(text: &[u8]) -> Cow<'_, [u8]> {
    match quoted(text, b'\n') {
        Some((field, None)) => field,
        _ => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_spreadsheets() {
        let words = |line: &str, delimiter| -> Vec<String> {
            fields(line.as_bytes(), delimiter)
                .iter()
                .map(|field| String::from_utf8_lossy(field).into_owned())
                .collect()
        };
        assert_eq!(words("a.png, 1 ,", b','), ["a.png", "1", ""]);
        assert_eq!(words("\"a, b.png\",\"say \"\"hi\"\"\"", b','), ["a, b.png", "say \"hi\""]);
        assert_eq!(words("a.png\t\tx", b'\t'), ["a.png", "", "x"]);
        assert_eq!(words("\"half,1", b','), ["\"half", "1"]);
        assert_eq!(words("5\" disk.png;1", b';'), ["5\" disk.png", "1"]);
        assert_eq!(words("", b','), [""]);
    }
}
