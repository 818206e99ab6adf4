//! `REDIS_URL`, or `REDIS_HOST` with `REDIS_PORT`, `REDIS_USERNAME`, `REDIS_PASSWORD` and `REDIS_DB`.

use std::fmt::Write as _;

use crate::config::layers::{Entry, is_service_link};
use crate::config::provenance::{ConfigError, Origin};
use crate::config::secret::REDACTED;

const KEY: &str = "redis.url";
/// Beside `REDIS_URL`.
const PARTS: [&str; 5] =
    ["REDIS_HOST", "REDIS_PORT", "REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_DB"];

/// Reads them into one entry. An unknown variable of this kind is refused: a misspelt one must not leave a node alone.
pub(super) fn read(
    variables: &[(String, String)],
    entries: &mut Vec<Entry>,
    errors: &mut Vec<ConfigError>,
) {
    let mut own: Vec<(&str, &str)> = variables
        .iter()
        .filter(|(name, value)| name.starts_with("REDIS_") && !value.is_empty())
        .filter(|(name, value)| !is_service_link(name, value))
        .map(|(name, value)| (name.as_str(), value.trim()))
        .collect();
    own.sort_unstable();
    let before = errors.len();
    for (name, _) in own.iter().filter(|(name, _)| *name != "REDIS_URL" && !PARTS.contains(name)) {
        errors
            .push(refused(name, "is not a variable of the gateway").mend(format!("unset {name}")));
    }
    let find = |wanted: &str| own.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
    let parts: Vec<&str> = PARTS.into_iter().filter(|part| find(part).is_some()).collect();
    let (name, url) = match (find("REDIS_URL"), find("REDIS_HOST")) {
        (Some(url), _) if parts.is_empty() => ("REDIS_URL", url.to_owned()),
        (Some(_), _) => {
            let problem = "says where Redis is a second time, beside REDIS_URL";
            errors.push(refused(parts[0], problem).mend(format!("unset {}", parts.join(", "))));
            return;
        }
        (None, Some(host)) => ("REDIS_HOST", compose(host, find, errors)),
        (None, None) => {
            if let Some(part) = parts.first() {
                let problem = "is of no use without REDIS_HOST";
                errors.push(refused(part, problem).mend("set REDIS_HOST or REDIS_URL".to_owned()));
            }
            return;
        }
    };
    if errors.len() == before {
        entries.push(Entry::text(KEY, &url, Origin::Variable(name.to_owned())));
    }
}

fn compose<'a>(
    host: &str,
    find: impl Fn(&str) -> Option<&'a str>,
    errors: &mut Vec<ConfigError>,
) -> String {
    let mut number = |name: &str, default: &str| {
        let text = find(name).unwrap_or(default);
        if text.parse::<u16>().is_err() {
            errors.push(
                refused(name, "is not a number").expected("a whole number up to 65535".to_owned()),
            );
        }
        text.to_owned()
    };
    let (port, database) = (number("REDIS_PORT", "6379"), number("REDIS_DB", "0"));
    let login = find("REDIS_PASSWORD").map_or_else(String::new, |password| {
        format!("{}:{}@", encode(find("REDIS_USERNAME").unwrap_or_default()), encode(password))
    });
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("redis://{login}{host}:{port}/{database}")
}

/// Everything but letters, digits and `-._~` in percent form.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn refused(name: &str, problem: &'static str) -> ConfigError {
    ConfigError::new(name, problem).value(REDACTED.to_owned()).at(Origin::Variable(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::Raw;

    fn check(variables: &[(&str, &str)], expected: Result<Option<&str>, &str>) {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let (mut entries, mut errors) = (Vec::new(), Vec::new());
        read(&variables, &mut entries, &mut errors);
        match expected {
            Ok(url) => {
                assert!(errors.is_empty(), "{errors:?}");
                let found = entries.first().map(|entry| match &entry.raw {
                    Raw::Text(text) => text.as_str(),
                    other => panic!("{other:?}"),
                });
                assert_eq!(found, url);
            }
            Err(name) => {
                assert!(entries.is_empty());
                assert!(errors.iter().any(|error| error.to_string().contains(name)), "{errors:?}");
            }
        }
    }

    #[test]
    fn variables_become_one_url() {
        check(&[], Ok(None));
        check(&[("REDIS_URL", "rediss://r/1")], Ok(Some("rediss://r/1")));
        check(&[("REDIS_HOST", "r")], Ok(Some("redis://r:6379/0")));
        check(
            &[
                ("REDIS_HOST", "::1"),
                ("REDIS_PORT", "7"),
                ("REDIS_DB", "2"),
                ("REDIS_PASSWORD", "a@b/c"),
            ],
            Ok(Some("redis://:a%40b%2Fc@[::1]:7/2")),
        );
        check(
            &[("REDIS_HOST", "r"), ("REDIS_USERNAME", "u"), ("REDIS_PASSWORD", "p")],
            Ok(Some("redis://u:p@r:6379/0")),
        );
        check(&[("REDIS_PORT", "tcp://10.0.0.1:6379"), ("REDIS_SERVICE_HOST", "x")], Ok(None));
        check(&[("REDIS_HOST", "")], Ok(None));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        check(&[("REDIS_HOST", "r"), ("REDIS_PORT", "many")], Err("REDIS_PORT"));
        check(&[("REDIS_URL", "redis://r"), ("REDIS_HOST", "r")], Err("REDIS_HOST"));
        check(&[("REDIS_PASSWORD", "p")], Err("REDIS_PASSWORD"));
        check(&[("REDIS_HOST", "r"), ("REDIS_HOTS", "r")], Err("REDIS_HOTS"));
    }
}
