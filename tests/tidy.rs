//! Rules about the source text that no compiler lint checks: the floors between the crates, names that the core must
//! not mention, sizes, the place of `unsafe`, file headers.
//!
//! Every finding is collected and told at once, as `path:line: what is wrong`. Rules about names and functions look at
//! code only: comments, string literals and test modules are blanked out first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::Value;

/// Lines of a file without its test module.
const FILE_LINES_MAX: usize = 600;
/// Lines of a function, from its signature to the closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// Characters of a line.
const LINE_CHARS_MAX: usize = 140;
/// The only module that may say `unsafe`: this file and those in the folder of the same name.
const UNSAFE_MODULE: &str = "shards/engine/src/ring";
/// Files of that module that do; a reviewer must be able to read them in one sitting.
const UNSAFE_FILES_MAX: usize = 3;
/// Folders that hold Rust code of the product and its tests.
const ROOTS: &[&str] = &["src", "shards", "loadtest", "tests", "benches"];

/// Direct dependencies that a crate must not have, `*` at the end for a prefix, with the reason.
const FLOORS: &[(&str, &[&str], &str)] = &[
    (
        "shards/core",
        &[
            "tokio*",
            "glommio",
            "io-uring",
            "async-*",
            "futures*",
            "mio",
            "socket2",
            "hyper*",
            "axum*",
            "reqwest",
            "rustls*",
            "crossbeam*",
            "parking_lot",
            "gateway-engine",
        ],
        "the core is sans-IO",
    ),
    (
        "shards/engine",
        &["tokio*", "sqlx*", "fred", "redis", "reqwest", "axum*", "hyper*", "serde_json"],
        "shard threads run glommio and move bytes only",
    ),
    (".", &["glommio", "io-uring"], "only the engine names the shard runtime"),
    (
        "loadtest",
        &["gateway-engine", "archmesh-gateway", "tokio*", "glommio"],
        "the load generator shares nothing with the gateway but the codecs",
    ),
];

/// Packages that must not be anywhere below the core, direct or not.
const CORE_TREE_FORBIDDEN: &[&str] =
    &["tokio", "glommio", "io-uring", "async-io", "mio", "socket2"];

/// Names that the core's code must not mention. Its test modules may.
const CORE_FORBIDDEN: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "std::net::Tcp",
    "std::net::Udp",
    "std::thread",
    "std::fs",
    "Mutex",
    "RwLock",
    "thread_rng",
    "rand::rng",
    "rand::random",
    "std::collections::HashMap",
    "std::collections::HashSet",
    "collections::{HashMap",
    "collections::{HashSet",
    "async fn",
    ".await",
];

/// Names that `src` must not mention.
const SRC_FORBIDDEN: &[&str] = &["glommio::", "io_uring::"];

/// Words that mark unfinished work, put together here so that this file does not hold them.
fn unfinished_words() -> [String; 3] {
    [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()]
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ROOTS.iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(|entry| entry.expect("a readable folder entry")) {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if name != "target" && name != "node_modules" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("files are found below the root").display().to_string()
}

/// One source file: its text as written, and the same with comments, literals and test modules blanked out.
struct Source {
    name: String,
    text: String,
    code: String,
    test_lines: usize,
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("a source file is UTF-8");
        let (code, test_lines) = without_tests(&without_comments_and_literals(&text));
        Self { name: relative(path), text, code, test_lines }
    }

    fn is_test(&self) -> bool {
        ["tests/", "/tests/", "/fuzz/", "benches/"]
            .iter()
            .any(|part| self.name.starts_with(part) || self.name.contains(part))
            || self.name.ends_with("/tests.rs")
    }
}

/// Replaces every character of comments, strings and character literals by a space; line breaks stay.
fn without_comments_and_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at).unwrap_or(at);
        if end > at {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// End of the comment or literal that begins at `at`, when one does.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let rest = &chars[at..];
    let word_before = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match rest {
        ['/', '/', ..] => Some(at + rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())),
        ['/', '*', ..] => Some(block_comment_end(chars, at)),
        ['"', ..] => Some(string_end(chars, at + 1)),
        ['b' | 'c', '"', ..] if !word_before => Some(string_end(chars, at + 2)),
        ['r', '#' | '"', ..] if !word_before => raw_string_end(chars, at + 1),
        ['b' | 'c', 'r', '#' | '"', ..] if !word_before => raw_string_end(chars, at + 2),
        ['\'', '\\', _, tail @ ..] => {
            Some(at + 4 + tail.iter().position(|c| *c == '\'').unwrap_or(tail.len()))
        }
        ['\'', _, '\'', ..] => Some(at + 3),
        _ => None,
    }
    .map(|end| end.min(chars.len()))
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    chars.len()
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start..].iter().take_while(|c| **c == '#').count();
    let mut at = start + hashes;
    if chars.get(at) != Some(&'"') {
        return None;
    }
    at += 1;
    while at < chars.len() {
        let tail = &chars[at + 1..];
        if chars[at] == '"' && tail.iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return Some(at + 1 + hashes);
        }
        at += 1;
    }
    Some(chars.len())
}

/// Blanks out every item under `#[cfg(test)]`, to its closing brace at the same indentation, and counts its lines.
fn without_tests(code: &str) -> (String, usize) {
    let mut out = String::with_capacity(code.len());
    let mut blanked = 0;
    let mut inside: Option<&str> = None;
    for line in code.lines() {
        let indentation = &line[..line.len() - line.trim_start().len()];
        if inside.is_none() && line.trim_start().starts_with("#[cfg(test)]") {
            inside = Some(indentation);
        }
        if let Some(outer) = inside {
            blanked += 1;
            let ends = line.trim_end().ends_with(['}', ';']);
            if ends && indentation == outer {
                inside = None;
            }
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    (out, blanked)
}

/// `(line, lines)` of each function with a body, by indentation: rustfmt puts the closing brace under the signature.
fn functions(code: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let is_function = body.split_whitespace().take(6).any(|word| word == "fn")
            && ["fn ", "pub", "const ", "async ", "unsafe ", "extern "]
                .iter()
                .any(|word| body.starts_with(word));
        if !is_function || body.trim_end().ends_with('}') || body.trim_end().ends_with(';') {
            continue;
        }
        let indentation = &line[..line.len() - body.len()];
        let closing = lines[start + 1..].iter().enumerate().find_map(|(below, line)| {
            let rest = line.strip_prefix(indentation)?;
            let declared_only = rest.starts_with(')') && rest.ends_with(';');
            (rest.starts_with('}') || declared_only).then_some((below, declared_only))
        });
        if let Some((below, false)) = closing {
            found.push((start + 1, below + 2));
        }
    }
    found
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

fn mentions(source: &Source, names: &[&str], why: &str, findings: &mut Vec<String>) {
    for name in names {
        for (offset, _) in source.code.match_indices(name) {
            let before = source.code[..offset].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let line = line_of(&source.code, offset);
            findings.push(format!("{}:{line}: mentions `{name}`: {why}", source.name));
        }
    }
}

fn check_text(source: &Source, findings: &mut Vec<String>) {
    if !source.text.starts_with("//!") {
        findings.push(format!("{}:1: does not open with `//!`", source.name));
    }
    for (index, line) in source.text.lines().enumerate() {
        let place = format!("{}:{}", source.name, index + 1);
        let width = line.chars().count();
        if width > LINE_CHARS_MAX {
            findings.push(format!("{place}: {width} characters, at most {LINE_CHARS_MAX}"));
        }
        for word in unfinished_words() {
            if line.split(|c: char| !c.is_alphanumeric()).any(|part| part == word) {
                findings.push(format!("{place}: says `{word}`; finish it or open an issue"));
            }
        }
    }
}

fn check_sizes(source: &Source, findings: &mut Vec<String>) {
    if !source.is_test() {
        let lines = source.text.lines().count() - source.test_lines;
        if lines > FILE_LINES_MAX {
            findings.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX}", source.name));
        }
    }
    for (line, lines) in functions(&source.code) {
        if lines > FUNCTION_LINES_MAX {
            let name = &source.name;
            findings.push(format!(
                "{name}:{line}: function of {lines} lines, at most {FUNCTION_LINES_MAX}"
            ));
        }
    }
}

/// Offsets of the keyword `unsafe` in code.
fn unsafe_uses(code: &str) -> impl Iterator<Item = usize> {
    let is_part_of_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices("unsafe").map(|(offset, _)| offset).filter(move |offset| {
        let before = code[..*offset].chars().next_back();
        let after = code[offset + "unsafe".len()..].chars().next();
        !is_part_of_name(before) && !is_part_of_name(after)
    })
}

fn may_be_unsafe(name: &str) -> bool {
    let below = name.strip_suffix(".rs").and_then(|name| name.strip_prefix(UNSAFE_MODULE));
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn check_unsafe(source: &Source, findings: &mut Vec<String>) {
    if may_be_unsafe(&source.name) {
        return;
    }
    for offset in unsafe_uses(&source.code) {
        let line = line_of(&source.code, offset);
        findings.push(format!("{}:{line}: `unsafe` belongs in {UNSAFE_MODULE}", source.name));
    }
}

fn matches_pattern(name: &str, pattern: &str) -> bool {
    pattern.strip_suffix('*').map_or(name == pattern, |prefix| name.starts_with(prefix))
}

fn read_toml(path: &Path) -> Value {
    let text = fs::read_to_string(path).expect("a manifest");
    text.parse::<toml::Table>().map(Value::Table).expect("a manifest is TOML")
}

/// Names under `[dependencies]` and `[build-dependencies]`; development dependencies may look up.
fn dependencies(folder: &str) -> BTreeSet<String> {
    let manifest = read_toml(&root().join(folder).join("Cargo.toml"));
    ["dependencies", "build-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(section)?.as_table())
        .flat_map(|table| table.keys().cloned())
        .collect()
}

/// Every package below `name` in Cargo.lock. Development dependencies of `name` itself are left out.
fn tree_below(name: &str, folder: &str) -> BTreeSet<String> {
    let lock = read_toml(&root().join("Cargo.lock"));
    let packages = lock["package"].as_array().expect("the lock lists packages");
    let mut below: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().expect("a package has a name");
        let list = package.get("dependencies").and_then(Value::as_array);
        let names = list.into_iter().flatten().filter_map(Value::as_str);
        let entry = below.entry(name).or_default();
        entry.extend(names.map(|full| full.split(' ').next().unwrap_or(full)));
    }
    let direct = dependencies(folder);
    assert!(below.contains_key(name), "{name} is in Cargo.lock");
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = direct.iter().map(String::as_str).collect();
    while let Some(next) = open.pop() {
        if found.insert(next.to_owned()) {
            open.extend(below.get(next).into_iter().flatten());
        }
    }
    found
}

fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn source_text_keeps_the_rules() {
    let files = rust_files();
    assert!(files.len() >= 10, "the source files were found, not only {}", files.len());
    let mut findings = Vec::new();
    for source in files.iter().map(|path| Source::read(path)) {
        check_text(&source, &mut findings);
        check_sizes(&source, &mut findings);
        check_unsafe(&source, &mut findings);
        if source.name.starts_with("shards/core/src/") && !source.is_test() {
            mentions(&source, CORE_FORBIDDEN, "the core is sans-IO and replayable", &mut findings);
        }
        if source.name.starts_with("src/") {
            mentions(
                &source,
                SRC_FORBIDDEN,
                "only the engine names the shard runtime",
                &mut findings,
            );
        }
    }
    assert_none(&findings);
}

#[test]
fn arrows_between_the_crates_only_go_down() {
    let mut findings = Vec::new();
    for (folder, forbidden, why) in FLOORS {
        for dependency in dependencies(folder) {
            if forbidden.iter().any(|pattern| matches_pattern(&dependency, pattern)) {
                findings.push(format!("{folder}/Cargo.toml: depends on {dependency}: {why}"));
            }
        }
    }
    let below_core = tree_below("gateway-core", "shards/core");
    for name in CORE_TREE_FORBIDDEN.iter().filter(|name| below_core.contains(**name)) {
        findings.push(format!("shards/core/Cargo.toml: pulls in {name}: the core is sans-IO"));
    }
    assert_none(&findings);
}

#[test]
fn unsafe_code_stays_in_few_files() {
    let names: Vec<String> = rust_files()
        .iter()
        .map(|path| Source::read(path))
        .filter(|source| unsafe_uses(&source.code).next().is_some())
        .map(|source| source.name)
        .collect();
    assert!(names.len() <= UNSAFE_FILES_MAX, "at most {UNSAFE_FILES_MAX}: {names:?}");
}

#[test]
fn the_keyword_is_told_from_names() {
    let code = "#![deny(unsafe_code)]\nunsafe { f() }\nunsafe fn g();\nnot_unsafe()";
    assert_eq!(unsafe_uses(code).map(|offset| line_of(code, offset)).collect::<Vec<_>>(), [2, 3]);
    assert!(
        may_be_unsafe("shards/engine/src/ring.rs") && may_be_unsafe("shards/engine/src/ring/a.rs")
    );
    assert!(!may_be_unsafe("shards/engine/src/rings.rs") && !may_be_unsafe("src/ring.rs"));
}

#[test]
fn blanking_keeps_code_and_lines() {
    let text = concat!(
        "a(\"x // \\\" y\"); // Mutex\n",
        "/* b /* c */ d */ e('\\'', 'f', b\"g\");\n",
        "let r = r#\"h \" i\"#; j::<'k>()"
    );
    let code = without_comments_and_literals(text);
    let visible: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    assert_eq!(visible, "a();e(,,);letr=;j::<'k>()");
    assert_eq!(code.lines().count(), text.lines().count());
}

#[test]
fn test_modules_are_left_out() {
    let code = "fn a() {\n}\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {\n}\n";
    assert_eq!(without_tests(code), ("fn a() {\n}\n\n\n\n\n\nfn c() {\n}\n".to_owned(), 5));
    let code = "#[cfg(test)]\nmod tests;\nfn a() {}\n";
    assert_eq!(without_tests(code), ("\n\nfn a() {}\n".to_owned(), 2));
}

#[test]
fn function_lengths_are_counted() {
    let code = "impl A {\n    pub fn b(\n        c: D,\n    ) -> E {\n        f()\n    }\n    fn g() {}\n}\n";
    assert_eq!(functions(code), [(2, 5)]);
    let code =
        "trait A {\n    fn b(\n        c: D,\n    ) -> E;\n    fn f() {\n        g();\n    }\n}\n";
    assert_eq!(functions(code), [(5, 3)]);
}

/// Names that a text gives to metrics and tables.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let named = words.filter(|word| word.starts_with("archmesh_") && !word.ends_with('_'));
    let whole = |word: &str| {
        let parts = ["_bucket", "_count", "_sum"];
        parts.into_iter().find_map(|part| word.strip_suffix(part)).unwrap_or(word).to_owned()
    };
    named.map(whole).collect()
}

/// Documents and alerts name what there is.
#[test]
fn names_in_documents_exist() {
    let mut known: BTreeSet<String> =
        ["archmesh_new", "archmesh_owner"].map(str::to_owned).into_iter().collect();
    for path in rust_files() {
        known.extend(names_in(&fs::read_to_string(&path).unwrap()));
    }
    let below = |folder: &str, ending: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.to_str().unwrap().ends_with(ending)).collect()
    };
    for path in below("migrations/postgres", ".sql") {
        known.extend(names_in(&fs::read_to_string(&path).unwrap()));
    }
    let mut findings = Vec::new();
    let mut documents = below("docs", ".md");
    documents.extend([root().join("README.md"), root().join("config/alerts.yml")]);
    for path in documents {
        let text = fs::read_to_string(&path).unwrap();
        let unknown = names_in(&text).into_iter().filter(|name| !known.contains(name));
        findings.extend(unknown.map(|name| format!("{}: {name} does not exist", relative(&path))));
    }
    assert_none(&findings);
}
