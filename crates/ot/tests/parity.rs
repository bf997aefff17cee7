//! Plans, costs, divergence and barycentre against POT's.

use ndarray::{Array1, Array2, Ix1, Ix2};
use swav_fixtures::Tensors;
use swav_ot::{
    Acceleration, BarycentreOptions, BarycentreStart, Method, Options, PointCost, Problem, Solver,
    barycentre, sinkhorn_divergence,
};

struct Case {
    name: String,
    parameters: serde_json::Value,
}

impl Case {
    fn all() -> Vec<Self> {
        let cases = swav_fixtures::json("ot");
        let cases: Vec<Self> = cases
            .as_array()
            .expect("a list of cases")
            .iter()
            .filter(|case| case["case"].is_u64())
            .map(|case| Self { name: format!("ot{}", case["case"]), parameters: case.clone() })
            .collect();
        assert!(!cases.is_empty());
        cases
    }

    fn number(&self, key: &str) -> f64 {
        self.parameters[key].as_f64().unwrap_or_else(|| panic!("{}: no {key}", self.name))
    }

    fn vector(&self, tensors: &Tensors, key: &str) -> Array1<f64> {
        tensors.f64(&format!("{}.{key}", self.name)).into_dimensionality::<Ix1>().unwrap()
    }

    fn matrix(&self, tensors: &Tensors, key: &str) -> Array2<f64> {
        tensors.f64(&format!("{}.{key}", self.name)).into_dimensionality::<Ix2>().unwrap()
    }
}

fn largest_difference(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn tight(method: Method) -> Solver<f64> {
    Solver::new(Options::default().method(method).tolerance(1e-11).max_iters(100_000)).unwrap()
}

#[test]
fn parity_plans_and_costs_in_every_domain() {
    let tensors = Tensors::open("ot");
    for case in Case::all() {
        let (a, b) = (case.vector(&tensors, "a"), case.vector(&tensors, "b"));
        let (cost, expected) = (case.matrix(&tensors, "cost"), case.matrix(&tensors, "plan"));
        let problem = Problem::from_cost(cost.view(), case.number("reg"))
            .unwrap()
            .with_marginals(a.view(), b.view())
            .unwrap();
        for method in [Method::Auto, Method::Scaling, Method::Stabilised, Method::Log] {
            let mut solver = tight(method);
            let solution = solver.solve(&problem).unwrap().converged().unwrap();
            let difference = largest_difference(&solution.plan(), &expected);
            assert!(difference < 1e-6, "{} {method:?}: {difference}", case.name);
            let costs = solution.costs();
            assert!((costs.transport - case.number("sinkhorn_cost")).abs() < 1e-8, "{}", case.name);
            assert!((costs.dual - costs.entropic).abs() < 1e-8, "{costs:?}");
            let bounds = solution.certificate().unwrap();
            let optimum = case.number("emd_cost");
            assert!(
                bounds.lower <= optimum + 1e-12 && optimum <= bounds.upper + 1e-12,
                "{bounds:?} {optimum}"
            );
        }
        // Costs and scores in other layouts and signs are the same problem.
        let columns_first = cost.t().as_standard_layout().into_owned();
        let problem = Problem::from_cost(columns_first.t(), case.number("reg"))
            .unwrap()
            .with_marginals(a.view(), b.view())
            .unwrap();
        let plan = tight(Method::Auto).solve(&problem).unwrap().plan();
        assert!(largest_difference(&plan, &expected) < 1e-6);
        let scores = -&cost;
        let problem = Problem::from_scores(scores.view(), case.number("reg"))
            .unwrap()
            .with_marginals(a.view(), b.view())
            .unwrap();
        for method in [Method::Auto, Method::Log] {
            let plan = tight(method).solve(&problem).unwrap().plan();
            assert!(largest_difference(&plan, &expected) < 1e-6);
        }
    }
}

#[test]
fn parity_plans_of_points_without_a_matrix() {
    let tensors = Tensors::open("ot");
    for case in Case::all() {
        let (x, y) = (case.matrix(&tensors, "x"), case.matrix(&tensors, "y"));
        let (a, b) = (case.vector(&tensors, "a"), case.vector(&tensors, "b"));
        // The fixture's cost is the squared distance over its maximum.
        let mut largest: f64 = 0.0;
        for p in x.rows() {
            for q in y.rows() {
                largest = largest.max(p.iter().zip(&q).map(|(p, q)| (p - q).powi(2)).sum());
            }
        }
        let epsilon = case.number("reg") * largest;
        let expected = case.matrix(&tensors, "plan");
        let custom = |p: ndarray::ArrayView1<f64>, q: ndarray::ArrayView1<f64>| {
            p.iter().zip(q).map(|(p, q)| (p - q).powi(2)).sum()
        };
        for cost in [PointCost::SquaredEuclidean, PointCost::Custom(&custom)] {
            let problem = Problem::from_points(x.view(), y.view(), cost, epsilon)
                .unwrap()
                .with_marginals(a.view(), b.view())
                .unwrap();
            let mut solver = tight(Method::Auto);
            let solution = solver.solve(&problem).unwrap().converged().unwrap();
            assert_eq!(solution.method(), Method::Log);
            assert!(largest_difference(&solution.plan(), &expected) < 1e-6, "{}", case.name);
        }
    }
}

#[test]
fn parity_unbalanced_plans() {
    let tensors = Tensors::open("ot");
    for case in Case::all() {
        let (a, b) = (case.vector(&tensors, "a"), case.vector(&tensors, "b"));
        let cost = case.matrix(&tensors, "cost");
        let expected = case.matrix(&tensors, "unbalanced_plan_kl_1");
        let problem = Problem::from_cost(cost.view(), case.number("reg"))
            .unwrap()
            .with_marginals(a.view(), b.view())
            .unwrap()
            .relax(case.number("unbalanced_reg_m"))
            .unwrap();
        for method in [Method::Auto, Method::Log] {
            let mut solver = tight(method);
            let solution = solver.solve(&problem).unwrap().converged().unwrap();
            let difference = largest_difference(&solution.plan(), &expected);
            assert!(difference < 1e-5, "{} {method:?}: {difference}", case.name);
            let costs = solution.costs();
            assert!((costs.dual - costs.entropic).abs() < 1e-8, "{costs:?}");
        }
    }
}

#[test]
fn parity_divergence() {
    let tensors = Tensors::open("ot");
    for case in Case::all() {
        let scale = case.number("divergence_points_scale");
        let (x, y) = (case.matrix(&tensors, "x") * scale, case.matrix(&tensors, "y") * scale);
        let epsilon = case.number("divergence_reg");
        let (a, b) = (case.vector(&tensors, "a"), case.vector(&tensors, "b"));
        let problem = Problem::from_points(x.view(), y.view(), PointCost::SquaredEuclidean, epsilon)
            .unwrap()
            .with_marginals(a.view(), b.view())
            .unwrap();
        let divergence = sinkhorn_divergence(&problem, &mut tight(Method::Auto)).unwrap();
        let expected = case.number("divergence_sqeuclidean");
        assert!((divergence.transport - expected).abs() < 1e-6, "{divergence:?} {expected}");
        assert!(divergence.value >= 0.0);
    }
}

#[test]
fn parity_barycentre() {
    let tensors = Tensors::open("ot");
    let cases = swav_fixtures::json("ot");
    let case = cases.as_array().unwrap().iter().find(|case| case["case"] == "barycenter").unwrap();
    let two = |key: &str| tensors.f64(key).into_dimensionality::<Ix2>().unwrap();
    let (cost, histograms) = (two("barycenter.cost"), two("barycenter.A"));
    let expected = tensors.f64("barycenter.result").into_dimensionality::<Ix1>().unwrap();
    let weights: Array1<f64> =
        case["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect();
    let epsilon = case["reg"].as_f64().unwrap();
    let options = BarycentreOptions::new(epsilon).tolerance(1e-9).start(BarycentreStart::EqualWeights);
    let got = barycentre(cost.view(), histograms.view(), weights.view(), options).unwrap();
    let difference = got.weights.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(difference < 1e-4, "{difference} after {} iterations", got.n_iters);
    assert!((got.weights.sum() - 1.0).abs() < 1e-9);
}

#[test]
fn parity_acceleration_does_not_change_the_plan() {
    let tensors = Tensors::open("ot");
    for case in Case::all() {
        let (a, b) = (case.vector(&tensors, "a"), case.vector(&tensors, "b"));
        let (cost, expected) = (case.matrix(&tensors, "cost"), case.matrix(&tensors, "plan"));
        let problem = Problem::from_cost(cost.view(), case.number("reg"))
            .unwrap()
            .with_marginals(a.view(), b.view())
            .unwrap();
        let count = |acceleration| {
            let options = Options::default().tolerance(1e-9).acceleration(acceleration).max_iters(100_000);
            let mut solver = Solver::new(options).unwrap();
            let solution = solver.solve(&problem).unwrap().converged().unwrap();
            assert!(largest_difference(&solution.plan(), &expected) < 1e-6, "{acceleration:?}");
            solution.n_iters()
        };
        let plain = count(Acceleration::Off);
        let relaxed = count(Acceleration::OverRelaxation { factor: 1.5 });
        let anderson = count(Acceleration::Anderson { depth: 8 });
        println!("{}: {plain} plain, {relaxed} over-relaxed, {anderson} mixed", case.name);
        if plain > 100 {
            assert!(anderson < plain / 2 && relaxed < plain, "{plain} {relaxed} {anderson}");
        }
    }
}
