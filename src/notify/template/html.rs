//! Follows the HTML of a mail and tells how a variable's value is written at each position.
//!
//! Values may stand in text and in quoted values of attributes that are known to be harmless; in a URL and in a style
//! they are held to narrower rules. Everywhere else (names, scripts, style sheets, comments, values without quotes)
//! they are refused, and so are elements and attributes that run code or load other documents.

use minijinja::HtmlEscape;

use super::link::{LinkKind, LinkState, Origin, check_url};

/// Characters of the name of an element or attribute, at most.
const NAME_CHARS_MAX: usize = 64;

/// Elements that a mail does not have: they run code, load documents, change what follows, or ask for input.
const ELEMENTS_REFUSED: [&str; 24] = [
    "applet",
    "audio",
    "base",
    "embed",
    "form",
    "frame",
    "frameset",
    "iframe",
    "link",
    "math",
    "noembed",
    "noframes",
    "noscript",
    "object",
    "param",
    "plaintext",
    "portal",
    "script",
    "source",
    "svg",
    "template",
    "textarea",
    "video",
    "xmp",
];

/// Attributes whose value is text for people or a plain word.
const ATTRIBUTES_PLAIN: [&str; 30] = [
    "abbr",
    "align",
    "alt",
    "bgcolor",
    "border",
    "cellpadding",
    "cellspacing",
    "class",
    "color",
    "cols",
    "colspan",
    "datetime",
    "dir",
    "face",
    "headers",
    "height",
    "hspace",
    "id",
    "label",
    "lang",
    "name",
    "role",
    "rowspan",
    "scope",
    "size",
    "summary",
    "title",
    "valign",
    "vspace",
    "width",
];

const ATTRIBUTES_URL: [&str; 8] =
    ["action", "background", "cite", "formaction", "href", "longdesc", "poster", "src"];

const NOT_HERE: &str = "a variable may stand only in text and in quoted values of attributes, \
     not in names, comments, style sheets or values without quotes";
const BROKEN: &str = "the HTML is not well formed here; write tags as <name attribute=\"value\">";

/// Rules for a value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// No variable.
    Fixed,
    /// Any variable.
    Plain,
    /// Variables that are plain words of a style.
    Style,
    /// Put together by the rules for URLs.
    Url(LinkState),
}

/// Position in the HTML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Text,
    /// After `<`.
    Open,
    /// After `</`.
    OpenEnd,
    /// After `<!`; what has been read since.
    Bang(String),
    /// After `<!` up to `>`.
    Declaration,
    /// The last three characters.
    Comment(String),
    /// Name of an element, in lower case.
    Name(String),
    /// Between attributes.
    Attributes,
    /// Name of an attribute, in lower case.
    Attribute(String),
    /// After the name.
    AfterAttribute(String),
    /// After `=`.
    BeforeValue(String),
    /// Inside a value; `None` when it has no quotes.
    Value(Option<char>, Rule),
    /// Inside a style sheet; the last seven characters in lower case.
    StyleSheet(String),
}

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HtmlState {
    at: At,
    /// Whether the tag being read begins a style sheet.
    style_begins: bool,
    closing: bool,
}

impl HtmlState {
    /// The author's text follows.
    pub(crate) fn raw(&mut self, text: &str) -> Result<(), &'static str> {
        for c in text.chars() {
            let at = std::mem::take(&mut self.at);
            self.at = self.next(at, c)?;
        }
        Ok(())
    }

    fn next(&mut self, at: At, c: char) -> Result<At, &'static str> {
        Ok(match (at, c) {
            (At::Text, '<') => At::Open,
            (At::Open, '/') => At::OpenEnd,
            (At::Open, '!') => At::Bang(String::new()),
            (At::Open | At::OpenEnd, '?') => return Err(BROKEN),
            (at @ (At::Open | At::OpenEnd), c) if c.is_ascii_alphabetic() => {
                self.closing = at == At::OpenEnd;
                At::Name(c.to_ascii_lowercase().to_string())
            }
            // A sign that stands for itself: `1 < 2`.
            (At::Open, c) if c.is_whitespace() || c.is_ascii_digit() || c == '=' => At::Text,
            (At::Bang(read), c) => next_declaration(read, c),
            (At::Text, _) | (At::Declaration, '>') => At::Text,
            (At::Declaration, _) => At::Declaration,
            (At::Comment(tail), c) => next_comment(tail, c)?,
            (At::StyleSheet(tail), c) => self.next_style_sheet(tail, c),
            (At::Name(name), c) if c == '>' || c == '/' || c.is_ascii_whitespace() => {
                self.check_element(&name)?;
                if c == '>' { self.tag_ends() } else { At::Attributes }
            }
            (At::Name(name), c) if c.is_ascii_alphanumeric() || c == '-' || c == ':' => {
                At::Name(longer(name, c)?)
            }
            (At::Open | At::OpenEnd | At::Name(_), _) => return Err(BROKEN),
            (at, c) => self.next_attribute(at, c)?,
        })
    }

    fn next_attribute(&mut self, at: At, c: char) -> Result<At, &'static str> {
        Ok(match (at, c) {
            (At::Attributes, '>') => self.tag_ends(),
            (At::Attributes, '/') => At::Attributes,
            (At::Attributes, c) if c.is_ascii_whitespace() => At::Attributes,
            (At::Attributes, c) => At::Attribute(longer(String::new(), c)?),
            (At::Attribute(name) | At::AfterAttribute(name), '=') => {
                check_attribute(&name)?;
                At::BeforeValue(name)
            }
            (At::Attribute(name) | At::AfterAttribute(name), c @ ('>' | '/')) => {
                check_attribute(&name)?;
                if c == '>' { self.tag_ends() } else { At::Attributes }
            }
            (At::Attribute(name) | At::AfterAttribute(name), c) if c.is_ascii_whitespace() => {
                At::AfterAttribute(name)
            }
            (At::Attribute(name), c) => At::Attribute(longer(name, c)?),
            (At::AfterAttribute(name), c) => {
                check_attribute(&name)?;
                At::Attribute(longer(String::new(), c)?)
            }
            (At::BeforeValue(name), c) if c.is_ascii_whitespace() => At::BeforeValue(name),
            (At::BeforeValue(name), quote @ ('"' | '\'')) => At::Value(Some(quote), rule(&name)),
            (At::BeforeValue(_), '>' | '<' | '=' | '`') => return Err(BROKEN),
            (At::BeforeValue(name), c) => next_value(None, rule(&name), c)?,
            (At::Value(Some(quote), rule), c) if c == quote => {
                ends(&rule).map(|()| At::Attributes)?
            }
            (At::Value(None, rule), '>') => ends(&rule).map(|()| self.tag_ends())?,
            (At::Value(None, rule), c) if c.is_ascii_whitespace() => {
                ends(&rule).map(|()| At::Attributes)?
            }
            (At::Value(None, _), '"' | '\'' | '<' | '=' | '`') => return Err(BROKEN),
            (At::Value(quote, rule), c) => next_value(quote, rule, c)?,
            _ => return Err(BROKEN),
        })
    }

    fn check_element(&mut self, name: &str) -> Result<(), &'static str> {
        if ELEMENTS_REFUSED.contains(&name) {
            return Err(
                "a mail may not contain elements such as script, iframe, object, form, svg \
                        or link; remove it",
            );
        }
        self.style_begins = name == "style" && !self.closing;
        Ok(())
    }

    fn tag_ends(&mut self) -> At {
        if std::mem::take(&mut self.style_begins) {
            return At::StyleSheet(String::new());
        }
        self.closing = false;
        At::Text
    }

    fn next_style_sheet(&mut self, tail: String, c: char) -> At {
        let tail = last(tail, c.to_ascii_lowercase(), 7);
        if tail == "</style" {
            self.closing = true;
            return At::Name("style".to_owned());
        }
        At::StyleSheet(tail)
    }

    /// An expression follows; its value is not known yet.
    pub(crate) fn plan(&mut self, origin: Origin) -> Result<(), &'static str> {
        match &mut self.at {
            At::Text | At::Value(Some(_), Rule::Plain | Rule::Style) => Ok(()),
            At::Value(Some(_), Rule::Url(link)) => link.plan(origin),
            _ => Err(NOT_HERE),
        }
    }

    /// The position after two branches, when it is one.
    pub(crate) fn join(mut self, other: &Self) -> Option<Self> {
        if let (At::Value(_, Rule::Url(one)), At::Value(_, Rule::Url(two))) =
            (&mut self.at, &other.at)
        {
            *one = one.clone().join(two)?;
            // Whatever else differs, such as the quotes, still does.
            let mut same = other.clone();
            if let At::Value(_, Rule::Url(two)) = &mut same.at {
                *two = one.clone();
            }
            return (self == same).then_some(self);
        }
        (self == *other).then_some(self)
    }

    /// A variable's value follows: how it is written.
    pub(crate) fn value(&mut self, value: &str) -> Result<String, &'static str> {
        match &mut self.at {
            At::Text | At::Value(Some(_), Rule::Plain) => Ok(HtmlEscape(value).to_string()),
            At::Value(Some(_), Rule::Style) if is_style_word(value) => Ok(value.to_owned()),
            At::Value(Some(_), Rule::Style) => {
                Err("a variable in a style may only have 1 to 32 letters, digits and . # % -")
            }
            At::Value(Some(_), Rule::Url(link)) => {
                let url = link.value(value, |value| check_url(value).is_ok())?;
                Ok(HtmlEscape(&url).to_string())
            }
            _ => Err(NOT_HERE),
        }
    }

    /// Nothing follows.
    pub(crate) fn end(&self) -> Result<(), &'static str> {
        if self.at == At::Text { Ok(()) } else { Err("the HTML ends inside a tag or comment") }
    }
}

fn rule(name: &str) -> Rule {
    match name {
        "style" => Rule::Style,
        name if ATTRIBUTES_URL.contains(&name) => Rule::Url(LinkState::new(LinkKind::Html)),
        name if ATTRIBUTES_PLAIN.contains(&name) => Rule::Plain,
        name if name.starts_with("data-") || name.starts_with("aria-") => Rule::Plain,
        _ => Rule::Fixed,
    }
}

fn check_attribute(name: &str) -> Result<(), &'static str> {
    if name.starts_with("on") || name == "srcdoc" {
        return Err("a mail may not contain attributes that run code (on…) or hold a document; \
                    remove it");
    }
    Ok(())
}

fn ends(rule: &Rule) -> Result<(), &'static str> {
    if let Rule::Url(link) = rule { link.end() } else { Ok(()) }
}

fn next_value(quote: Option<char>, mut rule: Rule, c: char) -> Result<At, &'static str> {
    if let Rule::Url(link) = &mut rule {
        link.raw(c.encode_utf8(&mut [0; 4]))?;
    }
    Ok(At::Value(quote, rule))
}

fn next_declaration(mut read: String, c: char) -> At {
    read.push(c);
    match read.as_str() {
        "--" => At::Comment(String::new()),
        "-" => At::Bang(read),
        _ if c == '>' => At::Text,
        _ => At::Declaration,
    }
}

/// Browsers end a comment at more than `-->`; what they read differently is refused.
fn next_comment(tail: String, c: char) -> Result<At, &'static str> {
    match (tail.as_str(), c) {
        ("" | "-" | "--!", '>') => Err(BROKEN),
        (tail, '>') if tail.ends_with("--") => Ok(At::Text),
        _ => Ok(At::Comment(last(tail, c, 3))),
    }
}

/// The last `count` characters after one more.
fn last(mut tail: String, c: char, count: usize) -> String {
    tail.push(c);
    let excess = tail.chars().count().saturating_sub(count);
    tail.chars().skip(excess).collect()
}

/// The name with one more character, which has to be one that names have.
fn longer(mut name: String, c: char) -> Result<String, &'static str> {
    if name.len() >= NAME_CHARS_MAX || !(c.is_ascii_alphanumeric() || "-_:.@".contains(c)) {
        return Err(BROKEN);
    }
    name.push(c.to_ascii_lowercase());
    Ok(name)
}

fn is_style_word(value: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".#%-".contains(&b);
    (1..=32).contains(&value.len()) && value.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
