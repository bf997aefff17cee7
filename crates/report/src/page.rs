//! The page: sections in order, style and script inside.

use std::fmt::Write;

use crate::{Confusion, Crops, Map, Prototype, Prototypes, Report, Table};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// Classes of a confusion that are shown as a table.
const MAX_CLASSES: usize = 30;

/// The whole file.
pub(crate) fn page(report: &Report) -> String {
    let sections = [
        ("overview", "Overview", overview(report)),
        ("findings", "What went wrong", findings(report)),
        ("map", "Map", report.map.as_ref().map(map).unwrap_or_default()),
        ("curves", "Curves", report.charts.iter().map(crate::Chart::to_html).collect()),
        ("prototypes", "Prototypes", report.prototypes.as_ref().map(prototypes).unwrap_or_default()),
        ("evaluations", "Evaluations", report.tables.iter().map(table).collect()),
        ("confusion", "Confusion", report.confusion.as_ref().map(confusion).unwrap_or_default()),
        ("crops", "Crops", report.crops.as_ref().map(crops).unwrap_or_default()),
        ("details", "Details", details(report)),
    ];
    let present: Vec<_> = sections.iter().filter(|(_, _, html)| !html.is_empty()).collect();
    let links: String = present.iter().map(|(id, name, _)| format!("<a href=\"#{id}\">{name}</a>")).collect();
    let body: String = present
        .iter()
        .map(|(id, name, html)| {
            let heading = if *id == "overview" { String::new() } else { format!("<h2>{name}</h2>") };
            format!("<section id=\"{id}\">{heading}<div class=\"{id}\">{html}</div></section>\n")
        })
        .collect();
    let (title, subtitle) = (escape(&report.title), escape(&report.subtitle));
    let (status, date) = (escape(&report.status), escape(&report.date));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header><div><h1>{title}</h1><p class=\"quiet\">{subtitle}</p></div>\
         <div class=\"side\"><span class=\"status\">{status}</span><button id=\"theme\" type=\"button\" \
         aria-label=\"light or dark\">◐</button><p class=\"quiet\">{date}</p></div></header>\n\
         <nav>{links}</nav>\n<main>\n{body}</main>\n<div id=\"tip\" hidden></div>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// Text as it may stand in an element or an attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html += "&amp;",
            '<' => html += "&lt;",
            '>' => html += "&gt;",
            '"' => html += "&quot;",
            '\'' => html += "&#39;",
            // Control characters have no place in HTML.
            c if c.is_control() && c != '\n' && c != '\t' => html.push('\u{fffd}'),
            c => html.push(c),
        }
    }
    html
}

/// JSON as it may stand in a script element.
fn json_in_script(value: &serde_json::Value) -> String {
    value.to_string().replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

fn overview(report: &Report) -> String {
    let notes: String =
        report.notes.iter().map(|note| format!("<p class=\"note\">{}</p>", escape(note))).collect();
    let figures: String = report
        .headline
        .iter()
        .map(|figure| {
            format!(
                "<div class=\"card figure\"><span>{}</span><strong>{}</strong><span>{}</span></div>",
                escape(&figure.name),
                escape(&figure.value),
                escape(&figure.comparison)
            )
        })
        .collect();
    match figures.is_empty() {
        true => notes,
        false => format!("{notes}<div class=\"figures\">{figures}</div>"),
    }
}

fn findings(report: &Report) -> String {
    let each = report.findings.iter().map(|finding| {
        format!(
            "<div class=\"card finding\"><strong>{}</strong><p>{}</p><p class=\"quiet\">{}</p></div>",
            escape(&finding.title),
            escape(&finding.sign),
            escape(&finding.advice)
        )
    });
    each.collect()
}

fn table(table: &Table) -> String {
    let head: String = table.columns.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
    let rows: String = table
        .rows
        .iter()
        .map(|row| {
            let cells: String = row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
            format!("<tr>{cells}</tr>")
        })
        .collect();
    format!(
        "<div class=\"card scroll\"><h3>{}</h3><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>",
        escape(&table.title)
    )
}

fn confusion(confusion: &Confusion) -> String {
    let mut html = format!("<div class=\"card scroll\"><p class=\"quiet\">{}</p>", escape(&confusion.note));
    let name =
        |class: usize| confusion.classes.get(class).map_or_else(|| class.to_string(), |name| escape(name));
    let n = confusion.counts.len();
    if n <= MAX_CLASSES {
        let head: String = (0..n).map(|class| format!("<th><span>{}</span></th>", name(class))).collect();
        let _ = write!(html, "<table class=\"confusion\"><thead><tr><td></td>{head}</tr></thead><tbody>");
        for (class, row) in confusion.counts.iter().enumerate() {
            let total = row.iter().sum::<u32>().max(1);
            let _ = write!(html, "<tr><th>{}</th>", name(class));
            for (taken_for, &count) in row.iter().enumerate() {
                let share = f64::from(count) / f64::from(total);
                let kind = if class == taken_for { "right" } else { "wrong" };
                let shown = if count == 0 { String::new() } else { format!("{:.0}", 100.0 * share) };
                let _ = write!(
                    html,
                    "<td class=\"{kind}\" style=\"--p:{share:.3}\" title=\"{} taken for {}: {count} of {total}\">{shown}</td>",
                    name(class),
                    name(taken_for)
                );
            }
            html += "</tr>";
        }
        return html
            + "</tbody></table><p class=\"quiet\">Rows: the class; columns: what it is taken for, in per cent.</p></div>";
    }
    let mut pairs: Vec<(u32, usize, usize)> = Vec::new();
    for (class, row) in confusion.counts.iter().enumerate() {
        let wrong = row.iter().enumerate().filter(|(other, count)| *other != class && **count > 0);
        pairs.extend(wrong.map(|(other, &count)| (count, class, other)));
    }
    pairs.sort_by_key(|&(count, class, other)| (std::cmp::Reverse(count), class, other));
    html += "<table><thead><tr><th>class</th><th>taken for</th><th>images</th></tr></thead><tbody>";
    for (count, class, other) in pairs.into_iter().take(MAX_CLASSES) {
        let _ = write!(html, "<tr><td>{}</td><td>{}</td><td>{count}</td></tr>", name(class), name(other));
    }
    html + "</tbody></table></div>"
}

/// One picture of a sheet, by a background that the section's style names.
fn thumb(sheet: &crate::Sheet, picture: usize, name: &str) -> String {
    let (file, row, column) = sheet.place(picture);
    format!(
        "<span class=\"thumb f{file}\" role=\"img\" aria-label=\"{0}\" title=\"{0}\" style=\"--c:{column};--r:{row}\"></span>",
        escape(name)
    )
}

/// The style that gives the pictures of a section their sheets.
fn sheet_style(section: &str, sheet: &crate::Sheet) -> String {
    let mut css = format!(
        "<style>.{section} .thumb{{--s:{}px;background-size:calc({} * var(--s)) auto}}",
        sheet.side, sheet.columns
    );
    for (file, uri) in sheet.uris().enumerate() {
        let _ = write!(css, ".{section} .f{file}{{background-image:url({uri})}}");
    }
    css + "</style>"
}

fn crops(crops: &Crops) -> String {
    let mut html = sheet_style("crops", &crops.pictures);
    let _ = write!(
        html,
        "<div class=\"card scroll\"><p class=\"quiet\">{}</p><table class=\"pictures\"><thead><tr>",
        escape(&crops.note)
    );
    for column in &crops.columns {
        let _ = write!(html, "<th>{}</th>", escape(column));
    }
    html += "</tr></thead><tbody>";
    for (row, name) in crops.rows.iter().enumerate() {
        html += "<tr>";
        for column in 0..crops.columns.len() {
            let picture = row * crops.columns.len() + column;
            let _ = write!(html, "<td>{}</td>", thumb(&crops.pictures, picture, name));
        }
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}

fn prototypes(prototypes: &Prototypes) -> String {
    let mut html = sheet_style("prototypes", &prototypes.pictures);
    let _ = write!(html, "<p class=\"quiet\">{}</p>", escape(&prototypes.note));
    for (name, group) in &prototypes.groups {
        let _ = write!(html, "<h3>{}</h3><div class=\"grid\">", escape(name));
        for Prototype { number, n_images, note, nearest } in group {
            let _ = write!(
                html,
                "<div class=\"card prototype\"><div><strong>#{number}</strong> {n_images} images <span class=\"quiet\">{}</span></div><div class=\"strip\">",
                escape(note)
            );
            for (picture, name, similarity) in nearest {
                html += &thumb(&prototypes.pictures, *picture, &format!("{name}, cosine {similarity:.3}"));
            }
            html += "</div></div>";
        }
        html += "</div>";
    }
    html
}

fn map(map: &Map) -> String {
    let mut html =
        format!("<div class=\"card\"><p class=\"quiet\">{}</p><div class=\"controls\">", escape(&map.note));
    if map.projections.len() > 1 {
        html += "<label>Map <select id=\"projection\">";
        for (at, projection) in map.projections.iter().enumerate() {
            let _ = write!(html, "<option value=\"{at}\">{}</option>", escape(&projection.name));
        }
        html += "</select></label>";
    }
    html += "<label>Colour <select id=\"colour\">";
    if !map.labels.is_empty() {
        html += "<option value=\"label\">class</option>";
    }
    html += "<option value=\"cluster\">prototype</option></select></label>\
             <label><input id=\"pictures\" type=\"checkbox\" checked> pictures</label>\
             <button id=\"whole\" type=\"button\">whole map</button></div>\
             <div class=\"stage\"><canvas id=\"map-canvas\" aria-label=\"map of the embeddings\"></canvas>\
             <div class=\"legend\" id=\"map-legend\"></div></div>\
             <p class=\"quiet\" id=\"map-hint\">Point at a dot to see its image; scroll or pinch to zoom, drag to move; click a name to \
             see it alone.</p><div hidden>";
    for uri in map.pictures.uris() {
        let _ = write!(html, "<img class=\"map-sheet\" alt=\"\" src=\"{uri}\">");
    }
    let numbers = json_in_script(&map.numbers());
    html + "</div><script type=\"application/json\" id=\"map-data\">" + &numbers + "</script></div>"
}

fn details(report: &Report) -> String {
    let mut html = String::new();
    if !report.repeat.is_empty() {
        html += "<div class=\"card scroll\"><h3>How to repeat it</h3>";
        for (what, command) in &report.repeat {
            let _ = write!(html, "<p>{}</p><pre>{}</pre>", escape(what), escape(command));
        }
        html += "</div>";
    }
    if !report.environment.is_empty() {
        html += "<div class=\"card scroll\"><h3>Environment</h3><table><tbody>";
        for (name, value) in &report.environment {
            let _ = write!(html, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
        }
        html += "</tbody></table></div>";
    }
    if !report.configuration.is_empty() {
        let _ = write!(
            html,
            "<details class=\"card scroll\"><summary>Configuration</summary><pre>{}</pre></details>",
            escape(&report.configuration)
        );
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Chart, Figure, Finding, Projection, Series, Thumbnails, principal_components};

    /// A report with every part, and names that try to leave their places.
    fn whole() -> Report {
        let evil = "</script><b a='\"&";
        let mut small = Thumbnails::new(16, 4);
        for at in 0..200u8 {
            small.push(4, &[at; 48]);
        }
        small.push(3, &[0; 5]);
        let pictures = small.finish();
        let rows: Vec<f32> = (0..200 * 8).map(|at| ((at * 37 % 101) as f32).sin()).collect();
        let projections = vec![
            #[cfg(feature = "tsne")]
            Projection {
                name: "t-SNE".to_owned(),
                plane: crate::tsne(&rows, 8).expect("200 rows are enough"),
            },
            Projection { name: "principal components".to_owned(), plane: principal_components(&rows, 8) },
        ];
        let map = Map {
            note: evil.to_owned(),
            projections,
            names: (0..200).map(|at| format!("{at} {evil}")).collect(),
            labels: (0..200).map(|at| at % 3 - 1).collect(),
            classes: vec![evil.to_owned(), "b".to_owned()],
            clusters: (0..200).collect(),
            pictures: pictures.clone(),
        };
        let prototype = Prototype {
            number: 3,
            n_images: 7,
            note: evil.to_owned(),
            nearest: vec![(2, evil.to_owned(), 0.5)],
        };
        Report {
            title: evil.to_owned(),
            notes: vec![evil.to_owned()],
            headline: vec![Figure::new(evil, "1", "2")],
            findings: vec![Finding { title: evil.to_owned(), ..Finding::default() }],
            charts: vec![Chart {
                title: evil.to_owned(),
                series: vec![
                    Series::new(evil, vec![(0.0, 1.0), (5.0, 2.0)]),
                    Series::new("b", vec![(0.0, 3.0)]),
                ],
                references: vec![(evil.to_owned(), 2.0)],
                moments: vec![(evil.to_owned(), 2.0)],
                ..Chart::default()
            }],
            tables: vec![Table {
                title: evil.to_owned(),
                columns: vec![evil.to_owned()],
                rows: vec![vec![evil.to_owned()]],
            }],
            confusion: Some(Confusion {
                classes: vec![evil.to_owned(), "b".to_owned()],
                counts: vec![vec![3, 1], vec![0, 4]],
                ..Confusion::default()
            }),
            crops: Some(Crops {
                note: evil.to_owned(),
                columns: vec!["image".to_owned(), "16 px".to_owned()],
                rows: vec![evil.to_owned(); 2],
                pictures: pictures.clone(),
            }),
            prototypes: Some(Prototypes {
                note: evil.to_owned(),
                groups: vec![("most".to_owned(), vec![prototype])],
                pictures,
            }),
            map: Some(map),
            configuration: evil.to_owned(),
            environment: vec![(evil.to_owned(), evil.to_owned())],
            repeat: vec![(evil.to_owned(), evil.to_owned())],
            ..Report::default()
        }
    }

    /// Elements that have no end.
    const VOID: [&str; 6] = ["meta", "link", "img", "input", "line", "circle"];

    /// Fails unless every element that is opened is closed in its turn. What is in scripts and styles is no markup.
    fn assert_well_formed(html: &str) {
        let (mut open, mut rest) = (Vec::new(), html);
        while let Some(at) = rest.find('<') {
            rest = &rest[at + 1..];
            let end = rest.find('>').expect("a tag has an end");
            let tag = &rest[..end];
            rest = &rest[end + 1..];
            let name: String =
                tag.trim_start_matches('/').chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
            if tag.starts_with('!') || tag.ends_with('/') || VOID.contains(&name.as_str()) {
                continue;
            }
            if tag.starts_with('/') {
                assert_eq!(open.pop().as_deref(), Some(name.as_str()), "before {:.60}", rest);
                continue;
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag:.200}");
            if name == "script" || name == "style" {
                let close = format!("</{name}>");
                rest = &rest[rest.find(&close).expect("it is closed") + close.len()..];
                continue;
            }
            open.push(name);
        }
        assert_eq!(open, Vec::<String>::new());
    }

    fn decoded(text: &str) -> Vec<u8> {
        let value = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let digits: Vec<u32> = text.trim_end_matches('=').bytes().map(|c| u32::from(value(c))).collect();
        let word =
            |part: &[u32]| part.iter().fold(0, |word, digit| word << 6 | digit) << (6 * (4 - part.len()));
        let bytes = digits.chunks(4).flat_map(|part| word(part).to_be_bytes()[1..part.len()].to_vec());
        bytes.collect()
    }

    #[test]
    fn a_page_is_well_formed_whatever_the_names_are() {
        for report in [whole(), Report::default()] {
            let html = report.to_html();
            assert_well_formed(&html);
            assert!(!html.contains("<b a="), "a name has become markup");
            assert!(!html.contains("http"), "the file asks for something from elsewhere");
        }
    }

    #[test]
    fn every_picture_decodes() {
        let html = whole().to_html();
        let mut n_pictures = 0;
        for part in html.split("data:image/jpeg;base64,").skip(1) {
            let end = part.find(['"', ')']).expect("the address has an end");
            let picture = image::load_from_memory(&decoded(&part[..end])).expect("a JPEG");
            assert_eq!(picture.width(), 64);
            n_pictures += 1;
        }
        // 201 pictures, 40 rows of 4 in a file; crops, prototypes and map have the same sheet.
        assert_eq!(n_pictures, 3 * 2);
    }

    #[test]
    fn many_classes_become_the_most_frequent_mistakes() {
        let mut counts = vec![vec![0; 40]; 40];
        counts[3][7] = 5;
        let html = confusion(&Confusion { note: String::new(), classes: Vec::new(), counts });
        assert!(html.contains("<td>3</td><td>7</td><td>5</td>"), "{html}");
    }

    #[test]
    fn nothing_that_is_written_can_leave_its_place() {
        assert_eq!(escape("<a b=\"c\">&'\u{7}"), "&lt;a b=&quot;c&quot;&gt;&amp;&#39;\u{fffd}");
        assert_eq!(json_in_script(&serde_json::json!("</script>")), "\"\\u003c/script>\"");
    }
}
