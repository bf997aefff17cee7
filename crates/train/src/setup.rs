//! From settings, an encoder and data to a trainer: a new run, or one that goes on.

use std::path::Path;
use std::sync::Arc;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use swav_collective::{Collective, Single};
use swav_data::Dataset;
use swav_encoder::{Encoder, SyncBatchNorm};
use swav_prototypes::Prototypes;

use crate::checkpoint::{CHOICES, Checkpoint, CheckpointError, DEVICE, RunPosition, is_of_prototypes};
use crate::codes::AssignCodes;
use crate::collective::from_rank_0;
use crate::config::{Settings, TrainConfig};
use crate::error::{TrainError, chain};
use crate::health::divergence_advice;
use crate::hooks::Hooks;
use crate::loss::{Loss, Swapped};
use crate::memory::available_memory;
use crate::remedy::Care;
use crate::resume::{Change, Effect, differences};
use crate::run_folder::RunFolder;
use crate::schedule::Schedule;
use crate::section::Section;
use crate::step::Swav;
use crate::trainer::Trainer;
use crate::weights::RunWeights;

/// Stream of the random numbers that prototypes are drawn from, beside those of crops and order.
const PROTOTYPES_STREAM: u64 = 0x7072_6f74_6f74_7970;

/// The parts of a run, of which some may be the caller's own.
///
/// ```no_run
/// use swav_train::{RunFolder, Setup, StopFlag, Swapped, TrainConfig};
///
/// let settings = TrainConfig::load("photos.toml".as_ref(), &[])?.check()?;
/// let data = swav_data::open(&settings.config().data.path, &settings.config().data)?;
/// let encoder = swav_encoder::build("cpu", settings.encoder(), settings.config().training.seed)?;
/// // A temperature that falls from 0.2 to 0.1.
/// let loss = Swapped::new(settings.loss().clone()).with_temperature(|at| 0.2 - 0.1 * at.share() as f32);
/// let mut trainer = Setup::new(settings, encoder, data, RunFolder::at("run")).loss(loss).start()?;
/// trainer.on_epoch(|event| Ok(println!("epoch {}: loss {:.4}", event.epoch, event.mean_loss)));
/// trainer.run(&StopFlag::new())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Setup {
    settings: Settings,
    encoder: Box<dyn Encoder>,
    data: Arc<dyn Dataset>,
    folder: RunFolder,
    collective: Arc<dyn Collective>,
    codes: Option<Box<dyn AssignCodes>>,
    loss: Option<Box<dyn Loss>>,
}

impl Setup {
    /// A run of SwAV on one process, as the settings have it.
    pub fn new(
        settings: Settings,
        encoder: Box<dyn Encoder>,
        data: Arc<dyn Dataset>,
        folder: RunFolder,
    ) -> Self {
        Self { settings, encoder, data, folder, collective: Arc::new(Single), codes: None, loss: None }
    }

    /// Trains as one of several processes. Each takes its share of every global batch, which has
    /// `training.batch_size` times the number of processes images. Only rank 0 touches the run's folder.
    #[must_use]
    pub fn collective(mut self, collective: Arc<dyn Collective>) -> Self {
        self.collective = collective;
        self
    }

    /// Assigns codes in another way.
    #[must_use]
    pub fn codes(mut self, codes: impl AssignCodes + 'static) -> Self {
        self.codes = Some(Box::new(codes));
        self
    }

    /// Trains with another loss.
    #[must_use]
    pub fn loss(mut self, loss: impl Loss + 'static) -> Self {
        self.loss = Some(Box::new(loss));
        self
    }

    /// Begins a new run: makes the folder, writes the resolved configuration there, draws the prototypes.
    ///
    /// # Errors
    /// [`TrainError::RunExists`] if the folder holds a run, [`TrainError::NotARun`] if it holds something else,
    /// [`TrainError::RunBusy`] if another process is in it; too few images or too little memory; processes that do not fit
    /// together; an error of the file system. The folder is then as it was.
    pub fn start(self) -> Result<Trainer, TrainError> {
        let collective = self.collective.clone();
        self.begin().inspect_err(|error| collective.abort(&chain(error)))
    }

    /// Goes on with the run in the folder from its newest usable checkpoint, or from the beginning if it has
    /// none yet. The result is, bit for bit, that of a run without interruption.
    ///
    /// The settings may differ from the checkpoint's in what [`MAY_CHANGE`](crate::MAY_CHANGE) lists, the schedule and its
    /// length among it; what they change is said in the log, and holds for later resumes, too.
    ///
    /// Another number of processes may go on if the batch of all of them together stays: what each remembers is
    /// divided anew, and batch-norm statistics are averaged.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] (in [`TrainError::Checkpoint`]), listing each difference, if configuration,
    /// architecture or data are not those of the checkpoint; [`CheckpointError::None`] if there are
    /// checkpoints, but all are damaged; [`CheckpointError::Lost`] if there are none, but the weights of a run that has ended;
    /// [`TrainError::RunBusy`] if another process is in the folder.
    pub fn resume(self) -> Result<Trainer, TrainError> {
        let collective = self.collective.clone();
        self.go_on().inspect_err(|error| collective.abort(&chain(error)))
    }

    fn begin(self) -> Result<Trainer, TrainError> {
        let mut trainer = self.build()?;
        trainer.start_from_init()?;
        if trainer.is_first() {
            let (lock, made) = trainer.folder.create(&trainer.settings.config().to_toml()?)?;
            (trainer.lock, trainer.made) = (Some(lock), Some(made));
            tracing::info!("run folder {}", trainer.folder.root().display());
        }
        if let Err(error) = trainer.together() {
            if let Some(made) = &trainer.made {
                trainer.folder.discard(made);
            }
            return Err(error);
        }
        Ok(trainer)
    }

    fn go_on(self) -> Result<Trainer, TrainError> {
        let mut trainer = self.build()?;
        if trainer.is_first() && trainer.folder.exists() {
            trainer.lock = Some(trainer.folder.lock()?);
        }
        let found = if trainer.is_first() { trainer.newest()? } else { None };
        let path = found.as_ref().map_or_else(|| trainer.folder.checkpoints(), |(_, path)| path.clone());
        let checkpoint = trainer.shared(found)?;
        if let Some(checkpoint) = checkpoint {
            trainer.restore(checkpoint, &path)?;
            let RunPosition { epoch, batch, step } = trainer.position;
            tracing::info!("resuming {} at epoch {epoch}, batch {batch}, step {step}", path.display());
        } else {
            trainer.start_from_init()?;
            tracing::info!("no checkpoint yet in {}, starting over", trainer.folder.root().display());
        }
        trainer.together()?;
        if trainer.is_first() {
            trainer.folder.rewrite_config(&trainer.settings.config().to_toml()?)?;
        }
        Ok(trainer)
    }

    /// The trainer at the start of a run.
    pub(crate) fn build(self) -> Result<Trainer, TrainError> {
        let Self { mut settings, mut encoder, data, folder, collective, codes, loss } = self;
        settings.describe(encoder.description())?;
        let config = settings.config();
        let world_size = collective.world_size();
        if world_size > 1 {
            let synchronised = config.training.sync_batch_norm;
            let batch_norm = if synchronised { SyncBatchNorm::On } else { SyncBatchNorm::Off };
            encoder.join(collective.clone(), batch_norm)?;
        }
        let batch_size = config.training.batch_size.saturating_mul(world_size);
        if data.len() < batch_size {
            return Err(TrainError::TooFewImages { n_images: data.len(), batch_size });
        }
        // The network is there already.
        settings.training_memory(world_size, false).without_network().check(available_memory())?;
        let dim = encoder.embedding_dim();
        let mut rng = ChaCha8Rng::seed_from_u64(config.training.seed);
        rng.set_stream(PROTOTYPES_STREAM);
        let prototypes = Prototypes::random(&config.prototypes.n_prototypes, dim, &mut rng)?;
        let loss = loss.unwrap_or_else(|| Box::new(Swapped::new(settings.loss().clone())));
        let codes = codes.unwrap_or_else(|| Box::new(settings.sinkhorn_codes(dim, world_size)));
        let batches_per_epoch = (data.len() / batch_size) as u64;
        let schedule = settings.schedule(batches_per_epoch);
        if let Some(warning) = idle_queue(config, settings.queue_length(world_size), batches_per_epoch) {
            tracing::warn!("{warning}");
        }
        let advice = {
            let settings = settings.clone();
            move |what, step| divergence_advice(what, step, schedule.lr(step), &settings)
        };
        Ok(Trainer {
            schedule,
            swav: Swav::new(prototypes, loss, codes).with_advice(advice),
            settings,
            encoder,
            data,
            folder,
            position: RunPosition::default(),
            batches_per_epoch,
            collective,
            hooks: Hooks::default(),
            show_progress: true,
            on_device: None,
            lock: None,
            made: None,
            changes: Vec::new(),
            choices: None,
            care: Care::default(),
        })
    }
}

impl Trainer {
    /// Makes sure that all processes begin with the same configuration, data and parameters: those of rank 0.
    fn together(&mut self) -> Result<(), TrainError> {
        if self.collective.world_size() == 1 {
            return Ok(());
        }
        self.same_on_all("configuration", self.settings.config().to_toml()?.as_bytes())?;
        self.same_on_all("data", &self.data.fingerprint().to_le_bytes())?;
        self.same_on_all("position", &self.position.step.to_le_bytes())?;
        let parameters = Section { tensors: self.parameters()?, ..Section::default() };
        let bytes = parameters.to_bytes().map_err(TrainError::own)?;
        let first =
            Section::from_bytes(&from_rank_0(self.collective.as_ref(), bytes)?).map_err(TrainError::own)?;
        let mut state = self.encoder.state()?;
        for (name, tensor) in first.tensors {
            if state.get(&name).is_some() {
                state.insert(name, tensor);
            }
        }
        self.encoder.load_state(&state)?;
        Ok(())
    }

    fn same_on_all(&self, what: &'static str, bytes: &[u8]) -> Result<(), TrainError> {
        let all = self.collective.all_gather(bytes)?;
        let differs = all.iter().position(|other| *other != all[0]);
        differs.map_or(Ok(()), |rank| Err(TrainError::RanksDiffer { what, rank }))
    }

    /// Puts the weights that `encoder.init` names in place of those that were drawn.
    fn start_from_init(&mut self) -> Result<(), TrainError> {
        let Some(path) = self.settings.config().encoder.init.clone() else { return Ok(()) };
        let start = RunWeights::start(&path, self.settings.encoder())?;
        let mut state = self.encoder.state()?;
        let head = if start.with_head { "with its head" } else { "with a new head" };
        for (name, tensor) in start.state {
            state.insert(name, tensor);
        }
        self.encoder.load_state(&state)?;
        tracing::info!("the encoder starts from {}, {head}", path.display());
        Ok(())
    }

    /// The newest usable checkpoint; `None` for a run without any.
    fn newest(&mut self) -> Result<Option<(Checkpoint, std::path::PathBuf)>, TrainError> {
        if self.folder.has_state()? {
            return Ok(Some(self.folder.newest()?));
        }
        if !self.folder.exists() {
            let path = self.folder.checkpoints();
            return Err(CheckpointError::None { path, damaged: Vec::new() }.into());
        }
        let then = TrainConfig::load(&self.folder.config(), &[])?;
        self.check_config(&then, &self.folder.config(), Vec::new())?;
        Ok(None)
    }

    /// Rank 0's checkpoint on all ranks.
    fn shared(
        &self,
        found: Option<(Checkpoint, std::path::PathBuf)>,
    ) -> Result<Option<Checkpoint>, TrainError> {
        if self.collective.world_size() == 1 {
            return Ok(found.map(|(checkpoint, _)| checkpoint));
        }
        let bytes = match &found {
            Some((_, path)) => {
                std::fs::read(path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?
            }
            None => Vec::new(),
        };
        let bytes = from_rank_0(self.collective.as_ref(), bytes)?;
        match found {
            _ if bytes.is_empty() => Ok(None),
            Some((checkpoint, _)) => Ok(Some(checkpoint)),
            None => Ok(Some(Checkpoint::from_bytes(&bytes, &self.folder.checkpoints())?)),
        }
    }

    /// Puts a checkpoint's state in place of the initial one. What can be wrong with it is found before anything is
    /// loaded, part by part in the order of their dependence.
    fn restore(&mut self, checkpoint: Checkpoint, path: &Path) -> Result<(), TrainError> {
        let then = TrainConfig::parse(&checkpoint.config, &[])?;
        self.check_config(&then, path, self.misfits(&checkpoint))?;
        self.tell_changes(&then, checkpoint.position.step);
        let (rank, world_size) = (self.collective.rank(), self.collective.world_size());
        self.swav.codes.load(checkpoint.sections_of("codes"), rank, world_size)?;
        self.swav.loss.load(checkpoint.sections_of("loss"), rank, world_size)?;
        let care = Care::load(checkpoint.sections_of("watch"))?;
        let mut state = checkpoint.encoder_state();
        statistics_of_rank(&mut state, checkpoint.sections_of("statistics"), rank, world_size);
        let prototypes = checkpoint.prototypes_state();
        self.adopt_choices(checkpoint.sections_of(DEVICE));
        let (of_prototypes, of_encoder): (Vec<_>, Vec<_>) =
            checkpoint.optimizer.into_iter().partition(|(name, _)| is_of_prototypes(name));
        self.encoder.load_state(&state)?;
        self.encoder.load_optimizer_state(&of_encoder.into_iter().collect())?;
        self.swav.load(&prototypes, &of_prototypes.into_iter().collect())?;
        self.position = checkpoint.position;
        self.care = care;
        self.sharpen()
    }

    /// Lets the encoder's device choose as it did before, so that the run goes on with the same bits. What a section holds that is
    /// not understood is left out.
    fn adopt_choices(&mut self, of_ranks: &[Section]) {
        let section = of_ranks.get(self.collective.rank()).or(of_ranks.first());
        let Some(choices) = section.and_then(|section| section.values.get(CHOICES)?.as_str()) else { return };
        // Kept whatever comes of it: this device may have nothing to choose, and the next one may be the old one.
        self.choices = Some(choices.to_owned());
        if let Err(error) = self.encoder.adopt_choices(choices) {
            tracing::warn!(
                "the device chooses anew, so that the run may differ in its last bits from one without interruption: {}",
                chain(&error)
            );
        }
    }

    /// What a checkpoint has that this run cannot have, one line each.
    fn misfits(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let mut found = Vec::new();
        if checkpoint.data_fingerprint != self.data.fingerprint() {
            found.push(format!(
                "data: {} in the checkpoint, {} now (other images, labels or order)",
                checkpoint.data_description,
                self.data.describe()
            ));
        }
        let (then, now) = (checkpoint.world_size, self.collective.world_size());
        let batch_then =
            TrainConfig::parse(&checkpoint.config, &[]).map_or(0, |config| config.training.batch_size);
        let batch_now = self.settings.config().training.batch_size;
        if batch_then * then != batch_now * now {
            let key = "training.batch_size";
            let (was, is) = match (then, now) {
                (1, 1) => (batch_then.to_string(), batch_now.to_string()),
                _ => (format!("{batch_then} on {then} processes"), format!("{batch_now} on {now}")),
            };
            found.push(format!("{key}: {was} in the checkpoint, {is} now"));
        }
        let RunPosition { epoch, batch, step } = checkpoint.position;
        let per_epoch = self.batches_per_epoch;
        let same_data = found.is_empty();
        if same_data
            && (batch >= per_epoch
                || epoch.checked_mul(per_epoch).and_then(|n| n.checked_add(batch)) != Some(step))
        {
            found.push(format!(
                "position: epoch {epoch}, batch {batch}, step {step} in the checkpoint, {per_epoch} batches an epoch now"
            ));
        }
        let epochs = self.settings.config().training.epochs;
        if found.is_empty() && (epoch, batch) > (epochs, 0) {
            let least = epoch + u64::from(batch > 0);
            found.push(format!(
                "training.epochs: the checkpoint is in epoch {epoch} at batch {batch}; expected at least {least}, got {epochs}"
            ));
        }
        found
    }

    /// Says what is different from here on.
    fn tell_changes(&self, then: &TrainConfig, step: u64) {
        let changes = self.changes.iter().filter(|change| change.effect == Effect::FromHereOn);
        for Change { key, then, now, .. } in changes.clone() {
            tracing::info!("{key}: {then} in the checkpoint, {now} from here on");
        }
        if changes.count() > 0 {
            let (was, is) = (Schedule::of(then, self.batches_per_epoch), self.schedule);
            tracing::info!(
                "the learning rate of step {step} is {:.3e} instead of {:.3e}; the run ends after step {} instead of {}",
                is.lr(step),
                was.lr(step),
                is.total_iters,
                was.total_iters
            );
        }
    }

    /// Refuses a configuration that differs in what matters; `found` are differences known already.
    fn check_config(
        &mut self,
        then: &TrainConfig,
        path: &Path,
        mut found: Vec<String>,
    ) -> Result<(), TrainError> {
        let differences = differences(then, self.settings.config())?;
        found.extend(differences.refused);
        if found.is_empty() {
            self.changes = differences.changes;
            return Ok(());
        }
        Err(CheckpointError::Mismatch { path: path.to_owned(), differences: found }.into())
    }
}

/// What to say of a queue of `length` rows that never takes part in this run, if it does not.
fn idle_queue(config: &TrainConfig, length: usize, batches_per_epoch: u64) -> Option<String> {
    let (epochs, start) = (config.training.epochs, config.queue.start_epoch);
    let to_fill = (length / config.training.batch_size.max(1)) as u64;
    if length == 0 || epochs.saturating_sub(start).saturating_mul(batches_per_epoch) > to_fill {
        return None;
    }
    let why = match start >= epochs {
        true => format!("it starts in epoch {start} of {epochs}, counted from 0"),
        false => format!("it starts in epoch {start} of {epochs} and takes {to_fill} steps to fill"),
    };
    Some(format!(
        "the queue never takes part: {why}. Set queue.start_epoch lower, training.epochs or queue.length so that it does, or \
         queue.length to 0 to do without"
    ))
}

/// Puts the batch-norm statistics of one rank in place of rank 0's, or the mean over ranks if their number is another.
fn statistics_of_rank(
    state: &mut swav_encoder::StateDict,
    sections: &[Section],
    rank: usize,
    world_size: usize,
) {
    let Some(first) = sections.first() else { return };
    for (name, tensor) in first.tensors.iter() {
        let of_ranks: Vec<_> = sections.iter().filter_map(|section| section.tensors.get(name)).collect();
        let values = match sections.len() == world_size {
            true => of_ranks[rank.min(of_ranks.len() - 1)].data().to_vec(),
            false => (0..tensor.data().len())
                .map(|i| {
                    let sum: f64 =
                        of_ranks.iter().filter_map(|t| t.data().get(i)).map(|&x| f64::from(x)).sum();
                    (sum / of_ranks.len() as f64) as f32
                })
                .collect(),
        };
        if let Ok(tensor) = swav_encoder::StateTensor::new(tensor.shape().to_vec(), values) {
            state.insert(name, tensor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_never_takes_part_is_noticed() {
        let config = |epochs, start_epoch| {
            let mut config = TrainConfig::default();
            (config.training.epochs, config.training.batch_size) = (epochs, 8);
            config.queue.start_epoch = start_epoch;
            config
        };
        // Five steps an epoch; ten batches fill it, and it takes part in the step after.
        for (epochs, start, length, idle) in
            [(4, 1, 80, false), (3, 1, 80, true), (4, 4, 8, true), (4, 15, 8, true), (1, 9, 0, false)]
        {
            let warning = idle_queue(&config(epochs, start), length, 5);
            assert_eq!(warning.is_some(), idle, "{epochs} {start} {length}: {warning:?}");
        }
        let warning = idle_queue(&config(5, 15), 64, 9).unwrap();
        assert!(warning.contains("queue.start_epoch") && warning.contains("epoch 15 of 5"), "{warning}");
    }
}
