//! Language tags: how they are written, and in which order texts are looked for.

/// Bytes of a tag, at most.
const TAG_BYTES_MAX: usize = 35;

/// Whether `tag` has the form of a language tag: `en`, `de-CH`, `zh-Hant-TW`.
pub(crate) fn is_tag(tag: &str) -> bool {
    let mut parts = tag.split('-');
    let language = parts.next().unwrap_or_default();
    tag.len() <= TAG_BYTES_MAX
        && (2..=8).contains(&language.len())
        && language.bytes().all(|b| b.is_ascii_alphabetic())
        && parts.all(|part| {
            (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
        })
}

/// A tag as it is compared: case does not count, and `_` is `-`.
pub(crate) fn key(tag: &str) -> String {
    tag.to_ascii_lowercase().replace('_', "-")
}

/// Tags to look for, from the wanted one to its language alone (RFC 4647, lookup). A part of one character belongs to
/// the part that follows it, so that the two go together.
pub(crate) fn candidates(wanted: &str) -> Vec<String> {
    let wanted = key(wanted.trim());
    let mut found = Vec::new();
    if !is_tag(&wanted) {
        return found;
    }
    let mut parts: Vec<&str> = wanted.split('-').collect();
    while !parts.is_empty() {
        found.push(parts.join("-"));
        parts.pop();
        while parts.last().is_some_and(|part| part.len() == 1) {
            parts.pop();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for tag in ["en", "de-CH", "zh-Hant-TW", "es-419", "gsw", "de-x-formal"] {
            assert!(is_tag(tag), "{tag}");
        }
        for tag in ["", "e", "de_CH", "de-", "-de", "de--CH", "d3", "de-abcdefghi", "de CH", "dé"]
        {
            assert!(!is_tag(tag), "{tag}");
        }
        assert!(!is_tag(&format!("de{}", "-abcdefg".repeat(5))));
    }

    #[test]
    fn lookup_goes_from_special_to_general() {
        for (wanted, expected) in [
            ("de-CH", vec!["de-ch", "de"]),
            ("DE_ch", vec!["de-ch", "de"]),
            ("zh-Hant-CN-x-private", vec!["zh-hant-cn-x-private", "zh-hant-cn", "zh-hant", "zh"]),
            (" en ", vec!["en"]),
            ("*", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(candidates(wanted), expected, "{wanted}");
        }
    }
}
