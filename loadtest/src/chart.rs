//! Charts as inline SVG: [`Lines`] and [`Bars`], with axes, a legend, titles on hover and a text for those who cannot see.
//!
//! Colours come from [`STYLE`], light and dark: a page carries it once; [`standalone`] makes a file of its own.

mod bars;
mod lines;
mod markup;
mod scale;

pub use bars::{Bars, Group};
pub use lines::{Axis, Lines, Series};
pub use markup::{escape, number};
pub use scale::Scale;

/// Style sheet of the charts.
pub const STYLE: &str = include_str!("chart/style.css");

/// A chart as a file: carries its own style.
pub fn standalone(svg: &str) -> String {
    let (open, rest) = svg.split_once('>').unwrap_or((svg, ""));
    format!("{open} xmlns=\"http://www.w3.org/2000/svg\"><style>{STYLE}</style>{rest}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_namespace_and_style_in_the_root() {
        let bars =
            Bars { title: "t > u".into(), unit: "ms".into(), series: vec![], groups: vec![] };
        let file = standalone(&bars.svg());
        let (root, rest) = file.split_once('>').expect("a root element");
        assert!(root.starts_with("<svg ") && root.contains("xmlns="), "{root}");
        assert!(rest.starts_with("<style>") && file.ends_with("</svg>\n"));
    }
}
