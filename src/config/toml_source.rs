//! TOML text to entries, each with its line.
//!
//! `[[namespaces]]` and `[[api.keys]]` become flat keys by the `name` of each block, so that layers merge field by
//! field.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::layers::{Entry, is_family};
use crate::config::provenance::{ConfigError, Origin};
use crate::config::value::Raw;

struct Reader<'a> {
    text: &'a str,
    origin: &'a dyn Fn(usize) -> Origin,
    entries: &'a mut Vec<Entry>,
    errors: &'a mut Vec<ConfigError>,
}

/// Appends the entries of `text`; `origin` makes an origin from a line number.
pub fn entries(
    text: &str,
    origin: &dyn Fn(usize) -> Origin,
    entries: &mut Vec<Entry>,
    errors: &mut Vec<ConfigError>,
) {
    let (table, problems) = DeTable::parse_recoverable(text);
    let mut reader = Reader { text, origin, entries, errors };
    for problem in &problems {
        let at = reader.at(problem.span().unwrap_or(0..0));
        reader
            .errors
            .push(ConfigError::new("TOML", format!("is not valid: {}", problem.message())).at(at));
    }
    if problems.is_empty() {
        reader.table("", table.get_ref());
    }
}

impl Reader<'_> {
    fn at(&self, span: Range<usize>) -> Origin {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        (self.origin)(before.matches('\n').count() + 1)
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = match prefix {
                "" => name.get_ref().to_string(),
                _ => format!("{prefix}.{}", name.get_ref()),
            };
            let origin = self.at(name.span());
            match value.get_ref() {
                DeValue::Table(_) if is_family(&key) => self.not_a_list(&key, origin),
                DeValue::Table(table) => self.table(&key, table),
                DeValue::Array(items) if is_family(&key) => {
                    let mut names = BTreeSet::new();
                    for item in items {
                        self.block(&key, item, &mut names);
                    }
                }
                _ if is_family(&key) => self.not_a_list(&key, origin),
                value => self.entries.push(Entry { key, raw: raw(value), origin }),
            }
        }
    }

    fn not_a_list(&mut self, key: &str, origin: Origin) {
        self.errors.push(
            ConfigError::new(key, "is not a list of blocks")
                .at(origin)
                .mend(format!("write [[{key}]] with a name for each")),
        );
    }

    fn block(&mut self, family: &str, item: &Spanned<DeValue<'_>>, names: &mut BTreeSet<String>) {
        let origin = self.at(item.span());
        let DeValue::Table(table) = item.get_ref() else {
            return self.not_a_list(family, origin);
        };
        let name = match table.get("name").map(Spanned::get_ref) {
            Some(DeValue::String(name)) if is_entry_name(name) => name.to_string(),
            Some(other) => {
                self.errors.push(
                    ConfigError::new(format!("{family}.name"), "is not a name")
                        .value(raw(other).to_string())
                        .at(origin)
                        .expected(ENTRY_NAME.to_owned()),
                );
                return;
            }
            None => {
                self.errors.push(
                    ConfigError::new(format!("{family}.name"), "is missing")
                        .at(origin)
                        .mend("give the block a name"),
                );
                return;
            }
        };
        if !names.insert(name.clone()) {
            self.errors.push(
                ConfigError::new(format!("{family}.{name}"), "stands twice in one file")
                    .at(origin)
                    .mend("join the two blocks"),
            );
            return;
        }
        let prefix = format!("{family}.{name}");
        // The bare name makes the entry exist even when the block sets nothing else.
        self.entries.push(Entry { key: prefix.clone(), raw: BLOCK, origin });
        for (field, value) in table {
            if field.get_ref() != "name" {
                let key = format!("{prefix}.{}", field.get_ref());
                let origin = self.at(field.span());
                self.entries.push(Entry { key, raw: raw(value.get_ref()), origin });
            }
        }
    }
}

/// Value of the bare key of a block: says that the entry exists.
pub const BLOCK: Raw = Raw::Foreign("block");

/// What a name of an entry is.
pub const ENTRY_NAME: &str = "1 to 64 letters, digits, - or _";

/// Whether `name` may name a namespace or an API key.
pub fn is_entry_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::String(text.to_string()),
        DeValue::Integer(integer) => {
            let digits = integer.as_str().replace('_', "");
            i128::from_str_radix(&digits, integer.radix())
                .map_or(Raw::Foreign("number out of range"), Raw::Integer)
        }
        DeValue::Boolean(value) => Raw::Bool(*value),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Float(_) => Raw::Foreign("float"),
        DeValue::Datetime(_) => Raw::Foreign("date"),
        DeValue::Table(_) => Raw::Foreign("table"),
    }
}
