//! Upper bounds of the products of many rows with many others, from their bytes: what finds nearest neighbours reads them first,
//! and multiplies only the few pairs that can count.
//!
//! We write this ourselves since libraries of nearest neighbours either give what rounded rows say, or round for memory's sake:
//! here the result is exact, and the bytes save time. AVX-512's instruction for bytes (VNNI) multiplies four times as
//! many numbers as the one for f32.
//!
//! A row b of the bank is taken relative to the bank's mean m, r = b - m, and rounded to bytes: r = r' + e, where r' is a scale
//! times whole numbers up to 127; likewise a query q = q' + d. Then by the inequality of Cauchy and Schwarz
//!
//! ```text
//! q . b  =  q . m + q . r  <=  q . m + q' . r' + |q| |e| + |d| |r'|
//! ```
//!
//! where q' . r' is a sum of whole numbers, which has no rounding error. The mean makes r small where all features point into
//! about one direction, as those of a network do. What f32 rounds in the product and in the bound itself is added to |e|.

use std::ops::Range;

use rayon::prelude::*;

use crate::conv::DEPTH;
use crate::simd::BLOCK;
use crate::{Context, Isa};

/// Queries that [`RowBounds::bounds`] takes together: with two vectors of sums for each, they fill the registers.
pub const GROUP: usize = 14;
/// Rows that [`RowBounds::products`] multiplies side by side.
pub const SIDE_BY_SIDE: usize = 8;
/// Rows of the bank whose products are computed together: two vectors of sums.
const PANEL: usize = 2 * LANES;
/// Sums in a vector.
const LANES: usize = 16;
/// Numbers of a row that one instruction sums up.
const QUAD: usize = 4;
/// Numbers that are rounded together.
const OCTET: usize = 8;
/// Lines of a panel that have the numbers of an octet.
const OCTET_LINES: usize = PANEL / LANES * OCTET / QUAD;
/// The largest whole number that rows are rounded to.
const LARGEST: f64 = 127.0;
/// What is added to the bank's numbers, since one factor of the instruction has no sign.
const SHIFT: i32 = 128;

/// Rows of a bank as bytes, to bound their products with queries.
#[derive(Debug)]
pub struct RowBounds<'a> {
    rows: &'a [f32],
    width: usize,
    mean: Vec<f32>,
    /// Panels of [`PANEL`] rows; in each, four numbers of each row after the other.
    panels: Vec<Line>,
    scales: Vec<f32>,
    /// Norms of what rounding to bytes took away, and of what f32 may.
    errors: Vec<f32>,
    /// Norms of the rounded rows.
    norms: Vec<f32>,
    instructions: Instructions,
}

/// Queries as bytes, for one bank.
#[derive(Debug)]
pub struct QueryBytes {
    /// Rows one after the other, filled up with zeros to whole octets; as many rows as fill whole groups.
    bytes: Vec<[i8; OCTET]>,
    facts: Vec<QueryFacts>,
}

/// What the bounds of a query's products are made of, beside its bytes.
#[derive(Debug, Clone, Copy, Default)]
struct QueryFacts {
    scale: f32,
    norm: f32,
    error: f32,
    /// Its product with the bank's mean.
    base: f32,
    /// What [`SHIFT`] adds to its sums.
    excess: i32,
}

/// A cache line of a panel: four numbers of [`LANES`] rows.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([[u8; QUAD]; LANES]);

#[derive(Debug, Clone, Copy)]
enum Instructions {
    /// Made after detection only.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// Slower than products of f32.
    #[cfg_attr(not(test), expect(dead_code, reason = "what tests compare with"))]
    Plain,
}

/// Where a tile's numbers come from and go to: the products of [`GROUP`] queries with a panel.
struct Tile<'a> {
    queries: &'a [i8],
    facts: &'a [QueryFacts],
    panel: &'a [Line],
    scales: &'a [f32],
    errors: &'a [f32],
    norms: &'a [f32],
}

/// The bounds of a tile.
type TileBounds = [[f32; PANEL]; GROUP];

impl<'a> RowBounds<'a> {
    /// Rounds rows of `width` numbers that lie one after the other. None where it would not pay, without the instruction for
    /// bytes or if the context is not to use it, and where a sum could exceed its 32 bits. For numbers whose products are
    /// finite: bounds of others may be no numbers.
    ///
    /// # Panics
    /// If the rows are not of that width.
    pub fn new(ctx: &Context, rows: &'a [f32], width: usize) -> Option<Self> {
        const WIDEST: usize = i32::MAX as usize / (LARGEST as usize * u8::MAX as usize) / 2;
        let instructions = Instructions::detect(ctx)?;
        (1..=WIDEST).contains(&width).then(|| Self::with(instructions, rows, width))
    }

    fn with(instructions: Instructions, rows: &'a [f32], width: usize) -> Self {
        assert_eq!(rows.len() % width, 0, "rows of {width} numbers");
        let n_rows = rows.len() / width;
        let n_panels = n_rows.div_ceil(PANEL);
        let octets = width.div_ceil(OCTET);
        let per_panel = octets * OCTET_LINES;
        let mean = mean(rows, width);
        let mean_norm = norm(&mean);
        let mut bank = Self {
            rows,
            width,
            mean,
            panels: vec![Line([[SHIFT as u8; QUAD]; LANES]); n_panels * per_panel],
            scales: vec![0.0; n_panels * PANEL],
            errors: vec![0.0; n_panels * PANEL],
            norms: vec![0.0; n_panels * PANEL],
            instructions,
        };
        let of_f32 = 2.0 * (width + 16) as f64 * f64::from(f32::EPSILON);
        let mean = &bank.mean;
        (bank.panels.par_chunks_mut(per_panel))
            .zip(bank.scales.par_chunks_mut(PANEL))
            .zip(bank.errors.par_chunks_mut(PANEL))
            .zip(bank.norms.par_chunks_mut(PANEL))
            .zip(rows.par_chunks(PANEL * width))
            .for_each(|((((lines, scales), errors), norms), rows)| {
                let mut values = vec![[0.0; OCTET]; octets];
                let mut wholes = vec![[0; OCTET]; octets];
                for (lane, row) in rows.chunks_exact(width).enumerate() {
                    for ((value, &number), &mean) in values.as_flattened_mut().iter_mut().zip(row).zip(mean) {
                        *value = f64::from(number) - f64::from(mean);
                    }
                    let rounded = instructions.round(&values, &mut wholes);
                    for (quad, whole) in wholes.as_flattened().chunks_exact(QUAD).enumerate() {
                        lines[2 * quad + lane / LANES].0[lane % LANES] =
                            std::array::from_fn(|place| (i32::from(whole[place]) + SHIFT) as u8);
                    }
                    scales[lane] = rounded.scale;
                    errors[lane] = (rounded.error + of_f32 * (norm(row) + mean_norm)) as f32;
                    norms[lane] = rounded.norm as f32;
                }
            });
        bank
    }

    /// Rounds queries, rows of the bank's width that lie one after the other.
    ///
    /// # Panics
    /// If the rows are not of that width.
    pub fn queries(&self, rows: &[f32]) -> QueryBytes {
        assert_eq!(rows.len() % self.width, 0, "rows of {} numbers", self.width);
        let n_filled = (rows.len() / self.width).next_multiple_of(GROUP);
        let octets = self.width.div_ceil(OCTET);
        let mut bytes = vec![[0; OCTET]; n_filled * octets];
        let mut facts = vec![QueryFacts::default(); n_filled];
        let mut values = vec![[0.0; OCTET]; octets];
        let lines = rows.chunks_exact(self.width).zip(bytes.chunks_exact_mut(octets));
        for ((row, bytes), facts) in lines.zip(&mut facts) {
            let mut base = 0.0;
            for ((value, &number), &mean) in values.as_flattened_mut().iter_mut().zip(row).zip(&self.mean) {
                *value = f64::from(number);
                base += *value * f64::from(mean);
            }
            let rounded = self.instructions.round(&values, bytes);
            *facts = QueryFacts {
                scale: rounded.scale,
                norm: norm(row) as f32,
                error: rounded.error as f32,
                base: base as f32,
                excess: SHIFT * bytes.as_flattened().iter().map(|&whole| i32::from(whole)).sum::<i32>(),
            };
        }
        QueryBytes { bytes, facts }
    }

    /// Bounds of the products of the queries `group * GROUP ..` with some rows of the bank, a query's after the other's: no
    /// product, whether exact or [rounded](Self::products), exceeds its bound. `out` has [`GROUP`] lines as long as
    /// `rows`; those after the last query are of no meaning.
    ///
    /// # Panics
    /// If the group or the rows do not exist, `out` has another length, or the rows begin elsewhere than at a multiple of 32.
    pub fn bounds(&self, queries: &QueryBytes, group: usize, rows: Range<usize>, out: &mut [f32]) {
        assert!(
            rows.end * self.width <= self.rows.len() && rows.start.is_multiple_of(PANEL),
            "rows {rows:?}"
        );
        assert_eq!(out.len(), GROUP * rows.len(), "numbers in out");
        let octets = self.width.div_ceil(OCTET);
        let (n_rows, per_panel) = (rows.len(), octets * OCTET_LINES);
        let mut bounds: TileBounds = [[0.0; PANEL]; GROUP];
        for first in (0..n_rows).step_by(PANEL) {
            let panel = (rows.start + first) / PANEL;
            let of_rows = panel * PANEL..(panel + 1) * PANEL;
            let tile = Tile {
                queries: queries.bytes[group * GROUP * octets..][..GROUP * octets].as_flattened(),
                facts: &queries.facts[group * GROUP..][..GROUP],
                panel: &self.panels[panel * per_panel..][..per_panel],
                scales: &self.scales[of_rows.clone()],
                errors: &self.errors[of_rows.clone()],
                norms: &self.norms[of_rows],
            };
            match self.instructions {
                // SAFETY: detection found the instructions.
                #[cfg(target_arch = "x86_64")]
                Instructions::Vnni => unsafe { vnni::tile(&tile, &mut bounds) },
                Instructions::Plain => plain_tile(&tile, &mut bounds),
            }
            let used = PANEL.min(n_rows - first);
            for (line, bounds) in out.chunks_exact_mut(n_rows).zip(&bounds) {
                line[first..first + used].copy_from_slice(&bounds[..used]);
            }
        }
    }

    /// The products of a query with up to eight rows of the bank, with the bits of a linear layer without bias that is
    /// [exact](crate::Options::exact).
    ///
    /// # Panics
    /// If there are more rows, one does not exist, or the query has another width.
    pub fn products(&self, query: &[f32], rows: &[usize]) -> [f32; SIDE_BY_SIDE] {
        assert!(
            query.len() == self.width && rows.len() <= SIDE_BY_SIDE,
            "{} rows of {}",
            rows.len(),
            query.len()
        );
        // Places that are not asked for repeat a row that is read anyway.
        let lines: [&[f32]; SIDE_BY_SIDE] = std::array::from_fn(|place| {
            let row = rows.get(place).or(rows.first()).map_or(0, |&row| row);
            &self.rows[row * self.width..][..self.width]
        });
        match self.instructions {
            // SAFETY: detection found the instructions.
            #[cfg(target_arch = "x86_64")]
            Instructions::Vnni => unsafe { vnni::products(query, &lines) },
            Instructions::Plain => products(query, &lines),
        }
    }
}

impl Instructions {
    fn detect(ctx: &Context) -> Option<Self> {
        if ctx.isa() != Isa::Avx512 {
            return None;
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("fma") {
            return Some(Self::Vnni);
        }
        None
    }

    /// Rounds a row to a scale times whole numbers.
    fn round(self, values: &[[f64; OCTET]], wholes: &mut [[i8; OCTET]]) -> Rounded {
        match self {
            // SAFETY: detection found the instructions.
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => unsafe { vnni::round(values, wholes) },
            Self::Plain => round(values, wholes),
        }
    }
}

/// What rounding a row to whole numbers gives beside them.
struct Rounded {
    scale: f32,
    /// The norm of what it took away.
    error: f64,
    /// The norm of what is left.
    norm: f64,
}

/// Rounds a row to a scale times whole numbers.
#[inline(always)]
fn round(values: &[[f64; OCTET]], wholes: &mut [[i8; OCTET]]) -> Rounded {
    let mut largest = [0.0; OCTET];
    for values in values {
        for (largest, value) in largest.iter_mut().zip(values) {
            *largest = if value.abs() > *largest { value.abs() } else { *largest };
        }
    }
    let scale = (largest.into_iter().fold(0.0, f64::max) / LARGEST) as f32;
    // A scale too small for an f32 leaves zeros.
    let per_scale = if scale > 0.0 { f64::from(scale).recip() } else { 0.0 };
    let (mut errors, mut squares) = ([0.0; OCTET], [0.0; OCTET]);
    for (values, wholes) in values.iter().zip(wholes) {
        for place in 0..OCTET {
            let whole = (values[place] * per_scale).round_ties_even();
            let rounded = whole * f64::from(scale);
            errors[place] += (values[place] - rounded) * (values[place] - rounded);
            squares[place] += rounded * rounded;
            wholes[place] = whole as i8;
        }
    }
    let norm = |squares: [f64; OCTET]| squares.iter().sum::<f64>().sqrt();
    Rounded { scale, error: norm(errors), norm: norm(squares) }
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0_f64; width];
    for row in rows.chunks_exact(width) {
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let n_rows = (rows.len() / width).max(1) as f64;
    sums.into_iter().map(|sum| (sum / n_rows) as f32).collect()
}

/// The products of a query with some rows.
#[inline(always)]
fn products(query: &[f32], rows: &[&[f32]; SIDE_BY_SIDE]) -> [f32; SIDE_BY_SIDE] {
    let mut sums = [0.0; SIDE_BY_SIDE];
    let mut first = 0;
    for factors in query.chunks(DEPTH * BLOCK) {
        let rows = rows.map(|row| &row[first..][..factors.len()]);
        let mut part = [0.0; SIDE_BY_SIDE];
        for column in 0..factors.len() {
            for (sum, row) in part.iter_mut().zip(rows) {
                *sum = factors[column].mul_add(row[column], *sum);
            }
        }
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        first += factors.len();
    }
    sums
}

/// The bounds of a tile.
fn plain_tile(tile: &Tile, bounds: &mut TileBounds) {
    let stride = tile.queries.len() / GROUP;
    for ((query, facts), bounds) in tile.queries.chunks_exact(stride).zip(tile.facts).zip(bounds) {
        for (lane, bound) in bounds.iter_mut().enumerate() {
            let number =
                |column: usize| tile.panel[2 * (column / QUAD) + lane / LANES].0[lane % LANES][column % QUAD];
            let terms =
                query.iter().enumerate().map(|(column, &whole)| i32::from(whole) * i32::from(number(column)));
            let product = (terms.sum::<i32>() - facts.excess) as f32 * facts.scale;
            *bound = product.mul_add(tile.scales[lane], facts.base);
            *bound = tile.errors[lane].mul_add(facts.norm, *bound);
            *bound = tile.norms[lane].mul_add(facts.error, *bound);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::*;

    use super::{GROUP, LANES, Line, OCTET, PANEL, QUAD, Rounded, SIDE_BY_SIDE, Tile, TileBounds};

    /// The bounds of a tile.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    pub fn tile(tile: &Tile, bounds: &mut TileBounds) {
        let stride = tile.queries.len() / GROUP;
        assert!(tile.panel.len() == 2 * (stride / QUAD) && tile.facts.len() == GROUP);
        assert!([tile.scales, tile.errors, tile.norms].iter().all(|numbers| numbers.len() == PANEL));
        let mut sums = [[_mm512_setzero_si512(); 2]; GROUP];
        for (quad, lines) in tile.panel.chunks_exact(2).enumerate() {
            let [low, high] = [line(&lines[0]), line(&lines[1])];
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: there are GROUP rows of `stride` bytes, and as many quads in a row as pairs of lines.
                let numbers = unsafe {
                    tile.queries.as_ptr().add(row * stride + quad * QUAD).cast::<i32>().read_unaligned()
                };
                let numbers = _mm512_set1_epi32(numbers);
                sums[0] = _mm512_dpbusd_epi32(sums[0], low, numbers);
                sums[1] = _mm512_dpbusd_epi32(sums[1], high, numbers);
            }
        }
        for half in 0..2 {
            let [scales, errors, norms] =
                [tile.scales, tile.errors, tile.norms].map(|numbers| vector(&numbers[half * LANES..]));
            for ((sums, facts), bounds) in sums.iter().zip(tile.facts).zip(bounds.iter_mut()) {
                let whole = _mm512_sub_epi32(sums[half], _mm512_set1_epi32(facts.excess));
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(facts.scale));
                let bound = _mm512_fmadd_ps(product, scales, _mm512_set1_ps(facts.base));
                let bound = _mm512_fmadd_ps(errors, _mm512_set1_ps(facts.norm), bound);
                let bound = _mm512_fmadd_ps(norms, _mm512_set1_ps(facts.error), bound);
                let out: &mut [f32] = &mut bounds[half * LANES..][..LANES];
                // SAFETY: `out` has as many numbers as a vector.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), bound) };
            }
        }
    }

    /// The products of a query with some rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn products(query: &[f32], rows: &[&[f32]; SIDE_BY_SIDE]) -> [f32; SIDE_BY_SIDE] {
        super::products(query, rows)
    }

    /// Rounds a row to a scale times whole numbers.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn round(values: &[[f64; OCTET]], wholes: &mut [[i8; OCTET]]) -> Rounded {
        super::round(values, wholes)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn line(line: &Line) -> __m512i {
        // SAFETY: a line has the bytes and the alignment of a vector.
        unsafe { _mm512_load_si512(std::ptr::from_ref(line).cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn vector(numbers: &[f32]) -> __m512 {
        let numbers = &numbers[..LANES];
        // SAFETY: there are as many numbers as a vector has.
        unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Linear, Unit};
    use crate::{Activations, Options};
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// The instruction sets of this machine.
    fn all() -> Vec<Instructions> {
        let context = Context::new(Options::default()).unwrap();
        std::iter::once(Instructions::Plain).chain(Instructions::detect(&context)).collect()
    }

    fn numbers(rng: &mut ChaCha8Rng, count: usize, scale: f32, shift: f32) -> Vec<f32> {
        (0..count).map(|_| scale * (rng.random_range(-1.0f32..1.0) + shift)).collect()
    }

    /// All bounds of all queries, line by line.
    fn bounds(bank: &RowBounds, queries: &[f32]) -> Vec<Vec<f32>> {
        let bytes = bank.queries(queries);
        let n_rows = bank.rows.len() / bank.width;
        let mut lines = Vec::new();
        let mut out = vec![f32::NAN; GROUP * n_rows];
        let n_queries = queries.len() / bank.width;
        for group in 0..n_queries.div_ceil(GROUP) {
            bank.bounds(&bytes, group, 0..n_rows, &mut out);
            lines.extend(out.chunks_exact(n_rows).map(<[f32]>::to_vec));
        }
        lines.truncate(n_queries);
        lines
    }

    proptest! {
        #[test]
        fn no_product_exceeds_its_bound_by_which_it_is_nearly_reached(
            seed: u64, width in 1usize..70, n_rows in 1usize..80, n_queries in 1usize..30, scale in -12i32..12, shift in 0.0f32..3.0,
        ) {
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            let rows = numbers(rng, n_rows * width, 10f32.powi(scale), shift);
            let queries = numbers(rng, n_queries * width, 1.0, -shift);
            let mut of_plain = None;
            for instructions in all() {
                let bank = RowBounds::with(instructions, &rows, width);
                let bounds = bounds(&bank, &queries);
                for (query, line) in queries.chunks_exact(width).zip(&bounds) {
                    for (at, (row, &bound)) in rows.chunks_exact(width).zip(line).enumerate() {
                        let exact: f64 = query.iter().zip(row).map(|(&q, &b)| f64::from(q) * f64::from(b)).sum();
                        let [rounded, ..] = bank.products(query, &[at]);
                        prop_assert!(f64::from(bound) >= exact && bound >= rounded, "{bound} {exact} {rounded}");
                        // Rounding takes at most half a unit of each number, of both factors; about the mean, rows are short.
                        let limit = 1.1 * (width as f64).sqrt() / LARGEST * norm(query) * f64::from(10f32.powi(scale))
                            * (2.0 * width as f64).sqrt() + 1e-4 * norm(query) * norm(row);
                        prop_assert!(f64::from(bound) - exact <= limit, "{bound} {exact} {limit}");
                    }
                }
                prop_assert_eq!(of_plain.get_or_insert_with(|| bounds.clone()), &bounds);
            }
        }

        #[test]
        fn products_have_the_bits_of_a_linear_layer(seed: u64, width in 1usize..600, n_rows in 1usize..20) {
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            let rows = numbers(rng, n_rows * width, 1.0, 0.0);
            let query = numbers(rng, width, 1.0, 0.0);
            let options = Options { exact: true, precision: crate::Precision::F32, ..Options::default() };
            let context = Context::new(options).unwrap();
            let layer = Linear::new(width, n_rows, false);
            let input = Activations::from_f32([1, 1, 1, width], query.clone()).unwrap();
            let expected = layer.forward_infer(&context, &input, &[&rows], &[]).unwrap().words;
            for instructions in all() {
                let bank = RowBounds::with(instructions, &rows, width);
                let all: Vec<usize> = (0..n_rows).collect();
                let found: Vec<f32> = all
                    .chunks(SIDE_BY_SIDE)
                    .flat_map(|some| bank.products(&query, some)[..some.len()].to_vec())
                    .collect();
                prop_assert_eq!(&found, &expected);
            }
        }
    }

    #[test]
    fn parts_of_the_bank_have_the_bounds_of_the_whole() {
        let rng = &mut ChaCha8Rng::seed_from_u64(5);
        let (rows, queries) = (numbers(rng, 100 * 9, 1.0, 0.0), numbers(rng, 3 * 9, 1.0, 0.0));
        for instructions in all() {
            let bank = RowBounds::with(instructions, &rows, 9);
            let whole = bounds(&bank, &queries);
            let mut part = vec![0.0; GROUP * 36];
            bank.bounds(&bank.queries(&queries), 0, 64..100, &mut part);
            for (line, whole) in part.chunks_exact(36).zip(&whole) {
                assert_eq!(line, &whole[64..]);
            }
        }
    }

    #[test]
    fn zeros_and_one_row_are_bounded() {
        for instructions in all() {
            for rows in [vec![0.0; 40], vec![0.5; 40], vec![1e-38; 40]] {
                let bank = RowBounds::with(instructions, &rows, 8);
                for line in bounds(&bank, &[0.0; 8]).iter().chain(&bounds(&bank, &[1.0; 8])) {
                    assert!(line.iter().all(|bound| bound.is_finite() && *bound >= 0.0), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn only_the_instruction_for_bytes_pays() {
        let plain = Context::new(Options { isa: Some(Isa::Portable), ..Options::default() }).unwrap();
        assert!(RowBounds::new(&plain, &[1.0; 8], 4).is_none());
        let chosen = Context::new(Options::default()).unwrap();
        assert_eq!(RowBounds::new(&chosen, &[1.0; 8], 4).is_some(), Instructions::detect(&chosen).is_some());
        assert!(RowBounds::new(&chosen, &[1.0; 40_000], 40_000).is_none(), "sums exceed 32 bits");
    }
}
