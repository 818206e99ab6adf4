//! Names of regions and the bound of their keys.

/// Longest key in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 512;

/// All regions there are: a closed set, because each is a label of metrics and a part of keys of the second level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum RegionName {
    /// What users want to be told, and how.
    Preferences,
    /// Addresses of users.
    Contacts,
    /// When users were last seen.
    LastSeen,
    /// Keys for tokens, as their servers gave them.
    KeySets,
}

impl RegionName {
    /// Every region, in order of their index.
    pub(crate) const ALL: [Self; 4] =
        [Self::Preferences, Self::Contacts, Self::LastSeen, Self::KeySets];

    /// Name in metrics, in keys of the second level and in messages to other nodes.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Preferences => "preferences",
            Self::Contacts => "contacts",
            Self::LastSeen => "last_seen",
            Self::KeySets => "key_sets",
        }
    }

    /// The region of that name, as another node sends it.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|region| region.as_str() == name)
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

/// A key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cache key of {bytes} bytes is too long; keys have at most {KEY_BYTES_MAX}")]
pub(crate) struct KeyTooLong {
    /// Its length.
    pub bytes: usize,
}

/// The text of a key, when it is short enough.
pub(super) fn checked<K: AsRef<str> + ?Sized>(key: &K) -> Result<&str, KeyTooLong> {
    let text = key.as_ref();
    if text.len() > KEY_BYTES_MAX {
        return Err(KeyTooLong { bytes: text.len() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_order() {
        for (index, region) in RegionName::ALL.into_iter().enumerate() {
            assert_eq!(region.index(), index);
            assert_eq!(RegionName::parse(region.as_str()), Some(region));
        }
        assert_eq!(RegionName::parse("other"), None);
    }

    #[test]
    fn keys_are_bounded() {
        let longest = "k".repeat(KEY_BYTES_MAX);
        assert_eq!(checked(&longest), Ok(longest.as_str()));
        let longer = "k".repeat(KEY_BYTES_MAX + 1);
        assert_eq!(checked(&longer), Err(KeyTooLong { bytes: KEY_BYTES_MAX + 1 }));
    }
}
