//! One sweep over the costs: from the column potentials `g` to the row potentials `f` and on to what the columns
//! need for their own update.
//!
//! Both domains read every cost once a sweep. While a row is in cache its soft minimum gives `f_i`, and the row,
//! now with a known factor, is added to the column sums.
//!
//! - [`Domain::Kernel`] keeps `exp((α_i + β_j - C_ij) / ε)` in the problem's own type: no exponential in a sweep.
//!   With constant α, β it is the classical scaling domain; absorbing potentials into α, β stabilises it
//!   (Schmitzer 2019, section 3).
//! - [`Domain::Logarithmic`] takes one exponential per element, in double precision, shifted by the row's maximum;
//!   columns whose sums underflow are computed again on their own.

mod coupling;
mod kernel;
mod logarithmic;
mod repair;

use crate::chunks::{self, Strip};
use crate::collective::Collective;
use crate::cost::{CostRange, CostSource};
use crate::error::OtError;
use crate::problem::Constraint;
use crate::real::Real;
use crate::simd::{self, Isa};

use kernel::Kernel;
use logarithmic::Logarithmic;
use repair::Lost;

/// Where a sweep computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Domain {
    Kernel,
    Logarithmic,
}

/// One marginal with its constraint. The weight of point i is `weights[i] · scale`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side<'p> {
    pub(crate) weights: &'p [f64],
    pub(crate) scale: f64,
    pub(crate) constraint: Constraint,
}

impl Side<'_> {
    pub(crate) fn weight(&self, i: usize) -> f64 {
        self.weights[i] * self.scale
    }

    /// Sum of all weights.
    pub(crate) fn mass(&self) -> f64 {
        self.weights.iter().sum::<f64>() * self.scale
    }
}

/// A problem as the sweeps see it: rows are streamed (and may be sharded), columns are accumulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Core<'p, 'a, T> {
    pub(crate) cost: &'p CostSource<'a, T>,
    /// The rows here are the problem's targets.
    pub(crate) transposed: bool,
    pub(crate) rows: Side<'p>,
    pub(crate) columns: Side<'p>,
    pub(crate) isa: Isa,
}

/// What a sweep starts from: the column potentials, and the constants that it computes with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dual<'g> {
    pub(crate) epsilon: f64,
    /// Multiplier of a partial problem's mass, else 0.
    pub(crate) lambda: f64,
    /// One potential per column.
    pub(crate) g: &'g [f64],
}

/// Sums over rows that travel with the column sums.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowTotals {
    /// Mass of the plan after the row update.
    pub(crate) mass: f64,
    /// `Σ a_i exp(-f_i / penalty)` of relaxed rows.
    pub(crate) shift: f64,
    /// Rows whose sum the type could not hold.
    pub(crate) weak: f64,
    /// `Σ a_i f_i`.
    pub(crate) dual: f64,
}

const N_TOTALS: usize = 4;

/// What the last sweep found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Row potentials.
    pub(crate) f: Vec<f64>,
    /// Column soft minima: the potentials that would meet the column weights exactly.
    pub(crate) soft: Vec<f64>,
    /// Column marginals of the plan of the new `f` and the old `g`.
    pub(crate) marginal: Vec<f64>,
}

/// The memory of the sweeps, and what the last one found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Engine<T> {
    /// The kernel, or the costs where the source has no rows in memory.
    matrix: Vec<T>,
    holds_costs: bool,
    kernel: Kernel<T>,
    logarithmic: Logarithmic,
    lost: Lost,
    /// Per column: the part of an exponent that all rows share.
    offsets: Vec<f64>,
    /// A row of costs for each chunk.
    scratch: Vec<T>,
    row_totals: Vec<RowTotals>,
    /// Extremes of the costs in each chunk.
    ranges: Vec<simd::Range<T>>,
    /// Column sums, then the totals over rows.
    sums: Vec<f64>,
    /// The plan, scaled, where something asks for [`Engine::coupling`].
    plan: Vec<f64>,
    pub(crate) found: Found,
}

impl<T: Real> Engine<T> {
    /// Makes room for a problem.
    pub(crate) fn prepare(&mut self, core: &Core<T>) {
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        let n_chunks = chunks::count(n);
        self.found.f.clear();
        self.found.f.resize(n, 0.0);
        for column in [&mut self.found.soft, &mut self.found.marginal, &mut self.offsets] {
            column.resize(m, 0.0);
        }
        self.row_totals.resize(n_chunks, RowTotals::default());
        self.sums.resize(m + N_TOTALS, 0.0);
        self.scratch.resize(n_chunks * m, T::zero());
        self.holds_costs = false;
        self.kernel.forget();
        self.lost.prepare(m);
    }

    /// The range of this shard's costs; an error if a computed cost is none.
    pub(crate) fn cost_range(&mut self, core: &Core<T>) -> Result<CostRange, OtError> {
        if let Some(range) = core.cost.known_range() {
            return Ok(range);
        }
        let m = core.columns.weights.len();
        let (n, per) = (core.rows.weights.len(), chunks::rows_per_chunk(core.rows.weights.len()));
        let n_chunks = chunks::count(n);
        let empty = simd::Range { min: T::infinity(), max: T::neg_infinity(), finite: true };
        self.ranges.clear();
        self.ranges.resize(n_chunks, empty);
        let memory = (Strip::new(&mut self.scratch, m), Strip::new(&mut self.ranges, 1));
        let work = |chunk: usize, (scratch, slot): (Strip<T>, Strip<simd::Range<T>>)| {
            let scratch = scratch.take();
            slot.take()[0] = (chunk * per..n.min((chunk + 1) * per)).fold(empty, |range, i| {
                range.with(simd::range(core.isa, core.cost.row(core.isa, core.transposed, i, scratch)))
            });
        };
        chunks::for_each(chunks::parallel(n * m), n_chunks, memory, &work);
        let range = self.ranges.iter().fold(empty, |all, &range| all.with(range));
        if !range.finite {
            return core.cost.computed_range(core.isa, core.transposed);
        }
        Ok(CostRange { low: range.min.wide(), high: range.max.wide(), forbidden: false })
    }

    /// One sweep. Afterwards [`Engine::found`] belongs to `dual`.
    pub(crate) fn sweep(
        &mut self,
        domain: Domain,
        core: &Core<T>,
        dual: Dual<'_>,
        collective: &mut dyn Collective,
    ) -> Result<RowTotals, OtError> {
        let Dual { epsilon, lambda, g } = dual;
        let m = g.len();
        match domain {
            Domain::Kernel => self.sweep_kernel(core, dual),
            Domain::Logarithmic => self.sweep_logarithmic(core, dual),
        }
        let mut totals = RowTotals::default();
        for part in &self.row_totals {
            totals.mass += part.mass;
            totals.shift += part.shift;
            totals.weak += part.weak;
            totals.dual += part.dual;
        }
        if domain == Domain::Kernel {
            totals.weak += self.kernel.n_grown as f64;
        }
        self.sums[m..].copy_from_slice(&[totals.mass, totals.shift, totals.weak, totals.dual]);
        collective.sum(&mut self.sums).map_err(OtError::Collective)?;
        let [mass, shift, weak, dual] = std::array::from_fn(|k| self.sums[m + k]);
        let mut totals = RowTotals { mass, shift, weak, dual };
        self.lost.columns.clear();
        let found = &mut self.found;
        for j in 0..m {
            let (sum, weight) = (self.sums[j], core.columns.weight(j));
            match domain {
                Domain::Kernel => {
                    found.soft[j] = self.kernel.beta[j] - epsilon * sum.ln();
                    found.marginal[j] = if weight > 0.0 { self.kernel.weights[j].wide() * sum } else { 0.0 };
                    if !trusted::<T>(sum) && weight > 0.0 {
                        totals.weak += 1.0;
                    }
                }
                Domain::Logarithmic if weight > 0.0 => {
                    found.marginal[j] = sum;
                    found.soft[j] = g[j] - epsilon * (sum / weight).ln();
                    if !trusted::<f64>(sum / weight) {
                        self.lost.columns.push(j);
                    }
                }
                Domain::Logarithmic => {
                    found.marginal[j] = 0.0;
                    found.soft[j] = g[j];
                }
            }
        }
        if !self.lost.columns.is_empty() {
            self.repair(core, epsilon, lambda, collective)?;
            let found = &mut self.found;
            for &j in &self.lost.columns {
                found.marginal[j] = core.columns.weight(j) * ((g[j] - found.soft[j]) / epsilon).exp();
            }
        }
        Ok(totals)
    }
}

/// Whether a sum is far enough from the ends of its type's range to be accurate.
fn trusted<T: Real>(sum: f64) -> bool {
    let (low, high) = (T::min_positive_value().wide() * 1e8, T::max_value().wide() * 1e-8);
    sum > low && sum < high
}
