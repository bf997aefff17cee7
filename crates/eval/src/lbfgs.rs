//! Minimises a smooth function of many variables by limited-memory BFGS (Nocedal 1980; Nocedal and Wright 2006, algorithm
//! 7.4), with a preconditioner in place of the scaled identity that the method usually starts from.

use std::collections::VecDeque;

/// How many past steps approximate the curvature.
const MEMORY: usize = 10;
/// A step has to win this share of what the slope promises (Armijo).
const SUFFICIENT_DECREASE: f64 = 1e-4;
/// A step has to flatten the slope to this share (Wolfe).
const CURVATURE: f64 = 0.9;
/// Trials of one line search.
const MAX_TRIALS: usize = 30;
/// Where the slope promises less than this share of the function, rounding is all that is left to win.
const NOTHING_LEFT: f64 = 1e-9;
/// Steps in a row that win nothing to speak of, after which the rounding of the function is all that is left.
const MAX_IDLE: usize = 3;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    /// At a gradient whose largest entry is at most this.
    pub tolerance: f64,
    /// After this many iterations.
    pub max_iters: usize,
}

/// Where the search has ended.
#[derive(Debug, Clone)]
pub(crate) struct Minimum {
    /// The point.
    pub x: Vec<f64>,
    /// The function there.
    pub value: f64,
    /// Steps that were taken.
    pub n_iters: usize,
    /// Whether the gradient vanished within the tolerance, or no step could go lower.
    pub converged: bool,
}

/// Searches from `start`. `evaluate` gives the function and its gradient; `precondition` multiplies a vector by a symmetric
/// positive definite guess at the inverse of the second derivative.
pub(crate) fn minimise(
    start: Vec<f64>,
    mut evaluate: impl FnMut(&[f64]) -> (f64, Vec<f64>),
    precondition: impl Fn(&mut [f64]),
    stop: Stop,
) -> Minimum {
    let mut x = start;
    let (mut value, mut gradient) = evaluate(&x);
    let mut past: VecDeque<Past> = VecDeque::with_capacity(MEMORY + 1);
    let mut idle = 0;
    for n_iters in 0..stop.max_iters {
        if largest(&gradient) <= stop.tolerance || idle == MAX_IDLE {
            return Minimum { x, value, n_iters, converged: true };
        }
        let mut direction = descent(&gradient, &past, &precondition);
        let mut slope = dot(&direction, &gradient);
        if slope.is_nan() || slope >= 0.0 {
            // The memory is worth nothing any more.
            past.clear();
            direction = descent(&gradient, &past, &precondition);
            slope = dot(&direction, &gradient);
        }
        if -slope <= NOTHING_LEFT * value.abs() {
            return Minimum { x, value, n_iters, converged: true };
        }
        let Some(step) = line_search(&x, value, slope, &direction, &mut evaluate) else {
            let converged = past.is_empty();
            if converged {
                return Minimum { x, value, n_iters, converged };
            }
            past.clear();
            continue;
        };
        idle = if value - step.value <= 1e-10 * value.abs() { idle + 1 } else { 0 };
        let moved: Vec<f64> = step.x.iter().zip(&x).map(|(new, old)| new - old).collect();
        let turned: Vec<f64> = step.gradient.iter().zip(&gradient).map(|(new, old)| new - old).collect();
        let curvature = dot(&moved, &turned);
        if curvature > f64::EPSILON * dot(&turned, &turned) {
            past.push_back(Past { moved, turned, curvature });
            if past.len() > MEMORY {
                past.pop_front();
            }
        }
        (x, value, gradient) = (step.x, step.value, step.gradient);
    }
    let converged = largest(&gradient) <= stop.tolerance;
    Minimum { x, value, n_iters: stop.max_iters, converged }
}

/// A step of the past: how far it went, how much the gradient turned, and their product.
struct Past {
    moved: Vec<f64>,
    turned: Vec<f64>,
    curvature: f64,
}

/// The two-loop recursion: minus the approximate inverse second derivative times the gradient.
fn descent(gradient: &[f64], past: &VecDeque<Past>, precondition: &impl Fn(&mut [f64])) -> Vec<f64> {
    let mut q = gradient.to_vec();
    let mut shares = Vec::with_capacity(past.len());
    for step in past.iter().rev() {
        let share = dot(&step.moved, &q) / step.curvature;
        add(&mut q, -share, &step.turned);
        shares.push(share);
    }
    precondition(&mut q);
    if let Some(newest) = past.back() {
        let mut turned = newest.turned.clone();
        precondition(&mut turned);
        let scale = newest.curvature / dot(&newest.turned, &turned);
        q.iter_mut().for_each(|v| *v *= scale);
    }
    for (step, share) in past.iter().zip(shares.into_iter().rev()) {
        let other = dot(&step.turned, &q) / step.curvature;
        add(&mut q, share - other, &step.moved);
    }
    q.iter_mut().for_each(|v| *v = -*v);
    q
}

/// A point that a line search has found.
struct Step {
    x: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// A step that satisfies both of Wolfe's conditions, by doubling and halving; the lowest point that satisfies the first if
/// none satisfies both; `None` if nothing is lower.
fn line_search(
    x: &[f64],
    value: f64,
    slope: f64,
    direction: &[f64],
    evaluate: &mut impl FnMut(&[f64]) -> (f64, Vec<f64>),
) -> Option<Step> {
    let (mut shortest, mut longest, mut length) = (0.0, f64::INFINITY, 1.0);
    let mut best: Option<Step> = None;
    for _ in 0..MAX_TRIALS {
        let mut at = x.to_vec();
        add(&mut at, length, direction);
        let (there, gradient) = evaluate(&at);
        let enough = there <= value + SUFFICIENT_DECREASE * length * slope;
        let flat = dot(&gradient, direction) >= CURVATURE * slope;
        if !enough {
            longest = length;
        } else {
            if best.as_ref().is_none_or(|best| there < best.value) {
                best = Some(Step { x: at, value: there, gradient });
            }
            if flat {
                break;
            }
            shortest = length;
        }
        length = if longest.is_finite() { 0.5 * (shortest + longest) } else { 2.0 * length };
    }
    best
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], share: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += share * from);
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| if value.is_nan() { f64::NAN } else { f64::max(most, value.abs()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_valley_of_rosenbrock_is_walked_to_its_end() {
        let rosenbrock = |x: &[f64]| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            (a * a + 100.0 * b * b, vec![-2.0 * a - 400.0 * x[0] * b, 200.0 * b])
        };
        let stop = Stop { tolerance: 1e-8, max_iters: 200 };
        let found = minimise(vec![-1.2, 1.0], rosenbrock, |_| {}, stop);
        assert!(found.converged && found.value < 1e-12, "{found:?}");
        assert!(found.x.iter().all(|x| (x - 1.0).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn an_exact_preconditioner_solves_a_quadratic_in_one_step() {
        let scales = [1.0, 100.0, 1e6];
        let quadratic = |x: &[f64]| {
            let gradient: Vec<f64> = x.iter().zip(scales).map(|(x, s)| s * (x - 3.0)).collect();
            (x.iter().zip(scales).map(|(x, s)| 0.5 * s * (x - 3.0) * (x - 3.0)).sum(), gradient)
        };
        let exact = |v: &mut [f64]| v.iter_mut().zip(scales).for_each(|(v, s)| *v /= s);
        let found = minimise(vec![0.0; 3], quadratic, exact, Stop { tolerance: 1e-6, max_iters: 10 });
        assert_eq!((found.n_iters, found.converged), (1, true), "{found:?}");
    }
}
