//! The course of a call: part after part, whatever becomes of each, until the time is used up.

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Bench;
use super::found::{Found, Result};
use super::part::Part;

/// How long a part may go on after the time is used up.
const GRACE: Duration = Duration::from_secs(60);

/// Runs the parts; the bench's report has what they found.
pub fn run(bench: &Bench, parts: &[Part]) {
    watch(bench);
    for &part in parts {
        let obstacle = part.obstacle(bench).or(bench.clock.is_up().then_some("the time was used up"));
        match obstacle {
            Some(why) => bench.report().skip(part, why),
            None => one(bench, part, || part.work(bench)),
        }
    }
}

/// Runs a part; its failure and its panic are what it has found.
fn one(bench: &Bench, part: Part, work: impl FnOnce() -> Result) {
    println!("\n== {part}");
    bench.report().begin(part);
    let wrong = |reason: String| Found { wrong: vec![reason], ..Found::default() };
    let found = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => wrong(format!("{error:#}")),
        Err(panic) => wrong(format!("panic: {}", message(&*panic))),
    };
    found.wrong.iter().for_each(|reason| println!("WRONG: {reason}"));
    found.left_out.iter().for_each(|what| println!("left out: {what}"));
    let seconds = bench.report().end(found);
    println!("   ({part}: {seconds:.1} s)");
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

/// Ends the program where a part does not end, as one does that waits for a card that hangs: what was found until then is
/// printed, and a lent machine is not kept for nothing.
fn watch(bench: &Bench) {
    let (report, clock, device) = (Arc::clone(&bench.report), bench.clock, bench.args.device.clone());
    std::thread::spawn(move || {
        std::thread::sleep(clock.left() + GRACE);
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(part) = report.running() else { return };
        let reason = format!("it did not end within {} s after the time was used up", GRACE.as_secs());
        report.end(Found { wrong: vec![reason], ..Found::default() });
        print!("{report}");
        println!("{}", report.json(&device, &clock));
        let _ = std::io::stdout().flush();
        eprintln!("error: {part} did not end");
        // Not `exit`: the driver's exit handlers would wait for the card.
        std::process::abort();
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::args;
    use super::*;

    fn bench(line: &str) -> Bench {
        Bench::new(args(line).unwrap()).unwrap()
    }

    #[test]
    fn neither_failures_nor_panics_stop_what_follows() {
        let bench = bench("--device cpu");
        one(&bench, Part::Libs, || anyhow::bail!("no driver"));
        one(&bench, Part::Test, || panic!("index {}", 7));
        one(&bench, Part::Bits, || Ok(json!({ "all": true }).into()));
        let report = bench.report();
        assert_eq!(report.wrong(), ["libs: no driver", "test: panic: index 7"]);
        let json = report.json("cpu", &bench.clock);
        assert_eq!(json["parts"]["bits"]["found"]["all"], true);
        assert_eq!(json["parts"]["bits"]["outcome"], "ok");
        assert_eq!(json["parts"]["test"]["outcome"], "wrong");
    }

    #[test]
    fn what_there_is_no_time_for_is_skipped_and_no_failure() {
        let bench = bench("--device cpu --limit-s 0");
        run(&bench, &Part::ALL);
        let report = bench.report();
        assert!(report.wrong().is_empty());
        let skipped = report.json("cpu", &bench.clock)["skipped"].clone();
        assert_eq!(skipped, json!(Part::ALL.map(Part::name)));
        assert!(report.to_string().contains("the time was used up"), "{report}");
    }
}
