//! The plan that belongs to potentials, row by row, so that nothing needs the whole of it in memory.

use crate::chunks::{self, Strip};
use crate::problem::Problem;
use crate::real::Real;
use crate::simd::{self, Isa};

/// A problem with potentials: `P_ij = a_i b_j exp((f_i + g_j - C_ij) / ε)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlanRows<'s, 'a, T> {
    pub(crate) problem: &'s Problem<'a, T>,
    pub(crate) f: &'s [f64],
    pub(crate) g: &'s [f64],
    /// Factor of the target weights.
    pub(crate) target_scale: f64,
    /// The epsilon of the potentials.
    pub(crate) epsilon: f64,
}

/// One row of the plan with its costs.
pub(crate) struct Row<'r, T> {
    pub(crate) i: usize,
    /// To be multiplied by the sign of the cost source.
    pub(crate) costs: &'r [T],
    pub(crate) plan: &'r mut [f64],
}

impl<T: Real> PlanRows<'_, '_, T> {
    /// Weight of a target.
    pub(crate) fn target(&self, j: usize) -> f64 {
        self.problem.target[j] * self.target_scale
    }

    /// Writes the plan, row after row.
    pub(crate) fn write(&self, plan: &mut [T]) {
        let (n, m) = self.problem.dim();
        let isa = Isa::detect();
        let (n_chunks, per) = (chunks::count(n), chunks::rows_per_chunk(n));
        let (scale, offsets) = self.exponents();
        let buffer_width = if self.problem.cost.in_memory(false) { 0 } else { m };
        let mut buffers = vec![T::zero(); n_chunks * buffer_width];
        let parallel = chunks::parallel(n * m);
        chunks::on_pool(parallel, || {
            let memory = (Strip::new(plan, per * m), Strip::new(&mut buffers, buffer_width));
            chunks::for_each(parallel, n_chunks, memory, &|chunk, (plan, costs): (Strip<T>, Strip<T>)| {
                let costs = costs.take();
                for (r, row) in plan.take().chunks_exact_mut(m).enumerate() {
                    let i = chunk * per + r;
                    let Some(shift) = self.shift(i) else {
                        row.fill(T::zero());
                        continue;
                    };
                    let costs = self.problem.cost.row(isa, false, i, costs);
                    simd::exp_affine_narrow(isa, costs, scale, &offsets, shift, row);
                }
            });
        });
    }

    /// What all rows share of their exponents `shift_i + offset_j - scale · C_ij`: the scale, and the offsets
    /// `g_j / ε + ln b_j`; -infinity for a target without weight, whose exponential is 0.
    fn exponents(&self) -> (f64, Vec<f64>) {
        let epsilon = self.epsilon;
        let offset = |(j, g): (usize, &f64)| g / epsilon + self.target(j).ln();
        (self.problem.cost.sign() / epsilon, self.g.iter().enumerate().map(offset).collect())
    }

    /// A row's part of its exponents, `f_i / ε + ln a_i`; none for a source without weight, whose row is 0.
    fn shift(&self, i: usize) -> Option<f64> {
        let weight = self.problem.source[i];
        (weight != 0.0).then(|| self.f[i] / self.epsilon + weight.ln())
    }

    /// Visits all rows. Each may write to its own `width` elements of `out` and add to `n_sums` sums that it shares
    /// with the rows of its chunk; the sums of all are given back.
    pub(crate) fn visit<O: Send>(
        &self,
        out: &mut [O],
        width: usize,
        n_sums: usize,
        visitor: impl Fn(Row<T>, &mut [O], &mut [f64]) + Sync,
    ) -> Vec<f64> {
        let partial = self.visit_chunks(out, width, (n_sums, 0.0), visitor);
        let mut sums = vec![0.0; n_sums];
        if n_sums > 0 {
            chunks::merge(Isa::detect(), &partial, &mut sums);
        }
        sums
    }

    /// As [`visit`](Self::visit), but gives each chunk's accumulators, one after the other, which all start from
    /// the given value.
    pub(crate) fn visit_chunks<O: Send>(
        &self,
        out: &mut [O],
        width: usize,
        (n_sums, start): (usize, f64),
        visitor: impl Fn(Row<T>, &mut [O], &mut [f64]) + Sync,
    ) -> Vec<f64> {
        let (n, m) = self.problem.dim();
        let isa = Isa::detect();
        let (n_chunks, per) = (chunks::count(n), chunks::rows_per_chunk(n));
        let (scale, offsets) = self.exponents();
        let mut costs = vec![T::zero(); n_chunks * m];
        let mut plan = vec![0.0; n_chunks * m];
        let mut partial = vec![start; n_chunks * n_sums];
        let memory = (
            Strip::new(out, per * width),
            Strip::new(&mut costs, m),
            Strip::new(&mut plan, m),
            Strip::new(&mut partial, n_sums),
        );
        type Memory<'a, O, T> = (Strip<'a, O>, Strip<'a, T>, Strip<'a, f64>, Strip<'a, f64>);
        chunks::for_each(chunks::parallel(n * m), n_chunks, memory, &|chunk, memory: Memory<O, T>| {
            let (mut out, costs, plan, sums) =
                (memory.0.take(), memory.1.take(), memory.2.take(), memory.3.take());
            for i in chunk * per..n.min((chunk + 1) * per) {
                let (here, rest) = std::mem::take(&mut out).split_at_mut(width);
                out = rest;
                let costs = self.problem.cost.row(isa, false, i, costs);
                match self.shift(i) {
                    Some(shift) => simd::exp_affine(isa, costs, scale, &offsets, shift, plan),
                    None => plan.fill(0.0),
                }
                visitor(Row { i, costs, plan }, here, sums);
            }
        });
        partial
    }
}
