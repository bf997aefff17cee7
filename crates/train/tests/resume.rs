//! Runs that are stopped, damaged or resumed with something else.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use support::{Fault, Gradients, Linear, Phase, assert_same_bits, data, resume, settings, start, whole_run};
use swav_train::{Checkpoint, CheckpointError, Metrics, Quantity, RunFolder, StopFlag, TrainError, Trainer};

fn mismatch(result: Result<Trainer, TrainError>) -> Vec<String> {
    match result {
        Err(TrainError::Checkpoint(CheckpointError::Mismatch { differences, .. })) => differences,
        Err(other) => panic!("expected a mismatch, got {other}"),
        Ok(_) => panic!("expected a mismatch, got a trainer"),
    }
}

fn metrics(folder: &Path) -> Vec<Metrics> {
    let text = fs::read_to_string(RunFolder::at(folder).metrics()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What has to be equal between two runs: everything but the clock.
fn without_clock(lines: Vec<Metrics>) -> Vec<Metrics> {
    lines.into_iter().map(|line| Metrics { images_per_s: 0.0, data_wait: 0.0, ..line }).collect()
}

/// Copies a run as it was when the checkpoint of `step` was the newest.
fn rewind(from: &Path, to: &Path, step: u64) {
    let (from, to) = (RunFolder::at(from), RunFolder::at(to));
    fs::create_dir_all(to.checkpoints()).unwrap();
    fs::copy(from.config(), to.config()).unwrap();
    fs::copy(from.metrics(), to.metrics()).unwrap();
    for path in from.resumable() {
        if Checkpoint::read(&path).unwrap().position.step <= step {
            fs::copy(&path, to.checkpoints().join(path.file_name().unwrap())).unwrap();
        }
    }
}

const KEEP_ALL: &[&str] = &["checkpoint.every_iters=1", "checkpoint.keep=100"];

#[test]
fn a_run_resumed_anywhere_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let (outcome, expected) = whole_run(&whole, KEEP_ALL);
    assert!(outcome.finished && outcome.n_steps == 20 && outcome.position.step == 20);
    let lines = metrics(&whole);
    assert_eq!(lines.len(), 20);
    // The queue starts at step 5 and holds two batches: it counts from step 7 on.
    assert_eq!(lines.iter().position(|line| line.queue_used), Some(7));
    // Mid-epoch, frozen; at an epoch's border; with half a queue; with a full one.
    for step in [2, 5, 6, 13] {
        let part = folder.path().join(format!("from-{step}"));
        rewind(&whole, &part, step);
        let mut trainer = resume(&part, KEEP_ALL).unwrap();
        assert_eq!(trainer.position().step, step);
        let outcome = trainer.run(&StopFlag::new()).unwrap();
        assert_eq!((outcome.n_steps, outcome.finished), (20 - step, true));
        assert_same_bits(&trainer.state().unwrap(), &expected);
        assert_eq!(
            without_clock(metrics(&part)),
            without_clock(lines.clone()),
            "no doubled or missing lines"
        );
        let (a, b) = (RunFolder::at(&whole), RunFolder::at(&part));
        assert_eq!(fs::read(a.weights()).unwrap(), fs::read(b.weights()).unwrap());
    }
}

#[test]
fn a_stop_saves_the_state_and_a_finished_run_stays_finished() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let stop = StopFlag::new();
    stop.raise();
    let mut trainer = start(&run, &[]).unwrap();
    let outcome = trainer.run(&stop).unwrap();
    assert!(!outcome.finished && outcome.n_steps == 0 && outcome.checkpoint.exists());
    let outcome = resume(&run, &[]).unwrap().run(&StopFlag::new()).unwrap();
    assert!(outcome.finished);
    let again = resume(&run, &[]).unwrap().run(&StopFlag::new()).unwrap();
    assert!(again.finished && again.n_steps == 0 && again.position == outcome.position);
}

#[test]
fn one_and_several_threads_and_workers_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, overrides: &'static [&'static str]| {
        let path = folder.path().join(name);
        // A thread joins a pool for good, so each run has its own.
        std::thread::spawn(move || whole_run(&path, overrides).1).join().unwrap()
    };
    let one = run("one", &["training.threads=1", "loader.n_workers=1"]);
    assert_same_bits(&one, &run("two", &["training.threads=2", "loader.n_workers=3"]));
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, part) = (folder.path().join("whole"), folder.path().join("part"));
    let (_, expected) = whole_run(&whole, KEEP_ALL);
    rewind(&whole, &part, 12);
    let files = RunFolder::at(&part).resumable();
    // Truncated, one bit flipped in the data, and emptied.
    let bytes = fs::read(&files[0]).unwrap();
    fs::write(&files[0], &bytes[..bytes.len() - 7]).unwrap();
    let mut bytes = fs::read(&files[1]).unwrap();
    let at = bytes.len() - 40;
    bytes[at] ^= 4;
    fs::write(&files[1], &bytes).unwrap();
    fs::write(&files[2], []).unwrap();
    for path in &files[..3] {
        assert!(matches!(Checkpoint::read(path), Err(CheckpointError::Damaged { .. })), "{}", path.display());
    }
    let mut trainer = resume(&part, KEEP_ALL).unwrap();
    assert_eq!(trainer.position().step, 9);
    trainer.run(&StopFlag::new()).unwrap();
    assert_same_bits(&trainer.state().unwrap(), &expected);
}

#[test]
fn only_damaged_checkpoints_are_an_error_that_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    whole_run(&run, &[]);
    for path in RunFolder::at(&run).resumable() {
        fs::write(path, b"not a checkpoint").unwrap();
    }
    match resume(&run, &[]) {
        Err(TrainError::Checkpoint(CheckpointError::None { damaged, .. })) => assert_eq!(damaged.len(), 2),
        other => panic!("expected no usable checkpoint, got {:?}", other.err()),
    }
}

#[test]
fn another_architecture_recipe_or_data_set_is_refused_with_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    whole_run(&run, &[]);
    let found =
        mismatch(resume(&run, &["loss.temperature=0.25", "optimizer.base_lr=0.25", "training.threads=2"]));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("loss.temperature: 0.1"), "{found:?}");
    assert!(found[0].ends_with("in the checkpoint, 0.25 now"), "{found:?}");
    assert!(found[1].starts_with("optimizer.base_lr: 0.5 in the checkpoint, 0.25 now"), "{found:?}");
    let other = Arc::new(Gradients::new(43, 6));
    let found =
        mismatch(Trainer::resume(settings(&[]), Box::new(Linear::new(6)), other, RunFolder::at(&run)));
    assert!(found.len() == 1 && found[0].starts_with("data:"), "{found:?}");
    // An encoder that does not fit the configuration is caught by what is remembered, before anything is loaded.
    let wide = Trainer::resume(settings(&[]), Box::new(Linear::new(7)), data(), RunFolder::at(&run));
    assert!(matches!(wide, Err(TrainError::Section { part: "codes", .. })));
}

#[test]
fn a_folder_with_a_run_is_not_overwritten_and_an_empty_one_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    assert!(matches!(
        resume(&run, &[]),
        Err(TrainError::Checkpoint(CheckpointError::None { damaged, .. })) if damaged.is_empty()
    ));
    start(&run, &[]).unwrap();
    assert!(matches!(start(&run, &[]), Err(TrainError::RunExists { .. })));
    // Killed before the first checkpoint: it starts over.
    assert_eq!(resume(&run, &[]).unwrap().position().step, 0);
    assert_eq!(mismatch(resume(&run, &["sinkhorn.epsilon=0.1"])).len(), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_that_leaves_earlier_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    whole_run(&run, &[]);
    let checkpoints = RunFolder::at(&run);
    let (checkpoint, before) = checkpoints.newest().unwrap();
    let path = checkpoints.checkpoints().join("step-000000099.safetensors");
    std::os::unix::fs::symlink("/dev/full", path.with_extension("tmp")).unwrap();
    let error = checkpoint.write(&path).unwrap_err();
    assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
    assert!(error.to_string().contains("earlier checkpoints are intact"), "{error}");
    assert!(!path.exists());
    assert_eq!(checkpoints.newest().unwrap(), (checkpoint, before));
}

#[test]
fn the_newest_checkpoints_stay_and_chosen_epochs_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    whole_run(&run, &["checkpoint.keep_every_epochs=2"]);
    let folder = RunFolder::at(&run);
    let mut names: Vec<String> = fs::read_dir(folder.checkpoints())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "epoch-0002.safetensors",
            "epoch-0004.safetensors",
            "step-000000015.safetensors",
            "step-000000020.safetensors"
        ]
    );
}

#[test]
fn nan_stops_the_run_with_advice_and_keeps_the_checkpoint_before() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut encoder = Linear::new(6);
    encoder.fault = Fault { phase: Phase::EmbeddingIsNan, step: 7 };
    let settings = settings(&["checkpoint.every_iters=1", "optimizer.kind=sgd", "optimizer.base_lr=9.0"]);
    let trainer = Trainer::start(settings, Box::new(encoder), data(), RunFolder::at(&run)).unwrap();
    let error = trainer.show_progress(false).run(&StopFlag::new()).unwrap_err();
    match &error {
        TrainError::NotFinite { step: 7, what: Quantity::Embedding, advice } => {
            assert!(advice.contains("optimizer.base_lr (now 9)"), "{advice}");
            assert!(advice.contains("optimizer.warmup_epochs"), "{advice}");
        }
        other => panic!("expected a number that is not finite at step 7, got {other}"),
    }
    assert_eq!(RunFolder::at(&run).newest().unwrap().0.position.step, 7);
}

#[test]
fn collapse_is_noticed_and_explained() {
    let folder = tempfile::tempdir().unwrap();
    // Uniform codes, as epsilon this large makes them, teach nothing: the loss stays at ln K.
    let overrides = [
        "monitor.on_collapse=stop",
        "monitor.patience_iters=4",
        "monitor.min_gap=0.2",
        "sinkhorn.epsilon=50.0",
    ];
    let mut trainer = start(&folder.path().join("run"), &overrides).unwrap();
    match trainer.run(&StopFlag::new()) {
        Err(TrainError::Collapsed { step: 3, sign, advice }) => {
            assert!(sign.contains("ln K"), "{sign}");
            assert!(advice.contains("sinkhorn.epsilon = 0.03"), "{advice}");
        }
        other => panic!("expected a collapse at step 3, got {other:?}"),
    }
}

#[test]
fn fewer_images_than_a_batch_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let few = Arc::new(Gradients::new(7, 0));
    let result = Trainer::start(settings(&[]), Box::new(Linear::new(6)), few, RunFolder::at(folder.path()));
    assert!(matches!(result, Err(TrainError::TooFewImages { n_images: 7, batch_size: 8 })));
}

#[test]
fn tensorboard_files_are_written_beside_the_lines() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    whole_run(&run, &["monitor.tensorboard=true", "monitor.log_every_iters=5"]);
    assert_eq!(metrics(&run).len(), 4);
    let files: Vec<_> = fs::read_dir(RunFolder::at(&run).tensorboard()).unwrap().collect();
    assert_eq!(files.len(), 1);
}
