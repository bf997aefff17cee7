//! How outputs are finished while they are in cache: stored, added, masked, and summed for batch norm.

use super::Post;
use super::partials::{ChannelSums, PartialsPtr};
use crate::activations::{Activations, DataMut};
use crate::simd::{Elem, Job, Simd};
use crate::work::Shared;

/// What to do with each output vector.
pub(super) trait Finish: Copy + Send + Sync {
    /// Finishes the vector `v` of the element `at`, whose first channel is `c`, and adds to the sums; `n` lanes
    /// count.
    ///
    /// # Safety
    /// The instruction set must be available and the element inside the output.
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        v: S::V,
        at: usize,
        c: usize,
        n: usize,
        sums: &mut ChannelSums<S>,
    );

    /// Asks for what [`vec`](Self::vec) will touch at an element, which may lie outside the output.
    ///
    /// # Safety
    /// The instruction set must be available.
    unsafe fn prefetch<S: Simd>(&self, at: usize);
}

#[inline(always)]
unsafe fn put<S: Simd, T: Elem, const PART: bool>(p: *mut T, n: usize, v: S::V) {
    // SAFETY: the caller's promise.
    unsafe { if PART { T::store_part::<S>(p, n, v) } else { T::store::<S>(p, v) } }
}

#[inline(always)]
unsafe fn get<S: Simd, T: Elem, const PART: bool>(p: *const T, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if PART { T::load_part::<S>(p, n) } else { T::load::<S>(p) } }
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
        _sums: &mut ChannelSums<S>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { put::<S, T, PART>(self.0.get().add(at), n, v) }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, at: usize) {
        // SAFETY: the caller's promise; prefetching is valid for any address.
        unsafe {
            S::prefetch(self.0.get().wrapping_add(at).cast());
        }
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
        _sums: &mut ChannelSums<S>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let p = self.0.get().add(at);
            put::<S, T, PART>(p, n, S::add(get::<S, T, PART>(p, n), v));
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, at: usize) {
        // SAFETY: the caller's promise; prefetching is valid for any address.
        unsafe {
            S::prefetch(self.0.get().wrapping_add(at).cast());
        }
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
        // SAFETY: the caller's promise.
        unsafe {
            put::<S, T, PART>(self.0.get().add(at), n, v);
            let d = S::sub(v, sums.shift);
            sums.first = S::add(sums.first, d);
            sums.second = S::fma(d, d, sums.second);
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, at: usize) {
        // SAFETY: the caller's promise; prefetching is valid for any address.
        unsafe {
            S::prefetch(self.0.get().wrapping_add(at).cast());
        }
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
// SAFETY: as above.
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
        // SAFETY: the caller's promise; `raw` has the output's shape, the other arrays one value a channel.
        unsafe {
            let raw = get::<S, T, PART>(self.raw.add(at), n);
            let scale = get::<S, f32, PART>(self.scale.add(c), n);
            let shift = get::<S, f32, PART>(self.shift.add(c), n);
            let mean = get::<S, f32, PART>(self.mean.add(c), n);
            let g = S::keep_positive(v, S::fma(raw, scale, shift));
            put::<S, T, PART>(self.dst.get().add(at), n, g);
            sums.first = S::add(sums.first, g);
            sums.second = S::fma(g, S::sub(raw, mean), sums.second);
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, at: usize) {
        // SAFETY: the caller's promise; prefetching is valid for any address.
        unsafe {
            S::prefetch(self.dst.get().wrapping_add(at).cast());
            S::prefetch(self.raw.wrapping_add(at).cast());
        }
    }
}

/// Which [`Finish`] to use, and where the output is.
#[derive(Clone, Copy)]
pub(super) enum Finisher<'a> {
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
    /// Whether batch norm's sums are gathered.
    pub fn sums(&self) -> bool {
        matches!(self, Finisher::Forward { stats: true } | Finisher::Backward(Post::ReluNorm { .. }))
    }

    /// Whether the output is added to what is there.
    pub fn accumulates(&self) -> bool {
        matches!(self, Finisher::Backward(Post::Accumulate))
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
    /// The instruction set must be available, the tile complete, and its rows and channels inside the output; no other task
    /// may touch them, or the task's sums.
    pub unsafe fn tile<S: Simd>(&self, output: OutputPtr, tile: ReadyTile<'_>) {
        struct TileVisitor<'a, S>(ReadyTile<'a>, std::marker::PhantomData<S>);
        impl<S: Simd> FinishVisitor for TileVisitor<'_, S> {
            fn visit<F: Finish>(self, finish: F) {
                // SAFETY: the promise of `tile`'s caller.
                unsafe { S::run(FinishTile { finish, tile: self.0 }) }
            }
        }
        self.visit(output, TileVisitor::<S>(tile, std::marker::PhantomData));
    }
}

struct FinishTile<'a, F> {
    finish: F,
    tile: ReadyTile<'a>,
}

impl<F: Finish> FinishTile<'_, F> {
    #[inline(always)]
    unsafe fn column<S: Simd, const PART: bool>(&self, lane: usize, n: usize) {
        let t = &self.tile;
        let c = t.c0 + lane;
        // SAFETY: the promise of `Finisher::tile`'s caller.
        unsafe {
            let mut sums = t.partials.load::<S>(t.part, c, n);
            for (i, &at) in t.at.iter().enumerate() {
                let mut v = S::load(t.values.add(i * t.stride + lane));
                if let Some((partial, rows)) = t.partial {
                    v = S::add(v, get::<S, f32, PART>(partial.add(rows[i] + lane), n));
                }
                if t.begins && i == 0 {
                    sums.shift = v;
                }
                self.finish.vec::<S, PART>(v, at + c, c, n, &mut sums);
            }
            t.partials.store::<S>(t.part, c, n, &sums);
        }
    }
}

impl<F: Finish> Job for FinishTile<'_, F> {
    type Out = ();

    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        for lane in (0..self.tile.cols).step_by(S::LANES) {
            let n = (self.tile.cols - lane).min(S::LANES);
            // SAFETY: as for `column`.
            unsafe {
                if n == S::LANES { self.column::<S, false>(lane, n) } else { self.column::<S, true>(lane, n) }
            }
        }
    }
}
