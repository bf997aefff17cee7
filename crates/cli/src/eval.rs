//! `swav eval`: how good a run's features are.

mod cluster;
mod finetune;
mod knn;
mod linear;
mod retrieval;
mod verdict;

use std::collections::HashSet;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::Value;
use swav_eval::{Predictions, Record};

use crate::judge::{Judge, Subject};
use crate::output::outlive_the_reader;
use crate::run_network::{self, Network};

pub(crate) use knn::record_knn;
use verdict::Measured;
pub(crate) use verdict::{Plan, measure};

/// Tell how good the features of a trained network are.
///
/// Every method prints a table with 95% confidence intervals (a bootstrap over the test images), writes
/// RUN/evaluations/NAME.json, and ends with the same as one line of JSON. What is missing in the data is said before any work.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    method: Method,
}

#[derive(Debug, Subcommand)]
enum Method {
    Knn(knn::Args),
    Linear(linear::Args),
    Finetune(finetune::Args),
    Cluster(cluster::Args),
    Retrieval(retrieval::Args),
}

/// More draws of the bootstrap change no digit that is shown.
const MAX_DRAWS: usize = 1_000_000;

/// What all methods are told.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    network: run_network::Options,

    /// Seed of whatever is drawn: subsets, hold-outs, the bootstrap, the order of training.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Draws of the bootstrap that makes the intervals.
    #[arg(long, default_value_t = 1000)]
    bootstrap: usize,

    /// Name of the record in RUN/evaluations [default: that of the method; with the name of the data behind it where
    /// that is the record of other images].
    #[arg(long)]
    name: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    // The record is worth more than what is printed of it.
    outlive_the_reader();
    match args.method {
        Method::Knn(args) => knn::run(args),
        Method::Linear(args) => linear::run(args),
        Method::Finetune(args) => finetune::run(args),
        Method::Cluster(args) => cluster::run(args),
        Method::Retrieval(args) => retrieval::run(args),
    }
}

impl Common {
    /// Checks what needs no data.
    fn check(&self) -> anyhow::Result<()> {
        if !(1..=MAX_DRAWS).contains(&self.bootstrap) {
            return Err(crate::usage(format!("--bootstrap: expected 1 to {MAX_DRAWS} draws")));
        }
        match &self.name {
            Some(name) if name.is_empty() || name.contains(['/', '\\']) => {
                Err(crate::usage(format!("--name {name}: expected the name of a file without its folder")))
            }
            _ => Ok(()),
        }
    }

    /// A network of the run, with statistics as the options say.
    fn network(&self, judge: &Judge<'_>) -> anyhow::Result<Network> {
        let mut network = self.network.network(judge.settings)?;
        if self.network.reestimate_bn {
            judge.reestimate(network.encoder.as_mut())?;
        }
        Ok(network)
    }

    /// Which record is written, and what else it says.
    fn plan(&self, judge: &Judge<'_>, kind: &'static str, step: u64) -> Plan {
        let mut plan = Plan::new(judge, kind, step, self.network.run.clone());
        plan.record.seed = self.seed;
        plan.bootstrap.seed = self.seed;
        plan.bootstrap.n_draws = self.bootstrap;
        plan.set("bootstrap", self.bootstrap);
        plan.set("reestimate_bn", self.network.reestimate_bn);
        if let Some(name) = &self.name {
            plan.name.clone_from(name);
        }
        plan
    }
}

/// The subjects of an evaluation.
fn subjects(baselines: bool) -> &'static [Subject] {
    match baselines {
        true => &[Subject::Trained, Subject::Untrained, Subject::RawPixels],
        false => &[Subject::Trained],
    }
}

/// Where a record of this name lies.
fn path_of(run: &std::path::Path, name: &str) -> PathBuf {
    run_network::evaluations(run).join(format!("{name}.json"))
}

/// A record that was written before, if it can be read.
fn earlier(path: &std::path::Path) -> Option<Record> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// The share of images whose class comes first, and that among the first five, where there are more classes than that.
fn accuracies(predictions: &Predictions, truth: &[u32], plan: &Plan) -> anyhow::Result<Vec<Measured>> {
    let of = |n_classes| plan.bootstrap.mean(&predictions.hits(truth, n_classes)?);
    let mut measured = vec![("accuracy".to_owned(), of(1)?, truth.len())];
    if truth.iter().collect::<HashSet<_>>().len() > 5 {
        measured.push(("top5".to_owned(), of(5)?, truth.len()));
    }
    Ok(measured)
}

/// A number as JSON.
fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}
