//! Rules about codes: prototypes, queue, optimal transport, temperature.

use swav_encoder::Precision;

use crate::advice::{Case, Finding, Level};

/// Codes are balanced where there are at least this many embeddings for each prototype; SwAV's recipes have 1.3 with a
/// queue, and 0.4 is known to do.
const MIN_EMBEDDINGS_A_PROTOTYPE: f64 = 0.25;

pub(super) fn queue_not_whole_batches(case: &Case<'_>) -> Option<Finding> {
    let (length, batch, used) = (case.config.queue.length, case.batch(), case.queue());
    (length > 0 && length != used).then(|| {
        let better = length.div_ceil(batch) * batch;
        Finding::new(
            "queue-not-whole-batches",
            Level::Warning,
            format!("queue.length = {length} is no multiple of training.batch_size = {batch}"),
            format!("the queue takes whole batches, so only {used} embeddings of it would be used"),
            format!("queue.length = {better}"),
        )
        .set("queue.length", better)
    })
}

pub(super) fn queue_never_used(case: &Case<'_>) -> Option<Finding> {
    let (queue, epochs) = (&case.config.queue, case.config.training.epochs);
    if case.queue() == 0 {
        return None;
    }
    let to_fill = (case.queue() / case.batch()) as u64;
    let left = epochs.saturating_sub(queue.start_epoch) * case.steps_per_epoch();
    (left <= to_fill).then(|| {
        let start = epochs / 6;
        let finding = Finding::new(
            "queue-never-used",
            Level::Warning,
            format!(
                "the queue begins in epoch {} of {epochs} and takes {to_fill} steps to fill, of which {left} are left",
                queue.start_epoch
            ),
            "a queue takes part once it is full",
            format!("queue.start_epoch = {start}, or queue.length = 0"),
        );
        match epochs.saturating_sub(start) * case.steps_per_epoch() > to_fill {
            true => finding.set("queue.start_epoch", start),
            false => finding.set("queue.length", 0),
        }
    })
}

pub(super) fn queue_above_images(case: &Case<'_>) -> Option<Finding> {
    let (length, n_images) = (case.queue(), case.n_images());
    (length > 0 && 2 * length > n_images).then(|| {
        let better = n_images / 4 / case.batch() * case.batch();
        Finding::new(
            "queue-above-images",
            Level::Warning,
            format!("the queue holds {length} embeddings, and there are {n_images} images"),
            "it reaches back more than half an epoch: its embeddings are stale, and a batch meets its own images",
            format!("queue.length = {better} or less"),
        )
        .set("queue.length", better)
    })
}

pub(super) fn few_embeddings_for_prototypes(case: &Case<'_>) -> Option<Finding> {
    let (k, batch) = (case.n_prototypes(), case.batch());
    let seen = batch + case.queue();
    if seen as f64 >= MIN_EMBEDDINGS_A_PROTOTYPE * k as f64 {
        return None;
    }
    // A queue of a quarter of the images, but of no more than is useful.
    let room = (case.n_images() / 4).min(2 * k) / batch * batch;
    let finding = Finding::new(
        "few-embeddings-for-prototypes",
        Level::Warning,
        format!(
            "codes are computed from {seen} embeddings (training.batch_size {batch}, queue {}) for {k} prototypes",
            case.queue()
        ),
        "all prototypes have to be used equally often, which a few embeddings can do by spreading each over many only",
        format!(
            "a queue (queue.length = {room}), a larger training.batch_size, or fewer prototypes.n_prototypes"
        ),
    );
    Some(match (batch + room) as f64 >= MIN_EMBEDDINGS_A_PROTOTYPE * k as f64 {
        true => finding.set("queue.length", room),
        false => finding.set("prototypes.n_prototypes", format!("[{}]", (3 * seen).max(2))),
    })
}

pub(super) fn prototypes_above_images(case: &Case<'_>) -> Option<Finding> {
    let (k, n_images) = (case.n_prototypes(), case.n_images());
    (2 * k > n_images && k > 10).then(|| {
        let better = suitable_prototypes(n_images);
        Finding::new(
            "prototypes-above-images",
            Level::Warning,
            format!("{k} prototypes for {n_images} images"),
            "a prototype with an image or two to itself groups nothing",
            format!("prototypes.n_prototypes = [{better}]"),
        )
        .set("prototypes.n_prototypes", format!("[{better}]"))
    })
}

pub(super) fn prototypes_below_classes(case: &Case<'_>) -> Option<Finding> {
    let (k, classes) = (case.n_prototypes(), case.facts.data.n_classes?);
    (k < classes && 4 * classes < case.n_images()).then(|| {
        let better = 4 * classes;
        Finding::new(
            "prototypes-below-classes",
            Level::Warning,
            format!("{k} prototypes, though the labels name {classes} classes"),
            "different things have to share a prototype, and nothing is learnt that tells them apart",
            format!("prototypes.n_prototypes = [{better}]"),
        )
        .set("prototypes.n_prototypes", format!("[{better}]"))
    })
}

pub(super) fn epsilon_large(case: &Case<'_>) -> Option<Finding> {
    let epsilon = case.config.sinkhorn.epsilon;
    (case.contrast() < 0.5).then(|| {
        Finding::new(
            "epsilon-large",
            Level::Warning,
            format!(
                "sinkhorn.epsilon = {epsilon}; scores of {} dimensions differ by about {:.3} only",
                case.config.encoder.dim,
                1.0 / (case.config.encoder.dim.max(1) as f64).sqrt()
            ),
            "codes come out nearly uniform and teach nothing: the loss stays at ln K",
            "sinkhorn.epsilon = 0.05",
        )
        .set("sinkhorn.epsilon", 0.05)
    })
}

pub(super) fn epsilon_small(case: &Case<'_>) -> Option<Finding> {
    let epsilon = case.config.sinkhorn.epsilon;
    (epsilon < 0.01).then(|| {
        Finding::new(
            "epsilon-small",
            Level::Warning,
            format!("sinkhorn.epsilon = {epsilon}"),
            format!(
                "each code is one prototype, and {} iterations do not balance such codes: a few prototypes take all",
                case.config.sinkhorn.n_iters
            ),
            "sinkhorn.epsilon = 0.03 to 0.05",
        )
        .set("sinkhorn.epsilon", 0.03)
    })
}

pub(super) fn epsilon_precision(case: &Case<'_>) -> Option<Finding> {
    let epsilon = case.config.sinkhorn.epsilon;
    let mixed = case.config.encoder.precision == Precision::Mixed;
    (mixed && (0.01..0.02).contains(&epsilon)).then(|| {
        Finding::new(
            "epsilon-precision",
            Level::Warning,
            format!("sinkhorn.epsilon = {epsilon} with encoder.precision = \"mixed\""),
            "16-bit activations move scores by some 0.002, a good part of epsilon: codes follow the rounding",
            "sinkhorn.epsilon = 0.03, or encoder.precision = \"f32\"",
        )
        .set("sinkhorn.epsilon", 0.03)
    })
}

pub(super) fn sinkhorn_iterations(case: &Case<'_>) -> Option<Finding> {
    let n_iters = case.config.sinkhorn.n_iters;
    match n_iters {
        0 => Some(
            Finding::new(
                "sinkhorn-iterations",
                Level::Error,
                "sinkhorn.n_iters = 0",
                "codes are then a plain softmax, nothing keeps prototypes in use, and all images get the same code",
                "sinkhorn.n_iters = 3",
            )
            .set("sinkhorn.n_iters", 3),
        ),
        51.. => Some(
            Finding::new(
                "sinkhorn-iterations",
                Level::Note,
                format!("sinkhorn.n_iters = {n_iters}"),
                "codes of three iterations train as well; more take time",
                "sinkhorn.n_iters = 3",
            )
            .set("sinkhorn.n_iters", 3),
        ),
        _ => None,
    }
}

pub(super) fn temperature(case: &Case<'_>) -> Option<Finding> {
    let (t, epsilon) = (f64::from(case.config.loss.temperature), case.config.sinkhorn.epsilon);
    // Where epsilon alone is at fault its own rule says so.
    if case.contrast() < 0.5 {
        return None;
    }
    let (cause, key, better) = if t < 0.04 {
        let cause =
            "small differences of scores give steep gradients: the loss jumps and may become infinite";
        (cause, "loss.temperature", 0.1)
    } else if t > 0.3 {
        let cause =
            "scores lie between -1 and 1, so predictions stay soft and the loss near ln K whatever is learnt";
        (cause, "loss.temperature", 0.1)
    } else if epsilon > t {
        let cause = "codes are softer than the predictions that they are to teach; in the reference they are half as soft";
        (cause, "sinkhorn.epsilon", super::two_digits(t / 2.0))
    } else {
        return None;
    };
    Some(
        Finding::new(
            "temperature",
            Level::Warning,
            format!("loss.temperature = {} with sinkhorn.epsilon = {epsilon}", case.config.loss.temperature),
            cause,
            format!("{key} = {better}"),
        )
        .set(key, better),
    )
}

pub(super) fn assignment_crops(case: &Case<'_>) -> Option<Finding> {
    let assign = &case.config.loss.crops_for_assign;
    let largest = case.crops().iter().map(|crop| crop.size).max()?;
    let sizes: Vec<usize> =
        case.crops().iter().flat_map(|crop| std::iter::repeat_n(crop.size, crop.n_crops)).collect();
    let small = assign.iter().find(|&&crop| sizes.get(crop).is_some_and(|&size| 4 * size < 3 * largest))?;
    Some(
        Finding::new(
            "assignment-crops",
            Level::Warning,
            format!(
                "loss.crops_for_assign names crop {small}, of {} pixels; the largest have {largest}",
                sizes[*small]
            ),
            "the code of a small crop says what a detail shows, and all others are trained to predict it",
            "loss.crops_for_assign = [0, 1], with the large crops first in augment.crops",
        )
        .set("loss.crops_for_assign", format!("{:?}", large_crops(&sizes, largest))),
    )
}

/// The first two crops that are of the largest size.
fn large_crops(sizes: &[usize], largest: usize) -> Vec<usize> {
    sizes.iter().enumerate().filter(|(_, size)| **size == largest).map(|(crop, _)| crop).take(2).collect()
}

/// A number of prototypes that suits so many images: it grows with their root.
pub(in crate::advice) fn suitable_prototypes(n_images: usize) -> usize {
    let ten = (1.2 * (n_images as f64).sqrt() / 10.0).round() as usize * 10;
    ten.clamp(10, 3000)
}
