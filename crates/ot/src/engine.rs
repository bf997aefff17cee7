//! One sweep over the costs: from the column potentials `g` to the row potentials `f` and on to what the columns
//! need for their own update.
//!
//! Both domains read every cost once a sweep. While a row is in cache its soft minimum gives `f_i`, and the row,
//! now with a known factor, is added to the column sums.
//!
//! - [`Domain::Kernel`] keeps `exp((α_i + β_j - C_ij) / ε)` in the problem's own type: no exponential in a sweep.
//!   With constant α, β it is the classical scaling domain; absorbing potentials into α, β stabilises it
//!   (Schmitzer 2019, section 3).
//! - [`Domain::Logarithmic`] takes one exponential an element, in double precision, shifted by the row's maximum;
//!   columns whose sums underflow are computed again on their own.

use crate::chunks::{self, Strip};
use crate::collective::Collective;
use crate::cost::CostSource;
use crate::error::OtError;
use crate::pages;
use crate::problem::Constraint;
use crate::real::Real;
use crate::simd::{self, Isa, ROWS};

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

/// Sums over rows that travel with the column sums.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowTotals {
    /// Mass of the plan after the row update.
    pub(crate) mass: f64,
    /// `Σ a_i exp(-f_i / penalty)` of relaxed rows.
    pub(crate) shift: f64,
    /// Rows whose sum the type could not hold.
    pub(crate) weak: f64,
}

const N_TOTALS: usize = 3;

/// The memory of the sweeps, and what the last one found.
#[derive(Clone, Debug)]
pub(crate) struct Engine<T> {
    /// The kernel, or the costs where the source has no rows in memory.
    matrix: Vec<T>,
    holds_costs: bool,
    /// Shift and scale of a kernel that the next kernel sweep is to build.
    announced: Option<(T, T)>,
    alpha: Vec<f64>,
    beta: Vec<f64>,
    kernel_weights: Vec<T>,
    offsets: Vec<f64>,
    partial: Vec<T>,
    partial_wide: Vec<f64>,
    scratch: Vec<T>,
    scratch_wide: Vec<f64>,
    row_totals: Vec<RowTotals>,
    sums: Vec<f64>,
    lost: Vec<usize>,
    lost_top: Vec<f64>,
    lost_sum: Vec<f64>,
    /// Row potentials of the last sweep.
    pub(crate) f: Vec<f64>,
    /// Column soft minima: the potentials that would meet the column weights exactly.
    pub(crate) soft: Vec<f64>,
    /// Column marginals of the plan of the new `f` and the old `g`.
    pub(crate) marginal: Vec<f64>,
}

impl<T> Default for Engine<T> {
    fn default() -> Self {
        Self {
            matrix: Vec::new(),
            holds_costs: false,
            announced: None,
            alpha: Vec::new(),
            beta: Vec::new(),
            kernel_weights: Vec::new(),
            offsets: Vec::new(),
            partial: Vec::new(),
            partial_wide: Vec::new(),
            scratch: Vec::new(),
            scratch_wide: Vec::new(),
            row_totals: Vec::new(),
            sums: Vec::new(),
            lost: Vec::new(),
            lost_top: Vec::new(),
            lost_sum: Vec::new(),
            f: Vec::new(),
            soft: Vec::new(),
            marginal: Vec::new(),
        }
    }
}

impl<T: Real> Engine<T> {
    /// Makes room for a problem.
    pub(crate) fn prepare(&mut self, core: &Core<T>) {
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        let n_chunks = chunks::count(n);
        self.f.clear();
        self.f.resize(n, 0.0);
        for column in [&mut self.soft, &mut self.marginal, &mut self.offsets] {
            column.resize(m, 0.0);
        }
        self.row_totals.resize(n_chunks, RowTotals::default());
        self.sums.resize(m + N_TOTALS, 0.0);
        self.scratch.resize(n_chunks * m, T::zero());
        self.holds_costs = false;
        self.announced = None;
        // The column-wise repair may need up to m places; reserving them keeps a later sweep free of allocation.
        self.lost.clear();
        self.lost.reserve(m);
        self.lost_top.reserve(m);
        self.lost_sum.reserve(m);
    }

    /// Smallest and largest cost of this shard; an error if a computed cost is not finite.
    pub(crate) fn cost_range(&mut self, core: &Core<T>) -> Result<(f64, f64), OtError> {
        if let Some(range) = core.cost.known_range() {
            return Ok(range);
        }
        let m = core.columns.weights.len();
        let (n, per) = (core.rows.weights.len(), chunks::rows_per_chunk(core.rows.weights.len()));
        let n_chunks = chunks::count(n);
        // Row totals serve as slots for (min, max, not finite).
        let memory = (Strip::new(&mut self.scratch, m), Strip::new(&mut self.row_totals, 1));
        chunks::for_each(chunks::parallel(n * m), n_chunks, memory, &|chunk,
                                                                      (scratch, slot): (
            Strip<T>,
            Strip<RowTotals>,
        )| {
            let scratch = scratch.take();
            let (mut low, mut high, mut bad) = (f64::INFINITY, f64::NEG_INFINITY, 0.0);
            for i in chunk * per..n.min((chunk + 1) * per) {
                let range = simd::range(core.isa, core.cost.row(core.isa, core.transposed, i, scratch));
                low = low.min(range.min.wide());
                high = high.max(range.max.wide());
                bad = if range.finite { bad } else { 1.0 };
            }
            slot.take()[0] = RowTotals { mass: low, shift: high, weak: bad };
        });
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for slot in &self.row_totals {
            if slot.weak > 0.0 {
                return Err(OtError::NotFinite {
                    what: "cost of points",
                    index: Vec::new(),
                    value: f64::NAN,
                });
            }
            low = low.min(slot.mass);
            high = high.max(slot.shift);
        }
        Ok((low, high))
    }

    /// Announces the kernel `exp((middle - C_ij) / ε)`, in the problem's own type throughout, which is accurate while
    /// all exponents are within [`Real::SAFE_EXPONENT_RANGE`]. The next kernel sweep builds it row by row on its way.
    pub(crate) fn announce_kernel(&mut self, core: &Core<T>, epsilon: f64, middle: f64) {
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        let scale = -core.cost.sign() / epsilon;
        let shift = T::of(middle * core.cost.sign());
        if !(T::of(scale).is_finite() && shift.is_finite()) {
            self.f.fill(0.0);
            return self.build_kernel(core, epsilon, &vec![middle; m]);
        }
        self.make_room_for_kernel(n, m);
        self.alpha.fill(0.0);
        self.beta.fill(shift.wide() * core.cost.sign());
        self.announced = Some((shift, T::of(scale)));
    }

    /// Builds the kernel `exp((α_i + β_j - C_ij) / ε)` with `α = f`, `β = g`; exponents are double precision.
    pub(crate) fn build_kernel(&mut self, core: &Core<T>, epsilon: f64, g: &[f64]) {
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        let (n_chunks, per) = (chunks::count(n), chunks::rows_per_chunk(n));
        self.make_room_for_kernel(n, m);
        self.alpha.copy_from_slice(&self.f);
        self.beta.copy_from_slice(g);
        self.announced = None;
        for (offset, &beta) in self.offsets.iter_mut().zip(&self.beta) {
            *offset = beta / epsilon;
        }
        let scale = core.cost.sign() / epsilon;
        let (alpha, offsets) = (&self.alpha, &self.offsets);
        let memory = (Strip::new(&mut self.matrix, per * m), Strip::new(&mut self.scratch, m));
        chunks::for_each(chunks::parallel(n * m), n_chunks, memory, &|chunk,
                                                                      (kernel, scratch): (
            Strip<T>,
            Strip<T>,
        )| {
            let scratch = scratch.take();
            for (r, kernel_row) in kernel.take().chunks_exact_mut(m).enumerate() {
                let i = chunk * per + r;
                let costs = core.cost.row(core.isa, core.transposed, i, scratch);
                simd::exp_affine_narrow(core.isa, costs, scale, offsets, alpha[i] / epsilon, kernel_row);
            }
        });
    }

    fn make_room_for_kernel(&mut self, n: usize, m: usize) {
        if self.matrix.capacity() < n * m {
            self.matrix = Vec::new();
            self.matrix = pages::zeros(n * m);
        }
        self.matrix.resize(n * m, T::zero());
        self.holds_costs = false;
        self.alpha.resize(n, 0.0);
        self.beta.resize(m, 0.0);
        self.kernel_weights.resize(m, T::zero());
        self.partial.resize(chunks::count(n) * m, T::zero());
    }

    /// Makes the logarithmic sweeps possible; copies the costs if they are a matrix without rows in memory.
    pub(crate) fn prepare_logarithmic(&mut self, core: &Core<T>) {
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        let n_chunks = chunks::count(n);
        self.partial_wide.resize(n_chunks * m, 0.0);
        self.scratch_wide.resize(n_chunks * m, 0.0);
    }

    /// Copies a matrix that has no rows in memory, once for all logarithmic sweeps of a solve. Not for solves
    /// that need the same memory for the kernel.
    pub(crate) fn gather_costs(&mut self, core: &Core<T>) {
        if !core.cost.is_matrix() || core.cost.in_memory(core.transposed) {
            return;
        }
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        self.matrix.resize(n * m, T::zero());
        for (i, row) in self.matrix.chunks_exact_mut(m).enumerate() {
            core.cost.row(core.isa, core.transposed, i, row);
        }
        self.holds_costs = true;
    }

    /// One sweep. Afterwards `f`, `soft` and `marginal` are those of `g` and `lambda`.
    pub(crate) fn sweep(
        &mut self,
        domain: Domain,
        core: &Core<T>,
        epsilon: f64,
        lambda: f64,
        g: &[f64],
        collective: &mut dyn Collective,
    ) -> Result<RowTotals, OtError> {
        let m = g.len();
        match domain {
            Domain::Kernel => self.sweep_kernel(core, epsilon, lambda, g),
            Domain::Logarithmic => self.sweep_logarithmic(core, epsilon, lambda, g),
        }
        let mut totals = RowTotals::default();
        for part in &self.row_totals {
            totals.mass += part.mass;
            totals.shift += part.shift;
            totals.weak += part.weak;
        }
        self.sums[m..].copy_from_slice(&[totals.mass, totals.shift, totals.weak]);
        collective.sum(&mut self.sums).map_err(OtError::Collective)?;
        let mut totals = RowTotals { mass: self.sums[m], shift: self.sums[m + 1], weak: self.sums[m + 2] };
        self.lost.clear();
        for j in 0..m {
            let (sum, weight) = (self.sums[j], core.columns.weight(j));
            match domain {
                Domain::Kernel => {
                    self.soft[j] = self.beta[j] - epsilon * sum.ln();
                    self.marginal[j] = if weight > 0.0 { self.kernel_weights[j].wide() * sum } else { 0.0 };
                    if !trusted::<T>(sum) && weight > 0.0 {
                        totals.weak += 1.0;
                    }
                }
                Domain::Logarithmic if weight > 0.0 => {
                    self.marginal[j] = sum;
                    self.soft[j] = g[j] - epsilon * (sum / weight).ln();
                    if !trusted::<f64>(sum / weight) {
                        self.lost.push(j);
                    }
                }
                Domain::Logarithmic => {
                    self.marginal[j] = 0.0;
                    self.soft[j] = g[j];
                }
            }
        }
        if !self.lost.is_empty() {
            self.repair(core, epsilon, lambda, collective)?;
            for &j in &self.lost {
                self.marginal[j] = core.columns.weight(j) * ((g[j] - self.soft[j]) / epsilon).exp();
            }
        }
        Ok(totals)
    }

    /// Soft minima of columns of weight 0, which no sweep needs and the potentials' owner may.
    pub(crate) fn extend_to_empty_columns(
        &mut self,
        core: &Core<T>,
        epsilon: f64,
        lambda: f64,
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        self.lost.clear();
        self.lost.extend((0..core.columns.weights.len()).filter(|&j| core.columns.weights[j] == 0.0));
        if self.lost.is_empty() { Ok(()) } else { self.repair(core, epsilon, lambda, collective) }
    }

    /// Soft minima of the columns in `lost`, with a running maximum for each.
    fn repair(
        &mut self,
        core: &Core<T>,
        epsilon: f64,
        lambda: f64,
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        let m = core.columns.weights.len();
        let scale = core.cost.sign() / epsilon;
        self.lost_top.clear();
        self.lost_top.resize(self.lost.len(), f64::NEG_INFINITY);
        self.lost_sum.clear();
        self.lost_sum.resize(self.lost.len(), 0.0);
        for i in 0..core.rows.weights.len() {
            let weight = core.rows.weight(i);
            if weight == 0.0 {
                continue;
            }
            let base = (self.f[i] + lambda) / epsilon + weight.ln();
            let costs = core.cost.row(core.isa, core.transposed, i, &mut self.scratch[..m]);
            for ((&j, top), sum) in self.lost.iter().zip(&mut self.lost_top).zip(&mut self.lost_sum) {
                let x = base - costs[j].wide() * scale;
                if x <= *top {
                    *sum += (x - *top).exp();
                } else {
                    *sum = *sum * (*top - x).exp() + 1.0;
                    *top = x;
                }
            }
        }
        // The local maxima, kept while the shards agree on the common ones; sweeps fill `offsets` anew.
        let n_lost = self.lost.len();
        self.offsets[..n_lost].copy_from_slice(&self.lost_top);
        collective.max(&mut self.lost_top).map_err(OtError::Collective)?;
        for k in 0..n_lost {
            let local = self.offsets[k];
            self.lost_sum[k] *= (local - self.lost_top[k]).exp();
        }
        collective.sum(&mut self.lost_sum).map_err(OtError::Collective)?;
        for (k, &j) in self.lost.iter().enumerate() {
            self.soft[j] = -epsilon * (self.lost_top[k] + self.lost_sum[k].ln());
        }
        Ok(())
    }

    fn sweep_kernel(&mut self, core: &Core<T>, epsilon: f64, lambda: f64, g: &[f64]) {
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        let (n_chunks, per) = (chunks::count(n), chunks::rows_per_chunk(n));
        // Exponents first, so that one vector kernel takes all the exponentials.
        for j in 0..m {
            self.offsets[j] = (g[j] - self.beta[j]) / epsilon;
        }
        simd::exp_shifted(core.isa, &mut self.offsets, 0.0, 1.0);
        for j in 0..m {
            self.kernel_weights[j] = T::of(core.columns.weight(j) * self.offsets[j]);
        }
        let announced = self.announced.take();
        let streamed = simd::beyond_cache::<T>(n * m);
        let (weights, alpha) = (&self.kernel_weights, &self.alpha);
        let update = |i: usize, sum: T, f: &mut f64, totals: &mut RowTotals| -> T {
            let weight = core.rows.weight(i);
            let sum = sum.wide();
            if !trusted::<T>(sum) {
                totals.weak += 1.0;
                return T::zero();
            }
            let soft = alpha[i] - epsilon * sum.ln() - lambda;
            *f = core.rows.constraint.potential(soft, epsilon);
            let factor = match core.rows.constraint {
                Constraint::Exact => weight / sum,
                _ => weight * ((*f + lambda - alpha[i]) / epsilon).exp(),
            };
            totals.mass += factor * sum;
            if let Constraint::Relaxed { penalty } = core.rows.constraint {
                totals.shift += weight * (-*f / penalty).exp();
            }
            let factor = T::of(factor);
            if !factor.is_finite() {
                totals.weak += 1.0;
                return T::zero();
            }
            factor
        };
        let memory = (
            (Strip::new(&mut self.matrix, per * m), Strip::new(&mut self.scratch, m)),
            Strip::new(&mut self.f, per),
            Strip::new(&mut self.partial, m),
            Strip::new(&mut self.row_totals, 1),
        );
        type Memory<'a, T> =
            ((Strip<'a, T>, Strip<'a, T>), Strip<'a, f64>, Strip<'a, T>, Strip<'a, RowTotals>);
        let work = |chunk: usize, ((kernel, scratch), f, sums, slot): Memory<T>| {
            let (kernel, scratch, f, sums) = (kernel.take(), scratch.take(), f.take(), sums.take());
            let mut totals = RowTotals::default();
            sums.fill(T::zero());
            let from = chunk * per;
            let mut update_rows = |first: usize, row_sums: &[T], factors: &mut [T]| {
                for (r, (factor, &sum)) in factors.iter_mut().zip(row_sums).enumerate() {
                    *factor = update(from + first + r, sum, &mut f[first + r], &mut totals);
                }
            };
            let Some((shift, scale)) = announced else {
                simd::dot_then_axpy(core.isa, streamed, kernel, weights, sums, &mut update_rows);
                slot.take()[0] = totals;
                return;
            };
            for (g, group) in kernel.chunks_mut(ROWS * m).enumerate() {
                for (r, row) in group.chunks_exact_mut(m).enumerate() {
                    let costs = core.cost.row(core.isa, core.transposed, from + g * ROWS + r, scratch);
                    simd::exp_of(core.isa, costs, shift, scale, row);
                }
                let mut update_group = |first: usize, row_sums: &[T], factors: &mut [T]| {
                    update_rows(g * ROWS + first, row_sums, factors);
                };
                simd::dot_then_axpy(core.isa, false, group, weights, sums, &mut update_group);
            }
            slot.take()[0] = totals;
        };
        chunks::for_each(chunks::parallel(n * m), n_chunks, memory, &work);
        chunks::merge(core.isa, &self.partial, &mut self.sums[..m]);
    }

    fn sweep_logarithmic(&mut self, core: &Core<T>, epsilon: f64, lambda: f64, g: &[f64]) {
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        let (n_chunks, per) = (chunks::count(n), chunks::rows_per_chunk(n));
        for j in 0..m {
            // A weight of 0 has the logarithm -infinity, whose exponential is 0.
            self.offsets[j] = g[j] / epsilon + core.columns.weight(j).ln();
        }
        let scale = core.cost.sign() / epsilon;
        let offsets = &self.offsets;
        let held = self.holds_costs.then_some(&self.matrix);
        let memory = (
            (Strip::new(&mut self.f, per), Strip::new(&mut self.partial_wide, m)),
            Strip::new(&mut self.scratch, m),
            Strip::new(&mut self.scratch_wide, m),
            Strip::new(&mut self.row_totals, 1),
        );
        type Memory<'a, T> =
            ((Strip<'a, f64>, Strip<'a, f64>), Strip<'a, T>, Strip<'a, f64>, Strip<'a, RowTotals>);
        chunks::for_each(
            chunks::parallel(n * m),
            n_chunks,
            memory,
            &|chunk, ((f, sums), scratch, wide, slot): Memory<T>| {
                let (f, sums, scratch, wide) = (f.take(), sums.take(), scratch.take(), wide.take());
                let mut totals = RowTotals::default();
                sums.fill(0.0);
                for (r, f) in f.iter_mut().enumerate() {
                    let i = chunk * per + r;
                    let costs = match held {
                        Some(matrix) => &matrix[i * m..(i + 1) * m],
                        None => core.cost.row(core.isa, core.transposed, i, scratch),
                    };
                    let top = simd::exponents(core.isa, costs, scale, offsets, wide);
                    let sum = simd::exp_sum(core.isa, wide, top);
                    let log_sum = top + sum.ln();
                    *f = core.rows.constraint.potential(-epsilon * log_sum - lambda, epsilon);
                    let weight = core.rows.weight(i);
                    if weight == 0.0 {
                        continue;
                    }
                    let factor = match core.rows.constraint {
                        Constraint::Exact => weight / sum,
                        _ => weight * ((*f + lambda) / epsilon + top).exp(),
                    };
                    totals.mass += factor * sum;
                    if let Constraint::Relaxed { penalty } = core.rows.constraint {
                        totals.shift += weight * (-*f / penalty).exp();
                    }
                    simd::axpy(core.isa, wide, factor, sums);
                }
                slot.take()[0] = totals;
            },
        );
        chunks::merge(core.isa, &self.partial_wide, &mut self.sums[..m]);
    }
}

/// Whether a sum is far enough from the ends of its type's range to be accurate.
fn trusted<T: Real>(sum: f64) -> bool {
    let (low, high) = (T::min_positive_value().wide() * 1e8, T::max_value().wide() * 1e-8);
    sum > low && sum < high
}
