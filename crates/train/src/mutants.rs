//! Faults that tests of the tests switch on.

/// Whether the environment variable `SWAV_MUTANT` names this fault.
#[cfg(feature = "mutants")]
pub(crate) fn mutated(name: &str) -> bool {
    std::env::var("SWAV_MUTANT").is_ok_and(|value| value == name)
}

/// Whether a fault is switched on: never, in a build without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn mutated(_: &str) -> bool {
    false
}
