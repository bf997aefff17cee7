//! Tar shards in the WebDataset convention, indexed once and then read in place.
//!
//! Members of one sample share the path up to the first dot of the file name; what follows the dot says what a member
//! is: `n01/0001.jpg` and `n01/0001.cls` are an image and its label. Opening reads headers and labels only. Images are
//! then read by offset, so that any order, resumption and sharding work as for files, and nothing is unpacked; only
//! gzipped shards and zip archives are, once, into a temporary file that has no name. Archives within archives are read in
//! place, too: such as one for each class.

use std::{
    collections::BTreeSet,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;
use swav_augment::Image;

use crate::counted::counted;
use crate::{
    DataError, DataSpec, Dataset, DecodeConfig, LabelKind, SampleError, Split, StableHash, TarMember, decode,
    kinds,
    labels::{LabelBuilder, Labels, RawLabel},
    layout::is_worth_telling,
    names::Names,
    survey::{Reason, Tally},
    unpack::{Budget, Shard},
};

/// Divides a member's path into the key of its sample and its ending: at the first dot of the file name.
/// `None` for names without a dot, or that start with one.
///
/// ```
/// use swav_data::split_member_name;
/// assert_eq!(split_member_name(b"a.b/0001.seg.png"), Some((&b"a.b/0001"[..], &b"seg.png"[..])));
/// assert_eq!(split_member_name(b"a.b/README"), None);
/// assert_eq!(split_member_name(b"./._0001.jpg"), None);
/// ```
pub fn split_member_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let base = name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].iter().position(|&byte| byte == b'.')?;
    (dot > base).then(|| (&name[..dot], &name[dot + 1..]))
}

/// Images in tar shards.
pub struct Shards {
    shards: Vec<Shard>,
    samples: Vec<Sample>,
    keys: Names,
    labels: Labels,
    blocks: Vec<Range<usize>>,
    /// The splits that folders in the archives divide the samples into.
    splits: Vec<Split>,
    divided: bool,
    decode: DecodeConfig,
    aside: Tally,
    fingerprint: u64,
}

#[derive(Clone, Copy)]
struct Sample {
    offset: u64,
    shard: u32,
    size: u32,
}

/// Labels are numbers, names or small objects; a longer member is not read.
const MAX_LABEL_BYTES: u64 = 1 << 20;

impl Shards {
    /// Indexes the shards, in the given order. Images are the members with one of
    /// [`DataConfig::extensions`](crate::DataConfig::extensions), unless they go with another image of their sample, such as `0001.seg.png`; labels are those with
    /// [`DataConfig::label_extension`](crate::DataConfig::label_extension). Damaged members are left aside and counted. Gzipped shards and
    /// zip archives are unpacked into temporary files, of [`DataConfig::unpack_mib`](crate::DataConfig::unpack_mib) at most. Where these, or shards
    /// with archives in them, have no labels, the folders (and inner archives) are classes; folders `train`, `test` and the like in them are splits.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`]; [`DataError::Empty`] if no shard holds an image;
    /// [`DataError::Malformed`] for a shard that is compressed otherwise, or too large to unpack.
    pub fn open(shards: Vec<PathBuf>, config: &DataSpec) -> Result<Self, DataError> {
        Self::open_part(shards, &[], config)
    }

    /// As [`open`](Self::open); where labels are names, those of the other splits' shards are numbered, too, so that all
    /// splits number alike.
    pub(crate) fn open_part(
        shards: Vec<PathBuf>,
        others: &[PathBuf],
        config: &DataSpec,
    ) -> Result<Self, DataError> {
        let budget = Budget::of_mib(config.unpack_mib);
        let parts: Vec<Part> =
            shards.par_iter().map(|shard| Part::index(shard, config, &budget)).collect::<Result<_, _>>()?;
        let first = shards.first().cloned().unwrap_or_default();
        let total: usize = parts.iter().map(|part| part.samples.len()).sum();
        if total > u32::MAX as usize {
            return Err(DataError::TooMany { path: first });
        }
        let mut all = Self {
            samples: Vec::with_capacity(total),
            keys: Names::default(),
            labels: Labels::default(),
            blocks: Vec::new(),
            splits: Vec::new(),
            divided: false,
            decode: config.decode.clone(),
            aside: Tally::default(),
            fingerprint: 0,
            shards: Vec::with_capacity(shards.len()),
        };
        let mut labels = LabelBuilder::default();
        let mut splits = Vec::new();
        for (shard, part) in parts.into_iter().enumerate() {
            let damaged = part.aside.count(Reason::Damaged);
            if damaged > 0 {
                let path = shards[shard].display();
                tracing::warn!(shard = %path, damaged, "passed over damaged members");
            }
            all.aside.append(part.aside);
            for (mut sample, key) in part.samples.into_iter().zip(part.keys.iter()) {
                sample.shard = shard as u32;
                all.samples.push(sample);
                all.keys.push(key);
            }
            labels.append(part.labels);
            splits.extend(part.splits);
            all.shards.push(part.shard);
        }
        if total == 0 {
            let expected = format!(
                "members ending in {} in {} shards{}",
                config.extensions.join(", "),
                shards.len(),
                all.aside.instead()
            );
            return Err(DataError::Empty { path: first, expected });
        }
        if labels.has_names() {
            let index = |shard: &PathBuf| Part::index(shard, config, &budget).map(|part| part.labels);
            let others: Vec<LabelBuilder> = others.par_iter().map(index).collect::<Result<_, _>>()?;
            others.into_iter().for_each(|other| labels.know(other));
        }
        all.labels = labels.finish();
        all.choose(&splits, config, &first)?;
        all.keys.shrink();
        all.mark_blocks();
        let mut hash = StableHash::new(total as u64);
        for ((sample, key), &label) in all.samples.iter().zip(all.keys.iter()).zip(all.labels.values()) {
            hash.bytes(key);
            hash.number(sample.offset);
            hash.number(u64::from(sample.size) << 32 | u64::from(label));
        }
        all.fingerprint = hash.finish();
        Ok(all)
    }

    /// Keeps the samples of the split, if there are several.
    fn choose(&mut self, splits: &[Option<Split>], config: &DataSpec, first: &Path) -> Result<(), DataError> {
        let mut there: Vec<Split> = splits.iter().flatten().copied().collect();
        there.sort();
        there.dedup();
        if there.len() < 2 {
            return Ok(());
        }
        self.splits.clone_from(&there);
        if config.split == Split::All {
            return Ok(());
        }
        let Some(present) = config.split.present(&there) else {
            let reason = Split::found(&there);
            return Err(DataError::NoSplit { path: first.to_owned(), split: config.split, reason });
        };
        let chosen: Vec<usize> = (0..self.len()).filter(|&index| splits[index] == Some(present)).collect();
        let mut keys = Names::default();
        chosen.iter().for_each(|&index| keys.push(self.keys.get(index)));
        self.samples = chosen.iter().map(|&index| self.samples[index]).collect();
        self.labels = std::mem::take(&mut self.labels).chosen(&chosen);
        (self.keys, self.divided) = (keys, true);
        Ok(())
    }

    /// The samples of each shard are a block.
    fn mark_blocks(&mut self) {
        let mut from = 0;
        for block in self.samples.chunk_by(|a, b| a.shard == b.shard) {
            self.blocks.push(from..from + block.len());
            from += block.len();
        }
    }

    /// The splits that folders in the archives are, and whether these are the images of one of them.
    pub(crate) fn division(&self) -> (&[Split], bool) {
        (&self.splits, self.divided)
    }

    /// Members that were damaged and passed over.
    pub fn n_corrupt(&self) -> usize {
        self.aside.count(Reason::Damaged)
    }

    /// What was left aside.
    pub(crate) fn left_aside(&self) -> &Tally {
        &self.aside
    }
}

impl Dataset for Shards {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let sample = self.samples.get(index).ok_or(SampleError::OutOfRange { index, len: self.len() })?;
        let shard = &self.shards[sample.shard as usize];
        let bytes = shard.read_at(sample.offset, u64::from(sample.size), &self.decode)?;
        decode(&bytes, &self.decode).map(Arc::new)
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
        match self.samples.get(index) {
            Some(sample) => {
                let shard = self.shards[sample.shard as usize].path().file_name().unwrap_or_default();
                format!("{}/{}", shard.to_string_lossy(), String::from_utf8_lossy(self.keys.get(index)))
            }
            None => format!("image {index}"),
        }
    }

    fn describe(&self) -> String {
        let classes = match (self.labels.n_classes(), self.labels.names().len()) {
            (0, _) => "without labels".to_owned(),
            (n, 0) => format!("labels below {n}"),
            (n, _) => counted(n, "class"),
        };
        let first = self.shards.first().map(|shard| shard.path().display().to_string()).unwrap_or_default();
        let kind = if self.shards.iter().all(Shard::is_zip) { "zip archive" } else { "tar shard" };
        let what = match self.shards.len() {
            1 => format!("{kind} {first}"),
            n => format!("{} from {first}", counted(n, kind)),
        };
        format!("{what}: {}, {classes}", counted(self.len(), "image"))
    }

    /// Knows keys, places, sizes and labels, not the pixels.
    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn blocks(&self) -> Option<Vec<Range<usize>>> {
        Some(self.blocks.clone())
    }
}

/// The index of one shard.
struct Part {
    shard: Shard,
    samples: Vec<Sample>,
    keys: Names,
    labels: LabelBuilder,
    /// The split of each sample, where folders say it.
    splits: Vec<Option<Split>>,
    aside: Tally,
}

impl Part {
    fn index(path: &Path, config: &DataSpec, budget: &Budget) -> Result<Self, DataError> {
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => DataError::Missing { path: path.to_owned() },
            _ => DataError::Io { path: path.to_owned(), source },
        };
        let is_label = |name: &[u8]| stem(name).1.eq_ignore_ascii_case(config.label_extension.as_bytes());
        let shard = Shard::open(path, budget, |name| config.is_image_name(name) || is_label(name))?;
        let mut index = Index::new(config);
        let visit = shard.visit(|member| index.visit(member)).map_err(io)?;
        index.finish();
        let has_folders = shard.is_packed() || visit.is_nested;
        if has_folders {
            index.label_by_folders();
        }
        let splits = index.keys.iter().map(|key| if has_folders { split_of_folders(key) } else { None });
        let splits = splits.collect();
        let Index { found, keys, mut aside, .. } = index;
        aside.add_count(Reason::Damaged, visit.n_damaged);
        aside.append(shard.left_aside());
        let mut file = shard.reader().map_err(io)?;
        let mut samples = Vec::with_capacity(found.len());
        let mut labels = LabelBuilder::default();
        for (sample, label) in found {
            samples.push(sample);
            labels.push(match label {
                Label::None => RawLabel::None(LabelKind::Missing),
                Label::Folder(name) => RawLabel::Name(name),
                Label::At { size, .. } if size > MAX_LABEL_BYTES => RawLabel::None(LabelKind::Unreadable),
                Label::At { offset, size } => {
                    let mut text = vec![0; size as usize];
                    file.seek(SeekFrom::Start(offset))
                        .and_then(|_| file.read_exact(&mut text))
                        .map_err(io)?;
                    label_of(&text, config)
                }
            });
        }
        Ok(Self { shard, samples, keys, labels, splits, aside })
    }
}

/// Gathers the members of a shard into samples.
struct Index<'a> {
    config: &'a DataSpec,
    group: Group,
    found: Vec<(Sample, Label)>,
    keys: Names,
    aside: Tally,
}

/// The label of a sample.
#[derive(Clone)]
enum Label {
    None,
    /// A member that holds it.
    At {
        offset: u64,
        size: u64,
    },
    /// The folder that the image lies in.
    Folder(String),
}

/// The members seen of one sample: their names agree up to the first dot.
#[derive(Default)]
struct Group {
    key: Vec<u8>,
    images: Vec<TarMember>,
    labels: Vec<(Vec<u8>, Label)>,
}

/// The split that a folder is called by, if its name is nothing but the word.
fn bare_split(folder: &[u8]) -> Option<Split> {
    Split::cut(std::str::from_utf8(folder).ok()?).filter(|(_, rest)| rest.is_empty()).map(|(split, _)| split)
}

/// The split of a sample by the folders that it lies in.
fn split_of_folders(key: &[u8]) -> Option<Split> {
    let folders = &key[..key.iter().rposition(|&byte| byte == b'/')?];
    folders.split(|&byte| byte == b'/').find_map(bare_split)
}

/// The name without its last ending, and that ending.
fn stem(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|&byte| byte == b'.') {
        Some(dot) => (&name[..dot], &name[dot + 1..]),
        None => (name, &[]),
    }
}

impl<'a> Index<'a> {
    fn new(config: &'a DataSpec) -> Self {
        Self {
            config,
            group: Group::default(),
            found: Vec::new(),
            keys: Names::default(),
            aside: Tally::default(),
        }
    }

    /// Where no sample has a label, the folders that images lie in are classes, if there are several and they are no splits.
    fn label_by_folders(&mut self) {
        let folder = |key: &[u8]| {
            let path = &key[..key.iter().rposition(|&byte| byte == b'/')?];
            let name = path.rsplit(|&byte| byte == b'/').next();
            let name = name.filter(|name| *name != b"." && bare_split(name).is_none())?;
            Some(String::from_utf8_lossy(name).into_owned())
        };
        let folders: Vec<Option<String>> = self.keys.iter().map(folder).collect();
        let known: BTreeSet<&String> = folders.iter().flatten().collect();
        let are_classes = known.len() >= 2;
        if are_classes && self.found.iter().all(|(_, label)| matches!(label, Label::None)) {
            for ((_, label), folder) in self.found.iter_mut().zip(folders) {
                *label = folder.map_or(Label::None, Label::Folder);
            }
        }
    }

    fn visit(&mut self, member: TarMember) {
        let name = &member.name[..];
        let base = name.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let is_hidden = |part: &[u8]| part.starts_with(b".") && part != b"." && part != b"..";
        if name.split(|&byte| byte == b'/').any(is_hidden) {
            if is_worth_telling(base, self.config) {
                self.aside.add(Reason::Hidden, name);
            }
            return;
        }
        let Some((key, _)) = split_member_name(name) else {
            self.leave(name, base);
            return;
        };
        if key != self.group.key {
            let key = key.to_vec();
            self.finish();
            self.group.key = key;
        }
        let (stem, ending) = stem(name);
        if ending.eq_ignore_ascii_case(self.config.label_extension.as_bytes()) {
            let label = Label::At { offset: member.offset, size: member.size };
            self.group.labels.push((stem.to_vec(), label));
        } else if self.config.is_image_name(base) {
            self.group.images.push(member);
        } else {
            self.leave(name, base);
        }
    }

    /// Counts a member that is neither image nor label. What samples usually have besides is not worth a word.
    fn leave(&mut self, name: &[u8], base: &[u8]) {
        let (_, ending) = stem(base);
        let usual: [&[u8]; 5] = [b"json", b"txt", b"cls", b"caption", b"md"];
        if kinds::is_packed_data(base) {
            self.aside.add(Reason::unread(&kinds::PACKED), name);
        } else if let Some(kind) = kinds::of_name(base) {
            self.aside.add(Reason::unread(kind), name);
        } else if !usual.contains(&ending) && !kinds::is_furniture(base) {
            self.aside.add(Reason::NoImage, name);
        }
    }

    /// Makes samples of the group's images. An image with more than one ending is one of its own (`22.05.png`), unless the
    /// middle is a word and there is an image without it, or the word is that of a mask or the like.
    fn finish(&mut self) {
        let Group { key, images, labels } = std::mem::take(&mut self.group);
        let is_plain = |member: &TarMember| stem(&member.name).0.len() == key.len();
        let has_plain = images.iter().any(is_plain);
        let mut last: Vec<u8> = Vec::new();
        for image in images {
            let (own, _) = stem(&image.name);
            let middle = own.get(key.len() + 1..).unwrap_or_default();
            if !middle.is_empty() && is_companion(middle, has_plain) {
                self.aside.add(Reason::Companion, &image.name);
                continue;
            }
            let Ok(size) = u32::try_from(image.size) else {
                self.aside.add(Reason::Damaged, &image.name);
                continue;
            };
            let of =
                |stem: &[u8]| labels.iter().find(|(name, _)| name == stem).map(|(_, label)| label.clone());
            let label = of(own).or_else(|| of(&key)).unwrap_or(Label::None);
            self.found.push((Sample { offset: image.offset, shard: 0, size }, label));
            // A second image of the same name but for its ending is called by its whole name.
            self.keys.push(if own == last { &image.name } else { own });
            last = own.to_vec();
        }
    }
}

/// Whether an image goes with another, by what stands between its key and its ending.
fn is_companion(middle: &[u8], has_plain: bool) -> bool {
    const WORDS: [&str; 24] = [
        "mask",
        "masks",
        "seg",
        "segmentation",
        "segm",
        "semantic",
        "instance",
        "panoptic",
        "label",
        "labels",
        "annotation",
        "depth",
        "disparity",
        "normal",
        "normals",
        "alpha",
        "trimap",
        "edge",
        "edges",
        "gt",
        "saliency",
        "flow",
        "thumb",
        "thumbnail",
    ];
    let word = middle.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
    let is_number = middle.iter().all(|byte| byte.is_ascii_digit() || b"._- ".contains(byte));
    WORDS.iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes())) || (has_plain && !is_number)
}

/// The label in a member: a text, or the label field of a JSON object.
fn label_of(text: &[u8], config: &DataSpec) -> RawLabel {
    if !config.label_extension.eq_ignore_ascii_case("json") {
        return RawLabel::of_text(text);
    }
    let field = config.label_column.as_deref().unwrap_or("label");
    match serde_json::from_slice::<serde_json::Value>(text) {
        Ok(serde_json::Value::Object(object)) => {
            object.get(field).map_or(RawLabel::None(LabelKind::Missing), RawLabel::of_json)
        }
        Ok(value) => RawLabel::of_json(&value),
        Err(_) => RawLabel::None(LabelKind::Unreadable),
    }
}
