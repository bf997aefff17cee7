//! The weights of a run: written at its end or by an import, found for use, and where another run starts from.

use std::fs;
use std::path::{Path, PathBuf};

use swav_encoder::{EncoderSpec, StateDict, StateTensor};
use swav_weights::{Import, Metadata, Preprocessing, Start, WeightsFile, export, write_file};

use crate::config::{Settings, TrainConfig};
use crate::error::TrainError;
use crate::run_folder::RunFolder;

/// The network of a run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunWeights {
    /// Parameters and statistics of the encoder.
    pub encoder: StateDict,
    /// The prototypes.
    pub prototypes: StateDict,
    /// The file that they come from.
    pub path: PathBuf,
    /// Steps of training, where the file is a checkpoint.
    pub step: Option<u64>,
}

impl RunWeights {
    /// The weights that a training of this encoder starts from: of a file of any kind, or of the folder of a run or an
    /// import.
    ///
    /// # Errors
    /// [`TrainError::Weights`] if the backbone is another one; a folder without weights.
    pub fn start(path: &Path, spec: &EncoderSpec) -> Result<Start, TrainError> {
        let failed = |source| TrainError::Weights { what: "encoder.init", source };
        let file = if path.is_dir() { RunFolder::at(path).weights_file()? } else { path.to_owned() };
        Start::read(&mut WeightsFile::open(file).map_err(failed)?, spec).map_err(failed)
    }
}

impl RunFolder {
    /// The network as it was last saved: that of the newest checkpoint, with the batch-norm statistics of training, or,
    /// where there is no checkpoint, `weights.safetensors`.
    ///
    /// # Errors
    /// As [`newest`](Self::newest); [`TrainError::Weights`].
    pub fn network(&self) -> Result<RunWeights, TrainError> {
        let saved = !self.resumable().is_empty() || !self.lasting().is_empty();
        if !saved && self.weights().exists() {
            return self.weights_in(self.weights());
        }
        let (checkpoint, path) = self.newest()?;
        let step = Some(checkpoint.position.step);
        let (encoder, prototypes) = (checkpoint.encoder_state(), checkpoint.prototypes_state());
        Ok(RunWeights { encoder, prototypes, path, step })
    }

    /// The network for use elsewhere: `weights.safetensors`, which has the statistics that were estimated anew, or, where the
    /// run has not ended, that of the newest checkpoint.
    ///
    /// # Errors
    /// As [`network`](Self::network).
    pub fn trained(&self) -> Result<RunWeights, TrainError> {
        if self.weights().exists() { self.weights_in(self.weights()) } else { self.network() }
    }

    /// The file of [`trained`](Self::trained).
    fn weights_file(&self) -> Result<PathBuf, TrainError> {
        if self.weights().exists() { Ok(self.weights()) } else { Ok(self.newest()?.1) }
    }

    fn weights_in(&self, path: PathBuf) -> Result<RunWeights, TrainError> {
        let failed = |source| TrainError::Weights { what: "the weights of the run", source };
        let import = Import::read(&mut WeightsFile::open(&path).map_err(failed)?, None).map_err(failed)?;
        Ok(RunWeights { encoder: import.state, prototypes: import.prototypes, path, step: None })
    }

    /// Writes the weights of a finished run, with the preprocessing that they were evaluated with.
    pub(crate) fn write_weights(&self, state: &StateDict, settings: &Settings) -> Result<(), TrainError> {
        let tensors: Vec<_> = state.iter().collect();
        write(&self.weights(), &tensors, settings, "the weights of the run")
    }

    /// Makes the folder of imported weights, which can be used as that of a run. `record` says where they come from.
    ///
    /// # Errors
    /// [`TrainError::RunExists`] if there is a run already, [`TrainError::NotARun`] if there is something else; a configuration
    /// that does not check; an error of the file system.
    pub fn import(&self, config: &TrainConfig, import: &Import, record: &str) -> Result<(), TrainError> {
        let settings = config.check()?;
        let (_lock, made) = self.create(&settings.config().to_toml()?)?;
        let fill = || {
            let path = self.import_record();
            fs::write(&path, record).map_err(|source| TrainError::RunFolder {
                action: "write",
                path,
                source,
            })?;
            let tensors: Vec<_> = import.state.iter().chain(import.prototypes.iter()).collect();
            write(&self.weights(), &tensors, &settings, "the imported weights")
        };
        fill().inspect_err(|_| self.discard(&made))
    }
}

fn write(
    path: &Path,
    tensors: &[(&str, &StateTensor)],
    settings: &Settings,
    what: &'static str,
) -> Result<(), TrainError> {
    let mut metadata = Metadata::new();
    settings.preprocessing().enter(&mut metadata);
    write_file(path, |to| export::safetensors(to, tensors, &metadata))
        .map_err(|source| TrainError::Weights { what, source })
}

impl Settings {
    /// How images are shown to the trained network, as it lies beside its weights.
    pub fn preprocessing(&self) -> Preprocessing {
        let shown = &self.config().reestimation;
        let crop = swav_augment::CenterCrop { resize: shown.resize, size: shown.size };
        Preprocessing::new(crop, *self.multi_crop().normalize())
    }
}
