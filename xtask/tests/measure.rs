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

/// The last line, which is JSON.
fn last_json(output: &[u8]) -> serde_json::Value {
    let output = text(output);
    serde_json::from_str(output.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{output}"))
}

#[test]
fn the_parts_for_a_card_run_without_one_where_they_can() {
    let folder = TempDir::new().unwrap();
    let small = "--set training.batch_size=4 --set encoder.arch=resnet18 --set encoder.head=linear \
                 --set prototypes.n_prototypes=[8] \
                 --set augment.crops=[{size=32,n_crops=2,min_scale=0.2,max_scale=1.0}]";
    let line = "bench cuda --device cpu --parts pretrain,libs,bits --photos 8 --train-s 1";
    let arguments: Vec<&str> = line.split_whitespace().chain(small.split_whitespace()).collect();
    let output = xtask(&folder, &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = last_json(&output.stdout);
    assert_eq!(report["parts"]["bits"]["outcome"], "ok");
    let pretrain = &report["parts"]["pretrain"]["found"];
    for key in
        ["images_per_s", "step_ms", "loader_images_per_s", "loader_images_per_s_and_core", "photo_bytes"]
    {
        assert!(pretrain[key].as_f64().unwrap_or(0.0) > 0.0, "{key} in {report}");
    }
    assert!(pretrain["data_wait"].as_f64().unwrap() <= 1.0, "{report}");
    assert_eq!(report["skipped"], serde_json::json!(["libs"]));
    assert_eq!(report["wrong"], serde_json::json!([]));
}

#[test]
fn a_part_that_fails_fails_the_whole_after_the_others() {
    let folder = TempDir::new().unwrap();
    // No machine has so many cards.
    let output = xtask(&folder, &["bench", "cuda", "--device", "cuda:999", "--parts", "test,plans"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("wrong: test, plans"), "{}", text(&output.stderr));
    let report = last_json(&output.stdout);
    assert_eq!(report["wrong"].as_array().map(Vec::len), Some(2), "{report}");
    let missing =
        xtask(&folder, &["bench", "cuda", "--device", "cpu", "--parts", "fixtures", "--tests", "./none"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stdout).contains("./none"), "{}", text(&missing.stdout));
}

#[cfg(unix)]
#[test]
fn a_bundle_is_whole_and_passes_its_arguments_on() {
    let folder = TempDir::new().unwrap();
    let tests = "#!/bin/sh\necho test result: $(cat $SWAV_FIXTURES/steps_queue.json)\n";
    let files = [
        ("fixtures/steps_queue.json", "{1}"),
        ("photos/train/one.jpg", "photo"),
        ("torch.py", ""),
        ("tests", tests),
    ];
    for (path, content) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let options = "--fixtures fixtures --data photos --torch-script torch.py --tests tests";
    let arguments: Vec<&str> = ["cuda-bundle", "bundle"].into_iter().chain(options.split(' ')).collect();
    let output = succeed(&folder, &arguments);
    assert!(output.contains("sh run.sh"), "{output}");
    let data = folder.path().join("bundle/data/train/one.jpg");
    assert_eq!(std::fs::read_to_string(data).unwrap(), "photo");
    // From anywhere, and again once everything is unpacked.
    let run = |script: &str, arguments: &str| {
        let script = folder.path().join("bundle").join(script);
        Command::new("sh").arg(script).args(arguments.split(' ')).output().unwrap()
    };
    for _ in 0..2 {
        let output = run("run.sh", "--device cpu --parts fixtures,compiled");
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        let parts = last_json(&output.stdout)["parts"].clone();
        assert_eq!(parts["fixtures"]["found"]["result"], "test result: {1}");
        assert_eq!(parts["compiled"]["why"], "it needs a card, --device cuda:N");
    }
    // The script of PyTorch's was packed: only the clock keeps `compiled` from it.
    let output = run("run.sh", "--device cuda:999 --limit-s 0 --parts compiled");
    assert_eq!(last_json(&output.stdout)["parts"]["compiled"]["why"], "the time was used up");
    assert_eq!(run("run.sh", "--parts nonsense").status.code(), Some(2));
    let help = run("swav.sh", "pretrain --help");
    assert!(text(&help.stdout).contains("--resume"), "{}", text(&help.stderr));
    let again = xtask(&folder, &arguments);
    assert!(text(&again.stderr).contains("expected an empty folder"), "{}", text(&again.stderr));
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
