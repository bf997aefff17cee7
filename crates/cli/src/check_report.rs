//! What `swav data check` prints.

use swav_data::{CheckReport, Dataset, LabelCensus, LabelKind, counted};

use crate::output::shown;

/// Prints all of it, with at most `list` lines of a kind.
pub(crate) fn print(data: &dyn Dataset, report: &CheckReport, list: usize) -> anyhow::Result<()> {
    print_counts(data, report)?;
    print_classes(data, report, list)?;
    print_sizes(report)?;
    print_duplicates(data, report, list)?;
    print_bad(report, list)?;
    let program = crate::program();
    say!(
        "\na recipe for these images, with the reason of each number:  {program} doctor --data PATH --write recipe.toml"
    )
}

fn print_counts(data: &dyn Dataset, report: &CheckReport) -> anyhow::Result<()> {
    let share = |count: usize| 100.0 * count as f64 / report.n_images.max(1) as f64;
    say!("Images     {:>9}", report.n_images)?;
    say!(
        "  good     {:>9}  {:5.1}%, {:.1} MiB decoded",
        report.n_good(),
        share(report.n_good()),
        report.decoded_bytes as f64 / f64::from(1 << 20)
    )?;
    say!("  grey     {:>9}  {:5.1}%", report.n_grey, share(report.n_grey))?;
    if !report.blank.is_empty() {
        say!("  blank    {:>9}  {:5.1}%, of one colour", report.blank.len(), share(report.blank.len()))?;
        let names: Vec<_> = report.blank.iter().take(3).map(|&index| shown(&data.name(index))).collect();
        let more = if report.blank.len() > 3 { ", ..." } else { "" };
        say!("    such as {}{more}", names.join(", "))?;
        say!("    transparent pictures are laid on data.decode.background, white unless changed")?;
    }
    say!("  bad      {:>9}  {:5.1}%", report.bad.len(), share(report.bad.len()))?;
    for (kind, count) in report.bad_by_kind() {
        say!("    {kind:<15}{count:>9}")?;
    }
    Ok(())
}

fn print_classes(data: &dyn Dataset, report: &CheckReport, list: usize) -> anyhow::Result<()> {
    say!("\nClasses    {:>9}", report.labels.len())?;
    if report.n_unlabelled > 0 {
        say!("  unlabelled {:>7}", report.n_unlabelled)?;
    }
    let census = LabelCensus::of(data);
    if census.without.keys().any(|&kind| kind != LabelKind::Missing) {
        say!("  labels: {census}")?;
    }
    let most = report.labels.values().max().copied().unwrap_or(1);
    for (label, count) in report.labels.iter().take(list) {
        let name = data.class_names().get(*label as usize).map(|name| shown(name)).unwrap_or_default();
        say!("  {label:>4} {name:<20.20} {count:>8}  {}", bar(*count, most))?;
    }
    if report.labels.len() > list {
        let (least, most) = (report.labels.values().min().unwrap_or(&0), most);
        say!("  ... and {} more; from {least} to {most} images each", report.labels.len() - list)?;
    }
    Ok(())
}

fn print_sizes(report: &CheckReport) -> anyhow::Result<()> {
    say!(
        "\nShorter side (pixels): smallest {}, median {}, largest {}",
        report.short_side(0.0),
        report.short_side(0.5),
        report.short_side(1.0)
    )?;
    let bins = report.short_side_histogram();
    let most = bins.iter().map(|bin| bin.2).max().unwrap_or(1);
    for (from, below, count) in bins {
        say!("  {:>13} {count:>9}  {}", format!("{from}..{below}"), bar(count, most))?;
    }
    let mut sizes: Vec<_> = report.sizes.iter().collect();
    sizes.sort_by_key(|(size, count)| (std::cmp::Reverse(**count), **size));
    let common: Vec<_> =
        sizes.iter().take(3).map(|((width, height), count)| format!("{width}x{height} ({count})")).collect();
    say!("  {} different sizes; most frequent: {}", sizes.len(), common.join(", "))
}

fn print_duplicates(data: &dyn Dataset, report: &CheckReport, list: usize) -> anyhow::Result<()> {
    let copies: usize = report.duplicates.iter().map(|group| group.len() - 1).sum();
    say!("\nDuplicates {copies:>9}")?;
    if copies > 0 {
        say!("  {} with equal pixels", counted(report.duplicates.len(), "group"))?;
    }
    if report.n_contradictions > 0 {
        say!("  {} with equal pixels but different labels", counted(report.n_contradictions, "group"))?;
    }
    for group in report.duplicates.iter().take(list) {
        let names: Vec<_> = group.iter().take(4).map(|&index| shown(&data.name(index))).collect();
        let more = if group.len() > 4 { format!(" and {} more", group.len() - 4) } else { String::new() };
        say!("  {}{more}", names.join(" = "))?;
    }
    if report.duplicates.len() > list {
        say!("  ... and {} more", counted(report.duplicates.len() - list, "group"))?;
    }
    Ok(())
}

fn print_bad(report: &CheckReport, list: usize) -> anyhow::Result<()> {
    if report.bad.is_empty() {
        return Ok(());
    }
    say!("\nBad images")?;
    for bad in report.bad.iter().take(list) {
        say!("  {}: {}", shown(&bad.name), bad.reason)?;
    }
    if report.bad.len() > list {
        say!("  ... and {} more (--list)", report.bad.len() - list)?;
    }
    if report.bad_by_kind().contains_key("too large") {
        say!("  --max-pixels sets the limit for large images")?;
    }
    Ok(())
}

fn bar(count: usize, most: usize) -> String {
    "#".repeat((count * 40).div_ceil(most.max(1)))
}
