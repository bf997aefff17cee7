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

/// The prototypes of the call before with this index, on this thread: what a queue would be scored with that kept its scores.
#[cfg(feature = "mutants")]
pub(crate) fn stale(index: usize, today: &crate::Prototypes) -> Option<crate::Prototypes> {
    use std::cell::RefCell;
    use std::collections::HashMap;
    thread_local! {
        static LAST: RefCell<HashMap<usize, crate::Prototypes>> = RefCell::default();
    }
    LAST.with_borrow_mut(|last| last.insert(index, today.clone()))
}

/// Nothing is kept in a build without the feature `mutants`.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn stale(_: usize, _: &crate::Prototypes) -> Option<crate::Prototypes> {
    None
}
