//! Scores, both gradients and the queue against PyTorch.

use ndarray::{Array2, ArrayView2, Axis, Ix2, s};
use swav_fixtures::{Tensors, Training, json, max_abs_difference, relative_error};
use swav_prototypes::{FeatureQueue, Prototypes};

#[test]
fn parity_scores_and_gradients() {
    let tensors = Tensors::open("loss");
    let cases = json("loss");
    let cases = cases.as_array().expect("a list of cases");
    assert!(!cases.is_empty());
    for case in cases {
        let name = format!("loss{}", case["case"]);
        let read = |what: &str| tensors.matrix(&format!("{name}.{what}"));
        let prototypes = Prototypes::from_weights(vec![read("prototypes")]).expect("finite weights");
        let (z, grad_scores) = (read("z"), read("grad_scores"));
        let scores = prototypes.scores(0, z.view()).expect("shapes fit");
        assert!(max_abs_difference(&*scores, &*read("scores")) < 1e-5, "{name}: scores");
        let grad_z = prototypes.grad_embeddings(0, grad_scores.view()).expect("shapes fit");
        let error = relative_error(&*grad_z, &*read("grad_z"));
        assert!(error < 1e-5, "{name}: relative error {error} of the gradient with respect to z");
        let grad_c = prototypes.grad_weights(0, grad_scores.view(), z.view()).expect("shapes fit");
        let error = relative_error(&*grad_c, &*read("grad_prototypes"));
        assert!(
            error < 1e-5,
            "{name}: relative error {error} of the gradient with respect to the prototypes"
        );
    }
}

/// Follows a recorded training: the queue is fed the recorded embeddings and read with the recorded prototypes.
#[test]
fn parity_queue() {
    let training = Training::open("steps_queue");
    let (batch, length) = (training.count("batch"), training.count("queue_length"));
    let mut queue: Option<FeatureQueue> = None;
    let mut n_used = 0;
    for step in training.steps() {
        let (z, scores) = (step.z(), step.scores());
        let before = step.before();
        let queue = queue
            .get_or_insert_with(|| FeatureQueue::new(2, length, z.ncols(), batch).expect("whole batches"));
        if let Some(recorded) = &before.queue {
            let difference = max_abs_difference(&*queue.rows().into_dyn(), &**recorded);
            assert!(difference < 1e-6, "queue before step {}: {difference:e}", step.index);
        }
        let weights =
            before.state["prototypes.weight"].clone().into_dimensionality::<Ix2>().expect("a matrix");
        let mut prototypes = Prototypes::from_weights(vec![weights]).expect("finite weights");
        prototypes.normalise();
        let difference = max_abs_difference(&*prototypes.scores(0, z.view()).expect("shapes fit"), &*scores);
        assert!(difference < 1e-5, "scores of step {}: {difference:e}", step.index);
        for index in 0..2 {
            let rows = |all: &Array2<f32>| all.slice(s![index * batch..(index + 1) * batch, ..]).to_owned();
            let of_batch = rows(&scores);
            let all = queue.with_batch(index, &prototypes, 0, of_batch.view()).expect("shapes fit");
            assert_eq!(queue.is_ready(index), step.queue_used, "step {}", step.index);
            let (queued, rest) = all.view().split_at(Axis(0), all.nrows() - batch);
            assert_eq!(rest, of_batch, "step {}: the batch comes last", step.index);
            if step.queue_used {
                let recorded = before.queue.as_ref().expect("a queue that is used is recorded");
                let recorded = recorded.index_axis(Axis(0), index).into_dimensionality().expect("a matrix");
                let difference = max_abs_difference(&*queued, &*plain_scores(recorded, &prototypes));
                assert!(difference < 1e-5, "queue's scores in step {}: {difference:e}", step.index);
                n_used += 1;
            }
            queue.push(index, rows(&z).view()).expect("shapes fit");
        }
    }
    assert!(n_used > 0, "the recorded training has to use its queue");
}

/// Scores under unit prototypes, term by term in f64.
fn plain_scores(z: ArrayView2<'_, f32>, prototypes: &Prototypes) -> Array2<f32> {
    let c = prototypes.weights(0).expect("one head");
    Array2::from_shape_fn((z.nrows(), c.nrows()), |(b, k)| {
        z.row(b).iter().zip(c.row(k)).map(|(&z, &c)| f64::from(z) * f64::from(c)).sum::<f64>() as f32
    })
}
