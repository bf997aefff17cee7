//! Where costs come from: a matrix, scores, or two point clouds whose costs are computed when they are read.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};

use crate::chunks::{self, Strip};
use crate::error::OtError;
use crate::real::Real;
use crate::simd::{self, Isa};

/// A user's cost of moving a unit of mass from one point to another.
pub type PointFn<'a, T> = &'a (dyn Fn(ArrayView1<T>, ArrayView1<T>) -> T + Sync);

/// Cost of moving a unit of mass from point `x` to point `y`.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum PointCost<'a, T> {
    /// `|x - y|²`, summed coordinate by coordinate, so that equal points cost exactly 0.
    SquaredEuclidean,
    /// `|x - y|`.
    Euclidean,
    /// `1 - x·y / (|x| |y|)`; 1 where a point is the origin.
    Cosine,
    /// Any function of two points. +infinity forbids the pair.
    Custom(PointFn<'a, T>),
}

impl<T> std::fmt::Debug for PointCost<'_, T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::SquaredEuclidean => "SquaredEuclidean",
            Self::Euclidean => "Euclidean",
            Self::Cosine => "Cosine",
            Self::Custom(_) => "Custom",
        })
    }
}

/// Costs by row and column, computed or looked up.
#[derive(Clone, Debug)]
pub(crate) enum CostSource<'a, T> {
    /// `sign · matrix`, with the range of these costs.
    Matrix {
        matrix: ArrayView2<'a, T>,
        sign: f64,
        range: CostRange,
    },
    Points(Box<Points<'a, T>>),
}

/// What there is to know of all costs at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CostRange {
    /// The smallest cost of an allowed pair.
    pub(crate) low: f64,
    /// The largest cost of an allowed pair.
    pub(crate) high: f64,
    /// Some pair is forbidden: its cost is +infinity.
    pub(crate) forbidden: bool,
}

impl CostRange {
    /// Of no costs.
    pub(crate) const EMPTY: Self = Self { low: f64::INFINITY, high: f64::NEG_INFINITY, forbidden: false };

    /// The range with one more cost; none if that is no cost.
    fn and(self, cost: f64) -> Option<Self> {
        match cost {
            f64::INFINITY => Some(Self { forbidden: true, ..self }),
            _ if cost.is_finite() => {
                Some(Self { low: self.low.min(cost), high: self.high.max(cost), ..self })
            }
            _ => None,
        }
    }

    /// `high - low`.
    pub(crate) fn spread(&self) -> f64 {
        self.high - self.low
    }

    /// The largest absolute value.
    pub(crate) fn scale(&self) -> f64 {
        self.low.abs().max(self.high.abs())
    }

    /// The regularisation that double precision resolves at such costs, nearest to `epsilon`: with less, a potential's
    /// unit in the last place would be a sizeable part of it, and the plan is that of its limit.
    pub(crate) fn resolved(&self, epsilon: f64) -> f64 {
        const RESOLVED: f64 = 1.0 / (1u64 << 40) as f64;
        epsilon.max(self.scale() * RESOLVED).max(f64::MIN_POSITIVE)
    }
}

/// Two point clouds, also kept coordinate by coordinate, as a row of costs needs them.
#[derive(Clone, Debug)]
pub(crate) struct Points<'a, T> {
    pub(crate) x: Array2<T>,
    pub(crate) y: Array2<T>,
    x_by_coordinate: Array2<T>,
    y_by_coordinate: Array2<T>,
    x_inverse_norms: Array1<T>,
    y_inverse_norms: Array1<T>,
    pub(crate) cost: PointCost<'a, T>,
}

impl<'a, T: Real> Points<'a, T> {
    pub(crate) fn new(x: ArrayView2<T>, y: ArrayView2<T>, cost: PointCost<'a, T>) -> Result<Self, OtError> {
        if x.ncols() != y.ncols() {
            return Err(OtError::Shape {
                what: "target points",
                expected: vec![y.nrows(), x.ncols()],
                got: y.shape().to_vec(),
            });
        }
        check_finite("source points", x)?;
        check_finite("target points", y)?;
        let by_coordinate = |points: ArrayView2<T>| points.t().as_standard_layout().into_owned();
        Ok(Self {
            x: x.as_standard_layout().into_owned(),
            y: y.as_standard_layout().into_owned(),
            x_by_coordinate: by_coordinate(x),
            y_by_coordinate: by_coordinate(y),
            x_inverse_norms: inverse_norms(x),
            y_inverse_norms: inverse_norms(y),
            cost,
        })
    }

    /// Costs from one point to all points of the other cloud; with `transposed`, from a `y` to all `x`.
    fn fill(&self, isa: Isa, transposed: bool, i: usize, out: &mut [T]) {
        let (from, to, norms_from, norms_to) = if transposed {
            (self.y.row(i), &self.x_by_coordinate, &self.y_inverse_norms, &self.x_inverse_norms)
        } else {
            (self.x.row(i), &self.y_by_coordinate, &self.x_inverse_norms, &self.y_inverse_norms)
        };
        out.fill(T::zero());
        let coordinates = from.iter().zip(to.axis_iter(Axis(0)));
        match self.cost {
            PointCost::SquaredEuclidean | PointCost::Euclidean => {
                for (&x, row) in coordinates {
                    simd::add_squares(isa, row.to_slice().expect("rows of an owned array"), x, out);
                }
                if let PointCost::Euclidean = self.cost {
                    out.iter_mut().for_each(|c| *c = c.sqrt());
                }
            }
            PointCost::Cosine => {
                for (&x, row) in coordinates {
                    simd::axpy(isa, row.to_slice().expect("rows of an owned array"), x, out);
                }
                let norm = norms_from[i];
                for (c, &other) in out.iter_mut().zip(norms_to) {
                    *c = T::one() - *c * norm * other;
                }
            }
            PointCost::Custom(function) => {
                for (j, c) in out.iter_mut().enumerate() {
                    *c = if transposed {
                        function(self.x.row(j), self.y.row(i))
                    } else {
                        function(self.x.row(i), self.y.row(j))
                    };
                }
            }
        }
    }
}

impl<'a, T: Real> CostSource<'a, T> {
    /// `sign · matrix`; the number `forbidding` in the matrix, if any, forbids its pair.
    pub(crate) fn matrix(
        what: &'static str,
        matrix: ArrayView2<'a, T>,
        sign: f64,
        forbidding: Option<T>,
    ) -> Result<Self, OtError> {
        let range = match (check_finite(what, matrix), forbidding) {
            (Ok((low, high)), _) if sign > 0.0 => CostRange { low, high, forbidden: false },
            (Ok((low, high)), _) => CostRange { low: -high, high: -low, forbidden: false },
            (Err(error), None) => return Err(error),
            (Err(_), Some(forbidding)) => {
                let mut range = CostRange::EMPTY;
                for ((i, j), &value) in matrix.indexed_iter() {
                    let cost = if value == forbidding { f64::INFINITY } else { value.wide() * sign };
                    range = range
                        .and(cost)
                        .filter(|_| value == forbidding || value.is_finite())
                        .ok_or(OtError::NotFinite { what, index: vec![i, j], value: value.wide() })?;
                }
                range
            }
        };
        Ok(Self::Matrix { matrix, sign, range })
    }

    /// (sources, targets).
    pub(crate) fn dim(&self) -> (usize, usize) {
        match self {
            Self::Matrix { matrix, .. } => matrix.dim(),
            Self::Points(points) => (points.x.nrows(), points.y.nrows()),
        }
    }

    /// What a number that [`row`](Self::row) gives is multiplied with to be a cost.
    pub(crate) fn sign(&self) -> f64 {
        match self {
            Self::Matrix { sign, .. } => *sign,
            Self::Points(_) => 1.0,
        }
    }

    /// Whether rows (columns with `transposed`) lie in memory as slices.
    pub(crate) fn in_memory(&self, transposed: bool) -> bool {
        match self {
            Self::Matrix { matrix, .. } => {
                let view = if transposed { matrix.t() } else { matrix.view() };
                view.ncols() <= 1 || view.strides()[1] == 1
            }
            Self::Points(_) => false,
        }
    }

    /// The range, where it is known without computing costs.
    pub(crate) fn known_range(&self) -> Option<CostRange> {
        match self {
            Self::Matrix { range, .. } => Some(*range),
            Self::Points(_) => None,
        }
    }

    /// The range of computed costs some of which are not finite: a function's +infinity forbids, all else is refused.
    pub(crate) fn computed_range(&self, isa: Isa, transposed: bool) -> Result<CostRange, OtError> {
        let (n, m) = self.dim();
        let (n, m) = if transposed { (m, n) } else { (n, m) };
        let may_forbid = match self {
            Self::Points(points) => matches!(points.cost, PointCost::Custom(_)),
            Self::Matrix { .. } => false,
        };
        let (mut range, mut buffer) = (CostRange::EMPTY, vec![T::zero(); m]);
        for i in 0..n {
            for (j, cost) in self.row(isa, transposed, i, &mut buffer).iter().enumerate() {
                range =
                    range.and(cost.wide()).filter(|_| may_forbid || cost.is_finite()).ok_or_else(|| {
                        let index = if transposed { vec![j, i] } else { vec![i, j] };
                        OtError::NotFinite { what: "cost of points", index, value: cost.wide() }
                    })?;
            }
        }
        Ok(range)
    }

    /// Whether it is a matrix, so that a second one of its size is acceptable.
    pub(crate) fn is_matrix(&self) -> bool {
        matches!(self, Self::Matrix { .. })
    }

    /// Row `i` (column with `transposed`): the slice in memory, or `buffer` filled.
    pub(crate) fn row<'b>(&'b self, isa: Isa, transposed: bool, i: usize, buffer: &'b mut [T]) -> &'b [T] {
        match self {
            Self::Matrix { matrix, .. } => {
                let row = matrix.index_axis(Axis(usize::from(transposed)), i);
                match row.to_slice() {
                    Some(slice) => slice,
                    None => {
                        buffer.iter_mut().zip(row).for_each(|(out, &c)| *out = c);
                        buffer
                    }
                }
            }
            Self::Points(points) => {
                points.fill(isa, transposed, i, buffer);
                buffer
            }
        }
    }
}

/// Smallest and largest number (infinite for an empty array); fails on the first that is not finite.
pub(crate) fn check_finite<T: Real>(what: &'static str, array: ArrayView2<T>) -> Result<(f64, f64), OtError> {
    let isa = Isa::detect();
    let mut all = simd::Range { min: T::infinity(), max: T::neg_infinity(), finite: true };
    let rows = if array.is_standard_layout() { array } else { array.reversed_axes() };
    let (n, per) = (rows.nrows(), chunks::rows_per_chunk(rows.nrows()));
    let (mut ranges, n_chunks) = ([all; chunks::MAX_CHUNKS], chunks::count(n));
    let parallel = chunks::parallel(rows.len());
    chunks::on_pool(parallel, || {
        let slots = Strip::new(&mut ranges, 1);
        chunks::for_each(parallel, n_chunks, slots, &|chunk, slot: Strip<simd::Range<T>>| {
            let here = rows.slice(s![chunk * per..n.min((chunk + 1) * per), ..]);
            let range = here.rows().into_iter().fold(all, |range, row| match row.to_slice() {
                Some(slice) => range.with(simd::range(isa, slice)),
                None => row.iter().fold(range, |range, &x| {
                    range.with(simd::Range { min: x, max: x, finite: x.is_finite() })
                }),
            });
            slot.take()[0] = range;
        });
    });
    for range in ranges {
        all = all.with(range);
    }
    if all.finite {
        return Ok((all.min.wide(), all.max.wide()));
    }
    match array.indexed_iter().find(|(_, value)| !value.is_finite()) {
        None => Ok((all.min.wide(), all.max.wide())),
        Some(((i, j), value)) => Err(OtError::NotFinite { what, index: vec![i, j], value: value.wide() }),
    }
}

fn inverse_norms<T: Real>(points: ArrayView2<T>) -> Array1<T> {
    points
        .rows()
        .into_iter()
        .map(|row| {
            let norm = row.iter().map(|x| x.wide() * x.wide()).sum::<f64>().sqrt();
            if norm > 0.0 { T::of(1.0 / norm) } else { T::zero() }
        })
        .collect()
}
