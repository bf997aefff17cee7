//! How outputs are finished while they are in cache: stored, added, masked, and summed for batch norm.

use std::ops::Range;

use super::partials::{ChannelSums, PartialsPtr};
use super::{Fused, Post};
use crate::activations::{Activations, DataMut};
use crate::simd::{BLOCK, Elem, Job, Simd};
use crate::work::Shared;

/// What to do with each output vector.
pub(super) trait Finish: Copy + Send + Sync {
    /// Finishes the vector `v` of the element `at`, whose first channel is `c`, and adds to the sums; `n` lanes
    /// count.
    ///
    /// # Safety
    /// The element's lanes must lie in the output, and no other task may have them.
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        v: S::V,
        at: usize,
        c: usize,
        n: usize,
        sums: &mut ChannelSums<S>,
    );

    /// Asks for what [`vec`](Self::vec) will touch at an element, which may lie outside the output.
    fn prefetch<S: Simd>(&self, simd: S, at: usize);
}

/// Writes `n` lanes.
///
/// # Safety
/// `p` must be valid for them.
#[inline(always)]
unsafe fn put<S: Simd, T: Elem, const PART: bool>(simd: S, p: *mut T, n: usize, v: S::V) {
    // SAFETY: `p` is valid for `n` lanes, and those are all where `PART` is false.
    unsafe { if PART { T::store_part(simd, p, n, v) } else { T::store(simd, p, v) } }
}

/// Reads `n` lanes.
///
/// # Safety
/// `p` must be valid for them.
#[inline(always)]
unsafe fn get<S: Simd, T: Elem, const PART: bool>(simd: S, p: *const T, n: usize) -> S::V {
    // SAFETY: `p` is valid for `n` lanes, and those are all where `PART` is false.
    unsafe { if PART { T::load_part(simd, p, n) } else { T::load(simd, p) } }
}

#[derive(Clone, Copy)]
pub(super) struct Store<T>(Shared<T>);

impl<T: Elem> Finish for Store<T> {
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        v: S::V,
        at: usize,
        _c: usize,
        n: usize,
        sums: &mut ChannelSums<S>,
    ) {
        // SAFETY: the element's lanes lie in the output.
        unsafe { put::<S, T, PART>(sums.simd, self.0.get().add(at), n, v) }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, at: usize) {
        simd.prefetch(self.0.get().wrapping_add(at).cast());
    }
}

#[derive(Clone, Copy)]
pub(super) struct Accumulate<T>(Shared<T>);

impl<T: Elem> Finish for Accumulate<T> {
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        v: S::V,
        at: usize,
        _c: usize,
        n: usize,
        sums: &mut ChannelSums<S>,
    ) {
        let simd = sums.simd;
        // SAFETY: the element's lanes lie in the output.
        unsafe {
            let p = self.0.get().add(at);
            put::<S, T, PART>(simd, p, n, simd.add(get::<S, T, PART>(simd, p, n), v));
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, at: usize) {
        simd.prefetch(self.0.get().wrapping_add(at).cast());
    }
}

#[derive(Clone, Copy)]
pub(super) struct StoreAndSum<T>(Shared<T>);

impl<T: Elem> Finish for StoreAndSum<T> {
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        v: S::V,
        at: usize,
        _c: usize,
        n: usize,
        sums: &mut ChannelSums<S>,
    ) {
        let simd = sums.simd;
        // SAFETY: the element's lanes lie in the output.
        unsafe {
            put::<S, T, PART>(simd, self.0.get().add(at), n, v);
            let d = simd.sub(v, sums.shift);
            sums.first = simd.add(sums.first, d);
            sums.second = simd.fma(d, d, sums.second);
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, at: usize) {
        simd.prefetch(self.0.get().wrapping_add(at).cast());
    }
}

#[derive(Clone, Copy)]
pub(super) struct MaskAndSum<T> {
    dst: Shared<T>,
    raw: *const T,
    scale: *const f32,
    shift: *const f32,
    mean: *const f32,
}

// SAFETY: the raw pointers are read-only views of slices that outlive the tasks.
unsafe impl<T> Send for MaskAndSum<T> {}
// SAFETY: tasks only read through the pointers.
unsafe impl<T> Sync for MaskAndSum<T> {}

impl<T: Elem> Finish for MaskAndSum<T> {
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        v: S::V,
        at: usize,
        c: usize,
        n: usize,
        sums: &mut ChannelSums<S>,
    ) {
        let simd = sums.simd;
        // SAFETY: the element's lanes lie in the output; `raw` has the output's shape, the other arrays one value per channel.
        unsafe {
            let raw = get::<S, T, PART>(simd, self.raw.add(at), n);
            let scale = get::<S, f32, PART>(simd, self.scale.add(c), n);
            let shift = get::<S, f32, PART>(simd, self.shift.add(c), n);
            let mean = get::<S, f32, PART>(simd, self.mean.add(c), n);
            let g = simd.keep_positive(v, simd.fma(raw, scale, shift));
            put::<S, T, PART>(simd, self.dst.get().add(at), n, g);
            sums.first = simd.add(sums.first, g);
            sums.second = simd.fma(g, simd.sub(raw, mean), sums.second);
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, at: usize) {
        simd.prefetch(self.dst.get().wrapping_add(at).cast());
        simd.prefetch(self.raw.wrapping_add(at).cast());
    }
}

/// `max(v + bias + what is there, 0)`, all of f32.
#[derive(Clone, Copy)]
pub(super) struct Join {
    dst: Shared<f32>,
    bias: *const f32,
    add: bool,
    relu: bool,
}

// SAFETY: the raw pointers are read-only views of slices that outlive the tasks.
unsafe impl Send for Join {}
// SAFETY: tasks only read through the pointers.
unsafe impl Sync for Join {}

impl Join {
    fn new(fused: &Fused<'_>, dst: Shared<f32>) -> Self {
        Self { dst, bias: fused.bias.as_ptr(), add: fused.add, relu: fused.relu }
    }
}

impl Finish for Join {
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        v: S::V,
        at: usize,
        c: usize,
        n: usize,
        sums: &mut ChannelSums<S>,
    ) {
        let simd = sums.simd;
        // SAFETY: the element's lanes lie in the output; there is a bias for each channel.
        unsafe {
            let p = self.dst.get().add(at);
            let mut v = simd.add(v, get::<S, f32, PART>(simd, self.bias.add(c), n));
            if self.add {
                v = simd.add(v, get::<S, f32, PART>(simd, p, n));
            }
            if self.relu {
                v = simd.relu(v);
            }
            put::<S, f32, PART>(simd, p, n, v);
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, at: usize) {
        simd.prefetch(self.dst.get().wrapping_add(at));
    }
}

/// Which [`Finish`] to use, and where the output is.
#[derive(Clone, Copy)]
pub(super) enum Finisher<'a> {
    /// An inference pass.
    Fused(Fused<'a>),
    /// A forward pass, with batch statistics or without.
    Forward {
        /// Whether to sum.
        stats: bool,
    },
    /// A data pass.
    Backward(Post<'a>),
}

/// The output's address, by storage type.
#[derive(Clone, Copy)]
pub(super) enum OutputPtr {
    F32(Shared<f32>),
    Bf16(Shared<u16>),
}

impl OutputPtr {
    pub fn new(out: &mut Activations) -> Self {
        match out.data_mut() {
            DataMut::F32(out) => OutputPtr::F32(Shared::new(out)),
            DataMut::Bf16(out) => OutputPtr::Bf16(Shared::new(out)),
        }
    }
}

/// Code that is generic over how it finishes.
pub(super) trait FinishVisitor {
    /// Called with the finish.
    fn visit<F: Finish>(self, finish: F);
}

impl Finisher<'_> {
    /// Checks that what is read along with an output of this shape fits it.
    ///
    /// # Panics
    /// If it does not.
    pub fn check(&self, output: &Activations) {
        match self {
            Finisher::Forward { .. } => {}
            Finisher::Backward(post) => post.check(output.shape),
            Finisher::Fused(fused) => fused.check(output),
        }
    }

    /// Whether complete sums have to go through [`tile`](Self::tile) even where they could be stored as they are.
    pub fn reads_tiles(&self) -> bool {
        self.sums() || matches!(self, Finisher::Fused(_))
    }

    /// Asks for what an inference pass's tile will touch, whose channels begin at `c0`.
    #[inline(always)]
    pub fn prefetch<S: Simd>(&self, simd: S, output: OutputPtr, at: &[usize], c0: usize) {
        if matches!(self, Finisher::Fused(_)) {
            self.prefetch_tile(simd, output, at, c0..c0 + 2 * S::LANES);
        }
    }

    /// Asks for what a tile of any pass will touch, whose channels are given.
    #[inline(always)]
    pub fn prefetch_tile<S: Simd>(&self, simd: S, output: OutputPtr, at: &[usize], channels: Range<usize>) {
        struct Ask<'a, S>(S, &'a [usize], Range<usize>);
        impl<S: Simd> FinishVisitor for Ask<'_, S> {
            fn visit<F: Finish>(self, finish: F) {
                for &at in self.1 {
                    self.2.clone().step_by(BLOCK).for_each(|channel| finish.prefetch(self.0, at + channel));
                }
            }
        }
        self.visit(output, Ask(simd, at, channels));
    }

    /// Whether batch norm's sums are gathered.
    pub fn sums(&self) -> bool {
        matches!(self, Finisher::Forward { stats: true } | Finisher::Backward(Post::ReluNorm { .. }))
    }

    /// Whether the output is added to what is there.
    pub fn accumulates(&self) -> bool {
        matches!(self, Finisher::Backward(Post::Accumulate))
    }

    /// Whether what is there is needed when outputs are finished, so that no other sums may wait in its place.
    pub fn reads_output(&self) -> bool {
        matches!(self, Finisher::Fused(Fused { add: true, .. }))
    }

    /// Calls the visitor with the finish for this output.
    pub fn visit(&self, output: OutputPtr, visitor: impl FinishVisitor) {
        use crate::activations::Data;
        fn relu_norm<T>(
            dst: Shared<T>,
            raw: &[T],
            affine: &crate::norm::Affine,
            mean: &[f32],
        ) -> MaskAndSum<T> {
            let (scale, shift) = (affine.scale.as_ptr(), affine.shift.as_ptr());
            MaskAndSum { dst, raw: raw.as_ptr(), scale, shift, mean: mean.as_ptr() }
        }
        match (self, output) {
            (Finisher::Fused(fused), OutputPtr::F32(dst)) => visitor.visit(Join::new(fused, dst)),
            (Finisher::Fused(_), OutputPtr::Bf16(_)) => unreachable!("checked: inference passes write f32"),
            (Finisher::Forward { stats: true }, OutputPtr::F32(dst)) => visitor.visit(StoreAndSum(dst)),
            (Finisher::Forward { stats: true }, OutputPtr::Bf16(dst)) => visitor.visit(StoreAndSum(dst)),
            (Finisher::Backward(Post::Accumulate), OutputPtr::F32(dst)) => visitor.visit(Accumulate(dst)),
            (Finisher::Backward(Post::Accumulate), OutputPtr::Bf16(dst)) => visitor.visit(Accumulate(dst)),
            (Finisher::Backward(Post::ReluNorm { raw, affine, mean }), output) => {
                match (output, raw.data()) {
                    (OutputPtr::F32(dst), Data::F32(raw)) => visitor.visit(relu_norm(dst, raw, affine, mean)),
                    (OutputPtr::Bf16(dst), Data::Bf16(raw)) => {
                        visitor.visit(relu_norm(dst, raw, affine, mean))
                    }
                    _ => unreachable!("an inner gradient has the precision of its tensor"),
                }
            }
            (_, OutputPtr::F32(dst)) => visitor.visit(Store(dst)),
            (_, OutputPtr::Bf16(dst)) => visitor.visit(Store(dst)),
        }
    }
}

/// A product tile in the first-level cache, to be finished.
#[derive(Clone, Copy)]
pub(super) struct ReadyTile<'a> {
    /// The tile: one row after the other.
    pub values: *const f32,
    /// From one row to the next.
    pub stride: usize,
    /// For each row, the output's element of its pixel's channel 0.
    pub at: &'a [usize],
    /// What is to be added first: sums over the channels read before, at these offsets for each row.
    pub partial: Option<(*const f32, &'a [usize])>,
    /// The tile's first channel, and its channels.
    pub c0: usize,
    pub cols: usize,
    pub partials: PartialsPtr,
    /// Which part of the work its sums are of.
    pub part: usize,
    /// Whether the part's sums of these channels begin here.
    pub begins: bool,
}

impl Finisher<'_> {
    /// Finishes the rows of a product tile.
    ///
    /// # Safety
    /// The tile must be complete, and its rows and channels be inside the output; no other task
    /// may touch them, or the task's sums.
    pub unsafe fn tile<S: Simd>(&self, simd: S, output: OutputPtr, tile: ReadyTile<'_>) {
        struct TileVisitor<'a, S>(ReadyTile<'a>, S);
        impl<S: Simd> FinishVisitor for TileVisitor<'_, S> {
            fn visit<F: Finish>(self, finish: F) {
                // SAFETY: the tile is complete, and its part of the output this task's alone.
                unsafe { self.1.run(FinishTile { finish, tile: self.0 }) }
            }
        }
        self.visit(output, TileVisitor(tile, simd));
    }
}

struct FinishTile<'a, F> {
    finish: F,
    tile: ReadyTile<'a>,
}

impl<F: Finish> FinishTile<'_, F> {
    /// Finishes a vector of all rows.
    ///
    /// # Safety
    /// As for [`Finisher::tile`]; the tile must have `n` channels from `lane` on.
    #[inline(always)]
    unsafe fn column<S: Simd, const PART: bool>(&self, simd: S, lane: usize, n: usize) {
        let t = &self.tile;
        let c = t.c0 + lane;
        // SAFETY: rows and lanes lie in the tile, and their elements in the output; `partial` has them as well.
        unsafe {
            let mut sums = t.partials.load(simd, t.part, c, n);
            for (i, &at) in t.at.iter().enumerate() {
                let mut v = simd.load(t.values.add(i * t.stride + lane));
                if let Some((partial, rows)) = t.partial {
                    v = simd.add(v, get::<S, f32, PART>(simd, partial.add(rows[i] + lane), n));
                }
                if t.begins && i == 0 {
                    sums.shift = v;
                }
                self.finish.vec::<S, PART>(v, at + c, c, n, &mut sums);
            }
            t.partials.store(t.part, c, n, &sums);
        }
    }
}

impl<F: Finish> Job for FinishTile<'_, F> {
    type Out = ();

    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        for lane in (0..self.tile.cols).step_by(S::LANES) {
            let n = (self.tile.cols - lane).min(S::LANES);
            // SAFETY: there are `n` channels from `lane` on.
            unsafe {
                if n == S::LANES {
                    self.column::<S, false>(simd, lane, n)
                } else {
                    self.column::<S, true>(simd, lane, n)
                }
            }
        }
    }
}
