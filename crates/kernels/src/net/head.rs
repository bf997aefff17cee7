//! What comes after the blocks: pooling, linear layers, batch norm of vectors. Vectors are activations of
//! shape `[n, 1, 1, channels]`, always f32.

use std::sync::Arc;

use super::infer::{FoldedConv, check_input, check_ready};
use super::{
    Backward, Convolution, NormSpec, ParamKind, ParamSpec, Ready, RunningStats, Saved, Unfolded, Unit,
    check_backward, check_batch, check_forward, check_precision, check_running, pair_mut,
};
use crate::activations::Precision;
use crate::conv::{self, ConvSpec, Post, Source};
use crate::norm::{Affine, GradAffine};
use crate::pointwise::{self, Normed, Shortcut};
use crate::pool;
use crate::{Activations, Context, Error};

/// The mean over the pixels of each image: `[n, h, w, c]` to `[n, 1, 1, c]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GlobalAvgPool;

impl Unit for GlobalAvgPool {
    fn parameters(&self) -> Vec<ParamSpec> {
        Vec::new()
    }

    fn norms(&self) -> Vec<NormSpec> {
        Vec::new()
    }

    fn output_shape(&self, [n, h, w, c]: [usize; 4]) -> Result<[usize; 4], Error> {
        if h * w == 0 {
            return Err(Error::shape("pixels of an image to pool", "at least 1", h * w));
        }
        Ok([n, 1, 1, c])
    }

    fn forward_train(
        &self,
        ctx: &Context,
        input: Activations,
        params: &[&[f32]],
    ) -> Result<(Activations, Saved), Error> {
        let out = self.forward_infer(ctx, &input, params, &[])?;
        let output_shape = out.shape;
        // Backward needs the input's shape only: an empty buffer carries it.
        let shape = Activations { shape: input.shape, precision: input.precision, words: Vec::new() };
        ctx.recycle(input);
        Ok((
            out,
            Saved {
                input: Some(shape),
                raw: Vec::new(),
                stats: Vec::new(),
                output_shape,
                precision: Precision::F32,
            },
        ))
    }

    fn backward(&self, ctx: &Context, args: Backward<'_>) -> Result<Option<Activations>, Error> {
        check_backward(self, &args)?;
        let Backward { saved, grad_output, want_grad_input, .. } = args;
        let Saved { input: Some(input), .. } = saved else {
            return Err(Error::shape("what a pooling saved", "its input's shape", "nothing"));
        };
        let grad_input = want_grad_input.then(|| {
            let mut out = ctx.activations(input.shape, input.precision);
            pool::avg_pool_backward(ctx, &grad_output, &mut out);
            out
        });
        ctx.recycle(grad_output);
        Ok(grad_input)
    }

    fn forward_infer(
        &self,
        ctx: &Context,
        input: &Activations,
        params: &[&[f32]],
        _running: &[RunningStats<'_>],
    ) -> Result<Activations, Error> {
        let shape = check_forward(self, input, params)?;
        let mut out = ctx.activations(shape, Precision::F32);
        pool::avg_pool(ctx, input, &mut out);
        Ok(out)
    }

    fn ready(
        &self,
        _ctx: &Context,
        params: &[Arc<Vec<f32>>],
        running: &[RunningStats<'_>],
    ) -> Result<Box<dyn Ready>, Error> {
        Ok(Box::new(Unfolded::new(*self, params, running)?))
    }
}

/// A linear layer: `y = x·Wᵀ + b`, `W` of shape `[out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    conv: ConvSpec,
    bias: bool,
}

impl Linear {
    /// A layer from `c_in` to `c_out` values.
    pub fn new(c_in: usize, c_out: usize, bias: bool) -> Self {
        Self { conv: ConvSpec { c_in, c_out, kernel: 1, stride: 1, padding: 0 }, bias }
    }
}

impl Unit for Linear {
    fn parameters(&self) -> Vec<ParamSpec> {
        let ConvSpec { c_in, c_out, .. } = self.conv;
        let mut specs = vec![ParamSpec::new("weight".into(), vec![c_out, c_in], ParamKind::LinearWeight)];
        if self.bias {
            specs.push(ParamSpec::new("bias".into(), vec![c_out], ParamKind::LinearBias));
        }
        specs
    }

    fn norms(&self) -> Vec<NormSpec> {
        Vec::new()
    }

    fn convolutions(&self, _ctx: &Context, input: [usize; 4]) -> Vec<Convolution> {
        vec![Convolution { name: "weight".into(), spec: self.conv, input, stored: [Precision::F32; 2] }]
    }

    fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        self.conv.check(input, self.conv.weight_len())?;
        Ok(self.conv.output_shape(input))
    }

    fn forward_train(
        &self,
        ctx: &Context,
        input: Activations,
        params: &[&[f32]],
    ) -> Result<(Activations, Saved), Error> {
        let out = self.forward_infer(ctx, &input, params, &[])?;
        let output_shape = out.shape;
        Ok((
            out,
            Saved {
                input: Some(input),
                raw: Vec::new(),
                stats: Vec::new(),
                output_shape,
                precision: Precision::F32,
            },
        ))
    }

    fn backward(&self, ctx: &Context, args: Backward<'_>) -> Result<Option<Activations>, Error> {
        check_backward(self, &args)?;
        let Backward { saved, grad_output, params, grads, want_grad_input } = args;
        let Saved { input: Some(input), .. } = saved else {
            return Err(Error::shape("what a linear layer saved", "its input", "nothing"));
        };
        let dy = Source::Plain(&grad_output);
        conv::backward_weights(ctx, &self.conv, Source::Plain(&input), dy, &mut grads[0]);
        if self.bias {
            pointwise::add_column_sums(&grad_output, &mut grads[1]);
        }
        let grad_input = want_grad_input.then(|| {
            let mut out = ctx.activations(input.shape, input.precision);
            conv::backward_data(ctx, &self.conv, dy, params[0], &mut out, Post::Store);
            out
        });
        [input, grad_output].into_iter().for_each(|a| ctx.recycle(a));
        Ok(grad_input)
    }

    fn forward_infer(
        &self,
        ctx: &Context,
        input: &Activations,
        params: &[&[f32]],
        _running: &[RunningStats<'_>],
    ) -> Result<Activations, Error> {
        check_precision(input, Precision::F32)?;
        let shape = check_forward(self, input, params)?;
        let mut out = ctx.activations(shape, Precision::F32);
        conv::forward(ctx, &self.conv, Source::Plain(input), params[0], &mut out, false);
        if self.bias {
            for row in out.words.chunks_mut(self.conv.c_out) {
                row.iter_mut().zip(params[1]).for_each(|(y, b)| *y += b);
            }
        }
        Ok(out)
    }

    fn ready(
        &self,
        _ctx: &Context,
        params: &[Arc<Vec<f32>>],
        running: &[RunningStats<'_>],
    ) -> Result<Box<dyn Ready>, Error> {
        check_ready(self, params, running)?;
        let bias = if self.bias { params[1].to_vec() } else { vec![0.0; self.conv.c_out] };
        Ok(Box::new(ReadyLinear { unit: *self, conv: FoldedConv::with_bias(self.conv, &params[0], bias) }))
    }
}

/// A linear layer whose packed weights are kept.
#[derive(Debug)]
struct ReadyLinear {
    unit: Linear,
    conv: FoldedConv,
}

impl Ready for ReadyLinear {
    fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        self.unit.output_shape(input)
    }

    fn run(&self, ctx: &Context, input: Activations) -> Result<Activations, Error> {
        check_input(&self.unit, &input)?;
        let out = self.conv.run(ctx, &input, false);
        ctx.recycle(input);
        Ok(out)
    }

    fn words(&self) -> usize {
        self.conv.words()
    }
}

/// Batch norm of vectors, optionally followed by ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchNorm1d {
    channels: usize,
    relu: bool,
}

impl BatchNorm1d {
    /// A batch norm of `channels` values.
    pub fn new(channels: usize, relu: bool) -> Self {
        Self { channels, relu }
    }

    fn apply(&self, ctx: &Context, input: &Activations, affine: &Affine) -> Activations {
        let mut out = ctx.activations(input.shape, input.precision);
        if self.relu {
            pointwise::join(ctx, input, affine, Shortcut::None, &mut out);
        } else {
            pointwise::norm(ctx, input, affine, &mut out);
        }
        out
    }
}

impl Unit for BatchNorm1d {
    fn parameters(&self) -> Vec<ParamSpec> {
        [("weight", ParamKind::NormWeight), ("bias", ParamKind::NormBias)]
            .map(|(name, kind)| ParamSpec::new(name.into(), vec![self.channels], kind))
            .into()
    }

    fn norms(&self) -> Vec<NormSpec> {
        vec![NormSpec { name: String::new(), channels: self.channels }]
    }

    fn output_shape(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        if input[3] != self.channels {
            return Err(Error::shape("channels of a batch norm", self.channels, input[3]));
        }
        Ok(input)
    }

    fn forward_train(
        &self,
        ctx: &Context,
        input: Activations,
        params: &[&[f32]],
    ) -> Result<(Activations, Saved), Error> {
        check_precision(&input, Precision::F32)?;
        let output_shape = check_forward(self, &input, params)?;
        check_batch(ctx, output_shape)?;
        let stats = ctx.merge_stats(pointwise::batch_stats(ctx, &input))?;
        let out = self.apply(ctx, &input, &Affine::new(&stats.mean, &stats.var, params[0], params[1]));
        Ok((
            out,
            Saved {
                input: Some(input),
                raw: Vec::new(),
                stats: vec![stats],
                output_shape,
                precision: Precision::F32,
            },
        ))
    }

    fn backward(&self, ctx: &Context, args: Backward<'_>) -> Result<Option<Activations>, Error> {
        check_backward(self, &args)?;
        let Backward { saved, grad_output, params, grads, want_grad_input } = args;
        let Saved { input: Some(input), mut stats, .. } = saved else {
            return Err(Error::shape("what a batch norm saved", "its input", "nothing"));
        };
        let Some(stats) = stats.pop() else {
            return Err(Error::shape("what a batch norm saved", "its statistics", "nothing"));
        };
        let mut grad = grad_output;
        let sums = if self.relu {
            let affine = Affine::new(&stats.mean, &stats.var, params[0], params[1]);
            pointwise::relu_norm_backward(
                ctx,
                &mut grad,
                Normed { raw: &input, affine: &affine, mean: &stats.mean },
            )
        } else {
            pointwise::grad_sums(ctx, &mut grad, &input, &stats.mean)
        };
        let (d_gamma, d_beta) = pair_mut(grads, 0);
        let affine = GradAffine::new(ctx, &stats, &sums, params[0], d_gamma, d_beta)?;
        let grad_input = want_grad_input.then(|| {
            let mut out = ctx.activations(input.shape, input.precision);
            pointwise::norm_grad(ctx, &grad, &input, &affine, &mut out);
            out
        });
        [input, grad].into_iter().for_each(|a| ctx.recycle(a));
        Ok(grad_input)
    }

    fn forward_infer(
        &self,
        ctx: &Context,
        input: &Activations,
        params: &[&[f32]],
        running: &[RunningStats<'_>],
    ) -> Result<Activations, Error> {
        check_precision(input, Precision::F32)?;
        check_forward(self, input, params)?;
        check_running(self, running)?;
        let affine = Affine::new(running[0].mean, running[0].var, params[0], params[1]);
        Ok(self.apply(ctx, input, &affine))
    }

    fn ready(
        &self,
        _ctx: &Context,
        params: &[Arc<Vec<f32>>],
        running: &[RunningStats<'_>],
    ) -> Result<Box<dyn Ready>, Error> {
        Ok(Box::new(Unfolded::new(*self, params, running)?))
    }
}
