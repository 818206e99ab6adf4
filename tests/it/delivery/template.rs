//! Texts from templates: each user's language, versions, previews, and errors that name the place.

use serde_json::{Value, json};

use super::outside::{Database, MailServer, mail_header};
use super::receiver::Receiver;
use super::{EVERYTHING, Notifying, hook_toml, setup};
use crate::gateway::Gateway;

fn document(greeting: &str) -> Value {
    json!({
        "name": "run_failed",
        "variables": {
            "workflow": {"type": "string", "required": true, "sample": "Import"},
            "link": {"type": "url", "sample": "https://app.example.com/runs/1"},
        },
        "locales": {
            "en": {
                "title": "{{ workflow }} failed",
                "message": format!("{greeting}, {{{{ workflow }}}} failed."),
                "action": {"label": "Open {{ workflow }}", "url": "{{ link }}"},
                "email": {
                    "subject": "[ArchMesh] {{ workflow }} failed",
                    "html": "<p>{{ workflow }} <b>failed</b></p>",
                },
                "sms": {"text": "{{ workflow }}!"},
            },
            "de": {
                "title": "{{ workflow }} ist fehlgeschlagen",
                "message": format!("{greeting} auf Deutsch: {{{{ workflow }}}}"),
                "email": {"html": "<p>{{ workflow }} <i>fehlgeschlagen</i></p>"},
            },
        },
        "fallback_locale": "en",
        "category": "workflow_failed",
        "priority": "high",
    })
}

fn store(gateway: &Gateway, document: &Value) -> u64 {
    let stored = gateway.call("templates/store", json!({"document": document}));
    stored["version"].as_u64().unwrap()
}

fn send(gateway: &Gateway, users: &[&str], workflow: &str, more: Value) -> Value {
    let variables = json!({"workflow": workflow, "link": "https://app.example.com/runs/7"});
    let mut body =
        json!({"users": users, "template": {"name": "run_failed", "variables": variables}});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    gateway.result("v1/notifications", &body)
}

fn inbox(gateway: &Gateway, user: &str) -> Value {
    gateway.call("list", json!({"user": user}))["items"][0].clone()
}

#[test]
fn everybody_reads_their_own_language() {
    let (database, hook, mut mail) = (Database::new(), Receiver::start(), MailServer::start());
    let hook_toml = hook_toml(&hook.url("/")) + "sms = true\n";
    let gateway = setup(&database, &[&hook_toml, &mail.toml(), EVERYTHING]).start();
    for (user, locale) in [("ann", "en-GB"), ("bea", "de-AT"), ("cem", "tr")] {
        gateway.call("preferences", json!({"user": user, "patch": {"locale": locale}}));
        gateway.call("contacts", json!({"user": user, "email": format!("{user}@example.net")}));
    }
    gateway.call("contacts", json!({"user": "ann", "phone": "12345"}));
    assert_eq!(store(&gateway, &document("Hello")), 1);
    let sent = send(&gateway, &["ann", "bea", "cem"], "<A & B>", json!({}));
    assert_eq!((&sent["delivered"], &sent["queued"]), (&json!(3), &json!(7)));
    let german = "<A & B> ist fehlgeschlagen";
    for (user, title, message) in [
        ("ann", "<A & B> failed", "Hello, <A & B> failed."),
        ("bea", german, "Hello auf Deutsch: <A & B>"),
        ("cem", "<A & B> failed", "Hello, <A & B> failed."),
    ] {
        let item = inbox(&gateway, user);
        assert_eq!((&item["title"], &item["message"]), (&json!(title), &json!(message)), "{item}");
        assert_eq!(
            (&item["category"], &item["priority"]),
            (&json!("workflow_failed"), &json!("high"))
        );
    }
    assert_eq!(inbox(&gateway, "ann")["action"]["label"], "Open <A & B>");

    let mails = mail.await_mails(3);
    let to = |user: &str| {
        let address = json!([format!("{user}@example.net")]);
        mails.iter().find(|mail| mail["to"] == address).expect(user)
    };
    assert_eq!(mail_header(to("ann"), "Subject"), "[ArchMesh] <A & B> failed");
    assert_eq!(mail_header(to("bea"), "Subject"), german);
    assert_eq!(mail_header(to("cem"), "Subject"), "[ArchMesh] <A & B> failed");
    let html = |user: &str| to(user)["html"].as_str().unwrap().trim().to_owned();
    assert_eq!(html("ann"), "<p>&lt;A &amp; B&gt; <b>failed</b></p>");
    assert_eq!(html("bea"), "<p>&lt;A &amp; B&gt; <i>fehlgeschlagen</i></p>");
    let text = to("bea")["text"].as_str().unwrap();
    assert_eq!(text.trim(), "Hello auf Deutsch: <A & B>");

    let arrived = hook.await_arrived(4);
    let title = |user: &str| {
        let is_theirs = |one: &&super::receiver::Arrived| {
            let body = one.json();
            body["data"]["user_id"] == user && body["type"] == "notification.webhook"
        };
        arrived.iter().find(is_theirs).expect(user).title()
    };
    assert_eq!((title("ann").as_str(), title("bea").as_str()), ("<A & B> failed", german));
    let sms = arrived.iter().find(|one| one.json()["type"] == "notification.sms").unwrap();
    assert_eq!(sms.json()["data"]["message"], "<A & B>!");
    gateway.await_rest();
}

#[test]
fn what_waits_keeps_its_version() {
    let (database, mut mail) = (Database::new(), MailServer::start());
    let gateway = setup(&database, &[&mail.toml(), EVERYTHING]).start();
    gateway.call("contacts", json!({"user": "ann", "email": "ann@example.net"}));
    assert_eq!(store(&gateway, &document("Old")), 1);
    let soon = json!({"deliver_at": (crate::support::unix_now() + 3600) * 1000});
    let waiting = send(&gateway, &["ann"], "Import", soon);
    assert_eq!((&waiting["held"], &waiting["queued"]), (&json!(1), &json!(1)), "{waiting}");
    assert_eq!(store(&gateway, &document("New")), 2);
    assert_eq!(store(&gateway, &document("New")), 2, "an equal document gets no version");
    drop(gateway);
    // Not from what the process had compiled either.
    let gateway = setup(&database, &[&mail.toml(), EVERYTHING]).start();
    assert_eq!(database.let_time_pass(), 2);
    let old = mail.await_mails(1).remove(0);
    assert!(old["text"].as_str().unwrap().starts_with("Old, Import failed."), "{old}");
    gateway.await_rest();
    assert_eq!(inbox(&gateway, "ann")["message"], "Old, Import failed.");
    send(&gateway, &["ann"], "Import", json!({}));
    assert!(mail.await_mails(2)[1]["text"].as_str().unwrap().starts_with("New"));
    let template = json!({"name": "run_failed", "version": 1, "variables": {"workflow": "Import"}});
    let pinned = json!({"user": "ann", "template": template, "category": "security"});
    gateway.result("v1/notifications", &pinned);
    assert!(mail.await_mails(3)[2]["text"].as_str().unwrap().starts_with("Old"));
    let item = inbox(&gateway, "ann");
    assert_eq!(item["category"], "security", "the request counts more");
    assert!(item["action"].is_null(), "an action without its link is left out: {item}");

    let all = gateway.call("templates", json!({"name": "run_failed"}))["templates"].clone();
    let versions: Vec<&Value> =
        all.as_array().unwrap().iter().map(|template| &template["version"]).collect();
    assert_eq!(versions, [&json!(2), &json!(1)]);
    assert_eq!(all[1]["document"], document("Old"));
    let newest = gateway.call("templates", json!({}))["templates"].clone();
    assert_eq!((newest.as_array().unwrap().len(), &newest[0]["version"]), (1, &json!(2)));
}

#[test]
fn a_preview_shows_every_delivery_channel() {
    let database = Database::new();
    let gateway = setup(&database, &[]).start();
    let preview = |body: Value| gateway.call("templates/preview", body)["channels"].clone();
    let shown = preview(json!({"document": document("Hi"), "locale": "de"}));
    assert_eq!(shown["in_app"]["title"], "Import ist fehlgeschlagen", "{shown}");
    assert_eq!(shown["email"]["html"], "<p>Import <i>fehlgeschlagen</i></p>");
    for channel in ["in_app", "email", "web_push", "webhook", "sms"] {
        assert_eq!(shown[channel]["locale"], "de", "{channel}: {shown}");
    }
    let stored = gateway.call("templates", json!({}))["templates"].clone();
    assert_eq!(stored, json!([]), "a preview stores nothing");
    store(&gateway, &document("Hi"));
    let shown = preview(json!({"name": "run_failed", "variables": {"workflow": "Nightly"}}));
    assert_eq!(shown["sms"]["text"], "Nightly!");
    assert_eq!(shown["email"]["subject"], "[ArchMesh] Nightly failed");
    let shown = preview(json!({"name": "run_failed", "variables": {"workflow": 7}}));
    assert!(shown["in_app"]["error"].as_str().unwrap().contains("workflow"), "{shown}");
    for (wrong, expected) in [
        (json!({}), "either `document` or `name`"),
        (json!({"name": "nothing"}), "no template `nothing`"),
        (json!({"name": "run_failed", "version": 9}), "no template `run_failed`"),
    ] {
        let refused = gateway.refusal("templates/preview", wrong);
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn errors_name_the_place() {
    let database = Database::new();
    let gateway = setup(&database, &[]).start();
    let changed = |pointer: &str, value: Value| {
        let mut document = document("Hi");
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[name] = value;
        gateway.refusal("templates/store", json!({"document": document}))
    };
    for (pointer, value, expected) in [
        ("/locales/de/title", json!("{{ workflo }}"), "de.title: workflo"),
        ("/locales/en/email/html", json!("<p>\n{{ workflow"), "en.email.html, line 2"),
        ("/locales/en/email/html", json!("<script>x</script>"), "en.email.html"),
        ("/locales/en/message", json!("{% for x in workflow %}"), "en.message"),
        ("/locales/en/titel", json!("x"), "titel"),
        ("/fallback_locale", json!("fr"), "fallback_locale"),
        ("/variables/workflow/type", json!("text"), "variables.workflow.type"),
        ("/priority", json!("urgent"), "priority"),
        ("/name", json!("no name"), "name"),
    ] {
        let refused = changed(pointer, value);
        assert!(refused.contains(expected), "{pointer}: {refused}");
        assert!(refused.contains("`document`"), "{refused}");
    }
    assert_eq!(gateway.call("templates", json!({}))["templates"], json!([]));
    store(&gateway, &document("Hi"));
    for (template, expected) in [
        (json!({"name": "run_failed"}), "variables are missing: workflow"),
        (json!({"name": "run_failed", "variables": {"workflow": "a", "x": 1}}), "unknown: x"),
        (json!({"name": "run_failed", "variables": {"workflow": true}}), "variable workflow"),
        (
            json!({"name": "run_failed", "variables": {"workflow": "a", "link": "javascript:alert(1)"}}),
            "variable link",
        ),
        (json!({"name": "nothing"}), "no template `nothing`"),
    ] {
        let refused = gateway.refusal("", json!({"user": "ann", "template": template}));
        assert!(refused.contains(expected), "{template}: {refused}");
    }
    let both =
        json!({"user": "ann", "title": "t", "message": "m", "template": {"name": "run_failed"}});
    assert!(gateway.refusal("", both).contains("`template` alone"));
    let counters = gateway.call("list", json!({"user": "ann"}));
    assert_eq!(counters["unread"], 0, "nothing of it was sent");
}
