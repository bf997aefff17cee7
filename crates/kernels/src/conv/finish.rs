//! How outputs are finished while they are in cache: stored, added, masked, and summed for batch norm.

use super::Post;
use crate::activations::{Activations, DataMut};
use crate::norm::{BatchStats, GradSums};
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
        sums: &mut Sums<S>,
    );

    /// Asks for what [`vec`](Self::vec) will touch at an element, which may lie outside the output.
    ///
    /// # Safety
    /// The instruction set must be available.
    unsafe fn prefetch<S: Simd>(&self, at: usize);
}

/// Running sums of one vector of channels.
#[derive(Clone, Copy)]
pub(super) struct Sums<S: Simd> {
    /// Subtracted from values before they are summed, against cancellation.
    pub shift: S::V,
    /// Σ(v - shift), or Σg.
    pub first: S::V,
    /// Σ(v - shift)², or Σg·(y - mean).
    pub second: S::V,
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
        _sums: &mut Sums<S>,
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
        _sums: &mut Sums<S>,
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
pub(super) struct Stats<T>(Shared<T>);

impl<T: Elem> Finish for Stats<T> {
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        v: S::V,
        at: usize,
        _c: usize,
        n: usize,
        sums: &mut Sums<S>,
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
pub(super) struct ReluNorm<T> {
    dst: Shared<T>,
    raw: *const T,
    scale: *const f32,
    shift: *const f32,
    mean: *const f32,
}

// SAFETY: the raw pointers are read-only views of slices that outlive the tasks.
unsafe impl<T> Send for ReluNorm<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for ReluNorm<T> {}

impl<T: Elem> Finish for ReluNorm<T> {
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        v: S::V,
        at: usize,
        c: usize,
        n: usize,
        sums: &mut Sums<S>,
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
pub(super) enum Output {
    F32(Shared<f32>),
    Bf16(Shared<u16>),
}

impl Output {
    pub fn new(out: &mut Activations) -> Self {
        match out.data_mut() {
            DataMut::F32(out) => Output::F32(Shared::new(out)),
            DataMut::Bf16(out) => Output::Bf16(Shared::new(out)),
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
    pub fn visit(&self, output: Output, visitor: impl FinishVisitor) {
        use crate::activations::Data;
        fn relu_norm<T>(
            dst: Shared<T>,
            raw: &[T],
            affine: &crate::norm::Affine,
            mean: &[f32],
        ) -> ReluNorm<T> {
            let (scale, shift) = (affine.scale.as_ptr(), affine.shift.as_ptr());
            ReluNorm { dst, raw: raw.as_ptr(), scale, shift, mean: mean.as_ptr() }
        }
        match (self, output) {
            (Finisher::Forward { stats: true }, Output::F32(dst)) => visitor.visit(Stats(dst)),
            (Finisher::Forward { stats: true }, Output::Bf16(dst)) => visitor.visit(Stats(dst)),
            (Finisher::Backward(Post::Accumulate), Output::F32(dst)) => visitor.visit(Accumulate(dst)),
            (Finisher::Backward(Post::Accumulate), Output::Bf16(dst)) => visitor.visit(Accumulate(dst)),
            (Finisher::Backward(Post::ReluNorm { raw, affine, mean }), output) => {
                match (output, raw.data()) {
                    (Output::F32(dst), Data::F32(raw)) => visitor.visit(relu_norm(dst, raw, affine, mean)),
                    (Output::Bf16(dst), Data::Bf16(raw)) => visitor.visit(relu_norm(dst, raw, affine, mean)),
                    _ => unreachable!("an inner gradient has the precision of its tensor"),
                }
            }
            (_, Output::F32(dst)) => visitor.visit(Store(dst)),
            (_, Output::Bf16(dst)) => visitor.visit(Store(dst)),
        }
    }
}

/// The sums of every task, to be merged in the tasks' order.
pub(super) struct Partials {
    channels: usize,
    data: Vec<f32>,
}

impl Partials {
    /// Room for `tasks` sets of sums; none if they are not needed.
    pub fn new(tasks: usize, channels: usize, needed: bool) -> Self {
        Self { channels, data: vec![0.0; if needed { tasks * 3 * channels } else { 0 }] }
    }

    pub fn share(&mut self) -> PartialsPtr {
        let needed = !self.data.is_empty();
        PartialsPtr { channels: self.channels, data: Shared::new(&mut self.data), needed }
    }

    fn of(&self, task: usize) -> [&[f32]; 3] {
        let set = &self.data[task * 3 * self.channels..][..3 * self.channels];
        let (shift, rest) = set.split_at(self.channels);
        let (first, second) = rest.split_at(self.channels);
        [shift, first, second]
    }

    /// Mean and variance, by Chan's pairwise update in f64; `counts` are the values a channel of each task.
    pub fn batch_stats(&self, counts: &[usize]) -> BatchStats {
        let mut total = 0.0f64;
        let (mut mean, mut m2) = (vec![0.0f64; self.channels], vec![0.0f64; self.channels]);
        for (task, &count) in counts.iter().enumerate() {
            let n = count as f64;
            let [shift, first, second] = self.of(task);
            for c in 0..self.channels {
                let d = f64::from(first[c]) / n;
                let task_m2 = f64::from(second[c]) - d * d * n;
                let delta = f64::from(shift[c]) + d - mean[c];
                mean[c] += delta * n / (total + n);
                m2[c] += task_m2 + delta * delta * total * n / (total + n);
            }
            total += n;
        }
        BatchStats {
            mean: mean.iter().map(|&m| m as f32).collect(),
            // Not `max`, which would hide a NaN.
            var: m2.iter().map(|&m| if m < 0.0 { 0.0 } else { (m / total) as f32 }).collect(),
            count: counts.iter().sum(),
        }
    }

    /// The gradient's sums.
    pub fn grad_sums(&self) -> GradSums {
        let mut sums = GradSums { grad: vec![0.0; self.channels], grad_centred: vec![0.0; self.channels] };
        for task in 0..self.data.len() / (3 * self.channels) {
            let [_, first, second] = self.of(task);
            for c in 0..self.channels {
                sums.grad[c] += f64::from(first[c]);
                sums.grad_centred[c] += f64::from(second[c]);
            }
        }
        sums
    }
}

/// [`Partials`] as tasks see them.
#[derive(Clone, Copy)]
pub(super) struct PartialsPtr {
    channels: usize,
    data: Shared<f32>,
    needed: bool,
}

impl PartialsPtr {
    /// The sums of a task for the channels from `c` on; without any if none are gathered.
    ///
    /// # Safety
    /// `task` must be in range; the instruction set available; no other task may touch these channels.
    #[inline(always)]
    pub unsafe fn load<S: Simd>(&self, task: usize, c: usize, n: usize) -> Sums<S> {
        // SAFETY: the caller's promise.
        unsafe {
            if !self.needed {
                return Sums { shift: S::zero(), first: S::zero(), second: S::zero() };
            }
            let p = self.data.get().add(task * 3 * self.channels + c);
            let at = |i: usize| S::load_part(p.add(i * self.channels), n);
            Sums { shift: at(0), first: at(1), second: at(2) }
        }
    }

    /// Writes the sums back.
    ///
    /// # Safety
    /// As for [`PartialsPtr::load`].
    #[inline(always)]
    pub unsafe fn store<S: Simd>(&self, task: usize, c: usize, n: usize, sums: &Sums<S>) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.needed {
                let p = self.data.get().add(task * 3 * self.channels + c);
                S::store_part(p, n, sums.shift);
                S::store_part(p.add(self.channels), n, sums.first);
                S::store_part(p.add(2 * self.channels), n, sums.second);
            }
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
    pub task: usize,
    /// Whether the task's sums of these channels begin here.
    pub begins: bool,
}

impl Finisher<'_> {
    /// Finishes the rows of a product tile.
    ///
    /// # Safety
    /// The instruction set must be available, the tile complete, and its rows and channels inside the output; no other task
    /// may touch them, or the task's sums.
    pub unsafe fn tile<S: Simd>(&self, output: Output, tile: ReadyTile<'_>) {
        struct Visitor<'a, S>(ReadyTile<'a>, std::marker::PhantomData<S>);
        impl<S: Simd> FinishVisitor for Visitor<'_, S> {
            fn visit<F: Finish>(self, finish: F) {
                // SAFETY: the promise of `tile`'s caller.
                unsafe { S::run(FinishTile { finish, tile: self.0 }) }
            }
        }
        self.visit(output, Visitor::<S>(tile, std::marker::PhantomData));
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
            let mut sums = t.partials.load::<S>(t.task, c, n);
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
            t.partials.store::<S>(t.task, c, n, &sums);
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
