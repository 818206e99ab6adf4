//! Tests of judging a source.

use serde_json::json;

use super::*;

fn problem_of(source: &str, target: Target) -> Option<String> {
    let variables = serde_json::from_value(json!({
        "s": {"type": "string"}, "n": {"type": "number"}, "link": {"type": "url"},
        "items": {"type": "list"}, "person": {"type": "object"},
    }))
    .expect("declarations");
    let finding = check(source, target, &variables).err()?;
    Some(format!("{}: {}", finding.line, finding.problem))
}

fn good(source: &str, target: Target) {
    assert_eq!(problem_of(source, target), None, "{source}");
}

fn bad(source: &str, target: Target, part: &str) {
    let problem = problem_of(source, target).unwrap_or_default();
    assert!(problem.contains(part), "{source}: {problem:?} has no {part:?}");
}

#[test]
fn what_texts_may_use() {
    for source in [
        "plain {# comment #} {% raw %}{{ x }}{% endraw %}",
        "{{ s|upper|truncate_chars(20) }} {{ n + 1 }} {{ -n }} {{ s ~ '!' }} {{ s[1:3] }}",
        "{{ (n - 1) * 2 + -n + 2 ** 3 + items|length * n|round(1) + person.a|float(0) + (n + 1) }}",
        "{% if n > 1 and s is defined %}a{% elif not s %}b{% else %}c{% endif %}",
        "{% for item in items if item.ok %}{{ loop.index + 1 }}: {{ item['a'].b }}{% else %}-{% endfor %}",
        "{% for key, value in person|items %}{{ key }}={{ value }}{% endfor %}",
        "{% set x = s|default('y') %}{% with z = x %}{{ z }}{% endwith %}",
        "{{ 'a' if n in [1, 2, 3] else 'b' }}{% for i in range(3) %}{{ i }}{% endfor %}",
    ] {
        good(source, Target::Text);
    }
}

#[test]
fn what_texts_may_not_use() {
    for (source, part) in [
        ("{{ s|safe }}", "1: there is no filter safe (values are always escaped)"),
        ("{{ s|e }}", "there is no filter e (values"),
        ("a\n{{ s|wordcount }}", "2: there is no filter wordcount; there are abs, capitalize"),
        ("{% if s is prime %}{% endif %}", "there is no test prime; there are boolean"),
        ("{{ debug() }}", "only range(…) may be called"),
        ("{{ items * 9 }}", "only numbers may be added or multiplied"),
        ("{{ s * 9 }}", "only numbers may be"),
        ("{{ (items|int(items)) * 9 }}", "only numbers may be"),
        ("{{ (items|sum) * 9 }}", "only numbers may be"),
        ("{{ (items or n) * 9 }}", "only numbers may be"),
        ("{{ person.a + n }}", "only numbers may be"),
        ("{% set x = items %}{{ x + x }}", "only numbers may be"),
        ("{% set n = items %}{{ n + n }}", "n is a variable of the template"),
        ("{% for n in items %}{{ n }}{% endfor %}", "n is a variable of the template"),
        ("{% for a, n in items %}{{ a }}{% endfor %}", "n is a variable of the template"),
        ("{% with n = items %}{{ n }}{% endwith %}", "n is a variable of the template"),
        ("{% set a.b = 1 %}", "only names may be set"),
        ("{{ s.upper() }}", "only range(…) may be called"),
        ("{{ range(*items) }}", "may not be spread"),
        ("{{ [items] }}", "may have only fixed values"),
        ("{{ {'a': 1} }}", "there are no maps"),
        ("{% set x %}{{ s }}{% endset %}", "only if, for, with and set (with =)"),
        ("{% filter upper %}x{% endfilter %}", "only if, for"),
        ("{% autoescape false %}x{% endautoescape %}", "only if, for"),
        ("{% do range(1) %}", "only if, for"),
        ("{% include 'x' %}", "unknown statement include"),
        ("{% extends 'x' %}", "unknown statement extends"),
        ("{% macro x() %}{% endmacro %}", "unknown statement macro"),
        ("{% for x in items recursive %}{{ x }}{% endfor %}", "may not be recursive"),
        ("a\n\n{{ s", "3: syntax error"),
        ("{{ s }", "syntax error"),
        ("{% if s %}", "syntax error"),
        ("{{ '\\ud800' }}", "bad string escape"),
        ("\u{fdd0}", "U+FDD0"),
    ] {
        bad(source, Target::Text, part);
    }
}

#[test]
fn sources_are_small_in_every_direction() {
    let long = "1+".repeat(TOKENS_PER_TAG_MAX);
    bad(&format!("{{{{ {long}1 }}}}"), Target::Text, "this expression is too long");
    bad(&"{{ s }}".repeat(TAGS_MAX + 1), Target::Text, "use fewer");
    let elifs = "{% elif n %}".repeat(ELIFS_MAX + 1);
    bad(&format!("{{% if n %}}{elifs}{{% endif %}}"), Target::Text, "more than 50 elif");
    let (open, close) = ("{% if n %}".repeat(400), "{% endif %}".repeat(400));
    bad(&format!("{open}{close}"), Target::Text, "recursion limit");
    let (open, close) = ("(".repeat(90), ")".repeat(90));
    bad(&format!("{{{{ {open}1{close} }}}}"), Target::Text, "recursion limit");
    // As deep as a source can be is still not deep for the stack of a worker.
    for chain in ["1+", "1 if n else ", "not ", "-", "n and "] {
        let most = chain.repeat(TOKENS_PER_TAG_MAX / chain.split_whitespace().count().max(2) - 1);
        let source = format!("{{{{ {most}1 }}}}");
        let worker = std::thread::Builder::new().stack_size(1 << 20);
        let checked = worker.spawn(move || problem_of(&source, Target::Text)).expect("a thread");
        let problem = checked.join().expect("no overflow");
        assert!(problem.is_none_or(|problem| problem.contains("recursion limit")), "{chain}");
    }
}

#[test]
fn every_branch_of_html_is_followed() {
    for source in [
        "<p>{% if n %}<b>{{ s }}</b>{% else %}{{ n }}{% endif %}</p>",
        "<p class=\"{% if n %}a{% else %}b{% endif %}\">x</p>",
        "<a href=\"{% if n %}https://a.example/{{ s }}{% else %}{{ link }}{% endif %}\">x</a>",
        "{% for x in items %}<li><a href=\"{{ x.url }}\">{{ x }}</a></li>{% endfor %}",
        "<p {% if n %}class=\"{{ s }}\"{% endif %}>",
    ] {
        good(source, Target::Html);
    }
    for (source, part) in [
        ("<p{% if n %} class=\"{{ s }}\"{% endif %}>", "both sides of this condition"),
        ("<p {{ s }}>", "may stand only in text"),
        ("<p>\n<script>x</script>", "1: a mail may not contain elements"),
        ("{% if n %}<b{% else %}<i{% endif %}>", "both sides of this condition"),
        ("{% for x in items %}<a href=\"{% endfor %}\">", "this loop has to end"),
        ("{% for x in items %}{% else %}<b {% endfor %}>", "this loop has to end"),
        ("<a href=\"{{ s }}\">", "variable of type url"),
        ("<a href=\"{% if n %}{{ link }}{% else %}{{ s }}{% endif %}\">", "variable of type url"),
        ("<a href=\"https://{{ s }}/\">", "may not stand in the scheme or host"),
        ("<a href=\"java{{ s }}\">", "may not stand in the scheme or host"),
        ("<p>{% if n %}<!-- {{ s }} -->{% endif %}", "may stand only in text"),
        ("<p class=\"{{ s }}", "ends inside a tag"),
    ] {
        bad(source, Target::Html, part);
    }
}

#[test]
fn every_branch_of_a_url_is_followed() {
    for source in [
        "{{ link }}",
        "{{ link }}/x/{{ s }}?y={{ n }}",
        "https://a.example/{% for x in items %}{{ x }}/{% endfor %}",
        "{% if link %}{{ link }}{% else %}https://a.example{% endif %}",
        "/runs/{{ person.id }}",
    ] {
        good(source, Target::Url);
    }
    for (source, part) in [
        ("{{ s }}", "variable of type url"),
        ("{{ person.url }}", "variable of type url"),
        ("{{ link|default('x') }}", "variable of type url"),
        ("{% if link %}{{ link }}{% endif %}/x", "both sides of this condition"),
        ("javascript:{{ s }}", "has to begin with"),
        ("//a.example", "may not begin with //"),
        ("https://{{ s }}.example/", "may not stand in the scheme or host"),
        ("www.example.com", "has to begin with"),
        ("{% for x in items %}{{ link }}{% endfor %}", "this loop has to end"),
    ] {
        bad(source, Target::Url, part);
    }
    let variables = serde_json::from_value(json!({"link": {"type": "url"}})).expect("declarations");
    let begins = |source| check(source, Target::Url, &variables).map(|checked| checked.begins_with);
    assert_eq!(begins("{{ link }}/x"), Ok(Some("link".to_owned())));
    assert_eq!(begins("/x/{{ link }}"), Ok(None));
}
