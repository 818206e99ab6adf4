//! Tests that values stay values, whatever they are and wherever they stand.

use proptest::prelude::*;
use serde_json::json;

use super::tests::{compile, one, vars};
use super::*;

/// Every position of HTML that a variable can have.
const HTML: &str = "<!DOCTYPE html><title>{{ s }}</title><style>p { color: red }</style>\
    <!--[if mso]><b>x</b><![endif]--><p class=\"{{ s }}\" title='{{ s }}' data-x=\"a{{ s }}b\">{{ s }}</p>\
    {% for x in items %}<i>{{ x }}{{ x|upper }}{{ x ~ s }}{{ x|replace('a', s) }}</i>{% endfor %}\
    <a href=\"https://a.example/{{ s }}?q={{ s }}#{{ s }}\">{{ person.s }}</a><a href='/{{ n }}{{ s }}'>x</a>";

fn mail(template: &Template, s: &str) -> Result<(String, String, Option<String>), RenderError> {
    let given = json!({"s": s, "n": 1, "items": [s], "person": {"s": s}});
    match template.render(None, DeliveryChannel::Email, &vars(&given))?.body {
        Body::Email { subject, text, html } => Ok((subject, text, html)),
        other => panic!("{other:?}"),
    }
}

fn mail_template() -> Template {
    let mut document = one("email.html", HTML);
    document["locales"]["en"]["email"]["subject"] = json!("Re: {{ s }} {{ items|join }}");
    document["locales"]["en"]["title"] = json!("{{ s }}");
    document["locales"]["en"]["action"] = json!({"label": "{{ s }}", "url": "/x/{{ s }}"});
    compile(&document).expect("compiles")
}

#[test]
fn attacks_stay_text() {
    let template = mail_template();
    for attack in [
        "<script>alert(1)</script>",
        "\"><script>alert(1)</script>",
        "'><svg/onload=alert(1)>",
        "\" autofocus onfocus=alert(1) x=\"",
        "</title></style></p><script>",
        "--><script>",
        "{{ 7*7 }}{% for %}",
        "&lt;script&gt;",
        "\u{fdd1}<script>\u{fdd0}",
        "\u{fdd0}\u{fdd1}<b>",
        "<scr\u{0}ipt>",
        "<\u{200b}script>",
        "\u{ff1c}script\u{ff1e}",
        "javascript:alert(1)",
        "x\r\nBcc: evil@example.com\r\n\r\n<script>",
    ] {
        let (subject, _, html) = mail(&template, attack).expect(attack);
        let html = html.expect("html").to_lowercase();
        assert!(!html.contains("<script") && !html.contains("<svg"), "{html}");
        assert!(!subject.contains(['\r', '\n', '\0']), "{subject:?}");
        assert!(!html.contains("49"), "values are not templates: {html}");
    }
    let (subject, text, _) = mail(&template, "a\r\nBcc: x@example.com").expect("renders");
    assert_eq!(subject, "Re: a Bcc: x@example.com a Bcc: x@example.com");
    assert_eq!(text, "M");
}

#[test]
fn action_urls_lead_where_the_author_says() {
    let url = |source: &str, given: Json| {
        let template = compile(&one("action.url", source)).expect(source);
        let rendered = template.render(None, DeliveryChannel::InApp, &vars(&given));
        rendered.map(|rendered| rendered.action.map(|action| action.url))
    };
    for (source, given, expected) in [
        ("{{ link }}", json!({"link": "https://a.example/x y"}), "https://a.example/x%20y"),
        (
            "{{ link }}/r/{{ s }}",
            json!({"link": "https://a.example", "s": "a/b?"}),
            "https://a.example/r/a%2Fb%3F",
        ),
        (
            " /r?next={{ link }}\n",
            json!({"link": "https://a.example"}),
            "/r?next=https%3A%2F%2Fa.example",
        ),
        ("/r/{{ s }}", json!({"s": "\u{202e}\tä"}), "/r/%C3%A4"),
        ("/{{ n }}/{{ s|upper }}", json!({"n": 1.5, "s": "&"}), "/1.5/%26"),
    ] {
        assert_eq!(url(source, given).expect(source).as_deref(), Some(expected), "{source}");
    }
    for (source, given) in [
        ("/{{ s }}/evil.example", json!({"s": ""})),
        ("/{{ s }}/evil.example", json!({"s": "\t"})),
        ("/a/{{ s }}/b", json!({"s": ".."})),
        ("{{ link }}{{ s }}", json!({"link": "https://a.example", "s": ".evil.example"})),
        ("/{{ s }}", json!({"s": "a".repeat(3_000)})),
    ] {
        let error = url(source, given).expect_err(source).to_string();
        assert!(error.starts_with("en.action.url"), "{error}");
    }
    let error = url("{{ link }}", json!({"link": "java\tscript:alert(1)"})).expect_err("refused");
    assert!(error.to_string().starts_with("variable link does not begin with https://"), "{error}");
}

/// Pieces of sources, good and bad.
fn source_piece() -> impl Strategy<Value = String> {
    let pieces = [
        "{{ s }}",
        "{{ s|upper }}",
        "{% if n %}",
        "{% else %}",
        "{% endif %}",
        "{% for x in items %}",
        "{{ x }}",
        "{% endfor %}",
        "{% set y = s %}",
        "{{ y }}",
        "{#",
        "#}",
        "{{",
        "}}",
        "{%",
        "%}",
        "<p>",
        "<a href=\"",
        "<a href='",
        "\">",
        "'>",
        "<!--",
        "-->",
        "<style>",
        "</style>",
        "<",
        ">",
        " class=\"",
        " title=",
        "https://",
        "/",
        "//",
        ":",
        "a",
        " ",
        "\n",
        "-",
        "'",
        "\"",
        "=",
        "\u{0}",
    ];
    prop_oneof![
        4 => proptest::sample::select(pieces.to_vec()).prop_map(str::to_owned),
        1 => "\\PC{0,3}",
    ]
}

/// Links that browsers may read in ways of their own.
const LINKS: &str = concat!(
    "[a-zA-Z:/\\\\?#@.\t \u{a0}\u{200b}]{0,12}",
    "|https?:[/\\\\]{0,3}.{0,9}",
    "|(/|https://a.b)[\"<>`./\\\\]{0,5}",
);

proptest! {
    #[test]
    fn values_never_leave_their_position(s in any::<String>()) {
        let template = mail_template();
        let fixed = mail(&template, "x").expect("renders").2.expect("html");
        if let Ok((subject, _, html)) = mail(&template, &s) {
            let html = html.expect("html");
            prop_assert!(!html.to_lowercase().contains("<script"));
            for sign in ['<', '>', '"', '\''] {
                prop_assert_eq!(html.matches(sign).count(), fixed.matches(sign).count());
            }
            let ends_line = |c: char| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c);
            prop_assert!(!subject.contains(ends_line), "{:?}", subject);
        } else {
            prop_assert!(matches!(finish::clean_line(&s).as_str(), "." | ".."), "{:?}", s);
        }
    }

    #[test]
    fn urls_are_of_the_web_or_refused(link in LINKS, s in any::<String>()) {
        let template = compile(&one("action.url", "{{ link }}/{{ s }}")).expect("compiles");
        let given = vars(&json!({"link": link, "s": s}));
        if let Ok(rendered) = template.render(None, DeliveryChannel::InApp, &given) {
            let url = rendered.action.expect("an action").url;
            let path = url.starts_with('/') && !url.starts_with("//");
            prop_assert!(path || url.starts_with("https://") || url.starts_with("http://"), "{}", url);
            prop_assert!(url.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'<' && b != b'\\'));
        }
    }

    #[test]
    fn no_source_breaks_the_engine(pieces in proptest::collection::vec(source_piece(), 0..14)) {
        let source = pieces.concat();
        let given = json!({"s": "<script>\"'", "n": 1, "items": ["<script>\"'"]});
        for path in ["email.html", "email.text", "action.url", "title"] {
            let Ok(template) = compile(&one(path, &source)) else { continue };
            for (_, rendered) in template.preview(None, &vars(&given)) {
                if let Ok(Rendered { body: Body::Email { html: Some(html), .. }, .. }) = rendered {
                    prop_assert!(!html.contains("<script"), "{}", html);
                }
            }
        }
    }
}
