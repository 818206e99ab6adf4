//! Kinds of values: how each is written, its bounds, and how it is shown.
//!
//! [`Kind::parse`] is the only way from text or TOML to a [`Value`]; a `Value` of a key is therefore always inside
//! the bounds of its kind.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use gateway_core::proxies::Network;

/// A value as a source gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raw {
    /// From an environment variable or a flag: its meaning depends on the kind.
    Text(String),
    /// TOML string.
    String(String),
    /// TOML integer, as written without underscores; may be negative.
    Integer(i128),
    /// TOML boolean.
    Bool(bool),
    /// TOML array.
    List(Vec<Raw>),
    /// TOML value of a type that no key has (float, date, table).
    Foreign(&'static str),
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::String(text) => write!(f, "{text:?}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::List(list) => {
                f.write_str("[")?;
                for (index, item) in list.iter().enumerate() {
                    write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Foreign(name) => write!(f, "a {name}"),
        }
    }
}

/// A value inside the bounds of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A number of things.
    Count(u64),
    /// Bytes.
    Size(u64),
    /// Time span.
    Duration(Duration),
    /// Text, path, address or name of a choice.
    Text(String),
    /// Several values of one kind.
    List(Vec<Value>),
}

/// Shown as it would be written in TOML.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Count(value) => write!(f, "{value}"),
            Self::Size(bytes) => write!(f, "\"{}\"", format_size(*bytes)),
            Self::Duration(value) => write!(f, "\"{}\"", format_duration(*value)),
            Self::Text(text) => write!(f, "{}", toml::Value::String(text.clone())),
            Self::List(list) => {
                f.write_str("[")?;
                for (index, item) in list.iter().enumerate() {
                    write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
        }
    }
}

/// Type and bounds of a key.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// Whole number, both bounds included.
    Count(u64, u64),
    /// Power of two, both bounds included.
    PowerOfTwo(u64, u64),
    /// Bytes, both bounds included.
    Size(u64, u64),
    /// Duration between two numbers of milliseconds, both included.
    Duration(u64, u64),
    /// Text of at most so many bytes.
    Text(usize),
    /// Absolute path of a URL: begins with `/`.
    UrlPath,
    /// `http` or `https` URL.
    Url,
    /// `ws` or `wss` URL.
    WebSocketUrl,
    /// Path of a file.
    File,
    /// Text that is never shown.
    Secret,
    /// One of these names.
    Choice(&'static [&'static str]),
    /// `IP:port` to listen on.
    Address,
    /// IP address, or network such as `10.0.0.0/8`.
    Network,
    /// Origin of a browser page, or `*`.
    Origin,
    /// Filter of log events: a level, or directives such as `info,gateway_engine=debug`.
    LogFilter,
    /// So many values (both bounds included) of one kind.
    List(&'static Kind, usize, usize),
}

impl Kind {
    /// Reads `raw`. The error says what is wrong with it; [`Kind::expected`] says what would be right.
    pub fn parse(&self, raw: &Raw) -> Result<Value, String> {
        match (self, raw) {
            (Self::List(kind, min, max), Raw::List(items)) => parse_list(kind, *min, *max, items),
            (Self::List(kind, min, max), Raw::Text(text)) => {
                let items: Vec<Raw> = text
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| Raw::Text(item.to_owned()))
                    .collect();
                parse_list(kind, *min, *max, &items)
            }
            (Self::List(..), _) => Err("is not a list".to_owned()),
            (Self::Bool, Raw::Bool(value)) => Ok(Value::Bool(*value)),
            (Self::Bool, Raw::Text(text)) => parse_bool(text),
            (Self::Bool, _) => Err("is not true or false".to_owned()),
            (Self::Count(min, max) | Self::PowerOfTwo(min, max), _) => {
                let value = bounded(parse_integer(raw)?, *min, *max)?;
                if matches!(self, Self::PowerOfTwo(..)) && !value.is_power_of_two() {
                    return Err("is not a power of two".to_owned());
                }
                Ok(Value::Count(value))
            }
            (Self::Size(min, max), _) => {
                let bytes = match raw {
                    Raw::Text(text) | Raw::String(text) => parse_size(text)?,
                    _ => parse_integer(raw)?,
                };
                bounded(bytes, *min, *max).map(Value::Size)
            }
            (Self::Duration(min, max), Raw::Text(text) | Raw::String(text)) => {
                let value = parse_duration(text)?;
                bounded(i128::from(value.as_millis() as u64), *min, *max)?;
                Ok(Value::Duration(value))
            }
            (Self::Duration(..), Raw::Integer(_)) => Err("has no unit".to_owned()),
            (_, Raw::Text(text) | Raw::String(text)) => {
                self.parse_text(text.trim()).map(Value::Text)
            }
            _ => Err("is not a string".to_owned()),
        }
    }

    fn parse_text(&self, text: &str) -> Result<String, String> {
        if text.is_empty() {
            return Err("is empty".to_owned());
        }
        if text.chars().any(char::is_control) && !matches!(self, Self::Secret) {
            return Err("contains a control character".to_owned());
        }
        match self {
            Self::Text(bytes_max) if text.len() > *bytes_max => {
                Err(format!("is longer than {bytes_max} bytes"))
            }
            Self::UrlPath if !text.starts_with('/') || text.contains(['?', '#', ' ']) => {
                Err("is not the path of a URL".to_owned())
            }
            Self::Url if !is_url(text, ["https://", "http://"]) => {
                Err("is not an http or https URL".to_owned())
            }
            Self::WebSocketUrl if !is_url(text, ["wss://", "ws://"]) => {
                Err("is not a ws or wss URL".to_owned())
            }
            Self::Choice(names) if !names.contains(&text) => {
                Err("is none of the choices".to_owned())
            }
            Self::Address => parse_address(text).map(|address| address.to_string()),
            Self::Network => match text.parse::<Network>() {
                Ok(_) => Ok(text.to_owned()),
                Err(error) => Err(error.to_string()),
            },
            Self::Origin => parse_origin(text),
            Self::LogFilter => match tracing_subscriber::EnvFilter::try_new(text) {
                Ok(_) => Ok(text.to_owned()),
                Err(error) => Err(format!("is no log filter: {error}")),
            },
            _ => Ok(text.to_owned()),
        }
    }

    /// What is accepted, as a phrase: `a duration from 1s to 10m`.
    pub fn expected(&self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Count(min, max) => format!("a whole number from {min} to {max}"),
            Self::PowerOfTwo(min, max) => format!("a power of two from {min} to {max}"),
            Self::Size(min, max) => format!(
                "a size from {} to {} (bytes, or with KiB, MiB, GiB)",
                format_size(*min),
                format_size(*max)
            ),
            Self::Duration(min, max) => format!(
                "a duration from {} to {} (with ms, s, m, h or d)",
                format_duration(Duration::from_millis(*min)),
                format_duration(Duration::from_millis(*max))
            ),
            Self::Text(bytes_max) => format!("text of 1 to {bytes_max} bytes"),
            Self::UrlPath => "a path such as /ws".to_owned(),
            Self::Url => "a URL such as https://example.com/keys.json".to_owned(),
            Self::WebSocketUrl => "a URL such as wss://gateway-1.example.com/ws".to_owned(),
            Self::File => "a path of a file".to_owned(),
            Self::Secret => "a secret".to_owned(),
            Self::Choice(names) => format!("one of {}", names.join(", ")),
            Self::Address => "IP:port, e.g. 0.0.0.0:8080 or [::]:8080".to_owned(),
            Self::Network => "an IP address, or a network such as 10.0.0.0/8".to_owned(),
            Self::Origin => {
                "an origin such as https://app.example.com or https://*.example.com, or *"
                    .to_owned()
            }
            Self::LogFilter => {
                "error, warn, info, debug, trace, or directives such as info,gateway_engine=debug"
                    .to_owned()
            }
            Self::List(kind, min, max) => {
                format!("a list of {min} to {max} values, each {}", kind.expected())
            }
        }
    }

    /// Whether values of this kind are hidden.
    pub fn is_secret(&self) -> bool {
        match self {
            Self::Secret => true,
            Self::List(kind, ..) => kind.is_secret(),
            _ => false,
        }
    }
}

fn parse_list(kind: &Kind, min: usize, max: usize, items: &[Raw]) -> Result<Value, String> {
    if items.len() < min || items.len() > max {
        return Err(format!("has {} values", items.len()));
    }
    let values = items
        .iter()
        .map(|item| kind.parse(item).map_err(|problem| format!("has {item}, which {problem}")))
        .collect::<Result<Vec<_>, _>>()?;
    match values.iter().enumerate().find(|(index, value)| values[..*index].contains(value)) {
        Some((_, twice)) if !matches!(twice, Value::Count(_)) => Err(format!("has {twice} twice")),
        _ => Ok(Value::List(values)),
    }
}

fn parse_bool(text: &str) -> Result<Value, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(Value::Bool(true)),
        "false" | "0" | "no" | "off" => Ok(Value::Bool(false)),
        _ => Err("is not true or false".to_owned()),
    }
}

fn parse_integer(raw: &Raw) -> Result<i128, String> {
    match raw {
        Raw::Integer(value) => Ok(*value),
        Raw::Text(text) => {
            text.trim().replace('_', "").parse().map_err(|_| "is not a whole number".to_owned())
        }
        _ => Err("is not a whole number".to_owned()),
    }
}

fn bounded(value: i128, min: u64, max: u64) -> Result<u64, String> {
    match u64::try_from(value) {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        _ => Err("is out of range".to_owned()),
    }
}

/// Splits `250ms` into 250 and `ms`; a number alone has an empty unit.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'_').count();
    let number = text[..digits].replace('_', "").parse().ok()?;
    Some((number, text[digits..].trim_start()))
}

fn parse_size(text: &str) -> Result<i128, String> {
    let (number, unit) = split_unit(text).ok_or("is not a size")?;
    let factor: i128 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("has a unit other than B, KiB, MiB, GiB".to_owned()),
    };
    Ok(i128::from(number) * factor)
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text).ok_or("is not a duration")?;
    let factor: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err("has no unit".to_owned()),
        _ => return Err("has a unit other than ms, s, m, h, d".to_owned()),
    };
    number
        .checked_mul(factor)
        .map(Duration::from_millis)
        .ok_or_else(|| "is out of range".to_owned())
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let text = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    text.parse().map_err(|_| "is not IP:port".to_owned())
}

/// Origins are compared in lower case and without a trailing slash.
fn parse_origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let origin = text.trim_end_matches('/').to_ascii_lowercase();
    let authority = origin.split_once("://").map(|(scheme, authority)| {
        let named = !scheme.is_empty()
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        if named { authority } else { "" }
    });
    match authority.map(|authority| authority.strip_prefix("*.").unwrap_or(authority)) {
        Some(host) if !host.is_empty() && !host.contains(['/', '*', '?', '#', '@', ' ']) => {
            Ok(origin)
        }
        _ => Err("is not an origin".to_owned()),
    }
}

fn is_url(text: &str, schemes: [&str; 2]) -> bool {
    let rest = schemes.iter().find_map(|scheme| text.strip_prefix(scheme));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(' '))
}

/// Bytes with the largest unit that divides them.
pub fn format_size(bytes: u64) -> String {
    [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
        .into_iter()
        .find(|(factor, _)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .map_or_else(|| format!("{bytes}B"), |(factor, unit)| format!("{}{unit}", bytes / factor))
}

/// Duration with the largest unit that divides it.
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis() as u64;
    if ms == 0 {
        return "0s".to_owned();
    }
    [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")]
        .into_iter()
        .find(|(factor, _)| ms.is_multiple_of(*factor))
        .map_or_else(|| format!("{ms}ms"), |(factor, unit)| format!("{}{unit}", ms / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: &Kind, text: &str) -> Result<String, String> {
        kind.parse(&Raw::Text(text.to_owned())).map(|value| value.to_string())
    }

    fn check(kind: Kind, given: &str, expected: &str) {
        assert_eq!(text(&kind, given).as_deref(), Ok(expected), "{given}");
    }

    fn check_refused(kind: Kind, given: &str) {
        assert!(text(&kind, given).is_err(), "{given} was accepted as {:?}", text(&kind, given));
    }

    #[test]
    fn values_are_read_and_shown() {
        check(Kind::Bool, "YES", "true");
        check(Kind::Bool, "0", "false");
        check(Kind::Count(1, 10_000), "10_000", "10000");
        check(Kind::PowerOfTwo(1, 64), "64", "64");
        check(Kind::Size(0, 1 << 40), "64KiB", "\"64KiB\"");
        check(Kind::Size(0, 1 << 40), "1500", "\"1500B\"");
        check(Kind::Size(0, 1 << 40), "2048 MiB", "\"2GiB\"");
        check(Kind::Duration(0, 1 << 40), "90s", "\"90s\"");
        check(Kind::Duration(0, 1 << 40), "3600s", "\"1h\"");
        check(Kind::Duration(0, 1 << 40), "1500ms", "\"1500ms\"");
        check(Kind::Duration(0, 1 << 40), "0ms", "\"0s\"");
        check(Kind::Choice(&["a", "b"]), "b", "\"b\"");
        check(Kind::Address, "localhost:80", "\"127.0.0.1:80\"");
        check(Kind::Network, "10.0.0.0/8", "\"10.0.0.0/8\"");
        check(Kind::Network, "2001:db8::1", "\"2001:db8::1\"");
        check(Kind::List(&Kind::Address, 1, 4), "[::]:1, 1.2.3.4:5", "[\"[::]:1\", \"1.2.3.4:5\"]");
        check(Kind::List(&Kind::Count(1, 9), 0, 4), "1,1", "[1, 1]");
        check(Kind::Origin, "HTTPS://*.Example.com/", "\"https://*.example.com\"");
        check(Kind::Origin, "capacitor://localhost", "\"capacitor://localhost\"");
        check(Kind::LogFilter, "info,gateway_engine=debug", "\"info,gateway_engine=debug\"");
    }

    #[test]
    fn both_bounds_are_included() {
        check(Kind::Count(2, 3), "2", "2");
        check(Kind::Count(2, 3), "3", "3");
        check_refused(Kind::Count(2, 3), "1");
        check_refused(Kind::Count(2, 3), "4");
        check(Kind::Duration(1_000, 2_000), "2s", "\"2s\"");
        check_refused(Kind::Duration(1_000, 2_000), "2001ms");
        check_refused(Kind::Duration(1_000, 2_000), "999ms");
        check_refused(Kind::Size(10, 20), "9");
        check_refused(Kind::Size(10, 20), "1KiB");
    }

    #[test]
    fn what_is_refused() {
        check_refused(Kind::Bool, "maybe");
        check_refused(Kind::Count(0, 9), "-1");
        check_refused(Kind::Count(0, 9), "1.0");
        check_refused(Kind::Count(0, u64::MAX), "340282366920938463463374607431768211456");
        check_refused(Kind::PowerOfTwo(1, 64), "48");
        check_refused(Kind::Size(0, u64::MAX), "18446744073709551615GiB");
        check_refused(Kind::Size(0, 1 << 40), "1kb");
        check_refused(Kind::Duration(0, u64::MAX), "30");
        check_refused(Kind::Duration(0, u64::MAX), "18446744073709551615d");
        check_refused(Kind::Duration(0, u64::MAX), "s");
        check_refused(Kind::Address, "example.com:80");
        check_refused(Kind::Address, "0.0.0.0");
        check_refused(Kind::Network, "10.0.0.0/33");
        check_refused(Kind::Network, "balancer.example");
        check_refused(Kind::UrlPath, "ws");
        check_refused(Kind::Url, "ftp://x");
        check_refused(Kind::WebSocketUrl, "https://x");
        check_refused(Kind::WebSocketUrl, "wss://");
        check_refused(Kind::Text(3), "four");
        check_refused(Kind::Text(9), "a\nb");
        check_refused(Kind::LogFilter, "info,=,=");
        check_refused(Kind::List(&Kind::Address, 1, 4), "");
        check_refused(Kind::List(&Kind::Address, 1, 1), "1.1.1.1:1,2.2.2.2:2");
        check_refused(Kind::List(&Kind::Text(9), 0, 4), "a,a");
        for origin in
            ["example.com", "https://", "https://*", "https://a/b", "https://a.*.b", "://a", "null"]
        {
            check_refused(Kind::Origin, origin);
        }
    }

    #[test]
    fn types_of_a_file_are_not_converted() {
        assert!(Kind::Bool.parse(&Raw::String("true".to_owned())).is_err());
        assert!(Kind::Count(0, 9).parse(&Raw::String("1".to_owned())).is_err());
        assert!(Kind::Count(0, 9).parse(&Raw::Foreign("float")).is_err());
        assert!(Kind::Text(9).parse(&Raw::Integer(1)).is_err());
        assert!(Kind::Duration(0, 9_000).parse(&Raw::Integer(1)).is_err());
        assert!(Kind::List(&Kind::Text(9), 0, 9).parse(&Raw::String("a".to_owned())).is_err());
        assert_eq!(Kind::Size(0, 9).parse(&Raw::Integer(1)), Ok(Value::Size(1)));
    }
}
