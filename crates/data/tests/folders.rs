//! Folders and lists of files.

mod common;

use std::{fs, path::Path};

use common::{jpeg, picture, png, put};
use swav_data::{
    DataConfig, DataError, Dataset, Folder, Format, LabelCensus, LabelKind, Reason, SampleError, Split,
    Survey, open,
};
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
fn links_that_multiply_end_and_repeated_folders_do_not() {
    use std::os::unix::fs::symlink;
    let root = tempdir().unwrap();
    let pool = root.path().join("pool");
    put(pool.join("1.png"), png(&picture(4, 4, 0)));
    put(root.path().join("plain/a/2.png"), png(&picture(4, 4, 0)));
    symlink(&pool, root.path().join("plain/b")).unwrap();
    symlink(&pool, root.path().join("plain/c")).unwrap();
    let data = open(root.path().join("plain"), &DataConfig::default()).unwrap();
    assert_eq!(names(&*data), ["a/2.png", "b/1.png", "c/1.png"]);
    // Each level has two links to the next.
    let level = |n: usize| root.path().join(format!("level{n}"));
    (0..31).for_each(|n| fs::create_dir(level(n)).unwrap());
    for n in 0..30 {
        ["a", "b"].iter().for_each(|link| symlink(level(n + 1), level(n).join(link)).unwrap());
    }
    let wide = root.path().join("wide");
    fs::create_dir(&wide).unwrap();
    symlink(level(0), wide.join("x")).unwrap();
    assert!(matches!(open_error(&wide, &DataConfig::default()), DataError::Links { .. }));
}

#[cfg(target_os = "linux")]
#[test]
fn the_kernels_folders_are_no_data() {
    use std::os::unix::fs::symlink;
    let root = tempdir().unwrap();
    put(root.path().join("a/1.png"), png(&picture(4, 4, 0)));
    symlink("/proc", root.path().join("a/system")).unwrap();
    symlink("/proc/self", root.path().join("b")).unwrap();
    let folder = Folder::classes(root.path(), &DataConfig::default().check().unwrap()).unwrap();
    assert_eq!((names(&folder), folder.skipped()), (vec!["a/1.png".to_owned()], 2));
    for path in [Path::new("/proc/self"), &root.path().join("b")] {
        assert!(matches!(open_error(path, &DataConfig::default()), DataError::System { .. }));
    }
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
    // What is no label stops nothing.
    assert_eq!(labels(&*open_list("a.png 1\nb.png\n").unwrap()), [Some(1), None]);
    assert_eq!(labels(&*open_list("a.png\nb.png 1\n").unwrap()), [None, Some(1)]);
    assert_eq!(open_list("a.png 99999999999\n").unwrap().class_names(), ["99999999999"]);
    assert!(matches!(open_list("a\0.png\n"), Err(DataError::Malformed { .. })));
    assert!(matches!(open_list("\n# nothing\n"), Err(DataError::Empty { .. })));
}

/// The images of a list by label, `-` for none, in one line.
fn shown(data: &dyn Dataset) -> String {
    let label = |index| match data.label(index) {
        Some(label) => data.class_names().get(label as usize).cloned().unwrap_or_else(|| label.to_string()),
        None => "-".to_owned(),
    };
    (0..data.len())
        .map(|index| format!("{}={}", data.name(index), label(index)))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn lists_are_read_as_people_and_programs_write_them() {
    let root = tempdir().unwrap();
    for name in ["a.png", "b.png", "c, d.png", "sub/e.png"] {
        put(root.path().join(name), png(&picture(3, 3, 0)));
    }
    let utf16: Vec<u8> =
        "\u{feff}file;label\r\na.png;cat\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let list = root.path().join("list.csv");
    let cases: Vec<(&[u8], &str)> = vec![
        (b"\xef\xbb\xbfa.png,1\nb.png,2\n", "a.png=1 b.png=2"),
        (b"path,label\na.png,cat\nb.png,dog\n", "a.png=cat b.png=dog"),
        (b"filename\na.png\nb.png\n", "a.png=- b.png=-"),
        (b"\"a.png\",\"cat\"\n\"c, d.png\",\"dog, wild\"\n", "a.png=cat c, d.png=dog, wild"),
        (b"\"a.png\"\n\"c, d.png\"\n", "a.png=- c, d.png=-"),
        (b"c, d.png\nsub/e.png\n", "c, d.png=- sub/e.png=-"),
        (b"a.png;cat\nb.png;dog\n", "a.png=cat b.png=dog"),
        (b"a.png\tcat\textra\nb.png\tdog\textra\n", "a.png=cat b.png=dog"),
        (b"a.png 3 x\nb.png -1 y\n", "a.png=3 b.png=-"),
        (b"a.png cat\nb.png dog\n", "a.png=cat b.png=dog"),
        (b"class,id,image\ncat,7,a.png\ndog,9,b.png\n", "a.png=cat b.png=dog"),
        (b",file,label\n0,a.png,x\n1,b.png,y\n", "a.png=x b.png=y"),
        (b"cat,a.png\ndog,b.png\n", "a.png=cat b.png=dog"),
        (b"1 a.png\n2 b.png\n", "a.png=- b.png=-"),
        (b"file,label,split\na.png,x,train\nb.png,y,test\n", "a.png=x"),
        (b"a.png,x,train\nb.png,y,val\n", "a.png=x"),
        (b"a.png,0.5\nb.png,1.0\nsub/e.png,nan\n", "a.png=- b.png=1 sub/e.png=-"),
        (b"._a.png,1\na.png,2\n.hidden/b.heic,3\n", "a.png=2"),
        (b"sub\\e.png,1\n", "sub/e.png=1"),
        (&utf16, "a.png=cat"),
        (
            b"{\"file_name\": \"a.png\", \"label\": 3, \"box\": [1]}\n{\"label\": 4, \"file_name\": \"c, d.png\"}\n",
            "a.png=3 c, d.png=4",
        ),
        (b"{\"image\": \"a.png\"}\n{}\n{broken\n", "a.png=-"),
        (b"a.png\nhttps://example.org/b.png\n", "a.png=-"),
    ];
    for (text, expected) in cases {
        put(&list, text);
        let told = || String::from_utf8_lossy(text).into_owned();
        let data =
            open(&list, &DataConfig::default()).unwrap_or_else(|error| panic!("{:?}: {error}", told()));
        assert_eq!(shown(&*data), expected, "{:?}", told());
    }
    let told = |text: &str| {
        put(&list, text);
        open(&list, &DataConfig::default()).unwrap().survey().unwrap().to_string()
    };
    let survey = told("file;label\na.png;cat\n");
    assert!(survey.contains("the first line names the columns"), "{survey}");
    let survey = told("a.png\nhttps://example.org/b.png\n");
    assert!(survey.contains("1 remote file (https://example.org/b.png): download them"), "{survey}");
    let survey = told("x/a.png\nx/b.png\n");
    assert!(survey.contains("none of the 2 files looked for is there, such as x/a.png"), "{survey}");
    assert!(!told("x/a.png\na.png\n").contains("looked for"));
    let whole = fs::canonicalize(root.path()).unwrap();
    put(&list, format!("file://{0}/a.png\nfile://{0}/c%2C%20d.png\n", whole.display()));
    let data = open(&list, &DataConfig::default()).unwrap();
    assert!((0..2).all(|index| data.image(index).is_ok()), "{}", shown(&*data));
    put(&list, "file,label,split\na.png,x,train\nb.png,y,test\n");
    let of = |split| open(&list, &DataConfig { split, ..DataConfig::default() });
    assert_eq!(shown(&*of(Split::Test).unwrap()), "b.png=y");
    assert_eq!(of(Split::Test).unwrap().label(0), Some(1), "classes are numbered over all splits");
    assert_eq!(of(Split::All).unwrap().len(), 2);
}

fn surveyed(root: &Path, config: &DataConfig) -> (std::sync::Arc<dyn Dataset>, Survey) {
    let data = open(root, config).unwrap_or_else(|error| panic!("{error}"));
    let survey = data.survey().unwrap().clone();
    assert_eq!((survey.n_images, &survey.class_names[..]), (data.len(), data.class_names()));
    (data, survey)
}

#[test]
fn what_is_left_aside_is_counted_and_named() {
    let root = tempdir().unwrap();
    let place = |name: &str| root.path().join(name);
    put(place("1.png"), png(&picture(4, 4, 0)));
    put(place("2.jfif"), jpeg(&picture(4, 4, 0)));
    put(place("sub/3.JPE"), jpeg(&picture(4, 4, 0)));
    (0..10).for_each(|id| put(place(&format!("IMG_{id}.HEIC")), "heic"));
    for name in [
        "a.svg",
        "sub/b.svg",
        "c.avif",
        "sub/old.tar.gz",
        "x.mat",
        ".hidden.png",
        "._1.png",
        "notes.txt",
        "README.md",
    ] {
        put(place(name), "x");
    }
    put(place(".cache/4.png"), png(&picture(4, 4, 0)));
    let (data, survey) = surveyed(root.path(), &DataConfig::default());
    assert_eq!((data.len(), survey.format), (3, Format::Flat));
    assert!((0..3).all(|index| data.image(index).is_ok()));
    let aside: Vec<String> = survey.left_aside.iter().map(ToString::to_string).collect();
    let expected = [
        "1 AVIF file (c.avif): convert them to JPEG or PNG",
        "10 HEIC files (IMG_0.HEIC, IMG_1.HEIC, IMG_2.HEIC, ...): convert them to JPEG or PNG",
        "1 MATLAB file (x.mat): write the images to files, one folder for each class, or to tar shards",
        "2 SVG files (a.svg, sub/b.svg): draw them as PNG",
        "1 gzipped tar file (sub/old.tar.gz): unpack them",
        "2 with a name that begins with a dot (._1.png, .hidden.png)",
        "1 other file (notes.txt)",
    ];
    assert_eq!(aside, expected);
    assert_eq!(survey.to_string().lines().count(), 1 + expected.len());
    put(place("5.jpg"), b"\0\0\0\x18ftypheic\0\0\0\0mif1heic");
    let wrong = open(root.path(), &DataConfig::default()).unwrap().image(2).unwrap_err();
    assert!(wrong.explain().contains("HEIC"), "{}", wrong.explain());
}

/// What cannot be read is named with what to do, alone in a folder and as the path itself.
#[test]
fn known_formats_that_are_not_read_are_named() {
    for (name, words) in [
        ("data_batch_1", ["CIFAR's Python pickle", "binary version"]),
        ("train_32x32.mat", ["MATLAB", "tar shards"]),
        ("train.h5", ["HDF5", "tar shards"]),
        ("data.mdb", ["LMDB", "tar shards"]),
        ("photos.7z", ["7z", "unpack"]),
        ("photos.tar.xz", ["compressed tar", "unpack"]),
        ("a.HEIC", ["HEIC", "convert"]),
        ("train.tfrecord-00000-of-00002", ["TFRecord", "tar shards"]),
    ] {
        let root = tempdir().unwrap();
        put(root.path().join("below").join(name), "x");
        let below = root.path().join("below");
        for path in [root.path().to_owned(), below.join(name), below] {
            let error = open_error(&path, &DataConfig::default()).to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{name}: {error}");
        }
    }
}

/// Images are put at these places; what comes is each name with its class.
#[test]
fn layouts_are_told_as_people_mean_them() {
    let cases: &[(&[&str], Split, &str)] = &[
        // A few images beside classes are left aside, many make the folder flat.
        (
            &["preview.png", "cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"],
            Split::Train,
            "cat/1.png=cat cat/2.png=cat dog/3.png=dog dog/4.png=dog",
        ),
        (&["0.png", "1.png", "x/2.png", "y/3.png"], Split::Train, "0.png=- 1.png=- x/2.png=- y/3.png=-"),
        // A class that happens to be called so.
        (
            &["train/1.png", "plane/2.png", "car/3.png"],
            Split::Train,
            "car/3.png=car plane/2.png=plane train/1.png=train",
        ),
        (&["test/1.png", "plane/2.png"], Split::All, "plane/2.png=plane test/1.png=test"),
        (
            &["train/1.png", "test/2.png", "plane/3.png", "car/4.png"],
            Split::Train,
            "car/4.png=car plane/3.png=plane test/2.png=test train/1.png=train",
        ),
        // Splits in any case, and what lies beside them.
        (&["Train/cat/1.png", "Test/cat/2.png"], Split::Train, "cat/1.png=cat"),
        (&["Train/cat/1.png", "Test/cat/2.png"], Split::Test, "cat/2.png=cat"),
        (&["TRAIN/a/1.png", "Validation/b/2.png"], Split::Val, "b/2.png=b"),
        (&["training/a/1.png", "dev/b/2.png"], Split::Test, "b/2.png=b"),
        (
            &["train/a/1.png", "valid/b/2.png", "labels/a/1.png"],
            Split::All,
            "train/a/1.png=a valid/b/2.png=b",
        ),
        (&["train2017/1.png", "val2017/2.png"], Split::Train, "1.png=-"),
        (&["training_set/a/1.png", "test_set/a/2.png"], Split::Test, "a/2.png=a"),
        (
            &["seg_train/seg_train/a/1.png", "seg_train/seg_train/b/2.png", "seg_test/seg_test/b/3.png"],
            Split::Train,
            "a/1.png=a b/2.png=b",
        ),
        (&["train/a/1.png", "notes/x.txt"], Split::Train, "a/1.png=a"),
        // All is everything, and classes stay the classes.
        (
            &["train/a/1.png", "train/b/2.png", "test/b/3.png"],
            Split::All,
            "test/b/3.png=b train/a/1.png=a train/b/2.png=b",
        ),
        (
            &["train/a/1.png", "train/b/2.png", "test/3.png"],
            Split::All,
            "test/3.png=- train/a/1.png=a train/b/2.png=b",
        ),
        (
            &["train/a/1.png", "train/b/2.png", "val/images/3.png"],
            Split::All,
            "train/a/1.png=a train/b/2.png=b val/images/3.png=-",
        ),
        // A folder above the data.
        (&["set/images/train/a/1.png", "set/images/val/a/2.png"], Split::Val, "a/2.png=a"),
        (&["set/a/1.png", "set/b/2.png"], Split::Train, "a/1.png=a b/2.png=b"),
        (&["holiday/1.png"], Split::Train, "holiday/1.png=holiday"),
    ];
    assert_layouts(cases);
}

#[test]
fn pictures_are_told_from_what_belongs_to_them() {
    let cases: &[(&[&str], Split, &str)] = &[
        // Splits that differ in a number, and flat ones of one class each.
        (&["train/cat.0.png", "test1/1.png"], Split::Train, "cat.0.png=-"),
        (&["train/cat.0.png", "test1/1.png"], Split::Test, "1.png=-"),
        // Pictures beside what belongs to them are no classes; masks are classes where there is nothing else.
        (&["images/1.png", "annotations/trimaps/1.png"], Split::Train, "1.png=-"),
        (
            &["VOC/JPEGImages/1.png", "VOC/SegmentationClass/1.png", "VOC/Annotations/x.txt"],
            Split::Train,
            "1.png=-",
        ),
        (&["images/a/1.png", "images/b/2.png", "masks/1.png"], Split::Train, "a/1.png=a b/2.png=b"),
        (&["train/img/1.png", "train/mask/1.png", "val/img/2.png", "val/mask/2.png"], Split::Val, "2.png=-"),
        (&["train/images/1.png", "train/labels/1.txt", "val/images/2.png"], Split::Train, "1.png=-"),
        (
            &["with_mask/1.png", "without_mask/2.png"],
            Split::Train,
            "with_mask/1.png=with_mask without_mask/2.png=without_mask",
        ),
        (&["cat/1.png", "masks/2.png"], Split::Train, "cat/1.png=cat masks/2.png=masks"),
        (&["2019/a/1.png", "extra/2.png"], Split::Train, "2019/a/1.png=2019 extra/2.png=extra"),
        // Labelled and unlabelled data of one set.
        (
            &["labeled/train/a/1.png", "labeled/train/b/2.png", "labeled/test/a/3.png", "unlabeled/4.png"],
            Split::Train,
            "a/1.png=a b/2.png=b",
        ),
    ];
    assert_layouts(cases);
}

fn assert_layouts(cases: &[(&[&str], Split, &str)]) {
    for (files, split, expected) in cases {
        let root = tempdir().unwrap();
        for name in *files {
            let bytes = if name.ends_with("txt") { b"x".to_vec() } else { png(&picture(2, 2, 0)) };
            put(root.path().join(name), bytes);
        }
        let (data, _) = surveyed(root.path(), &DataConfig { split: *split, ..DataConfig::default() });
        assert_eq!(shown(&*data), *expected, "{files:?} {split}");
    }
}

#[test]
fn what_lies_beside_splits_and_data_is_named() {
    let root = tempdir().unwrap();
    for name in ["train/a/1.png", "test/a/2.png", "loose.png"] {
        put(root.path().join(name), png(&picture(2, 2, 0)));
    }
    put(root.path().join("scans/x.heic"), "x");
    put(root.path().join("y.heic"), "x");
    let (_, survey) = surveyed(root.path(), &DataConfig::default());
    let told = survey.to_string();
    for expected in [
        "split train of train, test",
        "1 HEIC file (y.heic)",
        "1 beside the splits (scans)",
        "1 beside the data (loose.png)",
    ] {
        assert!(told.contains(expected), "expected `{expected}` in:\n{told}");
    }
    // An empty folder of the name of a split, or of a class, changes nothing.
    let plain = tempdir().unwrap();
    put(plain.path().join("cat/1.png"), png(&picture(2, 2, 0)));
    fs::create_dir(plain.path().join("train")).unwrap();
    assert_eq!(surveyed(plain.path(), &DataConfig::default()).0.class_names(), ["cat"]);
}

#[test]
fn classes_are_numbered_alike_in_all_splits() {
    let root = tempdir().unwrap();
    for name in ["train/ant/1.png", "train/owl/2.png", "val/bee/3.png", "val/owl/4.png"] {
        put(root.path().join(name), png(&picture(2, 2, 0)));
    }
    for split in [Split::Train, Split::Val, Split::All] {
        let (data, survey) = surveyed(root.path(), &DataConfig { split, ..DataConfig::default() });
        assert_eq!(survey.class_names, ["ant", "bee", "owl"], "{split}");
        assert_eq!(survey.splits, [Split::Train, Split::Val]);
        let owl = (0..data.len()).find(|&index| data.name(index).contains("owl")).unwrap();
        assert_eq!(data.label(owl), Some(2), "{split}");
    }
}

/// A hold-out divides what is all called `train`; without one there is nothing to test on.
#[test]
fn a_hold_out_divides_a_folder_of_training_images() {
    let root = tempdir().unwrap();
    (0..60).for_each(|id| put(root.path().join(format!("train/c/{id}.png")), png(&picture(2, 2, id))));
    let of = |split, holdout| open(root.path(), &DataConfig { split, holdout, ..DataConfig::default() });
    let (train, test) = (of(Split::Train, 0.3).unwrap(), of(Split::Test, 0.3).unwrap());
    assert_eq!(train.len() + test.len(), 60);
    assert!(!names(&*train).contains(&test.name(0)));
    assert_eq!(of(Split::Train, 0.0).unwrap().len(), 60);
    let error = of(Split::Test, 0.0).err().unwrap().to_string();
    assert!(error.contains("found only train") && error.contains("holdout"), "{error}");
}

#[test]
fn a_census_says_which_labels_there_are() {
    let root = tempdir().unwrap();
    let list = root.path().join("list.csv");
    let census = |text: &str| {
        put(&list, text);
        LabelCensus::of(&open(&list, &DataConfig::default()).unwrap())
    };
    let mixed = census("a.png,1\nb.png,2\nc.png,2\nd.png,-1\ne.png,0.5\nf.png,\"[1, 2]\"\n");
    assert_eq!((mixed.n_images, mixed.n_labelled(), mixed.n_classes(), mixed.unfit()), (6, 3, 2, None));
    assert_eq!(mixed.without[&LabelKind::Fraction], 1);
    assert_eq!(
        mixed.to_string(),
        "6 images in 2 classes of 1 to 2, 1 without a label, 1 with a list for a label, 1 with a fraction for a label"
    );
    assert_eq!(census("a.png\nb.png\n").to_string(), "2 images without labels");
    assert!(census("a.png\nb.png\n").unfit().unwrap().contains("no labels"));
    assert!(census("a.png,.5\nb.png,.7\n").unfit().unwrap().contains("fraction"));
    assert!(census("a.png,3\nb.png,3\n").unfit().unwrap().contains("one class"));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_data_set() {
    let root = tempdir().unwrap();
    let pipe = root.path().join("pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(matches!(open_error(&pipe, &DataConfig::default()), DataError::Io { .. }));
    let error = open_error(root.path(), &DataConfig::default());
    assert!(error.to_string().contains("pipe.png"), "{error}");
    put(root.path().join("1.png"), png(&picture(2, 2, 0)));
    let (data, survey) = surveyed(root.path(), &DataConfig::default());
    assert_eq!((data.len(), survey.left_aside[0].reason), (1, Reason::Unreachable));
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
