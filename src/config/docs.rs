//! `docs/configuration.md`, made from the tables of the code.

use std::fmt::Write as _;

use crate::config::key::{Key, Reload, Section};
use crate::config::layers::{FLAT_VARIABLES, variable_of_key};
use crate::config::load;
use crate::config::sections;
use crate::config::tiers::{ENVIRONMENTS, SIZES};
use crate::config::value::Value;

const INTRODUCTION: &str = "\
# Configuration

<!-- Made by `archmesh config docs`; a test compares it with the code. Do not edit. -->

A value is looked for in these layers; the last one that has it wins:

1. the built-in defaults (`config/gateway.toml`)
2. the size tier (`node.size`)
3. the environment (`node.environment`)
4. the files of `ARCHMESH_CONFIG` (separated by `:`), then those of `--config`, in order
5. the product's flat variables, such as `JWT_SECRET`
6. `ARCHMESH__SECTION__KEY` variables: `ARCHMESH__LIMITS__AUTH_TIMEOUT=5s` sets `limits.auth_timeout`
7. flags: `--set limits.auth_timeout=5s`, and `--environment`, `--size`, `--listen`, `--shards`

`archmesh config print` shows every effective value with the layer it came from, and `archmesh config check` every error.
Unknown keys, wrong types, values out of range and combinations that cannot work are refused, all at once.

Durations are written with a unit (`250ms`, `30s`, `5m`, `1h`, `7d`), sizes as bytes or with `KiB`, `MiB`, `GiB`. In
variables and flags, lists are separated by commas, and an empty value unsets a key that may be unset. In the tables, *live* keys change
at SIGHUP, *restart* keys at the next start; a reload with an error is refused and the running configuration stays.
";

/// The whole document.
pub fn document() -> String {
    let mut text = String::from(INTRODUCTION);
    variables(&mut text);
    sizes(&mut text);
    environments(&mut text);
    for section in sections::ALL {
        describe(&mut text, section);
    }
    text
}

fn variables(text: &mut String) {
    text.push_str(
        "\n## Flat variables\n\nEmpty ones count as not set.\n\n| variable | key |\n|---|---|\n",
    );
    for (variable, key) in FLAT_VARIABLES {
        let _ = writeln!(text, "| `{variable}` | `{key}` |");
    }
    text.push_str("| `HOST`, `PORT` | `listen.public`: one address; what is not given is taken from the layers below |\n");
    text.push_str("| `REDIS_URL`, or `REDIS_HOST` with `REDIS_PORT`, `REDIS_USERNAME`, `REDIS_PASSWORD`, `REDIS_DB` | `redis.url` |\n");
    text.push_str("| `DB_URL`, or `DB_HOST` with `DB_PORT`, `DB_NAME`, `DB_USER`, `DB_PASSWORD`, `DB_SSLMODE` | `database.url` |\n");
    text.push_str("| `ARCHMESH_CONFIG` | files, separated by `:` |\n");
    text.push_str(
        "\nOther `REDIS_*` and `DB_*` are refused: ignoring a misspelt name would hide it.\n\
         What Kubernetes injects for services of those names (`REDIS_SERVICE_HOST`, `REDIS_PORT=tcp://...`) is ignored.\n",
    );
}

fn sizes(text: &mut String) {
    text.push_str("\n## Defaults by size\n\n| key | small | medium | large | enterprise |\n|---|---|---|---|---|\n");
    for tier in SIZES {
        let _ = writeln!(text, "| `{}` | {} |", tier.key, tier.values.join(" | "));
    }
}

fn environments(text: &mut String) {
    text.push_str(
        "\n## Defaults by environment\n\nWhere both tables name a key, the environment wins; a dash leaves the default.\n\
         Development has a built-in token secret and API key as long as no other is configured; with them it listens on loopback only.\n\n\
         | key | development | staging | production |\n|---|---|---|---|\n",
    );
    for profile in ENVIRONMENTS {
        let cells = profile.values.map(|value| value.unwrap_or("-"));
        let _ = writeln!(text, "| `{}` | {} |", profile.key, cells.join(" | "));
    }
}

fn describe(text: &mut String, section: &Section) {
    let title = match section.name.strip_suffix(".*") {
        Some(family) => format!("[[{family}]]"),
        None => format!("[{}]", section.name),
    };
    let _ = write!(text, "\n## `{title}`\n\n{}\n\n", prose(section.doc));
    text.push_str("| key | accepted | default | change | meaning |\n|---|---|---|---|---|\n");
    for key in section.keys {
        let change = match key.reload {
            Reload::Live => "live",
            Reload::Restart => "restart",
        };
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {change} | {} |",
            key.field,
            key.kind.expected(),
            default(key),
            prose(key.doc)
        );
    }
    if let Some(key) = section.keys.first() {
        let variable = variable_of_key(&key.path.replace('*', "NAME"));
        let _ = writeln!(text, "\nAs a variable: `{variable}`.");
    }
}

fn default(key: &Key) -> String {
    if SIZES.iter().any(|tier| tier.key == key.path) {
        return "by size".to_owned();
    }
    let value = load::defaults().0.get(key.path).map(|resolved| resolved.value.to_string());
    let value = match value {
        Some(value) => format!("`{value}`"),
        None if key.path == "node.name" => "the host name".to_owned(),
        None if key.path.starts_with("namespaces.") => namespace_default(key.field),
        None if key.path.starts_with("webhooks.") => {
            of_entry(sections::EventWebhookSection::defaults(), key.field)
        }
        None => "unset".to_owned(),
    };
    if ENVIRONMENTS.iter().any(|profile| profile.key == key.path) {
        return format!("{value}, by environment");
    }
    value
}

fn namespace_default(field: &str) -> String {
    let closed = gateway_core::settings::Namespace::closed("");
    of_entry(sections::NamespaceSection::values_of(&closed), field)
}

fn of_entry(values: Vec<(&'static str, Value)>, field: &str) -> String {
    values
        .into_iter()
        .find(|(name, _)| *name == field)
        .map_or_else(|| "unset".to_owned(), |(_, value)| format!("`{value}`"))
}

/// Lines of a doc comment as one line of text for a table cell.
fn prose(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
