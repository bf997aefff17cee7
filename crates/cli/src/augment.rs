//! `swav augment`: a contact sheet that shows what every augmentation step does to real images.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use image::{ImageFormat, Rgb, RgbImage, imageops};
use swav_augment::{
    Canvas, CenterCrop, ColorJitter, CropKey, Equalize, GaussianBlur, Grayscale, HorizontalFlip, Image,
    MultiCropConfig, Pipeline, Preset, Resizer, Scratch, Solarize, Transform, VerticalFlip,
};
use swav_data::{DataConfig, Dataset, Split, spread};

use crate::configuration::{self, Changes};
use crate::glyphs::{LINE_HEIGHT, write};
use crate::open::{DataSettings, open_shown};
use crate::output_file::{Force, OutputFile};
use crate::{named, usage};

/// Side of a tile and width of the labels, in pixels.
const TILE: u32 = 128;
const LABEL_WIDTH: u32 = 150;
const GAP: u32 = 4;
/// Rows of crops on a sheet.
const MOST_CROPS: usize = 100;
const LETTER_SCALE: u32 = 2;

/// Draw a labelled sheet of every augmentation step and of the whole recipe, on images of a data set.
///
/// Each row is one step at full probability, each column one image. The last rows are crops of the recipe, one row
/// a crop, as the network sees them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A data set: a folder of images, shards, IDX or CIFAR files, or `builtin` [default: that of --config, else builtin].
    #[arg(long)]
    data: Option<PathBuf>,
    #[command(flatten)]
    settings: DataSettings,
    /// The recipe that trains: a configuration, or the name of one that comes with the program. Its crops are the last
    /// rows.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["preset", "recipe"])]
    config: Option<PathBuf>,
    /// The PNG or JPEG file to write.
    #[arg(long, default_value = "sheet.png")]
    out: PathBuf,
    #[command(flatten)]
    force: Force,
    /// The recipe of the last rows: swav, simclr-cifar, greyscale or medical.
    #[arg(long, default_value = "swav", value_parser = named::<Preset>)]
    preset: Preset,
    /// A TOML file with a recipe, instead of a preset.
    #[arg(long, conflicts_with = "preset")]
    recipe: Option<PathBuf>,
    /// How many images: the columns, 1 to 100.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=100))]
    images: u8,
    /// Seed of the random draws.
    #[arg(long, default_value_t = 31)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let format = picture_format(&args.out)?;
    let trains = match &args.config {
        Some(given) => Some(configuration::find(given)?.read(&Changes::default())?),
        None => None,
    };
    let config = match (&trains, &args.recipe) {
        (Some(trains), _) => trains.augment.clone(),
        (None, Some(path)) => {
            let text = swav_train::config_text(path)?;
            toml::from_str(&text).with_context(|| format!("parsing {}", path.display()))?
        }
        (None, None) => MultiCropConfig::preset(args.preset),
    };
    let recipe = config.check()?;
    if recipe.n_crops() > MOST_CROPS {
        anyhow::bail!("a recipe of {} crops: expected at most {MOST_CROPS} for a sheet", recipe.n_crops());
    }
    let preset = toml::Value::try_from(args.preset).context("a preset is always TOML")?;
    let is_own = args.recipe.is_some() || args.config.is_some();
    let recipe_name = if is_own { "recipe" } else { preset.as_str().unwrap_or_default() };
    let config = match (&args.data, trains) {
        (None, Some(trains)) => trains.data,
        (path, _) => {
            let builtin = PathBuf::from("builtin");
            DataConfig { split: Split::All, ..args.settings.config(path.as_ref().unwrap_or(&builtin))? }
        }
    };
    let out = OutputFile::create(&args.out, args.force.force)?;
    let data = open_shown(&DataConfig { cache_mib: 0, ..config })?;
    let n_columns = usize::from(args.images).min(data.len());
    // Spread over the data set, which is often sorted by class.
    let indices = spread(data.len(), n_columns);

    let steps = steps();
    let n_rows = steps.len() + recipe.n_crops();
    let mut sheet = RgbImage::from_pixel(
        LABEL_WIDTH + n_columns as u32 * (TILE + GAP),
        GAP + n_rows as u32 * (TILE + GAP),
        Rgb([32; 3]),
    );
    for (row, (label, _)) in steps.iter().enumerate() {
        write_label(&mut sheet, row, label);
    }
    for crop in 0..recipe.n_crops() {
        let (group, number) = recipe.locate(crop).expect("crop is below n_crops");
        let size = recipe.groups()[group].crop.size;
        let zoomed = if zoom(size as u32) > 1 { format!(" x {}", zoom(size as u32)) } else { String::new() };
        write_label(
            &mut sheet,
            steps.len() + crop,
            &format!("{recipe_name}\ncrop {number}\n{size} px{zoomed}"),
        );
    }
    let mut scratch = Scratch::default();
    for (column, &index) in indices.iter().enumerate() {
        let image = data.image(index)?;
        let centre = centre(&image);
        for (row, (_, pipeline)) in steps.iter().enumerate() {
            let key = CropKey { seed: args.seed, epoch: 0, sample: index as u64, crop: row as u64 };
            let mut canvas = centre.clone();
            pipeline.apply(&mut canvas, &mut key.rng());
            place(&mut sheet, row, column, TILE, canvas.to_rgb_bytes());
        }
        for crop in 0..recipe.n_crops() {
            let (group, _) = recipe.locate(crop).expect("crop is below n_crops");
            let size = recipe.groups()[group].crop.size;
            let mut pixels = vec![0.0; size * size * 3];
            let key = CropKey { seed: args.seed, epoch: 0, sample: index as u64, crop: crop as u64 };
            recipe.fill(image.view(), key, &mut pixels, &mut scratch)?;
            place(&mut sheet, steps.len() + crop, column, size as u32, recipe.normalize().invert(&pixels));
        }
    }
    save(&sheet, format, out)?;
    say!("{}: {} rows of {n_columns} images from {}", args.out.display(), n_rows, data.describe())
}

/// PNG or JPEG, by the ending of the name.
fn picture_format(out: &Path) -> anyhow::Result<ImageFormat> {
    match ImageFormat::from_path(out) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => Ok(format),
        _ => Err(usage(format!("--out {}: expected a name that ends in .png or .jpg", out.display()))),
    }
}

fn save(sheet: &RgbImage, format: ImageFormat, mut out: OutputFile) -> anyhow::Result<()> {
    let mut bytes = Cursor::new(Vec::new());
    sheet.write_to(&mut bytes, format).context("the sheet cannot be encoded")?;
    out.write_all(&bytes.into_inner()).with_context(|| format!("cannot write {}", out.path().display()))?;
    out.commit()
}

/// Rows of the steps that a build may lack.
#[cfg(feature = "warp")]
fn warps() -> Vec<(&'static str, Pipeline)> {
    use swav_augment::{Elastic, Perspective, Rotation};

    vec![
        ("rotation\n-45 - 45", Pipeline::new().then(Rotation { probability: 1.0, max_degrees: 45.0 })),
        ("perspective\n0.5", Pipeline::new().then(Perspective { probability: 1.0, distortion: 0.5 })),
        (
            "elastic\n0.08",
            Pipeline::new().then(Elastic { probability: 1.0, amplitude: 0.08, smoothness: 0.25 }),
        ),
    ]
}

/// Rows of the steps that this build lacks: none.
#[cfg(not(feature = "warp"))]
fn warps() -> Vec<(&'static str, Pipeline)> {
    Vec::new()
}

/// The rows before the recipe's. Strengths are chosen to be seen.
fn steps() -> Vec<(String, Pipeline)> {
    let jitter = |brightness, contrast, saturation, hue| ColorJitter {
        probability: 1.0,
        brightness,
        contrast,
        saturation,
        hue,
    };
    let blur = |radius: f32| GaussianBlur { probability: 1.0, min_radius: radius, max_radius: radius };
    let mut rows: Vec<(&str, Pipeline)> = vec![
        ("centre", Pipeline::new()),
        ("horizontal\nflip", Pipeline::new().then(HorizontalFlip { probability: 1.0 })),
        ("vertical\nflip", Pipeline::new().then(VerticalFlip { probability: 1.0 })),
    ];
    rows.extend(warps());
    rows.extend([
        ("brightness\n0.8", Pipeline::new().then(jitter(0.8, 0.0, 0.0, 0.0))),
        ("contrast\n0.8", Pipeline::new().then(jitter(0.0, 0.8, 0.0, 0.0))),
        ("saturation\n0.8", Pipeline::new().then(jitter(0.0, 0.0, 0.8, 0.0))),
        ("hue\n0.2", Pipeline::new().then(jitter(0.0, 0.0, 0.0, 0.2))),
        ("color jitter", Pipeline::new().then(jitter(0.8, 0.8, 0.8, 0.2))),
        ("grayscale", Pipeline::new().then(Grayscale { probability: 1.0 })),
        ("blur\nradius 1", Pipeline::new().then(blur(1.0))),
        ("blur\nradius 2", Pipeline::new().then(blur(2.0))),
        ("solarize\nfrom 128", Pipeline::new().then(Solarize { probability: 1.0, threshold: 128 })),
        ("equalize", Pipeline::new().then(Equalize { probability: 1.0 })),
    ]);
    rows.into_iter().map(|(label, pipeline)| (label.to_owned(), pipeline)).collect()
}

/// The middle of an image at the size of a tile.
fn centre(image: &Image) -> Canvas {
    let mut canvas = Canvas::default();
    let size = TILE as usize;
    CenterCrop { resize: size, size }.apply(image.view(), &mut Resizer::default(), &mut canvas);
    canvas
}

fn write_label(sheet: &mut RgbImage, row: usize, label: &str) {
    let lines = label.lines().count() as u32;
    let top = GAP + row as u32 * (TILE + GAP) + (TILE - lines * LINE_HEIGHT * LETTER_SCALE) / 2;
    write(sheet, label, GAP, top, LETTER_SCALE, Rgb([230; 3]));
}

/// How many times a picture of this side fits into a tile.
fn zoom(size: u32) -> u32 {
    (TILE / size).max(1)
}

/// Puts a square picture of `size` pixels into the middle of its tile: reduced if larger, its pixels enlarged if small.
fn place(sheet: &mut RgbImage, row: usize, column: usize, size: u32, bytes: Vec<u8>) {
    let mut picture = RgbImage::from_raw(size, size, bytes).expect("a square of RGB pixels");
    if size > TILE {
        picture = imageops::resize(&picture, TILE, TILE, imageops::FilterType::Triangle);
    } else if zoom(size) > 1 {
        let side = size * zoom(size);
        picture = imageops::resize(&picture, side, side, imageops::FilterType::Nearest);
    }
    let margin = (TILE - picture.width()) / 2;
    let left = LABEL_WIDTH + column as u32 * (TILE + GAP) + margin;
    let top = GAP + row as u32 * (TILE + GAP) + margin;
    imageops::replace(sheet, &picture, i64::from(left), i64::from(top));
}
