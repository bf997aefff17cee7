//! A campaign against the command line: every command, made at random of right and wrong parts, with closed pipes, full disks,
//! limits on the size of files, folders that cannot be written, and signals at random moments. Whatever the user types, the program neither panics nor
//! aborts nor hangs, says what is wrong, ends with a status of its rule, and leaves no half-made file.
//!
//! Case `n` of a seed is always the same command. `SWAV_CAMPAIGN=SEED:FIRST:COUNT` runs chosen ones:
//!
//! ```sh
//! cargo test -p swav-cli --test campaign -- --ignored --nocapture   # 500 cases
//! SWAV_CAMPAIGN=1:137:1 cargo test -p swav-cli --test campaign -- --ignored --nocapture
//! ```
#![cfg(target_os = "linux")]

mod commands;
mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use commands::{Case, Sink, keys};
use place::Place;

/// A command is asked to stop by SIGTERM after this time, whatever it was sent before (who starts the tests may have made it
/// ignore the other signals, as nohup does), and has failed after the other.
const PATIENCE: Duration = Duration::from_secs(4);
const LIMIT: Duration = Duration::from_secs(90);

/// All files and folders below one.
fn walk(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_folder = |path: &Path| path.is_dir() && !path.is_symlink();
    let below = |path: PathBuf| if is_folder(&path) { walk(&path) } else { BTreeSet::new() };
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

/// The program, with its files kept small by the shell if the case wants that. The signal that tells of it is one that programs
/// ignore where a shell has ignored it; they then get an error as from a full disk.
fn program(case: &Case) -> Command {
    let swav = env!("CARGO_BIN_EXE_swav");
    let Some(blocks) = case.file_blocks else { return Command::new(swav) };
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""), swav]);
    shell
}

/// Runs a case: how it ended, or what is wrong with how it went.
fn run(place: &Place, case: &Case) -> Result<String, String> {
    let work = place.work();
    let before = walk(place.0.path());
    let mut child = program(case)
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
    files_are_right(&before, &walk(place.0.path()), work.path(), case, status)
        .map_err(|what| format!("{what}: {told}"))?;
    Ok(status.to_string())
}

/// What a case has left on the disk, or what is wrong with it.
fn files_are_right(
    before: &BTreeSet<PathBuf>,
    after: &BTreeSet<PathBuf>,
    work: &Path,
    case: &Case,
    status: ExitStatus,
) -> Result<(), String> {
    let check = |fine: bool, what: &str| if fine { Ok(()) } else { Err(what.to_owned()) };
    for name in ["there.npy", "there.png"] {
        let mine = fs::read(work.join(name)).unwrap() == b"mine";
        check(
            mine || case.arguments.iter().any(|argument| argument == "--force"),
            "a file was replaced unasked",
        )?;
    }
    let gone: Vec<&PathBuf> = before.difference(after).collect();
    check(gone.iter().all(|path| path.starts_with(work.join("run"))), &format!("{gone:?} are gone"))?;
    let made: Vec<PathBuf> = after.difference(before).cloned().collect();
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
    Ok(())
}

fn campaign(seed: u64, numbers: std::ops::Range<u64>) {
    let (place, keys) = (Place::new(), keys());
    let (mut failed, mut ends) = (Vec::new(), BTreeMap::<String, usize>::new());
    let begun = Instant::now();
    for number in numbers.clone() {
        let case = Case::new(seed, number, &keys);
        match run(&place, &case) {
            Ok(end) => *ends.entry(end).or_default() += 1,
            Err(what) => {
                println!("case {number}: {case:?}\n{what}\n");
                failed.push(number);
            }
        }
    }
    println!(
        "{} cases of seed {seed} in {:.0} s: {ends:?}",
        numbers.end - numbers.start,
        begun.elapsed().as_secs_f64()
    );
    assert!(failed.is_empty(), "seed {seed}, cases {failed:?}");
}

#[test]
fn no_command_panics_hangs_or_leaves_rubbish() {
    campaign(7, 0..24);
}

#[test]
#[ignore = "five hundred cases; the command is in the documentation"]
fn five_hundred_commands() {
    let chosen = std::env::var("SWAV_CAMPAIGN").unwrap_or_else(|_| "1:0:500".to_owned());
    let numbers: Vec<u64> = chosen.split(':').map(|number| number.parse().unwrap()).collect();
    campaign(numbers[0], numbers[1]..numbers[1] + numbers[2]);
}
