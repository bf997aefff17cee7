//! The parts `test`, `operations` and `networks`: what the card computes beside what the host computes in f64, rounding
//! where the card rounds.

use std::collections::BTreeMap;

use serde_json::json;
use swav_cuda::driver::Card;
use swav_cuda::exec::ExecutorOptions;
use swav_cuda::plans::Selection;
use swav_cuda::self_test::{self, Check, check_operations, compare};
use swav_cuda::shape::Element;
use swav_cuda::tape::Rule;

use super::found::{Found, Result};
use super::machines::{How, Open, scenarios};

const ELEMENTS: [Element; 2] = [Element::F32, Element::Bf16];

/// The self-test, as `swav gpu` runs it: with cuDNN's own choices, since timing them would take longer than the test.
pub fn self_test(number: usize) -> Result {
    let options = ExecutorOptions { selection: Selection::First, ..ExecutorOptions::default() };
    let result = self_test::self_test(&Card::open(number)?, options)?;
    Ok(checked(&result.checks, Vec::new()))
}

/// Each kind of operation in both precisions, alone and from the same memory; the worst of all scenarios counts.
pub fn operations(open: &Open<'_>) -> Result {
    let mut worst: BTreeMap<String, Check> = BTreeMap::new();
    let mut failed = Vec::new();
    for element in ELEMENTS {
        let rules = [Rule::Larc, Rule::Sgd, Rule::AdamW, Rule::Larc];
        for (scenario, rule) in scenarios(element).into_iter().zip(rules) {
            let scenario = scenario.with_rule(rule).with_queue(if rule == Rule::Sgd { 8 } else { 0 });
            let found = open(How { graphs: false, ..How::FIRST })
                .and_then(|mut machine| Ok(check_operations(machine.as_mut(), &scenario)?));
            match found {
                Ok(checks) => checks.into_iter().for_each(|check| keep_worst(&mut worst, element, check)),
                Err(error) => failed.push(format!("{scenario}: {error:#}")),
            }
        }
    }
    Ok(checked(&worst.into_values().collect::<Vec<_>>(), failed))
}

/// Keeps the check of each kind of operation that is nearest to its limit, or farthest beyond it.
fn keep_worst(worst: &mut BTreeMap<String, Check>, element: Element, check: Check) {
    let kind = check.name.rsplit(", ").next().unwrap_or_default();
    let known = worst.entry(format!("{element:?} {kind}")).or_insert_with(|| check.clone());
    if check.error / check.limit > known.error / known.limit {
        *known = check;
    }
}

/// Trainings of some steps, rectifiers open.
pub fn networks(open: &Open<'_>) -> Result {
    let (mut checks, mut failed) = (Vec::new(), Vec::new());
    for scenario in ELEMENTS.into_iter().flat_map(scenarios) {
        let found = open(How::FIRST).and_then(|mut machine| Ok(compare(machine.as_mut(), &scenario)?));
        match found {
            Ok(found) => checks.extend(found),
            Err(error) => failed.push(format!("{scenario}: {error:#}")),
        }
    }
    Ok(checked(&checks, failed))
}

/// Gathers checks; those that do not pass are wrong, beside what `failed`.
fn checked(checks: &[Check], failed: Vec<String>) -> Found {
    let wrong: Vec<String> = checks.iter().filter(|check| !check.passes()).map(ToString::to_string).collect();
    println!("{} of {} pass", checks.len() - wrong.len(), checks.len());
    let share = |check: &Check| check.error / check.limit;
    if let Some(worst) = checks.iter().max_by(|a, b| share(a).total_cmp(&share(b))) {
        println!("nearest to its limit: {worst}");
    }
    let mut errors: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
    for check in checks {
        let (scenario, what) = check.name.rsplit_once(", ").unwrap_or(("", &check.name));
        errors.entry(scenario).or_default().insert(what, two_digits(check.error));
    }
    let value = json!({ "checks": checks.len(), "errors": errors });
    Found::with_wrong(value, failed.into_iter().chain(wrong).collect())
}

/// An error as JSON can have it, which has no infinity, and as short as it is told.
fn two_digits(error: f64) -> f64 {
    format!("{:.1e}", error.min(1e30)).parse().unwrap_or(1e30)
}

#[cfg(test)]
mod tests {
    use super::super::machines::tests::{Odd, nowhere, on_host};
    use super::*;

    #[test]
    fn the_host_trains_as_the_host_does() {
        let found = networks(&on_host).unwrap();
        assert_eq!(found.wrong, [""; 0]);
        // Four networks in two precisions, six numbers each.
        assert_eq!(found.value["checks"], 48);
        let errors = &found.value["errors"];
        assert_eq!(errors["Cifar Basic [1, 1], 16 channels, F32"]["loss"], 0.0, "{errors}");
        assert_eq!(errors.as_object().unwrap().len(), 8);
    }

    #[test]
    fn a_machine_that_learns_at_another_rate_is_found() {
        let found = networks(&|_| Ok(Box::new(Odd::new(2.0, 1)))).unwrap();
        let changes = found.wrong.iter().filter(|wrong| wrong.contains("changes of parameters"));
        assert_eq!(changes.count(), 8, "{:?}", found.wrong);
    }

    #[test]
    fn operations_are_told_by_kind_and_precision() {
        let found = operations(&on_host).unwrap();
        assert!(found.value["checks"].as_u64().unwrap() > 40, "{}", found.value);
        // Potentials are logarithms to another base on the card, so the host cannot take its place there.
        let others = found.wrong.iter().filter(|wrong| !wrong.contains("Codes") && !wrong.contains("Loss"));
        assert_eq!(others.collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn what_cannot_run_is_wrong() {
        for found in [networks(&nowhere).unwrap(), operations(&nowhere).unwrap()] {
            assert_eq!(found.wrong.len(), 8);
            assert!(found.wrong.iter().all(|wrong| wrong.ends_with("no such machine")), "{:?}", found.wrong);
        }
    }

    #[test]
    fn no_number_is_wrong_and_still_json() {
        let check = |name: &str, error| Check { name: name.into(), error, limit: 1e-4 };
        let checks = [check("a, b, one", 1.234e-5), check("a, b, two", f64::INFINITY), check("c", f64::NAN)];
        let found = checked(&checks, Vec::new());
        assert_eq!(found.wrong.len(), 2);
        let expected = json!({ "a, b": { "one": 1.2e-5, "two": 1e30 }, "": { "c": 1e30 } });
        assert_eq!(found.value["errors"], expected);
    }

    #[test]
    fn the_worst_of_a_kind_counts() {
        let mut worst = BTreeMap::new();
        for (name, error) in [("one, Conv", 1e-6), ("two, Conv", 1e-3), ("three, Conv", 1e-5)] {
            keep_worst(&mut worst, Element::F32, Check { name: name.into(), error, limit: 1e-4 });
        }
        assert_eq!(worst["F32 Conv"].name, "two, Conv");
    }
}
