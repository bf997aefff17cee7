//! Faults in formulae that tests switch on, to see that a parity test finds each of them.

/// Whether the fault `name` is switched on: where the environment variable `SWAV_MUTANT` names it.
#[cfg(feature = "mutants")]
pub(crate) fn mutated(name: &str) -> bool {
    std::env::var("SWAV_MUTANT").is_ok_and(|value| value == name)
}

/// No fault is ever switched on in a build without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn mutated(_: &str) -> bool {
    false
}
