//! One JSON object per record, with every field at the top level.
//!
//! Records of the shards name their category as the target; records of the control plane as the field `category`.
//! Both come out as `category`, so that a log store needs to know one form only. Anything else is category `system`.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use gateway_core::time::rfc3339;

const CATEGORIES: [&str; 6] =
    ["connection", "message", "performance", "error", "security", "system"];

/// The format.
#[derive(Clone, Copy, Debug)]
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let mut fields = fields.0;
        let category = match fields.remove("category") {
            Some(category) => category,
            None if CATEGORIES.contains(&metadata.target()) => metadata.target().into(),
            None => "system".into(),
        };
        let unix =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Records of libraries that use the `log` crate carry where they come from in fields of their own.
        let target =
            fields.remove("log.target").and_then(|target| target.as_str().map(str::to_owned));
        fields.retain(|name, _| !name.starts_with("log."));
        let target = target.unwrap_or_else(|| metadata.target().to_owned());
        let mut line = Map::new();
        line.insert("timestamp".to_owned(), String::from_utf8_lossy(&rfc3339(unix)).into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        line.insert("category".to_owned(), category);
        if !CATEGORIES.contains(&&*target) {
            line.insert("target".to_owned(), target.into());
        }
        line.extend(fields);
        writeln!(writer, "{}", Value::Object(line))
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}
