//! Parquet files as Hugging Face and others write them.

mod common;

use std::{fs, path::Path, sync::Arc};

use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field, Fields, Schema};
use common::{labels, malformed, of, picture, png, put};
use parquet::file::metadata::KeyValue;
use swav_data::{DataConfig, DataError, Dataset, SampleError, Split, open};
use tempfile::tempdir;

/// A Parquet file as Hugging Face writes it, with two rows in a group.
fn parquet_file(
    path: &Path,
    images: &[Option<Vec<u8>>],
    labels: ArrayRef,
    names: [&str; 2],
    features: Option<&str>,
) {
    let paths = StringArray::from((0..images.len()).map(|id| Some(format!("{id}.png"))).collect::<Vec<_>>());
    let bytes = BinaryArray::from(images.iter().map(Option::as_deref).collect::<Vec<_>>());
    let fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let image = StructArray::new(fields.clone(), vec![Arc::new(bytes), Arc::new(paths)], None);
    let schema = Schema::new(vec![
        Field::new(names[0], DataType::Struct(fields), true),
        Field::new(names[1], labels.data_type().clone(), true),
    ]);
    let schema = Arc::new(schema);
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(image), labels]).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(parquet::basic::Compression::SNAPPY)
        .set_max_row_group_row_count(Some(2))
        .set_key_value_metadata(
            features.map(|text| vec![KeyValue::new("huggingface".to_owned(), text.to_owned())]),
        )
        .build();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(fs::File::create(path).unwrap(), schema, Some(properties))
            .unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn pictures(from: u32, to: u32) -> Vec<Option<Vec<u8>>> {
    (from..to).map(|id| Some(png(&picture(5, 4, id)))).collect()
}

fn ints(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
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

/// Row groups are held in parts, since the bytes of one array must stay below 2^31.
#[test]
fn parquet_row_groups_of_any_length_are_read() {
    let root = tempdir().unwrap();
    let n_rows = 256 * 2 + 3;
    let schema = Arc::new(Schema::new(vec![Field::new("image", DataType::Binary, false)]));
    let bytes: Vec<Vec<u8>> = (0..n_rows).map(|id| png(&picture(1, 1, id))).collect();
    let column = Arc::new(BinaryArray::from_iter_values(bytes)) as ArrayRef;
    let file = fs::File::create(root.path().join("a.parquet")).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, schema.clone(), None).unwrap();
    writer.write(&RecordBatch::try_new(schema, vec![column]).unwrap()).unwrap();
    writer.close().unwrap();
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
    let words = Arc::new(StringArray::from(vec![Some("owl"), Some("ant"), None])) as ArrayRef;
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
