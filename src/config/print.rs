//! Effective values with their origins, secrets hidden: what `archmesh config print` shows.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use crate::config::Loaded;
use crate::config::key::Resolved;
use crate::config::secret::REDACTED;
use crate::config::sections;
use crate::config::value::{Value, format_duration, format_size};

/// Form of the listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Key, value and origin in columns.
    Table,
    /// A file that gives the same values, each with its origin as a comment.
    Toml,
    /// An object from key to value and origin.
    Json,
}

impl Loaded {
    /// All keys with their effective values; unset keys are left out.
    pub fn print(&self, format: Format) -> String {
        match format {
            Format::Table => self.table(),
            Format::Toml => self.toml(),
            Format::Json => self.json(),
        }
    }

    /// Key, value in TOML form and origin, in documented order.
    pub fn rows(&self) -> Vec<(&str, String, String)> {
        self.ordered()
            .into_iter()
            .map(|(key, resolved)| (key, shown(key, &resolved.value), resolved.origin.to_string()))
            .collect()
    }

    fn ordered(&self) -> Vec<(&str, &Resolved)> {
        let values = &self.config.values;
        let mut rows = Vec::new();
        for section in sections::ALL {
            let prefixes: Vec<String> = match section.name.strip_suffix(".*") {
                Some(family) => {
                    values.names(family).iter().map(|name| format!("{family}.{name}")).collect()
                }
                None => vec![section.name.to_owned()],
            };
            for prefix in prefixes {
                for key in section.keys {
                    let path = format!("{prefix}.{}", key.field);
                    rows.extend(
                        values.0.get_key_value(&path).map(|(key, value)| (key.as_str(), value)),
                    );
                }
            }
        }
        rows
    }

    fn table(&self) -> String {
        let rows = self.rows();
        let widths = rows.iter().fold((0, 0), |widths, (key, value, _)| {
            (widths.0.max(key.len()), widths.1.max(value.chars().count().min(VALUE_CHARS)))
        });
        rows.iter().fold(String::new(), |mut text, (key, value, origin)| {
            let _ = writeln!(text, "{key:0$}  {value:1$}  {origin}", widths.0, widths.1);
            text
        })
    }

    fn toml(&self) -> String {
        let mut text = String::new();
        let mut open = String::new();
        for (key, value, origin) in self.rows() {
            let (prefix, field) = key.rsplit_once('.').unwrap_or(("", key));
            if prefix != open {
                let gap = if open.is_empty() { "" } else { "\n" };
                let _ = match sections::split_family(key) {
                    Some((family, name, _)) => {
                        writeln!(text, "{gap}[[{family}]]\nname = \"{name}\"")
                    }
                    None => writeln!(text, "{gap}[{prefix}]"),
                };
                prefix.clone_into(&mut open);
            }
            let _ = writeln!(text, "{field} = {value}  # {origin}");
        }
        text
    }

    fn json(&self) -> String {
        let rows: Map<String, Json> = self
            .ordered()
            .into_iter()
            .map(|(key, resolved)| {
                let value = if is_secret(key) { json!(REDACTED) } else { to_json(&resolved.value) };
                (key.to_owned(), json!({ "value": value, "origin": resolved.origin.to_string() }))
            })
            .collect();
        format!("{:#}\n", Json::Object(rows))
    }
}

/// Values longer than this do not widen the column of all others.
const VALUE_CHARS: usize = 40;

fn is_secret(key: &str) -> bool {
    sections::key(key).is_none_or(|key| key.kind.is_secret())
}

fn shown(key: &str, value: &Value) -> String {
    match value {
        _ if !is_secret(key) => value.to_string(),
        Value::List(list) if list.is_empty() => value.to_string(),
        // How many there are is not told either.
        Value::List(_) => format!("[\"{REDACTED}\"]"),
        _ => format!("\"{REDACTED}\""),
    }
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::Bool(value) => json!(value),
        Value::Count(value) => json!(value),
        Value::Size(bytes) => json!(format_size(*bytes)),
        Value::Duration(duration) => json!(format_duration(*duration)),
        Value::Text(text) => json!(text),
        Value::List(list) => Json::Array(list.iter().map(to_json).collect()),
    }
}
