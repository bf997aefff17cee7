//! `swav export`: a run's network as a file that other programs read, with a card.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use swav_encoder::StateDict;
use swav_train::{RunFolder, RunWeights, TrainConfig};
use swav_weights::export::{self, Onnx, OnnxOptions, Part, Target};
use swav_weights::{Card, Metadata};

use crate::output_file::{Force, OutputFile, commit_all};
use crate::{named, program};

/// Write the network of a run for other programs: safetensors, PyTorch or ONNX.
///
/// Names and layouts are torchvision's. Beside the file lies a model card, FILE with the ending .md: configuration,
/// evaluations, and how the file is loaded.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, value_name = "DIR", help = format!("Folder of the run, made by `{0} pretrain` or `{0} import`", program()))]
    run: PathBuf,

    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// safetensors, pth (what torch.load(weights_only=True) reads) or onnx [default: what the name of the file ends in].
    #[arg(long, value_parser = named::<Target>)]
    format: Option<Target>,

    /// How much of the network: backbone (features), head (and embeddings) or prototypes (and scores).
    #[arg(long, default_value = "backbone", value_parser = named::<Part>)]
    part: Part,

    /// ONNX: fold batch norms into the layers before them.
    #[arg(long)]
    fold_batch_norm: bool,

    /// ONNX: take images as bytes (batch, height, width, 3), and normalise them inside.
    #[arg(long)]
    byte_images: bool,

    /// The weights' licence for the card, as SPDX names it: mit, apache-2.0, cc-by-4.0.
    #[arg(long, value_name = "ID")]
    license: Option<String>,

    #[command(flatten)]
    force: Force,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let target = args.target()?;
    let card_path = args.out.with_added_extension("md");
    let mut file = OutputFile::create(&args.out, args.force.force)?;
    let mut card_file = OutputFile::create(&card_path, args.force.force)?;
    let folder = RunFolder::at(&args.run);
    let config = crate::configuration::of_run(&folder, &crate::configuration::Changes::default())?;
    let settings = config.check()?;
    let preprocessing = settings.preprocessing();
    let options = OnnxOptions {
        part: args.part,
        fold_batch_norm: args.fold_batch_norm,
        normalize: args.byte_images.then_some(preprocessing),
    };
    if target == Target::Onnx {
        options.check(&settings.config().encoder)?;
    }
    let weights = folder.trained()?;
    let card = Card {
        file: file_name(&args.out),
        target,
        options,
        license: args.license.clone(),
        encoder: settings.config().encoder.clone(),
        n_parameters: n_parameters(&weights, args.part),
        preprocessing,
        origin: origin(&folder, settings.config(), &weights),
        config: settings.config().to_toml()?,
        evaluations: evaluations(&folder),
    };
    let unwritten = || format!("cannot write {}", args.out.display());
    let from = weights.path.clone();
    write(&mut file, &card, weights).with_context(unwritten)?;
    card_file.write_all(card.markdown().as_bytes()).with_context(unwritten)?;
    commit_all([file, card_file])?;
    say!("weights  {} (from {})", args.out.display(), from.display())?;
    say!("card     {}", card_path.display())
}

impl Args {
    fn target(&self) -> anyhow::Result<Target> {
        let ending = self.out.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let of_name = match ending.as_str() {
            "safetensors" => Some(Target::Safetensors),
            "pth" | "pt" => Some(Target::Pth),
            "onnx" => Some(Target::Onnx),
            _ => None,
        };
        let target = self.format.or(of_name).ok_or_else(|| {
            let out = self.out.display();
            crate::usage(format!(
                "--out {out}: expected --format, or a name that ends in .safetensors, .pth or .onnx"
            ))
        })?;
        if target != Target::Onnx && (self.fold_batch_norm || self.byte_images) {
            return Err(crate::usage("--fold-batch-norm and --byte-images: expected an ONNX file"));
        }
        if ending == "md" {
            return Err(crate::usage("--out: expected another name than that of the card beside it"));
        }
        Ok(target)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Takes the weights: with a copy of them the memory would hold them three times while batch norms are folded.
fn write(to: &mut dyn Write, card: &Card, weights: RunWeights) -> anyhow::Result<()> {
    let part = card.options.part;
    let mut state = weights.encoder;
    for (name, tensor) in weights.prototypes {
        state.insert(name, tensor);
    }
    let chosen = part.of(&state);
    let mut metadata = Metadata::new();
    card.preprocessing.enter(&mut metadata);
    match card.target {
        Target::Safetensors => export::safetensors(to, &chosen, &metadata)?,
        Target::Pth => export::torch(to, &chosen)?,
        Target::Onnx => Onnx::new(&card.encoder, &state, &card.options, &metadata)?.write(to)?,
    }
    Ok(())
}

fn n_parameters(weights: &RunWeights, part: Part) -> usize {
    let trained = |name: &str| !name.contains("running_") && !name.ends_with("num_batches_tracked");
    let count = |state: &StateDict| -> usize {
        state
            .iter()
            .filter(|(name, _)| part.has(name) && trained(name))
            .map(|(_, tensor)| tensor.data().len())
            .sum()
    };
    count(&weights.encoder) + count(&weights.prototypes)
}

/// How the weights came about, in a line.
fn origin(folder: &RunFolder, config: &TrainConfig, weights: &RunWeights) -> String {
    if let Ok(text) = std::fs::read_to_string(folder.import_record()) {
        let record: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let source = record["source"].as_str().unwrap_or("elsewhere");
        return format!("Imported from {}.", file_name(Path::new(source)));
    }
    let (epochs, batch_size) = (config.training.epochs, config.training.batch_size);
    let data = file_name(&config.data.path);
    match weights.step {
        Some(step) => format!("Trained on {data} for {step} steps of {batch_size} images, not to the end."),
        None => format!("Trained on {data} for {epochs} epochs with {batch_size} images a step."),
    }
}

/// What `evaluations/` of the run holds; files that are no JSON are left out.
fn evaluations(folder: &RunFolder) -> Vec<serde_json::Value> {
    let entries = std::fs::read_dir(folder.root().join("evaluations")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let texts = paths.into_iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts.filter_map(|text| serde_json::from_str(&text).ok()).collect()
}
