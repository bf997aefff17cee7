//! Line charts as SVG, with their numbers for the script beside them.

use std::fmt::Write;

use serde_json::json;

use crate::page::escape;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;
/// Points of a series that are drawn; of more, the means of as many runs are.
const MAX_POINTS: usize = 400;

/// Curves over the steps of a run.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    /// What is shown.
    pub title: String,
    /// What to look for in it.
    pub note: String,
    /// The curves.
    pub series: Vec<Series>,
    /// Horizontal lines with names, such as a number that chance gives.
    pub references: Vec<(String, f64)>,
    /// Vertical lines with names, such as a step at which something began.
    pub moments: Vec<(String, f64)>,
    /// Whether the y axis is logarithmic; values of 0 and below are then left out.
    pub logarithmic: bool,
}

/// One curve.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Step and value, by step. Values that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Whether single points are marked, for curves of a few.
    pub dots: bool,
}

impl Series {
    /// A curve without marks.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, dots: false }
    }

    /// What is drawn of it: all points, or means of equally many.
    fn drawn(&self, logarithmic: bool) -> Vec<(f64, f64)> {
        let usable = |&&(x, y): &&(f64, f64)| x.is_finite() && y.is_finite() && (!logarithmic || y > 0.0);
        let points: Vec<(f64, f64)> = self.points.iter().filter(usable).copied().collect();
        let n = points.len().min(MAX_POINTS);
        (0..n)
            .map(|at| {
                let part = &points[at * points.len() / n..(at + 1) * points.len() / n];
                let mean =
                    |pick: fn(&(f64, f64)) -> f64| part.iter().map(pick).sum::<f64>() / part.len() as f64;
                // The middle step of the run, so that a curve begins and ends where its numbers do.
                (mean(|point| point.0), mean(|point| point.1))
            })
            .collect()
    }
}

/// The area that a chart covers.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    logarithmic: bool,
}

impl Frame {
    fn around(chart: &Chart, drawn: &[Vec<(f64, f64)>]) -> Option<Self> {
        let points = || drawn.iter().flatten();
        let all_y = || points().map(|point| point.1).chain(chart.references.iter().map(|line| line.1));
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
        };
        let x = range(&mut points().map(|point| point.0));
        let (low, high) = range(&mut all_y());
        if !x.0.is_finite() || !low.is_finite() {
            return None;
        }
        let y = match chart.logarithmic {
            true => (low.max(1e-300) * 0.8, high.max(1e-300) * 1.25),
            false => {
                let margin = (0.06 * (high - low)).max(1e-9 * high.abs()).max(1e-12);
                // Numbers that cannot be negative have no room below zero.
                (if low >= 0.0 { (low - margin).max(0.0) } else { low - margin }, high + margin)
            }
        };
        let x = if x.1 > x.0 { x } else { (x.0 - 0.5, x.1 + 0.5) };
        Some(Self { x, y, logarithmic: chart.logarithmic })
    }

    fn left(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn top(&self, y: f64) -> f64 {
        let share = match self.logarithmic {
            true => (y / self.y.0).ln() / (self.y.1 / self.y.0).ln(),
            false => (y - self.y.0) / (self.y.1 - self.y.0),
        };
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn y_ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            return ticks(self.y, 5);
        }
        let decades = self.y.0.log10().ceil() as i32..=self.y.1.log10().floor() as i32;
        let found: Vec<f64> = decades.map(|power| 10f64.powi(power)).collect();
        if found.len() >= 2 { found } else { ticks(self.y, 4) }
    }
}

impl Chart {
    /// The chart as a figure; nothing if it has no points.
    pub(crate) fn to_html(&self) -> String {
        let drawn: Vec<_> = self.series.iter().map(|series| series.drawn(self.logarithmic)).collect();
        let Some(frame) = Frame::around(self, &drawn) else { return String::new() };
        let mut html =
            format!("<figure class=\"card chart\"><figcaption>{}</figcaption>", escape(&self.title));
        self.svg(&mut html, &frame, &drawn);
        // Writing to a string cannot fail, here and below.
        if self.series.len() > 1 {
            html += "<div class=\"legend\">";
            for (at, series) in self.series.iter().enumerate() {
                let _ = write!(html, "<span><i class=\"k{at}\"></i>{}</span>", escape(&series.name));
            }
            html += "</div>";
        }
        if !self.note.is_empty() {
            let _ = write!(html, "<p class=\"quiet\">{}</p>", escape(&self.note));
        }
        html + "</figure>"
    }

    fn svg(&self, html: &mut String, frame: &Frame, drawn: &[Vec<(f64, f64)>]) {
        let numbers = json!({
            "names": self.series.iter().map(|series| &series.name).collect::<Vec<_>>(),
            "points": drawn.iter().map(|points| points.iter().map(|&(x, y)| [round(x), round(y)]).collect()).collect::<Vec<Vec<_>>>(),
            "x": [frame.x.0, frame.x.1],
            "frame": [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM, WIDTH],
        });
        let _ = write!(
            html,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" data-chart=\"{}\">",
            escape(&self.title),
            escape(&numbers.to_string())
        );
        for y in frame.y_ticks() {
            let top = frame.top(y);
            let _ = write!(
                html,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{top:.1}\" y2=\"{top:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                top + 4.0,
                number(y)
            );
        }
        for x in ticks(frame.x, 5) {
            let _ = write!(
                html,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                frame.left(x),
                HEIGHT - 8.0,
                number(x)
            );
        }
        for (name, y) in &self.references {
            let top = frame.top(*y);
            let _ = write!(
                html,
                "<line class=\"reference\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{top:.1}\" y2=\"{top:.1}\"/><text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                WIDTH - RIGHT - 2.0,
                if top < TOP + 14.0 { top + 13.0 } else { top - 4.0 },
                escape(name)
            );
        }
        for (name, x) in &self.moments {
            let left = frame.left(*x);
            let _ = write!(
                html,
                "<line class=\"moment\" x1=\"{left:.1}\" x2=\"{left:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/><text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                HEIGHT - BOTTOM,
                left + 4.0,
                HEIGHT - BOTTOM - 5.0,
                escape(name)
            );
        }
        for (at, points) in drawn.iter().enumerate() {
            let path: Vec<String> =
                points.iter().map(|&(x, y)| format!("{:.1},{:.1}", frame.left(x), frame.top(y))).collect();
            let _ = write!(html, "<polyline class=\"c{at}\" points=\"{}\"/>", path.join(" "));
            if self.series[at].dots || points.len() == 1 {
                for &(x, y) in points {
                    let _ = write!(
                        html,
                        "<circle class=\"d{at}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                        frame.left(x),
                        frame.top(y)
                    );
                }
            }
        }
        *html += "<line class=\"cursor\" hidden=\"\"/></svg>";
    }
}

/// About `n` round numbers within a range.
fn ticks((low, high): (f64, f64), n: usize) -> Vec<f64> {
    let rough = (high - low) / n as f64;
    if rough.is_nan() || rough <= 0.0 {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough * 0.999);
    let step = step.unwrap_or(rough);
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|at| at as f64 * step).collect()
}

/// Four digits are more than a curve shows.
fn round(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// A number at an axis: `1500`, `20k`, `0.05`, `1e-4`.
fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 {
        format!("{}M", trimmed(value / 1e6))
    } else if size >= 1e4 {
        format!("{}k", trimmed(value / 1e3))
    } else if size > 0.0 && size < 1e-3 {
        format!("{value:.0e}")
    } else {
        trimmed(value)
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within_the_range() {
        assert_eq!(ticks((0.0, 1000.0), 5), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        assert_eq!(ticks((2.2, 4.1), 4), [2.5, 3.0, 3.5, 4.0]);
        assert_eq!(
            [1500.0, 20_000.0, 0.05, 1e-4, 0.0, 2.5e6].map(number),
            ["1500", "20k", "0.05", "1e-4", "0", "2.5M"]
        );
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        let chart = |points| Chart { series: vec![Series::new("x", points)], ..Chart::default() };
        assert_eq!(chart(vec![(0.0, f64::NAN)]).to_html(), "");
        let html = chart(vec![(0.0, 1.0), (1.0, f64::INFINITY), (2.0, 1.0)]).to_html();
        assert!(html.contains("<polyline") && !html.contains("NaN") && !html.contains("inf"), "{html}");
        let many = Series::new("x", (0..10_000).map(|x| (f64::from(x), 1.0)).collect());
        assert_eq!(many.drawn(false).len(), MAX_POINTS);
    }
}
