//! Optimisers over all tensors at once, from a table on the card.

use super::Launch;
use crate::shape::Element;

/// Values of a chunk: `CHUNK` of `update.cu`.
const CHUNK: usize = 8192;

/// An optimiser's rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Layer-wise adaptive rates.
    Larc,
    /// Gradient descent with momentum.
    Sgd,
    /// Adam with decoupled weight decay.
    AdamW,
}

/// One tensor that is updated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorEntry<P> {
    /// Parameters, f32.
    pub weights: P,
    /// Momentum, or AdamW's mean of gradients, f32.
    pub first: P,
    /// AdamW's mean of squares, f32; only AdamW needs it.
    pub second: Option<P>,
    /// Gradient of the first group of crops.
    pub gradient: P,
    /// Type of gradients.
    pub element: Element,
    /// Groups whose gradients are added.
    pub groups: usize,
    /// Bytes from one group's gradient to the next one's; a multiple of 16.
    pub group_stride: u64,
    /// bf16 copy that is refreshed.
    pub copy: Option<P>,
    /// Values, padding included; a multiple of 8.
    pub len: usize,
    /// Index of its numbers in [`StepScalars::classes`](super::StepScalars).
    pub class: usize,
    /// Where [`SumGradients`] puts it, in values; a multiple of 8.
    pub flat: u64,
}

impl<P> TensorEntry<P> {
    /// The same entry with other buffer handles.
    pub fn map<Q>(self, mut f: impl FnMut(P) -> Q) -> TensorEntry<Q> {
        TensorEntry {
            weights: f(self.weights),
            first: f(self.first),
            second: self.second.map(&mut f),
            gradient: f(self.gradient),
            element: self.element,
            groups: self.groups,
            group_stride: self.group_stride,
            copy: self.copy.map(&mut f),
            len: self.len,
            class: self.class,
            flat: self.flat,
        }
    }

    /// Chunks of this tensor, each a block's work.
    pub fn chunks(&self) -> usize {
        self.len.div_ceil(CHUNK)
    }

    /// Bytes of an entry of the table of tensors.
    pub const BYTES: usize = 80;
}

/// The table of tensors and that of chunks (8 bytes each) as the kernels read them.
///
/// # Panics
/// If a length is not a multiple of 8, or 2^30 or more, or a class is not below 4.
pub fn tensor_table(entries: &[TensorEntry<u64>]) -> (Vec<u8>, Vec<u8>) {
    let (mut tensors, mut chunks) = (Vec::new(), Vec::new());
    let mut first_chunk = 0;
    for (index, entry) in entries.iter().enumerate() {
        assert!(entry.len.is_multiple_of(8) && entry.len < 1 << 30, "{} values in a tensor", entry.len);
        assert!(entry.class < 4, "class {} of a tensor", entry.class);
        let words = [
            entry.weights,
            entry.first,
            entry.second.unwrap_or(0),
            entry.gradient,
            entry.copy.unwrap_or(0),
            entry.group_stride,
            entry.flat,
        ];
        tensors.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let narrow = usize::from(entry.element == Element::Bf16);
        let numbers = [entry.len, narrow, entry.groups, entry.class, first_chunk, entry.chunks()];
        tensors.extend(numbers.iter().flat_map(|&n| (n as i32).to_le_bytes()));
        for chunk in 0..entry.chunks() {
            chunks.extend([index, chunk * CHUNK].iter().flat_map(|&n| (n as i32).to_le_bytes()));
        }
        first_chunk += entry.chunks();
    }
    (tensors, chunks)
}

/// Reports norms, updates all tensors of a table with gradients clipped to the step's norm, refreshes copies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update<P> {
    /// How.
    pub rule: Rule,
    /// From [`tensor_table`].
    pub tensors: P,
    /// From [`tensor_table`].
    pub chunks: P,
    /// Number of chunks.
    pub n_chunks: usize,
    /// The step's scalars.
    pub scalars: P,
    /// Scratch: two f32 a chunk.
    pub partials: P,
    /// Written: the norms of a [`StepReport`](super::StepReport), before clipping.
    pub report: P,
}

impl<P: Copy> Update<P> {
    /// The launches, in their order.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let chunks = |kernel| {
            Launch::blocks(kernel, [self.n_chunks, 1, 1])
                .pointer(self.tensors)
                .pointer(self.chunks)
                .pointer(self.scalars)
        };
        let update = match self.rule {
            Rule::Larc => chunks("update_larc").pointer(self.report).pointer(self.partials),
            Rule::Sgd => chunks("update_sgd").pointer(self.report),
            Rule::AdamW => chunks("update_adamw").pointer(self.report),
        };
        let report = Launch::new("update_report", [1, 1, 1], [1024, 1, 1])
            .pointer(self.partials)
            .pointer(self.report)
            .pointer(self.scalars)
            .int(self.n_chunks);
        vec![chunks("update_norms").pointer(self.partials), report, update]
    }
}

/// The groups' gradients of all tensors added into one flat f32 buffer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SumGradients<P> {
    /// From [`tensor_table`].
    pub tensors: P,
    /// From [`tensor_table`].
    pub chunks: P,
    /// Number of chunks.
    pub n_chunks: usize,
    /// Written, at each entry's `flat`.
    pub flat: P,
}

impl<P: Copy> SumGradients<P> {
    /// The launch.
    pub fn launches(&self) -> Vec<Launch<P>> {
        let launch = Launch::blocks("sum_gradients", [self.n_chunks, 1, 1]).pointer(self.tensors);
        vec![launch.pointer(self.chunks).pointer(self.flat)]
    }
}
