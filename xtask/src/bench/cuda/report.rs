//! What all parts have found: the tables at the end, and the line of JSON.

use std::fmt;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::clock::Clock;
use super::engine::{Engine, Speed};
use super::found::Found;
use super::part::Part;

/// What became of a part.
#[derive(Debug)]
enum Outcome {
    /// It ended; see what it found.
    Done { found: Found, seconds: f64 },
    /// It was not begun, for this reason.
    Skipped(&'static str),
}

/// What all parts have found so far.
#[derive(Debug, Default)]
pub struct Report {
    /// Speeds, in the order in which they were measured.
    pub speeds: Vec<Speed>,
    parts: Vec<(Part, Outcome)>,
    running: Option<(Part, Instant)>,
}

impl Report {
    /// Notes that a part is not done.
    pub fn skip(&mut self, part: Part, why: &'static str) {
        self.parts.push((part, Outcome::Skipped(why)));
    }

    /// Notes that a part has begun.
    pub fn begin(&mut self, part: Part) {
        self.running = Some((part, Instant::now()));
    }

    /// The part that has begun and not ended.
    pub fn running(&self) -> Option<Part> {
        self.running.map(|(part, _)| part)
    }

    /// Notes what the part that has begun has found; the seconds that it took.
    pub fn end(&mut self, found: Found) -> f64 {
        let Some((part, begin)) = self.running.take() else { return 0.0 };
        let seconds = begin.elapsed().as_secs_f64();
        self.parts.push((part, Outcome::Done { found, seconds }));
        seconds
    }

    /// All that is wrong, with the name of its part.
    pub fn wrong(&self) -> Vec<String> {
        self.told(|found| &found.wrong)
    }

    /// The parts that have found something wrong.
    pub fn wrong_parts(&self) -> Vec<&'static str> {
        let is_wrong =
            |outcome: &Outcome| matches!(outcome, Outcome::Done { found, .. } if !found.wrong.is_empty());
        self.parts.iter().filter(|(_, outcome)| is_wrong(outcome)).map(|(part, _)| part.name()).collect()
    }

    /// Sentences of all parts, each with the name of its part.
    fn told(&self, which: impl Fn(&Found) -> &Vec<String>) -> Vec<String> {
        let told = |(part, outcome): &(Part, Outcome)| match outcome {
            Outcome::Done { found, .. } => {
                which(found).iter().map(|text| format!("{part}: {text}")).collect()
            }
            Outcome::Skipped(_) => Vec::new(),
        };
        self.parts.iter().flat_map(told).collect()
    }

    /// The speed of an engine on a workload, if it was measured.
    pub fn speed_of(&self, workload: &str, engine: Engine) -> Option<&Speed> {
        self.speeds.iter().find(|speed| speed.workload == workload && speed.engine == engine)
    }

    /// PyTorch's time over ours, for a speed of PyTorch's whose counterpart was measured.
    fn ratio(&self, speed: &Speed) -> Option<f64> {
        let ours = self.speed_of(speed.workload, speed.engine.counterpart()?)?;
        Some(speed.step_ms() / ours.step_ms())
    }

    /// Everything.
    pub fn json(&self, device: &str, clock: &Clock) -> Value {
        let part = |(part, outcome): &(Part, Outcome)| {
            let value = match outcome {
                Outcome::Skipped(why) => json!({ "outcome": "skipped", "why": why }),
                Outcome::Done { found, seconds } => json!({
                    "outcome": if found.wrong.is_empty() { "ok" } else { "wrong" },
                    "seconds": seconds, "found": found.value,
                }),
            };
            (part.name().to_owned(), value)
        };
        let speed = |speed: &Speed| {
            let mut value = speed.json();
            value["pytorch_over_ours"] = json!(self.ratio(speed));
            value
        };
        let skipped = self.parts.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Skipped(_)));
        json!({
            "mode": "cuda", "device": device, "seconds": clock.seconds(), "limit_s": clock.limit(),
            "parts": self.parts.iter().map(part).collect::<Map<_, _>>(),
            "speeds": self.speeds.iter().map(speed).collect::<Vec<_>>(),
            "skipped": skipped.map(|(part, _)| part.name()).collect::<Vec<_>>(),
            "left_out": self.told(|found| &found.left_out), "wrong": self.wrong(),
        })
    }

    fn write_parts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<12} {:<8} {:>7}", "part", "", "s")?;
        for (part, outcome) in &self.parts {
            match outcome {
                Outcome::Skipped(why) => writeln!(f, "{part:<12} {:<8} {:>7}  {why}", "skipped", "")?,
                Outcome::Done { found, seconds } => {
                    let verdict = if found.wrong.is_empty() { "ok" } else { "WRONG" };
                    let left_out = found.left_out.iter().map(|what| format!("left out: {what}"));
                    let remarks: Vec<String> = found.wrong.iter().cloned().chain(left_out).collect();
                    let line = format!("{part:<12} {verdict:<8} {seconds:>7.1}  {}", short(&remarks));
                    writeln!(f, "{}", line.trim_end())?;
                }
            }
        }
        Ok(())
    }

    fn write_speeds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<119}  PyTorch's time over ours", Speed::TITLE)?;
        for speed in &self.speeds {
            let ratio = self.ratio(speed).map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            writeln!(f, "{}", format!("{speed}  {ratio}").trim_end())?;
        }
        Ok(())
    }
}

/// The first line of the first of some remarks, and how many others there are: the others are printed where they are found.
fn short(remarks: &[String]) -> String {
    let first = remarks.first().and_then(|remark| remark.lines().next()).unwrap_or_default();
    match remarks.len() {
        0 | 1 => first.to_owned(),
        n => format!("{first} (and {} more)", n - 1),
    }
}

/// The tables at the end.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_parts(f)?;
        if !self.speeds.is_empty() {
            self.write_speeds(f)?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(engine: Engine, rounds_ms: &[f64]) -> Speed {
        let rounds_ms = rounds_ms.to_vec();
        Speed { workload: "small", engine, batch: 64, rounds_ms, bytes: Some(9e9), more: Value::Null }
    }

    #[test]
    fn ratios_are_between_counterparts() {
        let mut report = Report::default();
        report.speeds.push(speed(Engine::Mixed, &[20.0, 30.0]));
        report.speeds.push(speed(Engine::Torch, &[60.0, 40.0]));
        report.speeds.push(speed(Engine::TorchF32, &[100.0]));
        let ratios: Vec<Option<f64>> = report.speeds.iter().map(|speed| report.ratio(speed)).collect();
        assert_eq!(ratios, [None, Some(2.0), None]);
        let json = report.json("cuda:0", &Clock::start(1));
        assert_eq!(json["speeds"][1]["pytorch_over_ours"], 2.0);
        assert_eq!(json["speeds"][0]["images_per_s"], 64.0 / 25e-3);
        let text = report.to_string();
        let line = text.lines().find(|line| line.contains("PyTorch bf16")).unwrap();
        assert!(line.ends_with("2.00") && line.contains("60.00, 40.00"), "{text}");
    }

    #[test]
    fn every_part_has_a_line() {
        let mut report = Report::default();
        report.begin(Part::Libs);
        report.end(Found { left_out: vec!["round 2".to_owned()], ..Found::default() });
        report.begin(Part::Test);
        let wrong = ["too large\nby far", "too small", "too late"].map(str::to_owned).to_vec();
        report.end(Found { wrong, ..Found::default() });
        report.skip(Part::Speed, "the time was used up");
        let text = report.to_string();
        let line = |part: &str| text.lines().find(|line| line.starts_with(part)).unwrap().to_owned();
        assert!(line("libs").contains("ok") && line("libs").contains("round 2"), "{text}");
        assert!(line("test").contains("WRONG") && line("test").ends_with("too large (and 2 more)"), "{text}");
        assert!(
            line("speed").contains("skipped") && line("speed").ends_with("the time was used up"),
            "{text}"
        );
        assert_eq!(report.running(), None);
        assert_eq!(report.wrong_parts(), ["test"]);
        let json = report.json("cuda:0", &Clock::start(1));
        assert_eq!(json["left_out"], json!(["libs: round 2"]));
        assert_eq!(json["skipped"], json!(["speed"]));
    }
}
