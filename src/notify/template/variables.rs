//! Variables of a rendering: whether they are what the template declares, and their form for the engine.
//!
//! Everything is counted against one budget, so that no set of variables makes a rendering large by itself. `null`
//! counts as not given, at the top and inside objects. A list or object that is not given is empty, so that a loop
//! over it does nothing and its members can have defaults.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::document::{Declaration, VariableType};
use super::error::RenderError;
use super::link::{URL_BYTES_MAX, check_url};

/// Characters of a string without `max_length`; also the largest `max_length`.
pub(crate) const STRING_CHARS_MAX: usize = 10_000;
/// Items of a list without `max_length`; also the largest `max_length`.
pub(crate) const LIST_ITEMS_MAX: usize = 1_000;
/// Values inside each other, at most.
const DEPTH_MAX: usize = 8;
/// Values altogether, at most.
const VALUES_MAX: usize = 10_000;
/// Bytes of all strings and names together, at most.
const BYTES_MAX: usize = 256 << 10;

/// Variables as texts see them.
#[derive(Debug)]
pub(crate) struct Context {
    /// For the engine.
    pub value: Value,
    /// Names of those that have a value.
    pub names: BTreeSet<String>,
    /// Values of those that are declared as URLs.
    pub urls: BTreeSet<String>,
}

/// What may still be taken in.
struct Budget {
    values: usize,
    bytes: usize,
}

impl Budget {
    fn new() -> Self {
        Self { values: VALUES_MAX, bytes: BYTES_MAX }
    }

    fn take(&mut self, bytes: usize) -> Result<(), String> {
        match (self.values.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(values), Some(bytes)) => {
                (self.values, self.bytes) = (values, bytes);
                Ok(())
            }
            _ => Err(format!(
                "makes the variables too large: together at most {VALUES_MAX} values and {BYTES_MAX} bytes of text"
            )),
        }
    }
}

/// Checks what was given against what is declared.
pub(crate) fn context(
    declared: &BTreeMap<String, Declaration>,
    given: &Map<String, Json>,
) -> Result<Context, RenderError> {
    let unknown = given.keys().filter(|name| !declared.contains_key(*name));
    let mut names: Vec<String> = unknown.cloned().collect();
    if !names.is_empty() {
        names.sort_unstable();
        return Err(RenderError::UnknownVariables {
            names,
            declared: declared.keys().cloned().collect(),
        });
    }
    let is_given = |name: &str| given.get(name).is_some_and(|value| !value.is_null());
    let missing = declared.iter().filter(|(name, declaration)| {
        declaration.required && declaration.default.is_none() && !is_given(name)
    });
    let missing: Vec<String> = missing.map(|(name, _)| name.clone()).collect();
    if !missing.is_empty() {
        return Err(RenderError::MissingVariables(missing));
    }
    let mut budget = Budget::new();
    let mut pairs = Vec::with_capacity(declared.len());
    let mut urls = BTreeSet::new();
    for (name, declaration) in declared {
        let value = given.get(name).filter(|value| !value.is_null());
        let Some(value) = value.or(declaration.default.as_ref()) else {
            pairs.extend(empty(declaration.kind).map(|value| (name.clone(), value)));
            continue;
        };
        let value = convert(declaration, value, &mut budget)
            .map_err(|problem| RenderError::Variable { name: name.clone(), problem })?;
        if let (VariableType::Url, Some(url)) = (declaration.kind, value.as_str()) {
            urls.insert(url.to_owned());
        }
        pairs.push((name.clone(), value));
    }
    let names = pairs.iter().map(|(name, _)| name.clone()).collect();
    Ok(Context { value: Value::from_pairs(pairs), names, urls })
}

fn empty(kind: VariableType) -> Option<Value> {
    match kind {
        VariableType::List => Some(Value::from(Vec::<Value>::new())),
        VariableType::Object => Some(Value::from_pairs(std::iter::empty::<(&str, Value)>())),
        _ => None,
    }
}

/// Checks one value against its declaration; the error says what is wrong and what would be right.
pub(crate) fn check(declaration: &Declaration, value: &Json) -> Result<(), String> {
    convert(declaration, value, &mut Budget::new()).map(drop)
}

fn convert(declaration: &Declaration, value: &Json, budget: &mut Budget) -> Result<Value, String> {
    let max = |default: usize| declaration.max_length.unwrap_or(default);
    match (declaration.kind, value) {
        (VariableType::String, Json::String(text)) => {
            within(text.chars().count(), max(STRING_CHARS_MAX), "characters")?;
        }
        (VariableType::Url, Json::String(text)) => {
            within(text.chars().count(), max(URL_BYTES_MAX), "characters")?;
            budget.take(text.len())?;
            return check_url(text).map(Value::from).map_err(|problem| {
                format!("{problem}; give a URL such as https://example.com/x or a path such as /x")
            });
        }
        (VariableType::List, Json::Array(items)) => {
            within(items.len(), max(LIST_ITEMS_MAX), "items")?;
        }
        (VariableType::Number, Json::Number(_))
        | (VariableType::Boolean, Json::Bool(_))
        | (VariableType::Object, Json::Object(_)) => {}
        (kind, other) => {
            return Err(format!("is {}; give {}", phrase(other), kind.phrase()));
        }
    }
    to_value(value, 0, budget)
}

fn within(length: usize, max: usize, unit: &str) -> Result<(), String> {
    if length > max {
        return Err(format!("has {length} {unit}; give at most {max}"));
    }
    Ok(())
}

fn to_value(value: &Json, depth: usize, budget: &mut Budget) -> Result<Value, String> {
    if depth > DEPTH_MAX {
        return Err(format!("is nested too deeply; give at most {DEPTH_MAX} levels"));
    }
    Ok(match value {
        Json::Null => {
            budget.take(0)?;
            Value::from(())
        }
        Json::Bool(value) => {
            budget.take(0)?;
            Value::from(*value)
        }
        Json::Number(number) => {
            budget.take(0)?;
            match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(number), ..) => Value::from(number),
                (_, Some(number), _) => Value::from(number),
                (.., Some(number)) if number.is_finite() => Value::from(number),
                _ => return Err("is a number that is too large".to_owned()),
            }
        }
        Json::String(text) => {
            budget.take(text.len())?;
            Value::from(text.as_str())
        }
        Json::Array(items) => {
            budget.take(0)?;
            let items = items.iter().map(|item| to_value(item, depth + 1, budget));
            Value::from(items.collect::<Result<Vec<Value>, _>>()?)
        }
        Json::Object(map) => {
            budget.take(0)?;
            let mut pairs = Vec::with_capacity(map.len());
            for (name, member) in map.iter().filter(|(_, member)| !member.is_null()) {
                budget.take(name.len())?;
                pairs.push((name.as_str(), to_value(member, depth + 1, budget)?));
            }
            Value::from_pairs(pairs)
        }
    })
}

fn phrase(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
mod tests {
    use serde_json::json;

    use super::*;

    fn declared(json: Json) -> BTreeMap<String, Declaration> {
        serde_json::from_value(json).unwrap()
    }

    fn given(json: &Json) -> Map<String, Json> {
        json.as_object().unwrap().clone()
    }

    fn problem(declaration: Json, value: Json) -> Option<String> {
        let declared = declared(json!({ "x": declaration }));
        let error = context(&declared, &given(&json!({ "x": value }))).err()?;
        let text = error.to_string();
        assert!(text.starts_with("variable x "), "{text}");
        Some(text)
    }

    #[test]
    fn types_and_lengths() {
        for (kind, good, bad) in [
            ("string", json!("a"), json!(1)),
            ("number", json!(1.5), json!("1")),
            ("boolean", json!(false), json!(0)),
            ("url", json!("https://a.example"), json!("javascript:x")),
            ("list", json!([1]), json!({})),
            ("object", json!({"a": 1}), json!([])),
        ] {
            assert_eq!(problem(json!({"type": kind}), good), None, "{kind}");
            assert!(problem(json!({"type": kind}), bad).is_some(), "{kind}");
        }
        let short = json!({"type": "string", "max_length": 3});
        assert_eq!(problem(short.clone(), json!("äöü")), None, "characters, not bytes");
        let text = problem(short, json!("abcd")).unwrap();
        assert!(text.ends_with("has 4 characters; give at most 3"), "{text}");
        let few = json!({"type": "list", "max_length": 1});
        assert!(problem(few, json!([1, 2])).unwrap().ends_with("has 2 items; give at most 1"));
        let long = "a".repeat(STRING_CHARS_MAX + 1);
        assert!(problem(json!({"type": "string"}), json!(long)).is_some());
    }

    #[test]
    fn unknown_and_missing_are_listed() {
        let declared = declared(json!({
            "a": {"type": "string", "required": true},
            "b": {"type": "string", "required": true},
            "c": {"type": "string", "required": true, "default": "c"},
            "d": {"type": "string"},
        }));
        let error = context(&declared, &given(&json!({"z": 1, "y": 2}))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "variables are unknown: y, z; the template declares: a, b, c, d"
        );
        let error = context(&declared, &given(&json!({"b": null}))).unwrap_err();
        assert_eq!(error, RenderError::MissingVariables(vec!["a".to_owned(), "b".to_owned()]));
        let context = context(&declared, &given(&json!({"a": "1", "b": "2", "d": null}))).unwrap();
        assert_eq!(context.names.into_iter().collect::<String>(), "abc");
    }

    #[test]
    fn all_together_are_bounded() {
        let object = json!({"type": "object"});
        let deep = (0..DEPTH_MAX).fold(json!(1), |inner, _| json!({ "a": inner }));
        assert_eq!(problem(object.clone(), deep.clone()), None);
        let text = problem(object.clone(), json!({ "a": deep })).unwrap();
        assert!(text.contains("nested too deeply"), "{text}");
        let many: Map<String, Json> = (0..VALUES_MAX).map(|n| (n.to_string(), json!(1))).collect();
        assert!(problem(object.clone(), json!(many)).unwrap().contains("too large"));
        let text = "a".repeat(BYTES_MAX / 2);
        let large = json!({ "a": text.clone(), "b": text });
        assert!(problem(object, large).unwrap().contains("too large"));
    }

    #[test]
    fn urls_are_given_as_they_are_followed() {
        let declared = declared(json!({"x": {"type": "url"}}));
        let context = context(&declared, &given(&json!({"x": " HTTPS://A.example "}))).unwrap();
        assert_eq!(context.urls.into_iter().collect::<String>(), "https://a.example");
    }
}
