//! Kill -9 at random moments: the resumed run ends with the bits of an uninterrupted one.
//!
//! The run happens in a child process, this test's own executable: the ignored test `child_run` with the folder in
//! `SWAV_TEST_RUN`. The network is the real one, on the CPU.

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::data;
use swav_train::{RunFolder, Settings, StopFlag, Trainer};

const FOLDER: &str = "SWAV_TEST_RUN";

fn settings() -> Settings {
    support::settings(&["training.epochs=12", "checkpoint.every_iters=2", "optimizer.warmup_epochs=2"])
}

/// Not a test by itself: what the child process runs. Does nothing without its folder.
#[test]
#[ignore = "run by the other tests of this file in a process of its own"]
fn child_run() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = RunFolder::at(folder);
    let settings = settings();
    let encoder = swav_encoder::build_cpu(settings.encoder(), settings.config().training.seed).unwrap();
    let trainer = if folder.exists() {
        Trainer::resume(settings, encoder, data(), folder)
    } else {
        Trainer::start(settings, encoder, data(), folder)
    };
    trainer.unwrap().show_progress(false).run(&stop_on_signals()).unwrap();
}

#[cfg(feature = "signals")]
fn stop_on_signals() -> StopFlag {
    StopFlag::on_signals(|| ()).unwrap()
}

#[cfg(not(feature = "signals"))]
fn stop_on_signals() -> StopFlag {
    StopFlag::new()
}

fn child(folder: &Path, threads: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_run", "--ignored"])
        .env(FOLDER, folder)
        .env("RAYON_NUM_THREADS", threads)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Kills `n_kills` children at random moments of a run, then lets it end.
fn survive(n_kills: usize) {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let begun = Instant::now();
    assert!(child(&whole, "2").wait().unwrap().success());
    let whole_time = begun.elapsed();
    let seed = std::process::id().into();
    println!("moments from seed {seed}, a whole run takes {whole_time:?}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut mid_run, mut too_late) = (0, 0);
    while mid_run < n_kills {
        let mut child = child(&broken, if mid_run % 2 == 0 { "1" } else { "2" });
        std::thread::sleep(whole_time.mul_f64(rng.random_range(0.05..0.9)));
        // SIGKILL on Unix.
        child.kill().unwrap();
        match child.wait().unwrap().success() {
            true => too_late += 1,
            false => mid_run += 1,
        }
        if RunFolder::at(&broken).weights().exists() {
            // This one came to its end first: the next kill needs a run again.
            compare(&whole, &broken);
            std::fs::remove_dir_all(&broken).unwrap();
        }
    }
    println!("{mid_run} kills hit a run, {too_late} came after its end");
    assert!(child(&broken, "1").wait().unwrap().success());
    compare(&whole, &broken);
}

fn compare(a: &Path, b: &Path) {
    let (a, b) = (RunFolder::at(a), RunFolder::at(b));
    assert!(std::fs::read(a.weights()).unwrap() == std::fs::read(b.weights()).unwrap(), "weights differ");
    assert!(a.newest().unwrap().0 == b.newest().unwrap().0, "optimiser, queue or position differ");
    let lines = |folder: &RunFolder| std::fs::read_to_string(folder.metrics()).unwrap().lines().count();
    assert_eq!(lines(&a), lines(&b), "metrics are doubled or missing");
}

#[test]
fn three_kills_change_no_bit() {
    survive(3);
}

/// `cargo test --release -p swav-train --test kill -- --ignored --nocapture ten_kills`
#[test]
#[ignore = "slow; the command is in the documentation"]
fn ten_kills_change_no_bit() {
    survive(10);
}

/// SIGTERM ends the child in good order, with a checkpoint of where it was.
#[cfg(all(unix, feature = "signals"))]
#[test]
fn a_termination_signal_saves_the_state() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut child = child(&run, "1");
    let begun = Instant::now();
    while RunFolder::at(&run).resumable().is_empty() && begun.elapsed() < std::time::Duration::from_secs(60) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert!(child.wait().unwrap().success(), "a stopped run is no failure");
    RunFolder::at(&run).newest().unwrap();
}
