//! The kernels compile for every generation of cards, and no kernel spills a register.
//!
//! Needs NVRTC (`pip install nvidia-cuda-nvrtc`), but no card. Where it is not found, the test says so and passes.

use swav_cuda::{Error, kernels, nvrtc};

const ARCHITECTURES: [&str; 5] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100"];

#[test]
fn kernels_compile_without_spills() {
    let mut options = kernels::OPTIONS.to_vec();
    options.push("--ptxas-options=-v");
    let source = kernels::source();
    for arch in ARCHITECTURES {
        let compiled = match nvrtc::compile(&source, arch, &options) {
            Err(error @ Error::LibraryMissing { .. }) => {
                eprintln!("skipped: {error}");
                return;
            }
            result => result.unwrap_or_else(|error| panic!("{error}")),
        };
        let reports = nvrtc::kernel_reports(&compiled.log);
        let mut names: Vec<&str> = reports.iter().map(|report| report.name.as_str()).collect();
        let mut expected = kernels::NAMES.to_vec();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected, "{arch}");
        for report in &reports {
            println!(
                "{arch} {:<32} {:>3} registers, {} bytes spilled",
                report.name, report.registers, report.spilled
            );
        }
        let spilling: Vec<_> = reports.iter().filter(|report| report.spilled > 0).collect();
        assert!(spilling.is_empty(), "{arch}: {spilling:?}");
    }
}
