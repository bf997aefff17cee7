//! Files of safetensors: the length of a header, the header as JSON, and the numbers.
//!
//! The header is read here, not by the crate `safetensors`, which wants the whole file in memory and does not say which
//! tensor is wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use swav_encoder::StateTensor;

use crate::source::{Source, le_bytes};
use crate::tensors::{MAX_RANK, Storage, Tensor, Tensors};
use crate::torch::{dtype, integers};
use crate::{Dtype, WeightsError};

/// Bytes that a header has at most, by the format's definition.
const MAX_HEADER: u64 = 100_000_000;
const METADATA: &str = "__metadata__";

/// Text by name, beside the tensors of a file.
pub type Metadata = BTreeMap<String, String>;

/// A tensor as the header has it.
#[derive(Deserialize)]
struct Listed {
    dtype: String,
    #[serde(deserialize_with = "extents")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A shape, which ends where it has more dimensions than any tensor: a header of zeros alone would take eight times its size.
fn extents<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Extents;
    impl<'de> Visitor<'de> for Extents {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a shape of at most {MAX_RANK} dimensions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<u64>, A::Error> {
            let mut extents = Vec::new();
            while let Some(extent) = sequence.next_element()? {
                if extents.len() == MAX_RANK {
                    return Err(A::Error::invalid_length(MAX_RANK + 1, &self));
                }
                extents.push(extent);
            }
            Ok(extents)
        }
    }
    deserializer.deserialize_seq(Extents)
}

#[derive(Default)]
struct Header {
    metadata: Metadata,
    tensors: Vec<(String, Listed)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a tensor for each name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        header.metadata = map.next_value()?;
                    } else {
                        let listed = map
                            .next_value()
                            .map_err(|error| A::Error::custom(format_args!("tensor `{name}`: {error}")))?;
                        header.tensors.push((name, listed));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Whether a file of `len` bytes may be one: a header that fits, and that is an object.
pub(crate) fn is_safetensors(head: &[u8]) -> bool {
    head.len() > 8 && head[8] == b'{'
}

/// Tensors and metadata of a file.
pub(crate) fn read(source: &mut Source) -> Result<(Tensors, Metadata), WeightsError> {
    let mut len = [0; 8];
    source.read(0, &mut len, "length of the header")?;
    let len = u64::from_le_bytes(len);
    source.check(8, len, "header")?;
    if len > MAX_HEADER {
        let part = "header, in bytes".to_owned();
        return Err(WeightsError::TooLarge { part, expected: MAX_HEADER, got: len });
    }
    let text = source.take(8, len, "header")?;
    let header: Header = serde_json::from_slice(&text)
        .map_err(|error| WeightsError::malformed("header", "JSON of tensors", error))?;
    drop(text);
    place(header, 8 + len, source)
}

/// Checks where the tensors lie: one after the other, without gaps, up to the end of the file.
fn place(mut header: Header, start: u64, source: &Source) -> Result<(Tensors, Metadata), WeightsError> {
    header.tensors.sort_by_key(|(_, listed)| listed.data_offsets);
    let mut tensors = Tensors::new();
    let mut end = 0;
    for (name, listed) in header.tensors {
        let dtype = Dtype::of_safetensors(&listed.dtype)
            .ok_or_else(|| WeightsError::tensor(&name, "floats or integers", &listed.dtype))?;
        let (from, to) = listed.data_offsets;
        if from != end || to < from {
            let expected = format!("data from byte {end} on, where the tensor before it ends");
            return Err(WeightsError::tensor(&name, expected, format_args!("{from} to {to}")));
        }
        source.check(start.saturating_add(from), to - from, &format!("tensor `{name}`"))?;
        end = to;
        let len = (to - from) / dtype.size() as u64;
        if len * dtype.size() as u64 != to - from {
            let expected = format!("whole numbers of {} bytes", dtype.size());
            return Err(WeightsError::tensor(&name, expected, format_args!("{} bytes", to - from)));
        }
        let storage = Storage { dtype, len, at: start + from, crc: None };
        let tensor = Tensor::whole(&name, storage, &listed.shape)?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(WeightsError::tensor(&name, "to be there once", "twice"));
        }
    }
    if start + end != source.len() {
        let (expected, got) = (format!("{} bytes", start + end), source.len());
        return Err(WeightsError::malformed("file", expected, got));
    }
    Ok((tensors, header.metadata))
}

/// Writes tensors: counts of batches as integers, everything else as 32-bit floats.
pub(crate) fn write<W: Write>(
    mut to: W,
    tensors: &[(&str, &StateTensor)],
    metadata: &Metadata,
) -> io::Result<W> {
    // The format wants the widest numbers first, so that all are aligned.
    let mut ordered = tensors.to_vec();
    ordered.sort_by_key(|&(name, _)| (dtype(name) != Dtype::I64, name));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA.to_owned(), serde_json::json!(metadata));
    }
    let mut at = 0;
    for (name, tensor) in &ordered {
        let dtype = dtype(name);
        let end = at + tensor.data().len() * dtype.size();
        let entry =
            serde_json::json!({ "dtype": dtype.name(), "shape": tensor.shape(), "data_offsets": [at, end] });
        header.insert((*name).to_owned(), entry);
        at = end;
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    to.write_all(&(text.len() as u64).to_le_bytes())?;
    to.write_all(&text)?;
    for (name, tensor) in ordered {
        match dtype(name) {
            Dtype::I64 => to.write_all(&integers(tensor))?,
            _ => to.write_all(&le_bytes(tensor.data()))?,
        }
    }
    Ok(to)
}
