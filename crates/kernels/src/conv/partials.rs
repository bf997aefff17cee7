//! Batch norm's sums: of each part of the work by itself, merged in the parts' order.

use crate::norm::{BatchStats, GradSums};
use crate::simd::Simd;
use crate::work::Shared;

/// Running sums of one vector of channels.
#[derive(Clone, Copy)]
pub(super) struct ChannelSums<S: Simd> {
    /// The instruction set whose vectors these are.
    pub simd: S,
    /// Subtracted from values before they are summed, against cancellation.
    pub shift: S::V,
    /// Σ(v - shift), or Σg.
    pub first: S::V,
    /// Σ(v - shift)², or Σg·(y - mean).
    pub second: S::V,
}

impl<S: Simd> ChannelSums<S> {
    /// Sums of nothing.
    #[inline(always)]
    pub fn new(simd: S) -> Self {
        Self { simd, shift: simd.zero(), first: simd.zero(), second: simd.zero() }
    }
}

/// The sums of every part of the work, to be merged in the parts' order.
pub(super) struct Partials {
    channels: usize,
    data: Vec<f32>,
}

impl Partials {
    /// Room for the sums of some parts; none if they are not needed.
    pub fn new(parts: usize, channels: usize, needed: bool) -> Self {
        Self { channels, data: vec![0.0; if needed { parts * 3 * channels } else { 0 }] }
    }

    pub fn share(&mut self) -> PartialsPtr {
        let needed = !self.data.is_empty();
        PartialsPtr { channels: self.channels, data: Shared::new(&mut self.data), needed }
    }

    fn of(&self, part: usize) -> [&[f32]; 3] {
        let sums = &self.data[part * 3 * self.channels..][..3 * self.channels];
        let (shift, rest) = sums.split_at(self.channels);
        let (first, second) = rest.split_at(self.channels);
        [shift, first, second]
    }

    /// Mean and variance, by Chan's pairwise update in f64; `counts` are the values per channel of each part.
    pub fn batch_stats(&self, counts: &[usize]) -> BatchStats {
        let mut total = 0.0f64;
        let (mut mean, mut m2) = (vec![0.0f64; self.channels], vec![0.0f64; self.channels]);
        for (part, &count) in counts.iter().enumerate() {
            let n = count as f64;
            let [shift, first, second] = self.of(part);
            for c in 0..self.channels {
                let d = f64::from(first[c]) / n;
                let part_m2 = f64::from(second[c]) - d * d * n;
                let delta = f64::from(shift[c]) + d - mean[c];
                mean[c] += delta * n / (total + n);
                m2[c] += part_m2 + delta * delta * total * n / (total + n);
            }
            total += n;
        }
        BatchStats {
            mean: mean.iter().map(|&m| m as f32).collect(),
            // Not `max`, which would hide a NaN.
            var: m2.iter().map(|&m| if m < 0.0 { 0.0 } else { (m / total) as f32 }).collect(),
            count: counts.iter().sum(),
        }
    }

    /// The gradient's sums.
    pub fn grad_sums(&self) -> GradSums {
        let mut sums = GradSums { grad: vec![0.0; self.channels], grad_centred: vec![0.0; self.channels] };
        for part in 0..self.data.len() / (3 * self.channels) {
            let [_, first, second] = self.of(part);
            for c in 0..self.channels {
                sums.grad[c] += f64::from(first[c]);
                sums.grad_centred[c] += f64::from(second[c]);
            }
        }
        sums
    }
}

/// [`Partials`] as tasks see them.
#[derive(Clone, Copy)]
pub(super) struct PartialsPtr {
    channels: usize,
    data: Shared<f32>,
    needed: bool,
}

impl PartialsPtr {
    /// For passes that gather no sums.
    pub fn none() -> Self {
        Self { channels: 0, data: Shared::new(&mut []), needed: false }
    }

    /// The sums of a part of the work for the `n` channels from `c` on; without any if none are gathered.
    ///
    /// # Safety
    /// Part and channels must be among those that there are, and no other task may touch them.
    #[inline(always)]
    pub unsafe fn load<S: Simd>(&self, simd: S, part: usize, c: usize, n: usize) -> ChannelSums<S> {
        // SAFETY: there are three arrays of sums for each part, and `n` channels from `c` on.
        unsafe {
            if !self.needed {
                return ChannelSums::new(simd);
            }
            let p = self.data.get().add(part * 3 * self.channels + c);
            let at = |i: usize| simd.load_part(p.add(i * self.channels), n);
            ChannelSums { simd, shift: at(0), first: at(1), second: at(2) }
        }
    }

    /// Writes the sums back.
    ///
    /// # Safety
    /// As for [`PartialsPtr::load`].
    #[inline(always)]
    pub unsafe fn store<S: Simd>(&self, part: usize, c: usize, n: usize, sums: &ChannelSums<S>) {
        let simd = sums.simd;
        // SAFETY: there are three arrays of sums for each part, and `n` channels from `c` on.
        unsafe {
            if self.needed {
                let p = self.data.get().add(part * 3 * self.channels + c);
                simd.store_part(p, n, sums.shift);
                simd.store_part(p.add(self.channels), n, sums.first);
                simd.store_part(p.add(2 * self.channels), n, sums.second);
            }
        }
    }
}
