//! The network of a run, as it was last saved.

use std::path::{Path, PathBuf};

use anyhow::Context;
use swav_encoder::Encoder;
use swav_train::{RunFolder, Settings};

use crate::configuration::{self, Changes};
use crate::program;

/// Which run, and what is different from its training.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[arg(long, value_name = "DIR", help = format!("Folder of the run, made by `{} pretrain`", program()))]
    pub run: PathBuf,

    #[command(flatten)]
    changes: Changes,

    /// Whether batch-norm statistics are estimated anew on the images at hand, whole as they are evaluated
    /// [default: what the run's configuration says].
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    reestimate_bn: Option<bool>,
}

impl Options {
    /// The run's settings with the changes, and its network from the newest checkpoint, or from imported weights. The pool of
    /// threads is made as the settings say. Batch-norm statistics are those of the checkpoint.
    pub fn load(&self) -> anyhow::Result<(Settings, Box<dyn Encoder>)> {
        let folder = RunFolder::at(&self.run);
        let mut config = configuration::of_run(&folder, &self.changes)?;
        if let Some(reestimate) = self.reestimate_bn {
            config.reestimation.batch_norm = reestimate;
        }
        let settings = config.check()?;
        settings.network_memory().check(swav_train::available_memory())?;
        let training = &settings.config().training;
        // Another command of this process may have made it already.
        let _ =
            rayon::ThreadPoolBuilder::new().num_threads(training.threads).use_current_thread().build_global();
        let weights = folder.network()?;
        let mut network = swav_encoder::build(&training.device, settings.encoder(), training.seed)?;
        network
            .load_state(&weights.encoder)
            .with_context(|| format!("checkpoint {}", name(&weights.path)))?;
        let step = weights.step.map(|step| format!(" (step {step})")).unwrap_or_default();
        note!("network  {}{step}", name(&weights.path));
        Ok((settings, network))
    }
}

fn name(path: &Path) -> String {
    path.display().to_string()
}
