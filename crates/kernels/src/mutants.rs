//! Faults that tests switch on, to see that some test fails.

/// Whether the environment variable `SWAV_MUTANT` names this fault. Never without the feature `mutants`.
#[cfg(feature = "mutants")]
pub(crate) fn mutated(name: &str) -> bool {
    std::env::var("SWAV_MUTANT").is_ok_and(|value| value == name)
}

/// Never, without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn mutated(_: &str) -> bool {
    false
}
