//! How a path was understood: what [`open`](crate::open) inferred from it, and what it left aside and why.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use crate::counted::counted;
use crate::{Dataset, Format, Split, kinds::FileKind};

/// How a path was understood. Shown, it has a line for what the images are, and one for each reason why something was left
/// aside; where all is plain it is one line.
///
/// ```
/// use swav_data::{DataConfig, Dataset, Format};
/// let data = DataConfig::default().open()?;
/// let survey = data.survey().expect("every path is surveyed");
/// assert_eq!((survey.format, survey.n_images, survey.n_left_aside()), (Format::Builtin, 6000, 0));
/// assert_eq!(survey.to_string().lines().count(), 1);
/// # Ok::<(), swav_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Survey {
    /// The path asked for.
    pub path: PathBuf,
    /// Where the images were found: the path, or a folder below it.
    pub root: PathBuf,
    /// The layout; never [`Format::Auto`].
    pub format: Format,
    /// The part that was asked for.
    pub split: Split,
    /// The parts that the data themselves have, each once; empty where they are not divided.
    pub splits: Vec<Split>,
    /// Whether the part is one side of a hold-out.
    pub held_out: bool,
    /// Images of the part.
    pub n_images: usize,
    /// Names of the classes; empty where there are none, or labels are numbers.
    pub class_names: Vec<String>,
    /// What was left aside, by reason.
    pub left_aside: Vec<LeftAside>,
    /// What else was inferred, a sentence each.
    pub remarks: Vec<String>,
    /// The data set's own line.
    described: String,
}

/// What was left aside for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftAside {
    /// Why.
    pub reason: Reason,
    /// How many files, archive members or lines.
    pub count: usize,
    /// Names of the first three in the order of their bytes.
    pub names: Vec<String>,
}

/// Why something was left aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reason {
    /// A known format that cannot be read.
    Unread {
        /// Its name, such as HEIC.
        kind: &'static str,
        /// What to do to have its images read.
        advice: &'static str,
    },
    /// An image beside the folders of classes.
    BesideClasses,
    /// A file or folder beside the folders, or files, of the splits.
    BesideSplits,
    /// A folder or an image beside the one that the data were found in.
    BesideData,
    /// A name that begins with a dot.
    Hidden,
    /// A link that leads nowhere or in circles, or an entry that cannot be read.
    Unreachable,
    /// An archive member that goes with an image of the same sample, such as a mask (`0001.seg.png`).
    Companion,
    /// A damaged archive member.
    Damaged,
    /// A line of a list without a path.
    NoPath,
    /// A file whose ending is none of an image.
    NoImage,
}

impl Reason {
    pub(crate) fn unread(kind: &'static FileKind) -> Self {
        Self::Unread { kind: kind.name, advice: kind.advice }
    }
}

impl fmt::Display for LeftAside {
    /// Such as `10 HEIC files (a.heic, b.heic, c.heic, ...): convert them to JPEG or PNG`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.count;
        let (what, why) = match self.reason {
            Reason::Unread { kind, advice } => (counted(n, &format!("{kind} file")), advice),
            Reason::BesideClasses => (format!("{} beside the folders of classes", counted(n, "image")), ""),
            Reason::BesideSplits => (format!("{n} beside the splits"), ""),
            Reason::BesideData => (format!("{n} beside the data"), ""),
            Reason::Hidden => (format!("{n} with a name that begins with a dot"), ""),
            Reason::Unreachable => (format!("{n} that cannot be reached"), ""),
            Reason::Companion => (format!("{n} that go{} with an image", if n == 1 { "es" } else { "" }), ""),
            Reason::Damaged => (format!("{n} damaged"), ""),
            Reason::NoPath => (format!("{} without a path", counted(n, "line")), ""),
            Reason::NoImage => (counted(n, "other file"), ""),
        };
        f.write_str(&what)?;
        if !self.names.is_empty() {
            let more = if n > self.names.len() { ", ..." } else { "" };
            write!(
                f,
                " ({}{more})",
                self.names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ")
            )?;
        }
        if why.is_empty() { Ok(()) } else { write!(f, ": {why}") }
    }
}

/// A name without what would break the line or the terminal.
fn shown(name: &str) -> String {
    name.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

impl Survey {
    /// Of a data set that is opened.
    pub(crate) fn of(data: &dyn Dataset, found: Found) -> Self {
        let Found { path, root, format, split, mut splits, held_out, aside, remarks } = found;
        splits.sort();
        splits.dedup();
        Self {
            path,
            root,
            format,
            split,
            splits,
            held_out,
            n_images: data.len(),
            class_names: data.class_names().to_vec(),
            left_aside: aside.listed(),
            remarks,
            described: data.describe(),
        }
    }

    /// How many files, members or lines were left aside in all.
    pub fn n_left_aside(&self) -> usize {
        self.left_aside.iter().map(|aside| aside.count).sum()
    }
}

impl fmt::Display for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.described))?;
        if !self.splits.is_empty() {
            let names: Vec<String> = self.splits.iter().map(ToString::to_string).collect();
            write!(f, "; split {} of {}", self.split, names.join(", "))?;
        } else if self.held_out {
            write!(f, "; split {} of a hold-out", self.split)?;
        }
        self.remarks.iter().try_for_each(|remark| write!(f, "\n{remark}"))?;
        self.left_aside.iter().try_for_each(|aside| write!(f, "\nleft aside: {aside}"))
    }
}

/// What opening finds on its way.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) format: Format,
    pub(crate) split: Split,
    pub(crate) splits: Vec<Split>,
    pub(crate) held_out: bool,
    pub(crate) aside: Tally,
    pub(crate) remarks: Vec<String>,
}

/// Counts what is left aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally(BTreeMap<Reason, (usize, Vec<String>)>);

const N_NAMES: usize = 3;

impl Tally {
    pub(crate) fn add(&mut self, reason: Reason, name: &[u8]) {
        let (count, names) = self.0.entry(reason).or_default();
        *count += 1;
        // The first names by their bytes, so that the file system's order does not show.
        if names.len() < N_NAMES || names.last().is_some_and(|last| name < last.as_bytes()) {
            let name = String::from_utf8_lossy(name).into_owned();
            let at = names.partition_point(|other| *other <= name);
            names.insert(at, name);
            names.truncate(N_NAMES);
        }
    }

    /// Several for one reason without names.
    pub(crate) fn add_count(&mut self, reason: Reason, count: usize) {
        if count > 0 {
            self.0.entry(reason).or_default().0 += count;
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        for (reason, (count, names)) in other.0 {
            let (sum, kept) = self.0.entry(reason).or_default();
            *sum += count;
            kept.extend(names);
            kept.sort();
            kept.truncate(N_NAMES);
        }
    }

    pub(crate) fn count(&self, reason: Reason) -> usize {
        self.0.get(&reason).map_or(0, |(count, _)| *count)
    }

    pub(crate) fn listed(self) -> Vec<LeftAside> {
        self.0.into_iter().map(|(reason, (count, names))| LeftAside { reason, count, names }).collect()
    }

    /// What was found instead of images, for the end of a sentence that says so.
    pub(crate) fn instead(&self) -> String {
        let listed: Vec<String> = self.clone().listed().iter().map(ToString::to_string).collect();
        if listed.is_empty() { String::new() } else { format!("; found {}", listed.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_keeps_the_first_three_names_in_any_order() {
        let mut tally = Tally::default();
        for name in ["d", "b", "e", "a", "c"] {
            tally.add(Reason::Hidden, name.as_bytes());
        }
        let mut other = Tally::default();
        other.add(Reason::Hidden, b"aa\n");
        other.add_count(Reason::Damaged, 2);
        tally.append(other);
        let lines: Vec<String> = tally.listed().iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["6 with a name that begins with a dot (a, aa\\n, b, ...)", "2 damaged"]);
    }

    #[test]
    fn what_cannot_be_read_comes_with_advice() {
        let mut tally = Tally::default();
        tally.add(Reason::unread(crate::kinds::of_name(b"a.heic").unwrap()), b"a.heic");
        assert_eq!(tally.instead(), "; found 1 HEIC file (a.heic): convert them to JPEG or PNG");
    }
}
