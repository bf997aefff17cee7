//! How kernels read feature maps: plain, or through the affine maps of batch norm.

use crate::activations::Data;
use crate::conv::Source;
use crate::norm::{Affine, GradAffine};
use crate::simd::{BLOCK, Elem, Simd};

/// Reads vectors of consecutive channels of a pixel.
pub(crate) trait Load: Copy + Send + Sync {
    /// Whether values do not depend on the channel, so that a vector may span pixels.
    const PLAIN: bool = false;

    /// What the map needs for one vector of channels.
    type Coefficients<S: Simd>: Copy;

    /// What the map needs for the vector of channels from `c` on. If `PART`, there are only `n`.
    ///
    /// # Safety
    /// The instruction set must be available and the channels those of the feature map.
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, c: usize, n: usize) -> Self::Coefficients<S>;

    /// The vector at element `at`. If `PART`, only the first `n` lanes are read and the others are zero.
    ///
    /// # Safety
    /// The instruction set must be available and the elements inside the feature map.
    unsafe fn apply<S: Simd, const PART: bool>(
        &self,
        affine: Self::Coefficients<S>,
        at: usize,
        n: usize,
    ) -> S::V;

    /// The vector at element `at`, whose first channel is `c`. If `PART`, only the first `n` lanes are read and
    /// the others are zero.
    ///
    /// # Safety
    /// The instruction set must be available and the elements inside the feature map.
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(&self, at: usize, c: usize, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { self.apply::<S, PART>(self.coefficients::<S, PART>(c, n), at, n) }
    }

    /// Asks for the cache lines at an element, which may lie outside the feature map.
    ///
    /// # Safety
    /// The instruction set must be available.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, at: usize) {
        let _ = at;
    }
}

#[inline(always)]
unsafe fn get<S: Simd, T: Elem, const PART: bool>(p: *const T, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if PART { T::load_part::<S>(p, n) } else { T::load::<S>(p) } }
}

/// The values as they are.
#[derive(Clone, Copy)]
pub(crate) struct Plain<T>(*const T);

/// `max(raw·scale + shift, 0)`
#[derive(Clone, Copy)]
pub(crate) struct NormRelu<T> {
    raw: *const T,
    scale: *const f32,
    shift: *const f32,
}

/// `raw·scale + shift`
#[derive(Clone, Copy)]
pub(crate) struct Norm<T> {
    raw: *const T,
    scale: *const f32,
    shift: *const f32,
}

impl<T> Norm<T> {
    /// Of a tensor and its batch norm, both of which must outlive the reader's use.
    pub fn new(raw: &[T], affine: &Affine) -> Self {
        Self { raw: raw.as_ptr(), scale: affine.scale.as_ptr(), shift: affine.shift.as_ptr() }
    }
}

impl<T> NormGrad<T> {
    /// Of a gradient and its tensor, which must outlive the reader's use.
    pub fn new(grad: &[T], raw: &[T], affine: &GradAffine) -> Self {
        assert_eq!(grad.len(), raw.len(), "a gradient has its tensor's shape");
        Self {
            grad: grad.as_ptr(),
            raw: raw.as_ptr(),
            on_grad: affine.on_grad.as_ptr(),
            on_raw: affine.on_raw.as_ptr(),
            constant: affine.constant.as_ptr(),
        }
    }
}

impl<T> Plain<T> {
    /// Of a tensor, which must outlive the reader's use.
    pub fn new(values: &[T]) -> Self {
        Self(values.as_ptr())
    }
}

/// 0 everywhere.
#[derive(Clone, Copy)]
pub(crate) struct Zero;

/// `grad·on_grad + raw·on_raw + constant`
#[derive(Clone, Copy)]
pub(crate) struct NormGrad<T> {
    grad: *const T,
    raw: *const T,
    on_grad: *const f32,
    on_raw: *const f32,
    constant: *const f32,
}

// SAFETY: these are read-only views of slices that outlive the tasks which read through them.
unsafe impl<T> Send for Plain<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Plain<T> {}
// SAFETY: as above.
unsafe impl<T> Send for NormRelu<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for NormRelu<T> {}
// SAFETY: as above.
unsafe impl<T> Send for NormGrad<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for NormGrad<T> {}

// SAFETY: as above.
unsafe impl<T> Send for Norm<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Norm<T> {}

impl Load for Zero {
    type Coefficients<S: Simd> = ();

    #[inline(always)]
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, _c: usize, _n: usize) {}

    #[inline(always)]
    unsafe fn apply<S: Simd, const PART: bool>(&self, _affine: (), _at: usize, _n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::zero() }
    }
}

impl<T: Elem> Load for Norm<T> {
    type Coefficients<S: Simd> = [S::V; 2];

    #[inline(always)]
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, c: usize, n: usize) -> [S::V; 2] {
        // SAFETY: the caller's promise; the channel arrays are as long as a pixel.
        unsafe { [get::<S, f32, PART>(self.scale.add(c), n), get::<S, f32, PART>(self.shift.add(c), n)] }
    }

    #[inline(always)]
    unsafe fn apply<S: Simd, const PART: bool>(&self, affine: [S::V; 2], at: usize, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            let raw = get::<S, T, PART>(self.raw.add(at), n);
            S::fma(raw, affine[0], affine[1])
        }
    }
}

impl<T: Elem> Load for Plain<T> {
    const PLAIN: bool = true;

    type Coefficients<S: Simd> = ();

    #[inline(always)]
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, _c: usize, _n: usize) {}

    #[inline(always)]
    unsafe fn apply<S: Simd, const PART: bool>(&self, _affine: (), at: usize, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { get::<S, T, PART>(self.0.add(at), n) }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, at: usize) {
        // SAFETY: the caller's promise; prefetching is valid for any address.
        unsafe {
            S::prefetch(self.0.wrapping_add(at).cast());
        }
    }
}

impl<T: Elem> Load for NormRelu<T> {
    type Coefficients<S: Simd> = [S::V; 2];

    #[inline(always)]
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, c: usize, n: usize) -> [S::V; 2] {
        // SAFETY: the caller's promise; the channel arrays are as long as a pixel.
        unsafe { [get::<S, f32, PART>(self.scale.add(c), n), get::<S, f32, PART>(self.shift.add(c), n)] }
    }

    #[inline(always)]
    unsafe fn apply<S: Simd, const PART: bool>(&self, affine: [S::V; 2], at: usize, n: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            let raw = get::<S, T, PART>(self.raw.add(at), n);
            S::relu(S::fma(raw, affine[0], affine[1]))
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, at: usize) {
        // SAFETY: the caller's promise; prefetching is valid for any address.
        unsafe {
            S::prefetch(self.raw.wrapping_add(at).cast());
        }
    }
}

impl<T: Elem> Load for NormGrad<T> {
    type Coefficients<S: Simd> = [S::V; 3];

    #[inline(always)]
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, c: usize, n: usize) -> [S::V; 3] {
        // SAFETY: the caller's promise; the channel arrays are as long as a pixel.
        unsafe {
            [
                get::<S, f32, PART>(self.on_grad.add(c), n),
                get::<S, f32, PART>(self.on_raw.add(c), n),
                get::<S, f32, PART>(self.constant.add(c), n),
            ]
        }
    }

    #[inline(always)]
    unsafe fn apply<S: Simd, const PART: bool>(&self, affine: [S::V; 3], at: usize, n: usize) -> S::V {
        let [on_grad, on_raw, constant] = affine;
        // SAFETY: the caller's promise.
        unsafe {
            let grad = get::<S, T, PART>(self.grad.add(at), n);
            let raw = get::<S, T, PART>(self.raw.add(at), n);
            S::fma(grad, on_grad, S::fma(raw, on_raw, constant))
        }
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, at: usize) {
        // SAFETY: the caller's promise; prefetching is valid for any address.
        unsafe {
            S::prefetch(self.grad.wrapping_add(at).cast());
            S::prefetch(self.raw.wrapping_add(at).cast());
        }
    }
}

/// The first `n` lanes of a vector, of which there may be none; the others are zero. No closure: one that is not inlined
/// could not use the instruction set.
///
/// # Safety
/// As for [`Load::vec`].
#[inline(always)]
unsafe fn some_lanes<S: Simd, L: Load>(load: &L, at: usize, c: usize, n: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        match n {
            0 => S::zero(),
            n if n == S::LANES => load.vec::<S, false>(at, c, n),
            n => load.vec::<S, true>(at, c, n),
        }
    }
}

/// What a map needs for a block of up to 16 channels: for its vectors, of which no instruction set has more than four.
pub(crate) type BlockCoefficients<S, L> = [<L as Load>::Coefficients<S>; 4];

/// What the map needs for the block from channel `c` on. If `PART`, there are only `valid` channels.
///
/// # Safety
/// As for [`Load::coefficients`].
#[inline(always)]
pub(crate) unsafe fn block_coefficients<S: Simd, L: Load, const PART: bool>(
    load: &L,
    c: usize,
    valid: usize,
) -> BlockCoefficients<S, L> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut affine = [load.coefficients::<S, PART>(c, valid.min(S::LANES)); 4];
        for (i, affine) in affine.iter_mut().enumerate().take(BLOCK / S::LANES).skip(1) {
            let n = valid.saturating_sub(i * S::LANES).min(S::LANES);
            if n > 0 {
                *affine = load.coefficients::<S, PART>(c + i * S::LANES, n);
            }
        }
        affine
    }
}

/// Pixels at equal distances: their blocks begin at elements `at`, `at + step`, and so on.
#[derive(Clone, Copy)]
pub(crate) struct Pixels {
    pub at: usize,
    pub step: usize,
    pub count: usize,
    /// How many elements further on to ask for what comes next.
    pub ahead: usize,
}

/// Copies a block of channels of some pixels to scratch memory, one pixel after the other. If `PART`, there are only `valid`
/// channels, and the others become zero.
///
/// # Safety
/// As for [`Load::apply`]; `dst` must be valid for 16 elements a pixel.
#[inline(always)]
pub(crate) unsafe fn copy_pixels<S: Simd, L: Load, const PART: bool>(
    load: &L,
    affine: &BlockCoefficients<S, L>,
    pixels: Pixels,
    valid: usize,
    dst: *mut f32,
) {
    let (mut at, mut dst) = (pixels.at, dst);
    for _ in 0..pixels.count {
        // SAFETY: the caller's promise.
        unsafe {
            load.prefetch::<S>(at + pixels.ahead);
            for (i, &affine) in affine.iter().enumerate().take(BLOCK / S::LANES) {
                let l = i * S::LANES;
                let n = if PART { valid.saturating_sub(l).min(S::LANES) } else { S::LANES };
                let v = if n == 0 { S::zero() } else { load.apply::<S, PART>(affine, at + l, n) };
                S::store(dst.add(l), v);
            }
        }
        (at, dst) = (at + pixels.step, dst.wrapping_add(BLOCK));
    }
}

/// Copies one block of up to 32 channels as 16 words of two bf16 each; missing channels become zero.
///
/// # Safety
/// As for [`copy_pixels`] with one pixel.
#[inline(always)]
pub(crate) unsafe fn copy_block_pairs<S: Simd, L: Load>(
    load: &L,
    at: usize,
    c: usize,
    valid: usize,
    dst: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for l in (0..2 * BLOCK).step_by(S::LANES) {
            let v = some_lanes::<S, L>(load, at + l, c + l, valid.saturating_sub(l).min(S::LANES));
            S::store_bf16(dst.cast::<u16>().add(l), v);
        }
    }
}

/// Copies one block of up to 16 channels of two pixels as words of two bf16 each; a missing pixel and missing
/// channels become zero.
///
/// # Safety
/// As for [`copy_pixels`] with one pixel.
#[inline(always)]
pub(crate) unsafe fn copy_two_pixels<S: Simd, L: Load>(
    load: &L,
    at: (usize, Option<usize>),
    c: usize,
    valid: usize,
    dst: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for l in (0..BLOCK).step_by(S::LANES) {
            let n = valid.saturating_sub(l).min(S::LANES);
            let high = match at.1 {
                Some(at) => some_lanes::<S, L>(load, at + l, c + l, n),
                None => S::zero(),
            };
            S::store(dst.add(l), S::pair(some_lanes::<S, L>(load, at.0 + l, c + l, n), high));
        }
    }
}

/// Code that is generic over how it reads.
pub(crate) trait LoadVisitor {
    /// Called with the reader.
    fn visit<L: Load>(self, load: L);
}

impl Source<'_> {
    /// Calls the visitor with a reader of this source.
    pub(crate) fn visit(&self, visitor: impl LoadVisitor) {
        fn norm_relu<T: Elem>(raw: &[T], affine: &crate::norm::Affine) -> NormRelu<T> {
            NormRelu { raw: raw.as_ptr(), scale: affine.scale.as_ptr(), shift: affine.shift.as_ptr() }
        }
        match self {
            Source::Plain(x) => match x.data() {
                Data::F32(x) => visitor.visit(Plain(x.as_ptr())),
                Data::Bf16(x) => visitor.visit(Plain(x.as_ptr())),
            },
            Source::NormRelu { raw, affine } => match raw.data() {
                Data::F32(raw) => visitor.visit(norm_relu(raw, affine)),
                Data::Bf16(raw) => visitor.visit(norm_relu(raw, affine)),
            },
            Source::NormGrad { grad, raw, affine } => match (grad.data(), raw.data()) {
                (Data::F32(grad), Data::F32(raw)) => visitor.visit(NormGrad::new(grad, raw, affine)),
                (Data::Bf16(grad), Data::Bf16(raw)) => visitor.visit(NormGrad::new(grad, raw, affine)),
                _ => unreachable!("units convert gradients to the precision of what they saved"),
            },
        }
    }
}
