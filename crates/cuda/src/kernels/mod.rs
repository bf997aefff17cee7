//! The crate's own kernels and their launch descriptions.
//!
//! The source is CUDA C in `kernels/`, one file a concept, put together by [`source`] into one translation unit that
//! needs no header: NVRTC compiles it when a card is taken into use, and tests compile the same text as C++ for the CPU.
//! What is written once for the type `REAL` is there twice, as `NAME_bf16` and `NAME_f32`.
//!
//! An operation is a structure with its buffers and sizes, for any kind of buffer handle `P`: an address on the card, or
//! a place in a plan. `launches` turns it into one or more [`Launch`]es. Grids depend on sizes only, never on the card,
//! and all sums have a fixed order, so the same input gives the same bits.
//!
//! Conventions:
//!
//! - Activations are NHWC, seen as `[rows][channels]`. Channels are a multiple of 8 ([`padded`]); padding channels hold
//!   zeros in every tensor, parameters included, and all kernels keep them zero, gradients as well.
//! - Sums, parameters, statistics and slots are f32. An [`Element`] says what activations, their gradients and copies of
//!   weights are.
//! - `reversed` walks a tensor from its end, so that what the kernel before wrote last is read while it is still in the
//!   second-level cache. It changes the order of blocks, not that of elementwise results; sums may round otherwise.

mod bind;
mod codes;
mod input;
mod launch;
mod linear;
mod norm;
mod pool;
mod step;
mod update;

pub(crate) use bind::{Binding, SCALAR_BYTES, launches, scalar_bytes};
pub use codes::{MeanRow, QueuePush, SinkhornCodes, StoreCodes, SwappedLoss};
pub use input::{PixelPad, PixelRows, PixelSource, StemMask, rows_from_square, square_from_rows};
pub use launch::{Arg, Launch};
pub use linear::{
    AddBias, AddInto, BiasGradient, Cast, Fill, PrototypeNormalise, UnitLength, UnitLengthBackward,
};
pub use norm::{
    ApplyGate, Branch, MergeRunning, NormApply, NormBackwardApply, NormBackwardSums, NormFromRunning,
    NormGrad, NormStatistics, Shortcut, SumsGate, norm_scratch_len,
};
pub use pool::{
    AveragePool, AveragePoolBackward, NormPool, NormPoolBackwardApply, NormPoolBackwardSums, PoolShape,
};
pub use step::{RuleScalars, StepReport, StepScalars};
pub use update::{Rule, SumGradients, TensorEntry, Update, tensor_table};

use crate::shape::Element;

/// Options that the kernels need from the compiler, beside the architecture and `--std=c++17`.
pub const OPTIONS: &[&str] = &[];

/// Channels rounded up to a multiple of 8.
pub const fn padded(channels: usize) -> usize {
    channels.div_ceil(8) * 8
}

/// One file of the source.
struct File {
    name: &'static str,
    text: &'static str,
}

macro_rules! file {
    ($name:literal) => {
        File { name: $name, text: include_str!(concat!("../../kernels/", $name)) }
    };
}

/// What stands for the card; a CPU has its own.
const DEVICE: File = file!("device.cuh");

const COMMON: &[File] = &[file!("common.cuh"), file!("step.cuh")];

/// Written for `REAL`, compiled for both types.
const TYPED: &[File] =
    &[file!("norm.cu"), file!("pool.cu"), file!("input.cu"), file!("linear.cu"), file!("codes.cu")];

const UNTYPED: &[File] = &[file!("norm_finish.cu"), file!("codes_report.cu"), file!("update.cu")];

/// Defines `KERNEL(name, blocks)`: a kernel of 256 threads, of which `blocks` blocks fit a multiprocessor.
const KERNEL: &str = "
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, SUFFIX)
#define KERNEL(name, blocks) extern \"C\" __global__ __launch_bounds__(256, blocks) void NAME(name)
";

/// The whole source for NVRTC.
pub fn source() -> String {
    source_with(DEVICE.name, DEVICE.text)
}

/// The whole source with another file in the place of `device.cuh`.
pub fn source_with(name: &str, device: &str) -> String {
    let mut out = String::new();
    let mut add = |name: &str, text: &str| {
        out.push_str(&format!("#line 1 \"{name}\"\n{text}\n"));
    };
    add(name, device);
    add("kernel macros", KERNEL);
    for file in COMMON {
        add(file.name, file.text);
    }
    for (real, suffix) in [("bf16", "bf16"), ("float", "f32")] {
        let defines = format!("#undef REAL\n#undef SUFFIX\n#define REAL {real}\n#define SUFFIX {suffix}");
        add("types", &defines);
        for file in TYPED {
            add(file.name, file.text);
        }
    }
    for file in UNTYPED {
        add(file.name, file.text);
    }
    out
}

macro_rules! names {
    (typed: $($typed:literal)*; plain: $($plain:literal)*;) => {
        /// All kernels of the source.
        pub const NAMES: &[&str] = &[$(concat!($typed, "_bf16"), concat!($typed, "_f32"),)* $($plain,)*];
    };
}

names! {
    typed: "norm_statistics" "norm_finish" "norm_apply" "norm_apply_identity" "norm_apply_normed"
        "norm_backward_sums" "norm_backward_sums_mask" "norm_backward_sums_pair"
        "norm_backward_apply" "norm_backward_apply_mask" "norm_backward_apply_pair"
        "norm_pool" "norm_pool_backward_sums" "norm_pool_backward_apply" "average_pool" "average_pool_backward"
        "pixel_pad_f32" "pixel_pad_u8" "pixel_rows_f32" "pixel_rows_u8" "stem_mask"
        "add_bias" "bias_gradient" "unit_length" "unit_length_backward" "prototype_normalise" "add_into" "fill"
        "sinkhorn_prototypes" "sinkhorn_samples" "store_codes" "swapped_loss" "swapped_usage" "mean_row" "queue_push";
    plain: "norm_backward_finish" "norm_backward_finish_pair" "norm_from_running" "merge_running"
        "sinkhorn_merge" "step_report"
        "update_norms" "update_larc" "update_sgd" "update_adamw" "update_report" "sum_gradients"
        "cast_to_bf16" "cast_to_f32";
}

/// The name of a kernel for an element type.
macro_rules! typed {
    ($element:expr, $name:literal) => {
        match $element {
            crate::shape::Element::Bf16 => concat!($name, "_bf16"),
            crate::shape::Element::F32 => concat!($name, "_f32"),
        }
    };
}
use typed;

/// Threads of most blocks.
const THREADS: usize = 256;

/// Row blocks over all tiles of channels: four for each multiprocessor of the largest card this was measured on. A fixed
/// number, so that the order of sums does not depend on the card.
const ROW_BLOCKS: usize = 528;

/// Blocks of elementwise kernels, for each block that fits a multiprocessor.
const BLOCKS: usize = 132;

/// How channels are spread over a block: `tile` vectors of 8 channels side by side, `tiles` of them, `rows` rows at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tiling {
    vectors: usize,
    tile: usize,
    tiles: usize,
    rows: usize,
}

impl Tiling {
    /// At most `most` vectors a tile.
    fn new(channels: usize, most: usize) -> Self {
        assert!(
            channels > 0 && channels.is_multiple_of(8),
            "channels are padded to a multiple of 8, not {channels}"
        );
        let vectors = channels / 8;
        let tiles = vectors.div_ceil(most);
        let tile = vectors.div_ceil(tiles);
        Self { vectors, tile, tiles, rows: THREADS / tile }
    }

    /// For sums over rows.
    fn sums(channels: usize) -> Self {
        Self::new(channels, 32)
    }

    /// For elementwise work.
    fn elementwise(channels: usize) -> Self {
        Self::new(channels, THREADS)
    }

    /// Row blocks of a sum over `rows` rows, `unroll` of them in flight in each thread.
    fn row_blocks(&self, rows: usize, unroll: usize) -> usize {
        (ROW_BLOCKS / self.tiles).max(1).min(rows.div_ceil(unroll * self.rows))
    }

    /// Row blocks of elementwise work, `per_unit` blocks a multiprocessor.
    fn apply_blocks(&self, rows: usize, unroll: usize, per_unit: usize) -> usize {
        (BLOCKS * per_unit / self.tiles).max(1).min(rows.div_ceil(unroll * self.rows))
    }
}

/// Vectors of each input in flight in a thread: `InFlight` of `common.cuh`.
const fn in_flight(element: Element, inputs: usize) -> usize {
    match (element, inputs) {
        (Element::Bf16, 1 | 2) => 4,
        (Element::Bf16, _) | (Element::F32, 1 | 2) => 2,
        (Element::F32, _) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_the_source_is_named_once() {
        let text = source();
        let count = |pattern: &str| text.matches(pattern).count();
        let defined = count("\nKERNEL(") + count("\nextern \"C\" __global__");
        assert_eq!(defined, NAMES.len());
        let mut sorted = NAMES.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), NAMES.len());
    }

    #[test]
    fn tiles_cover_all_channels() {
        for channels in (8..=10240).step_by(8) {
            for most in [32, THREADS] {
                let Tiling { vectors, tile, tiles, rows } = Tiling::new(channels, most);
                assert!(tile <= most && rows >= 1 && tile * tiles >= vectors && tile * (tiles - 1) < vectors);
            }
        }
        assert_eq!(Tiling::sums(320), Tiling { vectors: 40, tile: 20, tiles: 2, rows: 12 });
        assert_eq!(Tiling::elementwise(64), Tiling { vectors: 8, tile: 8, tiles: 1, rows: 32 });
    }
}
