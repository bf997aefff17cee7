//! `swav embed`: features of images, for use elsewhere.

mod npy;
#[cfg(feature = "parquet")]
mod parquet;
mod safetensors;

use std::path::{Path, PathBuf};

use anyhow::Context;
use ndarray::{Array2, ArrayView2};
use swav_data::{DataConfig, Dataset, Split, counted, read_views, view_batch_size};
use swav_encoder::{Output, image_batch};
use swav_train::Settings;

use crate::cluster::class_name;
use crate::judge::{Judge, counter};
use crate::open::open_shown;
use crate::output::shown;
use crate::output_file::{Force, OutputFile};
use crate::run_network::{self, Network};
use crate::{named, usage};

/// Write the features of images to a file.
///
/// FILE.npy holds one row of float32 an image; FILE.txt beside it names the images, a line each, with a tab and the label where
/// there are labels (control characters in names are escaped, as in `\\n`). FILE.safetensors has the tensors `features`, `names` and, where there are labels, `labels` (text, a line
/// each), with --codes also `prototype` and `confidence`. FILE.parquet has a row per image with the same columns. Rows are
/// written as they are made, so that any number of images fits. Images that cannot be read are named in the log and left out.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: run_network::Options,

    /// The file to write, as its ending says: .npy, .safetensors or .parquet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    #[command(flatten)]
    force: Force,

    /// Which part of the data: train, val, test or all.
    #[arg(long, default_value = "all", value_parser = named::<Split>)]
    split: Split,

    /// What is written: features (the backbone's output), layer1 to layer4 (the stages' outputs, averaged over positions),
    /// embedding (the projection head's unit vectors, which prototypes are compared with), or codes (the network's prediction:
    /// the share of each prototype).
    #[arg(long, default_value = "features", value_parser = Layer::parse)]
    layer: Layer,

    /// The same as --layer embedding.
    #[arg(long, conflicts_with = "layer")]
    embedding: bool,

    /// Write the prototype of each image and the confidence, too; for .safetensors and .parquet. Takes a second pass unless
    /// --layer is embedding or codes.
    #[arg(long)]
    codes: bool,
}

/// What is written of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Of(Output),
    Codes,
}

impl Layer {
    fn parse(name: &str) -> Result<Self, String> {
        let stage = name.strip_prefix("layer").and_then(|number| number.parse().ok());
        match (name, stage) {
            ("features" | "pooled", _) => Ok(Self::Of(Output::Features)),
            ("embedding" | "projected", _) => Ok(Self::Of(Output::Embedding)),
            ("codes", _) => Ok(Self::Codes),
            (_, Some(stage)) if stage >= 1 => Ok(Self::Of(Output::Layer(stage))),
            _ => Err("expected features, layer1, layer2, ..., embedding or codes".to_owned()),
        }
    }
}

/// What is known of an image beside its features.
struct About {
    name: String,
    label: Option<String>,
    /// Its prototype and the confidence.
    code: Option<(u32, f32)>,
}

/// A file that rows are appended to. It is there under its name only once it is finished.
trait Sink {
    fn append(&mut self, rows: ArrayView2<'_, f32>, about: &[About]) -> anyhow::Result<()>;
    /// Completes the file.
    fn finish(self: Box<Self>) -> anyhow::Result<()>;
}

/// The columns of a file.
#[derive(Clone, Copy)]
struct Columns {
    width: usize,
    labels: bool,
    codes: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let ending = args.out.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    check(&args, &ending)?;
    let files = Files::create(&args.out, &ending, args.force)?;
    let settings = args.network.settings()?;
    let data =
        open_shown(&DataConfig { split: args.split, ..settings.config().data.clone() }).context("data")?;
    let mut network = args.network.network(&settings)?;
    if args.network.reestimate_bn {
        Judge::new(&settings)?.reestimate(network.encoder.as_mut())?;
    }
    let layer = if args.embedding { Layer::Of(Output::Embedding) } else { args.layer };
    let width = match layer {
        Layer::Of(output) => network.encoder.output_dim(output)?,
        Layer::Codes => network.prototypes()?.nrows(),
    };
    let labels = (0..data.len()).any(|index| data.label(index).is_some());
    let columns = Columns { width, labels, codes: args.codes };
    let written = || format!("cannot write {}", args.out.display());
    let mut sink = sink(files, &ending, columns).with_context(written)?;
    let (n_rows, n_skipped) =
        stream(&network, &settings, data.as_ref(), (layer, args.codes), |rows, about| {
            sink.append(rows, about).with_context(written)
        })?;
    anyhow::ensure!(n_rows > 0, "{}: none of the images can be read", data.describe());
    sink.finish().with_context(written)?;
    match ending.as_str() {
        "npy" => {
            let names = args.out.with_extension("txt");
            say!("{}: {n_rows} x {width} float32; their images: {}", args.out.display(), names.display())?;
        }
        _ => say!("{}: {n_rows} x {width} float32, with the names of the images", args.out.display())?,
    }
    if n_skipped > 0 {
        say!("left out: {} that could not be read", counted(n_skipped, "image"))?;
    }
    Ok(())
}

fn check(args: &Args, ending: &str) -> anyhow::Result<()> {
    if !["npy", "safetensors", "parquet"].contains(&ending) {
        let expected = "expected a name that ends in .npy, .safetensors or .parquet";
        return Err(usage(format!("--out {}: {expected}", args.out.display())));
    }
    if ending == "npy" && args.codes {
        return Err(usage(
            "--codes: .npy holds one matrix; write .safetensors or .parquet, or --layer codes",
        ));
    }
    Ok(())
}

/// The files that are written, opened before the work.
struct Files {
    rows: OutputFile,
    /// Beside a matrix without names.
    names: Option<OutputFile>,
}

impl Files {
    fn create(out: &Path, ending: &str, force: Force) -> anyhow::Result<Self> {
        let rows = OutputFile::create(out, force.force)?;
        let names = match ending {
            "npy" => Some(OutputFile::create(&out.with_extension("txt"), force.force)?),
            _ => None,
        };
        Ok(Self { rows, names })
    }
}

fn sink(files: Files, ending: &str, columns: Columns) -> anyhow::Result<Box<dyn Sink>> {
    match (ending, files.names) {
        (_, Some(names)) => Ok(Box::new(npy::Npy::new(files.rows, names, columns)?)),
        ("safetensors", _) => Ok(Box::new(safetensors::Tensors::new(files.rows, columns)?)),
        _ => parquet_sink(files.rows, columns),
    }
}

#[cfg(feature = "parquet")]
fn parquet_sink(file: OutputFile, columns: Columns) -> anyhow::Result<Box<dyn Sink>> {
    Ok(Box::new(parquet::Table::new(file, columns)?))
}

#[cfg(not(feature = "parquet"))]
fn parquet_sink(_: OutputFile, _: Columns) -> anyhow::Result<Box<dyn Sink>> {
    let how = crate::open::how_to_have(&crate::program(), "parquet");
    anyhow::bail!("this program was built without Parquet. To have it: {how}")
}

/// Hands rows on batch by batch; gives how many there were, and how many images could not be read.
fn stream(
    network: &Network,
    settings: &Settings,
    data: &dyn Dataset,
    (layer, codes): (Layer, bool),
    mut append: impl FnMut(ArrayView2<'_, f32>, &[About]) -> anyhow::Result<()>,
) -> anyhow::Result<(usize, usize)> {
    let view = settings.eval_view();
    let size = view.size();
    let progress = counter("features", data.len());
    let (mut n_rows, mut n_skipped) = (0, 0);
    let all: Vec<usize> = (0..data.len()).collect();
    for chosen in all.chunks(view_batch_size(view)) {
        let batch = read_views(data, view, chosen);
        for (index, error) in &batch.skipped {
            tracing::warn!("{}: {error}; left out", data.name(*index));
        }
        n_skipped += batch.skipped.len();
        if !batch.indices.is_empty() {
            let images = image_batch(&batch.pixels, batch.indices.len(), size, size)?;
            let wants_embedding = codes || layer == Layer::Codes || layer == Layer::Of(Output::Embedding);
            let embedding = match wants_embedding {
                true => Some(network.encoder.embed(images, Output::Embedding)?),
                false => None,
            };
            let rows: Array2<f32> = match (layer, &embedding) {
                (Layer::Codes, Some(embedding)) => network.predict(embedding.view())?,
                (Layer::Of(Output::Embedding), Some(embedding)) => embedding.clone(),
                (Layer::Of(output), _) => network.encoder.embed(images, output)?,
                (Layer::Codes, None) => unreachable!("codes are made of embeddings"),
            };
            if let Some((at, _)) = rows.indexed_iter().find(|(_, value)| !value.is_finite()) {
                let image = data.name(batch.indices[at.0]);
                anyhow::bail!("the features of {image} are not finite: has the network diverged?");
            }
            let assigned = embedding.filter(|_| codes).map(|z| network.assign(z.view())).transpose()?;
            let about: Vec<About> = batch
                .indices
                .iter()
                .enumerate()
                .map(|(row, &index)| About {
                    name: shown(&data.name(index)),
                    label: data.label(index).map(|label| shown(&class_name(data, label))),
                    code: assigned.as_ref().map(|a| (a.prototypes[row], a.confidence[row])),
                })
                .collect();
            append(rows.view(), &about)?;
            n_rows += about.len();
        }
        progress(n_rows + n_skipped);
    }
    Ok((n_rows, n_skipped))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str, label: Option<&str>, code: Option<(u32, f32)>) -> About {
        About { name: name.to_owned(), label: label.map(str::to_owned), code }
    }

    fn opened(path: &Path, columns: Columns) -> Box<dyn Sink> {
        let ending = path.extension().unwrap().to_str().unwrap();
        let files = Files::create(path, ending, Force { force: false }).unwrap();
        sink(files, ending, columns).unwrap()
    }

    fn write(mut sink: Box<dyn Sink>) {
        let rows = ndarray::array![[1.0, -2.5], [0.0, 3.0], [4.0, 5.0]];
        sink.append(
            rows.slice(ndarray::s![..2, ..]),
            &[about("a.png", Some("cat"), Some((7, 0.5))), about("b.png", None, Some((1, 0.25)))],
        )
        .unwrap();
        sink.append(rows.slice(ndarray::s![2.., ..]), &[about("c.png", Some("dog"), Some((0, 1.0)))])
            .unwrap();
        sink.finish().unwrap();
    }

    #[test]
    fn layers_have_names() {
        assert_eq!(Layer::parse("layer3"), Ok(Layer::Of(Output::Layer(3))));
        assert_eq!(Layer::parse("projected"), Ok(Layer::Of(Output::Embedding)));
        assert!(Layer::parse("layer0").is_err() && Layer::parse("head").is_err());
    }

    #[test]
    fn npy_is_what_numpy_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.npy");
        write(opened(&path, Columns { width: 2, labels: true, codes: false }));
        let bytes = std::fs::read(&path).unwrap();
        // From numpy.save with the same array.
        let header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }";
        assert_eq!(&bytes[..header.len()], header);
        assert_eq!((bytes[127], bytes.len()), (b'\n', 128 + 6 * 4));
        assert_eq!(bytes[128..136], [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);
        assert_eq!(
            std::fs::read_to_string(folder.path().join("f.txt")).unwrap(),
            "a.png\tcat\nb.png\nc.png\tdog\n"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn safetensors_hold_rows_names_and_codes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.safetensors");
        write(opened(&path, Columns { width: 2, labels: true, codes: true }));
        let bytes = std::fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let data = &bytes[8 + length..];
        let part = |name: &str| {
            let at = |i: usize| header[name]["data_offsets"][i].as_u64().unwrap() as usize;
            &data[at(0)..at(1)]
        };
        assert_eq!(header["features"]["shape"], serde_json::json!([3, 2]));
        assert_eq!(part("features")[4..8], (-2.5f32).to_le_bytes());
        assert_eq!(part("names"), b"a.png\nb.png\nc.png");
        assert_eq!(part("labels"), b"cat\n\ndog");
        assert_eq!(part("prototype"), [7i32, 1, 0].map(i32::to_le_bytes).concat());
        assert_eq!(part("confidence"), [0.5f32, 0.25, 1.0].map(f32::to_le_bytes).concat());
        assert_eq!(length % 8, 0);
    }

    #[cfg(feature = "parquet")]
    #[test]
    fn parquet_has_a_row_per_image() {
        use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
        use arrow_array::cast::AsArray;
        use arrow_array::types::{Float32Type, UInt32Type};

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.parquet");
        write(opened(&path, Columns { width: 2, labels: true, codes: true }));
        let file = std::fs::File::open(&path).unwrap();
        let mut reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        let batch = reader.next().unwrap().unwrap();
        let column = |name: &str| batch.column_by_name(name).unwrap();
        assert_eq!(batch.num_rows(), 3);
        assert_eq!(column("name").as_string::<i32>().value(2), "c.png");
        assert_eq!(
            column("label").as_string::<i32>().iter().collect::<Vec<_>>(),
            [Some("cat"), None, Some("dog")]
        );
        let second = column("features").as_fixed_size_list().value(1);
        assert_eq!(second.as_primitive::<Float32Type>().values()[..], [0.0, 3.0]);
        assert_eq!(column("prototype").as_primitive::<UInt32Type>().values()[..], [7, 1, 0]);
    }
}
