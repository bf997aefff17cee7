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
    /// Any function of two points.
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
    /// `sign · matrix`, with the extremes of `matrix`.
    Matrix {
        matrix: ArrayView2<'a, T>,
        sign: f64,
        extremes: (f64, f64),
    },
    Points(Box<Points<'a, T>>),
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

impl<T: Real> CostSource<'_, T> {
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

    /// Smallest and largest cost, where they are known without computing costs.
    pub(crate) fn known_range(&self) -> Option<(f64, f64)> {
        match self {
            Self::Matrix { sign, extremes: (low, high), .. } => {
                Some(if *sign > 0.0 { (*low, *high) } else { (-high, -low) })
            }
            Self::Points(_) => None,
        }
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
