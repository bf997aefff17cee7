//! Sweeps that read a stored kernel: no exponential but those of the first, which builds it on its way.

use super::{Core, Dual, Engine, RowTotals, trusted};
use crate::chunks::{self, Strip};
use crate::cost::CostRange;
use crate::pages;
use crate::problem::Constraint;
use crate::real::Real;
use crate::simd::{self, ROWS};

/// What belongs to a kernel `exp((α_i + β_j - C_ij) / ε)` besides its numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel<T> {
    /// Shift and scale of a kernel that the next sweep is to build.
    announced: Option<(T, T)>,
    /// Potentials that the rows have absorbed.
    alpha: Vec<f64>,
    /// Potentials that the columns have absorbed.
    pub(super) beta: Vec<f64>,
    /// Per column what the kernel's numbers are multiplied with: `b_j exp((g_j - β_j) / ε)`.
    pub(super) weights: Vec<T>,
    /// Column sums of each chunk.
    partial: Vec<T>,
    /// Numbers below the type may have been taken for 0.
    truncated: bool,
    /// Columns whose scaling has grown so much that such numbers might count.
    pub(super) n_grown: usize,
}

impl<T> Kernel<T> {
    /// No kernel is to be built.
    pub(super) fn forget(&mut self) {
        self.announced = None;
    }
}

impl<T: Real> Engine<T> {
    /// Announces the kernel `exp((middle - C_ij) / ε)`, whose exponents have to be within [`Real::SAFE_EXPONENT_RANGE`], and
    /// are in the problem's own type if they are within [`Real::OWN_EXPONENT_RANGE`]. The next kernel sweep builds such a
    /// kernel row by row on its way.
    pub(crate) fn announce_kernel(&mut self, core: &Core<T>, epsilon: f64, range: &CostRange) {
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        // Centred, so that both ends are equally far from the type's limits.
        let middle = 0.5 * (range.low + range.high);
        let scale = -core.cost.sign() / epsilon;
        let shift = T::of(middle * core.cost.sign());
        let own = range.spread() / epsilon <= T::OWN_EXPONENT_RANGE;
        self.make_room_for_kernel(n, m);
        self.kernel.truncated = false;
        if !(own && T::of(scale).is_finite() && shift.is_finite()) {
            self.kernel.alpha.fill(0.0);
            self.kernel.beta.fill(middle);
            return self.fill_kernel(core, epsilon);
        }
        self.kernel.alpha.fill(0.0);
        self.kernel.beta.fill(shift.wide() * core.cost.sign());
        self.kernel.announced = Some((shift, T::of(scale)));
    }

    /// Builds the kernel `exp((α_i + β_j - C_ij) / ε)` with `α = f`, `β = g`; exponents are double precision.
    pub(crate) fn build_kernel(&mut self, core: &Core<T>, epsilon: f64, g: &[f64]) {
        self.make_room_for_kernel(core.rows.weights.len(), core.columns.weights.len());
        self.kernel.alpha.copy_from_slice(&self.found.f);
        self.kernel.beta.copy_from_slice(g);
        self.kernel.truncated = true;
        self.fill_kernel(core, epsilon);
    }

    fn fill_kernel(&mut self, core: &Core<T>, epsilon: f64) {
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        let (n_chunks, per) = (chunks::count(n), chunks::rows_per_chunk(n));
        self.kernel.announced = None;
        for (offset, &beta) in self.offsets.iter_mut().zip(&self.kernel.beta) {
            *offset = beta / epsilon;
        }
        let scale = core.cost.sign() / epsilon;
        let (alpha, offsets) = (&self.kernel.alpha, &self.offsets);
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
        self.kernel.alpha.resize(n, 0.0);
        self.kernel.beta.resize(m, 0.0);
        self.kernel.weights.resize(m, T::zero());
        self.kernel.partial.resize(chunks::count(n) * m, T::zero());
    }

    /// One sweep over the kernel, up to the column sums.
    pub(super) fn sweep_kernel(&mut self, core: &Core<T>, dual: Dual<'_>) {
        let Dual { epsilon, lambda, g } = dual;
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        let (n_chunks, per) = (chunks::count(n), chunks::rows_per_chunk(n));
        // Exponents first, so that one vector kernel takes all the exponentials.
        for j in 0..m {
            self.offsets[j] = (g[j] - self.kernel.beta[j]) / epsilon;
        }
        simd::exp_shifted(core.isa, &mut self.offsets, 0.0, 1.0);
        let most = if self.kernel.truncated { T::GROWTH.exp() } else { f64::INFINITY };
        self.kernel.n_grown = 0;
        for j in 0..m {
            self.kernel.weights[j] = T::of(core.columns.weight(j) * self.offsets[j]);
            self.kernel.n_grown += usize::from(self.offsets[j] > most && core.columns.weights[j] > 0.0);
        }
        let announced = self.kernel.announced.take();
        let streamed = simd::beyond_cache::<T>(n * m);
        let (weights, alpha) = (&self.kernel.weights, &self.kernel.alpha);
        let update = |i: usize, sum: T, f: &mut f64, totals: &mut RowTotals| -> T {
            let weight = core.rows.weight(i);
            let sum = sum.wide();
            if !trusted::<T>(sum) || sum * most < 1.0 {
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
            totals.dual += weight * *f;
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
            Strip::new(&mut self.found.f, per),
            Strip::new(&mut self.kernel.partial, m),
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
        chunks::merge(core.isa, &self.kernel.partial, &mut self.sums[..m]);
    }
}
