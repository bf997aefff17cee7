//! Parquet files as Hugging Face writes image data sets: a column of encoded images, a column of labels.
//!
//! They are read by a reader of our own. General readers believe what a damaged file says of itself: a few bytes make them ask for
//! terabytes, recurse until the stack ends, or panic, and what aborts a process cannot be contained in it. Data sets of images need little of
//! the format: flat columns of byte strings and of whole numbers. So the footer is checked against the file's length before
//! anything is allocated ([`footer`]), pages are read only as far as they are there ([`pages`]), and what is not needed (nested
//! columns, encryption, rare encodings) is refused. A process of its own for the reading would have
//! contained the same faults at the price of a second program and of copying every image.

mod codecs;
mod encodings;
mod footer;
mod pages;
mod thrift;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use rayon::prelude::*;
use serde_json::Value;
use swav_augment::Image;

use self::{
    footer::{Chunk, Column, Footer, Physical},
    pages::{Strings, read_numbers, read_strings},
};
use crate::counted::counted;
use crate::{
    Cause, DataError, DataSpec, Dataset, DecodeConfig, LabelKind, SampleError, StableHash, decode,
    labels::{LabelBuilder, Labels, RawLabel},
    source::{Root, read_file},
};

const IMAGE_COLUMNS: [&str; 4] = ["image", "img", "jpg", "png"];
const LABEL_COLUMNS: [&str; 4] = ["label", "fine_label", "labels", "cls"];
const LABEL_TYPES: &str = "numbers, booleans or strings";

/// Images in Parquet files.
///
/// The image column is a struct with `bytes` and `path` (the bytes count where both are there; a path alone is read
/// relative to the file, and must stay below its folder), or plain binary. Labels are integers, -1 for none, or booleans, or strings,
/// numbered in sorted order; lists and fractions are no labels. Any variant of these types will do: large, view or
/// dictionary-encoded.
/// A row group is read at once and kept encoded in memory, within half of [`DataConfig::cache_mib`](crate::DataConfig::cache_mib) (at least one row
/// group is kept for each thread that reads); the loader shuffles so that few row groups are in use at a time.
pub struct ParquetImages {
    files: Vec<PathBuf>,
    /// For each file the index of its first image.
    first_of_file: Vec<usize>,
    columns: Vec<ImageColumns>,
    groups: Vec<Group>,
    labels: Option<Labels>,
    class_names: Vec<String>,
    allow_outside: bool,
    cache: Mutex<GroupCache>,
    budget_bytes: usize,
    decode: DecodeConfig,
    fingerprint: u64,
}

/// A row group: where it is and which images it holds.
struct Group {
    file: u32,
    images: Range<usize>,
    /// The image's bytes, and its path.
    chunks: [Option<Chunk>; 2],
}

/// Where a file has its images: the columns of their bytes and of their paths.
#[derive(Clone, Debug)]
struct ImageColumns([Option<Column>; 2]);

/// Why a row group cannot be read, for all who ask for its images.
type SharedCause = Arc<dyn std::error::Error + Send + Sync>;

fn shared(cause: impl Into<Cause>) -> SharedCause {
    Arc::from(cause.into())
}

impl ParquetImages {
    /// Reads the metadata and the labels of the files, in the given order.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], [`DataError::Malformed`], [`DataError::Empty`];
    /// [`DataError::Column`] if a column is not there or of another type.
    pub fn open(files: Vec<PathBuf>, config: &DataSpec) -> Result<Self, DataError> {
        Self::open_part(files, &[], config)
    }

    /// As [`open`](Self::open); where labels are names, those of the other splits' files are numbered, too, so that all
    /// splits number alike.
    pub(crate) fn open_part(
        files: Vec<PathBuf>,
        others: &[PathBuf],
        config: &DataSpec,
    ) -> Result<Self, DataError> {
        let mut opened: Vec<Opened> =
            files.par_iter().map(|path| Opened::read(path, config)).collect::<Result<_, _>>()?;
        let first = files.first().cloned().unwrap_or_default();
        let (mut groups, mut first_of_file, mut total) = (Vec::new(), Vec::new(), 0_u64);
        for (file, opened) in opened.iter().enumerate() {
            first_of_file.push(total as usize);
            for group in &opened.footer.groups {
                let from = total;
                total = total.saturating_add(group.n_rows);
                if total > u64::from(u32::MAX) {
                    return Err(DataError::TooMany { path: first });
                }
                if group.n_rows > 0 {
                    let images = from as usize..total as usize;
                    let chunks = opened.image_columns.map(|column| column.map(|column| group.chunks[column]));
                    groups.push(Group { file: file as u32, images, chunks });
                }
            }
        }
        if total == 0 {
            return Err(DataError::Empty { path: first, expected: "a Parquet file with rows".to_owned() });
        }
        let mut labels = LabelBuilder::default();
        opened.iter_mut().for_each(|opened| labels.append(std::mem::take(&mut opened.labels)));
        let has_labels = opened.iter().any(|opened| opened.has_labels);
        if labels.has_names() {
            let read = |path: &PathBuf| Opened::read(path, config).map(|other| other.labels);
            let others: Vec<LabelBuilder> = others.par_iter().map(read).collect::<Result<_, _>>()?;
            others.into_iter().for_each(|other| labels.know(other));
        }
        let labels = has_labels.then(|| labels.finish());
        let class_names = match &labels {
            Some(labels) if !labels.names().is_empty() => labels.names().to_vec(),
            Some(_) => std::mem::take(&mut opened[0].class_names),
            None => Vec::new(),
        };
        let mut hash = StableHash::new(total);
        for opened in &opened {
            for group in &opened.footer.groups {
                hash.number(group.n_rows);
                hash.number(group.chunks.iter().map(|chunk| chunk.bytes).sum());
                hash.number(group.total_bytes);
            }
        }
        labels.iter().flat_map(Labels::values).for_each(|&label| hash.number(u64::from(label)));
        Ok(Self {
            columns: opened.iter().map(Opened::columns).collect(),
            files,
            first_of_file,
            groups,
            labels,
            class_names,
            allow_outside: config.allow_outside,
            cache: Mutex::default(),
            budget_bytes: config.cache_mib.saturating_mul(1 << 19),
            decode: config.decode.clone(),
            fingerprint: hash.finish(),
        })
    }

    /// The group that holds an image, and the image's row in it.
    fn find(&self, index: usize) -> Result<(usize, usize), SampleError> {
        let out_of_range = SampleError::OutOfRange { index, len: self.len() };
        let group = self.groups.partition_point(|group| group.images.end <= index);
        match self.groups.get(group) {
            Some(found) => Ok((group, index - found.images.start)),
            None => Err(out_of_range),
        }
    }

    fn rows(&self, group: usize) -> Result<Arc<Rows>, SampleError> {
        let slot = self.cache.lock().unwrap_or_else(PoisonError::into_inner).slot(group);
        let loaded = slot.get_or_init(|| {
            let rows = self.read_group(group).map(Arc::new);
            let bytes = rows.as_ref().map_or(0, |rows| rows.bytes());
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.loaded(group, bytes, self.budget_bytes);
            rows
        });
        match loaded {
            Ok(rows) => Ok(rows.clone()),
            // A row group that makes no sense is remembered as such: each of its images would read it anew. A file that cannot be
            // read may come back.
            Err(reason) => match reason.downcast_ref::<std::io::Error>() {
                Some(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                    self.cache.lock().unwrap_or_else(PoisonError::into_inner).forget(group);
                    Err(std::io::Error::new(error.kind(), reason.clone()).into())
                }
                _ => Err(SampleError::Corrupt(Box::new(reason.clone()))),
            },
        }
    }

    fn read_group(&self, group: usize) -> Result<Rows, SharedCause> {
        let Group { file, images, chunks } = &self.groups[group];
        let columns = &self.columns[*file as usize].0;
        let mut handle = File::open(&self.files[*file as usize]).map_err(shared)?;
        let mut read = |which: usize| -> Result<Option<Strings>, SharedCause> {
            let (Some(chunk), Some(column)) = (&chunks[which], &columns[which]) else { return Ok(None) };
            let bytes = read_chunk(&mut handle, chunk).map_err(shared)?;
            let strings = read_strings(&bytes, chunk, column)
                .map_err(|reason| shared(format!("column {}: {reason}", column.path.join("."))))?;
            if strings.len() != images.len() {
                return Err(shared(format!("{} values for {} rows", strings.len(), images.len())));
            }
            Ok(Some(strings))
        };
        let content = read(0)?;
        // Paths count only where bytes are missing.
        let paths = if content.as_ref().is_none_or(Strings::has_nulls) { read(1)? } else { None };
        Ok(Rows { content, paths })
    }
}

/// The bytes of a chunk, which lie inside the file as it was when it was opened.
fn read_chunk(file: &mut File, chunk: &Chunk) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(chunk.offset))?;
    let mut bytes = Vec::new();
    file.take(chunk.bytes).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < chunk.bytes {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

impl Dataset for ParquetImages {
    fn len(&self) -> usize {
        self.groups.last().map_or(0, |group| group.images.end)
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let (group, row) = self.find(index)?;
        let rows = self.rows(group)?;
        match (rows.content(row), rows.path(row)) {
            (Some(bytes), _) => decode(bytes, &self.decode).map(Arc::new),
            (None, Some(path)) => {
                let root = Root::of_file(&self.files[self.groups[group].file as usize], self.allow_outside);
                let path = root.file(Path::new(path))?;
                decode(&read_file(&path, &self.decode)?, &self.decode).map(Arc::new)
            }
            (None, None) => Err(SampleError::Null),
        }
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref()?.get(index)
    }

    fn label_kind(&self, index: usize) -> LabelKind {
        self.labels.as_ref().map_or(LabelKind::Missing, |labels| labels.kind(index))
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn name(&self, index: usize) -> String {
        match self.find(index) {
            Ok((group, _)) => {
                let file = self.groups[group].file;
                let name = self.files[file as usize].file_name().unwrap_or_default();
                format!("{}[{}]", name.to_string_lossy(), index - self.first_of_file[file as usize])
            }
            Err(_) => format!("image {index}"),
        }
    }

    fn describe(&self) -> String {
        let first = self.files.first().map(|path| path.display().to_string()).unwrap_or_default();
        let labels = if self.labels.is_some() { "with labels" } else { "without labels" };
        let (files, images) = (counted(self.files.len(), "Parquet file"), counted(self.len(), "image"));
        format!("{files} from {first}: {images} {labels}")
    }

    /// Knows the sizes of all row groups and the labels, not the pixels.
    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn blocks(&self) -> Option<Vec<Range<usize>>> {
        Some(self.groups.iter().map(|group| group.images.clone()).collect())
    }
}

/// The image column of one row group.
struct Rows {
    content: Option<Strings>,
    paths: Option<Strings>,
}

impl Rows {
    fn content(&self, row: usize) -> Option<&[u8]> {
        self.content.as_ref()?.get(row)
    }

    fn path(&self, row: usize) -> Option<&str> {
        std::str::from_utf8(self.paths.as_ref()?.get(row)?).ok()
    }

    fn bytes(&self) -> usize {
        [&self.content, &self.paths].into_iter().flatten().map(Strings::bytes).sum()
    }
}

type Slot = Arc<OnceLock<Result<Arc<Rows>, SharedCause>>>;

/// Row groups in memory; the least recently used goes first. Nothing here takes time in proportion to their number.
#[derive(Default)]
struct GroupCache {
    clock: u64,
    slots: BTreeMap<usize, Entry>,
    /// (when it was last used, group) of all that are loaded.
    by_use: BTreeSet<(u64, usize)>,
    bytes: usize,
}

struct Entry {
    slot: Slot,
    bytes: usize,
    used: u64,
    /// Not evicted while it is being read: its readers wait for it.
    loading: bool,
}

impl GroupCache {
    fn slot(&mut self, group: usize) -> Slot {
        self.clock += 1;
        let new = || Entry { slot: Slot::default(), bytes: 0, used: 0, loading: true };
        let entry = self.slots.entry(group).or_insert_with(new);
        if self.by_use.remove(&(entry.used, group)) {
            self.by_use.insert((self.clock, group));
        }
        entry.used = self.clock;
        entry.slot.clone()
    }

    fn loaded(&mut self, group: usize, bytes: usize, budget: usize) {
        if let Some(entry) = self.slots.get_mut(&group) {
            (entry.bytes, entry.loading) = (bytes, false);
            self.bytes += bytes;
            // What takes no memory, a group that cannot be read, stays.
            if bytes > 0 {
                self.by_use.insert((entry.used, group));
            }
        }
        while self.bytes > budget {
            let Some(oldest) = self.by_use.iter().map(|&(_, key)| key).find(|&key| key != group) else {
                return;
            };
            self.forget(oldest);
        }
    }

    fn forget(&mut self, group: usize) {
        if let Some(entry) = self.slots.remove(&group) {
            self.by_use.remove(&(entry.used, group));
            self.bytes -= entry.bytes;
        }
    }
}

/// What opening one file gives.
struct Opened {
    footer: Footer,
    /// The columns of the images' bytes and of their paths.
    image_columns: [Option<usize>; 2],
    labels: LabelBuilder,
    has_labels: bool,
    /// The names that Hugging Face's metadata have for numbers.
    class_names: Vec<String>,
}

impl Opened {
    fn read(path: &Path, config: &DataSpec) -> Result<Self, DataError> {
        let io = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing { path: path.to_owned() },
            _ => DataError::Io { path: path.to_owned(), source },
        };
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        let mut file = File::open(path).map_err(io)?;
        let malformed =
            |source: Cause| DataError::Malformed { path: path.to_owned(), format: "Parquet", source };
        let footer = Footer::read(&mut file).map_err(malformed)?;
        let schema = Schema(&footer.columns);
        let column_error = |column: &str, expected| DataError::Column {
            path: path.to_owned(),
            column: column.to_owned(),
            expected,
            got: schema.describe(column).unwrap_or_else(|| format!("only {:?}", schema.names())),
        };
        let features = features(&footer.notes);
        let image_name = pick(schema, config.image_column.as_deref(), &IMAGE_COLUMNS, &features, "Image");
        let image_columns = schema
            .images(image_name)
            .ok_or_else(|| column_error(image_name, "binary, or a struct with `bytes` and `path`"))?;
        let label_name =
            pick(schema, config.label_column.as_deref(), &LABEL_COLUMNS, &features, "ClassLabel");
        let has_labels = schema.describe(label_name).is_some();
        if !has_labels && config.label_column.is_some() {
            return Err(column_error(label_name, LABEL_TYPES));
        }
        let labels = read_labels(&mut file, &footer, label_name).map_err(io)?;
        let class_names = class_names(&features[label_name]);
        Ok(Self { image_columns, labels, has_labels, class_names, footer })
    }

    fn columns(&self) -> ImageColumns {
        ImageColumns(
            self.image_columns.map(|column| column.map(|column| self.footer.columns[column].clone())),
        )
    }
}

/// The columns of a file, found by name.
#[derive(Clone, Copy)]
struct Schema<'a>(&'a [Column]);

impl<'a> Schema<'a> {
    /// The names at the top, each once.
    fn names(self) -> Vec<&'a str> {
        let mut names: Vec<&str> =
            self.0.iter().filter_map(|column| column.path.first()).map(String::as_str).collect();
        names.dedup();
        names
    }

    /// What stands under a name; `None` if nothing does.
    fn describe(self, name: &str) -> Option<String> {
        let parts: Vec<&Column> =
            self.0.iter().filter(|column| column.path.first().is_some_and(|top| top == name)).collect();
        match parts[..] {
            [] => None,
            [Column { path, physical: Physical::ByteArray, is_text: true, .. }] if path.len() == 1 => {
                Some("Utf8".to_owned())
            }
            [column] if column.path.len() == 1 => Some(format!("{:?}", column.physical)),
            _ if parts.iter().any(|column| column.is_repeated) => Some("a list".to_owned()),
            _ => {
                let names: Vec<String> = parts.iter().map(|column| column.path[1..].join(".")).collect();
                Some(format!("a struct of {}", names.join(", ")))
            }
        }
    }

    fn find(self, path: &[&str]) -> Option<(usize, &'a Column)> {
        let found = self.0.iter().position(|column| column.path.iter().eq(path.iter()))?;
        Some((found, &self.0[found])).filter(|(_, column)| !column.is_repeated)
    }

    /// The columns of the images' bytes and paths.
    fn images(self, name: &str) -> Option<[Option<usize>; 2]> {
        let of_kind = |path: &[&str], is_text: bool| {
            let found = self.find(path).filter(|(_, column)| column.physical == Physical::ByteArray);
            found.filter(|(_, column)| column.is_text == is_text).map(|(at, _)| at)
        };
        let columns = match of_kind(&[name], false) {
            Some(plain) => [Some(plain), None],
            None => [of_kind(&[name, "bytes"], false), of_kind(&[name, "path"], true)],
        };
        columns.iter().any(Option::is_some).then_some(columns)
    }
}

/// The configured name; or the first of the usual ones that the file has; or the first column that is said to be of this
/// kind; or the most usual name.
fn pick<'a>(
    schema: Schema<'a>,
    wanted: Option<&'a str>,
    usual: &[&'a str],
    features: &'a Value,
    kind: &str,
) -> &'a str {
    let there = |name: &&&str| schema.names().contains(*name);
    let said = || {
        let mut features = features.as_object()?.iter();
        features.find(|(_, feature)| feature["_type"] == kind).map(|(name, _)| name.as_str())
    };
    wanted.or_else(|| usual.iter().find(there).copied()).or_else(said).unwrap_or(usual[0])
}

/// The labels of a file. What a column cannot give, and what is damaged, is no label: training needs none.
fn read_labels(file: &mut File, footer: &Footer, name: &str) -> std::io::Result<LabelBuilder> {
    let mut labels = LabelBuilder::default();
    let is_it = |column: &Column| column.path.first().is_some_and(|top| top == name);
    let at = footer.columns.iter().position(is_it);
    for group in &footer.groups {
        let mut fill = |kind| (0..group.n_rows).for_each(|_| labels.push(RawLabel::None(kind)));
        let Some(at) = at else {
            fill(LabelKind::Missing);
            continue;
        };
        let column = &footer.columns[at];
        if column.is_repeated || column.path.len() > 1 {
            fill(LabelKind::List);
            continue;
        }
        let chunk = &group.chunks[at];
        let bytes = read_chunk(file, chunk)?;
        match column_labels(&bytes, chunk, column) {
            Ok(found) => found.into_iter().for_each(|label| labels.push(label)),
            Err(reason) => {
                tracing::warn!(column = name, %reason, "labels that cannot be read");
                fill(LabelKind::Unreadable);
            }
        }
    }
    Ok(labels)
}

fn column_labels(bytes: &[u8], chunk: &Chunk, column: &Column) -> Result<Vec<RawLabel>, Cause> {
    if column.is_special {
        return Err("expected numbers or names".into());
    }
    if column.physical == Physical::ByteArray {
        let strings = read_strings(bytes, chunk, column)?;
        let text = |row| strings.get(row).map_or(RawLabel::None(LabelKind::Missing), RawLabel::of_text);
        return Ok((0..strings.len()).map(text).collect());
    }
    let label = |number| match column.physical {
        Physical::Float => RawLabel::of_float(f64::from(f32::from_bits(number as u32))),
        Physical::Double => RawLabel::of_float(f64::from_bits(i64::cast_unsigned(number))),
        _ => RawLabel::of_integer(unsigned(number, column)),
    };
    let numbers = read_numbers(bytes, chunk, column)?;
    Ok(numbers.into_iter().map(|number| number.map_or(RawLabel::None(LabelKind::Missing), label)).collect())
}

/// A number as the column's logical type means it.
fn unsigned(number: i64, column: &Column) -> i64 {
    match column.unsigned_bits {
        Some(8) => i64::from(number as u8),
        Some(16) => i64::from(number as u16),
        Some(32) => i64::from(number as u32),
        _ => number,
    }
}

/// What Hugging Face says of the columns, as JSON in the file's metadata; null if nothing.
fn features(notes: &[(String, String)]) -> Value {
    let text = notes.iter().find(|(key, _)| key == "huggingface").map_or("", |(_, value)| value);
    serde_json::from_str::<Value>(text).map_or(Value::Null, |object| object["info"]["features"].clone())
}

/// The class names of a column.
fn class_names(feature: &Value) -> Vec<String> {
    let names = feature["names"].as_array();
    names
        .and_then(|names| names.iter().map(|name| name.as_str().map(str::to_owned)).collect())
        .unwrap_or_default()
}
