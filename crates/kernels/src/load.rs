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
    /// The channels those of the feature map.
    unsafe fn coefficients<S: Simd, const PART: bool>(
        &self,
        simd: S,
        c: usize,
        n: usize,
    ) -> Self::Coefficients<S>;

    /// The vector at element `at`. If `PART`, only the first `n` lanes are read and the others are zero.
    ///
    /// # Safety
    /// The elements inside the feature map.
    unsafe fn apply<S: Simd, const PART: bool>(
        &self,
        simd: S,
        affine: Self::Coefficients<S>,
        at: usize,
        n: usize,
    ) -> S::V;

    /// The vector at element `at`, whose first channel is `c`. If `PART`, only the first `n` lanes are read and
    /// the others are zero.
    ///
    /// # Safety
    /// The elements inside the feature map.
    #[inline(always)]
    unsafe fn vec<S: Simd, const PART: bool>(&self, simd: S, at: usize, c: usize, n: usize) -> S::V {
        // SAFETY: the lanes lie in the feature map, and so their channels do.
        unsafe { self.apply::<S, PART>(simd, self.coefficients::<S, PART>(simd, c, n), at, n) }
    }

    /// Asks for the cache lines at an element, which may lie outside the feature map.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, at: usize) {
        let _ = (simd, at);
    }
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

// SAFETY: tasks only read through the pointers, of slices that outlive them.
unsafe impl<T> Send for Plain<T> {}
// SAFETY: tasks only read through the pointers, of slices that outlive them.
unsafe impl<T> Sync for Plain<T> {}
// SAFETY: tasks only read through the pointers, of slices that outlive them.
unsafe impl<T> Send for NormRelu<T> {}
// SAFETY: tasks only read through the pointers, of slices that outlive them.
unsafe impl<T> Sync for NormRelu<T> {}
// SAFETY: tasks only read through the pointers, of slices that outlive them.
unsafe impl<T> Send for NormGrad<T> {}
// SAFETY: tasks only read through the pointers, of slices that outlive them.
unsafe impl<T> Sync for NormGrad<T> {}

// SAFETY: tasks only read through the pointers, of slices that outlive them.
unsafe impl<T> Send for Norm<T> {}
// SAFETY: tasks only read through the pointers, of slices that outlive them.
unsafe impl<T> Sync for Norm<T> {}

impl Load for Zero {
    type Coefficients<S: Simd> = ();

    #[inline(always)]
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, _simd: S, _c: usize, _n: usize) {}

    #[inline(always)]
    unsafe fn apply<S: Simd, const PART: bool>(&self, simd: S, _affine: (), _at: usize, _n: usize) -> S::V {
        simd.zero()
    }
}

impl<T: Elem> Load for Norm<T> {
    type Coefficients<S: Simd> = [S::V; 2];

    #[inline(always)]
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, simd: S, c: usize, n: usize) -> [S::V; 2] {
        // SAFETY: the channels are those of the feature map, which the arrays are as long as.
        unsafe {
            [get::<S, f32, PART>(simd, self.scale.add(c), n), get::<S, f32, PART>(simd, self.shift.add(c), n)]
        }
    }

    #[inline(always)]
    unsafe fn apply<S: Simd, const PART: bool>(
        &self,
        simd: S,
        affine: [S::V; 2],
        at: usize,
        n: usize,
    ) -> S::V {
        // SAFETY: the lanes lie in the feature map.
        unsafe {
            let raw = get::<S, T, PART>(simd, self.raw.add(at), n);
            simd.fma(raw, affine[0], affine[1])
        }
    }
}

impl<T: Elem> Load for Plain<T> {
    const PLAIN: bool = true;

    type Coefficients<S: Simd> = ();

    #[inline(always)]
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, _simd: S, _c: usize, _n: usize) {}

    #[inline(always)]
    unsafe fn apply<S: Simd, const PART: bool>(&self, simd: S, _affine: (), at: usize, n: usize) -> S::V {
        // SAFETY: the lanes lie in the feature map.
        unsafe { get::<S, T, PART>(simd, self.0.add(at), n) }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, at: usize) {
        simd.prefetch(self.0.wrapping_add(at).cast());
    }
}

impl<T: Elem> Load for NormRelu<T> {
    type Coefficients<S: Simd> = [S::V; 2];

    #[inline(always)]
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, simd: S, c: usize, n: usize) -> [S::V; 2] {
        // SAFETY: the channels are those of the feature map, which the arrays are as long as.
        unsafe {
            [get::<S, f32, PART>(simd, self.scale.add(c), n), get::<S, f32, PART>(simd, self.shift.add(c), n)]
        }
    }

    #[inline(always)]
    unsafe fn apply<S: Simd, const PART: bool>(
        &self,
        simd: S,
        affine: [S::V; 2],
        at: usize,
        n: usize,
    ) -> S::V {
        // SAFETY: the lanes lie in the feature map.
        unsafe {
            let raw = get::<S, T, PART>(simd, self.raw.add(at), n);
            simd.relu(simd.fma(raw, affine[0], affine[1]))
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, at: usize) {
        simd.prefetch(self.raw.wrapping_add(at).cast());
    }
}

impl<T: Elem> Load for NormGrad<T> {
    type Coefficients<S: Simd> = [S::V; 3];

    #[inline(always)]
    unsafe fn coefficients<S: Simd, const PART: bool>(&self, simd: S, c: usize, n: usize) -> [S::V; 3] {
        // SAFETY: the channels are those of the feature map, which the arrays are as long as.
        unsafe {
            [
                get::<S, f32, PART>(simd, self.on_grad.add(c), n),
                get::<S, f32, PART>(simd, self.on_raw.add(c), n),
                get::<S, f32, PART>(simd, self.constant.add(c), n),
            ]
        }
    }

    #[inline(always)]
    unsafe fn apply<S: Simd, const PART: bool>(
        &self,
        simd: S,
        affine: [S::V; 3],
        at: usize,
        n: usize,
    ) -> S::V {
        let [on_grad, on_raw, constant] = affine;
        // SAFETY: the lanes lie in the feature map, and the gradient is as long.
        unsafe {
            let grad = get::<S, T, PART>(simd, self.grad.add(at), n);
            let raw = get::<S, T, PART>(simd, self.raw.add(at), n);
            simd.fma(grad, on_grad, simd.fma(raw, on_raw, constant))
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, simd: S, at: usize) {
        simd.prefetch(self.grad.wrapping_add(at).cast());
        simd.prefetch(self.raw.wrapping_add(at).cast());
    }
}

/// The first `n` lanes of a vector, of which there may be none; the others are zero. No closure: one that is not inlined
/// could not use the instruction set.
///
/// # Safety
/// The lanes must lie in the feature map.
#[inline(always)]
unsafe fn some_lanes<S: Simd, L: Load>(simd: S, load: &L, at: usize, c: usize, n: usize) -> S::V {
    // SAFETY: the lanes lie in the feature map.
    unsafe {
        match n {
            0 => simd.zero(),
            n if n == S::LANES => load.vec::<S, false>(simd, at, c, n),
            n => load.vec::<S, true>(simd, at, c, n),
        }
    }
}

/// What a map needs for a block of up to 16 channels: for its vectors, of which no instruction set has more than four.
pub(crate) type BlockCoefficients<S, L> = [<L as Load>::Coefficients<S>; 4];

/// What the map needs for the block from channel `c` on. If `PART`, there are only `valid` channels.
///
/// # Safety
/// The channels must be those of the feature map.
#[inline(always)]
pub(crate) unsafe fn block_coefficients<S: Simd, L: Load, const PART: bool>(
    simd: S,
    load: &L,
    c: usize,
    valid: usize,
) -> BlockCoefficients<S, L> {
    // SAFETY: vectors without valid channels are left out.
    unsafe {
        let mut affine = [load.coefficients::<S, PART>(simd, c, valid.min(S::LANES)); 4];
        for (i, affine) in affine.iter_mut().enumerate().take(BLOCK / S::LANES).skip(1) {
            let n = valid.saturating_sub(i * S::LANES).min(S::LANES);
            if n > 0 {
                *affine = load.coefficients::<S, PART>(simd, c + i * S::LANES, n);
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
/// The pixels' channels must lie in the feature map, and `dst` be valid for 16 elements per pixel.
#[inline(always)]
pub(crate) unsafe fn copy_pixels<S: Simd, L: Load, const PART: bool>(
    simd: S,
    load: &L,
    affine: &BlockCoefficients<S, L>,
    pixels: Pixels,
    valid: usize,
    dst: *mut f32,
) {
    let (mut at, mut dst) = (pixels.at, dst);
    for _ in 0..pixels.count {
        // SAFETY: valid channels of each pixel lie in the feature map, and `dst` has a block for each pixel.
        unsafe {
            load.prefetch(simd, at + pixels.ahead);
            for (i, &affine) in affine.iter().enumerate().take(BLOCK / S::LANES) {
                let l = i * S::LANES;
                let n = if PART { valid.saturating_sub(l).min(S::LANES) } else { S::LANES };
                let v = if n == 0 { simd.zero() } else { load.apply::<S, PART>(simd, affine, at + l, n) };
                simd.store(dst.add(l), v);
            }
        }
        (at, dst) = (at + pixels.step, dst.wrapping_add(BLOCK));
    }
}

/// Copies one block of up to 32 channels as 16 words of two bf16 each; missing channels become zero.
///
/// # Safety
/// The channels must lie in the feature map, and `dst` be valid for 16 words.
#[inline(always)]
pub(crate) unsafe fn copy_block_pairs<S: Simd, L: Load>(
    simd: S,
    load: &L,
    at: usize,
    c: usize,
    valid: usize,
    dst: *mut f32,
) {
    // SAFETY: valid channels lie in the feature map; the words have room for 32 bf16.
    unsafe {
        for l in (0..2 * BLOCK).step_by(S::LANES) {
            let v = some_lanes::<S, L>(simd, load, at + l, c + l, valid.saturating_sub(l).min(S::LANES));
            simd.store_bf16(dst.cast::<u16>().add(l), v);
        }
    }
}

/// Copies one block of up to 32 channels, cut in two: 16 words of two high parts each, and `low` words further on those of the
/// low parts; missing channels become zero.
///
/// # Safety
/// The channels must lie in the feature map, and `dst` be valid for 16 words at both places.
#[inline(always)]
pub(crate) unsafe fn copy_block_split<S: Simd, L: Load>(
    simd: S,
    load: &L,
    (at, c): (usize, usize),
    valid: usize,
    dst: *mut f32,
    low: usize,
) {
    // SAFETY: valid channels lie in the feature map; the words have room for 32 bf16 at both places.
    unsafe {
        let (high, low) = (dst.cast::<u16>(), dst.add(low).cast::<u16>());
        for l in (0..2 * BLOCK).step_by(S::LANES) {
            let v = some_lanes::<S, L>(simd, load, at + l, c + l, valid.saturating_sub(l).min(S::LANES));
            simd.store_split(high.add(l), low.add(l), v);
        }
    }
}

/// Copies one block of up to 16 channels of two pixels as words of two bf16 each, and what is left of the values `low` words further
/// on, if that is asked for; a missing pixel and missing channels become zero.
///
/// # Safety
/// The channels of both pixels must lie in the feature map, and `dst` be valid for 16 words, at both places.
#[inline(always)]
pub(crate) unsafe fn copy_two_pixels<S: Simd, L: Load>(
    simd: S,
    load: &L,
    (at, c): ((usize, Option<usize>), usize),
    valid: usize,
    dst: *mut f32,
    low: Option<usize>,
) {
    // SAFETY: valid channels of both pixels lie in the feature map; a block has 16 words.
    unsafe {
        for l in (0..BLOCK).step_by(S::LANES) {
            let n = valid.saturating_sub(l).min(S::LANES);
            let second = match at.1 {
                Some(at) => some_lanes::<S, L>(simd, load, at + l, c + l, n),
                None => simd.zero(),
            };
            let first = some_lanes::<S, L>(simd, load, at.0 + l, c + l, n);
            simd.store(dst.add(l), simd.pair(first, second));
            if let Some(low) = low {
                simd.store(dst.add(low + l), simd.pair(simd.remainder(first), simd.remainder(second)));
            }
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
