//! Curves, headline numbers and tables of a run, from what its folder holds.

use std::collections::BTreeMap;

use swav_report::{Chart, Figure, Series, Table};
use swav_train::{Alarm, Metrics};

use crate::run_record::{Evaluation, EvaluationResult, RunRecord};

/// Steps at the end that headline numbers are means of.
const LAST: usize = 50;

fn n_prototypes(record: &RunRecord) -> f64 {
    record.config.prototypes.n_prototypes.first().copied().unwrap_or(1) as f64
}

/// The mean of a number over the last steps.
fn at_end(metrics: &[Metrics], pick: impl Fn(&Metrics) -> f64) -> f64 {
    let last = &metrics[metrics.len().saturating_sub(LAST)..];
    last.iter().map(pick).sum::<f64>() / last.len() as f64
}

/// The numbers that count, with what they are compared to.
pub(super) fn headline(record: &RunRecord) -> Vec<Figure> {
    let mut figures = Vec::new();
    for evaluation in &record.evaluations {
        figures.extend(accuracy(evaluation));
    }
    if figures.is_empty()
        && let Some((step, numbers)) = record.evaluated.last()
    {
        let all = numbers.iter().filter(|(name, _)| name.contains("accuracy"));
        figures.extend(all.map(|(name, value)| {
            Figure::new(name.replace('_', " "), percent(*value), format!("during training, at step {step}"))
        }));
    }
    let Some(last) = record.metrics.last() else { return figures };
    let k = n_prototypes(record);
    let loss = at_end(&record.metrics, |line| line.loss);
    let compared = format!("chance: ln K = {:.2}; began at {:.2}", k.ln(), record.metrics[0].loss);
    figures.push(Figure::new("loss", format!("{loss:.2}"), compared));
    if last.code_perplexity > 0.0 {
        let used = at_end(&record.metrics, |line| line.prediction_perplexity);
        figures.push(Figure::new(
            "prototypes in use",
            format!("{used:.0}"),
            format!("of {k}, by predictions"),
        ));
    }
    let spread = at_end(&record.metrics, |line| line.spread);
    figures.push(Figure::new(
        "spread of embeddings",
        format!("{spread:.2}"),
        "0: collapsed, towards 1: spread",
    ));
    let mut speeds: Vec<f64> = record.metrics.iter().map(|line| line.images_per_s).collect();
    speeds.sort_by(f64::total_cmp);
    let speed = speeds[speeds.len() / 2];
    let batch = record.config.training.batch_size as f64;
    let hours = record.n_steps() as f64 * batch / speed.max(1e-9);
    let compared = format!("about {} of training", crate::doctor::duration(hours));
    figures.push(Figure::new("images a second", format!("{speed:.0}"), compared));
    figures
}

/// The trained network's accuracy, compared with the others of the same evaluation.
fn accuracy(evaluation: &Evaluation) -> Option<Figure> {
    let is_accuracy = |result: &&EvaluationResult| result.name == "accuracy" || result.name == "top1";
    let all: Vec<_> = evaluation.results.iter().filter(is_accuracy).collect();
    let trained = all.iter().find(|result| result.of.starts_with("trained"))?;
    let others = all.iter().filter(|result| !result.of.starts_with("trained"));
    let others: Vec<String> = others
        .map(|result| format!("{} {}", result.of.replace(" network", ""), percent(result.value)))
        .collect();
    let compared = match (others.is_empty(), trained.interval) {
        (false, _) => others.join(", "),
        (true, Some((low, high))) => format!("{} to {}", percent(low), percent(high)),
        (true, None) => String::new(),
    };
    let name = if evaluation.name == "knn" { "k-NN accuracy" } else { &evaluation.name };
    Some(Figure::new(name, percent(trained.value), compared))
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

/// Every curve that the metrics have.
pub(super) fn charts(record: &RunRecord, alarms: &[Alarm]) -> Vec<Chart> {
    let metrics = &record.metrics;
    let k = n_prototypes(record);
    let of = |name: &str, pick: fn(&Metrics) -> Option<f64>| {
        let points = metrics.iter().filter_map(|line| Some((line.step as f64, pick(line)?)));
        Series::new(name, points.collect())
    };
    let queue = metrics.iter().find(|line| line.queue_used && line.step > 0);
    let mut moments: Vec<(String, f64)> =
        queue.map(|line| ("queue".to_owned(), line.step as f64)).into_iter().collect();
    moments.extend(alarms.iter().take(3).map(|alarm| (alarm.symptom.to_string(), alarm.since as f64)));
    let chart = |title: &str, note: &str, series: Vec<Series>| Chart {
        title: title.to_owned(),
        note: note.to_owned(),
        series,
        ..Chart::default()
    };
    let mut charts = accuracies(record);
    charts.extend([
        Chart {
            references: vec![("ln K: chance".to_owned(), k.ln())],
            moments,
            ..chart(
                "Loss",
                "In nats. Below ln K, codes are predicted better than by chance.",
                vec![of("loss", |line| Some(line.loss))],
            )
        },
        chart("Learning rate", "", vec![of("learning rate", |line| Some(line.lr))]),
        Chart {
            references: vec![(format!("all {k}"), k)],
            ..chart(
                "Prototypes in use",
                "Perplexity over the batch. If predictions use few, the network has collapsed.",
                vec![
                    of("by predictions", |line| {
                        (line.code_perplexity > 0.0).then_some(line.prediction_perplexity)
                    }),
                    of("by codes", |line| (line.code_perplexity > 0.0).then_some(line.code_perplexity)),
                ],
            )
        },
        Chart {
            references: vec![("ln K: uniform".to_owned(), k.ln())],
            ..chart(
                "Entropy of a code",
                "In nats. 0 is one prototype each; at ln K codes say nothing.",
                vec![of("entropy", |line| (line.code_perplexity > 0.0).then_some(line.code_entropy))],
            )
        },
        chart(
            "Spread of the embeddings",
            "0: all equal, towards 1: spread over the sphere.",
            vec![of("spread", |line| Some(line.spread))],
        ),
        Chart {
            logarithmic: true,
            ..chart("Norm of the gradients", "", vec![of("norm", |line| Some(line.gradient_norm))])
        },
    ]);
    if metrics.iter().any(|line| line.row_residual.is_some()) {
        let note = "0: codes use all prototypes equally, 2: one of them.";
        charts.push(chart("Imbalance of codes", note, vec![of("row residual", |line| line.row_residual)]));
    }
    if metrics.iter().any(|line| line.queue_drift.is_some()) {
        let note = "Distance between queue and batch, in units of what chance gives: about 1 if the network stands still.";
        charts.push(chart("Staleness of the queue", note, vec![of("drift", |line| line.queue_drift)]));
    }
    charts.push(chart("Images a second", "", vec![of("images a second", |line| Some(line.images_per_s))]));
    charts
}

/// The numbers of evaluations during training, those of one kind on one chart.
fn accuracies(record: &RunRecord) -> Vec<Chart> {
    let mut series: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for (step, numbers) in &record.evaluated {
        for (name, value) in numbers {
            series.entry(name).or_default().push((*step as f64, *value));
        }
    }
    let (mut shares, mut others) = (Vec::new(), Vec::new());
    // A single point is no curve.
    for (name, points) in series.into_iter().filter(|(_, points)| points.len() > 1) {
        let is_share = points.iter().all(|point| (0.0..=1.0).contains(&point.1));
        let one = Series { name: name.replace('_', " "), points, dots: true };
        if is_share { shares.push(one) } else { others.push(one) }
    }
    let note = "Measured during training.".to_owned();
    let mut charts = Vec::new();
    // Four colours there are.
    for part in shares.chunks(4) {
        let title =
            if part.iter().any(|one| one.name.contains("accuracy")) { "Accuracy" } else { "Stability" };
        charts.push(Chart {
            title: title.to_owned(),
            note: note.clone(),
            series: part.to_vec(),
            ..Chart::default()
        });
    }
    charts.extend(others.into_iter().map(|one| Chart {
        title: one.name.clone(),
        note: note.clone(),
        series: vec![one],
        ..Chart::default()
    }));
    charts
}

/// One table for each evaluation.
pub(super) fn tables(record: &RunRecord) -> Vec<Table> {
    let columns = ["measure", "of", "value", "interval", "images"].map(str::to_owned).to_vec();
    let of = |evaluation: &Evaluation| {
        let rows = evaluation.results.iter().map(|result| {
            vec![
                result.name.clone(),
                result.of.clone(),
                format!("{:.4}", result.value),
                result.interval.map_or(String::new(), |(low, high)| format!("{low:.4} to {high:.4}")),
                result.n.map_or(String::new(), |n| n.to_string()),
            ]
        });
        let step = evaluation.step.map_or(String::new(), |step| format!(" at step {step}"));
        Table { title: format!("{}{step}", evaluation.name), columns: columns.clone(), rows: rows.collect() }
    };
    record.evaluations.iter().map(of).collect()
}
