//! Each operation of a step by itself, on the card and on the host, from the same memory.

use std::collections::{BTreeMap, BTreeSet};

use super::Check;
use super::outputs::{addends, outputs};
use super::scenario::Scenario;
use crate::Result;
use crate::machine::{HostMachine, Machine};
use crate::network::Network;
use crate::shape::Element;
use crate::tape::{BufferId, Op, Program, Role, Scalars, Tape};

/// The largest relative error of a convolution by TF32: a card may cut off bits that the host rounds, which is up to one part
/// in 1024 of each factor.
const TF32_LIMIT: f64 = 2e-3;

/// Runs the operations of a scenario's step one by one, each on what the host has, and returns the largest error of
/// each kind.
///
/// Half of the rectifiers are closed, whatever the scenario says: with all of them open a network is linear from norm to
/// norm, and sums over rows of its gradients are zero but for rounding.
///
/// # Errors
/// The machine's.
pub fn check_operations(card: &mut dyn Machine, scenario: &Scenario) -> Result<Vec<Check>> {
    let scenario = &Scenario { open: 0.0, ..scenario.clone() };
    let network = Network::new(scenario.network.clone());
    let step = scenario.program(&network);
    let program = one_by_one(&step.program);
    let mut host = HostMachine::new();
    let ids = [host.load(program.clone())?, card.load(program.clone())?];
    scenario.prepare(&mut host, &network, &step)?;
    for (group, &buffer) in step.pixels.iter().enumerate() {
        host.write_persistent(&program.buffers[buffer.0].name, 0, &scenario.crops(group))?;
    }
    let scalars = Scalars { queue_ready: true, queue_push: true, ..scenario.scalars(0) };
    let mut worst: BTreeMap<String, Check> = BTreeMap::new();
    for (tape, nodes) in program.tapes.iter().enumerate() {
        let Some(op) = nodes.nodes.first().map(|node| &node.op) else { continue };
        let touched: BTreeSet<BufferId> = op.views().into_iter().map(|view| view.buffer).collect();
        let buffers: Vec<(&str, usize)> =
            touched.iter().map(|id| &program.buffers[id.0]).map(|b| (b.name.as_str(), b.bytes)).collect();
        for &(name, bytes) in &buffers {
            let values = host.read_persistent(name, 0..bytes)?;
            card.write_persistent(name, 0, &to_card(name, values))?;
        }
        host.run(ids[0], tape, &scalars)?;
        card.run(ids[1], tape, &scalars)?;
        for output in outputs(op, program.element) {
            let name = program.buffers[output.view.buffer.0].name.as_str();
            let range = output.view.offset..output.view.offset + output.bytes;
            let right = to_card(name, host.read_persistent(name, range.clone())?);
            let got = card.read_persistent(name, range)?;
            let (mut error, mut limit) = output.kind.error(&got, &right);
            if matches!(op, Op::Conv { shape, .. } if program.rounds(shape)) {
                limit = TF32_LIMIT;
            }
            if let Some((view, rows, channels)) = addends(op) {
                let name = program.buffers[view.buffer.0].name.as_str();
                let bytes = rows * channels * program.element.bytes();
                let values = host.read_persistent(name, view.offset..view.offset + bytes)?;
                error = absolute(&got, &right) / sums(&program.element.to_values(&values), channels);
            }
            let check = Check { name: format!("{scenario}, {}", kind(op)), error, limit };
            let known = worst.entry(kind(op)).or_insert_with(|| check.clone());
            if error / limit > known.error / known.limit {
                *known = check;
            }
        }
    }
    Ok(worst.into_values().collect())
}

/// The Euclidean norm of a difference of f32.
fn absolute(got: &[u8], right: &[u8]) -> f64 {
    let (got, right) = (Element::F32.to_values(got), Element::F32.to_values(right));
    let squares = got.iter().zip(&right).map(|(got, right)| (f64::from(*got) - f64::from(*right)).powi(2));
    squares.sum::<f64>().sqrt()
}

/// The Euclidean norm, over channels, of the sums of absolute values.
fn sums(values: &[f32], channels: usize) -> f64 {
    let mut sums = vec![0.0; channels];
    for row in values.chunks_exact(channels) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(value.abs()));
    }
    sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt().max(1e-60)
}

/// The program with each operation as a tape of its own, over buffers that share no memory and outlive runs.
fn one_by_one(program: &Program) -> Program {
    let mut alone = Program { tapes: Vec::new(), ..program.clone() };
    for (id, buffer) in alone.buffers.iter_mut().enumerate() {
        if buffer.role != Role::Persistent {
            buffer.name = format!("{} (buffer {id})", buffer.name);
            buffer.role = Role::Persistent;
        }
    }
    for node in program.tapes.iter().flat_map(|tape| &tape.nodes) {
        if !matches!(node.op, Op::Wait { .. }) {
            let mut tape = Tape::default();
            tape.push(0, node.op.clone());
            alone.tapes.push(tape);
        }
    }
    alone
}

/// The name of an operation; of convolutions, the pass too.
pub fn kind(op: &Op) -> String {
    let text = match op {
        Op::Conv { pass, accumulate: false, .. } => format!("Conv{pass:?}"),
        Op::Conv { pass, accumulate: true, .. } => format!("Conv{pass:?}Added"),
        other => format!("{other:?}"),
    };
    text.chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// Potentials are logarithms to the base e on the host, to the base 2 on the card.
fn to_card(name: &str, bytes: Vec<u8>) -> Vec<u8> {
    if !name.contains("potentials") {
        return bytes;
    }
    let values = Element::F32.to_values(&bytes);
    Element::F32.to_bytes(&values.iter().map(|value| value * std::f32::consts::LOG2_E).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{BlockKind, Head, NetworkSpec, Stem};

    /// The host in the card's place, but for the base of logarithms: all but what potentials touch agrees exactly.
    #[test]
    fn the_host_agrees_with_itself() {
        let network = NetworkSpec {
            stem: Stem::Cifar,
            stem_channels: 8,
            block: BlockKind::Basic,
            layers: vec![1],
            head: Head::Linear { dim: 8 },
        };
        let scenario = Scenario::new(network, [8, 6], Element::F32);
        let checks = check_operations(&mut HostMachine::new(), &scenario).expect("runs");
        assert!(checks.len() > 15, "{checks:?}");
        let others =
            checks.iter().filter(|check| !check.name.ends_with("Codes") && !check.name.ends_with("Loss"));
        for check in others {
            assert_eq!(check.error, 0.0, "{check}");
        }
    }
}
