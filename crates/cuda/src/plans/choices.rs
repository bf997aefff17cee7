//! What is known of choices before a plan is made: those that a run brings with it, then those of the cache.

use std::path::PathBuf;

use super::{Entry, Place, PlanBook};
use crate::cudnn::Convolution;
use crate::{Error, Result};

/// Choices from elsewhere, and what becomes of new ones.
#[derive(Debug)]
pub(super) struct Choices {
    /// Those of books that were taken over: they go first.
    adopted: PlanBook,
    /// Those of the cache, and new ones.
    cached: PlanBook,
    /// Whether there are some that the cache lacks.
    is_changed: bool,
    /// The cache's folder.
    folder: Option<PathBuf>,
}

impl Choices {
    /// What the cache in `folder` has for a place; nothing without a folder.
    pub(super) fn new(place: Place, folder: Option<PathBuf>) -> Self {
        let cached = folder.as_deref().map(|folder| PlanBook::load(&place, folder));
        Choices {
            cached: cached.unwrap_or_else(|| PlanBook::new(place.clone())),
            adopted: PlanBook::new(place),
            is_changed: false,
            folder,
        }
    }

    /// What choices hold for.
    pub(super) fn place(&self) -> &Place {
        self.cached.place()
    }

    /// Takes over a book's choices, before those of books taken over earlier and of the cache. The cache does not get them:
    /// they are one run's.
    ///
    /// # Errors
    /// [`Error::Plans`] for a book of another place; nothing is taken over then.
    pub(super) fn adopt(&mut self, book: &PlanBook) -> Result<()> {
        let (expected, got) = (self.place(), book.place());
        if expected != got {
            let reason = format!(
                "it was made for {} with cuDNN {}, and here is {} with cuDNN {}",
                got.card, got.cudnn, expected.card, expected.cudnn
            );
            return Err(Error::Plans { reason });
        }
        for entry in book.plans() {
            self.adopted.insert(entry.clone());
        }
        Ok(())
    }

    /// The choices for a convolution, in the order in which they are to be tried.
    pub(super) fn of(&self, conv: &Convolution) -> impl Iterator<Item = &Entry> {
        self.adopted.get(conv).into_iter().chain(self.cached.get(conv))
    }

    /// Notes a new choice for the cache.
    pub(super) fn note(&mut self, entry: Entry) {
        self.cached.insert(entry);
        self.is_changed = true;
    }

    /// Writes new choices to the cache. A failure costs a later run time, nothing else.
    pub(super) fn store(&mut self) {
        if let Some(folder) = self.folder.as_deref().filter(|_| self.is_changed) {
            self.is_changed = self.cached.store(folder).is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{entry, place};
    use super::*;

    fn engines(choices: &Choices, channels: usize) -> Vec<i64> {
        choices.of(&entry(channels, 0).conv).map(|entry| entry.choice.engine).collect()
    }

    fn book(entries: &[Entry]) -> PlanBook {
        let mut book = PlanBook::new(place());
        entries.iter().for_each(|entry| book.insert(entry.clone()));
        book
    }

    #[test]
    fn what_a_run_brings_goes_before_the_cache() {
        let folder = tempfile::tempdir().expect("a folder");
        book(&[entry(16, 1), entry(32, 2)]).store(folder.path()).expect("writes");
        let mut choices = Choices::new(place(), Some(folder.path().to_owned()));
        assert_eq!((engines(&choices, 16), engines(&choices, 8)), (vec![1], vec![]));
        choices.adopt(&book(&[entry(8, 6), entry(16, 7)])).expect("the same place");
        choices.adopt(&book(&[entry(8, 5)])).expect("the same place");
        assert_eq!(engines(&choices, 8), [5]);
        assert_eq!(engines(&choices, 16), [7, 1]);
        assert_eq!(engines(&choices, 32), [2]);
        // As after the cache was deleted.
        let mut alone = Choices::new(place(), None);
        alone.adopt(&book(&[entry(16, 7)])).expect("the same place");
        assert_eq!((engines(&alone, 16), engines(&alone, 32)), (vec![7], vec![]));
    }

    #[test]
    fn a_book_of_another_place_changes_nothing() {
        let elsewhere = [
            Place { cudnn: "9.15.0".into(), ..place() },
            Place { card: "Another card, 9.0, 132".into(), ..place() },
        ];
        let mut choices = Choices::new(place(), None);
        for place in elsewhere {
            let mut book = PlanBook::new(place.clone());
            book.insert(entry(16, 7));
            let refused = choices.adopt(&book);
            let Err(Error::Plans { reason }) = refused else { panic!("{refused:?}") };
            assert!(reason.contains(&place.card) && reason.contains("9.14.0"), "{reason}");
            assert!(engines(&choices, 16).is_empty());
        }
    }

    #[test]
    fn the_cache_gets_what_was_timed_and_not_what_a_run_brought() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut choices = Choices::new(place(), Some(folder.path().to_owned()));
        choices.adopt(&book(&[entry(16, 7)])).expect("the same place");
        choices.store();
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
        choices.note(entry(32, 3));
        choices.store();
        let cached = PlanBook::load(&place(), folder.path());
        assert_eq!(cached, book(&[entry(32, 3)]));
        // A choice that cuDNN did not take any more is timed anew, and noted beside the one that was brought.
        choices.note(entry(16, 4));
        choices.store();
        assert_eq!(engines(&choices, 16), [7, 4]);
        assert_eq!(PlanBook::load(&place(), folder.path()), book(&[entry(16, 4), entry(32, 3)]));
    }
}
