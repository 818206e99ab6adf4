//! Text in SVG and HTML.

use std::fmt::Write as _;

/// Series beyond these share colours.
const COLOURS: usize = 5;
/// Width of a character, about.
pub(super) const LETTER: f64 = 7.0;

/// Text that is safe in an element and in a quoted attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Neither XML nor a reader knows these.
            control if control.is_control() && !matches!(control, '\n' | '\t') => {
                out.push(char::REPLACEMENT_CHARACTER);
            }
            other => out.push(other),
        }
    }
    out
}

/// A number for people: three digits that matter, thousands apart.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if size.fract() == 0.0 || size >= 100.0 || !size.is_finite() => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 0.1 => 2,
        _ => 3,
    };
    grouped(&format!("{value:.decimals$}"))
}

fn grouped(text: &str) -> String {
    let end = text.find('.').unwrap_or(text.len());
    let start = usize::from(text.starts_with('-'));
    let mut out = text[..start].to_owned();
    for (index, digit) in text[start..end].char_indices() {
        if index > 0 && (end - start - index).is_multiple_of(3) && digit.is_ascii_digit() {
            out.push(',');
        }
        out.push(digit);
    }
    out + &text[end..]
}

/// Class of the `index`th series.
pub(super) fn colour(index: usize) -> String {
    format!("s{}", index % COLOURS)
}

/// Opens a chart; its title is drawn at the top.
pub(super) fn open(title: &str, said: &str, (width, height): (f64, f64)) -> String {
    let (title, said) = (escape(title), escape(said));
    format!(
        "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 {width} {height}\" aria-label=\"{title}. {said}\">\
         <text class=\"title\" x=\"4\" y=\"18\">{title}</text>"
    )
}

/// Names of the series in a row, from `x` on.
pub(super) fn legend<'a>(
    out: &mut String,
    names: impl Iterator<Item = &'a str>,
    mut x: f64,
    y: f64,
) {
    for (index, name) in names.enumerate() {
        let (swatch, text) = (y - 9.0, x + 15.0);
        let (class, shown) = (colour(index), escape(name));
        write!(
            out,
            "<rect class=\"fill {class}\" x=\"{x:.1}\" y=\"{swatch:.1}\" width=\"10\" height=\"10\" rx=\"2\"/>\
             <text class=\"name\" x=\"{text:.1}\" y=\"{y:.1}\">{shown}</text>"
        )
        .expect("a String takes any text");
        x = text + name.chars().count() as f64 * LETTER + 14.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(escape("<a href=\"x\">'&'\u{7}</a>\n"), {
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;\u{fffd}&lt;/a&gt;\n"
        });
        assert_eq!(escape("größe 5 µs"), "größe 5 µs");
    }

    #[test]
    fn numbers_have_three_digits_that_matter() {
        let cases = [
            (0.0, "0"),
            (2.0, "2"),
            (0.0123, "0.012"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (999.6, "1,000"),
            (-1_234_567.0, "-1,234,567"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
    }
}
