//! `swav cluster`: which images belong together, by their prototypes.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use swav_data::{DataConfig, Dataset, Split, counted};
use swav_encoder::Output;
use swav_eval::ClusterSizes;

use crate::csv::field;
use crate::judge::{Judge, counter};
use crate::open::open_shown;
use crate::output::outlive_the_reader;
use crate::output_folder::OutputFolder;
use crate::run_network::{self, Assignment};
use crate::sheet::{Cell, Layout, draw, thumbnail};
use crate::{named, usage};

/// Side of a picture on the sheets, and pictures in a row.
const SHEET: Layout = Layout { tile: 112, n_columns: 8 };

/// Sort images into clusters: each to the prototype that it is most similar to.
///
/// Writes into DIR: clusters.csv, one row per image with its prototype and how sure the network is of it (its prediction's
/// share, 0 to 1); a contact sheet for each of the largest clusters, surest images first; with --links a folder for each cluster
/// with links to its images. Needs no labels.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: run_network::Options,

    /// The folder to write, a new or an empty one.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Which part of the data: train, val, test or all.
    #[arg(long, default_value = "all", value_parser = named::<Split>)]
    split: Split,

    /// Sheets of so many of the largest clusters.
    #[arg(long, default_value_t = 20)]
    sheets: usize,

    /// Images on a sheet, at most.
    #[arg(long, default_value_t = 32)]
    images: usize,

    /// Make a folder of links to the images for each cluster, too; where the images are files.
    #[arg(long)]
    links: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.images == 0 {
        return Err(usage("--images: expected at least 1"));
    }
    outlive_the_reader();
    let settings = args.network.settings()?;
    let out = OutputFolder::create(&args.out)?;
    let data =
        open_shown(&DataConfig { split: args.split, ..settings.config().data.clone() }).context("data")?;
    let mut network = args.network.network(&settings)?;
    if args.network.reestimate_bn {
        Judge::new(&settings)?.reestimate(network.encoder.as_mut())?;
    }
    let n_prototypes = network.prototypes()?.nrows();
    let features = swav_eval::encode(
        network.encoder.as_ref(),
        data.as_ref(),
        settings.eval_view(),
        Output::Embedding,
        Some(&mut counter("embeddings", data.len())),
    )?;
    let assignment = network.assign(features.rows.view())?;
    let sizes = ClusterSizes::new(&assignment.prototypes, n_prototypes)?;
    let clusters = clusters(&assignment, n_prototypes);

    let written = || format!("cannot write {}", args.out.display());
    let table = "clusters.csv";
    write_table(&out.file(table), data.as_ref(), &features.indices, &assignment).with_context(written)?;
    for (rank, cluster) in clusters.iter().take(args.sheets).enumerate() {
        let path = out.file(&format!("cluster-{:02}-prototype-{:04}.png", rank + 1, cluster.prototype));
        let title = format!(
            "prototype {}: {}, sheet {}",
            cluster.prototype,
            counted(cluster.rows.len(), "image"),
            rank + 1
        );
        let cell = |&row: &usize| cell(data.as_ref(), features.indices[row], assignment.confidence[row]);
        let cells: Vec<Cell> = cluster.rows.iter().take(args.images).map(cell).collect();
        draw(&title, &cells, &SHEET).save(&path).with_context(written)?;
    }
    if args.links {
        let files = Files::below(&settings.config().data.path);
        link(out.temporary(), |row| files.find(&data.name(features.indices[row])), &clusters)?;
    }
    out.commit()?;
    say!(
        "{}: {} in {} of {n_prototypes} prototypes",
        args.out.join(table).display(),
        counted(features.indices.len(), "image"),
        counted(sizes.n_used, "cluster")
    )?;
    say!(
        "  as even as {:.1} clusters of equal size; median {} images, largest {}",
        sizes.perplexity,
        sizes.median,
        sizes.largest
    )?;
    say!("  sheets of the {} largest in {}", clusters.len().min(args.sheets), args.out.display())?;
    if !features.skipped.is_empty() {
        say!("  left out: {} that could not be read", counted(features.skipped.len(), "image"))?;
    }
    Ok(())
}

/// A prototype with the rows that belong to it, surest first.
struct Cluster {
    prototype: u32,
    rows: Vec<usize>,
}

/// The clusters that have images, largest first.
fn clusters(assignment: &Assignment, n_prototypes: usize) -> Vec<Cluster> {
    let mut clusters: Vec<Cluster> =
        (0..n_prototypes as u32).map(|prototype| Cluster { prototype, rows: Vec::new() }).collect();
    for (row, &prototype) in assignment.prototypes.iter().enumerate() {
        clusters[prototype as usize].rows.push(row);
    }
    clusters.retain(|cluster| !cluster.rows.is_empty());
    for cluster in &mut clusters {
        let sure = |row: usize| assignment.confidence[row];
        cluster.rows.sort_by(|&a, &b| sure(b).total_cmp(&sure(a)).then(a.cmp(&b)));
    }
    clusters.sort_by_key(|cluster| (std::cmp::Reverse(cluster.rows.len()), cluster.prototype));
    clusters
}

fn cell(data: &dyn Dataset, index: usize, confidence: f32) -> Cell {
    let label = data.label(index).map(|label| class_name(data, label));
    let below = format!("{confidence:.2} {}", label.unwrap_or_default());
    Cell {
        picture: thumbnail(data, index, SHEET.tile),
        caption: vec![data.name(index), below.trim_end().to_owned()],
        frame: None,
    }
}

/// The name of a class, or its number.
pub(crate) fn class_name(data: &dyn Dataset, label: u32) -> String {
    data.class_names().get(label as usize).cloned().unwrap_or_else(|| label.to_string())
}

fn write_table(
    path: &Path,
    data: &dyn Dataset,
    indices: &[usize],
    assignment: &Assignment,
) -> std::io::Result<()> {
    let mut to = BufWriter::new(File::create(path)?);
    writeln!(to, "image,prototype,confidence,label")?;
    for ((&index, prototype), confidence) in
        indices.iter().zip(&assignment.prototypes).zip(&assignment.confidence)
    {
        let label = data.label(index).map(|label| class_name(data, label)).unwrap_or_default();
        writeln!(to, "{},{prototype},{confidence:.4},{}", field(&data.name(index)), field(&label))?;
    }
    to.flush()
}

/// Links to the images in folders of their clusters.
fn link(out: &Path, file_of: impl Fn(usize) -> Option<PathBuf>, clusters: &[Cluster]) -> anyhow::Result<()> {
    let mut n_links = 0;
    for cluster in clusters {
        let folder = out.join("links").join(format!("prototype-{:04}", cluster.prototype));
        for &row in &cluster.rows {
            let Some(file) = file_of(row) else { continue };
            let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
            // Files of several folders may have the same name.
            let link = folder.join(format!("{row:06}-{name}"));
            fs::create_dir_all(&folder)
                .and_then(|()| symlink(&file, &link))
                .with_context(|| format!("could not make the link {}", link.display()))?;
            n_links += 1;
        }
    }
    if n_links == 0 {
        note!("note: the images are no files, so there is nothing to link to");
    }
    Ok(())
}

/// Where the files of images may be, whose names are paths from there.
struct Files(Vec<PathBuf>);

impl Files {
    /// The folder of a data set, its parts (`train`, `val`, ...), and the working directory.
    fn below(root: &Path) -> Self {
        let mut roots = vec![root.to_owned(), PathBuf::new()];
        let parts = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        roots.extend(parts.filter(|path| path.is_dir()));
        Self(roots)
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        let files = self.0.iter().map(|root| root.join(name));
        files.filter(|path| path.is_file()).find_map(|path| fs::canonicalize(path).ok())
    }
}

#[cfg(unix)]
fn symlink(file: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(file, link)
}

/// Links need rights of their own elsewhere; copies do not.
#[cfg(not(unix))]
fn symlink(file: &Path, link: &Path) -> std::io::Result<()> {
    fs::hard_link(file, link).or_else(|_| fs::copy(file, link).map(drop))
}
