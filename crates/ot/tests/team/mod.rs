//! Threads that play the processes of a sharded solve.

use std::sync::{Arc, Barrier, Mutex};

use swav_ot::{Collective, CollectiveError};

/// One of some threads that reduce through shared memory, in the order of their ranks.
pub struct Team {
    rank: usize,
    slots: Arc<Mutex<Vec<Vec<f64>>>>,
    barrier: Arc<Barrier>,
}

impl Team {
    /// A team of `n` members.
    pub fn of(n: usize) -> Vec<Self> {
        let slots = Arc::new(Mutex::new(vec![Vec::new(); n]));
        let barrier = Arc::new(Barrier::new(n));
        (0..n).map(|rank| Self { rank, slots: slots.clone(), barrier: barrier.clone() }).collect()
    }

    fn reduce(&mut self, values: &mut [f64], combine: impl Fn(f64, f64) -> f64) {
        self.slots.lock().unwrap()[self.rank] = values.to_vec();
        self.barrier.wait();
        let slots = self.slots.lock().unwrap().clone();
        for (j, value) in values.iter_mut().enumerate() {
            *value = slots[1..].iter().fold(slots[0][j], |all, slot| combine(all, slot[j]));
        }
        self.barrier.wait();
    }
}

impl Collective for Team {
    fn sum(&mut self, values: &mut [f64]) -> Result<(), CollectiveError> {
        self.reduce(values, |a, b| a + b);
        Ok(())
    }

    fn max(&mut self, values: &mut [f64]) -> Result<(), CollectiveError> {
        self.reduce(values, f64::max);
        Ok(())
    }
}
