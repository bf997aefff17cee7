//! The commands: right and wrong parts of every one, put together at random.

use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The first is right, mostly.
const VALUES: &[&str] = &[
    "2",
    "0",
    "1",
    "-1",
    "3.5",
    "0.1",
    "1e9",
    "1e-320",
    "nan",
    "inf",
    "-inf",
    "100",
    "1000000",
    "4611686018427387904",
    "99999999999999999999",
    "",
    " ",
    "abc",
    "true",
    "false",
    "[1]",
    "[]",
    "[4, 4]",
    "{}",
    "{ a = 1 }",
    "\"x\"",
    "'",
    "=",
    "é",
    "a\nb = 3",
    "0x10",
    "1_000",
    "none",
    "cpu",
    "sgd",
    "adamw",
    "mixed",
];
const DATA: &[&str] = &[
    "../photos",
    "../photos",
    "../photos",
    "builtin",
    "../empty",
    "../file.txt",
    "../list.txt",
    "../bad",
    "../loop",
    "../odd\nname",
    "../photos/a/00.png",
    "nowhere",
    "/dev/null",
    "/proc/self",
    "..",
    "",
    "-",
    "x{00..99}.tar",
    "../run",
    "../links",
    "../nested.tar",
    "../photos.zip",
    "/dev/zero",
];
const OUTS: &[&str] = &[
    "out.npy",
    "out.npy",
    "out.png",
    "out.jpg",
    "out.csv",
    "no/such/out.npy",
    "/proc/out.npy",
    "/dev/full",
    "/dev/null",
    "..",
    "",
    "there.npy",
    "there.png",
    "run/out.npy",
    "/proc/out.png",
    "name\nbroken.npy",
    "out.safetensors",
    "out.parquet",
];
const RUNS: &[&str] = &[
    "run",
    "run",
    "run",
    "new",
    "new/inner",
    "imported",
    "../photos",
    "../file.txt",
    "nowhere",
    "/proc/run",
    "",
    ".",
    "../empty",
];
/// What `import` may be given.
const WEIGHTS: &[&str] = &[
    "run/weights.safetensors",
    "run/weights.safetensors",
    "run",
    "../photos/a/00.png",
    "../file.txt",
    "/dev/zero",
    "/dev/null",
    "nowhere",
    "",
    "run/config.toml",
];
const FOLDERS: &[&str] =
    &["folder", "folder", "folder", "run", "new/folder", "/proc/folder", "there.npy", "", ".", "empty"];

/// Where standard output or standard error goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sink {
    Read,
    OneLine,
    Closed,
    Full,
}

#[derive(Debug)]
pub struct Case {
    pub arguments: Vec<String>,
    pub out: Sink,
    pub error: Sink,
    pub signal: Option<(&'static str, Duration)>,
    /// The largest file that it may write, in blocks of the shell's: a disk that is full sooner or later.
    pub file_blocks: Option<u32>,
}

impl Case {
    pub fn new(seed: u64, number: u64, keys: &[String]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number);
        let rng = &mut rng;
        let mut arguments = command(rng);
        let has_changes = ["pretrain", "embed", "eval", "cluster", "search", "report", "doctor"]
            .contains(&arguments[0].as_str());
        // What is wrong anywhere keeps a command from its work, so most have little that is.
        if rng.random_bool(0.3) {
            let n_changes = if has_changes { rng.random_range(0..3) } else { 0 };
            for _ in 0..n_changes {
                arguments.extend(["--set".to_owned(), setting(rng, keys)]);
            }
            if rng.random_bool(0.5) {
                arguments.extend(spoilt(rng));
            }
        }
        let sink = |rng: &mut ChaCha8Rng| match rng.random_range(0..10) {
            0 => Sink::Closed,
            1 => Sink::OneLine,
            2 => Sink::Full,
            _ => Sink::Read,
        };
        let (out, error) = (sink(rng), sink(rng));
        let signal = rng.random_bool(0.3).then(|| {
            (*["INT", "TERM", "HUP"].choose(rng).unwrap(), Duration::from_millis(rng.random_range(0..900)))
        });
        let file_blocks = rng.random_bool(0.1).then(|| *[0, 1, 8, 64].choose(rng).unwrap());
        Self { arguments, out, error, signal, file_blocks }
    }
}

/// A command of the program with its own options.
fn command(rng: &mut ChaCha8Rng) -> Vec<String> {
    match rng.random_range(0..30) {
        0..6 => pretrain(rng),
        6..9 => embed(rng),
        9..14 => eval(rng),
        14..16 => {
            let mut arguments = words(&["data", "check", mostly(rng, DATA)]);
            some(rng, &mut arguments, 0.2, "--list", VALUES);
            some(
                rng,
                &mut arguments,
                0.2,
                "--set",
                &["data.holdout=0.5", "data.format=flat", "x=1", "data.decode=1"],
            );
            arguments
        }
        16 => augment(rng),
        17..19 => cluster(rng),
        19..21 => search(rng),
        21..23 => report(rng),
        23 | 24 => import(rng),
        25 | 26 => export(rng),
        27 => doctor(rng),
        28 => words(&["gpu", pick(rng, &["--no-test", "--verbose", "--quiet"])]),
        _ => words(&[pick(
            rng,
            &[
                "pretrain",
                "gpu",
                "embed",
                "nonsense",
                "data",
                "eval",
                "cluster",
                "--version",
                "help",
                "doctor",
                "import",
            ],
        )]),
    }
}

/// An option with a value, with some probability.
fn some(rng: &mut ChaCha8Rng, arguments: &mut Vec<String>, probability: f64, option: &str, values: &[&str]) {
    if rng.random_bool(probability) {
        arguments.extend(words(&[option, mostly(rng, values)]));
    }
}

/// A number that is right, mostly.
fn number<'a>(rng: &mut ChaCha8Rng, right: &'a str) -> &'a str {
    if rng.random_bool(0.85) { right } else { pick(rng, VALUES) }
}

/// A command for a run and data.
fn of_run(rng: &mut ChaCha8Rng, command: &[&str]) -> Vec<String> {
    let mut arguments = words(command);
    arguments.extend(words(&["--run", mostly(rng, RUNS)]));
    let data = if rng.random_bool(0.6) { "../photos" } else { mostly(rng, DATA) };
    if rng.random_bool(0.8) {
        arguments.extend(words(&["--data", data]));
    }
    arguments
}

fn eval(rng: &mut ChaCha8Rng) -> Vec<String> {
    let method = pick(rng, &["knn", "linear", "finetune", "cluster", "retrieval"]);
    let mut arguments = of_run(rng, &["eval", method]);
    some(rng, &mut arguments, 0.2, "--seed", VALUES);
    some(rng, &mut arguments, 0.2, "--bootstrap", VALUES);
    some(rng, &mut arguments, 0.2, "--name", &["mine", "", "..", "a/b", "../out", "name\nbroken", "é"]);
    if method == "linear" || method == "finetune" {
        some(rng, &mut arguments, 0.4, "--labels", &["0.5", "1", "0", "2", "0.1,1", "nan", ""]);
    }
    let own: &[&str] = match method {
        "linear" => &["--protocol", "--epochs", "--lr", "--batch-size"],
        "finetune" => &["--epochs", "--classifier-lr", "--lr", "--batch-size"],
        "knn" => &["--k", "--temperature"],
        "retrieval" => &["--k"],
        _ => &["--split"],
    };
    for option in own {
        let value = match *option {
            "--protocol" => mostly(rng, &["probe", "reference", "x"]),
            "--split" => mostly(rng, &["all", "test", "x"]),
            "--lr" | "--classifier-lr" | "--temperature" => number(rng, "0.1"),
            _ => number(rng, "2"),
        };
        if rng.random_bool(0.4) {
            arguments.extend(words(&[option, value]));
        }
    }
    if rng.random_bool(0.2) {
        arguments.push("--baselines".to_owned());
    }
    arguments
}

fn cluster(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut arguments = of_run(rng, &["cluster"]);
    arguments.extend(words(&["--out", mostly(rng, FOLDERS)]));
    some(rng, &mut arguments, 0.3, "--sheets", VALUES);
    some(rng, &mut arguments, 0.3, "--images", VALUES);
    if rng.random_bool(0.5) {
        arguments.push("--links".to_owned());
    }
    arguments
}

fn search(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut arguments = of_run(rng, &["search"]);
    some(
        rng,
        &mut arguments,
        0.6,
        "--query",
        &["../photos/a/00.png", "../bad/a.png", "/dev/zero", "..", "nowhere", ""],
    );
    some(rng, &mut arguments, 0.4, "--duplicates", &["0.9", "2", "nan", "-1", "x"]);
    some(rng, &mut arguments, 0.4, "--sheet", OUTS);
    some(rng, &mut arguments, 0.3, "--k", VALUES);
    arguments
}

fn report(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut arguments = of_run(rng, &["report"]);
    some(
        rng,
        &mut arguments,
        0.5,
        "--out",
        &["out.html", "/dev/full", "/proc/x.html", "there.npy", "no/such.html", ".."],
    );
    some(rng, &mut arguments, 0.3, "--images", VALUES);
    some(rng, &mut arguments, 0.3, "--points", VALUES);
    if rng.random_bool(0.2) {
        arguments.push("--no-pictures".to_owned());
    }
    arguments
}

fn import(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut arguments = words(&["import", mostly(rng, WEIGHTS)]);
    arguments.extend(words(&["--out", mostly(rng, FOLDERS)]));
    some(rng, &mut arguments, 0.2, "--prefix", &["module.", "", "x"]);
    some(rng, &mut arguments, 0.3, "--resize", VALUES);
    some(rng, &mut arguments, 0.3, "--size", VALUES);
    some(rng, &mut arguments, 0.2, "--mean", &["0.5,0.5,0.5", "0,0", "nan,0,0", "x", "1e30,0,0"]);
    some(rng, &mut arguments, 0.2, "--std", &["0.5,0.5,0.5", "0,0,0", "-1,1,1", "inf,1,1"]);
    arguments
}

fn export(rng: &mut ChaCha8Rng) -> Vec<String> {
    let outs = [&["out.safetensors", "out.pth", "out.onnx", "out.onnx", "out.md", "out"], OUTS].concat();
    let mut arguments = words(&["export", "--run", mostly(rng, RUNS), "--out", mostly(rng, &outs)]);
    some(rng, &mut arguments, 0.4, "--format", &["onnx", "pth", "safetensors", "x"]);
    some(rng, &mut arguments, 0.4, "--part", &["backbone", "head", "prototypes", "x"]);
    some(rng, &mut arguments, 0.2, "--license", &["mit", "", "a\nb", "\""]);
    for option in ["--fold-batch-norm", "--byte-images", "--force"] {
        if rng.random_bool(0.2) {
            arguments.push(option.to_owned());
        }
    }
    arguments
}

fn doctor(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut arguments = words(&["doctor"]);
    some(rng, &mut arguments, 0.3, "--run", RUNS);
    some(rng, &mut arguments, 0.7, "--data", DATA);
    some(rng, &mut arguments, 0.5, "--config", &["../tiny.toml", "../file.txt", "photos", "nothing"]);
    some(rng, &mut arguments, 0.3, "--write", &["out.toml", "there.npy", "/dev/full", "no/such.toml"]);
    some(rng, &mut arguments, 0.3, "--images", VALUES);
    if rng.random_bool(0.3) {
        arguments.push("--no-trial".to_owned());
    }
    arguments
}

fn pick<'a>(rng: &mut ChaCha8Rng, from: &[&'a str]) -> &'a str {
    from.choose(rng).unwrap()
}

/// The first, mostly.
fn mostly<'a>(rng: &mut ChaCha8Rng, from: &[&'a str]) -> &'a str {
    if rng.random_bool(0.8) { from[0] } else { pick(rng, from) }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn pretrain(rng: &mut ChaCha8Rng) -> Vec<String> {
    let data = if rng.random_bool(0.7) { "../photos" } else { mostly(rng, DATA) };
    let mut arguments = words(&["pretrain"]);
    if rng.random_bool(0.3) {
        arguments.extend(words(&["--resume", "--run", mostly(rng, RUNS)]));
        return arguments;
    }
    let config = if rng.random_bool(0.8) {
        "../tiny.toml"
    } else {
        pick(rng, &["../file.txt", "nothing", "..", "photos"])
    };
    arguments.extend(words(&["--config", config, "--data", data]));
    if rng.random_bool(0.5) {
        let run = if rng.random_bool(0.7) { "new" } else { pick(rng, RUNS) };
        arguments.extend(words(&["--run", run]));
    }
    if rng.random_bool(0.5) {
        arguments.push("--no-evaluation".to_owned());
    }
    arguments
}

fn embed(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut arguments = words(&[
        "embed",
        "--run",
        mostly(rng, RUNS),
        "--data",
        mostly(rng, DATA),
        "--out",
        mostly(rng, OUTS),
    ]);
    some(
        rng,
        &mut arguments,
        0.3,
        "--layer",
        &["features", "layer1", "layer9", "embedding", "codes", "x", "layer0"],
    );
    for (option, probability) in [("--force", 0.3), ("--codes", 0.2), ("--embedding", 0.1)] {
        if rng.random_bool(probability) {
            arguments.push(option.to_owned());
        }
    }
    arguments
}

fn augment(rng: &mut ChaCha8Rng) -> Vec<String> {
    let images = if rng.random_bool(0.6) { "2" } else { pick(rng, VALUES) };
    let mut arguments = words(&["augment", "--data", mostly(rng, DATA), "--out", mostly(rng, OUTS)]);
    arguments.extend(words(&["--images", images]));
    if rng.random_bool(0.2) {
        arguments.extend(words(&["--recipe", pick(rng, &["../file.txt", "../tiny.toml", "nothing"])]));
    }
    arguments
}

/// A change of the configuration: of a key that there is, mostly, to any value.
fn setting(rng: &mut ChaCha8Rng, keys: &[String]) -> String {
    let key = match rng.random_range(0..8) {
        0 => pick(
            rng,
            &["", "x", "training", "epochs", "training..epochs", "a.b.c", "encoder.head.mlp.hidden"],
        )
        .to_owned(),
        _ => keys.choose(rng).unwrap().clone(),
    };
    match rng.random_range(0..12) {
        0 => key,
        _ => format!("{key}={}", pick(rng, VALUES)),
    }
}

/// Something that does not belong there, or does.
fn spoilt(rng: &mut ChaCha8Rng) -> Vec<String> {
    match rng.random_range(0..6) {
        0 => words(&[pick(rng, VALUES)]),
        1 => words(&["--k", pick(rng, VALUES)]),
        2 => words(&["--device", pick(rng, VALUES)]),
        3 => words(&["--quiet"]),
        4 => words(&["--split", pick(rng, &["train", "test", "val", "all", "", "x"])]),
        _ => words(&[pick(rng, &["--help", "--force", "--resume", "--reestimate-bn", "--nothing", "--"])]),
    }
}

/// The keys of a configuration.
pub fn keys() -> Vec<String> {
    fn flatten(prefix: &str, table: &toml::Table, keys: &mut Vec<String>) {
        for (key, value) in table {
            match value.as_table() {
                Some(table) => flatten(&format!("{prefix}{key}."), table, keys),
                None => keys.push(format!("{prefix}{key}")),
            }
        }
    }
    let mut keys = Vec::new();
    flatten("", &toml::Table::try_from(swav_train::TrainConfig::default()).unwrap(), &mut keys);
    keys
}
