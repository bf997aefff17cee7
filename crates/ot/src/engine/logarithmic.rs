//! Sweeps on logarithms, in double precision: one exponential per element, shifted by the row's maximum.

use super::{Core, Dual, Engine, RowTotals};
use crate::chunks::{self, Strip};
use crate::problem::Constraint;
use crate::real::Real;
use crate::simd;

/// The memory of logarithmic sweeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Logarithmic {
    /// Column sums of each chunk.
    partial: Vec<f64>,
    /// A row of exponents for each chunk.
    scratch: Vec<f64>,
}

impl<T: Real> Engine<T> {
    /// Makes room for logarithmic sweeps.
    pub(crate) fn prepare_logarithmic(&mut self, core: &Core<T>) {
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        let n_chunks = chunks::count(n);
        self.logarithmic.partial.resize(n_chunks * m, 0.0);
        self.logarithmic.scratch.resize(n_chunks * m, 0.0);
    }

    /// Copies a matrix that has no rows in memory, once for all logarithmic sweeps of a solve. Not for solves
    /// that need the same memory for the kernel.
    pub(crate) fn gather_costs(&mut self, core: &Core<T>) {
        if self.holds_costs || !core.cost.is_matrix() || core.cost.in_memory(core.transposed) {
            return;
        }
        let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
        self.matrix.resize(n * m, T::zero());
        for (i, row) in self.matrix.chunks_exact_mut(m).enumerate() {
            core.cost.row(core.isa, core.transposed, i, row);
        }
        self.holds_costs = true;
    }

    /// One sweep over the costs, up to the column sums.
    pub(super) fn sweep_logarithmic(&mut self, core: &Core<T>, dual: Dual<'_>) {
        let Dual { epsilon, lambda, g } = dual;
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
            (Strip::new(&mut self.found.f, per), Strip::new(&mut self.logarithmic.partial, m)),
            Strip::new(&mut self.scratch, m),
            Strip::new(&mut self.logarithmic.scratch, m),
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
                    if top == f64::NEG_INFINITY {
                        // All pairs of this row are forbidden: it has no plan, and any potential will do.
                        *f = core.rows.constraint.potential(f64::INFINITY, epsilon);
                        continue;
                    }
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
                    totals.dual += weight * *f;
                    if let Constraint::Relaxed { penalty } = core.rows.constraint {
                        totals.shift += weight * (-*f / penalty).exp();
                    }
                    simd::axpy(core.isa, wide, factor, sums);
                }
                slot.take()[0] = totals;
            },
        );
        chunks::merge(core.isa, &self.logarithmic.partial, &mut self.sums[..m]);
    }
}
