//! Filling scratch memory: `[block of 16 channels][row][column][image][16]`, zero where channels are missing.

use super::geometry::Geometry;
use super::{ConvSpec, Source};
use crate::load::{Load, LoadVisitor, Pixels, block_affine, copy_block_pairs, copy_pixels, copy_two_pixels};
use crate::simd::{BLOCK, Job, Simd};

/// What the 16 words of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// The f32 of 16 channels.
    Single,
    /// bf16 of 32 channels: successive ones share a word.
    Channels,
    /// bf16 of 16 channels of two images, which share words.
    Images,
}

impl Words {
    /// Channels in a block.
    pub fn block(self) -> usize {
        if self == Words::Channels { 2 * BLOCK } else { BLOCK }
    }

    /// Positions that `n` images take.
    pub fn images(self, n: usize) -> usize {
        if self == Words::Images { n.div_ceil(2) } else { n }
    }
}

/// What to copy, and where to.
#[derive(Clone, Copy)]
pub(super) struct Region<'a> {
    /// The gather whose source is copied.
    pub geometry: &'a Geometry,
    pub images: (usize, usize),
    pub rows: (usize, usize),
    /// Blocks of channels.
    pub blocks: (usize, usize),
    pub words: Words,
    pub dst: *mut f32,
}

impl Region<'_> {
    /// f32 from one block of channels to the next.
    pub fn block_stride(&self) -> usize {
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
const GROUP: usize = 8;

/// How a convolution's input gets into scratch memory.
#[derive(Clone, Copy)]
pub(super) enum Reader<'a> {
    /// Pixel by pixel; taps become offsets.
    Pixels(Source<'a>),
    /// As columns of taps and channels; the geometry is flat then.
    Columns(Source<'a>, &'a ConvSpec),
}

impl Reader<'_> {
    /// Copies a region.
    ///
    /// # Safety
    /// As for [`fill`], and for columns the same: their pixels are the region's images.
    pub unsafe fn fill<S: Simd>(&self, region: Region<'_>) {
        // SAFETY: the caller's promise.
        unsafe {
            match *self {
                Reader::Pixels(source) => fill::<S>(&source, region),
                Reader::Columns(source, spec) => {
                    let Region { images, blocks, words, dst, .. } = region;
                    let shape = source.shape();
                    fill_columns::<S>(&source, Columns { spec, shape, pixels: images, blocks, words, dst });
                }
            }
        }
    }
}

struct FillJob<'a, L> {
    load: &'a L,
    region: Region<'a>,
}

impl<L: Load> FillJob<'_, L> {
    /// Copies a block of a row of `count` images from `first` on. The loops inside take few steps, so what they can share is
    /// computed before them.
    #[inline(always)]
    unsafe fn row<S: Simd, const PART: bool>(&self, y: usize, block: usize, (first, count): (usize, usize)) {
        let r = &self.region;
        let [h, w, c] = r.geometry.src;
        let (ch, valid, image_len) = (block * BLOCK, c - block * BLOCK, h * w * c);
        let (n, groups) = (r.images.1 - r.images.0, r.geometry.groups());
        let ahead = c * if r.geometry.is_flat() { GROUP } else { AHEAD * groups };
        let row = (block - r.blocks.0) * r.block_stride()
            + ((y - r.rows.0) * r.geometry.columns() * n + first) * BLOCK;
        let element = ((r.images.0 + first) * h + y) * w * c + ch;
        // SAFETY: `fill`'s caller promises that the region lies in the source and `dst` holds it.
        unsafe {
            let affine = block_affine::<S, L, PART>(self.load, ch, valid);
            for group in 0..groups {
                let mut at = element + group * c;
                let mut dst = r.dst.add(row + r.geometry.column(group) * n * BLOCK);
                for _ in (group..w).step_by(groups) {
                    let images = Pixels { at, step: image_len, count, ahead };
                    copy_pixels::<S, L, PART>(self.load, &affine, images, valid, dst);
                    (at, dst) = (at + groups * c, dst.wrapping_add(n * BLOCK));
                }
            }
        }
    }

    /// Copies a row of all images as words of two bf16.
    #[inline(always)]
    unsafe fn row_of_pairs<S: Simd>(&self, y: usize) {
        let r = &self.region;
        let [h, w, c] = r.geometry.src;
        let (n, step) =
            (r.words.images(r.images.1 - r.images.0), if r.words == Words::Images { 2 } else { 1 });
        let image_len = h * w * c;
        // SAFETY: as for `row`.
        unsafe {
            for x in 0..w {
                let column = (y - r.rows.0) * r.geometry.columns() + r.geometry.column(x);
                for (position, image) in (r.images.0..r.images.1).step_by(step).enumerate() {
                    let at = ((image * h + y) * w + x) * c;
                    for line in 0..r.blocks.1 - r.blocks.0 {
                        self.load.prefetch::<S>(at + AHEAD * c + (r.blocks.0 + line) * BLOCK);
                    }
                    let mut dst = r.dst.add((column * n + position) * BLOCK);
                    for block in r.blocks.0..r.blocks.1 {
                        let ch = block * r.words.block();
                        if r.words == Words::Channels {
                            copy_block_pairs::<S, L>(self.load, at + ch, ch, c - ch, dst);
                        } else {
                            let other = (image + 1 < r.images.1).then_some(at + ch + image_len);
                            copy_two_pixels::<S, L>(self.load, (at + ch, other), ch, c - ch, dst);
                        }
                        dst = dst.add(r.block_stride());
                    }
                }
            }
        }
    }
}

impl<L: Load> Job for FillJob<'_, L> {
    type Out = ();

    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let r = &self.region;
        // SAFETY: as for `row`.
        unsafe {
            if r.words != Words::Single {
                for y in r.rows.0..r.rows.1 {
                    self.row_of_pairs::<S>(y);
                }
                return;
            }
            let n = r.images.1 - r.images.0;
            let together = if r.geometry.is_flat() { GROUP } else { n.max(1) };
            for first in (0..n).step_by(together) {
                let images = (first, together.min(n - first));
                for y in r.rows.0..r.rows.1 {
                    for block in r.blocks.0..r.blocks.1 {
                        if r.geometry.src[2] - block * BLOCK >= BLOCK {
                            self.row::<S, false>(y, block, images);
                        } else {
                            self.row::<S, true>(y, block, images);
                        }
                    }
                }
            }
        }
    }
}

/// Copies a region of a source whose shape is the geometry's.
///
/// # Safety
/// The instruction set must be available, the region inside the source, and `dst` valid for all its blocks.
pub(super) unsafe fn fill<S: Simd>(source: &Source<'_>, region: Region<'_>) {
    struct Visitor<'a, S>(Region<'a>, std::marker::PhantomData<S>);
    impl<S: Simd> LoadVisitor for Visitor<'_, S> {
        fn visit<L: Load>(self, load: L) {
            // SAFETY: `fill`'s caller's promise.
            unsafe { S::run(FillJob { load: &load, region: self.0 }) }
        }
    }
    source.visit(Visitor::<S>(region, std::marker::PhantomData));
}

/// Destination pixels as rows of a matrix, one column for each tap and input channel (OHWI order), for
/// convolutions with few input channels and for strided 1×1 ones.
#[derive(Clone, Copy)]
struct Columns<'a> {
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

struct ColumnsJob<'a, L> {
    load: &'a L,
    columns: Columns<'a>,
}

impl<L: Load> ColumnsJob<'_, L> {
    /// Copies a block of the source pixels of `count` outputs in a row.
    #[inline(always)]
    unsafe fn pixels<S: Simd, const PART: bool>(
        &self,
        sources: &Sources,
        count: usize,
        block: usize,
        dst: *mut f32,
    ) {
        let (ch, step) = (block * BLOCK, sources.column);
        let valid = self.columns.shape[3] - ch;
        // SAFETY: `fill_columns`'s caller promises that the pixels exist and `dst` holds their columns.
        unsafe {
            let affine = block_affine::<S, L, PART>(self.load, ch, valid);
            let pixels = Pixels { at: sources.element() + ch, step, count, ahead: GROUP * step };
            copy_pixels::<S, L, PART>(self.load, &affine, pixels, valid, dst);
        }
    }
}

impl<L: Load> Job for ColumnsJob<'_, L> {
    type Out = ();

    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let Columns { spec, shape, pixels, blocks, words, dst } = self.columns;
        let [_, h, w, c] = shape;
        let [_, oh, ow, _] = spec.output_shape(shape);
        let k = spec.kernel;
        let n = words.images(pixels.1 - pixels.0);
        // SAFETY: `fill_columns`'s caller promises that the pixels exist and `dst` holds their columns.
        unsafe {
            if k == 1 && spec.padding == 0 {
                let mut sources = Sources::new(spec, shape, pixels.0);
                if words == Words::Single {
                    let mut pixel = pixels.0;
                    while pixel < pixels.1 {
                        let count = sources.in_row().min(GROUP).min(pixels.1 - pixel);
                        for block in blocks.0..blocks.1 {
                            let dst = dst.add(((block - blocks.0) * n + pixel - pixels.0) * BLOCK);
                            if c - block * BLOCK >= BLOCK {
                                self.pixels::<S, false>(&sources, count, block, dst);
                            } else {
                                self.pixels::<S, true>(&sources, count, block, dst);
                            }
                        }
                        sources.advance(count);
                        pixel += count;
                    }
                    return;
                }
                let step = if words == Words::Images { 2 } else { 1 };
                let mut dst = dst;
                for pixel in (pixels.0..pixels.1).step_by(step) {
                    let from = sources.next_element();
                    let other = (step == 2 && pixel + 1 < pixels.1).then(|| sources.next_element());
                    let mut block_dst = dst;
                    for block in blocks.0..blocks.1 {
                        let ch = block * words.block();
                        let (at, dst) = (from + ch, block_dst);
                        if words == Words::Channels {
                            copy_block_pairs::<S, L>(self.load, at, ch, c - ch, dst);
                        } else {
                            let other = other.map(|other| other + ch);
                            copy_two_pixels::<S, L>(self.load, (at, other), ch, c - ch, dst);
                        }
                        block_dst = block_dst.add(n * BLOCK);
                    }
                    dst = dst.add(BLOCK);
                }
                return;
            }
            // Some pixels' columns, one after the other, before they are cut into blocks: several at once, so that
            // they have left the store buffer when they are read. A vector's overhang is overwritten by what comes
            // next or falls on the padding.
            const AT_ONCE: usize = 8;
            let length = (k * k * c).next_multiple_of(BLOCK) + BLOCK;
            let mut lines = vec![0.0f32; AT_ONCE * length];
            for first in (pixels.0..pixels.1).step_by(AT_ONCE) {
                let last = (first + AT_ONCE).min(pixels.1);
                for pixel in first..last {
                    let line = lines.as_mut_ptr().add((pixel - first) * length);
                    let (ox, oy, image) = (pixel % ow, pixel / ow % oh, pixel / ow / oh);
                    // Taps `inside.0..inside.1` of a row lie in the map.
                    let (x0, padding) = (ox * spec.stride, spec.padding);
                    let from = padding.saturating_sub(x0).min(k);
                    let inside = (from, (w + padding).saturating_sub(x0).clamp(from, k));
                    for ky in 0..k {
                        let y = (oy * spec.stride + ky).wrapping_sub(padding);
                        let at = line.add(ky * k * c);
                        if y >= h {
                            copy_line::<S, L>(None, k * c, at);
                            continue;
                        }
                        copy_line::<S, L>(None, inside.0 * c, at);
                        let source = ((image * h + y) * w + x0 + inside.0 - padding) * c;
                        if L::PLAIN {
                            let length = (inside.1 - inside.0) * c;
                            copy_line::<S, L>(Some((self.load, source, 0)), length, at.add(inside.0 * c));
                        } else {
                            for i in 0..inside.1 - inside.0 {
                                let at = at.add((inside.0 + i) * c);
                                copy_line::<S, L>(Some((self.load, source + i * c, 0)), c, at);
                            }
                        }
                        copy_line::<S, L>(None, (k - inside.1) * c, at.add(inside.1 * c));
                    }
                    S::store(line.add(k * k * c), S::zero());
                }
                for block in blocks.0..blocks.1 {
                    for pixel in first..last {
                        let line = lines.as_ptr().add((pixel - first) * length + block * BLOCK);
                        let dst = dst.add(((block - blocks.0) * n + pixel - pixels.0) * BLOCK);
                        for l in (0..BLOCK).step_by(S::LANES) {
                            S::store(dst.add(l), S::load(line.add(l)));
                        }
                    }
                }
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
/// As for [`Load::vec`]; `dst` must be valid for a vector more than `length`.
#[inline(always)]
pub(super) unsafe fn copy_line<S: Simd, L: Load>(
    from: Option<(&L, usize, usize)>,
    length: usize,
    dst: *mut f32,
) {
    for i in (0..length).step_by(S::LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let v = match from {
                Some((load, at, c)) => load.vec::<S, true>(at + i, c + i, (length - i).min(S::LANES)),
                None => S::zero(),
            };
            S::store(dst.add(i), v);
        }
    }
}

/// Writes columns as `[block of 16][pixel][16]`.
///
/// # Safety
/// The instruction set must be available, the pixels inside the output, and `dst` valid for all blocks.
unsafe fn fill_columns<S: Simd>(source: &Source<'_>, columns: Columns<'_>) {
    struct Visitor<'a, S>(Columns<'a>, std::marker::PhantomData<S>);
    impl<S: Simd> LoadVisitor for Visitor<'_, S> {
        fn visit<L: Load>(self, load: L) {
            // SAFETY: `fill_columns`'s caller's promise.
            unsafe { S::run(ColumnsJob { load: &load, columns: self.0 }) }
        }
    }
    source.visit(Visitor::<S>(columns, std::marker::PhantomData));
}
