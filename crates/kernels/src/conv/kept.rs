//! A convolution's weights, and what is packed of them once and for all where they do not change.

use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

use crate::context::Scratch;
use crate::{Context, Isa, pages};

/// Words that packed weights may have to be kept. Winograd's of the deepest strided layers have more, sixteen times the
/// weights themselves: a task makes them in cache about as fast as it would read them.
pub(super) const MOST: usize = 12 << 20;

/// A convolution's weights, and what is done to them while they are packed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<'a> {
    /// OHWI.
    pub values: &'a [f32],
    /// A factor for each output channel; forward passes only.
    pub scale: Option<&'a [f32]>,
    /// Where they are kept once they are packed.
    pub kept: Option<&'a Kept>,
}

impl<'a> From<&'a [f32]> for Weights<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self { values, scale: None, kept: None }
    }
}

/// How packed weights lie. All else is the same for all passes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Panels.
    Panels,
    /// Panels of words of bf16 that are cut in two.
    Split,
    /// Panels of sums of halves.
    Strassen,
    /// Panels of each of Winograd's points, of a tile with these sides.
    Winograd([u8; 2]),
}

/// Packed weights.
pub(super) enum Packed<'a> {
    /// For one pass.
    Once(Scratch<'a>),
    /// For all passes.
    Kept(Arc<[f32]>),
}

impl Deref for Packed<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Packed::Once(words) => words,
            Packed::Kept(words) => words,
        }
    }
}

/// Packed weights, and for which instruction set.
#[derive(Debug)]
struct OfLayout {
    isa: Isa,
    layout: Layout,
    words: Arc<[f32]>,
}

/// Packed weights of one convolution, in every layout that a pass has asked for.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    all: RwLock<Vec<OfLayout>>,
}

impl Kept {
    fn find(&self, isa: Isa, layout: Layout) -> Option<Arc<[f32]>> {
        // A panic elsewhere cannot leave the list half changed.
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|of| (of.isa, of.layout) == (isa, layout)).map(|of| Arc::clone(&of.words))
    }

    /// The words in a layout, packed if they have not been. Two threads may both pack them, with the same result.
    fn get(&self, isa: Isa, layout: Layout, len: usize, pack: impl FnOnce(&mut [f32])) -> Arc<[f32]> {
        if let Some(found) = self.find(isa, layout) {
            assert_eq!(found.len(), len, "packed weights");
            return found;
        }
        let mut words: Arc<[f32]> = pages::shared_zeros(len);
        pack(Arc::get_mut(&mut words).unwrap_or_else(|| unreachable!("it is new")));
        let of_layout = OfLayout { isa, layout, words: Arc::clone(&words) };
        self.all.write().unwrap_or_else(PoisonError::into_inner).push(of_layout);
        words
    }

    /// Words that are kept.
    pub fn words(&self) -> usize {
        self.all.read().unwrap_or_else(PoisonError::into_inner).iter().map(|of| of.words.len()).sum()
    }
}

impl Weights<'_> {
    /// The packed weights, if they are kept.
    pub(super) fn kept(
        &self,
        ctx: &Context,
        layout: Layout,
        len: usize,
        pack: impl FnOnce(&mut [f32]),
    ) -> Option<Arc<[f32]>> {
        let kept = self.kept.filter(|_| len <= MOST)?;
        Some(kept.get(ctx.isa(), layout, len, pack))
    }

    /// The packed weights: kept ones, or those that `pack` makes for this pass.
    pub(super) fn packed<'c>(
        &self,
        ctx: &'c Context,
        layout: Layout,
        len: usize,
        mut pack: impl FnMut(&mut [f32]),
    ) -> Packed<'c> {
        if let Some(kept) = self.kept(ctx, layout, len, &mut pack) {
            return Packed::Kept(kept);
        }
        let mut words = ctx.pool().scratch(len);
        pack(&mut words);
        Packed::Once(words)
    }
}
