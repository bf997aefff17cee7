//! Properties of the solvers: invariances, bounds, extremes, shards, threads, memory.

mod team;

use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swav_ot::{
    Constraint, Method, Options, OtError, PointCost, Potentials, Problem, Real, Solver, Start, Status,
    problems_from_costs, solve_batch,
};
use team::Team;

const METHODS: [Method; 3] = [Method::Auto, Method::Stabilised, Method::Log];

fn random(n: usize, m: usize, seed: u64) -> Array2<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((n, m), || rng.random_range(0.0..1.0))
}

fn weights(n: usize, seed: u64, zeros: bool) -> Array1<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    let mut weights = Array1::from_shape_simple_fn(n, || rng.random_range(0.1..1.0));
    if zeros && n > 2 {
        weights[n / 2] = 0.0;
    }
    let total = weights.sum();
    weights / total
}

fn problem<'a>(cost: &'a Array2<f64>, epsilon: f64, seed: u64, zeros: bool) -> Problem<'a, f64> {
    let (n, m) = cost.dim();
    Problem::from_cost(cost.view(), epsilon)
        .unwrap()
        .with_marginals(weights(n, seed, zeros).view(), weights(m, seed + 1, zeros).view())
        .unwrap()
}

fn solver(method: Method, tolerance: f64) -> Solver<f64> {
    Solver::new(Options::default().method(method).tolerance(tolerance).max_iters(20_000)).unwrap()
}

fn largest_difference(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The optimum of an assignment problem with uniform marginals, by trying all permutations.
fn best_assignment(cost: ArrayView2<f64>) -> f64 {
    fn search(cost: ArrayView2<f64>, row: usize, used: &mut Vec<bool>) -> f64 {
        if row == cost.nrows() {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for j in 0..cost.ncols() {
            if !used[j] {
                used[j] = true;
                best = best.min(cost[[row, j]] + search(cost, row + 1, used));
                used[j] = false;
            }
        }
        best
    }
    search(cost, 0, &mut vec![false; cost.ncols()]) / cost.nrows() as f64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn marginals_are_met_at_convergence(
        n in 1usize..30, m in 1usize..30, seed in 0u64..1000, epsilon in 0.02f64..2.0, zeros: bool,
    ) {
        let cost = random(n, m, seed);
        let problem = problem(&cost, epsilon, seed, zeros);
        for method in METHODS {
            let mut solver = solver(method, 1e-9);
            let solution = solver.solve(&problem).unwrap().converged().unwrap();
            let (source, target) = solution.marginals();
            let error: f64 = source.iter().zip(problem.source_weights()).map(|(p, a)| (p - a).abs()).sum::<f64>()
                + target.iter().zip(problem.target_weights()).map(|(p, b)| (p - b).abs()).sum::<f64>();
            prop_assert!(error < 3e-9, "{method:?} {error}");
            let rounded = solution.round().unwrap().plan();
            for (i, row) in rounded.rows().into_iter().enumerate() {
                prop_assert!((row.sum() - problem.source_weights()[i]).abs() < 1e-14);
                prop_assert!(row.iter().all(|p| *p >= 0.0));
            }
            for (j, column) in rounded.columns().into_iter().enumerate() {
                prop_assert!((column.sum() - problem.target_weights()[j]).abs() < 1e-14);
            }
        }
    }

    #[test]
    fn costs_may_be_shifted_scaled_and_transposed(
        n in 2usize..12, m in 2usize..12, seed in 0u64..1000, shift in -5.0f64..5.0, scale in 0.01f64..100.0,
    ) {
        let cost = random(n, m, seed);
        let plan = |cost: &Array2<f64>, epsilon: f64| {
            let problem = problem(cost, epsilon, seed, false);
            solver(Method::Auto, 1e-11).solve(&problem).unwrap().converged().unwrap().plan()
        };
        let expected = plan(&cost, 0.1);
        prop_assert!(largest_difference(&plan(&(&cost + shift), 0.1), &expected) < 1e-9);
        prop_assert!(largest_difference(&plan(&(&cost * scale), 0.1 * scale), &expected) < 1e-9);
        let turned = cost.t().as_standard_layout().into_owned();
        let problem = Problem::from_cost(turned.view(), 0.1)
            .unwrap()
            .with_marginals(weights(m, seed + 1, false).view(), weights(n, seed, false).view())
            .unwrap();
        let turned = solver(Method::Auto, 1e-11).solve(&problem).unwrap().plan();
        prop_assert!(largest_difference(&turned.t().to_owned(), &expected) < 1e-9);
    }

    #[test]
    fn a_problem_between_equal_sides_has_a_symmetric_plan(n in 2usize..12, seed in 0u64..1000) {
        let half = random(n, n, seed);
        let cost = &half + &half.t();
        let a = weights(n, seed, false);
        let problem = Problem::from_cost(cost.view(), 0.2).unwrap().with_marginals(a.view(), a.view()).unwrap();
        let plan = solver(Method::Auto, 1e-11).solve(&problem).unwrap().converged().unwrap().plan();
        prop_assert!(largest_difference(&plan, &plan.t().to_owned()) < 1e-9);
    }

    #[test]
    fn unbalanced_becomes_balanced_as_the_penalty_grows(n in 2usize..8, m in 2usize..8, seed in 0u64..1000) {
        let cost = random(n, m, seed);
        let balanced = solver(Method::Auto, 1e-11).solve(&problem(&cost, 0.2, seed, false)).unwrap().plan();
        let mut last = f64::INFINITY;
        for penalty in [1.0, 1e2, 1e4, 1e6] {
            let problem = problem(&cost, 0.2, seed, false).relax(penalty).unwrap();
            let solution = solver(Method::Auto, 1e-11).solve(&problem).unwrap().plan();
            let difference = largest_difference(&solution, &balanced);
            prop_assert!(difference < last || difference < 1e-7, "{penalty}: {difference} after {last}");
            last = difference;
        }
        prop_assert!(last < 1e-5, "{last}");
    }

    #[test]
    fn bounds_bracket_the_optimum_however_early_the_solve_ends(
        n in 2usize..7, seed in 0u64..1000, epsilon in 0.003f64..1.0, max_iters in 1usize..40,
    ) {
        let cost = random(n, n, seed);
        let problem = Problem::from_cost(cost.view(), epsilon).unwrap();
        let optimum = best_assignment(cost.view());
        let mut solver = Solver::new(Options::default().max_iters(max_iters)).unwrap();
        let solution = solver.solve(&problem).unwrap();
        let bounds = solution.certificate().unwrap();
        prop_assert!(bounds.lower <= optimum + 1e-15 && optimum <= bounds.upper + 1e-15, "{bounds:?} {optimum}");
        if solution.status() == Status::Converged {
            // The entropy of a plan of n x n points is within 2 log n.
            prop_assert!(bounds.gap() <= 2.0 * epsilon * (n as f64).ln() + 1e-5, "{bounds:?}");
        }
    }

    #[test]
    fn extremes_give_finite_numbers_or_a_typed_error(
        n in 1usize..9, m in 1usize..9, seed in 0u64..1000, log_epsilon in -6.0f64..6.0, log_cost in -2.0f64..4.0,
        kind in 0usize..4, zeros: bool,
    ) {
        let epsilon = 10f64.powf(log_epsilon);
        let cost = random(n, m, seed) * 10f64.powf(log_cost);
        check_finite::<f64>(&cost, epsilon, seed, kind, zeros);
        check_finite::<f32>(&cost.mapv(|c| c as f32), epsilon, seed, kind, zeros);
    }
}

fn check_finite<T: Real>(cost: &Array2<T>, epsilon: f64, seed: u64, kind: usize, zeros: bool) {
    let (n, m) = cost.dim();
    let (a, b) = (weights(n, seed, zeros).mapv(T::of), weights(m, seed + 1, zeros).mapv(T::of));
    let balanced =
        Problem::from_cost(cost.view(), epsilon).unwrap().with_marginals(a.view(), b.view()).unwrap();
    let problem = match kind {
        0 => balanced,
        1 => balanced.relax(0.5).unwrap(),
        2 => balanced.relax_target(2.0).unwrap(),
        _ => balanced.partial(0.4).unwrap(),
    };
    for method in METHODS {
        let mut solver = Solver::new(Options::default().method(method).max_iters(300)).unwrap();
        match solver.solve(&problem) {
            Ok(solution) => {
                assert!(solution.plan().iter().all(|p| p.is_finite() && *p >= T::zero()), "{method:?} plan");
                let potentials = solution.potentials();
                assert!(potentials.f.iter().chain(&potentials.g).all(|p| p.is_finite()));
                let costs = solution.costs();
                assert!(
                    costs.transport.is_finite() && costs.entropic.is_finite() && costs.dual.is_finite(),
                    "{method:?} kind {kind} eps {epsilon} {costs:?}"
                );
                if kind == 0 {
                    let bounds = solution.certificate().unwrap();
                    assert!(bounds.lower <= bounds.upper && bounds.gap().is_finite());
                }
            }
            Err(OtError::Overflow { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn one_point_identical_points_and_subnormal_costs() {
    let row = array_of(&[[0.3, 0.7, 0.1]]);
    let problem = Problem::from_cost(row.view(), 1e-6).unwrap();
    for method in METHODS {
        let mut solver = solver(method, 1e-9);
        let solution = solver.solve(&problem).unwrap().converged().unwrap();
        assert!(solution.plan().iter().all(|p| (p - 1.0 / 3.0).abs() < 1e-9));
        let bounds = solution.certificate().unwrap();
        assert!((bounds.upper - 1.1 / 3.0).abs() < 1e-12 && bounds.gap() < 1e-12);
    }
    let same = Array2::<f32>::ones((5, 3));
    for cost in [PointCost::SquaredEuclidean, PointCost::Euclidean, PointCost::Cosine] {
        let problem = Problem::from_points(same.view(), same.view(), cost, 0.01).unwrap();
        let mut solver = Solver::new(Options::default()).unwrap();
        let solution = solver.solve(&problem).unwrap().converged().unwrap();
        assert!(solution.transport_cost().abs() < 1e-6);
        assert!(solution.gradient_points(swav_ot::Cloud::Source).unwrap().iter().all(|g| g.abs() < 1e-6));
    }
    let tiny = Array2::from_shape_fn((4, 4), |(i, j)| f32::from_bits(1 + (i * 4 + j) as u32));
    let problem = Problem::from_cost(tiny.view(), 1e-6).unwrap();
    let mut solver = Solver::new(Options::default()).unwrap();
    assert!(solver.solve(&problem).unwrap().converged().unwrap().plan().iter().all(|p| p.is_finite()));
}

fn array_of<const N: usize>(rows: &[[f64; N]]) -> Array2<f64> {
    Array2::from_shape_fn((rows.len(), N), |(i, j)| rows[i][j])
}

#[test]
fn every_wrong_input_has_its_error() {
    let cost = random(3, 4, 1);
    let problem = || Problem::from_cost(cost.view(), 0.1).unwrap();
    let (a, b) = (Array1::from_elem(3, 1.0), Array1::from_elem(4, 0.75));
    let with = |a: &Array1<f64>, b: &Array1<f64>| problem().with_marginals(a.view(), b.view());
    assert!(with(&a, &b).is_ok());
    assert!(matches!(with(&b, &a), Err(OtError::Shape { .. })));
    let changed = |value: f64| {
        let mut a = a.clone();
        a[1] = value;
        a
    };
    assert!(matches!(with(&changed(f64::NAN), &b), Err(OtError::NotFinite { .. })));
    assert!(matches!(with(&changed(-0.1), &b), Err(OtError::NegativeWeight { index: 1, .. })));
    assert!(matches!(with(&(&a * 0.0), &b), Err(OtError::NoMass { .. })));
    let mut solver = solver(Method::Auto, 1e-6);
    let unequal = with(&changed(1.2), &b).unwrap();
    assert!(matches!(solver.solve(&unequal), Err(OtError::Unbalanced { .. })));
    assert!(solver.solve(&unequal.relax_target(1.0).unwrap()).is_ok());
    assert!(matches!(problem().partial(1.5), Err(OtError::Parameter { .. })));
    assert!(matches!(problem().relax(-1.0), Err(OtError::Parameter { .. })));
    assert!(matches!(Problem::from_cost(cost.view(), f64::INFINITY), Err(OtError::Parameter { .. })));
    let mut bad = cost.clone();
    bad[[2, 1]] = f64::NEG_INFINITY;
    assert!(matches!(Problem::from_cost(bad.view(), 0.1), Err(OtError::NotFinite { .. })));
    let none = Array2::<f64>::zeros((0, 3));
    assert!(matches!(Problem::from_cost(none.view(), 0.1), Err(OtError::Empty { .. })));
    let none = Array2::<f64>::zeros((3, 0));
    let problem_without_targets = Problem::from_cost(none.view(), 0.1).unwrap();
    assert!(matches!(solver.solve(&problem_without_targets), Err(OtError::Empty { .. })));
    let wide = &cost * 1e6;
    let range = Solver::new(Options::default().method(Method::Scaling))
        .unwrap()
        .solve(&Problem::from_cost(wide.view(), 0.1).unwrap())
        .map(|solution| solution.status());
    assert!(matches!(range, Err(OtError::ScalingRange { .. })));
    let nan = |_: ndarray::ArrayView1<f64>, _: ndarray::ArrayView1<f64>| f64::NAN;
    let points = Problem::from_points(cost.view(), cost.view(), PointCost::Custom(&nan), 0.1).unwrap();
    assert!(matches!(solver.solve(&points), Err(OtError::NotFinite { .. })));
    assert!(matches!(
        solver.solve_from(&problem(), Start::From(&Potentials::zeros(3, 3))),
        Err(OtError::Shape { .. })
    ));
    for options in [
        Options::default().tolerance(0.0),
        Options::default().max_iters(0),
        Options::default().acceleration(swav_ot::Acceleration::Anderson { depth: 99 }),
        Options::default().acceleration(swav_ot::Acceleration::OverRelaxation { factor: 2.5 }),
        Options::default().annealing(swav_ot::Annealing::From { start: 1.0, factor: 1.0 }),
    ] {
        assert!(matches!(Solver::<f64>::new(options), Err(OtError::Parameter { .. })), "{options:?}");
    }
    let relaxed = problem().relax(1.0).unwrap();
    assert_eq!(relaxed.constraints().0, Constraint::Relaxed { penalty: 1.0 });
    let solution = solver.solve(&relaxed).unwrap();
    assert!(matches!(solution.certificate(), Err(OtError::Unsupported { .. })));
    assert!(matches!(solution.gradient_points(swav_ot::Cloud::Source), Err(OtError::Unsupported { .. })));
}

#[test]
fn applying_the_plan_is_multiplying_by_it() {
    let cost = random(23, 17, 4);
    let problem = problem(&cost, 0.05, 4, true);
    let mut solver = solver(Method::Auto, 1e-10);
    let solution = solver.solve(&problem).unwrap();
    let plan = solution.plan();
    let (u, v) = (random(23, 1, 1).column(0).to_owned(), random(17, 3, 2));
    let close = |a: &Array1<f64>, b: &Array1<f64>| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-14);
    let mut turned = Array2::zeros((17, 23));
    solution.plan_into(turned.view_mut().reversed_axes()).unwrap();
    assert_eq!(turned.t(), plan);
    assert!(matches!(solution.plan_into(turned.view_mut()), Err(OtError::Shape { what: "plan", .. })));
    let mut used = plan.mapv(|p| p + 1.0);
    solution.plan_into(used.view_mut()).unwrap();
    assert_eq!(used, plan);
    assert!(close(&solution.apply(v.column(0)).unwrap(), &plan.dot(&v.column(0))));
    assert!(close(&solution.apply_transposed(u.view()).unwrap(), &plan.t().dot(&u)));
    assert!(largest_difference(&solution.apply_columns(v.view()).unwrap(), &plan.dot(&v)) < 1e-14);
    let means = solution.barycentric(v.view()).unwrap();
    for (i, row) in plan.rows().into_iter().enumerate() {
        if row.sum() > 0.0 {
            let expected = row.dot(&v) / row.sum();
            assert!(close(&means.row(i).to_owned(), &expected));
        }
        assert!(means.row(i).iter().all(|x| x.is_finite()));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let cost = random(333, 257, 8);
    for (epsilon, method) in [(0.05, Method::Auto), (0.002, Method::Stabilised), (0.01, Method::Log)] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let problem = problem(&cost, epsilon, 8, true);
                let mut solver = solver(method, 1e-7);
                let solution = solver.solve(&problem).unwrap();
                (
                    solution.plan(),
                    solution.costs(),
                    solution.certificate().unwrap(),
                    solution.into_potentials(),
                )
            })
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(7));
    }
}

#[test]
fn shards_give_the_solution_of_the_whole() {
    let cost = random(40, 70, 12);
    let (a, b) = (weights(40, 1, true), weights(70, 2, true));
    for (epsilon, method, penalty) in [
        (0.1, Method::Auto, None),
        (0.001, Method::Auto, None),
        (0.02, Method::Log, None),
        (0.05, Method::Auto, Some(0.7)),
    ] {
        let relaxed = |problem: Problem<'static, f64>| match penalty {
            None => problem,
            Some(penalty) => problem.relax(penalty).unwrap(),
        };
        let whole: &'static Array2<f64> = Box::leak(Box::new(cost.clone()));
        let build = |from: usize, to: usize| {
            relaxed(
                Problem::from_cost(whole.slice(s![.., from..to]), epsilon)
                    .unwrap()
                    .with_marginals(a.view(), b.slice(s![from..to]))
                    .unwrap(),
            )
        };
        let problem = build(0, 70);
        let mut solver = solver(method, 1e-10);
        let expected = solver.solve(&problem).unwrap().converged().unwrap();
        let bounds = [0usize, 30, 64, 70];
        let parts: Vec<(Potentials, Status)> = std::thread::scope(|scope| {
            let handles: Vec<_> = Team::of(3)
                .into_iter()
                .enumerate()
                .map(|(rank, mut team)| {
                    let local = build(bounds[rank], bounds[rank + 1]);
                    let options = *solver.options();
                    scope.spawn(move || {
                        let mut out = Potentials::default();
                        let mut solver = Solver::new(options).unwrap();
                        let summary = solver.solve_sharded(&local, Start::Zero, &mut out, &mut team).unwrap();
                        (out, summary.status)
                    })
                })
                .collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        });
        let mut plan = Array2::<f64>::zeros((40, 0));
        for (rank, (potentials, status)) in parts.iter().enumerate() {
            assert_eq!(*status, Status::Converged);
            assert_eq!(potentials.f, parts[0].0.f, "all shards have the same bits");
            let part = Array2::from_shape_fn((40, potentials.g.len()), |(i, j)| {
                let column = bounds[rank] + j;
                a[i] * b[column] * ((potentials.f[i] + potentials.g[j] - cost[[i, column]]) / epsilon).exp()
            });
            plan.append(Axis(1), part.view()).unwrap();
        }
        let difference = largest_difference(&plan, &expected.plan());
        assert!(difference < 1e-9, "{method:?} {epsilon}: {difference}");
    }
}

#[test]
fn single_precision_follows_double_precision() {
    let cost = random(150, 90, 21);
    for (epsilon, method) in
        [(0.1, Method::Auto), (0.02, Method::Auto), (0.005, Method::Auto), (0.005, Method::Log)]
    {
        let wide = problem(&cost, epsilon, 3, false);
        let expected = solver(method, 1e-9).solve(&wide).unwrap().converged().unwrap().plan();
        let narrow_cost = cost.mapv(|c| c as f32);
        let narrow = Problem::from_cost(narrow_cost.view(), epsilon)
            .unwrap()
            .with_marginals(
                weights(150, 3, false).mapv(|w| w as f32).view(),
                weights(90, 4, false).mapv(|w| w as f32).view(),
            )
            .unwrap();
        let mut solver = Solver::new(Options::default().method(method).tolerance(2e-6)).unwrap();
        let plan = solver.solve(&narrow).unwrap().converged().unwrap().plan().mapv(f64::from);
        let difference = largest_difference(&plan, &expected);
        assert!(difference < 1e-6, "{method:?} {epsilon}: {difference}");
    }
}

#[test]
fn a_batch_equals_its_problems() {
    let costs = ndarray::stack(Axis(0), &[random(12, 9, 1).view(), random(12, 9, 2).view()]).unwrap();
    let problems = problems_from_costs(costs.view(), 0.1).unwrap();
    let options = Options::default().tolerance(1e-9);
    let together = solve_batch(&problems, options).unwrap();
    assert_eq!(together.len(), 2);
    for (problem, solution) in problems.iter().zip(together) {
        let mut solver = Solver::new(options).unwrap();
        assert_eq!(solver.solve(problem).unwrap().potentials(), solution.potentials());
    }
}
