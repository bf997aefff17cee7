//! `swav search`: the images that are most similar to some others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use image::{ImageFormat, Rgb, RgbImage};
use ndarray::{Array2, Axis};
use swav_augment::{Canvas, Image, Region, Resizer};
use swav_data::{DataConfig, Dataset, DecodeConfig, SampleError, Split, counted};
use swav_encoder::{Encoder, Output};
use swav_eval::{Bank, DuplicateGroup, Features};
use swav_train::Settings;

use crate::csv::field;
use crate::judge::{Judge, counter};
use crate::open::open_shown;
use crate::output::{outlive_the_reader, shown};
use crate::output_file::{Force, OutputFile};
use crate::run_network;
use crate::sheet::{Cell, Layout, draw, square, thumbnail};
use crate::{named, usage};

/// Side of a picture on the sheets.
const TILE: u32 = 128;
/// The frame around a query.
const QUERY: Rgb<u8> = Rgb([240, 180, 60]);
/// Groups of near-duplicates that are printed and drawn.
const MAX_GROUPS: usize = 40;
/// Images of a group that are drawn.
const MAX_MEMBERS: usize = 8;
/// Side of what near-duplicates are compared as, pixel by pixel.
const COMPARED: usize = 32;
/// Logarithm of the ratio of shapes, width to height, up to which images may be the same.
const MAX_SHAPE: f64 = 0.1;

/// Find the images of a data set that are most similar to given ones, and near-duplicates among them.
///
/// Similarity is the cosine of the features. --query takes files; prints a table, with --sheet FILE.png also a contact sheet, one
/// row per query. --duplicates reports groups of images that are all but the same: similar features, and similar pixels at 32 x
/// 32.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: run_network::Options,

    /// Images to look for: files.
    #[arg(long, value_name = "IMAGE", num_args = 1..)]
    query: Vec<PathBuf>,

    /// Neighbours of each query.
    #[arg(long, default_value_t = 10)]
    k: usize,

    /// Report near-duplicates: groups of images whose pixels correlate by at least this much, -1 to 1.
    #[arg(long, value_name = "CORRELATION", num_args = 0..=1, default_missing_value = "0.95")]
    duplicates: Option<f32>,

    /// The PNG or JPEG file to draw.
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,

    #[command(flatten)]
    force: Force,

    /// Which part of the data: train, val, test or all.
    #[arg(long, default_value = "all", value_parser = named::<Split>)]
    split: Split,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    check(&args)?;
    let sheet = args.sheet.as_ref().map(|path| OutputFile::create(path, args.force.force)).transpose()?;
    if sheet.is_some() {
        outlive_the_reader();
    }
    let settings = args.network.settings()?;
    let decode = &settings.config().data.decode;
    let queries = args.query.iter().map(|path| Query::read(path, decode)).collect::<Result<Vec<_>, _>>()?;
    let data =
        open_shown(&DataConfig { split: args.split, ..settings.config().data.clone() }).context("data")?;
    let mut network = args.network.network(&settings)?;
    if args.network.reestimate_bn {
        Judge::new(&settings)?.reestimate(network.encoder.as_mut())?;
    }
    let encoder = network.encoder.as_ref();
    let features = swav_eval::encode(
        encoder,
        data.as_ref(),
        settings.eval_view(),
        Output::Features,
        Some(&mut counter("features", data.len())),
    )?;
    let Features { rows, indices, .. } = features;
    let bank = Bank::new(rows)?;
    let cells = match args.duplicates {
        Some(threshold) => duplicates(data.as_ref(), &bank, &indices, threshold)?,
        None => {
            let vectors = vectors(&queries, encoder, &settings)?;
            neighbours(data.as_ref(), (&bank, &indices), (&queries, &vectors), args.k)?
        }
    };
    let Some(mut sheet) = sheet else { return Ok(()) };
    let path = sheet.path().display().to_string();
    if cells.rows.is_empty() {
        note!("note: there is nothing to draw, so {path} is not written");
        return Ok(());
    }
    let format = ImageFormat::from_path(&path).unwrap_or(ImageFormat::Png);
    draw_rows(&cells).write_to(&mut sheet, format).with_context(|| format!("cannot write {path}"))?;
    sheet.commit()?;
    say!("{path}")
}

fn check(args: &Args) -> anyhow::Result<()> {
    if args.query.is_empty() == args.duplicates.is_none() {
        return Err(usage("expected either --query IMAGE... or --duplicates"));
    }
    if args.k == 0 {
        return Err(usage("--k: expected at least 1"));
    }
    let format = args.sheet.as_ref().map(ImageFormat::from_path);
    if !matches!(format, None | Some(Ok(ImageFormat::Png | ImageFormat::Jpeg))) {
        return Err(usage("--sheet: expected a name that ends in .png or .jpg"));
    }
    if args.duplicates.is_some_and(|threshold| !(-1.0..=1.0).contains(&threshold)) {
        return Err(usage("--duplicates: expected a correlation, -1 to 1"));
    }
    Ok(())
}

/// An image that is looked for.
struct Query {
    name: String,
    image: Arc<Image>,
}

impl Query {
    fn read(path: &Path, config: &DecodeConfig) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let image = swav_data::read_image(path, config).with_context(|| format!("query {name}"))?;
        Ok(Self { name, image: Arc::new(image) })
    }
}

/// Features of the queries.
fn vectors(queries: &[Query], encoder: &dyn Encoder, settings: &Settings) -> anyhow::Result<Array2<f32>> {
    struct Queries<'a>(&'a [Query]);
    impl Dataset for Queries<'_> {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
            Ok(self.0[index].image.clone())
        }
    }
    Ok(swav_eval::encode(encoder, &Queries(queries), settings.eval_view(), Output::Features, None)?.rows)
}

/// Rows of a sheet.
struct Rows {
    title: String,
    rows: Vec<Vec<Cell>>,
}

/// Prints the table of neighbours.
fn neighbours(
    data: &dyn Dataset,
    (bank, indices): (&Bank, &[usize]),
    (queries, vectors): (&[Query], &Array2<f32>),
    k: usize,
) -> anyhow::Result<Rows> {
    let k = k.min(bank.len());
    let found = bank.nearest(vectors.view(), k)?;
    say!("query,rank,similarity,image")?;
    let mut rows = Vec::new();
    for (number, query) in queries.iter().enumerate() {
        let picture = Some(square(&query.image, TILE));
        let mut cells =
            vec![Cell { picture, caption: vec![query.name.clone(), "query".to_owned()], frame: Some(QUERY) }];
        let similar = found.similarities.index_axis(Axis(0), number);
        for (rank, (&row, similarity)) in found.indices.row(number).iter().zip(similar).enumerate() {
            let name = data.name(indices[row]);
            say!("{},{},{similarity:.4},{}", field(&shown(&query.name)), rank + 1, field(&shown(&name)))?;
            cells.push(Cell {
                picture: thumbnail(data, indices[row], TILE),
                caption: vec![name, format!("{similarity:.3}")],
                frame: None,
            });
        }
        rows.push(cells);
    }
    Ok(Rows { title: format!("the {k} most similar images"), rows })
}

/// Prints the report of near-duplicates. Features find candidates, pixels decide.
fn duplicates(data: &dyn Dataset, bank: &Bank, indices: &[usize], threshold: f32) -> anyhow::Result<Rows> {
    let groups = bank.near_duplicates_by(|a, b| correlation(data, indices[a], indices[b]) >= threshold)?;
    let n_images: usize = groups.iter().map(|group| group.members.len()).sum();
    say!(
        "{} of near-duplicates: {n_images} of {}, {} of them superfluous",
        counted(groups.len(), "group"),
        counted(bank.len(), "image"),
        n_images - groups.len()
    )?;
    let mut largest: Vec<&DuplicateGroup> = groups.iter().collect();
    largest.sort_by_key(|group| std::cmp::Reverse(group.members.len()));
    let mut rows = Vec::new();
    for group in largest.iter().take(MAX_GROUPS) {
        let names: Vec<String> = group.members.iter().map(|&row| shown(&data.name(indices[row]))).collect();
        say!("  {:.4}  {}", group.similarity, names.join("  "))?;
        let cell = |(&row, name): (&usize, &String)| Cell {
            picture: thumbnail(data, indices[row], TILE),
            caption: vec![name.clone()],
            frame: None,
        };
        rows.push(group.members.iter().zip(&names).take(MAX_MEMBERS).map(cell).collect());
    }
    if largest.len() > MAX_GROUPS {
        say!("  ... and {} more", largest.len() - MAX_GROUPS)?;
    }
    Ok(Rows { title: "near-duplicates, one group a row".to_owned(), rows })
}

/// Correlation of the pixels of two whole images at 32 x 32; 0 if one cannot be read or has one colour only, or if their shapes
/// differ.
fn correlation(data: &dyn Dataset, a: usize, b: usize) -> f32 {
    let pixels = |index: usize| -> Option<(f64, Vec<f64>)> {
        let image = data.image(index).ok()?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        let mut canvas = Canvas::default();
        let whole = Region { left: 0, top: 0, width, height };
        Resizer::default().resize(image.view(), whole, COMPARED, COMPARED, &mut canvas);
        let mut pixels: Vec<f64> = canvas.to_rgb_bytes().into_iter().map(f64::from).collect();
        let mean = pixels.iter().sum::<f64>() / pixels.len() as f64;
        pixels.iter_mut().for_each(|v| *v -= mean);
        Some((width as f64 / height as f64, pixels))
    };
    let (Some((shape, a)), Some((other, b))) = (pixels(a), pixels(b)) else { return 0.0 };
    if (shape / other).ln().abs() > MAX_SHAPE {
        return 0.0;
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if norms > 1e-9 { (dot(&a, &b) / norms) as f32 } else { 0.0 }
}

/// One row of the sheet for each row, the short ones filled up.
fn draw_rows(rows: &Rows) -> RgbImage {
    let n_columns = rows.rows.iter().map(Vec::len).max().unwrap_or(1);
    let layout = Layout { tile: TILE, n_columns };
    let sheets: Vec<RgbImage> = rows
        .rows
        .iter()
        .enumerate()
        .map(|(number, cells)| draw(if number == 0 { &rows.title } else { "" }, cells, &layout))
        .collect();
    let width = sheets.iter().map(RgbImage::width).max().unwrap_or(1);
    let height = sheets.iter().map(RgbImage::height).sum();
    let mut all = RgbImage::from_pixel(width, height, crate::sheet::BACKGROUND);
    let mut top = 0;
    for sheet in &sheets {
        image::imageops::replace(&mut all, sheet, 0, top);
        top += i64::from(sheet.height());
    }
    all
}
