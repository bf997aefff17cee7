//! Passes over feature maps that are not convolutions: joining a block's two paths, its gradient, and the
//! vectors of the head. They are bound by memory, so each reads and writes every stream once.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds, over registers, are to be unrolled"
)]

use crate::Context;
use crate::activations::{Activations, Data, DataMut};
use crate::load::{Load, Norm, Plain, Zero};
use crate::norm::{Affine, BatchStats, GradAffine, GradSums};
use crate::simd::{Elem, Job, Simd, dispatch};
use crate::work::{Shared, part, sweep};

/// What a residual block adds to its last convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shortcut<'a> {
    /// Nothing: the unit is no residual block.
    None,
    /// The block's input.
    Identity(&'a Activations),
    /// The batch norm of a convolution of the block's input.
    Norm {
        /// The convolution's raw output.
        raw: &'a Activations,
        /// Its batch norm.
        affine: &'a Affine,
    },
}

/// Something to do with each vector of channels of each pixel.
trait Point: Copy + Send + Sync {
    /// Handles `n` lanes at element `at`, whose first channel is `c`; adds to the sums.
    ///
    /// # Safety
    /// The lanes must lie in the tensor, and no other task may have them.
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        simd: S,
        at: usize,
        c: usize,
        n: usize,
        sums: &mut [S::V; SUMS],
    );
}

/// Sums per channel that a pass may gather.
const SUMS: usize = 3;

/// Applies `point` to all pixels and returns the sums, one after the other, each of a value per channel.
///
/// # Safety
/// The point must be able to handle all these pixels and channels.
unsafe fn points<P: Point>(ctx: &Context, point: P, pixels: usize, channels: usize) -> Vec<f64> {
    struct Range<P> {
        point: P,
        pixels: std::ops::Range<usize>,
        channels: usize,
        sums: *mut f32,
    }
    impl<P: Point> Range<P> {
        /// A column of `G` whole vectors, or of one in part.
        ///
        /// # Safety
        /// The channels must exist.
        #[inline(always)]
        unsafe fn column<S: Simd, const G: usize, const PART: bool>(&self, simd: S, c: usize, n: usize) {
            // SAFETY: the pixels are this task's, and a pixel has these channels; there are sums for all of them.
            unsafe {
                let mut sums = [[simd.zero(); SUMS]; G];
                for pixel in self.pixels.clone() {
                    let at = pixel * self.channels + c;
                    for g in 0..G {
                        let lane = g * S::LANES;
                        self.point.vec::<S, PART>(simd, at + lane, c + lane, n, &mut sums[g]);
                    }
                }
                for g in 0..G {
                    for i in 0..SUMS {
                        simd.store_part(self.sums.add(i * self.channels + c + g * S::LANES), n, sums[g][i]);
                    }
                }
            }
        }
    }
    impl<P: Point> Job for Range<P> {
        type Out = ();
        #[inline(always)]
        unsafe fn call<S: Simd>(self, simd: S) {
            let mut c = 0;
            // SAFETY: all columns lie within a pixel.
            unsafe {
                while c + 4 * S::LANES <= self.channels {
                    self.column::<S, 4, false>(simd, c, S::LANES);
                    c += 4 * S::LANES;
                }
                while c + S::LANES <= self.channels {
                    self.column::<S, 1, false>(simd, c, S::LANES);
                    c += S::LANES;
                }
                if c < self.channels {
                    self.column::<S, 1, true>(simd, c, self.channels - c);
                }
            }
        }
    }
    crate::profile::scope(
        "pointwise",
        || (format!("{pixels}x{channels}"), 0.0),
        || {
            let parts = (pixels * channels).div_ceil(32 << 10).clamp(1, pixels.max(1));
            let mut partial = vec![0.0f32; parts * SUMS * channels];
            let shared = Shared::new(&mut partial);
            sweep(parts, |task| {
                // Pieces that stay in the first-level cache, so that all columns of a pixel are read while it is there.
                let range = part(pixels, parts, task);
                // SAFETY: each task has its own pixels, which exist, and its own sums.
                unsafe {
                    let sums = shared.get().add(task * SUMS * channels);
                    dispatch!(ctx.vectors(), simd => simd.run(Range { point, pixels: range, channels, sums }));
                }
            });
            let mut total = vec![0.0f64; SUMS * channels];
            for set in partial.chunks_exact((SUMS * channels).max(1)) {
                total.iter_mut().zip(set).for_each(|(t, s)| *t += f64::from(*s));
            }
            total
        },
    )
}

/// Evaluates an expression for the element type of a tensor to write and of those to read.
macro_rules! by_type {
    ($out:expr, [$($input:expr),*] => |$dst:ident, $($src:ident),*| $body:expr) => {
        match ($out.data_mut(), $($input.data()),*) {
            (DataMut::F32($dst), $(Data::F32($src)),*) => $body,
            (DataMut::Bf16($dst), $(Data::Bf16($src)),*) => $body,
            _ => unreachable!("units check that precisions agree"),
        }
    };
}

/// `out = main + side`, with ReLU or without.
#[derive(Clone, Copy)]
struct AddPoint<A, B, T, const RELU: bool> {
    main: A,
    side: B,
    out: Shared<T>,
}

impl<A: Load, B: Load, T: Elem, const RELU: bool> Point for AddPoint<A, B, T, RELU> {
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        simd: S,
        at: usize,
        c: usize,
        n: usize,
        _sums: &mut [S::V; SUMS],
    ) {
        // SAFETY: the lanes lie in all tensors, which have one shape.
        unsafe {
            let mut v =
                simd.add(self.main.vec::<S, PART>(simd, at, c, n), self.side.vec::<S, PART>(simd, at, c, n));
            if RELU {
                v = simd.relu(v);
            }
            let out = self.out.get().add(at);
            if PART { T::store_part(simd, out, n, v) } else { T::store(simd, out, v) }
        }
    }
}

/// A feature map and the batch norm that follows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Normed<'a> {
    /// The batch norm's input.
    pub raw: &'a Activations,
    /// The batch norm.
    pub affine: &'a Affine,
    /// The mean in it.
    pub mean: &'a [f32],
}

/// Checks that tensors have one shape, and that the arrays by channel have its channels: readers take it for granted.
///
/// # Panics
/// If they have not.
fn check(shape: [usize; 4], tensors: &[&Activations], by_channel: &[&[f32]]) {
    for tensor in tensors {
        assert_eq!(tensor.shape, shape, "shapes of what is joined");
    }
    for values in by_channel {
        assert_eq!(values.len(), shape[3], "channels of a batch norm");
    }
}

impl Shortcut<'_> {
    /// [`check`] of what is in it.
    fn check(&self, shape: [usize; 4]) {
        match self {
            Shortcut::None => {}
            Shortcut::Identity(x) => check(shape, &[x], &[]),
            Shortcut::Norm { raw, affine } => check(shape, &[raw], &[&affine.scale, &affine.shift]),
        }
    }
}

/// `out = max(raw·scale + shift + shortcut, 0)`.
///
/// # Panics
/// If shapes differ.
pub(crate) fn join(
    ctx: &Context,
    raw: &Activations,
    affine: &Affine,
    shortcut: Shortcut<'_>,
    out: &mut Activations,
) {
    check(raw.shape, &[out], &[&affine.scale, &affine.shift]);
    shortcut.check(raw.shape);
    match shortcut {
        Shortcut::None => {
            by_type!(out, [raw] => |out, x| join_as(ctx, raw, Norm::new(x, affine), Zero, out));
        }
        Shortcut::Identity(side) => by_type!(out, [raw, side] => |out, x, side| {
            join_as(ctx, raw, Norm::new(x, affine), Plain::new(side), out)
        }),
        Shortcut::Norm { raw: side, affine: by } => by_type!(out, [raw, side] => |out, x, side| {
            join_as(ctx, raw, Norm::new(x, affine), Norm::new(side, by), out)
        }),
    }
}

/// [`join`] of tensors whose shapes are checked.
fn join_as<A: Load, B: Load, T: Elem>(ctx: &Context, raw: &Activations, main: A, side: B, out: &mut [T]) {
    let point = AddPoint::<_, _, _, true> { main, side, out: Shared::new(out) };
    // SAFETY: all tensors have the shape of `raw`, and arrays by channel its channels.
    unsafe { points(ctx, point, raw.pixels(), raw.shape[3]) };
}

/// The gradient of `max(main + side, 0)`, and batch norm's sums of the main path and of the side.
#[derive(Clone, Copy)]
struct AddBackward<A, B, C, T> {
    main: A,
    side: B,
    raw: Plain<T>,
    mean: Plain<f32>,
    side_raw: C,
    side_mean: Plain<f32>,
    /// Whether there are a ReLU, and a side with batch norm.
    relu: bool,
    side_norm: bool,
    grad: Shared<T>,
}

impl<A: Load, B: Load, C: Load, T: Elem> Point for AddBackward<A, B, C, T> {
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        simd: S,
        at: usize,
        c: usize,
        n: usize,
        sums: &mut [S::V; SUMS],
    ) {
        // SAFETY: the lanes lie in all tensors, which have one shape.
        unsafe {
            let p = self.grad.get().add(at);
            let mut g = if PART { T::load_part(simd, p, n) } else { T::load(simd, p) };
            if self.relu {
                let v = simd
                    .add(self.main.vec::<S, PART>(simd, at, c, n), self.side.vec::<S, PART>(simd, at, c, n));
                g = simd.keep_positive(g, v);
                if PART { T::store_part(simd, p, n, g) } else { T::store(simd, p, g) }
            }
            let centred =
                simd.sub(self.raw.vec::<S, PART>(simd, at, c, n), self.mean.vec::<S, PART>(simd, c, c, n));
            sums[0] = simd.add(sums[0], g);
            sums[1] = simd.fma(g, centred, sums[1]);
            if self.side_norm {
                let side = self.side_raw.vec::<S, PART>(simd, at, c, n);
                sums[2] = simd.fma(g, simd.sub(side, self.side_mean.vec::<S, PART>(simd, c, c, n)), sums[2]);
            }
        }
    }
}

/// Masks `grad` by the ReLU of [`join`], in place, and returns batch norm's sums for the main path and
/// for a normalised shortcut, whose mean is given.
///
/// # Panics
/// If shapes differ.
pub(crate) fn join_backward(
    ctx: &Context,
    grad: &mut Activations,
    main: Normed<'_>,
    shortcut: Shortcut<'_>,
    shortcut_mean: &[f32],
) -> (GradSums, Option<GradSums>) {
    let Normed { raw, affine, mean } = main;
    check(raw.shape, &[grad], &[&affine.scale, &affine.shift, mean]);
    shortcut.check(raw.shape);
    let side_norm = matches!(shortcut, Shortcut::Norm { .. });
    if side_norm {
        check(raw.shape, &[], &[shortcut_mean]);
    }
    let (pixels, c) = (raw.pixels(), raw.shape[3]);
    let (mean, side_mean) = (Plain::new(mean), Plain::new(shortcut_mean));
    let relu = true;
    // SAFETY: all tensors have the shape of `raw`, and arrays by channel its channels. The shortcut's mean is read only
    // where it is normalised.
    let sums = unsafe {
        match shortcut {
            Shortcut::None => by_type!(grad, [raw] => |grad, raw| {
                let (main, raw, grad) = (Norm::new(raw, affine), Plain::new(raw), Shared::new(grad));
                let (side, side_raw) = (Zero, Zero);
                points(ctx, AddBackward { main, side, raw, mean, side_raw, side_mean, relu, side_norm, grad }, pixels, c)
            }),
            Shortcut::Identity(x) => by_type!(grad, [raw, x] => |grad, raw, x| {
                let (main, raw, grad) = (Norm::new(raw, affine), Plain::new(raw), Shared::new(grad));
                let (side, side_raw) = (Plain::new(x), Zero);
                points(ctx, AddBackward { main, side, raw, mean, side_raw, side_mean, relu, side_norm, grad }, pixels, c)
            }),
            Shortcut::Norm { raw: x, affine: by } => by_type!(grad, [raw, x] => |grad, raw, x| {
                let (main, raw, grad) = (Norm::new(raw, affine), Plain::new(raw), Shared::new(grad));
                let (side, side_raw) = (Norm::new(x, by), Plain::new(x));
                points(ctx, AddBackward { main, side, raw, mean, side_raw, side_mean, relu, side_norm, grad }, pixels, c)
            }),
        }
    };
    let side = side_norm.then(|| split_sums(&sums, c, 2));
    (split_sums(&sums, c, 1), side)
}

fn split_sums(sums: &[f64], c: usize, centred: usize) -> GradSums {
    GradSums { grad: sums[..c].to_vec(), grad_centred: sums[centred * c..][..c].to_vec() }
}

/// [`join_backward`] without shortcut.
pub(crate) fn relu_norm_backward(ctx: &Context, grad: &mut Activations, main: Normed<'_>) -> GradSums {
    join_backward(ctx, grad, main, Shortcut::None, &[]).0
}

/// Batch norm's sums for a gradient that no ReLU masks.
///
/// # Panics
/// If shapes differ.
pub(crate) fn grad_sums(ctx: &Context, grad: &mut Activations, raw: &Activations, mean: &[f32]) -> GradSums {
    check(raw.shape, &[grad], &[mean]);
    let (pixels, c) = (raw.pixels(), raw.shape[3]);
    let (mean, side_mean) = (Plain::new(mean), Plain::new(mean));
    let sums = by_type!(grad, [raw] => |grad, raw| {
        let (raw, grad) = (Plain::new(raw), Shared::new(grad));
        let (main, side, side_raw, relu, side_norm) = (Zero, Zero, Zero, false, false);
        let point = AddBackward { main, side, raw, mean, side_raw, side_mean, relu, side_norm, grad };
        // SAFETY: both tensors have the shape of `raw`, and the mean its channels.
        unsafe { points(ctx, point, pixels, c) }
    });
    split_sums(&sums, c, 1)
}

/// Sums of `x - x₀` and of its square, where `x₀` is the first pixel.
#[derive(Clone, Copy)]
struct Moments<T>(Plain<T>);

impl<T: Elem> Point for Moments<T> {
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(
        &self,
        simd: S,
        at: usize,
        c: usize,
        n: usize,
        sums: &mut [S::V; SUMS],
    ) {
        // SAFETY: the lanes lie in the tensor, and so does the first pixel.
        unsafe {
            let d = simd.sub(self.0.vec::<S, PART>(simd, at, c, n), self.0.vec::<S, PART>(simd, c, c, n));
            sums[0] = simd.add(sums[0], d);
            sums[1] = simd.fma(d, d, sums[1]);
        }
    }
}

/// Mean and variance per channel.
pub(crate) fn batch_stats(ctx: &Context, x: &Activations) -> BatchStats {
    fn first<T: Copy>(values: &[T], c: usize, widen: impl Fn(T) -> f32) -> Vec<f64> {
        values[..c].iter().map(|&v| f64::from(widen(v))).collect()
    }
    let (count, c) = (x.pixels(), x.shape[3]);
    let (sums, shift) = match x.data() {
        // SAFETY: the tensor has so many pixels and channels.
        Data::F32(x) => (unsafe { points(ctx, Moments(Plain::new(x)), count, c) }, first(x, c, |v| v)),
        Data::Bf16(x) => {
            // SAFETY: the tensor has so many pixels and channels.
            let sums = unsafe { points(ctx, Moments(Plain::new(x)), count, c) };
            (sums, first(x, c, crate::activations::bf16_to_f32))
        }
    };
    let n = count as f64;
    let mean = |i: usize| sums[i] / n;
    BatchStats {
        mean: (0..c).map(|i| (shift[i] + mean(i)) as f32).collect(),
        var: (0..c)
            .map(|i| sums[c + i] / n - mean(i) * mean(i))
            // Not `max`, which would hide a NaN.
            .map(|v| if v < 0.0 { 0.0 } else { v as f32 })
            .collect(),
        count,
    }
}

/// `out = raw·scale + shift`.
pub(crate) fn norm(ctx: &Context, raw: &Activations, affine: &Affine, out: &mut Activations) {
    check(raw.shape, &[out], &[&affine.scale, &affine.shift]);
    by_type!(out, [raw] => |out, x| {
        let (main, side, out) = (Norm::new(x, affine), Zero, Shared::new(out));
        // SAFETY: all tensors have the shape of `raw`, and arrays by channel its channels.
        unsafe { points(ctx, AddPoint::<_, _, _, false> { main, side, out }, raw.pixels(), raw.shape[3]) };
    });
}

/// `out = grad·on_grad + raw·on_raw + constant`.
pub(crate) fn norm_grad(
    ctx: &Context,
    grad: &Activations,
    raw: &Activations,
    affine: &GradAffine,
    out: &mut Activations,
) {
    check(raw.shape, &[grad, out], &[&affine.on_grad, &affine.on_raw, &affine.constant]);
    by_type!(out, [grad, raw] => |out, g, x| {
        let (main, side, out) = (crate::load::NormGrad::new(g, x, affine), Zero, Shared::new(out));
        // SAFETY: all tensors have the shape of `raw`, and arrays by channel its channels.
        unsafe { points(ctx, AddPoint::<_, _, _, false> { main, side, out }, raw.pixels(), raw.shape[3]) };
    });
}

/// Adds the sum over the rows of `x` to `sums`.
pub(crate) fn add_column_sums(x: &Activations, sums: &mut [f32]) {
    let mut total = vec![0.0f64; sums.len()];
    for row in x.to_f32().chunks(sums.len().max(1)) {
        total.iter_mut().zip(row).for_each(|(t, v)| *t += f64::from(*v));
    }
    sums.iter_mut().zip(&total).for_each(|(s, t)| *s += *t as f32);
}
