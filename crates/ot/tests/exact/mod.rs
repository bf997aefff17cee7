//! The unregularised optimum, by successive shortest paths.

use ndarray::{Array1, Array2};

/// The least cost of moving `source` to `target`. Costs of +infinity are no edges. For small problems only.
pub fn optimum(cost: &Array2<f64>, source: &Array1<f64>, target: &Array1<f64>) -> f64 {
    let (n, m) = cost.dim();
    let (mut left, mut wanted) = (source.to_vec(), target.to_vec());
    let mut flow = Array2::<f64>::zeros((n, m));
    // Shorter by less than this is rounding, of which cycles could be made.
    let least = 1e-12 * cost.iter().filter(|c| c.is_finite()).fold(0.0, |top: f64, c| top.max(c.abs()));
    loop {
        // Bellman-Ford from all sources that have something left: points 0..n are sources, n..n + m targets.
        let mut distance: Vec<f64> =
            (0..n + m).map(|v| if v < n && left[v] > 1e-15 { 0.0 } else { f64::INFINITY }).collect();
        let mut before = vec![usize::MAX; n + m];
        for _ in 0..n + m {
            let mut changed = false;
            for ((i, j), &c) in cost.indexed_iter() {
                if distance[i] + c < distance[n + j] - least {
                    (distance[n + j], before[n + j], changed) = (distance[i] + c, i, true);
                }
                if flow[[i, j]] > 0.0 && distance[n + j] - c < distance[i] - least {
                    (distance[i], before[i], changed) = (distance[n + j] - c, n + j, true);
                }
            }
            if !changed {
                break;
            }
        }
        let reached = (0..m).filter(|&j| wanted[j] > 1e-15 && distance[n + j].is_finite());
        let Some(end) = reached.min_by(|&a, &b| distance[n + a].total_cmp(&distance[n + b])) else { break };
        let mut path = vec![n + end];
        while before[path[path.len() - 1]] != usize::MAX {
            path.push(before[path[path.len() - 1]]);
            assert!(path.len() <= n + m, "a cycle");
        }
        path.reverse();
        let mut amount = left[path[0]].min(wanted[end]);
        for edge in path.windows(2).filter(|edge| edge[0] >= n) {
            amount = amount.min(flow[[edge[1], edge[0] - n]]);
        }
        for edge in path.windows(2) {
            if edge[0] < n {
                flow[[edge[0], edge[1] - n]] += amount;
            } else {
                flow[[edge[1], edge[0] - n]] -= amount;
            }
        }
        left[path[0]] -= amount;
        wanted[end] -= amount;
    }
    flow.iter().zip(cost).filter(|(f, _)| **f > 0.0).map(|(f, c)| f * c).sum()
}
