//! The learning rate of each iteration.

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
    use swav_fixtures::json;

    #[test]
    fn parity_schedules() {
        let cases = json("schedules");
        let cases = cases.as_array().expect("a list of schedules");
        assert!(!cases.is_empty());
        for case in cases {
            let number = |key: &str| case[key].as_f64().expect("a number");
            let count = |key: &str| case[key].as_u64().expect("a count");
            let per_epoch = count("iters_per_epoch");
            let schedule = Schedule {
                start_warmup_lr: number("start_warmup"),
                base_lr: number("base_lr"),
                final_lr: number("final_lr"),
                warmup_iters: count("warmup_epochs") * per_epoch,
                total_iters: count("epochs") * per_epoch,
            };
            let expected = case["lr"].as_array().expect("learning rates");
            assert_eq!(expected.len() as u64, schedule.total_iters);
            for (iteration, expected) in expected.iter().enumerate() {
                let expected = expected.as_f64().expect("a number");
                let lr = schedule.lr(iteration as u64);
                assert!((lr - expected).abs() < 1e-6, "iteration {iteration}: {lr} against {expected}");
            }
        }
    }

    #[test]
    fn a_warm_up_of_one_iteration_and_a_run_of_warm_up_alone_are_finite() {
        let schedule =
            Schedule { start_warmup_lr: 0.1, base_lr: 1.0, final_lr: 0.5, warmup_iters: 1, total_iters: 1 };
        assert_eq!((schedule.lr(0), schedule.lr(1), schedule.lr(9)), (0.1, 0.5, 0.5));
    }
}
