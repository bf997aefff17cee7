//! Scores and both gradients against PyTorch's autograd.

use ndarray::Ix2;
use swav_fixtures::{Tensors, json, max_abs_difference, relative_error};
use swav_prototypes::Prototypes;

#[test]
fn parity_scores_and_gradients() {
    let tensors = Tensors::open("loss");
    let cases = json("loss");
    let cases = cases.as_array().expect("a list of cases");
    assert!(!cases.is_empty());
    for case in cases {
        let name = format!("loss{}", case["case"]);
        let read = |what: &str| {
            tensors.f32(&format!("{name}.{what}")).into_dimensionality::<Ix2>().expect("two dimensions")
        };
        let prototypes = Prototypes::from_weights(vec![read("prototypes")]).expect("finite weights");
        let (z, grad_scores) = (read("z"), read("grad_scores"));
        let scores = prototypes.scores(0, z.view()).expect("shapes fit");
        assert!(max_abs_difference(&scores, &read("scores")) < 1e-5, "{name}: scores");
        let grad_z = prototypes.grad_embeddings(0, grad_scores.view()).expect("shapes fit");
        let error = relative_error(&grad_z, &read("grad_z"));
        assert!(error < 1e-4, "{name}: relative error {error} of the gradient by z");
        let grad_c = prototypes.grad_weights(0, grad_scores.view(), z.view()).expect("shapes fit");
        let error = relative_error(&grad_c, &read("grad_prototypes"));
        assert!(error < 1e-4, "{name}: relative error {error} of the gradient by the prototypes");
    }
}
