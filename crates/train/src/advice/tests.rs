use std::path::Path;

use swav_encoder::{Checkpointing, DeviceMemory};

use super::*;

/// A configuration that suits [`photos`].
const SOUND: &str = r#"
[training]
epochs = 100
batch_size = 256
[augment]
preset = "swav"
crops = [
    { size = 96, n_crops = 2, min_scale = 0.25, max_scale = 1.0 },
    { size = 48, n_crops = 4, min_scale = 0.08, max_scale = 0.25 },
]
[encoder]
arch = "resnet18"
[prototypes]
n_prototypes = [500]
[optimizer]
base_lr = 0.6
final_lr = 0.0006
warmup_epochs = 0
[reestimation]
resize = 128
size = 112
"#;

/// Photographs in colour, many, with labels.
fn photos() -> DataFacts {
    let decoded_bytes = 50_000 * 256 * 256 * 3;
    DataFacts {
        n_images: 50_000,
        short_side: 256,
        n_classes: Some(100),
        decoded_bytes,
        ..DataFacts::default()
    }
}

/// Small grey images, as of Fashion-MNIST.
fn small() -> DataFacts {
    DataFacts {
        n_images: 60_000,
        short_side: 28,
        is_grey: true,
        decoded_bytes: 47_040_000,
        ..DataFacts::default()
    }
}

fn facts(data: DataFacts) -> Facts {
    let machine = MachineFacts { n_cores: 8, memory_bytes: Some(16 << 30), has_card: false };
    Facts { data, machine, ..Facts::default() }
}

fn config(overrides: &[&str]) -> TrainConfig {
    let overrides: Vec<String> = overrides.iter().map(|&given| given.to_owned()).collect();
    TrainConfig::parse(SOUND, &overrides).unwrap()
}

/// What is wrong, changes that make it so, the rule that has to see it, and a word of its remedy.
const BROKEN: &[(&[&str], &str, &str)] = &[
    (&["queue.length=1000"], "queue-not-whole-batches", "queue.length = 1024"),
    (&["queue.length=1024", "queue.start_epoch=100"], "queue-never-used", "queue.start_epoch = 16"),
    (&["queue.length=30208"], "queue-above-images", "queue.length"),
    (&["prototypes.n_prototypes=[3000]"], "few-embeddings-for-prototypes", "queue.length = 5888"),
    (&["training.batch_size=32", "optimizer.base_lr=0.075"], "few-embeddings-for-prototypes", "queue"),
    (&["prototypes.n_prototypes=[30000]"], "prototypes-above-images", "prototypes.n_prototypes = [270]"),
    (&["prototypes.n_prototypes=[20]"], "prototypes-below-classes", "prototypes.n_prototypes = [400]"),
    (&["sinkhorn.epsilon=0.5"], "epsilon-large", "sinkhorn.epsilon = 0.05"),
    (&["sinkhorn.epsilon=0.001"], "epsilon-small", "sinkhorn.epsilon = 0.03"),
    (&["sinkhorn.epsilon=0.015", "encoder.precision=mixed"], "epsilon-precision", "encoder.precision"),
    (&["sinkhorn.n_iters=0"], "sinkhorn-iterations", "sinkhorn.n_iters = 3"),
    (&["sinkhorn.n_iters=200"], "sinkhorn-iterations", "sinkhorn.n_iters = 3"),
    (&["loss.temperature=1.0"], "temperature", "loss.temperature = 0.1"),
    (&["loss.temperature=0.01"], "temperature", "loss.temperature = 0.1"),
    (&["sinkhorn.epsilon=0.15"], "temperature", "sinkhorn.epsilon = 0.05"),
    (&["loss.crops_for_assign=[0, 3]"], "assignment-crops", "loss.crops_for_assign"),
    (&["optimizer.base_lr=4.8"], "learning-rate", "optimizer.base_lr = 0.6"),
    (&["optimizer.base_lr=0.001"], "learning-rate", "optimizer.base_lr = 0.6"),
    (&["optimizer.kind=adamw"], "learning-rate", "optimizer.base_lr = 0.002"),
    (&["optimizer.base_lr=1.2"], "no-warm-up", "optimizer.warmup_epochs = 10"),
    (&["optimizer.warmup_epochs=80"], "warm-up-long", "optimizer.warmup_epochs = 10"),
    (&["optimizer.final_lr=1.0"], "rate-rises", "optimizer.final_lr"),
    (&["optimizer.weight_decay=0.1"], "weight-decay", "optimizer.weight_decay"),
    (&["prototypes.freeze_iters=19500"], "frozen-throughout", "prototypes.freeze_iters = 100"),
    (&["training.epochs=1"], "few-steps", "training.epochs"),
    (&["training.batch_size=60000"], "batch-above-images", "training.batch_size = 256"),
    (&["training.batch_size=4"], "batch-tiny", "training.batch_size"),
    (&["training.threads=64"], "threads-above-cores", "training.threads = 0"),
    (&["data.cache_mib=60000"], "cache-above-memory", "data.cache_mib"),
    (&["reestimation.size=224", "reestimation.resize=256"], "other-view", "reestimation.size"),
    (
        &["encoder.stem=cifar", "augment.crops=[{size=224,n_crops=2,min_scale=0.3,max_scale=1.0}]"],
        "stem-for-small-images",
        "encoder.stem",
    ),
    (&["augment.crops=[{size=96,n_crops=2,min_scale=0.9,max_scale=1.0}]"], "crops-alike", "min_scale"),
    (
        &["augment.crops=[{size=384,n_crops=2,min_scale=0.3,max_scale=1.0}]"],
        "crops-above-images",
        "smaller augment.crops: 2 of 96 pixels",
    ),
    (
        &["augment.crops=[{size=96,n_crops=2,min_scale=0.0005,max_scale=1.0}]"],
        "crops-show-nothing",
        "min_scale",
    ),
    (
        &["augment.color_jitter.probability=0.0", "augment.grayscale.probability=0.0"],
        "no-photometry",
        "color_jitter",
    ),
];

#[test]
fn broken_configurations_are_caught_with_advice_that_mends_them() {
    for (overrides, rule, remedy) in BROKEN {
        let (config, facts) = (config(overrides), facts(photos()));
        let found = examine(&config, &facts);
        let finding = found.iter().find(|finding| finding.rule == *rule);
        let finding = finding.unwrap_or_else(|| panic!("{overrides:?}: {rule} is not among {found:#?}"));
        assert!(finding.remedy.contains(remedy), "{overrides:?}: {}", finding.remedy);
        assert!(!finding.cause.is_empty() && !finding.sign.is_empty());
        let (mended, left) = repair(&config, &facts).unwrap();
        assert_eq!(left, [], "{overrides:?} is not mended");
        mended.check().unwrap_or_else(|error| panic!("{overrides:?} is mended to what is refused: {error}"));
    }
}

#[test]
fn what_photographs_need_is_wrong_for_small_grey_images() {
    let found = examine(&config(&["encoder.stem=imagenet"]), &facts(small()));
    let rules: Vec<_> = found.iter().map(|finding| finding.rule).collect();
    for expected in ["crops-above-images", "colour-of-grey"] {
        assert!(rules.contains(&expected), "{rules:?}");
    }
    let crops = "augment.crops=[{size=14,n_crops=2,min_scale=0.3,max_scale=1.0}]";
    let found = examine(&config(&[crops]), &facts(small()));
    assert!(found.iter().any(|finding| finding.rule == "crops-below-stride"), "{found:#?}");
}

#[test]
fn enlarging_small_images_serves_a_network_of_large_strides_only() {
    let of_size = |size: usize, stem: &str| {
        let crops = format!("augment.crops=[{{size={size},n_crops=2,min_scale=0.5,max_scale=1.0}}]");
        let stem = format!("encoder.stem={stem}");
        let net = "encoder.arch={custom={block=\"basic\",layers=[1,1,1]}}";
        let config = config(&["augment.preset=greyscale", "reestimation.size=56", net, &stem, &crops]);
        let facts = facts(small());
        let found = examine(&config, &facts).iter().any(|finding| finding.rule == "crops-above-images");
        assert!(repair(&config, &facts).unwrap().1.is_empty(), "{size} {stem}");
        found
    };
    assert_eq!([48, 56, 72, 96].map(|size| of_size(size, "imagenet")), [false, false, true, true]);
    assert_eq!([28, 36, 48].map(|size| of_size(size, "cifar")), [false, true, true]);
}

#[test]
fn what_is_measured_counts() {
    let config = config(&[]);
    let mut facts = facts(DataFacts { bad_share: 0.2, ..photos() });
    facts.step = Some(StepFacts { seconds: 1.0, data_wait: 0.6, peak_bytes: Some(31 << 30) });
    let found = examine(&config, &facts);
    let rules: Vec<_> = found.iter().map(|finding| (finding.rule, finding.level)).collect();
    let expected =
        [("bad-images", Level::Error), ("memory", Level::Warning), ("waiting-for-data", Level::Warning)];
    assert_eq!(rules, expected);
}

/// A card that has room for so many images of a configuration, and for so many with blocks that run again.
fn card(batch_size: usize, largest: usize, largest_again: usize) -> Option<DeviceMemory> {
    let (needed, available) = ((batch_size as u64) << 30, (largest as u64) << 30);
    Some(DeviceMemory { batch_size, needed, available, largest, largest_again: Some(largest_again) })
}

#[test]
fn a_batch_that_a_card_has_no_room_for_is_mended() {
    let sound = config(&[]);
    let batch = sound.training.batch_size;
    let mended = |largest, largest_again| {
        let facts = Facts { card: card(batch, largest, largest_again), ..facts(photos()) };
        let rules: Vec<_> = examine(&sound, &facts).iter().map(|f| (f.rule, f.level)).collect();
        let (mended, left) = repair(&sound, &facts).unwrap();
        let left: Vec<_> = left.iter().map(|finding| finding.rule).collect();
        mended.check().unwrap();
        (rules, (mended.training.batch_size, mended.encoder.checkpointing), left)
    };
    let (keep, again) = (Checkpointing::Off, Checkpointing::Blocks);
    let found = vec![("card-memory", Level::Error)];
    assert_eq!(mended(batch, 2 * batch), (vec![], (batch, keep), vec![]));
    assert_eq!(mended(batch - 1, 2 * batch), (found.clone(), (batch, again), vec![]));
    assert_eq!(mended(batch / 3, batch / 2 + 1).1, (batch / 2, again));
    // What is no use is not done.
    assert_eq!(mended(batch / 2, batch / 2).1, (batch / 2, keep));
    let (rules, same, left) = mended(0, 0);
    assert_eq!((rules, same), (found, (batch, keep)));
    assert_eq!(left, ["card-memory"]);
}

#[test]
fn proposals_fit_the_card() {
    for (largest, again, batch, blocks) in
        [(1000, 3000, 256, false), (200, 600, 128, false), (40, 120, 64, true), (20, 50, 32, true)]
    {
        let mut facts = facts(DataFacts { n_images: 60_000, ..photos() });
        facts.machine.has_card = true;
        let plain = propose(Path::new("photos"), &facts);
        assert_eq!(plain.config.training.batch_size, 256);
        facts.card = card(256, largest, again);
        let proposal = propose(Path::new("photos"), &facts);
        let got = (proposal.config.training.batch_size, proposal.config.encoder.checkpointing);
        let checkpointing = if blocks { Checkpointing::Blocks } else { Checkpointing::Off };
        assert_eq!(got, (batch, checkpointing), "{largest}, {again}");
        assert_eq!(examine(&proposal.config, &facts), [], "{largest}, {again}");
        let told = proposal.reasons.iter().any(|reason| reason.key == "encoder.checkpointing");
        assert_eq!(told, blocks);
    }
}

#[test]
fn every_rule_is_shown_to_find_something() {
    let elsewhere =
        ["colour-of-grey", "crops-below-stride", "bad-images", "memory", "card-memory", "waiting-for-data"];
    for name in rule_names() {
        let shown = BROKEN.iter().any(|(_, rule, _)| rule == name) || elsewhere.contains(name);
        assert!(shown, "no test breaks {name}");
    }
    let found = examine(&config(&["sinkhorn.epsilon=0.5"]), &facts(photos()));
    assert!(found.iter().all(|finding| rule_names().contains(&finding.rule)));
}

#[test]
fn sound_configurations_are_met_with_silence() {
    for overrides in [
        &[][..],
        &["optimizer.kind=adamw", "optimizer.base_lr=0.001"],
        &["training.batch_size=64", "optimizer.base_lr=0.15", "queue.length=1024"],
        &["sinkhorn.epsilon=0.03"],
        &["prototypes.n_prototypes=[300, 500]"],
    ] {
        assert_eq!(examine(&config(overrides), &facts(photos())), [], "{overrides:?}");
    }
}

#[test]
fn proposals_suit_everything_from_forty_images_to_a_million() {
    for n_images in [40, 200, 1000, 6000, 60_000, 1_300_000] {
        for (short_side, is_grey) in
            [(16, true), (28, true), (32, false), (64, false), (160, false), (500, true)]
        {
            for has_card in [false, true] {
                let data = DataFacts {
                    n_images,
                    short_side,
                    is_grey,
                    decoded_bytes: n_images as u64 * u64::from(short_side).pow(2) * 3,
                    ..DataFacts::default()
                };
                let mut facts = facts(data);
                facts.machine.has_card = has_card;
                let proposal = propose(Path::new("photos"), &facts);
                let findings = examine(&proposal.config, &facts);
                assert_eq!(findings, [], "{n_images} images of {short_side}, card {has_card}");
                proposal.config.check().unwrap();
                let text = proposal.to_toml().unwrap();
                assert_eq!(TrainConfig::parse(&text, &[]).unwrap(), proposal.config);
            }
        }
    }
}
