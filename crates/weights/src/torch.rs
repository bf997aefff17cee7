//! Files of `torch.save`, both kinds.
//!
//! Since PyTorch 1.6 a file is a zip archive: `NAME/data.pkl` is the pickle, `NAME/data/KEY` are the storages. Before, it
//! was a row of pickles (magic number, protocol, machine, object, keys of the storages) and the storages behind them, each
//! with its length.

use std::collections::HashMap;
use std::io::{self, Write};

use swav_encoder::StateTensor;

use crate::pickle::{self, Machine, Object, Stop, StorageRef, Value};
use crate::source::{Source, le_bytes};
use crate::tensors::{Storage, Tensor, Tensors, check_crc};
use crate::{Dtype, WeightsError, zip};

/// First bytes of a zip archive.
pub(crate) const ZIP: &[u8] = b"PK\x03\x04";
/// 0x1950a86a20f9469cfc6c, the number that files before version 1.6 begin with.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;
/// A pickle whose end is not known is read so far at first.
const FIRST_READ: u64 = 1 << 18;

/// Whether a file begins like one of versions before 1.6.
pub(crate) fn is_legacy(head: &[u8]) -> bool {
    head.len() >= 14 && head[0] == 0x80 && head[2..4] == [0x8a, 10] && head[4..14] == MAGIC
}

/// The tensors of a zip archive.
pub(crate) fn read_zip(source: &mut Source) -> Result<Tensors, WeightsError> {
    let directory = zip::read(source)?;
    let is_folder = |prefix: &str| prefix.is_empty() || prefix.ends_with('/');
    let pickles = directory.iter().filter_map(|(name, entry)| Some((name.strip_suffix("data.pkl")?, entry)));
    let found = pickles.into_iter().find(|(prefix, _)| is_folder(prefix));
    let (prefix, entry) = found.ok_or_else(|| WeightsError::Format {
        expected: "an archive of torch.save, with an entry data.pkl",
        got: "another zip archive".to_owned(),
    })?;
    if directory.contains_key(&format!("{prefix}constants.pkl")) {
        return Err(WeightsError::Format {
            expected: "weights",
            got: "a TorchScript program; save its state_dict() instead".to_owned(),
        });
    }
    if let Some(order) = directory.get(&format!("{prefix}byteorder")) {
        let text = source.take(order.at, order.len.min(16), "byteorder")?;
        if text != b"little" {
            return Err(WeightsError::malformed("byteorder", "little", String::from_utf8_lossy(&text)));
        }
    }
    if entry.len > pickle::MAX_BYTES {
        return Err(too_long(entry.len));
    }
    let bytes = source.take(entry.at, entry.len, "data.pkl")?;
    check_crc("data.pkl", entry.crc, crc32fast::hash(&bytes))?;
    let mut machine = Machine::new(&bytes);
    let root = machine.run().map_err(|stop| whole(stop, bytes.len()))?;
    resolve(&machine, root, |name, storage| {
        let entry = directory.get(&format!("{prefix}data/{}", storage.key)).ok_or_else(|| {
            WeightsError::tensor(
                name,
                format_args!("its storage data/{} in the archive", storage.key),
                "none",
            )
        })?;
        check_length(name, storage, entry.len)?;
        Ok(Storage { dtype: storage.dtype, len: storage.len, at: entry.at, crc: Some(entry.crc) })
    })
}

/// The tensors of a file from before version 1.6.
pub(crate) fn read_legacy(source: &mut Source) -> Result<Tensors, WeightsError> {
    let mut wanted = FIRST_READ;
    loop {
        let available = source.len().min(pickle::MAX_BYTES);
        let n_bytes = wanted.min(available);
        let bytes = source.take(0, n_bytes, "pickle")?;
        let mut machine = Machine::new(&bytes);
        match legacy_pickles(&mut machine) {
            Ok((root, keys)) => return legacy_tensors(source, &machine, root, keys),
            Err(Stop::Cut) if n_bytes < available => wanted *= 4,
            Err(Stop::Cut) if n_bytes < source.len() => return Err(too_long(source.len())),
            Err(stop) => return Err(whole(stop, bytes.len())),
        }
    }
}

/// The object and the list of storages' keys.
fn legacy_pickles<'a>(machine: &mut Machine<'a>) -> Result<(Value<'a>, Value<'a>), Stop> {
    let wrong = |part: &str, expected: &str, got: Value<'_>| {
        Stop::Wrong(WeightsError::malformed(part, expected, format_args!("{got:?}")))
    };
    let magic = machine.run()?;
    if magic != Value::Long(&MAGIC) {
        return Err(wrong("magic number", "PyTorch's", magic));
    }
    let protocol = machine.run()?;
    if protocol != Value::Int(PROTOCOL) {
        return Err(wrong("protocol", "1001", protocol));
    }
    let system = machine.run()?;
    let entries = match system {
        Value::Object(number) => machine.objects.get(number),
        _ => None,
    };
    let big = |(key, value): &(Value<'_>, Value<'_>)| {
        *key == Value::Text("little_endian") && *value != Value::Bool(true)
    };
    match entries {
        Some(Object::Dict(entries)) if !entries.iter().any(big) => {}
        _ => return Err(wrong("machine", "a little-endian one", system)),
    }
    Ok((machine.run()?, machine.run()?))
}

/// Walks over the storages behind the pickles.
fn legacy_tensors<'a>(
    source: &mut Source,
    machine: &Machine<'a>,
    root: Value<'a>,
    keys: Value<'a>,
) -> Result<Tensors, WeightsError> {
    let keys = machine.sequence(keys).ok_or_else(|| {
        WeightsError::malformed("storages", "a list of their keys", format_args!("{keys:?}"))
    })?;
    let mut known: HashMap<&str, StorageRef<'_>> = HashMap::new();
    for object in &machine.objects {
        if let Object::Storage(storage) = object {
            let before = known.insert(storage.key, *storage);
            if before.is_some_and(|before| before != *storage) {
                let part = format!("storage {}", storage.key);
                return Err(WeightsError::malformed(part, "one kind and length", "two"));
            }
        }
    }
    let mut places: HashMap<&str, u64> = HashMap::new();
    let mut at = machine.position() as u64;
    for &key in keys {
        let storage = match key {
            Value::Text(key) => known.get(key),
            _ => None,
        };
        let storage = storage.ok_or_else(|| {
            WeightsError::malformed("storages", "the keys that tensors name", format_args!("{key:?}"))
        })?;
        let part = format!("storage {}", storage.key);
        let mut len = [0; 8];
        source.read(at, &mut len, &part)?;
        if u64::from_le_bytes(len) != storage.len {
            let expected = format!("{} numbers", storage.len);
            return Err(WeightsError::malformed(part, expected, u64::from_le_bytes(len)));
        }
        let n_bytes = storage.len.checked_mul(storage.dtype.size() as u64);
        let n_bytes =
            n_bytes.ok_or_else(|| WeightsError::malformed(&part, "a length in memory", storage.len))?;
        source.check(at + 8, n_bytes, &part)?;
        if places.insert(storage.key, at).is_some() {
            return Err(WeightsError::malformed(part, "to be there once", "twice"));
        }
        at += 8 + n_bytes;
    }
    resolve(machine, root, |name, storage| {
        let at = places.get(storage.key).ok_or_else(|| {
            WeightsError::tensor(name, format_args!("its storage {} in the file", storage.key), "none")
        })?;
        Ok(Storage { dtype: storage.dtype, len: storage.len, at: at + 8, crc: None })
    })
}

/// Looks up the storage of every tensor.
fn resolve<'a>(
    machine: &Machine<'a>,
    root: Value<'a>,
    locate: impl Fn(&str, &StorageRef<'a>) -> Result<Storage, WeightsError>,
) -> Result<Tensors, WeightsError> {
    let mut tensors = Tensors::new();
    for (name, tensor) in pickle::tensors(machine, root)? {
        let Some(Object::Storage(storage)) = machine.objects.get(tensor.storage) else {
            return Err(WeightsError::tensor(&name, "a storage", "none"));
        };
        let storage = locate(&name, storage)?;
        let view = Tensor::view(&name, storage, tensor.offset, &tensor.shape, &tensor.strides)?;
        tensors.insert(name, view);
    }
    Ok(tensors)
}

fn check_length(name: &str, storage: &StorageRef<'_>, n_bytes: u64) -> Result<(), WeightsError> {
    if storage.len.checked_mul(storage.dtype.size() as u64) == Some(n_bytes) {
        return Ok(());
    }
    let expected = format!("a storage of {} numbers of {}", storage.len, storage.dtype.name());
    Err(WeightsError::tensor(name, expected, format_args!("{n_bytes} bytes")))
}

fn too_long(got: u64) -> WeightsError {
    WeightsError::TooLarge { part: "pickle, in bytes".to_owned(), expected: pickle::MAX_BYTES, got }
}

/// The error of a pickle whose bytes are all there.
fn whole(stop: Stop, n_bytes: usize) -> WeightsError {
    match stop {
        Stop::Wrong(error) => error,
        Stop::Cut => WeightsError::Truncated {
            part: "pickle".to_owned(),
            expected: n_bytes as u64 + 1,
            got: n_bytes as u64,
        },
    }
}

/// Writes a zip archive that `torch.load(weights_only=True)` reads: a dictionary of tensors.
pub(crate) fn write_zip<W: Write>(to: W, tensors: &[(&str, &StateTensor)]) -> io::Result<W> {
    let described = tensors.iter().map(|&(name, tensor)| (name, dtype(name), tensor.shape()));
    let mut archive = zip::Writer::new(to);
    archive.entry("archive/data.pkl", &pickle::state_dict(described))?;
    archive.entry("archive/byteorder", b"little")?;
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        let name_of_entry = format!("archive/data/{index}");
        match dtype(name) {
            Dtype::I64 => archive.entry(&name_of_entry, &integers(tensor))?,
            _ => archive.entry(&name_of_entry, &le_bytes(tensor.data()))?,
        }
    }
    archive.entry("archive/version", b"3\n")?;
    archive.finish()
}

/// What PyTorch has a tensor of this name in: counts of batches are integers.
pub(crate) fn dtype(name: &str) -> Dtype {
    if name.ends_with("num_batches_tracked") { Dtype::I64 } else { Dtype::F32 }
}

/// Values as 64-bit integers, in the order of files.
pub(crate) fn integers(tensor: &StateTensor) -> Vec<u8> {
    tensor.data().iter().flat_map(|&value| (value as i64).to_le_bytes()).collect()
}
