//! The seam between the network and what it runs on.
//!
//! The network is a list of coarse [`Unit`]s. A device runs a unit forward and, in training, adds one
//! operation to dfdx's tape that runs it backward. There are two: [`Kernels`](crate::cpu::Kernels), fused CPU
//! kernels around dfdx's `Cpu`, and [`Composed`](crate::composed::Composed), dfdx's own tensor operations on any
//! of its devices.

use dfdx::prelude::{Device, Gradients, OwnedTape};
use ndarray::{Array2, ArrayView2};

use crate::layers::Unit;
use crate::{EncoderError, ImageBatch, Role, Slots, UpdateRule, UpdateStats};

/// dfdx's tape on a device.
pub(crate) type TapeOf<D> = OwnedTape<f32, <D as EncoderDevice>::Tensors>;

/// dfdx's gradients on a device.
pub(crate) type GradientsOf<D> = Gradients<f32, <D as EncoderDevice>::Tensors>;

/// Running statistics of one batch norm.
#[derive(Clone, Debug)]
pub(crate) struct Running<P> {
    pub(crate) mean: P,
    pub(crate) var: P,
}

/// What a unit takes besides its input. Lists are in the order of the unit's parameters and norms.
pub(crate) struct Arguments<'a, P> {
    pub(crate) unit: &'a Unit,
    pub(crate) name: &'a str,
    pub(crate) parameters: &'a [P],
}

/// How a pass in training mode treats running statistics: the share of the new batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Momentum(pub(crate) f32);

/// Something that runs units.
pub(crate) trait EncoderDevice: 'static {
    /// dfdx's device: its tape orders the backward operations, its gradients hold what they compute.
    type Tensors: Device<f32>;
    /// A parameter or a statistic on the device; clones share it.
    type Parameter: Clone;
    /// Activations `[n, h, w, c]` on the device.
    type Activations;
    /// The optimiser's state of one parameter on the device.
    type Slots: Default;

    /// The name that the builder takes.
    fn name(&self) -> String;

    /// Brings values to the device.
    fn upload(&self, values: Vec<f32>) -> Result<Self::Parameter, EncoderError>;

    /// Brings values back.
    fn download(&self, parameter: &Self::Parameter) -> Vec<f32>;

    /// Brings images to the device.
    fn input(&self, images: ImageBatch<'_>) -> Result<Self::Activations, EncoderError>;

    /// Brings activations of shape `[n, 1, 1, c]` back.
    fn output(&self, activations: Self::Activations) -> Result<Array2<f32>, EncoderError>;

    /// Rows of several `[n, 1, 1, c]` one after the other.
    fn concat(
        &self,
        parts: Vec<Self::Activations>,
        tape: Option<&mut TapeOf<Self>>,
    ) -> Result<Self::Activations, EncoderError>;

    /// One unit in training mode. With a tape, backward is recorded; its gradient of the input is computed only
    /// if `wants_input_gradient`. Running statistics move towards the batch's.
    fn forward_train(
        &self,
        arguments: &Arguments<'_, Self::Parameter>,
        input: Self::Activations,
        running: &mut [Running<Self::Parameter>],
        momentum: Momentum,
        tape: Option<&mut TapeOf<Self>>,
        wants_input_gradient: bool,
    ) -> Result<Self::Activations, EncoderError>;

    /// One unit in inference mode.
    fn forward_infer(
        &self,
        arguments: &Arguments<'_, Self::Parameter>,
        input: Self::Activations,
        running: &[Running<Self::Parameter>],
    ) -> Result<Self::Activations, EncoderError>;

    /// What is left of the network's output once its values are on the host: enough to start backward from.
    type Root;

    /// Splits the network's output into values on the host and the root.
    fn root(&self, output: Self::Activations) -> Result<(Array2<f32>, Self::Root), EncoderError>;

    /// Runs the tape backward from the gradient of its root.
    fn backward(
        &self,
        root: Self::Root,
        gradient: ArrayView2<'_, f32>,
        tape: TapeOf<Self>,
    ) -> Result<GradientsOf<Self>, EncoderError>;

    /// A parameter's gradient on the host, in the device's layout.
    fn gradient(&self, gradients: &mut GradientsOf<Self>, parameter: &Self::Parameter) -> Vec<f32>;

    /// Replaces a parameter's gradient.
    fn set_gradient(
        &self,
        gradients: &mut GradientsOf<Self>,
        parameter: &Self::Parameter,
        values: Vec<f32>,
    ) -> Result<(), EncoderError>;

    /// Applies a rule to all parameters, each of the role given.
    fn update(
        &self,
        rule: &UpdateRule,
        roles: &[Role],
        parameters: &mut [Self::Parameter],
        slots: &mut [Self::Slots],
        gradients: GradientsOf<Self>,
    ) -> Result<UpdateStats, EncoderError>;

    /// The optimiser's state on the host, in the device's layout.
    fn download_slots(&self, slots: &Self::Slots) -> Slots;

    /// The optimiser's state from the host, in the device's layout.
    fn upload_slots(&self, slots: Slots) -> Result<Self::Slots, EncoderError>;
}
