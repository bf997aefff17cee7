//! File lists: a text file with one image path a line, and optionally a label.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use swav_augment::Image;

use crate::{
    DataError, DataSpec, Dataset, DecodeConfig, SampleError, StableHash, decode,
    names::{Names, bytes_path},
};

/// The images that a list names. Whether they exist is seen when they are read.
pub struct FileList {
    list: PathBuf,
    folder: PathBuf,
    paths: Names,
    labels: Option<Vec<u32>>,
    class_names: Vec<String>,
    decode: DecodeConfig,
    fingerprint: u64,
}

/// A line of a list, taken apart: the path, and the label if there is one.
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
    /// their sorted order.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], [`DataError::Empty`], or [`DataError::Malformed`] if only some
    /// lines have labels, or a number is too large.
    pub fn open(list: &Path, config: &DataSpec) -> Result<Self, DataError> {
        let text = fs::read(list).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing { path: list.to_owned() },
            _ => DataError::Io { path: list.to_owned(), source },
        })?;
        let malformed = |reason: String| DataError::Malformed {
            path: list.to_owned(),
            format: "file list",
            source: reason.into(),
        };
        let (mut paths, mut texts) = (Names::default(), Names::default());
        for (line_number, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let Some((path, label)) = split_list_line(line) else { continue };
            if path.contains(&0) {
                return Err(malformed(format!("line {}: a path cannot hold a zero byte", line_number + 1)));
            }
            if let Some(label) = label {
                if texts.len() < paths.len() {
                    return Err(malformed(format!(
                        "line {} has a label and the lines before it have none",
                        line_number + 1
                    )));
                }
                texts.push(label);
            } else if texts.len() > 0 {
                return Err(malformed(format!(
                    "line {} has no label and the lines before it have",
                    line_number + 1
                )));
            }
            paths.push(path);
        }
        if paths.len() == 0 {
            let expected = "one image path a line".to_owned();
            return Err(DataError::Empty { path: list.to_owned(), expected });
        }
        if paths.len() > u32::MAX as usize {
            return Err(DataError::TooMany { path: list.to_owned() });
        }
        let (labels, class_names) = if texts.len() > 0 {
            let (labels, names) = labels(&texts).map_err(malformed)?;
            (Some(labels), names)
        } else {
            (None, Vec::new())
        };
        paths.shrink();
        let mut hash = StableHash::new(paths.len() as u64);
        paths.iter().for_each(|path| hash.bytes(path));
        labels.iter().flatten().for_each(|&label| hash.number(u64::from(label)));
        Ok(Self {
            list: list.to_owned(),
            folder: list.parent().unwrap_or(Path::new(".")).to_owned(),
            paths,
            labels,
            class_names,
            decode: config.decode.clone(),
            fingerprint: hash.finish(),
        })
    }
}

impl Dataset for FileList {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        if index >= self.len() {
            return Err(SampleError::OutOfRange { index, len: self.len() });
        }
        let path = self.folder.join(bytes_path(self.paths.get(index)));
        decode(&fs::read(path)?, &self.decode).map(Arc::new)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref()?.get(index).copied()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn name(&self, index: usize) -> String {
        if index < self.len() {
            String::from_utf8_lossy(self.paths.get(index)).into_owned()
        } else {
            format!("image {index}")
        }
    }

    fn describe(&self) -> String {
        let labels = if self.labels.is_some() { "with labels" } else { "without labels" };
        format!("file list {}: {} images {labels}", self.list.display(), self.len())
    }

    /// Knows the paths and labels, not the pixels.
    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// Numbers for label texts: their own value if all are numbers, else their place among the sorted names.
fn labels(texts: &Names) -> Result<(Vec<u32>, Vec<String>), String> {
    if texts.iter().all(|text| text.iter().all(u8::is_ascii_digit)) {
        let parse = |text: &[u8]| {
            let text = String::from_utf8_lossy(text);
            text.parse().map_err(|_| format!("expected a label below 2^32, found {text}"))
        };
        let labels = texts.iter().map(parse).collect::<Result<Vec<u32>, String>>()?;
        return Ok((labels, Vec::new()));
    }
    let mut numbers: BTreeMap<&[u8], u32> = texts.iter().map(|text| (text, 0)).collect();
    numbers.values_mut().zip(0..).for_each(|(number, place)| *number = place);
    let names = numbers.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    Ok((texts.iter().map(|text| numbers[text]).collect(), names))
}
