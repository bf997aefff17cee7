//! The parts `bits` and `plans`: the same work gives the same bits, however often it is done, with and without recorded
//! graphs, and with plans that another executor has chosen.

use std::fmt::Display;

use anyhow::Context;
use serde_json::json;
use swav_cuda::plans::{PlanBook, Selection};
use swav_cuda::shape::Element;

use super::Bench;
use super::found::{Found, Result};
use super::machines::{How, Open, on_card, scenarios};
use super::parity;

/// An encoder's steps again; on a card, whole trainings again, and without graphs.
pub fn part(bench: &Bench) -> Result {
    let repeats = parity::repeats(&bench.args.device)?;
    println!("an encoder's steps again: {}", verdict(repeats));
    let mut wrong = Vec::new();
    if !repeats {
        wrong.push("an encoder's steps gave other bits again".to_owned());
    }
    let Some(number) = bench.card else {
        return Ok(Found::with_wrong(json!({ "encoder": repeats }), wrong));
    };
    let mut found = trainings(&on_card(number))?;
    found.value["encoder"] = json!(repeats);
    found.wrong.extend(wrong);
    Ok(found)
}

/// Trainings from the same start: again, and without recorded graphs.
fn trainings(open: &Open<'_>) -> Result {
    let (mut each, mut wrong) = (Vec::new(), Vec::new());
    for scenario in scenarios(Element::Bf16) {
        let run = |graphs| anyhow::Ok(scenario.run(open(How { graphs, ..How::FIRST })?.as_mut())?);
        let recorded = run(true)?;
        let (again, eager) = (run(true)? == recorded, run(false)? == recorded);
        println!("{scenario}: again {}, without graphs {}", verdict(again), verdict(eager));
        wrong.extend(other_bits(&scenario, [("again", again), ("without graphs", eager)]));
        each.push(json!({ "scenario": scenario.to_string(), "again": again, "without_graphs": eager }));
    }
    Ok(Found::with_wrong(json!({ "trainings": each }), wrong))
}

/// Plans that one machine times and writes down, and another one adopts: the same choices and the same bits.
pub fn plans(open: &Open<'_>) -> Result {
    let [_, scenario, ..] = &scenarios(Element::Bf16);
    let mut first = open(How { selection: Selection::Fastest, graphs: true, cache: false })?;
    let outcome = scenario.run(first.as_mut())?;
    let book = first.plans().context("this machine has no plans to choose")?;
    let mut second = open(How { selection: Selection::First, graphs: true, cache: false })?;
    second.adopt_plans(&PlanBook::from_json(&book.to_json())?)?;
    let bits = scenario.run(second.as_mut())? == outcome;
    let adopted = second.plans().context("this machine has adopted no plans")?;
    let choices = adopted.plans().len() == book.plans().len()
        && adopted.plans().iter().zip(book.plans()).all(|(a, b)| a.choice == b.choice);
    let refused = second.n_refused_plans();
    let n = book.plans().len();
    println!("{n} plans: {}, the same choices {choices}, refused {refused}", verdict(bits));
    let wrong = [(bits, "other bits with adopted plans"), (choices, "other choices than those adopted")];
    let mut wrong: Vec<String> =
        wrong.into_iter().filter(|(right, _)| !right).map(|(_, what)| what.to_owned()).collect();
    if refused > 0 {
        wrong.push(format!("{refused} adopted plans were refused"));
    }
    let value = json!({ "plans": n, "bits": bits, "choices": choices, "refused": refused });
    Ok(Found::with_wrong(value, wrong))
}

/// How something that was done in several ways has given other bits, by those ways and whether they gave the same.
pub fn other_bits(what: &dyn Display, ways: [(&str, bool); 2]) -> impl Iterator<Item = String> {
    ways.into_iter().filter(|(_, same)| !same).map(move |(how, _)| format!("{what}: other bits {how}"))
}

fn verdict(same: bool) -> &'static str {
    if same { "the same bits" } else { "OTHER BITS" }
}

#[cfg(test)]
mod tests {
    use super::super::machines::tests::{Odd, on_host};
    use super::*;

    #[test]
    fn the_host_repeats_itself() {
        let found = trainings(&on_host).unwrap();
        assert_eq!(found.wrong, [""; 0]);
        assert_eq!(found.value["trainings"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn a_machine_that_does_something_else_without_graphs_is_found() {
        let open = |how: How| -> anyhow::Result<Box<dyn swav_cuda::machine::Machine>> {
            Ok(Box::new(Odd::new(if how.graphs { 1.0 } else { 1.001 }, 1)))
        };
        let found = trainings(&open).unwrap();
        assert_eq!(found.wrong.len(), 4, "{:?}", found.wrong);
        assert!(found.wrong.iter().all(|wrong| wrong.ends_with("other bits without graphs")));
    }

    #[test]
    fn plans_are_compared_with_those_adopted() {
        let found = plans(&|_| Ok(Box::new(Odd::new(1.0, 1)))).unwrap();
        assert_eq!(found.wrong, [""; 0]);
        assert_eq!(found.value["plans"], 1);
        // The second machine takes another engine, and learns at another rate.
        let open = |how: How| -> anyhow::Result<Box<dyn swav_cuda::machine::Machine>> {
            let is_first = how.selection == Selection::Fastest;
            Ok(Box::new(if is_first { Odd::new(1.0, 1) } else { Odd::new(0.5, 2) }))
        };
        let found = plans(&open).unwrap();
        assert_eq!(found.wrong.len(), 3, "{:?}", found.wrong);
    }

    #[test]
    fn a_machine_without_plans_says_so() {
        let error = plans(&on_host).unwrap_err();
        assert!(error.to_string().contains("no plans"), "{error}");
    }
}
