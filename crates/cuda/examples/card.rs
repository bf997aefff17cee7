//! Everything that needs a card, in one run: what was found, the self-test, each operation against the host, plans,
//! determinism, speed of two workloads. Prints tables, then one line of JSON.
//!
//! `card [PART...]`: only these parts (`libs`, `test`, `operations`, `networks`, `bits`, `plans`, `resnet18`,
//! `resnet50`, `full`); without any, all. One part's failure does not stop the others.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};
use swav_cuda::driver::{Card, cards};
use swav_cuda::exec::{Executor, ExecutorOptions, ProgramId};
use swav_cuda::network::{BlockKind, Group, Head, Network, NetworkSpec, Stem, StepProgram, StepSpec, padded};
use swav_cuda::plans::Selection;
use swav_cuda::self_test::{Check, Scenario, check_operations, compare, kind, self_test};
use swav_cuda::shape::Element;
use swav_cuda::tape::{Op, PixelFormat, Report, Rule, ScoreShape};
use swav_cuda::{kernels, libs};

type Outcome = Result<Value, Box<dyn std::error::Error>>;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let start = Instant::now();
    let mut results = Map::new();
    let mut part = |name: &str, work: &mut dyn FnMut() -> Outcome| {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            return;
        }
        let begun = Instant::now();
        println!("\n== {name}");
        let value = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => {
                let mut text = error.to_string();
                let mut cause = error.source();
                while let Some(error) = cause {
                    text.push_str(&format!(": {error}"));
                    cause = error.source();
                }
                println!("FAILED: {text}");
                json!({ "failed": text })
            }
            Err(_) => json!({ "failed": "panic" }),
        };
        println!("   ({name}: {:.1} s)", begun.elapsed().as_secs_f64());
        results.insert(name.to_owned(), value);
    };
    part("libs", &mut libraries);
    part("test", &mut test);
    part("operations", &mut operations);
    part("networks", &mut networks);
    part("bits", &mut bits);
    part("plans", &mut plans);
    part("resnet18", &mut || workload(&resnet18(), Element::Bf16));
    part("resnet50", &mut || workload(&resnet50(), Element::Bf16));
    part("full", &mut || workload(&resnet50(), Element::F32));
    results.insert("seconds".into(), json!(start.elapsed().as_secs_f64()));
    println!("\n{}", Value::Object(results));
}

fn card() -> swav_cuda::Result<Arc<Card>> {
    Card::open(0)
}

fn libraries() -> Outcome {
    let report = libs::report();
    print!("{report}");
    let cards = cards()?;
    cards.iter().for_each(|card| println!("{card}"));
    let versions: Map<String, Value> = report
        .libraries
        .iter()
        .map(|(library, found)| {
            (format!("{library:?}"), json!(found.as_ref().ok().map(|found| &found.version)))
        })
        .collect();
    let start = Instant::now();
    let executor = Executor::new(&card()?, ExecutorOptions { cache: None, ..ExecutorOptions::default() })?;
    println!("kernels compiled and loaded, cuDNN opened: {:.2} s", start.elapsed().as_secs_f64());
    let mut spilled = Vec::new();
    for &name in kernels::NAMES {
        let resources = executor.module().resources(name)?;
        if resources.spilled > 0 {
            println!("{name}: {resources:?}");
            spilled.push(name);
        }
    }
    let cards: Vec<String> = cards.iter().map(ToString::to_string).collect();
    Ok(json!({ "versions": versions, "cards": cards, "spilled": spilled }))
}

/// Prints checks and gathers them.
fn checked(checks: &[Check]) -> Value {
    let failed = checks.iter().filter(|check| !check.passes()).count();
    checks.iter().for_each(|check| println!("{check}"));
    println!("{} of {} pass", checks.len() - failed, checks.len());
    let errors: Map<String, Value> =
        checks.iter().map(|check| (check.name.clone(), json!(check.error.min(1e30)))).collect();
    json!({ "failed": failed, "errors": errors })
}

fn test() -> Outcome {
    let options = ExecutorOptions { selection: Selection::First, ..ExecutorOptions::default() };
    let result = self_test(&card()?, options)?;
    println!("{:.2} s", result.seconds);
    Ok(checked(&result.checks))
}

fn spec(stem: Stem, channels: usize, block: BlockKind, layers: &[usize], head: Head) -> NetworkSpec {
    NetworkSpec { stem, stem_channels: channels, block, layers: layers.to_vec(), head }
}

/// Scenarios that take every path: stems, blocks, heads, odd channels, queues, rules.
fn scenarios(element: Element) -> Vec<Scenario> {
    let mlp = Head::Mlp { hidden: 72, dim: 24 };
    vec![
        Scenario::new(spec(Stem::Cifar, 16, BlockKind::Basic, &[1, 1], mlp), [15, 8], element),
        Scenario::new(spec(Stem::Imagenet, 16, BlockKind::Bottleneck, &[2, 1], mlp), [42, 27], element),
        Scenario::new(
            spec(Stem::Imagenet, 12, BlockKind::Basic, &[1, 1, 1], Head::Linear { dim: 20 }),
            [33, 32],
            element,
        ),
        Scenario::new(spec(Stem::Cifar, 40, BlockKind::Bottleneck, &[1, 1], Head::None), [10, 7], element),
    ]
}

fn executor(selection: Selection, graphs: bool) -> swav_cuda::Result<Executor> {
    Executor::new(&card()?, ExecutorOptions { selection, graphs, ..ExecutorOptions::default() })
}

fn operations() -> Outcome {
    let mut checks: BTreeMap<String, Check> = BTreeMap::new();
    let mut failures = Vec::new();
    for element in [Element::F32, Element::Bf16] {
        let rules = [Rule::Larc, Rule::Sgd, Rule::AdamW, Rule::Larc];
        for (scenario, rule) in scenarios(element).into_iter().zip(rules) {
            let scenario = scenario.with_rule(rule).with_queue(if rule == Rule::Sgd { 8 } else { 0 });
            let mut executor = executor(Selection::First, false)?;
            match check_operations(&mut executor, &scenario) {
                Ok(found) => {
                    for check in found {
                        let kind = check.name.rsplit(", ").next().unwrap_or_default();
                        let worst =
                            checks.entry(format!("{element:?} {kind}")).or_insert_with(|| check.clone());
                        if check.error / check.limit > worst.error / worst.limit {
                            *worst = check;
                        }
                    }
                }
                Err(error) => {
                    println!("{scenario}: FAILED: {error}");
                    failures.push(format!("{scenario}: {error}"));
                }
            }
        }
    }
    let mut value = checked(&checks.into_values().collect::<Vec<_>>());
    value["errors_of_runs"] = json!(failures);
    Ok(value)
}

fn networks() -> Outcome {
    let mut checks = Vec::new();
    for element in [Element::F32, Element::Bf16] {
        for scenario in scenarios(element) {
            let mut executor = executor(Selection::First, true)?;
            match compare(&mut executor, &scenario) {
                Ok(found) => checks.extend(found),
                Err(error) => println!("{scenario}: FAILED: {error}"),
            }
        }
    }
    Ok(checked(&checks))
}

/// Runs from the same start: again, and without recorded graphs.
fn bits() -> Outcome {
    let mut equal = Vec::new();
    for scenario in scenarios(Element::Bf16) {
        let recorded = scenario.run(&mut executor(Selection::First, true)?)?;
        let again = scenario.run(&mut executor(Selection::First, true)?)?;
        let eager = scenario.run(&mut executor(Selection::First, false)?)?;
        equal.push([again == recorded, eager == recorded]);
        println!("{scenario}: again {}, without graphs {}", again == recorded, eager == recorded);
    }
    Ok(json!({ "all": equal.iter().flatten().all(|&equal| equal), "each": equal }))
}

/// Choices that one executor makes and another adopts.
fn plans() -> Outcome {
    let scenario = &scenarios(Element::Bf16)[1];
    let mut first = Executor::new(&card()?, ExecutorOptions { cache: None, ..ExecutorOptions::default() })?;
    let outcome = scenario.run(&mut first)?;
    let book = first.planner().book();
    let text = book.to_json();
    let mut second =
        Executor::new(&card()?, ExecutorOptions { cache: None, selection: Selection::First, graphs: true })?;
    second.planner().adopt(&swav_cuda::plans::PlanBook::from_json(&text)?)?;
    let same = scenario.run(&mut second)? == outcome;
    let same_book =
        second.planner().book().plans().iter().zip(book.plans()).all(|(a, b)| a.choice == b.choice);
    let refused = second.planner().refused().len();
    println!(
        "{} plans; the same bits {same}, the same choices {same_book}, refused {refused}",
        book.plans().len()
    );
    Ok(json!({ "plans": book.plans().len(), "bits": same, "choices": same_book, "refused": refused }))
}

/// A training step to time.
struct Workload {
    name: &'static str,
    network: NetworkSpec,
    step: StepSpec,
}

fn step(batch: usize, crops: [(usize, usize); 2], n_prototypes: usize) -> StepSpec {
    let group = |(count, side): (usize, usize)| Group { images: count * batch, height: side, width: side };
    let scores = ScoreShape {
        n_prototypes,
        stride: padded(n_prototypes),
        batch,
        n_crops: crops[0].0 + crops[1].0,
        assign: vec![0, 1],
        queue: 0,
        epsilon: 0.05,
        temperature: 0.1,
    };
    StepSpec { groups: crops.map(group).to_vec(), scores, n_iters: 3, rule: Rule::Larc }
}

fn resnet50() -> Workload {
    let head = Head::Mlp { hidden: 2048, dim: 128 };
    let network = spec(Stem::Imagenet, 64, BlockKind::Bottleneck, &[3, 4, 6, 3], head);
    Workload {
        name: "ResNet-50, 64 images, 2x224 + 6x96",
        network,
        step: step(64, [(2, 224), (6, 96)], 3000),
    }
}

fn resnet18() -> Workload {
    let head = Head::Mlp { hidden: 512, dim: 128 };
    let network = spec(Stem::Cifar, 64, BlockKind::Basic, &[2, 2, 2, 2], head);
    Workload {
        name: "ResNet-18 CIFAR, 256 images, 2x32 + 4x16",
        network,
        step: step(256, [(2, 32), (4, 16)], 100),
    }
}

fn median(mut values: Vec<f32>) -> f32 {
    values.sort_unstable_by(f32::total_cmp);
    values[values.len() / 2]
}

/// A workload on an executor.
struct Running {
    executor: Executor,
    id: ProgramId,
    program: StepProgram,
    scenario: Scenario,
    network: Network,
    serial: u32,
}

impl Running {
    fn new(workload: &Workload, element: Element, graphs: bool) -> Result<Self, swav_cuda::Error> {
        let scenario = Scenario {
            network: workload.network.clone(),
            step: workload.step.clone(),
            element,
            tf32: false,
            pixels: PixelFormat::U8 { scale: [1.0 / 64.0; 3], shift: [-2.0; 3] },
            n_steps: 1,
            open: 0.0,
        };
        let network = Network::new(workload.network.clone());
        let program = scenario.program(&network);
        let mut executor = executor(Selection::Fastest, graphs)?;
        let id = executor.load(program.program.clone())?;
        let mut running = Running { executor, id, program, scenario, network, serial: 0 };
        running.reset()?;
        Ok(running)
    }

    /// The start's parameters.
    fn reset(&mut self) -> Result<(), swav_cuda::Error> {
        self.serial = 0;
        self.scenario.prepare(&mut self.executor, &self.network, &self.program)?;
        self.stage()
    }

    /// Stages pixels for the next step.
    fn stage(&mut self) -> Result<(), swav_cuda::Error> {
        for (group, (&buffer, shape)) in
            self.program.pixels.iter().zip(&self.scenario.step.groups).enumerate()
        {
            let bytes = shape.images * shape.height * shape.width * 3;
            self.executor.stage(self.id, buffer, bytes, |pixels| {
                // As fast as a loader that hands over what it has.
                let row: Vec<u8> = (0..4099).map(|i| ((i * 167 + group * 31) % 251) as u8).collect();
                pixels.chunks_mut(row.len()).for_each(|part| part.copy_from_slice(&row[..part.len()]));
            })?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), swav_cuda::Error> {
        let mut scalars = self.scenario.scalars(self.serial);
        scalars.classes.iter_mut().for_each(|class| class.lr = 0.3);
        self.serial += 1;
        self.executor.run(self.id, 0, &scalars)
    }

    fn report(&mut self) -> Result<Report, swav_cuda::Error> {
        let ticket = self.executor.fetch(self.id, self.program.report, Report::BYTES)?;
        let bytes = self.executor.take(ticket)?;
        Ok(bytes.first_chunk().map(Report::from_bytes).unwrap_or_default())
    }

    /// Milliseconds a step: median by the card's clock, each waited for; and by the wall, in a row.
    fn time(&mut self, n_steps: usize, staged: bool) -> Result<(f32, f32), swav_cuda::Error> {
        let mut times = Vec::new();
        self.executor.synchronise()?;
        for _ in 0..n_steps {
            if staged {
                self.stage()?;
            }
            let start = self.executor.mark()?;
            self.step()?;
            let end = self.executor.mark()?;
            times.push(start.milliseconds_to(&end)?);
        }
        self.executor.synchronise()?;
        let start = Instant::now();
        for _ in 0..n_steps {
            if staged {
                self.stage()?;
            }
            self.step()?;
        }
        self.executor.synchronise()?;
        Ok((median(times), start.elapsed().as_secs_f32() * 1e3 / n_steps as f32))
    }

    /// Milliseconds by kind of operation, each alone.
    fn profile(&mut self) -> Result<BTreeMap<String, (f32, usize)>, swav_cuda::Error> {
        let scalars = self.scenario.scalars(self.serial);
        self.executor.profile(self.id, 0, &scalars)?;
        let times = self.executor.profile(self.id, 0, &scalars)?;
        let mut kinds: BTreeMap<String, (f32, usize)> = BTreeMap::new();
        for (node, time) in self.program.program.tapes[0].nodes.iter().zip(times) {
            if !matches!(node.op, Op::Wait { .. }) {
                let (sum, count) = kinds.entry(kind(&node.op)).or_default();
                *sum += time;
                *count += 1;
            }
        }
        Ok(kinds)
    }

    fn parameters(&mut self) -> Result<Vec<u8>, swav_cuda::Error> {
        self.executor.read_persistent("parameters", 0..4 * self.network.parameters().len)
    }
}

fn workload(workload: &Workload, element: Element) -> Outcome {
    println!("{}, {element:?}", workload.name);
    let start = Instant::now();
    let mut running = Running::new(workload, element, true)?;
    let load = start.elapsed().as_secs_f32();
    running.executor.synchronise()?;
    let memory = running.executor.memory_use();
    println!("ready after {load:.1} s; {:.2} GB: {memory:?}", memory.total() as f64 / 1e9);
    let n_steps = if element == Element::F32 { 6 } else { 24 };
    for _ in 0..4 {
        running.step()?;
    }
    let first = running.report()?;
    let nodes = running.executor.graph_nodes(running.id, 0);
    let (card, wall) = running.time(n_steps, false)?;
    println!("recorded: {card:.2} ms a step by the card, {wall:.2} in a row by the wall; {nodes:?} nodes");
    let (staged_card, staged) = running.time(n_steps, true)?;
    println!("with pixels from the host: {staged_card:.2} by the card, {staged:.2} in a row by the wall");
    let last = running.report()?;
    println!("loss {:.4} after 4 steps, {:.4} after {}", first.loss, last.loss, running.serial);
    let profile = running.profile()?;
    let sum: f32 = profile.values().map(|(time, _)| time).sum();
    for (kind, (time, count)) in &profile {
        println!("    {kind:24} {time:8.3} ms in {count}");
    }
    println!("    {:24} {sum:8.3} ms", "each alone, together");
    let mut ends = Vec::new();
    for _ in 0..2 {
        running.reset()?;
        for _ in 0..5 {
            running.step()?;
        }
        ends.push((running.parameters()?, running.report()?.loss.to_bits()));
    }
    let mut value = json!({
        "ms": card, "ms_in_a_row": wall, "ms_staged": staged, "nodes": nodes, "seconds_to_load": load,
        "bytes": memory.total(), "losses": [first.loss, last.loss], "alone": sum,
        "kinds": profile.iter().map(|(kind, (time, _))| (kind.clone(), json!(time))).collect::<Map<_, _>>(),
    });
    drop(running);
    let mut eager = Running::new(workload, element, false)?;
    for _ in 0..5 {
        eager.step()?;
    }
    ends.push((eager.parameters()?, eager.report()?.loss.to_bits()));
    let same = [ends[1] == ends[0], ends[2] == ends[0]];
    println!("5 steps again: the same bits {}; without graphs: {}", same[0], same[1]);
    let (card, wall) = eager.time(n_steps.min(10), false)?;
    println!("without graphs: {card:.2} ms by the card, {wall:.2} in a row by the wall");
    value["same_bits"] = json!(same);
    value["ms_without_graphs"] = json!([card, wall]);
    Ok(value)
}
