//! Batch norm's sums: of each part of the work by itself, merged in the parts' order.

use crate::norm::{BatchStats, GradSums};
use crate::simd::Simd;
use crate::work::Shared;

/// Running sums of one vector of channels.
#[derive(Clone, Copy)]
pub(super) struct ChannelSums<S: Simd> {
    /// Subtracted from values before they are summed, against cancellation.
    pub shift: S::V,
    /// Σ(v - shift), or Σg.
    pub first: S::V,
    /// Σ(v - shift)², or Σg·(y - mean).
    pub second: S::V,
}

/// The sums of every task, to be merged in the tasks' order.
pub(super) struct Partials {
    channels: usize,
    data: Vec<f32>,
}

impl Partials {
    /// Room for `tasks` sets of sums; none if they are not needed.
    pub fn new(tasks: usize, channels: usize, needed: bool) -> Self {
        Self { channels, data: vec![0.0; if needed { tasks * 3 * channels } else { 0 }] }
    }

    pub fn share(&mut self) -> PartialsPtr {
        let needed = !self.data.is_empty();
        PartialsPtr { channels: self.channels, data: Shared::new(&mut self.data), needed }
    }

    fn of(&self, task: usize) -> [&[f32]; 3] {
        let set = &self.data[task * 3 * self.channels..][..3 * self.channels];
        let (shift, rest) = set.split_at(self.channels);
        let (first, second) = rest.split_at(self.channels);
        [shift, first, second]
    }

    /// Mean and variance, by Chan's pairwise update in f64; `counts` are the values a channel of each task.
    pub fn batch_stats(&self, counts: &[usize]) -> BatchStats {
        let mut total = 0.0f64;
        let (mut mean, mut m2) = (vec![0.0f64; self.channels], vec![0.0f64; self.channels]);
        for (task, &count) in counts.iter().enumerate() {
            let n = count as f64;
            let [shift, first, second] = self.of(task);
            for c in 0..self.channels {
                let d = f64::from(first[c]) / n;
                let task_m2 = f64::from(second[c]) - d * d * n;
                let delta = f64::from(shift[c]) + d - mean[c];
                mean[c] += delta * n / (total + n);
                m2[c] += task_m2 + delta * delta * total * n / (total + n);
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
        for task in 0..self.data.len() / (3 * self.channels) {
            let [_, first, second] = self.of(task);
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
    /// The sums of a task for the channels from `c` on; without any if none are gathered.
    ///
    /// # Safety
    /// `task` must be in range; the instruction set available; no other task may touch these channels.
    #[inline(always)]
    pub unsafe fn load<S: Simd>(&self, task: usize, c: usize, n: usize) -> ChannelSums<S> {
        // SAFETY: the caller's promise.
        unsafe {
            if !self.needed {
                return ChannelSums { shift: S::zero(), first: S::zero(), second: S::zero() };
            }
            let p = self.data.get().add(task * 3 * self.channels + c);
            let at = |i: usize| S::load_part(p.add(i * self.channels), n);
            ChannelSums { shift: at(0), first: at(1), second: at(2) }
        }
    }

    /// Writes the sums back.
    ///
    /// # Safety
    /// As for [`PartialsPtr::load`].
    #[inline(always)]
    pub unsafe fn store<S: Simd>(&self, task: usize, c: usize, n: usize, sums: &ChannelSums<S>) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.needed {
                let p = self.data.get().add(task * 3 * self.channels + c);
                S::store_part(p, n, sums.shift);
                S::store_part(p.add(self.channels), n, sums.first);
                S::store_part(p.add(2 * self.channels), n, sums.second);
            }
        }
    }
}
