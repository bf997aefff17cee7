//! File lists: a text file with one image path a line, and optionally a label; or one JSON object a line.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use swav_augment::Image;

use crate::counted::counted;
use crate::{
    DataError, DataSpec, Dataset, DecodeConfig, LabelKind, SampleError, Split, StableHash, decode, kinds,
    labels::{LabelBuilder, Labels, RawLabel},
    names::{Names, bytes_path},
    source::{Root, read_file},
    survey::{Found, Reason, Tally},
    table::Dialect,
};

/// The images that a list names. Whether they exist is seen when they are read.
pub struct FileList {
    list: PathBuf,
    root: Root,
    paths: Names,
    labels: Labels,
    /// The splits that a column divides the list into.
    splits: Vec<Split>,
    divided: bool,
    remarks: Vec<String>,
    aside: Tally,
    decode: DecodeConfig,
    fingerprint: u64,
}

/// A line of a list, taken apart without a look at the other lines: the path, and the label if there is one.
///
/// The label follows the last tab; in a line without tabs the last comma, if what follows holds no `/`; otherwise the
/// last blank, if what follows is a number. Paths are bytes in whatever encoding the file system has. Empty lines and
/// lines that start with `#` are nothing.
///
/// ```
/// use swav_data::split_list_line;
/// assert_eq!(split_list_line(b"a b.jpg"), Some((&b"a b.jpg"[..], None)));
/// assert_eq!(split_list_line(b"a b.jpg 3\r"), Some((&b"a b.jpg"[..], Some(&b"3"[..]))));
/// assert_eq!(split_list_line(b"x,1.png\tcat"), Some((&b"x,1.png"[..], Some(&b"cat"[..]))));
/// assert_eq!(split_list_line(b"# note"), None);
/// ```
pub fn split_list_line(line: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let line = line.trim_ascii();
    if line.is_empty() || line[0] == b'#' {
        return None;
    }
    let cut = |at: usize| {
        let (path, label) = (line[..at].trim_ascii(), line[at + 1..].trim_ascii());
        (path, (!label.is_empty()).then_some(label))
    };
    let last = |separator: u8| line.iter().rposition(|&byte| byte == separator).filter(|&at| at > 0);
    if let Some(at) = last(b'\t') {
        return Some(cut(at));
    }
    if let Some(at) = last(b',').filter(|&at| !line[at..].contains(&b'/')) {
        return Some(cut(at));
    }
    if let Some(at) = last(b' ').filter(|&at| line[at + 1..].iter().all(u8::is_ascii_digit)) {
        return Some(cut(at));
    }
    Some((line, None))
}

impl FileList {
    /// Reads a list. Relative paths start at the list's folder. Labels are numbers, or names that are numbered in
    /// their sorted order; lines may lack them.
    ///
    /// A line is a path, and optionally a label after a tab, a semicolon, a comma or a blank. A line of names above
    /// them, quotes, a byte-order mark (UTF-16 too) and columns in another order are understood; a column of `train`, `val` and `test`
    /// divides the list. In a list of JSON objects, one a line, keys are the names of the columns. Paths may be `file://` URLs; what lies on
    /// other machines is left aside.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], [`DataError::Empty`], [`DataError::TooMany`]; [`DataError::NoSplit`] if a
    /// column divides the list and the split is not there; [`DataError::Malformed`] for a path with a zero byte;
    /// [`DataError::Outside`] for a path that leads out of the list's folder, unless
    /// [`DataConfig::allow_outside`](crate::DataConfig::allow_outside) is set.
    pub fn open(list: &Path, config: &DataSpec) -> Result<Self, DataError> {
        let text = fs::read(list).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing { path: list.to_owned() },
            _ => DataError::Io { path: list.to_owned(), source },
        })?;
        let text = without_mark(text);
        let text = json_lines(&text).unwrap_or(text);
        let lines: Vec<&[u8]> = text
            .split(|&byte| byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty() && line[0] != b'#')
            .collect();
        let folder = list.parent().unwrap_or(Path::new("."));
        let dialect = Dialect::of(&lines, folder, config);
        let rows = Rows::read(&lines, &dialect, list, config)?;
        let Rows { mut paths, labels, splits, aside } = rows;
        let mut labels = labels.finish();
        if paths.len() == 0 {
            let expected = format!("one image path a line{}", aside.instead());
            return Err(DataError::Empty { path: list.to_owned(), expected });
        }
        if paths.len() > u32::MAX as usize {
            return Err(DataError::TooMany { path: list.to_owned() });
        }
        let mut there: Vec<Split> = splits.iter().flatten().copied().collect();
        there.sort();
        there.dedup();
        let wanted = config.split;
        let divided = wanted != Split::All && dialect.has_splits() && !there.is_empty();
        if divided {
            let Some(present) = wanted.present(&there) else {
                let reason = Split::found(&there);
                return Err(DataError::NoSplit { path: list.to_owned(), split: wanted, reason });
            };
            let is_in = |&index: &usize| splits[index] == Some(present);
            let chosen: Vec<usize> = (0..paths.len()).filter(is_in).collect();
            let mut kept = Names::default();
            chosen.iter().for_each(|&index| kept.push(paths.get(index)));
            labels = labels.chosen(&chosen);
            paths = kept;
        }
        paths.shrink();
        let root = Root::of_file(list, config.allow_outside);
        let remarks = [dialect.remark(), none_is_there(&paths, &root, folder)];
        let mut hash = StableHash::new(paths.len() as u64);
        paths.iter().for_each(|path| hash.bytes(path));
        if labels.has_classes() {
            labels.values().iter().for_each(|&label| hash.number(u64::from(label)));
        }
        Ok(Self {
            list: list.to_owned(),
            root,
            paths,
            labels,
            splits: there,
            divided,
            remarks: remarks.into_iter().flatten().collect(),
            aside,
            decode: config.decode.clone(),
            fingerprint: hash.finish(),
        })
    }

    /// Whether these are the lines of one split.
    pub(crate) fn is_divided(&self) -> bool {
        self.divided
    }

    /// Says how the list was understood.
    pub(crate) fn tell(&self, found: &mut Found) {
        found.splits.clone_from(&self.splits);
        found.aside.append(self.aside.clone());
        found.remarks.extend(self.remarks.iter().cloned());
    }
}

/// The lines of a list.
struct Rows {
    paths: Names,
    labels: LabelBuilder,
    /// For each line its split, if there is a column for that.
    splits: Vec<Option<Split>>,
    aside: Tally,
}

impl Rows {
    fn read(lines: &[&[u8]], dialect: &Dialect, list: &Path, config: &DataSpec) -> Result<Self, DataError> {
        let folder = list.parent().unwrap_or(Path::new("."));
        let mut rows = Self {
            paths: Names::default(),
            labels: LabelBuilder::default(),
            splits: Vec::new(),
            aside: Tally::default(),
        };
        let root = Root::of_file(list, config.allow_outside);
        let mut backslashes = None;
        for line in lines.iter().skip(usize::from(dialect.has_header)) {
            let Some(mut row) = dialect.read(line, config) else {
                rows.aside.add(Reason::NoPath, line);
                continue;
            };
            if let Some(file) = row.path.strip_prefix(b"file://") {
                row.path = unescaped(file).into();
            } else if row.path.windows(3).any(|part| part == b"://") {
                rows.aside.add(Reason::unread(&kinds::REMOTE), &row.path);
                continue;
            }
            if row.path.contains(&0) {
                let source =
                    format!("a path cannot hold a zero byte: {}", String::from_utf8_lossy(line)).into();
                return Err(DataError::Malformed { path: list.to_owned(), format: "file list", source });
            }
            if row.path.contains(&b'\\')
                && *backslashes.get_or_insert_with(|| is_of_windows(folder, &row.path))
            {
                row.path.to_mut().iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
            }
            if root.file(&bytes_path(&row.path)).is_err() {
                let name = String::from_utf8_lossy(&row.path).into_owned();
                return Err(DataError::Outside { path: list.to_owned(), name });
            }
            let name = row.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            if name.starts_with(b".") {
                rows.aside.add(Reason::Hidden, &row.path);
                continue;
            }
            if let Some(kind) = kinds::of_name(name) {
                rows.aside.add(Reason::unread(kind), &row.path);
                continue;
            }
            rows.paths.push(&row.path);
            rows.labels.push(
                row.label.map_or(RawLabel::None(LabelKind::Missing), |label| RawLabel::of_text(&label)),
            );
            if dialect.has_splits() {
                rows.splits.push(row.split);
            }
        }
        Ok(rows)
    }
}

/// Whether a path has the separators of Windows: it is there only once they are exchanged.
fn is_of_windows(folder: &Path, path: &[u8]) -> bool {
    let exchanged: Vec<u8> = path.iter().map(|&byte| if byte == b'\\' { b'/' } else { byte }).collect();
    !folder.join(bytes_path(path)).exists() && folder.join(bytes_path(&exchanged)).exists()
}

/// How many files of a list are looked for before it is read.
const N_LOOKED_FOR: usize = 16;

/// Says so if not one file of some is there: the list then means another folder.
fn none_is_there(paths: &Names, root: &Root, folder: &Path) -> Option<String> {
    let n = paths.len().min(N_LOOKED_FOR);
    let is_there = |at: usize| {
        let path = root.file(&bytes_path(paths.get(at * paths.len() / n)));
        path.is_ok_and(|path| path.exists())
    };
    if (0..n).any(is_there) {
        return None;
    }
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    let first = String::from_utf8_lossy(paths.get(0)).into_owned();
    Some(format!(
        "list: none of the {n} files looked for is there, such as {first}; paths start at the list's folder, {}",
        folder.display()
    ))
}

/// The path of a `file://` URL, whose unusual bytes are written as `%20` and the like.
fn unescaped(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"localhost").unwrap_or(path);
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.filter(|_| byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        plain.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    plain
}

/// A list of JSON objects, one a line, as a table of the keys that the first one has; `None` if it is none.
fn json_lines(text: &[u8]) -> Option<Vec<u8>> {
    if text.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let objects = lines.map(|line| serde_json::from_slice::<serde_json::Map<_, _>>(line).ok());
    let mut objects = objects.peekable();
    let is_plain = |value: &serde_json::Value| !value.is_object() && !value.is_array();
    let first = objects.peek()?.as_ref()?.iter();
    let keys: Vec<String> = first.filter(|(_, value)| is_plain(value)).map(|(key, _)| key.clone()).collect();
    let is_alone = keys.len() == 1;
    let quoted = |value: &str| match is_alone {
        true => value.replace('\n', " "),
        false => format!("\"{}\"", value.replace('"', "\"\"").replace('\n', " ")),
    };
    let mut table = keys.join("\t");
    for object in objects.filter(|object| object.as_ref().is_some_and(|object| !object.is_empty())) {
        let field = |key: &String| match object.as_ref().and_then(|object| object.get(key)) {
            Some(serde_json::Value::String(text)) => quoted(text),
            Some(value) if is_plain(value) && !value.is_null() => value.to_string(),
            _ => quoted(""),
        };
        table.push('\n');
        table += &keys.iter().map(field).collect::<Vec<_>>().join("\t");
    }
    Some(table.into_bytes())
}

/// The text without its byte-order mark; UTF-16 becomes UTF-8.
fn without_mark(mut text: Vec<u8>) -> Vec<u8> {
    let decoded = |pair: fn([u8; 2]) -> u16| {
        let units = text[2..].chunks_exact(2).map(|bytes| pair([bytes[0], bytes[1]]));
        char::decode_utf16(units)
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect::<String>()
            .into_bytes()
    };
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3);
    } else if text.starts_with(b"\xff\xfe") {
        return decoded(u16::from_le_bytes);
    } else if text.starts_with(b"\xfe\xff") {
        return decoded(u16::from_be_bytes);
    }
    text
}

impl Dataset for FileList {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        if index >= self.len() {
            return Err(SampleError::OutOfRange { index, len: self.len() });
        }
        let path = self.root.file(&bytes_path(self.paths.get(index)))?;
        decode(&read_file(&path, &self.decode)?, &self.decode).map(Arc::new)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index)
    }

    fn label_kind(&self, index: usize) -> LabelKind {
        self.labels.kind(index)
    }

    fn class_names(&self) -> &[String] {
        self.labels.names()
    }

    fn name(&self, index: usize) -> String {
        if index < self.len() {
            String::from_utf8_lossy(self.paths.get(index)).into_owned()
        } else {
            format!("image {index}")
        }
    }

    fn describe(&self) -> String {
        let labels = if self.labels.has_classes() { "with labels" } else { "without labels" };
        format!("file list {}: {} {labels}", self.list.display(), counted(self.len(), "image"))
    }

    /// Knows the paths and labels, not the pixels.
    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}
