//! The course that every evaluation takes: subjects one by one, a table on the way, a record at the end.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;
use swav_eval::{Bootstrap, Estimate, Measurement, Record};

use super::{earlier, path_of};
use crate::judge::{Judge, Subject};
use crate::output_file::OutputFile;

/// Width of a column of the table.
const COLUMN: usize = 28;
/// The setting of a record that tells its images from others.
const FINGERPRINT: &str = "data_fingerprint";

/// A record in the making.
pub(crate) struct Plan {
    /// What is known of it.
    pub record: Record,
    /// Its name in the folder of evaluations.
    pub name: String,
    /// How intervals are made.
    pub bootstrap: Bootstrap,
    run: PathBuf,
    /// Columns of the table so far; a change begins a new one.
    columns: Vec<String>,
}

/// A number that was measured: its name, itself, and on how many images.
pub(crate) type Measured = (String, Estimate, usize);

impl Plan {
    /// A record of a run's evaluation of now, with what all of them say of the data.
    pub fn new(judge: &Judge<'_>, kind: &'static str, step: u64, run: PathBuf) -> Self {
        let config = judge.settings.config();
        let fingerprint = format!("{:016x}", judge.train.fingerprint());
        let name = free_name(&run, kind, &config.data.path, &fingerprint);
        let mut record = Record::new(kind, step, 0)
            .with("data", judge.train.describe())
            .with(FINGERPRINT, fingerprint)
            .with("resize", config.reestimation.resize)
            .with("size", config.reestimation.size);
        if let Some(test) = &judge.test {
            record = record.with("test_data", test.describe());
        }
        Self { record, name, bootstrap: Bootstrap::default(), run, columns: Vec::new() }
    }

    /// Adds a setting.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.record.settings.insert(name.to_owned(), value.into());
    }

    /// Adds the numbers of a subject and prints them as a line of the table.
    pub fn report(&mut self, of: &str, measured: &[Measured]) -> anyhow::Result<()> {
        let names: Vec<String> = measured.iter().map(|(name, ..)| name.clone()).collect();
        if names != self.columns {
            let header: String = names.iter().map(|name| format!("{name:<COLUMN$}")).collect();
            say!("{}", format!("  {:<20}{header}", "").trim_end())?;
            self.columns = names;
        }
        let cells: String =
            measured.iter().map(|(name, estimate, _)| format!("{:<COLUMN$}", cell(name, estimate))).collect();
        say!("{}", format!("  {of:<20}{cells}").trim_end())?;
        for (name, estimate, n) in measured {
            self.record.add(name, of, *estimate, *n);
        }
        Ok(())
    }

    /// Numbers of a subject in an earlier record with the same settings, of a subject that no training changes.
    fn known(&self, subject: Subject) -> Option<Vec<Measured>> {
        let before = earlier(&path_of(&self.run, &self.name))?;
        let same = before.settings == self.record.settings && before.seed == self.record.seed;
        if subject == Subject::Trained || !same {
            return None;
        }
        let of = |m: &Measurement| (m.name.clone(), m.estimate, m.n);
        let known: Vec<Measured> =
            before.results.iter().filter(|result| result.of == subject.name()).map(of).collect();
        (!known.is_empty()).then_some(known)
    }

    /// Writes the record, so that it is there as a whole or not at all, and prints it as the last line.
    pub fn finish(self) -> anyhow::Result<()> {
        let path = self.write()?;
        note!("record   {}", path.display());
        say!("{}", serde_json::to_string(&self.record)?)
    }

    /// Writes the record; gives the file.
    pub fn write(&self) -> anyhow::Result<PathBuf> {
        let path = path_of(&self.run, &self.name);
        let written = || format!("could not write {}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(written)?;
        }
        let mut file = OutputFile::create(&path, true)?;
        writeln!(file, "{}", serde_json::to_string_pretty(&self.record)?).with_context(written)?;
        file.commit()?;
        Ok(path)
    }
}

/// Measures each subject and reports it. Baselines that an earlier record has with the same settings are taken from there.
pub(crate) fn measure(
    plan: &mut Plan,
    subjects: &[Subject],
    mut of: impl FnMut(&Plan, Subject) -> anyhow::Result<Vec<Measured>>,
) -> anyhow::Result<()> {
    for &subject in subjects {
        let measured = match plan.known(subject) {
            Some(known) => known,
            None => of(plan, subject)?,
        };
        plan.report(subject.name(), &measured)?;
    }
    Ok(())
}

/// The name of a record on these images: that of its kind, unless this holds the numbers of other images, which are not
/// replaced; then with the name of the data behind it, and a number if need be.
fn free_name(run: &Path, kind: &str, data: &Path, fingerprint: &str) -> String {
    let data = data.file_stem().map_or("other".into(), |stem| stem.to_string_lossy());
    let with_data = std::iter::once(format!("{kind}-{data}"));
    let numbered = (2..).map(|n| format!("{kind}-{data}-{n}"));
    let of_other_images = |name: &String| {
        let record = earlier(&path_of(run, name));
        record
            .and_then(|record| record.settings.get(FINGERPRINT).cloned())
            .is_some_and(|of| of != fingerprint)
    };
    let mut names = std::iter::once(kind.to_owned()).chain(with_data).chain(numbered);
    names.find(|name| !of_other_images(name)).expect("numbers do not end")
}

/// Shares as percentages, indices as they are.
fn cell(name: &str, estimate: &Estimate) -> String {
    let Estimate { value, low, high } = *estimate;
    let index = ["nmi", "ari"].iter().any(|prefix| name.starts_with(prefix));
    match index {
        true => format!("{value:.4} ({low:.4} - {high:.4})"),
        false => format!("{:.2} % ({:.2} - {:.2})", 100.0 * value, 100.0 * low, 100.0 * high),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_other_images_is_not_replaced() {
        let run = tempfile::tempdir().unwrap();
        let name = |fingerprint| free_name(run.path(), "knn", Path::new("/data/photos"), fingerprint);
        let write = |name: &str, fingerprint: &str| {
            let record = Record::new("knn", 0, 0).with(FINGERPRINT, fingerprint);
            let path = path_of(run.path(), name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, serde_json::to_string(&record).unwrap()).unwrap();
        };
        assert_eq!(name("a"), "knn");
        write("knn", "a");
        assert_eq!([name("a"), name("b")], ["knn", "knn-photos"]);
        write("knn-photos", "b");
        assert_eq!([name("a"), name("b"), name("c")], ["knn", "knn-photos", "knn-photos-2"]);
    }
}
