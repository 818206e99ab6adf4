//! Small JSON tools: an append-only writer into a byte buffer, a depth check, and the wording of errors.

/// From this length on simd-json writes a string: it looks for what must be escaped 32 bytes at a time.
const SIMD_STRING_BYTES_MIN: usize = 128;

/// Deepest nesting of arrays and objects in `text`, which need not be valid JSON.
pub fn depth(text: &[u8]) -> u32 {
    let (mut depth, mut deepest) = (0u32, 0u32);
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = string_end(text, at),
            _ => {}
        }
    }
    deepest
}

/// Index after the quote that ends the string whose content begins at `at`. Long strings are most of what a large
/// message holds, so that eight bytes are looked at together.
fn string_end(text: &[u8], mut at: usize) -> usize {
    loop {
        while let Some(eight) = text.get(at..).and_then(|rest| rest.first_chunk()) {
            let word = u64::from_le_bytes(*eight);
            let found = zero_bytes(word ^ repeated(b'"')) | zero_bytes(word ^ repeated(b'\\'));
            if found != 0 {
                at += found.trailing_zeros() as usize / 8;
                break;
            }
            at += 8;
        }
        match text.get(at) {
            None => return text.len(),
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
        }
    }
}

const fn repeated(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The high bit of the lowest zero byte of `word`, perhaps of higher ones too; zero when no byte is zero.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(repeated(1)) & !word & repeated(0x80)
}

/// An error message without positions of the inner text and without quoted input.
pub fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    if text.starts_with("invalid type") || text.starts_with("invalid value") {
        // "invalid type: string \"...\", expected u64": the middle may quote the payload.
        let expected = text.rsplit_once(", expected ").map_or("another type", |(_, what)| what);
        return format!("a field has the wrong type, expected {expected}");
    }
    text.chars().take(160).collect()
}

/// Appends `text` as a JSON string.
pub fn push_str(out: &mut Vec<u8>, text: &str) {
    if text.len() >= SIMD_STRING_BYTES_MIN {
        return simd_json::serde::to_writer(out, text).expect("a Vec takes all writes");
    }
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut plain_from = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[plain_from..index]);
        plain_from = index + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain_from..]);
    out.push(b'"');
}

/// Appends `value` in decimal.
pub fn push_u64(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes the members of one JSON object; the closing brace comes with [`Object::end`].
#[derive(Debug)]
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Object<'a> {
    /// Opens an object at the end of `out`.
    pub fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    fn name(&mut self, name: &str) {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// Member with a string value. `name` needs no escaping.
    pub fn str(&mut self, name: &str, value: &str) -> &mut Self {
        self.name(name);
        push_str(self.out, value);
        self
    }

    /// Member with an unsigned number.
    pub fn u64(&mut self, name: &str, value: u64) -> &mut Self {
        self.name(name);
        push_u64(self.out, value);
        self
    }

    /// Member with a truth value.
    pub fn bool(&mut self, name: &str, value: bool) -> &mut Self {
        self.name(name);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    /// Member whose value is JSON text already.
    pub fn raw(&mut self, name: &str, json: &[u8]) -> &mut Self {
        self.name(name);
        self.out.extend_from_slice(json);
        self
    }

    /// Members that are JSON text already, without braces.
    pub fn members(&mut self, json: &[u8]) -> &mut Self {
        if !json.is_empty() {
            if !self.empty {
                self.out.push(b',');
            }
            self.empty = false;
            self.out.extend_from_slice(json);
        }
        self
    }

    /// Member that is an object.
    pub fn object(&mut self, name: &str, fill: impl FnOnce(&mut Object<'_>)) -> &mut Self {
        self.name(name);
        let mut inner = Object::begin(self.out);
        fill(&mut inner);
        inner.end();
        self
    }

    /// Member that is an array of what `push` appends for each item.
    pub fn array<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut push: impl FnMut(&mut Vec<u8>, T),
    ) -> &mut Self {
        self.name(name);
        self.out.push(b'[');
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            push(self.out, item);
        }
        self.out.push(b']');
        self
    }

    /// Closes the object.
    pub fn end(self) {
        self.out.push(b'}');
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn depth_ignores_brackets_in_strings() {
        assert_eq!(depth(br#"{"a":"[[[\"{{","b":[1,[2]]}"#), 3);
        assert_eq!(depth(b"1"), 0);
        assert_eq!(depth(&b"[".repeat(100_000)), 100_000);
    }

    #[test]
    fn errors_do_not_quote_input() {
        #[derive(serde::Deserialize, Debug)]
        #[allow(dead_code)]
        struct T {
            n: u64,
        }
        let error = serde_json::from_str::<T>(r#"{"n":"secret"}"#).unwrap_err();
        assert!(error.to_string().contains("secret"), "or this test says nothing");
        assert!(!describe(&error).contains("secret"));
    }

    /// [`depth`] byte by byte.
    fn depth_slowly(text: &[u8]) -> u32 {
        let (mut depth, mut deepest, mut in_string, mut escaped) = (0u32, 0, false, false);
        for byte in text {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = in_string,
                b'"' => in_string = !in_string,
                b'[' | b'{' if !in_string => depth += 1,
                b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        deepest
    }

    proptest! {
        #[test]
        fn strings_and_numbers_read_back(text in "(?s).{0,300}", number: u64) {
            let mut out = Vec::new();
            let mut object = Object::begin(&mut out);
            object.str("s", &text).u64("n", number).array("a", [1u64, 2], push_u64);
            object.end();
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(value["s"].as_str(), Some(text.as_str()));
            prop_assert_eq!(value["n"].as_u64(), Some(number));
            prop_assert_eq!(value["a"].as_array().unwrap().len(), 2);
        }

        #[test]
        fn every_control_character_is_escaped(before in "a{100,200}", byte in 0u8..0x20) {
            let text = format!("{before}{}", char::from(byte));
            let mut out = Vec::new();
            push_str(&mut out, &text);
            let read: String = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(read, text);
        }

        #[test]
        fn depth_skips_strings_at_once_like_byte_by_byte(text in "[\\[\\]{}\"\\\\a]{0,100}|(\"a{0,30}\\\\{0,3}\"\\[){0,9}") {
            prop_assert_eq!(depth(text.as_bytes()), depth_slowly(text.as_bytes()));
        }
    }
}
