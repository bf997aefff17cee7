//! Filling scratch memory: `[block of 16 channels][row][column][image][16]`, zero where channels are missing.

use super::columns::{TapColumns, fill_columns};
use super::geometry::Geometry;
use crate::conv::{ConvSpec, Source};
use crate::load::{
    Load, LoadVisitor, Pixels, block_coefficients, copy_block_pairs, copy_block_split, copy_pixels,
    copy_two_pixels,
};
use crate::simd::{BLOCK, Job, Simd};

/// What the 16 words of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::conv) enum Words {
    /// The f32 of 16 channels.
    Single,
    /// bf16 of 32 channels: successive ones share a word.
    Channels,
    /// bf16 of 16 channels of two images, which share words.
    Images,
    /// bf16 of 32 channels cut in two: a plane of all high parts, and then one of the low parts.
    Split,
    /// bf16 of 16 channels of two images, cut in two.
    SplitImages,
}

impl Words {
    /// Channels in a block.
    pub fn block(self) -> usize {
        match self {
            Words::Channels | Words::Split => 2 * BLOCK,
            Words::Single | Words::Images | Words::SplitImages => BLOCK,
        }
    }

    /// Planes of words that a block has.
    pub fn planes(self) -> usize {
        if matches!(self, Words::Split | Words::SplitImages) { 2 } else { 1 }
    }

    /// Positions that `n` images take.
    pub fn images(self, n: usize) -> usize {
        n.div_ceil(self.images_in_a_word())
    }

    /// Images that share a word.
    pub fn images_in_a_word(self) -> usize {
        if matches!(self, Words::Images | Words::SplitImages) { 2 } else { 1 }
    }
}

/// What to copy, and where to.
#[derive(Clone, Copy)]
pub(in crate::conv) struct Fill<'a> {
    /// The gather whose source is copied.
    pub geometry: &'a Geometry,
    pub images: (usize, usize),
    pub rows: (usize, usize),
    /// Blocks of channels.
    pub blocks: (usize, usize),
    pub words: Words,
    pub dst: *mut f32,
}

impl Fill<'_> {
    /// Words from one block of channels to the next.
    pub fn block_stride(&self) -> usize {
        self.words.planes() * self.plane()
    }

    /// Words of a plane of a block.
    fn plane(&self) -> usize {
        (self.rows.1 - self.rows.0)
            * self.geometry.columns()
            * self.words.images(self.images.1 - self.images.0)
            * BLOCK
    }
}

/// Pixels ahead that are asked for.
const AHEAD: usize = 2;

/// Images of one pixel that are copied together, block by block. More would fall out of cache before their next block is
/// copied.
pub(super) const TOGETHER: usize = 8;

/// How a convolution's input gets into scratch memory.
#[derive(Clone, Copy)]
pub(in crate::conv) enum Reader<'a> {
    /// Pixel by pixel; taps become offsets.
    Pixels(Source<'a>),
    /// As columns of taps and channels; the geometry is flat then.
    Columns(Source<'a>, &'a ConvSpec),
}

impl Reader<'_> {
    /// Copies a part of the source.
    ///
    /// # Safety
    /// Images, rows and blocks must lie in the source, and `dst` be valid for all of them; for columns, images are their
    /// pixels.
    pub unsafe fn fill<S: Simd>(&self, simd: S, what: Fill<'_>) {
        // SAFETY: images, rows and blocks lie in the source, and `dst` is valid for them.
        unsafe {
            match *self {
                Reader::Pixels(source) => fill(simd, &source, what),
                Reader::Columns(source, spec) => {
                    let Fill { images, blocks, words, dst, .. } = what;
                    let shape = source.shape();
                    fill_columns(
                        simd,
                        &source,
                        TapColumns { spec, shape, pixels: images, blocks, words, dst },
                    );
                }
            }
        }
    }
}

struct FillPixels<'a, L> {
    load: &'a L,
    fill: Fill<'a>,
}

impl<L: Load> FillPixels<'_, L> {
    /// Copies a block of a row of `count` images from `first` on. The loops inside take few steps, so what they can share is
    /// computed before them.
    ///
    /// # Safety
    /// Row, block and images must lie in the source.
    #[inline(always)]
    unsafe fn row<S: Simd, const PART: bool>(
        &self,
        simd: S,
        y: usize,
        block: usize,
        (first, count): (usize, usize),
    ) {
        let r = &self.fill;
        let [h, w, c] = r.geometry.src;
        let (ch, valid, image_len) = (block * BLOCK, c - block * BLOCK, h * w * c);
        let (n, remainders) = (r.images.1 - r.images.0, r.geometry.remainders());
        let ahead = c * if r.geometry.is_flat() { TOGETHER } else { AHEAD * remainders };
        let row = (block - r.blocks.0) * r.block_stride()
            + ((y - r.rows.0) * r.geometry.columns() * n + first) * BLOCK;
        let element = ((r.images.0 + first) * h + y) * w * c + ch;
        // SAFETY: image, row and block lie in the source, and `dst` is valid for them.
        unsafe {
            let affine = block_coefficients::<S, L, PART>(simd, self.load, ch, valid);
            for remainder in 0..remainders {
                let mut at = element + remainder * c;
                let mut dst = r.dst.add(row + r.geometry.column(remainder) * n * BLOCK);
                for _ in (remainder..w).step_by(remainders) {
                    let images = Pixels { at, step: image_len, count, ahead };
                    copy_pixels::<S, L, PART>(simd, self.load, &affine, images, valid, dst);
                    (at, dst) = (at + remainders * c, dst.wrapping_add(n * BLOCK));
                }
            }
        }
    }

    /// Copies a row of all images as words of two bf16.
    ///
    /// # Safety
    /// The row must lie in the source.
    #[inline(always)]
    unsafe fn row_of_pairs<S: Simd>(&self, simd: S, y: usize) {
        let r = &self.fill;
        let [h, w, c] = r.geometry.src;
        let (n, step) = (r.words.images(r.images.1 - r.images.0), r.words.images_in_a_word());
        let (image_len, plane) = (h * w * c, r.plane());
        let low = (r.words.planes() > 1).then_some(plane);
        // SAFETY: images, row and blocks lie in the source, and `dst` is valid for them.
        unsafe {
            self.margins(y, n);
            for x in 0..w {
                let column = (y - r.rows.0) * r.geometry.columns() + r.geometry.column(x);
                for (position, image) in (r.images.0..r.images.1).step_by(step).enumerate() {
                    let at = ((image * h + y) * w + x) * c;
                    for line in 0..r.blocks.1 - r.blocks.0 {
                        self.load.prefetch(simd, at + AHEAD * c + (r.blocks.0 + line) * BLOCK);
                    }
                    let mut dst = r.dst.add((column * n + position) * BLOCK);
                    for block in r.blocks.0..r.blocks.1 {
                        let ch = block * r.words.block();
                        if r.words == Words::Channels {
                            copy_block_pairs::<S, L>(simd, self.load, at + ch, ch, c - ch, dst);
                        } else {
                            let other = (image + 1 < r.images.1).then_some(at + ch + image_len);
                            copy_two_pixels::<S, L>(
                                simd,
                                self.load,
                                ((at + ch, other), ch),
                                c - ch,
                                dst,
                                low,
                            );
                        }
                        dst = dst.add(r.block_stride());
                    }
                }
            }
        }
    }

    /// Writes zeros to a row's margins, and to columns that no pixel has, of so many positions in each column.
    ///
    /// # Safety
    /// The row must lie in the source.
    #[inline(always)]
    unsafe fn margins(&self, y: usize, n: usize) {
        let (r, geometry) = (&self.fill, self.fill.geometry);
        let [left, _] = geometry.margins;
        let (row, w) = ((y - r.rows.0) * geometry.columns(), geometry.src[1]);
        for x in (0..left).chain(left + w..geometry.columns()) {
            for plane in 0..r.words.planes() * (r.blocks.1 - r.blocks.0) {
                let at = plane * r.plane() + (row + geometry.padded_column(x)) * n * BLOCK;
                // SAFETY: `dst` is valid for all planes of the row's columns, margins among them.
                unsafe { r.dst.add(at).write_bytes(0, n * BLOCK) };
            }
        }
    }

    /// Copies a row of all images, cut in two, and writes its margins.
    ///
    /// # Safety
    /// The row must lie in the source.
    #[inline(always)]
    unsafe fn row_split<S: Simd>(&self, simd: S, y: usize) {
        let r = &self.fill;
        let [h, w, c] = r.geometry.src;
        let (n, plane) = (r.images.1 - r.images.0, r.plane());
        let row = (y - r.rows.0) * r.geometry.columns();
        // SAFETY: images, row and blocks lie in the source, and `dst` is valid for them and the margins.
        unsafe {
            self.margins(y, n);
            for x in 0..w {
                let column = row + r.geometry.column(x);
                for (position, image) in (r.images.0..r.images.1).enumerate() {
                    let at = ((image * h + y) * w + x) * c;
                    for line in 0..2 * (r.blocks.1 - r.blocks.0) {
                        self.load.prefetch(simd, at + AHEAD * c + (2 * r.blocks.0 + line) * BLOCK);
                    }
                    let mut dst = r.dst.add((column * n + position) * BLOCK);
                    for block in r.blocks.0..r.blocks.1 {
                        let ch = block * r.words.block();
                        copy_block_split::<S, L>(simd, self.load, (at + ch, ch), c - ch, dst, plane);
                        dst = dst.add(2 * plane);
                    }
                }
            }
        }
    }
}

impl<L: Load> Job for FillPixels<'_, L> {
    type Out = ();

    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let r = &self.fill;
        // SAFETY: images, rows and blocks lie in the source, and `dst` is valid for them.
        unsafe {
            if r.words == Words::Split {
                for y in r.rows.0..r.rows.1 {
                    self.row_split(simd, y);
                }
                return;
            }
            if r.words != Words::Single {
                for y in r.rows.0..r.rows.1 {
                    self.row_of_pairs(simd, y);
                }
                return;
            }
            let n = r.images.1 - r.images.0;
            let together = if r.geometry.is_flat() { TOGETHER } else { n.max(1) };
            (r.rows.0..r.rows.1).for_each(|y| self.margins(y, n));
            for first in (0..n).step_by(together) {
                let images = (first, together.min(n - first));
                for y in r.rows.0..r.rows.1 {
                    for block in r.blocks.0..r.blocks.1 {
                        if r.geometry.src[2] - block * BLOCK >= BLOCK {
                            self.row::<S, false>(simd, y, block, images);
                        } else {
                            self.row::<S, true>(simd, y, block, images);
                        }
                    }
                }
            }
        }
    }
}

/// Copies a part of a source whose shape is the geometry's.
///
/// # Safety
/// images, rows and blocks inside the source, and `dst` valid for all of them.
pub(in crate::conv) unsafe fn fill<S: Simd>(simd: S, source: &Source<'_>, what: Fill<'_>) {
    struct FillVisitor<'a, S>(Fill<'a>, S);
    impl<S: Simd> LoadVisitor for FillVisitor<'_, S> {
        fn visit<L: Load>(self, load: L) {
            // SAFETY: images, rows and blocks lie in the source, and `dst` is valid for them.
            unsafe { self.1.run(FillPixels { load: &load, fill: self.0 }) }
        }
    }
    source.visit(FillVisitor(what, simd));
}
