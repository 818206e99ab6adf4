//! The template engine, held to what texts of notifications need.
//!
//! No files, no includes, no macros, no functions but `range`, and none of the filters that turn escaping off or
//! make text of whole structures. Every rendering has a budget of work and of bytes.

use std::error::Error as _;
use std::io;
use std::sync::OnceLock;

use minijinja::value::ValueKind;
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value,
};

use super::field::Field;
use super::filters;
use super::finish::{CLOSE, OPEN};

/// Work of one rendering of one text: one per instruction and per 64 bytes that it makes.
const FUEL: u64 = 100_000;
/// Frames inside each other, at most.
const RECURSION_MAX: usize = 100;

/// Filters that texts may use.
pub(crate) const FILTERS: [&str; 26] = [
    "abs",
    "capitalize",
    "count",
    "d",
    "date",
    "default",
    "first",
    "float",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lower",
    "max",
    "min",
    "number",
    "replace",
    "reverse",
    "round",
    "sort",
    "sum",
    "title",
    "trim",
    "truncate_chars",
    "upper",
];

/// Tests that texts may use.
pub(crate) const TESTS: [&str; 15] = [
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "even",
    "false",
    "in",
    "mapping",
    "none",
    "number",
    "odd",
    "sequence",
    "startingwith",
    "string",
    "true",
];

/// Functions that texts may call.
pub(crate) const FUNCTIONS: [&str; 1] = ["range"];

/// What the engine brings along and texts may not use: it turns escaping off, calls others by name, or makes large
/// things of small ones.
const FILTERS_REMOVED: [&str; 24] = [
    "attr",
    "batch",
    "bool",
    "chain",
    "dictsort",
    "e",
    "escape",
    "format",
    "groupby",
    "indent",
    "lines",
    "list",
    "map",
    "pprint",
    "reject",
    "rejectattr",
    "safe",
    "select",
    "selectattr",
    "slice",
    "split",
    "string",
    "unique",
    "zip",
];

/// An engine without texts.
pub(crate) fn environment() -> Environment<'static> {
    static BASE: OnceLock<Environment<'static>> = OnceLock::new();
    BASE.get_or_init(|| {
        let mut base = Environment::new();
        for name in FILTERS_REMOVED {
            base.remove_filter(name);
        }
        for name in ["debug", "dict", "namespace"] {
            base.remove_global(name);
        }
        base.add_filter("number", filters::number);
        base.add_filter("date", filters::date);
        base.add_filter("truncate_chars", filters::truncate_chars);
        // Escaping is done afterwards, by position. It would otherwise be done twice.
        base.set_auto_escape_callback(|_| AutoEscape::None);
        base.set_formatter(format_value);
        base.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        base.set_fuel(Some(FUEL));
        base.set_recursion_limit(RECURSION_MAX);
        // Errors then name what is not defined.
        base.set_debug(true);
        base
    })
    .clone()
}

/// Writes a value between marks. Whoever reads the output can therefore tell values from what the author wrote.
fn format_value(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let wrong = |problem: &'static str| Err(Error::new(ErrorKind::InvalidOperation, problem));
    let number;
    let text = match value.kind() {
        ValueKind::Undefined => return Ok(()),
        ValueKind::Bool if value.is_true() => "true",
        ValueKind::Bool => "false",
        ValueKind::String => value.as_str().unwrap_or_default(),
        ValueKind::Number if value.is_integer() => {
            number = value.to_string();
            &number
        }
        ValueKind::Number => {
            let float = f64::try_from(value.clone())?;
            if !float.is_finite() {
                return wrong("a number is not finite; do not divide by zero");
            }
            number = float.to_string();
            &number
        }
        ValueKind::None => return wrong("a value is null; test it with {% if %} first"),
        _ => return wrong("lists and objects have no text; loop over them or name a member"),
    };
    let mark = |out: &mut Output<'_>, mark: char| out.write_str(mark.encode_utf8(&mut [0; 4]));
    mark(out, OPEN)?;
    for part in text.split([OPEN, CLOSE]) {
        out.write_str(part)?;
    }
    mark(out, CLOSE)?;
    Ok(())
}

/// Why a text could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// More bytes than its field can hold.
    TooLong,
    /// Out of its budget of work.
    TooMuchWork,
    /// Line, and what is wrong.
    Text(usize, String),
}

/// Takes so many bytes and no more.
struct Bounded {
    bytes: Vec<u8>,
    room: usize,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.room {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room -= bytes.len();
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the engine writes for a text, with marks.
pub(crate) fn write(
    environment: &Environment<'static>,
    name: &str,
    field: Field,
    context: &Value,
) -> Result<String, Failure> {
    // Marks and what the finish takes away count here too.
    let room = field.output_bytes_max().saturating_mul(4);
    let mut out = Bounded { bytes: Vec::new(), room, full: false };
    let template = environment.get_template(name).map_err(|error| failure(&error))?;
    match template.render_captured_to(context.clone(), &mut out) {
        Ok(_) => Ok(String::from_utf8_lossy(&out.bytes).into_owned()),
        Err(_) if out.full => Err(Failure::TooLong),
        Err(error) => Err(failure(&error)),
    }
}

fn failure(error: &Error) -> Failure {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if inner.kind() == ErrorKind::OutOfFuel {
            return Failure::TooMuchWork;
        }
        cause = inner.source().and_then(|inner| inner.downcast_ref());
    }
    Failure::Text(error.line().unwrap_or(0), problem(error))
}

/// What the engine says, without the place, which is told in our own words.
pub(crate) fn problem(error: &Error) -> String {
    let mend = match error.kind() {
        ErrorKind::UndefinedError => "; give it, declare a default, or use |default(…) or {% if %}",
        _ => "",
    };
    match error.detail() {
        Some(detail) => format!("{}: {detail}{mend}", error.kind()),
        None => format!("{}{mend}", error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_texts_may_use_is_there_and_nothing_else() {
        let environment = environment();
        let has = |source: &str| {
            let result = environment.render_str(source, minijinja::context! { x => "a" });
            !result.is_err_and(|error| {
                matches!(
                    error.kind(),
                    ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction
                )
            })
        };
        for name in FILTERS {
            assert!(has(&format!("{{{{ x|{name} }}}}")), "{name}");
        }
        for name in TESTS {
            assert!(has(&format!("{{{{ x is {name} }}}}")), "{name}");
        }
        for name in FILTERS_REMOVED.into_iter().chain(["tojson", "urlencode"]) {
            assert!(!FILTERS.contains(&name), "{name}");
            assert!(!has(&format!("{{{{ x|{name} }}}}")), "{name}");
        }
        assert!(has("{{ range(1) }}"));
        for name in ["debug", "dict", "namespace", "lipsum", "cycler"] {
            assert!(!has(&format!("{{{{ {name}() }}}}")), "{name}");
        }
    }
}
