//! The developers' commands as they are called: what they print, and how they end on bad input.

use std::process::{Command, Output};

use tempfile::TempDir;

/// A step of a network that takes a moment.
const SMALL: [&str; 12] =
    ["--width", "4", "--hidden", "8", "--dim", "8", "--prototypes", "5", "--batch", "4", "--steps", "2"];

fn xtask(folder: &TempDir, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(arguments)
        .current_dir(folder.path())
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeed(folder: &TempDir, arguments: &[&str]) -> String {
    let output = xtask(folder, arguments);
    assert!(output.status.success(), "{arguments:?}:\n{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn speed_measures_a_step() {
    let folder = TempDir::new().unwrap();
    let output = succeed(&folder, &[&["bench", "speed"][..], &SMALL].concat());
    let speed: serde_json::Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!(speed["mode"], "speed");
    let number = |key: &str| speed[key].as_f64().unwrap_or_else(|| panic!("{key} in {speed}"));
    assert!(number("min_ms") <= number("step_ms") && number("step_ms") <= number("max_ms"));
    assert!((number("images_per_s") - 4e3 / number("step_ms")).abs() < 1e-6 * number("images_per_s"));
    if cfg!(target_os = "linux") {
        assert!(number("peak_rss_mb") > 1.0);
    }
}

#[test]
fn inference_measures_images_and_memory() {
    let folder = TempDir::new().unwrap();
    let options = ["--arch", "resnet18", "--batch", "2,1", "--size", "32", "--rounds", "2", "--threads", "1"];
    let output = succeed(&folder, &[&["bench", "inference"][..], &options].concat());
    let report: serde_json::Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.iter().map(|case| case["batch"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 1]);
    for case in cases {
        let ours = &case["runners"]["ours"];
        assert!(ours["images_per_s"].as_f64().unwrap() > 0.0, "{report}");
        assert_eq!(ours["times_faster"], 1.0);
        if cfg!(target_os = "linux") {
            assert!(ours["peak_rss_mb"].as_f64().unwrap() > 1.0, "{report}");
        }
    }
    let broken = [&["bench", "inference", "--python", "no-such-python"][..], &options].concat();
    let output = xtask(&folder, &broken);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no-such-python"), "{}", text(&output.stderr));
}

#[test]
fn profile_names_the_operations_of_a_step() {
    let folder = TempDir::new().unwrap();
    let table = succeed(&folder, &[&["profile", "--trace", "trace.json"][..], &SMALL].concat());
    for operation in
        ["encoder forward", "encoder backward", "encoder update", "codes by Sinkhorn-Knopp", "sum"]
    {
        assert!(table.contains(operation), "{table}");
    }
    let trace = std::fs::read_to_string(folder.path().join("trace.json")).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&trace).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().iter().any(|event| event["name"] == "encoder forward"));
}

#[test]
fn wrong_options_are_named() {
    let folder = TempDir::new().unwrap();
    for (words, arguments) in [
        (&["--sizes", "--counts"][..], &["bench", "speed", "--sizes", "32", "16", "--counts", "2"][..]),
        (&["--arch"], &["bench", "speed", "--arch", "resnet7"]),
        (&["--arch"], &["bench", "inference", "--arch", "resnet50,resnet7"]),
    ] {
        let output = xtask(&folder, arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("error: "), "{errors}");
        for word in words {
            assert!(errors.contains(word), "expected `{word}` in:\n{errors}");
        }
    }
}

#[test]
fn the_programs_commands_are_here_too() {
    let folder = TempDir::new().unwrap();
    let help = succeed(&folder, &["pretrain", "--help"]);
    assert!(help.contains("--resume"), "{help}");
}
