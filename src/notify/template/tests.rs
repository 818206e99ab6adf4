//! Tests of whole templates. What single parts refuse is tested beside them.
#![allow(clippy::needless_pass_by_value, reason = "values are written where they are given")]

use serde_json::json;

use super::*;

/// A document with a text for every place.
fn document() -> Json {
    json!({
        "name": "workflow_done",
        "variables": {
            "workflow": {"type": "string", "required": true, "max_length": 200, "sample": "Import"},
            "progress": {"type": "number", "default": 0},
            "link": {"type": "url", "sample": "https://a.example/runs/7"},
            "items": {"type": "list"},
            "person": {"type": "object", "sample": {"name": "Ada"}},
            "ok": {"type": "boolean"},
        },
        "locales": {
            "en": {
                "title": "{{ workflow }} is done",
                "message": "{{ workflow }}: {{ progress }} %{% for item in items %}\n- {{ item.name }}{% endfor %}",
                "action": {"label": "Open {{ workflow }}", "url": "{{ link }}/x/{{ workflow }}"},
                "email": {
                    "subject": "[x] {{ workflow }}",
                    "text": "Hello {{ person.name|default('you') }}",
                    "html": "<p title=\"{{ workflow }}\">{{ workflow }}</p>\
                        {% if link %}<a href=\"{{ link }}\">x</a>{% endif %}",
                },
                "sms": {"text": "{{ workflow|truncate_chars(5) }}"},
                "web_push": {"title": "Push {{ workflow }}", "body": "Body"},
            },
            "de": {"title": "{{ workflow }} ist fertig", "message": "Fertig"},
            "zh-Hant": {"title": "完成", "message": "完成了"},
        },
        "fallback_locale": "en",
        "category": "workflow_complete",
        "priority": "medium",
    })
}

/// A template whose only text that counts is `source`.
pub(super) fn one(path: &str, source: &str) -> Json {
    let mut texts = json!({"title": "T", "message": "M"});
    match path.split_once('.') {
        Some(("action", _)) => texts["action"] = json!({"label": "L", "url": source}),
        Some((section, field)) => texts[section][field] = json!(source),
        None => texts[path] = json!(source),
    }
    json!({
        "name": "one",
        "variables": {
            "s": {"type": "string"}, "n": {"type": "number"}, "link": {"type": "url"},
            "items": {"type": "list"}, "person": {"type": "object"},
        },
        "locales": {"en": texts},
        "fallback_locale": "en",
    })
}

pub(super) fn compile(document: &Json) -> Result<Template, TemplateError> {
    Template::from_json(document.to_string().as_bytes())
}

pub(super) fn vars(json: &Json) -> Map<String, Json> {
    json.as_object().expect("an object").clone()
}

fn render(template: &Template, locale: &str, channel: DeliveryChannel, given: Json) -> Rendered {
    template.render(Some(locale), channel, &vars(&given)).expect("renders")
}

fn one_text(source: &str, given: Json) -> Result<String, RenderError> {
    let template = compile(&one("email.text", source)).expect(source);
    match template.render(None, DeliveryChannel::Email, &vars(&given))?.body {
        Body::Email { text, .. } => Ok(text),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_delivery_channel_has_its_texts() {
    let template = compile(&document()).expect("compiles");
    let given =
        json!({"workflow": "A&B", "link": "https://a.example/runs", "items": [{"name": "i"}]});
    let action = Some(Action {
        label: "Open A&B".to_owned(),
        url: "https://a.example/runs/x/A%26B".to_owned(),
    });
    let title = || "A&B is done".to_owned();
    let message = || "A&B: 0 %\n- i".to_owned();
    for (channel, body) in [
        (DeliveryChannel::InApp, Body::InApp { title: title(), message: message() }),
        (DeliveryChannel::Webhook, Body::Webhook { title: title(), message: message() }),
        (DeliveryChannel::Sms, Body::Sms { text: "A&B".to_owned() }),
        (
            DeliveryChannel::WebPush,
            Body::WebPush { title: "Push A&B".to_owned(), body: "Body".to_owned() },
        ),
        (
            DeliveryChannel::Email,
            Body::Email {
                subject: "[x] A&B".to_owned(),
                text: "Hello you".to_owned(),
                html: Some(
                    "<p title=\"A&amp;B\">A&amp;B</p>\
                     <a href=\"https:&#x2f;&#x2f;a.example&#x2f;runs\">x</a>"
                        .to_owned(),
                ),
            },
        ),
    ] {
        let rendered = render(&template, "en", channel, given.clone());
        assert_eq!(rendered, Rendered { locale: "en".to_owned(), action: action.clone(), body });
    }
    assert_eq!(template.name(), "workflow_done");
    assert_eq!(template.priority(), Some(Priority::Normal));
    assert_eq!(template.category().map(ToString::to_string).as_deref(), Some("workflow_complete"));
}

#[test]
fn delivery_channels_without_a_section_fall_back() {
    let template = compile(&document()).expect("compiles");
    let given = json!({"workflow": "A"});
    let body = |channel| render(&template, "de", channel, given.clone()).body;
    let (title, message) = ("A ist fertig".to_owned(), "Fertig".to_owned());
    assert_eq!(
        body(DeliveryChannel::Email),
        Body::Email { subject: title.clone(), text: message.clone(), html: None }
    );
    assert_eq!(body(DeliveryChannel::WebPush), Body::WebPush { title, body: message.clone() });
    assert_eq!(body(DeliveryChannel::Sms), Body::Sms { text: message });
}

#[test]
fn what_was_not_written_for_a_delivery_channel_is_cut() {
    let template = compile(&one("message", "{{ s }}")).expect("compiles");
    let given = json!({"s": "ä".repeat(5_000)});
    let Body::Sms { text } = render(&template, "en", DeliveryChannel::Sms, given.clone()).body
    else {
        panic!("another delivery channel")
    };
    assert_eq!(text, format!("{}…", "ä".repeat(798)));
    let template = compile(&one("sms.text", "{{ s }}")).expect("compiles");
    let error = template.render(None, DeliveryChannel::Sms, &vars(&given)).expect_err("too long");
    assert_eq!(
        error.to_string(),
        "en.sms.text is longer than 1600 bytes when rendered; shorten it with |truncate_chars(n)"
    );
}

#[test]
fn locales_fall_back() {
    let template = compile(&document()).expect("compiles");
    for (wanted, expected) in [
        (Some("de"), "de"),
        (Some("de-CH"), "de"),
        (Some("DE_at"), "de"),
        (Some("zh-hant-tw"), "zh-Hant"),
        (Some("zh"), "en"),
        (Some("fr-FR"), "en"),
        (Some("no such thing"), "en"),
        (None, "en"),
    ] {
        let rendered =
            template.render(wanted, DeliveryChannel::InApp, &vars(&json!({"workflow": "A"})));
        assert_eq!(rendered.expect("renders").locale, expected, "{wanted:?}");
    }
}

#[test]
fn an_action_without_its_url_is_left_out() {
    let template = compile(&document()).expect("compiles");
    let action = |given| render(&template, "en", DeliveryChannel::InApp, given).action;
    assert_eq!(action(json!({"workflow": "A"})), None);
    assert_eq!(action(json!({"workflow": "A", "link": null})), None);
    assert!(action(json!({"workflow": "A", "link": "/x"})).is_some());
}

#[test]
fn documents_that_are_refused() {
    for (pointer, value, part) in [
        ("/name", json!("Workflow Done"), "name is no name: use 1 to 64"),
        (
            "/fallback_locale",
            json!("fr"),
            "fallback_locale \"fr\" is none of the locales (de, en, zh-Hant)",
        ),
        ("/locales", json!({}), "locales has 0 entries; give 1 to 50"),
        (
            "/locales",
            json!({"e n": {"title": "a", "message": "b"}}),
            "locales.e n is no language tag",
        ),
        ("/locales/en/title", json!(" \n"), "locales.en.title is empty"),
        ("/locales/en/title", json!("a".repeat(2049)), "has 2049 bytes; write at most 2048"),
        ("/locales/en/title", json!("{{ workflow "), "en.title, line 1: syntax error"),
        (
            "/locales/de/message",
            json!("a\n{{ workflow|x }}"),
            "de.message, line 2: there is no filter x",
        ),
        (
            "/locales/en/title",
            json!("{{ workflo }} {{ b.c }}"),
            "not declared: en.title: b, en.title: workflo; add",
        ),
        (
            "/variables/workflow/max_length",
            json!(0),
            "variables.workflow.max_length is 0; give 1 to 10000",
        ),
        (
            "/variables/workflow/sample",
            json!(1),
            "variables.workflow.sample is a number; give a string",
        ),
        (
            "/variables/progress/default",
            json!("0"),
            "variables.progress.default is a string; give a number",
        ),
        (
            "/variables/link/sample",
            json!("javascript:x"),
            "variables.link.sample does not begin with https://",
        ),
        (
            "/variables/ok",
            json!({"type": "boolean", "max_length": 1}),
            "has no meaning for true or false",
        ),
        (
            "/variables/ok",
            json!({"type": "boolean", "required": true, "default": true}),
            "remove one of the two",
        ),
        (
            "/variables/ok",
            json!({"type": "boolean", "a": 1}),
            "variables.ok.a cannot be read: unknown field",
        ),
        ("/category", json!("a b"), "category cannot be read: \"a b\" is no category"),
        ("/priority", json!("urgent"), "priority cannot be read: \"urgent\" is no priority"),
    ] {
        let mut document = document();
        *document.pointer_mut(pointer).expect(pointer) = value;
        let text = compile(&document).expect_err(pointer).to_string();
        assert!(text.contains(part), "{pointer}: {text}");
    }
}

#[test]
fn names_and_numbers_that_are_refused() {
    for name in ["1a", "a-b", "a.b", "", "loop", "NOT", "range", "ä", &"a".repeat(65)] {
        let mut document = document();
        document["variables"][name] = json!({"type": "string"});
        let text = compile(&document).expect_err(name).to_string();
        assert!(text.contains("is no name"), "{name}: {text}");
    }
    let mut twice = document();
    twice["locales"]["EN"] = json!({"title": "a", "message": "b"});
    assert!(compile(&twice).expect_err("twice").to_string().contains("is there twice"));
    let mut many = document();
    many["variables"] =
        (0..=VARIABLES_MAX).map(|n| (format!("v{n}"), json!({"type": "url"}))).collect();
    assert!(compile(&many).expect_err("many").to_string().contains("declare at most 64"));
}

#[test]
fn what_is_not_given_fails_where_it_is_used() {
    let error = one_text("a\n{{ person.nick }}", json!({"person": {"name": "x", "nick": null}}));
    let text = error.expect_err("undefined").to_string();
    assert!(
        text.starts_with("en.email.text, line 2: undefined value: `person.nick` is undefined"),
        "{text}"
    );
    assert!(text.contains("|default(…)"), "{text}");
    assert!(one_text("{{ s }}", json!({})).is_err());
    assert!(one_text("{{ s|upper }}", json!({})).is_err());
    assert!(one_text("{% for x in s %}{% endfor %}", json!({})).is_err());
    assert_eq!(
        one_text("{% for x in items %}{{ x }}{% else %}-{% endfor %}", json!({})).as_deref(),
        Ok("-")
    );
    assert_eq!(one_text("{{ person.name|default('you') }}", json!({})).as_deref(), Ok("you"));
    for (source, expected) in [
        ("{% if s %}a{% else %}b{% endif %}", "b"),
        ("{{ s|default('c') }}", "c"),
        ("{{ s is defined }}", "false"),
        ("{{ person.nick|default('d') }}{{ n / 2 }}", "d2.5"),
        ("{{ 'x' if s }}y", "y"),
    ] {
        let given = json!({"person": {"nick": null}, "n": 5});
        assert_eq!(one_text(source, given).as_deref(), Ok(expected), "{source}");
    }
    for source in
        ["{{ items }}", "{{ person }}", "{{ items[0] }}", "{{ n / 0 }}", "{{ n|upper|abs }}"]
    {
        let given = json!({"person": {}, "items": [null], "n": 1});
        let error = one_text(source, given).expect_err(source);
        assert!(matches!(error, RenderError::Text { line: 1, .. }), "{source}: {error}");
    }
}

#[test]
fn work_is_bounded() {
    let items: Vec<u32> = (0..1_000).collect();
    let given = json!({"items": items, "s": "x".repeat(1_000)});
    for source in [
        "{% for a in items %}{% for b in items %}{% if b < 0 %}x{% endif %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in items %}{% set b = range(100000) ~ s %}{% endfor %}",
        "{% for a in items %}{% if range(100000) == range(100000)|reverse %}{% endif %}{% endfor %}",
        "{% for a in items %}{% if -1 in range(100000) %}{% endif %}{% endfor %}",
        "{% for a in items %}{% set b = range(100000)|upper %}{% endfor %}",
        "{{ s|replace('', s)|replace('', s)|replace('', s) }}",
        "{{ range(100000)|join(s) }}",
        "{{ range(100000)|sort|reverse|sort|sum }}",
        "{% for a in items %}{{ s|truncate_chars(999) }}{% endfor %}",
    ] {
        let started = std::time::Instant::now();
        let error = one_text(source, given.clone()).expect_err(source);
        assert!(started.elapsed().as_secs() < 5, "{source} took {:?}", started.elapsed());
        let bounded =
            matches!(error, RenderError::TooMuchWork { .. } | RenderError::TooLong { .. });
        assert!(bounded, "{source}: {error}");
    }
    let text =
        RenderError::TooMuchWork { place: Place { locale: "en".to_owned(), field: Field::Title } };
    assert_eq!(
        text.to_string(),
        "en.title does too much work; loop over fewer items, or nest fewer loops"
    );
}

#[test]
fn previews_show_every_delivery_channel() {
    let template = compile(&document()).expect("compiles");
    let preview = template.preview(Some("en"), &Map::new());
    let channels: Vec<DeliveryChannel> = preview.iter().map(|(channel, _)| *channel).collect();
    assert_eq!(channels, DeliveryChannel::ALL);
    for (_, rendered) in preview {
        let rendered = rendered.expect("renders");
        let url = rendered.action.expect("an action").url;
        assert_eq!(url, "https://a.example/runs/7/x/Import");
    }
    let given = vars(&json!({"workflow": "Given", "person": null}));
    for (_, rendered) in template.preview(Some("en"), &given) {
        match rendered.expect("renders").body {
            Body::Email { subject, text, .. } => {
                assert_eq!((subject.as_str(), text.as_str()), ("[x] Given", "Hello Ada"));
            }
            Body::Sms { text } => assert_eq!(text, "Given"),
            _ => {}
        }
    }
    let broken = compile(&one("sms.text", "{{ s }}")).expect("compiles");
    for (channel, rendered) in broken.preview(None, &Map::new()) {
        assert_eq!(rendered.is_err(), channel == DeliveryChannel::Sms, "{channel}");
    }
}

#[test]
fn the_digest_tells_documents_apart() {
    let first = compile(&document()).expect("compiles");
    assert_eq!(compile(&document()).expect("compiles").digest(), first.digest());
    let again = serde_json::to_vec(first.document()).expect("serializes");
    assert_eq!(Template::from_json(&again).expect("compiles").digest(), first.digest());
    let mut other = document();
    other["locales"]["de"]["title"] = json!("{{ workflow }} fertig");
    assert_ne!(compile(&other).expect("compiles").digest(), first.digest());
}
