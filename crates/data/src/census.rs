//! Which labels a data set has: what every evaluation asks before it begins.

use std::{collections::BTreeMap, fmt};

use crate::counted::counted;
use crate::{Dataset, LabelKind};

/// The labels of a data set, counted. Of a data set with splits, one for each that is opened.
///
/// ```
/// use swav_data::{DataConfig, LabelCensus};
/// let census = LabelCensus::of(&DataConfig::default().open()?);
/// assert_eq!((census.n_images, census.n_classes(), census.unfit()), (6000, 12, None));
/// assert_eq!(census.to_string(), "6000 images in 12 classes of 500");
/// # Ok::<(), swav_data::DataError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabelCensus {
    /// Images in all.
    pub n_images: usize,
    /// Images of each class.
    pub classes: BTreeMap<u32, usize>,
    /// Images without a class, by what they have instead.
    pub without: BTreeMap<LabelKind, usize>,
}

impl LabelCensus {
    /// Counts the labels; reads no image.
    pub fn of<D: Dataset + ?Sized>(data: &D) -> Self {
        let mut census = Self { n_images: data.len(), ..Self::default() };
        for index in 0..data.len() {
            match data.label(index) {
                Some(class) => *census.classes.entry(class).or_default() += 1,
                None => *census.without.entry(data.label_kind(index)).or_default() += 1,
            }
        }
        census
    }

    /// Images that have a class.
    pub fn n_labelled(&self) -> usize {
        self.classes.values().sum()
    }

    /// Classes that images have.
    pub fn n_classes(&self) -> usize {
        self.classes.len()
    }

    /// Why the accuracy of no classifier can be told on these images, in one line; `None` if it can.
    pub fn unfit(&self) -> Option<String> {
        match (self.n_classes(), self.n_images) {
            (_, 0) => Some("there are no images".to_owned()),
            (0, n) => {
                let why: Vec<String> = self.without.iter().map(|(kind, count)| told(*count, *kind)).collect();
                let plain = self.without.keys().all(|&kind| kind == LabelKind::Missing);
                Some(if plain {
                    format!("the images have no labels ({})", counted(n, "image"))
                } else {
                    format!("the images have no labels that are classes ({})", why.join(", "))
                })
            }
            (1, _) if self.n_labelled() == 1 => Some("only one image has a label".to_owned()),
            (1, _) => Some(format!(
                "all {} labelled images are of one class, so any classifier would have 100 %",
                self.n_labelled()
            )),
            _ => None,
        }
    }
}

impl fmt::Display for LabelCensus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, classes) = (self.n_images, self.n_classes());
        f.write_str(&counted(n, "image"))?;
        if let (Some(least), Some(most)) = (self.classes.values().min(), self.classes.values().max()) {
            let sizes = if least == most { least.to_string() } else { format!("{least} to {most}") };
            write!(f, " in {} of {sizes}", counted(classes, "class"))?;
        }
        if self.n_labelled() == 0 && self.without.keys().all(|&kind| kind == LabelKind::Missing) {
            return f.write_str(" without labels");
        }
        self.without.iter().try_for_each(|(kind, count)| write!(f, ", {}", told(*count, *kind)))
    }
}

fn told(count: usize, kind: LabelKind) -> String {
    format!("{count} {}", kind.told())
}
