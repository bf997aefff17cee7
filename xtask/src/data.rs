//! `cargo xtask data check PATH`: reads a whole data set and says what is in it and what is wrong with it.

use std::{io::IsTerminal, path::PathBuf, time::Instant};

use anyhow::Context;
use clap::Subcommand;
use swav_augment::CropConfig;
use swav_data::{CheckReport, DataConfig, Dataset, Format, Split, check, open};

/// Looks at data sets.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reads every image; reports counts, classes, sizes, bad images, duplicates and a crop recipe.
    Check(Check),
}

#[derive(clap::Args)]
struct Check {
    /// A folder, a file, shards with `{000..099}`, or `builtin`.
    path: PathBuf,
    /// The layout, if it is not to be told from the path: classes, flat, list, idx, cifar, tar, parquet, builtin.
    #[arg(long, value_parser = parse::<Format>)]
    format: Option<Format>,
    /// The part to read: train, val, test or all.
    #[arg(long, default_value = "all", value_parser = parse::<Split>)]
    split: Split,
    /// The largest number of pixels an image may have.
    #[arg(long)]
    max_pixels: Option<u64>,
    /// The Parquet column with the images.
    #[arg(long)]
    image_column: Option<String>,
    /// The column or JSON field with the labels.
    #[arg(long)]
    label_column: Option<String>,
    /// How many bad images and duplicates are listed.
    #[arg(long, default_value_t = 20)]
    list: usize,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Check(args) => run_check(&args),
    }
}

/// Reads a value by the name it has in config files.
fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    let known = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
    T::deserialize(known).map_err(|error| error.to_string())
}

fn run_check(args: &Check) -> anyhow::Result<()> {
    let defaults = DataConfig::default();
    let config = DataConfig {
        format: args.format.unwrap_or_default(),
        split: args.split,
        image_column: args.image_column.clone(),
        label_column: args.label_column.clone(),
        decode: swav_data::DecodeConfig {
            max_pixels: args.max_pixels.unwrap_or(defaults.decode.max_pixels),
            ..defaults.decode
        },
        ..defaults
    };
    let start = Instant::now();
    let data = open(&args.path, &config)?;
    println!("{}", data.describe());
    println!("opened in {:.2} s; content id {:016x}", start.elapsed().as_secs_f64(), data.fingerprint());
    let (n_images, shown) = (data.len(), std::io::stderr().is_terminal());
    let start = Instant::now();
    let report = check(&*data, |read| {
        if shown {
            eprint!("\r{read} of {n_images}");
        }
    });
    if shown {
        eprintln!();
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("read in {seconds:.1} s: {:.1} images/s\n", n_images as f64 / seconds.max(1e-9));
    print_report(&*data, &report, args.list)
}

fn print_report(data: &dyn Dataset, report: &CheckReport, list: usize) -> anyhow::Result<()> {
    let share = |count: usize| 100.0 * count as f64 / report.n_images.max(1) as f64;
    println!("Images     {:>9}", report.n_images);
    println!(
        "  good     {:>9}  {:5.1}%, {:.1} MiB decoded",
        report.n_good(),
        share(report.n_good()),
        report.decoded_bytes as f64 / f64::from(1 << 20)
    );
    println!("  grey     {:>9}  {:5.1}%", report.n_grey, share(report.n_grey));
    println!("  bad      {:>9}  {:5.1}%", report.bad.len(), share(report.bad.len()));
    for (kind, count) in report.bad_by_kind() {
        println!("    {kind:<15}{count:>9}");
    }

    println!("\nClasses    {:>9}", report.labels.len());
    if report.n_unlabelled > 0 {
        println!("  unlabelled {:>7}", report.n_unlabelled);
    }
    let most = report.labels.values().max().copied().unwrap_or(1);
    for (label, count) in report.labels.iter().take(list) {
        let name = data.class_names().get(*label as usize).cloned().unwrap_or_default();
        println!("  {label:>4} {name:<20.20} {count:>8}  {}", bar(*count, most));
    }
    if report.labels.len() > list {
        let (least, most) = (report.labels.values().min().unwrap_or(&0), most);
        println!("  ... and {} more; from {least} to {most} images each", report.labels.len() - list);
    }

    println!(
        "\nShorter side (pixels): smallest {}, median {}, largest {}",
        report.short_side(0.0),
        report.short_side(0.5),
        report.short_side(1.0)
    );
    let bins = report.short_side_histogram();
    let most = bins.iter().map(|bin| bin.2).max().unwrap_or(1);
    for (from, below, count) in bins {
        println!("  {:>13} {count:>9}  {}", format!("{from}..{below}"), bar(count, most));
    }
    let mut sizes: Vec<_> = report.sizes.iter().collect();
    sizes.sort_by_key(|(size, count)| (std::cmp::Reverse(**count), **size));
    let common: Vec<_> =
        sizes.iter().take(3).map(|((width, height), count)| format!("{width}x{height} ({count})")).collect();
    println!("  {} different sizes; most frequent: {}", sizes.len(), common.join(", "));

    let copies: usize = report.duplicates.iter().map(|group| group.len() - 1).sum();
    println!("\nDuplicates {copies:>9}");
    if copies > 0 {
        println!("  {} with equal pixels", counted(report.duplicates.len(), "group"));
    }
    if report.n_contradictions > 0 {
        println!("  {} with equal pixels but different labels", counted(report.n_contradictions, "group"));
    }
    for group in report.duplicates.iter().take(list) {
        let names: Vec<_> = group.iter().take(4).map(|&index| shown(&data.name(index))).collect();
        let more = if group.len() > 4 { format!(" and {} more", group.len() - 4) } else { String::new() };
        println!("  {}{more}", names.join(" = "));
    }
    if report.duplicates.len() > list {
        println!("  ... and {} more", counted(report.duplicates.len() - list, "group"));
    }

    if !report.bad.is_empty() {
        println!("\nBad images");
        for bad in report.bad.iter().take(list) {
            println!("  {}: {}", shown(&bad.name), bad.reason);
        }
        if report.bad.len() > list {
            println!("  ... and {} more (--list)", report.bad.len() - list);
        }
        if report.bad_by_kind().contains_key("too large") {
            println!("  --max-pixels sets the limit for large images");
        }
    }

    print_recipe(report)?;
    anyhow::ensure!(report.n_good() > 0, "none of the {} images can be used", report.n_images);
    Ok(())
}

/// The recommended recipe as a part of a config file.
fn print_recipe(report: &CheckReport) -> anyhow::Result<()> {
    let (recipe, why) = report.recipe();
    let preset = toml::Value::try_from(recipe.preset).context("a preset is always TOML")?;
    println!("\nRecommended, since {why}:\n\n  [augment]\n  preset = {preset}");
    let crops = recipe.resolved().crops.unwrap_or_default();
    println!("  crops = [");
    for CropConfig { size, n_crops, min_scale, max_scale, .. } in crops {
        println!(
            "      {{ size = {size}, n_crops = {n_crops}, min_scale = {min_scale:?}, max_scale = {max_scale:?} }},"
        );
    }
    println!("  ]");
    Ok(())
}

/// A number of things, with an s unless it is one.
fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A name without what would break the line or the terminal.
fn shown(name: &str) -> String {
    name.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn bar(count: usize, most: usize) -> String {
    "#".repeat((count * 40).div_ceil(most.max(1)))
}
