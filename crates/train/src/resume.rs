//! Which differences between a checkpoint's configuration and the current one forbid to resume.

use toml::Value;

use crate::config::{ConfigError, TrainConfig};

/// Keys (or sections, with a trailing dot) that do not change what is computed, so that they may differ. The
/// data's path may, because their contents are compared; the batch size of a process may, because that of all is.
const MAY_DIFFER: [&str; 12] = [
    "training.threads",
    "training.device",
    "loader.n_workers",
    "loader.queue_batches",
    "loader.max_bad_share",
    "data.path",
    "data.cache_mib",
    "encoder.checkpointing",
    "checkpoint.",
    "monitor.",
    "reestimation.",
    "training.batch_size",
];

/// One line for each key whose values differ and matter: `encoder.arch: resnet18 in the checkpoint, resnet50 now`.
///
/// # Errors
/// A configuration that cannot be written as TOML.
pub(crate) fn differences(checkpoint: &TrainConfig, now: &TrainConfig) -> Result<Vec<String>, ConfigError> {
    let flat = |config: &TrainConfig| -> Result<_, ConfigError> {
        let mut table = config.to_table()?;
        if !config.own_encoder.is_empty() {
            table.remove("encoder");
        }
        let mut pairs = std::collections::BTreeMap::new();
        flatten("", &Value::Table(table), &mut pairs);
        Ok(pairs)
    };
    let (then, now) = (flat(checkpoint)?, flat(now)?);
    let mut keys: Vec<&String> = then.keys().chain(now.keys()).collect();
    keys.sort();
    keys.dedup();
    let matters = |key: &str| {
        !MAY_DIFFER.iter().any(|may| if may.ends_with('.') { key.starts_with(may) } else { key == *may })
    };
    let show = |value: Option<&String>| value.map_or("unset".to_owned(), Clone::clone);
    Ok(keys
        .into_iter()
        .filter(|key| matters(key) && then.get(*key) != now.get(*key))
        .map(|key| format!("{key}: {} in the checkpoint, {} now", show(then.get(key)), show(now.get(key))))
        .collect())
}

fn flatten(prefix: &str, value: &Value, pairs: &mut std::collections::BTreeMap<String, String>) {
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
    fn only_what_changes_the_computation_counts() {
        let base = TrainConfig::default();
        let mut other = base.clone();
        other.training.threads = 3;
        other.monitor.tensorboard = false;
        other.data.path = "elsewhere".into();
        assert_eq!(differences(&base, &other).unwrap(), Vec::<String>::new());
        other.optimizer.base_lr = 0.5;
        other.encoder.arch = swav_encoder::ResNet::new(swav_encoder::Variant::Resnet18).into();
        let found = differences(&base, &other).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("encoder.arch: \"resnet50\" in the checkpoint, \"resnet18\" now"));
        assert!(found[1].starts_with("optimizer.base_lr"));
    }
}
