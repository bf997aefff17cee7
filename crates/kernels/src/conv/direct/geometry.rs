//! Which source pixel meets which tap for which destination pixel, for forward and data passes alike, and how
//! a strip of the source lies in scratch memory.

use std::ops::Range;

use crate::conv::ConvSpec;
use crate::conv::filters::Direction;
use crate::conv::plan::Reading;
use crate::simd::BLOCK;
use crate::work::part;

/// A pass as a gather: every destination pixel sums over taps that read one source pixel each.
#[derive(Debug, Clone, Copy)]
pub(in crate::conv) struct Geometry {
    pub direction: Direction,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    /// Images.
    pub n: usize,
    /// Height, width and channels of what is read.
    pub src: [usize; 3],
    /// Height, width and channels of what is written.
    pub dst: [usize; 3],
    /// Columns of zeros to the left and to the right of what is read, in scratch memory.
    pub margins: [usize; 2],
}

/// Destination columns `x0, x0 + step, ..` that meet the same taps, each tap in consecutive scratch columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::conv) struct ColumnRun {
    pub x0: usize,
    pub step: usize,
    pub count: usize,
    /// Horizontal tap and the scratch column that it reads for `x0`.
    pub taps: Vec<(usize, usize)>,
}

impl Geometry {
    /// The forward pass of a convolution.
    pub fn forward(spec: &ConvSpec, [n, h, w, c]: [usize; 4]) -> Self {
        let [_, oh, ow, co] = spec.output_shape([n, h, w, c]);
        Self {
            direction: Direction::Forward,
            kernel: spec.kernel,
            stride: spec.stride,
            padding: spec.padding,
            n,
            src: [h, w, c],
            dst: [oh, ow, co],
            margins: [0; 2],
        }
        .flattened()
    }

    /// The forward pass as the direct path reads: pixels as they are, or columns as flat pixels of many channels.
    pub fn reading(spec: &ConvSpec, input: [usize; 4], reading: Reading) -> Self {
        match reading {
            Reading::Pixels => Self::forward(spec, input),
            Reading::Columns => {
                let [n, h, w, _] = spec.output_shape(input);
                let depth = spec.kernel * spec.kernel * spec.c_in;
                let flat = ConvSpec { c_in: depth, c_out: spec.c_out, kernel: 1, stride: 1, padding: 0 };
                Self::forward(&flat, [n * h * w, 1, 1, depth])
            }
        }
    }

    /// The data pass: from the output's gradient to the input's, whose shape is given.
    pub fn backward(spec: &ConvSpec, input: [usize; 4]) -> Self {
        let forward = Self::forward(spec, input);
        Self { direction: Direction::Backward, src: forward.dst, dst: forward.src, ..forward }
    }

    /// A 1×1 convolution does not care which pixel is where: every pixel becomes an image of its own, and
    /// tiles can span rows and images.
    fn flattened(self) -> Self {
        if self.kernel != 1 || self.stride != 1 || self.padding != 0 {
            return self;
        }
        let [h, w, c] = self.src;
        Self { n: self.n * h * w, src: [1, 1, c], dst: [1, 1, self.dst[2]], ..self }
    }

    /// The same with margins as wide as taps reach beyond the source: all destination columns meet all taps then, so that runs are
    /// long, and some products are with zero.
    pub fn padded(self) -> Self {
        let reach = |d: usize| (0..self.kernel).filter_map(move |t| self.position(d, t));
        let (mut low, mut high) = (0, self.src[1] as isize - 1);
        for s in (0..self.dst[1]).flat_map(reach) {
            (low, high) = (low.min(s), high.max(s));
        }
        Self { margins: [low.unsigned_abs(), high.unsigned_abs() + 1 - self.src[1]], ..self }
    }

    /// With margins if tiles over so many images take less time then: few images leave tiles of a single row, which wait for
    /// their own sums, at the edges of maps.
    pub fn padded_where_shorter(self, images: usize, tile_rows: usize) -> Self {
        let padded = self.padded();
        let time = |g: Self| -> usize {
            let of_run = |run: &ColumnRun| {
                let rows = run.count * images;
                let tiles = rows.div_ceil(tile_rows).max(1);
                run.taps.len() * rows.max(tiles * FEW_ROWS)
            };
            g.runs().iter().map(of_run).sum()
        };
        if time(padded) < time(self) { padded } else { self }
    }

    /// The source coordinate that tap `t` reads for destination coordinate `d`, which may lie outside of the source.
    fn position(&self, d: usize, t: usize) -> Option<isize> {
        let [d, t, stride, padding] = [d, t, self.stride, self.padding].map(usize::cast_signed);
        match self.direction {
            Direction::Forward => Some(d * stride + t - padding),
            Direction::Backward => {
                let s = d + padding - t;
                (s % stride == 0).then_some(s / stride)
            }
        }
    }

    /// The scratch column that tap `t` reads for destination column `x`.
    pub fn tap_column(&self, x: usize, t: usize) -> Option<usize> {
        let [left, right] = self.margins;
        let padded = usize::try_from(self.position(x, t)? + left.cast_signed()).ok()?;
        (padded < left + self.src[1] + right).then(|| self.padded_column(padded))
    }

    /// The source coordinate that tap `t` reads for destination coordinate `d`, along a side of `len`.
    fn source(&self, d: usize, t: usize, len: usize) -> Option<usize> {
        let s = match self.direction {
            Direction::Forward => (d * self.stride + t).checked_sub(self.padding)?,
            Direction::Backward => {
                let s = (d + self.padding).checked_sub(t)?;
                if s % self.stride != 0 {
                    return None;
                }
                s / self.stride
            }
        };
        (s < len).then_some(s)
    }

    /// Columns of scratch memory: where a forward pass strides, columns are sorted by remainder so that
    /// consecutive destinations read consecutive columns.
    pub fn columns(&self) -> usize {
        self.remainders() * self.per_remainder()
    }

    fn per_remainder(&self) -> usize {
        (self.src[1] + self.margins[0] + self.margins[1]).div_ceil(self.remainders())
    }

    /// The scratch column of source column `x`.
    pub fn column(&self, x: usize) -> usize {
        self.padded_column(x + self.margins[0])
    }

    /// The scratch column of a column of the source or its margins, counted from the left margin.
    pub fn padded_column(&self, x: usize) -> usize {
        x % self.remainders() * self.per_remainder() + x / self.remainders()
    }

    /// Remainders by which source columns are sorted.
    pub fn remainders(&self) -> usize {
        if self.direction == Direction::Forward { self.stride } else { 1 }
    }

    /// The vertical taps of destination row `y`, with the source row that each reads.
    pub fn row_taps(&self, y: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.kernel).filter_map(move |t| Some((t, self.source(y, t, self.src[0])?)))
    }

    /// The source rows that a range of destination rows reads.
    pub fn source_rows(&self, rows: Range<usize>) -> Range<usize> {
        let (mut low, mut high) = (usize::MAX, 0);
        for (_, s) in rows.flat_map(|y| self.row_taps(y)) {
            low = low.min(s);
            high = high.max(s + 1);
        }
        low.min(high)..high
    }

    /// All destination columns, as runs.
    pub fn runs(&self) -> Vec<ColumnRun> {
        let step = if self.direction == Direction::Backward { self.stride } else { 1 };
        let mut runs: Vec<ColumnRun> = Vec::new();
        for phase in 0..step {
            let mut first = true;
            for x in (phase..self.dst[1]).step_by(step) {
                let taps: Vec<(usize, usize)> =
                    (0..self.kernel).filter_map(|t| Some((t, self.tap_column(x, t)?))).collect();
                match runs.last_mut() {
                    Some(run) if !first && run.continues(&taps) => run.count += 1,
                    _ => runs.push(ColumnRun { x0: x, step, count: 1, taps }),
                }
                first = false;
            }
        }
        runs
    }

    /// Whether there is a single pixel per image.
    pub fn is_flat(&self) -> bool {
        self.src[0] * self.src[1] == 1 && self.dst[0] * self.dst[1] == 1
    }
}

impl ColumnRun {
    fn continues(&self, taps: &[(usize, usize)]) -> bool {
        self.taps.len() == taps.len()
            && self.taps.iter().zip(taps).all(|(a, b)| a.0 == b.0 && a.1 + self.count == b.1)
    }
}

/// Rows of a tile that take the time of a single one: with fewer sums a product waits for the one before.
const FEW_ROWS: usize = 4;

/// Into how many parts images and destination rows are cut, for a task each.
#[derive(Debug, Clone, Copy)]
pub(in crate::conv) struct Partition {
    /// Parts of the images.
    pub image_parts: usize,
    /// Parts of the destination rows.
    pub row_parts: usize,
}

/// The f32 of scratch memory that a task may fill: it should stay in the second-level cache, beside weights and
/// outputs.
const SCRATCH: usize = 96 << 10;

/// Tasks to aim for.
pub(super) const TASKS: usize = 16;

/// Words that a task with the matrix unit copies and writes: it needs longer runs of rows.
const MATRIX_SCRATCH: usize = 256 << 10;

/// The most images, and the most single pixels, of a task with the matrix unit.
const MATRIX_IMAGES: usize = 16;
const MATRIX_PIXELS: usize = 512;

impl Partition {
    /// For a gather, with `extra` channels of destination pixels that are in scratch memory as well.
    pub fn new(g: &Geometry, tile_rows: usize, extra: usize) -> Self {
        let [h, w, c] = g.src.map(|s| s.max(1));
        let c = c.next_multiple_of(BLOCK);
        let map = h * w * c + g.dst[0] * g.dst[1] * extra.next_multiple_of(BLOCK);
        if g.is_flat() {
            let most = (SCRATCH / map).clamp(2 * tile_rows, 32 * tile_rows) / tile_rows * tile_rows;
            return Self { image_parts: g.n.div_ceil(most), row_parts: 1 };
        }
        if map <= SCRATCH / 2 {
            // The weight pass adds to all weights once per task and tap: the more images a task has, the fewer times.
            let images = (SCRATCH / map).min(if extra > 0 { 48 } else { 16 });
            return Self { image_parts: g.n.div_ceil(images), row_parts: 1 };
        }
        // A few images together make long runs of the same taps; at least four rows, so that the halo is small.
        let mut images = 4usize.min(g.n.max(1));
        loop {
            let per_row = images * map.div_ceil(h);
            let rows = (SCRATCH / per_row).saturating_sub(g.kernel - 1);
            let dst_rows = rows * g.dst[0] / h;
            if dst_rows >= 4 || images == 1 {
                let row_parts = g.dst[0].div_ceil(dst_rows.clamp(1, g.dst[0].max(1)));
                return Self { image_parts: g.n.div_ceil(images), row_parts };
            }
            images /= 2;
        }
    }

    /// For products on the matrix unit, whose filters have so many panels: the parts that are expected to take the least time.
    pub fn for_matrix_unit(g: &Geometry, panels: usize) -> Self {
        let step = if g.is_flat() { MATRIX_PIXELS / MATRIX_IMAGES } else { 1 };
        let sizes = (1..=MATRIX_IMAGES).map(|i| g.n.div_ceil(i * step).max(1));
        let all = sizes.flat_map(|image_parts| {
            (1..=g.dst[0].max(1)).map(move |row_parts| Self { image_parts, row_parts })
        });
        let counts: Vec<usize> = g.runs().iter().map(|run| run.count).collect();
        let fitting = all.filter_map(|parts| Some((parts.matrix_time(g, &counts, panels)?, parts)));
        let smallest = Self { image_parts: g.n.max(1), row_parts: g.dst[0].max(1) };
        fitting.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(smallest, |(_, parts)| parts)
    }

    /// The cycles that products on the matrix unit are expected to take: rows of tiles are filled up to whole registers, each part
    /// reads all weights, and copies what it reads. `None` if that does not fit.
    fn matrix_time(&self, g: &Geometry, counts: &[usize], panels: usize) -> Option<f64> {
        let [n, rows] =
            [(g.n, self.image_parts), (g.dst[0], self.row_parts)].map(|(all, parts)| all.div_ceil(parts));
        let read = (rows * g.src[0].div_ceil(g.dst[0].max(1)) + g.kernel - 1).min(g.src[0]);
        let depth = g.src[2].next_multiple_of(2 * BLOCK);
        let copied = n * read * g.columns() * depth;
        let weights = g.kernel * g.kernel * depth * g.dst[2].next_multiple_of(BLOCK);
        let positions: usize = counts.iter().map(|count| (count * n).next_multiple_of(BLOCK)).sum();
        let of_part =
            (rows * positions * weights) as f64 / 150.0 + weights as f64 / 2.0 + copied as f64 / 2.0;
        let tasks = self.count() * TASKS.div_ceil(self.count()).min(panels.max(1));
        let idle = (TASKS as f64 / tasks as f64).max(1.0);
        let written = n * rows * g.dst[1] * g.dst[2];
        (copied + written <= MATRIX_SCRATCH).then_some(of_part * self.count() as f64 * idle)
    }

    /// Parts in all.
    pub fn count(&self) -> usize {
        self.image_parts * self.row_parts
    }

    /// The images and destination rows of a part.
    pub fn part(&self, g: &Geometry, i: usize) -> (Range<usize>, Range<usize>) {
        (part(g.n, self.image_parts, i / self.row_parts), part(g.dst[0], self.row_parts, i % self.row_parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kernel: usize, stride: usize) -> ConvSpec {
        ConvSpec { c_in: 16, c_out: 16, kernel, stride, padding: kernel / 2 }
    }

    #[test]
    fn runs_cover_each_column_once() {
        for (k, s, w) in [(3, 1, 8), (3, 2, 9), (3, 2, 8), (5, 3, 11), (1, 2, 7), (7, 2, 4), (3, 1, 1)] {
            let shape = [2, w, w, 16];
            for g in [Geometry::forward(&spec(k, s), shape), Geometry::backward(&spec(k, s), shape)] {
                let mut seen: Vec<usize> = g
                    .runs()
                    .iter()
                    .flat_map(|r| (0..r.count).map(|i| r.x0 + i * r.step).collect::<Vec<_>>())
                    .collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..g.dst[1]).collect::<Vec<_>>(), "{g:?}");
            }
        }
    }

    #[test]
    fn margins_make_one_run_of_each_phase() {
        for (k, s, w) in [(3, 1, 8), (3, 2, 9), (3, 2, 8), (5, 3, 11), (7, 2, 4), (3, 1, 1), (1, 1, 5)] {
            for g in [
                Geometry::forward(&spec(k, s), [2, w, w, 16]).padded(),
                Geometry::backward(&spec(k, s), [2, w, w, 16]).padded(),
            ] {
                let phases = if g.direction == Direction::Backward { s.min(g.dst[1]) } else { 1 };
                assert_eq!(g.runs().len(), phases, "{g:?}");
                assert!(
                    g.runs()
                        .iter()
                        .flat_map(|run| run.taps.iter().map(|tap| tap.1 + run.count))
                        .all(|end| end <= g.columns())
                );
            }
        }
        assert_eq!(Geometry::forward(&spec(3, 1), [1, 8, 8, 16]).padded().margins, [1, 1]);
        assert_eq!(Geometry::forward(&spec(3, 2), [1, 8, 8, 16]).padded().margins, [1, 0]);
        assert_eq!(Geometry::backward(&spec(3, 2), [1, 8, 8, 16]).padded().margins, [0, 1]);
    }

    #[test]
    fn few_images_are_padded_and_many_are_not() {
        for (k, s, side, images, pays) in [
            (3, 1, 7, 1, true),
            (3, 1, 7, 8, false),
            (3, 2, 14, 1, true),
            (3, 2, 14, 4, false),
            (3, 1, 7, 2, true),
            (3, 1, 56, 4, false),
            (1, 1, 7, 1, false),
        ] {
            let g = Geometry::forward(&spec(k, s), [images, side, side, 16]);
            let padded = g.padded_where_shorter(images, 14);
            assert_eq!(padded.margins != [0; 2], pays, "{g:?}");
            assert!([g.margins, g.padded().margins].contains(&padded.margins));
        }
    }

    #[test]
    fn a_padded_row_has_three_runs() {
        let runs = Geometry::forward(&spec(3, 1), [1, 8, 8, 16]).runs();
        assert_eq!(runs.iter().map(|r| r.count).collect::<Vec<_>>(), [1, 6, 1]);
        assert_eq!(runs[1].taps, [(0, 0), (1, 1), (2, 2)]);
    }
}
