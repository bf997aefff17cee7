//! A virtual machine for the small part of Python's pickles that tensors need.
//!
//! A pickle is a program. Python runs it with every function that it can import; this machine knows numbers, strings,
//! lists, tuples and dictionaries, and the few constructors of [`Global`], which only describe a tensor. Any other name
//! ends it with [`WeightsError::Refused`]. Objects lie in one list and refer to each other by number, so that a pickle that
//! contains itself is no harm. A byte of a pickle costs at most some 150 bytes of memory (`tests/parity.rs`), and a
//! pickle has at most [`MAX_OPERATIONS`], so that no pickle takes more than 40 MB.
//!
//! Written here since no crate does it: `serde-pickle` has neither persistent identities, by which PyTorch names storages,
//! nor constructors with arguments; `repugnant-pickle` is an unkept experiment that gives what it cannot read as raw
//! operations; the reader in `candle-core` comes with a whole tensor library and takes unknown classes for data.

mod machine;
mod tensors;
mod write;

pub(crate) use machine::{Machine, Object, Stop, StorageRef, TensorRef, Value};
pub(crate) use tensors::tensors;
pub(crate) use write::state_dict;

use crate::Dtype;
#[cfg(doc)]
use crate::WeightsError;

/// Operations that a pickle has at most. ResNet-50 with the state of its optimiser has 20,000.
pub(crate) const MAX_OPERATIONS: usize = 1 << 18;
/// Bytes that a pickle has at most.
pub(crate) const MAX_BYTES: u64 = 1 << 25;

/// Everything that a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    /// `collections.OrderedDict`: a dictionary.
    OrderedDict,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`: a view of a storage.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`: a tensor that is trained.
    RebuildParameter,
    /// `torch.Size`: a tuple.
    Size,
    /// `torch.FloatStorage` and the like: the kind of numbers of a storage.
    Storage(Dtype),
}

impl Global {
    /// The allow-list.
    pub(crate) fn find(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", "Size") => Some(Self::Size),
            ("torch", storage) => Dtype::of_storage(storage).map(Self::Storage),
            _ => None,
        }
    }
}
