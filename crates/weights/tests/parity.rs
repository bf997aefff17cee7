//! Files that PyTorch wrote: what its network computes with them, what is left when they are cut or changed, and what
//! memory they and worse ones take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ndarray::{Array2, Array4, ArrayView2, Ix2, Ix4};
use swav_encoder::{BlockKind, Head, Output, ResNet, build_cpu};
use swav_fixtures::{Tensors, max_abs_difference, path};
use swav_weights::{Format, Import, WeightsError, WeightsFile};

#[test]
fn checkpoints_of_the_reference_give_its_embeddings_and_scores() {
    let expected = Tensors::open("checkpoint_expected");
    let x = expected.f32("x").into_dimensionality::<Ix4>().unwrap();
    let images: Array4<f32> = x.permuted_axes([0, 2, 3, 1]).as_standard_layout().into_owned();
    for (name, format) in
        [("reference_zip.pth.tar", Format::TorchZip), ("reference_legacy.pth.tar", Format::TorchLegacy)]
    {
        let mut file = WeightsFile::open(path(name)).unwrap();
        assert_eq!(file.format(), format);
        let import = Import::read(&mut file, None).unwrap();
        let encoder = &import.encoder;
        assert_eq!(encoder.arch, ResNet::custom(BlockKind::Bottleneck, [1, 1, 1, 1]).with_width(8).into());
        assert_eq!((encoder.head, encoder.dim), (Head::Mlp { hidden: 24 }, 16));
        assert_eq!(import.n_prototypes, [20]);
        assert_eq!(import.account.prefix, "state_dict.module.");
        assert_eq!(
            (&import.account.missing, &import.account.left_over),
            (&Vec::new(), &Vec::new()),
            "{name}"
        );

        for name in expected.names().iter().filter(|name| !["x", "z", "scores"].contains(&name.as_str())) {
            let tensor = import.state.get(name).or(import.prototypes.get(name)).unwrap();
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(tensor.data()), bits(expected.f32(name).as_slice().unwrap()), "{name}");
        }
        let mut network = build_cpu(&encoder.check().unwrap(), 0).unwrap();
        network.load_state(&import.state).unwrap();
        let z = network.embed(images.view(), Output::Embedding).unwrap();
        let weights = import.prototypes.get("prototypes.weight").unwrap();
        let weights = ArrayView2::from_shape((20, 16), weights.data()).unwrap();
        let scores: Array2<f32> = z.dot(&weights.t());
        for (what, got) in [("z", z), ("scores", scores)] {
            let wanted = expected.f32(what).into_dimensionality::<Ix2>().unwrap();
            let difference = max_abs_difference(&got, &wanted);
            assert!(difference < 1e-4, "{name}, {what}: {difference}");
        }
    }
}

/// Every cut is found when the file is opened or when the network is read; nothing panics.
#[test]
fn files_cut_anywhere_are_refused() {
    for name in ["reference_zip.pth.tar", "reference_legacy.pth.tar", "checkpoint_expected.safetensors"] {
        let whole = std::fs::read(path(name)).unwrap();
        for percent in 0..100 {
            let cut = whole[..whole.len() * percent / 100].to_vec();
            let read = WeightsFile::from_bytes(cut).and_then(|mut file| Import::read(&mut file, None));
            match read {
                Err(
                    WeightsError::Truncated { .. }
                    | WeightsError::Format { .. }
                    | WeightsError::Malformed { .. },
                ) => {}
                other => panic!("{name} at {percent} %: {other:?}"),
            }
        }
    }
}

/// A byte changed anywhere gives an error or other numbers of the same network, and no panic.
#[test]
fn files_with_changed_bytes_do_no_harm() {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(31);
    for (name, rounds) in [("reference_zip.pth.tar", 300), ("reference_legacy.pth.tar", 300)] {
        let whole = std::fs::read(path(name)).unwrap();
        // Most of a file is numbers: half of the changes go where its structure is.
        let structure = if name.contains("zip") { whole.len() - 20_000 } else { 0 };
        for round in 0..rounds {
            let mut changed = whole.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = match round % 3 {
                    0 => rng.random_range(0..whole.len()),
                    1 => rng.random_range(0..12_000),
                    _ => structure + rng.random_range(0..12_000),
                };
                changed[at] = rng.random();
            }
            if let Ok(mut file) = WeightsFile::from_bytes(changed) {
                let _ = Import::read(&mut file, None);
            }
        }
    }
}

thread_local! {
    /// Bytes that this thread has now, and the most that it had.
    static BYTES: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// The system's allocator; bytes are counted.
struct Counting;

fn count(change: impl FnOnce(usize) -> usize) {
    // A thread that ends has no counter any more.
    let _ = BYTES.try_with(|bytes| {
        let (now, peak) = bytes.get();
        let now = change(now);
        bytes.set((now, peak.max(now)));
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(|now| now + layout.size());
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // What another thread has allocated is not counted here.
        count(|now| now.saturating_sub(layout.size()));
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that reading takes at most, beside those of the file.
fn peak(file: Vec<u8>) -> usize {
    let before = BYTES.get().0;
    BYTES.set((before, before));
    let read = WeightsFile::from_bytes(file).and_then(|mut file| Import::read(&mut file, None));
    drop(read);
    BYTES.get().1 - before
}

/// Numbers in a row, then an operation many times.
fn pickle(operation: &[u8], n: usize) -> Vec<u8> {
    let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    [&head[..], b"\x80\x04]", &operation.repeat(n), b"."].concat()
}

#[test]
fn memory_is_bounded_by_the_size_of_the_file() {
    // Values, marks, cells of the memory, objects, numbered cells, entries of dictionaries.
    for operation in
        [&b"N"[..], b"(", b"\x94", b"]", b"]\x94", b"K\x01\x85", b"}", b"]r\xff\xff\xff\x01", b"2e"]
    {
        let file = pickle(operation, 200_000 / operation.len());
        let (len, peak) = (file.len(), peak(file));
        assert!(peak <= 150 * len, "{operation:?}: {peak} bytes for {len}");
    }
    // A value of 40,000 others in the memory, asked for again and again: as a shape, and as a dictionary's pairs.
    let storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x08tQq\x020";
    let shapes =
        [&b"0("[..], &b"K\x01".repeat(40_000), b"tq\x010", storage, b"(h\x02K\0h\x01h\x01tq\x030"].concat();
    let pairs = [&b"0("[..], &b"NN\x86".repeat(40_000), b"l\x85q\x030"].concat();
    for (head, function) in
        [(shapes, &b"ctorch._utils\n_rebuild_tensor_v2\n"[..]), (pairs, b"ccollections\nOrderedDict\n")]
    {
        let file = pickle(&[&head, function, b"q\x040(", &b"h\x04h\x03R".repeat(30_000)].concat(), 1);
        let (len, peak) = (file.len(), peak(file));
        assert!(peak <= 150 * len, "{peak} bytes for {len}");
    }
    // Headers of many small entries.
    let entry = |index: usize| format!(r#""{index}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let header = format!("{{{}}}", (0..3000).map(entry).collect::<Vec<_>>().join(","));
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let (len, peak_bytes) = (file.len(), peak(file));
    assert!(peak_bytes <= 20 * len, "{peak_bytes} bytes for {len}");
    // Files of weights themselves.
    for name in ["reference_zip.pth.tar", "reference_legacy.pth.tar", "checkpoint_expected.safetensors"] {
        let file = std::fs::read(path(name)).unwrap();
        let (len, peak) = (file.len(), peak(file));
        assert!(peak <= 3 * len, "{name}: {peak} bytes for {len}");
    }
}
