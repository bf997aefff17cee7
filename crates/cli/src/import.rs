//! `swav import`: weights that others trained, as the folder of a run.

use std::path::PathBuf;

use anyhow::Context;
use swav_encoder::{Arch, EncoderConfig, ResNet};
use swav_train::{RunFolder, TrainConfig};
use swav_weights::{Account, Import, Preprocessing, WeightsFile};

use crate::output::shown;
use crate::program;

/// Take weights of a residual network from elsewhere: the result is used like the folder of a run.
///
/// Reads .pth and .pth.tar as torch.save writes them, and .safetensors, with the names of the SwAV reference, of torchvision
/// and of timm. Nothing of a pickle is executed. The architecture is inferred; what is missing or left over is listed. What
/// leaves no trace in names and shapes is taken as torchvision has it: the stride of a bottleneck in its 3x3 convolution,
/// ReLU, max pooling, no blurring before strides. The folder works with embed, eval and export, and a training starts from
/// it with --set encoder.init=DIR.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file of weights.
    file: PathBuf,

    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// What the names of the network begin with, where the file has several networks.
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,

    /// Pixels that the shorter side of images is resized to [default: what the file says, else 256; 32 for 3x3 stems].
    #[arg(long, value_name = "PIXELS")]
    resize: Option<usize>,

    /// Side of the square that is cut out of the centre [default: what the file says, else 224; 32 for 3x3 stems].
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,

    /// Means of red, green and blue, on a scale from 0 to 1 [default: what the file says, else ImageNet's].
    #[arg(long, value_delimiter = ',', num_args = 3, value_name = "R,G,B")]
    mean: Option<Vec<f32>>,

    /// Standard deviations of the same [default: what the file says, else .228,.224,.225].
    #[arg(long, value_delimiter = ',', num_args = 3, value_name = "R,G,B")]
    std: Option<Vec<f32>>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let folder = RunFolder::at(&args.out);
    let mut file = WeightsFile::open(&args.file)?;
    let import = Import::read(&mut file, args.prefix.as_deref())?;
    let preprocessing = args.preprocessing(&import);
    preprocessing.view().map_err(|error| crate::usage(format!("{:#}", anyhow::Error::from(error))))?;
    let config = configuration(&import, preprocessing);
    let record = serde_json::json!({
        "version": 1,
        "source": args.file,
        "format": import.account.format.to_string(),
        "prefix": import.account.prefix,
        "missing": import.account.missing,
        "left_over": import.account.left_over.iter().map(|(name, _)| name).collect::<Vec<_>>(),
    });
    folder.import(&config, &import, &serde_json::to_string_pretty(&record)?)?;

    say!("file     {} ({}, {:.1} MB)", args.file.display(), file.format(), file.n_bytes() as f64 / 1e6)?;
    say!("network  {}", describe(&import))?;
    tell(&import.account)?;
    let Preprocessing { resize, size, .. } = preprocessing;
    say!("images   shorter side {resize} pixels, the central {size}")?;
    let (run, program) = (args.out.display(), program());
    say!("run      {run}")?;
    say!("\nfeatures of images:  {program} embed --run {run} --data PATH --out features.npy")?;
    say!("train on from it:    {program} pretrain --config RECIPE --set encoder.init={run}")
}

impl Args {
    /// What the command line says, else the file, else what is usual.
    fn preprocessing(&self, import: &Import) -> Preprocessing {
        let from = import.preprocessing_or_usual();
        let three = |given: &Option<Vec<f32>>| given.as_deref().and_then(|values| values.try_into().ok());
        let size = self.size.unwrap_or(from.size);
        Preprocessing {
            // One size alone moves the other as far as it has to.
            resize: self.resize.unwrap_or(from.resize.max(size)),
            size: if self.size.is_none() { size.min(self.resize.unwrap_or(size)) } else { size },
            mean: three(&self.mean).unwrap_or(from.mean),
            std: three(&self.std).unwrap_or(from.std),
        }
    }
}

/// The defaults, with what is known of the network.
fn configuration(import: &Import, preprocessing: Preprocessing) -> TrainConfig {
    let mut config = TrainConfig { encoder: import.encoder.clone(), ..TrainConfig::default() };
    if !import.n_prototypes.is_empty() {
        config.prototypes.n_prototypes.clone_from(&import.n_prototypes);
    }
    config.reestimation.resize = preprocessing.resize;
    config.reestimation.size = preprocessing.size;
    config.augment.normalize.mean = Some(preprocessing.mean);
    config.augment.normalize.std = Some(preprocessing.std);
    config
}

fn describe(import: &Import) -> String {
    let EncoderConfig { arch, head, dim, .. } = &import.encoder;
    let Arch::ResNet(ResNet { variant, width, stem }) = arch else { return format!("{arch:?}") };
    let n_values: usize = import
        .state
        .iter()
        .filter(|(name, _)| !name.contains("running_") && !name.ends_with("num_batches_tracked"))
        .map(|(_, tensor)| tensor.data().len())
        .sum();
    let head = match head {
        swav_encoder::Head::None => "no head".to_owned(),
        head => format!("head {head:?} to {dim}"),
    };
    let prototypes = match import.n_prototypes.as_slice() {
        [] => "no prototypes".to_owned(),
        some => format!("prototypes {some:?}"),
    };
    format!("{variant:?}, {width} channels, {stem:?} stem, {head}, {prototypes}; {n_values} parameters")
}

/// How many lines of a list are shown.
const SHOWN: usize = 10;

fn tell(account: &Account) -> anyhow::Result<()> {
    let taken: Vec<String> =
        account.taken.iter().map(|(dtype, n)| format!("{n} tensors of {}", dtype.name())).collect();
    let prefix = match account.prefix.as_str() {
        "" => String::new(),
        prefix => format!(", names after `{}`", shown(prefix)),
    };
    say!("taken    {}{prefix}", taken.join(", ")).context("account")?;
    let (counts, others): (Vec<&String>, Vec<&String>) =
        account.missing.iter().partition(|name| name.ends_with("num_batches_tracked"));
    let mut missing: Vec<String> = others.into_iter().cloned().collect();
    if !counts.is_empty() {
        missing.push(format!("{} counts of batches, which only training updates", counts.len()));
    }
    if !missing.is_empty() {
        say!("missing  {}", missing.join(", "))?;
    }
    if !account.left_over.is_empty() {
        let named = |(name, shape): &(String, Vec<usize>)| format!("{} {shape:?}", shown(name));
        let mut names: Vec<String> = account.left_over.iter().take(SHOWN).map(named).collect();
        if account.left_over.len() > SHOWN {
            names.push(format!("and {} more (import.json)", account.left_over.len() - SHOWN));
        }
        say!("left     {}", names.join(", "))?;
    }
    Ok(())
}
