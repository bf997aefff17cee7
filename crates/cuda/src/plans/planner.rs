//! Chooses plans.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::choices::Choices;
use super::timing::Stopwatch;
use super::{Entry, Place, PlanBook};
use crate::Result;
use crate::cudnn::{ConvPlan, Convolution, Cudnn, no_plan};
use crate::driver::Card;

/// Which of cuDNN's proposals is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Selection {
    /// The fastest of some, timed once.
    #[default]
    Fastest,
    /// cuDNN's first, which depends on card and version alone.
    First,
}

/// Proposals that are timed.
const CANDIDATES: usize = 16;
/// A proposal that is later in cuDNN's list must be faster by this factor, so that noise decides less.
const MARGIN: f32 = 0.99;
/// Milliseconds of the card after which no more proposals for a convolution are timed. Only f32 has some that slow.
const BUDGET: f32 = 150.0;
/// The most memory that a plan may use while it runs, in bytes.
pub(crate) const MOST_WORKSPACE: u64 = 1 << 30;

/// Makes plans, each once, by the choices of books or by new ones.
#[derive(Debug)]
pub struct Planner {
    cudnn: Arc<Cudnn>,
    /// The card to time on; none for the description of one.
    card: Option<Arc<Card>>,
    selection: Selection,
    choices: Choices,
    plans: BTreeMap<Convolution, Arc<ConvPlan>>,
    /// Choices of books that cuDNN did not take.
    refused: Vec<Convolution>,
    stopwatch: Option<Stopwatch>,
}

impl Planner {
    /// A planner for a card. With [`Selection::Fastest`], choices are kept in `folder`.
    pub fn new(
        card: &Arc<Card>,
        cudnn: Arc<Cudnn>,
        selection: Selection,
        folder: Option<PathBuf>,
    ) -> Planner {
        let place = Place::new(card.properties(), cudnn.version());
        let folder = folder.filter(|_| selection == Selection::Fastest);
        Planner::with(cudnn, Some(Arc::clone(card)), selection, Choices::new(place, folder))
    }

    /// A planner for a description ([`Cudnn::for_description`]), which cannot time.
    pub fn for_description(cudnn: Arc<Cudnn>) -> Planner {
        let (major, minor, patch) = cudnn.version();
        let place = Place { card: "described".into(), cudnn: format!("{major}.{minor}.{patch}") };
        Planner::with(cudnn, None, Selection::First, Choices::new(place, None))
    }

    fn with(cudnn: Arc<Cudnn>, card: Option<Arc<Card>>, selection: Selection, choices: Choices) -> Planner {
        Planner {
            cudnn,
            card,
            selection,
            choices,
            plans: BTreeMap::new(),
            refused: Vec::new(),
            stopwatch: None,
        }
    }

    /// Takes over a book's choices: before all others, also with [`Selection::First`]. Convolutions that have a plan by now keep
    /// it, since programs may have been made ready for it.
    ///
    /// # Errors
    /// [`Error::Plans`](crate::Error::Plans) for a book of another card or version of cuDNN; nothing is taken over then.
    pub fn adopt(&mut self, book: &PlanBook) -> Result<()> {
        self.choices.adopt(book)
    }

    /// The choices for all plans that were made.
    pub fn book(&self) -> PlanBook {
        let mut book = PlanBook::new(self.choices.place().clone());
        for (conv, plan) in &self.plans {
            let mut known = self.choices.of(conv).filter(|entry| entry.choice == *plan.choice());
            let microseconds = known.find_map(|entry| entry.microseconds);
            book.insert(Entry { conv: *conv, choice: plan.choice().clone(), microseconds });
        }
        book
    }

    /// Convolutions for which a book had a choice that cuDNN did not take, so that another was made.
    pub fn refused(&self) -> &[Convolution] {
        &self.refused
    }

    /// The plan for a convolution.
    ///
    /// # Errors
    /// [`Error::NoPlan`](crate::Error::NoPlan), or the driver's while timing.
    pub fn plan(&mut self, conv: &Convolution) -> Result<Arc<ConvPlan>> {
        if let Some(plan) = self.plans.get(conv) {
            return Ok(Arc::clone(plan));
        }
        let plan = match self.known(conv) {
            Some(plan) => plan,
            None => self.choose(conv)?,
        };
        self.plans.insert(*conv, Arc::clone(&plan));
        Ok(plan)
    }

    /// The plan that was chosen elsewhere or before.
    fn known(&mut self, conv: &Convolution) -> Option<Arc<ConvPlan>> {
        let mut plans = self.choices.of(conv).map(|entry| self.cudnn.plan(conv, &entry.choice));
        match plans.next()? {
            Ok(plan) => Some(plan),
            Err(_) => {
                self.refused.push(*conv);
                plans.find_map(|plan| plan.ok())
            }
        }
    }

    /// Makes a choice and notes it.
    fn choose(&mut self, conv: &Convolution) -> Result<Arc<ConvPlan>> {
        let proposals = self.cudnn.proposals(conv, CANDIDATES)?;
        let mut plans = proposals
            .iter()
            .filter_map(|proposal| self.cudnn.plan(conv, &proposal.choice).ok())
            .filter(|plan| plan.workspace() <= MOST_WORKSPACE);
        let Some(card) = self.card.as_ref().filter(|_| self.selection == Selection::Fastest) else {
            return plans.next().ok_or_else(|| no_plan(conv));
        };
        let stopwatch = match &mut self.stopwatch {
            Some(stopwatch) => stopwatch,
            none => none.insert(Stopwatch::new(card)?),
        };
        let mut best: Option<(f32, Arc<ConvPlan>)> = None;
        let mut spent = 0.0;
        for plan in plans {
            let least = best.as_ref().map_or(f32::INFINITY, |(time, _)| *time);
            if spent > BUDGET && best.is_some() {
                break;
            }
            let Some(time) = stopwatch.time(&self.cudnn, &plan, least, &mut spent)? else { continue };
            if best.as_ref().is_none_or(|(least, _)| time < least * MARGIN) {
                best = Some((time, plan));
            }
        }
        let (time, plan) = best.ok_or_else(|| no_plan(conv))?;
        self.choices.note(Entry {
            conv: *conv,
            choice: plan.choice().clone(),
            microseconds: Some(time * 1e3),
        });
        Ok(plan)
    }

    /// Ends a series of [`Planner::plan`]: frees what timing needed, and writes new choices to the cache.
    ///
    /// A cache that cannot be written is left out.
    pub fn finish(&mut self) {
        self.stopwatch = None;
        self.choices.store();
    }
}
