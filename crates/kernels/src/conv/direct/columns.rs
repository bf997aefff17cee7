//! Convolutions as matrix products: output pixels as rows, one column for each tap and input channel.

use super::fill::{TOGETHER, Words};
use crate::conv::{ConvSpec, Source};
use crate::load::{
    Load, LoadVisitor, Pixels, block_coefficients, copy_block_pairs, copy_block_split, copy_pixels,
    copy_two_pixels,
};
use crate::simd::{BLOCK, Job, Simd};

/// Destination pixels as rows of a matrix, one column for each tap and input channel (OHWI order), for
/// convolutions with few input channels and for strided 1×1 ones.
#[derive(Clone, Copy)]
pub(super) struct TapColumns<'a> {
    pub spec: &'a ConvSpec,
    /// The input's shape.
    pub shape: [usize; 4],
    /// Range of destination pixels.
    pub pixels: (usize, usize),
    /// Range of blocks of columns.
    pub blocks: (usize, usize),
    /// [`Words::Single`] unless the kernel is 1×1.
    pub words: Words,
    pub dst: *mut f32,
}

struct TapColumnsJob<'a, L> {
    load: &'a L,
    columns: TapColumns<'a>,
}

impl<L: Load> TapColumnsJob<'_, L> {
    /// Copies a block of the source pixels of `count` outputs in a row.
    ///
    /// # Safety
    /// The pixels must exist, and `dst` be valid for a block of each.
    #[inline(always)]
    unsafe fn pixels<S: Simd, const PART: bool>(
        &self,
        simd: S,
        sources: &Sources,
        count: usize,
        block: usize,
        dst: *mut f32,
    ) {
        let (ch, step) = (block * BLOCK, sources.column);
        let valid = self.columns.shape[3] - ch;
        // SAFETY: the pixels exist, and `dst` is valid for their columns.
        unsafe {
            let affine = block_coefficients::<S, L, PART>(simd, self.load, ch, valid);
            let pixels = Pixels { at: sources.element() + ch, step, count, ahead: TOGETHER * step };
            copy_pixels::<S, L, PART>(simd, self.load, &affine, pixels, valid, dst);
        }
    }
}

impl<L: Load> TapColumnsJob<'_, L> {
    /// Copies the pixels that a strided 1×1 convolution reads, block by block.
    ///
    /// # Safety
    /// Pixels and blocks must exist and `dst` be valid for them; the kernel must be 1×1 without padding, and words be f32.
    #[inline(always)]
    unsafe fn strided_pixels<S: Simd>(&self, simd: S) {
        let TapColumns { spec, shape, pixels, blocks, dst, .. } = self.columns;
        let (c, n) = (shape[3], pixels.1 - pixels.0);
        let mut sources = Sources::new(spec, shape, pixels.0);
        let mut pixel = pixels.0;
        while pixel < pixels.1 {
            let count = sources.in_row().min(TOGETHER).min(pixels.1 - pixel);
            for block in blocks.0..blocks.1 {
                // SAFETY: pixels and blocks are within the ranges that `dst` holds.
                unsafe {
                    let dst = dst.add(((block - blocks.0) * n + pixel - pixels.0) * BLOCK);
                    if c - block * BLOCK >= BLOCK {
                        self.pixels::<S, false>(simd, &sources, count, block, dst);
                    } else {
                        self.pixels::<S, true>(simd, &sources, count, block, dst);
                    }
                }
            }
            sources.advance(count);
            pixel += count;
        }
    }

    /// The same as words of two bf16.
    ///
    /// # Safety
    /// Pixels and blocks must exist and `dst` be valid for them; the kernel must be 1×1 without padding.
    #[inline(always)]
    unsafe fn strided_pairs<S: Simd>(&self, simd: S) {
        let TapColumns { spec, shape, pixels, blocks, words, dst } = self.columns;
        let (c, n) = (shape[3], words.images(pixels.1 - pixels.0));
        let step = words.images_in_a_word();
        let plane = n * BLOCK;
        let mut sources = Sources::new(spec, shape, pixels.0);
        let mut dst = dst;
        for pixel in (pixels.0..pixels.1).step_by(step) {
            let from = sources.next_element();
            let other = (step == 2 && pixel + 1 < pixels.1).then(|| sources.next_element());
            let mut block_dst = dst;
            for block in blocks.0..blocks.1 {
                let ch = block * words.block();
                let (at, dst) = (from + ch, block_dst);
                // SAFETY: `from` and `other` are pixels of the source, and `dst` holds all blocks of all positions.
                unsafe {
                    match words {
                        Words::Channels => {
                            copy_block_pairs::<S, L>(simd, self.load, at, ch, c - ch, dst);
                        }
                        Words::Split => {
                            copy_block_split::<S, L>(simd, self.load, (at, ch), c - ch, dst, plane);
                        }
                        Words::Images | Words::SplitImages | Words::Single => {
                            let other = other.map(|other| other + ch);
                            let low = (words.planes() > 1).then_some(plane);
                            copy_two_pixels::<S, L>(simd, self.load, ((at, other), ch), c - ch, dst, low);
                        }
                    }
                }
                block_dst = block_dst.wrapping_add(words.planes() * plane);
            }
            dst = dst.wrapping_add(BLOCK);
        }
    }

    /// Writes the taps of one output pixel one after the other, zero outside the map.
    ///
    /// # Safety
    /// The pixel must exist, and `line` have room for all taps and a block more.
    #[inline(always)]
    unsafe fn line<S: Simd>(&self, simd: S, pixel: usize, line: *mut f32) {
        let TapColumns { spec, shape: [_, h, w, c], .. } = self.columns;
        let [_, oh, ow, _] = spec.output_shape(self.columns.shape);
        let k = spec.kernel;
        let (ox, oy, image) = (pixel % ow, pixel / ow % oh, pixel / ow / oh);
        // Taps `inside.0..inside.1` of a row lie in the map.
        let (x0, padding) = (ox * spec.stride, spec.padding);
        let from = padding.saturating_sub(x0).min(k);
        let inside = (from, (w + padding).saturating_sub(x0).clamp(from, k));
        // SAFETY: taps outside the map are not read; a vector's overhang is overwritten by what comes next, or falls on
        // the block more.
        unsafe {
            for ky in 0..k {
                let y = (oy * spec.stride + ky).wrapping_sub(padding);
                let at = line.add(ky * k * c);
                if y >= h {
                    copy_line::<S, L>(simd, None, k * c, at);
                    continue;
                }
                copy_line::<S, L>(simd, None, inside.0 * c, at);
                let source = ((image * h + y) * w + x0 + inside.0 - padding) * c;
                if L::PLAIN {
                    let length = (inside.1 - inside.0) * c;
                    copy_line::<S, L>(simd, Some((self.load, source, 0)), length, at.add(inside.0 * c));
                } else {
                    for i in 0..inside.1 - inside.0 {
                        let at = at.add((inside.0 + i) * c);
                        copy_line::<S, L>(simd, Some((self.load, source + i * c, 0)), c, at);
                    }
                }
                copy_line::<S, L>(simd, None, (k - inside.1) * c, at.add(inside.1 * c));
            }
            simd.store(line.add(k * k * c), simd.zero());
        }
    }

    /// Copies columns of several taps.
    ///
    /// # Safety
    /// Pixels and blocks must exist and `dst` be valid for them; words must be f32.
    #[inline(always)]
    unsafe fn lines<S: Simd>(&self, simd: S) {
        let TapColumns { spec, shape, pixels, blocks, dst, .. } = self.columns;
        // Some pixels' columns, one after the other, before they are cut into blocks: several at once, so that they have
        // left the store buffer when they are read.
        const AT_ONCE: usize = 8;
        let length = (spec.kernel * spec.kernel * shape[3]).next_multiple_of(BLOCK) + BLOCK;
        let n = pixels.1 - pixels.0;
        let mut lines = vec![0.0f32; AT_ONCE * length];
        for first in (pixels.0..pixels.1).step_by(AT_ONCE) {
            let last = (first + AT_ONCE).min(pixels.1);
            // SAFETY: there are `AT_ONCE` lines of `length`; blocks are within a line, and `dst` holds them all.
            unsafe {
                for pixel in first..last {
                    self.line(simd, pixel, lines.as_mut_ptr().add((pixel - first) * length));
                }
                for block in blocks.0..blocks.1 {
                    for pixel in first..last {
                        let line = lines.as_ptr().add((pixel - first) * length + block * BLOCK);
                        let dst = dst.add(((block - blocks.0) * n + pixel - pixels.0) * BLOCK);
                        for l in (0..BLOCK).step_by(S::LANES) {
                            simd.store(dst.add(l), simd.load(line.add(l)));
                        }
                    }
                }
            }
        }
    }
}

impl<L: Load> Job for TapColumnsJob<'_, L> {
    type Out = ();

    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let TapColumns { spec, words, .. } = self.columns;
        // SAFETY: the pixels exist, and `dst` is valid for their columns.
        unsafe {
            if spec.kernel != 1 || spec.padding != 0 {
                self.lines(simd);
            } else if words == Words::Single {
                self.strided_pixels(simd);
            } else {
                self.strided_pairs(simd);
            }
        }
    }
}

/// The source elements that successive output pixels of a 1×1 convolution read.
struct Sources {
    /// Elements from one output column, row and image to the next.
    column: usize,
    row: usize,
    image: usize,
    width: usize,
    height: usize,
    /// The next output pixel.
    x: usize,
    y: usize,
    n: usize,
}

impl Sources {
    fn new(spec: &ConvSpec, shape: [usize; 4], pixel: usize) -> Self {
        let [_, h, w, c] = shape;
        let [_, height, width, _] = spec.output_shape(shape);
        Self {
            column: spec.stride * c,
            row: spec.stride * w * c,
            image: h * w * c,
            width,
            height,
            x: pixel % width,
            y: pixel / width % height,
            n: pixel / width / height,
        }
    }

    /// The element of the next pixel's first channel.
    #[inline(always)]
    fn element(&self) -> usize {
        self.n * self.image + self.y * self.row + self.x * self.column
    }

    /// Pixels until the row ends.
    #[inline(always)]
    fn in_row(&self) -> usize {
        self.width - self.x
    }

    /// Passes pixels of the row.
    #[inline(always)]
    fn advance(&mut self, pixels: usize) {
        self.x += pixels;
        if self.x == self.width {
            (self.x, self.y) = (0, self.y + 1);
            if self.y == self.height {
                (self.y, self.n) = (0, self.n + 1);
            }
        }
    }

    /// The element of the next pixel's first channel, which is passed.
    #[inline(always)]
    fn next_element(&mut self) -> usize {
        let at = self.element();
        self.advance(1);
        at
    }
}

/// Copies `length` values of consecutive channels from an element whose channel is given, or writes zeros; up to a
/// vector more is overwritten with zeros.
///
/// # Safety
/// The values must lie in the feature map, and `dst` be valid for a vector more than `length`.
#[inline(always)]
pub(in crate::conv) unsafe fn copy_line<S: Simd, L: Load>(
    simd: S,
    from: Option<(&L, usize, usize)>,
    length: usize,
    dst: *mut f32,
) {
    for i in (0..length).step_by(S::LANES) {
        // SAFETY: `length` values lie in the feature map; `dst` is valid for a whole vector at any of them.
        unsafe {
            let v = match from {
                Some((load, at, c)) => load.vec::<S, true>(simd, at + i, c + i, (length - i).min(S::LANES)),
                None => simd.zero(),
            };
            simd.store(dst.add(i), v);
        }
    }
}

/// Writes columns as `[block of 16][pixel][16]`.
///
/// # Safety
/// the pixels inside the output, and `dst` valid for all blocks.
pub(super) unsafe fn fill_columns<S: Simd>(simd: S, source: &Source<'_>, columns: TapColumns<'_>) {
    struct ColumnsVisitor<'a, S>(TapColumns<'a>, S);
    impl<S: Simd> LoadVisitor for ColumnsVisitor<'_, S> {
        fn visit<L: Load>(self, load: L) {
            // SAFETY: the pixels exist, and `dst` is valid for their columns.
            unsafe { self.1.run(TapColumnsJob { load: &load, columns: self.0 }) }
        }
    }
    source.visit(ColumnsVisitor(columns, simd));
}
