//! `swav eval knn`

use std::path::PathBuf;

use swav_encoder::Encoder;
use swav_eval::{KnnClassifier, KnnConfig, KnnSpec};

use super::{Common, Plan, measure, number, subjects};
use crate::eval::verdict::Measured;
use crate::judge::{Judge, Pair};

/// Weighted k-nearest-neighbour accuracy of frozen features.
///
/// Each test image is classified by the k training images whose features are most similar (cosine), which vote with
/// weight exp(similarity / temperature). Data without a test split are classified leaving one out; set data.holdout to
/// split them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,

    /// Neighbours that vote [default: 20, or all where there are fewer].
    #[arg(long)]
    k: Option<usize>,

    /// Temperature of the votes' weights.
    #[arg(long, default_value_t = KnnConfig::default().temperature)]
    temperature: f64,

    /// Judge the same network untrained and the raw pixels, too. Once known, they are read from the record.
    #[arg(long)]
    baselines: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.k == Some(0) || !(args.temperature.is_finite() && args.temperature > 0.0) {
        return Err(crate::usage("--k and --temperature: expected numbers above 0"));
    }
    args.common.check()?;
    let settings = args.common.network.settings()?;
    let judge = Judge::new(&settings)?.with_labels()?;
    let k = judge.n_neighbours(args.k, KnnConfig::default().k)?;
    judge.show_data();
    let network = args.common.network(&judge)?;
    let plan = args.common.plan(&judge, "knn", network.step);
    let config = KnnConfig { k, temperature: args.temperature };
    vote_of_neighbours(&judge, network.encoder.as_ref(), (config, args.baselines), plan)?.finish()
}

/// The evaluation at the end of a training: prints its table, baselines included, and writes the record to the run's folder. Gives
/// its file.
pub(crate) fn record_knn(
    judge: &Judge<'_>,
    trained: &dyn Encoder,
    (step, run): (u64, PathBuf),
) -> anyhow::Result<PathBuf> {
    let usual = KnnConfig::default();
    let config = KnnConfig { k: judge.n_neighbours(None, usual.k)?, ..usual };
    let mut plan = Plan::new(judge, "knn", step, run);
    plan.set("bootstrap", plan.bootstrap.n_draws);
    plan.set("reestimate_bn", false);
    vote_of_neighbours(judge, trained, (config, true), plan)?.write()
}

fn vote_of_neighbours(
    judge: &Judge<'_>,
    trained: &dyn Encoder,
    (config, baselines): (KnnConfig, bool),
    mut plan: Plan,
) -> anyhow::Result<Plan> {
    let KnnConfig { k, temperature } = config;
    let spec = config.check()?;
    plan.set("k", k);
    plan.set("temperature", number(temperature));
    say!("k-NN accuracy ({}; k {k}, temperature {temperature}, cosine)", judge.sets())?;
    measure(&mut plan, subjects(baselines), |plan, subject| vote(spec, judge.pair(subject, trained)?, plan))?;
    Ok(plan)
}

fn vote(spec: KnnSpec, pair: Pair, plan: &Plan) -> anyhow::Result<Vec<Measured>> {
    let knn = KnnClassifier::new(spec, pair.train.features.rows, pair.train.labels.clone())?;
    let (predictions, truth) = match pair.test {
        Some(test) => (knn.predict(test.features.rows.view())?, test.labels),
        None => (knn.leave_one_out()?, pair.train.labels),
    };
    super::accuracies(&predictions, &truth, plan)
}
