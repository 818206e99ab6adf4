//! Redis and the database from variables of the environment: a URL (`REDIS_URL`, `DB_URL`), or its parts (`REDIS_HOST`,
//! `DB_HOST` and their like).

use std::fmt::Write as _;

use crate::config::layers::{Entry, is_service_link};
use crate::config::provenance::{ConfigError, Origin};
use crate::config::secret::REDACTED;

/// A service whose address becomes one URL.
struct Service {
    name: &'static str,
    key: &'static str,
    prefix: &'static str,
    url: &'static str,
    host: &'static str,
    /// Beside the URL, the host included.
    parts: &'static [&'static str],
    compose: fn(&str, &Found<'_>, &mut Vec<ConfigError>) -> String,
}

const SERVICES: [Service; 2] = [
    Service {
        name: "Redis",
        key: "redis.url",
        prefix: "REDIS_",
        url: "REDIS_URL",
        host: "REDIS_HOST",
        parts: &["REDIS_HOST", "REDIS_PORT", "REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_DB"],
        compose: redis,
    },
    Service {
        name: "the database",
        key: "database.url",
        prefix: "DB_",
        url: "DB_URL",
        host: "DB_HOST",
        parts: &["DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD", "DB_SSLMODE"],
        compose: database,
    },
];

/// Variables of one service with their values.
struct Found<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Found<'a> {
    fn get(&self, wanted: &str) -> Option<&'a str> {
        self.0.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value)
    }

    fn number(&self, name: &str, default: &str, errors: &mut Vec<ConfigError>) -> String {
        let text = self.get(name).unwrap_or(default);
        if text.parse::<u16>().is_err() {
            errors.push(
                refused(name, "is not a number").expected("a whole number up to 65535".to_owned()),
            );
        }
        text.to_owned()
    }
}

/// Reads each service into one entry. An unknown variable of this kind is refused: a misspelt one must not leave a node
/// alone, or without its data.
pub(super) fn read(
    variables: &[(String, String)],
    entries: &mut Vec<Entry>,
    errors: &mut Vec<ConfigError>,
) {
    for service in &SERVICES {
        read_service(service, variables, entries, errors);
    }
}

fn read_service(
    service: &Service,
    variables: &[(String, String)],
    entries: &mut Vec<Entry>,
    errors: &mut Vec<ConfigError>,
) {
    let mut found: Vec<(&str, &str)> = variables
        .iter()
        .filter(|(name, value)| name.starts_with(service.prefix) && !value.is_empty())
        .filter(|(name, value)| !is_service_link(name, value))
        .map(|(name, value)| (name.as_str(), value.trim()))
        .collect();
    found.sort_unstable();
    let before = errors.len();
    for (name, _) in &found {
        if *name != service.url && !service.parts.contains(name) {
            let error = refused(name, "is not a variable of the gateway");
            errors.push(error.mend(format!("unset {name}")));
        }
    }
    let found = Found(found);
    let parts: Vec<&str> =
        service.parts.iter().copied().filter(|part| found.get(part).is_some()).collect();
    let (name, url) = match (found.get(service.url), found.get(service.host)) {
        (Some(url), _) if parts.is_empty() => (service.url, url.to_owned()),
        (Some(_), _) => {
            let problem =
                format!("says where {} is a second time, beside {}", service.name, service.url);
            errors.push(refused(parts[0], problem).mend(format!("unset {}", parts.join(", "))));
            return;
        }
        (None, Some(host)) => (service.host, (service.compose)(host, &found, errors)),
        (None, None) => {
            if let Some(part) = parts.first() {
                let problem = format!("is of no use without {}", service.host);
                let mend = format!("set {} or {}", service.host, service.url);
                errors.push(refused(part, problem).mend(mend));
            }
            return;
        }
    };
    if errors.len() == before {
        entries.push(Entry::text(service.key, &url, Origin::Variable(name.to_owned())));
    }
}

fn redis(host: &str, found: &Found<'_>, errors: &mut Vec<ConfigError>) -> String {
    let port = found.number("REDIS_PORT", "6379", errors);
    let database = found.number("REDIS_DB", "0", errors);
    let login = login(found.get("REDIS_USERNAME"), found.get("REDIS_PASSWORD"));
    format!("redis://{login}{}:{port}/{database}", bracketed(host))
}

fn database(host: &str, found: &Found<'_>, errors: &mut Vec<ConfigError>) -> String {
    let port = found.number("DB_PORT", "5432", errors);
    let user = found.get("DB_USER").unwrap_or("archmesh");
    let login = match found.get("DB_PASSWORD") {
        Some(password) => login(Some(user), Some(password)),
        None => format!("{}@", encode(user)),
    };
    let name = encode(found.get("DB_NAME").unwrap_or("archmesh"));
    let mode = found.get("DB_SSLMODE").map(|mode| format!("?sslmode={}", encode(mode)));
    format!("postgres://{login}{}:{port}/{name}{}", bracketed(host), mode.unwrap_or_default())
}

fn login(user: Option<&str>, password: Option<&str>) -> String {
    password.map_or_else(String::new, |password| {
        format!("{}:{}@", encode(user.unwrap_or_default()), encode(password))
    })
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
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

fn refused(name: &str, problem: impl Into<String>) -> ConfigError {
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
        check(&[("DB_HOST", "d")], Ok(Some("postgres://archmesh@d:5432/archmesh")));
        check(
            &[
                ("DB_HOST", "d"),
                ("DB_PORT", "7"),
                ("DB_NAME", "n"),
                ("DB_USER", "u"),
                ("DB_PASSWORD", "p/"),
                ("DB_SSLMODE", "verify-full"),
            ],
            Ok(Some("postgres://u:p%2F@d:7/n?sslmode=verify-full")),
        );
        check(&[("DB_URL", "postgres://d/n")], Ok(Some("postgres://d/n")));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        check(&[("REDIS_HOST", "r"), ("REDIS_PORT", "many")], Err("REDIS_PORT"));
        check(&[("REDIS_URL", "redis://r"), ("REDIS_HOST", "r")], Err("REDIS_HOST"));
        check(&[("REDIS_PASSWORD", "p")], Err("REDIS_PASSWORD"));
        check(&[("REDIS_HOST", "r"), ("REDIS_HOTS", "r")], Err("REDIS_HOTS"));
        check(&[("DB_NAME", "n")], Err("DB_NAME"));
        check(&[("DB_URL", "postgres://d"), ("DB_HOST", "d")], Err("DB_HOST"));
    }
}
