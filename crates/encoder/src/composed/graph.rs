//! The units as graphs of dfdx operations, with a tape (training) or without one (inference).
//!
//! Activations are matrices, a row a pixel. Sums over rows and the spreading of a row over a matrix are products
//! with a vector of ones: dfdx's own reductions along rows read with a stride and add atomically on CUDA, which is
//! slow and gives other bits every time, while cuBLAS does neither.

use dfdx::prelude::{
    Axes2, Axis, BroadcastTo, Device, GatherTo, HasShape, MaxTo, NoneTape, PermuteTo, PutTape, ReshapeTo,
    SplitTape, SumTo, Tape, Tensor, TryAdd, TryDiv, TryMatMul, TryMul, TrySub,
};
use swav_kernels::{BN_EPSILON, ConvSpec};

use super::indices::{Indices, Window};
use super::{Matrix, Vector};
use crate::layers::Unit;

type Shape4 = [usize; 4];
/// `[output pixels, taps, channels]`.
type Patches<D, T> = Tensor<(usize, usize, usize), f32, D, T>;

/// Running statistics of one batch norm.
pub(super) struct Running<P> {
    pub(super) mean: P,
    pub(super) var: P,
}

/// What one batch norm saw.
pub(super) struct BatchStatistics<D: Device<f32>> {
    mean: Matrix<D>,
    /// Biased.
    var: Matrix<D>,
    count: usize,
}

impl<D: Device<f32>> BatchStatistics<D> {
    /// Values per channel.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Moves running statistics towards the batch's, with the unbiased variance.
    pub(super) fn update(self, running: &mut Running<Vector<D>>, momentum: f32) -> Result<(), D::Err> {
        let channels = self.mean.shape().1;
        let unbiased = self.count as f64 / (self.count as f64 - 1.0);
        let (keep, take) = (1.0 - f64::from(momentum), f64::from(momentum));
        running.mean.try_axpy(keep, &self.mean.try_reshape_like(&(channels,))?, take)?;
        running.var.try_axpy(keep, &self.var.try_reshape_like(&(channels,))?, take * unbiased)
    }
}

/// Builds one unit; parameters and statistics are used up in order.
pub(super) struct Graph<'a, D: Device<f32>> {
    indices: &'a Indices<D>,
    parameters: std::slice::Iter<'a, Vector<D>>,
    /// Given in inference.
    running: Option<std::slice::Iter<'a, Running<Vector<D>>>>,
    /// Collected in training.
    statistics: Vec<BatchStatistics<D>>,
}

impl<'a, D: Device<f32>> Graph<'a, D> {
    pub(super) fn training(indices: &'a Indices<D>, parameters: &'a [Vector<D>]) -> Self {
        Self { indices, parameters: parameters.iter(), running: None, statistics: Vec::new() }
    }

    pub(super) fn inference(
        indices: &'a Indices<D>,
        parameters: &'a [Vector<D>],
        running: &'a [Running<Vector<D>>],
    ) -> Self {
        Self { indices, parameters: parameters.iter(), running: Some(running.iter()), statistics: Vec::new() }
    }

    /// The statistics of the unit's batch norms, in order.
    pub(super) fn into_statistics(self) -> Vec<BatchStatistics<D>> {
        self.statistics
    }

    /// One unit.
    pub(super) fn unit<T: Tape<f32, D>>(
        &mut self,
        unit: &Unit,
        x: Matrix<D, T>,
        shape: Shape4,
    ) -> Result<(Matrix<D, T>, Shape4), D::Err> {
        match unit {
            Unit::Stem { unit, pool } => {
                let (y, shape) = self.conv_norm(x, shape, unit.conv())?;
                let y = y.try_relu()?;
                if *pool { self.max_pool(y, shape) } else { Ok((y, shape)) }
            }
            Unit::Block { n_convs, .. } => self.block(x, shape, &unit.convs(), *n_convs),
            Unit::Pool(_) => {
                let [n, h, w, c] = shape;
                let sum = x.try_reshape_like(&(n, h * w, c))?.try_sum::<(usize, usize), Axis<1>>()?;
                Ok((sum.try_mul(1.0 / (h * w) as f32)?, [n, 1, 1, c]))
            }
            Unit::Linear { .. } => {
                let (weight, bias) = (self.parameter(), self.parameter());
                let (n, c_out) = (shape[0], bias.shape().0);
                let y = x.try_matmul(transposed(&weight, c_out, shape[3])?)?;
                let y = y.try_add(self.spread::<T>(bias.retaped::<T>(), n)?)?;
                Ok((y, [n, 1, 1, c_out]))
            }
            Unit::NormRelu(_) => Ok((self.norm(x)?.try_relu()?, shape)),
        }
    }

    /// `relu(bn(conv(..relu(bn(conv(x))))) + shortcut(x))`.
    fn block<T: Tape<f32, D>>(
        &mut self,
        x: Matrix<D, T>,
        shape: Shape4,
        convs: &[ConvSpec],
        n_main: usize,
    ) -> Result<(Matrix<D, T>, Shape4), D::Err> {
        let (input, tape) = x.split_tape();
        let (mut y, mut y_shape) = (input.clone().put_tape(tape), shape);
        for (i, conv) in convs[..n_main].iter().enumerate() {
            (y, y_shape) = self.conv_norm(y, y_shape, conv)?;
            if i + 1 < n_main {
                y = y.try_relu()?;
            }
        }
        let shortcut = match convs.get(n_main) {
            Some(conv) => self.conv_norm(input.retaped::<T>(), shape, conv)?.0,
            None => input.retaped::<T>(),
        };
        Ok((y.try_add(shortcut)?.try_relu()?, y_shape))
    }

    fn conv_norm<T: Tape<f32, D>>(
        &mut self,
        x: Matrix<D, T>,
        shape: Shape4,
        conv: &ConvSpec,
    ) -> Result<(Matrix<D, T>, Shape4), D::Err> {
        let weight = self.parameter();
        let (y, shape) = self.conv(x, shape, conv, &weight)?;
        Ok((self.norm(y)?, shape))
    }

    /// A convolution as the product of patches `[pixels, taps·c_in]` with the weight (OHWI, so `[c_out, taps·c_in]`).
    fn conv<T: Tape<f32, D>>(
        &self,
        x: Matrix<D, T>,
        [n, h, w, c]: Shape4,
        conv: &ConvSpec,
        weight: &Vector<D>,
    ) -> Result<(Matrix<D, T>, Shape4), D::Err> {
        let &ConvSpec { c_out, kernel, stride, padding, .. } = conv;
        let window = Window { n_images: n, height: h, width: w, kernel, stride, padding };
        let (out_h, out_w) = window.output_sides();
        let patches = if kernel == 1 && stride == 1 && padding == 0 {
            x
        } else {
            let patches = self.patches(x, window)?;
            patches.try_reshape_like(&(n * out_h * out_w, kernel * kernel * c))?
        };
        let y = patches.try_matmul(transposed(weight, c_out, kernel * kernel * c)?)?;
        Ok((y, [n, out_h, out_w, c_out]))
    }

    /// 3x3 max-pooling of stride 2, padding 1, of values that are not negative: the zeros outside lose or tie, and
    /// at a tie of zeros the ReLU before has no gradient anyway. At a tie above zero dfdx gives every maximum the whole
    /// gradient, where PyTorch and the kernels give it to the first: a deviation that images with flat areas can meet.
    fn max_pool<T: Tape<f32, D>>(
        &self,
        x: Matrix<D, T>,
        [n, h, w, c]: Shape4,
    ) -> Result<(Matrix<D, T>, Shape4), D::Err> {
        let window = Window { n_images: n, height: h, width: w, kernel: 3, stride: 2, padding: 1 };
        let (out_h, out_w) = window.output_sides();
        let y = self.patches(x, window)?.try_max::<(usize, usize), Axis<1>>()?;
        Ok((y, [n, out_h, out_w, c]))
    }

    /// `[output pixels, taps, channels]`, zero outside the image.
    fn patches<T: Tape<f32, D>>(&self, x: Matrix<D, T>, window: Window) -> Result<Patches<D, T>, D::Err> {
        let rows = self.indices.patches(window)?;
        let &(n_rows, channels) = x.shape();
        if window.padding == 0 {
            return x.try_gather(rows);
        }
        let padding = self.indices.padding(n_rows)?;
        let more: Matrix<D, T> = x.try_gather(padding.rows)?;
        let factors = padding.factors.try_broadcast_like::<_, Axis<1>>(&(n_rows + 1, channels))?;
        more.try_mul(factors)?.try_gather(rows)
    }

    /// Batch norm of columns. In training with the statistics of these rows, through which the gradient goes.
    fn norm<T: Tape<f32, D>>(&mut self, x: Matrix<D, T>) -> Result<Matrix<D, T>, D::Err> {
        let (gamma, beta) = (self.parameter(), self.parameter());
        let &(n_rows, channels) = x.shape();
        let row = (1, channels);
        let (gamma, beta) = (gamma.try_reshape_like(&row)?, beta.retaped::<T>());
        let (centred, var) = if let Some(running) = &mut self.running {
            let running = running.next().expect("a running statistic for each norm of the unit");
            let mean = self.spread::<T>(running.mean.retaped::<T>(), n_rows)?;
            (x.try_sub(mean)?, running.var.clone().try_reshape_like(&row)?.retaped::<T>())
        } else {
            let average = self.indices.constant(1, n_rows, 1.0 / n_rows as f32)?;
            let (x, tape) = x.split_tape();
            let (mean, mean_tape) = average.retaped::<T>().try_matmul(x.clone())?.split_tape();
            let spread = self.spread_row(mean.clone().put_tape(mean_tape), n_rows)?;
            let (centred, tape) = x.put_tape(tape).try_sub(spread)?.split_tape();
            let (var, var_tape) =
                average.retaped::<T>().try_matmul(centred.retaped::<T>().try_square()?)?.split_tape();
            self.statistics.push(BatchStatistics { mean, var: var.clone(), count: n_rows });
            (centred.put_tape(tape), var.put_tape(var_tape))
        };
        let scale = gamma.retaped::<T>().try_div(var.try_add(BN_EPSILON)?.try_sqrt()?)?;
        centred.try_mul(self.spread_row(scale, n_rows)?)?.try_add(self.spread(beta, n_rows)?)
    }

    /// A vector as every row of a matrix.
    fn spread<T: Tape<f32, D>>(
        &self,
        vector: Tensor<(usize,), f32, D, T>,
        n_rows: usize,
    ) -> Result<Matrix<D, T>, D::Err> {
        let length = vector.shape().0;
        self.spread_row(vector.try_reshape_like(&(1, length))?, n_rows)
    }

    /// A matrix of one row as every row of a matrix.
    fn spread_row<T: Tape<f32, D>>(&self, row: Matrix<D, T>, n_rows: usize) -> Result<Matrix<D, T>, D::Err> {
        self.indices.constant(n_rows, 1, 1.0)?.retaped::<T>().try_matmul(row)
    }

    fn parameter(&mut self) -> Vector<D> {
        self.parameters.next().expect("as many parameters as the unit names").clone()
    }
}

/// A weight `[rows, columns]` as `[columns, rows]`; the same memory, and the same key of its gradient.
fn transposed<D: Device<f32>>(
    weight: &Vector<D>,
    rows: usize,
    columns: usize,
) -> Result<Matrix<D, NoneTape>, D::Err> {
    weight.clone().try_reshape_like(&(rows, columns))?.try_permute::<(usize, usize), Axes2<1, 0>>()
}
