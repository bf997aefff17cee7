//! Runs that are stopped, damaged or resumed with something else.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use support::{Fault, Gradients, Linear, Phase, assert_same_bits, data, resume, settings, start, whole_run};
use swav_train::{Checkpoint, CheckpointError, Metrics, Quantity, RunFolder, StopFlag, TrainError, Trainer};
use swav_train::{ConfigError, TrainConfig};

fn keys(trainer: &Trainer) -> Vec<&str> {
    trainer.changes().iter().map(|change| change.key.as_str()).collect()
}

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
        mismatch(resume(&run, &["loss.temperature=0.25", "optimizer.momentum=0.25", "training.threads=2"]));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("loss.temperature: 0.1"), "{found:?}");
    assert!(found[0].ends_with("in the checkpoint, 0.25 now"), "{found:?}");
    assert!(found[1].starts_with("optimizer.momentum: 0.9 in the checkpoint, 0.25 now"), "{found:?}");
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
fn a_collapsing_run_gets_remedies_and_does_the_same_when_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, part) = (folder.path().join("whole"), folder.path().join("part"));
    // The first epoch shows it after three steps of five; the remedy comes with the next one, and so on.
    let overrides: Vec<&str> = KEEP_ALL
        .iter()
        .copied()
        .chain(["monitor.on_collapse=remedy", "monitor.patience_iters=3", "sinkhorn.epsilon=50.0"])
        .collect();
    let (_, expected) = whole_run(&whole, &overrides);
    let lines = metrics(&whole);
    let schedule = settings(&overrides).schedule(5);
    let rates: Vec<f64> = lines.iter().map(|line| line.lr / schedule.lr(line.step)).collect();
    for (step, rate) in [(4, 1.0), (5, 0.5), (9, 0.5), (10, 0.25), (15, 0.125)] {
        assert!((rates[step] - rate).abs() < 1e-9, "step {step}: {rates:?}");
    }
    rewind(&whole, &part, 8);
    let mut trainer = resume(&part, &overrides).unwrap();
    trainer.run(&StopFlag::new()).unwrap();
    assert_same_bits(&trainer.state().unwrap(), &expected);
    assert_eq!(without_clock(metrics(&part)), without_clock(lines));
}

#[test]
fn a_trial_measures_steps_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let before = fs::read_dir(folder.path()).unwrap().count();
    let trial = swav_train::Trial { n_warm_up: 2, n_steps: 3, seconds: 60.0 };
    let outcome = trial.measure(&settings(&[]), Box::new(Linear::new(6)), data()).unwrap();
    assert!(outcome.n_steps == 3 && outcome.step.seconds > 0.0 && outcome.first_seconds > 0.0, "{outcome:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before);
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

#[test]
fn a_run_can_be_lengthened_before_and_after_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let (ended, halfway) = (folder.path().join("ended"), folder.path().join("halfway"));
    whole_run(&ended, KEEP_ALL);
    rewind(&ended, &halfway, 7);
    let longer = [KEEP_ALL, &["training.epochs=6", "optimizer.base_lr=0.25"]].concat();
    let rates: Vec<f64> = {
        let schedule = settings(&longer).schedule(5);
        (0..30).map(|step| schedule.lr(step)).collect()
    };
    for (run, step) in [(&ended, 20), (&halfway, 7)] {
        let mut trainer = resume(run, &longer).unwrap();
        assert_eq!(keys(&trainer), ["optimizer.base_lr", "training.epochs"]);
        let outcome = trainer.run(&StopFlag::new()).unwrap();
        assert_eq!((outcome.n_steps, outcome.position.step, outcome.finished), (30 - step as u64, 30, true));
        // The schedule is that of the new length, from the step on at which it was resumed.
        let lines = metrics(run);
        assert_eq!(lines.len(), 30);
        assert!(lines[step..].iter().zip(&rates[step..]).all(|(line, &lr)| (line.lr - lr).abs() < 1e-12));
        assert!((lines[step - 1].lr - rates[step - 1]).abs() > 1e-6);
        // It holds from now on.
        let config = TrainConfig::load(&RunFolder::at(run).config(), &[]).unwrap();
        assert_eq!((config.training.epochs, config.optimizer.base_lr), (6, 0.25));
    }
    // What is done cannot be undone; what stands at the border can end there.
    let found = mismatch(resume(&ended, &["training.epochs=5"]));
    assert!(
        found.len() == 1 && found[0].starts_with("training.epochs: ") && found[0].contains("at least 6"),
        "{found:?}"
    );
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    whole_run(&run, &["monitor.tensorboard=true"]);
    let (at, settings) = (RunFolder::at(&run), settings(&[]));
    let standing = at.standing(&settings).unwrap().unwrap();
    assert!(standing.finished && standing.position.step == 20 && standing.changes.len() == 1, "{standing:?}");
    let state = || {
        let files = [at.weights(), at.config(), at.metrics(), at.checkpoint_of(20)];
        let written = files.map(|file| fs::metadata(file).unwrap().modified().unwrap());
        (written, fs::read_dir(at.tensorboard()).unwrap().count())
    };
    let before = state();
    let mut trainer = resume(&run, &["monitor.tensorboard=true"]).unwrap();
    assert!(trainer.is_finished());
    let outcome = trainer.run(&StopFlag::new()).unwrap();
    assert!(outcome.finished && outcome.n_steps == 0 && outcome.checkpoint == at.checkpoint_of(20));
    assert_eq!(state(), before);
}

#[test]
fn a_run_is_one_processs() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let first = start(&run, &[]).unwrap();
    let id = std::process::id().to_string();
    match resume(&run, &[]).err() {
        Some(error @ TrainError::RunBusy { .. }) => assert!(error.to_string().contains(&id), "{error}"),
        other => panic!("expected a busy run, got {other:?}"),
    }
    drop(first);
    // What a killed process leaves: its name, but no lock.
    fs::write(run.join(".lock"), "process 4000000000\n").unwrap();
    resume(&run, &[]).unwrap();
    assert_eq!(fs::read(run.join(".lock")).unwrap(), b"");
}

#[test]
fn numbered_folders_are_taken_once() {
    let folder = tempfile::tempdir().unwrap();
    let parent = folder.path().join("runs");
    let take = || RunFolder::numbered(&parent, "a").unwrap().root().to_owned();
    let taken: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let different: std::collections::BTreeSet<_> = taken.iter().collect();
    assert_eq!(different.len(), 8);
    assert!((1..=8).all(|number| parent.join(format!("a-{number}")).is_dir()));
}

#[test]
fn a_start_that_fails_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("new/run");
    let few = Arc::new(Gradients::new(7, 0));
    let result = Trainer::start(settings(&[]), Box::new(Linear::new(6)), few, RunFolder::at(&run));
    assert!(matches!(result, Err(TrainError::TooFewImages { .. })));
    let too_large = start(&run, &["queue.length=4000000000"]).err();
    assert!(matches!(too_large, Some(TrainError::Config(ConfigError::Memory { .. }))), "{too_large:?}");
    let mut unreadable = Gradients::new(43, 5);
    unreadable.unreadable = true;
    let trainer =
        Trainer::start(settings(&[]), Box::new(Linear::new(6)), Arc::new(unreadable), RunFolder::at(&run));
    trainer.unwrap().show_progress(false).run(&StopFlag::new()).unwrap_err();
    assert!(!folder.path().join("new").exists());
    whole_run(&run, &[]);
}

#[test]
fn a_start_that_fails_leaves_a_folder_that_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("mine");
    fs::create_dir(&run).unwrap();
    fs::write(run.join(".gitkeep"), "").unwrap();
    let mut unreadable = Gradients::new(43, 5);
    unreadable.unreadable = true;
    let trainer =
        Trainer::start(settings(&[]), Box::new(Linear::new(6)), Arc::new(unreadable), RunFolder::at(&run));
    trainer.unwrap().show_progress(false).run(&StopFlag::new()).unwrap_err();
    let left: Vec<_> = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".gitkeep"]);
    whole_run(&run, &[]);
}

#[test]
fn a_folder_with_something_else_is_no_run() {
    let folder = tempfile::tempdir().unwrap();
    for (name, file) in [("photos", "a.jpg"), ("site", "config.toml")] {
        let other = folder.path().join(name);
        fs::create_dir(&other).unwrap();
        fs::write(other.join(file), "theirs").unwrap();
        match start(&other, &[]).err() {
            Some(TrainError::NotARun { found, .. }) => assert_eq!(found, file),
            other => panic!("expected no run, got {other:?}"),
        }
        assert!(!RunFolder::at(&other).exists());
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    }
    let hidden = folder.path().join("hidden");
    fs::create_dir(&hidden).unwrap();
    fs::write(hidden.join(".gitkeep"), "").unwrap();
    start(&hidden, &[]).unwrap();
    // What is left of a start that was killed.
    let killed = folder.path().join("killed");
    fs::create_dir_all(killed.join("checkpoints")).unwrap();
    fs::write(killed.join("config.tmp"), "").unwrap();
    start(&killed, &[]).unwrap();
}

#[test]
fn finished_weights_without_a_checkpoint_are_not_started_over() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    whole_run(&run, &["checkpoint.keep_every_epochs=2"]);
    let at = RunFolder::at(&run);
    for path in at.resumable() {
        fs::remove_file(path).unwrap();
    }
    // A checkpoint that stays for good does, too.
    assert_eq!(resume(&run, &[]).unwrap().position().step, 20);
    fs::remove_file(&at.lasting()[0]).unwrap();
    assert_eq!(resume(&run, &[]).unwrap().position().step, 10);
    fs::remove_file(&at.lasting()[0]).unwrap();
    let weights = fs::read(at.weights()).unwrap();
    for result in [resume(&run, &[]).map(|_| ()), at.standing(&settings(&[])).map(|_| ())] {
        assert!(matches!(result, Err(TrainError::Checkpoint(CheckpointError::Lost { .. }))), "{result:?}");
    }
    assert_eq!(fs::read(at.weights()).unwrap(), weights);
}

#[test]
fn positions_and_queues_that_cannot_be_are_refused_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    whole_run(&run, &[]);
    let at = RunFolder::at(&run);
    let (good, path) = at.newest().unwrap();
    let half = u64::MAX / 2;
    for (epoch, batch, step) in
        [(0, 5, 5), (0, 4, 3), (4, 0, 21), (half, half, half), (u64::MAX, 0, 0), (5, 0, 25), (4, 1, 21)]
    {
        let mut wrong = good.clone();
        wrong.position = swav_train::RunPosition { epoch, batch, step };
        wrong.write(&path).unwrap();
        let found = mismatch(resume(&run, &[]));
        assert!(found.len() == 1 && found[0].contains(&epoch.to_string()), "{found:?}");
    }
    let section = |change: &dyn Fn(&mut swav_train::Section)| {
        let mut wrong = good.clone();
        change(&mut wrong.sections.get_mut("codes").unwrap()[0]);
        wrong.write(&path).unwrap();
        resume(&run, &[]).err().unwrap()
    };
    let rows = |shape: &[usize]| {
        let n = shape.iter().product();
        swav_encoder::StateTensor::new(shape.to_vec(), vec![0.5; n]).unwrap()
    };
    for shape in [&[2, 16, 5][..], &[2, 8, 6], &[1, 16, 6], &[2, 16], &[2, 0, 6], &[0, 16, 6]] {
        let error = section(&|codes| {
            codes.tensors.insert("queue.rows", rows(shape));
        });
        assert!(
            matches!(error, TrainError::Section { .. } | TrainError::Prototypes(_)),
            "{shape:?}: {error}"
        );
    }
    for filled in ["[16]", "[16, 17]", "[16, 3]", "[16, -1]", "\"all\"", "[99999999999999999999, 16]"] {
        let error = section(&|codes| {
            codes.values.insert("filled".to_owned(), serde_json::from_str(filled).unwrap());
        });
        assert!(matches!(error, TrainError::Section { .. } | TrainError::Prototypes(_)), "{filled}: {error}");
    }
    good.write(&path).unwrap();
    resume(&run, &[]).unwrap();
}

#[test]
fn a_stop_is_heard_while_statistics_are_estimated() {
    let folder = tempfile::tempdir().unwrap();
    let at = RunFolder::at(folder.path().join("run"));
    let settings =
        settings(&["training.epochs=1", "optimizer.warmup_epochs=0", "reestimation.batch_norm=true"]);
    let encoder = || swav_encoder::build_cpu(settings.encoder(), 1).unwrap();
    let mut trainer =
        Trainer::start(settings.clone(), encoder(), data(), at.clone()).unwrap().show_progress(false);
    let stop = StopFlag::new();
    let raised = stop.clone();
    trainer.on_epoch(move |_| {
        raised.raise();
        Ok(())
    });
    let outcome = trainer.run(&stop).unwrap();
    assert!(!outcome.finished && outcome.position.step == 5 && !at.weights().exists());
    drop(trainer);
    let mut trainer =
        Trainer::resume(settings.clone(), encoder(), data(), at.clone()).unwrap().show_progress(false);
    assert!(trainer.run(&StopFlag::new()).unwrap().finished && at.weights().exists());
}

#[test]
fn advice_for_a_resume_is_what_a_resume_takes() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut encoder = Linear::new(6);
    encoder.fault = Fault { phase: Phase::EmbeddingIsNan, step: 7 };
    let trainer =
        Trainer::start(settings(&["loss.temperature=0.04"]), Box::new(encoder), data(), RunFolder::at(&run));
    let error = trainer.unwrap().show_progress(false).run(&StopFlag::new()).unwrap_err();
    let TrainError::NotFinite { advice, .. } = error else {
        panic!("expected an embedding that is not finite")
    };
    let (resumable, new) = advice.split_once("In a new run only").expect("the temperature needs a new run");
    assert!(
        resumable.contains("optimizer.base_lr") && resumable.contains("optimizer.warmup_epochs"),
        "{advice}"
    );
    assert!(!resumable.contains("loss.temperature") && new.contains("loss.temperature"), "{advice}");
    let changed = ["loss.temperature=0.04", "optimizer.base_lr=0.1", "optimizer.warmup_epochs=2"];
    assert_eq!(resume(&run, &changed).unwrap().position().step, 5);
    assert_eq!(mismatch(resume(&run, &["loss.temperature=0.1"])).len(), 1);
}

/// Runs of every version, as these versions have written them: `tests/runs/versionN`. Each is read, and goes on to its end.
#[test]
fn runs_of_every_version_go_on() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runs");
    for (version, has_queue) in [("version1", true), ("version2", true)] {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::at(folder.path());
        let from = RunFolder::at(kept.join(version));
        fs::create_dir(run.checkpoints()).unwrap();
        fs::copy(from.config(), run.config()).unwrap();
        fs::copy(from.checkpoint_of(2), run.checkpoint_of(2)).unwrap();

        let settings = TrainConfig::load(&run.config(), &[]).unwrap().check().unwrap();
        let images = settings.config().data.open().unwrap();
        let network = swav_encoder::build("cpu", settings.encoder(), 0).unwrap();
        let (checkpoint, _) = run.newest().unwrap();
        assert_eq!(
            (checkpoint.position.step, checkpoint.sections_of("codes").len()),
            (2, usize::from(has_queue))
        );
        let mut trainer = Trainer::resume(settings, network, images, run.clone()).unwrap();
        let outcome = trainer.run(&StopFlag::new()).unwrap();
        assert!(outcome.finished && outcome.n_steps == 2 && outcome.loss.is_finite(), "{version}");
        drop(trainer);
        assert_eq!(run.trained().unwrap().path, run.weights());

        // One of a version that is to come.
        let bytes = fs::read(run.checkpoint_of(2)).unwrap();
        let (before, after) = (br#"{\"version\":"#, br#"{\"version\":9"#);
        let place = bytes.windows(before.len()).position(|window| window == before).unwrap();
        let newer = [&bytes[..place], after, &bytes[place + after.len()..]].concat();
        fs::write(run.checkpoint_of(9), newer).unwrap();
        match run.newest() {
            Err(error @ CheckpointError::Version { expected: 2, got: 9, .. }) => {
                assert!(error.to_string().contains("this program is too old"), "{error}");
            }
            other => panic!("{version}: {other:?}"),
        }
    }
}

/// The smallest network, and changes that make a run of it short.
const SMALL: &str = r#"
training = { epochs = 1, batch_size = 8 }
prototypes = { n_prototypes = [5] }
optimizer = { base_lr = 0.1, warmup_epochs = 0 }
monitor = { tensorboard = false }
data = { path = "builtin", builtin = { n_train = 16, n_test = 8 } }
augment = { preset = "simclr-cifar", crops = [{ size = 8, n_crops = 2, min_scale = 0.3, max_scale = 1.0 }] }
encoder = { arch = { custom = { block = "basic", layers = [1] } }, width = 4, stem = "cifar", head = "linear", dim = 4 }
"#;

fn small(path: &Path, overrides: &[String]) -> Result<Trainer, TrainError> {
    let settings = TrainConfig::parse(SMALL, overrides)?.check()?;
    let network = swav_encoder::build("cpu", settings.encoder(), settings.config().training.seed)?;
    let images = settings.config().data.open()?;
    Trainer::start(settings, network, images, RunFolder::at(path))
}

#[test]
fn a_run_starts_from_the_weights_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    let mut trainer = small(&first, &[]).unwrap();
    trainer.run(&StopFlag::new()).unwrap();
    drop(trainer);
    let trained = RunFolder::at(&first).trained().unwrap().encoder;
    let init = |path: &Path| format!("encoder.init={}", path.display());
    let seed = "training.seed=7".to_owned();

    // From its folder, and from its file.
    for (name, from) in [("a", first.clone()), ("b", RunFolder::at(&first).weights())] {
        let started =
            small(&folder.path().join(name), &[init(&from), seed.clone()]).unwrap().state().unwrap();
        for (name, tensor) in trained.iter() {
            assert_eq!(started.get(name), Some(tensor), "{name}");
        }
        let prototypes = RunFolder::at(&first).trained().unwrap().prototypes;
        assert_ne!(
            started.get("prototypes.weight"),
            prototypes.get("prototypes.weight"),
            "prototypes are drawn"
        );
    }
    // Another head is a new one, another backbone is refused; nothing is left then.
    let started = small(&folder.path().join("c"), &[init(&first), "encoder.dim=6".to_owned()]).unwrap();
    assert_eq!(started.state().unwrap().get("conv1.weight"), trained.get("conv1.weight"));
    let other = folder.path().join("d");
    match small(&other, &[init(&first), "encoder.width=8".to_owned()]) {
        Err(TrainError::Weights { what: "encoder.init", .. }) => assert!(!other.exists()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a network of another width was taken"),
    }
    assert!(matches!(
        small(&other, &[init(&folder.path().join("none.pth"))]),
        Err(TrainError::Weights { what: "encoder.init", .. })
    ));
}

#[test]
fn an_import_is_used_like_a_run_but_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    small(&first, &[]).unwrap().run(&StopFlag::new()).unwrap();
    let mut file = swav_weights::WeightsFile::open(RunFolder::at(&first).weights()).unwrap();
    let import = swav_weights::Import::read(&mut file, None).unwrap();
    let settings = TrainConfig::parse(SMALL, &[]).unwrap().check().unwrap();
    assert_eq!(import.preprocessing, Some(settings.preprocessing()));

    let config = TrainConfig { encoder: import.encoder.clone(), ..settings.config().clone() };
    let run = RunFolder::at(folder.path().join("import"));
    run.import(&config, &import, "{}").unwrap();
    let network = run.network().unwrap();
    assert_eq!((&network.encoder, network.step), (&import.state, None));
    assert!(matches!(run.import(&config, &import, "{}"), Err(TrainError::RunExists { .. })));
    let network = swav_encoder::build("cpu", settings.encoder(), 1).unwrap();
    let images = settings.config().data.open().unwrap();
    match Trainer::resume(settings, network, images, run.clone()) {
        Err(TrainError::Checkpoint(error @ CheckpointError::Imported { .. })) => {
            assert!(error.to_string().contains("encoder.init="), "{error}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("an import was resumed"),
    }
}
