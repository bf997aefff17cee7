//! How long a step takes and what memory it needs, found by doing some.

use std::sync::Arc;
use std::time::Instant;

use swav_data::{Dataset, Subset, spread};
use swav_encoder::Encoder;

use crate::advice::StepFacts;
use crate::config::Settings;
use crate::error::TrainError;
use crate::progress::Progress;
use crate::run_folder::RunFolder;
use crate::setup::Setup;
use crate::threads::in_pool;
use crate::trainer::Trainer;
use crate::whole::OnDevice;

/// Images that a trial goes over again and again: so many batches of them.
const BATCHES: usize = 4;

/// How a trial is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// Steps that are not counted: caches, buffers and plans are made in them.
    pub n_warm_up: usize,
    /// Steps that are counted, at most.
    pub n_steps: usize,
    /// Seconds after which no further step is begun, warm-up included, once one has been counted.
    pub seconds: f64,
}

impl Default for Trial {
    /// Five steps of warm-up, 40 that count, 20 seconds.
    fn default() -> Self {
        Self { n_warm_up: 5, n_steps: 40, seconds: 20.0 }
    }
}

/// What a trial has measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrialOutcome {
    /// A step whose images have been read before, if they fit the cache; the mean of those counted.
    pub step: StepFacts,
    /// Seconds of the first step, in which all has to be read, compiled and planned.
    pub first_seconds: f64,
    /// Steps that were counted.
    pub n_steps: usize,
}

impl Trial {
    /// Trains some steps on a part of `data`, exactly as a run would, and writes nothing. The queue, if there is one, takes
    /// part from the beginning.
    ///
    /// # Errors
    /// What ends a training: too few images, unreadable ones, numbers that are not finite.
    pub fn measure(
        &self,
        settings: &Settings,
        encoder: Box<dyn Encoder>,
        data: Arc<dyn Dataset>,
    ) -> Result<TrialOutcome, TrainError> {
        let mut config = settings.config().clone();
        let batch_size = config.training.batch_size;
        if data.len() < batch_size {
            return Err(TrainError::TooFewImages { n_images: data.len(), batch_size });
        }
        // Enough epochs of the few batches, and a queue that is full from the start.
        config.training.epochs = 1 << 30;
        config.queue.start_epoch = 0;
        config.queue.length = config.queue.length.min(BATCHES * batch_size);
        let settings = config.check()?;
        let sample = spread(data.len(), BATCHES * batch_size);
        let data: Arc<dyn Dataset> = Arc::new(Subset::new(data, sample).map_err(TrainError::own)?);
        let trainer = Setup::new(settings.clone(), encoder, data, RunFolder::at("")).build()?;
        in_pool(settings.config().training.threads, move || self.run(trainer))
    }

    fn run(&self, mut trainer: Trainer) -> Result<TrialOutcome, TrainError> {
        trainer.on_device =
            OnDevice::prepare(trainer.encoder.as_mut(), &mut trainer.swav, &trainer.settings)?;
        let mut feed = trainer.feed()?;
        let progress = Progress::new(false, trainer.position, 1, 1, 1);
        let (begun, mut first_seconds) = (Instant::now(), 0.0);
        let (mut counted, mut waited, mut n_steps) = (Instant::now(), 0.0, 0);
        for at in 0..self.n_warm_up + self.n_steps {
            if at == self.n_warm_up {
                trainer.settle()?;
                (counted, waited) = (Instant::now(), feed.seconds_waited());
            }
            if at > self.n_warm_up && begun.elapsed().as_secs_f64() > self.seconds {
                break;
            }
            trainer.one_step(&feed.next(&progress)?)?;
            if at == 0 {
                trainer.settle()?;
                first_seconds = begun.elapsed().as_secs_f64();
            }
            n_steps = (at + 1).saturating_sub(self.n_warm_up);
        }
        trainer.settle()?;
        let seconds = counted.elapsed().as_secs_f64();
        let step = StepFacts {
            seconds: seconds / n_steps.max(1) as f64,
            data_wait: ((feed.seconds_waited() - waited) / seconds.max(1e-9)).clamp(0.0, 1.0),
            peak_bytes: StepFacts::peak_of_process(),
        };
        Ok(TrialOutcome { step, first_seconds, n_steps })
    }
}
