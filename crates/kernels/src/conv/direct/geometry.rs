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
        self.remainders() * self.src[1].div_ceil(self.remainders())
    }

    /// The scratch column of source column `x`.
    pub fn column(&self, x: usize) -> usize {
        x % self.remainders() * self.src[1].div_ceil(self.remainders()) + x / self.remainders()
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
                let taps: Vec<(usize, usize)> = (0..self.kernel)
                    .filter_map(|t| Some((t, self.column(self.source(x, t, self.src[1])?))))
                    .collect();
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
    fn a_padded_row_has_three_runs() {
        let runs = Geometry::forward(&spec(3, 1), [1, 8, 8, 16]).runs();
        assert_eq!(runs.iter().map(|r| r.count).collect::<Vec<_>>(), [1, 6, 1]);
        assert_eq!(runs[1].taps, [(0, 0), (1, 1), (2, 2)]);
    }
}
