//! A network, crops and some steps, for any machine.

use std::fmt;

use crate::Result;
use crate::machine::Machine;
use crate::network::{Group, Network, NetworkSpec, Options, ParameterShape, StepProgram, StepSpec, padded};
use crate::shape::Element;
use crate::tape::{PixelFormat, Report, Rule, Scalars, ScoreShape};

/// Some steps of a network on noise.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// The network.
    pub network: NetworkSpec,
    /// What a step does beside it.
    pub step: StepSpec,
    /// How activations are stored.
    pub element: Element,
    /// Whether convolutions of f32 round to TF32.
    pub tf32: bool,
    /// How crops come.
    pub pixels: PixelFormat,
    /// Steps.
    pub n_steps: usize,
    /// What batch norms add at first. At 4 nearly all rectifiers are open, so that rounding does not decide which are,
    /// and errors show what is wrong.
    pub open: f32,
}

/// What a machine has after a [`Scenario`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// The loss of each step.
    pub losses: Vec<f32>,
    /// What a step reports beside the loss, of the last step.
    pub diagnostics: Vec<f32>,
    /// Momenta: sums over steps of the gradients.
    pub momenta: Vec<f32>,
    /// Changes of the parameters.
    pub changes: Vec<f32>,
    /// Running statistics.
    pub running: Vec<f32>,
    /// Momenta of the prototypes.
    pub prototypes: Vec<f32>,
}

impl Outcome {
    /// The parts by name.
    pub fn parts(&self) -> [(&'static str, &[f32]); 6] {
        [
            ("loss", &self.losses),
            ("diagnostics", &self.diagnostics),
            ("momenta", &self.momenta),
            ("changes of parameters", &self.changes),
            ("running statistics", &self.running),
            ("momenta of prototypes", &self.prototypes),
        ]
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NetworkSpec { stem, stem_channels, block, layers, .. } = &self.network;
        write!(f, "{stem:?} {block:?} {layers:?}, {stem_channels} channels, {}", self.arithmetic())
    }
}

impl Scenario {
    /// Three steps of SGD on four images: two large crops and one small one, of these sides.
    ///
    /// LARC and AdamW would scale up gradients that are nothing but rounding, such as that of a bias before a batch norm.
    pub fn new(network: NetworkSpec, sides: [usize; 2], element: Element) -> Scenario {
        let (batch, n_prototypes) = (4, 20);
        let group = |images, side| Group { images, height: side, width: side };
        let scores = ScoreShape {
            n_prototypes,
            stride: padded(n_prototypes),
            batch,
            n_crops: 3,
            assign: vec![0, 1],
            queue: 0,
            epsilon: 0.05,
            temperature: 0.1,
        };
        let groups = vec![group(2 * batch, sides[0]), group(batch, sides[1])];
        let step = StepSpec { groups, scores, n_iters: 3, rule: Rule::Sgd };
        let pixels = PixelFormat::F32;
        Scenario { network, step, element, tf32: false, pixels, n_steps: 3, open: 4.0 }
    }

    /// The same with a queue of so many rows for each crop that has codes.
    pub fn with_queue(mut self, rows: usize) -> Scenario {
        self.step.scores.queue = rows;
        self
    }

    /// The same with crops of bytes.
    pub fn with_bytes(mut self) -> Scenario {
        self.pixels =
            PixelFormat::U8 { scale: [1.0 / 96.0, 1.0 / 128.0, 1.0 / 144.0], shift: [-1.25, -1.0, -0.9] };
        self
    }

    /// The same with convolutions that round to TF32.
    pub fn with_tf32(mut self) -> Scenario {
        self.tf32 = true;
        self
    }

    /// What it computes with, in a word.
    pub fn arithmetic(&self) -> &'static str {
        match self.element {
            Element::F32 if self.tf32 => "TF32",
            Element::F32 => "F32",
            Element::Bf16 => "Bf16",
        }
    }

    /// The same with another rule of updates.
    pub fn with_rule(mut self, rule: Rule) -> Scenario {
        self.step.rule = rule;
        self
    }

    /// The program of a step.
    pub fn program(&self, network: &Network) -> StepProgram {
        let Scenario { element, tf32, pixels, .. } = *self;
        let options = Options { element, tf32, checkpointing: false, pixels };
        network.step(&self.step, &options)
    }

    /// The crops of a group as they come to a step: noise.
    pub fn crops(&self, group: usize) -> Vec<u8> {
        let Group { images, height, width } = self.step.groups[group];
        let values = noise(images * height * width * 3, 1 + group as u32);
        match self.pixels {
            PixelFormat::F32 => Element::F32.to_bytes(&values),
            PixelFormat::U8 { .. } => values.iter().map(|value| (128.0 + 127.0 * value) as u8).collect(),
        }
    }

    /// Runs the steps from the same start on any machine.
    ///
    /// # Errors
    /// The machine's.
    pub fn run(&self, machine: &mut dyn Machine) -> Result<Outcome> {
        let network = Network::new(self.network.clone());
        let step = self.program(&network);
        let id = machine.load(step.program.clone())?;
        let start = self.prepare(machine, &network, &step)?;
        let mut outcome = Outcome::default();
        for serial in 0..self.n_steps {
            for (group, &buffer) in step.pixels.iter().enumerate() {
                let pixels = self.crops(group);
                let mut fill = |bytes: &mut [u8]| bytes.copy_from_slice(&pixels);
                machine.stage(id, buffer, pixels.len(), &mut fill)?;
            }
            machine.run(id, 0, &self.scalars(serial as u32))?;
            let ticket = machine.fetch(id, step.report, Report::BYTES)?;
            let report = machine.take(ticket)?;
            let report = report.first_chunk().map(Report::from_bytes).unwrap_or_default();
            outcome.losses.push(report.loss as f32);
            let Report { code_entropy, code_perplexity, prediction_perplexity, spread, .. } = report;
            let Report { parameter_norm, gradient_norm, .. } = report;
            let rest =
                [code_entropy, code_perplexity, prediction_perplexity, spread, parameter_norm, gradient_norm];
            outcome.diagnostics = rest.map(|value| value as f32).to_vec();
        }
        let parameters = network.parameters();
        let floats = |bytes: Vec<u8>| Element::F32.to_values(&bytes);
        outcome.momenta = floats(machine.read_persistent("first", 0..4 * parameters.len)?);
        let end = floats(machine.read_persistent("parameters", 0..4 * parameters.len)?);
        outcome.changes = end.iter().zip(&start).map(|(end, start)| end - start).collect();
        outcome.running = floats(machine.read_persistent("running", 0..8 * parameters.norm_channels)?);
        let bytes = step.program.buffers[step.prototypes.first.0].bytes;
        outcome.prototypes = floats(machine.read_persistent("first of prototypes", 0..bytes)?);
        Ok(outcome)
    }

    /// Numbers of a step: the learning rate changes from step to step, and every other one clips gradients.
    pub fn scalars(&self, serial: u32) -> Scalars {
        let mut scalars = Scalars { serial, ..Scalars::default() };
        for class in &mut scalars.classes {
            class.lr = 0.1 * (1.0 + serial as f32);
            class.momentum = 0.9;
            class.weight_decay = 1e-4;
        }
        scalars.max_gradient_norm = (serial % 2 == 1).then_some(0.5);
        scalars
    }

    /// Writes parameters, momenta, running statistics and prototypes; returns the parameters.
    ///
    /// # Errors
    /// The machine's.
    pub fn prepare(
        &self,
        machine: &mut dyn Machine,
        network: &Network,
        step: &StepProgram,
    ) -> Result<Vec<f32>> {
        let parameters = network.parameters();
        let mut values = vec![0.0; parameters.len];
        for (index, parameter) in parameters.list.iter().enumerate() {
            let gamma = parameters.norms.iter().any(|norm| norm.gamma == index);
            let beta = parameters.norms.iter().any(|norm| norm.gamma + 1 == index);
            let (scale, shift) = match parameter.shape {
                ParameterShape::Conv { kernel, channels, .. } => {
                    ((6.0 / (kernel * kernel * channels) as f32).sqrt(), 0.0)
                }
                ParameterShape::StemRows { .. } => ((6.0 / 147.0_f32).sqrt(), 0.0),
                ParameterShape::Vector(_) if gamma => (0.2, 1.0),
                ParameterShape::Vector(_) if beta => (0.2, self.open),
                ParameterShape::Vector(_) => (0.1, 0.0),
            };
            let plain = noise(parameter.shape.len(), 100 + index as u32);
            let plain: Vec<f32> = plain.iter().map(|value| value * scale + shift).collect();
            let packed = parameter.shape.pack(&plain);
            values[parameter.at..][..packed.len()].copy_from_slice(&packed);
        }
        machine.write_persistent("parameters", 0, &Element::F32.to_bytes(&values))?;
        machine.write_persistent("first", 0, &vec![0; 4 * parameters.len])?;
        let mut running = vec![0.0; 2 * parameters.norm_channels];
        for norm in &parameters.norms {
            let channels = padded(norm.channels);
            running[2 * norm.at + channels..][..channels].fill(1.0);
        }
        machine.write_persistent("running", 0, &Element::F32.to_bytes(&running))?;
        let (rows, dim) = (self.step.scores.n_prototypes, self.network.embedding_dim());
        let mut prototypes = vec![0.0; self.step.scores.stride * padded(dim)];
        for (row, values) in prototypes.chunks_exact_mut(padded(dim)).take(rows).enumerate() {
            values[..dim].copy_from_slice(&noise(dim, 50_000 + row as u32));
        }
        machine.write_persistent("prototypes", 0, &Element::F32.to_bytes(&prototypes))?;
        let bytes = step.program.buffers[step.prototypes.first.0].bytes;
        machine.write_persistent("first of prototypes", 0, &vec![0; bytes])?;
        // The copies that convolutions read.
        let refresh = machine.load(network.refresh(self.element))?;
        machine.run(refresh, 0, &Scalars::default())?;
        Ok(values)
    }
}

/// Values between -1 and 1, the same for the same seed.
pub fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) ^ 0x85eb_ca6b;
    let mut next = move || {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / (u32::MAX / 2) as f32 - 1.0
    };
    (0..8).for_each(|_| {
        next();
    });
    (0..len).map(|_| next()).collect()
}
