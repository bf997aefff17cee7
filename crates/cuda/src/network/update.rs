//! Programs without images: updates, sums of gradients, copies.

use super::{Gradients, Network, ParameterShape, Persistent};
use crate::shape::Element;
use crate::tape::{BufferId, Op, Program, Report, Role, Rule, Tape, UpdatedTensor};

/// The name of the persistent buffer that holds the gradients of this many groups of crops.
pub fn gradients_name(n_groups: usize) -> String {
    format!("gradients of {n_groups} groups")
}

/// The name of the persistent buffer that holds gradients that were added, f32, in the layout of the parameters.
pub const SUMMED: &str = "summed gradients";

/// Which gradients an update takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GradientSource {
    /// Those that a training program of this many groups left.
    Groups(usize),
    /// Those in the buffer [`SUMMED`].
    Summed,
}

impl Network {
    /// The network's parameters as an update takes them, with the gradients of a training program: weights are class 0,
    /// biases and parameters of norms class 1.
    pub(super) fn updated(
        &self,
        persistent: &Persistent,
        second: Option<BufferId>,
        (gradients, layout): (BufferId, &Gradients),
        element: Element,
    ) -> Vec<UpdatedTensor> {
        let list = self.parameters.list.iter().enumerate();
        list.map(|(i, parameter)| UpdatedTensor {
            value: persistent.parameters.at(4 * parameter.at),
            first: persistent.first.at(4 * parameter.at),
            second: second.map(|second| second.at(4 * parameter.at)),
            copy: persistent.copy.map(|copy| copy.at(element.bytes() * parameter.at)),
            gradient: gradients.at(layout.at[i]),
            gradient_step: layout.step[i],
            n_gradients: layout.count[i],
            element: layout.element[i],
            len: parameter.shape.padded_len(),
            class: usize::from(matches!(parameter.shape, ParameterShape::Vector(_))),
        })
        .collect()
    }

    /// Where gradients lie, and their buffer in a program.
    fn source(&self, program: &mut Program, source: GradientSource) -> (BufferId, Gradients) {
        let list = &self.parameters.list;
        let (name, layout) = match source {
            GradientSource::Groups(n) => (gradients_name(n), self.parameters.gradients(n, program.element)),
            GradientSource::Summed => {
                let layout = Gradients {
                    at: list.iter().map(|parameter| 4 * parameter.at).collect(),
                    step: vec![0; list.len()],
                    count: vec![1; list.len()],
                    element: vec![Element::F32; list.len()],
                    bytes: 4 * self.parameters.len,
                };
                (SUMMED.to_owned(), layout)
            }
        };
        (program.buffer(name, layout.bytes, Role::Persistent), layout)
    }

    /// Updates all parameters: one tape, and the buffer of its report.
    pub fn update(&self, source: GradientSource, rule: Rule, element: Element) -> (Program, BufferId) {
        let mut program = Program::new(element);
        let persistent = self.persistent(&mut program);
        let (gradients, layout) = self.source(&mut program, source);
        let second = (rule == Rule::AdamW)
            .then(|| program.buffer("second", 4 * self.parameters.len, Role::Persistent));
        let tensors = self.updated(&persistent, second, (gradients, &layout), element);
        let partials = program.partial_norms(&tensors);
        let report = program.buffer("report", Report::BYTES, Role::Output);
        let mut tape = Tape::default();
        tape.push(0, Op::Update { rule, tensors, partials, report: report.view() });
        program.tapes.push(tape);
        (program, report)
    }

    /// Adds the gradients of this many groups into the buffer [`SUMMED`].
    pub fn sum_gradients(&self, n_groups: usize, element: Element) -> Program {
        let mut program = Program::new(element);
        let persistent = self.persistent(&mut program);
        let (gradients, layout) = self.source(&mut program, GradientSource::Groups(n_groups));
        let tensors = self.updated(&persistent, None, (gradients, &layout), element);
        let out = program.buffer(SUMMED, 4 * self.parameters.len, Role::Persistent).view();
        let mut tape = Tape::default();
        tape.push(0, Op::SumGradients { tensors, parameters: persistent.parameters.view(), out });
        program.tapes.push(tape);
        program
    }

    /// Writes the copies that convolutions read, after parameters were set. Declares all buffers that are always there.
    pub fn refresh(&self, element: Element) -> Program {
        let mut program = Program::new(element);
        let persistent = self.persistent(&mut program);
        let mut tape = Tape::default();
        if let Some(copy) = persistent.copy {
            let op =
                Op::Round { from: persistent.parameters.view(), to: copy.view(), len: self.parameters.len };
            tape.push(0, op);
        }
        program.tapes.push(tape);
        program
    }
}
