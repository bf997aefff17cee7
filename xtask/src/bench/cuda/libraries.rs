//! The part `libs`: which libraries and cards are here, and whether the compiler gave the kernels enough registers.

use std::time::Instant;

use serde_json::{Map, Value, json};
use swav_cuda::driver::cards;
use swav_cuda::{kernels, libs};

use super::found::{Found, Result};
use super::machines::How;

/// Prints what is here, compiles the kernels unless they are in the cache, and looks for those that spill registers into memory, which none may.
pub fn part(number: usize) -> Result {
    let report = libs::report();
    print!("{report}");
    let cards: Vec<String> = cards()?.iter().map(ToString::to_string).collect();
    cards.iter().for_each(|card| println!("{card}"));
    let versions: Map<String, Value> = report
        .libraries
        .iter()
        .map(|(library, found)| {
            (format!("{library:?}"), json!(found.as_ref().ok().map(|found| &found.version)))
        })
        .collect();
    let start = Instant::now();
    let executor = How::FIRST.executor(number)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("kernels ready and cuDNN opened after {seconds:.2} s");
    let mut spilled = Vec::new();
    for &name in kernels::NAMES {
        let resources = executor.module().resources(name)?;
        if resources.spilled > 0 {
            spilled.push(format!("{name} spills: {resources:?}"));
        }
    }
    let value = json!({ "versions": versions, "cards": cards, "seconds_to_open": seconds });
    Ok(Found::with_wrong(value, spilled))
}
