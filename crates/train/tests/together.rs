//! Several processes, as threads: they train as one would, and none waits for another that has failed.

mod support;

use std::sync::{Arc, Mutex};
use std::thread;

use support::{Fault, Gradients, Linear, Phase, data, settings, start};
use swav_collective::{Collective, InMemory, Single};
use swav_encoder::Encoder;
use swav_train::{
    AssignCodes, Assigned, Code, CodesInput, EpochStart, Loss, LossInput, LossOutput, Metrics, Outcome,
    Remembered, RunFolder, Section, Settings, Setup, StopFlag, Swapped, TrainError, Trainer,
};

/// What a rank's thread gives back.
type Ended = Result<(Outcome, swav_encoder::StateDict), TrainError>;

/// Runs `work` for each rank of a group in a thread of its own.
fn on_ranks<T: Send>(world_size: usize, work: impl Fn(Arc<dyn Collective>) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let ranks: Vec<_> = InMemory::group(world_size)
            .into_iter()
            .map(|rank| {
                let work = &work;
                scope.spawn(move || work(Arc::new(rank)))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
    })
}

/// One step as the callback sees it: loss, and codes of each assignment crop.
type Seen = Vec<(f64, Vec<Vec<f32>>)>;

fn watched(trainer: &mut Trainer) -> Arc<Mutex<Seen>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    trainer.on_step(move |event| {
        let codes = &event.output.expect("a step on the host").codes[0];
        let codes = codes.iter().map(|code| code.weights.iter().copied().collect()).collect();
        log.lock().unwrap().push((event.metrics.loss, codes));
        Ok(())
    });
    seen
}

/// The overrides that share a global batch of 8 among `world_size` processes, one thread each.
fn shared(world_size: usize) -> [String; 2] {
    [format!("training.batch_size={}", 8 / world_size), "training.threads=1".to_owned()]
}

fn setup(folder: &RunFolder, world_size: usize, collective: Arc<dyn Collective>) -> Setup {
    setup_of(folder, world_size, collective, |_| Box::new(Linear::new(6)))
}

fn setup_of(
    folder: &RunFolder,
    world_size: usize,
    collective: Arc<dyn Collective>,
    encoder: impl Fn(&Settings) -> Box<dyn Encoder>,
) -> Setup {
    let overrides = shared(world_size);
    let mut overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    overrides.push("encoder.exact=true");
    let settings = settings(&overrides);
    let encoder = encoder(&settings);
    Setup::new(settings, encoder, data(), folder.clone()).collective(collective)
}

fn network(settings: &Settings) -> Box<dyn Encoder> {
    swav_encoder::build_cpu(settings.encoder(), settings.config().training.seed).unwrap()
}

#[test]
fn two_processes_train_as_one_with_the_whole_batch() {
    train_as_one(|_| Box::new(Linear::new(6)));
}

#[test]
fn two_processes_with_synchronised_batch_norm_train_as_one() {
    train_as_one(network);
}

fn train_as_one(encoder: impl Fn(&Settings) -> Box<dyn Encoder> + Sync) {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (RunFolder::at(folder.path().join("one")), RunFolder::at(folder.path().join("two")));
    let run = |folder: &RunFolder, world_size, collective: Arc<dyn Collective>| {
        let setup = setup_of(folder, world_size, collective, &encoder);
        let mut trainer = setup.start().unwrap().show_progress(false);
        let seen = watched(&mut trainer);
        let outcome = trainer.run(&StopFlag::new()).unwrap();
        assert!(outcome.finished);
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        (seen, trainer.state().unwrap())
    };
    let whole = thread::scope(|scope| scope.spawn(|| run(&one, 1, Arc::new(Single))).join().unwrap());
    let parts = on_ranks(2, |collective| run(&two, 2, collective));
    assert_eq!(whole.0.len(), 20);
    for (step, (loss, codes)) in whole.0.iter().enumerate() {
        for (rank, (seen, _)) in parts.iter().enumerate() {
            let difference = (seen[step].0 - loss).abs();
            assert!(difference < 1e-4, "step {step}, rank {rank}: the losses differ by {difference:e}");
            for (whole, part) in codes.iter().zip(&seen[step].1) {
                let own = &whole[rank * part.len()..][..part.len()];
                let furthest = own.iter().zip(part).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(furthest < 1e-4, "step {step}, rank {rank}: the codes differ by {furthest:e}");
            }
        }
        assert_eq!(parts[0].0[step].0.to_bits(), parts[1].0[step].0.to_bits(), "step {step}");
    }
    for (name, tensor) in parts[0].1.iter() {
        assert!(tensor == parts[1].1.get(name).unwrap(), "{name} is the same on both ranks");
    }
    // The folder is rank 0's alone, with one line a step.
    let lines = std::fs::read_to_string(two.metrics()).unwrap();
    assert_eq!(lines.lines().count(), 20);
    assert!(two.weights().exists());
}

#[test]
fn another_number_of_processes_goes_on_with_what_all_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let whole = RunFolder::at(folder.path().join("whole"));
    let seen = thread::scope(|scope| {
        let run = || {
            let mut trainer = setup(&whole, 1, Arc::new(Single)).start().unwrap().show_progress(false);
            let seen = watched(&mut trainer);
            trainer.run(&StopFlag::new()).unwrap();
            std::mem::take(&mut *seen.lock().unwrap())
        };
        scope.spawn(run).join().unwrap()
    });
    // Two processes until step 13, when the queue is full; then one, and four.
    let parts = RunFolder::at(folder.path().join("parts"));
    on_ranks(2, |collective| {
        let mut trainer = setup(&parts, 2, collective).start().unwrap().show_progress(false);
        let stop = StopFlag::new();
        let raise = stop.clone();
        trainer.on_step(move |event| {
            if event.metrics.step == 12 {
                raise.raise();
            }
            Ok(())
        });
        assert_eq!(trainer.run(&stop).unwrap().position.step, 13);
    });
    let checkpoint = parts.newest().unwrap().0;
    assert_eq!((checkpoint.world_size, checkpoint.sections_of("codes").len()), (2, 2));
    for world_size in [1, 2, 4] {
        let copy = RunFolder::at(folder.path().join(format!("copy-{world_size}")));
        std::fs::create_dir_all(copy.checkpoints()).unwrap();
        std::fs::copy(parts.config(), copy.config()).unwrap();
        let newest = parts.newest().unwrap().1;
        std::fs::copy(&newest, copy.checkpoints().join(newest.file_name().unwrap())).unwrap();
        let ends = on_ranks(world_size, |collective| {
            let mut trainer = setup(&copy, world_size, collective).resume().unwrap().show_progress(false);
            assert_eq!(trainer.position().step, 13);
            let seen = watched(&mut trainer);
            trainer.run(&StopFlag::new()).unwrap();
            std::mem::take(&mut *seen.lock().unwrap())
        });
        for (step, (loss, _)) in ends[0].iter().enumerate() {
            let difference = (loss - seen[13 + step].0).abs();
            assert!(difference < 1e-4, "{world_size} processes, step {}: {difference:e}", 13 + step);
        }
    }
    // Another global batch is another training.
    let refused = setup(&parts, 2, Arc::new(Single)).resume();
    assert!(refused.is_err_and(|error| error.to_string().contains("training.batch_size: 4 on 2 processes")));
}

#[test]
fn one_process_that_wants_to_stop_stops_all() {
    let folder = tempfile::tempdir().unwrap();
    let folder = RunFolder::at(folder.path().join("run"));
    let ends = on_ranks(2, |collective| {
        let second = collective.rank() == 1;
        let mut trainer = setup(&folder, 2, collective).start().unwrap().show_progress(false);
        let stop = StopFlag::new();
        let raise = stop.clone();
        trainer.on_step(move |event| {
            if second && event.metrics.step == 6 {
                raise.raise();
            }
            Ok(())
        });
        trainer.run(&stop).unwrap()
    });
    assert!(ends.iter().all(|end| !end.finished && end.position.step == 7), "{ends:?}");
    assert_eq!(folder.newest().unwrap().0.position.step, 7);
}

/// Codes, a loss and a data set that fail in a phase.
struct Failing<T>(T, Phase);

impl AssignCodes for Failing<swav_train::SinkhornCodes> {
    fn assign(&mut self, input: &CodesInput<'_>) -> Result<Assigned, TrainError> {
        if self.1 == Phase::Codes && input.moment.step == 7 {
            return Err(TrainError::own("a fault of the codes"));
        }
        let mut assigned = self.0.assign(input)?;
        if self.1 == Phase::LossIsNan && input.moment.step == 7 {
            assigned.codes.iter_mut().for_each(|code: &mut Code| code.weights.fill(f32::NAN));
        }
        Ok(assigned)
    }

    fn start_epoch(&mut self, start: &mut EpochStart<'_>) -> Result<(), TrainError> {
        if self.1 == Phase::Epoch && start.moment.epoch == 2 {
            return Err(TrainError::own("a fault of the epoch"));
        }
        self.0.start_epoch(start)
    }

    fn remember(&mut self, batch: &Remembered<'_>) -> Result<(), TrainError> {
        if self.1 == Phase::Memory && batch.moment.step == 7 {
            return Err(TrainError::own("a fault of the memory"));
        }
        self.0.remember(batch)
    }

    fn save(&self) -> Section {
        self.0.save()
    }
}

impl Loss for Failing<Swapped> {
    fn evaluate(&mut self, input: &LossInput<'_>) -> Result<LossOutput, TrainError> {
        match self.1 == Phase::Loss && input.moment.step == 7 {
            true => Err(TrainError::own("a fault of the loss")),
            false => self.0.evaluate(input),
        }
    }
}

/// One of two ranks that fails in `phase`, or works.
fn rank_with_fault(folder: &RunFolder, collective: Arc<dyn Collective>, phase: Phase) -> Ended {
    let mut encoder = Linear::new(6);
    encoder.fault = Fault { phase, step: 7 };
    let overrides = shared(2);
    let mut overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    overrides.push("checkpoint.every_iters=1");
    let settings = settings(&overrides);
    let data = match phase {
        Phase::Data => Arc::new(Gradients { unreadable: true, ..Gradients::new(43, 5) }),
        _ => Arc::new(Gradients::new(43, 5)),
    };
    let codes = Failing(settings.sinkhorn_codes(6, 2), phase);
    let loss = Failing(Swapped::new(settings.loss().clone()), phase);
    let setup = Setup::new(settings, Box::new(encoder), data, folder.clone()).collective(collective);
    let mut trainer = setup.codes(codes).loss(loss).start()?.show_progress(false);
    let checkpoints = folder.checkpoints();
    trainer.on_step(move |event| match phase {
        Phase::Hook if event.metrics.step == 7 => Err("a fault of the callback".into()),
        Phase::Checkpoint if event.metrics.step == 7 => Ok(std::fs::remove_dir_all(&checkpoints)?),
        Phase::Panic if event.metrics.step == 7 => std::panic::resume_unwind(Box::new("a panic")),
        _ => Ok(()),
    });
    let outcome = trainer.run(&StopFlag::new())?;
    Ok((outcome, trainer.state()?))
}

#[test]
fn a_rank_that_fails_in_any_phase_ends_all_with_one_clear_error() {
    for phase in Phase::ALL {
        // Only rank 0 writes.
        let failing = usize::from(phase != Phase::Checkpoint);
        let folder = tempfile::tempdir().unwrap();
        let folder = RunFolder::at(folder.path().join("run"));
        let group = InMemory::group(2);
        let ends: Vec<thread::Result<Ended>> = thread::scope(|scope| {
            let ranks: Vec<_> = group
                .into_iter()
                .map(|rank| {
                    let phase = if rank.rank() == failing { phase } else { Phase::None };
                    let folder = &folder;
                    scope.spawn(move || rank_with_fault(folder, Arc::new(rank), phase))
                })
                .collect();
            ranks.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        match &ends[failing] {
            Err(_) => assert_eq!(phase, Phase::Panic),
            Ok(end) => {
                let error = end.as_ref().err().unwrap_or_else(|| panic!("{phase:?}: the rank has failed"));
                assert!(!matches!(error, TrainError::Rank { .. }), "{phase:?}: its own error, got {error}");
            }
        }
        let other = ends[1 - failing].as_ref().expect("the other rank does not panic");
        match (phase, other) {
            (Phase::Panic, Err(TrainError::Collective(_))) => {}
            // All ranks see that the mean of the gradients is not finite.
            (Phase::GradientIsNan, Err(TrainError::NotFinite { .. })) => {}
            (_, Err(TrainError::Rank { rank, reason })) => {
                assert_eq!(*rank, failing, "{phase:?}");
                assert!(!reason.is_empty(), "{phase:?}");
            }
            (_, Err(error)) => panic!("{phase:?}: expected the failure of rank {failing}, got {error}"),
            (_, Ok(_)) => panic!("{phase:?}: the other rank went on"),
        }
    }
}

#[test]
fn processes_of_different_trainings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = RunFolder::at(folder.path().join("run"));
    let ends = on_ranks(2, |collective| {
        let lr = if collective.rank() == 0 { "optimizer.base_lr=0.5" } else { "optimizer.base_lr=0.25" };
        let settings = settings(&["training.batch_size=4", lr]);
        Setup::new(settings, Box::new(Linear::new(6)), data(), folder.clone())
            .collective(collective)
            .start()
            .err()
    });
    for end in ends {
        assert!(matches!(end, Some(TrainError::RanksDiffer { what: "configuration", rank: 1 })), "{end:?}");
    }
    // A folder with a run is refused on all of them, by rank 0's word.
    start(&folder.root().join("run"), &[]).unwrap();
    let taken = RunFolder::at(folder.root().join("run"));
    let ends = on_ranks(2, |collective| setup(&taken, 2, collective).start().err().unwrap());
    assert!(matches!(&ends[0], TrainError::RunExists { .. }));
    assert!(
        matches!(&ends[1], TrainError::Rank { rank: 0, reason } if reason.contains("already holds a run"))
    );
}

#[test]
fn metrics_of_several_processes_are_read_as_those_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = RunFolder::at(folder.path().join("run"));
    on_ranks(2, |collective| {
        let mut trainer = setup(&folder, 2, collective).start().unwrap().show_progress(false);
        trainer.run(&StopFlag::new()).unwrap();
    });
    let text = std::fs::read_to_string(folder.metrics()).unwrap();
    let lines: Vec<Metrics> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().enumerate().all(|(step, line)| line.step == step as u64));
}
