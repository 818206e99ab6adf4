//! What is wrong with a template or with the variables of a rendering. Every text says the mend.

use std::fmt;

use super::field::Field;

/// One text of a template: locale and field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// As written in the document.
    pub locale: String,
    /// Which of the locale's texts.
    pub field: Field,
}

/// Shown as the path in the document without `locales`: `en.email.html`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.locale, self.field.path())
    }
}

/// Why a document is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// A field of the document has the wrong form.
    #[error("{field} {problem}")]
    Field {
        /// Path in the document: `variables.workflow.max_length`.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A text is not one that can be rendered safely.
    #[error("{place}, line {line}: {problem}")]
    Text {
        /// Where.
        place: Place,
        /// Line inside the text, from 1.
        line: usize,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Texts use variables that are not declared.
    #[error("not declared: {}; add them to variables, or correct the names", list(names))]
    Undeclared {
        /// `en.title: workflo`, in order.
        names: Vec<String>,
    },
    /// The locale to fall back to has no texts.
    #[error(
        "fallback_locale {fallback:?} is none of the locales ({}); name one of them",
        list(locales)
    )]
    NoFallback {
        /// As written.
        fallback: String,
        /// Those there are.
        locales: Vec<String>,
    },
}

impl TemplateError {
    /// For a field at `field`.
    pub(crate) fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }
}

/// Why nothing could be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RenderError {
    /// Required variables were not given.
    #[error("variables are missing: {}; give them, or declare a default", list(.0))]
    MissingVariables(Vec<String>),
    /// Variables that the template does not declare.
    #[error("variables are unknown: {}; the template declares: {}", list(names), list(declared))]
    UnknownVariables {
        /// Those given.
        names: Vec<String>,
        /// Those there are.
        declared: Vec<String>,
    },
    /// A variable has the wrong type or size.
    #[error("variable {name} {problem}")]
    Variable {
        /// Its name.
        name: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The text failed, for example because it uses what was not given.
    #[error("{place}, line {line}: {problem}")]
    Text {
        /// Where.
        place: Place,
        /// Line inside the text, from 1; 0 when it is not known.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The loops of a text do too much.
    #[error("{place} does too much work; loop over fewer items, or nest fewer loops")]
    TooMuchWork {
        /// Where.
        place: Place,
    },
    /// The finished text is too long.
    #[error(
        "{place} is longer than {bytes_max} bytes when rendered; shorten it with |truncate_chars(n)"
    )]
    TooLong {
        /// Where.
        place: Place,
        /// What the place can hold.
        bytes_max: usize,
    },
    /// A variable's value may not stand where it does, or makes a URL that is not safe.
    #[error("{place}: {problem}")]
    Unsafe {
        /// Where.
        place: Place,
        /// What is wrong and what would be right.
        problem: String,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
