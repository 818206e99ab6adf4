//! Horizontal bars in groups, for comparisons.

use std::fmt::Write as _;

use super::markup::{colour, escape, legend, number, open};
use super::scale::Scale;

const WIDTH: f64 = 640.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = WIDTH - 84.0;
const BAR: f64 = 18.0;
const GROUP_GAP: f64 = 12.0;
const HEAD: f64 = 30.0;
const LEGEND: f64 = 22.0;
const FOOT: f64 = 44.0;

/// What is compared.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// One value for each series; one that is no number is told as missing.
    pub values: Vec<f64>,
}

/// A bar chart.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Title.
    pub title: String,
    /// Unit of the values.
    pub unit: String,
    /// Names of a group's bars; the legend is left out when there is one only.
    pub series: Vec<String>,
    /// The groups, from the top.
    pub groups: Vec<Group>,
}

impl Bars {
    /// The chart.
    pub fn svg(&self) -> String {
        let bars: usize = self.groups.iter().map(|group| group.values.len()).sum();
        let top = HEAD + if self.series.len() > 1 { LEGEND } else { 0.0 };
        let bottom = top + bars as f64 * BAR + self.groups.len() as f64 * GROUP_GAP;
        let mut out = open(&self.title, &self.said(), (WIDTH, bottom + FOOT));
        self.draw(&mut out, top, bottom).expect("a String takes any text");
        out + "</svg>"
    }

    fn said(&self) -> String {
        let told = self.groups.iter().map(|group| {
            let values = group.values.iter().enumerate().map(|(index, value)| {
                let name = self.series.get(index).map_or("", |name| name);
                format!("{name} {}", self.value(*value)).trim().to_owned()
            });
            format!("{}: {}", group.name, values.collect::<Vec<_>>().join(", "))
        });
        told.collect::<Vec<_>>().join("; ")
    }

    fn value(&self, value: f64) -> String {
        if value.is_finite() {
            format!("{} {}", number(value), self.unit)
        } else {
            "no data".into()
        }
    }

    fn draw(&self, out: &mut String, top: f64, bottom: f64) -> std::fmt::Result {
        let values = self.groups.iter().flat_map(|group| &group.values).copied();
        let axis = Scale::Linear.fit(values, (LEFT, RIGHT), true, 6);
        if self.series.len() > 1 {
            legend(out, self.series.iter().map(|name| &**name), LEFT, HEAD + 10.0);
        }
        for (value, label) in &axis.ticks {
            let at = axis.place(*value);
            write!(
                out,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 16.0
            )?;
        }
        let mut y = top + GROUP_GAP / 2.0;
        for group in &self.groups {
            let name = escape(&group.name);
            let middle = y + group.values.len() as f64 * BAR / 2.0 + 4.0;
            let x = LEFT - 8.0;
            write!(
                out,
                "<text class=\"name\" x=\"{x}\" y=\"{middle:.1}\" text-anchor=\"end\">{name}</text>"
            )?;
            for (index, value) in group.values.iter().enumerate() {
                let end = if value.is_finite() { axis.place(*value) } else { LEFT };
                let told = escape(&self.value(*value));
                write!(
                    out,
                    "<rect class=\"fill {}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\">\
                     <title>{name}: {told}</title></rect><text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{told}</text>",
                    colour(index),
                    y + 1.0,
                    end - LEFT,
                    BAR - 2.0,
                    end + 6.0,
                    y + BAR - 5.0
                )?;
                y += BAR;
            }
            y += GROUP_GAP;
        }
        write!(
            out,
            "<line class=\"edge\" x1=\"{LEFT}\" x2=\"{LEFT}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, RIGHT),
            bottom + 35.0,
            escape(&self.unit)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let group =
            |name: &str, values: &[f64]| Group { name: name.into(), values: values.to_vec() };
        let bars = Bars {
            title: "CPU".into(),
            unit: "us".into(),
            series: vec!["a".into(), "b".into()],
            groups: vec![group("one & only", &[10.0, 5.0]), group("two", &[f64::NAN, 0.0])],
        };
        let svg = bars.svg();
        let width = |nth: usize| -> f64 {
            let bar =
                svg.split("<rect class=\"fill").filter(|part| part.contains("<title>")).nth(nth);
            let width = bar.and_then(|bar| bar.split("width=\"").nth(1));
            width.and_then(|width| width.split('"').next()?.parse().ok()).expect("a width")
        };
        assert!(
            (width(0) - (RIGHT - LEFT)).abs() < 0.11 && (width(1) * 2.0 - width(0)).abs() < 0.2
        );
        assert!(width(2) == 0.0 && width(3) == 0.0);
        assert!(svg.contains("one &amp; only: a 10 us, b 5 us; two: a no data, b 0 us"), "{svg}");
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn nothing_to_compare_is_a_chart_without_bars() {
        let bars = Bars { title: "x".into(), unit: "ms".into(), series: vec![], groups: vec![] };
        assert!(!bars.svg().contains("<rect"));
    }
}
