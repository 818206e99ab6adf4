//! Filters for people: numbers, dates, shorter texts. What a filter makes is bounded, and none reads anything.

use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};
use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use unicode_segmentation::UnicodeSegmentation as _;

/// Digits after the decimal point, at most.
const DECIMALS_MAX: usize = 10;
/// Bytes of the format of a date, at most.
const FORMAT_BYTES_MAX: usize = 64;
/// What a date's format may name.
const DIRECTIVES: &str = "YymdejHIklMSpPaAbBhZzFTDRuU%";
const FORMAT: &str = "%Y-%m-%d %H:%M";

fn wrong(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

/// A positional argument, or the one of that name.
fn argument<T>(given: Option<T>, kwargs: &Kwargs, name: &str) -> Result<Option<T>, Error>
where
    Option<T>: for<'a> minijinja::value::ArgType<'a, Output = Option<T>>,
{
    match given {
        Some(value) => Ok(Some(value)),
        None => kwargs.get::<Option<T>>(name),
    }
}

/// `{{ 1234567.891|number(2) }}` is `1,234,567.89`; `thousands` and `point` change the signs.
#[allow(clippy::needless_pass_by_value, reason = "the engine hands arguments over by value")]
pub(crate) fn number(
    value: &Value,
    decimals: Option<usize>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let decimals = argument(decimals, &kwargs, "decimals")?;
    let thousands = argument::<String>(None, &kwargs, "thousands")?.unwrap_or(",".to_owned());
    let point = argument::<String>(None, &kwargs, "point")?.unwrap_or(".".to_owned());
    kwargs.assert_all_used()?;
    if decimals.is_some_and(|decimals| decimals > DECIMALS_MAX) {
        return Err(wrong(format!("number has at most {DECIMALS_MAX} decimals")));
    }
    if thousands.chars().count() > 1 || point.chars().count() != 1 {
        return Err(wrong("number takes one character for point, and one or none for thousands"));
    }
    let plain = match (value.is_number(), value.is_integer(), decimals) {
        (false, ..) => return Err(wrong("number takes a number")),
        (_, true, None | Some(0)) => value.to_string(),
        (.., decimals) => {
            let float = f64::try_from(value.clone())?;
            if !float.is_finite() {
                return Err(wrong("number takes a finite number"));
            }
            decimals.map_or_else(|| float.to_string(), |decimals| format!("{float:.decimals$}"))
        }
    };
    Ok(group(&plain, &thousands, &point))
}

fn group(plain: &str, thousands: &str, point: &str) -> String {
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut out = String::with_capacity(plain.len() * 2);
    // What was rounded to nothing has no sign.
    if digits.bytes().any(|b| (b'1'..=b'9').contains(&b)) {
        out.push_str(sign);
    }
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push_str(thousands);
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push_str(point);
        out.push_str(fraction);
    }
    out
}

/// `{{ at|date("%d.%m.%Y %H:%M", "Europe/Berlin") }}` of an RFC 3339 string or Unix milliseconds; UTC without a time
/// zone.
#[allow(clippy::needless_pass_by_value, reason = "the engine hands arguments over by value")]
pub(crate) fn date(
    value: &Value,
    format: Option<String>,
    tz: Option<String>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let format = argument(format, &kwargs, "format")?;
    let tz = argument(tz, &kwargs, "tz")?;
    kwargs.assert_all_used()?;
    let instant = match (value.as_str(), value.as_i64()) {
        (Some(text), _) => text.parse::<Timestamp>().ok(),
        (None, Some(ms)) if !matches!(value.kind(), minijinja::value::ValueKind::Bool) => {
            Timestamp::from_millisecond(ms).ok()
        }
        _ => None,
    };
    let instant = instant.ok_or_else(|| {
        wrong("date takes Unix milliseconds or an RFC 3339 string such as 2026-01-31T12:00:00Z")
    })?;
    let zone = match tz {
        None => TimeZone::UTC,
        Some(name) => TimeZone::get(&name)
            .map_err(|_| wrong("date takes the name of a time zone such as Europe/Berlin"))?,
    };
    let format = format.as_deref().unwrap_or(FORMAT);
    check_format(format)?;
    let at: ZonedDateTime = instant.to_zoned_datetime(zone);
    strtime::format(format, &at).map_err(|error| wrong(format!("date: {error}")))
}

/// Only plain directives, since widths make a date as long as one likes.
fn check_format(format: &str) -> Result<(), Error> {
    let mut chars = format.chars();
    let mut known = format.len() <= FORMAT_BYTES_MAX;
    while let Some(c) = chars.next() {
        if c == '%' {
            let directive = match chars.next() {
                Some('-') => chars.next(),
                directive => directive,
            };
            known &= directive.is_some_and(|directive| DIRECTIVES.contains(directive));
        }
    }
    if known {
        return Ok(());
    }
    Err(wrong(format!(
        "date takes a format of at most {FORMAT_BYTES_MAX} bytes with % or %- and one of {DIRECTIVES}"
    )))
}

/// `{{ text|truncate_chars(20) }}`: at most so many characters as people see them, the last one an ellipsis when
/// something was cut.
pub(crate) fn truncate_chars(value: &str, count: usize) -> Result<String, Error> {
    let mut ends = value.grapheme_indices(true).map(|(start, grapheme)| start + grapheme.len());
    let Some(last) = count.checked_sub(1) else {
        return Err(wrong("truncate_chars takes a number from 1"));
    };
    let kept = if last == 0 { Some(0) } else { ends.nth(last - 1) };
    match kept {
        // One more fits; more than one does not.
        Some(end) if value[end..].graphemes(true).nth(1).is_some() => {
            Ok(format!("{}…", value[..end].trim_end()))
        }
        _ => Ok(value.to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use minijinja::{Environment, context};

    use super::*;

    fn eval(expression: &str, x: impl Into<Value>) -> Result<String, String> {
        let mut environment = Environment::new();
        environment.add_filter("number", number);
        environment.add_filter("date", date);
        environment.add_filter("truncate_chars", truncate_chars);
        let expression = environment.compile_expression(expression).unwrap();
        let x: Value = x.into();
        expression.eval(context! { x }).map(|v| v.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn numbers() {
        for (expression, x, expected) in [
            ("x|number", Value::from(1_234_567), "1,234,567"),
            ("x|number", Value::from(-999), "-999"),
            ("x|number", Value::from(1234.5), "1,234.5"),
            ("x|number(2)", Value::from(1234.567), "1,234.57"),
            ("x|number(2)", Value::from(5), "5.00"),
            ("x|number(0)", Value::from(-0.2), "0"),
            ("x|number(1, thousands='.', point=',')", Value::from(-1_000_000.25), "-1.000.000,2"),
            ("x|number(decimals=1, thousands='')", Value::from(1000), "1000.0"),
            ("x|number", Value::from(u64::MAX), "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(eval(expression, x).as_deref(), Ok(expected), "{expression}");
        }
        for expression in [
            "'a'|number",
            "x|number(11)",
            "x|number(thousands='ab')",
            "x|number(foo=1)",
            "true|number",
        ] {
            assert!(eval(expression, 1.5).is_err(), "{expression}");
        }
    }

    #[test]
    fn dates() {
        let ms = 1_769_860_800_000_i64;
        for (expression, expected) in [
            ("x|date", "2026-01-31 12:00"),
            ("x|date('%d.%m.%Y %H:%M', 'Europe/Berlin')", "31.01.2026 13:00"),
            ("x|date(tz='America/New_York', format='%-I:%M %p %Z')", "7:00 AM EST"),
            ("x|date('%A, %B %-d')", "Saturday, January 31"),
            ("'2026-01-31T12:00:00+02:00'|date('%F %T')", "2026-01-31 10:00:00"),
            ("x|date('100%%')", "100%"),
        ] {
            assert_eq!(eval(expression, ms).as_deref(), Ok(expected), "{expression}");
        }
        for expression in [
            "'yesterday'|date",
            "true|date",
            "[]|date",
            "x|date('%999Y')",
            "x|date('%_9Y')",
            "x|date('%')",
            "x|date('%Q')",
            "x|date('%Y', 'Mars/Olympus')",
            "x|date('%Y', '../../etc/passwd')",
            "x|date('                                                                 ')",
            "9223372036854775807|date",
        ] {
            assert!(eval(expression, ms).is_err(), "{expression}");
        }
    }

    #[test]
    fn shorter_texts() {
        let family = "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f466}";
        for (text, count, expected) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("ab cd", 4, "ab…"),
            ("abcd", 1, "…"),
            ("a", 1, "a"),
            ("", 1, ""),
            ("e\u{301}e\u{301}e\u{301}", 2, "e\u{301}…"),
        ] {
            assert_eq!(truncate_chars(text, count).unwrap(), expected, "{text} {count}");
        }
        let families = family.repeat(3);
        assert_eq!(truncate_chars(&families, 3).unwrap(), families);
        assert_eq!(truncate_chars(&families, 2).unwrap(), format!("{family}…"));
        assert!(truncate_chars("a", 0).is_err());
    }
}
