//! Whether iterations at one epsilon get anywhere, and the best of them.

use crate::engine::Found;
use crate::options::Options;

/// Sweeps without progress are borne for this part of the window where the residual is as small as rounding lets it be.
const RESOLVED_SHARE: usize = 10;

/// What a sweep and the column update after it tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Update {
    /// Relative to the mass.
    pub(super) residual: f64,
    /// The dual objective before the column update; only of problems with exact marginals.
    pub(super) dual: f64,
    /// And after it.
    pub(super) dual_plain: f64,
}

/// How the iterations at one epsilon, on one rung, get on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    window: usize,
    fall: f64,
    /// The lowest residual, and the iteration of the last one that was lower than others by the required share.
    lowest: f64,
    marked: f64,
    lowered: usize,
    /// The highest dual objective, and its iteration.
    dual: f64,
    raised: usize,
}

impl Progress {
    pub(super) fn starting_at(options: &Options, iteration: usize) -> Self {
        Self {
            window: options.stall_window,
            fall: options.stall_fall,
            lowest: f64::INFINITY,
            marked: f64::INFINITY,
            lowered: iteration,
            dual: f64::NEG_INFINITY,
            raised: iteration,
        }
    }

    /// Takes an iteration into account; gives whether hope is to be given up. A dual objective that rises by more than
    /// `slack` is progress, since sweeps may have to go on for long before the residual shows it.
    pub(super) fn see(&mut self, iteration: usize, update: &Update, slack: f64, resolution: f64) -> bool {
        self.lowest = self.lowest.min(update.residual);
        if update.residual < self.marked * (1.0 - self.fall) {
            (self.marked, self.lowered) = (update.residual, iteration);
        }
        if update.dual > self.dual + slack {
            (self.dual, self.raised) = (update.dual, iteration);
        }
        if self.lowest <= resolution {
            iteration - self.lowered > self.window.div_ceil(RESOLVED_SHARE)
        } else {
            iteration - self.lowered.max(self.raised) > self.window
        }
    }

    /// Iterations since the residual fell.
    pub(super) fn since_lowered(&self, iteration: usize) -> usize {
        iteration - self.lowered
    }
}

/// The iterate of the lowest residual at the problem's epsilon.
#[derive(Clone, Debug, Default)]
pub(super) struct Best {
    pub(super) residual: f64,
    pub(super) f: Vec<f64>,
    pub(super) g: Vec<f64>,
    pub(super) lambda: f64,
    pub(super) shift: f64,
    pub(super) mass: f64,
}

impl Best {
    /// Makes room, and forgets what was.
    pub(super) fn prepare(&mut self, n: usize, m: usize) {
        self.residual = f64::INFINITY;
        self.f.clear();
        self.f.resize(n, 0.0);
        self.g.clear();
        self.g.resize(m, 0.0);
    }

    /// Keeps an iterate if it is better than the best.
    pub(super) fn keep(
        &mut self,
        residual: f64,
        found: &Found,
        g: &[f64],
        (lambda, shift, mass): (f64, f64, f64),
    ) {
        if residual < self.residual {
            (self.residual, self.lambda, self.shift, self.mass) = (residual, lambda, shift, mass);
            self.f.copy_from_slice(&found.f);
            self.g.copy_from_slice(g);
        }
    }
}
