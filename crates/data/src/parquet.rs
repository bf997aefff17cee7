//! Parquet files as Hugging Face writes image data sets: a column of encoded images, a column of labels.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use arrow_array::{Array, ArrayRef, StructArray, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Schema};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
};
use rayon::prelude::*;
use serde_json::Value;
use swav_augment::Image;

use crate::{Cause, DataError, DataSpec, Dataset, DecodeConfig, SampleError, StableHash, decode};

const IMAGE_COLUMNS: [&str; 4] = ["image", "img", "jpg", "png"];
const LABEL_COLUMNS: [&str; 4] = ["label", "fine_label", "labels", "cls"];
const LABEL_TYPES: &str = "integers, booleans or strings";

/// Images in Parquet files.
///
/// The image column is a struct with `bytes` and `path` (the bytes count where both are there; a path alone is read
/// relative to the file), or plain binary. Labels are integers, -1 for none, or booleans, or strings, numbered in sorted
/// order. Any variant of these types will do: large, view or dictionary-encoded.
/// A row group is read at once and kept encoded in memory, within half of [`DataConfig::cache_mib`](crate::DataConfig::cache_mib) (at least one row
/// group is kept for each thread that reads); the loader shuffles so that few row groups are in use at a time.
pub struct ParquetImages {
    files: Vec<PathBuf>,
    metadata: Vec<ArrowReaderMetadata>,
    image_columns: Vec<usize>,
    groups: Vec<Group>,
    labels: Option<Vec<u32>>,
    class_names: Vec<String>,
    cache: Mutex<GroupCache>,
    budget_bytes: usize,
    decode: DecodeConfig,
    fingerprint: u64,
}

/// A row group: where it is and which images it holds.
struct Group {
    file: u32,
    row_group: u32,
    images: Range<usize>,
}

const NO_LABEL: u32 = u32::MAX;

/// Why a row group cannot be read, for all who ask for its images.
type SharedCause = Arc<dyn std::error::Error + Send + Sync>;

fn shared(cause: impl Into<Cause>) -> SharedCause {
    Arc::from(cause.into())
}

/// Rows that are held in one array: all the bytes of an array must stay below 2^31.
const PART: usize = 256;

impl ParquetImages {
    /// Reads the metadata and the labels of the files, in the given order.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], [`DataError::Malformed`], [`DataError::Empty`];
    /// [`DataError::Column`] if a column is not there or of another type.
    pub fn open(files: Vec<PathBuf>, config: &DataSpec) -> Result<Self, DataError> {
        let opened: Vec<Opened> =
            files.par_iter().map(|path| Opened::read(path, config)).collect::<Result<_, _>>()?;
        let first = files.first().cloned().unwrap_or_default();
        let (mut groups, mut total) = (Vec::new(), 0_u64);
        for (file, opened) in opened.iter().enumerate() {
            for (row_group, metadata) in opened.metadata.metadata().row_groups().iter().enumerate() {
                let rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
                let from = total;
                total += rows;
                if total > u64::from(u32::MAX) {
                    return Err(DataError::TooMany { path: first });
                }
                if rows > 0 {
                    let images = from as usize..total as usize;
                    groups.push(Group { file: file as u32, row_group: row_group as u32, images });
                }
            }
        }
        if total == 0 {
            return Err(DataError::Empty { path: first, expected: "a Parquet file with rows".to_owned() });
        }
        let class_names = opened[0].class_names.clone();
        let (labels, class_names) = join_labels(&files, &opened, class_names)?;
        let mut hash = StableHash::new(total);
        for opened in &opened {
            for group in opened.metadata.metadata().row_groups() {
                hash.number(group.num_rows().cast_unsigned());
                hash.number(group.compressed_size().cast_unsigned());
                hash.number(group.total_byte_size().cast_unsigned());
            }
        }
        labels.iter().flatten().for_each(|&label| hash.number(u64::from(label)));
        Ok(Self {
            image_columns: opened.iter().map(|opened| opened.image_column).collect(),
            metadata: opened.into_iter().map(|opened| opened.metadata).collect(),
            files,
            groups,
            labels,
            class_names,
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
            let bytes = rows.as_ref().map_or(0, |rows| rows.bytes);
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.loaded(group, bytes, self.budget_bytes);
            rows
        });
        // A row group that could not be read is tried again, since the reason may have passed.
        match loaded {
            Ok(rows) => Ok(rows.clone()),
            Err(reason) => {
                self.cache.lock().unwrap_or_else(PoisonError::into_inner).forget(group);
                Err(if File::open(&self.files[self.groups[group].file as usize]).is_err() {
                    SampleError::Vanished
                } else {
                    SampleError::Corrupt(Box::new(reason.clone()))
                })
            }
        }
    }

    fn read_group(&self, group: usize) -> Result<Rows, SharedCause> {
        let Group { file, row_group, images } = &self.groups[group];
        let (path, metadata) = (&self.files[*file as usize], &self.metadata[*file as usize]);
        let file_handle = File::open(path).map_err(shared)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file_handle, metadata.clone());
        let mask = ProjectionMask::roots(builder.parquet_schema(), [self.image_columns[*file as usize]]);
        let reader = builder
            .with_row_groups(vec![*row_group as usize])
            .with_projection(mask)
            .with_batch_size(images.len().min(PART))
            .build()
            .map_err(shared)?;
        let mut rows = Rows { parts: Vec::new(), bytes: 0 };
        for batch in reader {
            let batch = batch.map_err(shared)?;
            rows.bytes += batch.get_array_memory_size();
            rows.parts.push(batch.column(0).clone());
        }
        // What `Rows::cell` relies on.
        let as_promised = (images.clone().step_by(PART)).map(|from| PART.min(images.end - from));
        if !rows.parts.iter().map(|part| part.len()).eq(as_promised) {
            let got: usize = rows.parts.iter().map(|part| part.len()).sum();
            return Err(shared(format!("a row group has {got} rows, but should have {}", images.len())));
        }
        Ok(rows)
    }
}

impl Dataset for ParquetImages {
    fn len(&self) -> usize {
        self.groups.last().map_or(0, |group| group.images.end)
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let (group, row) = self.find(index)?;
        let rows = self.rows(group)?;
        match rows.cell(row) {
            Some(Cell::Bytes(bytes)) => decode(bytes, &self.decode).map(Arc::new),
            Some(Cell::Path(path)) => {
                let file = &self.files[self.groups[group].file as usize];
                let path = file.parent().unwrap_or(Path::new(".")).join(path);
                decode(&fs::read(path)?, &self.decode).map(Arc::new)
            }
            None => Err(SampleError::Corrupt("the row has neither image bytes nor a path".into())),
        }
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref()?.get(index).copied().filter(|&label| label != NO_LABEL)
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn name(&self, index: usize) -> String {
        match self.find(index) {
            Ok((group, _)) => {
                let file = self.groups[group].file;
                let first =
                    self.groups.iter().find(|group| group.file == file).map_or(0, |group| group.images.start);
                let name = self.files[file as usize].file_name().unwrap_or_default();
                format!("{}[{}]", name.to_string_lossy(), index - first)
            }
            Err(_) => format!("image {index}"),
        }
    }

    fn describe(&self) -> String {
        let first = self.files.first().map(|path| path.display().to_string()).unwrap_or_default();
        let labels = if self.labels.is_some() { "with labels" } else { "without labels" };
        format!("{} Parquet files from {first}: {} images {labels}", self.files.len(), self.len())
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
    parts: Vec<ArrayRef>,
    bytes: usize,
}

enum Cell<'a> {
    Bytes(&'a [u8]),
    Path(&'a str),
}

impl Rows {
    fn cell(&self, row: usize) -> Option<Cell<'_>> {
        let (part, row) = (self.parts.get(row / PART)?, row % PART);
        if let Some(bytes) = binary(part, row) {
            return Some(Cell::Bytes(bytes));
        }
        let fields: &StructArray = part.as_struct_opt().filter(|fields| fields.is_valid(row))?;
        fields
            .column_by_name("bytes")
            .and_then(|column| binary(column, row))
            .map(Cell::Bytes)
            .or_else(|| Some(Cell::Path(string(fields.column_by_name("path")?, row)?)))
    }
}

fn binary(array: &ArrayRef, row: usize) -> Option<&[u8]> {
    array.as_binary_opt::<i32>().filter(|array| array.is_valid(row)).map(|array| array.value(row))
}

fn string(array: &ArrayRef, row: usize) -> Option<&str> {
    array.as_string_opt::<i32>().filter(|array| array.is_valid(row)).map(|array| array.value(row))
}

type Slot = Arc<OnceLock<Result<Arc<Rows>, SharedCause>>>;

/// Row groups in memory; the least recently used goes first.
#[derive(Default)]
struct GroupCache {
    clock: u64,
    slots: BTreeMap<usize, Entry>,
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
        entry.used = self.clock;
        entry.slot.clone()
    }

    fn loaded(&mut self, group: usize, bytes: usize, budget: usize) {
        if let Some(entry) = self.slots.get_mut(&group) {
            (entry.bytes, entry.loading) = (bytes, false);
        }
        while self.slots.values().map(|entry| entry.bytes).sum::<usize>() > budget {
            let candidates = self.slots.iter().filter(|(key, entry)| **key != group && !entry.loading);
            let Some(oldest) = candidates.min_by_key(|(_, entry)| entry.used).map(|(&key, _)| key) else {
                return;
            };
            self.slots.remove(&oldest);
        }
    }

    fn forget(&mut self, group: usize) {
        self.slots.remove(&group);
    }
}

/// What opening one file gives.
struct Opened {
    metadata: ArrowReaderMetadata,
    image_column: usize,
    labels: Option<FileLabels>,
    class_names: Vec<String>,
}

enum FileLabels {
    Numbers(Vec<u32>),
    Names(Vec<Option<String>>),
}

impl Opened {
    fn read(path: &Path, config: &DataSpec) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing { path: path.to_owned() },
            _ => DataError::Io { path: path.to_owned(), source },
        })?;
        let malformed =
            |source: Cause| DataError::Malformed { path: path.to_owned(), format: "Parquet", source };
        // Without the writer's Arrow types, every variant of binary and text is read as the plain one.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::load(&file, options).map_err(|error| malformed(error.into()))?;
        let schema = metadata.schema().clone();
        let column_error = |column: &str, expected| DataError::Column {
            path: path.to_owned(),
            column: column.to_owned(),
            expected,
            got: match schema.field_with_name(column) {
                Ok(field) => field.data_type().to_string(),
                Err(_) => {
                    format!("only {:?}", schema.fields().iter().map(|field| field.name()).collect::<Vec<_>>())
                }
            },
        };
        let features = features(&metadata);
        let image_name = pick(&schema, config.image_column.as_deref(), &IMAGE_COLUMNS, &features, "Image");
        let expected = "binary, or a struct with `bytes` and `path`";
        let image_column = schema.index_of(image_name).map_err(|_| column_error(image_name, expected))?;
        if !holds_images(schema.field(image_column).data_type()) {
            return Err(column_error(image_name, expected));
        }
        let label_name =
            pick(&schema, config.label_column.as_deref(), &LABEL_COLUMNS, &features, "ClassLabel");
        let labels = match schema.index_of(label_name) {
            Ok(column) => {
                let kind = schema.field(column).data_type();
                if !kind.is_integer() && !matches!(kind, DataType::Utf8 | DataType::Boolean) {
                    return Err(column_error(label_name, LABEL_TYPES));
                }
                Some(read_labels(&file, &metadata, column).map_err(malformed)?)
            }
            Err(_) if config.label_column.is_some() => {
                return Err(column_error(label_name, LABEL_TYPES));
            }
            Err(_) => None,
        };
        let class_names = class_names(&features[label_name]);
        Ok(Self { metadata, image_column, labels, class_names })
    }
}

/// The configured name; or the first of the usual ones that the file has; or the first column that is said to be of this
/// kind; or the most usual name.
fn pick<'a>(
    schema: &Schema,
    wanted: Option<&'a str>,
    usual: &[&'a str],
    features: &'a Value,
    kind: &str,
) -> &'a str {
    let there = |name: &&&str| schema.index_of(name).is_ok();
    let said = || {
        let mut features = features.as_object()?.iter();
        features.find(|(_, feature)| feature["_type"] == kind).map(|(name, _)| name.as_str())
    };
    wanted.or_else(|| usual.iter().find(there).copied()).or_else(said).unwrap_or(usual[0])
}

fn holds_images(kind: &DataType) -> bool {
    match kind {
        DataType::Binary => true,
        DataType::Struct(fields) => fields.iter().any(|field| {
            (field.name() == "bytes" && *field.data_type() == DataType::Binary)
                || (field.name() == "path" && *field.data_type() == DataType::Utf8)
        }),
        _ => false,
    }
}

fn read_labels(file: &File, metadata: &ArrowReaderMetadata, column: usize) -> Result<FileLabels, Cause> {
    let handle = file.try_clone()?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(handle, metadata.clone());
    let mask = ProjectionMask::roots(builder.parquet_schema(), [column]);
    let reader = builder.with_projection(mask).build()?;
    let (mut numbers, mut names, mut is_names) = (Vec::new(), Vec::new(), false);
    for batch in reader {
        let batch = batch?;
        let labels = batch.column(0);
        if *labels.data_type() == DataType::Utf8 {
            is_names = true;
            names.extend((0..labels.len()).map(|row| string(labels, row).map(str::to_owned)));
            continue;
        }
        let labels = widened(labels).ok_or("labels are above 2^63")?;
        for label in labels {
            numbers.push(match label {
                None | Some(-1) => NO_LABEL,
                Some(label) => u32::try_from(label)
                    .ok()
                    .filter(|&label| label != NO_LABEL)
                    .ok_or_else(|| format!("expected labels from 0 on, or -1 for none; found {label}"))?,
            });
        }
    }
    Ok(if is_names { FileLabels::Names(names) } else { FileLabels::Numbers(numbers) })
}

/// Integers of any width as i64.
fn widened(array: &ArrayRef) -> Option<Vec<Option<i64>>> {
    use arrow_array::types::{Int8Type, Int16Type, Int32Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
    macro_rules! widen {
        ($kind:ty) => {
            array
                .as_primitive::<$kind>()
                .iter()
                .map(|value| value.map(i64::try_from).transpose().ok())
                .collect()
        };
    }
    match array.data_type() {
        DataType::Int8 => widen!(Int8Type),
        DataType::Int16 => widen!(Int16Type),
        DataType::Int32 => widen!(Int32Type),
        DataType::Int64 => widen!(Int64Type),
        DataType::UInt8 => widen!(UInt8Type),
        DataType::UInt16 => widen!(UInt16Type),
        DataType::UInt32 => widen!(UInt32Type),
        DataType::UInt64 => widen!(UInt64Type),
        DataType::Boolean => Some(array.as_boolean().iter().map(|value| value.map(i64::from)).collect()),
        _ => None,
    }
}

/// What Hugging Face says of the columns, as JSON in the file's metadata; null if nothing.
fn features(metadata: &ArrowReaderMetadata) -> Value {
    let entries = metadata.metadata().file_metadata().key_value_metadata();
    let text = entries
        .and_then(|entries| entries.iter().find(|entry| entry.key == "huggingface"))
        .and_then(|entry| entry.value.as_deref())
        .unwrap_or_default();
    serde_json::from_str::<Value>(text).map_or(Value::Null, |object| object["info"]["features"].clone())
}

/// The class names of a column.
fn class_names(feature: &Value) -> Vec<String> {
    let names = feature["names"].as_array();
    names
        .and_then(|names| names.iter().map(|name| name.as_str().map(str::to_owned)).collect())
        .unwrap_or_default()
}

/// The labels of all files in one vector; names are numbered by their sorted order over all files.
fn join_labels(
    files: &[PathBuf],
    opened: &[Opened],
    class_names: Vec<String>,
) -> Result<(Option<Vec<u32>>, Vec<String>), DataError> {
    let mut numbers = Vec::new();
    let mut names = Vec::new();
    for opened in opened {
        match &opened.labels {
            Some(FileLabels::Numbers(part)) => numbers.extend_from_slice(part),
            Some(FileLabels::Names(part)) => names.extend(part.iter().map(Option::as_deref)),
            None => {}
        }
    }
    let with = opened.iter().filter(|opened| opened.labels.is_some()).count();
    if with == 0 {
        return Ok((None, Vec::new()));
    }
    if with < opened.len() || (!numbers.is_empty() && !names.is_empty()) {
        let odd = opened.iter().position(|opened| opened.labels.is_none()).unwrap_or(0);
        let reason = "expected labels of one kind in all files or in none".to_owned();
        return Err(DataError::Malformed {
            path: files[odd].clone(),
            format: "Parquet",
            source: reason.into(),
        });
    }
    if names.is_empty() {
        return Ok((Some(numbers), class_names));
    }
    let mut places: BTreeMap<&str, u32> = names.iter().flatten().map(|&name| (name, 0)).collect();
    places.values_mut().zip(0..).for_each(|(number, place)| *number = place);
    let labels = names.iter().map(|name| name.map_or(NO_LABEL, |name| places[name])).collect();
    Ok((Some(labels), places.keys().map(|&name| name.to_owned()).collect()))
}
