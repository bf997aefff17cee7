//! Labels as files have them: numbers and names become classes; what is no class says why, and never stops a training that
//! needs no labels.

use std::{cmp::Ordering, collections::HashMap};

/// What an image has for a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum LabelKind {
    /// A class: a number from 0 on, or a name, which is numbered in the sorted order of all names.
    Class,
    /// None: no label at all, an empty one, null, not a number, or a number below 0 (-1 by custom).
    Missing,
    /// Several values: a list or an object.
    List,
    /// A number with a fraction, such as a score.
    Fraction,
    /// What cannot be read as any of these, such as broken JSON.
    Unreadable,
}

impl LabelKind {
    /// What images with such a label are said to have, after a number: "5 of them with lists".
    pub(crate) fn told(self) -> &'static str {
        match self {
            Self::Class => "with a class",
            Self::Missing => "without a label",
            Self::List => "with a list for a label",
            Self::Fraction => "with a fraction for a label",
            Self::Unreadable => "with an unreadable label",
        }
    }
}

/// One label before all of a data set are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RawLabel {
    Number(u32),
    Name(String),
    None(LabelKind),
}

impl RawLabel {
    /// A label written out: a number, a list in brackets, or a name.
    pub(crate) fn of_text(text: &[u8]) -> Self {
        let text = text.trim_ascii();
        if text.is_empty() || text.eq_ignore_ascii_case(b"nan") || text == b"null" {
            return Self::None(LabelKind::Missing);
        }
        if matches!((text[0], text[text.len() - 1]), (b'[', b']') | (b'{', b'}')) {
            return Self::None(LabelKind::List);
        }
        let text = String::from_utf8_lossy(text);
        if let Ok(number) = text.parse::<i64>() {
            return Self::of_integer(number);
        }
        // Names may read as numbers, too ("inf"): those begin with a digit, a sign or a point.
        let is_number = text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
        match text.parse::<f64>() {
            Ok(number) if is_number => Self::of_float(number),
            _ => Self::Name(text.into_owned()),
        }
    }

    /// A number. Those below 0 say that there is none; those above 2^31 are rather names.
    pub(crate) fn of_integer(number: i64) -> Self {
        match u32::try_from(number) {
            Ok(number) if number < NAMED => Self::Number(number),
            _ if number < 0 => Self::None(LabelKind::Missing),
            _ => Self::Name(number.to_string()),
        }
    }

    /// A number that may have a fraction; whole ones are classes, since tables with gaps store whole numbers so.
    pub(crate) fn of_float(number: f64) -> Self {
        match number {
            _ if number.is_nan() || (number < 0.0 && number.fract() == 0.0) => Self::None(LabelKind::Missing),
            _ if number.fract() == 0.0 && number < f64::from(NAMED) => Self::Number(number as u32),
            _ => Self::None(LabelKind::Fraction),
        }
    }

    /// A value of JSON.
    pub(crate) fn of_json(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Self::None(LabelKind::Missing),
            Value::Bool(value) => Self::Number(u32::from(*value)),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => Self::of_integer(number),
                (None, Some(number)) => Self::of_float(number),
                (None, None) => Self::None(LabelKind::Unreadable),
            },
            Value::String(text) => Self::of_text(text.as_bytes()),
            Value::Array(_) | Value::Object(_) => Self::None(LabelKind::List),
        }
    }
}

/// Values from here on are places among the names.
const NAMED: u32 = 1 << 31;
/// Values from here on say why there is no class. No label is the largest number: fingerprints know it so.
const FIRST_NONE: u32 = u32::MAX - 3;

fn none(kind: LabelKind) -> u32 {
    match kind {
        LabelKind::Class | LabelKind::Missing => u32::MAX,
        LabelKind::List => u32::MAX - 1,
        LabelKind::Fraction => u32::MAX - 2,
        LabelKind::Unreadable => FIRST_NONE,
    }
}

/// The labels of a data set, four bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    values: Vec<u32>,
    names: Vec<String>,
}

impl Labels {
    pub(crate) fn get(&self, index: usize) -> Option<u32> {
        self.values.get(index).copied().filter(|&value| value < FIRST_NONE)
    }

    pub(crate) fn kind(&self, index: usize) -> LabelKind {
        match self.values.get(index) {
            Some(&value) if value < FIRST_NONE => LabelKind::Class,
            Some(&value) => [LabelKind::List, LabelKind::Fraction, LabelKind::Unreadable]
                .into_iter()
                .find(|&kind| none(kind) == value)
                .unwrap_or(LabelKind::Missing),
            None => LabelKind::Missing,
        }
    }

    /// The names of the classes, sorted; empty where labels are numbers.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// One value for each image, for fingerprints: the class, or a number near 2^32 that says why there is none.
    pub(crate) fn values(&self) -> &[u32] {
        &self.values
    }

    /// The labels of some images, with all names.
    pub(crate) fn chosen(&self, indices: &[usize]) -> Self {
        Self { values: indices.iter().map(|&index| self.values[index]).collect(), names: self.names.clone() }
    }

    /// Whether any image has a class.
    pub(crate) fn has_classes(&self) -> bool {
        self.values.iter().any(|&value| value < FIRST_NONE)
    }

    /// How many classes there are: of numbers, one more than the largest.
    pub(crate) fn n_classes(&self) -> usize {
        let classes = self.values.iter().filter(|&&value| value < FIRST_NONE);
        self.names.len().max(classes.max().map_or(0, |&largest| largest as usize + 1))
    }
}

/// Gathers labels, and numbers the names once all are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct LabelBuilder {
    values: Vec<u32>,
    places: HashMap<String, u32>,
}

impl LabelBuilder {
    pub(crate) fn push(&mut self, label: RawLabel) {
        let value = match label {
            RawLabel::Number(number) => number,
            RawLabel::None(kind) => none(kind),
            RawLabel::Name(name) => self.place(name),
        };
        self.values.push(value);
    }

    fn place(&mut self, name: String) -> u32 {
        let next = NAMED + self.places.len() as u32;
        *self.places.entry(name).or_insert(next)
    }

    /// Appends the labels of another part of the data set.
    pub(crate) fn append(&mut self, other: Self) {
        let mut moved: HashMap<u32, u32> = HashMap::new();
        for (name, place) in other.places {
            let here = self.place(name);
            moved.insert(place, here);
        }
        self.values.extend(other.values.iter().map(|value| moved.get(value).copied().unwrap_or(*value)));
    }

    /// Whether any label is a name.
    pub(crate) fn has_names(&self) -> bool {
        !self.places.is_empty()
    }

    /// Numbers the names of another part, too, without its images.
    pub(crate) fn know(&mut self, other: Self) {
        let numbers = other.values.iter().filter(|&&value| value < NAMED).map(ToString::to_string);
        numbers.chain(other.places.into_keys()).for_each(|name| {
            self.place(name);
        });
    }

    /// Numbers the names in sorted order. Where there is any name, numbers are names as well.
    pub(crate) fn finish(mut self) -> Labels {
        if self.places.is_empty() {
            self.values.shrink_to_fit();
            return Labels { values: self.values, names: Vec::new() };
        }
        for at in 0..self.values.len() {
            let value = self.values[at];
            if value < NAMED {
                self.values[at] = self.place(value.to_string());
            }
        }
        let mut names: Vec<(String, u32)> = self.places.into_iter().collect();
        names.sort_by(|(a, _), (b, _)| by_number_or_bytes(a, b));
        let mut number_of = vec![0; names.len()];
        for (number, (_, place)) in (0..).zip(&names) {
            number_of[(place - NAMED) as usize] = number;
        }
        let numbered =
            |value: u32| if value < FIRST_NONE { number_of[(value - NAMED) as usize] } else { value };
        Labels {
            values: self.values.into_iter().map(numbered).collect(),
            names: names.into_iter().map(|(name, _)| name).collect(),
        }
    }
}

/// Numbers by their value, before names by their bytes.
fn by_number_or_bytes(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(number), Ok(other)) => number.cmp(&other).then_with(|| a.cmp(b)),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LabelKind::{Fraction, List, Missing};

    #[test]
    fn every_text_is_a_class_or_says_why_not() {
        let name = |text: &str| RawLabel::Name(text.to_owned());
        for (text, expected) in [
            ("7", RawLabel::Number(7)),
            (" 007\n", RawLabel::Number(7)),
            ("3.0", RawLabel::Number(3)),
            ("1e2", RawLabel::Number(100)),
            ("-1", RawLabel::None(Missing)),
            ("-1.0", RawLabel::None(Missing)),
            ("", RawLabel::None(Missing)),
            ("NaN", RawLabel::None(Missing)),
            ("0.5", RawLabel::None(Fraction)),
            ("-.5", RawLabel::None(Fraction)),
            ("[1, 2]", RawLabel::None(List)),
            ("{\"a\": 1}", RawLabel::None(List)),
            ("cat", name("cat")),
            ("inf", name("inf")),
            ("3 cats", name("3 cats")),
            ("99999999999", name("99999999999")),
        ] {
            assert_eq!(RawLabel::of_text(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn names_are_numbered_in_sorted_order_over_all_parts() {
        let mut labels = LabelBuilder::default();
        for text in ["owl", "-1", "ant"] {
            labels.push(RawLabel::of_text(text.as_bytes()));
        }
        let mut more = LabelBuilder::default();
        for text in ["bee", "[1]", "owl", "10", "9", "0.5"] {
            more.push(RawLabel::of_text(text.as_bytes()));
        }
        labels.append(more);
        let labels = labels.finish();
        assert_eq!(labels.names(), ["9", "10", "ant", "bee", "owl"]);
        let classes: Vec<_> = (0..10).map(|index| labels.get(index)).collect();
        let expected = [Some(4), None, Some(2), Some(3), None, Some(4), Some(1), Some(0), None, None];
        assert_eq!(classes, expected);
        assert_eq!([1, 4, 8, 9].map(|index| labels.kind(index)), [Missing, List, Fraction, Missing]);
        assert_eq!((labels.n_classes(), labels.has_classes()), (5, true));
    }

    #[test]
    fn numbers_alone_stay_numbers() {
        let mut labels = LabelBuilder::default();
        [3, -1, 0].into_iter().for_each(|number| labels.push(RawLabel::of_integer(number)));
        let labels = labels.finish();
        assert_eq!(([0, 1, 2].map(|at| labels.get(at)), labels.n_classes()), ([Some(3), None, Some(0)], 4));
        assert_eq!((labels.values(), labels.names().len()), (&[3, u32::MAX, 0][..], 0));
    }
}
