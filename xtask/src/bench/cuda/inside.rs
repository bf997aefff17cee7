//! A training step seen from inside of the card: its own clock, time by kind of operation, what was recorded, memory; and
//! whether steps of this size have the same bits again and without recorded graphs.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Map, Value, json};
use swav_cuda::Result;
use swav_cuda::exec::{Executor, ProgramId};
use swav_cuda::network::{Network, StepProgram};
use swav_cuda::plans::Selection;
use swav_cuda::self_test::{Scenario, kind};
use swav_cuda::shape::Element;
use swav_cuda::tape::{Op, PixelFormat, Report};

use super::bits::other_bits;
use super::engine::median;
use super::found::Found;
use super::machines::How;
use super::workload::Workload;

/// Steps of a measurement.
const STEPS: usize = 24;
/// The same without recorded graphs.
const STEPS_WITHOUT_GRAPHS: usize = 10;
/// Steps after which bits are compared.
const COMPARED: usize = 5;

/// Looks at a workload in mixed precision; other bits are noted as wrong.
pub fn look(number: usize, workload: &Workload, found: &mut Found) -> Result<Value> {
    println!("\n{}, inside of the card", workload.name);
    let start = Instant::now();
    let mut running = Running::new(number, workload, true)?;
    let ready = start.elapsed().as_secs_f64();
    let memory = running.executor.memory_use();
    println!("ready after {ready:.1} s; {:.2} GB: {memory:?}", memory.total() as f64 / 1e9);
    (0..4).try_for_each(|_| running.step())?;
    let first = running.report()?.loss;
    let nodes = running.executor.graph_nodes(running.id, 0);
    let (card, wall) = running.time(STEPS, false)?;
    println!("recorded: {card:.2} ms a step by the card, {wall:.2} in a row by the wall; {nodes:?} nodes");
    let (staged_card, staged) = running.time(STEPS, true)?;
    println!("with pixels from the host: {staged_card:.2} by the card, {staged:.2} in a row by the wall");
    let last = running.report()?.loss;
    println!("loss {first:.4} after 4 steps, {last:.4} after {}", running.serial);
    let kinds = running.profile()?;
    let alone: f32 = kinds.values().map(|(time, _)| time).sum();
    for (kind, (time, count)) in &kinds {
        println!("    {kind:24} {time:8.3} ms in {count}");
    }
    println!("    {:24} {alone:8.3} ms", "each alone, together");
    let recorded = running.end_of_steps()?;
    let again = running.end_of_steps()? == recorded;
    drop(running);
    let mut eager = Running::new(number, workload, false)?;
    let without = eager.end_of_steps()? == recorded;
    println!("{COMPARED} steps again: the same bits {again}; without graphs: {without}");
    let (eager_card, eager_wall) = eager.time(STEPS_WITHOUT_GRAPHS, false)?;
    println!("without graphs: {eager_card:.2} ms by the card, {eager_wall:.2} in a row by the wall\n");
    found.wrong.extend(other_bits(&workload.name, [("again", again), ("without graphs", without)]));
    Ok(json!({
        "card_ms": card, "wall_ms": wall, "staged_ms": staged, "nodes": nodes, "ready_s": ready,
        "bytes": memory.total(), "losses": [first, last], "alone_ms": alone,
        "kinds_ms": kinds.iter().map(|(kind, (time, _))| (kind.clone(), json!(time))).collect::<Map<_, _>>(),
        "again": again, "without_graphs": without, "without_graphs_ms": [eager_card, eager_wall],
    }))
}

/// A workload on an executor of its own.
struct Running {
    executor: Executor,
    id: ProgramId,
    program: StepProgram,
    scenario: Scenario,
    network: Network,
    serial: u32,
}

impl Running {
    fn new(number: usize, workload: &Workload, graphs: bool) -> Result<Self> {
        let scenario = Scenario {
            network: workload.network(),
            step: workload.step(),
            element: Element::Bf16,
            tf32: false,
            pixels: PixelFormat::U8 { scale: [1.0 / 64.0; 3], shift: [-2.0; 3] },
            n_steps: 1,
            open: 0.0,
        };
        let network = Network::new(scenario.network.clone());
        let program = scenario.program(&network);
        let mut executor = How { selection: Selection::Fastest, graphs, cache: true }.executor(number)?;
        let id = executor.load(program.program.clone())?;
        let mut running = Running { executor, id, program, scenario, network, serial: 0 };
        running.reset()?;
        running.executor.synchronise()?;
        Ok(running)
    }

    /// The start's parameters.
    fn reset(&mut self) -> Result<()> {
        self.serial = 0;
        self.scenario.prepare(&mut self.executor, &self.network, &self.program)?;
        self.stage()
    }

    /// Stages pixels for the next step, as fast as a loader that hands over what it has.
    fn stage(&mut self) -> Result<()> {
        for (group, (&buffer, shape)) in
            self.program.pixels.iter().zip(&self.scenario.step.groups).enumerate()
        {
            let bytes = shape.images * shape.height * shape.width * 3;
            self.executor.stage(self.id, buffer, bytes, |pixels| {
                let row: Vec<u8> = (0..4099).map(|i| ((i * 167 + group * 31) % 251) as u8).collect();
                pixels.chunks_mut(row.len()).for_each(|part| part.copy_from_slice(&row[..part.len()]));
            })?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let mut scalars = self.scenario.scalars(self.serial);
        scalars.classes.iter_mut().for_each(|class| class.lr = 0.3);
        self.serial += 1;
        self.executor.run(self.id, 0, &scalars)
    }

    fn report(&mut self) -> Result<Report> {
        let ticket = self.executor.fetch(self.id, self.program.report, Report::BYTES)?;
        let bytes = self.executor.take(ticket)?;
        Ok(bytes.first_chunk().map(Report::from_bytes).unwrap_or_default())
    }

    /// Milliseconds a step: median by the card's clock; and by the wall, the mean of steps in a row.
    fn time(&mut self, n_steps: usize, staged: bool) -> Result<(f64, f64)> {
        let mut times = Vec::new();
        self.executor.synchronise()?;
        for _ in 0..n_steps {
            if staged {
                self.stage()?;
            }
            let start = self.executor.mark()?;
            self.step()?;
            let end = self.executor.mark()?;
            times.push(f64::from(start.milliseconds_to(&end)?));
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
        Ok((median(&times), start.elapsed().as_secs_f64() * 1e3 / n_steps as f64))
    }

    /// Milliseconds by kind of operation, each alone, and how many there are.
    fn profile(&mut self) -> Result<BTreeMap<String, (f32, usize)>> {
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

    /// Parameters and loss after some steps from the start.
    fn end_of_steps(&mut self) -> Result<(Vec<u8>, u64)> {
        self.reset()?;
        (0..COMPARED).try_for_each(|_| self.step())?;
        let bytes = 4 * self.network.parameters().len;
        Ok((self.executor.read_persistent("parameters", 0..bytes)?, self.report()?.loss.to_bits()))
    }
}
