//! Rules about files and the machine.

use swav_encoder::{Checkpointing, DeviceMemory};

use crate::advice::{Case, Finding, Level};

pub(super) fn bad_images(case: &Case<'_>) -> Option<Finding> {
    let (share, most) = (case.facts.data.bad_share, case.config.loader.max_bad_share);
    (share > 0.0).then(|| {
        let level = if share > most { Level::Error } else { Level::Note };
        Finding::new(
            "bad-images",
            level,
            format!("{:.1}% of the images cannot be read", 100.0 * share),
            format!(
                "each is replaced by another, and training ends where more than {:.1}% are bad",
                100.0 * most
            ),
            "`data check` names them; take them out, or raise loader.max_bad_share",
        )
    })
}

pub(super) fn threads_above_cores(case: &Case<'_>) -> Option<Finding> {
    let (threads, cores) = (case.config.training.threads, case.facts.machine.n_cores);
    (cores > 0 && threads > cores).then(|| {
        Finding::new(
            "threads-above-cores",
            Level::Warning,
            format!("training.threads = {threads}, and there are {cores} cores"),
            "threads that wait for each other's turn make each step slower",
            "training.threads = 0, which takes one for each core",
        )
        .set("training.threads", 0)
    })
}

pub(super) fn cache_above_memory(case: &Case<'_>) -> Option<Finding> {
    let cache = (case.config.data.cache_mib as u64) << 20;
    let memory = case.facts.machine.memory_bytes?;
    (cache.min(case.facts.data.decoded_bytes) > memory / 2).then(|| {
        let better = (memory / 4) >> 20;
        Finding::new(
            "cache-above-memory",
            Level::Warning,
            format!(
                "data.cache_mib = {} would fill {} MiB of the machine's {}",
                case.config.data.cache_mib,
                cache.min(case.facts.data.decoded_bytes) >> 20,
                memory >> 20
            ),
            "training needs memory as well, and a machine that swaps stands still",
            format!("data.cache_mib = {better}"),
        )
        .set("data.cache_mib", better)
    })
}

pub(super) fn memory(case: &Case<'_>) -> Option<Finding> {
    let (peak, memory) = (case.facts.step?.peak_bytes?, case.facts.machine.memory_bytes?);
    (peak > memory / 5 * 4).then(|| {
        Finding::new(
            "memory",
            Level::Warning,
            format!("a step takes {} MiB of the machine's {}", peak >> 20, memory >> 20),
            "a machine that swaps stands still, or ends the program",
            "a smaller training.batch_size, or encoder.checkpointing = \"blocks\", which takes a third longer",
        )
    })
}

/// The largest batch that a card has room for, with blocks that run again in the backward pass or without.
pub(in crate::advice) fn batch_of_a_card(memory: &DeviceMemory, checkpointing: Checkpointing) -> usize {
    match checkpointing {
        Checkpointing::Blocks => memory.largest_again.unwrap_or(memory.largest),
        _ => memory.largest,
    }
}

/// The largest power of two up to a number above 0.
pub(in crate::advice) fn rounded(most: usize) -> usize {
    1 << most.ilog2()
}

pub(super) fn card_memory(case: &Case<'_>) -> Option<Finding> {
    let (memory, config) = (case.facts.card?, case.config);
    let batch = config.training.batch_size;
    let most = batch_of_a_card(&memory, config.encoder.checkpointing);
    let all = batch_of_a_card(&memory, Checkpointing::Blocks).max(most);
    let mut changes: Vec<(&'static str, String)> = Vec::new();
    if all > most {
        changes.push(("encoder.checkpointing", "\"blocks\"".to_owned()));
    }
    if (1..batch).contains(&all) {
        changes.push(("training.batch_size", rounded(all).to_string()));
    }
    let told: Vec<String> = changes.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    let remedy = match told.is_empty() {
        true => "smaller or fewer crops, a smaller network, or training.device = \"cpu\"".to_owned(),
        false => told.join(" and "),
    };
    (batch > most).then(|| Finding {
        changes,
        ..Finding::new(
            "card-memory",
            Level::Error,
            format!("a batch of {batch} images, and a card that has room for {most}"),
            "the first step will be refused",
            remedy,
        )
    })
}

pub(super) fn waiting_for_data(case: &Case<'_>) -> Option<Finding> {
    let step = case.facts.step?;
    (step.data_wait > 0.3).then(|| {
        let decoded = case.facts.data.decoded_bytes >> 20;
        Finding::new(
            "waiting-for-data",
            Level::Warning,
            format!("{:.0}% of a step is spent waiting for images", 100.0 * step.data_wait),
            "reading and decoding takes longer than computing",
            format!("copies of the images of about 256 pixels, or data.cache_mib = {decoded} to keep all of them decoded"),
        )
    })
}
