//! `swav eval`: how good a run's features are.

use clap::Subcommand;
use swav_eval::KnnConfig;

use crate::judge::{Judge, Subject};
use crate::run_network;

/// Tell how good the features of a trained network are.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    method: Method,
}

#[derive(Debug, Subcommand)]
enum Method {
    Knn(Knn),
}

/// Weighted k-nearest-neighbour accuracy of frozen features.
///
/// Each test image is classified by the k training images whose features are most similar (cosine), which vote with
/// weight exp(similarity / temperature). Data without a test split are classified leaving one out; set data.holdout to
/// split them. The last line is one JSON object.
#[derive(Debug, clap::Args)]
struct Knn {
    #[command(flatten)]
    network: run_network::Options,

    /// Neighbours that vote [default: what the run's configuration says, else 20].
    #[arg(long)]
    k: Option<usize>,

    /// Temperature of the votes' weights [default: what the run's configuration says, else 0.07].
    #[arg(long)]
    temperature: Option<f64>,

    /// Judge the same network untrained and the raw pixels, too.
    #[arg(long)]
    baselines: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.method {
        Method::Knn(args) => knn(args),
    }
}

fn knn(args: Knn) -> anyhow::Result<()> {
    if args.k == Some(0) || args.temperature.is_some_and(|t| !(t.is_finite() && t > 0.0)) {
        return Err(crate::usage("--k and --temperature: expected numbers above 0"));
    }
    let (settings, mut network) = args.network.load()?;
    let usual = KnnConfig::default();
    let knn = KnnConfig {
        k: args.k.unwrap_or(usual.k),
        temperature: args.temperature.unwrap_or(usual.temperature),
    };
    let judge = Judge::new(&settings, knn)?;
    note!("data     {}", judge.bank().describe());
    judge.check_labels()?;
    if settings.config().reestimation.batch_norm {
        judge.reestimate(network.as_mut())?;
    }
    say!("{}", judge.describe())?;
    let trained = judge.report(Subject::Trained, judge.encoder(network.as_ref())?)?;
    if args.baselines {
        judge.report(Subject::Untrained, judge.untrained()?)?;
        judge.report(Subject::RawPixels, judge.raw_pixels()?)?;
    }
    say!("{}", serde_json::to_string(&trained)?)
}
