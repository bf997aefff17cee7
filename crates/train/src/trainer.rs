//! The training loop: batches in, a trained encoder, checkpoints and metrics out.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use swav_data::{Dataset, Loader, MultiCropBatch};
use swav_encoder::{Encoder, ImageBatch, StateDict};
use swav_prototypes::{FeatureQueue, Freeze, Prototypes};

use crate::checkpoint::{Checkpoint, CheckpointError, Position, write_weights};
use crate::collective::{Collective, Single};
use crate::config::{OnCollapse, Settings, TrainConfig};
use crate::error::TrainError;
use crate::feed;
use crate::health::{Watch, divergence_advice};
use crate::metrics::{Metrics, MetricsLog};
use crate::progress::Progress;
use crate::resume::differences;
use crate::run_folder::RunFolder;
use crate::schedule::Schedule;
use crate::signal::StopFlag;
use crate::statistics::reestimate_batch_norm;
use crate::step::Swav;
use crate::threads::join_pool;

/// Stream of the random numbers that prototypes are drawn from, beside those of crops and order.
const PROTOTYPES_STREAM: u64 = 0x7072_6f74_6f74_7970;

/// A run of SwAV on one process (or, with [`Trainer::with_collective`], one process of several).
///
/// ```no_run
/// use swav_train::{RunFolder, StopFlag, TrainConfig, Trainer};
///
/// let settings = TrainConfig::load("configs/quickstart.toml".as_ref(), &[])?.check()?;
/// let data = swav_data::open(&settings.config().data.path, &settings.config().data)?;
/// let encoder = swav_encoder::build("cpu", settings.encoder(), settings.config().training.seed)?;
/// let mut trainer = Trainer::start(settings, encoder, data, RunFolder::at("run"))?;
/// let outcome = trainer.run(&StopFlag::on_signals()?)?;
/// println!("final loss {:.4}", outcome.loss);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Trainer {
    settings: Settings,
    encoder: Box<dyn Encoder>,
    swav: Swav,
    data: Arc<dyn Dataset>,
    folder: RunFolder,
    position: Position,
    schedule: Schedule,
    batches_per_epoch: u64,
    collective: Box<dyn Collective>,
    show_progress: bool,
}

/// How a run, or the part of it in this process, ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Where the run stands.
    pub position: Position,
    /// Whether all epochs are done; if not, the run was stopped and can be resumed.
    pub finished: bool,
    /// Mean loss of the last epoch that this process worked on; NaN if it did no step.
    pub loss: f64,
    /// Steps done in this process.
    pub n_steps: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Images a second over all of them.
    pub images_per_s: f64,
    /// Share of the time spent waiting for data, 0 to 1.
    pub data_wait: f64,
    /// Images that could not be read and were replaced.
    pub n_bad_images: u64,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

impl Trainer {
    /// Begins a new run: makes `folder`, writes the resolved configuration there, draws the prototypes.
    ///
    /// # Errors
    /// [`TrainError::RunExists`] if the folder holds a run; too few images; an error of the file system.
    pub fn start(
        settings: Settings,
        encoder: Box<dyn Encoder>,
        data: Arc<dyn Dataset>,
        folder: RunFolder,
    ) -> Result<Self, TrainError> {
        let trainer = Self::new(settings, encoder, data, folder)?;
        trainer.folder.create(&trainer.settings.config().to_toml()?)?;
        tracing::info!("run folder {}", trainer.folder.root().display());
        Ok(trainer)
    }

    /// Goes on with the run in `folder` from its newest usable checkpoint, or from the beginning if it has
    /// none yet. The result is, bit for bit, that of a run without interruption.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] (in [`TrainError::Checkpoint`]), listing each difference, if configuration,
    /// architecture or data are not those of the checkpoint; [`CheckpointError::None`] if there are
    /// checkpoints, but all are damaged.
    pub fn resume(
        settings: Settings,
        encoder: Box<dyn Encoder>,
        data: Arc<dyn Dataset>,
        folder: RunFolder,
    ) -> Result<Self, TrainError> {
        let mut trainer = Self::new(settings, encoder, data, folder)?;
        if trainer.folder.resumable().is_empty() {
            if !trainer.folder.exists() {
                let path = trainer.folder.checkpoints();
                return Err(CheckpointError::None { path, damaged: Vec::new() }.into());
            }
            trainer.check_config(&read_config(&trainer.folder)?, &trainer.folder.config(), Vec::new())?;
            tracing::info!("no checkpoint yet in {}, starting over", trainer.folder.root().display());
            return Ok(trainer);
        }
        let (checkpoint, path) = trainer.folder.newest()?;
        trainer.restore(checkpoint, &path)?;
        let Position { epoch, batch, step } = trainer.position;
        tracing::info!("resuming {} at epoch {epoch}, batch {batch}, step {step}", path.display());
        Ok(trainer)
    }

    fn new(
        settings: Settings,
        encoder: Box<dyn Encoder>,
        data: Arc<dyn Dataset>,
        folder: RunFolder,
    ) -> Result<Self, TrainError> {
        let config = settings.config();
        let batch_size = config.training.batch_size;
        if data.len() < batch_size {
            return Err(TrainError::TooFewImages { n_images: data.len(), batch_size });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(config.training.seed);
        rng.set_stream(PROTOTYPES_STREAM);
        let prototypes =
            Prototypes::random(&config.prototypes.n_prototypes, encoder.embedding_dim(), &mut rng)?;
        let swav = Swav::new(prototypes, settings.loss().clone(), settings.codes()?);
        let batches_per_epoch = (data.len() / batch_size) as u64;
        Ok(Self {
            schedule: settings.schedule(batches_per_epoch),
            settings,
            encoder,
            swav,
            data,
            folder,
            position: Position::default(),
            batches_per_epoch,
            collective: Box::new(Single),
            show_progress: true,
        })
    }

    /// Trains as one of several processes. Each takes its share of every global batch, which has
    /// `training.batch_size` times the number of processes images.
    ///
    /// # Errors
    /// [`TrainError::TooFewImages`] for the global batch.
    pub fn with_collective(mut self, collective: Box<dyn Collective>) -> Result<Self, TrainError> {
        let batch_size = self.settings.config().training.batch_size * collective.world_size();
        if self.data.len() < batch_size {
            return Err(TrainError::TooFewImages { n_images: self.data.len(), batch_size });
        }
        self.batches_per_epoch = (self.data.len() / batch_size) as u64;
        self.schedule = self.settings.schedule(self.batches_per_epoch);
        self.collective = collective;
        Ok(self)
    }

    /// Chooses whether a progress bar is drawn (it is, on a terminal, unless told otherwise).
    #[must_use]
    pub fn show_progress(mut self, show: bool) -> Self {
        self.show_progress = show;
        self
    }

    /// The encoder as it is now.
    pub fn encoder(&self) -> &dyn Encoder {
        self.encoder.as_ref()
    }

    /// The encoder, to evaluate it.
    pub fn into_encoder(self) -> Box<dyn Encoder> {
        self.encoder
    }

    /// Where the run stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Weights, prototypes and batch-norm statistics as they are now, under the reference's names.
    ///
    /// # Errors
    /// The encoder's.
    pub fn state(&self) -> Result<StateDict, TrainError> {
        Ok(self.encoder.state()?.into_iter().chain(self.swav.state()?).collect())
    }

    /// Trains until all epochs are done or `stop` is raised. The state is saved in either case; at the end the
    /// weights are written as well, with re-estimated batch-norm statistics if the configuration asks for it.
    ///
    /// With `training.threads` above 0 the calling thread joins a rayon pool of that size for the rest of its life.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] or [`TrainError::Collapsed`] with advice; errors of data and files. The newest
    /// checkpoint is then from before.
    pub fn run(&mut self, stop: &StopFlag) -> Result<Outcome, TrainError> {
        join_pool(self.settings.config().training.threads)?;
        let config = self.settings.config().clone();
        let total = self.schedule.total_iters;
        let mut metrics = MetricsLog::open(&self.folder, self.position.step, config.monitor.tensorboard)?;
        let mut progress = Progress::new(
            self.show_progress,
            self.position,
            config.training.epochs,
            total,
            config.training.batch_size,
        );
        let mut watch = Watch::new(&config.monitor, config.prototypes.n_prototypes[0]);
        let mut totals = Totals::new();
        let mut checkpoint = None;
        let mut loader = (self.position.step < total)
            .then(|| feed::loader(&self.settings, self.data.clone(), self.position, self.collective.as_ref()))
            .transpose()?;
        while let Some(loader) = loader.as_mut().filter(|_| self.position.step < total && !stop.is_raised()) {
            let begun = Instant::now();
            let batch = next_batch(loader, &progress, &mut totals)?;
            let waited = begun.elapsed().as_secs_f64();
            let line = self.step(&batch, &mut watch, &progress)?;
            drop(batch);
            let seconds = begun.elapsed().as_secs_f64();
            totals.add(&line, seconds, waited);
            progress.step(self.position, line.loss, line.lr, seconds);
            if line.step.is_multiple_of(config.monitor.log_every_iters) {
                metrics.write(&totals.line(line, config.training.batch_size))?;
            }
            if self.position.batch == 0 {
                let (epoch, loss) = (self.position.epoch, totals.end_epoch());
                progress.log(|| {
                    tracing::info!("epoch {epoch}/{} done, mean loss {loss:.4}", config.training.epochs)
                });
            }
            if self.wants_checkpoint(totals.saved.elapsed().as_secs_f64()) {
                checkpoint = Some(self.save(&metrics)?);
                totals.saved = Instant::now();
            }
        }
        progress.finish();
        let checkpoint = match checkpoint {
            Some((step, path)) if step == self.position.step => path,
            _ => self.save(&metrics)?.1,
        };
        let finished = self.position.step >= total;
        if finished {
            self.finish()?;
        }
        let outcome = totals.outcome(self.position, finished, config.training.batch_size, checkpoint);
        tracing::info!(
            "{} {} steps in {:.1} s: {:.1} images/s, {:.1}% of the time waiting for data",
            if finished { "finished;" } else { "stopped, resume with --resume;" },
            outcome.n_steps,
            outcome.seconds,
            outcome.images_per_s,
            100.0 * outcome.data_wait
        );
        Ok(outcome)
    }

    /// One step on a batch; advances the position.
    fn step(
        &mut self,
        batch: &MultiCropBatch,
        watch: &mut Watch,
        progress: &Progress,
    ) -> Result<Metrics, TrainError> {
        let Position { epoch, batch: number, step } = self.position;
        self.start_queue()?;
        let config = self.settings.config();
        let lr = self.schedule.lr(step);
        let rule = self.settings.update_rule(lr);
        let freeze = Freeze { n_iters: config.prototypes.freeze_iters };
        let groups: Vec<ImageBatch<'_>> = batch
            .groups
            .iter()
            .map(|group| {
                let (n_images, height, width, _) = group.images.dim();
                let pixels = group.images.as_slice().expect("a loader's images are in standard layout");
                ImageBatch::new(pixels, n_images, height, width)
            })
            .collect::<Result<_, _>>()?;
        let explain = |error| match error {
            TrainError::NotFinite { what, .. } => TrainError::NotFinite {
                step,
                what,
                advice: divergence_advice(what, step, &rule, &self.settings),
            },
            other => other,
        };
        let output = self
            .swav
            .forward_backward(self.encoder.as_mut(), &groups, self.collective.as_mut())
            .map_err(explain)?;
        let stats = self
            .swav
            .update(self.encoder.as_mut(), &output, &rule, freeze.allows_update(step))
            .map_err(explain)?;
        if let Some(alarm) = watch.observe(&output, &self.settings) {
            match config.monitor.on_collapse {
                OnCollapse::Warn => {
                    progress.log(|| tracing::warn!("step {step}: {}. {}", alarm.sign, alarm.advice))
                }
                OnCollapse::Stop => {
                    return Err(TrainError::Collapsed { step, sign: alarm.sign, advice: alarm.advice });
                }
            }
        }
        self.position.step += 1;
        self.position.batch += 1;
        if self.position.batch == self.batches_per_epoch {
            self.position = Position { epoch: epoch + 1, batch: 0, step: step + 1 };
        }
        let d = output.diagnostics;
        Ok(Metrics {
            step,
            epoch,
            batch: number,
            loss: output.loss,
            lr,
            code_entropy: d.code_entropy,
            code_perplexity: d.code_perplexity,
            prediction_perplexity: d.prediction_perplexity,
            gap_to_ln_k: d.gap_to_ln_k,
            spread: output.spread,
            gradient_norm: stats.gradient_norm,
            parameter_norm: stats.parameter_norm,
            queue_used: output.queue_used,
            images_per_s: 0.0,
            data_wait: 0.0,
        })
    }

    /// Creates the queue when its epoch has come.
    fn start_queue(&mut self) -> Result<(), TrainError> {
        let config = self.settings.config();
        let length = self.settings.queue_length(self.collective.world_size());
        if length > 0 && self.position.epoch >= config.queue.start_epoch && self.swav.queue.is_none() {
            let n_assign = config.loss.crops_for_assign.len();
            let dim = self.encoder.embedding_dim();
            self.swav.queue = Some(FeatureQueue::new(n_assign, length, dim, config.training.batch_size)?);
        }
        Ok(())
    }

    fn wants_checkpoint(&self, seconds_since: f64) -> bool {
        let config = &self.settings.config().checkpoint;
        let due = |every: u64, count: u64| every > 0 && count.is_multiple_of(every);
        let Position { epoch, batch, step } = self.position;
        due(config.every_iters, step)
            || (config.every_minutes > 0.0 && seconds_since >= 60.0 * config.every_minutes)
            || (batch == 0 && (due(config.every_epochs, epoch) || due(config.keep_every_epochs, epoch)))
    }

    /// Saves the state; gives the step that it is of, and the file.
    fn save(&self, metrics: &MetricsLog) -> Result<(u64, PathBuf), TrainError> {
        metrics.sync()?;
        let optimizer = self.encoder.optimizer_state()?.into_iter().chain(self.swav.optimizer_state());
        let checkpoint = Checkpoint {
            position: self.position,
            config: self.settings.config().to_toml()?,
            data_fingerprint: self.data.fingerprint(),
            data_description: self.data.describe(),
            state: self.state()?,
            optimizer: optimizer.collect(),
            queue: self.swav.queue.clone(),
        };
        let config = &self.settings.config().checkpoint;
        let Position { epoch, batch, step } = self.position;
        let keep_epoch = (batch == 0
            && epoch > 0
            && config.keep_every_epochs > 0
            && epoch.is_multiple_of(config.keep_every_epochs))
        .then_some(epoch);
        Ok((step, self.folder.save(&checkpoint, config.keep, keep_epoch)?))
    }

    /// Puts a checkpoint's state in place of the initial one.
    fn restore(&mut self, checkpoint: Checkpoint, path: &std::path::Path) -> Result<(), TrainError> {
        let mut data = Vec::new();
        if checkpoint.data_fingerprint != self.data.fingerprint() {
            data.push(format!(
                "data: {} in the checkpoint, {} now (other images, labels or order)",
                checkpoint.data_description,
                self.data.describe()
            ));
        }
        self.check_config(&TrainConfig::parse(&checkpoint.config, &[])?, path, data)?;
        let (encoder, prototypes) = (checkpoint.encoder_state(), checkpoint.prototypes_state());
        let is_prototype = |name: &str| name.starts_with("prototypes.");
        let (of_prototypes, of_encoder): (Vec<_>, Vec<_>) =
            checkpoint.optimizer.into_iter().partition(|(name, _)| is_prototype(name));
        self.encoder.load_state(&encoder)?;
        self.encoder.load_optimizer_state(&of_encoder.into_iter().collect())?;
        self.swav.load(&prototypes, &of_prototypes.into_iter().collect())?;
        self.swav.queue = checkpoint.queue;
        self.position = checkpoint.position;
        Ok(())
    }

    /// Refuses a configuration that differs in what matters; `found` are differences known already.
    fn check_config(
        &self,
        then: &TrainConfig,
        path: &std::path::Path,
        mut found: Vec<String>,
    ) -> Result<(), TrainError> {
        found.extend(differences(then, self.settings.config())?);
        if found.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Mismatch { path: path.to_owned(), differences: found }.into())
    }

    /// Writes the weights of the finished run.
    fn finish(&mut self) -> Result<(), TrainError> {
        let evaluation = &self.settings.config().evaluation;
        if evaluation.reestimate_batch_norm {
            let n_images = match evaluation.reestimate_images {
                0 => self.data.len(),
                limit => limit.min(self.data.len()),
            };
            let view = self.settings.eval_view();
            reestimate_batch_norm(
                self.encoder.as_mut(),
                self.data.as_ref(),
                view,
                n_images,
                evaluation.batch_size,
            )?;
        }
        write_weights(&self.state()?, &self.folder.weights())?;
        tracing::info!("weights written to {}", self.folder.weights().display());
        Ok(())
    }
}

fn read_config(folder: &RunFolder) -> Result<TrainConfig, TrainError> {
    Ok(TrainConfig::load(&folder.config(), &[])?)
}

/// Bad images up to this number are named one by one in the log.
const NAMED_IN_LOG: u64 = 20;

/// Takes the next batch and names its bad images in the log.
fn next_batch(
    loader: &mut Loader,
    progress: &Progress,
    totals: &mut Totals,
) -> Result<MultiCropBatch, TrainError> {
    let batch = feed::next(loader)?;
    for bad in &batch.bad {
        totals.n_bad_images += 1;
        let (name, reason, n_bad) = (&bad.name, &bad.reason, totals.n_bad_images);
        if n_bad <= NAMED_IN_LOG {
            progress
                .log(|| tracing::warn!(image = %name, %reason, "an image cannot be used and is replaced"));
        } else if n_bad.is_power_of_two() {
            progress.log(
                || tracing::warn!(image = %name, %reason, n_bad, "more images cannot be used; this is the latest"),
            );
        }
    }
    Ok(batch)
}

/// Sums over the steps of this process.
struct Totals {
    n_steps: u64,
    seconds: f64,
    waited: f64,
    n_bad_images: u64,
    since_line: (u64, f64, f64),
    epoch: (u64, f64),
    last_epoch_loss: f64,
    saved: Instant,
}

impl Totals {
    fn new() -> Self {
        Self {
            n_steps: 0,
            seconds: 0.0,
            waited: 0.0,
            n_bad_images: 0,
            since_line: (0, 0.0, 0.0),
            epoch: (0, 0.0),
            last_epoch_loss: f64::NAN,
            saved: Instant::now(),
        }
    }

    fn add(&mut self, line: &Metrics, seconds: f64, waited: f64) {
        self.n_steps += 1;
        self.seconds += seconds;
        self.waited += waited;
        let (n, s, w) = self.since_line;
        self.since_line = (n + 1, s + seconds, w + waited);
        self.epoch = (self.epoch.0 + 1, self.epoch.1 + line.loss);
        self.last_epoch_loss = self.epoch.1 / self.epoch.0 as f64;
    }

    /// Completes a line with the speed since the one before.
    fn line(&mut self, line: Metrics, batch_size: usize) -> Metrics {
        let (n, seconds, waited) = std::mem::take(&mut self.since_line);
        // A clock too coarse for a step must not give an infinity, which JSON cannot hold.
        let seconds = seconds.max(1e-9);
        Metrics {
            images_per_s: n as f64 * batch_size as f64 / seconds,
            data_wait: (waited / seconds).min(1.0),
            ..line
        }
    }

    /// Mean loss of the epoch that has just ended.
    fn end_epoch(&mut self) -> f64 {
        self.epoch = (0, 0.0);
        self.last_epoch_loss
    }

    fn outcome(&self, position: Position, finished: bool, batch_size: usize, checkpoint: PathBuf) -> Outcome {
        let seconds = self.seconds.max(1e-9);
        Outcome {
            position,
            finished,
            loss: self.last_epoch_loss,
            n_steps: self.n_steps,
            seconds: self.seconds,
            images_per_s: self.n_steps as f64 * batch_size as f64 / seconds,
            data_wait: (self.waited / seconds).min(1.0),
            n_bad_images: self.n_bad_images,
            checkpoint,
        }
    }
}
