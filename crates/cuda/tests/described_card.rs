//! cuDNN plans whole networks for a card that is not there.
//!
//! Runs where cuDNN 9.8 or newer and NVRTC are installed, and does nothing elsewhere. With `SWAV_CUDA_REQUIRED` set in
//! the environment, that they are missing is a failure.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use swav_cuda::cudnn::{Convolution, Cudnn};
use swav_cuda::network::{BlockKind, Group, Head, Network, NetworkSpec, Options, Stem};
use swav_cuda::plans::Planner;
use swav_cuda::shape::{ConvPass, ConvShape, Element};
use swav_cuda::tape::{Op, PixelFormat, Program};

/// An H100's properties.
const H100: &str = r#"{"deviceVer":900,"driverVer":13000,"maxGridSize":[2147483647,65535,65535],
    "maxBlockSize":[1024,1024,64],"regsPerBlock":65536,"multiProcessorCount":132,"smClockRateKHz":1980000,
    "memClockRateKHz":2619000,"memoryBusWidth":5120,"l2CacheSize":52428800,"warpSize":32,
    "maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":232448,"reservedSharedMemoryPerBlock":1024,
    "oversizedSharedMemoryPerBlock":0,"maxRegistersPerSM":65536,"maxCtasPerSM":32,"maxThreadsPerBlock":1024,
    "maxThreadsPerSM":2048,"pciDeviceId":0,"isTccDriver":0,"supportCoopLaunch":1,"totalGlobalMem":85000000000,
    "cudaDeviceId":0,"deviceName":"NVIDIA H100 80GB HBM3"}"#;

/// Stands for the driver's library, which cuDNN wants to be there and does not call while it plans.
fn stand_in_for_the_driver(folder: &Path) -> Option<()> {
    let names = ["GetErrorString", "ModuleGetFunction", "ModuleLoadData", "ModuleUnload"];
    let names = names.iter().chain(&["TensorMapEncodeIm2col", "TensorMapEncodeTiled"]);
    let source: String = names.map(|name| format!("int cu{name}(void) {{ return 100; }}\n")).collect();
    let (c, library) = (folder.join("driver.c"), folder.join("libcuda.so.1"));
    std::fs::write(&c, source).ok()?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(&library).arg(&c);
    compiler.status().ok().filter(|status| status.success())?;
    // SAFETY: the library above has no initialisers.
    let library = unsafe { libloading::Library::new(&library) }.ok()?;
    // Others find it by its name as long as it is open.
    std::mem::forget(library);
    Some(())
}

/// cuDNN for an H100, if it is installed.
fn cudnn() -> Option<Arc<Cudnn>> {
    // The real driver, if there is one, must come first.
    let report = swav_cuda::libs::report();
    let folder = tempfile::tempdir().expect("a folder");
    if !report.is_complete() {
        stand_in_for_the_driver(folder.path());
    }
    match Cudnn::for_description(H100) {
        Ok(cudnn) => Some(Arc::new(cudnn)),
        Err(error) => {
            assert!(std::env::var_os("SWAV_CUDA_REQUIRED").is_none(), "{error}\n{report}");
            eprintln!("not tested: {error}");
            None
        }
    }
}

fn convolutions(program: &Program) -> BTreeSet<Convolution> {
    let nodes = program.tapes.iter().flat_map(|tape| &tape.nodes);
    let convs = nodes.filter_map(|node| match node.op {
        Op::Conv { pass, shape, accumulate, .. } => {
            let (element, tf32) = (program.element, program.rounds(&shape));
            Some(Convolution { shape, pass, element, tf32, accumulate })
        }
        _ => None,
    });
    convs.collect()
}

fn train(
    spec: NetworkSpec,
    groups: &[(usize, usize)],
    (element, tf32): (Element, bool),
) -> BTreeSet<Convolution> {
    let groups: Vec<Group> =
        groups.iter().map(|&(images, side)| Group { images, height: side, width: side }).collect();
    let options = Options { element, tf32, checkpointing: false, pixels: PixelFormat::F32 };
    convolutions(&Network::new(spec).train(&groups, &options).program)
}

/// The networks of the recipes, in a type and with TF32 or without: ImageNet's, CIFAR's, and a wide one.
fn recipes(arithmetic: (Element, bool)) -> BTreeSet<Convolution> {
    let spec = |stem, stem_channels, block, layers: &[usize], head| NetworkSpec {
        stem,
        stem_channels,
        block,
        layers: layers.to_vec(),
        head,
    };
    let imagenet = |width| {
        let head = Head::Mlp { hidden: 2048, dim: 128 };
        spec(Stem::Imagenet, width, BlockKind::Bottleneck, &[3, 4, 6, 3], head)
    };
    let cifar = spec(Stem::Cifar, 64, BlockKind::Basic, &[2, 2, 2, 2], Head::Mlp { hidden: 512, dim: 128 });
    let mut all = train(imagenet(64), &[(128, 224), (384, 96)], arithmetic);
    all.extend(train(cifar, &[(512, 32), (1024, 16)], arithmetic));
    all.extend(train(imagenet(320), &[(16, 224), (48, 96)], arithmetic));
    all
}

/// Whatever plan is chosen takes no more beside the buffers than memory is reckoned with.
#[test]
fn every_convolution_of_the_recipes_has_a_plan_in_bf16() {
    let Some(cudnn) = cudnn() else { return };
    let mut planner = Planner::for_description(Arc::clone(&cudnn));
    for conv in recipes((Element::Bf16, false)) {
        planner.plan(&conv).unwrap_or_else(|error| panic!("{conv}: {error}"));
        let proposals = cudnn.proposals(&conv, 16).unwrap_or_else(|error| panic!("{conv}: {error}"));
        for plan in proposals.iter().filter_map(|proposal| cudnn.plan(&conv, &proposal.choice).ok()) {
            assert!(plan.workspace() <= 64 << 20, "{conv} wants {} bytes", plan.workspace());
        }
    }
    assert!(planner.refused().is_empty());
}

#[test]
fn every_convolution_of_the_recipes_has_a_plan_in_f32_and_by_tf32() {
    let Some(cudnn) = cudnn() else { return };
    let mut planner = Planner::for_description(cudnn);
    for tf32 in [false, true] {
        for conv in recipes((Element::F32, tf32)) {
            let plan = planner.plan(&conv).unwrap_or_else(|error| panic!("{conv}: {error}"));
            assert!(plan.workspace() <= 1 << 30, "{conv} wants {} bytes", plan.workspace());
        }
    }
}

/// TF32 is another convolution to cuDNN: other engines are proposed for it.
#[test]
fn tf32_is_proposed_only_where_it_is_allowed() {
    let Some(cudnn) = cudnn() else { return };
    let is_wide = |conv: &&Convolution| conv.tf32 && conv.shape.channels >= 64;
    for conv in recipes((Element::F32, true)).iter().filter(is_wide) {
        let engines = |tf32| -> Vec<i64> {
            let proposals = cudnn.proposals(&Convolution { tf32, ..*conv }, 16).expect("proposals");
            proposals.iter().map(|proposal| proposal.choice.engine).collect()
        };
        let (plain, rounded) = (engines(false), engines(true));
        assert!(rounded.iter().any(|engine| !plain.contains(engine)), "{conv}: {plain:?}, {rounded:?}");
    }
}

#[test]
fn a_proposal_that_is_written_down_is_the_same_plan() {
    let Some(cudnn) = cudnn() else { return };
    let shape = ConvShape {
        images: 128,
        height: 56,
        width: 56,
        channels: 64,
        filters: 256,
        kernel: [1, 1],
        stride: 1,
        padding: [0, 0],
    };
    let conv = Convolution {
        shape,
        pass: ConvPass::Forward,
        element: Element::Bf16,
        tf32: false,
        accumulate: false,
    };
    let proposals = cudnn.proposals(&conv, 16).expect("proposals");
    assert!(proposals.len() >= 8, "{}", proposals.len());
    for proposal in &proposals {
        let text = serde_json::to_string(&proposal.choice).expect("JSON");
        let choice = serde_json::from_str(&text).expect("a choice");
        let plan = cudnn.plan(&conv, &choice).expect("a plan");
        assert_eq!(plan.choice(), &proposal.choice);
    }
    let mut planner = Planner::for_description(Arc::clone(&cudnn));
    planner.plan(&conv).expect("a plan");
    let book = planner.book();
    let mut other = Planner::for_description(cudnn);
    other.adopt(&book).expect("the same place");
    other.plan(&conv).expect("a plan");
    assert_eq!(other.book(), book);
}
