//! Every way out, and what decides about it: preferences, addresses, the request.

use serde_json::{Value, json};

use super::outside::{Browser, Database, HttpsWebhook, MailServer, mail_header, web_push_toml};
use super::receiver::{Arrived, Receiver, Reply};
use super::{EVERYTHING, HOOK_SECRET, Notifying, hook_toml, setup, with_hook};
use crate::gateway::Gateway;
use crate::socket::Socket;
use crate::support::{eventually, unix_now};
use crate::tls::Authority;

/// A webhook that text messages leave through as well.
fn sms_toml(url: &str) -> String {
    hook_toml(url) + "sms = true\n"
}

fn contacts(gateway: &Gateway, user: &str, more: Value) -> Value {
    let mut body = json!({"user": user});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    gateway.call("contacts", body)
}

fn prefer(gateway: &Gateway, user: &str, patch: Value) {
    gateway.call("preferences", json!({"user": user, "patch": patch}));
}

fn check_webhooks(arrived: &[Arrived]) {
    for one in arrived {
        assert_eq!(one.path, "/hook?t=1");
        assert_eq!(one.header("content-type"), "application/json");
        assert!(one.is_signed_with(HOOK_SECRET), "{one:?}");
        let age = unix_now().abs_diff(one.header("webhook-timestamp").parse().unwrap());
        assert!(age < 60, "signed {age} s ago");
        let data = &one.json()["data"];
        assert_eq!(data["id"], one.header("webhook-id"));
        let id = data["notification_id"].as_str().unwrap();
        assert!(
            one.header("webhook-id").starts_with(&format!("{id}-")) && id.len() == 36,
            "{data}"
        );
        let about = [&data["user_id"], &data["category"], &data["priority"], &data["title"]];
        assert_eq!(json!(about), json!(["ann", "workflow_failed", "high", "Run 7 failed"]));
        assert_eq!(data["message"], "Step \"build\" <1>");
        assert_eq!(data["metadata"], json!({"run": 7}));
        assert_eq!(data["action"]["url"], "https://app.example.com/runs/7");
    }
    let of = |kind: &str| arrived.iter().find(|one| one.json()["type"] == kind).expect(kind).json();
    assert_eq!(of("notification.sms")["data"]["phone"], "+493012345678");
    assert!(of("notification.webhook")["data"]["phone"].is_null());
}

fn check_mail(mail: &Value) {
    assert_eq!(mail["to"], json!(["ann@example.net"]));
    assert_eq!(mail["from"], "gateway@example.com");
    let text = "Step \"build\" <1>\n\nOpen: https://app.example.com/runs/7";
    assert_eq!(mail["text"].as_str().unwrap().trim_end(), text);
    for (name, value) in [
        ("From", "ArchMesh <gateway@example.com>"),
        ("Reply-To", "help@example.com"),
        ("Subject", "Run 7 failed"),
        ("List-Unsubscribe", "<https://app.example.com/unsubscribe>"),
        ("Auto-Submitted", "auto-generated"),
    ] {
        assert_eq!(mail_header(mail, name), value);
    }
}

fn check_push(push: &Receiver, browser: &mut Browser) {
    let pushed = push.await_arrived(1).remove(0);
    assert_eq!((pushed.path.as_str(), pushed.header("urgency")), ("/push/1", "high"));
    assert_eq!((pushed.header("ttl"), pushed.header("content-encoding")), ("86400", "aes128gcm"));
    assert_eq!(pushed.header("topic").len(), 32);
    let opened = browser.open(&pushed);
    assert_eq!(opened["signed"], true, "{opened}");
    assert_eq!(opened["claims"]["sub"], "mailto:ops@example.com");
    assert_eq!(opened["claims"]["aud"], push.url(""));
    let content = &opened["plaintext"];
    assert_eq!(content["title"], "Run 7 failed");
    assert_eq!(content["metadata"]["run"], 7);
}

#[test]
fn one_notification_leaves_by_all_ways() {
    let (database, hook, push) = (Database::new(), Receiver::start(), Receiver::start());
    let (mut mail, mut browser) = (MailServer::start(), Browser::start());
    let parts = [&sms_toml(&hook.url("/hook?t=1")), &mail.toml(), &web_push_toml(), EVERYTHING];
    let gateway = setup(&database, &parts).start();
    let subscription = browser.subscription(&push, "/push/1");
    let all =
        json!({"email": "ann@example.net", "phone": "+493012345678", "web_push": subscription});
    let told = contacts(&gateway, "ann", all);
    assert_eq!(told, json!({"email": "ann@example.net", "phone": "+493012345678", "browsers": 1}));
    let more = json!({
        "message": "Step \"build\" <1>", "priority": "high", "collapse_key": "run-7", "metadata": {"run": 7},
        "action": {"label": "Open", "url": "https://app.example.com/runs/7"},
    });
    let sent = gateway.notify("ann", "Run 7 failed", more);
    assert_eq!((&sent["delivered"], &sent["queued"]), (&json!(1), &json!(4)), "{sent}");
    check_webhooks(&hook.await_arrived(2));
    check_mail(&mail.await_mails(1)[0]);
    check_push(&push, &mut browser);
    gateway.await_rest();
    let sum = |channel, status| json!({"channel": channel, "status": status, "count": 1});
    let expected = json!([
        sum("email", "sent"),
        sum("sms", "delivered"),
        sum("web_push", "sent"),
        sum("webhook", "delivered"),
    ]);
    assert_eq!(gateway.status(&sent)["deliveries"], expected);
    let log = gateway.log.text();
    for secret in ["ann@example.net", "493012345678", "/push/1", HOOK_SECRET, "t=1", "Run 7"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn a_webhook_over_tls_is_checked_by_somebody_else() {
    let database = Database::new();
    let authority = Authority::new();
    let (certificate, key) = (authority.certificate(), authority.key());
    let mut hook = HttpsWebhook::start(&certificate, &key, HOOK_SECRET);
    let gateway = setup(&database, &[&hook_toml(&hook.url()), EVERYTHING])
        .set("delivery.ca_path", authority.ca_file().display())
        .start();
    let sent = gateway.notify("ann", "ü", json!({}));
    let arrived = hook.await_arrived(1);
    assert_eq!(
        (&arrived[0]["good"], &arrived[0]["body"]["data"]["title"]),
        (&json!(true), &json!("ü"))
    );
    gateway.await_deliveries(&sent, "delivered");
}

#[test]
fn nobody_is_told_by_a_way_that_was_not_asked_for() {
    let (database, hook, push) = (Database::new(), Receiver::start(), Receiver::start());
    let (mut mail, browser) = (MailServer::start(), Browser::start());
    let parts = [&sms_toml(&hook.url("/")), &mail.toml(), &web_push_toml(), EVERYTHING];
    let gateway = setup(&database, &parts).start();
    let addresses = json!({
        "email": "ann@example.net", "phone": "12345", "web_push": browser.subscription(&push, "/push"),
    });
    contacts(&gateway, "ann", addresses.clone());
    let ways = |sent: &Value| -> Vec<String> {
        gateway.await_rest();
        let listed = gateway.status(sent)["deliveries"].clone();
        let listed = listed.as_array().unwrap().iter();
        listed.map(|sum| sum["channel"].as_str().unwrap().to_owned()).collect()
    };
    for (channel, others) in [
        ("email", ["sms", "web_push", "webhook"]),
        ("sms", ["email", "web_push", "webhook"]),
        ("web_push", ["email", "sms", "webhook"]),
        ("webhook", ["email", "sms", "web_push"]),
    ] {
        prefer(&gateway, "ann", json!({"channels": {channel: false}}));
        assert_eq!(ways(&gateway.notify("ann", "t", json!({}))), others);
        // Categories count more than delivery channels.
        let category = json!({"categories": {"workflow_failed": {channel: true}}});
        prefer(&gateway, "ann", category);
        assert_eq!(ways(&gateway.notify("ann", "t", json!({}))).len(), 4);
        prefer(&gateway, "ann", json!({"channels": null, "categories": null}));
        let only = gateway.notify("ann", "t", json!({"channels": [channel]}));
        assert_eq!((ways(&only), &only["delivered"]), (vec![channel.to_owned()], &json!(0)));
    }
    prefer(&gateway, "ann", json!({"channels": {"in_app": false}}));
    let sent = gateway.notify("ann", "t", json!({"channels": ["in_app", "webhook"]}));
    assert_eq!((&sent["delivered"], &sent["queued"]), (&json!(0), &json!(1)), "{sent}");
    prefer(&gateway, "ann", json!({"channels": {"webhook": false}}));
    let sent = gateway.notify("ann", "t", json!({"channels": ["in_app", "webhook"]}));
    assert_eq!((&sent["queued"], &sent["opted_out"]), (&json!(0), &json!(1)), "{sent}");
    // Whoever has no address is not told by it, and the others are.
    let sent = gateway.notify("bob", "t", json!({}));
    assert_eq!(ways(&sent), ["webhook"]);
    let nothing = json!({"email": null, "phone": null, "web_push_removed": push.url("/push")});
    let told = contacts(&gateway, "ann", nothing);
    assert_eq!(told, json!({"email": null, "phone": null, "browsers": 0}));
    prefer(&gateway, "ann", json!({"channels": null}));
    assert_eq!(ways(&gateway.notify("ann", "t", json!({}))), ["webhook"]);
    let mails = mail.mails().len();
    assert_eq!((mails, push.arrived().len()), (3 + 4 + 1, 3 + 4 + 1));
}

#[test]
fn without_a_way_out_nothing_is_queued() {
    let database = Database::new();
    let gateway = setup(&database, &[EVERYTHING]).start();
    contacts(&gateway, "ann", json!({"email": "ann@example.net", "phone": "12345"}));
    let sent = gateway.notify("ann", "t", json!({}));
    assert_eq!((&sent["delivered"], &sent["queued"]), (&json!(1), &json!(0)));
    let sent = gateway.notify("ann", "t", json!({"channels": ["email", "sms"]}));
    assert_eq!((&sent["delivered"], &sent["queued"]), (&json!(0), &json!(0)));
    let health = gateway.get("/health/detailed").json();
    assert!(health.to_string().contains("\"delivery_channels\":{}"), "{health}");
}

/// Time of day in UTC, so many hours from now.
fn clock(hours: u64) -> String {
    let minutes = unix_now() / 60 + hours * 60;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

#[test]
fn quiet_hours_hold_mail_but_nothing_critical() {
    let (database, hook, mut mail) = (Database::new(), Receiver::start(), MailServer::start());
    let parts = [&hook_toml(&hook.url("/")), &mail.toml(), EVERYTHING];
    let gateway = setup(&database, &parts).start();
    contacts(&gateway, "ann", json!({"email": "ann@example.net"}));
    let quiet = json!({
        "enabled": true, "from": clock(22), "to": clock(2), "time_zone": "UTC", "channels": ["email"],
    });
    prefer(&gateway, "ann", json!({"quiet_hours": quiet}));
    let held = gateway.notify("ann", "can wait", json!({"priority": "high"}));
    assert_eq!(
        (&held["delivered"], &held["held"], &held["queued"]),
        (&json!(1), &json!(0), &json!(2))
    );
    gateway.notify("ann", "critical", json!({"priority": "critical"}));
    assert_eq!(hook.await_arrived(2).len(), 2, "only mail is quiet");
    let mails = mail.await_mails(1);
    assert_eq!(mail_header(&mails[0], "Subject"), "critical");
    assert_eq!(mails.len(), 1);
    let due = database.numbers("SELECT due_at FROM archmesh_deliveries WHERE status = 'pending'");
    let hours = (due[0] - unix_now().cast_signed() * 1000) / 60_000;
    assert!((118..=121).contains(&hours), "it is held for {hours} minutes");
    assert_eq!(database.let_time_pass(), 1);
    assert_eq!(mail_header(&mail.await_mails(2)[1], "Subject"), "can wait");
    gateway.await_rest();
}

#[test]
fn several_become_one_mail() {
    let (database, mut mail) = (Database::new(), MailServer::start());
    let gateway = setup(&database, &[&mail.toml(), EVERYTHING]).start();
    let every = [json!({"every": "hourly"}), json!({"every": "window", "minutes": 1})];
    for (round, every) in every.into_iter().enumerate() {
        let user = format!("user{round}");
        contacts(&gateway, &user, json!({"email": format!("{user}@example.net")}));
        let mut digest = every.clone();
        digest["categories"] = json!(["workflow_failed"]);
        prefer(&gateway, &user, json!({"digest": {"email": digest}}));
        eventually("the hour does not end soon", || (unix_now() % 3600 < 3590).then_some(()));
        let mut sent = Vec::new();
        for (title, priority) in [("first", "low"), ("second", "high"), ("third", "normal")] {
            let one = gateway.notify(&user, title, json!({"priority": priority}));
            assert_eq!((&one["delivered"], &one["queued"]), (&json!(1), &json!(1)), "{one}");
            sent.push(one);
        }
        // What is not gathered, and what is critical, goes at once.
        gateway.notify(&user, "other", json!({"category": "security"}));
        gateway.notify(&user, "urgent", json!({"priority": "critical"}));
        let before = round * 3;
        let single = mail.await_mails(before + 2);
        assert_eq!(single.len(), before + 2, "the others wait");
        let due = database
            .numbers("SELECT DISTINCT due_at FROM archmesh_deliveries WHERE status = 'pending'");
        assert_eq!(due.len(), 1, "all three are due at once: {due:?}");
        assert_eq!(database.let_time_pass(), 3);
        let digest = mail.await_mails(before + 3).pop().unwrap();
        assert_eq!(mail_header(&digest, "Subject"), "third (+2)", "{every}");
        assert_eq!(digest["text"].as_str().unwrap().trim(), "third\nsecond\nfirst");
        for one in &sent {
            gateway.await_deliveries(one, "sent");
        }
        assert_eq!(mail.mails().len(), before + 3);
    }
}

#[test]
fn a_digest_that_is_not_taken_is_tried_again_under_its_id() {
    /// More than are claimed at once.
    const ITEMS: u64 = 300;
    let (database, hook) = (Database::new(), Receiver::start());
    let gateway = with_hook(&database, &hook).start();
    prefer(&gateway, "ann", json!({"digest": {"webhook": {"every": "window", "minutes": 5}}}));
    let sent: Vec<Value> =
        (0..ITEMS).map(|n| gateway.notify("ann", &format!("n{n}"), json!({}))).collect();
    let mut tries = 0;
    hook.answer(move |_| {
        tries += 1;
        if tries < 4 { Reply::Status(503) } else { Reply::Status(200) }
    });
    assert_eq!(database.let_time_pass(), ITEMS);
    let arrived = hook.await_arrived(4);
    for one in &sent {
        assert_eq!(gateway.await_deliveries(one, "delivered")[0]["attempts"], 4);
    }
    assert_eq!(hook.arrived().len(), 4);
    for one in &arrived {
        assert_eq!(one.header("webhook-id"), arrived[0].header("webhook-id"));
        assert_eq!(one.title(), format!("n{} (+{})", ITEMS - 1, ITEMS - 1));
        let lines: Vec<String> = (0..ITEMS).rev().take(50).map(|n| format!("n{n}")).collect();
        assert_eq!(one.json()["data"]["message"], lines.join("\n"));
    }
}

#[test]
fn a_browser_subscribes_over_its_websocket() {
    let (database, push, mut browser) = (Database::new(), Receiver::start(), Browser::start());
    let web_push = web_push_toml();
    let gateway = setup(&database, &[&web_push, EVERYTHING]).start();
    let mut socket = Socket::connect(&gateway, "ann");
    let key = socket.call("push_subscription", json!({}));
    assert_eq!(key["type"], "push_subscription", "{key}");
    assert_eq!(key["data"]["browsers"], 0);
    let public_key = key["data"]["public_key"].as_str().unwrap().to_owned();
    assert!(web_push.contains(&public_key), "{public_key}");
    let given = json!({"subscription": browser.subscription(&push, "/push/1")});
    for _ in 0..2 {
        let told = socket.call("push_subscription", given.clone());
        assert_eq!(told["data"]["browsers"], 1, "the same one once: {told}");
    }
    let sent = gateway.notify("ann", "hello", json!({}));
    let arrived = push.await_arrived(1);
    assert_eq!(browser.open(&arrived[0])["plaintext"]["title"], "hello");
    assert!(arrived[0].header("authorization").contains(&public_key), "{:?}", arrived[0]);
    gateway.await_deliveries(&sent, "sent");
    for bad in [json!({}), json!({"endpoint": "ftp://x", "keys": {}}), json!("x")] {
        let refused = socket.call("push_subscription", json!({"subscription": bad}));
        assert_eq!(refused["type"], "error", "{refused}");
    }
    let removed = json!({"removed": push.url("/push/1")});
    assert_eq!(socket.call("push_subscription", removed)["data"]["browsers"], 0);
    assert_eq!(gateway.notify("ann", "t", json!({}))["queued"], 0);
}

#[test]
fn without_keys_browsers_are_told_so() {
    let database = Database::new();
    let gateway = setup(&database, &[EVERYTHING]).start();
    let mut socket = Socket::connect(&gateway, "ann");
    let answer = socket.call("push_subscription", json!({}));
    assert_eq!(answer["type"], "error", "{answer}");
    assert!(answer.to_string().contains("web_push.private_key"), "{answer}");
}

#[test]
fn addresses_are_checked_and_replaced() {
    let (database, push, browser) = (Database::new(), Receiver::start(), Browser::start());
    let gateway = setup(&database, &[&web_push_toml(), EVERYTHING]).start();
    for (wrong, expected) in [
        (json!({"email": "ann"}), "ann@example.com"),
        (json!({"email": "a@b\r\nBcc: c@d"}), "ann@example.com"),
        (json!({"phone": "call me"}), "+493012345678"),
        (json!({"web_push": {"endpoint": push.url("/")}}), "PushSubscription.toJSON()"),
        (
            json!({"web_push": {"endpoint": push.url("/"), "keys": {"p256dh": "AA", "auth": "AA"}}}),
            "p256dh",
        ),
        (json!({"fax": "1"}), "unknown field `fax`"),
        (json!({"user": "a b"}), "white space"),
    ] {
        let mut body = json!({"user": "ann"});
        for (name, value) in wrong.as_object().unwrap() {
            body[name] = value.clone();
        }
        let refusal = gateway.refusal("contacts", body);
        assert!(refusal.contains(expected), "{wrong}: {refusal}");
    }
    let none = json!({"email": null, "phone": null, "browsers": 0});
    assert_eq!(contacts(&gateway, "ann", json!({})), none, "nothing of it was kept");
    contacts(&gateway, "ann", json!({"email": "a@example.net", "phone": "12345"}));
    let told = contacts(&gateway, "ann", json!({"email": "b@example.net"}));
    assert_eq!(told, json!({"email": "b@example.net", "phone": "12345", "browsers": 0}));
    assert_eq!(contacts(&gateway, "bob", json!({})), none, "they are not somebody else's");
    for n in 0..12 {
        let subscription = browser.subscription(&push, &format!("/push/{n}"));
        contacts(&gateway, "ann", json!({"web_push": subscription}));
    }
    let told = contacts(&gateway, "ann", json!({"phone": null}));
    assert_eq!(told, json!({"email": "b@example.net", "phone": null, "browsers": 10}));
    gateway.notify("ann", "t", json!({}));
    let paths: Vec<String> = push.await_arrived(10).into_iter().map(|one| one.path).collect();
    assert!(!paths.contains(&"/push/1".to_owned()), "the oldest went: {paths:?}");
}

#[test]
fn nothing_goes_inside_unless_it_is_allowed() {
    let (database, inside, browser) = (Database::new(), Receiver::start(), Browser::start());
    let closed = |parts: &[&str]| {
        let shut = setup(&database, parts).set("webhook.allow_insecure", false);
        shut.set("web_push.allow_insecure", false)
    };
    let mut plain = closed(&[&hook_toml(&inside.url("/")), EVERYTHING]).spawn();
    assert!(!plain.await_exit(crate::support::WAIT).success());
    assert!(plain.log.text().contains("https"), "{}", plain.log.text());
    let hook = inside.url("/").replace("http:", "https:");
    let gateway = closed(&[&hook_toml(&hook), &web_push_toml(), EVERYTHING]).start();
    let mut subscription = browser.subscription(&inside, "/push");
    let body = json!({"user": "ann", "web_push": subscription});
    assert!(gateway.refusal("contacts", body).contains("https"));
    for host in ["127.0.0.1", "[::1]", "localhost", "2130706433", "[::ffff:127.0.0.1]"] {
        let endpoint = subscription["endpoint"].as_str().unwrap().replace("http:", "https:");
        let endpoint = endpoint.replace("127.0.0.1", host);
        let mut one = subscription.clone();
        one["endpoint"] = json!(endpoint);
        contacts(&gateway, "ann", json!({"web_push": one}));
    }
    subscription["endpoint"] = json!("https://10.0.0.1/push");
    contacts(&gateway, "ann", json!({"web_push": subscription}));
    let sent = gateway.notify("ann", "t", json!({}));
    for delivery in gateway.await_deliveries(&sent, "failed") {
        let error = delivery["error"].as_str().unwrap();
        assert!(error.contains("no public address"), "{delivery}");
        assert_eq!(delivery["attempts"], 1);
    }
    assert_eq!(inside.arrived().len(), 0);
}

#[test]
fn a_webhook_inside_opens_nothing_to_users() {
    let (database, inside, browser) = (Database::new(), Receiver::start(), Browser::start());
    let parts = [hook_toml(&inside.url("/hook")), web_push_toml(), EVERYTHING.to_owned()];
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let gateway = setup(&database, &parts).set("web_push.allow_insecure", false).start();
    let mut subscription = browser.subscription(&inside, "/push");
    let body = json!({"user": "ann", "web_push": subscription});
    assert!(gateway.refusal("contacts", body).contains("https"));
    let endpoint = subscription["endpoint"].as_str().unwrap().replace("http:", "https:");
    subscription["endpoint"] = json!(endpoint);
    contacts(&gateway, "ann", json!({"web_push": subscription}));
    let sent = gateway.notify("ann", "t", json!({}));
    assert_eq!(inside.await_arrived(1)[0].path, "/hook", "your own webhook may be inside");
    let error = eventually("the push service was not called", || {
        let listed = gateway.status(&sent)["listed"].clone();
        let mut listed = listed.as_array().unwrap().iter();
        let push = listed.find(|one| one["channel"] == "web_push" && one["status"] == "failed")?;
        Some(push["error"].as_str().unwrap().to_owned())
    });
    assert!(error.contains("no public address"), "{error}");
    assert_eq!(inside.arrived().len(), 1);
}

#[test]
fn who_has_no_address_is_not_who_does_not_want_it() {
    let (database, mails) = (Database::new(), MailServer::start());
    let gateway = setup(&database, &[&mails.toml(), EVERYTHING]).start();
    let to = |user: &str| {
        let sent = gateway.notify(user, "t", json!({"channels": ["email"]}));
        [sent["queued"].clone(), sent["opted_out"].clone(), sent["no_address"].clone()]
    };
    contacts(&gateway, "ann", json!({"email": "ann@example.net"}));
    assert_eq!(to("ann"), [1, 0, 0]);
    assert_eq!(to("bob"), [0, 0, 1]);
    prefer(&gateway, "bob", json!({"channels": {"email": false}}));
    assert_eq!(to("bob"), [0, 1, 0]);
    let labels = [("decision", "no_address")];
    gateway.await_metric("archmesh_notification_recipients_total", &labels, |n| n == 1.0);
}
