//! From what the template engine wrote to a finished text.
//!
//! The engine puts every value between two marks, so that here it is known what the author wrote and what came from
//! a variable, wherever it stands. Marks are taken out of values before, and a source that contains one is refused:
//! what is between marks is therefore always a whole value, and nothing else is.

use std::collections::BTreeSet;

use unicode_segmentation::UnicodeSegmentation as _;

use super::html::HtmlState;
use super::link::{LinkKind, LinkState, check_url};

/// Begins a value. A code point that no text has: Unicode keeps it for use inside programs.
pub(crate) const OPEN: char = '\u{fdd0}';
/// Ends a value.
pub(crate) const CLOSE: char = '\u{fdd1}';

/// A piece of what the engine wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece<'a> {
    /// By the author.
    Fixed(&'a str),
    /// From a variable.
    Value(&'a str),
}

fn pieces(written: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut parts = written.split(OPEN);
    let first = parts.next().map(Piece::Fixed);
    let rest = parts.flat_map(|part| {
        let (value, fixed) = part.split_once(CLOSE).unwrap_or((part, ""));
        [Piece::Value(value), Piece::Fixed(fixed)]
    });
    first.into_iter().chain(rest)
}

/// Whether a character is dropped from every text: controls, and those that turn the direction of what follows them
/// or cannot be seen. Joiners stay, since letters and emoji need them.
fn is_dropped(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        OPEN | CLOSE | '\u{200b}' | '\u{2060}' | '\u{feff}' | '\u{202a}'..='\u{202e}' => true,
        c => c.is_control() || ('\u{2066}'..='\u{2069}').contains(&c),
    }
}

/// Plain text: lines end with `\n`, other control characters are gone.
pub(crate) fn clean_text(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}'], "\n");
    text.chars().filter(|c| !is_dropped(*c)).collect()
}

/// One line without any control character; what ended a line is gone too.
pub(crate) fn clean_line(text: &str) -> String {
    let ends_line = |c: char| matches!(c, '\n' | '\t' | '\u{2028}' | '\u{2029}');
    text.chars().filter(|c| !is_dropped(*c) && !ends_line(*c)).collect()
}

/// A line for people: where a line ended there is one space.
pub(crate) fn line(written: &str) -> String {
    let spaced = clean_text(written).replace('\t', " ");
    let parts: Vec<&str> = spaced.lines().map(str::trim).filter(|part| !part.is_empty()).collect();
    clean_line(&parts.join(" "))
}

/// Text for people.
pub(crate) fn text(written: &str) -> String {
    clean_text(written).trim().to_owned()
}

/// Where an action leads; `urls` are the values of variables that are declared as URLs.
pub(crate) fn url(written: &str, urls: &BTreeSet<String>) -> Result<String, &'static str> {
    let mut state = LinkState::new(LinkKind::Action);
    let mut out = String::with_capacity(written.len());
    for piece in pieces(written.trim()) {
        match piece {
            Piece::Fixed(fixed) => {
                let fixed = clean_line(fixed);
                state.raw(&fixed)?;
                out.push_str(&fixed);
            }
            Piece::Value(value) => {
                out.push_str(&state.value(&clean_line(value), |value| urls.contains(value))?);
            }
        }
    }
    state.end()?;
    check_url(&out)
}

/// HTML of a mail, every value written as its position needs.
pub(crate) fn html(written: &str) -> Result<String, &'static str> {
    let mut state = HtmlState::default();
    let mut out = String::with_capacity(written.len());
    for piece in pieces(written) {
        match piece {
            Piece::Fixed(fixed) => {
                let fixed = clean_text(fixed);
                state.raw(&fixed)?;
                out.push_str(&fixed);
            }
            Piece::Value(value) => out.push_str(&state.value(&clean_text(value))?),
        }
    }
    state.end()?;
    Ok(out)
}

/// At most `bytes_max` bytes, cut between two characters as people see them, with an ellipsis.
pub(crate) fn cut(text: String, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text;
    }
    let room = bytes_max.saturating_sub('…'.len_utf8());
    let starts = text.grapheme_indices(true).map(|(start, _)| start);
    let end = starts.take_while(|start| *start <= room).last().unwrap_or(0);
    format!("{}…", text[..end].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(value: &str) -> String {
        format!("{OPEN}{value}{CLOSE}")
    }

    #[test]
    fn values_are_told_from_what_the_author_wrote() {
        let written = format!("a{}{}b", mark("1"), mark(""));
        let found: Vec<Piece<'_>> = pieces(&written).collect();
        let expected = [
            Piece::Fixed("a"),
            Piece::Value("1"),
            Piece::Fixed(""),
            Piece::Value(""),
            Piece::Fixed("b"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_line_is_one_line() {
        for (given, expected) in [
            ("Hello\r\nBcc: x@y", "Hello Bcc: x@y"),
            ("a\rb\nc\u{85}d\u{2028}e\u{2029}f\u{b}g\u{c}h", "a b cd e fgh"),
            ("  a \n\n\n b\t", "a b"),
            ("a\u{0}\u{7f}\u{9b}b\u{202e}c\u{2066}\u{200b}", "abc"),
            ("\u{1f468}\u{200d}\u{1f469}", "\u{1f468}\u{200d}\u{1f469}"),
        ] {
            assert_eq!(line(given), expected, "{given:?}");
        }
    }

    #[test]
    fn a_text_keeps_its_lines() {
        assert_eq!(text("a\r\nb\rc\u{2028}d\te\u{1b}[31m\n"), "a\nb\nc\nd\te[31m");
    }

    #[test]
    fn cuts_are_between_characters() {
        assert_eq!(cut("abc".to_owned(), 3), "abc");
        assert_eq!(cut("abcdef".to_owned(), 5), "ab…");
        assert_eq!(cut("ab cdef".to_owned(), 6), "ab…");
        // A family of three people is one character of 18 bytes.
        let family = "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f466}";
        assert_eq!(cut(format!("a{family}{family}"), 25), format!("a{family}…"));
        assert_eq!(cut(format!("a{family}"), 18), "a…");
        assert_eq!(cut("abc".to_owned(), 0), "…");
    }
}
