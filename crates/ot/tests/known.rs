//! Known values and closed forms.

use ndarray::{Array1, Array2, array};
use swav_ot::{
    Acceleration, Annealing, BarycentreOptions, Method, Options, PointCost, Problem, Solver, Status,
    barycentre, sinkhorn_divergence,
};

fn tight(method: Method) -> Solver<f64> {
    Solver::new(Options::default().method(method).tolerance(1e-12).max_iters(100_000)).unwrap()
}

#[test]
fn two_by_two_with_uniform_marginals() {
    // P = [[p, 1/2 - p], [1/2 - p, p]] with p / (1/2 - p) = exp(c / eps) for cost [[0, c], [c, 0]].
    let cost = array![[0.0, 1.0], [1.0, 0.0]];
    for epsilon in [0.05, 0.3, 1.0, 20.0] {
        let problem = Problem::from_cost(cost.view(), epsilon).unwrap();
        for method in [Method::Log, Method::Scaling, Method::Stabilised] {
            let plan = tight(method).solve(&problem).unwrap().plan();
            let expected = 0.5 / (1.0 + (-1.0_f64 / epsilon).exp());
            assert!((plan[[0, 0]] - expected).abs() < 1e-12 && (plan[[1, 1]] - expected).abs() < 1e-12);
            assert!((plan[[0, 1]] - (0.5 - expected)).abs() < 1e-12);
        }
    }
    let problem = Problem::from_cost(cost.view(), 1.0).unwrap();
    let plan = tight(Method::Log).solve(&problem).unwrap().plan();
    assert!((plan[[0, 0]] - 0.365529289315).abs() < 1e-12);
}

#[test]
fn two_by_two_with_any_marginals() {
    // The cross ratio P00 P11 / (P01 P10) = exp(-(C00 + C11 - C01 - C10) / eps) gives a quadratic for P00.
    let cost = array![[0.3, 1.1], [0.9, 0.2]];
    let (a, b) = (array![0.3, 0.7], array![0.55, 0.45]);
    for epsilon in [0.1, 1.0, 7.0] {
        let ratio = f64::exp(-(0.3 + 0.2 - 1.1 - 0.9) / epsilon);
        // p (1 - a0 - b0 + p) = ratio (a0 - p)(b0 - p)
        let (qa, qb, qc) = (1.0 - ratio, 1.0 - 0.3 - 0.55 + ratio * (0.3 + 0.55), -ratio * 0.3 * 0.55);
        let root = (qb * qb - 4.0 * qa * qc).sqrt();
        let p = [(-qb + root) / (2.0 * qa), (-qb - root) / (2.0 * qa)]
            .into_iter()
            .find(|p| *p > 0.0 && *p < 0.3)
            .unwrap();
        let problem =
            Problem::from_cost(cost.view(), epsilon).unwrap().with_marginals(a.view(), b.view()).unwrap();
        let plan = tight(Method::Auto).solve(&problem).unwrap().plan();
        assert!((plan[[0, 0]] - p).abs() < 1e-10, "{} {p}", plan[[0, 0]]);
    }
}

/// POT's `make_1D_gauss`: a sampled normal density, normalised.
fn gauss(n: usize, mean: f64, deviation: f64) -> Array1<f64> {
    let density: Array1<f64> =
        (0..n).map(|i| (-(i as f64 - mean).powi(2) / (2.0 * deviation * deviation)).exp()).collect();
    let total = density.sum();
    density / total
}

#[test]
fn sampled_gaussians_on_a_line() {
    let (a, b) = (gauss(100, 30.0, 10.0), gauss(100, 40.0, 10.0));
    let cost = Array2::from_shape_fn((100, 100), |(i, j)| (i as f64 - j as f64).powi(2));
    for (epsilon, expected) in [(1.0, 99.787928837), (10.0, 104.225845380), (100.0, 143.084641496)] {
        let problem =
            Problem::from_cost(cost.view(), epsilon).unwrap().with_marginals(a.view(), b.view()).unwrap();
        for method in [Method::Auto, Method::Log] {
            let mut solver = tight(method);
            let solution = solver.solve(&problem).unwrap();
            let got = solution.transport_cost();
            assert!((got - expected).abs() < 1e-7, "eps {epsilon} {method:?}: {got} {:?}", solution.status());
            let bounds = solution.certificate().unwrap();
            assert!(bounds.lower <= 99.315306139 && 99.315306138 <= bounds.upper, "{bounds:?}");
            if epsilon == 1.0 {
                assert!(bounds.gap() < 2.0, "{bounds:?}");
            }
        }
    }
}

#[test]
fn entropic_cost_between_gaussians_has_its_closed_form() {
    // Janati et al. 2020, theorem 1, in one dimension: with cost |x - y|² and v = eps / 2 the plan is Gaussian with
    // covariance v (d - 1) / 2, d = sqrt(1 + 4 s1² s2² / v²). Compared with a fine grid.
    let (n, width) = (401, 16.0);
    let grid = Array1::linspace(-width / 2.0, width / 2.0, n);
    let density = |mean: f64, deviation: f64| {
        let values = grid.mapv(|x: f64| (-(x - mean).powi(2) / (2.0 * deviation * deviation)).exp());
        let total = values.sum();
        values / total
    };
    let (m1, s1, m2, s2) = (-0.5, 0.8, 0.7, 1.1);
    let (a, b) = (density(m1, s1), density(m2, s2));
    let cost = Array2::from_shape_fn((n, n), |(i, j)| (grid[i] - grid[j]).powi(2));
    for epsilon in [0.5, 2.0, 8.0] {
        let variance = epsilon / 2.0;
        let d = (1.0 + 4.0 * (s1 * s2 / variance).powi(2)).sqrt();
        let covariance = variance * (d - 1.0) / 2.0;
        let transport: f64 = (m1 - m2).powi(2) + s1 * s1 + s2 * s2 - 2.0 * covariance;
        // KL of a bivariate normal against the product of its marginals is -log(1 - ρ²) / 2.
        let correlation: f64 = covariance / (s1 * s2);
        let entropic = transport - epsilon * 0.5 * (1.0 - correlation * correlation).ln();
        let problem =
            Problem::from_cost(cost.view(), epsilon).unwrap().with_marginals(a.view(), b.view()).unwrap();
        let mut solver = tight(Method::Auto);
        let costs = solver.solve(&problem).unwrap().converged().unwrap().costs();
        assert!((costs.transport - transport).abs() < 1e-6, "{costs:?} {transport}");
        assert!((costs.entropic - entropic).abs() < 1e-6, "{costs:?} {entropic}");
    }
}

#[test]
fn unbalanced_transport_of_one_point_has_its_closed_form() {
    // One source, one target: P minimises cP + eps KL(P|ab) + r KL(P|a) + r KL(P|b), so
    // log P = (eps log(ab) + r log a + r log b - c) / (eps + 2 r).
    let (a, b, c, epsilon, penalty) = (2.0f64, 0.5f64, 0.7, 0.3, 1.7);
    let cost = array![[c]];
    let problem = Problem::from_cost(cost.view(), epsilon)
        .unwrap()
        .with_marginals(array![a].view(), array![b].view())
        .unwrap()
        .relax(penalty)
        .unwrap();
    let expected =
        ((epsilon * (a * b).ln() + penalty * (a.ln() + b.ln()) - c) / (epsilon + 2.0 * penalty)).exp();
    for method in [Method::Auto, Method::Log] {
        let mut solver = tight(method);
        let solution = solver.solve(&problem).unwrap().converged().unwrap();
        assert!((solution.plan()[[0, 0]] - expected).abs() < 1e-10);
    }
    // Semi-relaxed: the source is exact, the target follows.
    let problem = Problem::from_cost(cost.view(), epsilon)
        .unwrap()
        .with_marginals(array![a].view(), array![b].view())
        .unwrap()
        .relax_target(penalty)
        .unwrap();
    let plan = tight(Method::Auto).solve(&problem).unwrap().converged().unwrap().plan();
    assert!((plan[[0, 0]] - a).abs() < 1e-10);
}

#[test]
fn partial_transport_moves_the_cheap_mass() {
    let cost = array![[0.0, 5.0, 5.0], [5.0, 0.1, 5.0], [5.0, 5.0, 4.0]];
    let weights = array![0.3, 0.3, 0.4];
    let problem = Problem::from_cost(cost.view(), 0.01)
        .unwrap()
        .with_marginals(weights.view(), weights.view())
        .unwrap()
        .partial(0.5)
        .unwrap();
    for method in [Method::Auto, Method::Log] {
        let mut solver = tight(method);
        let solution = solver.solve(&problem).unwrap();
        let (source, target) = solution.marginals();
        assert!((source.sum() - 0.5).abs() < 1e-9, "{source} {:?}", solution.status());
        assert!(source.iter().zip(&weights).all(|(p, w)| *p <= w + 1e-9));
        assert!(target.iter().zip(&weights).all(|(p, w)| *p <= w + 1e-9));
        // 0.3 at cost 0 and the other 0.2 at cost 0.1.
        assert!((solution.transport_cost() - 0.02).abs() < 1e-3, "{}", solution.transport_cost());
        let costs = solution.costs();
        assert!((costs.dual - costs.entropic).abs() < 1e-6, "{costs:?}");
    }
}

#[test]
fn divergence_of_shifted_clouds_is_the_squared_shift() {
    // A translation by t adds |t|² to the squared distance, whatever the regularisation.
    let x = Array2::from_shape_fn((30, 2), |(i, d)| ((i * (d + 2)) as f64 * 0.7).sin());
    let y = &x + &array![0.4, -0.3];
    let problem = Problem::from_points(x.view(), y.view(), PointCost::SquaredEuclidean, 0.5).unwrap();
    let divergence = sinkhorn_divergence(&problem, &mut tight(Method::Auto)).unwrap();
    assert_eq!(divergence.status, Status::Converged);
    assert!((divergence.value - 0.25).abs() < 1e-8, "{divergence:?}");
    let gradient = divergence.gradient.unwrap();
    for row in gradient.rows() {
        assert!((row[0] + 2.0 * 0.4 / 30.0).abs() < 1e-7 && (row[1] - 2.0 * 0.3 / 30.0).abs() < 1e-7);
    }
}

#[test]
fn barycentre_of_one_histogram_in_the_limit_is_itself_and_of_two_is_between() {
    let n = 60;
    let cost = Array2::from_shape_fn((n, n), |(i, j)| ((i as f64 - j as f64) / n as f64).powi(2));
    let (a, b) = (gauss(n, 15.0, 4.0), gauss(n, 45.0, 4.0));
    let both = ndarray::stack(ndarray::Axis(1), &[a.view(), b.view()]).unwrap();
    let options = BarycentreOptions::new(1e-3).tolerance(1e-9);
    let mean = |weights: &Array1<f64>| weights.iter().enumerate().map(|(i, w)| i as f64 * w).sum::<f64>();
    for share in [0.25, 0.5] {
        let shares = array![1.0 - share, share];
        let result = barycentre(cost.view(), both.view(), shares.view(), options).unwrap();
        assert_eq!(result.status, Status::Converged);
        let expected = 15.0 * (1.0 - share) + 45.0 * share;
        assert!((mean(&result.weights) - expected).abs() < 0.05, "{} {expected}", mean(&result.weights));
    }
    // The logarithmic domain (a smaller epsilon) blurs less.
    let alone = a.view().insert_axis(ndarray::Axis(1));
    let blur = |epsilon| {
        let options = BarycentreOptions::new(epsilon).tolerance(1e-7);
        let result = barycentre(cost.view(), alone, array![1.0].view(), options).unwrap();
        result.weights.iter().zip(&a).map(|(p, q)| (p - q).abs()).sum::<f64>()
    };
    assert!(blur(1e-4) < blur(1e-2) && blur(1e-4) < 0.2, "{} {}", blur(1e-4), blur(1e-2));
}

#[test]
fn gradients_agree_with_finite_differences() {
    let x = array![[0.1, 0.4], [0.9, 0.3], [0.5, -0.2]];
    let y = array![[0.2, 0.1], [0.7, 0.8], [-0.3, 0.6], [0.4, 0.4]];
    let (a, b) = (array![0.2, 0.5, 0.3], array![0.1, 0.4, 0.2, 0.3]);
    let step = 1e-5;
    for cost in [PointCost::SquaredEuclidean, PointCost::Euclidean, PointCost::Cosine] {
        for penalty in [None, Some(0.8)] {
            let value = |x: &Array2<f64>, y: &Array2<f64>, a: &Array1<f64>, b: &Array1<f64>| {
                let problem = Problem::from_points(x.view(), y.view(), cost, 0.2)
                    .unwrap()
                    .with_marginals(a.view(), b.view())
                    .unwrap();
                let problem = match penalty {
                    None => problem,
                    Some(penalty) => problem.relax(penalty).unwrap(),
                };
                let mut solver = tight(Method::Auto);
                let solution = solver.solve(&problem).unwrap().converged().unwrap();
                let by_x = solution.gradient_points(swav_ot::Cloud::Source).unwrap();
                let by_y = solution.gradient_points(swav_ot::Cloud::Target).unwrap();
                (solution.entropic_cost(), by_x, by_y, solution.gradient_weights())
            };
            let (_, by_x, by_y, (by_a, by_b)) = value(&x, &y, &a, &b);
            for i in 0..3 {
                for d in 0..2 {
                    let (mut up, mut down) = (x.clone(), x.clone());
                    up[[i, d]] += step;
                    down[[i, d]] -= step;
                    let slope = (value(&up, &y, &a, &b).0 - value(&down, &y, &a, &b).0) / (2.0 * step);
                    assert!((slope - by_x[[i, d]]).abs() < 1e-6, "{cost:?} {slope} {}", by_x[[i, d]]);
                }
            }
            let (mut up, mut down) = (y.clone(), y.clone());
            up[[2, 1]] += step;
            down[[2, 1]] -= step;
            let slope = (value(&x, &up, &a, &b).0 - value(&x, &down, &a, &b).0) / (2.0 * step);
            assert!((slope - by_y[[2, 1]]).abs() < 1e-6, "{cost:?}");
            // Mass moved from one source (target) to another keeps the total.
            let moved = |w: &Array1<f64>, by: f64| {
                let mut w = w.clone();
                w[0] += by;
                w[1] -= by;
                w
            };
            let slope = (value(&x, &y, &moved(&a, step), &b).0 - value(&x, &y, &moved(&a, -step), &b).0)
                / (2.0 * step);
            assert!((slope - (by_a[0] - by_a[1])).abs() < 1e-6, "{cost:?} {slope}");
            let slope = (value(&x, &y, &a, &moved(&b, step)).0 - value(&x, &y, &a, &moved(&b, -step)).0)
                / (2.0 * step);
            assert!((slope - (by_b[0] - by_b[1])).abs() < 1e-6, "{cost:?} {slope}");
            if penalty.is_some() {
                let (mut up, mut down) = (a.clone(), a.clone());
                up[1] += step;
                down[1] -= step;
                let slope = (value(&x, &y, &up, &b).0 - value(&x, &y, &down, &b).0) / (2.0 * step);
                assert!((slope - by_a[1]).abs() < 1e-6, "{cost:?} {slope} {}", by_a[1]);
            }
        }
    }
}

#[test]
fn small_epsilon_needs_annealing_less_with_a_warm_start() {
    let (a, b) = (gauss(80, 20.0, 6.0), gauss(80, 50.0, 9.0));
    let cost = Array2::from_shape_fn((80, 80), |(i, j)| (i as f64 - j as f64).powi(2));
    let problem = Problem::from_cost(cost.view(), 2.0).unwrap().with_marginals(a.view(), b.view()).unwrap();
    let mut solver = Solver::new(Options::default().tolerance(1e-9)).unwrap();
    let cold = solver.solve(&problem).unwrap().converged().unwrap();
    let cold_iters = cold.n_iters();
    assert!(cold.history().first().unwrap().epsilon > 2.0 && cold.history().last().unwrap().epsilon == 2.0);
    let start = cold.into_potentials();
    let warm = solver.solve_from(&problem, swav_ot::Start::From(&start)).unwrap().converged().unwrap();
    assert!(warm.n_iters() * 4 < cold_iters, "{} {cold_iters}", warm.n_iters());
    let options = Options::default().tolerance(1e-9).annealing(Annealing::Off);
    let off =
        Solver::new(options.acceleration(Acceleration::Off).max_iters(20)).unwrap().solve(&problem).unwrap();
    assert_eq!(off.status(), Status::IterationLimit);
    assert!(off.converged().is_err());
}
