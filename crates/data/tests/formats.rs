//! Binary layouts: IDX, CIFAR, tar shards; and telling them apart.

mod common;

use std::fs;

use common::zip::zip_of;
use common::{gzip, idx, jpeg, labels, malformed, of, picture, png, put, tar_of};
use swav_data::{
    DataConfig, DataError, Dataset, Format, LabelCensus, LabelKind, SampleError, Shards, Split, open,
};
use tempfile::tempdir;

#[test]
fn idx_reads_plain_and_gzipped_files_by_split() {
    let root = tempdir().unwrap();
    let pixels: Vec<u8> = (0..2 * 3 * 4).collect();
    put(root.path().join("train-images-idx3-ubyte"), idx(&[2, 3, 4], &pixels));
    put(root.path().join("train-labels-idx1-ubyte.gz"), gzip(&idx(&[2], &[7, 1])));
    put(root.path().join("t10k-images-idx3-ubyte.gz"), gzip(&idx(&[1, 3, 4], &pixels[..12])));
    put(root.path().join("t10k-labels-idx1-ubyte.gz"), gzip(&idx(&[1], &[3])));
    let train = of(root.path(), Split::Train).unwrap();
    assert_eq!(labels(&*train), [Some(7), Some(1)]);
    // Labels are read with their images; those of other images are not.
    assert_eq!(train.survey().unwrap().n_left_aside(), 0);
    put(root.path().join("extra-labels-idx1-ubyte"), idx(&[1], &[3]));
    assert_eq!(of(root.path(), Split::Train).unwrap().survey().unwrap().n_left_aside(), 1);
    let image = train.image(1).unwrap();
    assert_eq!((image.width(), image.height(), image.data()), (4, 3, &pixels[12..]));
    assert_eq!(labels(&*of(root.path(), Split::Test).unwrap()), [Some(3)]);
    assert_eq!(labels(&*of(root.path(), Split::All).unwrap()).len(), 3);
    let file = open(root.path().join("t10k-images-idx3-ubyte.gz"), &DataConfig::default()).unwrap();
    assert_eq!((file.len(), file.label(0)), (1, Some(3)));
    assert_ne!(file.fingerprint(), train.fingerprint());
}

#[test]
fn broken_idx_files_say_what_is_wrong() {
    let root = tempdir().unwrap();
    let images = root.path().join("train-images-idx3-ubyte");
    let open_with = |bytes: Vec<u8>| {
        put(&images, bytes);
        of(root.path(), Split::Train)
    };
    assert!(malformed(open_with(idx(&[2, 3, 4], &[0; 23]))).contains("truncated"));
    assert!(malformed(open_with(idx(&[2, 3, 4], &[0; 25]))).contains("more data"));
    assert!(malformed(open_with(idx(&[u32::MAX, u32::MAX, u32::MAX], &[0; 9]))).contains("memory"));
    assert!(malformed(open_with(idx(&[4_000_000, 28, 28], &[0; 9]))).contains("truncated"));
    assert!(malformed(open_with(idx(&[0, 28, 28], &[]))).contains("no pixels"));
    assert!(malformed(open_with(idx(&[4], &[0; 4]))).contains("shape"));
    assert!(malformed(open_with(vec![0, 0, 13, 3])).contains("unsigned bytes"));
    assert!(malformed(open_with(vec![0, 0])).contains("truncated"));
    let zipped = gzip(&idx(&[2, 3, 4], &[0; 24]));
    assert!(open_with(zipped[..zipped.len() / 2].to_vec()).is_err());
    put(root.path().join("train-labels-idx1-ubyte"), idx(&[3], &[0; 3]));
    assert!(malformed(open_with(idx(&[2, 3, 4], &[0; 24]))).contains("one label for each"));
    assert!(matches!(of(root.path(), Split::Test), Err(DataError::NoSplit { split: Split::Test, .. })));
}

/// CIFAR records: every image has one colour, (label, 100, 200).
fn cifar(label_bytes: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for labels in label_bytes {
        bytes.extend(*labels);
        [*labels.last().unwrap(), 100, 200].iter().for_each(|&value| bytes.extend([value; 1024]));
    }
    bytes
}

#[test]
fn cifar_10_and_100_are_told_apart() {
    let root = tempdir().unwrap();
    put(root.path().join("data_batch_1.bin"), cifar(&[&[3], &[9]]));
    put(root.path().join("data_batch_2.bin"), cifar(&[&[0]]));
    put(root.path().join("test_batch.bin"), cifar(&[&[5]]));
    put(root.path().join("batches.meta.txt"), "airplane\nautomobile\n\n");
    let train = of(root.path(), Split::Train).unwrap();
    assert_eq!(labels(&*train), [Some(3), Some(9), Some(0)]);
    assert_eq!(train.class_names(), ["airplane", "automobile"]);
    let image = train.image(1).unwrap();
    assert_eq!(
        (image.width(), image.height(), &image.data()[..6]),
        (32, 32, &[9, 100, 200, 9, 100, 200][..])
    );
    assert_eq!(labels(&*of(root.path(), Split::Test).unwrap()), [Some(5)]);

    let hundred = tempdir().unwrap();
    put(hundred.path().join("train.bin"), cifar(&[&[19, 99], &[0, 50]]));
    assert_eq!(labels(&*of(hundred.path(), Split::Train).unwrap()), [Some(99), Some(50)]);
    let coarse = DataConfig { label_column: Some("coarse_label".to_owned()), ..DataConfig::default() };
    assert_eq!(labels(&*open(hundred.path(), &coarse).unwrap()), [Some(19), Some(0)]);
    let wrong = DataConfig { label_column: Some("colour".to_owned()), ..DataConfig::default() };
    assert!(matches!(open(hundred.path(), &wrong), Err(DataError::Config { field: "label_column", .. })));
    assert!(matches!(of(hundred.path(), Split::Test), Err(DataError::NoSplit { .. })));

    put(hundred.path().join("train.bin"), &cifar(&[&[19, 99]])[1..]);
    assert!(malformed(of(hundred.path(), Split::Train)).contains("found"));
    put(hundred.path().join("train.bin"), cifar(&[&[10]]));
    assert!(malformed(of(hundred.path(), Split::Train)).contains("below 10"));
}

fn shard(from: u32, to: u32) -> Vec<u8> {
    let members: Vec<_> = (from..to)
        .flat_map(|id| {
            [
                (format!("set/{id:04}.cls"), format!("{}\n", id % 5).into_bytes()),
                (format!("set/{id:04}.png"), png(&picture(6, 5, id))),
            ]
        })
        .collect();
    tar_of(&members)
}

#[test]
fn shards_are_read_in_place_with_labels_and_blocks() {
    let root = tempdir().unwrap();
    put(root.path().join("s-000.tar"), shard(0, 3));
    put(root.path().join("s-001.tar"), shard(3, 7));
    let data = open(root.path(), &DataConfig::default()).unwrap();
    assert_eq!(labels(&*data), (0..7).map(|id| Some(id % 5)).collect::<Vec<_>>());
    assert_eq!(data.blocks(), Some(vec![0..3, 3..7]));
    assert_eq!(data.name(4), "s-001.tar/set/0004");
    for id in [6, 0, 3] {
        assert_eq!(data.image(id as usize).unwrap().data(), picture(6, 5, id).as_raw().as_slice());
    }
    let braces = root.path().join("s-{000..001}.tar");
    assert_eq!(open(&braces, &DataConfig::default()).unwrap().fingerprint(), data.fingerprint());
    assert_eq!(open(root.path().join("s-001.tar"), &DataConfig::default()).unwrap().len(), 4);
    let missing = root.path().join("s-{000..002}.tar");
    assert!(matches!(open(missing, &DataConfig::default()), Err(DataError::Missing { .. })));
    fs::remove_file(root.path().join("s-000.tar")).unwrap();
    assert!(matches!(data.image(1), Err(SampleError::Vanished)));
}

#[test]
fn shards_choose_splits_by_name_and_images_by_their_whole_ending() {
    let root = tempdir().unwrap();
    let members = |id: u32| {
        [
            ("json", format!("{{\"label\": {id}}}").into_bytes()),
            ("seg.png", b"not the image".to_vec()),
            ("png", png(&picture(6, 5, id))),
        ]
        .map(|(ending, data)| (format!("{id}.{ending}"), data))
        .to_vec()
    };
    put(root.path().join("train-0.tar"), tar_of(&members(1)));
    put(
        root.path().join("val-0.tar"),
        tar_of(&[members(2), vec![("lonely.json".to_owned(), b"{}".to_vec())]].concat()),
    );
    let config = |split| DataConfig { split, label_extension: "json".to_owned(), ..DataConfig::default() };
    let val = open(root.path(), &config(Split::Test)).unwrap();
    assert_eq!((val.len(), val.label(0)), (1, Some(2)));
    assert_eq!(val.image(0).unwrap().data(), picture(6, 5, 2).as_raw().as_slice());
    assert_eq!(labels(&*open(root.path(), &config(Split::Train)).unwrap()), [Some(1)]);
    assert_eq!(open(root.path(), &config(Split::All)).unwrap().len(), 2);
}

#[test]
fn damaged_shards_cost_their_damaged_members() {
    let root = tempdir().unwrap();
    let path = root.path().join("s.tar");
    let good = shard(0, 6);
    let mut bytes = good.clone();
    let position = bytes.windows(12).position(|window| window == b"set/0002.png").unwrap();
    bytes[position + 1] ^= 0x40;
    put(&path, &bytes);
    let shards = Shards::open(vec![path.clone()], &DataConfig::default().check().unwrap()).unwrap();
    assert_eq!((shards.len(), shards.n_corrupt()), (5, 1));
    assert!((0..5).all(|index| shards.image(index).is_ok()));
    put(&path, &good[..good.len() - 1600]);
    assert_eq!(Shards::open(vec![path.clone()], &DataConfig::default().check().unwrap()).unwrap().len(), 5);

    put(&path, b"BZh91AY&SY");
    assert!(malformed(open(&path, &DataConfig::default())).contains("bzip2"));
    put(&path, tar_of(&[("readme.txt".to_owned(), b"hello".to_vec())]));
    assert!(matches!(open(&path, &DataConfig::default()), Err(DataError::Empty { .. })));
}

#[test]
fn formats_are_told_by_content_and_can_be_overridden() {
    let root = tempdir().unwrap();
    put(root.path().join("shard"), shard(0, 2));
    assert_eq!(open(root.path().join("shard"), &DataConfig::default()).unwrap().len(), 2);
    put(root.path().join("digits"), idx(&[1, 2, 2], &[1, 2, 3, 4]));
    assert_eq!(
        open(root.path().join("digits"), &DataConfig::default()).unwrap().image(0).unwrap().data(),
        [1, 2, 3, 4]
    );
    let as_idx = DataConfig { format: Format::Idx, ..DataConfig::default() };
    assert!(malformed(open(root.path().join("shard"), &as_idx)).contains("start"));
    let as_list = DataConfig { format: Format::List, ..DataConfig::default() };
    put(root.path().join("list"), "one.jpg\n");
    put(root.path().join("one.jpg"), jpeg(&picture(7, 7, 0)));
    assert_eq!(open(root.path().join("list"), &as_list).unwrap().image(0).unwrap().width(), 7);
    let builtin = DataConfig { format: Format::Builtin, ..DataConfig::default() };
    assert_eq!(open("anything", &builtin).unwrap().len(), 6000);
}

fn members(list: &[(&str, &[u8])]) -> Vec<u8> {
    let picture = png(&picture(6, 5, 1));
    let content = |name: &str, text: &[u8]| {
        let is_image = text.is_empty() && (name.ends_with("png") || name.ends_with("jpg"));
        if is_image { picture.clone() } else { text.to_vec() }
    };
    tar_of(&list.iter().map(|(name, text)| ((*name).to_owned(), content(name, text))).collect::<Vec<_>>())
}

/// Each member that is an image is one image; what is not is counted.
#[test]
fn members_of_shards_are_not_lost() {
    let none: &[u8] = b"";
    let cases: &[(&[&str], &[&str], &[&str])] = &[
        (&["22.05.png", "22.06.png", "plain.png"], &["22.05", "22.06", "plain"], &[]),
        (&["22.05.png", "22.png"], &["22.05", "22"], &[]),
        (&["a.jpg", "a.jpg", "b.png"], &["a", "a.jpg", "b"], &[]),
        (&["a.jpg", "a.png"], &["a", "a.png"], &[]),
        (&["a.jpg", "a.seg.png", "b.mask.png"], &["a"], &["2 that go with an image (a.seg.png, b.mask.png)"]),
        (
            &["x/._a.jpg", "x/a.jpg", ".git/b.png"],
            &["x/a"],
            &["2 with a name that begins with a dot (.git/b.png, x/._a.jpg)"],
        ),
        (&["a.heic", "a.json", "b.jpg"], &["b"], &["1 HEIC file (a.heic): convert them to JPEG or PNG"]),
    ];
    for (names, images, aside) in cases {
        let root = tempdir().unwrap();
        put(root.path().join("s.tar"), members(&names.iter().map(|name| (*name, none)).collect::<Vec<_>>()));
        let data = open(root.path(), &DataConfig::default()).unwrap();
        let found: Vec<String> =
            (0..data.len()).map(|index| data.name(index).replace("s.tar/", "")).collect();
        assert_eq!(found, *images, "{names:?}");
        assert!((0..data.len()).all(|index| data.image(index).is_ok()), "{names:?}");
        let told: Vec<String> = data.survey().unwrap().left_aside.iter().map(ToString::to_string).collect();
        assert_eq!(told, *aside, "{names:?}");
    }
}

#[test]
fn labels_of_any_kind_stop_no_shard() {
    let root = tempdir().unwrap();
    let labelled = |ending: &str, labels: &[&str]| {
        let all: Vec<(String, Vec<u8>)> = (labels.iter().enumerate())
            .flat_map(|(id, label)| {
                let label = (format!("{id}.{ending}"), label.as_bytes().to_vec());
                [(format!("{id}.png"), png(&picture(6, 5, 1))), label]
            })
            .collect();
        put(root.path().join("s.tar"), tar_of(&all));
        let config = DataConfig { label_extension: ending.to_owned(), ..DataConfig::default() };
        open(root.path(), &config).unwrap()
    };
    let data = labelled("cls", &["3", "-1", "2.0", "0.5", "", "[1]"]);
    assert_eq!(labels(&*data), [Some(3), None, Some(2), None, None, None]);
    assert_eq!([3, 5].map(|index| data.label_kind(index)), [LabelKind::Fraction, LabelKind::List]);
    let data = labelled("cls", &["owl", "ant", "owl"]);
    assert_eq!(
        (labels(&*data), data.class_names()),
        (vec![Some(1), Some(0), Some(1)], &["ant".to_owned(), "owl".into()][..])
    );
    let json = [
        "{\"label\": \"ant\"}",
        "{\"label\": [1, 2]}",
        "{\"label\": null}",
        "{}",
        "{broken",
        "{\"label\": 4}",
    ];
    let data = labelled("json", &json);
    assert_eq!(labels(&*data), [Some(1), None, None, None, None, Some(0)]);
    assert_eq!((data.class_names().len(), data.label_kind(4)), (2, LabelKind::Unreadable));
    assert_eq!(LabelCensus::of(&data).n_labelled(), 2);
}

#[test]
fn gzipped_shards_are_unpacked_within_a_limit() {
    let root = tempdir().unwrap();
    let whole = shard(0, 5);
    put(root.path().join("s.tar"), &whole);
    let plain = open(root.path().join("s.tar"), &DataConfig::default()).unwrap();
    fs::remove_file(root.path().join("s.tar")).unwrap();
    for name in ["train-0.tar.gz", "x.tgz", "without-ending"] {
        let path = root.path().join(name);
        put(&path, gzip(&whole));
        let packed = open(&path, &DataConfig::default()).unwrap();
        assert_eq!((labels(&*packed), packed.fingerprint()), (labels(&*plain), plain.fingerprint()));
        assert_eq!(packed.image(3).unwrap().data(), picture(6, 5, 3).as_raw().as_slice());
        fs::remove_file(&path).unwrap();
    }
    put(root.path().join("train-0.tar.gz"), gzip(&whole));
    put(root.path().join("test-0.tar.gz"), gzip(&shard(5, 7)));
    assert_eq!(of(root.path(), Split::Test).unwrap().len(), 2);
    put(root.path().join("test-0.tar.gz"), gzip(&vec![0; 3 << 20]));
    let small = DataConfig { unpack_mib: 2, split: Split::Test, ..DataConfig::default() };
    assert!(malformed(open(root.path(), &small)).contains("unpack_mib"));
    // Beside images an archive is what they came from.
    put(root.path().join("photos/1.png"), png(&picture(2, 2, 0)));
    let data = open(root.path(), &DataConfig::default()).unwrap();
    assert_eq!(data.len(), 1);
    assert!(data.survey().unwrap().to_string().contains("2 gzipped tar files"));
}

#[test]
fn members_that_cannot_be_unpacked_are_named() {
    let root = tempdir().unwrap();
    let picture = png(&picture(6, 5, 0));
    let whole = zip_of(&[("a.png", &picture), ("b.png", &picture), ("c.png", &picture)]);
    let mut bytes = whole.clone();
    let entry = |name: &str| {
        let found = |at: &usize| {
            whole[*at..].starts_with(b"PK\x01\x02") && whole[at + 46..].starts_with(name.as_bytes())
        };
        (0..whole.len() - 50).find(found).unwrap()
    };
    bytes[entry("a.png") + 8] |= 1;
    bytes[entry("b.png") + 10] = 12;
    put(root.path().join("x.zip"), &bytes);
    let data = open(root.path().join("x.zip"), &DataConfig::default()).unwrap();
    let told = data.survey().unwrap().to_string();
    assert!(data.len() == 1 && told.starts_with("zip archive "), "{told}");
    assert!(told.contains("1 encrypted file (a.png): unpack the archive with its password"), "{told}");
    assert!(told.contains("1 bzip2, LZMA or zstd file (b.png)"), "{told}");
}

#[test]
fn folders_in_archives_are_splits_and_classes() {
    let root = tempdir().unwrap();
    let names = ["x/train/cat/1.png", "x/train/dog/2.png", "x/test/dog/3.png", "x/Validation/cat/4.png"];
    let pictures: Vec<Vec<u8>> = (1..5).map(|id| png(&picture(6, 5, id))).collect();
    let parts: Vec<(&str, &[u8])> = names.into_iter().zip(pictures.iter().map(Vec::as_slice)).collect();
    put(root.path().join("x.zip"), zip_of(&parts));
    let owned: Vec<_> = parts.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
    put(root.path().join("x.tgz"), gzip(&tar_of(&owned)));
    for name in ["x.zip", "x.tgz"] {
        let path = root.path().join(name);
        let label = |split| labels(&*of(&path, split).unwrap());
        assert_eq!(label(Split::Train), [Some(0), Some(1)], "{name}");
        assert_eq!((label(Split::Test), label(Split::Val)), (vec![Some(1)], vec![Some(0)]), "{name}");
        let all = of(&path, Split::All).unwrap();
        assert_eq!((all.len(), all.class_names()), (4, &["cat".to_owned(), "dog".into()][..]));
        assert!(all.survey().unwrap().to_string().contains("split all of train, val, test"));
        let test = of(&path, Split::Test).unwrap();
        assert_eq!(test.image(0).unwrap().data(), picture(6, 5, 3).as_raw().as_slice());
        assert_eq!(test.blocks().map(|blocks| blocks.len()), Some(1));
    }
}

/// ImageNet's training archive holds an archive for each class.
#[test]
fn archives_in_archives_are_read_in_place_with_a_class_each() {
    let root = tempdir().unwrap();
    let inner = |ids: &[u32]| {
        tar_of(&ids.iter().map(|id| (format!("./{id}.png"), png(&picture(6, 5, *id)))).collect::<Vec<_>>())
    };
    let deep = tar_of(&[("n3.tar".to_owned(), inner(&[4])), ("readme".to_owned(), vec![0; 3])]);
    let whole = tar_of(&[
        ("n2.tar".to_owned(), inner(&[0, 1])),
        ("n1.tar".to_owned(), inner(&[2, 3])),
        ("more.TAR".to_owned(), deep),
    ]);
    put(root.path().join("train.tar"), &whole);
    put(root.path().join("train.tgz"), gzip(&whole));
    for name in ["train.tar", "train.tgz"] {
        let data = open(root.path().join(name), &DataConfig::default()).unwrap();
        let found: Vec<String> = (0..data.len()).map(|index| data.name(index)).collect();
        let expected = ["n2/0", "n2/1", "n1/2", "n1/3", "more/n3/4"].map(|member| format!("{name}/{member}"));
        assert_eq!(found, expected);
        assert_eq!(data.class_names(), ["n1", "n2", "n3"]);
        assert_eq!(labels(&*data), [Some(1), Some(1), Some(0), Some(0), Some(2)]);
        for id in 0..5 {
            assert_eq!(data.image(id).unwrap().data(), picture(6, 5, id as u32).as_raw().as_slice());
        }
    }
    // Labels of their own count more than the archives they lie in.
    let labelled =
        tar_of(&[("1.png".to_owned(), png(&picture(6, 5, 1))), ("1.cls".to_owned(), b"7".to_vec())]);
    put(
        root.path().join("own.tar"),
        tar_of(&[("a.tar".to_owned(), labelled), ("b.tar".to_owned(), inner(&[2]))]),
    );
    let data = open(root.path().join("own.tar"), &DataConfig::default()).unwrap();
    assert_eq!(labels(&*data), [Some(7), None]);
}

#[test]
fn what_git_has_left_out_is_named() {
    let root = tempdir().unwrap();
    for name in ["train.parquet", "train.tar", "x.zip"] {
        put(root.path().join(name), "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n");
        match open(root.path().join(name), &DataConfig::default()).err() {
            Some(DataError::Unread { kind, advice, .. }) => {
                assert!(kind == "Git LFS pointer" && advice.contains("git lfs pull"));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn data_sets_are_found_below_the_folder_of_their_name() {
    let digits = |n: u8| idx(&[u32::from(n), 2, 2], &vec![n; 4 * usize::from(n)]);
    let root = tempdir().unwrap();
    let place = |name: &str| root.path().join(name);
    put(place("FashionMNIST/raw/train-images-idx3-ubyte"), digits(3));
    put(place("FashionMNIST/raw/train-images-idx3-ubyte.gz"), gzip(&digits(3)));
    put(place("FashionMNIST/raw/t10k-images-idx3-ubyte"), digits(2));
    put(place("FashionMNIST/processed/training.pt"), "x");
    for below in ["", "FashionMNIST", "FashionMNIST/raw"] {
        assert_eq!(of(&place(below), Split::Train).unwrap().len(), 3, "{below}");
        assert_eq!(of(&place(below), Split::Test).unwrap().len(), 2, "{below}");
    }
    // A data set beside it: which one is meant has to be said.
    put(place("cifar-10-batches-bin/data_batch_1.bin"), cifar(&[&[3], &[9]]));
    match of(root.path(), Split::Train) {
        Err(DataError::Several { found, .. }) => assert_eq!(found.len(), 2),
        other => panic!("{:?}", other.map(|data| data.describe())),
    }
    let cifar_10 = tempdir().unwrap();
    put(cifar_10.path().join("cifar-10-batches-bin/data_batch_1.bin"), cifar(&[&[3], &[9]]));
    put(cifar_10.path().join("cifar-10-batches-bin/._data_batch_1.bin"), "x");
    put(cifar_10.path().join("cifar-10-batches-bin/test_batch.bin"), cifar(&[&[1]]));
    put(cifar_10.path().join("cifar-10-binary.tar.gz"), gzip(b"x"));
    let data = of(cifar_10.path(), Split::Train).unwrap();
    assert_eq!(labels(&*data), [Some(3), Some(9)]);
    assert!(data.survey().unwrap().to_string().contains("cifar-10-binary.tar.gz"));
    // Shards in folders of splits, and names that have the word anywhere.
    for names in [
        ["Train/0.tar", "Val/0.tar"],
        ["data/x-train-0.tar", "data/x-validation-0.tar"],
        ["x/trainset_0.tar", "x/devset_0.tar"],
    ] {
        let shards = tempdir().unwrap();
        put(shards.path().join(names[0]), shard(0, 3));
        put(shards.path().join(names[1]), shard(3, 5));
        let lengths =
            [Split::Train, Split::Val, Split::All].map(|split| of(shards.path(), split).unwrap().len());
        assert_eq!(lengths, [3, 2, 5], "{names:?}");
    }
}

#[test]
fn emnist_is_known_by_its_names() {
    let root = tempdir().unwrap();
    let file = |set: &str, part: &str| root.path().join(format!("emnist-{set}-{part}-images-idx3-ubyte"));
    put(file("letters", "train"), idx(&[3, 2, 2], &[1; 12]));
    put(file("letters", "test"), idx(&[2, 2, 2], &[2; 8]));
    put(root.path().join("emnist-letters-test-labels-idx1-ubyte.gz"), gzip(&idx(&[2], &[5, 6])));
    assert_eq!(of(root.path(), Split::Train).unwrap().len(), 3);
    assert_eq!(labels(&*of(root.path(), Split::Test).unwrap()), [Some(5), Some(6)]);
    assert_eq!(of(root.path(), Split::All).unwrap().len(), 5);
    put(file("digits", "train"), idx(&[1, 2, 2], &[1; 4]));
    for split in [Split::Train, Split::Test, Split::All] {
        let error = of(root.path(), split).err().unwrap();
        assert!(
            matches!(error, DataError::Several { .. }) && error.to_string().contains("emnist-digits"),
            "{error}"
        );
    }
    // One file says which; its test images lie beside it.
    assert_eq!(of(&file("letters", "train"), Split::Train).unwrap().len(), 3);
    assert_eq!(labels(&*of(&file("letters", "train"), Split::Test).unwrap()), [Some(5), Some(6)]);
    assert!(matches!(of(&file("digits", "train"), Split::Test), Err(DataError::NoSplit { .. })));
}

#[test]
fn zip_archives_are_read_with_their_folders_as_classes() {
    let root = tempdir().unwrap();
    let pictures: Vec<Vec<u8>> = (0..3).map(|id| png(&picture(6, 5, id))).collect();
    let path = root.path().join("photos.zip");
    put(
        &path,
        zip_of(&[
            ("p/dog/1.png", &pictures[1]),
            ("p/cat/0.png", &pictures[0]),
            ("p/dog/2.png", &pictures[2]),
            ("p/x.heic", b"x"),
            ("__MACOSX/._0.png", b"x"),
        ]),
    );
    for given in [root.path(), &path] {
        let data = open(given, &DataConfig::default()).unwrap();
        let names: Vec<String> = (0..3).map(|index| data.name(index)).collect();
        assert_eq!(names, ["photos.zip/p/cat/0", "photos.zip/p/dog/1", "photos.zip/p/dog/2"]);
        assert_eq!(
            (labels(&*data), data.class_names()),
            (vec![Some(0), Some(1), Some(1)], &["cat".to_owned(), "dog".into()][..])
        );
        assert_eq!(data.image(2).unwrap().data(), picture(6, 5, 2).as_raw().as_slice());
        let survey = data.survey().unwrap().to_string();
        assert!(
            survey.contains("1 HEIC file (p/x.heic)") && survey.contains("begins with a dot"),
            "{survey}"
        );
    }
    let small = DataConfig { unpack_mib: 0, ..DataConfig::default() };
    assert!(malformed(open(&path, &small)).contains("unpack_mib"));
    put(&path, b"PK\x03\x04 and no end");
    assert!(malformed(open(&path, &DataConfig::default())).contains("directory"));
    put(&path, b"no zip");
    assert!(malformed(open(&path, &DataConfig::default())).contains("expected a zip archive"));
}
