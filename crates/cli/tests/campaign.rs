//! A campaign against the command line: commands made at random of right and wrong parts, with closed pipes, full disks,
//! folders that cannot be written, and signals at random moments. Whatever the user types, the program neither panics nor
//! aborts nor hangs, says what is wrong, ends with a status of its rule, and leaves no half-made file.
//!
//! Case `n` of a seed is always the same command. `SWAV_CAMPAIGN=SEED:FIRST:COUNT` runs chosen ones:
//!
//! ```sh
//! cargo test -p swav-cli --test campaign -- --ignored --nocapture   # 500 cases
//! SWAV_CAMPAIGN=1:137:1 cargo test -p swav-cli --test campaign -- --ignored --nocapture
//! ```
#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

/// A command is asked to stop by SIGTERM after this time, whatever it was sent before (who starts the tests may have made it
/// ignore the other signals, as nohup does), and has failed after the other.
const PATIENCE: Duration = Duration::from_secs(4);
const LIMIT: Duration = Duration::from_secs(90);

const TINY: &str = r#"
[training]
epochs = 1
batch_size = 8
threads = 1
[loader]
n_workers = 1
[augment]
crops = [{ size = 8, n_crops = 2, min_scale = 0.3, max_scale = 1.0 }]
[encoder]
arch = { custom = { block = "basic", layers = [1] } }
width = 4
stem = "cifar"
head = "linear"
dim = 4
[prototypes]
n_prototypes = [4]
[optimizer]
base_lr = 0.1
warmup_epochs = 0
[reestimation]
resize = 8
size = 8
"#;

const VALUES: &[&str] = &[
    "0",
    "1",
    "2",
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
];
const RUNS: &[&str] =
    &["run", "run", "new", "new/inner", "../photos", "../file.txt", "nowhere", "/proc/run", "", "."];

/// Where standard output or standard error goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sink {
    Read,
    OneLine,
    Closed,
    Full,
}

#[derive(Debug)]
struct Case {
    arguments: Vec<String>,
    out: Sink,
    error: Sink,
    signal: Option<(&'static str, Duration)>,
}

impl Case {
    /// `wide` has commands that the short campaign leaves out.
    fn new(seed: u64, number: u64, keys: &[String], wide: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number);
        let rng = &mut rng;
        let mut arguments: Vec<String> = match rng.random_range(0..if wide { 14 } else { 10 }) {
            0..4 => pretrain(rng),
            4 => embed(rng),
            5 => words(&["eval", "knn", "--run", pick(rng, RUNS)]),
            6 => words(&["data", "check", pick(rng, DATA)]),
            7 => augment(rng),
            8 => words(&["embed", "--run", "run", "--data", "../photos", "--out", "out.npy"]),
            _ => words(&[pick(
                rng,
                &["pretrain", "gpu", "embed", "nonsense", "data", "eval", "--version", "help"],
            )]),
        };
        if ["pretrain", "embed", "eval"].contains(&arguments[0].as_str()) {
            for _ in 0..rng.random_range(0..3) {
                arguments.extend(["--set".to_owned(), setting(rng, keys)]);
            }
        }
        for _ in 0..rng.random_range(0..2) {
            arguments.extend(spoilt(rng));
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
        Self { arguments, out, error, signal }
    }
}

fn pick<'a>(rng: &mut ChaCha8Rng, from: &[&'a str]) -> &'a str {
    from.choose(rng).unwrap()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn pretrain(rng: &mut ChaCha8Rng) -> Vec<String> {
    let data = if rng.random_bool(0.7) { "../photos" } else { pick(rng, DATA) };
    let mut arguments = words(&["pretrain"]);
    if rng.random_bool(0.3) {
        arguments.extend(words(&["--resume", "--run", pick(rng, RUNS)]));
        return arguments;
    }
    let config = if rng.random_bool(0.8) {
        "../tiny.toml"
    } else {
        pick(rng, &["../file.txt", "nothing", "..", "photos"])
    };
    arguments.extend(words(&["--config", config, "--data", data]));
    if rng.random_bool(0.5) {
        arguments.extend(words(&["--run", pick(rng, RUNS)]));
    }
    if rng.random_bool(0.5) {
        arguments.push("--no-evaluation".to_owned());
    }
    arguments
}

fn embed(rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut arguments =
        words(&["embed", "--run", pick(rng, RUNS), "--data", pick(rng, DATA), "--out", pick(rng, OUTS)]);
    if rng.random_bool(0.3) {
        arguments.push("--force".to_owned());
    }
    arguments
}

fn augment(rng: &mut ChaCha8Rng) -> Vec<String> {
    let images = if rng.random_bool(0.6) { "2" } else { pick(rng, VALUES) };
    let mut arguments = words(&["augment", "--data", pick(rng, DATA), "--out", pick(rng, OUTS)]);
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
fn keys() -> Vec<String> {
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

/// What the cases read: photos and a trained run, and what only looks like them. Each case works in a folder of its own below.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        let root = place.0.path();
        fs::write(root.join("tiny.toml"), TINY).unwrap();
        fs::write(root.join("file.txt"), "neither = images\n[nor").unwrap();
        fs::write(root.join("list.txt"), "photos/a/00.png\tx\nphotos/none.png\t\n../../etc/passwd\n")
            .unwrap();
        fs::create_dir(root.join("empty")).unwrap();
        fs::create_dir(root.join("bad")).unwrap();
        fs::write(root.join("bad/a.png"), b"\x89PNG\r\n\x1a\nno more").unwrap();
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        for number in 0..16u8 {
            let folders = [["photos", "a"], ["photos", "b"], ["odd\nname", "c\td"]];
            for [data, class] in &folders[if number % 2 == 0 { 0..1 } else { 1..3 }] {
                let folder = root.join(data).join(class);
                fs::create_dir_all(&folder).unwrap();
                let image =
                    RgbImage::from_fn(12, 10, |x, y| Rgb([number * 16, (x * 20) as u8, (y * 20) as u8]));
                image.save(folder.join(format!("{number:02}.png"))).unwrap();
            }
        }
        let trained = Command::new(env!("CARGO_BIN_EXE_swav"))
            .args([
                "pretrain",
                "--config",
                "tiny.toml",
                "--data",
                "photos",
                "--run",
                "run",
                "--no-evaluation",
            ])
            .current_dir(root)
            .output()
            .unwrap();
        assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
        place
    }

    /// A working directory with a run and files that are there already.
    fn work(&self) -> TempDir {
        let work = TempDir::new_in(self.0.path()).unwrap();
        copy(&self.0.path().join("run"), &work.path().join("run"));
        for name in ["there.npy", "there.png"] {
            fs::write(work.path().join(name), "mine").unwrap();
        }
        work
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}

/// All files and folders below one.
fn walk(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { walk(&path) } else { BTreeSet::new() };
    entries.flat_map(|path| std::iter::once(path.clone()).chain(below(path))).collect()
}

fn open(sink: Sink) -> Stdio {
    match sink {
        Sink::Full => OpenOptions::new().write(true).open("/dev/full").unwrap().into(),
        _ => Stdio::piped(),
    }
}

/// Reads as much of a pipe as the sink takes.
fn read(sink: Sink, pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let Some(pipe) = pipe.filter(|_| sink != Sink::Closed) else { return String::new() };
        let (mut reader, mut bytes) = (BufReader::new(pipe), Vec::new());
        match sink {
            Sink::OneLine => drop(reader.read_until(b'\n', &mut bytes)),
            _ => drop(reader.read_to_end(&mut bytes)),
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn send(signal: &str, child: &Child) {
    let id = child.id().to_string();
    // The child may have ended.
    Command::new("kill").args(["-s", signal, &id]).stderr(Stdio::null()).status().unwrap();
}

/// Runs a case: how it ended, or what is wrong with how it went.
fn run(place: &Place, case: &Case) -> Result<String, String> {
    let work = place.work();
    let before = walk(place.0.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_swav"))
        .args(&case.arguments)
        .current_dir(work.path())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(open(case.out))
        .stderr(open(case.error))
        .spawn()
        .unwrap();
    let out = read(case.out, child.stdout.take());
    let error = read(case.error, child.stderr.take());
    let begun = Instant::now();
    let mut signal = case.signal.unwrap_or(("TERM", PATIENCE));
    let mut sent = false;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("it was still there after {LIMIT:?}"));
        }
        if begun.elapsed() > signal.1 {
            if sent {
                signal.0 = "TERM";
            }
            send(signal.0, &child);
            signal.1 = if begun.elapsed() > PATIENCE { LIMIT } else { PATIENCE };
            sent = true;
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    let (out, error) = (out.join().unwrap(), error.join().unwrap());
    let told = format!("{status}\n--- stdout\n{out}\n--- stderr\n{error}");
    let check = |fine: bool, what: &str| if fine { Ok(()) } else { Err(format!("{what}: {told}")) };
    check(!out.contains("panicked") && !error.contains("panicked"), "it panicked")?;
    let number = match signal.0 {
        "INT" => 2,
        "HUP" => 1,
        _ => 15,
    };
    match (status.code(), status.signal()) {
        (Some(0..=2), _) => {}
        (code, ended_by) => {
            let by_signal = code == Some(128 + number) || ended_by == Some(number);
            check(sent && by_signal, "it ended in another way than it should")?;
        }
    }
    if matches!(status.code(), Some(1 | 2)) && case.error == Sink::Read {
        check(error.contains("error: ") || error.contains("Usage"), "it failed without a word")?;
    }
    for line in error.lines() {
        check(line.matches("os error").count() <= 1, "a cause is told twice")?;
    }
    for name in ["there.npy", "there.png"] {
        let mine = fs::read(work.path().join(name)).unwrap() == b"mine";
        check(
            mine || case.arguments.iter().any(|argument| argument == "--force"),
            "a file was replaced unasked",
        )?;
    }
    let made: Vec<PathBuf> = walk(place.0.path()).difference(&before).cloned().collect();
    let list = format!("{made:?}");
    check(
        !made.iter().any(|path| path.extension().is_some_and(|e| e == "tmp")),
        &format!("half-made files {list}"),
    )?;
    let is_failure = matches!(status.code(), Some(1 | 2)) && case.out != Sink::Full;
    for path in made.iter().filter(|_| is_failure) {
        // A training that failed on its way may leave its run, which can be resumed.
        let in_run =
            path.ancestors().any(|at| at.join("config.toml").is_file() && at.join("checkpoints").is_dir());
        let of_run = made.iter().any(|other| other.starts_with(path) && other.ends_with("config.toml"));
        check(in_run || of_run, &format!("a failure left files {list}"))?;
    }
    Ok(status.to_string())
}

fn campaign(seed: u64, numbers: std::ops::Range<u64>, wide: bool) {
    let (place, keys) = (Place::new(), keys());
    let (mut failed, mut ends) = (Vec::new(), BTreeMap::<String, usize>::new());
    let begun = Instant::now();
    for number in numbers.clone() {
        let case = Case::new(seed, number, &keys, wide);
        match run(&place, &case) {
            Ok(end) => *ends.entry(end).or_default() += 1,
            Err(what) => {
                println!("case {number}: {case:?}\n{what}\n");
                failed.push(number);
            }
        }
    }
    println!(
        "{} cases of seed {seed} in {:.0} s",
        numbers.end - numbers.start,
        begun.elapsed().as_secs_f64()
    );
    assert!(failed.is_empty(), "seed {seed}, cases {failed:?}");
}

#[test]
fn no_command_panics_hangs_or_leaves_rubbish() {
    campaign(7, 0..24, false);
}

#[test]
#[ignore = "five hundred cases; the command is in the documentation"]
fn five_hundred_commands() {
    let chosen = std::env::var("SWAV_CAMPAIGN").unwrap_or_else(|_| "1:0:500".to_owned());
    let numbers: Vec<u64> = chosen.split(':').map(|number| number.parse().unwrap()).collect();
    campaign(numbers[0], numbers[1]..numbers[1] + numbers[2], true);
}
