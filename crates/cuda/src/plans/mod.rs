//! Which of cuDNN's ways to compute a convolution is taken.
//!
//! cuDNN proposes some; which is fastest shows when they run. A [`Planner`] times them once and keeps the choices in a
//! [`PlanBook`]: in the user's cache folder for the next run on this machine, and in a run's checkpoints
//! ([`Machine::plans`](crate::machine::Machine::plans)), since other choices round in another order and give other bits; those
//! of a run go first. With [`Selection::First`] nothing is timed and cuDNN's own first
//! proposal is taken, which depends on card and version alone.

mod choices;
mod planner;
mod timing;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use planner::MOST_WORKSPACE;
pub use planner::{Planner, Selection};

use crate::cudnn::{Choice, Convolution};
use crate::driver::Properties;
use crate::{Error, Result, files};

/// The number of the format of [`PlanBook`].
const FORMAT: u32 = 1;

/// Choices for one kind of card and one version of cuDNN.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanBook {
    /// The format's number, 1.
    format: u32,
    /// What choices hold for.
    #[serde(flatten)]
    place: Place,
    /// The choices, in the order of their convolutions.
    plans: Vec<Entry>,
}

/// What choices hold for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The card's name, compute capability and multiprocessors.
    pub card: String,
    /// cuDNN's version.
    pub cudnn: String,
}

impl Place {
    /// The place of a card and a version of cuDNN: major, minor, patch.
    pub fn new(card: &Properties, cudnn: (u32, u32, u32)) -> Self {
        let Properties { name, compute: (major, minor), multiprocessors, .. } = card;
        let (cudnn_major, cudnn_minor, patch) = cudnn;
        Place {
            card: format!("{name}, {major}.{minor}, {multiprocessors}"),
            cudnn: format!("{cudnn_major}.{cudnn_minor}.{patch}"),
        }
    }

    /// The file in a cache folder.
    fn file(&self, folder: &Path) -> PathBuf {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let card: String = self.card.chars().map(plain).collect();
        folder.join(format!("plans-{card}-cudnn-{}.json", self.cudnn))
    }
}

/// One choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What is computed.
    pub conv: Convolution,
    /// How.
    pub choice: Choice,
    /// The time that was measured, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microseconds: Option<f32>,
}

impl PlanBook {
    /// A book without choices.
    pub fn new(place: Place) -> Self {
        PlanBook { format: FORMAT, place, plans: Vec::new() }
    }

    /// What its choices hold for.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The choices.
    pub fn plans(&self) -> &[Entry] {
        &self.plans
    }

    /// The choice for a convolution.
    pub fn get(&self, conv: &Convolution) -> Option<&Entry> {
        self.plans.binary_search_by(|entry| entry.conv.cmp(conv)).ok().map(|at| &self.plans[at])
    }

    /// Adds a choice, or replaces the one for the same convolution.
    pub fn insert(&mut self, entry: Entry) {
        match self.plans.binary_search_by(|other| other.conv.cmp(&entry.conv)) {
            Ok(at) => self.plans[at] = entry,
            Err(at) => self.plans.insert(at, entry),
        }
    }

    /// As JSON, one choice a line.
    pub fn to_json(&self) -> String {
        let lines: Vec<String> = self.plans.iter().map(|entry| format!("  {}", json(entry))).collect();
        let (card, cudnn) = (json(&self.place.card), json(&self.place.cudnn));
        format!(
            "{{\n \"format\": {},\n \"card\": {card},\n \"cudnn\": {cudnn},\n \"plans\": [\n{}\n ]\n}}\n",
            self.format,
            lines.join(",\n")
        )
    }

    /// From JSON.
    ///
    /// # Errors
    /// [`Error::Plans`] for a text that is no book, or one of another format.
    pub fn from_json(text: &str) -> Result<PlanBook> {
        let mut book: PlanBook =
            serde_json::from_str(text).map_err(|error| Error::Plans { reason: error.to_string() })?;
        if book.format != FORMAT {
            return Err(Error::Plans { reason: format!("format {}, expected {FORMAT}", book.format) });
        }
        book.plans.sort_by_key(|entry| entry.conv);
        book.plans.dedup_by(|a, b| a.conv == b.conv);
        Ok(book)
    }

    /// The book of this place in a cache folder; an empty one where there is none that can be read.
    fn load(place: &Place, folder: &Path) -> PlanBook {
        let text = std::fs::read_to_string(place.file(folder)).ok();
        let book = text.and_then(|text| PlanBook::from_json(&text).ok()).filter(|book| book.place == *place);
        book.unwrap_or_else(|| PlanBook::new(place.clone()))
    }

    /// Adds the book's choices to those in a cache folder.
    ///
    /// # Errors
    /// [`Error::File`].
    fn store(&self, folder: &Path) -> Result<()> {
        // Another process may have timed other convolutions meanwhile.
        let mut all = PlanBook::load(&self.place, folder);
        for entry in &self.plans {
            all.insert(entry.clone());
        }
        let path = self.place.file(folder);
        files::write_whole(&path, all.to_json().as_bytes()).map_err(|source| Error::File { path, source })
    }
}

/// As JSON. Nothing here fails: there are no maps, and numbers are finite.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::{ConvPass, ConvShape, Element};

    pub(super) fn place() -> Place {
        let card = Properties {
            ordinal: 0,
            name: "Some \"Card\"".into(),
            compute: (9, 0),
            multiprocessors: 132,
            memory: 1,
            cache: 1,
        };
        Place::new(&card, (9, 14, 0))
    }

    pub(super) fn entry(channels: usize, engine: i64) -> Entry {
        let conv = Convolution {
            shape: ConvShape::linear(8, channels, 16),
            pass: ConvPass::Forward,
            element: Element::Bf16,
            tf32: false,
            accumulate: false,
        };
        Entry { conv, choice: Choice { engine, knobs: vec![(2, 7), (13, 1)] }, microseconds: Some(1.5) }
    }

    #[test]
    fn a_book_survives_json() {
        let mut book = PlanBook::new(place());
        assert_eq!(PlanBook::from_json(&book.to_json()).expect("a book"), book);
        book.insert(entry(32, 1));
        book.insert(Entry { microseconds: None, ..entry(16, 2) });
        book.insert(entry(32, 3));
        assert_eq!(book.plans().len(), 2);
        assert_eq!(book.get(&entry(32, 0).conv).map(|entry| entry.choice.engine), Some(3));
        let read = PlanBook::from_json(&book.to_json()).expect("a book");
        assert_eq!(read, book);
        assert_eq!(read.place().card, "Some \"Card\", 9.0, 132");
    }

    #[test]
    fn what_is_no_book_is_refused() {
        let other = PlanBook::new(place()).to_json().replace("\"format\": 1", "\"format\": 2");
        assert!(
            matches!(PlanBook::from_json(&other), Err(Error::Plans { reason }) if reason.contains("format 2"))
        );
        assert!(matches!(PlanBook::from_json("{}"), Err(Error::Plans { .. })));
    }

    #[test]
    fn books_of_two_processes_are_merged() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = PlanBook::load(&place(), folder.path());
        let mut second = first.clone();
        first.insert(entry(16, 1));
        second.insert(entry(32, 2));
        first.store(folder.path()).expect("writes");
        second.store(folder.path()).expect("writes");
        let both = PlanBook::load(&place(), folder.path());
        assert_eq!(both.plans().iter().map(|entry| entry.choice.engine).collect::<Vec<_>>(), [1, 2]);
        let elsewhere = Place { cudnn: "9.15.0".into(), ..place() };
        assert!(PlanBook::load(&elsewhere, folder.path()).plans().is_empty());
    }

    #[test]
    fn a_damaged_cache_is_an_empty_one() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(place().file(folder.path()), "{").expect("writes");
        assert!(PlanBook::load(&place(), folder.path()).plans().is_empty());
    }
}
