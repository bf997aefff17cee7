//! A second's work that shows whether a card computes what it should.
//!
//! The card and the [host's machine](crate::host), which computes the same operations in f64 and rounds where the card
//! does, run each operation of a step from the same memory, and train small networks for some steps. What both have
//! afterwards must agree: closely for one operation, less so after some steps, through which roundings spread.

mod operations;
mod outputs;
mod scenario;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use operations::{check_operations, kind};
pub use scenario::{Outcome, Scenario, noise};

use crate::Result;
use crate::driver::Card;
use crate::exec::{Executor, ExecutorOptions};
use crate::machine::{HostMachine, Machine};
use crate::network::{BlockKind, Head, NetworkSpec, Stem};
use crate::shape::Element;

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// The relative error: Euclidean norm of the difference by that of what is right.
    pub error: f64,
    /// The largest error that passes.
    pub limit: f64,
}

impl Check {
    /// Whether the error is within its limit; one that is no number is not.
    pub fn passes(&self) -> bool {
        self.error <= self.limit
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passes() { "ok" } else { "WRONG" };
        write!(f, "{}: relative error {:.1e}, limit {:.0e}, {verdict}", self.name, self.error, self.limit)
    }
}

/// What [`self_test`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct SelfTest {
    /// All comparisons.
    pub checks: Vec<Check>,
    /// How long it took.
    pub seconds: f64,
}

impl SelfTest {
    /// Whether all checks pass.
    pub fn passes(&self) -> bool {
        self.checks.iter().all(Check::passes)
    }
}

/// The largest relative error of what a scenario's trainings have.
pub fn limit(scenario: &Scenario) -> f64 {
    match scenario.element {
        // An eighth of bf16's, and as much again: a card may cut off what the host rounds.
        Element::F32 if scenario.tf32 => 0.025,
        Element::F32 => 1e-4,
        // Rounding differs in the last of 8 bits where f32 sums differ in theirs, and that spreads from layer to layer.
        Element::Bf16 => 0.1,
    }
}

/// Runs each operation of a step on a card and on the host, and trains small networks on both, in f32, TF32 and bf16.
///
/// # Errors
/// The executor's. That results differ is no error, but a check that does not pass.
pub fn self_test(card: &Arc<Card>, options: ExecutorOptions) -> Result<SelfTest> {
    let start = Instant::now();
    let executor = &mut Executor::new(card, options)?;
    let mut checks = Vec::new();
    let [full, half] = [Element::F32, Element::Bf16].map(scenarios);
    let rounded = full.clone().map(Scenario::with_tf32);
    for [small, large] in [full, rounded, half] {
        checks.extend(compare(executor, &small)?);
        checks.extend(check_operations(executor, &large)?);
    }
    Ok(SelfTest { checks, seconds: start.elapsed().as_secs_f64() })
}

/// A network with each stem, one of them with crops of bytes.
fn scenarios(element: Element) -> [Scenario; 2] {
    let head = Head::Mlp { hidden: 32, dim: 16 };
    let spec = |stem, block, layers: &[usize]| NetworkSpec {
        stem,
        stem_channels: 8,
        block,
        layers: layers.to_vec(),
        head,
    };
    let small = Scenario::new(spec(Stem::Cifar, BlockKind::Basic, &[1, 1]), [12, 9], element);
    let large = Scenario::new(spec(Stem::Imagenet, BlockKind::Bottleneck, &[2]), [34, 19], element);
    let large = large.with_queue(8);
    // Each stem reads values in one precision and bytes in the other.
    match element {
        Element::F32 => [small.with_bytes(), large],
        Element::Bf16 => [small, large.with_bytes()],
    }
}

/// Runs a scenario on a machine and on the host and compares.
///
/// # Errors
/// The machine's.
pub fn compare(machine: &mut dyn Machine, scenario: &Scenario) -> Result<Vec<Check>> {
    let card = scenario.run(machine)?;
    let host = scenario.run(&mut HostMachine::new())?;
    let limit = limit(scenario);
    let checks = host.parts().into_iter().zip(card.parts()).map(|((name, right), (_, got))| {
        let error = relative_error(got, right);
        Check { name: format!("{scenario}, {name}"), error, limit }
    });
    Ok(checks.collect())
}

/// The Euclidean norm of the difference, by that of what is right. Infinite where a value is no number.
pub fn relative_error(got: &[f32], right: &[f32]) -> f64 {
    if got.len() != right.len() {
        return f64::INFINITY;
    }
    let square = |value: f64| value * value;
    let difference: f64 =
        got.iter().zip(right).map(|(&got, &right)| square(f64::from(got) - f64::from(right))).sum();
    let norm: f64 = right.iter().map(|&right| square(f64::from(right))).sum();
    let error = (difference / norm.max(1e-60)).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(relative_error(&[3.0, 9.0], &[3.0, 4.0]), 1.0);
        assert_eq!(relative_error(&[f32::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(relative_error(&[1.0], &[1.0, 2.0]), f64::INFINITY);
    }

    #[test]
    fn no_number_passes_no_check() {
        let check = |error| Check { name: "a value".into(), error, limit: 1e-4 };
        assert!(check(1e-5).passes());
        assert!(!check(1e-3).passes());
        assert!(!check(f64::NAN).passes());
        assert_eq!(check(1e-3).to_string(), "a value: relative error 1.0e-3, limit 1e-4, WRONG");
    }

    #[test]
    fn the_host_agrees_with_itself_and_learns_something() {
        for element in [Element::F32, Element::Bf16] {
            for scenario in scenarios(element) {
                let first = scenario.run(&mut HostMachine::new()).expect("runs");
                let second = scenario.run(&mut HostMachine::new()).expect("runs");
                assert_eq!(first, second);
                assert!(first.parts().iter().all(|(_, part)| part.iter().all(|value| value.is_finite())));
                assert!(first.parts().iter().all(|(_, part)| part.iter().any(|&value| value != 0.0)));
            }
        }
    }

    #[test]
    fn rounded_precisions_stay_within_their_limits_of_full() {
        let [full, half] =
            [Element::F32, Element::Bf16].map(|element| scenarios(element)[0].clone().with_bytes());
        let run = |scenario: &Scenario| scenario.run(&mut HostMachine::new()).expect("runs");
        let right = run(&full);
        let rounded = full.with_tf32();
        let errors = [&rounded, &half].map(|scenario| {
            let got = run(scenario);
            let pairs = got.parts().into_iter().zip(right.parts());
            let error = pairs.map(|((_, got), (_, right))| relative_error(got, right)).fold(0.0, f64::max);
            assert!(error > 1e-4 && error < limit(scenario), "{scenario}: {error}");
            error
        });
        assert!(errors[0] < errors[1] / 2.0, "{errors:?}");
    }
}
