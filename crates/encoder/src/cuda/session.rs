//! A network on a machine: its programs, made when they are first wanted, and its values.

use std::collections::HashMap;
use std::ops::Range;

use ndarray::{Array2, ArrayView4};
use swav_cuda::machine::Machine;
use swav_cuda::network::{
    GradientSource, Gradients, Group, InferProgram, Network, Options, Output, SUMMED, TrainProgram,
    gradients_name, padded,
};
use swav_cuda::shape::Element;
use swav_cuda::tape::{BufferId, Program, Report, Role, Rule, Scalars};

use super::values::{fill, strip};
use crate::EncoderError;

/// A failure of the machine.
pub(super) fn failed(device: &str, error: swav_cuda::Error) -> EncoderError {
    let device = device.to_owned();
    match error {
        swav_cuda::Error::OutOfMemory { .. } => {
            EncoderError::OutOfMemory { device, memory: None, source: Box::new(error) }
        }
        error => EncoderError::Device { device, source: Box::new(error) },
    }
}

/// A loaded training program.
#[derive(Clone, Copy)]
pub(super) struct Train {
    program: usize,
    output: BufferId,
    gradient: BufferId,
}

/// The network on the machine.
pub(super) struct Session {
    device: String,
    pub(super) machine: Box<dyn Machine>,
    pub(super) network: Network,
    pub(super) options: Options,
    refresh: usize,
    /// Whether parameters were set since their copies were made.
    stale: bool,
    train: HashMap<Vec<Group>, (Train, Vec<BufferId>)>,
    infer: HashMap<(Group, Output), (usize, InferProgram)>,
    updates: HashMap<(GradientSource, Rule), (usize, BufferId)>,
    sums: HashMap<usize, usize>,
    /// What the next backward pass belongs to.
    recorded: Option<Train>,
    /// Where the gradients are.
    pub(super) gradients: Option<GradientSource>,
    /// The groups of the last recorded pass.
    n_groups: usize,
    /// Convolutions whose stored plans could not be taken, of which was told.
    n_refused: usize,
}

/// The group of images of this shape.
pub(super) fn group_of([images, height, width, _]: [usize; 4]) -> Group {
    Group { images, height, width }
}

impl Session {
    pub(super) fn new(
        device: &str,
        mut machine: Box<dyn Machine>,
        network: Network,
        options: Options,
    ) -> Result<Self, EncoderError> {
        let refresh =
            machine.load(network.refresh(options.element)).map_err(|error| failed(device, error))?;
        Ok(Session {
            device: device.to_owned(),
            machine,
            network,
            options,
            refresh,
            stale: true,
            train: HashMap::new(),
            infer: HashMap::new(),
            updates: HashMap::new(),
            sums: HashMap::new(),
            recorded: None,
            gradients: None,
            n_groups: 1,
            n_refused: 0,
        })
    }

    pub(super) fn fail(&self, error: swav_cuda::Error) -> EncoderError {
        failed(&self.device, error)
    }

    pub(super) fn load(&mut self, program: Program) -> Result<usize, EncoderError> {
        self.make_ready(program).map_err(|error| failed(&self.device, error))
    }

    /// Loads a program, and tells where a stored plan could not be taken.
    pub(super) fn make_ready(&mut self, program: Program) -> swav_cuda::Result<usize> {
        let id = self.machine.load(program)?;
        let n_refused = self.machine.n_refused_plans();
        if n_refused > self.n_refused {
            tracing::warn!(
                "{}: the stored plans of {} convolutions could not be taken and others were chosen; results may differ in their \
                 last bits",
                self.device,
                n_refused - self.n_refused
            );
            self.n_refused = n_refused;
        }
        Ok(id)
    }

    pub(super) fn run(&mut self, program: usize, tape: usize, scalars: &Scalars) -> Result<(), EncoderError> {
        self.machine.run(program, tape, scalars).map_err(|error| failed(&self.device, error))
    }

    /// Brings copies up to date before a pass reads them.
    pub(super) fn refresh(&mut self) -> Result<(), EncoderError> {
        if std::mem::take(&mut self.stale) && self.options.element != Element::F32 {
            self.run(self.refresh, 0, &Scalars::default())?;
        }
        Ok(())
    }

    /// Copies have to be made again before the next pass.
    pub(super) fn touched(&mut self) {
        self.stale = true;
    }

    /// Makes room for the optimiser's second moment.
    pub(super) fn declare_second(&mut self) -> Result<(), EncoderError> {
        let mut program = Program::new(self.options.element);
        program.buffer("second", 4 * self.network.parameters().len, Role::Persistent);
        self.load(program).map(drop)
    }

    pub(super) fn forget(&mut self) {
        self.recorded = None;
        self.gradients = None;
    }

    pub(super) fn read_floats(&mut self, name: &str, values: Range<usize>) -> Result<Vec<f32>, EncoderError> {
        let bytes = self.machine.read_persistent(name, 4 * values.start..4 * values.end);
        Ok(Element::F32.to_values(&bytes.map_err(|error| failed(&self.device, error))?))
    }

    pub(super) fn write_floats(&mut self, name: &str, at: usize, values: &[f32]) -> Result<(), EncoderError> {
        let bytes = Element::F32.to_bytes(values);
        self.machine.write_persistent(name, 4 * at, &bytes).map_err(|error| failed(&self.device, error))
    }

    fn stage(
        &mut self,
        program: usize,
        id: BufferId,
        images: &ArrayView4<'_, f32>,
    ) -> Result<(), EncoderError> {
        let staged = self.machine.stage(program, id, 4 * images.len(), &mut |bytes| fill(images, bytes));
        staged.map_err(|error| failed(&self.device, error))
    }

    /// The training program for these groups.
    fn train_program(&mut self, groups: &[Group]) -> Result<(Train, Vec<BufferId>), EncoderError> {
        if let Some((train, pixels)) = self.train.get(groups) {
            return Ok((*train, pixels.clone()));
        }
        let TrainProgram { program, pixels, output, gradient, .. } =
            self.network.train(groups, &self.options);
        let train = Train { program: self.load(program)?, output, gradient };
        self.train.insert(groups.to_vec(), (train, pixels.clone()));
        Ok((train, pixels))
    }

    /// A forward pass in training mode; the head's rows.
    pub(super) fn forward_train(
        &mut self,
        images: &[ArrayView4<'_, f32>],
        momentum: f32,
        record: bool,
    ) -> Result<Array2<f32>, EncoderError> {
        self.forget();
        self.refresh()?;
        let groups: Vec<Group> = images.iter().map(|images| group_of(images.dim().into())).collect();
        let (train, pixels) = self.train_program(&groups)?;
        for (&id, images) in pixels.iter().zip(images) {
            self.stage(train.program, id, images)?;
        }
        self.run(train.program, 0, &Scalars { bn_momentum: momentum, ..Scalars::default() })?;
        if record {
            self.recorded = Some(train);
            self.n_groups = groups.len();
        }
        let rows = groups.iter().map(|group| group.images).sum();
        self.rows(train.program, train.output, rows, self.network.spec().embedding_dim())
    }

    /// Rows of an output.
    fn rows(
        &mut self,
        program: usize,
        id: BufferId,
        rows: usize,
        dim: usize,
    ) -> Result<Array2<f32>, EncoderError> {
        let bytes = self.machine.read(program, id, 0..4 * rows * padded(dim));
        let values =
            strip(&Element::F32.to_values(&bytes.map_err(|error| failed(&self.device, error))?), dim);
        let shaped = Array2::from_shape_vec((rows, dim), values);
        Ok(shaped.unwrap_or_else(|_| unreachable!("rows were counted")))
    }

    /// The backward pass of the recorded forward pass.
    pub(super) fn backward(&mut self, gradient: Vec<f32>) -> Result<(), EncoderError> {
        let train = self.recorded.take().ok_or(EncoderError::NoForward)?;
        let bytes = Element::F32.to_bytes(&gradient);
        let copy = |slot: &mut [u8]| slot.copy_from_slice(&bytes);
        let staged = self.machine.stage(train.program, train.gradient, bytes.len(), &mut { copy });
        staged.map_err(|error| failed(&self.device, error))?;
        self.run(train.program, 1, &Scalars::default())?;
        self.gradients = Some(GradientSource::Groups(self.n_groups));
        Ok(())
    }

    /// A pass in inference mode.
    pub(super) fn infer(
        &mut self,
        images: &ArrayView4<'_, f32>,
        output: Output,
    ) -> Result<Array2<f32>, EncoderError> {
        self.refresh()?;
        // Another program's run takes the memory of what was recorded.
        self.recorded = None;
        let group = group_of(images.dim().into());
        if !self.infer.contains_key(&(group, output)) {
            let infer = self.network.infer(group, output, &self.options);
            let id = self.load(infer.program.clone())?;
            self.infer.insert((group, output), (id, infer));
        }
        let (id, pixels, out) = {
            let (id, infer) = &self.infer[&(group, output)];
            (*id, infer.pixels, infer.output)
        };
        self.stage(id, pixels, images)?;
        self.run(id, 0, &Scalars::default())?;
        let dim = match output {
            Output::Features => self.network.spec().feature_dim(),
            Output::Head => self.network.spec().embedding_dim(),
        };
        self.rows(id, out, group.images, dim)
    }

    /// A parameter's gradient, groups added, without padding.
    pub(super) fn gradient(&mut self, index: usize) -> Result<Vec<f32>, EncoderError> {
        let parameter = self.network.parameters().list[index];
        let len = parameter.shape.padded_len();
        let sum = match self.gradients.ok_or(EncoderError::NoGradients)? {
            GradientSource::Summed => self.read_floats(SUMMED, parameter.at..parameter.at + len)?,
            GradientSource::Groups(n) => {
                let layout = self.network.parameters().gradients(n, self.options.element);
                self.added(index, &layout, n)?
            }
        };
        Ok(parameter.shape.unpack(&sum))
    }

    /// A parameter's gradients of all groups added.
    fn added(&mut self, index: usize, layout: &Gradients, n_groups: usize) -> Result<Vec<f32>, EncoderError> {
        let len = self.network.parameters().list[index].shape.padded_len();
        let (at, step, element) = (layout.at[index], layout.step[index], layout.element[index]);
        let bytes =
            self.machine.read_persistent(&gradients_name(n_groups), at..at + step * layout.count[index]);
        let bytes = bytes.map_err(|error| failed(&self.device, error))?;
        let mut sum = vec![0.0f32; len];
        for group in bytes.chunks_exact(step) {
            let values = element.to_values(&group[..len * element.bytes()]);
            sum.iter_mut().zip(values).for_each(|(sum, g)| *sum += g);
        }
        Ok(sum)
    }

    /// All gradients in one list, in the layout of the parameters.
    pub(super) fn summed_gradients(&mut self) -> Result<Vec<f32>, EncoderError> {
        if let GradientSource::Groups(n) = self.gradients.ok_or(EncoderError::NoGradients)? {
            let id = match self.sums.get(&n) {
                Some(&id) => id,
                None => {
                    let id = self.load(self.network.sum_gradients(n, self.options.element))?;
                    *self.sums.entry(n).or_insert(id)
                }
            };
            self.run(id, 0, &Scalars::default())?;
            self.gradients = Some(GradientSource::Summed);
        }
        self.read_floats(SUMMED, 0..self.network.parameters().len)
    }

    /// Updates all parameters and drops the gradients; norms as the machine reports them.
    pub(super) fn update(&mut self, rule: Rule, scalars: &Scalars) -> Result<Report, EncoderError> {
        let source = self.gradients.take().ok_or(EncoderError::NoGradients)?;
        self.recorded = None;
        let (id, report) = match self.updates.get(&(source, rule)) {
            Some(&update) => update,
            None => {
                let (program, report) = self.network.update(source, rule, self.options.element);
                let id = self.load(program)?;
                *self.updates.entry((source, rule)).or_insert((id, report))
            }
        };
        self.run(id, 0, scalars)?;
        let bytes = self.machine.read(id, report, 0..Report::BYTES);
        let bytes = bytes.map_err(|error| failed(&self.device, error))?;
        Ok(bytes.first_chunk().map(Report::from_bytes).unwrap_or_default())
    }
}
