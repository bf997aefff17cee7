//! `swav eval retrieval`

use ndarray::Axis;
use swav_data::counted;
use swav_eval::{Bank, Retrieval};

use super::{Common, measure, subjects};
use crate::eval::verdict::{Measured, Plan};
use crate::judge::{Judge, Pair};

/// How often the most similar images are of the same class.
///
/// recall@k is the share of test images that have one of their class among the k most similar training images; map@r is the mean
/// average precision at R, where R training images are of the class. Data without a test split are looked up among all
/// others. Test images of classes without training images are left out.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,

    /// The k of recall@k, with commas between several.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 5, 10])]
    k: Vec<usize>,

    /// Judge the same network untrained and the raw pixels, too. Once known, they are read from the record.
    #[arg(long)]
    baselines: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.k.is_empty() || args.k.contains(&0) {
        return Err(crate::usage("--k: expected numbers above 0"));
    }
    args.common.check()?;
    let settings = args.common.network.settings()?;
    let judge = Judge::new(&settings)?.with_labels()?;
    judge.show_data();
    let network = args.common.network(&judge)?;
    let mut plan = args.common.plan(&judge, "retrieval", network.step);
    plan.set("k", args.k.clone());
    say!("retrieval ({}; cosine)", judge.sets())?;
    measure(&mut plan, subjects(args.baselines), |plan, subject| {
        look_up(judge.pair(subject, network.encoder.as_ref())?, &args.k, plan)
    })?;
    plan.finish()
}

fn look_up(pair: Pair, k: &[usize], plan: &Plan) -> anyhow::Result<Vec<Measured>> {
    let bank = Bank::new(pair.train.features.rows)?;
    let found: Retrieval = match pair.test {
        Some(test) => bank.retrieve(&pair.train.labels, test.features.rows.view(), &test.labels, k)?,
        None => bank.retrieve_others(&pair.train.labels, k)?,
    };
    if !found.left_out.is_empty() {
        note!("note: left out: {} without another of the class", counted(found.left_out.len(), "image"));
    }
    let n = found.average_precision.len();
    anyhow::ensure!(n > 0, "no image has another one of its class, so there is nothing to retrieve");
    let mut measured = Vec::new();
    for (k, hits) in k.iter().zip(found.recall.axis_iter(Axis(0))) {
        measured.push((format!("recall@{k}"), plan.bootstrap.mean(&hits.to_vec())?, n));
    }
    measured.push(("map@r".to_owned(), plan.bootstrap.mean(&found.average_precision)?, n));
    Ok(measured)
}
