//! The number types the solvers take.

use num_traits::Float;

use crate::simd::Lane;

/// `f32` or `f64`. Sealed: the kernels are written for these two.
pub trait Real:
    Float + Lane + Send + Sync + std::fmt::Debug + std::fmt::Display + std::iter::Sum + Default + 'static
{
    /// Nearest value of this type.
    fn of(value: f64) -> Self;

    /// The same value in double precision.
    fn wide(self) -> f64;

    /// Largest `max - min` of exponents that the scaling domain is trusted with: products of two such numbers
    /// and their sums stay normal.
    const SAFE_EXPONENT_RANGE: f64;

    /// Largest `max - min` of exponents that are computed in this type; beyond it their rounding would be seen in the
    /// marginals, so that they are computed in double precision.
    const OWN_EXPONENT_RANGE: f64;

    /// Largest growth, in exponents, of either side's scalings on a kernel some of whose numbers may have been below the
    /// type: what was taken for 0 is then below e^-20 of the product of its weights still.
    const GROWTH: f64;
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }

    const SAFE_EXPONENT_RANGE: f64 = 70.0;

    const OWN_EXPONENT_RANGE: f64 = 32.0;

    const GROWTH: f64 = 33.0;
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn wide(self) -> f64 {
        self
    }

    const SAFE_EXPONENT_RANGE: f64 = 600.0;

    const OWN_EXPONENT_RANGE: f64 = 600.0;

    const GROWTH: f64 = 340.0;
}
