//! Codes of an epsilon that double precision cannot tell from 0 beside the scores.
//!
//! A positive number of the iterations is then `exp(x / ε + y)` with an x in units of scores and a y that is no more than
//! the logarithm of some counts. Divided by ε, x would swallow y, or leave the range of the type; so both are kept apart. A
//! sum of such numbers has the largest x, and the y of those that share it: as ε vanishes the others vanish beside them.

use crate::chunks::{self, Strip};
use crate::codes::{Codes, Sound, resize};
use crate::collective::Collective;
use crate::error::OtError;
use crate::real::Real;

/// `(max - min) / ε` from which on logarithms are exact to whole units only, so that only the limit is left.
pub(super) const BEYOND: f64 = (1u64 << 56) as f64;

/// Spread from which on sums of scores would leave the range of double precision.
const LARGE: f64 = 1e300;

/// `exp(x / ε + y)`.
#[derive(Clone, Copy)]
struct Power {
    x: f64,
    y: f64,
}

/// The sum of some powers. Their differences in x are divided by epsilon last, so that equal ones count whatever epsilon is.
fn sum(epsilon: f64, powers: impl Iterator<Item = Power> + Clone) -> Power {
    let x = powers.clone().fold(f64::NEG_INFINITY, |top, power| top.max(power.x));
    Power { x, y: parts(epsilon, x, powers).ln() }
}

/// The sum of some powers below a largest x.
fn parts(epsilon: f64, top: f64, powers: impl Iterator<Item = Power>) -> f64 {
    powers.map(|power| ((power.x - top) / epsilon + power.y).exp()).sum()
}

impl<T: Real> Codes<T> {
    /// As `run_logarithmic`, with u and v as powers. It takes one thread: nobody computes many such codes.
    pub(super) fn run_limit(
        &mut self,
        rows: &mut [T],
        width: usize,
        (max, spread): (f64, f64),
        collective: &mut dyn Collective,
    ) -> Result<(), OtError> {
        let n_rows = rows.len() / width;
        // The limit depends on the order of sums of scores alone, so they may be made smaller.
        let unit = if spread > LARGE { 1.0 / 16.0 } else { 1.0 };
        let epsilon = (self.epsilon * unit).max(f64::from_bits(1));
        let x = |score: T| score.wide() * unit - max * unit;
        resize(&mut self.log_partial, width, 0.0);
        resize(&mut self.sums, width, 0.0);
        let (mut u, mut v) = (vec![Power { x: 0.0, y: 0.0 }; width], vec![Power { x: 0.0, y: 0.0 }; n_rows]);
        let code = |row: &[T], u: &[Power]| {
            sum(epsilon, row.iter().zip(u).map(|(&score, u)| Power { x: x(score) + u.x, y: u.y }))
        };
        for iteration in 0..self.n_iters {
            if iteration > 0 {
                for (row, v) in rows.chunks_exact(width).zip(&mut v) {
                    let total = code(row, &u);
                    *v = Power { x: -total.x, y: -total.y };
                }
            }
            let powers = |k: usize| {
                let column = rows.iter().skip(k).step_by(width).zip(&v);
                column.map(|(&score, v)| Power { x: x(score) + v.x, y: v.y })
            };
            for (k, top) in self.sums.iter_mut().enumerate() {
                *top = powers(k).fold(f64::NEG_INFINITY, |top, power| top.max(power.x));
            }
            collective.max(&mut self.sums).map_err(OtError::Collective)?;
            self.log_partial.copy_from_slice(&self.sums);
            for (k, total) in self.sums.iter_mut().enumerate() {
                *total = parts(epsilon, self.log_partial[k], powers(k));
            }
            collective.sum(&mut self.sums).map_err(OtError::Collective)?;
            for ((u, top), total) in u.iter_mut().zip(&self.log_partial).zip(&self.sums) {
                *u = Power { x: -top, y: -total.ln() };
            }
        }
        let parallel = chunks::parallel(rows.len());
        let (per_chunk, sound) = (chunks::rows_per_chunk(n_rows) * width, Sound::default());
        chunks::for_each(
            parallel,
            chunks::count(n_rows),
            Strip::new(rows, per_chunk),
            &|_, rows: Strip<T>| {
                for row in rows.take().chunks_exact_mut(width) {
                    let total = code(row, &u);
                    for (score, u) in row.iter_mut().zip(&u) {
                        *score = T::of(((x(*score) + u.x - total.x) / epsilon + u.y - total.y).exp());
                    }
                }
            },
        );
        sound.check(self.n_iters)
    }
}
