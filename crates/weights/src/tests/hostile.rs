//! Files that are made to do harm, or that are broken: typed errors, nothing executed, no more memory than there are bytes.

use proptest::prelude::*;

use crate::pickle::MAX_OPERATIONS;
use crate::zip::tests::archive;
use crate::{Dtype, Import, WeightsError, WeightsFile};

const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// An archive of torch.save with this pickle and one storage `0` of 8 floats.
fn zipped(pickle: &[u8]) -> Result<WeightsFile, WeightsError> {
    let storage: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let entries: [(&str, &[u8]); 3] =
        [("x/data.pkl", pickle), ("x/byteorder", b"little"), ("x/data/0", &storage)];
    WeightsFile::from_bytes(archive(&entries))
}

/// The pickle of {"t": tensor} with a storage, an offset, a shape and strides.
fn tensor(storage: &[u8], offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let number = |value: &i64| [&[0x8a, 8][..], &value.to_le_bytes()].concat();
    let tuple =
        |values: &[i64]| [b"(".to_vec(), values.iter().flat_map(number).collect(), b"t".to_vec()].concat();
    [
        b"\x80\x02}X\x01\0\0\0tctorch._utils\n_rebuild_tensor_v2\n(",
        storage,
        &number(&offset),
        &tuple(shape),
        &tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat()
}

/// The identity of a storage.
fn storage(kind: &str, key: &str, len: i64) -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let number = [&[0x8a, 8][..], &len.to_le_bytes()].concat();
    [
        b"(".to_vec(),
        text("storage"),
        format!("ctorch\n{kind}\n").into_bytes(),
        text(key),
        text("cpu"),
        number,
        b"tQ".to_vec(),
    ]
    .concat()
}

#[test]
fn a_good_pickle_is_read() {
    let mut file = zipped(&tensor(&storage("FloatStorage", "0", 8), 1, &[2, 3], &[3, 1])).unwrap();
    assert_eq!(file.read("t").unwrap().data(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(file.tensor("t").map(|tensor| tensor.dtype()), Some(Dtype::F32));
}

#[test]
fn every_function_but_those_of_tensors_is_refused_by_name() {
    let pickles: [(&[u8], &str); 9] = [
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.", "os.system"),
        (b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R.", "posix.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93)R.", "builtins.exec"),
        (b"\x80\x02csubprocess\nPopen\n)R.", "subprocess.Popen"),
        (b"\x80\x02c__builtin__\ngetattr\n.", "__builtin__.getattr"),
        (b"(S'id'\nios\nsystem\n.", "os.system"),
        (b"\x80\x02ctorch\nload\n)R.", "torch.load"),
        (b"\x80\x02}(X\x04\0\0\0argscargparse\nNamespace\n)\x81}bu.", "argparse.Namespace"),
    ];
    for (pickle, expected) in pickles {
        let legacy = [MAGIC, b"\x80\x02M\xe9\x03.\x80\x02}.", pickle].concat();
        for result in [zipped(pickle), WeightsFile::from_bytes(legacy)] {
            match result {
                Err(WeightsError::Refused { name }) => assert_eq!(name, expected),
                // Protocol 0 is refused at its first operation.
                Err(WeightsError::Malformed { .. }) if pickle[0] == b'(' => {}
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}

#[test]
fn pickles_that_contain_themselves_end() {
    // A list in itself, a dictionary in itself, and in a tuple of itself.
    for pickle in
        [&b"\x80\x02]q\0h\0a."[..], b"\x80\x02}q\0X\x01\0\0\0ah\0s.", b"\x80\x02}q\0X\x01\0\0\0ah\0\x85s."]
    {
        assert!(matches!(zipped(pickle), Err(WeightsError::TooLarge { .. })), "{pickle:?}");
    }
    // Each of 60 dictionaries holds the one before twice: 2^60 paths.
    let mut laughs = b"\x80\x02}q\0".to_vec();
    for level in 0..60u8 {
        laughs.extend([
            b'}',
            b'(',
            b'X',
            1,
            0,
            0,
            0,
            b'a',
            b'h',
            level,
            b'X',
            1,
            0,
            0,
            0,
            b'b',
            b'h',
            level,
            b'u',
            b'q',
            level + 1,
        ]);
    }
    laughs.push(b'.');
    assert!(matches!(zipped(&laughs), Err(WeightsError::TooLarge { .. })));
    // So many within each other that a walk by recursion would end the program.
    let deep = [b"\x80\x02]".to_vec(), b"\x85".repeat(100_000), b".".to_vec()].concat();
    assert!(matches!(zipped(&deep), Err(WeightsError::TooLarge { .. })));
    // More operations than any file of weights.
    let long = [b"\x80\x02]".to_vec(), b"N0".repeat(MAX_OPERATIONS / 2 + 1), b".".to_vec()].concat();
    assert!(matches!(zipped(&long), Err(WeightsError::TooLarge { .. })));
}

#[test]
fn absurd_sizes_take_no_memory() {
    // Text, bytes and integers of 4 GiB and of 2^63 bytes; frames are not believed.
    for pickle in [
        &b"\x80\x04X\xff\xff\xff\xff"[..],
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x80\x04\x8b\xff\xff\xff\x7f",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert!(matches!(zipped(pickle), Err(WeightsError::Truncated { .. })), "{pickle:?}");
    }
    // Memory cells far out are cells like others.
    assert!(zipped(b"\x80\x02}r\xff\xff\xff\xff.").is_ok());
}

/// A value in the pickler's memory costs two bytes to ask for: what is made of it each time may not be large.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let (n, times) = (40_000, 30_000);
    let many = |values: &[u8], rest: &[u8]| [b"(".to_vec(), values.repeat(n), rest.to_vec()].concat();
    let begin = |parts: &[&[u8]]| [b"\x80\x02".to_vec(), parts.concat(), b"(".to_vec()].concat();
    let rebuild = b"ctorch._utils\n_rebuild_tensor_v2\nq\x040";
    let floats = [storage("FloatStorage", "0", 8), b"q\x020".to_vec()].concat();
    let calls = |head: Vec<u8>| [head, b"h\x04h\x03R".repeat(times), b"l.".to_vec()].concat();
    vec![
        // A tensor of 40,000 dimensions.
        (
            "shapes",
            calls(begin(&[&many(b"K\x01", b"tq\x010"), &floats, b"(h\x02K\0h\x01h\x01tq\x030", rebuild])),
        ),
        // A constructor with 40,000 arguments.
        (
            "arguments",
            calls(begin(&[
                b"K\x01\x85q\x010",
                &floats,
                b"(h\x02K\0h\x01h\x01",
                &b"N".repeat(n),
                b"tq\x030",
                rebuild,
            ])),
        ),
        // A dictionary made of 40,000 pairs.
        ("pairs", calls(begin(&[&many(b"NN\x86", b"l\x85q\x030"), b"ccollections\nOrderedDict\nq\x040"]))),
        // A dictionary of entries without names in a list, and the list in a list.
        (
            "visits",
            [
                begin(&[b"}", &many(b"\x88N", b"uq\x010"), &many(b"h\x01", b"lq\x020")]),
                b"h\x02".repeat(times),
                b"l.".to_vec(),
            ]
            .concat(),
        ),
    ]
}

#[test]
fn what_is_remembered_does_not_multiply() {
    for (name, pickle) in bombs() {
        let result = zipped(&pickle);
        assert!(matches!(result, Err(WeightsError::TooLarge { .. })), "{name}: {result:?}");
    }
}

#[test]
fn pickles_without_sense_are_refused() {
    for pickle in [
        &b"\x80\x02."[..],
        b"\x80\x020.",
        b"\x80\x02t.",
        b"\x80\x02\x87.",
        b"\x80\x02(\x85.",
        b"\x80\x02h\x05.",
        b"\x80\x02]NNs.",
        b"\x80\x02}Na.",
        b"\x80\x02}(Nu.",
        b"\x80\x02NNb.",
        b"\x80\x02NNR.",
        b"\x80\x02)NR.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02X\x01\0\0\0aQ.",
        b"\x80\x02NX\x01\0\0\0a\x93.",
        b"\x80\x02\xff.",
        b"\x80\x02X\x01\0\0\0\xff.",
    ] {
        assert!(
            matches!(zipped(pickle), Err(WeightsError::Malformed { .. })),
            "{pickle:?}: {:?}",
            zipped(pickle)
        );
    }
}

#[test]
fn tensors_outside_of_their_storage_are_refused() {
    let floats = storage("FloatStorage", "0", 8);
    let cases: [(i64, &[i64], &[i64]); 8] = [
        (0, &[9], &[1]),
        (1, &[2, 4], &[4, 1]),
        (0, &[2, 2], &[8, 1]),
        (i64::MAX, &[1], &[1]),
        (0, &[1 << 40, 1 << 40], &[0, 0]),
        (0, &[1 << 62], &[0]),
        (0, &[1000], &[0]),
        (0, &[2], &[1, 1]),
    ];
    for (offset, shape, strides) in cases {
        let result = zipped(&tensor(&floats, offset, shape, strides));
        assert!(
            matches!(result, Err(WeightsError::Tensor { .. })),
            "{offset} {shape:?} {strides:?}: {result:?}"
        );
    }
    for (offset, shape, strides) in [(-1, &[2][..], &[1][..]), (0, &[-2], &[1]), (0, &[2], &[-1])] {
        let result = zipped(&tensor(&floats, offset, shape, strides));
        assert!(
            matches!(result, Err(WeightsError::Malformed { .. })),
            "{offset} {shape:?} {strides:?}: {result:?}"
        );
    }
    // Storages that are longer or shorter than they say, of other numbers, or not there.
    for (kind, key, len) in [
        ("FloatStorage", "0", 9),
        ("FloatStorage", "0", 7),
        ("HalfStorage", "0", 8),
        ("FloatStorage", "1", 8),
        ("FloatStorage", "0", i64::MAX),
    ] {
        let result = zipped(&tensor(&storage(kind, key, len), 0, &[1], &[1]));
        assert!(matches!(result, Err(WeightsError::Tensor { .. })), "{kind} {key} {len}: {result:?}");
    }
    // 16 halves are 8 floats.
    assert!(zipped(&tensor(&storage("HalfStorage", "0", 16), 0, &[16], &[1])).is_ok());
}

/// One storage of 1000 floats as 1000 tensors: each is fine, all together are a thousand times the file.
#[test]
fn shared_storages_do_not_multiply() {
    let mut pickle = b"\x80\x02}(".to_vec();
    let number = |value: i64| [&[0x8a, 8][..], &value.to_le_bytes()].concat();
    for index in 0..1000 {
        let name = format!("t{index:03}");
        pickle.extend([b"X\x04\0\0\0", name.as_bytes(), b"ctorch._utils\n_rebuild_tensor_v2\n("].concat());
        pickle.extend(storage("FloatStorage", "0", 1000));
        pickle.extend([&number(0)[..], b"(", &number(1000), b"t(", &number(1), b"t\x89NtR"].concat());
    }
    pickle.extend(b"u.");
    let data = vec![0; 4000];
    let bytes = archive(&[("x/data.pkl", &pickle), ("x/data/0", &data)]);
    let mut file = WeightsFile::from_bytes(bytes).unwrap();
    assert!(matches!(file.read_all(), Err(WeightsError::TooLarge { .. })));
    assert_eq!(file.read("t999").unwrap().data().len(), 1000);
}

#[test]
fn storages_with_wrong_checksums_are_refused() {
    let pickle = tensor(&storage("FloatStorage", "0", 2), 0, &[2], &[1]);
    let good = archive(&[("x/data.pkl", &pickle), ("x/data/0", &[7; 8])]);
    let place = good.windows(8).position(|window| window == [7; 8]).unwrap();
    let mut changed = good.clone();
    changed[place] = 8;
    let mut file = WeightsFile::from_bytes(changed).unwrap();
    assert!(matches!(file.read("t"), Err(WeightsError::Malformed { .. })));
    assert!(WeightsFile::from_bytes(good).unwrap().read("t").is_ok());
}

#[test]
fn other_files_say_what_they_are() {
    let program = archive(&[("x/data.pkl", b"\x80\x02}."), ("x/constants.pkl", b"\x80\x02).")]);
    let big = archive(&[("x/data.pkl", b"\x80\x02}."), ("x/byteorder", b"big")]);
    assert!(matches!(WeightsFile::from_bytes(big), Err(WeightsError::Malformed { .. })));
    for (bytes, word) in [
        (program, "TorchScript"),
        (archive(&[("x/readme", b"hello")]), "another zip archive"),
        (Vec::new(), "empty"),
        (b"\x1f\x8b\x08\0".to_vec(), "gzip"),
        (b"<!DOCTYPE html><html>".to_vec(), "web page"),
        (b"version https://git-lfs.github.com/spec/v1".to_vec(), "Git LFS"),
        (b"\x80\x02}.".to_vec(), "pickle"),
        (b"hello, world, this is text".to_vec(), "hello"),
    ] {
        match WeightsFile::from_bytes(bytes) {
            Err(WeightsError::Format { got, .. }) => assert!(got.contains(word), "{got}"),
            other => panic!("{word}: {other:?}"),
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let error = WeightsFile::open(folder.path()).unwrap_err();
    assert!(
        matches!(&error, WeightsError::In { source, .. } if matches!(**source, WeightsError::Format { .. }))
    );
    let missing = WeightsFile::open(folder.path().join("none.pth"));
    assert!(matches!(missing, Err(WeightsError::Read { .. })));
}

fn safetensors(header: &str, n_bytes: usize) -> Result<WeightsFile, WeightsError> {
    let length = (header.len() as u64).to_le_bytes();
    WeightsFile::from_bytes([&length[..], header.as_bytes(), &vec![0; n_bytes]].concat())
}

#[test]
fn safetensors_that_lie_are_refused() {
    assert!(safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8).is_ok());
    let one = |entry: &str, n_bytes| safetensors(&format!(r#"{{"a":{{{entry}}}}}"#), n_bytes);
    for (entry, n_bytes) in [
        // Outside, backwards, far away, not at the start, another size than the shape's.
        (r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#, 7),
        (r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#, 8),
        (r#""dtype":"F32","shape":[2],"data_offsets":[18446744073709551600,18446744073709551608]"#, 8),
        (r#""dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]"#, 8),
        (r#""dtype":"F32","shape":[2],"data_offsets":[4,12]"#, 12),
        (r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#, 8),
        (r#""dtype":"F32","shape":[2],"data_offsets":[0,7]"#, 7),
        (r#""dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]"#, 8),
        (r#""dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]"#, 0),
        (r#""dtype":"Q7","shape":[2],"data_offsets":[0,8]"#, 8),
        (r#""dtype":"F32","shape":[-2],"data_offsets":[0,8]"#, 8),
        (r#""dtype":"F32","shape":[2,1,1,1,1,1,1,1,1],"data_offsets":[0,8]"#, 8),
        (r#""dtype":"F32","shape":[2]"#, 8),
        // More bytes than the tensors have.
        (r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#, 9),
    ] {
        let result = one(entry, n_bytes);
        assert!(
            matches!(
                result,
                Err(WeightsError::Tensor { .. }
                    | WeightsError::Malformed { .. }
                    | WeightsError::Truncated { .. })
            ),
            "{entry}: {result:?}"
        );
    }
    let two = |first: &str, second: &str, names: [&str; 2]| {
        let entry = |name: &str, place: &str| {
            format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":[{place}]}}"#)
        };
        safetensors(&format!("{{{},{}}}", entry(names[0], first), entry(names[1], second)), 8)
    };
    assert!(two("0,4", "4,8", ["a", "b"]).is_ok());
    assert!(matches!(two("0,4", "2,6", ["a", "b"]), Err(WeightsError::Tensor { .. })), "overlapping");
    assert!(matches!(two("0,4", "0,4", ["a", "b"]), Err(WeightsError::Tensor { .. })), "the same place");
    assert!(matches!(two("0,4", "4,8", ["a", "a"]), Err(WeightsError::Tensor { .. })), "the same name");
    // Headers of 1 GB: those that are not there, and those that are, in a file with a hole.
    for length in [1u64 << 30, u64::MAX] {
        let result = WeightsFile::from_bytes([&length.to_le_bytes()[..], b"{}"].concat());
        assert!(matches!(result, Err(WeightsError::Truncated { .. })));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hole.safetensors");
    std::fs::write(&path, [&(1u64 << 30).to_le_bytes()[..], b"{}"].concat()).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len((1 << 30) + 8).unwrap();
    match WeightsFile::open(&path) {
        Err(WeightsError::In { source, .. }) => assert!(matches!(*source, WeightsError::TooLarge { .. })),
        other => panic!("{other:?}"),
    }
}

proptest! {
    /// Operations in any order, mostly such as pickles of tensors have.
    #[test]
    fn any_pickle_ends_in_a_value_or_an_error(
        operations in prop::collection::vec(
            prop_oneof![
                4 => prop::sample::select(b"(0122q\0h\0NK\x01)t]}aesuRbQ.\x85\x86\x87\x88\x89\x94".to_vec())
                    .prop_map(|operation| vec![operation]),
                1 => prop::sample::select(vec![
                    b"ccollections\nOrderedDict\n".to_vec(),
                    b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(),
                    b"ctorch\nFloatStorage\n".to_vec(),
                    storage("FloatStorage", "0", 8),
                    tensor(&storage("FloatStorage", "0", 8), 0, &[8], &[1])[2..].to_vec(),
                    b"X\x01\0\0\0a".to_vec(),
                ]),
                1 => any::<u8>().prop_map(|byte| vec![byte]),
            ],
            0..60,
        )
    ) {
        let pickle = [b"\x80\x02".to_vec(), operations.concat(), b".".to_vec()].concat();
        if let Ok(mut file) = zipped(&pickle) {
            let _ = file.read_all();
            let _ = Import::read(&mut file, None);
        }
    }

    /// Views are read as the formula has it, or refused.
    #[test]
    fn views_are_what_their_strides_say(
        offset in 0..9i64,
        dimensions in prop::collection::vec((0..4i64, 0..5i64), 0..4),
    ) {
        let (shape, strides): (Vec<i64>, Vec<i64>) = dimensions.into_iter().unzip();
        let result = zipped(&tensor(&storage("FloatStorage", "0", 8), offset, &shape, &strides));
        let mut expected = vec![offset];
        for (&extent, &stride) in shape.iter().zip(&strides) {
            expected = expected.iter().flat_map(|&at| (0..extent).map(move |i| at + i * stride)).collect();
        }
        let inside = expected.iter().all(|&at| at < 8) && expected.len() <= 8 && (!expected.is_empty() || offset <= 8);
        match result {
            Ok(mut file) => {
                prop_assert!(inside);
                let values: Vec<i64> = file.read("t").unwrap().data().iter().map(|&x| x as i64).collect();
                prop_assert_eq!(values, expected);
            }
            Err(error) => prop_assert!(!inside, "{}", error),
        }
    }

    /// Any bytes, and any bytes behind a good beginning.
    #[test]
    fn any_bytes_end_in_an_error(
        head in prop::sample::select(vec![&b""[..], b"PK\x03\x04", MAGIC, b"\x10\0\0\0\0\0\0\0{\"a\":"]),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assert!(WeightsFile::from_bytes([head, &rest].concat()).is_err());
    }
}
