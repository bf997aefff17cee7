//! The shim itself, sizes of shared structures, the address sanitiser.

use std::process::Command;

use swav_cuda::kernels::{Fill, StepReport, StepScalars, TensorEntry};
use swav_cuda::shape::Element;

use crate::card::machine;
use crate::data::Buffer;
use crate::shim::{SANITIZED, build, compiler, shim};

#[test]
fn structures_have_the_same_size_on_both_sides() {
    if machine().is_some() {
        return;
    }
    let sizes = [TensorEntry::<u64>::BYTES, 8, StepScalars::BYTES, StepReport::BYTES];
    assert_eq!(shim().sizes().map(|n| n as usize), sizes);
    assert_eq!(StepScalars::default().to_bytes().len(), StepScalars::BYTES);
}

/// Set in the run that has to end with the sanitiser's message.
const OVERRUN: &str = "SWAV_SHIM_OVERRUN";

/// A kernel that writes beyond its buffer; does nothing unless it is asked for.
#[test]
fn overrun() {
    if std::env::var_os(OVERRUN).is_some() {
        let buffer = Buffer::empty(Element::F32, 16);
        let op = Fill { element: Element::F32, to: buffer.at(), value: 1.0, len: 24 };
        shim().run(&op.launches(), 0);
    }
}

/// Runs all other tests of this program once more, with a library that the address sanitiser watches. Skipped, with a
/// message, where the compiler has no sanitiser.
#[test]
fn no_kernel_leaves_its_buffers() {
    if std::env::var_os(SANITIZED).is_some() || machine().is_some() {
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
    let run = |configure: &dyn Fn(&mut Command)| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.env(SANITIZED, "1").env("LD_PRELOAD", &runtime);
        command.env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0");
        configure(&mut command);
        let output = command.output().expect("this program starts again");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    };
    let (success, text) = run(&|command| {
        command.args(["--exact", "tools::overrun"]).env(OVERRUN, "1");
    });
    assert!(!success && text.contains("heap-buffer-overflow"), "an overrun is not seen:\n{text}");
    let (success, text) = run(&|_| ());
    assert!(success && text.contains("test result: ok"), "{text}");
}
