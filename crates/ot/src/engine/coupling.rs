//! How the columns of a plan are coupled through its rows: what Newton's method needs besides a sweep.

use super::{Core, Dual, Engine};
use crate::chunks::{self, Strip};
use crate::real::Real;
use crate::simd::{self, ROWS};

/// Rows of the coupling matrix that one task computes.
const BLOCK: usize = 16;

impl<T: Real> Engine<T> {
    /// The lower triangle, diagonal included, of `G_jk = Σ_i P_ij P_ik / a_i` (m, m) for the plan of the last sweep's `f`
    /// and of `dual`. Order of sums: that of the rows, whatever the number of threads.
    pub(crate) fn coupling(&mut self, core: &Core<T>, dual: Dual<'_>, out: &mut Vec<f64>) {
        let Dual { epsilon, g, .. } = dual;
        let (n, m) = (core.rows.weights.len(), g.len());
        let (n_chunks, per) = (chunks::count(n), chunks::rows_per_chunk(n));
        self.plan.resize(n * m, 0.0);
        for j in 0..m {
            self.offsets[j] = g[j] / epsilon + core.columns.weight(j).ln();
        }
        let (scale, offsets, f) = (core.cost.sign() / epsilon, &self.offsets, &self.found.f);
        let held = self.holds_costs.then_some(&self.matrix);
        let memory = (Strip::new(&mut self.plan, per * m), Strip::new(&mut self.scratch, m));
        // P_ij / sqrt(a_i).
        let scaled = |chunk: usize, (plan, scratch): (Strip<f64>, Strip<T>)| {
            let scratch = scratch.take();
            for (r, row) in plan.take().chunks_exact_mut(m).enumerate() {
                let i = chunk * per + r;
                let weight = core.rows.weight(i);
                if weight == 0.0 {
                    row.fill(0.0);
                    continue;
                }
                let costs = match held {
                    Some(matrix) => &matrix[i * m..(i + 1) * m],
                    None => core.cost.row(core.isa, core.transposed, i, scratch),
                };
                let shift = f[i] / epsilon + 0.5 * weight.ln();
                simd::exp_affine(core.isa, costs, scale, offsets, shift, row);
            }
        };
        chunks::for_each(chunks::parallel(n * m), n_chunks, memory, &scaled);
        out.resize(m * m, 0.0);
        out.fill(0.0);
        let plan = &self.plan;
        let products = |block: usize, out: Strip<f64>| {
            let out = out.take();
            let mut groups = plan.chunks_exact(ROWS * m);
            for group in &mut groups {
                let rows: [&[f64]; ROWS] = std::array::from_fn(|r| &group[r * m..(r + 1) * m]);
                for (k, sums) in out.chunks_exact_mut(m).enumerate() {
                    let j = block * BLOCK + k;
                    let factors = rows.map(|row| row[j]);
                    // Plans of small epsilons are mostly zeros.
                    if factors != [0.0; ROWS] {
                        simd::axpy4(core.isa, rows.map(|row| &row[..=j]), factors, &mut sums[..=j]);
                    }
                }
            }
            for row in groups.remainder().chunks_exact(m) {
                for (k, sums) in out.chunks_exact_mut(m).enumerate() {
                    let j = block * BLOCK + k;
                    simd::axpy(core.isa, &row[..=j], row[j], &mut sums[..=j]);
                }
            }
        };
        chunks::for_each(chunks::parallel(m * m), m.div_ceil(BLOCK), Strip::new(out, BLOCK * m), &products);
    }
}
