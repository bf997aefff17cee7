//! `swav eval cluster`

use swav_data::{DataConfig, Dataset, Split, counted};
use swav_encoder::Output;
use swav_eval::{Agreement, ClusterSizes, Contingency, Estimate};

use super::verdict::Measured;
use super::{Common, Plan};
use crate::judge::Judge;
use crate::named;
use crate::open::{open, understood};

/// How well the prototypes divide the images.
///
/// Every image goes to the prototype that its embedding is most similar to. Says how many prototypes have images and how even
/// they are; where there are labels also how well clusters agree with classes: normalised mutual information, adjusted
/// Rand index, purity (which grows with the number of clusters), and the accuracy if clusters and classes are matched one to
/// one. Needs no labels.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,

    /// Which part of the data: train, val, test or all [default: the test split where there is one].
    #[arg(long, value_parser = named::<Split>)]
    split: Option<Split>,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    args.common.check()?;
    let settings = args.common.network.settings()?;
    let judge = Judge::new(&settings)?;
    let data = match args.split {
        Some(split) => open(&DataConfig { split, ..settings.config().data.clone() })?,
        None => judge.test.clone().unwrap_or_else(|| judge.train.clone()),
    };
    understood(data.as_ref()).iter().for_each(|line| note!("{line}"));
    let network = args.common.network(&judge)?;
    let mut plan = args.common.plan(&judge, "cluster", network.step);
    plan.set("split_data", data.describe());
    let k = network.prototypes()?.nrows();
    plan.set("n_prototypes", k);
    let embeddings = judge.features(data.as_ref(), network.encoder.as_ref(), Output::Embedding)?;
    let assignment = network.assign(embeddings.rows.view())?;
    let sizes = ClusterSizes::new(&assignment.prototypes, k)?;
    say!("clusters of {} by {k} prototypes", counted(assignment.prototypes.len(), "image"))?;
    say!("  prototypes with images  {} of {k}", sizes.n_used)?;
    say!("  as even as              {:.1} clusters of equal size", sizes.perplexity)?;
    say!("  images of a cluster     median {}, largest {}", sizes.median, sizes.largest)?;
    plan.set("sizes", serde_json::to_value(sizes)?);
    let confidence: Vec<f64> = assignment.confidence.iter().map(|&c| f64::from(c)).collect();
    let mut measured = vec![("confidence".to_owned(), plan.bootstrap.mean(&confidence)?, confidence.len())];
    match labels(data.as_ref(), &embeddings.indices) {
        Some(labels) => measured.extend(agreement(&assignment.prototypes, &labels, &plan)?),
        None => note!("note: not every image has a label, so clusters are not compared with classes"),
    }
    plan.report("trained network", &measured)?;
    plan.finish()
}

/// The labels, if every image has one.
fn labels(data: &dyn Dataset, indices: &[usize]) -> Option<Vec<u32>> {
    indices.iter().map(|&index| data.label(index)).collect()
}

/// One number of an agreement between clusters and classes.
type Measure = fn(&Agreement) -> f64;

fn agreement(clusters: &[u32], labels: &[u32], plan: &Plan) -> anyhow::Result<Vec<Measured>> {
    let all = Contingency::new(clusters, labels)?.agreement();
    let measures: [(&str, Measure); 4] = [
        ("nmi", |a| a.nmi),
        ("ari", |a| a.ari),
        ("purity", |a| a.purity),
        ("matched_accuracy", |a| a.matched_accuracy),
    ];
    let drawn = |measure: Measure| {
        move |drawn: &[u32]| {
            let of = |values: &[u32]| drawn.iter().map(|&i| values[i as usize]).collect::<Vec<u32>>();
            Contingency::new(&of(clusters), &of(labels)).map_or(f64::NAN, |c| measure(&c.agreement()))
        }
    };
    let mut measured = Vec::new();
    for (name, measure) in measures {
        let estimate: Estimate =
            plan.bootstrap.estimate_by_halves(measure(&all), labels.len(), drawn(measure))?;
        measured.push((name.to_owned(), estimate, labels.len()));
    }
    Ok(measured)
}
