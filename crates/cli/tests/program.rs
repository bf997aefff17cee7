//! The program itself: where it works, what it calls itself, and how it ends.

use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Options of a training that takes seconds.
const SHORT: [&str; 10] = [
    "--set",
    "training.epochs=1",
    "--set",
    "data.builtin.n_train=128",
    "--set",
    "data.builtin.n_test=24",
    "--set",
    "optimizer.warmup_epochs=0",
    "--set",
    "encoder.width=8",
];

fn swav(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swav"));
    command.current_dir(folder.path()).env_remove("RUST_LOG").env_remove(swav_cli::PROGRAM_VARIABLE);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_quickstart_needs_nothing_but_an_empty_folder() {
    let folder = TempDir::new().unwrap();
    let output = swav(&folder).arg("pretrain").args(SHORT).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let results = text(&output.stdout);
    for expected in ["trained network", "raw pixels", "swav eval linear --run runs/quickstart-1"] {
        assert!(results.contains(expected), "{results}");
    }
    assert!(folder.path().join("runs/quickstart-1/weights.safetensors").exists());
}

#[test]
fn help_has_the_name_that_the_program_is_called_by() {
    let folder = TempDir::new().unwrap();
    let help = |name: Option<&str>, arguments: &[&str]| {
        let mut command = swav(&folder);
        command.args(arguments).arg("--help").envs(name.map(|name| (swav_cli::PROGRAM_VARIABLE, name)));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        text(&output.stdout)
    };
    let own = help(None, &[]);
    assert!(own.contains("`swav pretrain`") && own.contains("Usage: swav") && own.contains("143"), "{own}");
    let lent = help(Some("cargo xtask"), &[]);
    assert!(lent.contains("`cargo xtask pretrain`") && lent.contains("Usage: cargo xtask"), "{lent}");
    for command in [
        &["pretrain"][..],
        &["eval", "knn"],
        &["embed"],
        &["data", "check"],
        &["augment"],
        &["doctor"],
        &["report"],
    ] {
        let own = help(None, command);
        assert!(!own.contains("xtask") && own.contains("Usage: swav"), "{own}");
        // More than one line of description comes with each command.
        assert!(own.lines().take_while(|line| !line.starts_with("Usage")).count() >= 2, "{own}");
    }
    assert!(help(Some("cargo xtask"), &["embed"]).contains("`cargo xtask pretrain`"));
}

#[test]
fn each_cause_is_printed_once_and_wrong_usage_is_told_apart() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("folder.toml"), "").unwrap();
    let failing = |arguments: &[&str]| {
        let output = swav(&folder).args(arguments).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (status, errors) = failing(&["data", "check", "no/such/place"]);
    assert_eq!((status, errors.matches("no/such/place").count()), (Some(1), 1), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    // The system's own words come once, too.
    std::fs::create_dir(folder.path().join("photos.parquet")).unwrap();
    let (status, errors) = failing(&["data", "check", "folder.toml/x"]);
    assert_eq!((status, errors.matches("os error").count()), (Some(1), 1), "{errors}");
    for arguments in [&["pretrian"][..], &["pretrain", "--set", "training.epoch=1"], &["data", "check"], &[]]
    {
        let (status, errors) = failing(arguments);
        assert_eq!(status, Some(2), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_reader_may_close_standard_output() {
    let folder = TempDir::new().unwrap();
    let mut child = swav(&folder)
        .args(["data", "check", "builtin"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert!(!errors.contains("panicked") && !errors.contains("error"), "{errors}");
}

/// Nobody reads what it prints: the training goes on, and its evaluation is written.
#[test]
fn a_training_outlives_its_reader() {
    let folder = TempDir::new().unwrap();
    let mut child = swav(&folder)
        .args(["pretrain", "--run", "run"])
        .args(SHORT)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    for file in ["weights.safetensors", "evaluations/knn.json"] {
        assert!(folder.path().join("run").join(file).exists(), "{file}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_is_a_failure() {
    let folder = TempDir::new().unwrap();
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for arguments in [&["data", "check", "builtin", "--split", "test"][..], &["pretrain", "--run", "run"]] {
        let mut command = swav(&folder);
        command.args(arguments).stdout(full());
        if arguments[0] == "pretrain" {
            command.args(SHORT);
        }
        let output = command.output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("error: cannot write to standard output: No space left"), "{errors}");
    }
    assert!(folder.path().join("run/weights.safetensors").exists());
}

#[test]
fn quiet_leaves_results_and_no_colour_is_kept() {
    let folder = TempDir::new().unwrap();
    let output = swav(&folder).args(["pretrain", "--quiet", "--run", "a"]).args(SHORT).output().unwrap();
    assert_eq!(text(&output.stderr), "");
    assert!(text(&output.stdout).contains("trained network"));
    let failing = swav(&folder).args(["-q", "data", "check", "nowhere"]).output().unwrap();
    assert!(text(&failing.stderr).contains("error: "));
    for arguments in [&["--help"][..], &["nonsense"], &["data", "check", "builtin", "--split", "test"]] {
        let output = swav(&folder).args(arguments).env("NO_COLOR", "1").output().unwrap();
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{arguments:?}");
    }
}

/// The first signal saves and ends the training with 128 + its number; what was saved can be resumed.
#[cfg(unix)]
#[test]
fn signals_stop_a_training_in_good_order() {
    use std::io::{BufRead, BufReader};

    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let folder = TempDir::new().unwrap();
        let long = ["pretrain", "--run", "run", "--no-evaluation", "--set", "training.epochs=100000"];
        let mut child = swav(&folder)
            .args(long)
            .args(&SHORT[2..])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        // An epoch is done: the training is under way.
        lines.find(|line| line.contains("epoch 1/")).expect("the log names each epoch");
        let id = child.id().to_string();
        // The run is this process's.
        let second = swav(&folder).args(["pretrain", "--run", "run", "--resume"]).output().unwrap();
        let errors = text(&second.stderr);
        assert!(second.status.code() == Some(1) && errors.contains("in use by process"), "{errors}");
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
        let rest: Vec<String> = lines.collect();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{rest:?}");
        let hint = rest.last().expect("the program says how to go on");
        assert!(hint.contains("swav pretrain --run run --resume"), "{hint}");
        let resumed = swav(&folder)
            .args(["pretrain", "--run", "run", "--resume", "--no-evaluation", "--set", "training.epochs=1"])
            .output()
            .unwrap();
        // Another length is another run: that it is refused by name shows that the state is there.
        assert!(text(&resumed.stderr).contains("training.epochs"), "{}", text(&resumed.stderr));
    }
}

/// Trains a network of one block on built-in images of 16 pixels; 40 steps take a second.
fn train_a_little(folder: &TempDir, run: &str, changes: &[&str]) -> Output {
    let small = [
        "training.epochs=4",
        "training.batch_size=32",
        "data.builtin={ n_train = 320, size = 16 }",
        "encoder.arch={ custom = { block = 'basic', layers = [1] } }",
        "encoder.width=8",
        "augment.crops=[{ size = 12, n_crops = 2, min_scale = 0.5, max_scale = 1.0 }]",
        "monitor={ patience_iters = 20, evaluate_every_epochs = 0 }",
        "prototypes={ n_prototypes = [20], freeze_iters = 0 }",
        "optimizer.warmup_epochs=0",
        "reestimation.batch_norm=false",
    ];
    let mut command = swav(folder);
    command.args(["pretrain", "--config", "quickstart", "--no-evaluation", "--run", run]);
    small.iter().chain(changes).for_each(|change| {
        command.args(["--set", change]);
    });
    command.output().unwrap()
}

/// Each is told while it trains, after as many steps as patience says, and explained afterwards, with what was spoilt as the first
/// thing to mend; a healthy run is met with silence.
#[test]
fn runs_that_collapse_are_diagnosed_in_time() {
    let folder = TempDir::new().unwrap();
    type Case = (&'static str, &'static [&'static str], &'static str, &'static str);
    let cases: [Case; 4] = [
        ("epsilon", &["sinkhorn.epsilon=5"], "codes nearly uniform", "sinkhorn.epsilon = 0.03"),
        ("rate", &["optimizer.base_lr=30"], "nothing learnt", "a lower optimizer.base_lr (now 30)"),
        ("temperature", &["loss.temperature=20"], "nothing learnt", "lower loss.temperature"),
        (
            "decay",
            &["optimizer.weight_decay=50", "optimizer.base_lr=0.03"],
            "embeddings nearly equal",
            "lower optimizer.weight_decay",
        ),
    ];
    for (run, changes, symptom, remedy) in cases {
        let trained = train_a_little(&folder, run, changes);
        let said = text(&trained.stderr);
        assert!(trained.status.success(), "{run}: {said}");
        let told =
            said.lines().find(|line| line.contains(symptom)).unwrap_or_else(|| panic!("{run}: {said}"));
        let step = told.split("step ").nth(1).and_then(|rest| rest.split(':').next()).unwrap();
        assert!((19..30).contains(&step.parse::<u64>().unwrap()), "{told}");
        let (_, advice) = told.split_once("Try, one at a time: ").unwrap();
        assert!(advice.split(';').next().unwrap().contains(remedy), "{run}: {advice}");
        let doctor = swav(&folder).args(["doctor", "--run", run]).output().unwrap();
        let explained = text(&doctor.stdout);
        assert!(explained.contains(symptom) && explained.contains(remedy), "{run}: {explained}");
    }
    let healthy = train_a_little(&folder, "healthy", &[]);
    let said = text(&healthy.stderr);
    assert!(healthy.status.success() && !said.contains("WARN"), "{said}");
}

/// `stop` ends a run that collapses, and `remedy` changes it from the next epoch on.
#[test]
fn what_is_done_about_a_collapse_is_what_was_asked_for() {
    let folder = TempDir::new().unwrap();
    let collapse = "sinkhorn.epsilon=5";
    let stopped = train_a_little(&folder, "stop", &[collapse, "monitor.on_collapse=stop"]);
    let said = text(&stopped.stderr);
    assert_eq!(stopped.status.code(), Some(1), "{said}");
    assert!(said.contains("collapsed") && said.contains("sinkhorn.epsilon = 0.03"), "{said}");
    let helped = train_a_little(&folder, "remedy", &[collapse, "monitor.on_collapse=remedy"]);
    let said = text(&helped.stderr);
    assert!(helped.status.success(), "{said}");
    assert!(said.contains("remedy 1 of 3") && said.contains("sinkhorn.epsilon 5 becomes 3"), "{said}");
}
