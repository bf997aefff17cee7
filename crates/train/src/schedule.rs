//! The learning rate of each iteration.

use crate::config::TrainConfig;

/// Linear warm-up, then half a cosine (reference `main_swav.py`).
///
/// With `W` warm-up iterations and `T` iterations after them, iteration `t` has the learning rate
/// `start + (base - start) · t / (W - 1)` for `t < W` (both ends included, `start` alone if `W` is 1), and
/// `final + (base - final) · (1 + cos(π (t - W) / T)) / 2` afterwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Learning rate of the first iteration of the warm-up.
    pub start_warmup_lr: f64,
    /// Learning rate at the end of the warm-up.
    pub base_lr: f64,
    /// Learning rate towards which the cosine falls.
    pub final_lr: f64,
    /// Iterations of the warm-up.
    pub warmup_iters: u64,
    /// Iterations of the whole run.
    pub total_iters: u64,
}

impl Schedule {
    /// The schedule of a configuration for `iters_per_epoch` steps an epoch.
    pub fn of(config: &TrainConfig, iters_per_epoch: u64) -> Self {
        let optimizer = &config.optimizer;
        Self {
            start_warmup_lr: optimizer.start_warmup_lr,
            base_lr: optimizer.base_lr,
            final_lr: optimizer.final_lr,
            warmup_iters: optimizer.warmup_epochs.saturating_mul(iters_per_epoch),
            total_iters: config.training.epochs.saturating_mul(iters_per_epoch),
        }
    }

    /// The learning rate of iteration `iteration`, from 0. At and past the end it is `final_lr`.
    pub fn lr(&self, iteration: u64) -> f64 {
        if iteration < self.warmup_iters {
            let steps = (self.warmup_iters - 1).max(1) as f64;
            return self.start_warmup_lr + (self.base_lr - self.start_warmup_lr) * iteration as f64 / steps;
        }
        if iteration >= self.total_iters {
            return self.final_lr;
        }
        let share = (iteration - self.warmup_iters) as f64 / (self.total_iters - self.warmup_iters) as f64;
        self.final_lr + 0.5 * (self.base_lr - self.final_lr) * (1.0 + (std::f64::consts::PI * share).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_of_one_iteration_and_a_run_of_warm_up_alone_are_finite() {
        let schedule =
            Schedule { start_warmup_lr: 0.1, base_lr: 1.0, final_lr: 0.5, warmup_iters: 1, total_iters: 1 };
        assert_eq!((schedule.lr(0), schedule.lr(1), schedule.lr(9)), (0.1, 0.5, 0.5));
    }
}
