//! `swav embed`: features of images, for use elsewhere.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use ndarray::Array2;
use swav_data::{DataConfig, Dataset, Split};
use swav_encoder::Output;

use crate::judge::counter;
use crate::open::open_shown;
use crate::output::shown;
use crate::output_file::{Force, OutputFile, commit_all};
use crate::{named, run_network};

/// Write the features of images to a file that numpy reads.
///
/// FILE.npy holds one row of float32 an image; FILE.txt beside it names the images, a line each, with a tab and the
/// label where there are labels (control characters in names are escaped, as in `\\n`). Images that cannot be read are named
/// in the log and left out of both.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: run_network::Options,

    /// The file to write.
    #[arg(long, value_name = "FILE.npy")]
    out: PathBuf,

    #[command(flatten)]
    force: Force,

    /// Which part of the data: train, val, test or all.
    #[arg(long, default_value = "all", value_parser = named::<Split>)]
    split: Split,

    /// Write the projection head's unit vectors (what prototypes are compared with) instead of the features before it.
    #[arg(long)]
    embedding: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.out.extension().is_none_or(|ending| ending != "npy") {
        return Err(crate::usage(format!("--out {}: expected a name that ends in .npy", args.out.display())));
    }
    let mut rows = OutputFile::create(&args.out, args.force.force)?;
    let mut names = OutputFile::create(&args.out.with_extension("txt"), args.force.force)?;
    let (settings, mut network) = args.network.load()?;
    let config = DataConfig { split: args.split, ..settings.config().data.clone() };
    let data = open_shown(&config).context("data")?;
    if settings.config().reestimation.batch_norm {
        swav_train::reestimate_batch_norm(network.as_mut(), data.as_ref(), settings.reestimation())?;
    }
    let output = if args.embedding { Output::Embedding } else { Output::Features };
    let features = swav_eval::encode(
        network.as_ref(),
        data.as_ref(),
        settings.eval_view(),
        output,
        Some(&mut counter("features", data.len())),
    )?;

    let written = |file: &OutputFile| format!("cannot write {}", file.path().display());
    write_npy(&mut rows, &features.rows).with_context(|| written(&rows))?;
    let lines: String = features.indices.iter().map(|&index| line(data.as_ref(), index)).collect();
    names.write_all(lines.as_bytes()).with_context(|| written(&names))?;
    let names_path = names.path().to_owned();
    commit_all([names, rows])?;
    let (n_rows, width) = features.rows.dim();
    say!("{}: {n_rows} x {width} float32; their images: {}", args.out.display(), names_path.display())?;
    if !features.skipped.is_empty() {
        say!("{} images could not be read and are left out", features.skipped.len())?;
    }
    Ok(())
}

fn line(data: &dyn Dataset, index: usize) -> String {
    let name = shown(&data.name(index));
    match data.label(index) {
        Some(label) => {
            let class = data.class_names().get(label as usize).cloned();
            format!("{name}\t{}\n", class.map_or_else(|| label.to_string(), |class| shown(&class)))
        }
        None => format!("{name}\n"),
    }
}

/// Writes numpy's format, version 1.0: magic, length of the header, header padded to 64 bytes, values row by row.
fn write_npy(mut to: impl Write, rows: &Array2<f32>) -> std::io::Result<()> {
    let (n_rows, width) = rows.dim();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {width}), }}");
    let before = 10;
    let padding = (before + header.len() + 1).next_multiple_of(64) - (before + header.len() + 1);
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let length = u16::try_from(header.len()).expect("two numbers make a short header");
    to.write_all(b"\x93NUMPY\x01\x00")?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(header.as_bytes())?;
    for value in rows {
        to.write_all(&value.to_le_bytes())?;
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_what_numpy_writes() {
        let mut bytes = Vec::new();
        write_npy(&mut bytes, &ndarray::array![[1.0, -2.5], [0.0, 3.0], [4.0, 5.0]]).unwrap();
        // From numpy.save with the same array.
        let header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }";
        assert_eq!(&bytes[..header.len()], header);
        assert_eq!((bytes[127], bytes.len()), (b'\n', 128 + 6 * 4));
        assert_eq!(bytes[128..136], [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);
    }
}
