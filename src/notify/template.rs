//! Templates of notifications: texts in several languages with variables, and what each delivery channel gets of them.
//!
//! [`Template::compile`] checks all of a document, so that what can be known before rendering fails there.
//! [`Template::render`] checks variables and renders. Values of variables are foreign text wherever they stand: they
//! never become HTML, never decide where a link leads, never end a line of a head line. Keeping templates and their
//! versions is not done here; [`Template::digest`] tells whether two documents are one.

mod check;
mod document;
mod engine;
mod error;
mod field;
mod filters;
mod finish;
mod html;
mod link;
mod locale;
mod render;
mod variables;

use std::collections::BTreeMap;

use minijinja::Environment;
use serde_json::{Map, Value as Json};

pub(crate) use document::TemplateDocument;
pub(crate) use error::{Place, RenderError, TemplateError};
pub(crate) use render::{Action, Body, Rendered};

use self::document::{Declaration, LocaleTexts, VariableType};
use self::field::{Field, Target};
use self::render::Renderer;
use crate::notify::kinds::{Category, DeliveryChannel, Priority, is_name};

/// Bytes of a template's name, at most.
const NAME_BYTES_MAX: usize = 64;
/// Locales of a template, at most.
const LOCALES_MAX: usize = 50;
/// Variables of a template, at most.
const VARIABLES_MAX: usize = 64;

/// Words that mean something else inside `{{ }}`.
const RESERVED: [&str; 19] = [
    "and", "caller", "elif", "else", "false", "for", "if", "in", "is", "loop", "none", "not", "or",
    "range", "self", "set", "super", "true", "with",
];

/// A locale that has texts.
#[derive(Clone, Debug)]
struct LocaleEntry {
    /// As the document writes it.
    name: String,
    /// The variable that the action's URL begins with.
    action_begins_with: Option<String>,
}

/// A document that can be rendered.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    document: TemplateDocument,
    digest: String,
    /// By the tag in lower case.
    locales: BTreeMap<String, LocaleEntry>,
    fallback: LocaleEntry,
    environment: Environment<'static>,
}

impl Template {
    /// Reads and checks a JSON document.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, TemplateError> {
        Self::compile(TemplateDocument::from_json(json)?)
    }

    /// Checks a document.
    pub(crate) fn compile(document: TemplateDocument) -> Result<Self, TemplateError> {
        if !is_name(&document.name, NAME_BYTES_MAX) {
            return Err(TemplateError::field(
                "name",
                "is no name: use 1 to 64 of a-z, 0-9, `_`, `.` and `-`",
            ));
        }
        check_variables(&document.variables)?;
        let canonical = document.canonical()?;
        let mut environment = engine::environment();
        let locales = compile_locales(&document, &mut environment)?;
        let fallback = locales.get(&locale::key(&document.fallback_locale)).cloned();
        let fallback = fallback.ok_or_else(|| TemplateError::NoFallback {
            fallback: document.fallback_locale.clone(),
            locales: document.locales.keys().cloned().collect(),
        })?;
        let digest = document::digest(&canonical);
        Ok(Self { document, digest, locales, fallback, environment })
    }

    /// By which notifications name it.
    pub(crate) fn name(&self) -> &str {
        &self.document.name
    }

    /// Of notifications that name none themselves.
    pub(crate) fn category(&self) -> Option<&Category> {
        self.document.category.as_ref()
    }

    /// Of notifications that name none themselves.
    pub(crate) fn priority(&self) -> Option<Priority> {
        self.document.priority
    }

    /// As its author wrote it.
    #[cfg(test)]
    pub(crate) fn document(&self) -> &TemplateDocument {
        &self.document
    }

    /// SHA-256 of the document in hex: the same for equal documents, however they are written.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Texts for one delivery channel, in the language nearest to `locale`.
    pub(crate) fn render(
        &self,
        locale: Option<&str>,
        channel: DeliveryChannel,
        variables: &Map<String, Json>,
    ) -> Result<Rendered, RenderError> {
        let context = variables::context(&self.document.variables, variables)?;
        let entry = self.entry(locale);
        Renderer { template: self, entry, context: &context }.channel(channel)
    }

    /// Texts for every delivery channel. Variables that are not given have their samples, then their defaults.
    pub(crate) fn preview(
        &self,
        locale: Option<&str>,
        variables: &Map<String, Json>,
    ) -> Vec<(DeliveryChannel, Result<Rendered, RenderError>)> {
        let mut all = variables.clone();
        for (name, declaration) in &self.document.variables {
            let given = variables.get(name).is_some_and(|value| !value.is_null());
            if let (false, Some(sample)) = (given, &declaration.sample) {
                all.insert(name.clone(), sample.clone());
            }
        }
        let render = |channel| (channel, self.render(locale, channel, &all));
        DeliveryChannel::ALL.into_iter().map(render).collect()
    }

    fn entry(&self, wanted: Option<&str>) -> &LocaleEntry {
        let mut candidates = wanted.into_iter().flat_map(locale::candidates);
        candidates.find_map(|key| self.locales.get(&key)).unwrap_or(&self.fallback)
    }

    fn texts(&self, entry: &LocaleEntry) -> Option<&LocaleTexts> {
        self.document.locales.get(&entry.name)
    }
}

fn check_variables(variables: &BTreeMap<String, Declaration>) -> Result<(), TemplateError> {
    if variables.len() > VARIABLES_MAX {
        let problem = format!("has {} entries; declare at most {VARIABLES_MAX}", variables.len());
        return Err(TemplateError::field("variables", problem));
    }
    for (name, declaration) in variables {
        let path = |field: &str| format!("variables.{name}{field}");
        let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let reserved = RESERVED.contains(&name.to_ascii_lowercase().as_str());
        if !begins || !word || reserved || name.len() > NAME_BYTES_MAX {
            return Err(TemplateError::field(
                path(""),
                "is no name: use 1 to 64 letters, digits and `_`, not a digit first, no word of the template language",
            ));
        }
        check_max_length(declaration)
            .map_err(|problem| TemplateError::field(path(".max_length"), problem))?;
        let values = [(".default", &declaration.default), (".sample", &declaration.sample)];
        for (field, value) in values {
            if let Some(value) = value {
                variables::check(declaration, value)
                    .map_err(|problem| TemplateError::field(path(field), problem))?;
            }
        }
        if declaration.required && declaration.default.is_some() {
            let problem = "has no use for a variable that is required; remove one of the two";
            return Err(TemplateError::field(path(".default"), problem));
        }
    }
    Ok(())
}

fn check_max_length(declaration: &Declaration) -> Result<(), String> {
    let Some(length) = declaration.max_length else { return Ok(()) };
    let most = match declaration.kind {
        VariableType::String => variables::STRING_CHARS_MAX,
        VariableType::Url => link::URL_BYTES_MAX,
        VariableType::List => variables::LIST_ITEMS_MAX,
        kind => return Err(format!("has no meaning for {}; remove it", kind.phrase())),
    };
    if (1..=most).contains(&length) {
        return Ok(());
    }
    Err(format!("is {length}; give 1 to {most}"))
}

fn compile_locales(
    document: &TemplateDocument,
    environment: &mut Environment<'static>,
) -> Result<BTreeMap<String, LocaleEntry>, TemplateError> {
    let count = document.locales.len();
    if !(1..=LOCALES_MAX).contains(&count) {
        let problem = format!("has {count} entries; give 1 to {LOCALES_MAX}");
        return Err(TemplateError::field("locales", problem));
    }
    let mut locales = BTreeMap::new();
    let mut undeclared = Vec::new();
    for (name, texts) in &document.locales {
        if !locale::is_tag(name) {
            let problem = "is no language tag; write it such as en, de-CH or zh-Hant";
            return Err(TemplateError::field(format!("locales.{name}"), problem));
        }
        let mut entry = LocaleEntry { name: name.clone(), action_begins_with: None };
        for field in Field::ALL {
            let Some(source) = texts.get(field) else { continue };
            let place = Place { locale: name.clone(), field };
            let begins_with = compile_text(&place, source, &document.variables, environment)?;
            entry.action_begins_with = entry.action_begins_with.or(begins_with);
            undeclared.extend(undeclared_in(&place, document, environment));
        }
        if locales.insert(locale::key(name), entry).is_some() {
            let problem = "is there twice, since case does not count; remove one";
            return Err(TemplateError::field(format!("locales.{name}"), problem));
        }
    }
    if undeclared.is_empty() {
        return Ok(locales);
    }
    Err(TemplateError::Undeclared { names: undeclared })
}

/// Checks a text and hands it to the engine; the variable that a URL begins with.
fn compile_text(
    place: &Place,
    source: &str,
    variables: &BTreeMap<String, Declaration>,
    environment: &mut Environment<'static>,
) -> Result<Option<String>, TemplateError> {
    let field = place.field;
    let path = || format!("locales.{place}");
    let bytes_max = field.source_bytes_max();
    if source.len() > bytes_max {
        let problem = format!("has {} bytes; write at most {bytes_max}", source.len());
        return Err(TemplateError::field(path(), problem));
    }
    // Space around a URL is never part of it.
    let source = if field.target() == Target::Url { source.trim() } else { source };
    if source.trim().is_empty() {
        return Err(TemplateError::field(path(), "is empty; write a text, or leave it out"));
    }
    let wrong = |finding: check::Finding| TemplateError::Text {
        place: place.clone(),
        line: finding.line,
        problem: finding.problem,
    };
    let checked = check::check(source, field.target(), variables).map_err(wrong)?;
    environment
        .add_template_owned(place.to_string(), source.to_owned())
        .map_err(|error| wrong(error.into()))?;
    Ok(checked.begins_with)
}

/// What a text uses and nobody declares, in order.
fn undeclared_in(
    place: &Place,
    document: &TemplateDocument,
    environment: &Environment<'static>,
) -> Vec<String> {
    let Ok(template) = environment.get_template(&place.to_string()) else { return Vec::new() };
    let used = template.undeclared_variables(false).into_iter();
    let known =
        |name: &str| document.variables.contains_key(name) || engine::FUNCTIONS.contains(&name);
    let mut names: Vec<String> =
        used.filter(|name| !known(name)).map(|name| format!("{place}: {name}")).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod safety_tests;
#[cfg(test)]
mod tests;
