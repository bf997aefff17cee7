//! Single convolutions, for use without the fused units of [`net`](crate::net).
//!
//! ```
//! use swav_kernels::{Activations, Context, ConvSpec, Options, ops};
//!
//! let ctx = Context::new(Options::default())?;
//! let spec = ConvSpec { c_in: 1, c_out: 1, kernel: 3, stride: 1, padding: 1 };
//! let image = Activations::from_f32([1, 3, 3, 1], vec![1.0; 9])?;
//! let sums = ops::conv_forward(&ctx, &spec, &image, &[1.0; 9])?;
//! assert_eq!(sums.words, [4.0, 6.0, 4.0, 6.0, 9.0, 6.0, 4.0, 6.0, 4.0]);
//! # Ok::<(), swav_kernels::Error>(())
//! ```

use crate::conv::{self, Post, Source};
use crate::{Activations, Context, ConvSpec, Error};

/// The convolution of `x` (NHWC) with `weights` (OHWI); the output is stored in the context's precision.
///
/// # Errors
/// [`Error::Shape`] if the input's channels or the number of weights do not fit, or the kernel is larger than the
/// padded input.
pub fn conv_forward(
    ctx: &Context,
    spec: &ConvSpec,
    x: &Activations,
    weights: &[f32],
) -> Result<Activations, Error> {
    x.check("the input")?;
    spec.check(x.shape, weights.len())?;
    let mut out = ctx.activations(spec.output_shape(x.shape), ctx.precision());
    conv::forward(ctx, spec, Source::Plain(x), weights, &mut out, false);
    Ok(out)
}

/// The gradient with respect to the input, whose shape is given, for the output's gradient `dy`.
///
/// # Errors
/// [`Error::Shape`] if shapes or the number of weights do not fit.
pub fn conv_backward_data(
    ctx: &Context,
    spec: &ConvSpec,
    input: [usize; 4],
    dy: &Activations,
    weights: &[f32],
) -> Result<Activations, Error> {
    dy.check("the output's gradient")?;
    spec.check(input, weights.len())?;
    if dy.shape != spec.output_shape(input) {
        return Err(Error::shape("shape of the output's gradient", spec.output_shape(input), dy.shape));
    }
    let mut out = ctx.activations(input, ctx.precision());
    conv::backward_data(ctx, spec, Source::Plain(dy), weights, &mut out, Post::Store);
    Ok(out)
}

/// Adds the gradient with respect to the weights to `grad` (OHWI).
///
/// # Errors
/// [`Error::Shape`] if shapes or the length of `grad` do not fit.
pub fn conv_backward_weights(
    ctx: &Context,
    spec: &ConvSpec,
    x: &Activations,
    dy: &Activations,
    grad: &mut [f32],
) -> Result<(), Error> {
    x.check("the input")?;
    dy.check("the output's gradient")?;
    spec.check(x.shape, grad.len())?;
    if dy.shape != spec.output_shape(x.shape) {
        return Err(Error::shape("shape of the output's gradient", spec.output_shape(x.shape), dy.shape));
    }
    conv::backward_weights(ctx, spec, Source::Plain(x), Source::Plain(dy), grad);
    Ok(())
}
