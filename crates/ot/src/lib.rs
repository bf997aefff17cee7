#![doc = include_str!("../README.md")]
#![allow(
    clippy::needless_range_loop,
    reason = "sweeps and kernels walk several arrays by one index, which zipped iterators make harder to read"
)]

mod anderson;
mod barycentre;
mod batch;
mod certificate;
mod chunks;
mod codes;
mod collective;
mod cost;
mod divergence;
mod engine;
mod error;
mod feasible;
mod gradient;
mod mutants;
mod options;
mod outcome;
mod pages;
mod plan;
mod problem;
mod real;
mod simd;
mod solution;
mod solver;

pub use barycentre::{Barycentre, BarycentreOptions, BarycentreStart, barycentre};
pub use batch::{problems_from_costs, solve_batch};
pub use certificate::{Certificate, RoundedPlan};
pub use codes::{Codes, sinkhorn_codes};
pub use collective::{Collective, CollectiveError};
pub use cost::{PointCost, PointFn};
pub use divergence::{Divergence, sinkhorn_divergence, sinkhorn_divergence_of};
pub use error::OtError;
pub use gradient::Cloud;
pub use options::{Acceleration, Annealing, Fallback, Method, Norm, Options};
pub use outcome::{Effort, Potentials, Record, Rung, Start, Status, Summary};
pub use problem::{Constraint, Problem};
pub use real::Real;
pub use solution::{Costs, Solution};
pub use solver::{Solver, solve};
