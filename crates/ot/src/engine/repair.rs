//! Columns whose sums left the range of double precision, computed again on their own.

use super::{Core, Engine};
use crate::collective::Collective;
use crate::error::OtError;
use crate::real::Real;

/// The columns to compute again, with a running maximum and a sum of exponentials below it for each.
#[derive(Clone, Debug, Default)]
pub(super) struct Lost {
    pub(super) columns: Vec<usize>,
    tops: Vec<f64>,
    sums: Vec<f64>,
}

impl Lost {
    /// Room for all of `m` columns: reserving it keeps a later sweep free of allocation.
    pub(super) fn prepare(&mut self, m: usize) {
        self.columns.clear();
        self.columns.reserve(m);
        self.tops.reserve(m);
        self.sums.reserve(m);
    }
}

impl<T: Real> Engine<T> {
    /// Soft minima of columns of weight 0, which no sweep needs and the potentials' owner may.
    pub(crate) fn extend_to_empty_columns(
        &mut self,
        core: &Core<T>,
        epsilon: f64,
        lambda: f64,
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        self.lost.columns.clear();
        self.lost.columns.extend((0..core.columns.weights.len()).filter(|&j| core.columns.weights[j] == 0.0));
        if self.lost.columns.is_empty() { Ok(()) } else { self.repair(core, epsilon, lambda, collective) }
    }

    /// Soft minima of the columns in `lost`, with a running maximum for each.
    pub(super) fn repair(
        &mut self,
        core: &Core<T>,
        epsilon: f64,
        lambda: f64,
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        let m = core.columns.weights.len();
        let scale = core.cost.sign() / epsilon;
        self.lost.tops.clear();
        self.lost.tops.resize(self.lost.columns.len(), f64::NEG_INFINITY);
        self.lost.sums.clear();
        self.lost.sums.resize(self.lost.columns.len(), 0.0);
        for i in 0..core.rows.weights.len() {
            let weight = core.rows.weight(i);
            if weight == 0.0 {
                continue;
            }
            let base = (self.found.f[i] + lambda) / epsilon + weight.ln();
            let costs = core.cost.row(core.isa, core.transposed, i, &mut self.scratch[..m]);
            for ((&j, top), sum) in self.lost.columns.iter().zip(&mut self.lost.tops).zip(&mut self.lost.sums)
            {
                let x = base - costs[j].wide() * scale;
                if x == f64::NEG_INFINITY {
                    continue;
                }
                if x <= *top {
                    *sum += (x - *top).exp();
                } else {
                    *sum = *sum * (*top - x).exp() + 1.0;
                    *top = x;
                }
            }
        }
        // The local maxima, kept while the shards agree on the common ones; sweeps fill `offsets` anew.
        let n_lost = self.lost.columns.len();
        self.offsets[..n_lost].copy_from_slice(&self.lost.tops);
        collective.max(&mut self.lost.tops).map_err(OtError::Collective)?;
        for k in 0..n_lost {
            let local = self.offsets[k];
            if local > f64::NEG_INFINITY {
                self.lost.sums[k] *= (local - self.lost.tops[k]).exp();
            }
        }
        collective.sum(&mut self.lost.sums).map_err(OtError::Collective)?;
        for (k, &j) in self.lost.columns.iter().enumerate() {
            // +infinity for a column all of whose pairs are forbidden.
            self.found.soft[j] = -epsilon * (self.lost.tops[k] + self.lost.sums[k].ln());
        }
        Ok(())
    }
}
