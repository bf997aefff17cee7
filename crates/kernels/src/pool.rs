//! Max pooling behind a batch norm, and the mean over an image.

use crate::Context;
use crate::activations::{Activations, Data, DataMut};
use crate::load::{Load, Norm, Plain};
use crate::norm::{Affine, GradSums};
use crate::pointwise::Normed;
use crate::simd::{Elem, Job, Simd, dispatch};
use crate::work::{Shared, sweep};

/// The input rows or columns of a window: 3 wide, stride 2, padding 1.
#[inline(always)]
fn window(o: usize, len: usize) -> std::ops::Range<usize> {
    (2 * o).saturating_sub(1)..(2 * o + 2).min(len)
}

/// Max pooling of `max(raw·scale + shift, 0)`, one row of outputs.
struct MaxRow<T> {
    load: Norm<T>,
    out: *mut T,
    image: usize,
    oy: usize,
    /// Height, width and channels of the input.
    shape: [usize; 3],
}

impl<T: Elem> Job for MaxRow<T> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let [h, w, ch] = self.shape;
        let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
        for ox in 0..ow {
            for c in (0..ch).step_by(S::LANES) {
                let n = (ch - c).min(S::LANES);
                // SAFETY: the window lies in the input, the output pixel in the output.
                unsafe {
                    let mut best = simd.splat(f32::NEG_INFINITY);
                    for y in window(self.oy, h) {
                        for x in window(ox, w) {
                            let at = ((self.image * h + y) * w + x) * ch + c;
                            let v = if n == S::LANES {
                                self.load.vec::<S, false>(simd, at, c, n)
                            } else {
                                self.load.vec::<S, true>(simd, at, c, n)
                            };
                            best = simd.max(best, v);
                        }
                    }
                    let out = self.out.add(((self.image * oh + self.oy) * ow + ox) * ch + c);
                    T::store_part(simd, out, n, simd.relu(best));
                }
            }
        }
    }
}

/// Checks the shapes of a max pooling.
///
/// # Panics
/// If they do not fit.
fn check(raw: &Activations, affine: &Affine, pooled: [usize; 4]) {
    let [n, h, w, c] = raw.shape;
    assert_eq!(pooled, [n, h.div_ceil(2), w.div_ceil(2), c], "shape of a max pooling's output");
    assert_eq!([affine.scale.len(), affine.shift.len()], [c; 2], "channels of a batch norm");
}

/// Max pooling 3×3, stride 2, padding 1 of `max(raw·scale + shift, 0)`.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn norm_relu_max_pool(ctx: &Context, raw: &Activations, affine: &Affine, out: &mut Activations) {
    fn go<T: Elem>(ctx: &Context, load: Norm<T>, out: &mut [T], [n, h, w, c]: [usize; 4]) {
        let out = Shared::new(out);
        let oh = h.div_ceil(2);
        sweep(n * oh, |row| {
            let (image, oy) = (row / oh, row % oh);
            let job = MaxRow { load, out: out.get(), image, oy, shape: [h, w, c] };
            // SAFETY: shapes are checked; each task writes its own row.
            dispatch!(ctx.vectors(), simd => unsafe { simd.run(job) });
        });
    }
    check(raw, affine, out.shape);
    let describe = || (format!("{:?}", raw.shape), 0.0);
    crate::profile::scope("max pool", describe, || match (out.data_mut(), raw.data()) {
        (DataMut::F32(out), Data::F32(x)) => go(ctx, Norm::new(x, affine), out, raw.shape),
        (DataMut::Bf16(out), Data::Bf16(x)) => go(ctx, Norm::new(x, affine), out, raw.shape),
        _ => unreachable!("units check that precisions agree"),
    });
}

/// The gradient of one image's max pooling, with batch norm's sums.
struct MaxBackward<T> {
    load: Norm<T>,
    raw: Plain<T>,
    mean: Plain<f32>,
    pooled: *const T,
    grad: *mut T,
    image: usize,
    shape: [usize; 3],
    sums: *mut f32,
}

impl<T: Elem> MaxBackward<T> {
    /// One row of windows: everything around it stays in cache.
    ///
    /// # Safety
    /// The row of windows and the channels must exist.
    #[inline(always)]
    unsafe fn row<S: Simd, const PART: bool>(&self, simd: S, oy: usize, c: usize, n: usize) {
        let [h, w, ch] = self.shape;
        let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
        // SAFETY: windows lie in the input, output pixels in the output, and the channels exist.
        unsafe {
            let base = self.image * h * w * ch + c;
            // The rows that no window before reached.
            for pixel in 2 * oy * w..(2 * oy + 2).min(h) * w {
                T::store_part(simd, self.grad.add(base + pixel * ch), n, simd.zero());
            }
            let of_sums = [self.sums.add(c), self.sums.add(ch + c)];
            let mut sums = of_sums.map(|p| simd.load_part(p, n));
            for ox in 0..ow {
                let mut values = [simd.zero(); 9];
                let mut best = simd.splat(f32::NEG_INFINITY);
                let mut i = 0;
                for y in window(oy, h) {
                    for x in window(ox, w) {
                        values[i] = self.load.vec::<S, PART>(simd, base + (y * w + x) * ch, c, n);
                        best = simd.max(best, values[i]);
                        i += 1;
                    }
                }
                let pooled = self.pooled.add(((self.image * oh + oy) * ow + ox) * ch + c);
                let g = if PART { T::load_part(simd, pooled, n) } else { T::load(simd, pooled) };
                // What no maximum has taken yet.
                let mut rest = simd.keep_positive(g, best);
                i = 0;
                for y in window(oy, h) {
                    for x in window(ox, w) {
                        let taken = simd.keep_equal(rest, values[i], best);
                        rest = simd.sub(rest, taken);
                        i += 1;
                        let at = base + (y * w + x) * ch;
                        let p = self.grad.add(at);
                        let old = if PART { T::load_part(simd, p, n) } else { T::load(simd, p) };
                        let sum = simd.add(old, taken);
                        if PART {
                            T::store_part(simd, p, n, sum)
                        } else {
                            T::store(simd, p, sum)
                        }
                        let centred = simd.sub(
                            self.raw.vec::<S, PART>(simd, at, c, n),
                            self.mean.vec::<S, PART>(simd, c, c, n),
                        );
                        sums[0] = simd.add(sums[0], taken);
                        sums[1] = simd.fma(taken, centred, sums[1]);
                    }
                }
            }
            simd.store_part(of_sums[0], n, sums[0]);
            simd.store_part(of_sums[1], n, sums[1]);
        }
    }
}

impl<T: Elem> Job for MaxBackward<T> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        let [h, _, channels] = self.shape;
        for (oy, c) in (0..h.div_ceil(2)).flat_map(|oy| (0..channels).step_by(S::LANES).map(move |c| (oy, c)))
        {
            let n = (channels - c).min(S::LANES);
            // SAFETY: there are `n` channels from `c` on, and such a row of windows.
            unsafe {
                if n == S::LANES {
                    self.row::<S, false>(simd, oy, c, n)
                } else {
                    self.row::<S, true>(simd, oy, c, n)
                }
            }
        }
    }
}

/// The gradient of [`norm_relu_max_pool`] with respect to the batch norm's output: each pooled gradient
/// goes to the first maximum of its window, where that is positive.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn norm_relu_max_pool_backward(
    ctx: &Context,
    pooled: &Activations,
    normed: Normed<'_>,
    grad: &mut Activations,
) -> GradSums {
    let Normed { raw, affine, mean } = normed;
    check(raw, affine, pooled.shape);
    assert_eq!((grad.shape, mean.len()), (raw.shape, raw.shape[3]), "shapes of a gradient and its tensor");
    match (grad.data_mut(), raw.data(), pooled.data()) {
        (DataMut::F32(grad), Data::F32(x), Data::F32(pooled)) => {
            max_pool_backward(ctx, MaxPooled { x, affine, mean, pooled, shape: raw.shape }, grad)
        }
        (DataMut::Bf16(grad), Data::Bf16(x), Data::Bf16(pooled)) => {
            max_pool_backward(ctx, MaxPooled { x, affine, mean, pooled, shape: raw.shape }, grad)
        }
        _ => unreachable!("units check that precisions agree"),
    }
}

/// What a max pooling read, and the gradient of what it gave.
struct MaxPooled<'a, T> {
    x: &'a [T],
    affine: &'a Affine,
    mean: &'a [f32],
    pooled: &'a [T],
    shape: [usize; 4],
}

/// [`norm_relu_max_pool_backward`] of tensors whose shapes are checked.
fn max_pool_backward<T: Elem>(ctx: &Context, of: MaxPooled<'_, T>, grad: &mut [T]) -> GradSums {
    let [n, h, w, c] = of.shape;
    let mut partial = vec![0.0f32; n * 2 * c];
    let sums = Shared::new(&mut partial);
    let (load, raw, mean) = (Norm::new(of.x, of.affine), Plain::new(of.x), Plain::new(of.mean));
    let (pooled, grad) = (Shared::reader(of.pooled), Shared::new(grad));
    sweep(n, |image| {
        let sums = sums.offset(image * 2 * c).get();
        let (pooled, grad) = (pooled.get().cast_const(), grad.get());
        let job = MaxBackward { load, raw, mean, pooled, grad, image, shape: [h, w, c], sums };
        // SAFETY: shapes are checked; each task has its own image and sums.
        dispatch!(ctx.vectors(), simd => unsafe { simd.run(job) });
    });
    let mut sums = GradSums { grad: vec![0.0; c], grad_centred: vec![0.0; c] };
    for of_image in partial.chunks_exact((2 * c).max(1)) {
        for i in 0..c {
            sums.grad[i] += f64::from(of_image[i]);
            sums.grad_centred[i] += f64::from(of_image[c + i]);
        }
    }
    sums
}

/// The mean over one image, or its gradient.
struct Mean<T> {
    map: *mut T,
    vector: *mut f32,
    pixels: usize,
    channels: usize,
    backward: bool,
}

impl<T: Elem> Job for Mean<T> {
    type Out = ();
    #[inline(always)]
    unsafe fn call<S: Simd>(self, simd: S) {
        for c in (0..self.channels).step_by(S::LANES) {
            let n = (self.channels - c).min(S::LANES);
            // SAFETY: `map` is one image and `vector` one value per channel.
            unsafe {
                let share = simd.splat(1.0 / self.pixels as f32);
                let (map, vector) = (self.map.add(c), self.vector.add(c));
                if self.backward {
                    let v = simd.mul(simd.load_part(vector, n), share);
                    for p in 0..self.pixels {
                        T::store_part(simd, map.add(p * self.channels), n, v);
                    }
                } else {
                    let mut sum = simd.zero();
                    for p in 0..self.pixels {
                        sum = simd.add(sum, T::load_part(simd, map.add(p * self.channels), n));
                    }
                    simd.store_part(vector, n, simd.mul(sum, share));
                }
            }
        }
    }
}

fn means<T: Elem>(
    ctx: &Context,
    map: Shared<T>,
    vectors: Shared<f32>,
    [n, h, w, c]: [usize; 4],
    backward: bool,
) {
    sweep(n, |image| {
        // SAFETY: each task has its own image; the forward pass only reads the map.
        unsafe {
            let map = map.get().add(image * h * w * c);
            let vector = vectors.get().add(image * c);
            dispatch!(ctx.vectors(), simd => simd.run(Mean { map, vector, pixels: h * w, channels: c, backward }));
        }
    });
}

/// The mean over each image's pixels; `out` is f32.
pub(crate) fn avg_pool(ctx: &Context, x: &Activations, out: &mut Activations) {
    assert_eq!(out.words.len(), x.shape[0] * x.shape[3], "one value per image and channel");
    let vectors = Shared::new(&mut out.words);
    match x.data() {
        Data::F32(map) => means(ctx, Shared::reader(map), vectors, x.shape, false),
        Data::Bf16(map) => means(ctx, Shared::reader(map), vectors, x.shape, false),
    }
}

/// The gradient of [`avg_pool`]; `grad` is f32.
pub(crate) fn avg_pool_backward(ctx: &Context, grad: &Activations, out: &mut Activations) {
    assert_eq!(grad.words.len(), out.shape[0] * out.shape[3], "one value per image and channel");
    let (vectors, shape) = (Shared::reader(&grad.words), out.shape);
    match out.data_mut() {
        DataMut::F32(map) => means(ctx, Shared::new(map), vectors, shape, true),
        DataMut::Bf16(map) => means(ctx, Shared::new(map), vectors, shape, true),
    }
}
