//! Tar shards in the WebDataset convention, indexed once and then read in place.
//!
//! Members of one sample share the path up to the first dot of the file name; what follows the dot says what a member
//! is: `n01/0001.jpg` and `n01/0001.cls` are an image and its label. Opening reads headers and labels only. Images are
//! then read by offset, so that any order, resumption and sharding work as for files, and nothing is unpacked.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;
use swav_augment::Image;

use crate::{
    DataError, DataSpec, Dataset, DecodeConfig, SampleError, StableHash, TarMember, decode, names::Names,
    scan_tar,
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
    shards: Vec<PathBuf>,
    samples: Vec<Sample>,
    keys: Names,
    blocks: Vec<Range<usize>>,
    n_classes: u32,
    decode: DecodeConfig,
    n_corrupt: usize,
    fingerprint: u64,
}

#[derive(Clone, Copy)]
struct Sample {
    offset: u64,
    shard: u32,
    size: u32,
    label: u32,
}

const NO_LABEL: u32 = u32::MAX;
/// Labels are numbers or small objects; a longer member is not read.
const MAX_LABEL_BYTES: u64 = 1 << 20;

impl Shards {
    /// Indexes the shards, in the given order. Images are the members whose whole ending is one of
    /// [`DataConfig::extensions`](crate::DataConfig::extensions) (the first one of each sample), labels those with
    /// [`DataConfig::label_extension`](crate::DataConfig::label_extension). Damaged members are passed over, counted and logged.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`]; [`DataError::Empty`] if no shard holds an image;
    /// [`DataError::Malformed`] for a compressed shard, which cannot be read by offset, or a label that is no number.
    pub fn open(shards: Vec<PathBuf>, config: &DataSpec) -> Result<Self, DataError> {
        let parts: Vec<Part> =
            shards.par_iter().map(|shard| Part::index(shard, config)).collect::<Result<_, _>>()?;
        let first = shards.first().cloned().unwrap_or_default();
        let total: usize = parts.iter().map(|part| part.samples.len()).sum();
        if total > u32::MAX as usize {
            return Err(DataError::TooMany { path: first });
        }
        if total == 0 {
            let expected =
                format!("members ending in {} in {} shards", config.extensions.join(", "), shards.len());
            return Err(DataError::Empty { path: first, expected });
        }
        let mut all = Self {
            samples: Vec::with_capacity(total),
            keys: Names::default(),
            blocks: Vec::new(),
            n_classes: 0,
            decode: config.decode.clone(),
            n_corrupt: 0,
            fingerprint: 0,
            shards,
        };
        let mut hash = StableHash::new(total as u64);
        for (shard, part) in parts.into_iter().enumerate() {
            if part.n_corrupt > 0 {
                let path = all.shards[shard].display();
                tracing::warn!(shard = %path, damaged = part.n_corrupt, "passed over damaged members");
            }
            all.n_corrupt += part.n_corrupt;
            let from = all.samples.len();
            for (mut sample, key) in part.samples.into_iter().zip(part.keys.iter()) {
                sample.shard = shard as u32;
                hash.bytes(key);
                hash.number(sample.offset);
                hash.number(u64::from(sample.size) << 32 | u64::from(sample.label));
                if sample.label != NO_LABEL {
                    all.n_classes = all.n_classes.max(sample.label + 1);
                }
                all.samples.push(sample);
                all.keys.push(key);
            }
            let to = all.samples.len();
            if to > from {
                all.blocks.push(from..to);
            }
        }
        all.keys.shrink();
        all.fingerprint = hash.finish();
        Ok(all)
    }

    /// Members that were damaged and passed over.
    pub fn n_corrupt(&self) -> usize {
        self.n_corrupt
    }
}

impl Dataset for Shards {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let sample = self.samples.get(index).ok_or(SampleError::OutOfRange { index, len: self.len() })?;
        let bytes = read_at(&self.shards[sample.shard as usize], sample.offset, sample.size)?;
        decode(&bytes, &self.decode).map(Arc::new)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.samples.get(index).map(|sample| sample.label).filter(|&label| label != NO_LABEL)
    }

    fn name(&self, index: usize) -> String {
        match self.samples.get(index) {
            Some(sample) => {
                let shard = self.shards[sample.shard as usize].file_name().unwrap_or_default();
                format!("{}/{}", shard.to_string_lossy(), String::from_utf8_lossy(self.keys.get(index)))
            }
            None => format!("image {index}"),
        }
    }

    fn describe(&self) -> String {
        let classes = match self.n_classes {
            0 => "without labels".to_owned(),
            n => format!("labels below {n}"),
        };
        let first = self.shards.first().map(|path| path.display().to_string()).unwrap_or_default();
        format!("{} tar shards from {first}: {} images, {classes}", self.shards.len(), self.len())
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
    samples: Vec<Sample>,
    keys: Names,
    n_corrupt: usize,
}

impl Part {
    fn index(shard: &Path, config: &DataSpec) -> Result<Self, DataError> {
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => DataError::Missing { path: shard.to_owned() },
            _ => DataError::Io { path: shard.to_owned(), source },
        };
        let malformed = |reason: String| DataError::Malformed {
            path: shard.to_owned(),
            format: "tar",
            source: reason.into(),
        };
        let mut file = File::open(shard).map_err(io)?;
        let mut start = Vec::new();
        (&mut file).take(6).read_to_end(&mut start).map_err(io)?;
        let compressions: [(&[u8], &str); 3] =
            [(&[0x1f, 0x8b], "gzip"), (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (b"BZh", "bzip2")];
        if let Some((_, name)) = compressions.iter().find(|(magic, _)| start.starts_with(magic)) {
            let reason = format!(
                "compressed with {name}; images are read by offset, so decompress the shard first (pictures hardly shrink anyway)"
            );
            return Err(malformed(reason));
        }
        let (mut samples, mut keys) = (Vec::new(), Names::default());
        let mut group = Group::default();
        let mut labels = Vec::new();
        let mut n_large = 0;
        let summary = scan_tar(&mut file, |member| {
            let Some((key, ending)) = split_member_name(&member.name) else { return };
            if key != group.key {
                group.finish(&mut samples, &mut keys, &mut labels, &mut n_large);
                group.key = key.to_vec();
            }
            let is = |extension: &str| ending.eq_ignore_ascii_case(extension.as_bytes());
            if is(&config.label_extension) {
                group.label.get_or_insert(member);
            } else if config.extensions.iter().any(|extension| is(extension)) {
                group.image.get_or_insert(member);
            }
        })
        .map_err(io)?;
        group.finish(&mut samples, &mut keys, &mut labels, &mut n_large);
        for (sample, label) in samples.iter_mut().zip(labels) {
            let Some((offset, size)) = label else { continue };
            let mut text = vec![0; size as usize];
            file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut text)).map_err(io)?;
            sample.label = parse_label(&text, config).map_err(malformed)?;
        }
        if summary.truncated {
            tracing::warn!(shard = %shard.display(), "the shard ends within a member");
        }
        Ok(Self { samples, keys, n_corrupt: summary.n_corrupt + n_large })
    }
}

/// The members seen of one sample.
#[derive(Default)]
struct Group {
    key: Vec<u8>,
    image: Option<TarMember>,
    label: Option<TarMember>,
}

impl Group {
    fn finish(
        &mut self,
        samples: &mut Vec<Sample>,
        keys: &mut Names,
        labels: &mut Vec<Option<(u64, u64)>>,
        n_large: &mut usize,
    ) {
        let (image, label) = (self.image.take(), self.label.take());
        let Some(image) = image else { return };
        let Ok(size) = u32::try_from(image.size) else {
            *n_large += 1;
            return;
        };
        samples.push(Sample { offset: image.offset, shard: 0, size, label: NO_LABEL });
        keys.push(&self.key);
        labels.push(
            label.filter(|label| label.size <= MAX_LABEL_BYTES).map(|label| (label.offset, label.size)),
        );
    }
}

/// The label in a member: a decimal number, or the label field of a JSON object. -1 means that there is none.
fn parse_label(text: &[u8], config: &DataSpec) -> Result<u32, String> {
    let shown = || String::from_utf8_lossy(&text[..text.len().min(40)]).into_owned();
    let value = if config.label_extension.eq_ignore_ascii_case("json") {
        let field = config.label_column.as_deref().unwrap_or("label");
        let object: serde_json::Value =
            serde_json::from_slice(text).map_err(|error| format!("label: {error}"))?;
        match object.get(field) {
            None | Some(serde_json::Value::Null) => Some(-1),
            Some(value) => value.as_i64(),
        }
    } else {
        std::str::from_utf8(text).ok().and_then(|text| text.trim().parse::<i64>().ok())
    };
    match value {
        Some(-1) => Some(NO_LABEL),
        Some(value) => u32::try_from(value).ok().filter(|&label| label != NO_LABEL),
        None => None,
    }
    .ok_or_else(|| format!("expected a label from 0 on as a decimal number, found {:?}", shown()))
}

/// Reads part of a file. The file is opened for each read: that is cheap beside decoding, needs no limit on open
/// files, and notices a shard that has vanished.
fn read_at(path: &Path, offset: u64, size: u32) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; size as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
