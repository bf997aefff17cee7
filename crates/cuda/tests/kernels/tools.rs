//! The shim itself, sizes of shared structures, the address sanitiser.

use std::process::Command;

use swav_cuda::kernels::{StepReport, StepScalars, TensorEntry};

use crate::shim::{SANITIZED, build, compiler, shim};

#[test]
fn structures_have_the_same_size_on_both_sides() {
    let sizes = [TensorEntry::<u64>::BYTES, 8, StepScalars::BYTES, StepReport::BYTES];
    assert_eq!(shim().sizes().map(|n| n as usize), sizes);
    assert_eq!(StepScalars::default().to_bytes().len(), StepScalars::BYTES);
}

/// Runs all other tests of this program once more, with a library that the address sanitiser watches. Skipped, with a
/// message, where the compiler has no sanitiser.
#[test]
fn no_kernel_leaves_its_buffers() {
    if std::env::var_os(SANITIZED).is_some() {
        return;
    }
    let output =
        Command::new(compiler()).arg("-print-file-name=libasan.so").output().expect("a C++ compiler");
    let runtime = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !std::path::Path::new(&runtime).is_absolute() {
        eprintln!("skipped: {} has no address sanitiser", compiler());
        return;
    }
    build(true);
    let output = Command::new(std::env::current_exe().expect("this program"))
        .env(SANITIZED, "1")
        .env("LD_PRELOAD", runtime)
        .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
        .output()
        .expect("this program starts again");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("test result: ok"), "{text}");
}
