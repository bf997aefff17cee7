//! Folders and lists of files.

mod common;

use std::{fs, path::Path};

use common::{jpeg, picture, png, put};
use swav_data::{DataConfig, DataError, Dataset, Folder, Format, SampleError, Split, open};
use tempfile::tempdir;

fn names(data: &dyn Dataset) -> Vec<String> {
    (0..data.len()).map(|index| data.name(index)).collect()
}

fn labels(data: &dyn Dataset) -> Vec<Option<u32>> {
    (0..data.len()).map(|index| data.label(index)).collect()
}

fn open_error(path: &Path, config: &DataConfig) -> DataError {
    match open(path, config) {
        Err(error) => error,
        Ok(data) => panic!("opened {}", data.describe()),
    }
}

#[test]
fn classes_are_sub_folders_in_sorted_order() {
    let root = tempdir().unwrap();
    for (name, id) in [("dog/b.JPG", 1), ("dog/deep/a.png", 2), ("cat/z.png", 3), ("cat-wild/a.png", 4)] {
        let image = picture(8, 6, id);
        put(root.path().join(name), if name.ends_with("png") { png(&image) } else { jpeg(&image) });
    }
    put(root.path().join("notes.txt"), "no image");
    put(root.path().join("empty/readme.md"), "no image");
    put(root.path().join("cat/.hidden.png"), "no image");
    put(root.path().join(".cache/a.png"), "no image");
    let data = open(root.path(), &DataConfig::default()).unwrap();
    assert_eq!(names(&*data), ["cat/z.png", "cat-wild/a.png", "dog/b.JPG", "dog/deep/a.png"]);
    assert_eq!(data.class_names(), ["cat", "cat-wild", "dog"]);
    assert_eq!(labels(&*data), [Some(0), Some(1), Some(2), Some(2)]);
    assert_eq!(data.image(3).unwrap().data(), picture(8, 6, 2).as_raw().as_slice());
    assert!(matches!(data.image(4), Err(SampleError::OutOfRange { index: 4, len: 4 })));
}

#[test]
fn a_flat_folder_is_searched_wholly_and_has_no_labels() {
    let root = tempdir().unwrap();
    for name in ["b.png", "a/1.png", "a/b/2.png", "c/3.png"] {
        put(root.path().join(name), png(&picture(4, 4, 0)));
    }
    let data = open(root.path(), &DataConfig::default()).unwrap();
    assert_eq!(names(&*data), ["b.png", "a/1.png", "a/b/2.png", "c/3.png"]);
    assert!(labels(&*data).iter().all(Option::is_none));
    let forced = DataConfig { format: Format::Classes, ..DataConfig::default() };
    assert_eq!(names(&*open(root.path(), &forced).unwrap()), ["a/1.png", "a/b/2.png", "c/3.png"]);
}

#[test]
fn missing_and_empty_folders_are_errors_that_say_what_was_expected() {
    let root = tempdir().unwrap();
    let config = DataConfig::default();
    assert!(matches!(open_error(&root.path().join("nothing"), &config), DataError::Missing { .. }));
    let empty = open_error(root.path(), &config);
    assert!(matches!(empty, DataError::Empty { .. }) && empty.to_string().contains("jpg"), "{empty}");
    fs::create_dir(root.path().join("class")).unwrap();
    assert!(matches!(open_error(root.path(), &config), DataError::Empty { .. }));
    put(root.path().join("data.xyz"), "what");
    assert!(matches!(open_error(&root.path().join("data.xyz"), &config), DataError::UnknownFormat { .. }));
    put(root.path().join("one.png"), png(&picture(4, 4, 0)));
    assert!(matches!(open_error(&root.path().join("one.png"), &config), DataError::OneImage { .. }));
    let folder_wanted = DataConfig { format: Format::Flat, ..config };
    assert!(matches!(open_error(&root.path().join("data.xyz"), &folder_wanted), DataError::Io { .. }));
}

#[test]
fn splits_are_sub_folders_or_a_hold_out() {
    let root = tempdir().unwrap();
    for name in ["train/a/1.png", "train/b/2.png", "val/a/3.png"] {
        put(root.path().join(name), png(&picture(4, 4, 0)));
    }
    let of = |split| open(root.path(), &DataConfig { split, ..DataConfig::default() });
    assert_eq!(names(&*of(Split::Train).unwrap()), ["a/1.png", "b/2.png"]);
    assert_eq!(names(&*of(Split::Val).unwrap()), ["a/3.png"]);
    assert_eq!(names(&*of(Split::Test).unwrap()), ["a/3.png"], "val stands in for a missing test");

    let plain = tempdir().unwrap();
    for index in 0..200 {
        put(plain.path().join(format!("c{}/{index}.png", index % 2)), png(&picture(2, 2, index)));
    }
    let of = |split, holdout| open(plain.path(), &DataConfig { split, holdout, ..DataConfig::default() });
    assert!(matches!(of(Split::Test, 0.0), Err(DataError::NoSplit { split: Split::Test, .. })));
    let (train, test) = (of(Split::Train, 0.25).unwrap(), of(Split::Test, 0.25).unwrap());
    assert_eq!(train.len() + test.len(), 200);
    assert!((30..70).contains(&test.len()));
    let held: Vec<_> = names(&*test);
    assert!(names(&*train).iter().all(|name| !held.contains(name)));
    assert_eq!(of(Split::All, 0.25).unwrap().len(), 200);
    assert!(matches!(of(Split::Train, 1.5), Err(DataError::Config { field: "holdout", .. })));
    assert!(matches!(of(Split::Train, f64::NAN), Err(DataError::Config { field: "holdout", .. })));
}

#[cfg(unix)]
#[test]
fn links_in_circles_and_broken_links_are_passed_over_and_good_ones_followed() {
    use std::os::unix::fs::symlink;
    let (root, other) = (tempdir().unwrap(), tempdir().unwrap());
    put(root.path().join("a/1.png"), png(&picture(4, 4, 0)));
    put(other.path().join("2.png"), png(&picture(4, 4, 1)));
    symlink(root.path(), root.path().join("a/up")).unwrap();
    symlink("self", root.path().join("self")).unwrap();
    symlink("/nowhere/x.png", root.path().join("a/broken.png")).unwrap();
    symlink(other.path(), root.path().join("b")).unwrap();
    symlink(other.path().join("2.png"), root.path().join("a/linked.png")).unwrap();
    let folder = Folder::classes(root.path(), &DataConfig::default().check().unwrap()).unwrap();
    assert_eq!(names(&folder), ["a/1.png", "a/linked.png", "b/2.png"]);
    assert_eq!(folder.skipped(), 3);
    assert!((0..3).all(|index| folder.image(index).is_ok()));
}

#[cfg(unix)]
#[test]
fn names_need_not_be_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let root = tempdir().unwrap();
    let class = root.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    put(class.join(std::ffi::OsStr::from_bytes(b"\xff\xfe.png")), png(&picture(5, 4, 7)));
    let data = open(root.path(), &DataConfig::default()).unwrap();
    assert_eq!(data.image(0).unwrap().data(), picture(5, 4, 7).as_raw().as_slice());
    assert_eq!(data.class_names(), ["caf\u{fffd}"]);

    let list = root.path().join("list.txt");
    put(&list, b"caf\xe9/\xff\xfe.png 3\n");
    let listed = open(&list, &DataConfig::default()).unwrap();
    assert_eq!((listed.label(0), listed.image(0).unwrap().width()), (Some(3), 5));
}

#[test]
fn images_that_vanish_or_break_are_named_errors_and_the_rest_is_read() {
    let root = tempdir().unwrap();
    for index in 0..4 {
        put(root.path().join(format!("{index}.jpg")), jpeg(&picture(16, 16, index)));
    }
    let data = open(root.path(), &DataConfig { cache_mib: 0, ..DataConfig::default() }).unwrap();
    fs::remove_file(root.path().join("1.jpg")).unwrap();
    let whole = fs::read(root.path().join("2.jpg")).unwrap();
    fs::write(root.path().join("2.jpg"), &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(data.image(1), Err(SampleError::Vanished)));
    assert!(matches!(data.image(2), Err(SampleError::Truncated(_))));
    assert!(data.image(0).is_ok() && data.image(3).is_ok());
}

#[test]
fn the_fingerprint_knows_names_and_not_the_file_systems_order() {
    let build = |order: &[u32]| {
        let root = tempdir().unwrap();
        for index in order {
            put(root.path().join(format!("c/{index}.png")), png(&picture(2, 2, 0)));
        }
        let data = open(root.path(), &DataConfig::default()).unwrap();
        (names(&*data), data.fingerprint())
    };
    assert_eq!(build(&[0, 1, 2, 3]), build(&[3, 1, 0, 2]));
    assert_ne!(build(&[0, 1, 2, 3]).1, build(&[0, 1, 2, 4]).1);
}

#[test]
fn lists_have_paths_and_labels_of_one_kind() {
    let root = tempdir().unwrap();
    for index in 0..3 {
        put(root.path().join(format!("pics/{index} x.png")), png(&picture(3, 3, index)));
    }
    let list = root.path().join("train.txt");
    let open_list = |text: &str| {
        put(&list, text);
        open(&list, &DataConfig::default())
    };
    let plain = open_list("# a comment\npics/0 x.png\r\n\n  pics/2 x.png\n").unwrap();
    assert_eq!((plain.len(), plain.label(0)), (2, None));
    assert_eq!(plain.image(1).unwrap().data(), picture(3, 3, 2).as_raw().as_slice());
    let numbers = open_list("pics/0 x.png 7\npics/1 x.png 0\n").unwrap();
    assert_eq!(labels(&*numbers), [Some(7), Some(0)]);
    let named = open_list("pics/0 x.png\tzebra\npics/1 x.png\tant\npics/2 x.png\tzebra").unwrap();
    assert_eq!(
        (labels(&*named), named.class_names()),
        (vec![Some(1), Some(0), Some(1)], &["ant".to_owned(), "zebra".to_owned()][..])
    );
    let csv = open_list("pics/0 x.png,4\nmissing.png,5").unwrap();
    assert_eq!(labels(&*csv), [Some(4), Some(5)]);
    assert!(matches!(csv.image(1), Err(SampleError::Vanished)));
    assert!(matches!(open_list("a.png 1\nb.png\n"), Err(DataError::Malformed { .. })));
    assert!(matches!(open_list("a.png\nb.png 1\n"), Err(DataError::Malformed { .. })));
    assert!(matches!(open_list("a.png 99999999999\n"), Err(DataError::Malformed { .. })));
    assert!(matches!(open_list("a\0.png\n"), Err(DataError::Malformed { .. })));
    assert!(matches!(open_list("\n# nothing\n"), Err(DataError::Empty { .. })));
}

#[test]
fn config_files_refuse_unknown_keys_and_bad_values() {
    let parse = toml::from_str::<DataConfig>;
    let config = parse("path = \"x\"\nformat = \"flat\"\nholdout = 0.1\n[decode]\nmax_pixels = 5").unwrap();
    assert_eq!((config.format, config.decode.max_pixels), (Format::Flat, 5));
    assert!(parse("pth = \"x\"").unwrap_err().to_string().contains("pth"));
    assert!(parse("[decode]\nmax_pixel = 5").is_err());
    let wrong = DataConfig { extensions: vec![".jpg".to_owned()], ..DataConfig::default() };
    assert!(matches!(wrong.check(), Err(DataError::Config { field: "extensions", .. })));
    let wrong = parse("[builtin]\nsize = 4").unwrap();
    assert!(matches!(open("builtin", &wrong), Err(DataError::Config { field: "builtin.size", .. })));
    let wrong = parse("[decode]\nmax_pixels = 0").unwrap();
    assert!(matches!(open("builtin", &wrong), Err(DataError::Config { field: "decode.max_pixels", .. })));
}

/// Lists as many files as `SWAV_DATA_FILES` says, and prints the time and the growth of memory:
/// `SWAV_DATA_FILES=1000000 cargo test --release -p swav-data --test folders -- --ignored --nocapture many_files`.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "makes a million files"]
fn many_files() {
    let count: usize = std::env::var("SWAV_DATA_FILES").map_or(1_000_000, |text| text.parse().unwrap());
    let place = Path::new("/dev/shm");
    let root = if place.is_dir() { tempfile::tempdir_in(place) } else { tempdir() }.unwrap();
    for class in 0..100 {
        let folder = root.path().join(format!("class{class:03}"));
        fs::create_dir(&folder).unwrap();
        for index in 0..count / 100 {
            fs::File::create(folder.join(format!("ILSVRC2012_{class:03}_{index:08}.jpg"))).unwrap();
        }
    }
    let before = common::memory_kib("VmRSS");
    let start = std::time::Instant::now();
    let data = open(root.path(), &DataConfig { cache_mib: 0, ..DataConfig::default() }).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let grown = common::memory_kib("VmHWM") - before;
    println!("{} files listed in {seconds:.2} s, peak memory grew by {} MiB", data.len(), grown / 1024);
    assert_eq!(data.len(), count / 100 * 100);
    assert!(grown * 1024 < 64 * (1 << 20) + 160 * count, "{grown} KiB for {count} files");
}
