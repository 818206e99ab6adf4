//! JSON objects read as objects only.
//!
//! A derived reader also takes an array for a struct, member by member in the order of the source. Documents have
//! names, so an array is an error here.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A `T` that was an object.
#[derive(Debug)]
pub(super) struct Object<T>(pub T);

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members)).map(Object)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Pair {
        one: u8,
        two: Option<u8>,
    }

    #[test]
    fn arrays_are_not_objects() {
        let Object(Pair { one, two }) = serde_json::from_str(r#"{"two":2,"one":1}"#).unwrap();
        assert_eq!((one, two), (1, Some(2)));
        assert!(serde_json::from_str::<Pair>("[1,2]").is_ok(), "else this is not needed");
        for json in ["[1,2]", "[]", "7", "null", "\"one\""] {
            let error = serde_json::from_str::<Object<Pair>>(json).unwrap_err().to_string();
            assert!(error.contains("expected an object"), "{json}: {error}");
        }
    }
}
