//! The commands as a user meets them: what they print, what they leave behind, and how they end on bad input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};
use tempfile::TempDir;

/// A network that trains in a second.
const TINY: &str = r#"
[training]
epochs = 2
batch_size = 8
[augment]
crops = [
    { size = 16, n_crops = 2, min_scale = 0.3, max_scale = 1.0 },
    { size = 8, n_crops = 1, min_scale = 0.1, max_scale = 0.3 },
]
[encoder]
arch = { custom = { block = "basic", layers = [1, 1] } }
width = 8
stem = "cifar"
head = { mlp = { hidden = 16 } }
dim = 8
[prototypes]
n_prototypes = [6]
[optimizer]
base_lr = 0.1
warmup_epochs = 0
[reestimation]
batch_norm = true
resize = 16
size = 16
"#;

/// A folder with the configuration and images, which is the working directory of every command.
struct Place(TempDir);

impl Place {
    /// 24 images of stripes in the given folders below `photos`, by turns.
    fn new(folders: &[&str]) -> Self {
        let place = Self(TempDir::new().unwrap());
        std::fs::write(place.path("tiny.toml"), TINY).unwrap();
        for number in 0..24u32 {
            let folder = place.path("photos").join(folders[number as usize % folders.len()]);
            std::fs::create_dir_all(&folder).unwrap();
            let period = 2 + number % folders.len() as u32 * 3;
            let stripes = RgbImage::from_fn(20, 18, |x, y| {
                Rgb([if (x + number) % period == 0 { 220 } else { 40 }, y as u8, 90])
            });
            stripes.save(folder.join(format!("{number:02}.png"))).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn swav(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_swav"))
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    }

    /// Runs a command that has to succeed and gives its standard output.
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.swav(arguments);
        let errors = text(&output.stderr);
        assert!(output.status.success(), "{arguments:?} ended with {}:\n{errors}", output.status);
        text(&output.stdout)
    }

    /// Runs a command that has to end with this status and an error that holds all of these words.
    fn fail(&self, status: i32, words: &[&str], arguments: &[&str]) {
        let output = self.swav(arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}:\n{errors}");
        assert!(errors.contains("error: "), "{arguments:?}:\n{errors}");
        assert!(!errors.contains("panicked"), "{arguments:?}:\n{errors}");
        for word in words {
            assert!(errors.contains(word), "{arguments:?}: expected `{word}` in:\n{errors}");
        }
    }

    fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    /// Trains the tiny network on the images, in the folder `run`.
    fn train(&self) -> String {
        self.succeed(&["pretrain", "--config", "tiny.toml", "--data", "photos", "--run", "run"])
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn newest_checkpoint(run: &Path) -> PathBuf {
    let entries = std::fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("step-")).max().unwrap()
}

fn last_line_json(output: &str) -> serde_json::Value {
    serde_json::from_str(output.lines().last().unwrap()).unwrap()
}

#[test]
fn pretraining_on_classes_ends_with_three_accuracies_and_can_be_judged_and_used() {
    let place = Place::new(&["narrow", "wide"]);
    let output = place.train();
    for subject in ["trained network", "untrained network", "raw pixels", "k 20, temperature 0.07"] {
        assert!(output.contains(subject), "{output}");
    }
    let record = place.json("run/evaluations/knn.json");
    let first = &record["results"][0];
    assert_eq!((&first["of"], &first["n"]), (&"trained network".into(), &24.into()));
    let [low, trained, high] = ["low", "value", "high"].map(|key| first[key].as_f64().unwrap());
    assert!(0.0 <= low && low <= trained && trained <= high && high <= 1.0);

    // The same network from its weights, on the same images, is as good; baselines are known already.
    let output = place.succeed(&["eval", "knn", "--run", "run", "--baselines"]);
    let judged = last_line_json(&output);
    assert_eq!(judged["results"][0], record["results"][0]);
    assert_eq!(judged["results"].as_array().unwrap().len(), 3);
    let other = last_line_json(&place.succeed(&["eval", "knn", "--run", "run", "--k", "1", "--name", "one"]));
    assert_eq!((&other["settings"]["k"], other["results"].as_array().unwrap().len()), (&1.into(), 1));
    assert_eq!(place.json("run/evaluations/one.json")["settings"]["k"], 1);
    assert_eq!(place.json("run/evaluations/knn.json")["settings"]["k"], 20);

    let output = place.succeed(&["embed", "--run", "run", "--data", "photos", "--out", "f.npy"]);
    assert!(output.contains("24 x 16 float32"), "{output}");
    assert_eq!(std::fs::metadata(place.path("f.npy")).unwrap().len(), 128 + 24 * 16 * 4);
    let names = std::fs::read_to_string(place.path("f.txt")).unwrap();
    assert!(names.lines().count() == 24 && names.contains("00.png\tnarrow"), "{names}");
}

#[test]
fn every_method_prints_a_table_and_keeps_a_record() {
    let place = Place::new(&["narrow", "wide"]);
    place.train();
    let judge = |arguments: &[&str], kind: &str, columns: &[&str]| {
        let mut all = vec!["eval", arguments[0], "--run", "run", "--bootstrap", "50"];
        all.extend(&arguments[1..]);
        let output = place.succeed(&all);
        let record = last_line_json(&output);
        assert_eq!(record["evaluation"], kind, "{output}");
        for column in columns {
            assert!(output.contains(column), "{column} in {output}");
            let found = record["results"].as_array().unwrap().iter().any(|result| result["name"] == *column);
            assert!(found, "{column} in {record}");
        }
        record
    };
    let record = judge(&["linear", "--baselines"], "linear", &["accuracy"]);
    assert!(!record.to_string().contains("top5"), "of two classes, five are always right: {record}");
    let short = ["linear", "--protocol", "reference", "--epochs", "2", "--batch-size", "8"];
    judge(&short, "linear", &["accuracy"]);
    let half = ["finetune", "--labels", "0.5,1", "--epochs", "2", "--batch-size", "8", "--lr", "0.001"];
    judge(&half, "finetune", &["accuracy, 50 % of labels", "accuracy, all labels"]);
    judge(&["retrieval", "--k", "1,3"], "retrieval", &["recall@1", "recall@3", "map@r"]);
    let record = judge(&["cluster"], "cluster", &["nmi", "ari", "purity", "matched_accuracy", "confidence"]);
    assert_eq!(record["settings"]["n_prototypes"], 6);
    for name in ["knn", "linear", "linear-reference", "finetune", "retrieval", "cluster"] {
        assert!(place.path(&format!("run/evaluations/{name}.json")).exists(), "{name}");
    }
    place.fail(2, &["--labels"], &["eval", "finetune", "--run", "run", "--labels", "0"]);
    place.fail(2, &["epochs"], &["eval", "linear", "--run", "run", "--epochs", "0"]);
    place.fail(2, &["--name"], &["eval", "cluster", "--run", "run", "--name", "a/b"]);
    place.fail(1, &["50 neighbours", "23 images"], &["eval", "knn", "--run", "run", "--k", "50"]);
}

#[test]
fn images_are_sorted_searched_and_embedded_without_labels() {
    let place = Place::new(&[""]);
    place.train();
    let output =
        place.succeed(&["cluster", "--run", "run", "--data", "photos", "--out", "sorted", "--links"]);
    assert!(output.contains("24 images"), "{output}");
    let table = std::fs::read_to_string(place.path("sorted/clusters.csv")).unwrap();
    assert!(
        table.starts_with("image,prototype,confidence,label\n") && table.lines().count() == 25,
        "{table}"
    );
    let entries = std::fs::read_dir(place.path("sorted")).unwrap();
    let sheets =
        entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "png"));
    assert!(sheets.count() >= 1);
    let links = std::fs::read_dir(place.path("sorted/links")).unwrap();
    let of_folder = |folder: std::fs::DirEntry| std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(links.map(|folder| of_folder(folder.unwrap())).sum::<usize>(), 24);
    place.fail(1, &["not empty"], &["cluster", "--run", "run", "--out", "sorted"]);

    let query = ["search", "--run", "run", "--data", "photos", "--query", "photos/03.png", "--k", "3"];
    let output = place.succeed(&[&query[..], &["--sheet", "found.png"]].concat());
    assert!(output.lines().nth(1).unwrap().starts_with("photos/03.png,1,1.0000,"), "{output}");
    assert!(image::open(place.path("found.png")).unwrap().width() > 500);
    std::fs::copy(place.path("photos/05.png"), place.path("photos/copy.png")).unwrap();
    let output = place.succeed(&["search", "--run", "run", "--data", "photos", "--duplicates", "0.999"]);
    assert!(output.contains("05.png") && output.contains("copy.png"), "{output}");
    place.fail(2, &["--query"], &["search", "--run", "run"]);
    place.fail(1, &["none.png"], &["search", "--run", "run", "--query", "none.png"]);

    // The same photo has the same features in another folder.
    std::fs::create_dir(place.path("few")).unwrap();
    for name in ["02.png", "05.png"] {
        std::fs::copy(place.path("photos").join(name), place.path("few").join(name)).unwrap();
    }
    let row_of = |folder: &str, row: usize| {
        place.succeed(&[
            "embed", "--run", "run", "--data", folder, "--out", "f.npy", "--layer", "layer1", "--force",
        ]);
        let bytes = std::fs::read(place.path("f.npy")).unwrap();
        let values = bytes[128 + row * 8 * 4..].as_chunks::<4>().0.iter().map(|&v| f32::from_le_bytes(v));
        values.take(8).collect::<Vec<f32>>()
    };
    let (among_many, among_few) = (row_of("photos", 5), row_of("few", 1));
    let close = among_many.iter().zip(&among_few).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close, "{among_many:?} {among_few:?}");
    place.fail(2, &["--codes"], &["embed", "--run", "run", "--out", "f.npy", "--codes"]);
    place.fail(1, &["7"], &["embed", "--run", "run", "--out", "g.npy", "--layer", "layer7"]);
    assert!(!place.path("g.npy").exists());
}

#[test]
fn what_an_evaluation_lacks_is_said_before_training() {
    let place = Place::new(&["only"]);
    let arguments = ["pretrain", "--config", "tiny.toml", "--data", "photos", "--run", "run"];
    let output = place.swav(&arguments);
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let said = errors.find("there will be no accuracy").unwrap();
    assert!(said < errors.find("epoch").unwrap() && errors.contains("one class"), "{errors}");
    assert!(out.contains("spread") && !out.contains("k-NN"), "{out}");
    place.fail(1, &["one class"], &["eval", "linear", "--run", "run"]);
}

#[test]
fn training_is_evaluated_while_it_goes_on() {
    for folders in [&["narrow", "wide"][..], &[""][..]] {
        let place = Place::new(folders);
        let set = ["--set", "monitor.evaluate_images=24", "--set", "training.epochs=20"];
        let train =
            ["pretrain", "--config", "tiny.toml", "--data", "photos", "--run", "run", "--no-evaluation"];
        place.succeed(&[&train[..], &set].concat());
        let metrics = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let found: Vec<serde_json::Value> = lines.filter(|line| line["evaluation"].is_object()).collect();
        let name = if folders.len() == 2 { "knn_accuracy" } else { "assignment_stability" };
        let last = found.last().unwrap();
        let value = last["evaluation"][name].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&value) && last["step"].is_u64() && last["epoch"].is_u64(), "{last}");
    }
}

#[test]
fn images_without_labels_train_but_are_not_judged() {
    let place = Place::new(&[""]);
    let output = place.train();
    assert!(
        output.contains("no accuracy") && output.contains("spread") && output.contains("swav embed"),
        "{output}"
    );
    place.fail(1, &["no labels", "one folder per class"], &["eval", "knn", "--run", "run"]);
    let output = place.succeed(&["embed", "--run", "run", "--out", "f.npy", "--embedding"]);
    assert!(output.contains("24 x 8 float32"), "{output}");
}

#[test]
fn a_run_is_neither_overwritten_nor_resumed_by_accident() {
    let place = Place::new(&["a", "b"]);
    place.train();
    let again = ["pretrain", "--config", "tiny.toml", "--data", "photos", "--run", "run"];
    place.fail(1, &["already holds a run", "--resume"], &again);
    place.fail(2, &["--run"], &["pretrain", "--resume"]);
    place.fail(1, &["nowhere"], &["pretrain", "--run", "nowhere", "--resume"]);
    // Of another architecture: each difference is named.
    let set = ["pretrain", "--run", "run", "--resume", "--set", "encoder.width=16"];
    place.fail(1, &["encoder.width", "8", "16"], &set);
    // A finished run has nothing left to do, and says how to learn how good it is.
    let output = place.succeed(&["pretrain", "--run", "run", "--resume"]);
    assert!(output.contains("nothing to do") && output.contains("trained network"), "{output}");
}

#[test]
fn a_finished_run_can_be_lengthened_from_any_folder() {
    let place = Place::new(&["a", "b"]);
    place.train();
    let weights = || std::fs::read(place.path("run/weights.safetensors")).unwrap();
    let before = weights();
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    let elsewhere = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_swav"))
            .args(arguments)
            .current_dir(place.path("elsewhere"))
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    };
    let longer = ["pretrain", "--run", "../run", "--resume", "--no-evaluation", "--set", "training.epochs=3"];
    let output = elsewhere(&longer);
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{errors}");
    for words in [
        "training.epochs: 2 in the checkpoint, 3 from here on",
        "learning rate",
        "ends after step 9 instead of 6",
    ] {
        assert!(errors.contains(words), "{errors}");
    }
    assert!(weights() != before);
    // The new length is the run's from now on.
    let again = elsewhere(&["pretrain", "--run", "../run", "--resume"]);
    assert!(text(&again.stdout).contains("finished 3 epochs, 9 steps"), "{}", text(&again.stdout));
    let shorter = elsewhere(&["pretrain", "--run", "../run", "--resume", "--set", "training.epochs=2"]);
    assert!(!shorter.status.success() || text(&shorter.stdout).contains("finished"));
}

#[test]
fn two_runs_without_a_name_started_together_get_two_folders() {
    let place = Place::new(&["a", "b"]);
    let arguments = ["pretrain", "--config", "tiny.toml", "--data", "photos", "--no-evaluation", "--quiet"];
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swav"));
        command.args(arguments).current_dir(place.0.path()).spawn().unwrap()
    };
    let children = [start(), start()];
    children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    for number in 1..=2 {
        assert!(place.path(&format!("runs/tiny-{number}/weights.safetensors")).exists());
    }
}

#[test]
fn a_folder_of_photos_is_no_run() {
    let place = Place::new(&["a", "b"]);
    let count = || walk(&place.path("photos")).len();
    let before = count();
    let run = ["pretrain", "--config", "tiny.toml", "--data", "photos", "--run", "photos"];
    place.fail(1, &["photos", "holds no run", "`a`"], &run);
    place.fail(1, &["photos", "not the folder of a run"], &["pretrain", "--run", "photos", "--resume"]);
    place.fail(
        1,
        &["tiny.toml"],
        &["pretrain", "--config", "tiny.toml", "--data", "photos", "--run", "tiny.toml"],
    );
    assert_eq!(count(), before);
    // A start that failed is none, either.
    let failing = ["pretrain", "--config", "tiny.toml", "--data", "photos", "--run", "new/run"];
    place.fail(1, &["training.batch_size"], &[&failing[..], &["--set", "training.batch_size=1000"]].concat());
    assert!(!place.path("new").exists());
}

/// All files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn what_is_there_is_replaced_on_request_only() {
    let place = Place::new(&["a", "b"]);
    place.train();
    std::fs::write(place.path("f.txt"), "mine").unwrap();
    let embed = ["embed", "--run", "run", "--data", "photos", "--out", "f.npy"];
    place.fail(1, &["f.txt", "--force"], &embed);
    assert_eq!(std::fs::read(place.path("f.txt")).unwrap(), b"mine");
    assert!(!place.path("f.npy").exists());
    place.succeed(&[&embed[..], &["--force"]].concat());
    assert!(std::fs::read_to_string(place.path("f.txt")).unwrap().contains("00.png"));
    std::fs::write(place.path("sheet.png"), "mine").unwrap();
    let augment = ["augment", "--data", "photos", "--images", "2"];
    place.fail(1, &["sheet.png", "--force"], &augment);
    place.succeed(&[&augment[..], &["--force"]].concat());
    assert!(std::fs::metadata(place.path("sheet.png")).unwrap().len() > 1000);
    // Told before any work: the run and the data of these do not exist.
    let nothing = ["embed", "--run", "nowhere", "--data", "nowhere", "--out"];
    for (out, words) in
        [("no/such/f.npy", "no such folder"), ("/proc/f.npy", "cannot write"), ("f.npy", "--force")]
    {
        place.fail(1, &[out, words], &[&nothing[..], &[out]].concat());
    }
    place.fail(2, &[".png"], &["augment", "--out", "sheet.gif"]);
    let left = walk(place.0.path()).into_iter().filter(|path| path.extension().is_some_and(|e| e == "tmp"));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<PathBuf>::new());
}

#[test]
fn sizes_without_measure_are_refused_with_what_they_need() {
    let place = Place::new(&["a", "b"]);
    let tiny = ["pretrain", "--config", "tiny.toml", "--data", "photos", "--set"];
    for (setting, status, words) in [
        ("queue.length=1000000000000", 2, "at most"),
        ("queue.length=4000000000", 1, "are available"),
        ("loader.queue_batches=1000000000", 2, "at most"),
        ("encoder.width=262144", 1, "encoder.width"),
        ("training.batch_size=999999999", 1, "training.batch_size"),
        ("training.threads=100000", 2, "training.threads"),
        ("loader.n_workers=100000", 2, "loader.n_workers"),
        ("training.epochs=4611686018427387904", 2, "training.epochs"),
        ("optimizer.final_lr=1e39", 2, "optimizer.final_lr"),
        ("optimizer.warmup_epochs=3", 2, "training.epochs = 2"),
    ] {
        let blame = if status == 2 { format!("--set {setting}") } else { String::new() };
        place.fail(status, &[words, &blame], &[&tiny[..], &[setting]].concat());
    }
    assert!(!place.path("runs").exists());
    let output = place.swav(&[&tiny[..], &["queue.length=16", "--no-evaluation"]].concat());
    let errors = text(&output.stderr);
    assert!(output.status.success() && errors.contains("memory   about"), "{errors}");
    assert!(
        errors.contains("the queue never takes part") && errors.contains("queue.start_epoch"),
        "{errors}"
    );
}

#[cfg(unix)]
#[test]
fn names_with_line_breaks_stay_in_their_line() {
    let place = Place::new(&["two\nlines", "plain"]);
    let output = place.succeed(&["data", "check", "photos"]);
    assert!(output.contains("two\\nlines"), "{output}");
    place.train();
    place.succeed(&["embed", "--run", "run", "--out", "f.npy"]);
    let names = std::fs::read_to_string(place.path("f.txt")).unwrap();
    assert_eq!(names.lines().count(), 24, "{names}");
}

#[test]
fn runs_without_a_name_get_a_number() {
    let place = Place::new(&["a", "b"]);
    for number in 1..=2 {
        place.succeed(&["pretrain", "--config", "tiny.toml", "--data", "photos", "--no-evaluation"]);
        assert!(place.path(&format!("runs/tiny-{number}/weights.safetensors")).exists());
    }
}

#[test]
fn missing_and_empty_folders_are_named() {
    let place = Place::new(&["a"]);
    std::fs::create_dir(place.path("empty")).unwrap();
    place.fail(
        1,
        &["no/such", "no such file or folder"],
        &["pretrain", "--config", "tiny.toml", "--data", "no/such"],
    );
    place.fail(1, &["empty", "no images"], &["pretrain", "--config", "tiny.toml", "--data", "empty"]);
    let few = ["pretrain", "--config", "tiny.toml", "--data", "photos", "--set", "training.batch_size=100"];
    place.fail(1, &["24 images", "100 of a batch"], &few);
    place.fail(1, &["nowhere", "no such folder"], &["eval", "knn", "--run", "nowhere"]);
    place.fail(1, &["photos", "not the folder of a run"], &["eval", "knn", "--run", "photos"]);
    assert!(!place.path("runs").exists(), "a run that could not start leaves nothing behind");
}

#[test]
fn misspelt_names_are_refused_and_explained() {
    let place = Place::new(&["a"]);
    let set =
        |setting| place.swav(&["pretrain", "--config", "tiny.toml", "--data", "photos", "--set", setting]);
    for (setting, word) in
        [("training.epoch=3", "epochs"), ("epochs", "key=value"), ("training.epochs=x", "epochs")]
    {
        let output = set(setting);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{setting}:\n{errors}");
        assert!(errors.contains(setting) && errors.contains(word), "{setting}:\n{errors}");
    }
    std::fs::write(place.path("wrong.toml"), TINY.replace("\nepochs", "\nepoch")).unwrap();
    place.fail(1, &["wrong.toml", "training.epoch", "epochs"], &["pretrain", "--config", "wrong.toml"]);
    place.fail(1, &["nothing.toml", "quickstart"], &["pretrain", "--config", "nothing.toml"]);
    place.fail(1, &["tpu"], &["pretrain", "--config", "tiny.toml", "--data", "photos", "--device", "tpu"]);
    place.fail(2, &["--dta"], &["pretrain", "--dta", "x"]);
    place.fail(2, &["--k"], &["eval", "knn", "--run", "x", "--k", "0"]);
    place.fail(2, &[".npy"], &["embed", "--run", "x", "--out", "features.csv"]);
}

#[test]
fn a_wrong_checkpoint_is_refused_and_a_damaged_one_passed_over() {
    let place = Place::new(&["a", "b"]);
    place.train();
    place.fail(
        1,
        &["conv1.weight", "architecture"],
        &["eval", "knn", "--run", "run", "--set", "encoder.width=16"],
    );

    let newest = newest_checkpoint(&place.path("run"));
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    let output = place.swav(&["eval", "knn", "--run", "run"]);
    let errors = text(&output.stderr);
    assert!(output.status.success() && errors.contains("the one before it is tried"), "{errors}");

    for entry in std::fs::read_dir(place.path("run/checkpoints")).unwrap() {
        std::fs::write(entry.unwrap().path(), b"not a checkpoint").unwrap();
    }
    place.fail(1, &["damaged"], &["eval", "knn", "--run", "run"]);
}

#[test]
fn every_command_says_alike_how_a_path_was_understood_and_takes_the_same_options() {
    let place = Place::new(&["narrow", "wide"]);
    std::fs::write(place.path("photos/narrow/IMG_1.HEIC"), "heic").unwrap();
    std::fs::write(
        place.path("photos/preview.png"),
        std::fs::read(place.path("photos/wide/01.png")).unwrap(),
    )
    .unwrap();
    let commands: [&[&str]; 4] = [
        &["pretrain", "--config", "tiny.toml", "--data", "photos", "--run", "run", "--no-evaluation"],
        &["embed", "--run", "run", "--data", "photos", "--out", "f.npy"],
        &["data", "check", "photos"],
        &["augment", "--data", "photos", "--out", "sheet.png"],
    ];
    let said = |arguments: &[&str]| {
        let output = place.swav(arguments);
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}:\n{all}");
        all
    };
    for arguments in commands {
        let all = said(arguments);
        for expected in [
            "24 images, 2 classes",
            "left aside: 1 HEIC file (narrow/IMG_1.HEIC): convert them to JPEG or PNG",
            "left aside: 1 image beside the folders of classes (preview.png)",
        ] {
            assert!(all.contains(expected), "{arguments:?}: expected `{expected}` in:\n{all}");
        }
    }
    std::fs::remove_dir_all(place.path("run")).unwrap();
    for arguments in commands {
        let _ = std::fs::remove_file(place.path("f.npy"));
        let _ = std::fs::remove_file(place.path("f.txt"));
        let _ = std::fs::remove_file(place.path("sheet.png"));
        let options = ["--format", "flat", "--orientation", "true", "--set", "data.holdout=0"];
        let all = said(&[arguments, &options].concat());
        assert!(all.contains("25 images, without labels"), "{arguments:?}: {all}");
    }
    place.fail(2, &["data."], &["data", "check", "photos", "--set", "training.epochs=3"]);
    place.fail(2, &["holdout"], &["augment", "--data", "photos", "--set", "data.holdot=3"]);
}

/// A report has what the run has, whether it is over, has lost its images, or never had any.
#[test]
fn a_run_is_shown_in_one_file_and_explained() {
    let place = Place::new(&["a", "b"]);
    let train = ["pretrain", "--config", "tiny.toml", "--data", "photos", "--run", "run", "--no-evaluation"];
    place.succeed(&train);
    std::fs::create_dir_all(place.path("run/evaluations")).unwrap();
    let record = r#"{"evaluation": "linear", "step": 6, "results": [{"name": "accuracy", "of": "trained network", "value": 0.5}]}"#;
    std::fs::write(place.path("run/evaluations/linear.json"), record).unwrap();
    let said = place.succeed(&["report", "--run", "run"]);
    assert!(said.contains("report.html"), "{said}");
    let html = || std::fs::read_to_string(place.path("run/report.html")).unwrap();
    for part in [
        "finished, 6 steps",
        "id=\"prototypes\"",
        "id=\"map-data\"",
        "id=\"crops\"",
        "linear",
        "50.0%",
        "n_prototypes",
    ] {
        assert!(html().contains(part), "no {part}");
    }
    assert!(!html().contains("http"), "the file asks for something from elsewhere");

    // The images have moved; the run goes on and has half a line.
    std::fs::rename(place.path("photos"), place.path("moved")).unwrap();
    std::fs::remove_file(place.path("run/weights.safetensors")).unwrap();
    let lines = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    std::fs::write(place.path("run/metrics.jsonl"), &lines[..lines.len() - 40]).unwrap();
    place.succeed(&["report", "--run", "run"]);
    assert!(
        html().contains("There are no pictures")
            && html().contains("step 5 of 6")
            && html().contains("id=\"curves\"")
    );
    place.succeed(&["report", "--run", "run", "--data", "moved", "--out", "other.html"]);
    assert!(std::fs::read_to_string(place.path("other.html")).unwrap().contains("id=\"map-data\""));
    place.fail(1, &["nowhere"], &["report", "--run", "run", "--data", "nowhere", "--out", "third.html"]);
    assert!(!place.path("third.html").exists());

    let said = place.succeed(&["doctor", "--run", "run"]);
    assert!(said.contains("not finished") && said.contains("5 of 6") && said.contains("linear"), "{said}");
}

/// What doctor writes is what augment shows and what trains.
#[test]
fn doctor_writes_a_recipe_that_trains() {
    let place = Place::new(&["a"]);
    let said = place.succeed(&["doctor", "--data", "photos", "--no-trial", "--write", "recipe.toml"]);
    assert!(said.contains("24, shorter side 18 pixels") && said.contains("sinkhorn.epsilon"), "{said}");
    place.fail(1, &["exists already"], &["doctor", "--data", "photos", "--write", "recipe.toml"]);
    place.succeed(&["augment", "--config", "recipe.toml", "--images", "2", "--out", "sheet.png"]);
    let short = ["--set", "training.epochs=1", "--set", "encoder.width=8", "--no-evaluation"];
    place.succeed(&[&["pretrain", "--config", "recipe.toml", "--run", "run", "--set", "optimizer.warmup_epochs=0"][..], &short].concat());

    let said = place.succeed(&[
        "doctor",
        "--config",
        "tiny.toml",
        "--data",
        "photos",
        "--set",
        "training.epochs=100",
    ]);
    assert!(said.contains("A step takes") && said.contains("crops of 8 pixels"), "{said}");
    let broken =
        ["doctor", "--config", "tiny.toml", "--data", "photos", "--no-trial", "--set", "sinkhorn.n_iters=0"];
    assert!(place.succeed(&broken).contains("do:  sinkhorn.n_iters = 3"));
    // A recipe may be for another machine, which has a card.
    let elsewhere =
        ["doctor", "--config", "tiny.toml", "--data", "photos", "--no-trial", "--device", "cuda:7"];
    assert!(place.succeed(&elsewhere).contains("a card"));
    place.fail(2, &["--data PATH"], &["doctor"]);
}

#[test]
fn a_run_leaves_as_files_and_comes_back_as_an_import() {
    let place = Place::new(&["a", "b"]);
    place.train();
    let embed = |run: &str, out: &str| {
        let set = ["--set", "reestimation.batch_norm=false"];
        place.succeed(&[&["embed", "--run", run, "--data", "photos", "--out", out], &set[..]].concat());
        std::fs::read(place.path(out)).unwrap()
    };
    for (file, part) in [("w.safetensors", "prototypes"), ("w.pth", "backbone"), ("w.onnx", "head")] {
        let output =
            place.succeed(&["export", "--run", "run", "--out", file, "--part", part, "--license", "mit"]);
        assert!(output.contains(file) && output.contains("weights.safetensors"), "{output}");
        let card = std::fs::read_to_string(place.path(&format!("{file}.md"))).unwrap();
        assert!(
            card.contains("license: \"mit\"") && card.contains(file) && card.contains("epochs = 2"),
            "{card}"
        );
    }
    place.fail(1, &["w.pth", "--force"], &["export", "--run", "run", "--out", "w.pth"]);
    place.succeed(&["export", "--run", "run", "--out", "w.pth", "--force"]);
    place.fail(2, &["--format"], &["export", "--run", "run", "--out", "w.bin"]);
    place.fail(2, &["--byte-images"], &["export", "--run", "run", "--out", "x.pth", "--byte-images"]);
    place.fail(1, &["w.onnx", "torch.save"], &["import", "w.onnx", "--out", "no"]);
    place.fail(1, &["none.pth"], &["import", "none.pth", "--out", "no"]);
    assert!(!place.path("no").exists());

    let output = place.succeed(&["import", "w.safetensors", "--out", "back"]);
    for words in ["8 channels", "prototypes [6]", "Mlp { hidden: 16 } to 8", "the central 16"] {
        assert!(output.contains(words), "{words} in {output}");
    }
    assert!(!output.contains("missing") && !output.contains("left "), "{output}");
    let output = place.succeed(&["import", "w.pth", "--out", "bare", "--resize", "16", "--size", "16"]);
    assert!(output.contains("missing  projection head, prototypes"), "{output}");
    // Backbone and head are the same; the file of PyTorch has no head.
    assert!(embed("back", "back.npy") == embed("bare", "bare.npy"));
    place.fail(1, &["back", "already holds a run"], &["import", "w.pth", "--out", "back"]);
    place.fail(1, &["imported weights", "encoder.init"], &["pretrain", "--run", "back", "--resume"]);
    let from = ["--set", "encoder.init=bare", "--set", "training.epochs=1", "--no-evaluation"];
    let train = ["pretrain", "--config", "tiny.toml", "--data", "photos", "--run", "on"];
    place.succeed(&[&train[..], &from[..]].concat());
}
