//! URLs that are safe to follow.
//!
//! Two halves: [`check_url`] judges a finished URL as a browser would read it, and [`LinkState`] follows a URL while
//! it is put together from fixed text and variables, so that a variable never decides about scheme or host.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::{Position, Url};

use super::finish::clean_line;

/// Characters of a URL, at most.
pub(crate) const URL_BYTES_MAX: usize = 2_048;

/// What stays as it is in a variable's value: everything else could end the part of the URL that it stands in.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const BEGINNING: &str =
    "a URL has to begin with https://, http:// or /, or with a variable of type url";
const HOST: &str = "a variable may not stand in the scheme or host of a URL; \
     declare one of type url and begin the URL with it";

/// The URL as it is to be followed, or what is wrong with it. Control characters, invisible characters and outer
/// space are dropped first, since browsers ignore some of them.
pub(crate) fn check_url(text: &str) -> Result<String, &'static str> {
    let text = clean_line(text);
    let text = text.trim();
    if text.len() > URL_BYTES_MAX {
        return Err("is longer than 2048 bytes");
    }
    if text.contains('\\') {
        return Err("contains a backslash, which browsers read as a slash");
    }
    if text.starts_with('/') {
        return check_path(text);
    }
    let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
    if !lower.starts_with("https://") && !lower.starts_with("http://") {
        return Err("does not begin with https://, http:// or /");
    }
    let url = Url::parse(text).map_err(|_| "is no URL")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("contains a user name or password");
    }
    let mut out = url.to_string();
    // The parser adds a slash to a bare host, which would be doubled by a template that adds its own path.
    if !text.ends_with('/') && out.ends_with('/') && url.path() == "/" {
        out.pop();
    }
    finished(&out)
}

/// The parser lets some signs stand in a host that end a value in HTML.
fn finished(url: &str) -> Result<String, &'static str> {
    if url.len() > URL_BYTES_MAX {
        return Err("is longer than 2048 bytes");
    }
    if url.bytes().any(|b| !b.is_ascii_graphic() || b"\"<>`\\".contains(&b)) {
        return Err("contains a sign that URLs do not have");
    }
    Ok(url.to_owned())
}

/// A path on the host of the page that shows it.
fn check_path(text: &str) -> Result<String, &'static str> {
    let base = Url::parse("http://path.invalid/").expect("a fixed URL");
    let url = base.join(text).map_err(|_| "is no URL")?;
    let path = &url[Position::BeforePath..];
    // After `.` and `..` are resolved there may be two slashes at the beginning that were not there before.
    if url.host_str() != base.host_str() || url.scheme() != "http" || path.starts_with("//") {
        return Err("begins with //, which leads to another host");
    }
    finished(path)
}

/// Which URLs may be put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkKind {
    /// Of an action: `http`, `https` or a path; at the beginning only variables that are declared as URLs.
    Action,
    /// In an attribute of HTML: also `mailto`, `tel`, `cid` and `#anchor`, and a member of an object or list may stand
    /// at the beginning when it is a URL.
    Html,
}

/// How far a URL has got.
#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    Start,
    /// Letters that may be a scheme.
    Scheme(String),
    /// Slashes after `http:`.
    Slashes(u8),
    Authority,
    /// One slash at the beginning.
    Root,
    /// After a variable that is a whole URL: its end is not known before it is rendered.
    Whole,
    /// Scheme and host are decided.
    Rest,
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkState {
    kind: LinkKind,
    at: At,
}

/// What is known of an expression before it is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A variable that is declared as a URL.
    Url,
    /// A variable of another type.
    Variable,
    /// Anything else.
    Expression,
}

impl LinkState {
    /// Nothing yet.
    pub(crate) fn new(kind: LinkKind) -> Self {
        Self { kind, at: At::Start }
    }

    /// Fixed text follows.
    pub(crate) fn raw(&mut self, text: &str) -> Result<(), &'static str> {
        for c in text.chars() {
            self.at = self.next(c)?;
        }
        Ok(())
    }

    fn next(&self, c: char) -> Result<At, &'static str> {
        let html = self.kind == LinkKind::Html;
        Ok(match (&self.at, c) {
            (At::Start, '/') => At::Root,
            (At::Start, '#') if html => At::Rest,
            (At::Start, c) if c.is_ascii_alphabetic() => At::Scheme(c.to_string()),
            (At::Scheme(name), ':') => match name.to_ascii_lowercase().as_str() {
                "http" | "https" => At::Slashes(0),
                "mailto" | "tel" | "cid" if html => At::Rest,
                _ => return Err(BEGINNING),
            },
            (At::Scheme(name), c) if c.is_ascii_alphanumeric() && name.len() < 8 => {
                At::Scheme(format!("{name}{c}"))
            }
            (At::Slashes(0), '/') => At::Slashes(1),
            (At::Slashes(1), '/') => At::Authority,
            (At::Start | At::Scheme(_) | At::Slashes(_), _) => return Err(BEGINNING),
            (At::Root, '/' | '\\' | '&' | '\t' | '\n' | '\r') => {
                return Err("a path may not begin with //, which leads to another host");
            }
            (At::Authority, '@' | '\\' | '&') => {
                return Err("the host of a URL may not contain @, \\ or &");
            }
            (At::Authority, c) if !"/?#".contains(c) => At::Authority,
            (At::Whole, c) if !"/?#".contains(c) => At::Whole,
            (At::Authority | At::Whole | At::Root | At::Rest, _) => At::Rest,
        })
    }

    /// An expression follows; its value is not known yet.
    pub(crate) fn plan(&mut self, origin: Origin) -> Result<(), &'static str> {
        self.at = match (&self.at, origin, self.kind) {
            (At::Start, Origin::Url, _) | (At::Start, Origin::Expression, LinkKind::Html) => {
                At::Whole
            }
            (At::Start, ..) => return Err(BEGINNING),
            (At::Scheme(_) | At::Slashes(_) | At::Authority, ..) => return Err(HOST),
            (At::Whole, ..) => At::Whole,
            (At::Root | At::Rest, ..) => At::Rest,
        };
        Ok(())
    }

    /// The position after two branches, when it is one. Where both have a scheme and host, what they have besides is
    /// seen when they are rendered.
    pub(crate) fn join(self, other: &Self) -> Option<Self> {
        let led = |state: &Self| matches!(state.at, At::Authority | At::Whole | At::Rest);
        if self.kind == other.kind && self.at != other.at && led(&self) && led(other) {
            return Some(Self { kind: self.kind, at: At::Whole });
        }
        (self == *other).then_some(self)
    }

    /// A variable's value follows: how it is written. At the beginning `whole` tells whether it may be a whole URL.
    pub(crate) fn value(
        &mut self,
        value: &str,
        whole: impl FnOnce(&str) -> bool,
    ) -> Result<String, &'static str> {
        match self.at {
            At::Start if whole(value) => {
                let url = check_url(value)?;
                self.raw(&url)?;
                Ok(url)
            }
            At::Start => Err(BEGINNING),
            At::Scheme(_) | At::Slashes(_) | At::Authority => Err(HOST),
            _ if value == "." || value == ".." => {
                Err("a variable in a URL may not be . or .., which would change the path")
            }
            // Nothing was written, so a slash that follows would be the second one.
            _ if value.is_empty() => Ok(String::new()),
            At::Root | At::Whole | At::Rest => {
                self.at = At::Rest;
                Ok(utf8_percent_encode(value, ENCODED).to_string())
            }
        }
    }

    /// Nothing follows.
    pub(crate) fn end(&self) -> Result<(), &'static str> {
        match (&self.at, self.kind) {
            (At::Start, LinkKind::Html) => Ok(()),
            (At::Start | At::Scheme(_) | At::Slashes(_), _) => Err(BEGINNING),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_are_followed() {
        for (given, expected) in [
            ("https://a.example/x?y=1#z", "https://a.example/x?y=1#z"),
            ("HTTPS://A.Example", "https://a.example"),
            ("http://a.example/", "http://a.example/"),
            ("  https://a.example/a b  ", "https://a.example/a%20b"),
            ("ht\ttps://a.exa\nmple/", "https://a.example/"),
            ("\u{200b}https://a.example/\u{feff}", "https://a.example/"),
            ("https://b\u{fc}cher.example/", "https://xn--bcher-kva.example/"),
            ("/runs/1?x=y", "/runs/1?x=y"),
            ("/", "/"),
            ("/a/../b", "/b"),
            ("/a:b", "/a:b"),
        ] {
            assert_eq!(check_url(given).as_deref(), Ok(expected), "{given:?}");
            assert_eq!(check_url(expected).as_deref(), Ok(expected), "it is stable");
        }
    }

    #[test]
    fn urls_that_are_refused() {
        for given in [
            "",
            " ",
            "a.example",
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)",
            "java\tscript:alert(1)",
            "\u{1}javascript:alert(1)",
            "\u{a0}javascript:alert(1)",
            "java\u{200b}script:alert(1)",
            "data:text/html,x",
            "vbscript:x",
            "file:///etc/passwd",
            "//evil.example",
            "/\t/evil.example",
            "\n//evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/.//evil.example",
            "/x/..//evil.example",
            "/%2e//evil.example",
            "https:evil.example",
            "https:/evil.example",
            "https:\\\\evil.example",
            "https://",
            "https://user@evil.example/",
            "https://good.example\\@evil.example/",
            "https://a b.example/",
            "https://a\"b.example/",
            "https://a`b.example/",
            "https\u{ff1a}//evil.example",
            "\u{ff0f}\u{ff0f}evil.example",
        ] {
            assert!(check_url(given).is_err(), "{given:?} became {:?}", check_url(given));
        }
        assert!(check_url(&format!("/{}", "a".repeat(URL_BYTES_MAX))).is_err());
        assert!(
            check_url(&format!("/{}", "\u{fc}".repeat(1_000))).is_err(),
            "encoded it is longer"
        );
    }

    /// Parts in order; `{` marks a value.
    fn put_together(kind: LinkKind, parts: &[&str]) -> Result<String, &'static str> {
        let mut state = LinkState::new(kind);
        let mut out = String::new();
        for part in parts {
            if let Some(value) = part.strip_prefix('{') {
                out.push_str(&state.value(value, |value| value.starts_with("http"))?);
            } else {
                state.raw(part)?;
                out.push_str(part);
            }
        }
        state.end()?;
        Ok(out)
    }

    #[test]
    fn values_never_decide_where_a_url_leads() {
        let ok = |parts: &[&str], expected: &str| {
            assert_eq!(put_together(LinkKind::Action, parts).as_deref(), Ok(expected), "{parts:?}");
        };
        ok(&["https://a.example/", "{x/../y?#&"], "https://a.example/x%2F..%2Fy%3F%23%26");
        ok(&["{https://a.example", "/runs/", "{1"], "https://a.example/runs/1");
        ok(&["/", "{/evil.example"], "/%2Fevil.example");
        ok(&["/x?next=", "{https://a.example"], "/x?next=https%3A%2F%2Fa.example");
        ok(&["{https://a.example/x", "{y"], "https://a.example/xy");
        for parts in [
            &["{javascript:alert(1)"] as &[&str],
            &["java", "{script:alert(1)"],
            &["javascript:", "{alert(1)"],
            &["https://", "{evil.example", "/"],
            &["https://a.example", "{.evil.example"],
            &["{https://a.example", "{.evil.example"],
            &["https:", "{//evil.example"],
            &["/", "{", "/evil.example"],
            &["//evil.example"],
            &["/a/", "{..", "/b"],
            &["https://a@b/"],
            &["x/y"],
            &["mailto:a@b"],
            &["https:/"],
            &[""],
        ] {
            let result = put_together(LinkKind::Action, parts);
            assert!(result.is_err(), "{parts:?} became {result:?}");
        }
        assert!(put_together(LinkKind::Html, &["mailto:", "{a@b.example"]).is_ok());
        assert!(put_together(LinkKind::Html, &["#", "{part"]).is_ok());
        assert!(put_together(LinkKind::Html, &["&#106;avascript:x"]).is_err());
    }
}
