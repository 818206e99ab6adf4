//! The declarative table behind every section: one place states a key's type, bounds, reload rule and meaning.
//!
//! [`section!`] makes from one list both the struct that the rest of the program reads and the table that parsing,
//! error messages, `config print` and the generated documentation use, so that they cannot differ.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use gateway_core::proxies::Network;

use crate::config::provenance::Origin;
use crate::config::secret::Secret;
use crate::config::value::{Kind, Value};

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// At the next SIGHUP.
    Live,
    /// At the next start.
    Restart,
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Full name; `*` stands for the name of an entry (`namespaces.*.history_size`).
    pub path: &'static str,
    /// Name within its section.
    pub field: &'static str,
    /// Type and bounds.
    pub kind: Kind,
    /// When a change takes effect.
    pub reload: Reload,
    /// Whether it may be unset.
    pub optional: bool,
    /// Meaning, line by line.
    pub doc: &'static [&'static str],
}

/// Keys that belong together.
#[derive(Debug)]
pub struct Section {
    /// Name in TOML; ends with `.*` for a list of named entries.
    pub name: &'static str,
    /// Meaning, line by line.
    pub doc: &'static [&'static str],
    /// Its keys in documented order.
    pub keys: &'static [Key],
}

/// A value that won over all lower layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The value.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// All effective values by full key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Values(pub BTreeMap<String, Resolved>);

impl Values {
    /// The value of `prefix.field`, or `None` when it is unset.
    pub fn get(&self, prefix: &str, field: &str) -> Option<&Value> {
        self.0.get(&format!("{prefix}.{field}")).map(|resolved| &resolved.value)
    }

    /// Reads a field of a section.
    pub fn read<T: FromValue>(&self, prefix: &str, field: &str) -> T {
        T::from_value(self.get(prefix, field))
    }

    /// Names of the entries below `family`, in order: `chat` for `namespaces.chat.publish`.
    pub fn names<'a>(&'a self, family: &'a str) -> Vec<&'a str> {
        let mut names: Vec<&str> = self
            .0
            .keys()
            .filter_map(|key| key.strip_prefix(family)?.strip_prefix('.')?.split_once('.'))
            .map(|(name, _)| name)
            .collect();
        names.dedup();
        names
    }
}

/// Values may be secret, so only the number of keys is shown.
impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Values({} keys)", self.0.len())
    }
}

/// From a checked value to a field. The kind of a key and the type of its field are written side by side in the
/// table, and a test reads every field, so a mismatch cannot leave the test run.
pub trait FromValue {
    /// Whether the field may be unset.
    const OPTIONAL: bool = false;
    /// Reads the field.
    fn from_value(value: Option<&Value>) -> Self;
}

impl FromValue for bool {
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Bool(value)) => *value,
            _ => unreachable!("the table gives a bool"),
        }
    }
}

impl FromValue for u64 {
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Count(value) | Value::Size(value)) => *value,
            _ => unreachable!("the table gives a number"),
        }
    }
}

macro_rules! narrow {
    ($($type:ty),+) => {
        $(impl FromValue for $type {
            fn from_value(value: Option<&Value>) -> Self {
                Self::try_from(u64::from_value(value)).expect("the bound in the table fits the type")
            }
        })+
    };
}
narrow!(u16, u32, usize);

impl FromValue for Duration {
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Duration(value)) => *value,
            _ => unreachable!("the table gives a duration"),
        }
    }
}

impl FromValue for String {
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Text(text)) => text.clone(),
            _ => unreachable!("the table gives text"),
        }
    }
}

impl FromValue for PathBuf {
    fn from_value(value: Option<&Value>) -> Self {
        Self::from(String::from_value(value))
    }
}

impl FromValue for SocketAddr {
    fn from_value(value: Option<&Value>) -> Self {
        String::from_value(value).parse().expect("an address was parsed before it became a value")
    }
}

impl FromValue for Network {
    fn from_value(value: Option<&Value>) -> Self {
        String::from_value(value).parse().expect("a network was parsed before it became a value")
    }
}

impl FromValue for Secret<String> {
    fn from_value(value: Option<&Value>) -> Self {
        Self::new(String::from_value(value))
    }
}

impl<T: FromValue> FromValue for Option<T> {
    const OPTIONAL: bool = true;
    fn from_value(value: Option<&Value>) -> Self {
        value.map(|value| T::from_value(Some(value)))
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(value: Option<&Value>) -> Self {
        match value {
            Some(Value::List(list)) => list.iter().map(|item| T::from_value(Some(item))).collect(),
            _ => unreachable!("the table gives a list"),
        }
    }
}

/// Makes a section: its struct, its table of keys and the reader from one to the other.
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        $section:literal => $name:ident {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $kind:expr, $reload:ident; )+
        }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Clone, Debug)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        impl $name {
            /// The section's table.
            pub const SECTION: $crate::config::key::Section = $crate::config::key::Section {
                name: $section,
                doc: &[$($section_doc),+],
                keys: &[$( $crate::config::key::Key {
                    path: concat!($section, ".", stringify!($field)),
                    field: stringify!($field),
                    kind: $kind,
                    reload: $crate::config::key::Reload::$reload,
                    optional: <$type as $crate::config::key::FromValue>::OPTIONAL,
                    doc: &[$($doc),+],
                } ),+],
            };

            /// Reads the fields below `prefix`.
            pub fn read(values: &$crate::config::key::Values, prefix: &str) -> Self {
                Self { $( $field: values.read(prefix, stringify!($field)) ),+ }
            }
        }
    };
}

/// Makes an enum whose variants are written by name in the configuration.
macro_rules! choice {
    (
        $(#[doc = $enum_doc:literal])+
        $name:ident { $( $(#[doc = $doc:literal])+ $variant:ident = $text:literal, )+ }
    ) => {
        $(#[doc = $enum_doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[doc = $doc])+ $variant, )+ }

        impl $name {
            /// Names in the configuration, in order of the variants.
            pub const NAMES: &'static [&'static str] = &[$($text),+];
            /// Type of a key with this choice.
            pub const KIND: $crate::config::value::Kind = $crate::config::value::Kind::Choice(Self::NAMES);

            /// Name in the configuration.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text, )+ }
            }

            /// Reads a name.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $( $text => Some(Self::$variant), )+ _ => None }
            }
        }

        impl $crate::config::key::FromValue for $name {
            fn from_value(value: Option<&$crate::config::value::Value>) -> Self {
                Self::parse(&String::from_value(value)).expect("a choice was checked before it became a value")
            }
        }
    };
}

pub(crate) use {choice, section};
