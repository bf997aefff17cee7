//! Which algorithm computes a pass of a convolution. Nothing else decides.
//!
//! ```
//! use swav_kernels::plan::{Algorithm, Pass, Plan};
//! use swav_kernels::{Context, ConvSpec, Options, Precision};
//!
//! let ctx = Context::new(Options { exact: true, ..Options::default() })?;
//! let spec = ConvSpec { c_in: 64, c_out: 64, kernel: 3, stride: 1, padding: 1 };
//! let plan = Plan::choose(&spec, [8, 32, 32, 64], Pass::Forward, Precision::F32, &ctx);
//! assert!(matches!(plan.algorithm, Algorithm::Direct(_)));
//! # Ok::<(), swav_kernels::Error>(())
//! ```

use std::fmt;

use super::ConvSpec;
use super::direct::geometry::Geometry;
use super::direct::gradient;
use super::kept;
use super::rgb;
use super::winograd::tiling::tile_count;
use super::winograd::{maps, two_taps};
use crate::simd::{BLOCK, Registers};
use crate::{Context, Precision};

/// The passes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output.
    Forward,
    /// The gradient with respect to the input.
    Data,
    /// The gradient with respect to the weights.
    Weights,
}

impl Pass {
    /// All of them.
    pub const ALL: [Pass; 3] = [Pass::Forward, Pass::Data, Pass::Weights];
}

/// How a pass is computed. The crate's `ARCHITECTURE.md` explains each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// Product or gradient tiles over copies of the operands: any convolution.
    Direct(Reading),
    /// One step of Strassen's algorithm: deep 1×1 convolutions.
    Strassen(Reading),
    /// Product tiles over the rows of images of three channels.
    RgbRows,
    /// Winograd's algorithm: 3×3 convolutions of stride 1 or 2.
    Winograd(WinogradOrder),
}

/// What the direct path and Strassen's step copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reading {
    /// Pixels; taps are offsets in the copy.
    Pixels,
    /// What all taps of an output read, as one column: where input channels are few, or a 1×1 convolution strides.
    Columns,
}

/// What a task of Winograd's algorithm has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WinogradOrder {
    /// Some tiles and all weights.
    Tiles,
    /// A panel of the weights and all tiles: forward and data passes of deep layers, which have few tiles.
    Panels,
    /// A point of all weights: weight passes.
    Points,
    /// All points of a block of weights: weight passes with many weights.
    Blocks,
}

/// What products are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Products {
    /// f32.
    F32,
    /// Pairs of bf16, summed in f32.
    Bf16,
    /// f32, each cut into two of bf16, on the matrix unit.
    Split,
}

/// The decision for a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// How it is computed.
    pub algorithm: Algorithm,
    /// What its products are of.
    pub products: Products,
}

impl Plan {
    /// Decides for a convolution of an input `[n, h, w, c_in]`. `stored` says how what the pass reads is stored: mixed only
    /// if all of it is.
    pub fn choose(spec: &ConvSpec, input: [usize; 4], pass: Pass, stored: Precision, ctx: &Context) -> Self {
        let machine = Machine {
            registers: Registers::of(ctx.vectors()),
            exact: ctx.exact(),
            bf16: ctx.bf16_products() && stored == Precision::Mixed,
            kept: false,
            matrix_unit: ctx.trains_on_matrix_unit(),
        };
        machine.choose(spec, input, pass)
    }

    /// Decides for an inference pass of f32 whose packed weights are kept.
    pub fn choose_kept(spec: &ConvSpec, input: [usize; 4], ctx: &Context) -> Self {
        let registers = Registers::of(ctx.vectors());
        let matrix_unit = ctx.vectors().matrix_unit().is_some();
        Machine { registers, exact: ctx.exact(), bf16: false, kept: true, matrix_unit }.choose(
            spec,
            input,
            Pass::Forward,
        )
    }

    /// What is copied, for algorithms that copy.
    pub(super) fn reading(&self) -> Reading {
        match self.algorithm {
            Algorithm::Direct(reading) | Algorithm::Strassen(reading) => reading,
            Algorithm::RgbRows | Algorithm::Winograd(_) => Reading::Pixels,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.algorithm {
            Algorithm::Direct(Reading::Pixels) => "direct",
            Algorithm::Direct(Reading::Columns) => "direct, columns",
            Algorithm::Strassen(Reading::Pixels) => "Strassen",
            Algorithm::Strassen(Reading::Columns) => "Strassen, columns",
            Algorithm::RgbRows => "RGB rows",
            Algorithm::Winograd(WinogradOrder::Tiles) => "Winograd by tiles",
            Algorithm::Winograd(WinogradOrder::Panels) => "Winograd by panels",
            Algorithm::Winograd(WinogradOrder::Points) => "Winograd by points",
            Algorithm::Winograd(WinogradOrder::Blocks) => "Winograd by blocks",
        };
        f.pad(&match self.products {
            Products::F32 => name.to_owned(),
            Products::Bf16 => format!("{name}, bf16"),
            Products::Split => format!("{name}, split"),
        })
    }
}

/// What a decision depends on beside the convolution.
#[derive(Debug, Clone, Copy)]
struct Machine {
    registers: Registers,
    exact: bool,
    /// Whether there are fast products of bf16, and all operands are stored so.
    bf16: bool,
    /// Whether packed weights are kept from pass to pass.
    kept: bool,
    /// Whether there is a matrix unit.
    matrix_unit: bool,
}

impl Machine {
    /// What the weights of a convolution cost, for each, in multiply-adds: by Winograd's algorithm, for each point, and by
    /// the direct path, for each tap. They are read from memory, and by Winograd's algorithm transformed before that unless
    /// they are kept.
    fn of_weights(&self, spec: &ConvSpec) -> (f64, f64) {
        let kinds = if spec.stride == 1 { 1 } else { 4 };
        let transformed = kinds * maps::POINTS * spec.c_in * spec.c_out;
        match self.kept {
            false => (TRANSFORMED_WEIGHT, 0.0),
            true if transformed > kept::MOST => (TRANSFORMED_WEIGHT, KEPT_WEIGHT),
            true => (KEPT_WEIGHT, KEPT_WEIGHT),
        }
    }

    fn choose(&self, spec: &ConvSpec, input: [usize; 4], pass: Pass) -> Plan {
        let reading = if pass == Pass::Data { Reading::Pixels } else { reading(spec) };
        if self.splits(spec, input, pass) {
            return Plan { algorithm: Algorithm::Direct(reading), products: Products::Split };
        }
        let products = if self.multiplies_bf16(spec) { Products::Bf16 } else { Products::F32 };
        if self.winograd_pays(spec, input) {
            let order = winograd_order(spec, input, pass);
            return Plan { algorithm: Algorithm::Winograd(order), products: Products::F32 };
        }
        if rgb::applies(spec) && pass != Pass::Data {
            return Plan { algorithm: Algorithm::RgbRows, products: Products::F32 };
        }
        if pass == Pass::Weights {
            let pairs = products == Products::Bf16 && self.tasks_have_pairs(spec, input, reading);
            let products = if pairs { Products::Bf16 } else { Products::F32 };
            return Plan { algorithm: Algorithm::Direct(reading), products };
        }
        if products == Products::F32 && self.strassen_pays(spec, input, pass) {
            return Plan { algorithm: Algorithm::Strassen(reading), products };
        }
        Plan { algorithm: Algorithm::Direct(reading), products }
    }

    /// Whether numbers are cut in two for the matrix unit: where blocks of 32 channels are not mostly empty. Columns of several
    /// taps stay f32, and so do single pixels: linear layers, whose results are compared with each other, take little time.
    fn splits(&self, spec: &ConvSpec, input: [usize; 4], pass: Pass) -> bool {
        let [_, h, w, _] = input;
        let depth = if pass == Pass::Data { spec.c_out } else { spec.c_in };
        let whole = depth >= 2 * BLOCK && spec.c_in >= BLOCK && h * w > 1;
        if !self.matrix_unit || self.exact || !whole {
            return false;
        }
        let winograd = spec.stride == 1 && self.winograd_pays(spec, input);
        if pass == Pass::Weights {
            let few = winograd_order(spec, input, pass) == WinogradOrder::Points && h * w >= SMALL_MAP;
            return (!winograd || few) && self.tasks_have_pairs(spec, input, reading(spec));
        }
        // A map of two pixels a side takes Winograd's algorithm a quarter of the products.
        !winograd || h.min(w) > 2
    }

    /// Whether the direct path multiplies in bf16. Columns of several taps stay f32.
    fn multiplies_bf16(&self, spec: &ConvSpec) -> bool {
        self.bf16 && (spec.kernel == 1 || spec.c_in >= BLOCK)
    }

    /// Whether tasks of a direct weight pass have two images or more: they share a word, and where tasks take single ones,
    /// half of each product would be with zero.
    fn tasks_have_pairs(&self, spec: &ConvSpec, input: [usize; 4], reading: Reading) -> bool {
        let geometry = Geometry::reading(spec, input, reading);
        let (partition, _) = gradient::share_out(self.registers, &geometry, spec.weight_len().max(1));
        geometry.n >= 2 * partition.image_parts
    }

    /// Whether Winograd's algorithm applies to an input of this shape, and is expected to take less time than the direct
    /// path.
    fn winograd_pays(&self, spec: &ConvSpec, input: [usize; 4]) -> bool {
        let applies = spec.kernel == 3 && spec.padding == 1 && spec.c_in >= BLOCK;
        if self.exact || !applies || spec.stride > 2 {
            return false;
        }
        let [n, h, w, _] = input.map(|s| s as f64);
        let (ci, co) = (spec.c_in as f64, spec.c_out as f64);
        let (of_point, of_tap) = self.of_weights(spec);
        // In multiply-adds: the direct path leaves padding out; the other pays for its transforms and for reading
        // transformed weights from memory.
        if spec.stride == 2 {
            // It does not save enough to beat twice the rate, nor to make up for product tiles that single images do not fill.
            let few = self.kept && tile_count(spec.output_shape(input)) < 4 * self.registers.tile_rows;
            if self.multiplies_bf16(spec) || few {
                return false;
            }
            let [_, h, w, _] = spec.output_shape(input);
            let per_map = |of: fn(usize) -> usize| n * (of(h) * of(w)) as f64;
            // Padding is below and to the right only of odd maps.
            let taps = |output: usize, input: usize| (3 * output - 1 - input % 2) as f64;
            let direct = n * taps(h, input[1]) * taps(w, input[2]) * ci * co;
            let inputs = per_map(two_taps::side_products);
            let winograd = inputs * (ci * co + 16.0 * ci)
                + per_map(two_taps::side_points) * 16.0 * co
                + two_taps::PRODUCTS * ci * co * of_point;
            return winograd < direct + 9.0 * ci * co * of_tap;
        }
        let map = [input[1], input[2]];
        let points = (input[0] * maps::map_points(map)) as f64;
        let weight_points = maps::map_points(map).min(maps::POINTS) as f64;
        let direct = n * (3.0 * h - 2.0) * (3.0 * w - 2.0) * ci * co;
        let winograd = points * (ci * co + 12.0 * (ci + co)) + weight_points * ci * co * of_point;
        winograd < direct + 9.0 * ci * co * of_tap
    }

    /// Whether Strassen's step applies and is expected to take less time than eight products.
    fn strassen_pays(&self, spec: &ConvSpec, input: [usize; 4], pass: Pass) -> bool {
        let (geometry, taps) = match pass {
            Pass::Data => (Geometry::backward(spec, input), spec.kernel * spec.kernel),
            _ => match reading(spec) {
                reading @ Reading::Pixels => {
                    (Geometry::reading(spec, input, reading), spec.kernel * spec.kernel)
                }
                reading @ Reading::Columns => (Geometry::reading(spec, input, reading), 1),
            },
        };
        let (pixels, depth, channels) = (geometry.n, geometry.src[2], geometry.dst[2]);
        let even = pixels.is_multiple_of(2)
            && depth.is_multiple_of(2 * BLOCK)
            && channels.is_multiple_of(4 * self.registers.lanes);
        // With less depth the sums of products cost what the eighth one saves; with more, few pixels fit into the cache.
        // Where pixels are few, each weight is read for a tile or two only, and there are seven quarters of weights instead of four.
        let large = (512..=1024).contains(&depth) && channels >= 128 && pixels >= 256;
        !self.exact && geometry.is_flat() && taps == 1 && even && large
    }
}

/// What it costs, in multiply-adds, to transform a weight for one point, to write and to read it.
const TRANSFORMED_WEIGHT: f64 = 24.0;

/// What it costs, in multiply-adds, to read a kept weight, mostly from the last-level cache or from memory.
const KEPT_WEIGHT: f64 = 14.0;

/// Pixels of a map from which on sums of products over them outweigh that they are added to all weights, on the matrix unit.
const SMALL_MAP: usize = 49;

/// How forward and weight passes of the direct path read.
fn reading(spec: &ConvSpec) -> Reading {
    let few_channels = spec.kernel > 1 && spec.c_in < BLOCK;
    let strides = spec.kernel == 1 && spec.stride > 1 && spec.padding == 0;
    if few_channels || strides { Reading::Columns } else { Reading::Pixels }
}

/// From so many weights at a point on, a task of a weight pass does not take all of them: the sums would not stay in its
/// cache.
const MANY_WEIGHTS: usize = 4096;

/// Blocks of weights that are enough for a task to take one.
const ENOUGH_BLOCKS: usize = 12;

/// How Winograd's algorithm shares out its work.
pub(super) fn winograd_order(spec: &ConvSpec, input: [usize; 4], pass: Pass) -> WinogradOrder {
    let kinds = if spec.stride == 1 { 1 } else { 4 };
    if pass != Pass::Weights {
        let channels = if pass == Pass::Forward { spec.c_out } else { kinds * spec.c_in };
        return if tile_count(spec.output_shape(input)) < channels {
            WinogradOrder::Panels
        } else {
            WinogradOrder::Tiles
        };
    }
    let [columns, rows] = [spec.c_in, spec.c_out].map(|channels| channels.next_multiple_of(BLOCK));
    let blocks = rows.div_ceil(gradient_blocks::ROWS) * (kinds * columns).div_ceil(gradient_blocks::COLUMNS);
    match (rows * columns < MANY_WEIGHTS, blocks < ENOUGH_BLOCKS) {
        (true, _) => WinogradOrder::Tiles,
        (false, true) => WinogradOrder::Points,
        (false, false) => WinogradOrder::Blocks,
    }
}

/// Output and input channels of a block of weights in a weight pass.
pub(super) mod gradient_blocks {
    pub const ROWS: usize = 64;
    pub const COLUMNS: usize = 32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    const DIRECT: Algorithm = Algorithm::Direct(Reading::Pixels);
    const COLUMNS: Algorithm = Algorithm::Direct(Reading::Columns);
    const STRASSEN: Algorithm = Algorithm::Strassen(Reading::Pixels);
    const TILES: Algorithm = Algorithm::Winograd(WinogradOrder::Tiles);
    const PANELS: Algorithm = Algorithm::Winograd(WinogradOrder::Panels);
    const POINTS: Algorithm = Algorithm::Winograd(WinogradOrder::Points);
    const BLOCKS: Algorithm = Algorithm::Winograd(WinogradOrder::Blocks);

    fn machine(lanes: usize) -> Machine {
        // Those of AVX-512 and AVX2.
        let registers = match lanes {
            16 => Registers { lanes: 16, tile_rows: 14, gradient_columns: 32 },
            8 => Registers { lanes: 8, tile_rows: 6, gradient_columns: 16 },
            _ => Registers::new::<Portable>(),
        };
        Machine { registers, exact: false, bf16: false, kept: false, matrix_unit: false }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn registers_are_those_of_the_instruction_sets() {
        use crate::simd::{Avx2, Avx512};
        assert_eq!(Registers::new::<Avx512<true>>(), machine(16).registers);
        assert_eq!(Registers::new::<Avx512<false>>(), machine(16).registers);
        assert_eq!(Registers::new::<Avx2>(), machine(8).registers);
    }

    /// The three passes of a layer: images, side, channels in and out, kernel, stride.
    fn layer(m: &Machine, [n, side, c_in, c_out, kernel, stride]: [usize; 6]) -> [Algorithm; 3] {
        let spec = ConvSpec { c_in, c_out, kernel, stride, padding: kernel / 2 };
        Pass::ALL.map(|pass| m.choose(&spec, [n, side, side, c_in], pass).algorithm)
    }

    #[test]
    fn layers_of_resnets() {
        let cases: [([usize; 6], [Algorithm; 3]); 27] = [
            // ResNet-18 on images of 32 pixels.
            ([64, 32, 3, 64, 3, 1], [Algorithm::RgbRows, DIRECT, Algorithm::RgbRows]),
            ([64, 32, 64, 64, 3, 1], [TILES, TILES, POINTS]),
            ([64, 32, 64, 128, 3, 2], [TILES, TILES, BLOCKS]),
            ([64, 32, 64, 128, 1, 2], [COLUMNS, DIRECT, COLUMNS]),
            ([64, 16, 128, 128, 3, 1], [TILES, TILES, POINTS]),
            ([64, 16, 128, 256, 3, 2], [TILES, PANELS, BLOCKS]),
            ([64, 8, 256, 256, 3, 1], [TILES, TILES, BLOCKS]),
            ([64, 8, 256, 512, 3, 2], [PANELS, PANELS, BLOCKS]),
            ([64, 4, 512, 512, 3, 1], [PANELS, PANELS, BLOCKS]),
            ([128, 2, 512, 512, 3, 1], [PANELS, PANELS, BLOCKS]),
            // Narrow ones, on images of 28 pixels.
            ([128, 28, 16, 16, 3, 1], [TILES, TILES, TILES]),
            ([128, 28, 16, 32, 3, 2], [DIRECT, DIRECT, DIRECT]),
            ([128, 14, 32, 32, 3, 1], [TILES, TILES, TILES]),
            ([128, 7, 64, 64, 3, 1], [TILES, TILES, POINTS]),
            ([128, 4, 128, 128, 3, 1], [TILES, TILES, POINTS]),
            // ResNet-50 on images of 224 pixels.
            ([8, 224, 3, 64, 7, 2], [Algorithm::RgbRows, DIRECT, Algorithm::RgbRows]),
            ([8, 56, 64, 256, 1, 1], [DIRECT, DIRECT, DIRECT]),
            ([8, 56, 64, 64, 3, 1], [TILES, TILES, POINTS]),
            ([8, 56, 256, 512, 1, 2], [COLUMNS, DIRECT, COLUMNS]),
            ([8, 28, 512, 128, 1, 1], [STRASSEN, DIRECT, DIRECT]),
            ([8, 28, 128, 512, 1, 1], [DIRECT, STRASSEN, DIRECT]),
            ([8, 14, 256, 1024, 1, 1], [DIRECT, STRASSEN, DIRECT]),
            ([8, 14, 1024, 256, 1, 1], [STRASSEN, DIRECT, DIRECT]),
            ([1, 14, 1024, 256, 1, 1], [DIRECT, DIRECT, DIRECT]),
            ([8, 14, 256, 256, 3, 1], [PANELS, PANELS, BLOCKS]),
            ([8, 28, 256, 256, 3, 2], [PANELS, PANELS, BLOCKS]),
            ([8, 7, 512, 2048, 1, 1], [STRASSEN, DIRECT, DIRECT]),
        ];
        for (case, expected) in cases {
            for lanes in [16, 8, 4] {
                assert_eq!(layer(&machine(lanes), case), expected, "{case:?} with {lanes} lanes");
            }
            let exact = Machine { exact: true, ..machine(16) };
            for algorithm in layer(&exact, case) {
                assert!(matches!(algorithm, Algorithm::Direct(_) | Algorithm::RgbRows), "{case:?}, exact");
            }
        }
    }

    #[test]
    fn strassens_halves_are_whole_panels() {
        // 160 channels are five panels of AVX-512: no two halves. For AVX2 they are ten.
        let case = [8, 14, 512, 160, 1, 1];
        assert_eq!(layer(&machine(16), case)[0], DIRECT);
        assert_eq!(layer(&machine(8), case)[0], STRASSEN);
        // Strided ones are read as columns.
        let strided = layer(&machine(16), [8, 28, 512, 1024, 1, 2]);
        assert_eq!(strided, [Algorithm::Strassen(Reading::Columns), DIRECT, COLUMNS]);
        // An odd number of pixels has no halves; few pixels do not pay.
        assert_eq!(layer(&machine(16), [1, 15, 512, 256, 1, 1])[0], DIRECT);
        assert_eq!(layer(&machine(16), [1, 10, 512, 256, 1, 1])[0], DIRECT);
    }

    #[test]
    fn few_channels_and_odd_kernels_go_the_direct_way() {
        let m = machine(16);
        assert_eq!(layer(&m, [4, 16, 8, 32, 3, 1]), [COLUMNS, DIRECT, COLUMNS]);
        assert_eq!(layer(&m, [4, 16, 1, 32, 5, 2]), [COLUMNS, DIRECT, COLUMNS]);
        assert_eq!(layer(&m, [4, 16, 64, 64, 5, 1]), [DIRECT; 3]);
        assert_eq!(layer(&m, [4, 16, 64, 64, 3, 3]), [DIRECT; 3]);
        // The kinds of stride that rows of images are compiled for.
        assert_eq!(layer(&m, [4, 16, 3, 64, 3, 3]), [COLUMNS, DIRECT, COLUMNS]);
        // No padding: no Winograd.
        let spec = ConvSpec { c_in: 64, c_out: 64, kernel: 3, stride: 1, padding: 0 };
        assert_eq!(m.choose(&spec, [8, 32, 32, 64], Pass::Forward).algorithm, DIRECT);
    }

    #[test]
    fn the_matrix_unit_takes_whole_blocks_of_feature_maps() {
        let m = Machine { matrix_unit: true, ..machine(16) };
        let products = |[n, side, c_in, c_out, kernel, stride]: [usize; 6]| {
            let spec = ConvSpec { c_in, c_out, kernel, stride, padding: kernel / 2 };
            Pass::ALL.map(|pass| m.choose(&spec, [n, side, side, c_in], pass).products)
        };
        const SPLIT: Products = Products::Split;
        const F32: Products = Products::F32;
        for case in [
            [64, 32, 64, 64, 3, 1],
            [8, 14, 1024, 256, 1, 1],
            [8, 28, 256, 512, 1, 2],
            [1, 7, 512, 512, 3, 1],
        ] {
            let pairs = if case[0] > 1 { SPLIT } else { F32 };
            assert_eq!(products(case), [SPLIT, SPLIT, pairs], "{case:?}");
        }
        assert_eq!(products([64, 32, 3, 64, 3, 1]), [F32; 3]);
        assert_eq!(products([64, 8, 16, 32, 3, 2]), [F32, SPLIT, F32]);
        assert_eq!(products([64, 1, 512, 128, 1, 1]), [F32; 3]);
        let exact = Machine { exact: true, ..m };
        let spec = ConvSpec { c_in: 64, c_out: 64, kernel: 3, stride: 1, padding: 1 };
        assert!(Pass::ALL.iter().all(|&pass| exact.choose(&spec, [8, 14, 14, 64], pass).products == F32));
    }

    #[test]
    fn products_of_bf16() {
        let m = Machine { bf16: true, ..machine(16) };
        let products = |[n, side, c_in, c_out, kernel, stride]: [usize; 6]| {
            let spec = ConvSpec { c_in, c_out, kernel, stride, padding: kernel / 2 };
            Pass::ALL.map(|pass| m.choose(&spec, [n, side, side, c_in], pass))
        };
        // Deep 1x1 convolutions take them rather than Strassen's step, strided 3x3 ones rather than Winograd's.
        for case in [[8, 14, 1024, 256, 1, 1], [8, 28, 256, 256, 3, 2], [8, 28, 128, 512, 1, 1]] {
            for plan in products(case) {
                assert_eq!(plan, Plan { algorithm: DIRECT, products: Products::Bf16 }, "{case:?}");
            }
        }
        // Winograd's transforms are of f32, and so are columns of several taps.
        for case in [[8, 56, 64, 64, 3, 1], [8, 32, 8, 64, 3, 1]] {
            assert!(products(case).iter().all(|plan| plan.products == Products::F32), "{case:?}");
        }
        // Two images share a word in a weight pass, and a single one would be half of nothing.
        assert_eq!(products([1, 28, 256, 256, 3, 2])[2].products, Products::F32);
    }

    /// With kept weights, few pixels are enough for Winograd's algorithm, but not so few that weights are all there is to read.
    #[test]
    fn kept_weights_change_the_plan() {
        let forward = |kept, case| layer(&Machine { kept, ..machine(16) }, case)[0];
        assert_eq!(forward(true, [1, 56, 64, 64, 3, 1]), TILES);
        assert_eq!(forward(true, [1, 14, 256, 256, 3, 1]), PANELS);
        assert_eq!(forward(true, [1, 7, 512, 512, 3, 1]), DIRECT);
        assert_eq!(forward(true, [8, 7, 512, 512, 3, 1]), PANELS);
        assert_eq!(forward(true, [1, 28, 256, 256, 3, 2]), DIRECT);
        // A single image's tiles are few for strided ones.
        assert_eq!(forward(true, [1, 56, 128, 128, 3, 2]), DIRECT);
        assert_eq!(forward(true, [2, 56, 128, 128, 3, 2]), PANELS);
        // Transformed each time, weights cost more than they save.
        assert_eq!(forward(false, [1, 10, 256, 256, 3, 1]), DIRECT);
        assert_eq!(forward(true, [1, 10, 256, 256, 3, 1]), PANELS);
    }

    #[test]
    fn empty_batches_have_a_plan() {
        for bf16 in [false, true] {
            for kernel in [1, 3] {
                layer(&Machine { bf16, ..machine(16) }, [0, 8, 64, 64, kernel, 1]);
            }
        }
    }
}
