//! How much mass the allowed pairs can carry: a maximal flow from sources to targets.
//!
//! Dinic's algorithm on the bipartite graph of allowed pairs: the shortest augmenting paths of one length at a time. The
//! number of its phases is bounded whatever the capacities are; in practice there are a few, each of some passes over the
//! pairs.

use crate::engine::{Core, Side};
use crate::problem::Constraint;
use crate::real::Real;

/// The level of a point that no path reaches.
const UNREACHED: usize = usize::MAX;

/// The most mass that can be moved over allowed pairs within the weights of both sides, of which relaxed ones do not bind. It
/// stops early, short of `enough` by less than `tolerance`.
pub(crate) fn most_mass<T: Real>(core: &Core<T>, enough: f64, tolerance: f64) -> f64 {
    let (n, m) = (core.rows.weights.len(), core.columns.weights.len());
    let mut buffer = vec![T::zero(); m];
    let mut allowed = Vec::with_capacity(n * m);
    for i in 0..n {
        let costs = core.cost.row(core.isa, core.transposed, i, &mut buffer);
        allowed.extend(costs.iter().map(|cost| cost.is_finite()));
    }
    let capacities = |side: &Side| {
        let capacity = |i: usize| match side.constraint {
            Constraint::Relaxed { .. } if side.weights[i] > 0.0 => enough,
            _ => side.weight(i),
        };
        (0..side.weights.len()).map(capacity).collect()
    };
    let left = [capacities(&core.rows), capacities(&core.columns)];
    let mut graph = Graph { m, allowed, flow: vec![0.0; n * m], left, level: [vec![0; n], vec![0; m]] };
    let mut moved = 0.0;
    while enough - moved > tolerance && graph.measure() {
        let mut next = [vec![0; n], vec![0; m]];
        let before = moved;
        for i in 0..n {
            while graph.left[0][i] > 0.0 {
                let more = graph.augment(i, &mut next);
                if more == 0.0 {
                    break;
                }
                moved += more;
            }
        }
        if moved == before {
            break;
        }
    }
    moved
}

/// Sources (side 0) and targets (side 1), what each has left, and what flows between them.
struct Graph {
    m: usize,
    allowed: Vec<bool>,
    flow: Vec<f64>,
    left: [Vec<f64>; 2],
    /// Edges from a source that has something left.
    level: [Vec<usize>; 2],
}

impl Graph {
    /// Whether more can flow from a point of one side to a point of the other.
    fn open(&self, side: usize, from: usize, to: usize) -> bool {
        if side == 0 { self.allowed[from * self.m + to] } else { self.flow[to * self.m + from] > 0.0 }
    }

    /// Measures all levels; gives whether a target that has something left is reached.
    fn measure(&mut self) -> bool {
        self.level.iter_mut().for_each(|side| side.fill(UNREACHED));
        let mut queue = std::collections::VecDeque::new();
        for i in (0..self.left[0].len()).filter(|&i| self.left[0][i] > 0.0) {
            self.level[0][i] = 0;
            queue.push_back((0, i));
        }
        let mut reached = false;
        while let Some((side, from)) = queue.pop_front() {
            let level = self.level[side][from] + 1;
            for to in 0..self.level[1 - side].len() {
                if self.level[1 - side][to] == UNREACHED && self.open(side, from, to) {
                    self.level[1 - side][to] = level;
                    reached |= side == 0 && self.left[1][to] > 0.0;
                    queue.push_back((1 - side, to));
                }
            }
        }
        reached
    }

    /// Moves what one shortest path from source `start` can take. `next` keeps the edges that are still to be tried.
    fn augment(&mut self, start: usize, next: &mut [Vec<usize>; 2]) -> f64 {
        let mut path = vec![start];
        while let Some(&at) = path.last() {
            let side = (path.len() - 1) % 2;
            if side == 1 && self.left[1][at] > 0.0 {
                return self.push(&path);
            }
            let others = self.level[1 - side].len();
            let level = self.level[side][at] + 1;
            let found = (next[side][at]..others)
                .find(|&to| self.level[1 - side][to] == level && self.open(side, at, to));
            match found {
                Some(to) => {
                    next[side][at] = to;
                    path.push(to);
                }
                None => {
                    next[side][at] = others;
                    path.pop();
                    if let Some(&before) = path.last() {
                        next[1 - side][before] += 1;
                    }
                }
            }
        }
        0.0
    }

    /// Moves along a path from a source to a target as much as its narrowest place takes.
    fn push(&mut self, path: &[usize]) -> f64 {
        let back = |k: usize| path[k + 1] * self.m + path[k];
        let (first, last) = (path[0], path[path.len() - 1]);
        let ends = self.left[0][first].min(self.left[1][last]);
        let amount = (1..path.len() - 1).step_by(2).map(|k| self.flow[back(k)]).fold(ends, f64::min);
        for k in 0..path.len() - 1 {
            if k % 2 == 0 {
                self.flow[path[k] * self.m + path[k + 1]] += amount;
            } else {
                self.flow[path[k + 1] * self.m + path[k]] -= amount;
            }
        }
        self.left[0][first] -= amount;
        self.left[1][last] -= amount;
        amount
    }
}
