//! Parquet files as Hugging Face and others write them.

mod common;

use std::{fs, path::Path, sync::Arc};

use common::{
    labels, malformed, of,
    parquet::{Int, List, Struct, Text, Values, put_table, table, thrift, varint},
    picture, png, put,
};
use swav_data::{DataConfig, DataError, Dataset, LabelKind, SampleError, Split, open};
use tempfile::tempdir;

/// A Parquet file as Hugging Face writes it, with two rows in a group.
fn parquet_file(
    path: &Path,
    images: &[Option<Vec<u8>>],
    labels: Values,
    names: [&str; 2],
    features: Option<&str>,
) {
    let paths = (0..images.len()).map(|id| Some(format!("{id}.png"))).collect();
    let columns = [
        (&[names[0], "bytes"][..], Values::Bytes(images.to_vec())),
        (&[names[0], "path"][..], Values::Texts(paths)),
        (&[names[1]][..], labels),
    ];
    put_table(path, &columns, 2, features);
}

fn pictures(from: u32, to: u32) -> Vec<Option<Vec<u8>>> {
    (from..to).map(|id| Some(png(&picture(5, 4, id)))).collect()
}

fn ints(values: &[i64]) -> Values {
    Values::Ints(values.iter().copied().map(Some).collect())
}

#[test]
fn parquet_reads_images_labels_and_class_names() {
    let root = tempdir().unwrap();
    let features = r#"{"info":{"features":{"label":{"names":["ant","bee"],"_type":"ClassLabel"}}}}"#;
    let file = |name: &str| root.path().join("data").join(name);
    parquet_file(
        &file("train-00000-of-00002.parquet"),
        &pictures(0, 5),
        ints(&[0, 1, 0, 1, -1]),
        ["image", "label"],
        Some(features),
    );
    parquet_file(
        &file("train-00001-of-00002.parquet"),
        &pictures(5, 8),
        ints(&[1, 1, 0]),
        ["image", "label"],
        Some(features),
    );
    parquet_file(
        &file("test-00000-of-00001.parquet"),
        &pictures(8, 9),
        ints(&[1]),
        ["image", "label"],
        Some(features),
    );
    for cache_mib in [0, 64] {
        let data = open(root.path(), &DataConfig { cache_mib, ..DataConfig::default() }).unwrap();
        assert_eq!(labels(&*data), [Some(0), Some(1), Some(0), Some(1), None, Some(1), Some(1), Some(0)]);
        assert_eq!(data.class_names(), ["ant", "bee"]);
        assert_eq!(data.blocks(), Some(vec![0..2, 2..4, 4..5, 5..7, 7..8]));
        assert_eq!(data.name(6), "train-00001-of-00002.parquet[1]");
        for id in [7, 0, 4, 5, 0] {
            assert_eq!(data.image(id as usize).unwrap().data(), picture(5, 4, id).as_raw().as_slice());
        }
        assert!(matches!(data.image(8), Err(SampleError::OutOfRange { index: 8, len: 8 })));
    }
    assert_eq!(of(root.path(), Split::Test).unwrap().len(), 1);
    assert!(matches!(of(root.path(), Split::All).unwrap().len(), 9));
}

/// What a writer says of the columns may be anything: it then counts for nothing.
#[test]
fn parquet_metadata_of_another_shape_is_ignored() {
    for features in ["", "[1]", "7", "\"text\"", "{\"info\":[]}", "{\"info\":{\"features\":{\"label\":3}}}"] {
        let root = tempdir().unwrap();
        let path = root.path().join("data/a.parquet");
        parquet_file(&path, &pictures(0, 2), ints(&[1, 0]), ["image", "label"], Some(features));
        let data = open(root.path(), &DataConfig::default()).unwrap();
        assert_eq!(labels(&*data), [Some(1), Some(0)], "{features}");
        assert!(data.class_names().is_empty(), "{features}");
    }
}

/// Files by the writers that users have; `data/make_parquet.py` made them.
#[test]
fn parquet_by_other_writers_is_read() {
    let names: &[&str] = &["ant", "bee", "cat"];
    let counted = [0, 1, 2, 0, 1, 2, 0];
    for (file, class_names, expected, ends) in [
        ("hugging_face", names, counted, vec![3, 6, 7]),
        ("large", names, counted, vec![4, 7]),
        ("named", names, counted, vec![7]),
        ("plain", &[], counted.map(|label: u32| label.min(1)), vec![7]),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{file}.parquet"));
        let data = open(path, &DataConfig::default()).unwrap();
        assert_eq!(labels(&*data), expected.map(Some), "{file}");
        assert_eq!(data.class_names(), class_names, "{file}");
        let blocks = data.blocks().unwrap();
        assert_eq!(blocks.iter().map(|block| block.end).collect::<Vec<_>>(), ends, "{file}");
        for id in 0..7 {
            let image = data.image(id as usize).unwrap();
            assert_eq!(image.data(), picture(5, 4, id).as_raw().as_slice(), "{file}");
        }
    }
}

/// Every codec, both kinds of pages and every encoding; `data/make_encodings.py` made the files.
#[test]
fn parquet_in_every_encoding_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/encodings");
    let mut n_files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let data = open(&path, &DataConfig::default()).unwrap();
        let file = path.display();
        let expected: Vec<Option<u32>> =
            (0..20).map(|n| (n != 0 && n != 6).then(|| u32::try_from(7 * n - 3).unwrap())).collect();
        assert_eq!(labels(&*data), expected, "{file}");
        assert_eq!(data.blocks(), Some(vec![0..12, 12..20]), "{file}");
        for n in 0..20 {
            match data.image(n as usize) {
                Ok(image) => assert_eq!(image.data(), picture(5, 4, n % 5).as_raw().as_slice(), "{file}"),
                Err(SampleError::Null) => {
                    assert!((n == 5 || n == 11) && !path.ends_with("struct.parquet"), "{file}")
                }
                Err(error) => {
                    assert!(path.ends_with("struct.parquet") && (n == 5 || n == 11), "{file}: {error}")
                }
            }
        }
        n_files += 1;
    }
    assert_eq!(n_files, 9);
}

#[test]
fn parquet_row_groups_of_any_length_are_read() {
    let root = tempdir().unwrap();
    let n_rows = 256 * 2 + 3;
    let images = (0..n_rows).map(|id| Some(png(&picture(1, 1, id)))).collect();
    put_table(&root.path().join("a.parquet"), &[(&["image"], Values::Bytes(images))], 1000, None);
    let data = open(root.path(), &DataConfig::default()).unwrap();
    assert_eq!((data.blocks().unwrap().len(), data.label(0)), (1, None));
    for id in [0, 255, 256, 511, 512, n_rows - 1] {
        assert_eq!(data.image(id as usize).unwrap().data(), picture(1, 1, id).as_raw().as_slice());
    }
}

#[test]
fn parquet_columns_are_named_by_config_and_checked() {
    let root = tempdir().unwrap();
    let path = root.path().join("x.parquet");
    let words = Values::Texts(vec![Some("owl".to_owned()), Some("ant".to_owned()), None]);
    put(root.path().join("1.png"), png(&picture(9, 9, 1)));
    let mut images = pictures(0, 3);
    (images[1], images[2]) = (None, Some(b"rubbish".to_vec()));
    parquet_file(&path, &images, words, ["photo", "species"], None);
    let config = |image: &str, label: &str| DataConfig {
        image_column: Some(image.to_owned()),
        label_column: Some(label.to_owned()),
        ..DataConfig::default()
    };
    let data = open(&path, &config("photo", "species")).unwrap();
    assert_eq!(labels(&*data), [Some(1), Some(0), None]);
    assert_eq!(data.class_names(), ["ant", "owl"]);
    assert_eq!(data.image(1).unwrap().width(), 9, "a row without bytes is read from its path");
    assert!(matches!(data.image(2), Err(SampleError::Unsupported(_))));
    let refused = |result: Result<Arc<dyn Dataset>, DataError>| match result {
        Err(DataError::Column { column, got, .. }) => (column, got),
        other => panic!("expected a column error, got {:?}", other.map(|data| data.describe())),
    };
    assert_eq!(refused(open(&path, &DataConfig::default())).0, "image");
    assert_eq!(refused(open(&path, &config("photo", "genus"))).0, "genus");
    assert!(refused(open(&path, &config("species", "species"))).1.contains("Utf8"));
    assert!(refused(open(&path, &config("id", "species"))).1.contains("only [\"photo\", \"species\"]"));
    put(&path, b"PAR1 and nothing else");
    assert!(malformed(open(&path, &DataConfig::default())).to_lowercase().contains("parquet"));
}

#[test]
fn a_parquet_file_that_vanishes_costs_its_images() {
    let root = tempdir().unwrap();
    parquet_file(&root.path().join("a.parquet"), &pictures(0, 2), ints(&[0, 1]), ["image", "label"], None);
    parquet_file(&root.path().join("b.parquet"), &pictures(2, 4), ints(&[0, 1]), ["image", "label"], None);
    let data = open(root.path(), &DataConfig { cache_mib: 0, ..DataConfig::default() }).unwrap();
    fs::remove_file(root.path().join("b.parquet")).unwrap();
    assert!(matches!(data.image(3), Err(SampleError::Vanished)));
    assert!(data.image(1).is_ok());
}

/// What a column has that is no class says so, and stops nothing.
#[test]
fn parquet_labels_that_are_none_are_told() {
    let root = tempdir().unwrap();
    let images = || Values::Bytes(pictures(0, 3));
    let texts = Values::Texts(["[1, 2]", "0.5", "cat"].map(|text| Some(text.to_owned())).to_vec());
    put_table(&root.path().join("a.parquet"), &[(&["image"], images()), (&["label"], texts)], 3, None);
    let data = open(root.path(), &DataConfig::default()).unwrap();
    let kinds: Vec<_> = (0..3).map(|index| data.label_kind(index)).collect();
    assert_eq!(kinds, [LabelKind::List, LabelKind::Fraction, LabelKind::Class]);
    let nested = Values::Ints(vec![Some(1); 3]);
    put_table(
        &root.path().join("a.parquet"),
        &[(&["image"], images()), (&["label", "list"], nested)],
        3,
        None,
    );
    let data = open(root.path(), &DataConfig::default()).unwrap();
    assert_eq!((data.label(0), data.label_kind(0)), (None, LabelKind::List));
    assert!(data.image(2).is_ok());
}

/// Wraps a footer into a file with `body` before it.
fn with_footer(body: &[u8], footer: &[u8]) -> Vec<u8> {
    [b"PAR1", body, footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat()
}

/// Files that made general readers ask for terabytes, recurse until the stack ends, or take what they like: each is refused
/// with a sentence, at once.
#[test]
fn hostile_footers_are_refused() {
    let root = tempdir().unwrap();
    let path = root.path().join("a.parquet");
    let leaf = |name| thrift(&[(1, Int(6)), (3, Int(1)), (4, Text(name))]);
    let schema = |n_children| vec![thrift(&[(4, Text("schema")), (5, Int(n_children))]), leaf("image")];
    let footer = |schema: Vec<Vec<u8>>, groups: Vec<Vec<u8>>| {
        thrift(&[(1, Int(1)), (2, List(12, schema)), (3, Int(1)), (4, List(12, groups))])
    };
    let group = |n_values: i64, at: i64, bytes: i64, raw: i64| {
        let about =
            [(1, Int(6)), (4, Int(0)), (5, Int(n_values)), (6, Int(raw)), (7, Int(bytes)), (9, Int(at))];
        let chunk = thrift(&[(2, Int(at)), (3, Struct(thrift(&about)))]);
        vec![thrift(&[(1, List(12, vec![chunk])), (2, Int(1)), (3, Int(n_values))])]
    };
    // A list that claims 2^40 elements.
    let endless = [&[0x29, 0xfc][..], &varint(1 << 40), &[0; 100]].concat();
    let nested = [vec![0x1c; 5500], vec![0; 5501]].concat();
    let deep = (0..5500).map(|_| thrift(&[(3, Int(1)), (4, Text("g")), (5, Int(1))])).collect();
    let cases: [(Vec<u8>, &str); 11] = [
        (endless, "a list of"),
        (nested, "nested too deeply"),
        (footer(deep, vec![]), "nested too deeply"),
        (footer(vec![], vec![]), "the schema is empty"),
        (footer(schema(2), vec![]), "fewer nodes"),
        (footer(schema(0), vec![]), "more nodes"),
        (footer(schema(1), group(100_000_000, 4, 50, 50)), "rows in a file"),
        (footer(schema(1), group(2, 4, 1 << 40, 50)), "where data end"),
        (footer(schema(1), group(2, i64::MAX, 100, 50)), "where data end"),
        (footer(schema(1), group(2, 4, 50, 1 << 40)), "claim to inflate"),
        (footer(schema(1), group(-2, 4, 50, 50)), "expected a count"),
    ];
    for (footer, expected) in cases {
        put(&path, with_footer(&[0; 60], &footer));
        let reason = malformed(open(&path, &DataConfig::default()));
        assert!(reason.contains(expected), "{reason:?} should say {expected:?}");
    }
    for (file, expected) in [
        (b"PAR1 and nothing else at all".to_vec(), "PAR1"),
        (
            [&b"PAR1"[..], &[0; 20], &u32::MAX.to_le_bytes(), b"PAR1"].concat(),
            "a Parquet footer of 4294967295 bytes",
        ),
        (b"PAR1".to_vec(), "no Parquet file has 4 bytes"),
    ] {
        put(&path, file);
        let reason = malformed(open(&path, &DataConfig::default()));
        assert!(reason.contains(expected), "{reason:?} should say {expected:?}");
    }
}

/// Pages that lie cost their row group, and the others are read.
#[test]
fn hostile_pages_cost_their_row_group() {
    let root = tempdir().unwrap();
    let path = root.path().join("a.parquet");
    let whole = table(&[(&["image"], Values::Bytes(pictures(0, 4)))], 2, None);
    // The header of the first page: type, sizes, values.
    for (at, value) in
        [(5, 0x15_u8), (6, 0xff), (8, 0x7f), (8, 1), (10, 0xff), (13, 0x7e), (17, 0xff), (30, 0xff)]
    {
        let mut bytes = whole.clone();
        bytes[at] = value;
        put(&path, bytes);
        let Ok(data) = open(&path, &DataConfig::default()) else { panic!("the footer is whole") };
        for image in 0..2 {
            let _ = data.image(image);
        }
        assert!(data.image(3).is_ok(), "byte {at}");
    }
}

/// A row group that cannot be read is read once, not once for each of its images; and looking a row up does not go through
/// all groups.
#[test]
fn a_row_group_that_cannot_be_read_is_remembered() {
    let root = tempdir().unwrap();
    let path = root.path().join("a.parquet");
    let images = (0..1500).map(|id| Some(png(&picture(1, 1, id)))).collect();
    let mut bytes = table(&[(&["image"], Values::Bytes(images))], 1500, None);
    bytes[60] = 0xff;
    put(&path, &bytes);
    let data = open(&path, &DataConfig::default()).unwrap();
    let first = data.image(0).unwrap_err();
    assert!(matches!(first, SampleError::Corrupt(_)), "{}", first.explain());
    // From here on nothing of the file is read, whatever it holds.
    put(&path, vec![0; bytes.len()]);
    assert_eq!(data.image(1499).unwrap_err().explain(), first.explain());
}

#[test]
fn paths_in_cells_stay_below_the_folder() {
    let root = tempdir().unwrap();
    put(root.path().join("outside.png"), png(&picture(9, 9, 1)));
    put(root.path().join("in/1.png"), png(&picture(8, 8, 1)));
    let absolute = root.path().join("outside.png").to_str().unwrap().to_owned();
    let paths = ["1.png", "../outside.png", &absolute, "/dev/zero", "."].map(|path| Some(path.to_owned()));
    let path = root.path().join("in/a.parquet");
    let columns = [
        (&["image", "bytes"][..], Values::Bytes(vec![None; 5])),
        (&["image", "path"][..], Values::Texts(paths.to_vec())),
    ];
    put_table(&path, &columns, 5, None);
    let data = open(&path, &DataConfig::default()).unwrap();
    assert_eq!(data.image(0).unwrap().width(), 8);
    for outside in 1..4 {
        assert!(matches!(data.image(outside), Err(SampleError::Outside)));
    }
    assert!(matches!(data.image(4), Err(SampleError::NotAFile)));
    let data = open(&path, &DataConfig { allow_outside: true, ..DataConfig::default() }).unwrap();
    assert_eq!((data.image(1).unwrap().width(), data.image(2).unwrap().width()), (9, 9));
    assert!(matches!(data.image(3), Err(SampleError::NotAFile)));
}

/// As repositories on Hugging Face have them: the word of the split anywhere in the name, in a folder of the subset's name.
#[test]
fn parquet_splits_are_told_by_any_word_and_number_their_names_alike() {
    let texts = |names: &[&str]| Values::Texts(names.iter().map(|name| Some((*name).to_owned())).collect());
    for folder in ["data", "mnist", "a/b"] {
        let root = tempdir().unwrap();
        put(root.path().join("README.md"), "words");
        put(root.path().join("assets/logo.png"), png(&picture(5, 4, 0)));
        let file = |name: &str| root.path().join(folder).join(name);
        parquet_file(
            &file("x-train-0.parquet"),
            &pictures(0, 2),
            texts(&["ant", "owl"]),
            ["image", "label"],
            None,
        );
        parquet_file(
            &file("x-validation-0.parquet"),
            &pictures(2, 3),
            texts(&["owl"]),
            ["image", "label"],
            None,
        );
        let [train, val, all] =
            [Split::Train, Split::Val, Split::All].map(|split| of(root.path(), split).unwrap());
        assert_eq!((train.len(), labels(&*val), all.len()), (2, vec![Some(1)], 3), "{folder}");
        assert_eq!(
            (val.class_names(), val.survey().unwrap().splits.len()),
            (&["ant".to_owned(), "owl".into()][..], 2)
        );
    }
}
