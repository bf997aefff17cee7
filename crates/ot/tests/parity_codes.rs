//! Codes against the numbers of the SwAV reference's routine.

use swav_fixtures::{Tensors, json, max_abs_difference};
use swav_ot::sinkhorn_codes;

#[test]
fn parity_codes_of_the_reference() {
    let (tensors, cases) = (Tensors::open("codes"), json("codes"));
    let cases = cases.as_array().expect("a list of cases");
    assert!(!cases.is_empty());
    for case in cases {
        let name = format!("codes{}", case["case"]);
        let scores = tensors.matrix(&format!("{name}.scores"));
        let expected = tensors.matrix(&format!("{name}.q"));
        let epsilon = case["epsilon"].as_f64().unwrap();
        let n_iters = case["iterations"].as_u64().unwrap() as usize;
        let got = sinkhorn_codes(scores.view(), epsilon, n_iters).unwrap();
        let difference = max_abs_difference(&*got, &*expected);
        assert!(difference < 1e-5, "{name}: {difference}");
        let wide = sinkhorn_codes(scores.mapv(f64::from).view(), epsilon, n_iters).unwrap();
        let difference = max_abs_difference(&*wide.mapv(|q| q as f32), &*expected);
        assert!(difference < 1e-6, "{name} in f64: {difference}");
    }
}
