//! Convolutions: graphs of one operation, proposals, plans.

use std::ffi::{c_uint, c_void};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::descriptor::{Address, Descriptor, Number, Raw};
use super::names::{self, attr, kind, note, value};
use super::{Api, Cudnn};
use crate::shape::{ConvPass, ConvShape, Element};
use crate::{Error, Result, libs};

/// One of a convolution's three products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Convolution {
    /// The convolution.
    pub shape: ConvShape,
    /// Which product.
    pub pass: ConvPass,
    /// The type of all three tensors. Products are summed in f32.
    pub element: Element,
    /// Whether f32 may be rounded to TF32, 11 bits, before it is multiplied, as matrix units do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tf32: bool,
    /// Whether the result is added to what is there.
    pub accumulate: bool,
}

impl fmt::Display for Convolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Convolution { shape, pass, element, tf32, accumulate } = self;
        let pass = match pass {
            ConvPass::Forward => "forward",
            ConvPass::DataGradient => "data gradient",
            ConvPass::WeightGradient => "weight gradient",
        };
        let element = match element {
            Element::F32 if *tf32 => "f32 as TF32",
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
        };
        write!(f, "{shape}, {pass}, {element}{}", if *accumulate { ", added" } else { "" })
    }
}

/// A way to compute a convolution: one of cuDNN's engines with its settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Choice {
    /// The engine's number.
    pub engine: i64,
    /// Its settings: number of the setting, value.
    pub knobs: Vec<(u32, i64)>,
}

/// A way to compute a convolution that cuDNN proposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The way.
    pub choice: Choice,
    /// Whether its plan is compiled when it is made, which takes seconds.
    pub compiled: bool,
}

/// Checks without a card that cuDNN accepts the operation.
///
/// # Errors
/// cuDNN is missing, or refuses.
pub fn check_graph(conv: &Convolution) -> Result<()> {
    graph(&libs::cudnn()?.api, std::ptr::null_mut(), conv).map(|_| ())
}

impl Cudnn {
    /// Ways to compute a convolution, cuDNN's favourite first.
    ///
    /// All give the same bits each time. For f32, none uses matrix units, unless TF32 is allowed, and none rounds its inputs
    /// to less; none sums in less than f32. Of cuDNN's own list, `most` are asked for. It is made of matrix units mostly, so
    /// for f32 without them the rest of the engines follow, with their own settings.
    ///
    /// # Errors
    /// cuDNN refuses the operation. That nothing is left is no error.
    pub fn proposals(&self, conv: &Convolution, most: usize) -> Result<Vec<Proposal>> {
        self.with_handle(|handle| {
            let graph = graph(self.api, handle, conv)?;
            let mut found = self.ask(&graph, conv, names::HEUR_MODE_A, most).unwrap_or_default();
            if found.is_empty() {
                found = self.ask(&graph, conv, names::HEUR_MODE_FALLBACK, most)?;
            }
            if conv.element == Element::F32 && !conv.tf32 {
                let known: Vec<i64> = found.iter().map(|proposal| proposal.choice.engine).collect();
                let others = self.engines(&graph, conv)?;
                found.extend(others.into_iter().filter(|proposal| !known.contains(&proposal.choice.engine)));
            }
            Ok(found)
        })
    }

    /// The proposals of one of cuDNN's heuristics.
    fn ask(
        &self,
        graph: &Descriptor,
        conv: &Convolution,
        mode: c_uint,
        most: usize,
    ) -> Result<Vec<Proposal>> {
        let mut heuristics = Descriptor::new(self.api, kind::ENGINEHEUR)?;
        heuristics.set_part(attr::ENGINEHEUR_OPERATION_GRAPH, graph)?;
        heuristics.set(attr::ENGINEHEUR_MODE, &[Number::<{ value::HEUR_MODE }>(mode)])?;
        self.describe(&mut heuristics, attr::ENGINEHEUR_DEVICEPROP)?;
        let heuristics = heuristics.finish(Vec::new())?;
        let configs = heuristics.get_parts(attr::ENGINEHEUR_RESULTS, kind::ENGINECFG, most)?;
        let (mut found, mut failed) = (Vec::new(), None);
        for config in &configs {
            match proposal(config, conv) {
                Ok(proposal) => found.extend(proposal),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.filter(|_| found.is_empty()).map_or(Ok(found), Err)
    }

    /// All engines that take the operation, with their own settings.
    fn engines(&self, graph: &Descriptor, conv: &Convolution) -> Result<Vec<Proposal>> {
        let count = graph.get_one::<i64>(attr::OPERATIONGRAPH_ENGINE_GLOBAL_COUNT)?;
        let usable = |index| {
            let engine = self.engine(graph, index).ok()?;
            let compiled = is_compiled(&engine).ok()?;
            let allowed = is_allowed(conv, &numerical_notes(&engine).ok()?);
            let choice = Choice { engine: index, knobs: Vec::new() };
            (allowed && !compiled).then_some(Proposal { choice, compiled })
        };
        Ok((0..count).filter_map(usable).collect())
    }

    /// An engine for an operation.
    fn engine(&self, graph: &Descriptor, index: i64) -> Result<Descriptor> {
        let mut engine = Descriptor::new(self.api, kind::ENGINE)?;
        engine.set_part(attr::ENGINE_OPERATION_GRAPH, graph)?;
        engine.set(attr::ENGINE_GLOBAL_INDEX, &[index])?;
        self.describe(&mut engine, attr::ENGINE_DEVICEPROP)?;
        engine.finish(Vec::new())
    }

    /// Makes a plan of a choice.
    ///
    /// # Errors
    /// cuDNN refuses: the choice is not one for this operation, card or version.
    pub fn plan(&self, conv: &Convolution, choice: &Choice) -> Result<Arc<ConvPlan>> {
        self.with_handle(|handle| {
            let graph = graph(self.api, handle, conv)?;
            let engine = self.engine(&graph, choice.engine)?;
            let knobs = choice.knobs.iter().map(|&(which, setting)| knob(self.api, which, setting));
            let knobs = knobs.collect::<Result<Vec<_>>>()?;
            let mut config = Descriptor::new(self.api, kind::ENGINECFG)?;
            config.set_part(attr::ENGINECFG_ENGINE, &engine)?;
            if !knobs.is_empty() {
                config.set_parts(attr::ENGINECFG_KNOB_CHOICES, &knobs)?;
            }
            let config = config.finish(knobs.into_iter().chain([engine, graph]).collect())?;
            let mut plan = Descriptor::new(self.api, kind::EXECUTION_PLAN)?;
            if !handle.is_null() {
                plan.set_handle(attr::EXECUTION_PLAN_HANDLE, handle)?;
            }
            self.describe(&mut plan, attr::EXECUTION_PLAN_DEVICEPROP)?;
            plan.set_part(attr::EXECUTION_PLAN_ENGINE_CONFIG, &config)?;
            let plan = plan.finish(vec![config])?;
            let workspace = plan.get_one::<i64>(attr::EXECUTION_PLAN_WORKSPACE_SIZE)?.max(0) as u64;
            Ok(Arc::new(ConvPlan { conv: *conv, choice: choice.clone(), workspace, plan, api: self.api }))
        })
    }
}

/// A way to compute a convolution, ready for addresses.
pub struct ConvPlan {
    conv: Convolution,
    choice: Choice,
    workspace: u64,
    plan: Descriptor,
    api: &'static Api,
}

impl fmt::Debug for ConvPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConvPlan { conv, choice, workspace, .. } = self;
        f.debug_struct("ConvPlan")
            .field("conv", conv)
            .field("choice", choice)
            .field("workspace", workspace)
            .finish_non_exhaustive()
    }
}

impl ConvPlan {
    /// What it computes.
    pub fn conv(&self) -> &Convolution {
        &self.conv
    }

    /// How it computes it.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Bytes of memory that it needs while it runs.
    pub fn workspace(&self) -> u64 {
        self.workspace
    }

    /// Binds the plan to addresses on the card, aligned to 16 bytes: input, weights, output, workspace.
    ///
    /// # Safety
    /// The addresses must be those of blocks of the shapes' sizes, and of the workspace's, that live as long as the
    /// result, and as long as graphs that it was recorded in.
    ///
    /// # Errors
    /// cuDNN's.
    pub unsafe fn bind(self: &Arc<Self>, x: u64, w: u64, y: u64, workspace: u64) -> Result<BoundConv> {
        let mut pack = Descriptor::new(self.api, kind::VARIANT_PACK)?;
        pack.set(attr::VARIANT_PACK_UNIQUE_IDS, &[X, W, Y])?;
        pack.set(attr::VARIANT_PACK_DATA_POINTERS, &[x, w, y].map(Address))?;
        pack.set(attr::VARIANT_PACK_WORKSPACE, &[Address(workspace)])?;
        Ok(BoundConv { plan: Arc::clone(self), pack: pack.finish(Vec::new())? })
    }
}

/// A plan with the addresses of its tensors, which [`Cudnn::run`] runs.
pub struct BoundConv {
    plan: Arc<ConvPlan>,
    pack: Descriptor,
}

impl fmt::Debug for BoundConv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundConv").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl BoundConv {
    /// Its plan.
    pub fn plan(&self) -> &ConvPlan {
        &self.plan
    }

    pub(super) fn raw(&self) -> (Raw, Raw) {
        (self.plan.plan.raw(), self.pack.raw())
    }
}

/// Numbers of the tensors in graphs: input, weights, output.
const X: i64 = 1;
const W: i64 = 2;
const Y: i64 = 3;

/// A graph of one operation; without a handle it can be checked but not planned.
fn graph(api: &'static Api, handle: *mut c_void, conv: &Convolution) -> Result<Descriptor> {
    let ConvShape { images, height, width, channels, filters, kernel, .. } = conv.shape;
    let (rows, columns) = (conv.shape.out_height(), conv.shape.out_width());
    let x = tensor(api, X, conv.element, [images, channels, height, width])?;
    let w = tensor(api, W, conv.element, [filters, channels, kernel[0], kernel[1]])?;
    let y = tensor(api, Y, conv.element, [images, filters, rows, columns])?;
    let description = convolution(api, &conv.shape)?;
    let names = match conv.pass {
        ConvPass::Forward => Names {
            kind: kind::OPERATION_CONVOLUTION_FORWARD,
            conv: attr::CONVOLUTION_FORWARD_CONV_DESC,
            tensors: [attr::CONVOLUTION_FORWARD_X, attr::CONVOLUTION_FORWARD_W, attr::CONVOLUTION_FORWARD_Y],
            factors: [attr::CONVOLUTION_FORWARD_ALPHA, attr::CONVOLUTION_FORWARD_BETA],
        },
        ConvPass::DataGradient => Names {
            kind: kind::OPERATION_CONVOLUTION_BACKWARD_DATA,
            conv: attr::CONVOLUTION_BWD_DATA_CONV_DESC,
            tensors: [
                attr::CONVOLUTION_BWD_DATA_DX,
                attr::CONVOLUTION_BWD_DATA_W,
                attr::CONVOLUTION_BWD_DATA_DY,
            ],
            factors: [attr::CONVOLUTION_BWD_DATA_ALPHA, attr::CONVOLUTION_BWD_DATA_BETA],
        },
        ConvPass::WeightGradient => Names {
            kind: kind::OPERATION_CONVOLUTION_BACKWARD_FILTER,
            conv: attr::CONVOLUTION_BWD_FILTER_CONV_DESC,
            tensors: [
                attr::CONVOLUTION_BWD_FILTER_X,
                attr::CONVOLUTION_BWD_FILTER_DW,
                attr::CONVOLUTION_BWD_FILTER_DY,
            ],
            factors: [attr::CONVOLUTION_BWD_FILTER_ALPHA, attr::CONVOLUTION_BWD_FILTER_BETA],
        },
    };
    let mut operation = Descriptor::new(api, names.kind)?;
    operation.set_part(names.conv, &description)?;
    for (attribute, tensor) in names.tensors.into_iter().zip([&x, &w, &y]) {
        operation.set_part(attribute, tensor)?;
    }
    let beta = if conv.accumulate { 1.0_f32 } else { 0.0 };
    operation.set(names.factors[0], &[1.0_f32])?;
    operation.set(names.factors[1], &[beta])?;
    let operations = vec![operation.finish(vec![x, w, y, description])?];
    let mut graph = Descriptor::new(api, kind::OPERATIONGRAPH)?;
    if !handle.is_null() {
        graph.set_handle(attr::OPERATIONGRAPH_HANDLE, handle)?;
    }
    graph.set_parts(attr::OPERATIONGRAPH_OPS, &operations)?;
    graph.finish(operations)
}

/// The numbers by which an operation's descriptor is made.
struct Names {
    kind: c_uint,
    conv: c_uint,
    /// Input, weights, output.
    tensors: [c_uint; 3],
    /// Of the product, and of what is there.
    factors: [c_uint; 2],
}

/// A tensor of dimensions NCHW that lies as NHWC.
fn tensor(api: &'static Api, id: i64, element: Element, dimensions: [usize; 4]) -> Result<Descriptor> {
    let [n, c, h, w] = dimensions.map(|size| size as i64);
    let data_type = match element {
        Element::F32 => names::DATA_FLOAT,
        Element::Bf16 => names::DATA_BFLOAT16,
    };
    let mut tensor = Descriptor::new(api, kind::TENSOR)?;
    tensor.set(attr::TENSOR_DATA_TYPE, &[Number::<{ value::DATA_TYPE }>(data_type)])?;
    tensor.set(attr::TENSOR_DIMENSIONS, &[n, c, h, w])?;
    tensor.set(attr::TENSOR_STRIDES, &[h * w * c, 1, w * c, c])?;
    tensor.set(attr::TENSOR_UNIQUE_ID, &[id])?;
    tensor.set(attr::TENSOR_BYTE_ALIGNMENT, &[16_i64])?;
    tensor.finish(Vec::new())
}

/// What a convolution is besides its tensors.
fn convolution(api: &'static Api, shape: &ConvShape) -> Result<Descriptor> {
    let padding = shape.padding.map(|size| size as i64);
    let mut conv = Descriptor::new(api, kind::CONVOLUTION)?;
    conv.set(attr::CONVOLUTION_COMP_TYPE, &[Number::<{ value::DATA_TYPE }>(names::DATA_FLOAT)])?;
    let mode = Number::<{ value::CONVOLUTION_MODE }>(names::CROSS_CORRELATION);
    conv.set(attr::CONVOLUTION_CONV_MODE, &[mode])?;
    conv.set(attr::CONVOLUTION_SPATIAL_DIMS, &[2_i64])?;
    conv.set(attr::CONVOLUTION_PRE_PADDINGS, &padding)?;
    conv.set(attr::CONVOLUTION_POST_PADDINGS, &padding)?;
    conv.set(attr::CONVOLUTION_FILTER_STRIDES, &[shape.stride as i64; 2])?;
    conv.set(attr::CONVOLUTION_DILATIONS, &[1_i64; 2])?;
    conv.finish(Vec::new())
}

fn knob(api: &'static Api, which: u32, setting: i64) -> Result<Descriptor> {
    let mut knob = Descriptor::new(api, kind::KNOB_CHOICE)?;
    knob.set(attr::KNOB_CHOICE_KNOB_TYPE, &[Number::<{ value::KNOB_TYPE }>(which)])?;
    knob.set(attr::KNOB_CHOICE_KNOB_VALUE, &[setting])?;
    knob.finish(Vec::new())
}

/// What a configuration of cuDNN's is, unless it is one that must not be used.
fn proposal(config: &Descriptor, conv: &Convolution) -> Result<Option<Proposal>> {
    let engines = config.get_parts(attr::ENGINECFG_ENGINE, kind::ENGINE, 1)?;
    let Some(engine) = engines.first() else { return Ok(None) };
    if !is_allowed(conv, &numerical_notes(engine)?) {
        return Ok(None);
    }
    let compiled = is_compiled(engine)?;
    let engine = engine.get_one::<i64>(attr::ENGINE_GLOBAL_INDEX)?;
    let parts = config.get_parts(attr::ENGINECFG_KNOB_CHOICES, kind::KNOB_CHOICE, 64)?;
    let knobs = parts.iter().map(|knob| {
        let which: Number<{ value::KNOB_TYPE }> = knob.get_one(attr::KNOB_CHOICE_KNOB_TYPE)?;
        Ok((which.0, knob.get_one::<i64>(attr::KNOB_CHOICE_KNOB_VALUE)?))
    });
    let knobs = knobs.collect::<Result<Vec<_>>>()?;
    Ok(Some(Proposal { choice: Choice { engine, knobs }, compiled }))
}

/// What cuDNN notes about an engine's arithmetic.
fn numerical_notes(engine: &Descriptor) -> Result<Vec<c_uint>> {
    let notes: Vec<Number<{ value::NUMERICAL_NOTE }>> = engine.get(attr::ENGINE_NUMERICAL_NOTE, 16)?;
    Ok(notes.into_iter().map(|note| note.0).collect())
}

/// Whether an engine's plans are compiled when they are made.
fn is_compiled(engine: &Descriptor) -> Result<bool> {
    let notes: Vec<Number<{ value::BEHAVIOR_NOTE }>> = engine.get(attr::ENGINE_BEHAVIOR_NOTE, 16)?;
    Ok(notes.contains(&Number(note::RUNTIME_COMPILATION)))
}

/// Whether an engine with these numerical notes may compute a convolution.
fn is_allowed(conv: &Convolution, notes: &[c_uint]) -> bool {
    let is_f32 = conv.element == Element::F32;
    let refused = |note: c_uint| match note {
        note::NONDETERMINISTIC | note::REDUCED_PRECISION_REDUCTION => true,
        note::DOWN_CONVERT_INPUTS => is_f32,
        note::TENSOR_CORE => is_f32 && !conv.tf32,
        _ => false,
    };
    !notes.iter().any(|&note| refused(note))
}

/// The error of a convolution that nothing can compute.
pub(crate) fn no_plan(conv: &Convolution) -> Error {
    Error::NoPlan { operation: conv.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ConvShape = ConvShape {
        images: 4,
        height: 14,
        width: 14,
        channels: 64,
        filters: 128,
        kernel: [3, 3],
        stride: 2,
        padding: [1, 1],
    };

    const CONV: Convolution = Convolution {
        shape: SHAPE,
        pass: ConvPass::Forward,
        element: Element::F32,
        tf32: false,
        accumulate: false,
    };

    #[test]
    fn what_rounds_or_varies_is_refused() {
        let bf16 = Convolution { element: Element::Bf16, ..CONV };
        assert!(is_allowed(&bf16, &[note::TENSOR_CORE]));
        assert!(!is_allowed(&bf16, &[note::TENSOR_CORE, note::NONDETERMINISTIC]));
        assert!(!is_allowed(&bf16, &[note::REDUCED_PRECISION_REDUCTION]));
        assert!(is_allowed(&CONV, &[]));
        assert!(!is_allowed(&CONV, &[note::TENSOR_CORE]));
        assert!(!is_allowed(&CONV, &[note::DOWN_CONVERT_INPUTS]));
        let tf32 = Convolution { tf32: true, ..CONV };
        assert!(is_allowed(&tf32, &[note::TENSOR_CORE]));
        assert!(!is_allowed(&tf32, &[note::TENSOR_CORE, note::DOWN_CONVERT_INPUTS]));
        assert!(!is_allowed(&tf32, &[note::TENSOR_CORE, note::NONDETERMINISTIC]));
    }

    #[test]
    fn a_convolution_in_words() {
        let conv = Convolution {
            shape: SHAPE,
            pass: ConvPass::DataGradient,
            element: Element::Bf16,
            tf32: false,
            accumulate: true,
        };
        assert_eq!(conv.to_string(), "4x14x14x64 to 128, 3x3, stride 2, data gradient, bf16, added");
        let conv = Convolution { element: Element::F32, tf32: true, accumulate: false, ..conv };
        assert_eq!(conv.to_string(), "4x14x14x64 to 128, 3x3, stride 2, data gradient, f32 as TF32");
    }

    #[test]
    fn a_choice_survives_json() {
        let choice = Choice { engine: 62, knobs: vec![(2, 7), (13, -1)] };
        let text = serde_json::to_string(&choice).expect("JSON");
        assert_eq!(serde_json::from_str::<Choice>(&text).expect("a choice"), choice);
    }

    /// Runs where cuDNN is installed; it needs no card, but newer versions want the driver's library.
    #[test]
    fn cudnn_accepts_all_passes() {
        const SUBLIBRARY_LOADING_FAILED: u32 = 1008;
        for pass in [ConvPass::Forward, ConvPass::DataGradient, ConvPass::WeightGradient] {
            for element in [Element::F32, Element::Bf16] {
                for accumulate in [false, true] {
                    match check_graph(&Convolution { pass, element, accumulate, ..CONV }) {
                        Ok(()) | Err(Error::LibraryMissing { .. }) => {}
                        Err(Error::Cudnn { status: SUBLIBRARY_LOADING_FAILED, .. }) => {}
                        Err(error) => panic!("{pass:?} {element:?} {accumulate}: {error}"),
                    }
                }
            }
        }
    }

    /// Runs where cuDNN is installed.
    #[test]
    fn cudnn_refuses_tensors_that_do_not_fit() {
        let shape = ConvShape { channels: 0, ..SHAPE };
        let conv = Convolution { shape, ..CONV };
        assert!(matches!(check_graph(&conv), Err(Error::LibraryMissing { .. } | Error::Cudnn { .. })));
    }
}
