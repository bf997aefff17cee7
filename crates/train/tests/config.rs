//! Configurations: defaults, overrides, and what is refused.

use swav_encoder::{ResNet, Variant};
use swav_train::{ConfigError, OptimizerKind, TrainConfig};

#[test]
fn defaults_are_the_references() {
    let config = TrainConfig::parse("", &[]).unwrap().check().unwrap().config().clone();
    assert_eq!((config.sinkhorn.epsilon, config.sinkhorn.n_iters), (0.05, 3));
    assert_eq!(
        (config.loss.temperature, config.prototypes.freeze_iters, config.training.seed),
        (0.1, 313, 31)
    );
    assert_eq!(config.encoder.arch, ResNet::new(Variant::Resnet50).into());
}

#[test]
fn a_misspelt_key_is_refused_with_the_right_one() {
    for (text, wrong, right) in [
        ("[optimizer]\nbase_rl = 0.6", "optimizer.base_rl", "base_lr"),
        ("[training]\nepoch = 3", "training.epoch", "epochs"),
        ("[sinkorn]\nepsilon = 0.1", "sinkorn", "sinkhorn"),
        // `epsilon` is a key elsewhere: the path has to be that of the wrong one.
        ("[sinkhorn]\nepsilon = 0.1\n[loss]\ntemprature = 0.1", "loss.temprature", "temperature"),
    ] {
        match TrainConfig::parse(text, &[]) {
            Err(ConfigError::UnknownKey { key, suggestion, .. }) => {
                assert_eq!((key.as_str(), suggestion.as_deref()), (wrong, Some(right)));
            }
            other => panic!("{text}: expected an unknown key, got {other:?}"),
        }
    }
    match TrainConfig::parse("[loss]\nepsilon = 0.1\n[sinkhorn]\nepsilon = 0.1", &[]) {
        Err(error @ ConfigError::UnknownKey { .. }) => {
            let text = error.to_string();
            assert!(text.contains("`loss.epsilon`") && text.contains("temperature"), "{text}");
        }
        other => panic!("expected an unknown key, got {other:?}"),
    }
    let overridden = TrainConfig::parse("", &["trainig.epochs=3".to_owned()]).unwrap_err();
    assert!(overridden.from_override());
    match overridden {
        ConfigError::InOverride { source, .. } => {
            assert!(matches!(*source, ConfigError::UnknownKey { key, .. } if key == "trainig"));
        }
        other => panic!("expected an error of the override, got {other:?}"),
    }
}

#[test]
fn a_file_error_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, "[optimizer]\nbase_rl = 1").unwrap();
    let text = TrainConfig::load(&path, &[]).unwrap_err().to_string();
    assert!(text.contains("mine.toml") && text.contains("did you mean `optimizer.base_lr`"), "{text}");
    std::fs::write(&path, "[optimizer\n").unwrap();
    assert!(matches!(TrainConfig::load(&path, &[]), Err(ConfigError::Syntax { path: Some(_), .. })));
    assert!(matches!(
        TrainConfig::load(&folder.path().join("none.toml"), &[]),
        Err(ConfigError::Read { .. })
    ));
}

#[test]
fn overrides_reach_every_kind_of_value() {
    let overrides = [
        "training.epochs=7",
        "data.path=some/folder",
        "prototypes.n_prototypes=[30, 50]",
        "encoder.arch=resnet18",
        "encoder.head.mlp.hidden=99",
        "loss.temperature = 0.2",
        "augment.blur.probability=0",
    ];
    let text = "[encoder]\nhead = \"none\"";
    let config = TrainConfig::parse(text, &overrides.map(str::to_owned)).unwrap();
    assert_eq!((config.training.epochs, config.data.path.to_str()), (7, Some("some/folder")));
    assert_eq!(
        (config.prototypes.n_prototypes, config.encoder.arch),
        (vec![30, 50], ResNet::new(Variant::Resnet18).into())
    );
    assert_eq!(config.encoder.head, swav_encoder::Head::Mlp { hidden: 99 });
    assert_eq!((config.loss.temperature, config.augment.blur.probability), (0.2, Some(0.0)));
    for bad in ["training.epochs", "=3", "training..epochs=3"] {
        assert!(
            matches!(TrainConfig::parse("", &[bad.to_owned()]), Err(ConfigError::Override { .. })),
            "{bad}"
        );
    }
    let wrong_type = TrainConfig::parse("", &["training.epochs=many".to_owned()]);
    match wrong_type {
        Err(ConfigError::InOverride { source, .. }) => assert!(matches!(*source, ConfigError::Syntax { .. })),
        other => panic!("expected an error of the override, got {other:?}"),
    }
}

#[test]
fn values_out_of_range_are_refused_by_key() {
    for (given, key) in [
        ("training.epochs=0", "training.epochs"),
        ("training.batch_size=1", "training.batch_size"),
        ("optimizer.base_lr=-1", "optimizer.base_lr"),
        ("optimizer.base_lr=1e39", "optimizer.base_lr"),
        ("optimizer.momentum=1.0", "optimizer.momentum"),
        ("optimizer.warmup_epochs=101", "optimizer.warmup_epochs"),
        ("sinkhorn.epsilon=0.0", "sinkhorn.epsilon"),
        ("loss.temperature=nan", "loss.temperature"),
        ("loss.crops_for_assign=[0, 8]", "loss.crops_for_assign"),
        ("loss.crops_for_assign=[1, 1]", "loss.crops_for_assign"),
        ("prototypes.n_prototypes=[]", "prototypes.n_prototypes"),
        ("queue.length=5", "queue.length"),
        ("checkpoint.keep=1", "checkpoint.keep"),
        ("encoder.dim=0", "encoder.dim"),
        ("augment.blur.probability=2.0", "augment.blur.probability"),
        ("data.holdout=2.0", "data.holdout"),
        ("loader.drop_last=false", "loader.drop_last"),
        ("reestimation.size=0", "reestimation.size"),
        ("evaluation.size=0", "reestimation.size"),
        ("reestimation.batch_size=1", "reestimation.batch_size"),
        // Numbers that make sense nowhere, and would overflow or take all memory.
        ("training.epochs=4611686018427387904", "training.epochs"),
        ("training.batch_size=9000000000000000000", "training.batch_size"),
        ("training.threads=100000", "training.threads"),
        ("loader.n_workers=100000", "loader.n_workers"),
        ("loader.queue_batches=1000000000", "loader.queue_batches"),
        ("queue.length=1000000000000", "queue.length"),
        ("sinkhorn.n_iters=1000000000", "sinkhorn.n_iters"),
        ("data.cache_mib=9000000000000000000", "data.cache_mib"),
        ("reestimation.batch_size=9000000000000000000", "reestimation.batch_size"),
        (
            "augment.crops=[{ size = 8, n_crops = 9000000000000000000, min_scale = 0.1, max_scale = 1.0 }]",
            "augment.crops",
        ),
        ("optimizer.final_lr=1e39", "optimizer.final_lr"),
        ("optimizer.start_warmup_lr=1e300", "optimizer.start_warmup_lr"),
        ("optimizer.base_lr=1e-300", "optimizer.base_lr"),
    ] {
        match TrainConfig::parse("", &[given.to_owned()]).and_then(|config| config.check()) {
            Err(ConfigError::Value { key: found, .. }) => assert_eq!(found, key, "{given}"),
            other => panic!("{given}: expected an error of {key}, got {:?}", other.map(|_| ())),
        }
    }
}

#[test]
fn the_section_of_earlier_versions_is_read_under_its_new_name() {
    let text = "[evaluation]\nreestimate_batch_norm = true\nreestimate_images = 7\nresize = 48\nsize = 40\n\
                batch_size = 9\nknn_k = 5\nknn_temperature = 0.1";
    let config = TrainConfig::parse(text, &["evaluation.size=44".to_owned()]).unwrap();
    let expected =
        swav_train::ReestimationConfig { batch_norm: true, n_images: 7, resize: 48, size: 44, batch_size: 9 };
    assert_eq!(config.reestimation, expected);
    let settings = config.check().unwrap();
    assert_eq!((settings.reestimation().n_images(100), settings.reestimation().n_images(3)), (7, 3));
    match TrainConfig::parse("[evaluation]\nsize = 44\nside = 3", &[]) {
        Err(ConfigError::UnknownKey { key, .. }) => assert_eq!(key, "evaluation"),
        other => panic!("expected an unknown key, got {other:?}"),
    }
}

#[test]
fn a_run_of_an_encoder_of_its_own_does_not_claim_a_network() {
    let config = TrainConfig { own_encoder: "linear".to_owned(), ..TrainConfig::default() };
    let text = config.to_toml().unwrap();
    assert!(text.contains("own_encoder = \"linear\"") && !text.contains("resnet50"), "{text}");
    let again = TrainConfig::parse(&text, &[]).unwrap();
    assert!(matches!(again.check(), Err(ConfigError::OwnEncoder { description }) if description == "linear"));
}

#[test]
fn a_table_joins_its_section() {
    let text =
        "[optimizer]\nkind = \"sgd\"\nbase_lr = 0.3\n[encoder]\nhead = { mlp = { hidden = 7 } }\ndim = 9";
    let overrides =
        ["optimizer={ base_lr = 0.2, momentum = 0.5 }", "encoder={ dim = 5 }", "queue={ length = 640 }"];
    let config = TrainConfig::parse(text, &overrides.map(str::to_owned)).unwrap();
    let o = &config.optimizer;
    assert_eq!((o.kind, o.base_lr, o.momentum), (OptimizerKind::Sgd, 0.2, 0.5));
    assert_eq!((config.encoder.head, config.encoder.dim), (swav_encoder::Head::Mlp { hidden: 7 }, 5));
    assert_eq!((config.queue.length, config.queue.start_epoch), (640, 15));
    // Inside of an inner table, too; a word gives way to a table.
    let text = "[encoder]\nhead = \"linear\"\n[augment.blur]\nprobability = 0.3";
    let overrides = ["augment={ blur = { max_radius = 1.0 } }", "encoder.head={ mlp = { hidden = 3 } }"];
    let config = TrainConfig::parse(text, &overrides.map(str::to_owned)).unwrap();
    assert_eq!((config.augment.blur.probability, config.augment.blur.max_radius), (Some(0.3), Some(1.0)));
    assert_eq!(config.encoder.head, swav_encoder::Head::Mlp { hidden: 3 });
}

#[test]
fn a_key_without_its_section_is_found_in_it() {
    let text = TrainConfig::parse("", &["warmup_epochs=3".to_owned()]).unwrap_err();
    let ConfigError::InOverride { given, source } = text else { panic!("an error of the override") };
    assert_eq!(given, "warmup_epochs=3");
    assert!(source.to_string().contains("did you mean `optimizer.warmup_epochs`?"), "{source}");
}

#[test]
fn of_several_overrides_the_wrong_one_is_named() {
    let overrides = ["training.seed=3", "training.epochs=many", "loss.temperature=0.2"].map(str::to_owned);
    match TrainConfig::parse("", &overrides) {
        Err(ConfigError::InOverride { given, source }) => {
            assert_eq!(given, "training.epochs=many");
            let expected =
                "training.epochs: invalid type: string \"many\", expected a whole number of at least 0";
            assert!(source.to_string().contains(expected), "{source}");
        }
        other => panic!("expected an error of the override, got {other:?}"),
    }
}

#[test]
fn sizes_are_known_before_anything_is_made() {
    let text = "
        augment.crops = [
            { size = 224, n_crops = 2, min_scale = 0.14, max_scale = 1.0 },
            { size = 96, n_crops = 4, min_scale = 0.05, max_scale = 0.14 },
        ]
        training.batch_size = 1536
        encoder = { arch = 'resnet50w5', head.mlp.hidden = 10240 }";
    let settings = TrainConfig::parse(text, &[]).unwrap().check().unwrap();
    let memory = settings.training_memory(1, true);
    // 586 million parameters and those of the head, their gradients and their momentum.
    let network = memory.parts().iter().find(|part| part.keys.starts_with("encoder.width")).unwrap();
    assert!((7.0e9..8.6e9).contains(&(network.bytes as f64)), "{network:?}");
    assert!(settings.training_memory(1, false).total() < memory.total());
    match memory.check(Some(8 << 30)) {
        Err(error @ ConfigError::Memory { available: 8_589_934_592, .. }) => {
            assert!(error.to_string().contains("8.0 GiB are available"), "{error}");
        }
        other => panic!("expected too little memory, got {other:?}"),
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_without_end_is_no_configuration() {
    match TrainConfig::load(std::path::Path::new("/dev/zero"), &[]) {
        Err(ConfigError::Read { source, .. }) => {
            assert!(source.to_string().contains("longer than"), "{source}")
        }
        other => panic!("expected that it cannot be read, got {other:?}"),
    }
}
