//! The report of a run: tables in Markdown between markers of docs/performance.md, and a chart as SVG.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::goals;
use crate::measure::MEASURES;
use crate::sample::Run;
use crate::subject::Subject;

/// Columns of the table of servers: measure, value, head, digits.
const COLUMNS: &[(&str, &str, &str, usize)] = &[
    ("fanout-1", "cpu_us", "fan-out, 1 in flight, us", 2),
    ("fanout-8", "cpu_us", "8 in flight, us", 2),
    ("fanout-8", "wire_bytes", "bytes of a delivery", 0),
    ("echo", "cpu_us", "echo, us", 2),
    ("echo", "per_s", "echo, messages/s", 0),
    ("connect", "cpu_us", "connect, us", 1),
    ("memory", "rss_bytes", "memory per connection, bytes", 0),
];
/// Panels of the chart.
const PANELS: &[(&str, &str)] = &[
    ("fanout-1", "fan-out to 1,000, one in flight: us of CPU per delivery"),
    ("fanout-8", "fan-out to 1,000, eight in flight: us of CPU per delivery"),
    ("echo", "echo: us of CPU per message"),
];

/// Writes tables and chart into the folder of the documentation.
pub fn write(run: &Run, docs: &Path) -> Result<(), String> {
    let page = docs.join("performance.md");
    let fault = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&page).map_err(|error| fault(&page, error))?;
    let text = replaced(&text, "peers", &peers(run))?;
    let text = replaced(&text, "goals", &goal_table(run))?;
    std::fs::write(&page, text).map_err(|error| fault(&page, error))?;
    let chart_path = docs.join("performance/peers.svg");
    std::fs::create_dir_all(docs.join("performance")).map_err(|error| fault(&chart_path, error))?;
    std::fs::write(&chart_path, chart(run)).map_err(|error| fault(&chart_path, error))
}

/// `text` with everything between the markers of `name` replaced.
fn replaced(text: &str, name: &str, with: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- {name}:begin -->"), format!("<!-- {name}:end -->"));
    let (Some(from), Some(to)) = (text.find(&begin), text.find(&end)) else {
        return Err(format!("performance.md has no {begin} and {end}; put both where it belongs"));
    };
    let from = from + begin.len();
    if to < from {
        return Err(format!("performance.md has {end} before {begin}"));
    }
    Ok(format!("{}\n{}{}", &text[..from], with, &text[to..]))
}

/// Subjects that have samples, in the order of the tables, with their titles.
fn subjects(run: &Run) -> Vec<(String, &'static str)> {
    let measured = |name: &str| run.samples.iter().any(|sample| sample.subject == name);
    let all = Subject::all(&[PathBuf::new(), PathBuf::new()]);
    let titled = all.into_iter().map(|subject| (subject.name, Subject::title(subject.kind)));
    titled.filter(|(name, _)| measured(name)).collect()
}

/// Samples of the measure and server that has most: pieces of a run do not all hold the same measures.
fn rounds(run: &Run) -> usize {
    let of = |measure: &str, name: &str, value: &str| run.all(measure, name, value).len();
    let names = subjects(run);
    let all = MEASURES.iter().flat_map(|measure| {
        names.iter().map(move |(name, _)| of(measure.name, name, measure.value))
    });
    all.max().unwrap_or(0)
}

fn peers(run: &Run) -> String {
    let mut out = String::new();
    let line = |out: &mut String, text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    line(
        &mut out,
        &format!(
            "Measured by `{}` on {}. Medians of up to {} interleaved rounds.\n",
            run.command,
            run.machine,
            rounds(run)
        ),
    );
    line(&mut out, "![CPU time per operation of the servers](performance/peers.svg)\n");
    let heads: Vec<&str> = COLUMNS.iter().map(|(_, _, head, _)| *head).collect();
    line(&mut out, &format!("| server | {} |", heads.join(" | ")));
    line(&mut out, &format!("|---{}|", "|---:".repeat(COLUMNS.len())));
    for (name, title) in subjects(run) {
        let cells: Vec<String> = COLUMNS
            .iter()
            .map(|(measure, value, _, digits)| cell(run.median(measure, &name, value), *digits))
            .collect();
        let version = run.versions.get(&name).map_or(String::new(), |v| format!(" {v}"));
        line(&mut out, &format!("| {title}{version} | {} |", cells.join(" | ")));
    }
    line(&mut out, "");
    others(run, &mut out);
    for (name, reason) in &run.left_out {
        line(&mut out, &format!("\n{name} was left out: {reason}."));
    }
    out
}

/// Measures that only some servers have, one row each.
fn others(run: &Run, out: &mut String) {
    let shown = |measure: &str| COLUMNS.iter().any(|(column, ..)| *column == measure);
    out.push_str("| measure | value | server: median (least to most) |\n|---|---|---|\n");
    for measure in MEASURES.iter().filter(|measure| !shown(measure.name)) {
        let cells: Vec<String> = subjects(run)
            .iter()
            .filter_map(|(name, _)| {
                let all = run.all(measure.name, name, measure.value);
                let (least, most) = all
                    .iter()
                    .fold((f64::MAX, f64::MIN), |(low, high), one| (low.min(*one), high.max(*one)));
                let median = run.median(measure.name, name, measure.value)?;
                Some(format!("{name}: {} ({} to {})", short(median), short(least), short(most)))
            })
            .collect();
        if !cells.is_empty() {
            writeln!(out, "| {} | {} | {} |", measure.title, measure.value, cells.join(", "))
                .expect("a String takes any text");
        }
    }
}

fn goal_table(run: &Run) -> String {
    let mut out = String::from(
        "| goal | target | measured | at reference speed | |\n|---|---:|---:|---:|---|\n",
    );
    for goal in goals::of(run) {
        let sign = if goal.at_least { ">=" } else { "<=" };
        let measured = goal.measured.map_or("-".to_owned(), short);
        let at_reference = goal.at_reference.map(short).unwrap_or_default();
        let met = match goal.met() {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "not measured",
        };
        writeln!(
            out,
            "| {} | {sign} {} {} | {measured} | {at_reference} | {met} |",
            goal.what, goal.target, goal.unit
        )
        .expect("a String takes any text");
    }
    out
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Three digits or so.
fn short(value: f64) -> String {
    match value {
        large if large >= 100.0 => format!("{large:.0}"),
        middle if middle >= 10.0 => format!("{middle:.1}"),
        small => format!("{small:.2}"),
    }
}

/// Bars of the CPU time per operation, one panel for each of [`PANELS`].
fn chart(run: &Run) -> String {
    let mut bars = Bars::default();
    for (measure, title) in PANELS {
        let rows = subjects(run).into_iter().filter_map(|(name, title)| {
            Some((name.starts_with("gateway"), title, run.median(measure, &name, "cpu_us")?))
        });
        bars.panel(title, &rows.collect::<Vec<_>>());
    }
    bars.svg()
}

/// A chart of horizontal bars that grows downwards.
#[derive(Default)]
struct Bars {
    body: String,
    y: usize,
}

impl Bars {
    const WIDTH: usize = 760;
    const LABEL: usize = 260;
    const LONGEST: f64 = 420.0;
    const ROW: usize = 20;
    const GAP: usize = 4;

    /// A heading and a row for each server: whether it stands out, its name, its value.
    fn panel(&mut self, heading: &str, rows: &[(bool, &str, f64)]) {
        let most = rows.iter().map(|row| row.2).fold(0.0, f64::max);
        self.y += Self::ROW;
        self.body += &text(10.0, self.y, "start", heading);
        self.y += Self::ROW;
        for (ours, title, value) in rows {
            let colour = if *ours { "#c2410c" } else { "#64748b" };
            let (x, y, height) = (Self::LABEL, self.y, Self::ROW - Self::GAP);
            let width = value / most * Self::LONGEST;
            let bar = format!(
                "<rect x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>\n"
            );
            self.body += &bar;
            let (before, after) = (x - 8, x as f64 + width + 6.0);
            self.body += &text(before as f64, y, "end", title);
            self.body += &text(after, y, "start", &short(*value));
            self.y += Self::ROW;
        }
    }

    fn svg(&self) -> String {
        let (width, height, body) = (Self::WIDTH, self.y + Self::ROW, &self.body);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }
}

/// A line of text in the row at `y`.
fn text(x: f64, y: usize, anchor: &str, text: &str) -> String {
    let baseline = y + 13;
    format!("<text x=\"{x:.0}\" y=\"{baseline}\" text-anchor=\"{anchor}\">{text}</text>\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sample::{Sample, Values};

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n";
        let once = replaced(text, "x", "new\n").unwrap();
        assert_eq!(once, "a\n<!-- x:begin -->\nnew\n<!-- x:end -->\nb\n");
        assert_eq!(replaced(&once, "x", "new\n").unwrap(), once);
        assert!(replaced(text, "y", "").is_err());
        assert!(replaced("<!-- x:end --><!-- x:begin -->", "x", "").is_err());
    }

    #[test]
    fn tables_and_chart_show_what_was_measured() {
        let sample = |subject: &str, cpu| Sample {
            measure: "fanout-1".to_owned(),
            subject: subject.to_owned(),
            round: 1,
            values: Values::from([("cpu_us".to_owned(), cpu)]),
        };
        let samples = vec![sample("gateway", 3.25), sample("bun", 4.5)];
        let run = Run { samples, ..Run::default() };
        let text = peers(&run);
        assert!(text.contains("| archmesh-gateway | 3.25 | - |"), "{text}");
        assert!(text.contains("| 4.50 | - |") && !text.contains("nchan"), "{text}");
        assert!(goal_table(&run).contains("| <= 1 x | 0.72 |  | met |"));
        let svg = chart(&run);
        assert_eq!(svg.matches("fill=\"#c2410c\"").count(), 1);
        assert_eq!(svg.matches("fill=\"#64748b\"").count(), 1);
    }
}
