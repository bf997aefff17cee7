//! The training loop: batches in, a trained encoder, checkpoints and metrics out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};
use swav_collective::{Collective, Decision, Vote};
use swav_data::Dataset;
use swav_encoder::{Encoder, EncoderError, StateDict};

use crate::checkpoint::{CHOICES, Checkpoint, DEVICE, RunPosition};
use crate::codes::EpochStart;
use crate::collective::agreed;
use crate::config::{OnCollapse, Settings};
use crate::error::{TrainError, chain};
use crate::feed::{FedBatch, Feed, Form};
use crate::health::Alarm;
use crate::hooks::{EpochEvent, HookResult, Hooks, Notes, StepEvent};
use crate::lock::RunLock;
use crate::metrics::{Metrics, MetricsLog};
use crate::moment::Moment;
use crate::progress::Progress;
use crate::reestimation::reestimate_until;
use crate::remedy::Care;
use crate::resume::Change;
use crate::run_folder::{Made, RunFolder};
use crate::schedule::Schedule;
use crate::section::Section;
use crate::setup::Setup;
use crate::signal::StopFlag;
use crate::step::{Batch, StepNumbers, StepOutput, Swav};
use crate::threads::in_pool;
use crate::totals::{Outcome, Totals};
use crate::whole::{OnDevice, not_finite};

/// A run: of SwAV on one process, or with parts of the caller's own, or on several processes ([`Setup`]).
///
/// ```no_run
/// use swav_train::{RunFolder, StopFlag, TrainConfig, Trainer};
///
/// let settings = TrainConfig::load("configs/quickstart.toml".as_ref(), &[])?.check()?;
/// let data = swav_data::open(&settings.config().data.path, &settings.config().data)?;
/// let encoder = swav_encoder::build("cpu", settings.encoder(), settings.config().training.seed)?;
/// let mut trainer = Trainer::start(settings, encoder, data, RunFolder::at("run"))?;
/// let outcome = trainer.run(&StopFlag::new())?;
/// println!("final loss {:.4}", outcome.loss);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Trainer {
    pub(crate) settings: Settings,
    pub(crate) encoder: Box<dyn Encoder>,
    pub(crate) swav: Swav,
    pub(crate) data: Arc<dyn Dataset>,
    pub(crate) folder: RunFolder,
    pub(crate) position: RunPosition,
    pub(crate) schedule: Schedule,
    pub(crate) batches_per_epoch: u64,
    pub(crate) collective: Arc<dyn Collective>,
    pub(crate) hooks: Hooks,
    pub(crate) show_progress: bool,
    /// Steps that run on the encoder's device as a whole, while a run goes on.
    pub(crate) on_device: Option<OnDevice>,
    /// Rank 0's: the run's folder is this process's, until [`run`](Self::run) is done.
    pub(crate) lock: Option<RunLock>,
    /// What this process has made of the folder of a new run.
    pub(crate) made: Option<Made>,
    /// What is different from the checkpoint that was resumed.
    pub(crate) changes: Vec<Change>,
    /// What the last device that had something to choose has chosen, from the checkpoint that was resumed.
    pub(crate) choices: Option<String>,
    /// What has been seen of the run's health, and done about it.
    pub(crate) care: Care,
}

/// A step whose numbers are known; on a device that may be later than when it was begun.
pub(crate) struct Done {
    position: RunPosition,
    numbers: StepNumbers,
    /// `None` if the step ran on a device as a whole.
    output: Option<StepOutput>,
}

/// What a run writes to and watches while it goes on.
struct Record {
    /// Rank 0's alone.
    metrics: Option<MetricsLog>,
    progress: Progress,
    totals: Totals,
}

impl Trainer {
    /// Begins a new run on one process, see [`Setup::start`].
    ///
    /// # Errors
    /// As [`Setup::start`].
    pub fn start(
        settings: Settings,
        encoder: Box<dyn Encoder>,
        data: Arc<dyn Dataset>,
        folder: RunFolder,
    ) -> Result<Self, TrainError> {
        Setup::new(settings, encoder, data, folder).start()
    }

    /// Goes on with a run on one process, see [`Setup::resume`].
    ///
    /// # Errors
    /// As [`Setup::resume`].
    pub fn resume(
        settings: Settings,
        encoder: Box<dyn Encoder>,
        data: Arc<dyn Dataset>,
        folder: RunFolder,
    ) -> Result<Self, TrainError> {
        Setup::new(settings, encoder, data, folder).resume()
    }

    /// Chooses whether a progress bar is drawn (it is, on a terminal and with the feature `progress`, unless told
    /// otherwise).
    #[must_use]
    pub fn show_progress(mut self, show: bool) -> Self {
        self.show_progress = show;
        self
    }

    /// Calls `hook` after each step, on every process. Its error ends the run.
    pub fn on_step(&mut self, hook: impl FnMut(&StepEvent<'_>) -> HookResult + Send + 'static) {
        self.hooks.on_step.push(Box::new(hook));
    }

    /// Calls `hook` after each epoch, on every process. Its error ends the run.
    pub fn on_epoch(&mut self, hook: impl FnMut(&EpochEvent<'_>) -> HookResult + Send + 'static) {
        self.hooks.on_epoch.push(Box::new(hook));
    }

    /// The encoder as it is now.
    pub fn encoder(&self) -> &dyn Encoder {
        self.encoder.as_ref()
    }

    /// The encoder, to evaluate it.
    pub fn into_encoder(self) -> Box<dyn Encoder> {
        self.encoder
    }

    /// Prototypes, codes and loss as they are now.
    pub fn swav(&self) -> &Swav {
        &self.swav
    }

    /// Where the run stands.
    pub fn position(&self) -> RunPosition {
        self.position
    }

    /// Whether all epochs are done and the weights are written, as of a run that was resumed after its end.
    /// [`run`](Self::run) has nothing to do then.
    pub fn is_finished(&self) -> bool {
        let rewrites = self.changes.iter().any(|change| change.key.starts_with("reestimation."));
        self.position.step >= self.schedule.total_iters && self.folder.weights().exists() && !rewrites
    }

    /// What the settings change of the run that was resumed.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Weights, prototypes and batch-norm statistics as they are now, under the reference's names.
    ///
    /// # Errors
    /// The encoder's.
    pub fn state(&self) -> Result<StateDict, TrainError> {
        Ok(self.encoder.state()?.into_iter().chain(self.swav.state()?).collect())
    }

    /// Trains until all epochs are done or `stop` is raised, on any of the processes. The state is saved in either case; at
    /// the end the weights are written as well, with re-estimated batch-norm statistics if the configuration asks for it.
    ///
    /// The steps run in a pool of `training.threads` threads, unless the calling thread is in a rayon pool already.
    ///
    /// If one of several processes fails, all fail: it with its own error, the others with [`TrainError::Rank`].
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] or [`TrainError::Collapsed`] with advice; errors of data and files. The newest
    /// checkpoint is then from before. A new run that fails in its first step leaves nothing but a folder that was there before.
    pub fn run(&mut self, stop: &StopFlag) -> Result<Outcome, TrainError> {
        let collective = self.collective.clone();
        let n_threads = self.settings.config().training.threads;
        if self.is_first() && self.lock.is_none() {
            self.lock = Some(self.folder.lock()?);
        }
        let result = in_pool(n_threads, || self.train(stop));
        if let Err(error) = &result {
            collective.abort(&chain(error));
            if let Some(made) = self.made.as_ref().filter(|_| self.position.step == 0) {
                self.folder.discard(made);
            }
        }
        self.lock = None;
        result
    }

    fn train(&mut self, stop: &StopFlag) -> Result<Outcome, TrainError> {
        let total = self.schedule.total_iters;
        if agreed_on(self.collective.as_ref(), self.is_finished())? {
            tracing::info!("the run in {} is finished: nothing to do", self.folder.root().display());
            return Ok(self.finished());
        }
        if self.is_first() && self.position.step < total {
            self.check_disk()?;
        }
        let mut record = self.open_record()?;
        let mut saved = None;
        let mut feed = None;
        if self.position.step < total {
            if self.collective.world_size() == 1 {
                self.on_device = OnDevice::prepare(self.encoder.as_mut(), &mut self.swav, &self.settings)?;
            }
            feed = Some(self.feed()?);
        }
        while let Some(feed) = feed.as_mut().filter(|_| self.position.step < total) {
            let (begun, waited) = (Instant::now(), feed.seconds_waited());
            let Some(batch) = self.next_batch(feed, stop, &record.progress)? else { break };
            let mut done = self.one_step(&batch)?;
            drop(batch);
            let save = self.wants_checkpoint(&record)?;
            if save || self.position.batch == 0 || self.hooks.watch_steps() {
                done.extend(self.settle()?);
            }
            let seconds = (begun.elapsed().as_secs_f64(), feed.seconds_waited() - waited);
            done.into_iter().try_for_each(|done| self.report(done, seconds, &mut record))?;
            if save {
                saved = Some(self.save(record.metrics.as_ref())?);
                record.totals.saved = Instant::now();
            }
        }
        self.settle()?.into_iter().try_for_each(|done| self.report(done, (0.0, 0.0), &mut record))?;
        self.on_device = None;
        record.progress.finish();
        let checkpoint = match saved {
            Some((step, path)) if step == self.position.step => path,
            _ => self.save(record.metrics.as_ref())?.1,
        };
        let finished = self.position.step >= total && self.finish(stop)?;
        let n_bad = feed.map_or(0, |feed| feed.n_bad_images());
        let outcome = record.totals.outcome(self.position, self.global_batch_size(), n_bad);
        let outcome = Outcome { finished, checkpoint, ..outcome };
        tracing::info!(
            "{} {} steps in {:.1} s: {:.1} images/s, {:.1}% of the time waiting for data",
            if finished { "finished;" } else { "stopped and saved;" },
            outcome.n_steps,
            outcome.seconds,
            outcome.images_per_s,
            100.0 * outcome.data_wait
        );
        Ok(outcome)
    }

    /// Batches from here on, in the form that steps take.
    pub(crate) fn feed(&self) -> Result<Feed, TrainError> {
        let form = if self.on_device.is_some() { Form::Bytes } else { Form::Values };
        Feed::new(&self.settings, self.data.clone(), self.position, self.collective.as_ref(), form)
    }

    /// Whether this process is the one that writes the run's folder.
    pub(crate) fn is_first(&self) -> bool {
        self.collective.rank() == 0
    }

    fn global_batch_size(&self) -> usize {
        self.settings.config().training.batch_size * self.collective.world_size()
    }

    fn moment(&self) -> Moment {
        self.moment_of(self.position)
    }

    fn moment_of(&self, position: RunPosition) -> Moment {
        let RunPosition { epoch, step, .. } = position;
        Moment { step, epoch, total_steps: self.schedule.total_iters }
    }

    fn open_record(&self) -> Result<Record, TrainError> {
        let config = self.settings.config();
        let tensorboard = config.monitor.tensorboard;
        let metrics =
            self.is_first().then(|| MetricsLog::open(&self.folder, self.position.step, tensorboard));
        Ok(Record {
            metrics: metrics.transpose()?,
            progress: Progress::new(
                self.show_progress && self.is_first(),
                self.position,
                config.training.epochs,
                self.schedule.total_iters,
                self.global_batch_size(),
            ),
            totals: Totals::new(),
        })
    }

    /// The next batch, or `None` if a process wants to stop; where one has no batch, all fail.
    fn next_batch(
        &self,
        feed: &mut Feed,
        stop: &StopFlag,
        progress: &Progress,
    ) -> Result<Option<FedBatch>, TrainError> {
        let (batch, vote) = match stop.is_raised() {
            true => (Ok(None), Vote::Stop),
            false => match feed.next(progress) {
                Ok(batch) => (Ok(Some(batch)), Vote::Continue),
                Err(error) => {
                    let vote = Vote::Fail(chain(&error));
                    (Err(error), vote)
                }
            },
        };
        match (batch, self.collective.agree(vote)?) {
            (Err(error), _) => Err(error),
            (Ok(_), Decision::Fail { rank, reason }) => Err(TrainError::Rank { rank, reason }),
            (Ok(_), Decision::Stop) => Ok(None),
            (Ok(batch), Decision::Continue) => Ok(batch),
        }
    }

    fn start_epoch(&mut self) -> Result<(), TrainError> {
        let moment = self.moment();
        self.swav.codes.start_epoch(&mut EpochStart {
            moment,
            prototypes: &mut self.swav.prototypes,
            encoder: self.encoder.as_ref(),
            data: self.data.as_ref(),
            views: self.settings.multi_crop(),
            collective: self.collective.as_ref(),
        })?;
        match &mut self.on_device {
            Some(steps) => steps.start_epoch(self.encoder.as_mut(), &mut self.swav),
            None => Ok(()),
        }
    }

    /// The step on a batch at the current position, and with it the start of an epoch; the steps whose numbers are then known.
    pub(crate) fn one_step(&mut self, batch: &FedBatch) -> Result<Vec<Done>, TrainError> {
        if self.position.batch == 0 {
            self.remedy()?;
            self.start_epoch()?;
        }
        let done = self.step(batch)?;
        self.position = self.after(self.position);
        Ok(done)
    }

    /// The learning rate of a step: the schedule's, unless a remedy has lowered it.
    fn lr(&self, step: u64) -> f64 {
        self.schedule.lr(step) * self.care.rate
    }

    /// Changes what collapses, where it was seen to and the configuration wants it. All processes do what rank 0 does.
    fn remedy(&mut self) -> Result<(), TrainError> {
        if self.settings.config().monitor.on_collapse != OnCollapse::Remedy {
            return Ok(());
        }
        let mut due = [u8::from(self.care.is_due)];
        self.collective.broadcast(&mut due, 0)?;
        if due[0] == 0 {
            return Ok(());
        }
        let epsilon = self.care.epsilon.unwrap_or(self.settings.config().sinkhorn.epsilon);
        match self.care.apply(epsilon) {
            Some(changes) => tracing::warn!("step {}: {changes}", self.position.step),
            None => {
                tracing::warn!("step {}: no remedy is left; the run goes on as it is", self.position.step)
            }
        }
        self.sharpen()?;
        if self.on_device.is_some() {
            // The plan on the device holds epsilon.
            self.on_device = OnDevice::prepare(self.encoder.as_mut(), &mut self.swav, &self.settings)?;
        }
        Ok(())
    }

    /// Gives the codes the epsilon of the latest remedy, if there is one.
    pub(crate) fn sharpen(&mut self) -> Result<(), TrainError> {
        match (self.care.epsilon, self.swav.codes.as_sinkhorn()) {
            (Some(epsilon), Some(codes)) => codes.set_epsilon(epsilon),
            _ => Ok(()),
        }
    }

    /// One step on a batch, and what would fit where the device has no room for it. The steps whose numbers are then known.
    fn step(&mut self, batch: &FedBatch) -> Result<Vec<Done>, TrainError> {
        match self.step_where_it_runs(batch) {
            Err(TrainError::Encoder(EncoderError::OutOfMemory { device, memory: None, source })) => {
                let memory = self.device_memory()?;
                Err(EncoderError::OutOfMemory { device, memory, source }.into())
            }
            done => done,
        }
    }

    /// One step on a batch: on the encoder's device as a whole if it runs there, else here.
    fn step_where_it_runs(&mut self, batch: &FedBatch) -> Result<Vec<Done>, TrainError> {
        let position = self.position;
        let update = self.settings.update(position.step, self.lr(position.step));
        let moment = self.moment();
        let encoder = self.encoder.as_mut();
        if let Some(steps) = &mut self.on_device {
            let known = batch.with_crops(|crops| steps.step(encoder, crops, moment, &update))?;
            return self.done_on_device(known);
        }
        let output = batch.with_values(|groups| {
            let batch = Batch { groups, indices: batch.indices(), moment };
            self.swav.forward_backward(encoder, &batch, self.collective.as_ref())
        })?;
        let norms = self.swav.update(encoder, &output, &update)?;
        let mut loss = [output.loss / self.collective.world_size() as f64];
        self.collective.sum_f64(&mut loss)?;
        let numbers = StepNumbers {
            loss: loss[0],
            diagnostics: output.diagnostics,
            spread: output.spread,
            queue_used: output.queue_used,
            codes: self.swav.codes.vitals(),
            norms,
        };
        Ok(vec![Done { position, numbers, output: Some(output) }])
    }

    /// Waits for the device, and brings what it has trained to the host.
    pub(crate) fn settle(&mut self) -> Result<Vec<Done>, TrainError> {
        let Some(steps) = &mut self.on_device else { return Ok(Vec::new()) };
        let known = steps.settle(self.encoder.as_mut())?;
        steps.fetch(self.encoder.as_mut(), &mut self.swav)?;
        self.done_on_device(known)
    }

    fn done_on_device(&self, known: Vec<(Moment, StepNumbers)>) -> Result<Vec<Done>, TrainError> {
        let done = |(moment, numbers): (Moment, StepNumbers)| {
            if let Some(what) = not_finite(&numbers) {
                return Err(self.swav.not_finite(what, moment));
            }
            let Moment { step, epoch, .. } = moment;
            let position = RunPosition { step, epoch, batch: step - epoch * self.batches_per_epoch };
            Ok(Done { position, numbers, output: None })
        };
        known.into_iter().map(done).collect()
    }

    /// Tells everybody about a step that is done. `seconds` are those since the one before, and of its waiting for data.
    fn report(&mut self, done: Done, seconds: (f64, f64), record: &mut Record) -> Result<(), TrainError> {
        let Done { position, numbers, output } = done;
        let lr = self.lr(position.step);
        let speed = record.totals.add(numbers.loss, seconds.0, seconds.1);
        let speed = (speed.images_per_s(self.global_batch_size()), speed.data_wait());
        let metrics = Metrics::new(position, lr, &numbers, speed);
        let alarms = self.care.watch.observe(&metrics, self.settings.config());
        alarms.into_iter().try_for_each(|alarm| self.alarm(alarm, record))?;
        let config = self.settings.config();
        let after = self.after(position);
        record.progress.step(after, numbers.loss, lr, seconds.0);
        if position.step.is_multiple_of(config.monitor.log_every_iters) {
            record.metrics.as_mut().map_or(Ok(()), |log| log.write(&metrics))?;
            if let Some(advice) = record.totals.end_line() {
                record.progress.log(|| tracing::warn!("{advice}"));
            }
        }
        let (encoder, swav) = (self.encoder.as_ref(), &self.swav);
        self.hooks.step(&StepEvent { metrics: &metrics, output: output.as_ref(), encoder, swav })?;
        if after.batch == 0 {
            let (epoch, epochs) = (after.epoch, config.training.epochs);
            let mean_loss = record.totals.end_epoch();
            record.progress.log(|| tracing::info!("epoch {epoch}/{epochs} done, mean loss {mean_loss:.4}"));
            let notes = Notes::default();
            let epoch = position.epoch;
            self.hooks.epoch(&EpochEvent { epoch, mean_loss, encoder, swav, notes: &notes })?;
            let numbers = notes.into_numbers();
            record.progress.note(&numbers);
            record.metrics.as_mut().map_or(Ok(()), |log| log.write_evaluation(position, &numbers))?;
        }
        Ok(())
    }

    /// Warns of what has gone wrong; at a collapse, does what the configuration says.
    fn alarm(&mut self, alarm: Alarm, record: &Record) -> Result<(), TrainError> {
        let Alarm { symptom, step, sign, advice, .. } = alarm;
        match self.settings.config().monitor.on_collapse {
            OnCollapse::Stop if symptom.is_collapse() => {
                return Err(TrainError::Collapsed { step, sign, advice });
            }
            OnCollapse::Remedy if symptom.is_collapse() => self.care.is_due = true,
            _ => (),
        }
        record.progress.log(|| tracing::warn!("step {step}: {symptom}: {sign}. {advice}"));
        Ok(())
    }

    /// The position one step later.
    fn after(&self, position: RunPosition) -> RunPosition {
        let RunPosition { epoch, batch, step } = position;
        match batch + 1 == self.batches_per_epoch {
            true => RunPosition { epoch: epoch + 1, batch: 0, step: step + 1 },
            false => RunPosition { epoch, batch: batch + 1, step: step + 1 },
        }
    }

    /// Whether a checkpoint is due. Clocks differ, so that of rank 0 counts.
    fn wants_checkpoint(&self, record: &Record) -> Result<bool, TrainError> {
        let config = &self.settings.config().checkpoint;
        let due = |every: u64, count: u64| every > 0 && count.is_multiple_of(every);
        let RunPosition { epoch, batch, step } = self.position;
        let elapsed = record.totals.saved.elapsed().as_secs_f64();
        let mut by_clock = [u8::from(config.every_minutes > 0.0 && elapsed >= 60.0 * config.every_minutes)];
        self.collective.broadcast(&mut by_clock, 0)?;
        Ok(by_clock[0] == 1
            || due(config.every_iters, step)
            || (batch == 0 && (due(config.every_epochs, epoch) || due(config.keep_every_epochs, epoch))))
    }

    /// Saves the state of all processes; gives the step that it is of, and the file.
    fn save(&self, metrics: Option<&MetricsLog>) -> Result<(u64, PathBuf), TrainError> {
        let sections = self.sections()?;
        let RunPosition { epoch, batch, step } = self.position;
        let Some(metrics) = metrics else { return Ok((step, self.folder.checkpoint_of(step))) };
        metrics.sync()?;
        let optimizer = self.encoder.optimizer_state()?.into_iter().chain(self.swav.optimizer_state());
        let checkpoint = Checkpoint {
            position: self.position,
            config: self.settings.config().to_toml()?,
            data_fingerprint: self.data.fingerprint(),
            data_description: self.data.describe(),
            world_size: self.collective.world_size(),
            state: self.state()?,
            optimizer: optimizer.collect(),
            sections,
        };
        let config = &self.settings.config().checkpoint;
        let keep_epoch = (batch == 0
            && epoch > 0
            && config.keep_every_epochs > 0
            && epoch.is_multiple_of(config.keep_every_epochs))
        .then_some(epoch);
        Ok((step, self.folder.save(&checkpoint, config.keep, keep_epoch)?))
    }

    /// What the parts of all processes remember, on rank 0.
    fn sections(&self) -> Result<BTreeMap<String, Vec<Section>>, TrainError> {
        let mut parts = vec![("codes", self.swav.codes.save()), ("loss", self.swav.loss.save())];
        if self.settings.config().monitor.on_collapse == OnCollapse::Remedy {
            parts.push(("watch", self.care.save()));
        }
        // A device without choices of its own passes on those of the one before.
        let choices = self.encoder.choices().or_else(|| self.choices.clone());
        let device = Section { values: choices_as_values(choices), ..Section::default() };
        if self.collective.world_size() == 1 {
            if !device.is_empty() {
                parts.push((DEVICE, device));
            }
            return Ok(parts.into_iter().map(|(part, section)| (part.to_owned(), vec![section])).collect());
        }
        parts.push((DEVICE, device));
        parts.push(("statistics", Section { tensors: self.statistics()?, ..Section::default() }));
        let mut gathered = BTreeMap::new();
        for (part, section) in parts {
            let all = self.collective.all_gather(&section.to_bytes().map_err(TrainError::own)?)?;
            let all: Result<Vec<_>, _> = all.iter().map(|bytes| Section::from_bytes(bytes)).collect();
            let all = all.map_err(TrainError::own)?;
            if part != DEVICE || !all.iter().all(Section::is_empty) {
                gathered.insert(part.to_owned(), all);
            }
        }
        Ok(gathered)
    }

    /// The encoder's trained parameters.
    pub(crate) fn parameters(&self) -> Result<StateDict, TrainError> {
        self.state_where(true)
    }

    /// The encoder's batch-norm statistics: what is in its state and not trained.
    fn statistics(&self) -> Result<StateDict, TrainError> {
        self.state_where(false)
    }

    fn state_where(&self, trained: bool) -> Result<StateDict, TrainError> {
        let parameters: Vec<String> = self.encoder.parameters().into_iter().map(|(name, _)| name).collect();
        let state = self.encoder.state()?.into_iter();
        Ok(state.filter(|(name, _)| parameters.contains(name) == trained).collect())
    }

    /// The outcome of a run that was finished before.
    fn finished(&self) -> Outcome {
        let outcome = Totals::new().outcome(self.position, self.global_batch_size(), 0);
        Outcome { finished: true, checkpoint: self.folder.checkpoint_of(self.position.step), ..outcome }
    }

    /// Writes the weights of the finished run; whether `stop` has left the time for it.
    fn finish(&mut self, stop: &StopFlag) -> Result<bool, TrainError> {
        let collective = self.collective.clone();
        let written = if self.is_first() { self.write_weights(stop) } else { Ok(false) };
        let done = *written.as_ref().unwrap_or(&false);
        agreed(collective.as_ref(), written.map(|_| ()))?;
        agreed_on(collective.as_ref(), done)
    }

    fn write_weights(&mut self, stop: &StopFlag) -> Result<bool, TrainError> {
        if self.settings.config().reestimation.batch_norm {
            let how = self.settings.reestimation();
            if !reestimate_until(self.encoder.as_mut(), self.data.as_ref(), how, stop)? {
                return Ok(false);
            }
        }
        self.folder.write_weights(&self.state()?, &self.settings)?;
        tracing::info!("weights written to {}", self.folder.weights().display());
        Ok(true)
    }
}

/// What a device has chosen, as values of a section.
fn choices_as_values(choices: Option<String>) -> Map<String, Value> {
    choices.into_iter().map(|choices| (CHOICES.to_owned(), Value::from(choices))).collect()
}

/// What rank 0 says, on all ranks.
fn agreed_on(collective: &dyn Collective, answer: bool) -> Result<bool, TrainError> {
    let mut answer = [u8::from(answer)];
    collective.broadcast(&mut answer, 0)?;
    Ok(answer[0] == 1)
}
