//! What may change when a run is resumed, and what may not.

use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

use crate::config::{ConfigError, TrainConfig};

/// The keys (or sections, with a trailing dot) of a configuration that may change at a resume, and what the change does.
/// Everything else is part of what the run is, and needs a new one.
pub const MAY_CHANGE: [(&str, Effect); 22] = [
    // The data's path may, because their contents are compared; the batch size of a process may, because that of all is.
    ("training.threads", Effect::SameNumbers),
    ("training.device", Effect::SameNumbers),
    ("training.batch_size", Effect::SameNumbers),
    ("loader.n_workers", Effect::SameNumbers),
    ("loader.queue_batches", Effect::SameNumbers),
    ("loader.max_bad_share", Effect::SameNumbers),
    ("data.path", Effect::SameNumbers),
    ("data.cache_mib", Effect::SameNumbers),
    ("encoder.checkpointing", Effect::SameNumbers),
    ("encoder.init", Effect::SameNumbers),
    ("checkpoint.", Effect::SameNumbers),
    ("monitor.", Effect::SameNumbers),
    ("reestimation.", Effect::SameNumbers),
    ("training.epochs", Effect::FromHereOn),
    ("optimizer.base_lr", Effect::FromHereOn),
    ("optimizer.final_lr", Effect::FromHereOn),
    ("optimizer.start_warmup_lr", Effect::FromHereOn),
    ("optimizer.warmup_epochs", Effect::FromHereOn),
    ("optimizer.weight_decay", Effect::FromHereOn),
    ("optimizer.clip_norm", Effect::FromHereOn),
    ("prototypes.freeze_iters", Effect::FromHereOn),
    ("encoder.precision", Effect::FromHereOn),
];

/// What a change at a resume does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing to what is trained: the run ends with the bits that it would have had.
    SameNumbers,
    /// The rest of the run is that of the new value: the schedule is the one that a run of this value has, from the step on
    /// at which it is resumed.
    FromHereOn,
}

/// A key whose value is another one at a resume, and may be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The dotted key.
    pub key: String,
    /// The value in the checkpoint.
    pub then: String,
    /// The value now.
    pub now: String,
    /// What it does.
    pub effect: Effect,
}

/// Whether a key may change at a resume, see [`MAY_CHANGE`].
pub fn may_change(key: &str) -> bool {
    effect(key).is_some()
}

fn effect(key: &str) -> Option<Effect> {
    let is_meant = |may: &str| if may.ends_with('.') { key.starts_with(may) } else { key == may };
    MAY_CHANGE.iter().find(|(may, _)| is_meant(may)).map(|&(_, effect)| effect)
}

/// How two configurations differ.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    /// One line for each key that has to stay: `encoder.arch: resnet18 in the checkpoint, resnet50 now`.
    pub refused: Vec<String>,
    /// What may change.
    pub changes: Vec<Change>,
}

/// What differs between a checkpoint's configuration and the one to go on with.
///
/// # Errors
/// A configuration that cannot be written as TOML.
pub(crate) fn differences(checkpoint: &TrainConfig, now: &TrainConfig) -> Result<Differences, ConfigError> {
    let flat = |config: &TrainConfig| -> Result<_, ConfigError> {
        let mut table = config.to_table()?;
        if !config.own_encoder.is_empty() {
            table.remove("encoder");
        }
        let mut pairs = BTreeMap::new();
        flatten("", &Value::Table(table), &mut pairs);
        Ok(pairs)
    };
    let (then, now) = (flat(checkpoint)?, flat(now)?);
    let keys: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    let show = |value: Option<&String>| value.map_or("unset".to_owned(), |value| short(value));
    let mut found = Differences::default();
    for key in keys.into_iter().filter(|key| then.get(*key) != now.get(*key)) {
        let (then, now) = (show(then.get(key)), show(now.get(key)));
        match effect(key) {
            Some(effect) => found.changes.push(Change { key: key.clone(), then, now, effect }),
            None => found.refused.push(format!("{key}: {then} in the checkpoint, {now} now")),
        }
    }
    Ok(found)
}

/// A value as it was written: a 32-bit float in a 64-bit one has digits that nobody has typed.
fn short(value: &str) -> String {
    match value.parse::<f64>() {
        Ok(number) if value.contains('.') && f64::from(number as f32) == number => {
            (number as f32).to_string()
        }
        _ => value.to_owned(),
    }
}

fn flatten(prefix: &str, value: &Value, pairs: &mut BTreeMap<String, String>) {
    match value.as_table() {
        Some(table) => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, pairs);
            }
        }
        None => {
            pairs.insert(prefix.to_owned(), value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_it_another_run_is_refused() {
        let base = TrainConfig::default();
        let mut other = base.clone();
        other.training.threads = 3;
        other.monitor.tensorboard = false;
        other.data.path = "elsewhere".into();
        other.optimizer.base_lr = 0.5;
        let found = differences(&base, &other).unwrap();
        assert_eq!(found.refused, Vec::<String>::new());
        let with_effect: Vec<&str> = found
            .changes
            .iter()
            .filter(|change| change.effect == Effect::FromHereOn)
            .map(|change| change.key.as_str())
            .collect();
        assert_eq!((found.changes.len(), with_effect), (4, vec!["optimizer.base_lr"]));
        other.optimizer.momentum = 0.5;
        other.encoder.arch = swav_encoder::ResNet::new(swav_encoder::Variant::Resnet18).into();
        let refused = differences(&base, &other).unwrap().refused;
        assert_eq!(refused.len(), 2, "{refused:?}");
        assert!(refused[0].starts_with("encoder.arch: \"resnet50\" in the checkpoint, \"resnet18\" now"));
        assert_eq!(refused[1], "optimizer.momentum: 0.9 in the checkpoint, 0.5 now");
    }

    #[test]
    fn the_list_is_of_keys_that_there_are_and_is_documented() {
        let mut pairs = BTreeMap::new();
        let mut config = TrainConfig::default();
        // Not written where there is none.
        config.encoder.init = Some("weights.safetensors".into());
        flatten("", &Value::Table(config.to_table().unwrap()), &mut pairs);
        let readme = include_str!("../README.md");
        for (may, _) in MAY_CHANGE {
            let there = pairs.keys().any(|key| key == may || (may.ends_with('.') && key.starts_with(may)));
            assert!(there, "{may}");
            assert!(
                readme.contains(&format!("`{}`", may.trim_end_matches('.'))),
                "{may} is not in the README"
            );
        }
    }
}
