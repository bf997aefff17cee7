//! Random and damaged input for every parser that is written here: no panic, no runaway memory, sensible answers.
//!
//! A short run is part of the tests. A longer campaign: `SWAV_CAMPAIGN_CASES=200000 cargo test --release -p swav-data --test
//! campaign`.

mod common;

use std::io::Cursor;

use common::{idx, jpeg, picture, png, tar_of};
use proptest::{collection::vec, prelude::*, sample::Index};
use swav_data::{
    CifarKind, DecodeConfig, check_cifar, decode, jpeg_end, read_idx, scan_tar, split_list_line,
    split_member_name,
};

fn cases() -> ProptestConfig {
    let cases = std::env::var("SWAV_CAMPAIGN_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(128);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Changes, removals, doublings and a cut, as storage and networks make them.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Flip(Index, u8),
    Remove(Index, usize),
    Double(Index, usize),
    Cut(Index),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Damage::Set(at, value)),
        4 => (any::<Index>(), 0_u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => (any::<Index>(), 1_usize..600).prop_map(|(at, length)| Damage::Remove(at, length)),
        1 => (any::<Index>(), 1_usize..600).prop_map(|(at, length)| Damage::Double(at, length)),
        1 => any::<Index>().prop_map(Damage::Cut),
    ];
    vec(one, 0..8)
}

fn apply(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for one in damage {
        if bytes.is_empty() {
            return bytes;
        }
        let length = bytes.len();
        match *one {
            Damage::Set(at, value) => bytes[at.index(length)] = value,
            Damage::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Damage::Remove(at, count) => {
                let at = at.index(length);
                bytes.drain(at..length.min(at + count));
            }
            Damage::Double(at, count) => {
                let at = at.index(length);
                let part = bytes[at..length.min(at + count)].to_vec();
                bytes.splice(at..at, part);
            }
            Damage::Cut(at) => bytes.truncate(at.index(length)),
        }
    }
    bytes
}

fn check_tar(bytes: &[u8]) -> Result<(), TestCaseError> {
    let mut end = 0;
    let mut n_members = 0;
    let summary = scan_tar(Cursor::new(bytes), |member| {
        assert!(member.offset >= end, "members follow each other");
        end = member.offset + member.size;
        n_members += 1;
    });
    let summary = summary.unwrap();
    prop_assert!(end <= bytes.len() as u64);
    prop_assert_eq!(summary.n_members, n_members);
    Ok(())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn idx_from_any_bytes(header in prop_oneof![Just(vec![0, 0, 8]), vec(any::<u8>(), 0..4)], rest in vec(any::<u8>(), 0..300)) {
        let bytes = [header, rest].concat();
        if let Ok(array) = read_idx(&bytes[..]) {
            prop_assert_eq!(array.shape.iter().product::<usize>(), array.data.len());
            let shape: Vec<u32> = array.shape.iter().map(|&size| size as u32).collect();
            prop_assert_eq!(idx(&shape, &array.data), bytes);
        }
    }

    #[test]
    fn idx_after_damage(damage in damage()) {
        let bytes = apply(idx(&[5, 4, 3], &[7; 60]), &damage);
        match read_idx(&bytes[..]) {
            Ok(array) => prop_assert_eq!(array.shape.iter().product::<usize>(), array.data.len()),
            Err(reason) => prop_assert!(!reason.is_empty()),
        }
    }

    #[test]
    fn cifar_from_any_bytes(records in 0_usize..4, extra in 0_usize..2, labels in vec(0_u8..25, 4), fill in any::<u8>()) {
        for (kind, record, label_at, limits) in [(CifarKind::Cifar10, 3073, 0, 10), (CifarKind::Cifar100, 3074, 0, 20)] {
            let mut bytes = vec![fill; records * record + extra];
            if bytes.len() >= records * record {
                (0..records).for_each(|at| {
                    bytes[at * record] = labels[at];
                    if record == 3074 { bytes[at * record + 1] = labels[at]; }
                });
            }
            let valid = records > 0 && extra == 0 && (0..records).all(|at| bytes[at * record + label_at] < limits);
            prop_assert_eq!(check_cifar(&bytes, kind).ok(), valid.then_some(records));
        }
    }

    #[test]
    fn tar_from_any_blocks(blocks in vec(prop_oneof![vec(any::<u8>(), 512), Just(vec![0; 512])], 0..6), tail in vec(any::<u8>(), 0..512)) {
        check_tar(&[blocks.concat(), tail].concat())?;
    }

    #[test]
    fn tar_after_damage(damage in damage(), long in any::<bool>()) {
        let name = if long { "deep/".repeat(40) + "a.jpg" } else { "a.jpg".to_owned() };
        let bytes = tar_of(&[(name, vec![1; 700]), ("a.cls".to_owned(), b"3".to_vec()), ("b.jpg".to_owned(), vec![2; 1300])]);
        check_tar(&apply(bytes, &damage))?;
    }

    #[test]
    fn member_names(name in vec(prop_oneof![any::<u8>(), Just(b'.'), Just(b'/')], 0..30)) {
        if let Some((key, ending)) = split_member_name(&name) {
            prop_assert_eq!([key, b".", ending].concat(), name.as_slice());
            prop_assert!(!ending.contains(&b'/'));
            let base = key.rsplit(|&byte| byte == b'/').next().unwrap();
            prop_assert!(!base.is_empty() && !base.contains(&b'.'));
        } else {
            let base = name.rsplit(|&byte| byte == b'/').next().unwrap();
            prop_assert!(!base.contains(&b'.') || base[0] == b'.');
        }
    }

    #[test]
    fn list_lines(line in vec(prop_oneof![any::<u8>(), Just(b' '), Just(b'\t'), Just(b','), Just(b'7')], 0..30)) {
        if let Some((path, label)) = split_list_line(&line) {
            prop_assert!(path.len() + label.map_or(0, <[u8]>::len) <= line.len());
            prop_assert!(label.is_none_or(|label| !label.is_empty()));
        }
    }

    #[test]
    fn images_after_damage(damage in damage(), lossless in any::<bool>()) {
        let image = picture(33, 21, 3);
        let bytes = apply(if lossless { png(&image) } else { jpeg(&image) }, &damage);
        let config = DecodeConfig { max_pixels: 10_000, strict: true, ..DecodeConfig::default() };
        match decode(&bytes, &config) {
            Ok(image) => {
                prop_assert!(u64::from(image.width()) * u64::from(image.height()) <= 10_000);
                prop_assert!(lossless || !bytes.starts_with(&[0xff, 0xd8]) || jpeg_end(&bytes).is_ok());
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
