//! Lines over a common horizontal axis.

use std::fmt::Write as _;

use super::markup::{LETTER, colour, escape, legend, number, open};
use super::scale::{Fitted, Scale};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = WIDTH - 18.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = HEIGHT - 46.0;

/// More stripes to hover over than this could not be hit.
const SLICES_MAX: usize = 240;

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What is along it.
    pub label: String,
    /// Unit of its values; empty = none.
    pub unit: String,
    /// How they are spread.
    pub scale: Scale,
}

impl Axis {
    fn title(&self) -> String {
        match &*self.unit {
            "" => self.label.clone(),
            unit => format!("{}, {unit}", self.label),
        }
    }

    fn value(&self, value: f64) -> String {
        match (self.scale, &*self.unit) {
            // Rounding would make 100 % of it.
            (Scale::Nines, _) => {
                format!("{:.7}", value * 100.0)
                    .trim_end_matches('0')
                    .trim_end_matches('.')
                    .to_owned()
                    + " %"
            }
            (_, "") => number(value),
            (_, unit) => format!("{} {unit}", number(value)),
        }
    }
}

/// A line.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points from left to right; a value that is no number interrupts the line.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    fn values(&self) -> impl Iterator<Item = f64> {
        self.points.iter().map(|(_, y)| *y).filter(|y| y.is_finite())
    }
}

/// A line chart.
#[derive(Clone, Debug)]
pub struct Lines {
    /// Title.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// The lines.
    pub series: Vec<Series>,
    /// Moments that get a vertical line, and a name where there is room before the next one.
    pub marks: Vec<(f64, String)>,
}

impl Lines {
    /// The chart.
    pub fn svg(&self) -> String {
        let mut out = open(&self.title, &self.said(), (WIDTH, HEIGHT));
        self.draw(&mut out).expect("a String takes any text");
        out + "</svg>"
    }

    /// What the lines say, in words.
    fn said(&self) -> String {
        let said = self.series.iter().map(|series| {
            let mut values = series.values().peekable();
            if values.peek().is_none() {
                return format!("{}: no values", series.name);
            }
            let (low, high, last) = values
                .fold((f64::MAX, f64::MIN, 0.0), |(low, high, _), y| (y.min(low), y.max(high), y));
            let [low, high, last] = [low, high, last].map(|value| self.y.value(value));
            format!("{}: lowest {low}, highest {high}, last {last}", series.name)
        });
        said.collect::<Vec<_>>().join("; ")
    }

    fn draw(&self, out: &mut String) -> std::fmt::Result {
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x = self.x.scale.fit(all().map(|point| point.0), (LEFT, RIGHT), false, 8);
        let y = self.y.scale.fit(all().map(|point| point.1), (BOTTOM, TOP), true, 5);
        legend(out, self.series.iter().map(|series| &*series.name), LEFT, 40.0);
        self.draw_axes(out, &x, &y)?;
        if all().all(|point| !point.1.is_finite()) {
            let (middle, height) = (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM));
            return write!(
                out,
                "<text x=\"{middle}\" y=\"{height}\" text-anchor=\"middle\">no data</text>"
            );
        }
        self.draw_marks(out, &x)?;
        for (index, series) in self.series.iter().enumerate() {
            let path = path(series, &x, &y);
            write!(out, "<path class=\"line {}\" d=\"{path}\"/>", colour(index))?;
        }
        self.draw_slices(out, &x)
    }

    fn draw_axes(&self, out: &mut String, x: &Fitted, y: &Fitted) -> std::fmt::Result {
        for (value, label) in &y.ticks {
            let at = y.place(*value);
            write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 7.0,
                at + 4.0
            )?;
        }
        for (value, label) in &x.ticks {
            let at = x.place(*value);
            write!(
                out,
                "<line class=\"edge\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{BOTTOM}\" y2=\"{:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                BOTTOM + 4.0,
                BOTTOM + 18.0
            )?;
        }
        let (middle, height) = (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM));
        write!(
            out,
            "<line class=\"edge\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{BOTTOM}\" y2=\"{BOTTOM}\"/>\
             <text x=\"{middle}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(15 {height}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            BOTTOM + 37.0,
            escape(&self.x.title()),
            escape(&self.y.title())
        )
    }

    fn draw_marks(&self, out: &mut String, x: &Fitted) -> std::fmt::Result {
        for (index, (moment, name)) in self.marks.iter().enumerate() {
            let at = x.place(*moment);
            let end = self.marks.get(index + 1).map_or(RIGHT, |next| x.place(next.0));
            write!(
                out,
                "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>"
            )?;
            if name.chars().count() as f64 * LETTER + 6.0 <= end - at {
                let (x, y, name) = (at + 4.0, TOP + 11.0, escape(name));
                write!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\">{name}</text>")?;
            }
        }
        Ok(())
    }

    /// Stripes to hover over, each telling the values of all lines there.
    fn draw_slices(&self, out: &mut String, x: &Fitted) -> std::fmt::Result {
        let mut moments: Vec<f64> =
            self.series.iter().flat_map(|series| &series.points).map(|point| point.0).collect();
        moments.sort_by(f64::total_cmp);
        moments.dedup();
        let every = moments.len().div_ceil(SLICES_MAX).max(1);
        let moments: Vec<f64> = moments.into_iter().step_by(every).collect();
        let places: Vec<f64> = moments.iter().map(|moment| x.place(*moment)).collect();
        for (index, moment) in moments.iter().enumerate() {
            let halfway = |other: Option<&f64>, edge: f64| {
                other.map_or(edge, |other| f64::midpoint(*other, places[index]))
            };
            let before = index.checked_sub(1).and_then(|before| places.get(before));
            let (from, to) = (halfway(before, LEFT), halfway(places.get(index + 1), RIGHT));
            let mut told = self.x.value(*moment);
            for series in &self.series {
                let place = series.points.partition_point(|point| point.0 < *moment);
                let here = series.points.get(place).filter(|point| point.0 <= *moment);
                if let Some((_, y)) = here.filter(|point| point.1.is_finite()) {
                    write!(told, "\n{}: {}", series.name, self.y.value(*y))?;
                }
            }
            write!(
                out,
                "<rect class=\"slice\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\">\
                 <title>{}</title></rect>",
                (to - from).max(0.5),
                BOTTOM - TOP,
                escape(&told)
            )?;
        }
        Ok(())
    }
}

/// The line through the points; a single one becomes a dot.
fn path(series: &Series, x: &Fitted, y: &Fitted) -> String {
    let mut path = String::new();
    let mut pen = 'M';
    let points = &series.points;
    for (index, (px, py)) in points.iter().enumerate() {
        if !py.is_finite() {
            pen = 'M';
            continue;
        }
        write!(path, "{pen}{:.1} {:.1}", x.place(*px), y.place(*py))
            .expect("a String takes any text");
        let alone = points.get(index + 1).is_none_or(|next| !next.1.is_finite());
        if pen == 'M' && alone {
            path.push_str("h0");
        }
        pen = 'L';
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(series: Vec<Series>) -> Lines {
        let axis = |label: &str, unit: &str| Axis {
            label: label.into(),
            unit: unit.into(),
            scale: Scale::Linear,
        };
        Lines {
            title: "Latency <over> time".into(),
            x: axis("time", "s"),
            y: axis("latency", "ms"),
            series,
            marks: vec![(0.0, "no room".into()), (0.05, "a & b".into())],
        }
    }

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        Series { name: name.into(), points: points.to_vec() }
    }

    #[test]
    fn a_chart_has_axes_legend_titles_and_a_text() {
        let lines = [series("p<50", &[(0.0, 1.0), (1.0, 2.0)]), series("p99", &[(1.0, 4.0)])];
        let svg = chart(lines.to_vec()).svg();
        assert!(svg.contains(
            "aria-label=\"Latency &lt;over&gt; time. p&lt;50: lowest 1 ms, highest 2 ms"
        ));
        assert!(svg.contains("<title>1 s\np&lt;50: 2 ms\np99: 4 ms</title>"), "{svg}");
        assert!(
            svg.contains(">time, s<") && svg.contains(">latency, ms<") && svg.contains(">p&lt;50<")
        );
        assert!(svg.contains(">a &amp; b<") && !svg.contains("no room"));
        assert_eq!(svg.matches("<path").count(), 2);
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn empty_data_says_so() {
        for lines in [vec![], vec![series("p50", &[])], vec![series("p50", &[(0.0, f64::NAN)])]] {
            let svg = chart(lines).svg();
            assert!(svg.contains("no data") && !svg.contains("<path"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn gaps_interrupt_a_line_and_a_lone_point_is_a_dot() {
        let points = [(0.0, 0.0), (1.0, 1.0), (2.0, f64::NAN), (3.0, 1.0)];
        let svg = chart(vec![series("a", &points)]).svg();
        let path = svg.split("d=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("");
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert_eq!(path.matches('L').count(), 1, "{path}");
        assert!(path.ends_with("h0"), "{path}");
    }

    #[test]
    fn many_points_have_few_stripes() {
        let points: Vec<_> = (0..10_000).map(|n| (f64::from(n), 1.0)).collect();
        let svg = chart(vec![series("a", &points)]).svg();
        assert!(svg.matches("class=\"slice\"").count() <= SLICES_MAX);
    }
}
