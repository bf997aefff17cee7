//! Multinomial logistic regression: the objective over features in memory, and its minimum by L-BFGS.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use crate::EvalError;
use crate::lbfgs::{Stop, minimise};

/// Parts that a sum over images is divided into; it depends on nothing, so that sums have the same bits for any number of
/// threads.
const N_PARTS: usize = 32;
/// Images of one matrix product.
const BLOCK: usize = 512;
/// Images that the preconditioner is estimated from, at most.
const MAX_PRECONDITIONING_ROWS: usize = 8192;
/// Rows of the matrix of second moments that one thread makes at a time.
const BAND: usize = 128;
/// Columns above which the preconditioner is a diagonal: factorising a matrix would take longer than it saves.
const MAX_FACTORISED: usize = 4096;
/// Bound on the second derivative of the loss with respect to a logit (Böhning 1992).
const LOGIT_CURVATURE: f64 = 0.5;

/// Settings of a logistic regression.
///
/// It minimises the mean cross-entropy of the images plus `regulariser / 2` times the sum of the squared weights; biases are
/// free. scikit-learn's `C` is `1 / (regulariser · n)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogisticRegression {
    /// Weight of the squared weights, above 0.
    pub regulariser: f64,
    /// Iterations of L-BFGS, at most.
    pub max_iters: usize,
    /// Where the largest entry of the gradient is at most this, the minimum is reached.
    pub tolerance: f64,
}

impl Default for LogisticRegression {
    fn default() -> Self {
        Self { regulariser: 1e-3, max_iters: 500, tolerance: 1e-6 }
    }
}

/// A fitted logistic regression: logits are `x Wᵀ + b`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LogisticFit {
    /// The labels that were seen, rising; each is a row of the weights.
    pub classes: Vec<u32>,
    /// W, (classes, d).
    pub weights: Array2<f64>,
    /// b, one for each class.
    pub bias: Vec<f64>,
    /// Mean cross-entropy of the images that it was fitted to, in nats.
    pub loss: f64,
    /// What was minimised: the loss and the penalty.
    pub objective: f64,
    /// Iterations of L-BFGS.
    pub n_iters: usize,
    /// Whether the minimum was reached within the iterations.
    pub converged: bool,
}

impl LogisticRegression {
    /// Fits it to `features` (n, d) and their `labels` (n).
    ///
    /// Sums run in an order that depends on n alone: the result has the same bits for any number of threads. Memory beyond
    /// the features: a copy of them, and 20 times the weights.
    ///
    /// # Errors
    /// [`EvalError::Config`], [`EvalError::Empty`], [`EvalError::Length`], [`EvalError::NotFinite`], and
    /// [`EvalError::OneClass`] if all labels are equal.
    pub fn fit(&self, features: ArrayView2<'_, f32>, labels: &[u32]) -> Result<LogisticFit, EvalError> {
        let classes = check_labelled(features, labels, "features")?;
        let mean = column_means(features);
        let centred = Array2::from_shape_fn(features.dim(), |(i, j)| features[[i, j]] - mean[j] as f32);
        let targets = targets_of(labels, &classes);
        let problem = Problem::new(centred.view(), &targets, classes.len());
        let mut fit = problem.fit(self, None)?;
        // The penalty knows nothing of biases, so the minimum is the same; only the origin moves back.
        for (bias, weights) in fit.bias.iter_mut().zip(fit.weights.rows()) {
            *bias -= weights.iter().zip(&mean).map(|(w, m)| w * f64::from(*m as f32)).sum::<f64>();
        }
        fit.classes = classes;
        Ok(fit)
    }

    pub(crate) fn check(&self) -> Result<(), EvalError> {
        let above_zero = |key, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(EvalError::Config { key, expected: "a finite number above 0".into(), got: value.to_string() })
        };
        above_zero("regulariser", self.regulariser)?;
        above_zero("tolerance", self.tolerance)?;
        if self.max_iters == 0 {
            return Err(EvalError::Config {
                key: "max_iters",
                expected: "at least 1".into(),
                got: "0".into(),
            });
        }
        Ok(())
    }
}

/// Centred features with their classes, and what speeds up the search.
pub(crate) struct Problem<'a> {
    /// (n, d), columns of mean 0.
    features: ArrayView2<'a, f32>,
    /// The class of each image, counted from 0.
    targets: &'a [usize],
    n_classes: usize,
    second_moments: SecondMoments,
}

/// Means of products of columns: what the loss's curvature is made of.
enum SecondMoments {
    /// All of them, (d, d).
    Matrix(Array2<f32>),
    /// Of each column with itself.
    Diagonal(Vec<f64>),
}

impl<'a> Problem<'a> {
    pub(crate) fn new(features: ArrayView2<'a, f32>, targets: &'a [usize], n_classes: usize) -> Self {
        let second_moments = second_moments(features);
        Self { features, targets, n_classes, second_moments }
    }

    /// The minimum, from `start` or from zero. `classes` of the result are 0, 1, ...
    pub(crate) fn fit(
        &self,
        how: &LogisticRegression,
        start: Option<&LogisticFit>,
    ) -> Result<LogisticFit, EvalError> {
        how.check()?;
        let (k, d) = (self.n_classes, self.features.ncols());
        let x = match start {
            Some(fit) => fit.weights.iter().chain(&fit.bias).copied().collect(),
            None => vec![0.0; k * (d + 1)],
        };
        let inverse = Inverse::new(&self.second_moments, how.regulariser);
        let stop = Stop { tolerance: how.tolerance, max_iters: how.max_iters };
        let evaluate = |x: &[f64]| self.objective(x, how.regulariser);
        let minimum = minimise(x, evaluate, |v| inverse.apply(v, k, d), stop);
        let (weights, bias) = minimum.x.split_at(k * d);
        let penalty = 0.5 * how.regulariser * weights.iter().map(|w| w * w).sum::<f64>();
        Ok(LogisticFit {
            classes: (0..k as u32).collect(),
            weights: Array2::from_shape_vec((k, d), weights.to_vec()).expect("k rows of d weights"),
            bias: bias.to_vec(),
            loss: minimum.value - penalty,
            objective: minimum.value,
            n_iters: minimum.n_iters,
            converged: minimum.converged,
        })
    }

    /// The objective and its gradient at weights and biases, one after the other.
    fn objective(&self, x: &[f64], regulariser: f64) -> (f64, Vec<f64>) {
        let (k, d, n) = (self.n_classes, self.features.ncols(), self.features.nrows());
        let (weights, bias) = x.split_at(k * d);
        let w32 = Array2::from_shape_fn((k, d), |(i, j)| weights[i * d + j] as f32);
        let part = n.div_ceil(N_PARTS);
        let parts: Vec<Part> = (0..n.div_ceil(part))
            .into_par_iter()
            .map(|index| {
                let rows = index * part..n.min((index + 1) * part);
                let features = self.features.slice(s![rows.clone(), ..]);
                Part::of(features, &self.targets[rows], w32.view(), bias)
            })
            .collect();
        let mut gradient: Vec<f64> = weights.iter().map(|w| regulariser * w).collect();
        gradient.resize(k * (d + 1), 0.0);
        let mut loss = 0.0;
        for part in &parts {
            loss += part.loss;
            let of_weights = part.of_weights.iter().map(|&g| f64::from(g));
            for (sum, g) in gradient.iter_mut().zip(of_weights.chain(part.of_bias.iter().copied())) {
                *sum += g / n as f64;
            }
        }
        let penalty = 0.5 * regulariser * weights.iter().map(|w| w * w).sum::<f64>();
        (loss / n as f64 + penalty, gradient)
    }
}

/// Sums over some of the images.
struct Part {
    loss: f64,
    of_weights: Array2<f32>,
    of_bias: Vec<f64>,
}

impl Part {
    fn of(
        features: ArrayView2<'_, f32>,
        targets: &[usize],
        weights: ArrayView2<'_, f32>,
        bias: &[f64],
    ) -> Self {
        let (k, d) = weights.dim();
        let mut part = Self { loss: 0.0, of_weights: Array2::zeros((k, d)), of_bias: vec![0.0; k] };
        let mut tile = Array2::zeros((BLOCK.min(features.nrows()), k));
        for (features, targets) in features.axis_chunks_iter(Axis(0), BLOCK).zip(targets.chunks(BLOCK)) {
            let mut logits = tile.slice_mut(s![..features.nrows(), ..]);
            general_mat_mul(1.0, &features, &weights.t(), 0.0, &mut logits);
            part.loss += softmax_minus_truth(&mut logits, targets, bias, &mut part.of_bias);
            general_mat_mul(1.0, &logits.t(), &features, 1.0, &mut part.of_weights);
        }
        part
    }
}

/// Turns logits without their biases into the gradient of the cross-entropy with respect to them; gives the sum of the
/// latter and adds the gradient's columns up.
fn softmax_minus_truth(
    logits: &mut ArrayViewMut2<'_, f32>,
    targets: &[usize],
    bias: &[f64],
    of_bias: &mut [f64],
) -> f64 {
    let mut exponentials = vec![0.0f64; bias.len()];
    let mut loss = 0.0;
    for (mut row, &target) in logits.rows_mut().into_iter().zip(targets) {
        let logit = |class: usize, value: f32| f64::from(value) + bias[class];
        let most = row.iter().enumerate().fold(f64::NEG_INFINITY, |most, (c, &v)| most.max(logit(c, v)));
        let mut sum = 0.0;
        for (class, (exponential, &value)) in exponentials.iter_mut().zip(&row).enumerate() {
            *exponential = (logit(class, value) - most).exp();
            sum += *exponential;
        }
        loss += most + sum.ln() - logit(target, row[target]);
        for (class, (value, exponential)) in row.iter_mut().zip(&exponentials).enumerate() {
            let gradient = exponential / sum - f64::from(u8::from(class == target));
            *value = gradient as f32;
            of_bias[class] += gradient;
        }
    }
    loss
}

/// The inverse of a bound on the second derivative of the objective, the same for each class.
enum Inverse {
    /// Lower triangle of Cholesky's factor, row by row.
    Factor(Array2<f64>),
    Diagonal(Vec<f64>),
}

impl Inverse {
    fn new(moments: &SecondMoments, regulariser: f64) -> Self {
        match moments {
            SecondMoments::Diagonal(moments) => {
                Self::Diagonal(moments.iter().map(|m| 1.0 / (LOGIT_CURVATURE * m + regulariser)).collect())
            }
            SecondMoments::Matrix(moments) => {
                let mut bound = moments.mapv(|m| LOGIT_CURVATURE * f64::from(m));
                bound.diag_mut().iter_mut().for_each(|v| *v += regulariser);
                Self::Factor(cholesky(bound))
            }
        }
    }

    /// Multiplies `k` rows of `d` weights, and the `k` biases after them.
    fn apply(&self, v: &mut [f64], k: usize, d: usize) {
        let (weights, bias) = v.split_at_mut(k * d);
        bias.iter_mut().for_each(|b| *b /= LOGIT_CURVATURE);
        weights.par_chunks_mut(d.max(1)).for_each(|row| match self {
            Self::Diagonal(inverse) => row.iter_mut().zip(inverse).for_each(|(v, i)| *v *= i),
            Self::Factor(factor) => solve(factor, row),
        });
    }
}

/// Cholesky's factor of a symmetric matrix. Where rounding has made it indefinite, the pivot is the least that keeps it
/// positive: as a preconditioner it need not be exact.
fn cholesky(mut a: Array2<f64>) -> Array2<f64> {
    let d = a.nrows();
    let floor = 1e-9 * a.diag().iter().fold(f64::MIN_POSITIVE, |most, &v| most.max(v));
    let values = a.as_slice_mut().expect("a matrix of our own is contiguous");
    for i in 0..d {
        let (above, row) = values.split_at_mut(i * d);
        for j in 0..i {
            let other = &above[j * d..j * d + j + 1];
            row[j] = (row[j] - wide_dot(&row[..j], &other[..j])) / other[j];
        }
        row[i] = (row[i] - wide_dot(&row[..i], &row[..i])).max(floor).sqrt();
    }
    a
}

/// Solves L Lᵀ x = v in place.
fn solve(factor: &Array2<f64>, v: &mut [f64]) {
    let d = v.len();
    for i in 0..d {
        let row = factor.row(i);
        let row = row.as_slice().expect("rows of a matrix of our own are contiguous");
        v[i] = (v[i] - wide_dot(&row[..i], &v[..i])) / row[i];
    }
    for i in (0..d).rev() {
        let row = factor.row(i);
        let row = row.as_slice().expect("rows of a matrix of our own are contiguous");
        v[i] /= row[i];
        let solved = v[i];
        v[..i].iter_mut().zip(row).for_each(|(v, l)| *v -= l * solved);
    }
}

/// A dot product in eight sums, which the compiler can make vectors of.
fn wide_dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

fn second_moments(features: ArrayView2<'_, f32>) -> SecondMoments {
    let (n, d) = features.dim();
    let every = n.div_ceil(MAX_PRECONDITIONING_ROWS).max(1);
    let chosen = features.slice(s![..;every as isize, ..]);
    let share = 1.0 / chosen.nrows() as f32;
    if d > MAX_FACTORISED {
        let of_column = |column: ndarray::ArrayView1<'_, f32>| {
            column.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() * f64::from(share)
        };
        return SecondMoments::Diagonal(chosen.columns().into_iter().map(of_column).collect());
    }
    let chosen = chosen.as_standard_layout();
    let mut moments = Array2::zeros((d, d));
    // Bands of rows, so that threads share the work and each entry is still one product.
    let values = moments.as_slice_mut().expect("a matrix of our own is contiguous");
    values.par_chunks_mut(BAND * d).enumerate().for_each(|(band, values)| {
        let n_rows = values.len() / d;
        let columns = chosen.slice(s![.., band * BAND..band * BAND + n_rows]);
        let mut rows = ArrayViewMut2::from_shape((n_rows, d), values).expect("whole rows");
        general_mat_mul(share, &columns.t(), &chosen, 0.0, &mut rows);
    });
    SecondMoments::Matrix(moments)
}

/// Mean of each column.
pub(crate) fn column_means(features: ArrayView2<'_, f32>) -> Vec<f64> {
    let mut sums = vec![0.0f64; features.ncols()];
    for row in features.rows() {
        sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
    }
    sums.iter_mut().for_each(|sum| *sum /= features.nrows() as f64);
    sums
}

/// The class of each label as its place among `classes`.
pub(crate) fn targets_of(labels: &[u32], classes: &[u32]) -> Vec<usize> {
    labels
        .iter()
        .map(|label| classes.binary_search(label).expect("classes are those of the labels"))
        .collect()
}

/// Checks features with labels; the classes, rising.
pub(crate) fn check_labelled(
    features: ArrayView2<'_, f32>,
    labels: &[u32],
    what: &'static str,
) -> Result<Vec<u32>, EvalError> {
    crate::neighbours::check_values(features, what)?;
    if labels.len() != features.nrows() {
        return Err(EvalError::Length { what: "labels", expected: features.nrows(), got: labels.len() });
    }
    let mut classes = labels.to_vec();
    classes.sort_unstable();
    classes.dedup();
    match classes[..] {
        [label] => Err(EvalError::OneClass { label, n_images: labels.len() }),
        _ => Ok(classes),
    }
}
