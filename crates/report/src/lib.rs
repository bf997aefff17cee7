#![doc = include_str!("../README.md")]

mod base64;
mod chart;
mod map;
mod page;
mod pictures;
mod plane;

pub use chart::{Chart, Series};
pub use map::{Map, Projection};
pub use pictures::{Sheet, Thumbnails};
#[cfg(feature = "tsne")]
pub use plane::tsne;
pub use plane::{Plane, principal_components};

/// Everything that a report shows. Parts that are empty are left out.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The name of the run.
    pub title: String,
    /// One line below it: the data, the network.
    pub subtitle: String,
    /// How far the run is, such as `finished` or `step 120 of 400`.
    pub status: String,
    /// When the report was made.
    pub date: String,
    /// What the reader has to know first: parts that could not be made, and why.
    pub notes: Vec<String>,
    /// The numbers that count, with what they are compared to.
    pub headline: Vec<Figure>,
    /// What has gone wrong.
    pub findings: Vec<Finding>,
    /// Curves.
    pub charts: Vec<Chart>,
    /// Evaluations and the like.
    pub tables: Vec<Table>,
    /// Which classes are taken for which.
    pub confusion: Option<Confusion>,
    /// The crops as the network saw them.
    pub crops: Option<Crops>,
    /// Prototypes with their nearest images.
    pub prototypes: Option<Prototypes>,
    /// The embeddings in the plane.
    pub map: Option<Map>,
    /// The configuration as TOML.
    pub configuration: String,
    /// Versions, machine, device: name and value.
    pub environment: Vec<(String, String)>,
    /// Commands that make all this again: what for, and the command.
    pub repeat: Vec<(String, String)>,
}

/// A number that counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// The number, with its unit.
    pub value: String,
    /// What it is to be compared with.
    pub comparison: String,
}

impl Figure {
    /// A number with its name and what it is compared with.
    pub fn new(name: impl Into<String>, value: impl Into<String>, comparison: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into(), comparison: comparison.into() }
    }
}

/// Something that has gone wrong in the run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// What, in a few words, and when.
    pub title: String,
    /// What has been seen.
    pub sign: String,
    /// What to do.
    pub advice: String,
}

/// A table of texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Rows of as many cells.
    pub rows: Vec<Vec<String>>,
}

/// Which classes are taken for which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confusion {
    /// How it came about.
    pub note: String,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Images by true class (rows) and the class that they were taken for.
    pub counts: Vec<Vec<u32>>,
}

/// Images with their crops.
#[derive(Debug, Clone)]
pub struct Crops {
    /// What the crops are: sizes, scales.
    pub note: String,
    /// What the columns show.
    pub columns: Vec<String>,
    /// Names of the images, one a row.
    pub rows: Vec<String>,
    /// Pictures row by row, as many as columns in each.
    pub pictures: Sheet,
}

/// Prototypes with their nearest images.
#[derive(Debug, Clone)]
pub struct Prototypes {
    /// How many there are, how many are used, of which images.
    pub note: String,
    /// Groups such as the most and the least used.
    pub groups: Vec<(String, Vec<Prototype>)>,
    /// Pictures of all of them.
    pub pictures: Sheet,
}

/// One prototype.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prototype {
    /// Its number.
    pub number: usize,
    /// How many images it has.
    pub n_images: usize,
    /// More about it, such as its most frequent class.
    pub note: String,
    /// Its nearest images, best first: where each is on the sheet, its name, and how similar it is.
    pub nearest: Vec<(usize, String, f32)>,
}

impl Report {
    /// The report as one HTML file.
    pub fn to_html(&self) -> String {
        page::page(self)
    }
}
